"""The modality gap study: how large the gap is, what it is for, and what closing it does.

Everything is measured on *pairs*: one image and one of its texts from every item (connected component of the
relevance), drawn by seed, so that neither modality outnumbers the other. Interventions are fitted on the bank, their
parameters chosen by R@1 on validation, and reported once on test; feature sets without official splits are split
several times by seed, and queries are pooled with the original items as clusters. Where the question is about the
embeddings as they are (the gap, the loss along its direction), all pairs of a stored feature set are taken, and the
test pairs where there is an official split.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import scipy.sparse
import scipy.stats
import torch
from tqdm.auto import tqdm

from reprolib import ranking
from reprolib.errors import DataUnavailable, InputError
from reprolib.loaders import Split, datasets, identity_of, load_split
from reprolib.loaders.readers import groups_of
from reprolib.methods.interventions import INTERVENTIONS, Train, intervene
from reprolib.metrics import (
    gap_metrics,
    gap_per_dimension,
    group_metrics,
    hubness_of_counts,
    mixed_query_values,
    query_values,
)
from reprolib.metrics.statistics import Interval, holm, jackknife
from reprolib.models import find_model, load_embeddings
from reprolib.models.finetune import Tuning, can_be_tuned, embed_random, finetune, items_of, trained_temperature
from reprolib.ranking import Scorer
from reprolib.study.parameters import check
from reprolib.study.protocol import Protocol, Side, hubness_statistic, shown, words

DIRECTIONS = ("text->image", "image->text")
LOSSES = ("image->text", "text->image", None)  # None: the symmetric loss
FEATURE_SETS = ("coco-clip-500", "videoclip-100", "clasp-99")
STORED_TEMPERATURE = 0.01  # CLIP's, where a feature set does not say
SMALLEST_GROUP = 10
SHOWN_PAIRS = 150  # pairs in a picture of the clouds: more would hide each other
HALVED = (("trained", "dimension"), ("none", "random direction"))
RANKED = ("R@1", "R@5", "R@10", "mAP")  # with one relevant item, mAP is MRR


Statistic = Callable[[np.ndarray], dict[str, float]]


@dataclass(frozen=True)
class Part:
    """One replicate: the bank to fit on, and the pairs to choose parameters and to report on."""

    label: str
    bank: Split
    source: str
    validation: Split
    test: Split

    @cached_property
    def train(self) -> Train:
        """What interventions are fitted on, shared by all of them."""
        return Train(self.bank.image, self.bank.text, self.bank.relevance)


@dataclass(frozen=True)
class Measurement:
    """An intervention on the test pairs of every replicate, queries pooled.

    ``values`` are by direction, ``mixed`` by metric; ``statistics`` give the hubness metrics of a direction, or the gap
    (None), as a function of the pairs that count; ``groups`` holds the group metrics of all pairs and of each random
    half of them.
    """

    tests: list[Split]
    values: dict[str, dict[str, np.ndarray]]
    mixed: dict[str, np.ndarray]
    statistics: dict[str | None, Statistic]
    groups: list[dict[str, float]]


def pairs_of(split: Split, seed: int = 0, most: int | None = None) -> Split:
    """Return one image and one text relevant to it from each item (at most ``most``), drawn by ``seed``, in order."""
    rng = np.random.default_rng(seed)
    labels, _ = split.components()
    order = rng.permutation(len(labels))
    rows = np.sort(order[np.unique(labels[order], return_index=True)[1]])
    if most is not None and len(rows) > most:
        rows = np.sort(rng.permutation(rows)[:most])
    relevance = split.relevance[rows]
    columns = relevance.indices[rng.integers(relevance.indptr[:-1], relevance.indptr[1:])]
    own = scipy.sparse.eye_array(len(rows), dtype=bool, format="csr")
    return Split(split.image[rows], split.text[columns], own, split.image_ids[rows], split.text_ids[columns])


def losses(image: np.ndarray, text: np.ndarray, tau: float) -> dict[str | None, np.ndarray]:
    """Return the contrastive loss of every pair, float64 [n], by direction; None is the symmetric one.

    The per-query values behind ``reprolib.metrics.info_nce`` where row i pairs with row i. Embeddings are of unit
    length.
    """
    logits = torch.as_tensor(image).double() @ torch.as_tensor(text).double().T / tau
    own = logits.diagonal()
    one, other = ((logits.logsumexp(axis) - own).numpy() for axis in (1, 0))
    return {"image->text": one, "text->image": other, None: (one + other) / 2}


def over_seeds(found: Sequence[Mapping[str, float]]) -> dict[str, Interval]:
    """Return the mean over repetitions with different seeds, with t-intervals; without intervals for a single one."""

    def statistic(mask: np.ndarray) -> dict[str, float]:
        return {name: float(np.mean([f[name] for f in itertools.compress(found, mask)])) for name in found[0]}

    return jackknife(statistic, np.arange(len(found)), groups=len(found))


def delete_half(values: Sequence[float], level: float = 0.95) -> Interval:
    """Return a statistic of a sample, ``values[0]``, with its interval from random halves of the sample, the rest.

    The delete-d jackknife with d = n / 2 (Shao and Tu 1995, section 2.3), which unlike deleting little serves for
    statistics that jump, such as those of a clustering.
    """
    halves = np.asarray(values[1:])
    reach = scipy.stats.t.ppf((1 + level) / 2, len(halves) - 1) * halves.std(ddof=1)
    return Interval(float(values[0]), float(values[0] - reach), float(values[0] + reach))


def _units(split: Split) -> tuple[np.ndarray, np.ndarray]:
    return tuple(ranking.as_embeddings(rows, "embeddings").numpy() for rows in (split.image, split.text))


def _recall(split: Split, direction: str, device: str) -> np.ndarray:
    side = Side(split, direction, device)
    return side.hits(Scorer(side.queries, side.gallery))


def _axes(image: np.ndarray, text: np.ndarray) -> np.ndarray:
    """Return the principal axes of both modalities together as rows, leading first, from images towards texts."""
    rows = np.concatenate([image, text]).astype(np.float64)
    axes = np.linalg.eigh(np.cov(rows, rowvar=False))[1][:, ::-1].T
    return np.where(axes @ (text.mean(0) - image.mean(0)) < 0, -1, 1)[:, None] * axes


def _points(split: Split, view: str, seed: int, **about: Any) -> pd.DataFrame:
    """Return the two clouds in the plane: principal components of all rows, or t-SNE seeded with ``seed``."""
    image, text = _units(split)
    shown_rows = np.sort(np.random.default_rng(seed).permutation(len(image))[:SHOWN_PAIRS])
    rows = np.concatenate([image[shown_rows], text[shown_rows]]).astype(np.float64)
    if view == "PCA":
        places = (rows - rows.mean(0)) @ _axes(image, text)[:2].T
    else:
        from sklearn.manifold import TSNE

        perplexity = min(30, (len(rows) - 1) / 3)
        places = TSNE(random_state=seed, init="pca", perplexity=perplexity, max_iter=300).fit_transform(rows)
    return pd.DataFrame(
        {
            **about,
            "view": view,
            "modality": np.repeat(["image", "text"], len(shown_rows)),
            "pair": np.tile(shown_rows, 2),
            "x": places[:, 0].astype(np.float64),
            "y": places[:, 1].astype(np.float64),
        }
    )


@dataclass
class Study(Protocol):
    """The study on one dataset; every public method returns a table for the notebook and keeps its records.

    Parameters are those of the notebook's parameters cell, which documents them. Raises InputError for a name or a
    value that is not valid (with the nearest valid names) and DataUnavailable if the data is not at hand.
    """

    study: ClassVar[str] = "modality-gap"

    dataset: str = "glyphs"
    model: str | None = None
    embeddings: str | None = None
    interventions: Sequence[str] | None = None
    shifts: Sequence[float] = (-0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0)
    temperatures: Sequence[float] = (0.01, 0.02, 0.05, 0.1, 1.0)
    temperature: float | None = None
    n_random: int = 3
    n_seeds: int = 3
    tuned_part: str = "projections"
    steps: int = 100
    feature_sets: Sequence[str] = FEATURE_SETS
    n_pairs: int = 1000
    n_halves: int = 6
    bank_share: float = 0.2
    validation_share: float = 0.2
    n_splits: int = 5
    k: int = 10
    n_bootstrap: int = 2000
    n_permutations: int = 9999
    seed: int = 0
    device: str = "cpu"
    mirror: str | None = None
    rows: list[dict[str, Any]] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        self.interventions = list(INTERVENTIONS) if self.interventions is None else self.interventions
        for name in ("interventions", "shifts", "temperatures", "feature_sets"):
            setattr(self, name, list(getattr(self, name)))
        check({entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name != "rows"})
        for name in ("shifts", "temperatures"):
            if not getattr(self, name):
                raise InputError(f"parameter {name} is empty; name at least one")
        self.interventions = list(dict.fromkeys(["none", *self.interventions]))
        if self.interventions == ["none"]:
            raise InputError("parameter interventions names no intervention; name at least one besides none")
        self.shifts = sorted({0.0, *self.shifts})
        self.temperatures = sorted(set(self.temperatures))
        self.data = load_embeddings(
            self.dataset,
            self.model,
            embeddings=self.embeddings,
            bank_share=self.bank_share,
            validation_share=self.validation_share,
            n_splits=self.n_splits,
            seed=self.seed,
            device=self.device,
            mirror=self.mirror,
        )
        self.encoded = self.data.pictures is not None
        self.parts = [
            Part(
                r.label, r.bank, r.bank_source, *(pairs_of(s, self.seed, self.n_pairs) for s in (r.validation, r.test))
            )
            for r in self.data.replicates
        ]
        smallest = min(len(split.image) for part in self.parts for split in (part.validation, part.test))
        if smallest <= self.k:
            raise InputError(
                f"parameter k = {self.k} needs more than {self.k} pairs in every validation and test part; the "
                f"smallest has {smallest}"
            )
        self.clusters = np.concatenate([part.test.image_ids for part in self.parts])
        self.tuned: dict[str, list[dict[str, Any]]] = {}
        self._measured: dict[str, Measurement] = {}
        self._tuning: dict[float, list[dict[str, float]]] = {}

    # --- the data -----------------------------------------------------------------------------------------------

    @cached_property
    def whole(self) -> Split:
        """The pairs on which the embeddings are looked at as they are."""
        if self.encoded:
            return self.parts[0].test
        source = self.dataset if self.embeddings is None else Path(self.embeddings)
        return pairs_of(load_split(source, mirror=self.mirror), self.seed, self.n_pairs)

    @cached_property
    def trained(self) -> float:
        """The temperature that the model was trained to; of stored features, which do not say it, as assumed."""
        if self.temperature is not None:
            return self.temperature
        return trained_temperature(self.data.model) if self.encoded else STORED_TEMPERATURE

    @cached_property
    def random(self) -> list[Split]:
        """The same pairs from the model before training: one for each seed, or the stored twin, or none."""
        if self.encoded:
            items, files = items_of(self.data, self.whole), find_model(self.data.model)
            return [embed_random(items, files, self.seed + i, self.device) for i in range(self.n_random)]
        twin = f"{self.dataset}-random"
        if self.embeddings is not None or twin not in datasets():
            print("Random initialisation is left out: there is neither a model to initialise nor a stored twin.")
            return []
        try:
            return [pairs_of(load_split(twin, mirror=self.mirror), self.seed, self.n_pairs)]
        except DataUnavailable as error:
            print(f"Left out {twin}: {error}")
            return []

    def overview(self) -> pd.DataFrame:
        """Return the sizes of every part; splits of the same sizes share a row."""
        sizes = pd.DataFrame(
            [
                {
                    "fitted on": part.source,
                    "bank images": len(part.bank.image),
                    "bank texts": len(part.bank.text),
                    "validation pairs": len(part.validation.image),
                    "test pairs": len(part.test.image),
                    "pairs as they are": len(self.whole.image),
                    "temperature": self.trained,
                }
                for part in self.parts
            ]
        )
        return sizes.value_counts(sort=False).rename("splits").reset_index()

    # --- 1. the gap as it is ------------------------------------------------------------------------------------

    def gap(self) -> pd.DataFrame:
        """Measure the gap of the embeddings as they are, and of the model before training; return both side by side.

        Intervals: jackknife over pairs; for random initialisation over its seeds where there are several.
        """
        n = len(self.whole.image)
        for metric, found in self._gap_intervals(self.whole).items():
            self.record("gap", metric, found, n, method="none")
        if len(self.random) == 1:
            intervals = self._gap_intervals(self.random[0])
        else:
            intervals = (
                over_seeds([gap_metrics(s.image, s.text, seed=self.seed) for s in self.random]) if self.random else {}
            )
        for metric, found in intervals.items():
            self.record("gap", metric, found, n, method="none", model=f"{self.data.model}, random weights",
                        parameters={"seeds": len(self.random)})  # fmt: skip
        table = self.table("gap")
        table["weights"] = np.where(table["model"] == self.data.model, "trained", "random")
        return _side_by_side(table, "metric", "weights")

    def _gap_intervals(self, split: Split) -> dict[str, Interval]:
        def statistic(mask: np.ndarray) -> dict[str, float]:
            return gap_metrics(split.image[mask], split.text[mask], probe=False)

        probe = gap_metrics(split.image, split.text, seed=self.seed)["linear separability"]
        none = float("nan")  # a held-out accuracy: leaving pairs out also weakens the probe
        return jackknife(statistic, split.image_ids, seed=self.seed) | {
            "linear separability": Interval(probe, none, none)
        }

    def energy(self) -> pd.DataFrame:
        """Return the share of the squared gap per dimension and per principal axis, trained and (first) random.

        The basis "random direction" is what a gap without preference for any dimension would show.
        """
        parts = []
        for weights, split in (("trained", self.whole), *(("random", s) for s in self.random[:1])):
            gap = gap_per_dimension(split.image, split.text)
            for basis, signed in (("dimension", gap), ("principal axis", _axes(*_units(split)) @ gap)):
                share = signed**2 / max((gap**2).sum(), np.finfo(float).tiny)
                order = np.argsort(-share, kind="stable")
                parts.append(pd.DataFrame({
                    "weights": weights, "basis": basis, "rank": np.arange(1, len(gap) + 1), "index": order,
                    "gap": signed[order], "share": share[order], "cumulative": np.cumsum(share[order]),
                }))  # fmt: skip
        expected = random_shares(self.whole.image.shape[1])
        parts.append(pd.DataFrame({
            "weights": "none", "basis": "random direction", "rank": np.arange(1, len(expected) + 1),
            "share": expected, "cumulative": np.cumsum(expected),
        }))  # fmt: skip
        return pd.concat(parts, ignore_index=True)

    def clouds(self) -> pd.DataFrame:
        """Return the two clouds in the plane by PCA and by t-SNE, trained and random."""
        return self._clouds

    @cached_property
    def _clouds(self) -> pd.DataFrame:
        splits = [("trained", self.whole), *(("random", s) for s in self.random[:1])]
        return pd.concat(
            [_points(split, view, self.seed, set=self.data.name, weights=weights)
             for view, (weights, split) in itertools.product(("PCA", "t-SNE"), splits)], ignore_index=True,
        )  # fmt: skip

    def feature_clouds(self) -> pd.DataFrame:
        """Return the clouds of stored feature sets and their random twins by PCA; sets not at hand are left out."""
        parts, absent = [], []
        for name, twin in itertools.product(self.feature_sets, ("", "-random")):
            try:
                split = load_split(name + twin, mirror=self.mirror)
            except DataUnavailable:
                absent.append(name + twin)
                continue
            parts.append(_points(split, "PCA", self.seed, set=name, weights="random" if twin else "trained"))
        if absent:
            print(f"Left out, because not at hand (see `reprolib list datasets`): {', '.join(absent)}.")
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()

    def answer_gap(self) -> str:
        """Say in words how large the gap is, where it lives, and whether it is there before training."""
        rows = self.table("gap").set_index(["model", "metric"])
        energy = self.energy()
        bases = [energy[(energy["weights"] == w) & (energy["basis"] == b)]["cumulative"] for w, b in HALVED]
        half, even = (int((cumulative < 0.5).sum()) + 1 for cumulative in bases)
        distance, relative = (_said(rows.loc[self.data.model, metric]) for metric in ("L2M", "RMG"))
        text = (
            f"- **{self.data.name} with {self.data.model}**: the centroids are {distance} apart, RMG {relative}. Half "
            f"of the squared gap lies in {half} of {len(bases[0])} dimensions (a random direction: {even})."
        )
        if not self.random:
            return text + " What it was before training is not known here."
        before = rows.loc[f"{self.data.model}, random weights", "L2M"]
        after = rows.loc[self.data.model, "L2M"]
        return (
            f"{text} With random weights it is {_said(before)}: the gap is there before training"
            f"{_compared(before, after)}."
        )

    # --- 2. the loss along the gap ------------------------------------------------------------------------------

    def landscape(self) -> pd.DataFrame:
        """Shift the pairs along their own gap and report the contrastive loss at every temperature, L2M and R@1.

        The direction is that of the very pairs, as in the paper: this describes the loss and selects nothing.
        Intervals resample pairs as queries; the other pairs stay as negatives. Table "landscape difference" holds
        the loss at each shift minus the loss without, at the trained temperature.
        """
        image, text = _units(self.whole)
        bootstrap, n = self.bootstrap(self.whole.image_ids), len(image)
        taus = sorted({*self.temperatures, self.trained})
        base = losses(image, text, self.trained)
        for lam in tqdm(self.shifts, desc="shifts", leave=False):
            moved = tuple(rows.numpy() for rows in intervene("shift", image, text, lam=lam)(image, text))
            split = replace(self.whole, image=moved[0], text=moved[1])
            common: dict[str, Any] = {"method": "shift", "bank": "transductive: the pairs themselves"}
            none = float("nan")
            gap = Interval(float(np.linalg.norm(gap_per_dimension(*moved))), none, none)
            self.record("landscape", "L2M", gap, n, parameters={"lam": lam}, **common)
            for direction in DIRECTIONS:
                hits = _recall(split, direction, self.device)
                self.record("landscape", "R@1", bootstrap.mean(hits), n, direction=direction, parameters={"lam": lam},
                            **common)  # fmt: skip
            for tau in taus:
                for direction, values in losses(*moved, tau).items():
                    point = {"lam": lam, "tau": tau}
                    common |= {"direction": direction}
                    self.record("landscape", "InfoNCE", bootstrap.mean(values), n, parameters=point, **common)
                    if tau == self.trained and lam != 0:
                        found = bootstrap.mean(values - base[direction])
                        self.record("landscape difference", "InfoNCE difference", found, n, parameters=point,
                                    reference="none", **common)  # fmt: skip
        table = self.table("landscape")
        losses_at = table[[p.get("tau") == self.trained for p in table["parameters"]]]
        others = table[table["metric"] != "InfoNCE"]
        table = pd.concat([losses_at, others])
        table["lam"] = [p["lam"] for p in table["parameters"]]
        table["direction"] = table["direction"].fillna("symmetric").where(table["metric"] != "L2M", "")
        return table.pivot(index="lam", columns=["metric", "direction"], values="value")

    def minima(self) -> pd.DataFrame:
        """Return where along the shift each loss is least, per temperature."""
        table = self.table("landscape")
        table = table[table["metric"] == "InfoNCE"]
        table = table.assign(**{name: [p[name] for p in table["parameters"]] for name in ("lam", "tau")})
        table["direction"] = table["direction"].fillna("symmetric")
        least = table.loc[table.groupby(["tau", "direction"])["value"].idxmin()]
        return least.pivot(index="tau", columns="direction", values="lam")

    def answer_landscape(self) -> str:
        """Say in words whether the gap as it is minimises the loss at the trained temperature."""
        rows = self.table("landscape difference")
        lines = []
        for direction in LOSSES:
            here = rows[rows["direction"].isna() if direction is None else rows["direction"] == direction]
            best = here.loc[here["value"].idxmin()]
            where = f"{best['parameters']['lam']:g}"
            change = f"{best['value']:+.3f} ({best['ci_low']:+.3f} to {best['ci_high']:+.3f})"
            if best["value"] >= 0:
                clear = "clearly " if best["ci_low"] > 0 else ""
                verdict = (
                    f"the gap as it is is {clear}the minimum; the next best shift, λ = {where}, changes it by {change}"
                )
            else:
                clear = "clearly" if best["ci_high"] < 0 else "not clearly"
                towards = "smaller" if best["parameters"]["lam"] > 0 else "larger"
                verdict = f"the minimum is at λ = {where}, a {towards} gap: {change}, {clear} below the gap as it is"
            lines.append(
                f"- **{self.data.name}, InfoNCE {direction or 'symmetric'}, τ = {self.trained:.3g}**: {verdict}."
            )
        return "\n".join(lines)

    # --- 3. temperature -----------------------------------------------------------------------------------------

    def finetune(self) -> pd.DataFrame:
        """Fine-tune the model shortly at every temperature and seed; report gap and R@1 with intervals over seeds."""
        if not self.encoded:
            print("Fine-tuning is left out: stored features come without a model to tune.")
            return self.table("temperature")
        files = find_model(self.data.model)
        if not can_be_tuned(files):
            print(f"Fine-tuning is left out: {files.name} is no CLIP model, and only such are fine-tuned.")
            return self.table("temperature")
        train = items_of(self.data, pairs_of(self.parts[0].bank, self.seed))
        items = items_of(self.data, self.whole)
        jobs = list(itertools.product(self.temperatures, range(self.n_seeds)))
        for tau, number in tqdm(jobs, desc="fine-tuning", leave=False):
            tuning = Tuning(tau, self.seed + number, self.steps, self.tuned_part)
            tuned = finetune(train, items, files, tuning, self.device)
            found = {"L2M": float(np.linalg.norm(gap_per_dimension(tuned.image, tuned.text)))}
            found |= {direction: float(_recall(tuned, direction, self.device).mean()) for direction in DIRECTIONS}
            self._tuning.setdefault(tau, []).append(found)
        for tau, found in self._tuning.items():
            for name, interval in over_seeds(found).items():
                metric, direction = ("L2M", None) if name == "L2M" else ("R@1", name)
                point = {"tau": tau, "tuned": self.tuned_part, "steps": self.steps}
                self.record("temperature", metric, interval, len(found), direction=direction, parameters=point)
        if len(self._tuning) > 1:
            low, high, change = self._change()
            point = {"tau": high, "from": low, "tuned": self.tuned_part, "steps": self.steps}
            self.record("temperature difference", "L2M difference", change["L2M"], self.n_seeds, parameters=point)
        table = self.table("temperature")
        table["tau"] = [p["tau"] for p in table["parameters"]]
        table["metric"] = table["metric"].str.cat(table["direction"], sep=" ", na_rep="").str.strip()
        return _side_by_side(table, "tau", "metric")

    def _change(self) -> tuple[float, float, dict[str, Interval]]:
        """Return the lowest and the highest temperature, and what changes from the one to the other, over seeds."""
        low, high = min(self._tuning), max(self._tuning)
        pairs = zip(self._tuning[high], self._tuning[low], strict=True)
        return low, high, over_seeds([{name: one[name] - other[name] for name in one} for one, other in pairs])

    def answer_temperature(self) -> str:
        """Say in words how gap and R@1 depend on the temperature of a short fine-tune."""
        if len(self._tuning) < 2:
            return "- Not asked: it takes a model to tune and at least two temperatures."
        low, high, found = self._change()
        gap = found["L2M"]
        verdict = "no dependence is established"
        if gap.low > 0 or gap.high < 0:
            verdict = "the gap is smaller at the higher temperature" if gap.value < 0 else "the gap is larger there"
        recall = "; ".join(
            f"R@1 {d} {100 * found[d].value:+.1f} ({100 * found[d].low:+.1f} to {100 * found[d].high:+.1f}) points"
            for d in DIRECTIONS
        )
        change = f"{gap.value:+.3f} ({gap.low:+.3f} to {gap.high:+.3f} over {self.n_seeds} seeds)"
        return (
            f"- **{self.data.name}, {self.tuned_part} tuned for {self.steps} steps**: from τ = {low:g} to τ = {high:g} "
            f"L2M changes by {change}: {verdict}. {recall}."
        )

    # --- 4. and 5. interventions --------------------------------------------------------------------------------

    def _moved(self, part: Part, split: Split, method: str, parameters: Mapping[str, Any]) -> Split:
        image, text = intervene(method, part.train, **parameters)(split.image, split.text)
        return replace(split, image=image.numpy(), text=text.numpy())

    def tune(self) -> pd.DataFrame:
        """Choose every intervention's parameters by R@1 on validation, mean of both directions; ties to the first.

        An intervention that there are too few rows for, whatever its parameters, is left out with a sentence.
        """
        rows = []
        for method in tqdm(list(self.interventions), desc="tuning on validation", leave=False):
            try:
                chosen, recall, candidates = zip(*(self._choose(method, part) for part in self.parts), strict=True)
            except InputError as error:
                self.interventions.remove(method)
                if self.interventions == ["none"]:
                    raise InputError(f"no intervention fits these rows; {method}: {error}") from error
                print(f"Left out {method}: {error}.")
                continue
            self.tuned[method] = list(chosen)
            rows.append(
                {
                    "intervention": method,
                    "candidates": max(candidates),
                    "chosen": words(shown(chosen)),
                    "validation R@1": float(np.mean(recall)),
                }
            )
        return pd.DataFrame(rows)

    def _choose(self, method: str, part: Part) -> tuple[dict[str, Any], float, int]:
        """Return the parameters with the best R@1 on validation, this R@1, and how many were tried.

        Values that these rows are too few for are passed over; InputError if all are.
        """
        grid = INTERVENTIONS[method].grid
        found: list[tuple[float, dict[str, Any]]] = []
        refused = None
        for values in itertools.product(*grid.values()):
            parameters = dict(zip(grid, values, strict=True))
            try:
                moved = self._moved(part, part.validation, method, parameters)
            except InputError as error:
                refused = error
                continue
            recall = np.mean([_recall(moved, direction, self.device).mean() for direction in DIRECTIONS])
            found.append((float(recall), parameters))
        if not found:
            raise refused
        best = max(found, key=lambda each: each[0])
        return best[1], best[0], len(found)

    def measure(self, method: str) -> Measurement:
        """Apply the tuned intervention to the test pairs of every replicate, and rank, search and cluster them.

        Interventions that come to the same embeddings, such as a shift by 0 and none, share a measurement.
        """
        if method not in self._measured:
            jobs = zip(self.parts, self.tuned[method], strict=True)
            tests = [self._moved(part, part.test, method, chosen) for part, chosen in jobs]
            key = identity_of(*tests)
            if key not in self._measured:
                self._measured[key] = self._measure(tests)
            self._measured[method] = self._measured[key]
        return self._measured[method]

    def _measure(self, tests: list[Split]) -> Measurement:
        values, statistics = {}, {None: _remembered(_gap_of(tests))}
        for direction in DIRECTIONS:
            sides = [Side(test, direction, self.device) for test in tests]
            results = [ranking.rank(Scorer(s.queries, s.gallery), s.relevance, self.k) for s in sides]
            values[direction] = _pooled([query_values(result) for result in results])
            sizes = [len(side.gallery) for side in sides]
            occurrences = hubness_statistic([result.topk for result in results], sizes, hubness_of_counts)
            statistics[direction] = _remembered(occurrences)
        mixed = _pooled([mixed_query_values(test.image, test.text, k=self.k) for test in tests])
        return Measurement(tests, values, mixed, statistics, self._grouped(tests))

    def _labels(self, split: Split) -> np.ndarray:
        """Return the group of each pair, an empty text for those in groups that are too small."""
        groups = groups_of(self.data.name, items_of(self.data, split), self.mirror)
        _, found = list(groups.values())[-1]  # the coarsest
        _, inverse, counts = np.unique(found, return_inverse=True, return_counts=True)
        return np.where(counts[inverse] >= SMALLEST_GROUP, found, "")

    def _grouped(self, tests: Sequence[Split]) -> list[dict[str, float]]:
        """Return the group metrics of all pairs in groups and of random halves of them; empty without groups."""
        if self.data.pictures is None:
            return []
        every = [self._labels(test) for test in tests]
        if not all((labels != "").any() for labels in every):
            return []
        found = []
        for number in range(self.n_halves + 1):
            each = []
            for test, labels in zip(tests, every, strict=True):
                rows = np.flatnonzero(labels != "")
                if number:
                    rows = np.random.default_rng([self.seed, number]).permutation(rows)[: len(rows) // 2]
                given = labels[rows]
                clusters = len(np.unique(labels[labels != ""]))
                each.append(group_metrics(test.image[rows], test.text[rows], given, given, clusters=clusters,
                                          seed=self.seed + number))  # fmt: skip
            found.append({name: float(np.mean([e[name] for e in each])) for name in each[0]})
        return found

    def evaluate(self) -> pd.DataFrame:
        """Report every tuned intervention once on the test pairs, with 95 % intervals; return the main table.

        R@1 and its kind and mixed search: bootstrap over items; hubness and L2M: jackknife; groups: random halves.
        """
        bootstrap, n = self.bootstrap(self.clusters), len(self.clusters)
        for method in tqdm(self.interventions, desc="test", leave=False):
            found = self.measure(method)
            about = {"method": method, "parameters": self.tuned[method], "bank": self._bank(method)}
            for direction in DIRECTIONS:
                values = found.values[direction]
                intervals = {name: bootstrap.mean(values[name]) for name in RANKED}
                intervals |= jackknife(found.statistics[direction], self.clusters, seed=self.seed)
                for metric, interval in intervals.items():
                    self.record("main", metric, interval, n, direction=direction, **about)
            intervals = jackknife(found.statistics[None], self.clusters, seed=self.seed)
            each = [gap_metrics(test.image, test.text, probe=False) for test in found.tests]
            none = float("nan")
            for name in ("RMG", "cosine of pairs", "distribution gap"):
                intervals[name] = Interval(float(np.mean([e[name] for e in each])), none, none)
            intervals |= {name: bootstrap.mean(values) for name, values in found.mixed.items()}
            for name in found.groups[0] if found.groups else ():
                intervals[name] = delete_half([g[name] for g in found.groups])
            for metric, interval in intervals.items():
                self.record("main", metric, interval, n, **about)
        return self.table("main")

    def _bank(self, method: str) -> str:
        if method == "none":
            return "none"
        return "transductive: the pairs themselves" if INTERVENTIONS[method].transductive else self.parts[0].source

    def compare(self) -> pd.DataFrame:
        """Compare every intervention with ``none`` on the same pairs.

        Values per query have a paired permutation test, Holm within each metric and direction; differences in
        hubness, L2M and groups have intervals only.
        """
        base, others = self.measure("none"), self.interventions[1:]
        searched = [name for name in base.mixed if name.startswith(("nDCG", "share"))]
        for direction, metric in [*itertools.product(DIRECTIONS, ("R@1", "mAP")), *((None, name) for name in searched)]:
            found = []
            for method in others:
                one, reference = (
                    m.mixed[metric] if direction is None else m.values[direction][metric]
                    for m in (self.measure(method), base)
                )
                found.append(self.difference(one, reference, self.clusters))
            for method, (interval, p), corrected in zip(others, found, holm([p for _, p in found]), strict=True):
                self._differ(method, metric, interval, direction, p_value=p, p_holm=float(corrected))
        for method in others:
            one = self.measure(method)
            for direction in (*DIRECTIONS, None):
                change = _minus(one.statistics[direction], base.statistics[direction])
                for metric, interval in jackknife(change, self.clusters, seed=self.seed).items():
                    self._differ(method, metric, interval, direction)
            for name in base.groups[0] if base.groups else ():
                change = [a[name] - b[name] for a, b in zip(one.groups, base.groups, strict=True)]
                self._differ(method, name, delete_half(change), None)
        return self.table("difference")

    def _differ(self, method: str, metric: str, found: Interval, direction: str | None, **more: Any) -> None:
        self.record("difference", f"{metric} difference", found, len(self.clusters), direction=direction, method=method,
                    parameters=self.tuned[method], bank=self._bank(method), reference="none", **more)  # fmt: skip

    def _closing(self) -> list[str]:
        """Return the interventions that leave at most half of the centroid distance."""
        rows = self.table("main")
        left = rows[rows["metric"] == "L2M"].set_index("method")["value"]
        return [method for method in self.interventions[1:] if left[method] <= left["none"] / 2]

    def conclusion(self) -> str:
        """Say in words which interventions close the gap, and what they do to each kind of task."""
        rows = self.table("difference")
        closing = self._closing()
        named = ", ".join(f"`{name}`" for name in closing) or "none"
        lines = [f"- **{self.data.name}**: interventions that at least halve the distance of the centroids: {named}."]
        asked = [("R@1", d, f"R@1 {d}", 100) for d in DIRECTIONS]
        asked += [
            (f"nDCG@{self.k} mixed, {m}", None, f"mixed search from {m}, nDCG@{self.k}", 100)
            for m in ("texts", "images")
        ]
        asked += [("V-measure", None, "groups, V-measure", 1), ("ARI", None, "groups, adjusted Rand index", 1)]
        for metric, direction, title, scale in asked:
            here = rows[rows["metric"] == f"{metric} difference"]
            here = here[here["direction"].isna() if direction is None else here["direction"] == direction]
            if not here.empty:
                lines.append(f"- {title}: {_clear(here, scale)}.")
        if not self.measure("none").groups:
            lines.append("- Groups: left out, because nothing here says which items belong together.")
        return "\n".join(lines)

    def answer_hubness(self) -> str:
        """Say in words which interventions change hubness."""
        rows = self.table("difference")
        lines = []
        for direction in DIRECTIONS:
            here = rows[(rows["metric"] == "skewness difference") & (rows["direction"] == direction)]
            lines.append(
                f"- **{self.data.name}, {direction}**, skewness of the {self.k}-occurrence: {_clear(here, 1)}."
            )
        return "\n".join(lines)

    # --- artefacts ----------------------------------------------------------------------------------------------

    def per_query(self) -> pd.DataFrame:
        """Return rank, hits, average precision and mixed-gallery values of every query, per intervention."""
        parts = []
        for direction, method in itertools.product(DIRECTIONS, self.interventions):
            found, queries = self.measure(method), "texts" if direction == "text->image" else "images"
            ids = [p.test.text_ids if queries == "texts" else p.test.image_ids for p in self.parts]
            mixed = {name: values for name, values in found.mixed.items() if name.endswith(queries)}
            parts.append(pd.DataFrame({
                "direction": direction, "method": method,
                "replicate": np.repeat([p.label for p in self.parts], [len(i) for i in ids]),
                "query_id": np.concatenate(ids), "cluster": self.clusters, **found.values[direction],
                **{name.removesuffix(f", {queries}").replace(queries, "own modality"): v for name, v in mixed.items()},
            }))  # fmt: skip
        return pd.concat(parts, ignore_index=True)

    def save(self) -> Path:
        """Write all artefacts of the study into the run's folder and return it."""
        return super().save(per_query=self.per_query(), energy=self.energy(), clouds=self.clouds())


def random_shares(d: int) -> np.ndarray:
    """Return the squared entries of a random direction in ``d`` dimensions, largest first, as shares of their sum."""
    squares = scipy.stats.chi2.isf((np.arange(d) + 0.5) / d, 1)
    return squares / squares.sum()


def _pooled(parts: Iterable[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    parts = list(parts)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _gap_of(tests: Sequence[Split]) -> Statistic:
    """Return the distance of the centroids, mean of the replicates."""
    ends = np.cumsum([0] + [len(test.image) for test in tests])

    def statistic(mask: np.ndarray) -> dict[str, float]:
        found = []
        for test, start, stop in zip(tests, ends[:-1], ends[1:], strict=True):
            kept = mask[start:stop]
            found.append(np.linalg.norm(gap_per_dimension(test.image[kept], test.text[kept])))
        return {"L2M": float(np.mean(found))}

    return statistic


def _remembered(statistic: Statistic) -> Statistic:
    """Return ``statistic`` with a memory: every comparison leaves out the same pairs again."""
    known: dict[bytes, dict[str, float]] = {}

    def inner(mask: np.ndarray) -> dict[str, float]:
        key = mask.tobytes()
        if key not in known:
            known[key] = statistic(mask)
        return known[key]

    return inner


def _minus(one: Statistic, other: Statistic) -> Statistic:
    def statistic(mask: np.ndarray) -> dict[str, float]:
        first, second = one(mask), other(mask)
        return {name: first[name] - second[name] for name in first}

    return statistic


def _side_by_side(table: pd.DataFrame, index: str, columns: str) -> pd.DataFrame:
    """Return values and ends of intervals by ``index``, for each of ``columns``, in the order of the records."""
    ends = {"value": "value", "ci_low": "low", "ci_high": "high"}
    wide = table.rename(columns=ends).pivot(index=index, columns=columns, values=list(ends.values())).swaplevel(axis=1)
    order = [(name, end) for name in table[columns].unique() for end in ends.values()]
    return wide.loc[table[index].unique(), order]


def _said(row: Mapping[str, Any]) -> str:
    """Return "0.23 (0.21 to 0.25)" for a record."""
    ends = "" if pd.isna(row["ci_low"]) else f" ({row['ci_low']:.3f} to {row['ci_high']:.3f})"
    return f"{row['value']:.3f}{ends}"


def _compared(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    if before["ci_low"] > after["ci_high"]:
        return ", and training made it smaller"
    return ", and training made it larger" if before["ci_high"] < after["ci_low"] else ""


def _clear(rows: pd.DataFrame, scale: float) -> str:
    """Say which interventions are clearly above and below ``none``: by Holm's p where there is one, or the interval."""
    p = rows["p_holm"] if "p_holm" in rows else pd.Series(np.nan, rows.index)
    clear = np.where(p.notna(), p < 0.05, (rows["ci_low"] > 0) | (rows["ci_high"] < 0))
    form, unit = ("{:+.1f}", " points") if scale == 100 else ("{:+.2f}", "")
    said = []
    for word, chosen in (("higher", rows["value"] > 0), ("lower", rows["value"] < 0)):
        each = [
            f"`{row['method']}` ({form.format(scale * row['value'])}, {form.format(scale * row['ci_low'])} to "
            f"{form.format(scale * row['ci_high'])}{unit})"
            for row in rows[clear & chosen].sort_values("value", ascending=False).to_dict("records")
        ]
        said.append(f"{word} with {', '.join(each) or 'no intervention'}")
    return "; ".join(said)
