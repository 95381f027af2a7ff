"""The paper-versus-code study: what each difference between a paper and its released code is worth, measured.

Every finding of ``reprolib.study.audit`` with a switch is measured both ways on the test split. The effect is what the
release gives minus what the paper says, everything else equal: nothing is tuned, parameters are those of the finding.
Where a release computes something that its own evaluation would not take, ``READINGS`` says how it is read.
"""

from __future__ import annotations

import html
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from pandas.io.formats.style import Styler
from torch import Tensor
from tqdm.auto import tqdm

from reprolib import ranking
from reprolib.errors import InputError
from reprolib.figures.paper_versus_code import FLOOR, WEIGHTS, effect_in_words, weight_of
from reprolib.methods import CATALOGUE, Bank
from reprolib.methods.interventions import Train, intervene
from reprolib.metrics import hubness_of_counts, k_occurrence
from reprolib.metrics.intra_modal import intra_modal_metrics
from reprolib.metrics.statistics import Interval, holm, jackknife
from reprolib.models import load_embeddings
from reprolib.ranking import Scorer
from reprolib.study import intra_modal_inversion as within
from reprolib.study.audit import Finding, Place, findings
from reprolib.study.modality_gap import pairs_of
from reprolib.study.parameters import check
from reprolib.study.protocol import Protocol, Side, banks_of
from reprolib.study.verdicts import margins

DIRECTIONS = ("text->image", "image->text")
ARMS = ("paper", "released")
TRANSDUCTIVE = "transductive: the test queries themselves"
_ROWS = (
    "Row i of the matrix that db_norm returns belongs to item i of the gallery bank. It is read as the answer to query "
    "i; queries beyond the last row are missed."
)
BY_COLUMN = "qb-norm-mixed-scales"
MATRIX = 2**29  # bytes of a matrix that a method holds by its nature, for a finding to be measured here
READINGS: Mapping[str, str] = {  # how the release's result is read, where that is not plain
    "dbnorm-test-queries-unused": _ROWS,
    "dbnorm-dynamic-overwrites": f"{_ROWS} The effect includes that of the unused test queries.",
    BY_COLUMN: "The release's matrix of the other direction is read by column; the paper's side is the method fitted "
    "for the direction itself.",
    "qb-norm-overflow": "An item whose score is not a number is ranked last, as NumPy sorts it; the release's own "
    "evaluation would stop.",
}


@dataclass(frozen=True)
class Task:
    """One replicate in one direction: the test side, and (query bank, gallery bank) by where they come from."""

    label: str
    test: Side
    banks: Mapping[str, tuple[Bank, Bank]]
    _best: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    def fit(self, method: str | None, arguments: Mapping[str, Any]) -> Scorer:
        """Return the scorer for one side of a switch; the arguments may name the method and the source of the banks."""
        given = dict(arguments)
        banks = self.banks[given.pop("bank_source", "train")]
        name = given.pop("name", method) or given.pop("methods")[0]
        return CATALOGUE[name].fit(self.test.queries, self.test.gallery, *banks, **given)

    def check_size(self, method: str | None, arguments: Mapping[str, Any]) -> None:
        """Raise InputError if the matrix that one side of a switch holds by its nature is larger than ``MATRIX``."""
        banks, columns = self.banks["train"], len(self.test.gallery)
        name, variant = arguments.get("name", method), arguments.get("variant")
        if (name, variant) == ("dual-dis", "released"):
            rows, what, wide = sum(map(len, banks)), "similarities of both banks to the gallery", 4
        elif name == "gc":
            rows, what, wide = len(self.test.queries), "ranks of the queries", 2 if len(banks[0]) < 2**16 else 4
        else:
            return
        size = rows * columns * wide
        if size > MATRIX:
            raise InputError(
                f"{name} holds the {what}, a matrix of {rows:,} x {columns:,} and {size / 2**30:.1f} GiB; valid is a "
                f"size of up to {MATRIX / 2**30:g} GiB"
            )

    def best(self, method: str | None, arguments: Mapping[str, Any]) -> np.ndarray:
        """Return the best item of every query, int64 [n], or of fewer if the scores have fewer rows.

        Kept, as several findings share a side.
        """
        key = f"{method} {json.dumps(arguments, sort_keys=True)}"
        if key not in self._best:
            scorer = self.fit(method, arguments)
            if arguments.get("variant") == "released":
                scorer = numbers_first(scorer)
            if len(scorer.queries) > len(self.test.queries):  # a row per item of a bank: no query has the later ones
                scorer = replace(scorer, queries=scorer.queries[: len(self.test.queries)])
            self._best[key] = self.test.best(scorer)
        return self._best[key]

    def hits(self, best: np.ndarray) -> np.ndarray:
        """Return for every query whether its ``best`` item is relevant, float64 [n]; missed without a best item."""
        found = np.zeros(len(self.test.queries))
        rows = np.arange(len(best))
        found[rows] = np.asarray(self.test.relevance[rows, best], dtype=np.float64).ravel()
        return found


def best_by_column(scorer: Scorer) -> np.ndarray:
    """Return the row with the highest canonical score of every gallery item, int64 [m]; the first of equal ones."""
    highest, best = np.full(scorer.shape[1], -np.inf), np.zeros(scorer.shape[1], dtype=np.int64)
    for rows in ranking.blocks(*scorer.shape):
        scores = scorer.canonical(rows).cpu().numpy()
        at = scores.argmax(0)
        top = scores[at, np.arange(len(best))]
        higher = top > highest
        highest[higher], best[higher] = top[higher], rows.start + at[higher]
    return best


def numbers_first(scorer: Scorer) -> Scorer:
    """Return ``scorer`` with every score that is not a number below all others."""
    if scorer.transform is None:
        return scorer

    def numbers(scores: Tensor, rows: slice) -> Tensor:
        found = scorer.transform(scores, rows)
        return torch.where(found.isnan(), -torch.inf, found)

    return replace(scorer, transform=numbers)


def address(place: Place) -> str:
    """Return the web address of a place in released code, as far as it is known: repository, commit, file, lines."""
    base = f"https://{place.repository}"
    if not place.repository.startswith("github.com/") or not (place.commit or place.file):
        return base
    found = f"{base}/{'blob' if place.file else 'tree'}/{place.commit or 'HEAD'}"
    found += f"/{place.file}" if place.file else ""
    return found + (f"#L{place.lines.replace('-', '-L')}" if place.file and place.lines else "")


def _link(place: Place) -> str:
    text = place.repository.removeprefix("github.com/") + (f"@{place.commit[:7]}" if place.commit else "")
    lines = f", line {place.lines}" if place.lines and "-" not in place.lines else ""
    lines = lines or (f", lines {place.lines}" if place.lines else "")
    text = ", ".join(filter(None, (text, place.file, place.symbol))) + lines
    return f'<a href="{html.escape(address(place))}">{html.escape(text)}</a>'


@dataclass
class Study(Protocol):
    """The study on one dataset; every public method returns a table for the notebook and keeps its records.

    Parameters are those of the notebook's parameters cell, which documents them. Raises InputError for a name or a
    value that is not valid (with the nearest valid names) and DataUnavailable if the data is not at hand.
    """

    study: ClassVar[str] = "paper-versus-code"

    dataset: str = "glyphs"
    model: str | None = None
    embeddings: str | None = None
    directions: Sequence[str] = DIRECTIONS
    bank_share: float = 0.2
    n_splits: int = 5
    k: int = 10
    n_images: int = 300
    n_inverted: int = 48
    n_bootstrap: int = 2000
    n_permutations: int = 9999
    seed: int = 0
    device: str = "cpu"
    mirror: str | None = None
    rows: list[dict[str, Any]] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        self.directions = list(self.directions)
        check({entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name != "rows"})
        self.data = load_embeddings(
            self.dataset, self.model, embeddings=self.embeddings, bank_share=self.bank_share, n_splits=self.n_splits,
            seed=self.seed, device=self.device, mirror=self.mirror,
        )  # fmt: skip
        self.bank = self.data.replicates[0].bank_source
        self.tasks = {direction: self._tasks(direction) for direction in DIRECTIONS}
        smallest = min(len(task.test.gallery) for direction in self.directions for task in self.tasks[direction])
        if self.k > smallest:
            raise InputError(f"parameter k = {self.k} exceeds the smallest test gallery, {smallest} items")
        self.findings = findings()
        self.left_out: dict[str, str] = {}
        self._floors = margins()
        self._per_query: list[pd.DataFrame] = []

    def _tasks(self, direction: str) -> list[Task]:
        found = []
        for replicate in self.data.replicates:
            test = Side(replicate.test, direction, self.device)
            banks = {
                "train": banks_of(replicate.bank, direction, self.device),
                "transductive": (Bank(test.queries, "query bank"), Bank(test.gallery, "gallery bank")),
            }
            found.append(Task(replicate.label, test, banks))
        return found

    def overview(self) -> pd.DataFrame:
        """Return the sizes of every part, per direction; splits of the same sizes share a row."""
        rows = [
            {
                "direction": direction, "bank": self.bank, "query bank": len(task.banks["train"][0]),
                "gallery bank": len(task.banks["train"][1]), "test queries": len(task.test.queries),
                "test gallery": len(task.test.gallery),
            }
            for direction in self.directions
            for task in self.tasks[direction]
        ]  # fmt: skip
        return pd.DataFrame(rows).value_counts(sort=False).rename("splits").reset_index()

    # --- what is kept -------------------------------------------------------------------------------------------

    def _keep(
        self, finding: Finding, metric: str, found: Mapping[str, Interval], n: int, p: float | None = None,
        direction: str | None = None, bank: str | None = None, **parameters: Any,
    ) -> None:  # fmt: skip
        """Record both sides of a switch and their difference."""
        banks = dict.fromkeys(ARMS, bank)
        if finding.effect.select.transductive:
            banks["released"] = TRANSDUCTIVE
        parameters = {"finding": finding.id} | parameters
        for arm in ARMS:
            more = {"direction": direction, "method": arm, "parameters": parameters, "bank": banks[arm]}
            self.record("main", metric, found[arm], n, **more)
        self.record(
            "audit", f"{metric} difference", found["difference"], n, direction=direction, method="released",
            parameters=parameters | {FLOOR: self._floors.floor(metric)}, bank=banks["released"], reference="paper",
            p_value=p,
        )  # fmt: skip

    def _keep_means(
        self, finding: Finding, metric: str, values: Mapping[str, np.ndarray], about: Mapping[str, np.ndarray],
        **more: Any,
    ) -> None:  # fmt: skip
        """Record the means over queries; ``about`` holds query_id and cluster, [n] each."""
        bootstrap = self.bootstrap(about["cluster"])
        difference, p = self.difference(values["released"], values["paper"], about["cluster"])
        found = {arm: bootstrap.mean(values[arm]) for arm in ARMS} | {"difference": difference}
        self._keep(finding, metric, found, len(about["cluster"]), p, **more)
        shown = {"direction": more["direction"], "grouping": more.get("grouping", "")}
        each = {arm: values[arm] for arm in ARMS}
        self._per_query.append(pd.DataFrame({"finding": finding.id, "metric": metric, **shown, **about, **each}))

    def _keep_jackknifed(
        self, finding: Finding, metric: str, value: Callable[[str, np.ndarray], float], clusters: np.ndarray,
        **more: Any,
    ) -> None:  # fmt: skip
        """Record a statistic that is no mean over queries, ``value`` of (side of the switch, mask [n])."""

        def statistic(mask: np.ndarray) -> dict[str, float]:
            found = {arm: value(arm, mask) for arm in ARMS}
            return found | {"difference": found["released"] - found["paper"]}

        self._keep(finding, metric, jackknife(statistic, clusters, seed=self.seed), len(clusters), **more)

    # --- one way to measure for each metric ---------------------------------------------------------------------

    def _recall(self, finding: Finding) -> None:
        switch = finding.switch
        for direction, arm in itertools.product(self.directions, ARMS):  # before anything is measured
            for task in self.tasks[direction]:
                task.check_size(switch.method, getattr(switch, arm))
        for direction in self.directions:
            tasks, opposite = (self.tasks[name] for name in sorted(DIRECTIONS, key=lambda name: name != direction))
            values: dict[str, list[np.ndarray]] = {arm: [] for arm in ARMS}
            for task, other in zip(tasks, opposite, strict=True):
                crossed = finding.id == BY_COLUMN
                best = {arm: task.best(switch.method, getattr(switch, arm)) for arm in ARMS[: 1 if crossed else 2]}
                if crossed:
                    best["released"] = best_by_column(other.fit(switch.method, switch.released))
                for arm in ARMS:
                    values[arm].append(task.hits(best[arm]))
            about = {
                "replicate": np.repeat([t.label for t in tasks], [len(t.test.queries) for t in tasks]),
                "query_id": np.concatenate([t.test.query_ids for t in tasks]),
                "cluster": np.concatenate([t.test.clusters for t in tasks]),
            }
            pooled = {arm: np.concatenate(values[arm]) for arm in ARMS}
            self._keep_means(finding, "R@1", pooled, about, direction=direction, bank=self.bank)

    def _skewness(self, finding: Finding) -> None:
        for direction in self.directions:
            sides = [task.test for task in self.tasks[direction]]
            top = [ranking.topk(Scorer(side.queries, side.gallery), self.k, ordered=False) for side in sides]
            cuts = np.cumsum([len(lists) for lists in top])[:-1]

            def skewness(arm: str, mask: np.ndarray, sides: Any = sides, top: Any = top, cuts: Any = cuts) -> float:
                counts = [
                    k_occurrence(lists[part], len(side.gallery))
                    for side, lists, part in zip(sides, top, np.split(mask, cuts), strict=True)
                ]
                given = getattr(finding.switch, arm)
                return float(np.mean([hubness_of_counts(found, **given)["skewness"] for found in counts]))

            clusters = np.concatenate([side.clusters for side in sides])
            self._keep_jackknifed(finding, "skewness", skewness, clusters, direction=direction, bank="none", k=self.k)

    def _gap(self, finding: Finding) -> None:
        moved: dict[str, list[np.ndarray]] = {arm: [] for arm in ARMS}
        tests = [pairs_of(replicate.test, self.seed) for replicate in self.data.replicates]
        banks = [replicate.bank for replicate in self.data.replicates]
        trains = [Train(bank.image, bank.text, bank.relevance) for bank in banks]
        for arm, (train, test) in itertools.product(ARMS, zip(trains, tests, strict=True)):
            given = dict(getattr(finding.switch, arm))
            image, text = intervene(given.pop("name"), train, **given)(test.image, test.text)
            moved[arm].append((image.double() - text.double()).cpu().numpy())
        cuts = np.cumsum([len(test.image) for test in tests])[:-1]

        def gap(arm: str, mask: np.ndarray) -> float:
            parts = zip(moved[arm], np.split(mask, cuts), strict=True)
            return float(np.mean([np.linalg.norm(rows[part].mean(0)) for rows, part in parts]))

        owners = np.concatenate([test.image_ids for test in tests])
        self._keep_jackknifed(finding, "L2M", gap, owners, bank=self.bank)

    @cached_property
    def _within(self) -> within.Study:
        """The study of searches within a modality, on the same data: its parts, groupings and inversions."""
        return within.Study(
            dataset=self.dataset, model=self.model, embeddings=self.embeddings, tasks=["image->image"],
            n_images=self.n_images, train_share=self.bank_share, seed=self.seed, device=self.device, mirror=self.mirror,
        )  # fmt: skip

    def _keep_searches(
        self, finding: Finding, metric: str, part: within.Part, grouping: str,
        sides: Mapping[str, Mapping[str, Any]],
    ) -> None:  # fmt: skip
        """Record searches among images; ``sides``: arguments of ``intra_modal_metrics``, queries those of the part."""
        target, asked = part.target(grouping), part.asked(grouping)
        fixed = {
            "gallery": part.gallery[target.gallery], "relevance": target.relevance, "self_match": target.own,
            "junk": target.junk, "normalize": False, "per_query": True,
        }  # fmt: skip
        values = {}
        for arm in ARMS:
            queries = sides[arm]["queries"][asked]
            values[arm] = intra_modal_metrics(**fixed | sides[arm] | {"queries": queries})[1][metric]
        about = {"replicate": self.data.replicates[0].label, "query_id": part.ids[target.queries]}
        about["cluster"] = part.query_clusters[asked]
        self._keep_means(finding, metric, values, about, direction="image->image", grouping=grouping)

    def _counting(self, finding: Finding) -> None:
        for task, grouping in self._within.cases:
            part = self._within.parts[task, "test"]
            sides = {arm: {"queries": part.queries} | getattr(finding.switch, arm) for arm in ARMS}
            self._keep_searches(finding, "mAP@R", part, grouping, sides)

    def _inversion(self, finding: Finding) -> None:
        if self._within.encoder is None:
            raise InputError(f"{self.data.name} holds stored features, and inversion needs the model itself")
        for task, grouping in self._within.cases:
            part = self._within.parts[task, "test"]
            some = np.unique(
                np.linspace(0, len(part.rows) - 1, min(self.n_inverted, len(part.rows))).round().astype(int)
            )
            part = replace(part, rows=part.rows[some], pairs=part.pairs[some])
            found = {arm: self._within.inverted(part, **getattr(finding.switch, arm)).features[-1] for arm in ARMS}
            sides = {
                arm: {"queries": ranking.as_embeddings(rows, "inverted queries", device=self.device)}
                for arm, rows in found.items()
            }
            self._keep_searches(finding, "mAP", part, grouping, sides)

    # --- the protocol -------------------------------------------------------------------------------------------

    def measure(self) -> pd.DataFrame:
        """Measure every finding that has its effect in this study; return the effects, p-values corrected together.

        A finding that this data or its size does not allow is left out with the reason.
        """
        ways = {
            "R@1 difference": self._recall, "skewness difference": self._skewness, "L2M difference": self._gap,
            "mAP@R difference": self._counting, "mAP difference": self._inversion,
        }  # fmt: skip
        here = [found for found in self.findings.values() if found.effect and found.effect.study == self.study]
        for finding in tqdm(here, desc="findings", leave=False):
            try:
                ways[finding.effect.select.metric](finding)
            except InputError as error:
                self.left_out[finding.id] = str(error)
        tested = [row for row in self.rows if row["table"] == "audit" and row["p_value"] is not None]
        for row, corrected in zip(tested, holm([row["p_value"] for row in tested]), strict=True):
            row["p_holm"] = float(corrected)
        return self.table("audit")

    def effects(self) -> Styler:
        """Return one row per measured finding: paper, code with a link, how it is measured, effects."""
        rows = []
        for name, here in self._by_finding():
            finding = self.findings[name]
            told = (f"{html.escape(effect_in_words(row))}: <b>{weight_of(row)}</b>" for row in here)
            rows.append(_row(finding) | {
                "how it is measured": html.escape(_measured(finding)), "released minus paper": "<br>".join(told),
            })  # fmt: skip
        return _board(rows)

    def _by_finding(self) -> list[tuple[str, list[dict[str, Any]]]]:
        rows = [row for row in self.rows if row["table"] == "audit"]
        return [
            (name, list(found)) for name, found in itertools.groupby(rows, lambda row: row["parameters"]["finding"])
        ]

    def unmeasured(self) -> Styler:
        """Return one row per finding without an effect here: paper, code with a link, and why."""
        rows, measured = [], {name for name, _ in self._by_finding()}
        for name, finding in self.findings.items():
            if name not in measured:
                elsewhere = f"measured by the study {finding.effect.study}" if finding.effect else ""
                why = self.left_out.get(name) or finding.reason or elsewhere
                rows.append(_row(finding) | {"why there is no effect here": html.escape(why)})
        return _board(rows)

    def conclusion(self) -> str:
        """Say in words which deviations matter, which do not, and which stay open."""
        told: dict[str, list[str]] = {weight: [] for weight in WEIGHTS}
        for name, here in self._by_finding():
            for weight, group in itertools.groupby(sorted(here, key=_place), weight_of):
                effects = "; ".join(effect_in_words(row, tested=False) for row in group)
                told[weight].append(f"- {self.findings[name].title} (`{name}`): {effects}.")
        parts = [
            f"**{heading}** on {self.data.name}: {meaning}.\n\n" + ("\n".join(told[weight]) or "- No finding.")
            for weight, (heading, meaning) in WEIGHTS.items()
        ]
        if self.left_out:
            parts.append(f"**Not measured** on {self.data.name}: {', '.join(f'`{name}`' for name in self.left_out)}.")
        return "\n\n".join(parts)

    def per_query(self) -> pd.DataFrame:
        """Return the value of every test query under both sides of every switch that is a mean over queries."""
        return pd.concat(self._per_query, ignore_index=True)

    def save(self) -> Path:
        """Write all artefacts of the study into the run's folder and return it."""
        return super().save(per_query=self.per_query())


def _place(row: Mapping[str, Any]) -> int:
    return list(WEIGHTS).index(weight_of(row))


def _row(finding: Finding) -> dict[str, str]:
    return {
        "finding": f"<b>{html.escape(finding.title)}</b><br><code>{finding.id}</code>",
        "the paper says": html.escape(finding.paper_says),
        "the code does": f"{html.escape(finding.code_does)}<br>{_link(finding.place)}",
    }


def _board(rows: Sequence[Mapping[str, str]]) -> Styler:
    """Return rows of HTML as a table to read: no index, text at the left, the last column wide enough."""
    frame = pd.DataFrame(rows)
    text = {"text-align": "left", "vertical-align": "top", "white-space": "normal"}
    heads = [{"selector": "th", "props": "text-align: left;"}]
    board = frame.style.hide().set_properties(**text).set_table_styles(heads)
    return board.set_properties(subset=list(frame)[-1:], **{"min-width": "17em"})


def _side(given: Mapping[str, Any]) -> str:
    """Return one side of a switch in words: the method, then its arguments."""
    rest = {name: value for name, value in given.items() if name not in ("name", "methods")}
    method = [given["name"]] if "name" in given else given.get("methods", [])
    shown = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in rest.items()}
    return ", ".join([*method, *(f"{name} {value}" for name, value in shown.items())])


def _measured(finding: Finding) -> str:
    """Return the two sides of the switch in words, and how the release's result is read."""
    switch = finding.switch
    of = f"{switch.method}: " if switch.method else ""
    text = f"{of}{_side(switch.released)}, against {_side(switch.paper)}."
    return " ".join(filter(None, (text, READINGS.get(finding.id))))
