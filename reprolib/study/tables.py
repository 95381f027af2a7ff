r"""The tables that a paper would print, from finished runs: value ± half the width of the interval, and significance.

The same runs give the same bytes. ``latex`` needs the package booktabs; ``markdown`` is for a README; ``csv`` has one
row per number, unrounded.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reprolib.errors import InputError, nearest
from reprolib.study import provenance, records
from reprolib.study.records import Record

# What a table shows of the main results, in this order; COLUMNS has the studies that are about other metrics. The
# paired differences are those of the first.
METRICS = (
    "R@1", "R@5", "R@10", "MRR", "skewness", "hub share", "L2M", "RMG", "share of texts in top-10 of texts",
    "share of images in top-10 of images", "nDCG@10 mixed, texts", "nDCG@10 mixed, images", "V-measure", "ARI",
    "modality in clusters",
)  # fmt: skip
_SHARES = re.compile(
    r"^(R@\d+.*|.*\bshare( difference)?|(gap )?share of .*|nDCG@\d+.*|mAP.*|R-precision.*|accuracy.*)$"
)
COLUMNS = {
    "intra-modal-inversion": ("mAP", "mAP@R", "R-precision", "R@1", "skewness"),
    "paper-versus-code": ("R@1", "mAP@R", "mAP", "L2M", "skewness"),
}
LEVELS = ((0.01, "‡"), (0.05, "†"))  # p after Holm below the first: the mark
_TEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "→": r"$\rightarrow$", "±": r"$\pm$", "×": r"$\times$", "−": "$-$", "†": r"$\dagger$",
    "‡": r"$\ddagger$", "τ": r"$\tau$", "β": r"$\beta$", "λ": r"$\lambda$",
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One number of a table; ``p`` is its p-value after Holm's correction, None where nothing was tested."""

    record: Record
    p: float | None = None

    @property
    def half(self) -> float | None:
        """Half the width of the interval, None without one."""
        low, high = self.record.ci_low, self.record.ci_high
        return None if low is None or high is None else (high - low) / 2

    @property
    def mark(self) -> str:
        """``‡`` or ``†`` where the difference is significant, else nothing."""
        return next((mark for level, mark in LEVELS if self.p is not None and self.p < level), "")

    def texts(self) -> tuple[str, str]:
        """Return value and half-width as they are printed; the half-width is empty without an interval."""
        if self.record.value is None or self.half is None:
            return printed(self.record.metric, self.record.value)[0], ""
        value, half = printed(self.record.metric, self.record.value, self.half)
        return value, half


@dataclass(frozen=True)
class Table:
    """A table: ``heads`` name the columns of text that begin each row, ``columns`` those of numbers."""

    title: str
    note: str
    heads: tuple[str, ...]
    columns: tuple[str, ...]
    rows: list[tuple[tuple[str, ...], list[Cell | None]]]


def is_share(metric: str) -> bool:
    """Return whether a metric is a share, which is printed in percent."""
    return bool(_SHARES.match(metric))


def metrics_of(study: str) -> tuple[str, ...]:
    """Return the metrics that tables on a study show, in this order."""
    return COLUMNS.get(study, METRICS)


def printed(metric: str, value: float | None, *others: float) -> list[str]:
    """Return numbers of a metric as they are printed: shares in percent, all with the decimals of ``value``."""
    if value is None:
        return ["–"] * (1 + len(others))
    scale, size = 100 if is_share(metric) else 1, abs(value)
    decimals = 1 if scale == 100 or size >= 10 else 2 if size >= 1 else 3
    return [f"{round(scale * x, decimals) + 0.0:.{decimals}f}".replace("-", "−") for x in (value, *others)]  # no -0.0


def build(runs: Iterable[Path]) -> list[Table]:
    """Return the tables of these runs: main results per dataset, model and direction, then the study's comparisons.

    Raises :class:`RunError` for a folder that is no finished run, :class:`InputError` for one without valid results.
    """
    tables = []
    for run in runs:
        title = provenance.read(run, study=True)["title"]
        found = records.load(run)
        tables += [*_main(title, found), *_comparisons(title, found)]
    return tables


def render(tables: Sequence[Table], form: str) -> str:
    """Return ``tables`` as text: "latex", "markdown" or "csv". Raises :class:`InputError` for another form."""
    if form not in FORMS:
        raise nearest(form, FORMS, "format")
    if not tables:
        raise InputError("these runs hold no main results and no comparisons, so there is no table to print")
    return FORMS[form](tables)


# --- what stands in them ------------------------------------------------------------------------------------


def groups(rows: Iterable[Record], *names: str) -> dict[tuple[Any, ...], list[Record]]:
    """Return the records by the values of these fields, in the order in which they occur."""
    found: dict[tuple[Any, ...], list[Record]] = {}
    for row in rows:
        found.setdefault(tuple(getattr(row, name) for name in names), []).append(row)
    return found


def _main(study: str, found: Sequence[Record]) -> list[Table]:
    main = [record for record in found if record.table in (None, "main")]
    tested = {
        (*_about(record), record.metric.removesuffix(" difference")): record.p_holm
        for record in found
        if record.table == "difference" and record.reference == "none"
    }
    tables = []
    for (dataset, model, direction), group in groups(main, "dataset", "model", "direction").items():
        names = list(dict.fromkeys(record.metric for record in group))
        wanted = metrics_of(group[0].study)
        shown = tuple(metric for metric in wanted if metric in names) or tuple(names[: len(wanted)])
        rows: dict[tuple[str, ...], list[Cell | None]] = {}
        for record in group:
            heads = (record.method or "–", settings(record.parameters), record.bank or "")
            cells = rows.setdefault(heads, [None] * len(shown))
            if record.metric in shown:
                p = tested.get((*_about(record), record.metric))
                cells[shown.index(record.metric)] = Cell(record, p)
        table = [(heads, cells) for heads, cells in rows.items() if any(cells)]
        note = _note([cell for _, cells in table for cell in cells if cell], "none")
        title = _title(study, direction, dataset, model)
        tables.append(Table(title, note, ("method", "settings", "bank"), tuple(map(head, shown)), table))
    return tables


def _comparisons(study: str, found: Sequence[Record]) -> list[Table]:
    """Return the comparisons that answer a study's question: a row for each, a column for each direction."""
    tables = []
    asked = [record for record in found if record.table == "question"]
    for (dataset, model), group in groups(asked, "dataset", "model").items():
        directions = tuple(dict.fromkeys(record.direction for record in group))
        rows = []
        for (metric,), same in groups(group, "metric").items():
            by = {record.direction: Cell(record, record.p_holm) for record in same}
            rows.append(((metric.replace(" difference: ", ": "),), [by.get(direction) for direction in directions]))
        columns = tuple(f"{arrow(direction)}, points" if direction else "difference" for direction in directions)
        note = _note([cell for _, cells in rows for cell in cells if cell], "no difference")
        tables.append(Table(_title(study, "comparisons", dataset, model), note, ("comparison",), columns, rows))
    return tables


def _about(record: Record) -> tuple[Any, ...]:
    about = (record.dataset, record.model, record.direction, record.method)
    return (*about, settings(record.parameters), record.bank)


def settings(parameters: Mapping[str, Any]) -> str:
    """Return parameters as short text: beta 20, k 10."""
    return ", ".join(f"{name} {_value(value)}" for name, value in parameters.items() if value is not None)


def _value(value: Any) -> str:
    if isinstance(value, list):
        return " | ".join(map(_value, value))  # one for each split
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _note(cells: Sequence[Cell], reference: str) -> str:
    """Return what must be said under a table: the number of queries, and what ± and the marks mean where they occur."""
    counts = {cell.record.n for cell in cells if cell.record.n is not None}
    tests = f"‡ p < 0.01, † p < 0.05 against {reference} (paired permutation test, Holm's correction)"
    said = (
        f"n = {counts.pop():,}" if len(counts) == 1 else "",
        "± half the width of the 95 % interval" if any(cell.half is not None for cell in cells) else "",
        tests if any(cell.mark for cell in cells) else "",
    )
    return "; ".join(filter(None, said))


def _title(*parts: str | None) -> str:
    return " · ".join(arrow(part) for part in parts if part)


def arrow(text: str | None) -> str:
    """Return a direction as it is printed: text → image."""
    return (text or "").replace("->", " → ")


def head(metric: str) -> str:
    """Return a metric as the head of a column."""
    return f"{metric}, %" if is_share(metric) else metric


# --- as text ------------------------------------------------------------------------------------------------


def _latex(tables: Sequence[Table]) -> str:
    return "\n".join(map(_latex_table, tables))


def _latex_table(table: Table) -> str:
    heads = _used(table)
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_tex('. '.join(filter(None, (table.title, table.note))))}.}}",
        rf"\begin{{tabular}}{{{'l' * len(heads)}{'r' * len(table.columns)}}}",
        r"\toprule",
        _tex_row([*(table.heads[place] for place in heads), *table.columns]),
        r"\midrule",
        *(" & ".join([*(_tex(texts[place]) for place in heads), *map(_tex_cell, cells)]) + r" \\"
          for texts, cells in table.rows),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
        "",
    ]  # fmt: skip
    return "\n".join(lines)


def _tex_row(texts: Iterable[str]) -> str:
    return " & ".join(map(_tex, texts)) + r" \\"


def _tex_cell(cell: Cell | None) -> str:
    if cell is None:
        return ""
    value, half = cell.texts()
    if not half:
        return _tex(value)
    mark = {"†": r"^{\dagger}", "‡": r"^{\ddagger}", "": ""}[cell.mark]
    return f"${value.replace('−', '-')} \\pm {half}{mark}$"


def _tex(text: str) -> str:
    """Return ``text`` with everything escaped that TeX would read as a command."""
    return "".join(_TEX.get(character, character) for character in " ".join(text.split()))


def _markdown(tables: Sequence[Table]) -> str:
    return "\n".join(map(_markdown_table, tables))


def _markdown_table(table: Table) -> str:
    heads = _used(table)
    lines = [
        f"**{_plain(table.title)}**",
        "",
        _bars(_plain(text) for text in [*(table.heads[place] for place in heads), *table.columns]),
        _bars(["---"] * len(heads) + ["---:"] * len(table.columns)),
        *(_bars([*(_plain(texts[place]) for place in heads), *map(_words, cells)]) for texts, cells in table.rows),
        *(["", f"{_plain(table.note)}."] if table.note else []),
        "",
    ]
    return "\n".join(lines)


def _bars(texts: Iterable[str]) -> str:
    return f"| {' | '.join(texts)} |"


def _words(cell: Cell | None) -> str:
    if cell is None:
        return ""
    value, half = cell.texts()
    return " ".join(filter(None, (value, half and f"± {half}", cell.mark)))


def _plain(text: str) -> str:
    """Return ``text`` with everything escaped that Markdown would read as mark-up."""
    return re.sub(r"([\\`*_{}\[\]<>|#~])", r"\\\1", " ".join(text.split()))


def _used(table: Table) -> list[int]:
    """Return which columns of text say anything."""
    return [place for place in range(len(table.heads)) if any(texts[place] for texts, _ in table.rows)]


def _csv(tables: Sequence[Table]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = ("table", "dataset", "model", "direction", "method", "settings", "bank", "metric", "value", "half_width",
             "ci_low", "ci_high", "n", "p_holm", "mark")  # fmt: skip
    writer.writerow(names)
    for table in tables:
        for cell in (cell for _, cells in table.rows for cell in cells if cell):
            r = cell.record
            writer.writerow(
                (table.title, *_about(r), r.metric, r.value, cell.half, r.ci_low, r.ci_high, r.n, cell.p, cell.mark)
            )
    return out.getvalue()


FORMS: dict[str, Callable[[Sequence[Table]], str]] = {"latex": _latex, "markdown": _markdown, "csv": _csv}
