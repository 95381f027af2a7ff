"""The report: finished runs as one HTML file that opens with the network off.

Figures are inlined, formulas become MathML, and whatever would load from elsewhere is taken out of the
notebooks. The page is a function of the runs, the ledger and the margins: no date of its own, so the same runs give
the same bytes. Its one script sorts and filters tables; without it the page is complete.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import logging
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import nbformat
from bs4 import BeautifulSoup, Tag
from latex2mathml.converter import convert
from nbconvert.exporters import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from pygments.formatters import HtmlFormatter
from traitlets.config import Config

from reprolib import __version__
from reprolib.errors import RunError
from reprolib.study import board, provenance, records
from reprolib.study.records import Record
from reprolib.study.tables import METRICS, arrow, groups, head, is_share, metrics_of, printed, settings

_QUIET = logging.Logger("nbconvert", logging.ERROR)  # it warns of missing alternative text, which is added here
_WIDGET = "application/vnd.jupyter.widget-view+json"
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@dataclass(frozen=True)
class Figure:
    """A figure of a run, ready to be inlined: ``source`` is a data URI."""

    name: str
    source: str
    alt: str
    caption: str


@dataclass(frozen=True)
class Table:
    """A table of texts; the cells of a row are (text, interval) but for the first, which is its heading."""

    title: str
    note: str
    columns: list[str]
    rows: list[tuple[str, list[tuple[str, str]]]]
    corner: str = "method"


def find_runs(folder: Path) -> list[Path]:
    """Return the finished runs in ``folder``, by name; hidden folders (unfinished, failed) are no runs."""
    return sorted(path.parent for path in folder.glob(f"*/{provenance.RUN}") if not path.parent.name.startswith("."))


def build(runs: Sequence[Path], out: Path) -> Path:
    """Write the report on ``runs`` to ``out``, all or nothing, and return ``out``.

    Raises :class:`RunError` for a folder that is not a finished run, :class:`InputError` for invalid results.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("reprolib.study", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    results = [_result(path, f"run-{number}") for number, path in enumerate(runs, 1)]
    page = environment.get_template("report.html.j2").render(
        board=board.board(results),
        symbols=board.SYMBOLS,
        question=board.QUESTION,
        steps=board.STEP_NAMES,
        answers=board.answers(results),
        runs=[_run(path, result) for path, result in zip(runs, results, strict=True)],
        audit=board.audit(results),
        environments=_environments(results),
        floors=board.floors(),
        version=__version__,
        light=HtmlFormatter(style="friendly").get_style_defs(".highlight"),
        dark=HtmlFormatter(style="github-dark").get_style_defs(".highlight"),
    )
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(page, encoding="utf-8")
        os.replace(partial, out)
    except OSError as error:
        raise RunError(f"cannot write the report {out}: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)
    return out


def print_pdf(page: Path, out: Path) -> Path:
    """Print the report ``page`` through Chromium into ``out``; RunError if none is installed or it fails."""
    browser = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if browser is None:
        raise RunError(f"no Chromium is installed ({', '.join(_BROWSERS)}); open {page} and print it from a browser")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    with tempfile.TemporaryDirectory() as profile:
        options = ["--headless", "--disable-gpu", "--no-pdf-header-footer", f"--user-data-dir={profile}"]
        options += ["--no-sandbox"] * (os.geteuid() == 0)  # Chromium refuses its sandbox to root
        command = [browser, *options, f"--print-to-pdf={partial.resolve()}", page.resolve().as_uri()]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=300)
            os.replace(partial, out)
        except (OSError, subprocess.SubprocessError) as error:
            raise RunError(f"{browser} did not print {page}: {error}") from error
        finally:
            partial.unlink(missing_ok=True)
    return out


def _result(path: Path, slug: str) -> board.Result:
    facts = provenance.read(path, study=True)
    found = records.load(path) if (path / records.RESULTS).exists() else []
    return board.Result(slug, path.resolve().name, facts, found)


def _run(path: Path, result: board.Result) -> dict[str, Any]:
    """Return what the template shows of one run."""
    facts, found, slug = result.facts, result.records, result.slug
    figures = _figures(path / "figures")
    parts = _notebook(path / facts["notebook"]["name"], figures, slug)
    return {
        "slug": slug,
        "name": result.name,
        "facts": facts,
        "datasets": ", ".join(dict.fromkeys(record.dataset for record in found)),
        "models": ", ".join(dict.fromkeys(record.model for record in found if record.model)),
        "tables": [*_questions(found), *_summary(found), *_differences(found), *_changes(found)],
        # A figure that the notebook shows stands there, with its caption; the others come before it.
        "figures": [figure for figure in figures if f"{slug}-figure-{figure.name}" not in parts["notebook"]],
        **parts,
        "memory": facts.get("peak_memory_bytes"),
    }


def _environments(results: Sequence[board.Result]) -> list[tuple[Mapping[str, Any], list[board.Result]]]:
    """Return each environment with the runs that were made in it."""
    found: dict[str, list[board.Result]] = {}
    for result in results:
        found.setdefault(json.dumps(result.facts["environment"], sort_keys=True), []).append(result)
    return [(same[0].facts["environment"], same) for same in found.values()]


# --- tables -------------------------------------------------------------------------------------------------


def _cell(record: Record | None) -> tuple[str, str]:
    """Return a record's value and its interval as text; shares in percent."""
    if record is None:
        return "", ""
    if record.ci_low is None or record.ci_high is None:
        return printed(record.metric, record.value)[0], ""
    value, low, high = printed(record.metric, record.value, record.ci_low, record.ci_high)
    return value, f"{low} to {high}"


def _summary(results: Sequence[Record]) -> list[Table]:
    """Return the main results, a table for each dataset, model and direction, a row for each method."""
    main = [record for record in results if record.table in (None, "main")]
    tables = []
    for (study, dataset, model, direction), rows in groups(main, "study", "dataset", "model", "direction").items():
        names = list(dict.fromkeys(row.metric for row in rows))
        shown = [metric for metric in metrics_of(study) if metric in names] or names[:6]
        methods = {}
        for row in rows:
            methods.setdefault((row.method, settings(row.parameters), row.bank), {})[row.metric] = row
        methods = {about: cells for about, cells in methods.items() if not cells.keys().isdisjoint(shown)}
        banks = {bank for _, _, bank in methods} - {None, "none"}
        body = []
        for (method, set_to, bank), cells in methods.items():
            source = bank if bank in banks and len(banks) > 1 else ""
            about = "; ".join(filter(None, (set_to, source)))
            body.append((method or "", [(about, ""), *(_cell(cells.get(metric)) for metric in shown)]))
        counts = {row.n for row in rows if row.n is not None and row.metric in shown}
        note = [
            f"n = {counts.pop():,}" if len(counts) == 1 else "",
            f"bank: {banks.pop()}" if len(banks) == 1 else "",
        ]
        title = _title(arrow(direction), dataset, model)
        tables.append(Table(title, "; ".join(filter(None, note)), ["settings", *map(head, shown)], body))
    return tables


def _differences(results: Sequence[Record]) -> list[Table]:
    """Return the paired differences in the study's first metric, a table for each dataset, model and direction."""
    rows = [row for row in results if row.table == "difference" and row.metric in _named(metrics_of(row.study)[0])]
    tables = []
    for (study, dataset, model, direction), group in groups(rows, "study", "dataset", "model", "direction").items():
        first = metrics_of(study)[0]
        references = list(dict.fromkeys(row.reference for row in group))
        body = []
        for (method, grouping), same in _grouped(group).items():
            compared = {row.reference: row for row in same}
            cells = []
            for reference in references:
                row = compared.get(reference)
                cells += [_cell(row), (_probability(row.p_holm) if row else "", "")]
            body.append((", ".join(filter(None, (method, grouping))), cells))
        columns = [text for reference in references for text in (f"minus {reference}, points", "p (Holm)")]
        title = f"{_title(arrow(direction), dataset, model)}: differences in {first}"
        note = "paired by query; permutation test, p after Holm's correction"
        tables.append(Table(title, note, columns, body))
    return tables


def _named(metric: str) -> tuple[str, str]:
    return metric, f"{metric} difference"


def _grouped(rows: Sequence[Record]) -> dict[tuple[str, str], list[Record]]:
    """Return the records by method and by what counts as relevant, where that varies."""
    found: dict[tuple[str, str], list[Record]] = {}
    for row in rows:
        grouping = row.parameters.get("grouping")
        found.setdefault((row.method or "", f"same {grouping}" if grouping else ""), []).append(row)
    return found


def _changes(results: Sequence[Record]) -> list[Table]:
    """Return the differences of what has no direction, a row for each method and a column for each metric."""
    named = {f"{metric} difference": metric for metric in METRICS}
    rows = [row for row in results if row.table == "difference" and not row.direction and row.metric in named]
    tables = []
    for (dataset, model, reference), group in groups(rows, "dataset", "model", "reference").items():
        present = {row.metric for row in group}
        metrics = [name for name in named if name in present]
        body = []
        for (method,), same in groups(group, "method").items():
            found = {row.metric: row for row in same}
            cells = []
            for row in map(found.get, metrics):
                value, interval = _cell(row)
                clear = row is not None and row.p_holm is not None and row.p_holm < 0.05
                cells.append((f"{value}*" if clear else value, interval))
            body.append((method or "", cells))
        columns = [f"{named[name]}{', points' if is_share(name) else ''}" for name in metrics]
        title = f"{_title(dataset, model)}: differences from {reference}"
        note = "paired; * p < 0.05 by the permutation test after Holm's correction, for what has a value per query"
        tables.append(Table(title, note, columns, body))
    return tables


def _questions(results: Sequence[Record]) -> list[Table]:
    """Return the comparisons that answer the study's question, a table for each dataset and model.

    The metric of such a record names the comparison ("R@1 difference: A - B"), or else method and reference do.
    """
    tables = []
    rows = [row for row in results if row.table == "question"]
    for (dataset, model), group in groups(rows, "dataset", "model").items():
        directions = list(dict.fromkeys(row.direction for row in group))
        what = group[0].metric.split(" difference", 1)[0]
        body = []
        named: dict[str, list[Record]] = {}
        for row in group:
            named.setdefault(_comparison(row), []).append(row)
        for name, compared in named.items():
            found = {row.direction: row for row in compared}
            cells = []
            for row in map(found.get, directions):
                cells += (
                    [_cell(row), (_probability(row.p_value if row.p_holm is None else row.p_holm), "")]
                    if row
                    else [("", "")] * 2
                )
            body.append((name, cells))
        unit = ", points" if is_share(what) else ""
        columns = [text for direction in directions for text in (f"{arrow(direction)}{unit}", "p")]
        title = _title("The question", dataset, model)
        tables.append(Table(title, f"paired differences in {what}", columns, body, "comparison"))
    return tables


def _comparison(row: Record) -> str:
    """Return what a record of a question compares."""
    _, separate, named = row.metric.partition(" difference: ")
    grouping = row.parameters.get("grouping")
    return named if separate else f"{row.method} - {row.reference}" + (f", same {grouping}" if grouping else "")


def _title(*parts: str | None) -> str:
    return " · ".join(filter(None, parts))


def _probability(p: float | None) -> str:
    return "" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


# --- figures and notebooks ----------------------------------------------------------------------------------


def _figures(folder: Path) -> list[Figure]:
    figures = []
    for path in sorted(folder.glob("*.png")):
        sidecar = path.with_suffix(".json")
        words = json.loads(sidecar.read_text(encoding="utf-8")) if sidecar.is_file() else {}
        source = f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
        caption = words.get("caption", "")
        figures.append(Figure(path.stem, source, words.get("alt") or caption or path.stem, caption))
    return figures


def mathml(tex: str, *, block: bool = False) -> str:
    """Return a TeX formula as MathML, or its source as code where it cannot be converted."""
    try:
        return convert(tex, display="block" if block else "inline")
    except Exception:  # the converter raises errors of many classes, some its own, some IndexError and the like
        return f"<code class='tex'>{html.escape(tex)}</code>"


class _Renderer(IPythonRenderer):
    def block_math(self, body: str) -> str:
        return mathml(body.strip(), block=True)

    def inline_math(self, body: str) -> str:
        return mathml(body.strip())

    def latex_environment(self, name: str, body: str) -> str:
        return mathml(rf"\begin{{{name}}}{body}\end{{{name}}}", block=True)


def _markdown(source: str) -> str:
    return MarkdownWithMath(renderer=_Renderer(escape=False, exclude_anchor_links=True)).render(source)


def _notebook(path: Path, figures: Sequence[Figure], slug: str) -> dict[str, str]:
    """Return an executed notebook as HTML fragments without scripts or addresses that load anything.

    ``notebook`` is the whole; ``question`` is the text under its title, and ``conclusion`` that of the cells
    tagged so, Markdown cells and Markdown that code cells display.
    """
    if not path.is_file():
        return dict.fromkeys(("notebook", "question", "conclusion"), "")
    kinds = [
        "text/html",
        "text/markdown",
        "image/svg+xml",
        "image/png",
        "image/jpeg",
        "text/latex",
        "text/plain",
    ]
    exporter = HTMLExporter(
        template_name="basic",
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        log=_QUIET,
        config=Config({"NbConvertBase": {"display_data_priority": kinds}}),
    )
    exporter.register_filter("markdown2html", _markdown)
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:  # a progress bar says nothing once it is done
        if "outputs" in cell:
            cell.outputs = [output for output in cell.outputs if _WIDGET not in output.get("data", {})]
    whole, _ = exporter.from_notebook_node(notebook)
    titled = (re.split(r"^# .+$", cell.source, maxsplit=1, flags=re.M) for cell in notebook.cells)
    question = next((parts[1] for parts in titled if len(parts) == 2), "")
    concluding = [cell for cell in notebook.cells if "conclusion" in cell.metadata.get("tags", [])]
    texts = {
        "notebook": whole,
        "question": _markdown(re.split(r"^#", question, maxsplit=1, flags=re.M)[0]),
        "conclusion": _markdown("\n\n".join(text for cell in concluding for text in _texts(cell))),
    }
    slugs = {"notebook": slug, "question": f"{slug}-question", "conclusion": f"{slug}-conclusion"}
    return {part: _fit(text, figures, slugs[part]) for part, text in texts.items()}


def _texts(cell: nbformat.NotebookNode) -> list[str]:
    """Return the Markdown of a cell, without headings."""
    found = [cell.source] if cell.cell_type == "markdown" else []
    found += [output.get("data", {}).get("text/markdown", "") for output in cell.get("outputs", [])]
    return [re.sub(r"^#+ .*$", "", text, flags=re.M) for text in found]


def _fit(fragment: str, figures: Sequence[Figure], slug: str) -> str:
    soup = BeautifulSoup(fragment, "html.parser")
    _disarm(soup)
    _describe(soup, figures)
    _nest(soup, slug)
    return str(soup)


def _disarm(soup: BeautifulSoup) -> None:
    """Take out what runs, and what would load from elsewhere."""
    for tag in soup.find_all(["script", "link", "iframe", "object", "embed", "base", "meta"]):
        tag.decompose()
    for tag in soup.find_all(True):
        for name in list(tag.attrs):
            value = str(tag[name]).strip()
            loads = name in ("src", "srcset", "poster", "data", "background") and not value.startswith("data:")
            if name.startswith("on") or loads or (name == "style" and "url(" in value):
                del tag[name]
        if tag.name == "style" and re.search(r"@import|url\(", tag.get_text()):
            tag.decompose()
    for image in soup.find_all("img"):
        if not image.get("src"):
            image.replace_with("[a picture from elsewhere is not shown]")


def _describe(soup: BeautifulSoup, figures: Sequence[Figure]) -> None:
    """Give every picture alternative text, and those that are figures of the run their captions."""
    known = {hashlib.sha256(figure.source.encode()).digest(): figure for figure in figures}
    heading = "the beginning"
    for tag in soup.find_all(["h1", "h2", "h3", "h4", "h5", "h6", "img"]):
        if tag.name != "img":
            heading = tag.get_text(" ", strip=True)
            continue
        figure = known.get(hashlib.sha256("".join(str(tag["src"]).split()).encode()).digest())
        if figure:
            tag["alt"] = figure.alt
            frame = tag.wrap(soup.new_tag("figure", attrs={"id": f"figure-{figure.name}"}))
            if figure.caption and figure.caption not in soup.get_text():
                caption = soup.new_tag("figcaption")
                caption.string = figure.caption
                frame.append(caption)
        elif not tag.get("alt") or str(tag["alt"]).startswith("No description"):
            tag["alt"] = f"Picture under the heading “{heading}”; its numbers are in the run's results."
        tag["loading"] = "lazy"


def _nest(soup: BeautifulSoup, slug: str) -> None:
    """Fit a notebook into the page: headings two levels down, unique names, folded code, wide tables."""
    for level in range(6, 0, -1):
        for heading in soup.find_all(f"h{level}"):
            heading.name = f"h{min(level + 2, 6)}"
    for tag in soup.find_all(id=True):
        tag["id"] = f"{slug}-{tag['id']}"
    for link in soup.find_all("a", href=re.compile("^#")):
        link["href"] = f"#{slug}-{link['href'][1:]}"
    for table in soup.find_all("table"):
        del table["border"]
        table.wrap(soup.new_tag("div", attrs={"class": "scroll", "tabindex": "0"}))
    for block in soup.select("div.input"):
        if isinstance(block, Tag) and block.get_text(strip=True):
            details = soup.new_tag("details", attrs={"class": "code"})
            summary = soup.new_tag("summary")
            summary.string = "code"
            block.wrap(details)
            details.insert(0, summary)
