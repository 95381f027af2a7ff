"""The figure of the paper-versus-code study: what each difference between a paper and its code is worth.

``records`` is the DataFrame (or list of dicts) of ``results.json``; table "audit" holds one effect, released minus
paper, per record, with the finding and the noise floor of its metric among the parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from reprolib.errors import InputError
from reprolib.figures.artefacts import Records, every_record, once, subject, title
from reprolib.figures.style import (
    BLACK,
    DIRECTIONS,
    DOUBLE,
    GREY,
    Drawing,
    Look,
    legend_below,
    look_of_value,
    panels,
    styled,
)

__all__ = ["forest"]

FLOOR = "noise floor"  # name of the parameter
WEIGHTS: Mapping[str, tuple[str, str]] = {  # heading, and what it means
    "matters": (
        "What matters",
        "the interval lies beyond the noise floor and, where there is a test, p < 0.05 after Holm's correction",
    ),
    "within noise": ("What does not", "the whole interval lies within the noise floor"),
    "open": ("What stays open", "neither of the two is established"),
}
FAMILIES: Mapping[str, tuple[str, ...]] = {  # a panel each
    "Recall": ("R@1",),
    "Precision among images": ("mAP@R", "mAP"),
    "Modality gap": ("L2M",),
    "Hubness": ("skewness",),
}
SHARES = ("R@1", "mAP@R", "mAP")  # shown in points
BAND = {"color": GREY, "alpha": 0.25, "linewidth": 0}
_TICKS = (-100, -50, -20, -10, -5, -2, -1, 0, 1, 2, 5, 10, 20, 50, 100)


def weight_of(row: Mapping[str, Any]) -> str:
    """Return "matters", "within noise" or "open" (see ``WEIGHTS``) for a record of table "audit"."""
    floor, p = row["parameters"][FLOOR], row.get("p_holm")
    if row["ci_low"] >= -floor and row["ci_high"] <= floor:
        return "within noise"
    beyond = row["ci_low"] > floor or row["ci_high"] < -floor
    return "matters" if beyond and (p is None or pd.isna(p) or p < 0.05) else "open"


def metric_of(row: Mapping[str, Any]) -> str:
    """Return the metric that a record of table "audit" compares."""
    return row["metric"].removesuffix(" difference")


def series_of(row: Mapping[str, Any]) -> str:
    """Return what was searched in a record: its direction, and what counts as relevant where that varies."""
    if not isinstance(row["direction"], str):
        return "images and texts"
    grouping = row["parameters"].get("grouping")
    return title(row["direction"]).replace("->", " → ") + (f", same {grouping}" if grouping else "")


def effect_in_words(row: Mapping[str, Any], tested: bool = True) -> str:
    """Return "R@1, text → image: −1.2 points (−2.0 to −0.4; p = 0.012)"; p after Holm's correction, if ``tested``."""
    share = metric_of(row) in SHARES
    value, low, high = (_signed(row[name], share) for name in ("value", "ci_low", "ci_high"))
    p = row.get("p_holm")
    test = "" if not tested or p is None or pd.isna(p) else f"; p {'< 0.001' if p < 0.001 else f'= {p:.3f}'}"
    return f"{metric_of(row)}, {series_of(row)}: {value}{' points' if share else ''} ({low} to {high}{test})"


def _signed(value: float, share: bool) -> str:
    text = f"{100 * value:+.1f}" if share else f"{value:+.3f}"
    return (text[1:] if not float(text) else text).replace("-", "−")


@styled
def forest(records: Records) -> Drawing:
    """Draw every effect (released minus paper) with its interval, a panel per family of metrics; table "audit".

    Filled: it matters (``WEIGHTS``); grey: the noise floor. Recall and precision in points, on an axis that is linear
    within 1 point and logarithmic beyond. Raises InputError if there are no such records.
    """
    rows = every_record(records)
    rows = rows[rows["table"] == "audit"]
    if rows.empty:
        raise InputError("no record of table 'audit': the study did not run this part")
    rows = rows.assign(
        metric=[metric_of(row) for row in rows.to_dict("records")],
        finding=[p["finding"] for p in rows["parameters"]],
        series=[series_of(row) for row in rows.to_dict("records")],
        weight=[weight_of(row) for row in rows.to_dict("records")],
    )
    once(rows, ["finding", "metric", "series"])
    first = [title(direction) for direction in DIRECTIONS]  # they look alike in every figure
    looks = {name: look_of_value(place, name) for place, name in enumerate(dict.fromkeys([*first, *rows["series"]]))}
    looks = {name: style for name, style in looks.items() if name in set(rows["series"])}
    parts = {family: rows[rows["metric"].isin(metrics)] for family, metrics in FAMILIES.items()}
    parts = {family: part for family, part in parts.items() if not part.empty}
    heights = [0.5 + part["finding"].nunique() for part in parts.values()]
    figure, axes = panels(
        1, len(parts), width=DOUBLE, height=0.5 + 0.2 * sum(heights) + 0.45 * len(parts),
        gridspec_kw={"height_ratios": heights},
    )  # fmt: skip
    words = [_panel(line[0], family, part, looks) for line, (family, part) in zip(axes, parts.items(), strict=True)]
    dots = {name: Line2D([], [], **style.line(linestyle="None", markersize=4.2)) for name, style in looks.items()}
    dot = {"marker": "o", "markersize": 4.2, "color": BLACK, "linestyle": "None"}
    dots |= {"matters": Line2D([], [], **dot), "within noise, or open": Line2D([], [], markerfacecolor="white", **dot)}
    legend_below(figure, [], dots | {"noise floor": Patch(**BAND)})
    caption = (
        f"What each difference between a paper and its released code changes on the test split{subject(rows)}: "
        "released minus paper, with 95 % intervals. Filled: the interval lies beyond the noise floor (grey) and, where "
        "there is a test, p < 0.05 after Holm's correction. The axes in points are linear within 1 point, logarithmic "
        "beyond."
    )
    return Drawing(figure, f"Effects of the differences between papers and code. {' '.join(words)}", caption)


def _panel(ax: Axes, family: str, rows: pd.DataFrame, looks: Mapping[str, Look]) -> str:
    """Draw one family of metrics and return what it shows in words."""
    share = rows["metric"].iloc[0] in SHARES
    scale, names = 100 if share else 1, list(dict.fromkeys(rows["finding"]))
    floor = scale * max(p[FLOOR] for p in rows["parameters"])
    ax.axvspan(-floor, floor, **BAND)
    ax.axvline(0, color=BLACK, linewidth=0.8)
    words = []
    for row in rows.to_dict("records"):
        here = list(dict.fromkeys(rows.loc[rows["finding"] == row["finding"], "series"]))
        at = names.index(row["finding"]) + 0.26 * (here.index(row["series"]) - (len(here) - 1) / 2)
        reach = [[scale * max(0.0, row["value"] - row["ci_low"])], [scale * max(0.0, row["ci_high"] - row["value"])]]
        style = looks[row["series"]]
        face = style.colour if row["weight"] == "matters" else "white"
        point = {"marker": style.marker, "markersize": 4.2, "elinewidth": 1.1, "color": style.colour}
        ax.errorbar(scale * row["value"], at, xerr=reach, markerfacecolor=face, **point)
        words.append(f"{row['finding']}, {effect_in_words(row)}, {row['weight']}")
    metrics = ", ".join(dict.fromkeys(rows["metric"]))
    if share:
        ax.set_xscale("symlog", linthresh=1, linscale=0.8)
        ax.xaxis.set_major_locator(FixedLocator(_TICKS))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}".replace("-", "−")))
    else:
        ax.locator_params(axis="x", nbins=7)
    ax.set_title(family, loc="left")
    ax.set(xlabel=f"Δ {metrics} ({'points' if share else 'no unit'})", ylim=(len(names) - 0.45, -0.55))
    ax.set_yticks(range(len(names)), names)
    ax.tick_params(axis="y", length=0)
    return f"{family}: {'; '.join(words)}."
