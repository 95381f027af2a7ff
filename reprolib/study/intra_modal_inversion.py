"""The intra-modal inversion study: is a search within one modality better when its queries cross the gap first?

The protocol, in the order of the notebook: a seeded sample of a split's items queries the whole split, without the
item itself; or queries, gallery and junk are those of the dataset's own protocol. Only the query is inverted (an image
by OTI, a text by OVI), the gallery stays native; the linear controls map both. What can be chosen (the number of
steps, the parameters of the controls) is chosen by mAP on the validation split and reported once on test. The unit of
resampling is an item with its pictures, whatever counts as relevant.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import scipy.sparse
import torch
from torch import Tensor
from tqdm.auto import tqdm

from reprolib import paths, ranking
from reprolib.errors import InputError
from reprolib.loaders import Items, Replicate, Split, datasets, emoji, load_manifest
from reprolib.loaders.readers import Search, groups_of, load_items, search_of
from reprolib.methods import inversion
from reprolib.methods.intra_modal import CONTROLS, average, fit_control, isoclip_grid, projections_of
from reprolib.methods.inversion import Inverted
from reprolib.methods.moments import Moments
from reprolib.metrics import hubness_of_counts, k_occurrence, query_values
from reprolib.metrics.intra_modal import METRICS, TRAPEZOIDS, answerable, intra_modal_metrics, nearest, same_group
from reprolib.metrics.statistics import Interval, holm, jackknife
from reprolib.models import find_model, finetune, load_embeddings
from reprolib.models.embed import embed
from reprolib.models.encoder import Encoder, load_encoder
from reprolib.ranking import Scorer
from reprolib.study.parameters import check
from reprolib.study.protocol import Protocol, clusters_of, subset, words

TASKS = {"image->image": "image", "text->text": "text"}
CLASSES = {"Lu": "capital letter", "Ll": "small letter", "Lo": "letter", "Nd": "digit"}  # of Unicode, as names say it
INVERSIONS = ("inversion", "inversion-stopped", "inversion-average", "random-token")
RELEASED = "mAP@R, released counting"  # R counts the query itself
HUBNESS = ("skewness", "max k-occurrence", "anti-hub share")
Case = tuple[str, str]  # task and grouping


@dataclass(frozen=True)
class Target:
    """What is searched for under one grouping; items are rows of ``Part.gallery``.

    ``queries`` int64 [q] are the items that can be asked for, ascending, and ``gallery`` int64 [g] those that are
    searched. ``relevance`` and ``junk`` are bool CSR [q, g]: junk is not ranked (None: there is none). A query that is
    in the gallery is relevant to itself at most on paper: it is dropped before anything is counted.
    """

    queries: np.ndarray
    gallery: np.ndarray
    relevance: scipy.sparse.csr_array
    junk: scipy.sparse.csr_array | None = None

    @property
    def own(self) -> np.ndarray:
        """The place of every query in the gallery, int64 [q]; -1 where it is not there."""
        return pd.Index(self.gallery).get_indexer(self.queries).astype(np.int64)

    def take(self, queries: np.ndarray) -> Target:
        """Return the target with these of its queries (indices)."""
        junk = None if self.junk is None else self.junk[queries]
        return Target(self.queries[queries], self.gallery, self.relevance[queries], junk)

    def answerable(self) -> Target:
        """Return the target with the queries to which something is relevant."""
        return self.take(np.flatnonzero(answerable(self.relevance, len(self.gallery), self.own, self.junk)))


@dataclass(frozen=True)
class Part:
    """One split as one task sees it; embeddings are float32 with rows of unit length.

    ``rows`` int64 [n] are the queries' places in ``gallery`` [m, d], all items of the modality; ``others`` [o, d] is
    the other modality and ``pairs`` bool CSR [n, o] what is relevant there. ``targets`` says, per grouping, what is
    searched for; ``labels`` has the labels of all items [m] where a grouping is by labels.
    """

    side: str
    rows: np.ndarray
    gallery: Tensor
    ids: np.ndarray
    clusters: np.ndarray
    targets: Mapping[str, Target]
    labels: Mapping[str, np.ndarray]
    others: Tensor
    pairs: scipy.sparse.csr_array

    @property
    def queries(self) -> Tensor:
        """The native queries, float32 [n, d]."""
        return self.gallery[self.rows]

    @property
    def query_clusters(self) -> np.ndarray:
        """The cluster of every query, [n]."""
        return self.clusters[self.rows]

    def asked(self, grouping: str) -> np.ndarray:
        """Return which of the queries ``rows`` have an answer in a grouping, as indices."""
        return np.flatnonzero(np.isin(self.rows, self._target(grouping).queries))

    def target(self, grouping: str) -> Target:
        """Return what the queries ``asked`` are searched for."""
        whole = self._target(grouping)
        return whole.take(np.searchsorted(whole.queries, self.rows[self.asked(grouping)]))

    def relevance(self, grouping: str) -> scipy.sparse.csr_array:
        """Return which items are relevant to each query of ``target``, bool CSR; the query itself may be among them."""
        return self.target(grouping).relevance

    def _target(self, grouping: str) -> Target:
        """Return the grouping's target; where this split does not know it (a protocol of test alone), the first."""
        return self.targets.get(grouping) or next(iter(self.targets.values()))


def _by_labels(groups: Mapping[str, np.ndarray]) -> dict[str, Target]:
    """Return all against all per grouping: items that share a label are relevant. Queries have an answer in each."""
    shared = {}
    for kind, of in groups.items():
        owner, counts = np.unique(of, return_inverse=True, return_counts=True)[1:]
        if counts.max() > 1:
            shared[kind] = counts[owner] > 1
    queries = np.flatnonzero(np.logical_and.reduce(list(shared.values()))) if shared else None
    return {
        kind: Target(queries, np.arange(len(groups[kind])), same_group(groups[kind][queries], groups[kind]))
        for kind in shared
    }


def _by_protocol(search: Search, place: np.ndarray) -> dict[str, Target]:
    """Return the published search per grouping; ``place`` says where each item is in the split (-1: not there)."""
    queries, gallery = place[search.queries], place[search.gallery]
    order = np.argsort(queries)[np.count_nonzero(queries < 0) :]
    there = np.flatnonzero(gallery >= 0)
    itself = pd.Index(gallery[there]).get_indexer(queries[order])
    inside = np.flatnonzero(itself >= 0)
    pairs = (np.ones(len(inside), dtype=bool), (inside, itself[inside]))
    own = scipy.sparse.csr_array(pairs, shape=(len(order), len(there)))
    targets = {}
    for kind, relevance in search.relevance.items():
        found = scipy.sparse.csr_array(relevance)[order][:, there] + own
        junk = search.junk.get(kind)
        junk = junk if junk is None else scipy.sparse.csr_array(scipy.sparse.csr_array(junk)[order][:, there] > own)
        grouping = f"item, {kind}" if len(search.relevance) > 1 else kind
        target = Target(queries[order], gallery[there], found, junk if junk is not None and junk.nnz else None)
        targets[grouping] = target.answerable()
    return {kind: target for kind, target in targets.items() if len(target.queries)}


@dataclass
class Study(Protocol):
    """The study on one dataset; every public method returns a table for the notebook and keeps its records.

    Parameters are those of the notebook's parameters cell, which documents them. Raises InputError for a name or a
    value that is not valid (with the nearest valid names) and DataUnavailable if the data is not at hand.
    """

    study: ClassVar[str] = "intra-modal-inversion"

    dataset: str = "glyphs"
    model: str | None = None
    embeddings: str | None = None
    tasks: Sequence[str] = tuple(TASKS)
    controls: Sequence[str] | None = None
    oti_steps: int = 150
    ovi_steps: int = 100
    longest: int | None = None
    checkpoints: Sequence[int] = (1, 2, 5, 10, 20, 50, 100, 150, 200, 500, 1000)
    tokens: Sequence[int] = (1, 4)
    patches: Sequence[int] = (1,)
    templates: Sequence[str] = (inversion.OTI.template, "{}")
    locales: Sequence[str] = ("da", "fr")
    taus: Sequence[float] = (0.01, 0.1, 1.0)
    narrow_share: float = 0.25
    n_images: int | None = 128
    n_texts: int | None = 32
    n_curve: int = 24
    n_narrow: int = 50
    train_share: float = 0.2
    k: int = 10
    n_bootstrap: int = 2000
    n_permutations: int = 9999
    seed: int = 0
    device: str = "cpu"
    mirror: str | None = None
    rows: list[dict[str, Any]] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        self.controls = [name for name in CONTROLS if name != "none"] if self.controls is None else self.controls
        for name in ("tasks", "controls", "checkpoints", "tokens", "patches", "templates", "locales", "taus"):
            setattr(self, name, list(getattr(self, name)))
        check({entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name != "rows"})
        for name in ("checkpoints", "tokens", "patches", "templates"):
            if not getattr(self, name):
                raise InputError(f"parameter {name} is empty; name at least one")
        self.data = load_embeddings(
            self.dataset, self.model, embeddings=self.embeddings, bank_share=self.train_share, n_splits=1,
            seed=self.seed, device=self.device, mirror=self.mirror,
        )  # fmt: skip
        raw = self.embeddings is None and load_manifest(self.dataset).kind == "items"
        self.encoder = load_encoder(self.data.model, self.device) if raw else None
        self._projections = None
        if self.encoder:
            try:
                self._projections = projections_of(self.encoder.model)
            except InputError as error:  # of a family without them
                print(f"Left out what needs projections: {error}.")
        if self._projections is None:
            self.controls = [name for name in self.controls if "projections" not in CONTROLS[name].needs]
        self.parts = {
            (task, name): self._part(task, name, self.data.replicates[0])
            for task, name in itertools.product(self.tasks, ("validation", "test"))
        }
        self.cases: list[Case] = [(task, name) for task in self.tasks for name in self.parts[task, "test"].targets]
        self.methods = ["none", *(INVERSIONS if self.encoder else ()), *self.controls]
        self.tuned: dict[tuple[Case, str], dict[str, Any]] = {}
        self._train: dict[str, Moments] = {}  # of a side, for all controls
        self._inverted: dict[tuple, Inverted] = {}
        self._nearest: dict[tuple[Case, str], np.ndarray] = {}
        self._measured: dict[tuple, dict[str, np.ndarray]] = {}

    # --- parts --------------------------------------------------------------------------------------------------

    def _part(self, task: str, name: str, replicate: Replicate) -> Part:
        split, side = getattr(replicate, name), TASKS[task]
        other = "text" if side == "image" else "image"
        ids, clusters = getattr(split, f"{side}_ids"), clusters_of(split)[0 if side == "image" else 1]
        gallery, others = (
            ranking.as_embeddings(getattr(split, modality), f"{name} {modality}", device=self.device)
            for modality in (side, other)
        )
        pairs = split.relevance if side == "image" else scipy.sparse.csr_array(split.relevance.T)
        raw = self.encoder is not None and self.data.name in datasets()
        items = load_items(self.data.name, name, self.mirror) if raw else None
        targets, labels = _targets(self.data.name, split, side, items, self.mirror)
        if side == "text" and items is not None and self.data.name == "emoji":
            here = pd.Index(items.text_ids).get_indexer(ids)
            for locale in self.locales:
                texts = emoji.labels(items, locale, self.mirror)[here]
                changed = np.flatnonzero(texts != np.array(items.texts)[here])  # the same text would find itself
                of = np.arange(len(gallery), len(gallery) + len(texts))
                targets[f"label in {locale}"] = Target(changed, of, same_group(texts[changed], texts))
                translated = self.encoder.encode_texts(texts.tolist())
                gallery = torch.cat([gallery, ranking.as_embeddings(translated, locale, device=self.device)])
                ids = np.concatenate([ids, [f"{text}@{locale}" for text in ids[: len(here)]]])
                clusters = np.concatenate([clusters, clusters[: len(here)]])
        if not any(len(target.queries) for target in targets.values()):
            raise InputError(
                f"{self.data.name}, {task}: no {side} of the {name} split has another one that is relevant to it; this "
                "search takes groups of items, or several items on one side of a pair"
            )
        able = np.unique(np.concatenate([target.queries for target in targets.values()]))
        wanted = self.n_images if side == "image" else self.n_texts
        rows = np.sort(np.random.default_rng(self.seed).permutation(able)[:wanted])
        pairs = scipy.sparse.csr_array(pairs[rows])
        return Part(side, rows, gallery, ids, clusters, targets, labels, others, pairs)

    def _steps(self, side: str) -> int:
        """Return the number of steps of the main setting."""
        return self.oti_steps if side == "image" else self.ovi_steps

    def _marks(self, side: str) -> list[int]:
        """Return the steps after which features are kept: 0, checkpoints in reach, the steps of the main setting."""
        steps = self._steps(side)
        last = max(steps, self.longest or steps)
        return sorted({0, steps, last, *(step for step in self.checkpoints if step <= last)})

    def inverted(
        self, part: Part, tokens: int | None = None, template: str | None = None, encoder: Encoder | None = None
    ) -> Inverted:
        """Return the inverted queries of a part at all checkpoints; kept, and cached on disk by content."""
        text = part.side == "text"
        tokens = tokens or (self.patches if text else self.tokens)[0]
        template = None if text else template or self.templates[0]
        encoder = encoder or self.encoder
        key = (part.side, part.ids[part.rows].tobytes(), tokens, template, encoder.identity)
        if key not in self._inverted:
            marks = self._marks(part.side)
            published, run = (inversion.OVI, inversion.ovi) if text else (inversion.OTI, inversion.oti)
            changes = {"steps": marks[-1], "tokens": tokens} | ({} if text else {"template": template})
            ids = [str(name) for name in part.ids[part.rows]]
            features = part.queries.cpu().numpy()
            self._inverted[key] = run(
                encoder, features, ids, replace(published, **changes), checkpoints=marks,
                cache=paths.cache() / "inversion",
            )  # fmt: skip
        return self._inverted[key]

    def _at(self, found: Inverted, steps: int) -> Tensor:
        features = found.features[found.steps.index(steps)]
        return ranking.as_embeddings(features, "inverted queries", device=self.device)

    # --- methods ------------------------------------------------------------------------------------------------

    def _grid(self, part: Part, method: str) -> list[dict[str, Any]]:
        """Return the candidates of a method."""
        steps = {"inversion": [self._steps(part.side)], "random-token": [0]}
        if method in INVERSIONS:
            return [{"steps": step} for step in steps.get(method, self._marks(part.side)[1:])]
        if method == "none":
            return [{}]
        if method == "isoclip":
            return isoclip_grid(self._projections)
        width = part.gallery.shape[1]
        grid = {
            name: [v for v in values if name != "drop" or v < width] for name, values in CONTROLS[method].grid.items()
        }
        return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]

    def embedded(self, part: Part, method: str, parameters: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Return queries [n, d] and gallery [m, d] of a part as a method has them."""
        if method == "none":
            return part.queries, part.gallery
        if method in INVERSIONS:
            queries = self._at(self.inverted(part), parameters["steps"])
            return (average(part.queries, queries) if method == "inversion-average" else queries), part.gallery
        if part.side not in self._train:
            self._train[part.side] = Moments(ranking.as_rows(getattr(self.data.replicates[0].bank, part.side), "train"))
        train = self._train[part.side]
        mapping = fit_control(method, train=train, projections=self._projections, side=part.side, **parameters)
        mapped = mapping(part.gallery)
        return mapped[part.rows], mapped

    def measure(
        self, case: Case, method: str, parameters: Mapping[str, Any] | None = None, split: str = "test"
    ) -> dict[str, np.ndarray]:
        """Return the metrics per query, each [n], with the tuned (or other) parameters of a method."""
        parameters = self.tuned[case, method] if parameters is None else parameters
        key = (case, method, split, tuple(parameters.items()))
        if key not in self._measured:
            part = self.parts[case[0], split]
            self._measured[key] = _values(part, case[1], *self.embedded(part, method, parameters))
        return self._measured[key]

    def nearest(self, case: Case, method: str) -> np.ndarray:
        """Return the ``k`` nearest of what a test query is searched in, by a tuned method, best first, int64 [n, k]."""
        if (case, method) not in self._nearest:
            part = self.parts[case[0], "test"]
            target, asked = part.target(case[1]), part.asked(case[1])
            queries, gallery = self.embedded(part, method, self.tuned[case, method])
            scorer = Scorer(queries[asked], gallery[target.gallery])
            self._nearest[case, method] = nearest(scorer, self.k, self_match=target.own, junk=target.junk)
        return self._nearest[case, method]

    # --- the protocol -------------------------------------------------------------------------------------------

    def overview(self) -> pd.DataFrame:
        """Return the sizes of every task, grouping and split."""
        rows = []
        for (task, grouping), split in itertools.product(self.cases, ("validation", "test")):
            target = self.parts[task, split].target(grouping)
            relevant = np.diff(target.relevance.indptr) - (target.own >= 0)
            rows.append({
                "task": task, "relevant": f"same {grouping}", "split": split, "queries": len(target.queries),
                "gallery": len(target.gallery), "relevant items, median": float(np.median(relevant)),
                "junk, median": 0.0 if target.junk is None else float(np.median(np.diff(target.junk.indptr))),
            })  # fmt: skip
        return pd.DataFrame(rows)

    def invert(self) -> pd.DataFrame:
        """Invert the queries of every task, validation and test; return how long it took and by which path."""
        rows = []
        for (task, split), part in self.parts.items() if self.encoder else ():
            found = self.inverted(part)
            rows.append({
                "task": task, "split": split, "method": "OTI" if part.side == "image" else "OVI",
                "queries": len(part.rows), "steps": found.steps[-1], "path": found.path,
                "loss at the start": float(found.losses[0].mean()), "at the end": float(found.losses[-1].mean()),
                "seconds": round(found.seconds, 1),
            })  # fmt: skip
        if not rows:
            print(f"No inversion: {self.data.name} holds stored features, and inversion needs the model itself.")
        return pd.DataFrame(rows)

    def tune(self) -> pd.DataFrame:
        """Choose every method's parameters by mAP on validation; ties go to the first of the grid."""
        rows = []
        for case, method in tqdm(list(itertools.product(self.cases, self.methods)), desc="tuning", leave=False):
            candidates = self._grid(self.parts[case[0], "validation"], method)
            found = [self.measure(case, method, p, "validation")["mAP"].mean() for p in candidates]
            best = int(np.argmax(found))
            self.tuned[case, method] = candidates[best]
            rows.append({
                "task": case[0], "relevant": f"same {case[1]}", "method": method, "candidates": len(candidates),
                "chosen": words(candidates[best]), "validation mAP": found[best],
            })  # fmt: skip
        return pd.DataFrame(rows)

    def _record(self, table: str, case: Case, method: str, metric: str, found: Interval, **more: Any) -> None:
        task, grouping = case
        parameters = {"grouping": grouping} | dict(more.pop("parameters", self.tuned.get((case, method), {})))
        n = more.pop("n", len(self.parts[task, "test"].asked(grouping)))
        if method in self.controls:
            more["bank"] = self.data.replicates[0].bank_source
        self.record(table, metric, found, n, direction=task, method=method, parameters=parameters, **more)

    def _first(self, task: str) -> Case:
        """Return the task with its first grouping."""
        return next(case for case in self.cases if case[0] == task)

    def _clusters(self, case: Case) -> np.ndarray:
        part = self.parts[case[0], "test"]
        return part.query_clusters[part.asked(case[1])]

    def evaluate(self) -> pd.DataFrame:
        """Report every tuned method once on the test split, with 95 % intervals; return the main table."""
        for case, method in itertools.product(self.cases, self.methods):
            part, bootstrap = self.parts[case[0], "test"], self.bootstrap(self._clusters(case))
            moved = self.embedded(part, method, self.tuned[case, method])
            released = _values(part, case[1], *moved, r_counts_query=True, trapezoids=True)
            del moved  # as large as the split
            found = self.measure(case, method) | {RELEASED: released["mAP@R"]}
            if part.target(case[1]).junk is not None:  # of a protocol that is reported so
                found[TRAPEZOIDS] = released[TRAPEZOIDS]
            intervals = {name: bootstrap.mean(values) for name, values in found.items()}
            for metric, interval in (intervals | self._hubness(case, method)).items():
                self._record("main", case, method, metric, interval)
        return self._shown("main", (*METRICS, RELEASED, TRAPEZOIDS))

    def _hubness(self, case: Case, method: str, reference: str | None = None) -> dict[str, Interval]:
        """Return the hubness of the gallery under a method, or its difference to that under a reference.

        Only what means something where a query retrieves few of very many items: the mean of N_k is below 1.
        """
        tops = [self.nearest(case, name) for name in (method, reference) if name]
        size = len(self.parts[case[0], "test"].target(case[1]).gallery)

        def statistic(mask: np.ndarray) -> dict[str, float]:
            found = [hubness_of_counts(k_occurrence(top[mask], size)) for top in tops]
            return {name: found[0][name] - sum(other[name] for other in found[1:]) for name in HUBNESS}

        return jackknife(statistic, self._clusters(case), seed=self.seed)

    def _shown(self, table: str, metrics: Sequence[str]) -> pd.DataFrame:
        """Return records of a table with a column per metric."""
        rows = self.table(table)
        rows = rows.assign(relevant=[f"same {p['grouping']}" for p in rows["parameters"]])
        rows = rows[rows["metric"].isin(metrics)]
        keys = ["direction", "relevant", "method"]
        shown = rows.pivot_table(index=keys, columns="metric", values="value", sort=False)
        return shown[[name for name in metrics if name in shown]]

    def hubness(self) -> pd.DataFrame:
        """Return the hubness of the gallery under every method; record what inversion (else a control) changes."""
        for case, method in itertools.product(self.cases, INVERSIONS if self.encoder else self.controls):
            for metric, interval in self._hubness(case, method, "none").items():
                self._record("hubness", case, method, f"{metric} difference", interval, reference="none")
        return self._shown("main", HUBNESS)

    def hub_answer(self) -> str:
        """Say in words whether inversion changes the hubness of the gallery."""
        rows, lines = self.table("main", "hubness"), []
        for task, grouping in map(self._first, self.tasks if self.encoder else ()):
            here = _of(rows, task, grouping).set_index(["method", "metric"])
            native, inverted = (here.loc[(name, "skewness"), "value"] for name in ("none", "inversion"))
            row = here.loc[("inversion", "skewness difference")]
            change = "more" if row["ci_low"] > 0 else "less" if row["ci_high"] < 0 else "no change is established in"
            lines.append(
                f"- **{self.data.name}, {task}**: skewness of the {self.k}-occurrence {native:.2f} native, "
                f"{inverted:.2f} inverted, difference {row['value']:+.2f} (95 % interval {row['ci_low']:+.2f} to "
                f"{row['ci_high']:+.2f}): {change} hubness."
            )
        return "\n".join(lines) or "Not asked: without the model there is no inversion."

    def _compare(self, table: str, case: Case, pairs: Sequence[tuple[str, str]]) -> None:
        """Record the paired differences in mAP of these methods, corrected together by Holm."""
        found = [
            self.difference(*(self.measure(case, name)["mAP"] for name in pair), self._clusters(case)) for pair in pairs
        ]
        for (one, other), (interval, p), corrected in zip(pairs, found, holm([p for _, p in found]), strict=True):
            test = {"reference": other, "p_value": p, "p_holm": float(corrected)}
            self._record(table, case, one, "mAP difference", interval, **test)

    def compare(self) -> pd.DataFrame:
        """Compare mAP of every method with native search: paired, Holm within a task and grouping, and on average."""
        for case in self.cases:
            self._compare("difference", case, [(name, "none") for name in self.methods[1:]])
        found = [self._averaged(method) for method in self.methods[1:]]
        for method, (interval, p), corrected in zip(self.methods[1:], found, holm([p for _, p in found]), strict=True):
            self.record(
                "average", "mAP difference", interval, len(self.cases), method=method, reference="none", p_value=p,
                p_holm=float(corrected),
            )  # fmt: skip
        return self.table("difference", "average")

    def _averaged(self, method: str) -> tuple[Interval, float]:
        """Return the mean over all cases of the difference to native, each case with the same weight."""
        clusters = np.concatenate([self._clusters(case) for case in self.cases])
        gains = [self.measure(case, method)["mAP"] - self.measure(case, "none")["mAP"] for case in self.cases]
        values = np.concatenate([gain * len(clusters) / (len(gains) * len(gain)) for gain in gains])
        return self.difference(values, np.zeros(len(values)), clusters)

    def conclusion(self) -> str:
        """Say in words on how many tasks the claim's sign holds, and by how much."""
        if self.encoder is None:
            return "Not asked: without the model there is no inversion, only linear controls."
        rows = self.table("difference")
        lines, signs = [], []
        for task, grouping in self.cases:
            here = _of(rows, task, grouping)
            row = here.set_index("method").loc["inversion"]
            signs.append(_sign(row))
            verdict = {1: "better, as claimed", -1: "worse, against the claim", 0: "no difference is established"}
            native = self.measure((task, grouping), "none")["mAP"].mean()
            lines.append(
                f"- **{self.data.name}, {task}, same {grouping}**: native mAP {100 * native:.1f} %, inverted with "
                f"{self._steps(TASKS[task]):,} steps {_points(row)}, Holm p {_p(row['p_holm'])}: {verdict[signs[-1]]}."
            )
            published = (inversion.OVI if TASKS[task] == "text" else inversion.OTI).steps
            if self._steps(TASKS[task]) < published:
                lines[-1] += f" Published are {published:,} steps: with fewer this says nothing about the claim."
        mean = self.table("average").set_index("method").loc["inversion"]
        lines.append(
            f"- On {signs.count(1)} of {len(signs)} the sign is as claimed, on {signs.count(-1)} it is the opposite, "
            f"on {signs.count(0)} it stays open; on average {_points(mean)}."
        )
        return "\n".join(lines)

    def question(self) -> pd.DataFrame:
        """Compare inversion with early stopping, with no optimisation at all, and with the linear controls."""
        for case in self.cases if self.encoder else ():
            pairs = [("inversion-stopped", "inversion"), ("inversion-stopped", "random-token")]
            pairs += [("inversion-stopped", "inversion-average")]
            pairs += [(one, name) for one in ("inversion", "inversion-stopped") for name in self.controls]
            self._compare("question", case, pairs)
        rows = self.table("question")
        if rows.empty:
            return rows
        grouping = [f"same {p['grouping']}" for p in rows["parameters"]]
        shown = pd.DataFrame({
            "task": rows["direction"], "relevant": grouping, "comparison": rows["method"] + " - " + rows["reference"],
            "points": 100 * rows["value"], "low": 100 * rows["ci_low"], "high": 100 * rows["ci_high"],
            "p (Holm)": rows["p_holm"],
        })  # fmt: skip
        return shown

    def answer(self) -> str:
        """Say in words what is left of inversion against early stopping and against the best linear control."""
        rows, lines = self.table("question"), []
        for task, grouping in self.cases if len(rows) else ():
            here = _of(rows, task, grouping)
            compared = here[here["method"] == "inversion-stopped"].set_index("reference")
            chosen = self.tuned[(task, grouping), "inversion-stopped"]["steps"]
            text = (
                f"- **{self.data.name}, {task}, same {grouping}**: validation stops after {chosen:,} of "
                f"{self._marks(TASKS[task])[-1]:,} steps, worth {_points(compared.loc['inversion'])}."
            )
            if controls := [name for name in self.controls if name != "random-map"]:
                scores = [self._validated((task, grouping), name) for name in controls]
                best = controls[int(np.argmax(scores))]  # by validation, not by what it did on test
                row = compared.loc[best]
                verdict = {1: "inversion is worth more", -1: "the linear map is worth more", 0: "neither is ahead"}
                text += (
                    f" Against `{best}`, the linear control that validation prefers, stopped inversion gains "
                    f"{_points(row)} (Holm p {_p(row['p_holm'])}): {verdict[_sign(row)]}."
                )
            lines.append(text)
        return "\n".join(lines) or "Not asked: without the model there is no inversion."

    def _validated(self, case: Case, method: str) -> float:
        return float(self.measure(case, method, self.tuned[case, method], "validation")["mAP"].mean())

    # --- curves -------------------------------------------------------------------------------------------------

    def curve(self) -> pd.DataFrame:
        """mAP and loss on test against the steps, for every number of tokens and every template.

        ``n_curve`` of the queries serve: each line is an inversion of its own.
        """
        for task in self.tasks if self.encoder else ():
            whole = self.parts[task, "test"]
            chosen = _spread(whole, self.n_curve)
            part = _taken(whole, chosen)
            text = part.side == "text"
            cases = [case for case in self.cases if case[0] == task and len(part.asked(case[1]))]
            for case in cases:
                native = _values(part, case[1], part.queries, part.gallery)["mAP"]
                found = self.bootstrap(part.query_clusters[part.asked(case[1])]).mean(native)
                self._record("curve", case, "none", "mAP", found, n=len(native))
            settings = list(itertools.product(*((self.patches, [None]) if text else (self.tokens, self.templates))))
            for tokens, template in tqdm(settings, desc=f"curve, {task}", leave=False):
                found = self.inverted(part if (tokens, template) != settings[0] else whole, tokens, template)
                if found.features.shape[1] > len(chosen):  # the main setting is at hand for all queries
                    found = replace(found, features=found.features[:, chosen], losses=found.losses[:, chosen])
                told = {"tokens": tokens} | ({} if text else {"template": template})
                for step, case in itertools.product(found.steps, cases):
                    precision = _values(part, case[1], self._at(found, step), part.gallery)["mAP"]
                    asked = part.asked(case[1])
                    bootstrap = self.bootstrap(part.query_clusters[asked])
                    for metric, values in (("mAP", precision), ("loss", found.losses[step][asked])):
                        more = {"parameters": told | {"steps": step}, "n": len(values)}
                        self._record("curve", case, "inversion", metric, bootstrap.mean(values), **more)
        return self.table("curve")

    # --- models of another gap ----------------------------------------------------------------------------------

    def narrow(self) -> pd.DataFrame:
        """Search images natively and inverted with models fine-tuned at several temperatures, and measure their gap.

        A share of the items serves, of train to tune on and of test to search; tau None is the model as it is.
        """
        if self.encoder is None or "image->image" not in self.tasks or not self.taus:
            print("No fine-tunes: they take a model, the task image->image and at least one tau.")
            return pd.DataFrame()
        replicate, files = self.data.replicates[0], find_model(self.data.model)
        if not finetune.can_be_tuned(files):
            print(f"No fine-tunes: {files.name} is no CLIP model, and only such are fine-tuned.")
            return pd.DataFrame()
        train, test = (
            finetune.items_of(self.data, subset(part, self.narrow_share, self.seed))
            for part in (replicate.bank, replicate.test)
        )
        for tau in tqdm([None, *self.taus], desc="temperatures", leave=False):
            if tau is None:
                encoder, split = self.encoder, embed(test, files, self.device)
            else:
                tuning = finetune.Tuning(tau, self.seed)
                encoder = finetune.tuned_encoder(train, files, tuning, self.device)
                split = finetune.finetune(train, test, files, tuning, self.device)
            self._narrowed(tau, encoder, replace(replicate, test=split))
        rows = self.table("gap")
        return rows

    def _narrowed(self, tau: float | None, encoder: Encoder, replicate: Replicate) -> None:
        whole = self._part("image->image", "test", replicate)
        part = _taken(whole, _spread(whole, self.n_narrow))
        inverted = self._at(self.inverted(part, encoder=encoder), self._steps("image"))
        gap = _gap(replicate.test, self.seed)
        for case in (case for case in self.cases if case[0] == "image->image" and len(part.asked(case[1]))):
            clusters = part.query_clusters[part.asked(case[1])]
            more = {"parameters": {"temperature": tau}, "n": len(clusters)}
            self._record("gap", case, "none", "modality gap", gap, **more)
            native, crossed = (_values(part, case[1], q, part.gallery)["mAP"] for q in (part.queries, inverted))
            for method, values in (("none", native), ("inversion", crossed)):
                self._record("gap", case, method, "mAP", self.bootstrap(clusters).mean(values), **more)
            interval, p = self.difference(crossed, native, clusters)
            self._record("gap", case, "inversion", "mAP difference", interval, reference="none", p_value=p, **more)

    def gap_answer(self) -> str:
        """Say in words what the fine-tunes do to the gap, to the sign of the difference, and to quality."""
        rows, lines = self.table("gap"), []
        for task, grouping in self.cases if len(rows) else ():
            here = _of(rows, task, grouping)
            if here.empty:
                continue
            told = []
            for tau in dict.fromkeys(p["temperature"] for p in here["parameters"]):
                found = here[here["parameters"].map(lambda p, tau=tau: p["temperature"] == tau)].set_index("metric")
                native = found[found["method"] == "none"].loc["mAP", "value"]
                told.append(
                    f"{'as trained' if tau is None else f'tau {tau:g}'}: gap {found.loc['modality gap', 'value']:.2f}, "
                    f"native mAP {100 * native:.1f} %, inversion {_points(found.loc['mAP difference'])}"
                )
            lines.append(f"- **{self.data.name}, {task}, same {grouping}**: {'; '.join(told)}.")
        return "\n".join(lines) or "Not asked: there were no fine-tunes."

    # --- across the gap, natively -------------------------------------------------------------------------------

    def counterpart(self) -> pd.DataFrame:
        """Approach what is natively inter-modal intra-modally: retrieval across modalities, and zero-shot classes.

        The inverted query is searched among the items of the modality it was carried into. Where several images share
        one text each, the texts are classes, and finding the own one is zero-shot classification: its R@1 is called
        accuracy. For glyphs, classes are scripts with the kind of their letters and digits ("greek small letter").
        """
        for task in self.tasks if self.encoder else ():
            part = self.parts[task, "test"]
            direction = f"{part.side}->{'text' if part.side == 'image' else 'image'}"
            named = part.side == "image" and self.data.name == "glyphs"
            classes = part.side == "image" and not named and _one_text_for_several(part)
            self._across(task, direction, "accuracy" if classes else "R@1", self._found)
            if named:
                self._across(task, direction, "accuracy", self._classified, _of_classes)
        tested = [row for row in self.rows if row["table"] == "counterpart" and "p_value" in row]
        for row, corrected in zip(tested, holm([row["p_value"] for row in tested]), strict=True):
            row["p_holm"] = float(corrected)
        rows = self.table("counterpart")
        return rows if rows.empty else rows[["direction", "method", "metric", "value", "ci_low", "ci_high", "p_holm"]]

    def _found(self, part: Part, queries: Tensor) -> np.ndarray:
        """Return for every query whether its nearest item of the other modality is relevant, [n]."""
        return query_values(ranking.rank(Scorer(queries, part.others), part.pairs, 0), (1,))["R@1"]

    def _classified(self, part: Part, queries: Tensor) -> np.ndarray:
        """Return for every query whether the nearest class name is that of its own class, [n]."""
        names, own = np.unique(_class_names(part), return_inverse=True)
        names, own = names[names != ""], own - (names[0] == "")
        texts = ranking.as_embeddings(self.encoder.encode_texts(list(names)), "classes", device=self.device)
        best = ranking.topk(Scorer(queries, texts), 1)[:, 0]
        return (best == own[part.rows]).astype(np.float64)

    def _across(
        self, task: str, direction: str, metric: str, value: Callable[[Part, Tensor], np.ndarray],
        some: Callable[[Part], np.ndarray] = lambda part: np.arange(len(part.rows)),
    ) -> None:  # fmt: skip
        """Record a metric of native queries, and of inverted ones after all steps and stopped on validation.

        ``some`` gives the queries that take part.
        """
        parts = [self.parts[task, split] for split in ("validation", "test")]
        keep = [some(part) for part in parts]
        parts_kept = [_taken(part, queries) for part, queries in zip(parts, keep, strict=True)]

        def inverted(which: int, steps: int) -> np.ndarray:
            return value(parts_kept[which], self._at(self.inverted(parts[which]), steps)[keep[which]])

        marks, test = self._marks(parts[1].side)[1:], parts_kept[1]
        best = int(np.argmax([inverted(0, step).mean() for step in marks]))
        native, bootstrap = value(test, test.queries), self.bootstrap(test.query_clusters)
        more = {"direction": direction, "n": len(test.rows)}
        self.record("counterpart", metric, bootstrap.mean(native), method="none", **more)
        for method, steps in (("inversion", self._steps(test.side)), ("inversion-stopped", marks[best])):
            values = inverted(1, steps)
            more["parameters"] = {"steps": steps}
            self.record("counterpart", metric, bootstrap.mean(values), method=method, **more)
            interval, p = self.difference(values, native, test.query_clusters)
            more_of = more | {"reference": "none", "p_value": p}
            self.record("counterpart", f"{metric} difference", interval, method=method, **more_of)

    def counter_answer(self) -> str:
        """Say in words whether an inter-modal task loses when it is approached intra-modally."""
        rows = self.table("counterpart")
        lines = []
        for row in rows.to_dict("records") if len(rows) else ():
            if row["method"] == "inversion" and row["metric"].endswith("difference"):
                verdict = {1: "a gain, against the claim", -1: "a loss, as claimed", 0: "no difference is established"}
                name = row["metric"].removesuffix(" difference")
                what = "zero-shot classification" if name == "accuracy" else f"{row['direction']} retrieval"
                lines.append(
                    f"- **{row['dataset']}, {what}** ({name}): inverted minus native queries {_points(row)}, "
                    f"Holm p {_p(row['p_holm'])}: {verdict[_sign(row)]}."
                )
        return "\n".join(lines) or "Not asked: without the model there is no inversion."

    # --- artefacts ----------------------------------------------------------------------------------------------

    def neighbours(self, task: str, method: str | None = None, number: int = 8) -> pd.DataFrame:
        """Return the nearest items of some queries, native and by ``method``, in the first grouping of a task.

        ``method`` is by default inversion with all steps, or the last one where there is no model.

        Queries stand at even quantiles of the difference in average precision, from the greatest loss to the greatest
        gain, so that they are not picked by hand.
        """
        method = method or ("inversion" if self.encoder else self.methods[-1])
        case = self._first(task)
        part, pair = self.parts[task, "test"], ("none", method)
        precision = {name: self.measure(case, name)["mAP"] for name in pair}
        nearest = {name: self.nearest(case, name) for name in pair}
        order = np.argsort(precision[method] - precision["none"], kind="stable")
        picked = order[np.linspace(0, len(order) - 1, min(number, len(order))).round().astype(int)]
        target, rows = part.target(case[1]), []
        for query, name in itertools.product(picked, pair):
            top = nearest[name][query]
            rows.append({
                "direction": task, "grouping": case[1], "dataset": self.data.name, "model": self.data.model,
                "query_id": str(part.ids[target.queries[query]]), "method": name, "AP": float(precision[name][query]),
                "neighbours": [str(part.ids[target.gallery[item]]) for item in top],
                "correct": [bool(target.relevance[query, item]) for item in top],
            })  # fmt: skip
        return pd.DataFrame(rows)

    def per_query(self) -> pd.DataFrame:
        """Return the values of every test query, per task, grouping and method."""
        parts = []
        for case, method in itertools.product(self.cases, self.methods):
            part = self.parts[case[0], "test"]
            parts.append(pd.DataFrame({
                "direction": case[0], "grouping": case[1], "method": method,
                "query_id": part.ids[part.target(case[1]).queries], "cluster": self._clusters(case),
                **self.measure(case, method),
            }))  # fmt: skip
        return pd.concat(parts, ignore_index=True)

    def save(self) -> Path:
        """Write all artefacts of the study into the run's folder and return it."""
        shown = pd.concat([self.neighbours(task) for task in self.tasks], ignore_index=True)
        return super().save(per_query=self.per_query(), neighbours=shown)


def _targets(
    name: str, split: Split, side: str, items: Items | None, mirror: str | None
) -> tuple[dict[str, Target], dict[str, np.ndarray]]:
    """Return what the images or texts of a split are searched for, per grouping, and the labels that groupings are by.

    ``items`` are those that the split, or a share of them, was embedded from; without them there are only components.
    """
    which = 0 if side == "image" else 1
    labels = {"item": split.components()[which].astype(str)}
    if items is not None:
        ids, known = (getattr(of, f"{side}_ids") for of in (split, items))
        search = search_of(name, items, side, mirror)
        if search is not None:
            return _by_protocol(search, pd.Index(ids).get_indexer(known)), {}
        rows = pd.Index(known).get_indexer(ids)
        labels = {kind: group[which].astype(str)[rows] for kind, group in groups_of(name, items, mirror).items()}
    return _by_labels(labels), labels


def _class_names(part: Part) -> np.ndarray:
    """Return the class of every item of a part of glyphs, as words ("greek small letter"), or "" where it has none."""
    scripts_and_kinds = [label.rsplit(" ", 1) for label in part.labels["script and kind"]]
    return np.array([f"{script} {CLASSES[kind]}" if kind in CLASSES else "" for script, kind in scripts_and_kinds])


def _of_classes(part: Part) -> np.ndarray:
    return np.flatnonzero(_class_names(part)[part.rows] != "")


def _one_text_for_several(part: Part) -> bool:
    """Return whether every image has one text and some texts have several images, so that texts name classes."""
    return len(part.others) < len(part.gallery) and bool((np.diff(part.pairs.indptr) == 1).all())


def _spread(part: Part, n: int) -> np.ndarray:
    """Return at most ``n`` of a part's queries, evenly spread, as indices."""
    return np.unique(np.linspace(0, len(part.rows) - 1, min(n, len(part.rows))).round().astype(int))


def _taken(part: Part, queries: np.ndarray) -> Part:
    """Return the part with these of its queries."""
    return replace(part, rows=part.rows[queries], pairs=part.pairs[queries])


def _gap(split: Split, seed: int) -> Interval:
    """Return the length of the gap vector of a split with its jackknife interval over items."""
    units = [ranking.as_embeddings(part, "embeddings").double().numpy() for part in (split.image, split.text)]
    owners = clusters_of(split)

    def statistic(mask: np.ndarray) -> dict[str, float]:
        image, text = (u[m] for u, m in zip(units, np.split(mask, [len(units[0])]), strict=True))
        return {"gap": float(np.linalg.norm(image.mean(0) - text.mean(0)))}

    return jackknife(statistic, np.concatenate(owners), seed=seed)["gap"]


def _values(part: Part, grouping: str, queries: Tensor, gallery: Tensor, **more: Any) -> dict[str, np.ndarray]:
    """Return the metrics of the queries that a grouping asks; ``queries`` [n, d], ``gallery`` [m, d] are unit rows."""
    target = part.target(grouping)
    rest = {"self_match": target.own, "junk": target.junk, "normalize": False, "per_query": True}
    asked = queries[part.asked(grouping)]
    return intra_modal_metrics(asked, gallery[target.gallery], target.relevance, **rest, **more)[1]


def _of(rows: pd.DataFrame, task: str, grouping: str) -> pd.DataFrame:
    """Return the records of one case."""
    return rows[(rows["direction"] == task) & rows["parameters"].map(lambda p: p["grouping"] == grouping)]


def _sign(row: Any) -> int:
    """Return 1 or -1 where a difference is established (corrected p below 0.05, interval without 0), else 0."""
    return (int(row["ci_low"] > 0) - int(row["ci_high"] < 0)) * int(row["p_holm"] < 0.05)


def _points(row: Any) -> str:
    value, low, high = (100 * row[name] for name in ("value", "ci_low", "ci_high"))
    return f"{value:+.1f} points (95 % interval {low:+.1f} to {high:+.1f})"


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"
