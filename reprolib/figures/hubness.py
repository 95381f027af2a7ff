"""Figures of the hubness study: from its records, k-occurrences and hubs to drawings.

``records`` is the DataFrame (or list of dicts) of ``results.json``: columns direction, method, parameters,
bank, metric, value, ci_low, ci_high, n, table, reference, p_holm. Recall is stored as a fraction and shown
in percent; every interval is the 95 % interval of the records. Each function raises InputError when a
column or the records that it needs are missing, when a method is unknown, or when several records claim the
same point (filter by dataset, model or bank first).
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from scipy.special import gammainc

from reprolib.errors import InputError
from reprolib.figures.artefacts import (
    PARAMETERS,
    UNBOUNDED,
    Records,
    directions_of,
    every_record,
    frame,
    interval,
    methods_of,
    number,
    once,
    queries,
    select,
    signed,
    subject,
    title,
    values_of,
)
from reprolib.figures.hub_table import hubs
from reprolib.figures.style import (
    BLACK,
    DOUBLE,
    GREY,
    METHODS,
    SINGLE,
    Drawing,
    Look,
    legend_below,
    log_axis,
    look,
    look_of_value,
    panels,
    styled,
)

__all__ = [
    "ablation",
    "bank_size",
    "bank_source",
    "differences",
    "hubs",
    "k_occurrence",
    "skewness_against_recall",
    "temperature",
]

# What is drawn where all methods would be too many.
FAMILY_HEADS = ("none", "is", "dual-is", "nnn", "sinkhorn", "invgc")


def _reach(rows: pd.DataFrame, scale: float) -> np.ndarray:
    """Return the lengths [2, n] of error bars; zero where a record has no interval."""
    ends = [rows["value"] - rows["ci_low"], rows["ci_high"] - rows["value"]]
    return scale * np.nan_to_num(np.clip(np.array(ends, dtype=float), 0, None))


def _line(ax: Axes, rows: pd.DataFrame, style: Look, place: tuple[int, int], scale: float) -> None:
    """Draw column ``x`` of one series against its value: interval as a band, or as bars for more than four.

    ``place`` is (which, of how many): later lines are thinner and have smaller markers, so that none hides
    another; bars are set apart by 1 % of the (logarithmic) axis.
    """
    later = place[0] / max(place[1] - 1, 1)
    shape = style.line(linewidth=1.9 - 0.8 * later, markersize=5.4 - 1.7 * later, zorder=2 + later)
    y, low, high = (scale * rows[name] for name in ("value", "ci_low", "ci_high"))
    if place[1] > 4:
        span = rows["x"].max() / rows["x"].min() if rows["x"].min() > 0 else 1.0
        apart = rows["x"] * span ** (0.01 * (place[0] - (place[1] - 1) / 2))
        ax.errorbar(apart, y, _reach(rows, scale), **shape, elinewidth=0.6)
        return
    ax.plot(rows["x"], y, **shape)
    ax.fill_between(rows["x"], low, high, color=style.colour, alpha=0.1, linewidth=0)
    for edge in (low, high):
        ax.plot(rows["x"], edge, color=style.colour, linestyle=style.linestyle, linewidth=0.4, alpha=0.7)


def _level(ax: Axes, rows: pd.DataFrame, scale: float, upright: bool = False) -> list[str]:
    """Draw "none" as a line across the panel with its interval as a band; return what it says in words."""
    if rows.empty:
        return []
    row, style = rows.iloc[0], look("none")
    line, span = (ax.axvline, ax.axvspan) if upright else (ax.axhline, ax.axhspan)
    line(scale * row["value"], **style.line(marker="None"), zorder=1.5)
    if pd.notna(row["ci_low"]) and pd.notna(row["ci_high"]):
        span(scale * row["ci_low"], scale * row["ci_high"], color=style.colour, alpha=0.08, linewidth=0)
    return [f"none is at {interval(row, percent=scale == 100)}"]


def _baseline(records: Records, rows: pd.DataFrame, metric: str, split: str) -> pd.DataFrame:
    """Return the records of "none": of the table drawn, else of table main, which is on the test split."""
    found = rows[rows["method"] == "none"]
    if found.empty and split == "test":
        main = every_record(records)
        found = main[(main["table"] == "main") & (main["metric"] == metric) & (main["method"] == "none")]
    return found


@styled
def k_occurrence(
    occurrences: pd.DataFrame, methods: Sequence[str] | None = None, direction: str | None = None, k: int = 10
) -> Drawing:
    """Draw how often gallery items are among the ``k`` nearest of a query, before and after correction.

    ``occurrences`` has one row per (direction, method, replicate, gallery item) with ``n_k``, zeros
    included; replicates are pooled. Above: share of items with N_k >= n, both axes logarithmic, which shows
    the hubs. Below: share of items with N_k = 0, the anti-hubs, which a logarithmic axis cannot show. The
    grey reference is Poisson with the same mean: what neighbours drawn at random would give. Without
    ``methods``: one of each family.
    """
    rows = frame(occurrences, ("direction", "method", "n_k"))
    if direction is not None:
        rows = rows[rows["direction"] == direction]
    if rows.empty:
        raise InputError(f"no k-occurrences for direction {direction!r}" if direction else "no k-occurrences")
    chosen = methods_of(rows, methods or [name for name in FAMILY_HEADS if name in set(rows["method"])])
    rows = rows[rows["method"].isin(chosen)]
    directions = directions_of(rows)
    lower_part = 0.17 * len(chosen) + 0.1
    figure, axes = panels(
        len(directions), 2, height=2.25 + lower_part, sharey="row", sharex="row",
        gridspec_kw={"height_ratios": [1.75, lower_part]},
    )  # fmt: skip
    sentences, floor = [], 1.0
    for upper, lower, name in zip(*axes, directions, strict=True):
        here = rows[rows["direction"] == name]
        words = []
        for position, method in enumerate(chosen):
            n_k = here.loc[here["method"] == method, "n_k"].to_numpy()
            if not len(n_k):
                continue
            values, counts = np.unique(n_k, return_counts=True)
            share = np.cumsum(counts[::-1])[::-1] / len(n_k)
            floor = min(floor, share[-1])
            seen, style, anti = values > 0, look(method), float(np.mean(n_k == 0))
            steps = style.line(drawstyle="steps-pre", markevery=0.14, markersize=3.5)
            upper.plot(values[seen], 100 * share[seen], **steps)
            upper.plot(values[-1:], 100 * share[-1:], **style.line(label="_end", markersize=3.5))
            lower.plot([0, 100 * anti], [position] * 2, **style.line(markevery=[1], clip_on=False, zorder=3))
            words.append(f"{style.label}: {100 * anti:.1f} % of items with N_k = 0, largest N_k {values[-1]:,}")
        mean = float(here["n_k"].mean())
        chance = {"color": GREY, "linewidth": 0.9, "label": "chance (Poisson)", "zorder": 1.5}
        at = np.arange(1, 100 + int(3 * mean))
        poisson = gammainc(at, mean)  # P(N >= n)
        shown = poisson > floor / 2
        upper.plot(at[shown], 100 * poisson[shown], drawstyle="steps-pre", **chance)
        lower.axvline(100 * np.exp(-mean), **chance)
        sentences.append(f"{title(name)}: {'; '.join(words)}; mean N_k {mean:.1f}.")
        upper.set_title(title(name))
        upper.set_xlabel(f"$n$ (queries that have the item in their top {k})")
        lower.set_xlabel("anti-hubs: items with $N_k = 0$ (%)")
        lower.grid(axis="y", visible=False)
    top = max(2, rows["n_k"].max())
    for upper in axes[0]:
        log_axis(upper, "x", 1, top, figure.get_figwidth() / len(directions) - 0.6)
        log_axis(upper, "y", 100 * floor, 100, 1.5)
        upper.set_ylim(100 * floor / 1.5, 140)
    axes[0][0].set_ylabel("items with $N_k$ ≥ $n$ (%)")
    axes[1][0].set_yticks(range(len(chosen)), [look(method).label for method in chosen])
    axes[1][0].set_ylim(len(chosen) - 0.4, -0.6)
    axes[1][0].set_xlim(0, max(1.0, axes[1][0].get_xlim()[1]))
    axes[1][0].locator_params(axis="x", nbins=6)
    legend_below(figure, axes[0])
    alt = f"Distribution of the {k}-occurrence N_k over gallery items, log-log. {' '.join(sentences)}"
    caption = (
        f"How often gallery items are among the {k} nearest of a query, before (none) and after correction"
        f"{subject(rows)}. Above: share of items with at least n occurrences; a line that reaches further "
        "right has larger hubs. Below: share of items that no query retrieves. Grey: items drawn at random "
        "(Poisson, same mean)."
    )
    return Drawing(figure, alt, caption)


@styled
def temperature(
    records: Records,
    tuned: Mapping[str, Any] | None = None,
    split: str = "test",
    methods: Sequence[str] | None = None,
    metric: str = "R@1",
) -> Drawing:
    """Draw ``metric`` (a share, in percent) against the inverse temperature; table "temperature".

    x is ``beta``, ``query_beta`` of the dual methods, 1 / ``tau`` of transport. The dual methods are drawn at
    their tuned ``gallery_beta``, or at the one best in the records where that is unknown; the legend gives it.
    A ring marks the value
    tuned on validation. ``tuned`` maps a method to its beta or to its parameters, or a direction to such a
    mapping; without it, the parameters of table "main" are taken. ``split`` names the split on which the
    records were measured.
    """
    rows = select(records, "temperature", metric)
    base = _baseline(records, rows, metric, split)
    rows = rows[rows["method"] != "none"].assign(
        x=lambda r: values_of(r, "beta"), gallery=lambda r: values_of(r, "gallery_beta")
    )
    chosen = methods_of(rows, methods)
    rows = rows[rows["method"].isin(chosen) & (rows["x"] > 0)]
    if rows.empty:
        raise InputError("no record of table 'temperature' has a positive beta")
    directions = directions_of(rows)
    best = {(d, m): _tuned(records, tuned, metric, d, m) for d in directions for m in chosen}
    lines, gallery, guessed = {}, {method: [] for method in chosen}, False
    for (direction, method), parameters in best.items():
        line = rows[(rows["direction"] == direction) & (rows["method"] == method)]
        if line["gallery"].notna().any():
            at = number(parameters.get("gallery_beta"))
            if not np.isclose(line["gallery"], at).any():
                at, guessed = line.loc[line["value"].idxmax(), "gallery"], True
            line = line[np.isclose(line["gallery"], at)]
            gallery[method].append(f"{at:g}")
        elif any("gallery_beta" in p for p in line["parameters"]):
            gallery[method].append("tuned per split")
        lines[direction, method] = once(line.sort_values("x"), ["direction", "method", "x"])
    ring = {"marker": "o", "markersize": 9, "markerfacecolor": "none", "color": BLACK, "linestyle": "None"}
    figure, axes = panels(len(directions), height=2.7, sharex=True)
    sentences = []
    for ax, direction in zip(axes[0], directions, strict=True):
        words = _level(ax, base[base["direction"] == direction], 100)
        for place, method in enumerate(chosen):
            line = lines[direction, method]
            if line.empty:
                continue
            style, name = look(method), look(method).label
            if gallery[method]:
                style = style._replace(label=f"{name}, gallery β: {' | '.join(dict.fromkeys(gallery[method]))}")
                at = line["gallery"].iloc[0]
                name = f"{name} (gallery β {'tuned per split' if np.isnan(at) else f'= {at:g}'})"
            _line(ax, line, style, (place, len(chosen)), 100)
            peak = line.loc[line["value"].idxmax()]
            words.append(f"{metric} of {name} peaks at β = {peak['x']:g} with {interval(peak)}")
            parameters = best[direction, method]
            found = parameters.get("beta", parameters.get("query_beta"))
            betas = {number(beta) for beta in (found if isinstance(found, list) else [found])}
            if "tau" in parameters:
                taus = parameters["tau"]
                betas = {1 / number(tau) for tau in (taus if isinstance(taus, list) else [taus])}
            for beta in sorted(b for b in betas if line["x"].min() <= b <= line["x"].max()):
                height = 100 * np.interp(np.log(beta), np.log(line["x"]), line["value"])
                ax.plot([beta], [height], **ring, markeredgewidth=0.9, zorder=4)
                words.append(f"a β tuned on validation is {beta:g}, with {height:.1f} %")
        sentences.append(f"{title(direction)}: {'; '.join(words)}.")
        ax.set_title(title(direction))
        ax.set_xlabel(PARAMETERS["beta"][0])
        log_axis(ax, "x", rows["x"].min(), rows["x"].max(), figure.get_figwidth() / len(directions) - 0.6)
    axes[0][0].set_ylabel(f"{metric}, {split} split (%)")
    marked = "tuned on validation" in " ".join(sentences)
    legend_below(figure, axes[0], {"tuned on validation": Line2D([], [], **ring)} if marked else None)
    alt = f"{metric} in percent ({split} split) against the inverse temperature β. {' '.join(sentences)}"
    caption = (
        f"{metric} on the {split} split against the inverse temperature{subject(rows)}. "
        f"{'Bands' if len(chosen) <= 4 else 'Bars (set apart sideways)'}: 95 % intervals."
        + (" Dotted line: no correction." if len(base) else "")
        + (" Ring: a value tuned on the validation split." if marked else "")
        + (" Where no gallery β was tuned, a dual method is drawn at the best one here." if guessed else "")
        + queries(rows)
    )
    return Drawing(figure, alt, caption)


def _tuned(
    records: Records, tuned: Mapping[str, Any] | None, metric: str, direction: str, method: str
) -> Mapping[str, Any]:
    """Return the tuned parameters of ``method``: from ``tuned``, or those that table "main" reports."""
    if tuned is None:
        rows = every_record(records)
        rows = rows[(rows["table"] == "main") & (rows["metric"] == metric) & (rows["direction"] == direction)]
        found = rows.loc[rows["method"] == method, "parameters"]
        return found.iloc[0] if len(found) else {}
    parameters = tuned.get(direction, tuned).get(method, {})
    return {"beta": parameters} if isinstance(parameters, Real) else parameters


@styled
def ablation(
    records: Records,
    x: str,
    *,
    table: str | None = None,
    series: str = "method",
    panel: str = "direction",
    metric: str = "R@1",
    split: str = "test",
    methods: Sequence[str] | None = None,
) -> Drawing:
    """Draw ``metric`` against the numeric parameter ``x`` in small multiples.

    The records are those of table ``table`` (default: ``x``). One line per ``series`` ("method", or a
    parameter's name) and one column of panels per ``panel`` ("direction", or a parameter's name: the directions
    are then rows). The axis is logarithmic where x spans a decade or more. "none" is a line of its own where it
    has ``x``, a horizontal one where it does not. A method without the parameter of ``series`` is a line under
    its name, and one with several records per x is split by the parameter that tells them apart. Of more than
    seven methods, one of each family is drawn unless ``methods`` names them.
    """
    table = table or x
    rows = select(records, table, metric)
    scale = 1 if metric in UNBOUNDED else 100
    base = _baseline(records, rows, metric, split)
    level = base[np.isnan(values_of(base, x))]
    points = rows.assign(x=values_of(rows, x)).dropna(subset=["x"])
    if points.empty:
        raise InputError(f"no record of table {table!r} has a number as parameter {x!r}")
    present = methods_of(points)
    chosen = methods_of(points, methods or ([m for m in FAMILY_HEADS if m in present] if len(present) > 7 else None))
    points = points[points["method"].isin(chosen)]
    points = points.assign(panel=points["direction"] if panel == "direction" else values_of(points, panel))
    points = points.dropna(subset=["panel"])
    if series == "method":
        series = _what_differs(points, x)
    values = values_of(points, series)
    points["line"] = [m if np.isnan(v) else v for m, v in zip(points["method"], values, strict=True)]
    if points.empty or (series != "method" and np.isnan(values).all()):
        raise InputError(f"no record of table {table!r} has the parameters {series!r} and {panel!r}")
    points = once(points, ["direction", "panel", "line", "x"]).sort_values("x")
    present_lines = set(points["line"])
    groups = [m for m in chosen if m in present_lines] + sorted(v for v in present_lines if not isinstance(v, str))
    split_up = ", ".join(look(m).label for m in chosen if m in set(points["method"]) - present_lines)
    directions = directions_of(points)
    across = panel == "direction"
    columns = directions if across else sorted(set(points["panel"]))
    tall = 1 if across else len(directions)
    sharing = {"sharex": False, "sharey": False} if across else {"sharex": True, "sharey": "row"}
    figure, axes = panels(len(columns), tall, height=0.75 + 1.75 * tall, **sharing)
    sentences = []
    cells = [(line, column) for line in range(tall) for column in range(len(columns))]
    for line, column in cells:
        ax, value = axes[line][column], columns[column]
        direction = value if across else directions[line]
        here = points[(points["direction"] == direction) & (points["panel"] == value)]
        words = _level(ax, level[level["direction"] == direction], scale)
        for place, group in enumerate(groups):
            drawn = here[here["line"] == group]
            if drawn.empty:
                continue
            named = isinstance(group, str)
            style = look(group) if named else look_of_value(place, f"{_short(series)} = {group:,g}")
            _line(ax, drawn, style, (place, len(groups)), scale)
            words.append(_course(style.label, drawn, scale == 100))
        name = title(direction) + ("" if across else f", {_short(panel)} = {value:g}")
        sentences.append(f"{name}: {'; '.join(words)}.")
        ax.set_title(name)
        low, high = (here if across else points)["x"].agg(["min", "max"])
        if low > 0 and high >= 4 * low:
            log_axis(ax, "x", low, high, figure.get_figwidth() / len(columns) - 0.5)
        if line == tall - 1:
            ax.set_xlabel(PARAMETERS.get(x, (x,))[0])
        if column == 0:
            ax.set_ylabel(f"{metric}, {split} split" + (" (%)" if scale == 100 else ""))
    legend_below(figure, [ax for row in axes for ax in row])
    against = PARAMETERS.get(x, (x,))[0].replace("$", "")
    alt = f"{metric} ({split} split) against {against}, with 95 % intervals. {' '.join(sentences)}"
    caption = (
        f"{metric} on the {split} split against {against}{subject(rows)}. "
        f"{'Bands' if len(groups) <= 4 else 'Bars (set apart sideways)'}: 95 % intervals."
        + (" Dotted line: no correction." if len(level) else "")
        + (f" Lines by {_short(series)}: {split_up}." if split_up else "")
        + (f" Drawn: {len(chosen)} of {len(present)} methods." if len(chosen) < len(present) else "")
        + queries(points)
    )
    return Drawing(figure, alt, caption)


def _what_differs(points: pd.DataFrame, x: str) -> str:
    """Return the parameter that tells records of one method at one x apart, or "method" where none is needed."""
    keys = ["direction", "panel", "method", "x"]
    if points.duplicated(keys).any():
        for name in sorted({name for parameters in points["parameters"] for name in parameters} - {x}):
            if not points.assign(other=values_of(points, name)).duplicated([*keys, "other"]).any():
                return name
    return "method"


def bank_size(records: Records, split: str = "test", methods: Sequence[str] | None = None) -> Drawing:
    """Draw R@1 (%) against the number of bank items, with "none" as reference; table "bank_size"."""
    return ablation(records, "bank_size", split=split, methods=methods)


def _short(name: str) -> str:
    return PARAMETERS.get(name, ("", name))[1]


def _course(label: str, rows: pd.DataFrame, percent: bool) -> str:
    """Say where a series starts and ends and where it is highest."""
    first, last, best = rows.iloc[0], rows.iloc[-1], rows.loc[rows["value"].idxmax()]
    said = [("from", first), ("to", last), ("highest", best)] if len(rows) > 1 else [("is", first)]
    return f"{label} " + ", ".join(f"{word} {interval(row, percent)} at {row['x']:,g}" for word, row in said)


@styled
def bank_source(
    records: Records, metric: str = "R@1", split: str = "test", methods: Sequence[str] | None = None
) -> Drawing:
    """Draw ``metric`` (a share, in percent) per bank (column ``bank``) and method; table "bank_source".

    Banks are rows in the order of the records, methods are beside each other within a row.
    """
    rows = select(frame(records, ("bank",)), "bank_source", metric)
    base = _baseline(records, rows, metric, split)
    rows = rows[rows["method"] != "none"]
    chosen = methods_of(rows, methods)
    rows = once(rows[rows["method"].isin(chosen)], ["direction", "method", "bank"])
    banks, directions = list(dict.fromkeys(rows["bank"])), directions_of(rows)
    step = 0.8 / len(chosen)
    height = 0.95 + len(banks) * max(0.22, 0.11 * len(chosen))
    figure, axes = panels(len(directions), height=height, sharey=True)
    sentences = []
    for ax, direction in zip(axes[0], directions, strict=True):
        words = _level(ax, base[base["direction"] == direction], 100, upright=True)
        for place, method in enumerate(chosen):
            drawn = rows[(rows["direction"] == direction) & (rows["method"] == method)]
            y = np.array([banks.index(bank) for bank in drawn["bank"]]) + step * (place - (len(chosen) - 1) / 2)
            points = look(method).line(linestyle="None", elinewidth=0.8)
            ax.errorbar(100 * drawn["value"], y, xerr=_reach(drawn, 100), **points)
            each = ", ".join(f"{row['bank']}: {interval(row)}" for _, row in drawn.iterrows())
            words.append(f"{look(method).label} with the bank {each}")
        sentences.append(f"{title(direction)}: {'; '.join(words)}.")
        ax.set(title=title(direction), xlabel=f"{metric}, {split} split (%)", ylim=(len(banks) - 0.5, -0.5))
        ax.set_yticks(range(len(banks)), [textwrap.fill(bank, 20) for bank in banks])
        ax.tick_params(axis="y", length=0)
        ax.grid(axis="y", visible=False)
        for edge in range(1, len(banks)):
            ax.axhline(edge - 0.5, color="#E4E4E4", linewidth=0.5, zorder=0)
    axes[0][0].set_ylabel("bank")
    legend_below(figure, axes[0], _markers(chosen))
    alt = f"{metric} in percent ({split} split) by source of the bank. {' '.join(sentences)}"
    caption = (
        f"{metric} on the {split} split by source of the bank{subject(rows)}. Bars: 95 % intervals."
        + (" Dotted line: no correction." if len(base) else "")
        + queries(rows)
    )
    return Drawing(figure, alt, caption)


def _markers(methods: Sequence[str]) -> dict[str, Line2D]:
    """Return legend entries that show markers without lines and bars."""
    return {look(name).label: Line2D([], [], **look(name).line(linestyle="None")) for name in methods}


@styled
def skewness_against_recall(records: Records, methods: Sequence[str] | None = None, k: int = 10) -> Drawing:
    """Draw one cross per method: skewness of the k-occurrence, R@1 (%), with intervals. Table "main"."""
    keys = ["direction", "method"]
    recall = once(select(records, "main", "R@1"), keys).set_index(keys)
    skewness = once(select(records, "main", "skewness"), keys).set_index(keys)
    both = recall.index.intersection(skewness.index)
    if both.empty:
        raise InputError("no method has both skewness and R@1 in table 'main'")
    recall, skewness = recall.loc[both], skewness.loc[both]
    rows = recall.reset_index()
    directions, chosen = directions_of(rows), methods_of(rows, methods)
    figure, axes = panels(len(directions), height=2.9)
    sentences = []
    for ax, direction in zip(axes[0], directions, strict=True):
        words = []
        for place, method in enumerate(name for name in chosen if (direction, name) in both):
            x, y = skewness.loc[[(direction, method)]], recall.loc[[(direction, method)]]
            cross = {"color": look(method).colour, "linestyle": "None", "elinewidth": 0.6, "alpha": 0.7}
            ax.errorbar(x["value"], 100 * y["value"], _reach(y, 100), _reach(x, 1), **cross, zorder=2)
            ax.plot(
                x["value"],
                100 * y["value"],
                **look(method).line(linestyle="None", markersize=6 - 0.2 * place, zorder=3),
            )
            x, y = interval(x.iloc[0], percent=False), interval(y.iloc[0])
            words.append(f"{look(method).label}: skewness {x}, R@1 {y}")
        ax.set(title=title(direction), xlabel=f"skewness of the {k}-occurrence (no unit)")
        sentences.append(f"{title(direction)}: {'; '.join(words)}.")
    axes[0][0].set_ylabel("R@1, test split (%)")
    legend_below(figure, axes[0])
    alt = f"Skewness of the {k}-occurrence against R@1, one point per method. {' '.join(sentences)}"
    caption = (
        f"Hubness (skewness of the {k}-occurrence over all gallery items; further left is less) against R@1 "
        f"on the test split, per method{subject(rows)}. Bars: 95 % intervals.{queries(rows)}"
    )
    return Drawing(figure, alt, caption)


@styled
def differences(records: Records, methods: Sequence[str] | None = None) -> Drawing:
    """Draw the paired differences in R@1 (percentage points) against each reference; table "difference".

    Marker filled where the Holm-corrected p is below 0.05, open otherwise; bars are 95 % intervals.
    """
    rows = select(records, "difference", "R@1 difference")
    rows = once(rows[rows["reference"].notna()], ["direction", "reference", "method"])
    chosen = methods_of(rows, methods)
    references = [name for name in METHODS if name in set(rows["reference"])]
    cells = [(direction, reference) for direction in directions_of(rows) for reference in references]
    figure, axes = panels(
        len(cells),
        width=SINGLE if len(cells) == 1 else DOUBLE,
        height=1.05 + 0.165 * len(chosen),
        sharey=True,
    )
    sentences = []
    for ax, (direction, reference) in zip(axes[0], cells, strict=True):
        here = rows[(rows["direction"] == direction) & (rows["reference"] == reference)].set_index("method")
        words = []
        ax.axvline(0, color=BLACK, linewidth=0.8)
        for position, method in enumerate(chosen):
            if method not in here.index:
                continue
            row, style = here.loc[method], look(method)
            point = {"marker": "o", "markersize": 4.2, "elinewidth": 1.1, "color": style.colour}
            face = style.colour if row["p_holm"] < 0.05 else "white"
            bar = _reach(here.loc[[method]], 100)
            ax.errorbar(100 * row["value"], position, xerr=bar, markerfacecolor=face, **point)
            value, low, high = (signed(100 * row[name]) for name in ("value", "ci_low", "ci_high"))
            p = f", Holm p {'< 0.001' if row['p_holm'] < 0.001 else '= {:.3f}'.format(row['p_holm'])}"
            words.append(f"{style.label} {value} ({low} to {high}{p if pd.notna(row['p_holm']) else ''})")
        against = "none" if reference == "none" else f"tuned {look(reference).label}"
        ax.set(
            title=f"{title(direction)},\nagainst {against}",
            xlabel="ΔR@1 (points)",
            ylim=(len(chosen) - 0.4, -0.6),
        )
        ax.set_yticks(range(len(chosen)), [look(method).label for method in chosen])
        ax.tick_params(axis="y", length=0)
        ax.locator_params(axis="x", nbins=5)
        sentences.append(f"{title(direction)}, against {against}: {'; '.join(words)}.")
    dot = {"marker": "o", "markersize": 4.2, "color": BLACK, "linestyle": "None"}
    clear, open_ = Line2D([], [], **dot), Line2D([], [], markerfacecolor="white", **dot)
    legend_below(figure, [], {"Holm-corrected p < 0.05": clear, "p ≥ 0.05": open_})
    alt = f"Paired differences in R@1 in percentage points, with 95 % intervals. {' '.join(sentences)}"
    caption = (
        f"Paired differences in R@1 on the test split in percentage points, per method{subject(rows)}. Bars: "
        "95 % intervals (paired bootstrap); filled: p < 0.05, paired permutation test with Holm's correction."
        + queries(rows)
    )
    return Drawing(figure, alt, caption)
