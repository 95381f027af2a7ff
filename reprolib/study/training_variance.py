"""The training-variance study: how much recall moves with seed, loss, initialisation and protocol.

Small heads on frozen features are trained many times (``reprolib.models.heads``). One configuration is the base; every
factor is changed alone, with the same seeds, and some are crossed to split the variance. What a paper claims as an
improvement is laid over what seeds do alone.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import scipy.stats
import torch
import yaml
from tqdm.auto import tqdm

from reprolib import ranking
from reprolib.errors import InputError, nearest
from reprolib.metrics import query_values
from reprolib.metrics.statistics import Interval, holm
from reprolib.metrics.variance import component_intervals, detectable, expected_range, spread
from reprolib.models.corpus import Part, load_corpus
from reprolib.models.heads import DIRECTIONS, ENCODERS, PC2, Head, Run, runs, steps_of, words
from reprolib.models.losses import LOSSES, loss_named
from reprolib.paths import manifests
from reprolib.ranking import Scorer
from reprolib.study.ledger import claims
from reprolib.study.parameters import check
from reprolib.study.protocol import Protocol

PAPER = "where-does-the-improvement-come-from"
CONTROL = "infonce-k"  # what the losses with several partners are compared with: it sees the same batches
VARIANTS = ("sdm", "one-to-k", "transport", "intra-modal")
CLAIMED = ("seed", "loss", "initialisation")  # the factors that the paper names
SELECTIONS = ("best on validation", "last", "best on test")
FULL = ("infonce-fixed", "intra-modal", "mlp", "gru", "transformer")  # losses and encoders of the full grid only
ROBUST = (PC2, "hardest-negative", "infonce")
SEEDS = (2, 3, 5, 10, 20, 50)  # numbers of seeds that the detectable improvement is computed for
PAIRS = 2000  # of texts whose similarity is compared with a reference
_POINT = 100


def seed_tables(name: str = PAPER) -> pd.DataFrame:
    """Return published results of several seeds, a row per model, seed and direction, as fractions.

    Columns: model, seed (from 1), direction, R@1, claimed (NaN where nothing is), repeats (the earlier seed of the
    model with the same numbers in every column, else 0).
    """
    stored = yaml.safe_load((manifests() / "seeds" / f"{name}.yaml").read_text(encoding="utf-8"))
    places = [stored["columns"].index(f"{direction} R@1") for direction in DIRECTIONS]
    rows = []
    for model in stored["models"]:
        table = [tuple(row) for row in model["seeds"]]
        for seed, row in enumerate(table, 1):
            first = table.index(row) + 1
            for direction, place, claimed in zip(DIRECTIONS, places, model.get("claimed", [np.nan] * 2), strict=True):
                rows.append(
                    {
                        "model": model["name"], "seed": seed, "direction": direction, "R@1": row[place] / _POINT,
                        "claimed": claimed / _POINT, "repeats": first if first < seed else 0,
                    }
                )  # fmt: skip
    return pd.DataFrame(rows)


def published() -> dict[str, float]:
    """Return the claimed improvements in R@1 of other papers by the id of their claim; no unverified or quoted ones."""
    return {
        name: claim.claimed.effect
        for name, claim in claims().items()
        if claim.kind == "improvement" and claim.metric == "R@1" and claim.expect == "higher"
        and claim.provenance in ("paper", "code") and not name.startswith(PAPER)
    }  # fmt: skip


def read_sts(path: str | Path) -> tuple[list[str], list[str], np.ndarray]:
    """Return first sentences, second sentences and scores float64 [n] of a file of semantic textual similarity.

    Either a table with the header sentence1, sentence2, score (.csv or .tsv), or the tab-separated format of STS-B
    without one, where score, first and second sentence are the columns 5 to 7. Raises InputError, naming the line.
    """
    path = Path(path).expanduser()
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            comma = path.suffix == ".csv"
            lines = list(csv.reader(stream) if comma else csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as a table of sentence pairs: {error}") from error
    names = ("sentence1", "sentence2", "score")
    headed = bool(lines) and set(names) <= set(lines[0])
    places = [lines[0].index(name) for name in names] if headed else [5, 6, 4]
    found: list[tuple[str, str, float]] = []
    for number, line in enumerate(lines[headed:], 1 + headed):
        try:
            found.append((line[places[0]], line[places[1]], float(line[places[2]])))
        except (IndexError, ValueError) as error:
            raise InputError(f"{path}, line {number}: there are no two sentences with a score as a number") from error
    if len(found) < 3:
        raise InputError(f"{path} holds {len(found)} pairs of sentences; valid is at least 3")
    first, second, score = zip(*found, strict=True)
    return list(first), list(second), np.array(score)


def overlap_pairs(texts: Sequence[str], count: int, seed: int) -> tuple[list[str], list[str], np.ndarray]:
    """Return up to ``count`` pairs of different texts that share a word, with the share of words they have in common.

    The share is Jaccard's: a stand-in for a human judgement, which it is not.
    """
    rng = np.random.default_rng(seed)
    bags = [frozenset(words(text)) for text in texts]
    by_word: dict[str, list[int]] = {}
    for row, bag in enumerate(bags):
        for word in bag:
            by_word.setdefault(word, []).append(row)
    pairs = set()
    for row in rng.integers(len(bags), size=2 * count):
        near = sorted({other for word in bags[row] for other in by_word[word]} - {row})
        if near and len(pairs) < count:
            other = near[rng.integers(len(near))]
            pairs.add((min(row, other), max(row, other)))
    chosen = sorted((int(a), int(b)) for a, b in pairs if texts[a] != texts[b])
    scores = [len(bags[a] & bags[b]) / len(bags[a] | bags[b]) for a, b in chosen]
    return [texts[a] for a, _ in chosen], [texts[b] for _, b in chosen], np.array(scores)


@dataclass
class Study(Protocol):
    """The study on one dataset; every public method returns a table for the notebook and keeps its records.

    Parameters are those of the notebook's parameters cell, which documents them. Raises InputError for a name or a
    value that is not valid (with the nearest valid names) and DataUnavailable if the data is not at hand.
    """

    study: ClassVar[str] = "training-variance"

    dataset: str = "glyphs"
    model: str | None = None
    embeddings: str | None = None
    features: str = "pixels"
    full: bool = False
    losses: Sequence[str] | None = None
    encoders: Sequence[str] | None = None
    noises: Sequence[float] = (0.0, 0.4)
    keeps: Sequence[float] = (0.5,)
    keep_noise: float = 0.4
    n_seeds: int = 10
    epochs: int = 4
    dimension: int = 32
    batch: int = 128
    learning_rate: float = 1e-2
    views: int = 4
    per_item: int = 1
    sts: str | None = None
    n_bootstrap: int = 2000
    n_permutations: int = 9999
    seed: int = 0
    device: str = "cpu"
    mirror: str | None = None
    rows: list[dict[str, Any]] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        check({entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name != "rows"})
        self.losses = list(self.losses or [name for name in LOSSES if self.full or name not in FULL])
        for name in self.losses:
            loss_named(name)
        if self.n_seeds < 3:
            raise InputError(f"n_seeds = {self.n_seeds} gives no spread worth its name; valid is at least 3")
        if not all(0 <= noise < 1 for noise in self.noises) or not all(0 < keep < 1 for keep in self.keeps):
            raise InputError(f"noises {self.noises} and keeps {self.keeps} are shares: valid is 0 to 1, keeps above 0")
        if self.batch < 16 or self.batch % 8:
            raise InputError(
                f"batch {self.batch} is not valid: it is halved too, so valid is a multiple of 8 from 16 on"
            )
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:  # torch built without it raises the latter
            raise InputError(f"device {self.device} is not available here: {str(error).splitlines()[0]}") from error
        self.data = load_corpus(
            self.dataset, self.model, embeddings=self.embeddings, features=self.features, views=self.views,
            per_item=self.per_item, seed=self.seed, device=self.device, mirror=self.mirror,
        )  # fmt: skip
        self.encoders = self._encoders()
        base = "linear" if "linear" in self.encoders else self.encoders[0]
        self.base = Head(
            encoder=base, dimension=self.dimension, batch=self.batch, learning_rate=self.learning_rate,
            epochs=self.epochs,
        )  # fmt: skip
        self.found: dict[Head, Run] = {}
        self._clusters = np.arange(self.n_seeds)

    def _encoders(self) -> list[str]:
        """Return the text encoders that the data has an input for, those asked for first."""
        part = self.data.train
        able = [name for name in ENCODERS if (part.text if name == "frozen" else part.texts) is not None]
        wanted = list(self.encoders or [name for name in able if self.full or name not in FULL])
        for name in wanted:
            if name not in able:
                raise nearest(name, able, f"encoder of {self.data.name}")
        return wanted

    # --- what is trained ----------------------------------------------------------------------------------------

    @cached_property
    def levels(self) -> dict[str, dict[str, Head]]:
        """The levels of every factor by name, each changed alone; the base is the level of its own value."""
        b, full = self.base, self.full
        values: dict[str, Sequence[Any]] = {
            "loss": self.losses,
            "encoder": self.encoders,
            "batch": (b.batch // 2, b.batch, *([2 * b.batch] if full else ())),
            "learning_rate": (b.learning_rate / 3, b.learning_rate, *([3 * b.learning_rate] if full else ())),
            "dimension": (max(16, b.dimension // 32 * 16), b.dimension, *([2 * b.dimension] if full else ())),
            "initialisation": ("random", "svd") if b.encoder != "frozen" else ("random",),
            "normalisation": ("l2", "standard", *(["none"] if full else ())),
        }
        found = {
            factor: {str(round(value, 6) if isinstance(value, float) else value): replace(b, **{factor: value})
                     for value in dict.fromkeys([getattr(b, factor), *options])}
            for factor, options in values.items()
        }  # fmt: skip
        hardest = replace(b, loss="hardest-negative")
        starts = dict.fromkeys([0, *([b.epochs // 4] if full else ()), b.epochs // 2])
        found["hard_from"] = {f"epoch {start}": replace(hardest, hard_from=start) for start in starts}
        if full and "gru" in self.encoders:
            gru = replace(b, encoder="gru")
            found["tokens"] = {kind: replace(gru, tokens=kind) for kind in ("words", "characters")}
        return {factor: heads for factor, heads in found.items() if len(set(heads.values())) > 1}

    @cached_property
    def crossed(self) -> dict[str, list[Any]]:
        """The factors of the full factorial with their levels, seeds apart."""
        losses = [name for name in ("infonce", "sum-of-hinges", *(("hardest-negative",) if self.full else ()))]
        found = {"loss": losses, "initialisation": list(self.levels.get("initialisation", ())),
                 "normalisation": ["l2", "standard", *(["none"] if self.full else [])]}  # fmt: skip
        return {factor: values for factor, values in found.items() if len(values) > 1}

    @cached_property
    def noisy(self) -> dict[tuple[str, float], Head]:
        """Heads by loss and share of mismatched pairs."""
        return {
            (loss, noise): replace(self.base, loss=loss, noise=noise)
            for loss in ROBUST for noise in sorted(self.noises)
        }  # fmt: skip

    @cached_property
    def curated(self) -> dict[tuple[str, float], Head]:
        """Heads by selection ("all", "score", "random") and kept share."""
        noisy = replace(self.base, noise=self.keep_noise)
        kept = {
            (how, keep): replace(noisy, keep=keep, selection=how)
            for how in ("score", "random") for keep in sorted(self.keeps, reverse=True)
        }  # fmt: skip
        return {("all", 1.0): noisy} | kept if kept else {}

    def seeded(self, head: Head) -> list[Head]:
        """Return ``head`` with every seed of the study."""
        return [replace(head, seed=self.seed + number) for number in range(self.n_seeds)]

    @cached_property
    def reference(self) -> tuple[str, list[str], list[str], np.ndarray] | None:
        """Pairs of sentences with a similarity to agree with, and what it is called."""
        if self.sts is not None:
            return "STS", *read_sts(self.sts)
        if self.data.whole.texts is None:
            return None
        first, second, scores = overlap_pairs(self.data.whole.texts, PAIRS, self.seed)
        return ("word overlap", first, second, scores) if len(np.unique(scores)) > 2 else None

    def overview(self) -> pd.DataFrame:
        """Return the sizes of every part, and how many runs and steps the study takes."""
        parts = {"train": self.data.train, "validation": self.data.validation, "test": self.data.test,
                 "whole test": self.data.whole}  # fmt: skip
        rows = [
            {
                "part": name,
                "images": part.relevance.shape[0],
                "texts": part.relevance.shape[1],
                "pairs": part.relevance.nnz,
            }
            for name, part in parts.items()
        ]
        frame = pd.DataFrame(rows)
        steps = sum(steps_of(self.data, head) for head in self.heads)
        return frame.assign(features=self.data.model, runs=len(self.heads), steps=steps)

    @cached_property
    def heads(self) -> list[Head]:
        """Every run of the study, each once."""
        single = [head for heads in self.levels.values() for head in heads.values()]
        mixed = [replace(self.base, **dict(zip(self.crossed, values, strict=True)))
                 for values in itertools.product(*self.crossed.values())]  # fmt: skip
        every = [self.base, *single, *mixed, *self.noisy.values(), *self.curated.values()]
        return [one for head in dict.fromkeys(every) for one in self.seeded(head)]

    def share_of_heads(self, share: int, shares: int) -> list[Head]:
        """Return every ``shares``-th configuration with all its seeds, from number ``share`` (0 is the first)."""
        if not 0 <= share < shares:
            raise InputError(f"share {share} of {shares}: valid is 0 to {shares - 1}")
        configurations = [self.heads[at : at + self.n_seeds] for at in range(0, len(self.heads), self.n_seeds)]
        return [head for heads in configurations[share::shares] for head in heads]

    def train(self, share: int = 0, shares: int = 1) -> pd.DataFrame:
        """Train whatever is not in the cache, with a bar that shows the time left; return R@1 of every run.

        With ``shares``, one share of the configurations only: a study of all of them then finds them in the cache.
        """
        wanted = self.share_of_heads(share, shares)
        detailed = [one for head in self.levels["encoder"].values() for one in self.seeded(head)] \
            if "encoder" in self.levels else self.seeded(self.base)  # fmt: skip
        parts = ([head for head in wanted if (head in set(detailed)) == more] for more in (True, False))
        probe = [] if self.reference is None else [*self.reference[1], *self.reference[2]]
        total = sum(steps_of(self.data, head) for head in wanted)
        with tqdm(total=total, desc="training", unit="step", unit_scale=True, leave=False) as bar:
            for heads, more in zip(parts, ({"embeddings": True, "probe": probe}, {}), strict=True):
                trained = runs(self.data, heads, device=self.device, tick=bar.update, **more)
                self.found |= dict(zip(heads, trained, strict=True))
        return self.frame()

    def frame(self) -> pd.DataFrame:
        """Return R@1 of every run under every selection, one row a direction."""
        rows = [
            asdict(head) | {"direction": direction, "selection": how, "R@1": float(selected(run, how)[place])}
            for head, run in self.found.items()
            for place, direction in enumerate(DIRECTIONS)
            for how in SELECTIONS
        ]
        return pd.DataFrame(rows)

    def values(self, head: Head, how: str = SELECTIONS[0]) -> np.ndarray:
        """Return R@1 of ``head`` float64 [seeds, directions] at the checkpoint that was selected."""
        return np.array([selected(self.found[one], how) for one in self.seeded(head)])

    # --- records ------------------------------------------------------------------------------------------------

    def _mean(self, table: str, metric: str, values: np.ndarray, method: str, direction: str | None, **about: Any):
        found = self.bootstrap(self._clusters).mean(values)
        self.record(table, metric, found, len(values), direction=direction, method=method, parameters=about)

    def _both(self, table: str, values: np.ndarray, method: str, **about: Any) -> None:
        for place, direction in enumerate(DIRECTIONS):
            self._mean(table, "R@1", values[:, place], method, direction, **about)

    def _against(
        self, table: str, one: np.ndarray, other: np.ndarray, method: str, reference: str, **about: Any
    ) -> None:
        """Record the paired difference over seeds in both directions."""
        for place, direction in enumerate(DIRECTIONS):
            found, p = self.difference(one[:, place], other[:, place], self._clusters)
            self.record(
                table, "R@1 difference", found, len(one), direction=direction, method=method, parameters=about,
                reference=reference, p_value=p,
            )  # fmt: skip

    def _holm(self, table: str) -> pd.DataFrame:
        rows = [row for row in self.rows if row["table"] == table]
        for row, corrected in zip(rows, holm([row["p_value"] for row in rows]), strict=True):
            row["p_holm"] = float(corrected)
        return self.table(table)

    # --- the protocol -------------------------------------------------------------------------------------------

    def factors(self) -> pd.DataFrame:
        """Record every level of every factor, and its difference to the first level, seed by seed."""
        for factor, heads in self.levels.items():
            (first, base), *others = heads.items()
            self._both("factors", self.values(base), first, factor=factor)
            for level, head in others:
                self._both("factors", self.values(head), level, factor=factor)
                self._against("effect", self.values(head), self.values(base), level, first, factor=factor)
        return self._holm("effect")

    def losses_compared(self) -> pd.DataFrame:
        """Record each loss against the one that sees the same batches without its idea."""
        heads = self.levels.get("loss", {})
        pairs = [(name, CONTROL) for name in VARIANTS] + [("hardest-negative", "sum-of-hinges")]
        for name, reference in pairs:
            if name in heads and reference in heads:
                self._against("loss", self.values(heads[name]), self.values(heads[reference]), name, reference)
        return self._holm("loss")

    def ranges(self) -> pd.DataFrame:
        """Record how far recall moves over the levels of each factor, and over the seeds, and beyond what is published.

        Of a factor: the largest mean minus the smallest, with its bootstrap interval. Of the seeds: the expected range
        of as many normal values as there are seeds, with the chi-square interval of their standard deviation. Table
        "excess" subtracts the median published improvement.
        """
        typical = float(np.median(list(published().values())))
        weights = self.bootstrap(self._clusters).weights / self.n_seeds
        for place, direction in enumerate(DIRECTIONS):
            found = {}
            sd, stretch = spread(self.values(self.base)[:, place]), expected_range(self.n_seeds)
            found["seed"] = Interval(*(stretch * end for end in (sd.value, sd.low, sd.high)))
            for factor, heads in self.levels.items():
                means = np.stack([self.values(head)[:, place] for head in heads.values()], axis=1)
                low, high = np.quantile(np.ptp(weights @ means, axis=1), [0.025, 0.975])
                found[factor] = Interval(float(np.ptp(means.mean(0))), float(low), float(high))
            for factor, interval in found.items():
                self.record("range", "R@1 difference", interval, self.n_seeds, direction=direction, method=factor)
                if factor in CLAIMED:
                    beyond = Interval(*(end - typical for end in (interval.value, interval.low, interval.high)))
                    self.record(
                        "excess", "R@1 difference", beyond, self.n_seeds, direction=direction, method=factor,
                        parameters={"published median": round(typical, 5)}, reference="published improvements",
                    )  # fmt: skip
        return self.table("range")

    def decomposition(self) -> pd.DataFrame:
        """Record the variance components of the full factorial, in squared points, and their shares."""
        names = ["seed", *self.crossed]
        shape = (self.n_seeds, *(len(values) for values in self.crossed.values()))
        cells = [self.values(replace(self.base, **dict(zip(self.crossed, values, strict=True))))
                 for values in itertools.product(*self.crossed.values())]  # fmt: skip
        for place, direction in enumerate(DIRECTIONS):
            values = _POINT * np.stack([cell[:, place] for cell in cells], axis=1).reshape(shape)
            found = component_intervals(values, names)
            total = sum(max(0.0, part.value) for part in found.values())
            for name, part in found.items():
                share = max(0.0, part.value) / total if total else float("nan")
                self.record(
                    "components", "variance", part, values.size, direction=direction, method=name,
                    parameters={"share": share},
                )  # fmt: skip
        return self.table("components")

    def power(self) -> pd.DataFrame:
        """Record the smallest improvement that n seeds show, for the spread measured here and those published."""
        spreads = {(self.data.name, direction): spread(self.values(self.base)[:, place])
                   for place, direction in enumerate(DIRECTIONS)}  # fmt: skip
        for (model, direction), rows in seed_tables().groupby(["model", "direction"], sort=False):
            spreads[model, direction] = spread(rows.loc[rows["repeats"] == 0, "R@1"].to_numpy())
        of_one = {n: detectable(1.0, n) for n in SEEDS}  # proportional to the spread
        for (source, direction), sd in spreads.items():
            for n in SEEDS:
                ends = (end * of_one[n] for end in (sd.value, sd.low, sd.high))
                self.record(
                    "detectable", "R@1 difference", Interval(*ends), n, direction=direction, method=source,
                    parameters={"seeds": n, "sd": sd.value},
                )  # fmt: skip
        return self.table("detectable")

    def protocols(self) -> pd.DataFrame:
        """Record the base under other ways to evaluate the same runs: partners, folds, ties, selection."""
        whole = self.data.whole
        one, folds = whole.thinned(1), whole.folds(5)
        found: dict[str, list[list[float]]] = {}
        for head in self.seeded(self.base):
            run = self.found[head]
            ties = _both_ways(run, whole, whole)
            found.setdefault("all partners", []).append([values["R@1"] for values in ties])
            for rule in ("optimistic", "pessimistic"):
                found.setdefault(f"ties {rule}", []).append([values[f"R@1 {rule}"] for values in ties])
            found.setdefault("one partner", []).append([v["R@1"] for v in _both_ways(run, one, whole)])
            parts = [[v["R@1"] for v in _both_ways(run, fold, whole)] for fold in folds]
            found.setdefault("five folds", []).append(list(np.mean(parts, axis=0)))
        arrays = {name: np.array(values) for name, values in found.items()}
        first = arrays.pop("all partners")
        self._both("protocol", first, "all partners")
        for name, values in arrays.items():
            self._both("protocol", values, name)
            self._against("protocol difference", values, first, name, "all partners")
        chosen = {how: self.values(self.base, how) for how in SELECTIONS}
        for how, values in chosen.items():
            self._both("selection", values, how)
        for how in SELECTIONS[1:]:
            self._against("selection difference", chosen[how], chosen[SELECTIONS[0]], how, SELECTIONS[0])
        return self.table("protocol", "selection")

    def noise(self) -> pd.DataFrame:
        """Record training on mismatched pairs: plain losses, and the variant made for it against its plain form."""
        for (loss, noise), head in self.noisy.items():
            self._both("noise", self.values(head), loss, noise=noise)
            if loss == PC2 and noise:
                plain = self.noisy["hardest-negative", noise]
                self._against("robust", self.values(head), self.values(plain), PC2, "hardest-negative", noise=noise)
        return self.table("noise")

    def curation(self) -> pd.DataFrame:
        """Record training on kept shares of the pairs; the share that is compared is chosen on validation."""
        for (how, keep), head in self.curated.items():
            self._both("curation", self.values(head), how, keep=keep, noise=self.keep_noise)
        scored = {keep: head for (how, keep), head in self.curated.items() if how == "score"}
        if not scored:
            return pd.DataFrame()
        best = max(scored, key=lambda keep: self._validation(scored[keep]))
        chosen, about = self.values(scored[best]), {"keep": best, "noise": self.keep_noise}
        for name in ("all", "random"):
            other = self.curated["all", 1.0] if name == "all" else self.curated["random", best]
            self._against("filtered", chosen, self.values(other), "score", name, **about)
        return self.table("curation")

    def _validation(self, head: Head) -> float:
        return float(np.mean([self.found[one].validation.sum(1).max() for one in self.seeded(head)]))

    def text_quality(self) -> pd.DataFrame:
        """Record how the similarity of text embeddings agrees with the reference (Spearman), by text encoder."""
        if self.reference is None:
            return pd.DataFrame()
        name, first, _, scores = self.reference
        for level, head in self.levels.get("encoder", {"base": self.base}).items():
            every = [self.found[one].probe for one in self.seeded(head)]
            if not all(len(probe) for probe in every):
                continue  # frozen features of texts that the corpus does not hold
            cosines = [(probe[: len(first)] * probe[len(first) :]).sum(1) for probe in every]
            agreed = np.array([scipy.stats.spearmanr(cosine, scores).statistic for cosine in cosines])
            self._mean("text quality", f"Spearman with {name}", agreed, level, "text->text", pairs=len(scores))
            self._mean("text quality", "R@1", self.values(head)[:, 1], level, "text->image")
        return self.table("text quality")

    def replayed(self) -> pd.DataFrame:
        """Record the spread of the published seeds without the rows that repeat an earlier one; say which do."""
        told = []
        for (model, direction), rows in seed_tables().groupby(["model", "direction"], sort=False):
            kept, repeats = rows[rows["repeats"] == 0], rows[rows["repeats"] > 0]
            sd = spread(kept["R@1"].to_numpy())
            again = ", ".join(f"{row.seed} = {row.repeats}" for row in repeats.itertuples())
            told.append(
                {
                    "model": model, "direction": direction, "claimed": rows["claimed"].iloc[0], "seeds": len(kept),
                    "mean": kept["R@1"].mean(), "mean as published": rows["R@1"].mean(), "sd": sd.value,
                    "range": np.ptp(kept["R@1"]), "repeated rows": again or "-",
                }
            )  # fmt: skip
            self.rows.append(
                {
                    "study": self.study, "dataset": "flickr30k", "model": model, "direction": direction,
                    "method": "published seeds", "parameters": {"repeated rows": again or None}, "bank": None,
                    "metric": "R@1 standard deviation", "value": sd.value, "ci_low": sd.low, "ci_high": sd.high,
                    "n": len(kept), "table": "replay",
                }
            )  # fmt: skip
        return pd.DataFrame(told)

    # --- in words -----------------------------------------------------------------------------------------------

    def conclusion(self) -> str:
        """Say in words what moves recall, and how that compares with published improvements."""
        claimed = np.array(sorted(published().values()))
        lines = []
        for direction in DIRECTIONS:
            moved = sorted(self._rows("range", direction), key=lambda row: -row["value"])
            told = ", ".join(f"{row['method'].replace('_', ' ')} {_points(row)}" for row in moved)
            lines.append(f"**{direction.replace('->', ' → ')}**, R@1 moves by points over: {told}.")
            here = {row["parameters"]["seeds"]: row for row in self._rows("detectable", direction)
                    if row["method"] == self.data.name}  # fmt: skip
            hidden = {n: int((claimed < here[n]["value"]).sum()) for n in (3, 10)}
            lines.append(
                f"Three seeds each show differences from {_POINT * here[3]['value']:.1f} points on, ten from "
                f"{_POINT * here[10]['value']:.1f}: {hidden[3]} and {hidden[10]} of {len(claimed)} published "
                "improvements are smaller."
            )
            shares = {row["method"]: row["parameters"]["share"] for row in self._rows("components", direction)}
            told = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
            lines.append(f"Share of the variance of the factorial: {told}.")
            peek = next(r for r in self._rows("selection difference", direction) if r["method"] == "best on test")
            lines.append(
                f"Choosing the checkpoint on the test split instead of validation buys {_points(peek)} points."
            )
        return "\n\n".join(lines)

    def answer(self) -> str:
        """Say in words what noise and curation did."""
        told = []
        for row in self.rows:
            if row["table"] in ("robust", "filtered"):
                about = ", ".join(f"{name} {value:.0%}" for name, value in row["parameters"].items())
                told.append(
                    f"- {row['direction'].replace('->', ' → ')}, `{row['method']}` against `{row['reference']}` "
                    f"({about}): {_points(row)} points."
                )
        return "\n".join(told) or "Nothing was trained on mismatched or filtered pairs."

    def _rows(self, table: str, direction: str) -> list[dict[str, Any]]:
        return [row for row in self.rows if row["table"] == table and row["direction"] == direction]

    def distributions(self) -> pd.DataFrame:
        """Return R@1 of every published seed and of every seed of the base, for the figure; columns as seed_tables."""
        here = [
            {"model": f"{self.data.name}, base", "seed": number + 1, "direction": direction, "R@1": value,
             "claimed": np.nan, "repeats": 0}
            for place, direction in enumerate(DIRECTIONS)
            for number, value in enumerate(self.values(self.base)[:, place])
        ]  # fmt: skip
        return pd.concat([seed_tables(), pd.DataFrame(here)], ignore_index=True)

    def save(self) -> Path:
        """Write all artefacts of the study into the run's folder and return it."""
        return super().save(runs=self.frame(), seeds=self.distributions())


def trained(
    *,
    share: int = 0,
    shares: int = 1,
    dataset: str = "glyphs",
    features: str = "pixels",
    full: bool = True,
    n_seeds: int = 10,
    epochs: int = 4,
    dimension: int = 32,
    batch: int = 128,
    learning_rate: float = 1e-2,
    views: int = 4,
    per_item: int = 1,
    seed: int = 0,
    device: str = "cpu",
) -> list[dict[str, Any]]:
    """Train a share of the configurations of the study into the cache; return R@1 of each, a point of a sweep.

    ``reprolib.study.training_variance:trained`` with share 0 to shares - 1 does the training of the full grid in
    parts. The study with the same parameters then only evaluates.
    """
    study = Study(
        dataset=dataset, features=features, full=full, n_seeds=n_seeds, epochs=epochs, dimension=dimension, batch=batch,
        learning_rate=learning_rate, views=views, per_item=per_item, seed=seed, device=device,
    )  # fmt: skip
    study.train(share, shares)
    for head in study.share_of_heads(share, shares)[::n_seeds]:
        about = {name: value for name, value in asdict(head).items() if name != "seed"}
        study._both("trained", study.values(head), head.loss, **about)
    return study.rows


def selected(run: Run, how: str) -> np.ndarray:
    """Return the test R@1 [directions] of the last checkpoint, or of that with the best sum of both directions."""
    if how == "last":
        return run.test[-1]
    return run.test[(run.test if how == "best on test" else run.validation).sum(1).argmax()]


def _both_ways(run: Run, part: Part, whole: Part) -> list[Mapping[str, float]]:
    """Return the metrics of a part of the whole test part in both directions, ties by index, first and last."""
    rows = [
        torch.from_numpy(side[_places(ids, wanted)])
        for side, ids, wanted in (
            (run.image, whole.image_ids, part.image_ids),
            (run.text, whole.text_ids, part.text_ids),
        )
    ]
    both = ranking.rank_both(Scorer(*rows), part.relevance, 0)
    return [{name: float(v.mean()) for name, v in query_values(one, (1,)).items()} for one in both]


def _places(ids: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    place = {name: row for row, name in enumerate(ids)}
    return np.array([place[name] for name in wanted])


def _points(row: Mapping[str, Any]) -> str:
    value, low, high = (f"{_POINT * row[name]:.1f}".replace("-", "−") for name in ("value", "ci_low", "ci_high"))
    return f"{value} ({low} to {high})"
