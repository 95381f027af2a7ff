"""The explorer of the modality gap: move two clouds together, and see what the loss, recall and a mixed search do.

The view is the modality gap study: a shift is that of its landscape (along the gap of the very pairs, at the chosen
temperature), mean-centring that of its main table (fitted on the bank). Pictures are of the test pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import ipywidgets
import numpy as np
import pandas as pd
import torch

from reprolib import ranking
from reprolib.errors import InputError, nearest
from reprolib.explore import common
from reprolib.explore.common import Explorer, Shown, Source, Step, View, label, page, scaled, table
from reprolib.figures import modality_gap as draw
from reprolib.figures.style import BLUE, DIRECTIONS, VERMILLION, Drawing
from reprolib.loaders import Split
from reprolib.methods.interventions import intervene
from reprolib.metrics import gap_per_dimension
from reprolib.ranking import Scorer
from reprolib.study import modality_gap
from reprolib.study.modality_gap import SHOWN_PAIRS, losses
from reprolib.study.protocol import Side

FOUND = 10  # items of a mixed ranking that are shown
WIDTH, HEIGHT = 340, 270


@dataclass(frozen=True)
class State:
    """What the widgets are set to.

    ``lam`` is the share of the gap that a shift takes away; ``centred`` subtracts the mean of each modality instead.
    ``tau`` is the temperature of the loss (None: that of training), ``query`` an id of a test item of the direction's
    query modality (None: the first).
    """

    lam: float = 0.0
    centred: bool = False
    tau: float | None = None
    direction: str = "text->image"
    query: str | None = None


@dataclass(frozen=True, eq=False)
class Result:
    """What a state comes to.

    ``metrics``: L2M, R@1 of each direction and InfoNCE (symmetric), as the embeddings are and as they are moved.
    ``pairs`` holds the pairs of the pictures, before and after. ``mixed`` is the query's ranking in the gallery of
    both modalities: (id, modality, whether it is the query's own pair), best first. ``landscape`` is InfoNCE
    (symmetric) by shift.
    """

    state: State
    tau: float
    metrics: Mapping[str, Mapping[str, float]]
    pairs: Mapping[str, Split]
    query: str
    mixed: Mapping[str, list[tuple[str, str, bool]]]
    landscape: Mapping[float, float]


class GapView(View):
    """What the explorer of the gap shows, without widgets; ``data`` as ``reprolib.explore.hubs.HubView`` takes it.

    Raises InputError and DataUnavailable as ``reprolib.study.modality_gap.Study`` does.
    """

    def __init__(self, data: Source = "glyphs", **settings: Any) -> None:
        super().__init__(data, **settings)
        self.study = modality_gap.Study(**self.given, **self.settings)
        self._tests = lru_cache(maxsize=4)(self._moved)
        self._known: dict[tuple[float, bool, float], dict[str, float]] = {}
        self._landscapes: dict[float, dict[float, float]] = {}
        picture = self.study.parts[0].test
        self._rows = np.sort(np.random.default_rng(self.settings["seed"]).permutation(len(picture.image))[:SHOWN_PAIRS])
        both = np.concatenate([picture.image[self._rows], picture.text[self._rows]]).astype(np.float64)
        self._middle = both.mean(0)
        axes = np.linalg.svd(both - self._middle, full_matrices=False)[2][:2]
        self._axes = np.where(axes @ (picture.text.mean(0) - picture.image.mean(0)) < 0, -1, 1)[:, None] * axes

    def _moved(self, lam: float, centred: bool) -> list[Split]:
        """Return the pairs that are measured, moved: those of every split if centred, else the pairs as they are."""
        if centred:
            moves = [(intervene("mean-centring", part.train), part.test) for part in self.study.parts]
        else:
            whole = self.study.whole
            units = [ranking.as_embeddings(rows, "embeddings").numpy() for rows in (whole.image, whole.text)]
            whole = replace(whole, image=units[0], text=units[1])
            moves = [(intervene("shift", *units, lam=lam), whole)]
        moved = [(test, move(test.image, test.text)) for move, test in moves]
        return [replace(test, image=image.numpy(), text=text.numpy()) for test, (image, text) in moved]

    def compute(self, state: State, step: Step = bool) -> Result:
        """Return what ``state`` comes to. Raises InputError for a state that is not valid.

        ``step`` is told in words before each part of the work; what it raises ends it.
        """
        tau = self.study.trained if state.tau is None else state.tau
        if not (np.isfinite(state.lam) and np.isfinite(tau) and tau > 0):
            raise InputError(f"a shift of {state.lam} at tau = {tau} is not valid: both are finite, and tau above 0")
        if state.direction not in modality_gap.DIRECTIONS:
            raise nearest(state.direction, modality_gap.DIRECTIONS, "direction")
        sides = {"before": (0.0, False), "after": (0.0 if state.centred else state.lam, state.centred)}
        tests = {when: self._tests(*move) for when, move in sides.items()}
        pairs = {when: found[0] for when, found in tests.items()}
        if state.centred:  # the picture of what was centred, not of all pairs
            pairs["before"] = self.study.parts[0].test
        ids = pairs["before"].text_ids if state.direction == "text->image" else pairs["before"].image_ids
        query = str(ids[0]) if state.query is None else state.query
        places = np.flatnonzero(ids == query)
        if not len(places):
            raise nearest(query, map(str, ids), "query")
        return Result(
            state,
            tau,
            {when: self._metrics((*sides[when], tau), found) for when, found in tests.items()},
            pairs,
            query,
            {when: _mixed(split, state.direction, int(places[0])) for when, split in pairs.items()},
            self.landscape(tau, step),
        )

    def around(self, state: State) -> Iterator[State]:
        """Yield the states that one move of a widget leads to, of those that take long."""
        taus = {*self.study.temperatures, self.study.trained} - {state.tau}
        yield from (replace(state, tau=tau) for tau in sorted(taus))
        yield replace(state, centred=not state.centred, query=None)

    def _metrics(self, key: tuple[float, bool, float], tests: list[Split]) -> dict[str, float]:
        if key not in self._known:
            found = {"L2M": float(np.mean([np.linalg.norm(gap_per_dimension(t.image, t.text)) for t in tests]))}
            for direction in modality_gap.DIRECTIONS:
                sides = [Side(test, direction, self.study.device) for test in tests]
                hits = [side.hits(Scorer(side.queries, side.gallery)) for side in sides]
                found[f"R@1 {direction}"] = float(np.concatenate(hits).mean())
            found["InfoNCE"] = float(np.mean(np.concatenate([losses(t.image, t.text, key[2])[None] for t in tests])))
            self._known[key] = found
        return self._known[key]

    def landscape(self, tau: float, step: Step = bool) -> dict[float, float]:
        """Return InfoNCE (symmetric) at ``tau`` by shift, over the shifts of the study."""
        if tau not in self._landscapes:
            found = {}
            for lam in self.study.shifts:
                step(f"The loss at a shift of {lam:g}")
                (split,) = self._moved(lam, False)
                found[lam] = float(losses(split.image, split.text, tau)[None].mean())
            self._landscapes[tau] = found
        return self._landscapes[tau]

    def places(self, split: Split) -> np.ndarray:
        """Return the shown pairs in the plane, float64 [2 (image, text), pairs, 2]; axes are those before any move."""
        rows = np.stack([split.image[self._rows], split.text[self._rows]]).astype(np.float64)
        return (rows - self._middle) @ self._axes.T

    def command(self, state: State) -> str:
        """Return the command with the numbers of ``state``: in table landscape, or in main if it is centred."""
        tau = self.study.trained if state.tau is None else state.tau
        asked: dict[str, Any] = {"interventions": ["mean-centring"]}
        if not state.centred:
            asked = {"interventions": ["shift"], "shifts": [f"{state.lam:g}"], "temperature": repr(float(tau))}
        return self._command("modality-gap", asked)

    def figure(self, result: Result) -> Drawing:
        """Return the study's figure of the clouds, before and after."""
        name, parts = self.study.data.name, []
        for when, split in result.pairs.items():
            x, y = self.places(split).reshape(-1, 2).T
            about = {"set": f"{name}, {when}", "weights": "trained", "view": "PCA"}
            pair = np.tile(self._rows, 2)
            modality = np.repeat(["image", "text"], len(self._rows))
            parts.append(pd.DataFrame({**about, "modality": modality, "pair": pair, "x": x, "y": y}))
        return draw.clouds(pd.concat(parts, ignore_index=True))


def _mixed(split: Split, direction: str, row: int) -> list[tuple[str, str, bool]]:
    """Return what is found for one query among both modalities, best first; ties in the order of the metrics."""
    own, other = ("text", "image") if direction == "text->image" else ("image", "text")
    rows = [ranking.as_embeddings(getattr(split, name), name) for name in (own, other)]
    scorer = Scorer(rows[0][row : row + 1], torch.cat(rows), exclude=torch.tensor([row]))
    ids = [(str(item), name) for name in (own, other) for item in getattr(split, f"{name}_ids")]
    found = ranking.topk(scorer, min(FOUND, len(ids) - 1))[0].tolist()
    return [(*ids[place], place == len(rows[0]) + row) for place in found]


# --- drawings -------------------------------------------------------------------------------------------------


def clouds(view: GapView, result: Result) -> str:
    """Return the moved pairs as SVG, on the axes before the move."""
    before, after = (view.places(result.pairs[when]) for when in ("before", "after"))
    low, high = before.min((0, 1)), before.max((0, 1))
    margin = 0.15 * (high - low)
    low, high = low - margin, high + margin
    x = scaled(after[..., 0], low[0], high[0], 0, WIDTH)
    y = scaled(after[..., 1], low[1], high[1], HEIGHT, 0)
    lines = "".join(f"M{a:.1f} {b:.1f}L{c:.1f} {d:.1f}" for a, b, c, d in zip(x[0], y[0], x[1], y[1], strict=True))
    dots = [
        f"<circle cx='{a:.1f}' cy='{b:.1f}' r='3' fill='{BLUE}'/>" for a, b in zip(x[0], y[0], strict=True)
    ] + [
        f"<path d='M{a - 3:.1f} {b + 3:.1f}h6l-3 -6z' fill='{VERMILLION}'/>" for a, b in zip(x[1], y[1], strict=True)
    ]  # fmt: skip
    gaps = [result.metrics[when]["L2M"] for when in ("before", "after")]
    alt = (
        f"{len(x[0])} pairs in the plane of the two leading principal components; the centroids are {gaps[0]:.3f} "
        f"apart before and {gaps[1]:.3f} after."
    )
    key = label(6, HEIGHT + 16, "● image, ▲ text; a line joins a pair", "start")
    wires = f"<path d='{lines}' stroke='currentColor' stroke-width='0.4' opacity='0.5'/>"
    return common.svg(WIDTH, HEIGHT + 22, alt, wires, *dots, key)


def landscape(result: Result) -> str:
    """Return the loss along the shift as SVG, the present point marked by a ring."""
    lams, values = np.array(list(result.landscape)), np.array(list(result.landscape.values()))
    here = result.metrics["after"]["InfoNCE"]
    low, high = min(values.min(), here), max(values.max(), here)
    left, right = min(lams.min(), result.state.lam), max(lams.max(), result.state.lam)
    x, y = scaled(lams, left, right, 40, WIDTH - 10), scaled(values, low, high, HEIGHT - 30, 24)
    at = scaled([1.0 if result.state.centred else result.state.lam], left, right, 40, WIDTH - 10)[0]
    level = scaled([here], low, high, HEIGHT - 30, 24)[0]
    least = lams[values.argmin()]
    alt = (
        f"InfoNCE at temperature {result.tau:.3g} against the shift: "
        + ", ".join(f"{v:.3f} at {lam:g}" for lam, v in result.landscape.items())
        + f"; least at {least:g}. Here it is {here:.3f}."
    )
    parts = [
        common.path(np.stack([x, y], 1), stroke="currentColor", stroke_width=1.5),
        *(f"<circle cx='{a:.1f}' cy='{b:.1f}' r='2.5' fill='currentColor'/>" for a, b in zip(x, y, strict=True)),
        *(label(a, HEIGHT - 8, f"{lam:g}") for a, lam in zip(x, lams, strict=True)),
        f"<circle cx='{at:.1f}' cy='{level:.1f}' r='6' fill='none' stroke='{VERMILLION}' stroke-width='2.5'/>",
        label(0, 14, f"InfoNCE, symmetric, τ = {result.tau:.3g}; ring: here", "start"),
        label(36, 30, f"{high:.2f}", "end"),
        label(36, HEIGHT - 30, f"{low:.2f}", "end"),
        label(WIDTH / 2, HEIGHT + 8, "shift λ, share of the gap taken away"),
    ]
    return common.svg(WIDTH, HEIGHT + 14, alt, *parts)


def numbers(result: Result) -> str:
    """Return the metrics as they are and as they are moved, as a table."""
    before, after = (result.metrics[when] for when in ("before", "after"))
    forms = {name: "{:.2%}" if name.startswith("R@1") else "{:.4f}" for name in before}
    names = {name: name.replace("->", " → ") for name in before}
    rows = [(names[name], [forms[name].format(one[name]) for one in (before, after)]) for name in before]
    return table(("as they are", "moved"), rows)


class Gap(Explorer):
    """The explorer of the gap; see ``gap``."""

    def __init__(self, view: GapView, state: State) -> None:
        super().__init__()
        self.view = view
        self._shown = Shown(view.study.data.pictures, view.study.data.captions)
        self.result = view.compute(state)
        wide = {"style": {"description_width": "initial"}}
        self.lam = ipywidgets.FloatSlider(
            value=state.lam, min=-0.5, max=1.0, step=0.05, description="Shift λ", disabled=state.centred, **wide
        )
        self.centred = ipywidgets.Checkbox(value=state.centred, description="Mean-centring", indent=False)
        taus = sorted({*view.study.temperatures, view.study.trained, *([state.tau] if state.tau else [])})
        named = [(f"{tau:.3g}{' (training)' if tau == view.study.trained else ''}", tau) for tau in taus]
        self.tau = ipywidgets.Dropdown(
            options=named, value=state.tau or view.study.trained, description="Temperature τ of the loss", **wide
        )
        self.direction = ipywidgets.Dropdown(
            options=[(text, name) for name, text in DIRECTIONS.items()], value=state.direction, description="Direction",
            **wide,
        )  # fmt: skip
        self.query = ipywidgets.Dropdown(description="Query", **wide)
        self._queries(self.result.query)
        self.numbers, self.mixed = ipywidgets.HTML(), ipywidgets.HTML()
        self.clouds, self.landscape = ipywidgets.HTML(), ipywidgets.HTML()
        wrap = {"flex_flow": "row wrap"}
        self.box.children = [
            ipywidgets.HBox([self.lam, self.centred, self.tau, self.direction, self.query, self.cancel], layout=wrap),
            self.state,
            ipywidgets.HBox([self.numbers, self.clouds, self.landscape], layout=wrap),
            self.mixed,
        ]
        for control in (self.lam, self.centred, self.tau, self.query):
            control.observe(lambda _: self.update(), "value")
        self.direction.observe(lambda _: self._turn(), "value")
        self.show(self.result)

    def _queries(self, chosen: str | None) -> None:
        pairs = self.result.pairs["before"]
        ids = [str(i) for i in (pairs.text_ids if self.direction.value == "text->image" else pairs.image_ids)]
        self.query.options = [(self._shown.name(item)[:60], item) for item in ids]
        self.query.value = chosen or ids[0]

    def _turn(self) -> None:
        self._queries(None)
        self.update()  # the first of the other modality may have the same id

    def _state(self) -> State:
        return State(**{name: getattr(self, name).value for name in asdict(State())})

    def update(self) -> None:
        """Compute what the widgets are set to, and show it."""
        self.lam.disabled = self.centred.value
        state = self._state()
        if state.centred != self.result.state.centred and not self.view.study.encoded:
            state = replace(state, query=None)  # other pairs: those of one split, or all of a stored feature set
        self.work.submit(lambda: self.view.compute(state, self._step), self.show)

    def next(self) -> Iterator[Callable[[Step], object]]:
        return (lambda step, state=state: self.view.compute(state, step) for state in self.view.around(self._state()))

    def show(self, result: Result) -> None:
        """Show a result."""
        known = self.result.pairs["before"].text_ids
        self.result = result
        if not np.array_equal(known, result.pairs["before"].text_ids):
            self._queries(result.query)
        self._say(self.view.command(result.state))
        self.numbers.value = page(numbers(result))
        self.clouds.value, self.landscape.value = page(clouds(self.view, result)), page(landscape(result))
        lines = "".join(
            f"<tr><th scope='row'>{ {'before': 'as they are', 'after': 'moved'}[when] }</th>"
            f"<td>{sum(m == own for _, m, _ in found)} of {len(found)} are {own}s</td>"
            f"<td>{''.join(self._shown(item, correct) for item, _, correct in found)}</td></tr>"
            for own in (result.state.direction.split("->")[0],)
            for when, found in result.mixed.items()
        )
        asked = self._shown.named(result.query)
        self.mixed.value = page(
            f"<b>Found among images and texts together for {asked}</b> (solid frame: its own pair)"
            f"<table class='words'>{lines}</table>"
        )
        self.prepare()

    def figure(self) -> Drawing:
        return self.view.figure(self.result)


def gap(
    data: Source = "glyphs",
    *,
    model: str | None = None,
    mirror: str | Path | None = None,
    seed: int = 0,
    device: str = "cpu",
    **state: Any,
) -> Gap:
    """Return the explorer of the modality gap, which displays itself in a notebook.

    ``data`` as ``reprolib.explore.hubs`` takes it; ``state`` sets the widgets (``lam``, ``centred``, ``tau``,
    ``direction``, ``query``). Raises InputError and DataUnavailable as ``reprolib.study.modality_gap.Study`` does, and
    InputError for a state that is not valid.
    """
    view = GapView(data, model=model, mirror=mirror, seed=seed, device=device)
    return Gap(view, common.chosen(State(), state))
