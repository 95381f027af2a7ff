"""Figures of the intra-modal inversion study: from its records and neighbours to drawings.

``records`` as in ``reprolib.figures.hubness``; the grouping that says what is relevant (the same character, say) is
their parameter ``grouping``. mAP is stored as a fraction and shown in percent; intervals are those of the records.
Each function raises InputError when a column or the records that it needs are missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from reprolib.errors import InputError, nearest
from reprolib.figures.artefacts import Records, frame, interval, once, select, signed, subject, values_of
from reprolib.figures.hub_table import LINE, SIZE, caption_of, fit, show_picture, write_lines
from reprolib.figures.style import (
    BLACK,
    BLUE,
    DASHDOT,
    DASHED,
    DOTTED,
    DOUBLE,
    GREEN,
    GREY,
    ORANGE,
    SINGLE,
    SKY,
    SOLID,
    VERMILLION,
    Drawing,
    Look,
    legend_below,
    look_of_value,
    panels,
    styled,
)

__all__ = ["LOOKS", "gap_table", "methods", "neighbours", "steps"]

LOOKS: Mapping[str, Look] = {
    "none": Look("native", BLACK, "X", DOTTED),
    "inversion": Look("inverted, all steps", VERMILLION, "s", SOLID),
    "inversion-stopped": Look("inverted, early stopping", VERMILLION, "s", DASHED, filled=False),
    "inversion-average": Look("native + inverted", ORANGE, "P", SOLID),
    "random-token": Look("random token, 0 steps", GREY, "D", DASHDOT),
    "random-map": Look("random map", GREY, "D", DOTTED, filled=False),
    "mean-centring": Look("mean-centring", SKY, "<", SOLID),
    "pca": Look("PCA", GREEN, "^", SOLID),
    "whitening": Look("whitening", GREEN, "v", DASHED),
    "isoclip": Look("IsoCLIP", BLUE, "o", SOLID),
}
PICTURE = 0.3  # inches, of a neighbour's picture


def case(direction: str, grouping: str) -> str:
    """Return a task with its grouping as it is printed."""
    return f"{direction.replace('->', ' → ')}, same {grouping}"


def _cases(rows: pd.DataFrame) -> list[tuple[str, str]]:
    """Return the (direction, grouping) pairs of records in their order."""
    return list(dict.fromkeys(zip(rows["direction"], [p.get("grouping", "") for p in rows["parameters"]], strict=True)))


def _of(rows: pd.DataFrame, direction: str, grouping: str) -> pd.DataFrame:
    named = rows["parameters"].map(lambda p: p.get("grouping", "") == grouping)
    return rows[(rows["direction"] == direction) & named]


def _reach(row: Any) -> list[list[float]]:
    """Return the lengths of one error bar in percent."""
    return [[100 * (row["value"] - row["ci_low"])], [100 * (row["ci_high"] - row["value"])]]


@styled
def methods(records: Records, metric: str = "mAP") -> Drawing:
    """Draw ``metric`` (a share, in percent) by method, and its paired difference to native, per task and grouping.

    Tables "main" (above) and "difference" (below), with intervals. A marker is filled where the method differs from
    native with a Holm-corrected p below 0.05. The random token is told in words: it would press all else together.
    """
    rows, tests = select(records, "main", metric), select(records, "difference", f"{metric} difference")
    if unknown := sorted(set(rows["method"]) - set(LOOKS)):
        raise nearest(unknown[0], LOOKS, "method")
    chosen = [name for name in LOOKS if name in set(rows["method"]) and name != "random-token"]
    cases, height = _cases(rows), 1.2 + 0.34 * len(chosen)
    width = SINGLE if len(cases) == 1 else DOUBLE
    figure, axes = panels(len(cases), 2, width=width, height=height, sharey="row")
    sentences, left_out = [], []
    for upper, lower, (direction, grouping) in zip(*axes, cases, strict=True):
        here, tested = (_of(table, direction, grouping).set_index("method") for table in (rows, tests))
        native, words = here.loc["none"], []
        upper.axvspan(100 * native["ci_low"], 100 * native["ci_high"], color=BLACK, alpha=0.08, linewidth=0)
        for ax, line in ((upper, 100 * native["value"]), (lower, 0)):
            ax.axvline(line, color=BLACK, linestyle=DOTTED, linewidth=1)
        for method in (name for name in chosen if name in here.index):
            style, clear = LOOKS[method], method == "none" or tested.loc[method, "p_holm"] < 0.05
            point = {"color": style.colour, "elinewidth": 1.1, "marker": style.marker, "markersize": 4.8}
            point["markerfacecolor"] = style.colour if clear else "white"
            words.append(f"{style.label} {interval(here.loc[method])}")
            for ax, table, at in ((upper, here, chosen.index(method)), (lower, tested, chosen.index(method) - 1)):
                if method in table.index:
                    row = table.loc[method]
                    ax.errorbar(100 * row["value"], at, xerr=_reach(row), **point)
            if method != "none":
                row = tested.loc[method]
                value, low, high = (signed(100 * row[name]) for name in ("value", "ci_low", "ci_high"))
                words[-1] += f", difference {value} ({low} to {high}), Holm p {_p(row['p_holm'])}"
        if "random-token" in here.index:
            left_out.append(f"{interval(here.loc['random-token'])} in {case(direction, grouping)}")
        upper.set(title=_broken(case(direction, grouping)), xlabel=f"{metric} (%)", ylim=(len(chosen) - 0.4, -0.6))
        room = " " if len(cases) <= 3 else "\n"
        lower.set(xlabel=f"Δ{metric} to native{room}(points)", ylim=(len(chosen) - 1.4, -0.6))
        for ax in (upper, lower):
            ax.tick_params(axis="y", length=0)
            ax.locator_params(axis="x", nbins=5)
        sentences.append(f"{case(direction, grouping)}: {'; '.join(words)}.")
    for ax, names in ((axes[0][0], chosen), (axes[1][0], chosen[1:])):
        ax.set_yticks(range(len(names)), [LOOKS[name].label for name in names])
    dot = {"marker": "o", "markersize": 4.4, "color": BLACK, "linestyle": "None"}
    differs = {"differs from native, Holm-corrected p < 0.05": Line2D([], [], **dot),
               "p ≥ 0.05": Line2D([], [], markerfacecolor="white", **dot)}  # fmt: skip
    legend_below(figure, [], differs)
    note = f" Not drawn: random token, 0 steps, {'; '.join(left_out)}." if left_out else ""
    alt = f"{metric} by method and difference to native, with 95 % intervals. {' '.join(sentences)}{note}"
    caption = (
        f"{metric} of intra-modal retrieval on the test split, by method (above), and its paired difference to native "
        f"(below){subject(rows)}. Only the query is inverted; the linear controls map query and gallery. Bars: 95 % "
        "intervals; dotted: native; filled: differs from native (paired permutation test, Holm-corrected p < 0.05)."
        f"{note}{_queries(rows)}"
    )
    return Drawing(figure, alt, caption)


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


def _broken(text: str) -> str:
    """Break a panel's title after its first comma."""
    return text.replace(", ", ",\n", 1)


def _queries(rows: pd.DataFrame) -> str:
    counts = rows.dropna(subset=["n"]).groupby("direction", sort=False)["n"].max()
    words = [f"{int(n):,} ({name.replace('->', ' → ')})" for name, n in counts.items()]
    return f" Queries: {', '.join(words)}."


def _series(parameters: Mapping[str, Any]) -> str:
    """Return the name of a line: its number of tokens, and its template where there is one."""
    tokens, template = int(parameters["tokens"]), parameters.get("template")
    unit = "patch" if template is None else "token"
    count = f"{tokens} {unit}{'' if tokens == 1 else 'es' if unit == 'patch' else 's'}"
    return count + (f", “{template}”" if template is not None else "")


@styled
def steps(records: Records, groupings: Mapping[str, str] | None = None) -> Drawing:
    """Draw mAP of inverted queries (above) and the inversion loss (below) against the steps; table "curve".

    A column per task; ``groupings`` names the grouping of each (default: its first). A line per number of tokens and
    template. The dotted line is native; the ring marks the steps that validation chose for the
    first line (table "main").
    """
    rows, losses = select(records, "curve", "mAP"), select(records, "curve", "loss")
    main, base = select(records, "main", "mAP"), rows[rows["method"] == "none"]
    rows = rows[rows["method"] != "none"]
    chosen = dict(reversed(_cases(rows))) | dict(groupings or {})
    tasks = list(dict.fromkeys(rows["direction"]))
    figure, axes = panels(len(tasks), 2, height=3.6, sharex="col", gridspec_kw={"height_ratios": [1.5, 1]})
    series = list(dict.fromkeys(_series(p) for p in rows["parameters"]))
    first = {task: _series(p) for task, p in zip(rows["direction"][::-1], rows["parameters"][::-1], strict=True)}
    looks = {name: look_of_value(place, name) for place, name in enumerate(series)}
    ring = {"marker": "o", "markersize": 9, "markerfacecolor": "none", "color": BLACK, "linestyle": "None"}
    sentences = []
    for upper, lower, task in zip(*axes, tasks, strict=True):
        here, words = _of(rows, task, chosen[task]), []
        native = _of(base, task, chosen[task]).iloc[0]
        upper.axhline(100 * native["value"], **LOOKS["none"].line(marker="None"), zorder=1.5)
        upper.axhspan(100 * native["ci_low"], 100 * native["ci_high"], color=BLACK, alpha=0.08, linewidth=0)
        words.append(f"native is at {interval(native)}")
        for name, style in looks.items():
            for ax, table, scale in ((upper, here, 100), (lower, _of(losses, task, chosen[task]), 1)):
                line = table[[_series(p) == name for p in table["parameters"]]]
                if line.empty:
                    continue
                line = once(line.assign(x=values_of(line, "steps")).sort_values("x"), ["direction", "x"])
                ax.plot(line["x"], scale * line["value"], **style.line(markersize=3))
                if name == first[task]:  # the bands of all lines would hide each other
                    ends = (scale * line[end] for end in ("ci_low", "ci_high"))
                    ax.fill_between(line["x"], *ends, color=style.colour, alpha=0.13, linewidth=0)
                best, last = line.loc[line["value"].idxmax()], line.iloc[-1]
                words.append(
                    f"{name}: highest {interval(best)} at {best['x']:,g} steps, {interval(last)} at {last['x']:,g}"
                    if ax is upper
                    else f"loss {line['value'].iloc[0]:.2f} at {line['x'].iloc[0]:,g}, {last['value']:.2f} at the end"
                )
        stopped = _of(main, task, chosen[task])
        for parameters in stopped.loc[stopped["method"] == "inversion-stopped", "parameters"]:
            known = [_series(p) == first[task] and p["steps"] == parameters["steps"] for p in here["parameters"]]
            height = 100 * here.loc[known, "value"]
            upper.plot([parameters["steps"]], height, **ring, markeredgewidth=0.9, zorder=4)
            words.append(f"validation stops at {parameters['steps']:,g} steps")
        for ax in (upper, lower):
            ax.set_xscale("symlog", linthresh=1, linscale=0.4)
            ax.set_xlim(left=-0.15)
        ticks = [tick for tick in (0, 1, 10, 100, 1000, 10000) if tick <= values_of(here, "steps").max()]
        lower.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        lower.minorticks_off()
        upper.set_title(case(task, chosen[task]))
        lower.set_xlabel("optimisation steps")
        sentences.append(f"{case(task, chosen[task])}: {'; '.join(words)}.")
    axes[0][0].set_ylabel("mAP, test split (%)")
    axes[1][0].set_ylabel("loss $1 - \\cos$")
    legend_below(figure, axes[0], {"steps chosen on validation": Line2D([], [], **ring)})
    alt = f"mAP of inverted queries and inversion loss against optimisation steps. {' '.join(sentences)}"
    caption = (
        f"mAP of inverted queries on the test split (above) and the loss of the inversion (below) against its steps"
        f"{subject(rows)}. Bands: 95 % intervals, of native and of the first line; dotted line: native queries; ring: "
        f"the steps chosen on validation. A lower loss need not mean better retrieval.{_queries(rows)}"
    )
    return Drawing(figure, alt, caption)


@styled
def gap_table(records: Records) -> Drawing:
    """Draw the gap-closing table: gap, native and inverted mAP and their difference per temperature; table "gap".

    Metrics "modality gap", "mAP" (methods none and inversion-stopped) and "mAP difference"; parameters grouping and
    temperature (None: the model as it is). The better of native and inverted is bold where the interval of the
    difference excludes 0; arrows say which way.
    """
    rows = select(records, "gap", "mAP")
    differences = select(records, "gap", "mAP difference")
    gaps = select(records, "gap", "modality gap")
    cases, variants = _cases(rows), list(dict.fromkeys(p["temperature"] for p in rows["parameters"]))
    columns = (0.08, 1.15, 2.45, 3.8, 5.15)  # inches
    height = 0.4 + sum(0.32 + 0.19 * len(variants) for _ in cases)
    figure = Figure((DOUBLE, height))
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set_axis_off()
    heads = ("temperature", "gap", "native mAP (%)", "inverted mAP (%)", "inverted − native (points)")
    for x, head in zip(columns, heads, strict=True):
        write_lines(ax, x, 0.16, head, weight="bold")
    y, sentences = 0.3, []
    ax.plot([0.06, DOUBLE - 0.06], [y, y], color=BLACK, linewidth=0.8)
    for direction, grouping in cases:
        y += 0.14
        write_lines(ax, columns[0], y, case(direction, grouping), style="italic")
        words = []
        for variant in variants:
            y += 0.19
            gap = _at(gaps, variant).iloc[0]
            found = _at(_of(rows, direction, grouping), variant).set_index("method")
            native = found.loc["none"]
            inverted = found.drop(index="none").iloc[0]
            difference = _at(_of(differences, direction, grouping), variant).iloc[0]
            sign = int(difference["ci_low"] > 0) - int(difference["ci_high"] < 0)
            name = "as trained" if variant is None else f"τ = {variant:g}"
            low, high = (signed(100 * difference[end]) for end in ("ci_low", "ci_high"))
            told = f"{signed(100 * difference['value'])} ({low} to {high})"
            write_lines(ax, columns[0] + 0.1, y, name)
            write_lines(ax, columns[1], y, interval(gap, percent=False))
            for x, row, wins in ((columns[2], native, sign < 0), (columns[3], inverted, sign > 0)):
                write_lines(ax, x, y, interval(row).replace(" %", ""), weight="bold" if wins else "normal")
            write_lines(ax, columns[4], y, {1: "▲ ", 0: "– ", -1: "▼ "}[sign] + told)
            words.append(f"{name}: gap {gap['value']:.2f}, native {interval(native)}, inverted {interval(inverted)}, "
                         f"difference {told} points")  # fmt: skip
        y += 0.18
        ax.plot([0.06, DOUBLE - 0.06], [y, y], color=GREY, linewidth=0.4)
        sentences.append(f"{case(direction, grouping)}: {'; '.join(words)}.")
    ax.set(xlim=(0, DOUBLE), ylim=(height, 0))
    alt = f"Table of native and inverted mAP for models of different modality gaps. {' '.join(sentences)}"
    caption = (
        f"Does the gap decide? Models fine-tuned at several temperatures{subject(rows)}: length of the gap vector, mAP "
        "of native and of inverted queries on the test split, and their paired difference, with 95 % intervals. "
        "▲ inverted is better, ▼ native is better, – the interval covers 0. Compare also down a column: the sign of "
        "the difference says nothing of absolute quality."
    )
    return Drawing(figure, alt, caption)


def _at(rows: pd.DataFrame, variant: float | None) -> pd.DataFrame:
    return rows[[p["temperature"] == variant for p in rows["parameters"]]]


@styled
def neighbours(
    rows: pd.DataFrame, pictures: Mapping[str, np.ndarray] | None = None, captions: Mapping[str, str] | None = None
) -> Drawing:
    """Draw the nearest neighbours of some queries, native on the left and by another method on the right.

    ``rows`` has one row per (query_id, method) with ``neighbours``, ``correct`` (lists, best first), ``AP`` and the
    task's ``direction`` and ``grouping``, which are the same throughout. Items with a picture are shown by it, others
    by their text. Right and wrong neighbours differ in frame (solid, dotted) or sign (✓, ✗).
    """
    rows = frame(rows, ("direction", "grouping", "query_id", "method", "neighbours", "correct", "AP"))
    if rows.empty or rows.groupby("direction")["grouping"].nunique().to_list() != [1]:
        raise InputError("neighbours are drawn for one task and one grouping at a time")
    pictures, captions = pictures or {}, captions or {}
    pictured = all(
        name in pictures for name in [*rows["query_id"], *(n for names in rows["neighbours"] for n in names)]
    )
    queries, sides = list(dict.fromkeys(rows["query_id"])), list(dict.fromkeys(rows["method"]))
    most = max(map(len, rows["neighbours"]))
    column = 0.5 if pictured else 1.5  # of the queries
    half = (DOUBLE - column - 0.06) / 2
    shown = min(most, int((half - 0.5) / (PICTURE + 0.04)) if pictured else 4)
    tall = PICTURE + 0.09 if pictured else LINE * shown + 0.08
    height = 0.4 + tall * len(queries) + 0.24
    figure = Figure((DOUBLE, height))
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set_axis_off()
    write_lines(ax, 0.06, 0.14, "query", weight="bold")
    sentences = []
    for place, query in enumerate(queries):
        y = 0.36 + tall * (place + 0.5)
        if pictured:
            show_picture(ax, 0.06 + PICTURE / 2, y, PICTURE, pictures[query], "")
        else:
            write_lines(ax, 0.06, y, fit(caption_of(query, captions), column - 0.16, 3), size=SIZE)
        words = []
        for number, method in enumerate(sides):
            left = 0.06 + column + number * half
            row = rows[(rows["query_id"] == query) & (rows["method"] == method)].iloc[0]
            write_lines(ax, left + 0.3, y, f"{100 * row['AP']:.0f}", ha="right")
            for i, (name, right) in enumerate(list(zip(row["neighbours"], row["correct"], strict=True))[:shown]):
                sign = "✓" if right else "✗"
                if pictured:
                    show_picture(ax, left + 0.4 + PICTURE / 2 + (PICTURE + 0.04) * i, y, PICTURE, pictures[name], sign)
                else:
                    at = y + LINE * (i - (shown - 1) / 2)
                    write_lines(ax, left + 0.4, at, sign, size=SIZE)
                    write_lines(ax, left + 0.52, at, fit(caption_of(name, captions), half - 0.62), size=SIZE)
            hits = sum(map(bool, row["correct"][:shown]))
            words.append(f"{_label(method)}: {hits} of the {shown} nearest are right, AP {100 * row['AP']:.0f} %")
        ax.plot([0.06, DOUBLE - 0.06], [y - tall / 2] * 2, color="#D8D8D8", linewidth=0.4)
        sentences.append(f"{caption_of(query, captions)}: {'; '.join(words)}.")
    for number, method in enumerate(sides):
        left = 0.06 + column + number * half
        write_lines(ax, left + 0.3, 0.14, "AP (%)" if not pictured else "AP", ha="right")
        write_lines(ax, left + 0.4, 0.14, _label(method), weight="bold")
    key = "✓ right, ✗ wrong" if not pictured else "solid frame: right; dotted frame: wrong; AP in percent"
    write_lines(ax, DOUBLE / 2, height - 0.11, key, ha="center")
    ax.set(xlim=(0, DOUBLE), ylim=(height, 0))
    here = case(rows["direction"].iloc[0], rows["grouping"].iloc[0])
    alt = f"Nearest neighbours of {len(queries)} queries, {here}. {' '.join(sentences)}"
    caption = (
        f"The {shown} nearest neighbours of some queries, {here}{subject(rows)}: {_label(sides[0])} on the left, "
        f"{_label(sides[1])} on the right, best first ({key}). Queries from the largest loss of average precision to "
        "the largest gain."
    )
    return Drawing(figure, alt, caption)


def _label(method: str) -> str:
    return LOOKS[method].label if method in LOOKS else method
