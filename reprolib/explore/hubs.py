"""The explorer of hubs: a correction, its temperature and its bank, and what becomes of the hubs.

The view is the hubness study, asked for one direction, method and temperature at a time: parameters that are not in
the state are chosen on validation, as the study chooses them, so the study's numbers are those on the page.
"""

from __future__ import annotations

import copy
import itertools
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from reprolib.explore.common import Explorer, Shown, Source, Step, View, escape, page, table
from reprolib.figures import hubness as draw
from reprolib.figures.style import BLUE, DIRECTIONS, Drawing, look
from reprolib.loaders import Split
from reprolib.methods import CATALOGUE
from reprolib.methods.base import TEMPERATURES
from reprolib.metrics import hubness_of_counts, k_occurrence
from reprolib.models import models
from reprolib.ranking import Scorer
from reprolib.study import hubness
from reprolib.study.hubness import Measurement, Task
from reprolib.study.protocol import Side, words

BANK_SHARES = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
METRICS = ("R@1", "skewness", "max k-occurrence", "anti-hub share")
HUBS, QUERIES, ANSWERS = 10, 12, 8  # shown at a time
DEPTH = 50  # items of the lists of a correction that is no bias: as many as the slider of k goes to
_KEPT = 2**28  # entries of float32 products that are kept between updates (1 GiB)
_BLOCK = 2**21  # bytes of scores that are searched at a time: they stay in cache


@dataclass(frozen=True)
class State:
    """What the widgets are set to; ``beta`` is an inverse temperature, ``k`` the neighbours that count."""

    direction: str = "text->image"
    method: str = "is"
    beta: float = 20.0
    k: int = 10
    bank_share: float = 0.2


@dataclass(frozen=True, eq=False)
class Result:
    """What a state comes to. ``metrics`` are by "before" and "after", over all splits of the data.

    ``parameters`` is what the method ran with, one mapping per split; ``counts`` are the k-occurrences [items of all
    splits]; ``hubs`` is the study's table of the largest hubs with queries that they attract.
    """

    state: State
    parameters: Sequence[Mapping[str, Any]]
    metrics: Mapping[str, Mapping[str, float]]
    counts: Mapping[str, np.ndarray]
    hubs: pd.DataFrame


class _Study(hubness.Study):
    """The hubness study with a memory: products, lists, and what validation said of each candidate.

    A copy (``at``) has a state of its own and shares the memory, so that several states can be computed at a time.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self._every = self.tasks
        self._recall: dict[tuple, float] = {}
        self._products: dict[int, np.ndarray] = {}
        self._lists: dict[tuple, tuple[np.ndarray, np.ndarray]] = {}  # as ``lists`` returns them
        self._ordered: dict[tuple, tuple[np.ndarray, int]] = {}  # longer lists and how long they were to be
        for tasks in self._every.values():
            for side in (side for task in tasks for side in (task.validation, task.test)):
                side.clusters = np.unique(side.clusters, return_inverse=True)[1]  # numbers: quicker to compare

    def share(self, other: _Study) -> None:
        """Take over the sides of another study, and their products, where they are the same."""
        for direction, tasks in self._every.items():
            pairs = zip(tasks, other._every[direction], self.data.replicates, other.data.replicates, strict=True)
            tasks[:] = [
                replace(task, **{
                    part: getattr(theirs, part) for part in ("validation", "test")
                    if _equal(getattr(mine, part), getattr(same, part))
                })
                for task, theirs, mine, same in pairs
            ]  # fmt: skip
        self._products = other._products

    def at(self, state: State, step: Step) -> _Study:
        """Return this study at a state: ``tuned`` holds the parameters of its method, and of none.

        ``step`` is told before each part of the work. Raises InputError for a state that is not valid.
        """
        found = copy.copy(self)
        found.step, found.tuned = step, {}
        found.directions, found.tasks = [state.direction], {state.direction: self._every[state.direction]}
        found.methods, found.k = [state.method], state.k
        tasks = found.tasks[state.direction]
        if not 1 <= state.k <= len(tasks[0].test.gallery):
            size = len(tasks[0].test.gallery)
            raise InputError(f"k = {state.k} is not between 1 and the size of the gallery, {size}")
        for method in {"none", state.method}:
            found.betas = [state.beta]
            found.tuned[state.direction, method] = [found._best(task, method) for task in tasks]
        found.betas = list(TEMPERATURES)
        for task in tasks:
            step("")
            found._warm(task, task.test)
        return found

    def _best(self, task: Task, method: str) -> dict[str, Any]:
        """Return the parameters that validation chooses."""
        candidates, recall = self._grid(method, task), []
        if not candidates:
            raise InputError(f"{method} has no parameters to try at beta = {self.betas[0]:g} with this bank")
        for number, parameters in enumerate(candidates if len(candidates) > 1 else []):
            key = (id(task), method, json.dumps(parameters))
            if key not in self._recall:
                self.step(f"{look(method).label}: trying parameters on validation, {number + 1} of {len(candidates)}")
                self._warm(task, task.validation)
                self._recall[key] = task.validation.hits(task.fit(task.validation, method, parameters)).mean()
            recall.append(self._recall[key])
        return candidates[int(np.argmax(recall)) if recall else 0]

    def lists(self, task: Task, method: str, parameters: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """Return the best item of every test query, int64 [n], and the k best in any order, int32 [n, k].

        Most corrections are a bias: with the products at hand their lists are found at once. Of others longer lists
        are kept, in order, which serve every shorter one.
        """
        key = (id(task), method, json.dumps(parameters))
        if (kept := self.ordered(key, self.k)) is not None:
            return kept[:, 0].astype(np.int64), kept[:, : self.k]
        if (*key, self.k) not in self._lists:
            side, scorer = task.test, task.fit(task.test, method, parameters)
            same = scorer.queries is side.queries and scorer.gallery is side.gallery and scorer.transform is None
            if not same or scorer.shape[0] * scorer.shape[1] > _KEPT:
                self.deepen(task, method, parameters, scorer)
                return self.lists(task, method, parameters)
            self._lists[*key, self.k] = lists_of(scorer, self.products(side), self.k)
        return self._lists[*key, self.k]

    def deepen(self, task: Task, method: str, parameters: Mapping[str, Any], scorer: Scorer | None = None) -> None:
        """Keep the lists of a method in order and so long that k moves within them."""
        key, depth = (id(task), method, json.dumps(parameters)), max(self.k, DEPTH)
        if self.ordered(key, depth) is None:
            scorer = scorer or task.fit(task.test, method, parameters)
            self._ordered[key] = ranking.topk(scorer, depth).astype(np.int32), depth

    def ordered(self, key: tuple, k: int) -> np.ndarray | None:
        """Return the kept lists of a task, method and parameters, best first, if they have at least ``k`` items."""
        kept, depth = self._ordered.get(key, (None, 0))
        return kept if depth >= k else None

    def products(self, side: Side) -> np.ndarray:
        """Return the float32 products of a side, kept while there is room."""
        if (kept := self._products.get(id(side))) is None:
            plain = Scorer(side.queries, side.gallery)
            parts = [plain.block(rows).numpy(force=True) for rows in ranking.blocks(*plain.shape)]
            kept = self._products[id(side)] = np.concatenate(parts)
            while sum(each.size for each in list(self._products.values())) > _KEPT:
                self._products.pop(next(iter(self._products)), None)  # the oldest
        return kept

    def measure(
        self, direction: str, method: str, parameters: Sequence[Mapping[str, Any]] | None = None
    ) -> Measurement:
        """Return R@1 and the top-k lists, as the study's own but for the other metrics, which take longer."""
        parameters = self.tuned[direction, method] if parameters is None else parameters
        tasks, hits, top = self.tasks[direction], [], []
        for task, chosen in zip(tasks, parameters, strict=True):
            self.step("")
            best, lists = self.lists(task, method, chosen)
            hits.append(np.asarray(task.test.relevance[np.arange(len(best)), best], dtype=np.float64).ravel())
            top.append(lists)
        return Measurement({"R@1": np.concatenate(hits)}, top)


def lists_of(scorer: Scorer, products: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the best item of every query, int64 [n], and its ``k`` best in any order, int32 [n, k].

    They are those of ``ranking.topk``, for a scorer without a transform whose float32 ``products`` [n, m] are at hand:
    what these leave open within the error of float32 is settled by canonical scores.
    """
    (n, m), error = scorer.shape, scorer.error_bound()
    bias, state = (None if part is None else part.numpy(force=True) for part in (scorer.bias, scorer.state))
    best, top = np.empty(n, dtype=np.int64), np.empty((n, k), dtype=np.int32)
    for rows in ranking.blocks(n, m, _BLOCK):
        scores = products[rows]
        if bias is not None:
            scores = scores - (bias[0] if state is None else bias[state[rows]])
        least = np.partition(scores, m - k, axis=1)[:, m - k, None] - 2 * error
        query, item = np.divmod(np.flatnonzero(scores >= least), m)
        score, begins = scores[query, item], np.searchsorted(query, np.arange(len(scores)))
        first = score >= np.maximum.reduceat(score, begins)[query] - 2 * error
        open_first, open_last = (np.bincount(query[chosen], minlength=len(scores)) for chosen in (first, slice(None)))
        unsure = (first & (open_first > 1)[query]) | (open_last > k)[query]
        pairs = (torch.from_numpy(part[unsure]).to(scorer.queries.device) for part in (query + rows.start, item))
        score[unsure] = scorer.pairs(*pairs).numpy(force=True)
        for chosen, found, size in ((first, best[rows, None], 1), ((open_last > k)[query], top[rows], k)):
            who, what = query[chosen], item[chosen]
            order = np.lexsort((-score[chosen], who))  # stable: equal ones in the order of the gallery
            who, what = who[order], what[order]
            place = np.arange(len(who)) - np.searchsorted(who, who)
            found[who[place < size], place[place < size]] = what[place < size]
        top[rows][open_last == k] = item[(open_last == k)[query]].reshape(-1, k)
    return best, top


def _equal(one: Split, other: Split) -> bool:
    """Return whether two splits hold the same embeddings of the same items."""
    names = ("image_ids", "text_ids", "image", "text")
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in names)


class HubView(View):
    """What the explorer of hubs shows, without widgets.

    ``data`` is a dataset's name, a file of embeddings, or (image [n, d], text [n, d]), row i with row i. Raises
    InputError and DataUnavailable as ``reprolib.study.hubness.Study`` does.
    """

    def __init__(self, data: Source = "glyphs", **settings: Any) -> None:
        super().__init__(data, **settings)
        self._studies: dict[float, _Study] = {}
        self._lock = threading.Lock()  # for what is loaded

    def study(self, bank_share: float = State.bank_share, step: Step = bool) -> _Study:
        """Return the study with this bank, loaded once."""
        with self._lock:
            if bank_share not in self._studies:
                step(f"Loading the data with a bank of {100 * bank_share:g} %")
                found = _Study(**self.given, **self.settings, bank_share=bank_share, k=1)
                if self._studies:
                    found.share(next(iter(self._studies.values())))
                self._studies[bank_share] = found
        return self._studies[bank_share]

    def compute(self, state: State, step: Step = bool) -> Result:
        """Return what ``state`` comes to. Raises InputError for a state that is not valid.

        ``step`` is told in words before each part of the work; what it raises ends it.
        """
        if state.method not in CATALOGUE:
            raise nearest(state.method, CATALOGUE, "method")
        if state.direction not in hubness.DIRECTIONS:
            raise nearest(state.direction, hubness.DIRECTIONS, "direction")
        study = self.study(state.bank_share, step).at(state, step)
        sides = {"before": "none", "after": state.method}
        found = {when: study.measure(state.direction, method) for when, method in sides.items()}
        sizes = [len(task.test.gallery) for task in study.tasks[state.direction]]
        counts = {
            when: [k_occurrence(top, size) for top, size in zip(m.topk, sizes, strict=True)]
            for when, m in found.items()
        }
        return Result(
            state,
            study.tuned[state.direction, state.method],
            {when: _metrics(found[when], counts[when]) for when in sides},
            {when: np.concatenate(counts[when]) for when in sides},
            study.hubs(state.method, HUBS, QUERIES),
        )

    def deepen(self, state: State, step: Step = bool) -> None:
        """Find longer lists of ``state``, so that k can be moved."""
        study = self.study(state.bank_share, step).at(state, step)
        for method in dict.fromkeys(("none", state.method)):
            tasks = zip(study.tasks[state.direction], study.tuned[state.direction, method], strict=True)
            for task, chosen in tasks:
                step("")
                study.deepen(task, method, chosen)

    def around(self, state: State) -> Iterator[State]:
        """Yield the states that one move of a widget leads to.

        Left out are k (see ``deepen``) and larger banks, which may have to be encoded.
        """
        moves = {
            "method": CATALOGUE, "direction": hubness.DIRECTIONS, "beta": TEMPERATURES,
            "bank_share": [share for share in BANK_SHARES[::-1] if share < state.bank_share],
        }  # fmt: skip
        for name, values in moves.items():
            yield from (replace(state, **{name: value}) for value in values if value != getattr(state, name))

    def ranking(self, state: State, query: str, number: int = ANSWERS) -> dict[str, list[tuple[str, bool]]]:
        """Return the ``number`` best items for ``query`` (an id) with whether they are right, by method, best first.

        Of the first split, as the table of hubs; without a correction and with that of ``state``.
        """
        study = self.study(state.bank_share).at(state, bool)
        task = study.tasks[state.direction][0]
        places = np.flatnonzero(task.test.query_ids == query)
        if not len(places):
            raise nearest(query, map(str, task.test.query_ids), "query")
        row, answers = int(places[0]), {}
        for method in dict.fromkeys(("none", state.method)):
            parameters = study.tuned[state.direction, method][0]
            kept = study.ordered((id(task), method, json.dumps(parameters)), number)
            if kept is None:
                scores = task.fit(task.test, method, parameters).canonical(slice(row, row + 1))[0]
                best = torch.sort(scores, descending=True, stable=True).indices[:number].tolist()
            else:
                best = kept[row, :number].tolist()
            answers[method] = [(str(task.test.gallery_ids[i]), bool(task.test.relevance[row, i])) for i in best]
        return answers

    def command(self, state: State) -> str:
        """Return the command whose main table has the numbers of ``state``."""
        asked = {
            "directions": [state.direction], "methods": [state.method], "betas": [f"{state.beta:g}"], "k": state.k,
            "bank_share": f"{state.bank_share:g}",
        }  # fmt: skip
        return self._command("hubness", asked)

    def shown(self) -> Shown:
        """Return how items are shown."""
        data = self.study().data
        return Shown(data.pictures, data.captions)

    def figure(self, result: Result) -> Drawing:
        """Return the study's figure of the hubs before and after."""
        data = self.study(result.state.bank_share).data
        return draw.hubs(result.hubs, data.pictures, data.captions, result.state.direction, k=result.state.k)


def _metrics(found: Measurement, counts: Sequence[np.ndarray]) -> dict[str, float]:
    each = [hubness_of_counts(n_k) for n_k in counts]
    return {"R@1": float(found.values["R@1"].mean())} | {
        name: float(np.mean([e[name] for e in each])) for name in METRICS[1:]
    }


def histogram(result: Result) -> str:
    """Return the histogram of the k-occurrence before (outlined) and after (filled) as SVG."""
    edges = [0, 1, 2]
    while edges[-1] <= max(int(n_k.max()) for n_k in result.counts.values()):
        edges.append(2 * edges[-1])
    names = [str(a) if b - a == 1 else f"{a}–{b - 1}" for a, b in itertools.pairwise(edges)]
    shares = {when: np.histogram(n_k, edges)[0] / len(n_k) for when, n_k in result.counts.items()}
    step, bar, high = 74, 30, 110
    top = max(share.max() for share in shares.values())
    parts = [common.label(0, 12, f"items (%) by N_k, k = {result.state.k}; outlined: before, filled: after", "start")]
    looks = {"before": "fill='none' stroke='currentColor'", "after": f"fill='{BLUE}' stroke='currentColor'"}
    for place, name in enumerate(names):
        for number, (when, share) in enumerate(shares.items()):
            tall, x = high * share[place] / top, step * place + (bar + 2) * number + 4
            parts.append(
                f"<rect x='{x}' y='{high + 32 - tall:.1f}' width='{bar}' height='{tall:.1f}' {looks[when]}/>"
                + common.label(x + bar / 2, high + 28 - tall, f"{100 * share[place]:.2g}" if share[place] else "0")
            )
        parts.append(common.label(step * place + bar + 5, high + 46, name))
    words = "; ".join(
        f"{when}: " + ", ".join(f"{100 * s:.1f} % at {name}" for s, name in zip(share, names, strict=True))
        for when, share in shares.items()
    )
    alt = f"Histogram of the {result.state.k}-occurrence N_k over gallery items, {words}."
    return common.svg(max(step * len(names), 440), high + 52, alt, *parts)


def numbers(result: Result) -> str:
    """Return the metrics before and after as a table."""
    before, after = (result.metrics[when] for when in ("before", "after"))
    forms = {"R@1": "{:.2%}", "anti-hub share": "{:.2%}", "skewness": "{:.3f}", "max k-occurrence": "{:,.0f}"}
    return table(
        (look("none").label, look(result.state.method).label),
        [(name, [forms[name].format(one[name]) for one in (before, after)]) for name in METRICS],
    )


class Tile:
    """An item and the button that chooses it."""

    def __init__(self, choose: Any) -> None:
        self.item = ""
        self.face = ipywidgets.HTML()
        self.button = ipywidgets.Button(layout={"width": "auto", "min_width": "52px"})
        self.button.on_click(lambda _: choose(self.item))
        self.box = ipywidgets.VBox([self.face, self.button], layout={"align_items": "center", "margin": "0 2px"})

    def show(self, item: str | None, face: str = "", text: str = "", tooltip: str = "") -> None:
        """Show an item; None hides the tile."""
        self.box.layout.display = "none" if item is None else ""
        if item is not None:
            self.item, self.face.value = item, page(face) if face else ""
            self.button.description, self.button.tooltip = text, tooltip


class Hubs(Explorer):
    """The explorer of hubs; see ``hubs``."""

    def __init__(self, view: HubView, data: Source, state: State) -> None:
        super().__init__()
        self.view, self._first = view, view
        self.result: Result = view.compute(state)
        self._shown = view.shown()
        given = [str(data)] if isinstance(data, str | Path) else ["arrays"]
        wide = {"style": {"description_width": "initial"}}
        known = dict.fromkeys([*given, *common.at_hand(view.settings["mirror"])])
        self.dataset = ipywidgets.Dropdown(options=list(known), value=given[0], description="Data set", **wide)
        chosen = view.given["model"]
        named = dict.fromkeys([*([chosen] if chosen else []), *models()])
        own = [("the data set's own", ""), *((name, name) for name in named)]  # None would be shown as nothing
        self.model = ipywidgets.Dropdown(options=own, value=chosen or "", description="Model", **wide)
        self.direction = ipywidgets.Dropdown(
            options=[(text, name) for name, text in DIRECTIONS.items()], value=state.direction, description="Direction",
            **wide,
        )  # fmt: skip
        self.method = ipywidgets.Dropdown(
            options=[(look(name).label, name) for name in CATALOGUE], value=state.method, description="Method", **wide
        )
        self.beta = ipywidgets.SelectionSlider(
            options=[(f"{beta:g}", beta) for beta in sorted({*TEMPERATURES, state.beta})], value=state.beta,
            description="Temperature β = 1/τ", **wide,
        )  # fmt: skip
        self.k = ipywidgets.IntSlider(value=state.k, min=1, max=DEPTH, description="Neighbours k", **wide)
        self.bank_share = ipywidgets.SelectionSlider(
            options=[(f"{100 * s:g} %", s) for s in sorted({*BANK_SHARES, state.bank_share})], value=state.bank_share,
            description="Bank, share of train", **wide,
        )  # fmt: skip
        self.numbers, self.histogram, self.chosen = ipywidgets.HTML(), ipywidgets.HTML(), ipywidgets.HTML()
        self.walls = {when: [Tile(lambda hub, w=when: self.choose(w, hub)) for _ in range(HUBS)] for when in LEGENDS}
        self.legends = {when: ipywidgets.HTML() for when in LEGENDS}
        self.hub, self.answers = ipywidgets.HTML(), ipywidgets.HTML()
        self.queries = [Tile(self.ask) for _ in range(QUERIES)]
        wrap = {"flex_flow": "row wrap"}
        walls = [
            part for when in LEGENDS
            for part in (self.legends[when], ipywidgets.HBox([t.box for t in self.walls[when]], layout=wrap))
        ]  # fmt: skip
        self.box.children = [
            ipywidgets.HBox([self.dataset, self.model, self.direction], layout=wrap),
            ipywidgets.HBox([self.method, self.beta, self.k, self.bank_share, self.cancel], layout=wrap),
            self.state, self.chosen,
            ipywidgets.HBox([self.numbers, self.histogram], layout=wrap),
            *walls, self.hub, ipywidgets.HBox([tile.box for tile in self.queries], layout=wrap), self.answers,
        ]  # fmt: skip
        for control in (self.direction, self.method, self.beta, self.k, self.bank_share):
            control.observe(lambda _: self.update(), "value")
        for control in (self.dataset, self.model):
            control.observe(lambda _: self.load(), "value")
        self.show(self.result)

    def load(self) -> None:
        """Take another data set or model."""
        data = self.dataset.value if self.dataset.value != "arrays" else None
        model = self.model.value or None

        def job() -> Result:
            view = self._first if data is None else HubView(data, model=model, **self._first.settings)
            result = view.compute(self._state(), self._step)
            self.view, self._shown = view, view.shown()
            return result

        self.work.submit(job, self.show)

    def update(self) -> None:
        """Compute what the widgets are set to, and show it."""
        state = self._state()
        self.work.submit(lambda: self.view.compute(state, self._step), self.show)

    def _state(self) -> State:
        return State(**{name: getattr(self, name).value for name in asdict(State())})

    def show(self, result: Result) -> None:
        """Show a result."""
        self.result, state = result, result.state
        self._say(self.view.command(state))
        said = " | ".join(dict.fromkeys(words(parameters) for parameters in result.parameters))
        self.chosen.value = page(f"{escape(look(state.method).label)} runs with {escape(said)}.")
        self.numbers.value, self.histogram.value = page(numbers(result)), page(histogram(result))
        for when, tiles in self.walls.items():
            largest = result.hubs[result.hubs["when"] == when].to_dict("records")
            self.legends[when].value = page(f"<b>{LEGENDS[when]}</b> ({escape(look(largest[0]['method']).label)})")
            for place, tile in enumerate(tiles):
                if place >= len(largest):
                    tile.show(None)
                    continue
                hub, n_k = largest[place]["gallery_id"], f"{largest[place]['n_k']:,}"
                tooltip = f"Show queries that have {self._shown.name(hub)} in their top {state.k}"
                if hub in self._shown.pictures:
                    tile.show(hub, self._shown(hub), n_k, tooltip)
                else:
                    tile.show(hub, "", f"{n_k} · {self._shown.name(hub)}", tooltip)
        self.choose("before", result.hubs["gallery_id"].iloc[0])
        self.prepare()

    def next(self) -> Iterator[Callable[[Step], object]]:
        view, here = self.view, self.result.state
        yield lambda step: view.deepen(here, step)
        yield from (lambda step, state=state: view.compute(state, step) for state in view.around(here))

    def choose(self, when: str, hub: str) -> None:
        """Show the queries of a hub."""
        listed = self.result.hubs
        row = listed[(listed["when"] == when) & (listed["gallery_id"] == hub)].iloc[0]
        self.hub.value = page(
            f"<b>Queries of {self._shown.named(hub)}</b>, which {row['n_k']:,} have in their top "
            f"{self.result.state.k}, {when} correction. Solid frame or ✓: it is a right answer; dashed or ✗: it is "
            "not. Press one to see what it finds."
        )
        pairs = list(zip(row["query_ids"], row["correct"], strict=True))
        for place, tile in enumerate(self.queries):
            if place < len(pairs):
                query, correct = pairs[place]
                name = self._shown.name(query)
                tooltip = f"Show what is found for {name}"
                if query in self._shown.pictures:
                    tile.show(query, self._shown(query, correct), "rank", tooltip)
                else:
                    tile.show(query, "", f"{'✓' if correct else '✗'} {name}", tooltip)
            else:
                tile.show(None)
        if pairs:
            self.ask(pairs[0][0])

    def ask(self, query: str) -> None:
        """Show the ranking of a query without a correction and with it, side by side."""
        found = self.view.ranking(self.result.state, query)
        lines = common.rows(
            (look(method).label, [self._shown(*answer) for answer in items]) for method, items in found.items()
        )
        self.answers.value = page(f"<b>Found for {self._shown.named(query)}</b>{lines}")

    def figure(self) -> Drawing:
        return self.view.figure(self.result)


LEGENDS = {"before": "The largest hubs before", "after": "The largest hubs after"}


def hubs(
    data: Source = "glyphs",
    *,
    model: str | None = None,
    mirror: str | Path | None = None,
    seed: int = 0,
    device: str = "cpu",
    **state: Any,
) -> Hubs:
    """Return the explorer of hubs, which displays itself in a notebook.

    ``data`` is a dataset's name, a file of embeddings, or (image [n, d], text [n, d]), row i with row i; ``state`` sets
    the widgets (``direction``, ``method``, ``beta``, ``k``, ``bank_share``). Raises InputError and DataUnavailable as
    ``reprolib.study.hubness.Study`` does, and InputError for a state that is not valid.
    """
    view = HubView(data, model=model, mirror=mirror, seed=seed, device=device)
    return Hubs(view, data, common.chosen(State(), state))
