"""Figures of the modality gap study: from its records, clouds and energies to drawings.

``records`` is the DataFrame (or list of dicts) of ``results.json``. Shares are stored as fractions and shown in
percent; every interval is the 95 % interval of the records. Each function raises InputError when a column or the
records that it needs are missing, and for an unknown intervention.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.lines import Line2D

from reprolib.errors import InputError
from reprolib.figures.artefacts import Records, every_record, frame, interval, once, select, signed, subject, title
from reprolib.figures.style import (
    BLACK,
    BLUE,
    DASHED,
    DIRECTIONS,
    DOTTED,
    DOUBLE,
    GREY,
    INTERVENTIONS,
    SOLID,
    VERMILLION,
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
    "clouds",
    "effects",
    "energy",
    "gap_against_recall",
    "landscape",
    "mixed_bias",
    "overview",
    "temperature",
]

MODALITIES = {"image": Look("images", BLUE, "o", "None"), "text": Look("texts", VERMILLION, "^", "None")}
ENERGIES = {
    ("trained", "dimension"): Look("dimensions", BLUE, "o", SOLID),
    ("trained", "principal axis"): Look("principal axes", VERMILLION, "s", SOLID),
    ("random", "dimension"): Look("dimensions, random weights", BLUE, "o", DASHED, filled=False),
    ("random", "principal axis"): Look("principal axes, random weights", VERMILLION, "s", DASHED, filled=False),
    ("none", "random direction"): Look("random direction", GREY, "", DOTTED),
}
RING = {"marker": "o", "markersize": 8, "markerfacecolor": "none", "color": BLACK, "linestyle": "None"}
SYMMETRIC = "symmetric"


def _reach(rows: pd.DataFrame, scale: float = 1.0) -> np.ndarray:
    """Return the lengths [2, n] of error bars; zero where a record has no interval."""
    ends = [rows["value"] - rows["ci_low"], rows["ci_high"] - rows["value"]]
    return scale * np.nan_to_num(np.clip(np.array(ends, dtype=float), 0, None))


def _interventions(rows: pd.DataFrame) -> list[str]:
    for name in set(rows["method"]):
        look(name)
    return [name for name in INTERVENTIONS if name in set(rows["method"])]


def _direction(rows: pd.DataFrame, direction: str | None) -> pd.DataFrame:
    """Return the records of one direction; None: those of none."""
    return rows[rows["direction"].isna() if direction is None else rows["direction"] == direction]


def _parameter(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return ``rows`` that have parameter ``name``, sorted by it, with a column of it."""
    found = rows.assign(**{name: [p.get(name) for p in rows["parameters"]]})
    return found[found[name].notna()].astype({name: float}).sort_values(name, kind="stable")


def _markers(names: Sequence[str]) -> dict[str, Line2D]:
    return {look(name).label: Line2D([], [], **look(name).line(linestyle="None")) for name in names}


def _letter(ax: Axes, letter: str, name: str) -> None:
    ax.set_title(f"({letter}) {name}", loc="left")


# --- panels: each draws on one pair of axes and returns what it shows in words --------------------------------


def _cloud(ax: Axes, rows: pd.DataFrame, size: float = 3) -> str:
    places = {name: rows[rows["modality"] == name].set_index("pair")[["x", "y"]] for name in MODALITIES}
    image, text = (places[name].loc[places["image"].index] for name in MODALITIES)
    ends = np.stack([image.to_numpy(), text.to_numpy()])
    ax.add_collection(LineCollection(ends.swapaxes(0, 1), color=GREY, linewidth=0.25, alpha=0.45, zorder=1))
    for name, style in MODALITIES.items():
        shape = style.line(markersize=size, markeredgewidth=0, alpha=0.75)
        ax.plot(places[name]["x"], places[name]["y"], **shape, zorder=2)
    ax.margins(0.06)
    ax.grid(visible=False)
    ax.set(xticks=[], yticks=[])
    between = np.linalg.norm(image.mean() - text.mean())
    spread = np.sqrt((ends - ends.mean(1, keepdims=True)).var(axis=1).sum(1).mean())
    return f"{len(image)} pairs, distance of the centroids {between / spread:.1f} times the spread of a cloud"


def _energy(
    ax: Axes, rows: pd.DataFrame, inches: float, wanted: Sequence[tuple[str, str]] = tuple(ENERGIES)
) -> list[str]:
    words = []
    for key in wanted:
        here = rows[(rows["weights"] == key[0]) & (rows["basis"] == key[1])].sort_values("rank")
        if here.empty:
            continue
        style = ENERGIES[key]
        ax.plot(here["rank"], 100 * here["cumulative"], **style.line(markevery=0.12, markersize=3.5))
        first = ", ".join(f"{100 * here['cumulative'].iloc[k - 1]:.1f} % in {k}" for k in (1, 2, 8) if k <= len(here))
        words.append(f"{style.label}: {first}")
    log_axis(ax, "x", 1, rows["rank"].max(), inches)
    ax.set(ylim=(0, 104), xlabel="leading dimensions or axes (number)", ylabel="share of the squared gap (%)")
    return words


def _loss(ax: Axes, rows: pd.DataFrame, trained: float, gaps: pd.DataFrame, few: bool = False) -> list[str]:
    """Draw one loss along the shift, a line per temperature, each rescaled to 0 (least) and 1 (greatest)."""
    words = []
    taus = sorted(set(rows["tau"]))
    trained = min(taus, key=lambda tau: abs(tau - trained))
    if few:  # the trained temperature, the least and the greatest
        taus = sorted({taus[0], trained, taus[-1]})
    for place, tau in enumerate(taus):
        line = once(rows[rows["tau"] == tau], ["direction", "tau", "lam"])
        value = line["value"].to_numpy()
        height = (value - value.min()) / max(np.ptp(value), np.finfo(float).tiny)
        own = tau == trained
        style = look_of_value(place, f"τ = {tau:.3g}" + (" (trained)" if own else ""))
        ax.plot(line["lam"], height, **style.line(linewidth=2 if own else 1, markersize=3.5))
        least = line.iloc[value.argmin()]
        ax.plot([least["lam"]], [0], **RING, markeredgewidth=0.8, zorder=4, clip_on=False)
        words.append(
            f"τ = {tau:.3g}: least at λ = {least['lam']:g} with {least['value']:.3f} (greatest {value.max():.3f})"
        )
    ax.axvline(0, color=BLACK, linewidth=0.6, linestyle=DOTTED, zorder=1)
    _shift_axis(ax, gaps, few)
    ax.set_ylim(-0.06, 1.7 if few else 1.06)  # room for a legend
    return words


def _shift_axis(ax: Axes, gaps: pd.DataFrame, few: bool = False) -> None:
    shown = gaps[[few is False or float(lam).is_integer() or abs(lam) == 0.5 for lam in gaps["lam"]]]
    ax.set_xticks(shown["lam"], [f"{lam:g}\n{gap:.2f}" for lam, gap in zip(shown["lam"], shown["value"], strict=True)])
    ax.tick_params(axis="x", labelsize=6.5)


def _tuned(ax: Axes, rows: pd.DataFrame, inches: float, label: str, colour: str, marker: str, scale: float) -> str:
    shape = Look(label, colour, marker, SOLID).line(elinewidth=0.8, capsize=2)
    ax.errorbar(rows["tau"], scale * rows["value"], _reach(rows, scale), **shape)
    log_axis(ax, "x", rows["tau"].min(), rows["tau"].max(), 0.55 * inches)  # 0.02 is longer than 2
    ax.set_xlabel("temperature τ of the fine-tune (no unit)")
    each = ", ".join(f"{interval(row, scale == 100)} at τ = {row['tau']:g}" for _, row in rows.iterrows())
    return f"{label}: {each}"


def _shares(ax: Axes, rows: pd.DataFrame, chosen: Sequence[str], even: float) -> list[str]:
    words = []
    ax.axvline(100 * even, color=GREY, linewidth=0.9, zorder=1)
    for place, name in enumerate(chosen):
        here = rows[rows["method"] == name]
        ax.errorbar(
            100 * here["value"], [place], xerr=_reach(here, 100), **look(name).line(linestyle="None", elinewidth=0.8)
        )
        if name == "none":
            ax.axvline(100 * here["value"].iloc[0], **look(name).line(marker="None", label="_level"), zorder=1)
        words.append(f"{look(name).label} {interval(here.iloc[0])}")
    ax.set(ylim=(len(chosen) - 0.4, -0.6), xlim=(0, 104))
    _names(ax, chosen)
    return words


def _names(ax: Axes, chosen: Sequence[str]) -> None:
    ax.set_yticks(range(len(chosen)), [look(name).label for name in chosen])
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y", visible=False)


def _trade(ax: Axes, gap: pd.DataFrame, recall: pd.DataFrame, chosen: Sequence[str]) -> list[str]:
    words = []
    for place, name in enumerate(chosen):
        x, y = (rows[rows["method"] == name] for rows in (gap, recall))
        cross = {"color": look(name).colour, "linestyle": "None", "elinewidth": 0.6, "alpha": 0.7}
        ax.errorbar(x["value"], 100 * y["value"], _reach(y, 100), _reach(x), **cross, zorder=2)
        shape = look(name).line(linestyle="None", markersize=6.5 - 0.2 * place, zorder=3)
        ax.plot(x["value"], 100 * y["value"], **shape)
        words.append(f"{look(name).label}: L2M {interval(x.iloc[0], False)}, R@1 {interval(y.iloc[0])}")
    ax.set_xlim(0, None)
    ax.set_xlabel("gap left, L2M (no unit)")
    return words


def _even(rows: pd.DataFrame) -> float:
    """Return the share that a query's own modality has in a mixed gallery of pairs, without the query itself."""
    n = rows["n"].max()
    return float((n - 1) / (2 * n - 1)) if pd.notna(n) else 0.5


# --- figures --------------------------------------------------------------------------------------------------


@styled
def clouds(points: pd.DataFrame, seed: int | None = None) -> Drawing:
    """Draw both modalities in the plane, a line from each image to its text.

    ``points`` has the columns set, weights ("trained", "random"), view ("PCA", "t-SNE"), modality, pair, x and y.
    Rows are weights; columns are sets, or views where there is one set. ``seed`` is that of t-SNE, for the caption.
    """
    rows = frame(points, ("set", "weights", "view", "modality", "pair", "x", "y"))
    if rows.empty:
        raise InputError("no points: no feature set was at hand")
    by = "set" if rows["set"].nunique() > 1 else "view"
    columns = list(dict.fromkeys(rows[by]))
    weights = [name for name in ("trained", "random") if name in set(rows["weights"])]
    figure, axes = panels(len(columns), len(weights), width=DOUBLE, height=0.45 + 2.0 * len(weights))
    sentences = []
    for line, kind in zip(axes, weights, strict=True):
        for ax, column in zip(line, columns, strict=True):
            here = rows[(rows["weights"] == kind) & (rows[by] == column)]
            if here.empty:
                ax.set_axis_off()
                continue
            name = f"{column}, {kind} weights"
            ax.set_title(name)
            view = here["view"].iloc[0]
            ax.set_xlabel("first component (no unit)" if view == "PCA" else "t-SNE, first axis (no unit)")
            ax.set_ylabel("second component (no unit)" if view == "PCA" else "t-SNE, second axis (no unit)")
            sentences.append(f"{name}: {_cloud(ax, here)}.")
    legend_below(figure, axes[0][:1], {"a pair": Line2D([], [], color=GREY, linewidth=0.6)})
    about = f"t-SNE (seed {seed})" if set(rows["view"]) == {"t-SNE"} else "the two leading principal components"
    if rows["view"].nunique() > 1:
        about = (
            f"the two leading principal components, and by t-SNE (seed {seed}), which keeps neighbours, not distances"
        )
    of = f" of {columns[0] if by == 'set' and len(columns) == 1 else rows['set'].iloc[0]}" if by == "view" else ""
    left_out = (
        " After figure 1 of Liang et al. (NeurIPS 2022), from the authors' own features; their ConVIRT features are"
        " left out, because they derive from credentialed clinical data."
        if by == "set"
        else ""
    )
    alt = f"Images and texts in the plane, a line joins each pair. {' '.join(sentences)}"
    return Drawing(figure, alt, f"Both modalities{of} by {about}, fitted on both together.{left_out}")


@styled
def energy(energies: pd.DataFrame, name: str = "") -> Drawing:
    """Draw the share of the squared gap carried by the leading dimensions and principal axes, cumulative.

    ``energies`` has the columns weights, basis, rank and cumulative; ``name`` says in the caption whose gap it is.
    """
    rows = frame(energies, ("weights", "basis", "rank", "cumulative"))
    figure, axes = panels(1, height=2.9)
    words = _energy(axes[0][0], rows, figure.get_figwidth() - 0.7)
    legend_below(figure, axes[0])
    alt = f"Cumulative share of the squared centroid distance. {'; '.join(words)}."
    caption = (
        f"Share of the squared gap{f' of {name}' if name else ''} in the dimensions where it is largest, and in the "
        "principal axes of both modalities together. Dotted: a direction drawn at random."
    )
    return Drawing(figure, alt, caption)


@styled
def landscape(records: Records, trained: float) -> Drawing:
    """Draw the contrastive loss (a line per temperature) and R@1 along a shift that closes the gap at 1.

    Tables "landscape"; ``trained`` is the temperature the model was trained to, drawn thicker.
    """
    rows = _parameter(select(records, "landscape", "InfoNCE"), "lam")
    rows = _parameter(rows, "tau").sort_values(["tau", "lam"])
    gaps = _parameter(select(records, "landscape", "L2M"), "lam")
    recall = _parameter(select(records, "landscape", "R@1"), "lam")
    figure, axes = panels(2, 2, width=DOUBLE, height=4.9)
    sentences = []
    for ax, direction in zip([*axes[0], axes[1][0]], ("image->text", "text->image", None), strict=True):
        name = SYMMETRIC if direction is None else title(direction)
        sentences.append(f"Loss {name}: {'; '.join(_loss(ax, _direction(rows, direction), trained, gaps))}.")
        ax.set_title(f"InfoNCE, {name}")
        ax.set_ylabel("loss, rescaled (no unit)")
    ax = axes[1][1]
    for place, direction in enumerate(DIRECTIONS):
        line = _direction(recall, direction)
        style = Look(title(direction), (BLACK, GREY)[place], "sD"[place], (SOLID, DASHED)[place])
        ax.plot(line["lam"], 100 * line["value"], **style.line(markersize=3.5))
        ax.fill_between(
            line["lam"], 100 * line["ci_low"], 100 * line["ci_high"], color=style.colour, alpha=0.12, linewidth=0
        )
        each = ", ".join(f"{interval(row)} at {row['lam']:g}" for _, row in line.iterrows())
        sentences.append(f"R@1 {style.label} by λ: {each}.")
    ax.axvline(0, color=BLACK, linewidth=0.6, linestyle=DOTTED, zorder=1)
    _shift_axis(ax, gaps)
    ax.set(title="R@1", ylabel="R@1 (%)")
    for ax in axes[1]:
        ax.set_xlabel("shift λ (share of the gap taken away)\nand the gap L2M that is left")
    legend_below(figure, [axes[0][0], axes[1][1]], {"least loss": Line2D([], [], **RING, markeredgewidth=0.8)})
    alt = f"Contrastive loss and R@1 along a shift of both modalities towards each other. {' '.join(sentences)}"
    caption = (
        f"InfoNCE and R@1 along a shift of both modalities{subject(rows)}. At λ = 0 (dotted) the embeddings are as "
        "they are, at 1 the centroids meet, below 0 they are moved apart. Each loss is rescaled to its own range; the "
        f"temperature of training (of stored features: as assumed) is {trained:.3g}. Bands: 95 % intervals."
    )
    return Drawing(figure, alt, caption)


@styled
def temperature(records: Records) -> Drawing:
    """Draw gap and R@1 after short fine-tunes against their temperature; table "temperature"."""
    gap = _parameter(select(records, "temperature", "L2M"), "tau")
    recall = _parameter(select(records, "temperature", "R@1"), "tau")
    before = every_record(records)
    before = before[
        (before["table"] == "gap") & (before["metric"] == "L2M") & (before["model"] == gap["model"].iloc[0])
    ]
    figure, axes = panels(2, height=2.6)
    left, right = axes[0]
    inches = figure.get_figwidth() / 2 - 0.6
    words = [_tuned(left, gap, inches, "gap L2M", BLUE, "o", 1)]
    left.set_ylabel("gap L2M (no unit)")
    left.set_ylim(0, None)
    for place, direction in enumerate(DIRECTIONS):
        colour, marker = (VERMILLION, GREY)[place], "sD"[place]
        words.append(
            _tuned(right, _direction(recall, direction), inches, f"R@1 {title(direction)}", colour, marker, 100)
        )
    right.set_ylabel("R@1 (%)")
    if not before.empty:
        left.axhline(before["value"].iloc[0], color=BLACK, linestyle=DOTTED, linewidth=1, label="gap before", zorder=1)
        words.append(f"gap before fine-tuning {interval(before.iloc[0], False)}")
    legend_below(figure, axes[0])
    parameters = gap["parameters"].iloc[0]
    caption = (
        f"Gap and R@1 after a short fine-tune ({parameters.get('tuned')}, {parameters.get('steps')} steps) at a fixed "
        f"temperature{subject(gap)}. Bars: 95 % t-intervals over {int(gap['n'].max())} seeds."
    )
    return Drawing(figure, f"Gap and R@1 against the temperature of a short fine-tune. {'; '.join(words)}.", caption)


@styled
def mixed_bias(records: Records, k: int = 10) -> Drawing:
    """Draw the share of a query's own modality among its ``k`` nearest in a mixed gallery; table "main"."""
    found = {name: select(records, "main", f"share of {name} in top-{k} of {name}") for name in ("texts", "images")}
    chosen = _interventions(found["texts"])
    figure, axes = panels(2, height=1.05 + 0.185 * len(chosen), sharey=True)
    sentences = []
    for ax, (name, rows) in zip(axes[0], found.items(), strict=True):
        words = _shares(ax, once(rows, ["method"]), chosen, _even(rows))
        ax.set(title=f"queries: {name}", xlabel=f"{name} in the top {k} (%)")
        sentences.append(f"Queries {name}: {'; '.join(words)}.")
    legend_below(figure, [], {"none": Line2D([], [], **look("none").line(marker="None")),
                              "no preference": Line2D([], [], color=GREY, linewidth=0.9)})  # fmt: skip
    rows = found["texts"]
    what = f"Share of the query's own modality among its {k} nearest"
    alt = f"{what} in a gallery of images and texts. {' '.join(sentences)}"
    caption = (
        f"{what} when images and texts are searched together, before (dotted) and after intervention{subject(rows)}. "
        "Grey: the share of that modality in the gallery. Bars: 95 % intervals."
    )
    return Drawing(figure, alt, caption)


@styled
def gap_against_recall(records: Records) -> Drawing:
    """Draw one cross per intervention: the gap it leaves and R@1 (%), with intervals. Table "main"."""
    gap, recall = (select(records, "main", metric) for metric in ("L2M", "R@1"))
    chosen = _interventions(gap)
    figure, axes = panels(2, height=2.9)
    sentences = []
    for ax, direction in zip(axes[0], DIRECTIONS, strict=True):
        sentences.append(f"{title(direction)}: {'; '.join(_trade(ax, gap, _direction(recall, direction), chosen))}.")
        ax.set_title(title(direction))
    axes[0][0].set_ylabel("R@1, test pairs (%)")
    legend_below(figure, [], _markers(chosen))
    alt = f"Distance of the centroids after each intervention against R@1. {' '.join(sentences)}"
    what = "The gap that each tuned intervention leaves, against R@1 on the test pairs"
    caption = f"{what}{subject(gap)}. Bars: 95 % intervals."
    return Drawing(figure, alt, caption)


@styled
def effects(records: Records, k: int = 10) -> Drawing:
    """Draw what each intervention changes, rank-based, mixed and group-based side by side; table "difference".

    Filled: Holm-corrected p below 0.05, or where there is no test an interval without 0.
    """
    rows = every_record(records)
    rows = rows[rows["table"] == "difference"]
    asked = [("R@1", d, f"R@1\n{title(d)}", 100) for d in DIRECTIONS]
    asked += [(f"nDCG@{k} mixed, {name}", None, f"mixed nDCG@{k}\nfrom {name}", 100) for name in ("texts", "images")]
    asked += [("V-measure", None, "V-measure\nof groups", 1)]
    found = [(_direction(rows[rows["metric"] == f"{m} difference"], d), name, scale) for m, d, name, scale in asked]
    found = [(once(here, ["method"]), name, scale) for here, name, scale in found if not here.empty]
    if not found:
        raise InputError("no record of table 'difference': the study did not run this part")
    chosen = _interventions(rows)
    figure, axes = panels(len(found), width=DOUBLE, height=1.15 + 0.175 * len(chosen), sharey=True)
    sentences = []
    for ax, (here, name, scale) in zip(axes[0], found, strict=True):
        words = []
        ax.axvline(0, color=BLACK, linewidth=0.8)
        for place, method in enumerate(chosen):
            row = here[here["method"] == method]
            if row.empty:
                continue
            value, low, high, p = row[["value", "ci_low", "ci_high", "p_holm"]].iloc[0]
            clear = p < 0.05 if pd.notna(p) else low > 0 or high < 0
            colour = look(method).colour
            point = {"marker": "o", "markersize": 4.2, "elinewidth": 1.1, "color": colour}
            face = colour if clear else "white"
            ax.errorbar(scale * value, place, xerr=_reach(row, scale), markerfacecolor=face, **point)
            ends = (signed(scale * end) if scale == 100 else f"{end:+.3f}" for end in (value, low, high))
            words.append("{} {} ({} to {}{})".format(look(method).label, *ends, ", clear" if clear else ""))
        _names(ax, chosen)
        ax.set(title=name, xlabel="Δ (points)" if scale == 100 else "Δ (0 to 1)", ylim=(len(chosen) - 0.4, -0.6))
        ax.locator_params(axis="x", nbins=4)
        sentences.append(f"{name.replace(chr(10), ', ')}: {'; '.join(words)}.")
    dot = {"marker": "o", "markersize": 4.2, "color": BLACK, "linestyle": "None"}
    legend_below(
        figure, [], {"clear": Line2D([], [], **dot), "not clear": Line2D([], [], markerfacecolor="white", **dot)}
    )
    caption = (
        f"What each tuned intervention changes on the test pairs, paired with no intervention{subject(rows)}: search "
        "in the other modality, search in both together, and groups. Bars: 95 % intervals; filled: p < 0.05 by the "
        "paired permutation test with Holm's correction, or for groups an interval without 0."
    )
    return Drawing(figure, f"Changes by intervention, with 95 % intervals. {' '.join(sentences)}", caption)


@styled
def overview(records: Records, points: pd.DataFrame, energies: pd.DataFrame, trained: float, k: int = 10) -> Drawing:
    """Draw the study at the width of a page: clouds, energy, loss, temperature, mixed search, and gap against R@1.

    The panel of temperature is left out where nothing was fine-tuned: the clouds by t-SNE take its place.
    """
    every = every_record(records)
    figure, axes = panels(3, 2, width=DOUBLE, height=4.7)
    cloud, spectrum, loss, tuned, bias, trade = (ax for line in axes for ax in line)
    inches = figure.get_figwidth() / 3 - 0.7
    here = points[points["weights"] == "trained"]
    words = [f"(a) {_cloud(cloud, here[here['view'] == 'PCA'], 2)}"]
    cloud.set(xlabel="first component (no unit)", ylabel="second component (no unit)")
    low, high = cloud.get_ylim()
    cloud.set_ylim(low - 0.2 * (high - low), high)  # room for the legend
    cloud.legend(loc="lower center", ncols=2, handlelength=1, markerscale=1.5, fontsize=6.5)
    _letter(cloud, "a", "both modalities")
    shown = [("trained", "dimension"), ("trained", "principal axis"), ("none", "random direction")]
    words.append(f"(b) {'; '.join(_energy(spectrum, energies, inches, shown))}")
    spectrum.legend(loc="lower right", fontsize=6.5, handlelength=1.4, borderaxespad=0.1)
    _letter(spectrum, "b", "energy of the gap")
    rows = _parameter(_parameter(select(records, "landscape", "InfoNCE"), "lam"), "tau").sort_values(["tau", "lam"])
    gaps = _parameter(select(records, "landscape", "L2M"), "lam")
    words.append(f"(c) {'; '.join(_loss(loss, _direction(rows, None), trained, gaps, few=True))}")
    loss.set(xlabel="shift λ, gap left (no unit)", ylabel="loss, rescaled (no unit)", yticks=[0, 0.5, 1])
    loss.legend(loc="upper left", fontsize=6.5, handlelength=2)
    _letter(loss, "c", "loss along the gap")
    if (every["table"] == "temperature").any():
        rows = _parameter(select(records, "temperature", "L2M"), "tau")
        words.append(f"(d) {_tuned(tuned, rows, inches, 'gap L2M', BLUE, 'o', 1)}")
        tuned.set(ylabel="gap L2M (no unit)", xlabel="temperature τ (no unit)", ylim=(0, None))
        fourth = "the gap after short fine-tunes"
        _letter(tuned, "d", "gap after fine-tuning")
    else:
        words.append(f"(d) {_cloud(tuned, here[here['view'] == 't-SNE'], 2)}")
        tuned.set(xlabel="t-SNE, first axis (no unit)", ylabel="t-SNE, second axis (no unit)")
        fourth = "both modalities by t-SNE"
        _letter(tuned, "d", "both modalities, t-SNE")
    share = once(select(records, "main", f"share of texts in top-{k} of texts"), ["method"])
    gap, recall = (select(records, "main", metric) for metric in ("L2M", "R@1"))
    chosen = _interventions(gap)
    words.append(f"(e) {'; '.join(_shares(bias, share, chosen, _even(share)))}")
    bias.set_xlabel(f"texts in a text's top {k} (%)")
    bias.tick_params(axis="y", labelsize=6.5)
    _letter(bias, "e", "mixed search")
    words.append(f"(f) {'; '.join(_trade(trade, gap, _direction(recall, 'text->image'), chosen))}")
    trade.set_ylabel("R@1, text → image (%)")
    _letter(trade, "f", "gap against R@1")
    caption = (
        f"The modality gap at a glance{subject(gap)}: (a) both modalities by principal components; (b) in how many "
        "dimensions the gap lies; (c) the symmetric loss along a shift of the gap, each temperature rescaled to its "
        f"range, rings at the least; (d) {fourth}; (e) share of texts when texts search images and texts together "
        "(dotted: before, grey: no preference); (f) the gap left by each intervention against R@1, marked as in (e). "
        "Bars: 95 % intervals."
    )
    return Drawing(figure, f"Six panels on the modality gap. {'. '.join(words)}.", caption)
