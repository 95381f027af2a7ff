"""The hubness study: tune every correction on validation, report once on test, and ask what made the difference.

The protocol, in the order of the notebook: banks come from where ``bank_source`` says and are named in every
record; each method's parameters are chosen by R@1 on the validation split over one set of grids; the test split is
ranked once per method with them. Feature sets without official splits are split several times by seed; each
replicate is tuned on its own validation part, and queries are pooled, with the original items as clusters.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from reprolib import ranking
from reprolib.errors import DataUnavailable, InputError
from reprolib.loaders import EmbeddingData, Split
from reprolib.mapped import mapping, parts, scratch
from reprolib.methods import CATALOGUE, Bank
from reprolib.methods.base import TEMPERATURES
from reprolib.methods.graph_convolution import least_rate
from reprolib.methods.inverted_softmax import GALLERY_TEMPERATURES
from reprolib.metrics import hubness_of_counts, k_occurrence, query_values
from reprolib.metrics.statistics import Interval, holm, jackknife
from reprolib.models import load_embeddings
from reprolib.ranking import Scorer
from reprolib.study.parameters import check
from reprolib.study.protocol import Protocol, Side, banks_of, hubness_statistic, share_of_images, shown, subset, words

DIRECTIONS = ("text->image", "image->text")
STEPS = (  # what DualIS's gain over no correction is made of, and what it is worth against tuned IS
    ("IS, beta 20", "none"),
    ("IS, tuned", "IS, beta 20"),
    ("DualIS, tuned", "IS, tuned"),
    ("DualIS, tuned, gallery bank on", "IS, tuned"),
    ("DualIS, tuned", "none"),
)


@dataclass(frozen=True)
class Task:
    """One replicate in one direction: where to learn (banks), tune (validation) and report (test)."""

    direction: str
    label: str
    validation: Side
    test: Side
    query_bank: Bank
    gallery_bank: Bank

    def fit(
        self, side: Side, method: str, parameters: Mapping[str, Any], banks: tuple[Bank, Bank] | None = None
    ) -> Scorer:
        """Return method's scorer for one side, with these banks or others."""
        query_bank, gallery_bank = banks or (self.query_bank, self.gallery_bank)
        # Straight to the method: embeddings were checked once, and the very same tensors let banks keep reductions.
        return CATALOGUE[method].fit(side.queries, side.gallery, query_bank, gallery_bank, **parameters)


@dataclass(frozen=True)
class Measurement:
    """A method on the test split of every replicate, queries pooled."""

    values: dict[str, np.ndarray]
    topk: list[np.ndarray]


def _random_directions(split: Split, seed: int) -> Split:
    """Return a split of the same shape whose embeddings are random directions."""
    rng = np.random.default_rng(seed)

    def like(part: np.ndarray) -> np.ndarray:
        held = mapping(part) is None  # what lies in a file need not fit into memory
        found = np.empty_like(part) if held else scratch(part.shape, part.dtype)
        for rows in parts(found):
            rows[:] = rng.normal(size=rows.shape)
        return found

    return replace(split, image=like(split.image), text=like(split.text))


def _limited(parameters: Mapping[str, Any], banks: tuple[Bank, Bank]) -> dict[str, Any]:
    """Return parameters whose neighbours, if any, are at most those of the query bank, and whose pool is not empty."""
    limits = {"k": lambda k: min(k, len(banks[0])), "pool_rate": lambda r: max(r, least_rate(min(map(len, banks))))}
    return dict(parameters) | {name: limit(parameters[name]) for name, limit in limits.items() if name in parameters}


def _described(counts: np.ndarray) -> dict[str, float]:
    """Return the hubness metrics of k-occurrences, and the skewness as DBNorm's release computes it."""
    released = hubness_of_counts(counts, retrieved_only=True)["skewness"]
    return hubness_of_counts(counts) | {"skewness, retrieved items only": released}


@dataclass
class Study(Protocol):
    """The study on one dataset; every public method returns a table for the notebook and keeps its records.

    Parameters are those of the notebook's parameters cell, which documents them. Raises InputError for a name or a
    value that is not valid (with the nearest valid names) and DataUnavailable if the data is not at hand.
    """

    study: ClassVar[str] = "hubness"

    dataset: str = "glyphs"
    model: str | None = None
    embeddings: str | None = None
    directions: Sequence[str] = DIRECTIONS
    methods: Sequence[str] | None = None
    bank_source: str = "train"
    bank_share: float = 0.2
    validation_share: float = 0.2
    n_splits: int = 5
    other_bank: str | None = None
    betas: Sequence[float] = TEMPERATURES
    gallery_betas: Sequence[float] = GALLERY_TEMPERATURES
    bank_sizes: Sequence[float] = (0.02, 0.1, 0.3, 1.0)
    gallery_sizes: Sequence[float] = (0.25, 0.5, 1.0)
    k: int = 10
    n_bootstrap: int = 2000
    n_permutations: int = 9999
    seed: int = 0
    device: str = "cpu"
    mirror: str | None = None
    rows: list[dict[str, Any]] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        self.methods = list(CATALOGUE) if self.methods is None else self.methods
        for name in ("directions", "methods", "betas", "gallery_betas", "bank_sizes", "gallery_sizes"):
            setattr(self, name, list(getattr(self, name)))
        check({entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name != "rows"})
        self.methods = list(CATALOGUE) if self.methods is None else self.methods
        for name in ("directions", "methods", "betas", "gallery_betas", "bank_sizes", "gallery_sizes"):
            if not getattr(self, name):
                raise InputError(f"parameter {name} is empty; name at least one")
        self.methods = list(dict.fromkeys(["none", *self.methods]))
        if self.methods == ["none"]:
            raise InputError("parameter methods names no correction; name at least one besides none")
        self.data = load_embeddings(
            self.dataset,
            self.model,
            embeddings=self.embeddings,
            bank_share=self.bank_share,
            validation_share=self.validation_share,
            bank_source=self.bank_source,
            n_splits=self.n_splits,
            seed=self.seed,
            device=self.device,
            mirror=self.mirror,
        )
        self.bank = self.data.replicates[0].bank_source
        self.tasks = {
            direction: [
                Task(
                    direction,
                    replicate.label,
                    Side(replicate.validation, direction, self.device),
                    Side(replicate.test, direction, self.device),
                    *banks_of(replicate.bank, direction, self.device),
                )
                for replicate in self.data.replicates
            ]
            for direction in self.directions
        }
        smallest = min(len(task.test.gallery) for tasks in self.tasks.values() for task in tasks)
        if self.k > smallest:
            raise InputError(f"parameter k = {self.k} exceeds the smallest test gallery, {smallest} items")
        self.tuned: dict[tuple[str, str], list[dict[str, Any]]] = {}
        self._searched: dict[tuple[str, str], list[list[tuple[float, dict[str, Any]]]]] = {}
        self._measured: dict[tuple, Measurement] = {}

    # --- small shared parts -------------------------------------------------------------------------------------

    def _clusters(self, direction: str) -> np.ndarray:
        return np.concatenate([task.test.clusters for task in self.tasks[direction]])

    def _record(
        self, table: str, direction: str, method: str, parameters: Any, metric: str, found: Interval, **more: Any
    ) -> None:
        bank = "none" if method == "none" else self.bank
        given = {"direction": direction, "method": method, "parameters": parameters, "bank": bank} | more
        self.record(table, metric, found, given.pop("n", len(self._clusters(direction))), **given)

    def _grid(self, method: str, task: Task) -> list[dict[str, Any]]:
        """Return the candidates of a method; temperatures come from ``betas`` for every method alike."""
        own = CATALOGUE[method].grid
        shared: dict[str, Sequence[Any]] = {
            "beta": self.betas,
            "query_beta": self.betas,
            "gallery_beta": self.gallery_betas,
            "tau": [1 / beta for beta in self.betas if beta >= 5],
            "k": [k for k in own.get("k", ()) if k <= len(task.query_bank)],
            "pool_rate": [
                rate
                for rate in own.get("pool_rate", ())
                if rate * min(len(task.query_bank), len(task.gallery_bank)) >= 1
            ],
        }
        values = [shared.get(name, choices) for name, choices in own.items()]
        return [dict(zip(own, combination, strict=True)) for combination in itertools.product(*values)]

    def _warm(self, task: Task, side: Side) -> None:
        """Let the banks compute in one pass what the grids will ask for."""
        if {"is", "dis", "dual-is", "dual-dis"} & set(self.methods):
            task.query_bank.logsumexps(side.gallery, self.betas, bool({"dis", "dual-dis"} & set(self.methods)))
        if {"dual-is", "dual-dis"} & set(self.methods):
            task.gallery_bank.logsumexps(side.gallery, self.gallery_betas, "dual-dis" in self.methods)
        if {"csls", "nnn"} & set(self.methods):
            task.query_bank.top_mean(side.gallery, 1, most=max(CATALOGUE["nnn"].grid["k"]))

    # --- the protocol -------------------------------------------------------------------------------------------

    def overview(self) -> pd.DataFrame:
        """Return the sizes of every part, per direction; splits of the same sizes share a row."""
        sizes = pd.DataFrame(
            [
                {
                    "direction": direction,
                    "bank": self.bank,
                    "query bank": len(task.query_bank),
                    "gallery bank": len(task.gallery_bank),
                    "validation queries": len(task.validation.queries),
                    "test queries": len(task.test.queries),
                    "test gallery": len(task.test.gallery),
                }
                for direction, tasks in self.tasks.items()
                for task in tasks
            ]
        )
        return sizes.value_counts(sort=False).rename("splits").reset_index()

    def tune(self) -> pd.DataFrame:
        """Choose every method's parameters by R@1 on validation; ties go to the first of the grid."""
        jobs = [(d, task, m) for d, tasks in self.tasks.items() for task in tasks for m in self.methods]
        found = []
        self.tuned.clear()  # a cell may be run again
        self._searched.clear()
        for direction, task, method in tqdm(jobs, desc="tuning on validation", leave=False):
            self._warm(task, task.validation)
            candidates = self._grid(method, task)
            if not candidates:
                if "tau" in CATALOGUE[method].grid and max(self.betas) < 5:
                    raise InputError(f"{method}: tau = 1 / beta is tried from beta = 5 on, and betas has no such value")
                raise InputError(f"{method}: the {self.bank} bank is too small for every value of its grid")
            recall = [task.validation.hits(task.fit(task.validation, method, p)).mean() for p in candidates]
            best = int(np.argmax(recall))
            self.tuned.setdefault((direction, method), []).append(candidates[best])
            self._searched.setdefault((direction, method), []).append(list(zip(recall, candidates, strict=True)))
            found.append(
                {
                    "direction": direction,
                    "method": method,
                    "candidates": len(candidates),
                    "chosen": shown([candidates[best]]),
                    "validation R@1": recall[best],
                }
            )
        frame = pd.DataFrame(found)
        keys = ["direction", "method"]
        rows = frame.groupby(keys, sort=False)["validation R@1"].mean().reset_index()
        rows.insert(2, "candidates", frame.groupby(keys, sort=False)["candidates"].max().to_numpy())
        rows.insert(3, "chosen", [words(shown(self.tuned[tuple(key)])) for key in rows[keys].to_numpy()])
        return rows

    def measure(
        self, direction: str, method: str, parameters: Sequence[Mapping[str, Any]] | None = None
    ) -> Measurement:
        """Rank the test split of every replicate with the tuned (or other) parameters, one mapping per replicate."""
        parameters = self.tuned[direction, method] if parameters is None else parameters
        key = (direction, method, json.dumps(parameters))
        if key not in self._measured:
            values, top = [], []
            for task, chosen in zip(self.tasks[direction], parameters, strict=True):
                result = ranking.rank(task.fit(task.test, method, chosen), task.test.relevance, self.k)
                values.append(query_values(result))
                top.append(result.topk)
            pooled = {name: np.concatenate([v[name] for v in values]) for name in values[0]}
            self._measured[key] = Measurement(pooled, top)
        return self._measured[key]

    def evaluate(self) -> pd.DataFrame:
        """Report every tuned method once on the test split, with 95 % intervals; return the main table."""
        for task in itertools.chain(*self.tasks.values()):
            self._warm(task, task.test)  # the ablations will ask for all of it
        for direction, method in tqdm(list(itertools.product(self.directions, self.methods)), desc="test", leave=False):
            found, bootstrap = self.measure(direction, method), self.bootstrap(self._clusters(direction))
            intervals = {
                name: bootstrap.mean(values) for name, values in found.values.items() if not name.startswith("rank")
            }
            intervals["mean rank"] = bootstrap.mean(found.values["rank"])
            intervals["median rank"] = bootstrap.median(found.values["rank"])
            intervals |= self._hubness(direction, found.topk)
            for metric, interval in intervals.items():
                self._record("main", direction, method, self.tuned[direction, method], metric, interval)
        return self.table("main")

    def _hubness(self, direction: str, top: list[np.ndarray]) -> dict[str, Interval]:
        sizes = [len(task.test.gallery) for task in self.tasks[direction]]
        statistic = hubness_statistic(top, sizes, _described)
        return jackknife(statistic, self._clusters(direction), seed=self.seed)

    def _difference(self, direction: str, one: Measurement, other: Measurement) -> tuple[Interval, float]:
        return self.difference(one.values["R@1"], other.values["R@1"], self._clusters(direction))

    def compare(self) -> pd.DataFrame:
        """Compare R@1 of every method with ``none`` and with tuned ``is``: paired, Holm within each comparison."""
        references = [name for name in ("none", "is") if name in self.methods]
        for direction, reference in itertools.product(self.directions, references):
            others = [name for name in self.methods if name not in ("none", reference)]
            base = self.measure(direction, reference)
            found = [self._difference(direction, self.measure(direction, name), base) for name in others]
            for name, (interval, p), corrected in zip(others, found, holm([p for _, p in found]), strict=True):
                self._record(
                    "difference", direction, name, self.tuned[direction, name], "R@1 difference", interval,
                    reference=reference, p_value=p, p_holm=float(corrected),
                )  # fmt: skip
        return self.table("difference")

    def conclusion(self) -> str:
        """Say in words, per direction, which corrections differ in R@1 from ``none`` and from tuned ``is``."""
        rows = self.table("difference")
        lines = []
        for (direction, reference), here in rows.groupby(["direction", "reference"], sort=False):
            clear = here[here["p_holm"] < 0.05].sort_values("value", ascending=False)
            better, worse = (
                ", ".join(
                    f"`{row['method']}` ({100 * row['value']:+.1f}, {100 * row['ci_low']:+.1f} to "
                    f"{100 * row['ci_high']:+.1f} points)"
                    for row in clear[chosen].to_dict("records")
                )
                or "no method"
                for chosen in (clear["value"] > 0, clear["value"] < 0)
            )
            name = "no correction" if reference == "none" else "tuned inverted softmax"
            lines.append(
                f"- **{self.data.name}, {direction}**, against {name}, {len(here)} methods: better after Holm's "
                f"correction {better}; worse {worse}. For the others no difference is established."
            )
        return "\n".join(lines)

    def question(self) -> pd.DataFrame:
        """Split DualIS's gain into steps: IS as released, its temperature, the gallery bank (free, or forced on)."""
        asked = {"is", "dual-is"} <= set(self.methods)
        for direction in self.directions if asked else ():
            released = [{"beta": 20.0}] * len(self.tasks[direction])
            forced = [
                max((found for found in searched if found[1]["gallery_beta"] > 0), key=lambda found: found[0])[1]
                for searched in self._searched[direction, "dual-is"]
                if any(self.gallery_betas)
            ]
            systems = {
                "none": ("none", None),
                "IS, beta 20": ("is", released),
                "IS, tuned": ("is", None),
                "DualIS, tuned": ("dual-is", None),
                **({"DualIS, tuned, gallery bank on": ("dual-is", forced)} if forced else {}),
            }
            found = {name: self.measure(direction, *system) for name, system in systems.items()}
            results = {pair: self._difference(direction, *(found[name] for name in pair))
                       for pair in STEPS if set(pair) <= found.keys()}  # fmt: skip
            corrected = holm([p for _, p in results.values()])
            for ((one, other), (interval, p)), adjusted in zip(results.items(), corrected, strict=True):
                method, chosen = systems[one]
                self._record(
                    "question",
                    direction,
                    method,
                    chosen or self.tuned[direction, method],
                    f"R@1 difference: {one} - {other}",
                    interval,
                    reference=systems[other][0],
                    p_value=p,
                    p_holm=float(adjusted),
                )
        columns = {"direction": "direction", "metric": "step", "value": "points", "ci_low": "low", "ci_high": "high"}
        rows = self.table("question").reindex(columns=[*columns, "p_holm"]).rename(columns=columns)
        rows["step"] = [step.removeprefix("R@1 difference: ") for step in rows["step"]]
        rows[["points", "low", "high"]] *= 100
        return rows

    def answer(self) -> str:
        """Say in words, per direction, whether tuned DualIS gains over tuned IS."""
        rows = self.table("question")
        if rows.empty:
            return "Not asked: it takes both `is` and `dual-is` among the methods."
        lines = []
        for row in rows[rows["metric"] == "R@1 difference: DualIS, tuned - IS, tuned"].to_dict("records"):
            chosen = [p["gallery_beta"] for p in self.tuned[row["direction"], "dual-is"]]
            off = sum(beta == 0 for beta in chosen)
            low, high = 100 * row["ci_low"], 100 * row["ci_high"]
            verdict = "no difference is established; the interval bounds how large one could be"
            if off == len(chosen):
                verdict = "validation switched the gallery bank off, so the two are the same method"
            elif low > 0:
                verdict = "the gallery bank adds recall beyond temperature"
            elif high < 0:
                verdict = "the gallery bank costs recall"
            lines.append(
                f"- **{row['dataset']}, {row['direction']}**: tuned DualIS minus tuned IS is "
                f"{100 * row['value']:+.2f} points of R@1 (95 % interval {low:+.2f} to {high:+.2f}, Holm p = "
                f"{row['p_holm']:.3g}); validation chose gallery_beta 0 in {off} of {len(chosen)} splits. "
                f"{verdict[0].upper()}{verdict[1:]}."
            )
        return "\n".join(lines)

    # --- ablations: R@1 on the test split, other parameters as tuned --------------------------------------------

    def _ablate(
        self, table: str, direction: str, method: str, point: Mapping[str, Any], hits: Iterable[np.ndarray], **more: Any
    ) -> None:
        interval = self.bootstrap(self._clusters(direction)).mean(np.concatenate(list(hits)))
        self._record(table, direction, method, dict(point), "R@1", interval, **more)

    def temperature(self) -> pd.DataFrame:
        """R@1 against the inverse temperature of each method that has one (beta = 1 / tau), else as tuned."""
        for direction, method in itertools.product(self.directions, self.methods):
            name = next((n for n in ("beta", "query_beta", "tau") if n in CATALOGUE[method].grid), None)
            if name is None:
                continue
            tuned = self.tuned[direction, method]
            for beta in self.betas:
                point = {name: 1 / beta if name == "tau" else beta}
                jobs = zip(self.tasks[direction], tuned, strict=True)
                hits = [task.test.hits(task.fit(task.test, method, {**chosen, **point})) for task, chosen in jobs]
                told = shown(tuned) | point | ({"beta": beta} if name == "tau" else {})
                self._ablate("temperature", direction, method, told, hits)
        return self.table("temperature")

    def _chosen(self, *names: str) -> list[str]:
        """Return those of ``names`` that are studied, or else the first methods that are."""
        return [name for name in names if name in self.methods] or self.methods[1:5]

    def _with(self, parameter: str) -> list[str]:
        return [name for name in self.methods if parameter in CATALOGUE[name].grid]

    def bank_size(self, draws: int = 3) -> pd.DataFrame:
        """R@1 against the size of the bank: random shares of it, hits averaged over ``draws`` draws."""
        for direction, method, share in itertools.product(
            self.directions, self._chosen("is", "dual-is", "nnn", "invgc"), self.bank_sizes
        ):
            hits, sizes = [], []
            for number, (task, chosen) in enumerate(
                zip(self.tasks[direction], self.tuned[direction, method], strict=True)
            ):
                each = []
                for draw in range(draws if share < 1 else 1):
                    bank = self.data.replicates[number].bank
                    part = None if share >= 1 else share_of_images(bank, share, self.seed + draw)
                    banks = banks_of(bank, direction, self.device, part)
                    each.append(task.test.hits(task.fit(task.test, method, _limited(chosen, banks), banks)))
                    sizes.append(len(banks[0]))
                hits.append(np.mean(each, axis=0))
            self._ablate("bank_size", direction, method, {"bank_size": round(float(np.mean(sizes)))}, hits)
        return self.table("bank_size")

    def _foreign(self) -> EmbeddingData | None:
        """Return the dataset named by ``other_bank``, or None (with a note) if it is not at hand."""
        from reprolib.loaders import load_manifest

        own = Path(self.other_bank).expanduser()
        if own.is_file():
            given: dict[str, Any] = {"dataset": self.dataset, "embeddings": own}
        else:  # raw items are encoded by the model of the study; stored features are what they are
            items = load_manifest(self.other_bank).kind == "items"
            given = {"dataset": self.other_bank, "model": self.data.model if items else None}
        try:
            other = load_embeddings(**given, mirror=self.mirror, device=self.device)
        except DataUnavailable as error:
            print(f"Left out the bank {self.other_bank}: {error}")
            return None
        width, expected = (data.replicates[0].test.image.shape[1] for data in (other, self.data))
        if width != expected:
            raise InputError(
                f"other_bank {self.other_bank} has embeddings of width {width}; the dataset has {expected}"
            )
        return other

    def bank_sources(self) -> pd.DataFrame:
        """R@1 with other banks at the tuned parameters; for DualIS also with one bank alone, tuned for that.

        "random directions" is a control: a bank of the same size without content.
        """
        sources = {self.bank: [r.bank for r in self.data.replicates]}
        if not self.bank.startswith("validation"):
            sources["validation"] = [r.validation for r in self.data.replicates]
        if self.other_bank and (other := self._foreign()):
            sources[f"other: {other.name}"] = [other.replicates[0].bank] * len(self.data.replicates)
        sources["random directions"] = [_random_directions(r.bank, self.seed) for r in self.data.replicates]
        for (source, splits), direction in itertools.product(sources.items(), self.directions):
            for method in self._chosen("is", "dis", "dual-is", "nnn"):
                hits = []
                for task, chosen, split in zip(
                    self.tasks[direction], self.tuned[direction, method], splits, strict=True
                ):
                    banks = banks_of(split, direction, self.device)
                    hits.append(task.test.hits(task.fit(task.test, method, _limited(chosen, banks), banks)))
                self._ablate("bank_source", direction, method, shown(self.tuned[direction, method]), hits, bank=source)
        for direction in self.directions if "dual-is" in self.methods else ():
            for source, name, off in (("query bank only", "query_beta", "gallery_beta"),
                                      ("gallery bank only", "gallery_beta", "query_beta")):  # fmt: skip
                hits, points = [], []
                for task in self.tasks[direction]:
                    candidates = [{name: beta, off: 0.0} for beta in self.betas]
                    recall = [task.validation.hits(task.fit(task.validation, "dual-is", c)).mean() for c in candidates]
                    points.append(candidates[int(np.argmax(recall))])
                    hits.append(task.test.hits(task.fit(task.test, "dual-is", points[-1])))
                self._ablate("bank_source", direction, "dual-is", shown(points), hits, bank=source)
        return self.table("bank_source")

    def gallery_size(self) -> pd.DataFrame:
        """R@1 with a random share of the test items (an item stays with all that is relevant to it)."""
        for direction, share in itertools.product(self.directions, self.gallery_sizes):
            sides = [
                Side(r.test if share >= 1 else subset(r.test, share, self.seed), direction, self.device)
                for r in self.data.replicates
            ]
            clusters = np.concatenate([side.clusters for side in sides])
            bootstrap = self.bootstrap(clusters)
            size = round(float(np.mean([len(side.gallery) for side in sides])))
            for method in self._chosen("none", "is", "dual-is", "nnn"):
                jobs = zip(self.tasks[direction], sides, self.tuned[direction, method], strict=True)
                hits = np.concatenate([side.hits(task.fit(side, method, chosen)) for task, side, chosen in jobs])
                self._record(
                    "gallery_size", direction, method, {"gallery_size": size}, "R@1", bootstrap.mean(hits), n=len(hits)
                )
        return self.table("gallery_size")

    def neighbours(self) -> pd.DataFrame:
        """R@1 of nnn and csls against their number of neighbours k."""
        for direction, method in itertools.product(self.directions, self._with("k")):
            limit = min(len(task.query_bank) for task in self.tasks[direction])
            for k in (k for k in CATALOGUE[method].grid["k"] if k <= limit):
                jobs = zip(self.tasks[direction], self.tuned[direction, method], strict=True)
                hits = [task.test.hits(task.fit(task.test, method, {**chosen, "k": k})) for task, chosen in jobs]
                self._ablate("k", direction, method, {"k": k}, hits)
        return self.table("k")

    def rates(self) -> pd.DataFrame:
        """R@1 of invgc and invgc-localadj against their rates (both equal) and pool; pool 1 is the dense graph."""
        for direction, method in itertools.product(self.directions, self._with("rate_gallery")):
            grid = CATALOGUE[method].grid
            pools = sorted(
                {p["pool_rate"] for t in self.tasks[direction] for p in self._grid(method, t) if "pool_rate" in p}
            )
            for pool, rate in itertools.product(pools or [None], grid["rate_gallery"]):
                point = {"rate_gallery": rate, "rate_query": rate} | ({"pool_rate": pool} if pool else {})
                hits = [task.test.hits(task.fit(task.test, method, point)) for task in self.tasks[direction]]
                self._ablate("invgc", direction, method, point, hits)
        return self.table("invgc")

    # --- artefacts ----------------------------------------------------------------------------------------------

    def occurrences(self) -> pd.DataFrame:
        """Return N_k of every gallery item, per direction, method and replicate."""
        parts = []
        for direction, method in itertools.product(self.directions, self.methods):
            for task, top in zip(self.tasks[direction], self.measure(direction, method).topk, strict=True):
                counts = k_occurrence(top, len(task.test.gallery))
                parts.append(pd.DataFrame({
                    "direction": direction, "method": method, "replicate": task.label,
                    "gallery_id": task.test.gallery_ids, "n_k": counts,
                }))  # fmt: skip
        return pd.concat(parts, ignore_index=True)

    def hubs(self, after: str | None = None, number: int = 10, queries: int = 12) -> pd.DataFrame:
        """Return the largest hubs of the first replicate, before and ``after``, with queries that they attract.

        ``after`` is a method: by default ``is``, or the last one where that is not studied.
        One query per item (cluster), right ones first: ten captions of one image would show one attraction.
        """
        after = after or ("is" if "is" in self.methods else self.methods[-1])
        rows = []
        for direction, (when, method) in itertools.product(self.directions, (("before", "none"), ("after", after))):
            task, top = self.tasks[direction][0], self.measure(direction, method).topk[0]
            counts = k_occurrence(top, len(task.test.gallery))
            for place, hub in enumerate(np.argsort(-counts, kind="stable")[:number], start=1):
                every = np.flatnonzero((top == hub).any(1))
                right = np.asarray(task.test.relevance[every, np.full(len(every), hub)]).ravel()
                _, first = np.unique(task.test.clusters[every], return_index=True)
                picked = first[np.lexsort((every[first], ~right[first]))][:queries]
                attracted, relevant = every[picked], right[picked]
                rows.append({
                    "direction": direction, "when": when, "method": method, "hub": place,
                    "gallery_id": str(task.test.gallery_ids[hub]), "n_k": int(counts[hub]),
                    "query_ids": [str(q) for q in task.test.query_ids[attracted]],
                    "correct": [bool(value) for value in relevant],
                })  # fmt: skip
        return pd.DataFrame(rows)

    def per_query(self) -> pd.DataFrame:
        """Return rank, hits and average precision of every test query, per direction, method and replicate."""
        parts = []
        for direction, method in itertools.product(self.directions, self.methods):
            found, tasks = self.measure(direction, method), self.tasks[direction]
            parts.append(pd.DataFrame({
                "direction": direction, "method": method,
                "replicate": np.repeat([t.label for t in tasks], [len(t.test.queries) for t in tasks]),
                "query_id": np.concatenate([t.test.query_ids for t in tasks]),
                "cluster": self._clusters(direction), **found.values,
            }))  # fmt: skip
        return pd.concat(parts, ignore_index=True)

    def save(self) -> Path:
        """Write all artefacts of the study into the run's folder and return it."""
        return super().save(per_query=self.per_query(), occurrences=self.occurrences(), hubs=self.hubs())
