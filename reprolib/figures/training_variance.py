"""The figures of the training-variance study: effects of factors, seeds against claims, noise, and curation.

``records`` is the DataFrame (or list of dicts) of ``results.json``; ``seeds`` is ``seeds.parquet`` of the same run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from reprolib.errors import InputError
from reprolib.figures.artefacts import Records, directions_of, interval, select, signed, subject, title, values_of
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

__all__ = ["curation", "effects", "noise", "seeds"]

BAND = {"color": GREY, "alpha": 0.25, "linewidth": 0}
LABELS: Mapping[str, str] = {
    "pc2": "PC² (robust)",
    "hardest-negative": "hardest negative",
    "infonce": "InfoNCE",
    "score": "highest alignment",
    "random": "random share",
    "all": "all pairs",
}


def _looks() -> dict[str, Look]:
    return {name: look_of_value(place, label) for place, (name, label) in enumerate(DIRECTIONS.items())}


@styled
def effects(records: Records) -> Drawing:
    """Draw the effect of every level of every factor on R@1 with its interval, on one axis; table "effect".

    Grey: differences that as many seeds as here would miss (power 80 %), by table "detectable". Raises InputError if
    there are no such records.
    """
    rows = select(records, "effect", "R@1 difference")
    rows = rows.assign(factor=[p["factor"] for p in rows["parameters"]])
    rows = rows.assign(label=[f"{m}, not {r}" for m, r in zip(rows["method"], rows["reference"], strict=True)])
    places: dict[tuple[str, str], float] = {}
    heads, at = {}, 0.0
    for factor, part in rows.groupby("factor", sort=False):
        heads[at] = factor.replace("_", " ")
        for label in dict.fromkeys(part["label"]):
            at += 1
            places[factor, label] = at
        at += 1.4
    figure, axes = panels(1, 1, width=DOUBLE, height=0.9 + 0.155 * at)
    ax, looks, words = axes[0][0], _looks(), []
    band = _band(records, int(rows["n"].max()), rows)
    if band is not None:
        ax.axvspan(-100 * band, 100 * band, **BAND)
    ax.axvline(0, color=BLACK, linewidth=0.8)
    for row in rows.to_dict("records"):
        look = looks[row["direction"]]
        y = places[row["factor"], row["label"]] + (-0.17 if row["direction"] == next(iter(DIRECTIONS)) else 0.17)
        reach = [[100 * (row["value"] - row["ci_low"])], [100 * (row["ci_high"] - row["value"])]]
        point = {"marker": look.marker, "markersize": 3.6, "elinewidth": 1.0, "color": look.colour}
        ax.errorbar(100 * row["value"], y, xerr=reach, **point)
        words.append(f"{row['factor']} {row['label']}, {title(row['direction'])}: {signed(100 * row['value'])}")
    ticks = {**{y: name for y, name in heads.items()}, **{y: label for (_, label), y in places.items()}}
    ax.set_yticks(list(ticks), list(ticks.values()))
    for y, tick in zip(ticks, ax.get_yticklabels(), strict=True):
        tick.set_fontweight("bold" if y in heads else "normal")
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y", visible=False)
    ax.set(xlabel="Δ R@1 (points)", ylim=(at - 0.7, -0.7))
    present = directions_of(rows)
    entries = {looks[d].label: Line2D([], [], **looks[d].line(linestyle="None", markersize=4)) for d in present}
    if band is not None:
        entries[f"missed by {int(rows['n'].max())} seeds a side"] = Patch(**BAND)
    legend_below(figure, [], entries)
    n = int(rows["n"].max())
    caption = (
        f"What each factor changes in R@1 when everything else is as in the base{subject(rows)}: mean paired "
        f"difference over {n} seeds with 95 % bootstrap intervals over seeds. Grey: a difference that a t-test on as "
        "many seeds of each method would miss more often than one time in five."
    )
    return Drawing(figure, f"Effects of factors on R@1 in points. {'; '.join(words)}.", caption)


def _band(records: Records, n: int, rows: pd.DataFrame) -> float | None:
    """Return the detectable difference with ``n`` seeds of this dataset, the larger of both directions."""
    try:
        table = select(records, "detectable", "R@1 difference")
    except InputError:
        return None
    here = table[(table["method"] == rows["dataset"].iloc[0]) & (table["n"] == n)]
    return None if here.empty else float(here["value"].max())


@styled
def seeds(seeds: pd.DataFrame) -> Drawing:
    """Draw R@1 of every seed of every model, a panel per direction, with the claimed number where there is one.

    Columns model, seed, direction, R@1, claimed, repeats (the earlier seed that a published row repeats, else 0).
    """
    missing = {"model", "seed", "direction", "R@1", "claimed", "repeats"} - set(seeds)
    if missing:
        raise InputError(f"the seeds lack the column {min(missing)!r}; present: {', '.join(map(str, seeds))}")
    directions, models = directions_of(seeds), list(dict.fromkeys(seeds["model"]))
    figure, axes = panels(len(directions), 1, width=DOUBLE, height=0.9 + 0.24 * len(models), sharey=True)
    words = []
    for ax, direction in zip(axes[0], directions, strict=True):
        for y, model in enumerate(models):
            rows = seeds[(seeds["model"] == model) & (seeds["direction"] == direction)]
            values, again = 100 * rows["R@1"].to_numpy(), rows["repeats"].to_numpy() > 0
            ax.plot([values.min(), values.max()], [y, y], color=GREY, linewidth=0.8)
            heights = y + np.linspace(-0.22, 0.22, len(values))
            colour = _looks()[direction].colour
            ax.plot(values[~again], heights[~again], "o", color=colour, markersize=2.8)
            ax.plot(values[again], heights[again], "o", color=colour, markerfacecolor="white", markersize=3.6)
            claimed = rows["claimed"].iloc[0]
            if not np.isnan(claimed):
                ax.plot(100 * claimed, y, "D", color=BLACK, markersize=4.2, markerfacecolor="white")
            told = "" if np.isnan(claimed) else f", claimed {100 * claimed:.1f}"
            words.append(f"{model}, {title(direction)}: {values.min():.1f} to {values.max():.1f}{told}")
        ax.set_title(DIRECTIONS.get(direction, direction), loc="left")
        ax.set(xlabel="R@1 (%)", ylim=(len(models) - 0.5, -0.5))
    axes[0][0].set_yticks(range(len(models)), models)
    for ax in axes[0]:
        ax.tick_params(axis="y", length=0)
    dot = {"color": GREY, "linestyle": "None"}
    entries = {
        "one seed": Line2D([], [], marker="o", markersize=2.8, **dot),
        "repeats an earlier row": Line2D([], [], marker="o", markerfacecolor="white", markersize=3.6, **dot),
        "claimed": Line2D([], [], marker="D", markerfacecolor="white", markersize=4, **dot | {"color": BLACK}),
    }
    legend_below(figure, [], entries)
    caption = (
        "R@1 of each seed: eight published models on Flickr30k (rows of the README of the paper's code), and the base "
        "of this study. Diamonds: the number that the README gives first for the model, by our reading the original "
        "paper's."
    )
    return Drawing(figure, f"Recall of every seed. {'; '.join(words)}.", caption)


@styled
def noise(records: Records) -> Drawing:
    """Draw R@1 against the share of mismatched training pairs, a line per loss; table "noise"."""
    return _lines(
        select(records, "noise", "R@1"), "noise", "mismatched training pairs (%)",
        lambda words, where: f"R@1 against the share of mismatched training pairs{where}: means over seeds with 95 % "
        "bootstrap intervals. PC² was made for such pairs; its plain form is the hardest negative.",
    )  # fmt: skip


@styled
def curation(records: Records) -> Drawing:
    """Draw R@1 against the share of training pairs that is kept, a line per selection; table "curation"."""
    rows = select(records, "curation", "R@1")
    whole = rows[rows["method"] == "all"]  # where both lines begin
    joined = pd.concat([whole.assign(method=name) for name in ("score", "random")] + [rows[rows["method"] != "all"]])
    share = rows["parameters"].iloc[0]["noise"]
    return _lines(
        joined, "keep", "kept training pairs (%)",
        lambda words, where: f"R@1 against the kept share of the training pairs, of which {100 * share:.0f} % are "
        f"mismatched{where}: means over seeds with 95 % bootstrap intervals. Alignment is the cosine of a pair under a "
        "first training on all pairs with the same seed.",
    )  # fmt: skip


def _lines(rows: pd.DataFrame, name: str, label: str, caption: Callable[[Any, str], str]) -> Drawing:
    """Draw R@1 against parameter ``name``, a panel per direction and a line per method."""
    directions, methods = directions_of(rows), list(dict.fromkeys(rows["method"]))
    figure, axes = panels(len(directions), 1, width=DOUBLE, height=2.3, sharey=True)
    words = []
    for ax, direction in zip(axes[0], directions, strict=True):
        for place, method in enumerate(methods):
            part = rows[(rows["direction"] == direction) & (rows["method"] == method)]
            x = 100 * values_of(part, name)
            order = np.argsort(x)
            _line(ax, x[order], part.iloc[order], look_of_value(place, LABELS.get(method, method)))
            told = ", ".join(f"{interval(row)} at {100 * row['parameters'][name]:.0f} %"
                             for row in part.iloc[order].to_dict("records"))  # fmt: skip
            words.append(f"{LABELS.get(method, method)}, {title(direction)}: {told}")
        ax.set_title(DIRECTIONS.get(direction, direction), loc="left")
        ax.set(xlabel=label)
    axes[0][0].set(ylabel="R@1 (%)", ylim=(0, None))
    legend_below(figure, axes[0])
    return Drawing(figure, f"{'; '.join(words)}.", caption(words, subject(rows)))


def _line(ax: Axes, x: np.ndarray, rows: pd.DataFrame, look: Look) -> None:
    value, low, high = (100 * rows[column].to_numpy() for column in ("value", "ci_low", "ci_high"))
    ax.errorbar(x, value, yerr=[value - low, high - value], elinewidth=1.0, capsize=1.5, **look.line())
