"""The explorer of modality inversion: one image becomes pseudo-words, and its neighbours change as it does.

The view is the intra-modal inversion study, its sample of test queries and its settings. The library's OTI is observed
at every step, and what is seen of it is shown a few times per second.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import ipywidgets
import numpy as np
import pandas as pd
import torch

from reprolib import ranking
from reprolib.errors import InputError, nearest
from reprolib.explore import common
from reprolib.explore.common import (
    Cancelled,
    Explorer,
    Shown,
    Source,
    View,
    escape,
    label,
    page,
    rows,
    scaled,
    table,
)
from reprolib.figures import intra_modal_inversion as draw
from reprolib.figures.style import Drawing
from reprolib.methods import inversion as methods
from reprolib.metrics.intra_modal import intra_modal_metrics
from reprolib.metrics.intra_modal import nearest as neighbours_of
from reprolib.ranking import Scorer
from reprolib.study import intra_modal_inversion

TASK = "image->image"
STAGES = (1, 2, 5, 10, 20, 50, 100, 150, 200, 500, 1000)  # steps that stay on the page
_SHOWN = 0.2  # seconds between two steps that are shown
WIDTH, HEIGHT = 420, 200


@dataclass(frozen=True)
class State:
    """What the widgets are set to: ``query`` is an id of the study's sample (None: the first), ``steps`` of OTI."""

    query: str | None = None
    steps: int = 150


@dataclass(frozen=True, eq=False)
class Stage:
    """A query after ``step`` steps (0 with ``losses`` empty: native). ``losses`` float32 [step + 1] are those so far.

    ``neighbours`` are (id, whether it is relevant), best first; ``precision`` is the average precision.
    """

    step: int
    losses: np.ndarray
    precision: float
    neighbours: list[tuple[str, bool]]


class InversionView(View):
    """What the explorer of inversion shows, without widgets.

    ``data`` is the name of a dataset of images and texts: an inversion needs the model, not its features. Raises
    InputError and DataUnavailable as ``reprolib.study.intra_modal_inversion.Study`` does.
    """

    def __init__(self, data: Source = "glyphs", **settings: Any) -> None:
        super().__init__(data, **settings)
        self.study = intra_modal_inversion.Study(**self.given, **self.settings, tasks=[TASK])
        if self.study.encoder is None:
            raise InputError(f"{self.study.data.name} holds stored features, and an inversion needs the model itself")
        self.grouping = self.study.cases[0][1]
        self._part = self.study.parts[TASK, "test"]
        self._target = self._part.target(self.grouping)
        self.queries = [str(name) for name in self._part.ids[self._target.queries]]

    def native(self, state: State) -> Stage:
        """Return the query as it is."""
        row = self._row(state)
        return self._stage(row, 0, np.empty(0, np.float32), self._feature(row))

    def run(
        self,
        state: State,
        watch: Callable[[Stage], object] = bool,
        wanted: Callable[[int], bool] = STAGES.__contains__,
    ) -> list[Stage]:
        """Return the query after the steps that are ``wanted``, which is asked after each, and after the last.

        Each is given to ``watch`` as soon as it is reached. What either raises ends the inversion.
        """
        if not (isinstance(state.steps, int) and state.steps >= 1):
            raise InputError(f"steps = {state.steps!r} is not an integer of at least 1")
        row, losses, stages = self._row(state), [], []

        def observe(step: int, loss: torch.Tensor, feature: torch.Tensor) -> None:
            losses.append(float(loss))
            if (step and wanted(step)) or step == state.steps:
                reached = ranking.as_embeddings(feature.float(), "inverted query", device=self.study.device)
                stages.append(self._stage(row, step, np.array(losses, np.float32), reached))
                watch(stages[-1])

        settings = replace(
            methods.OTI, steps=state.steps, tokens=self.study.tokens[0], template=self.study.templates[0]
        )
        asked = self._feature(row).numpy(force=True), [self.queries[row]], settings
        methods.oti(self.study.encoder, *asked, progress=lambda done, total: None, observe=observe)
        return stages

    def _row(self, state: State) -> int:
        query = self.queries[0] if state.query is None else state.query
        if query not in self.queries:
            raise nearest(query, self.queries, "query of the sample")
        return self.queries.index(query)

    def _feature(self, row: int) -> torch.Tensor:
        item = self._target.queries[row]
        return self._part.gallery[item : item + 1]

    def _stage(self, row: int, step: int, losses: np.ndarray, feature: torch.Tensor) -> Stage:
        one = self._target.take(np.array([row]))
        gallery = self._part.gallery[one.gallery]
        asked = {"self_match": one.own, "junk": one.junk}
        precision = intra_modal_metrics(feature, gallery, one.relevance, **asked)["mAP"]
        best = neighbours_of(Scorer(feature, gallery), self.study.k, **asked)[0]
        found = [(str(self._part.ids[one.gallery[item]]), bool(one.relevance[0, item])) for item in best]
        return Stage(step, losses, precision, found)

    def command(self, state: State) -> str:
        """Return the command whose ``per_query.parquet`` has this query, native and inverted."""
        return self._command("intra-modal-inversion", {"tasks": [TASK], "oti_steps": state.steps})

    def figure(self, state: State, stages: Sequence[Stage]) -> Drawing:
        """Return the study's figure of the neighbours, native and after the last stage."""
        query, data = self.queries[self._row(state)], self.study.data
        found = [
            {
                "direction": TASK, "grouping": self.grouping, "dataset": data.name, "model": data.model,
                "query_id": query, "method": method, "AP": stage.precision,
                "neighbours": [item for item, _ in stage.neighbours], "correct": [c for _, c in stage.neighbours],
            }
            for method, stage in (("none", stages[0]), ("inversion", stages[-1]))
        ]  # fmt: skip
        return draw.neighbours(pd.DataFrame(found), data.pictures, data.captions)


def curve(stages: Sequence[Stage], steps: int) -> str:
    """Return the loss so far against the steps (from 1 on, logarithmic) as SVG."""
    losses = stages[-1].losses
    at = np.log1p(np.arange(len(losses)))
    x = scaled(at, 0, np.log1p(steps), 40, WIDTH - 10)
    top = max(1.0, float(losses.max(initial=0)))
    y = scaled(losses, 0, top, HEIGHT - 24, 24)
    ticks = [tick for tick in (0, 1, 5, 20, 100, 500) if tick <= steps]
    marks = scaled(np.log1p(ticks), 0, np.log1p(steps), 40, WIDTH - 10)
    parts = [
        label(0, 14, "loss 1 − cos, by step", "start"), label(34, 30, f"{top:.2g}", "end"),
        label(34, HEIGHT - 24, "0", "end"),
        common.path(np.array([[40, HEIGHT - 24], [WIDTH - 10, HEIGHT - 24]]), stroke="currentColor", stroke_width=0.5),
        *(label(x, HEIGHT - 8, str(tick)) for x, tick in zip(marks, ticks, strict=True)),
    ]  # fmt: skip
    alt = "The inversion has not begun."
    if len(losses):
        parts.append(common.path(np.stack([x, y], 1), stroke="currentColor", stroke_width=2))
        alt = f"Loss of the inversion: {losses[0]:.3f} at the start, {losses[-1]:.3f} after {len(losses) - 1} steps."
    return common.svg(WIDTH, HEIGHT, alt, *parts)


def numbers(stages: Sequence[Stage]) -> str:
    """Return loss and average precision of every stage as a table."""
    losses = [f"{stage.losses[-1]:.4f}" if len(stage.losses) else "" for stage in stages]
    return table(
        ("loss", "AP"),
        [(_name(stage), (loss, f"{stage.precision:.2%}")) for stage, loss in zip(stages, losses, strict=True)],
    )


def _name(stage: Stage) -> str:
    return f"{stage.step:,} step{'s' * (stage.step != 1)}" if len(stage.losses) else "native"


class Inversion(Explorer):
    """The explorer of inversion; see ``inversion``."""

    def __init__(self, view: InversionView, state: State) -> None:
        super().__init__()
        self.view = view
        self._shown = Shown(view.study.data.pictures, view.study.data.captions)
        wide = {"style": {"description_width": "initial"}}
        self.query = ipywidgets.Dropdown(
            options=view.queries, value=view.queries[view._row(state)], description="Query image", **wide
        )
        choices = sorted({*(stage for stage in STAGES if stage <= 500), state.steps})
        self.steps = ipywidgets.SelectionSlider(
            options=choices, value=state.steps, description="Steps of OTI", continuous_update=False, **wide
        )
        self.start = ipywidgets.Button(description="Invert", tooltip="Run OTI for this query", icon="play")
        self.progress = ipywidgets.FloatProgress(min=0, max=1, description="Progress")
        self.curve, self.numbers, self.neighbours = ipywidgets.HTML(), ipywidgets.HTML(), ipywidgets.HTML()
        wrap = {"flex_flow": "row wrap"}
        self.box.children = [
            ipywidgets.HBox([self.query, self.steps, self.start, self.cancel, self.progress], layout=wrap),
            self.state,
            ipywidgets.HBox([self.curve, self.numbers], layout=wrap),
            self.neighbours,
        ]
        self.start.on_click(lambda _: self.invert())
        for control in (self.query, self.steps):
            control.observe(lambda _: self.invert(), "value")
        self.stages = [view.native(self._state()), *view.run(self._state())]
        self.show(self.stages)

    def _state(self) -> State:
        return State(**{name: getattr(self, name).value for name in asdict(State())})

    def invert(self) -> None:
        """Invert the chosen query, step by step, until it is done or cancelled."""
        self.work.cancel()  # of another query
        state, shown = self._state(), 0.0

        def wanted(step: int) -> bool:
            if self.work.cancelled.is_set() or self._state() != state:
                raise Cancelled(f"Stopped after {self.stages[-1].step} of {state.steps} steps.")
            self.progress.value = step / state.steps
            return step in STAGES or time.monotonic() - shown > _SHOWN

        def watch(stage: Stage) -> None:
            nonlocal shown
            self.stages = [*(s for s in self.stages if s.step in (0, *STAGES)), stage]
            self.show(self.stages)
            shown = time.monotonic()

        def job() -> list[Stage]:
            self.stages = [self.view.native(state)]
            self.show(self.stages)
            self.view.run(state, watch, wanted)
            return self.stages

        self.work.submit(job, self.show)

    def show(self, stages: Sequence[Stage]) -> None:
        """Show the stages so far."""
        state = self._state()
        self._say(self.view.command(state))
        self.curve.value, self.numbers.value = page(curve(stages, state.steps)), page(numbers(stages))
        lines = rows((_name(stage), [self._shown(*found) for found in stage.neighbours]) for stage in stages)
        self.neighbours.value = page(
            f"<b>Neighbours of {self._shown(state.query)}</b>; relevant is the same {escape(self.view.grouping)}. "
            f"Solid frame: relevant; dashed: not.{lines}"
        )

    def figure(self) -> Drawing:
        return self.view.figure(self._state(), self.stages)


def inversion(
    data: Source = "glyphs",
    *,
    model: str | None = None,
    mirror: str | Path | None = None,
    seed: int = 0,
    device: str = "cpu",
    **state: Any,
) -> Inversion:
    """Return the explorer of modality inversion (OTI), which displays itself in a notebook.

    ``data`` is the name of a dataset of images and texts; ``state`` sets the widgets (``query``, ``steps``). Raises
    InputError and DataUnavailable as ``reprolib.study.intra_modal_inversion.Study`` does, and InputError for stored
    features and for a state that is not valid.
    """
    view = InversionView(data, model=model, mirror=mirror, seed=seed, device=device)
    return Inversion(view, common.chosen(State(), state))
