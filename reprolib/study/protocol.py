"""What the studies share: splits seen in a direction, records with intervals, paired comparisons, artefacts."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import scipy.sparse
from torch import Tensor

from reprolib import ranking
from reprolib.loaders import EmbeddingData, Split
from reprolib.methods import Bank
from reprolib.metrics import k_occurrence
from reprolib.metrics.statistics import ClusterBootstrap, Interval, permutation_test
from reprolib.ranking import Scorer
from reprolib.study import records

_HELD = 2**26  # entries of a float64 score matrix that may be kept for a grid search


def oriented(split: Split, direction: str) -> tuple[np.ndarray, np.ndarray, scipy.sparse.csr_array]:
    """Return queries, gallery and relevance [queries, gallery] of a split in a direction."""
    if direction == "text->image":
        return split.text, split.image, scipy.sparse.csr_array(split.relevance.T)
    return split.image, split.text, split.relevance


def clusters_of(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Return the cluster of every image and of every text: the id of the first image of its component."""
    by_image, by_text = split.components()
    first = np.zeros(by_image.max() + 1, dtype=np.int64)
    first[by_image[::-1]] = np.arange(len(by_image))[::-1]
    return split.image_ids[first[by_image]], split.image_ids[first[by_text]]


def hubness_statistic(
    top: Sequence[np.ndarray], sizes: Sequence[int], describe: Callable[[np.ndarray], dict[str, float]]
) -> Callable[[np.ndarray], dict[str, float]]:
    """Return what ``jackknife`` takes: the mean over replicates of what ``describe`` says of their k-occurrences.

    ``top`` holds the top-k lists [n, k] of each replicate, ``sizes`` their galleries; queries are pooled in order.
    """
    ends = np.cumsum([0] + [len(lists) for lists in top])

    def statistic(mask: np.ndarray) -> dict[str, float]:
        found = [
            describe(k_occurrence(lists[mask[start:stop]], size))
            for lists, size, start, stop in zip(top, sizes, ends[:-1], ends[1:], strict=True)
        ]
        return {name: float(np.mean([f[name] for f in found])) for name in found[0]}

    return statistic


def subset(split: Split, share: float, seed: int) -> Split:
    """Return a random share of a split by component: items that belong together stay together."""
    return split.take(share_of_images(split, share, seed))


def share_of_images(split: Split, share: float, seed: int) -> np.ndarray:
    """Return the indices of the images of ``subset``, int64."""
    labels, _ = split.components()
    names = np.unique(labels)
    chosen = np.random.default_rng(seed).permutation(names)[: max(1, round(share * len(names)))]
    return np.flatnonzero(np.isin(labels, chosen))


def banks_of(split: Split, direction: str, device: str, images: np.ndarray | None = None) -> tuple[Bank, Bank]:
    """Return the query bank and the gallery bank of a split, or of some ``images`` of it with all that is relevant.

    Large ones whose embeddings are mapped stay in their file.
    """
    texts = None if images is None else np.unique(split.relevance[images].indices)
    image = ranking.as_rows(split.image, "image bank", device=device, index=images)
    text = ranking.as_rows(split.text, "text bank", device=device, index=texts)
    queries, gallery = (text, image) if direction == "text->image" else (image, text)
    return Bank(queries, "query bank"), Bank(gallery, "gallery bank")


class Side:
    """One split seen in one direction: unit-length queries and gallery, relevance, ids and clusters."""

    def __init__(self, split: Split, direction: str, device: str) -> None:
        queries, gallery, self.relevance = oriented(split, direction)
        self.queries = ranking.as_embeddings(queries, f"{direction} queries", device=device)
        self.gallery = ranking.as_embeddings(gallery, f"{direction} gallery", device=device)
        ids = (split.text_ids, split.image_ids) if direction == "text->image" else (split.image_ids, split.text_ids)
        self.query_ids, self.gallery_ids = ids
        self.clusters = clusters_of(split)[1 if direction == "text->image" else 0]

    @cached_property
    def _raw(self) -> Tensor:
        return self.queries.double() @ self.gallery.double().T

    def best(self, scorer: Scorer) -> np.ndarray:
        """Return the best gallery item of every query, int64 [n]; ties by index, as everywhere.

        Scorers of these very embeddings share one product, which is what makes a grid search cheap.
        """
        shared = scorer.queries is self.queries and scorer.gallery is self.gallery
        if not shared or self.queries.shape[0] * self.gallery.shape[0] > _HELD:
            return ranking.topk(scorer, 1)[:, 0]
        best = []
        for rows in ranking.blocks(*scorer.shape, 2**20):  # small enough to stay in cache
            scores = self._raw[rows]
            if scorer.transform is not None:
                scores = scorer.transformed(scores.float(), rows)
            elif scorer.bias is not None:
                scores = scores - (scorer.bias if scorer.state is None else scorer.bias[scorer.state[rows]])
            best.append((scores if scorer.wide else scores.float()).cpu().numpy().argmax(1))
        return np.concatenate(best)

    def hits(self, scorer: Scorer) -> np.ndarray:
        """Return for every query whether its best item is relevant, float64 [n]."""
        best = self.best(scorer)
        return np.asarray(self.relevance[np.arange(len(best)), best], dtype=np.float64).ravel()


class Protocol:
    """Base of a study: it keeps the records, and every number of every study gets its interval here.

    A study sets ``study`` (its name), ``data`` and ``rows``, and has the parameters ``seed``, ``n_bootstrap`` and
    ``n_permutations``.
    """

    study: ClassVar[str]
    data: EmbeddingData
    rows: list[dict[str, Any]]
    seed: int
    n_bootstrap: int
    n_permutations: int

    def record(
        self, table: str, metric: str, found: Interval, n: int, *, direction: str | None = None,
        method: str | None = None, parameters: Any = (), bank: str | None = None, **more: Any,
    ) -> None:  # fmt: skip
        """Keep one number of the study; ``parameters`` is a mapping, or one per replicate (see ``shown``)."""
        self.rows.append(
            {
                "study": self.study,
                "dataset": self.data.name,
                "model": self.data.model,
                "direction": direction,
                "method": method,
                "parameters": shown(parameters),
                "bank": bank,
                "metric": metric,
                "value": found.value,
                "ci_low": found.low,
                "ci_high": found.high,
                "n": n,
                "table": table,
            }
            | more
        )

    def table(self, *tables: str) -> pd.DataFrame:
        """Return the records so far (of these tables), one row each."""
        return pd.DataFrame([row for row in self.rows if not tables or row["table"] in tables])

    def bootstrap(self, clusters: np.ndarray) -> ClusterBootstrap:
        """Return the resamples for these cluster labels [n], which every number on the same queries shares."""
        known: dict[bytes, ClusterBootstrap] = self.__dict__.setdefault("_resamples", {})
        key = np.asarray(clusters, dtype=str).tobytes()
        if key not in known:
            known[key] = ClusterBootstrap(clusters, seed=self.seed, resamples=self.n_bootstrap)
        return known[key]

    def difference(self, one: np.ndarray, other: np.ndarray, clusters: np.ndarray) -> tuple[Interval, float]:
        """Return the mean of ``one - other`` [n] with its interval, and the p-value of the paired permutation test."""
        values = one - other
        p = permutation_test(values, clusters, seed=self.seed, permutations=self.n_permutations)
        return self.bootstrap(clusters).mean(values), p

    def show(self, name: str, drawing: Any) -> Any:
        """Save a figure under ``figures/`` of the run and return it for display."""
        drawing.save(records.run_directory(self.study) / "figures", name)
        return drawing

    def save(self, **frames: pd.DataFrame) -> Path:
        """Write records, identities and ``frames`` (as parquet, by name) into the run's folder and return it."""
        folder = records.run_directory(self.study)
        records.save(self.rows, folder)
        for name, frame in frames.items():
            frame.to_parquet(folder / f"{name}.parquet")
        (folder / "identities.json").write_text(
            json.dumps({f"{self.data.name} with {self.data.model}": self.data.identity})
        )
        return folder


def shown(parameters: Any) -> dict[str, Any]:
    """Return one mapping for the parameters of all replicates: a value where they agree, else the list of them."""
    if isinstance(parameters, Mapping) or not parameters:
        return dict(parameters)
    return {
        name: parameters[0][name] if len({p[name] for p in parameters}) == 1 else [p[name] for p in parameters]
        for name in parameters[0]
    }


def words(parameters: Mapping[str, Any]) -> str:
    """Return parameters as they are printed: "beta 20, k 10"."""
    return ", ".join(f"{name} {value}" for name, value in parameters.items()) or "-"
