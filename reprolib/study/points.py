"""Grid points: small pieces of a study as functions of parameters, for sweeps that need no notebook.

A point returns records. To add one: a function under ``@point("name")`` with keyword parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import scipy.sparse

from reprolib import ranking
from reprolib.errors import InputError
from reprolib.loaders import EmbeddingData
from reprolib.methods import fit
from reprolib.methods.base import CATALOGUE
from reprolib.methods.export import faiss_index, index_topk
from reprolib.metrics import hubness_of_counts, k_occurrence, query_values
from reprolib.metrics.approximation import hubness_differences, places_found
from reprolib.metrics.statistics import ClusterBootstrap
from reprolib.models import load_embeddings
from reprolib.ranking import Scorer
from reprolib.study.protocol import Side, banks_of

POINTS: dict[str, Callable[..., list[dict[str, Any]]]] = {}


def point(name: str) -> Callable[[Callable[..., list[dict[str, Any]]]], Callable[..., list[dict[str, Any]]]]:
    """Enter a function of keyword parameters that returns records."""

    def enter(function: Callable[..., list[dict[str, Any]]]) -> Callable[..., list[dict[str, Any]]]:
        POINTS[name] = function
        return function

    return enter


def _fitted(
    data: EmbeddingData, direction: str, method: str, settings: Mapping[str, Any], device: str
) -> Iterator[tuple[Side, Scorer]]:
    """Yield the test part of every split with the correction fitted to it."""
    for replicate in data.replicates:
        side = Side(replicate.test, direction, device)
        banks = dict(zip(("query_bank", "gallery_bank"), banks_of(replicate.bank, direction, device), strict=True))
        needed = {name: banks[name] for name in CATALOGUE[method].needs}
        yield side, fit(method, side.queries, side.gallery, **needed, **settings)


@point("correction")
def correction(
    *,
    dataset: str = "glyphs",
    model: str | None = None,
    embeddings: str | None = None,
    direction: str = "text->image",
    method: str = "is",
    settings: Mapping[str, Any] = {},
    bank_share: float = 0.2,
    bank_source: str = "train",
    k: int = 10,
    n_splits: int = 5,
    n_bootstrap: int = 2000,
    seed: int = 0,
    device: str = "cpu",
) -> list[dict[str, Any]]:
    """Return R@1, R@5, R@10, MRR with intervals, and the skewness, of one correction on the test splits.

    ``settings`` are the parameters of the method; nothing is tuned.
    """
    data = load_embeddings(
        dataset, model, embeddings=embeddings, bank_share=bank_share, bank_source=bank_source, n_splits=n_splits,
        seed=seed, device=device,
    )  # fmt: skip
    values, clusters, skewness = [], [], []
    for side, scorer in _fitted(data, direction, method, settings, device):
        result = ranking.rank(scorer, side.relevance, k)
        values.append(query_values(result))
        clusters.append(side.clusters)
        skewness.append(hubness_of_counts(k_occurrence(result.topk, len(side.gallery)))["skewness"])
    bootstrap = ClusterBootstrap(np.concatenate(clusters), seed=seed, resamples=n_bootstrap)
    common = {
        "study": "correction", "dataset": data.name, "model": data.model, "direction": direction, "method": method,
        "parameters": dict(settings), "bank": data.replicates[0].bank_source, "table": "main",
    }  # fmt: skip
    found = {}
    for name in ("R@1", "R@5", "R@10", "MRR"):
        pooled = np.concatenate([each[name] for each in values])
        found[name] = bootstrap.mean(pooled)
    rows = [
        common | {"metric": name, "value": each.value, "ci_low": each.low, "ci_high": each.high, "n": len(pooled)}
        for name, each in found.items()
    ]
    return [*rows, common | {"metric": "skewness", "value": float(np.mean(skewness)), "n": len(pooled)}]


@point("approximate-search")
def approximate_search(
    *,
    dataset: str = "glyphs",
    model: str | None = None,
    embeddings: str | None = None,
    direction: str = "text->image",
    method: str = "is",
    settings: Mapping[str, Any] = {},
    bank_share: float = 0.2,
    bank_source: str = "train",
    kind: str = "hnsw",
    metric: str = "ip",
    nprobe: int | None = None,
    ef_search: int | None = None,
    k: int = 10,
    n_splits: int = 5,
    n_bootstrap: int = 2000,
    seed: int = 0,
    device: str = "cpu",
) -> list[dict[str, Any]]:
    """Return what an approximate index does to a correction on the test splits: recall@k, R@1 and hubness.

    ``kind`` and ``metric`` are those of ``faiss_index``; ``nprobe`` (of ``ivf``) and ``ef_search`` (of ``hnsw``) its
    effort, by default what ``faiss_index`` sets. The tables "exact", "approximate" and "difference" hold the same
    metrics with exact search, with the index, and the second less the first. Nothing is tuned.
    """
    for name, value, owner in (("nprobe", nprobe, "ivf"), ("ef_search", ef_search, "hnsw")):
        if value is not None and (kind != owner or value < 1):
            raise InputError(
                f"{name} = {value} is for an index of the kind {owner}, and at least 1; the kind is {kind}"
            )
    data = load_embeddings(
        dataset, model, embeddings=embeddings, bank_share=bank_share, bank_source=bank_source, n_splits=n_splits,
        seed=seed, device=device,
    )  # fmt: skip
    lists, hits = {"exact": [], "approximate": []}, {"exact": [], "approximate": []}
    clusters, sizes = [], []
    for side, scorer in _fitted(data, direction, method, settings, device):
        index, queries = faiss_index(scorer, kind, metric=metric, seed=seed)
        if nprobe is not None:
            index.nprobe = nprobe
        if ef_search is not None:
            index.hnsw.efSearch = ef_search
        for table, top in (("exact", ranking.topk(scorer, k)), ("approximate", index_topk(index, queries, k))):
            lists[table].append(top)
            hits[table].append(_first_is_relevant(top, side.relevance))
        clusters.append(side.clusters)
        sizes.append(len(side.gallery))
    pooled = np.concatenate(clusters)
    bootstrap = ClusterBootstrap(pooled, seed=seed, resamples=n_bootstrap)
    exact, approximate = (np.concatenate(hits[table]) for table in ("exact", "approximate"))
    recall = [places_found(*pair).mean(1) for pair in zip(lists["exact"], lists["approximate"], strict=True)]
    tables = hubness_differences(lists["exact"], lists["approximate"], sizes, pooled, seed=seed)
    for table, values in (("exact", exact), ("approximate", approximate), ("difference", approximate - exact)):
        tables[table]["R@1"] = bootstrap.mean(values)
    tables["approximate"][f"recall@{k}"] = bootstrap.mean(np.concatenate(recall))
    effort = {"nprobe": nprobe, "ef_search": ef_search}
    common = {
        "study": "approximate-search", "dataset": data.name, "model": data.model, "direction": direction,
        "method": method, "bank": data.replicates[0].bank_source, "n": len(pooled),
        "parameters": {**settings, "kind": kind, "metric": metric, "k": k}
        | {name: value for name, value in effort.items() if value is not None},
    }  # fmt: skip
    return [
        common
        | {"table": table, "metric": name, "value": each.value, "ci_low": each.low, "ci_high": each.high}
        | ({"reference": "exact"} if table == "difference" else {})
        for table, found in tables.items()
        for name, each in found.items()
    ]


def _first_is_relevant(top: np.ndarray, relevance: scipy.sparse.csr_array) -> np.ndarray:
    """Return whether the first item of every list [n, k] is relevant, float64 [n]; -1 is not."""
    hit = np.asarray(relevance[np.arange(len(top)), top[:, 0]], dtype=np.float64).ravel()
    return np.where(top[:, 0] >= 0, hit, 0.0)
