"""What one would take from a library today: metrics of caption to image from embeddings, as its documentation says.

``python -m tests.benchmarks.libraries WORKLOAD.npz NAME QUERIES`` measures one of ``LIBRARIES``, or "ours", in a fresh
process and prints seconds and the peak of the resident set above what was resident before, in bytes, as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import scipy.sparse
import torch

from reprolib import ranking
from reprolib.metrics.hubness import k_occurrence
from reprolib.metrics.retrieval import KS, metrics_of_ranking
from reprolib.ranking import Scorer
from tests.benchmarks import naive
from tests.benchmarks.measure import peak
from tests.benchmarks.workload import TINY, Workload, make

Relevance = scipy.sparse.csr_array
Found = dict[str, Any]  # R@1, R@5, R@10, MRR, mAP, and "k-occurrence" int64 [gallery], as far as there are any
K = naive.K


def ours(queries: np.ndarray, gallery: np.ndarray, relevance: Relevance) -> Found:
    result = ranking.rank(Scorer(torch.from_numpy(queries), torch.from_numpy(gallery)), relevance, K)
    return metrics_of_ranking(result) | {"k-occurrence": k_occurrence(result.topk, len(gallery))}


def numpy_sort(queries: np.ndarray, gallery: np.ndarray, relevance: Relevance) -> Found:
    """Sort the whole matrix; for one relevant item per query, whose mAP is its MRR."""
    ranks, counts = naive.ranks(queries @ gallery.T, relevance.indices[:, None])
    found: Found = {f"R@{k}": float((ranks <= k).mean()) for k in KS}
    return found | {"MRR": float((1 / ranks).mean()), "mAP": float((1 / ranks).mean()), "k-occurrence": counts}


def torchmetrics(queries: np.ndarray, gallery: np.ndarray, relevance: Relevance) -> Found:
    """A ``MetricCollection``, whose members share the stored scores.

    Version 1.9 drops relevant items whose score is not above 0 from MRR and mAP; so all scores are moved above it.
    """
    from torchmetrics import MetricCollection
    from torchmetrics.retrieval import RetrievalHitRate, RetrievalMAP, RetrievalMRR

    metrics = MetricCollection(
        {**{f"R@{k}": RetrievalHitRate(top_k=k) for k in KS}, "MRR": RetrievalMRR(), "mAP": RetrievalMAP()}
    )
    scores = (torch.from_numpy(queries) @ torch.from_numpy(gallery).T).add_(2)
    indexes = torch.arange(len(queries))[:, None].expand_as(scores)
    metrics.update(scores, torch.from_numpy(relevance.toarray()), indexes=indexes)
    return {name: float(value) for name, value in metrics.compute().items()}


def _dictionaries(
    queries: np.ndarray, gallery: np.ndarray, relevance: Relevance
) -> tuple[dict[str, dict[str, int]], dict[str, dict[str, float]]]:
    """Return judgements and a run. TREC puts the last name first among equal scores, so the first item has it."""
    items = [f"d{len(gallery) - 1 - item:07d}" for item in range(len(gallery))]
    parts = np.split(relevance.indices, relevance.indptr[1:-1])
    judged = {f"q{query:07d}": {items[item]: 1 for item in part} for query, part in enumerate(parts)}
    scores = (queries @ gallery.T).tolist()
    return judged, {query: dict(zip(items, row, strict=True)) for query, row in zip(judged, scores, strict=True)}


def ranx(queries: np.ndarray, gallery: np.ndarray, relevance: Relevance) -> Found:
    from ranx import Qrels, Run, evaluate

    judged, run = _dictionaries(queries, gallery, relevance)
    names = {**{f"R@{k}": f"hit_rate@{k}" for k in KS}, "MRR": "mrr", "mAP": "map"}
    found = evaluate(Qrels(judged), Run(run), list(names.values()))
    return {ours: float(found[theirs]) for ours, theirs in names.items()}


def pytrec_eval(queries: np.ndarray, gallery: np.ndarray, relevance: Relevance) -> Found:
    from pytrec_eval import RelevanceEvaluator

    judged, run = _dictionaries(queries, gallery, relevance)
    names = {**{f"R@{k}": f"success_{k}" for k in KS}, "MRR": "recip_rank", "mAP": "map"}
    each = RelevanceEvaluator(judged, {"success", "recip_rank", "map"}).evaluate(run)
    return {ours: float(np.mean([values[theirs] for values in each.values()])) for ours, theirs in names.items()}


def sklearn_metrics(queries: np.ndarray, gallery: np.ndarray, relevance: Relevance) -> Found:
    """R@K by ``top_k_accuracy_score``, for one relevant item per query; mAP (then MRR too) by LRAP."""
    from sklearn.metrics import label_ranking_average_precision_score, top_k_accuracy_score

    scores, found = queries @ gallery.T, {}
    if relevance.nnz == len(queries):
        labels = np.arange(len(gallery))
        found = {f"R@{k}": float(top_k_accuracy_score(relevance.indices, scores, k=k, labels=labels)) for k in KS}
    found["mAP"] = float(label_ranking_average_precision_score(relevance, scores))
    return found | ({"MRR": found["mAP"]} if relevance.nnz == len(queries) else {})


def sklearn_neighbours(queries: np.ndarray, gallery: np.ndarray, relevance: Relevance) -> Found:
    """R@K and k-occurrence by ``NearestNeighbors``, brute force, by cosine; it knows no rank beyond the k-th."""
    from sklearn.neighbors import NearestNeighbors

    top = NearestNeighbors(n_neighbors=K, algorithm="brute", metric="cosine").fit(gallery)
    top = top.kneighbors(queries, return_distance=False)
    hits = np.asarray(relevance[np.arange(len(queries))[:, None], top].toarray(), dtype=bool)
    found: Found = {f"R@{k}": float(hits[:, :k].any(1).mean()) for k in KS}
    return found | {"k-occurrence": np.bincount(top.ravel(), minlength=len(gallery))}


@dataclass(frozen=True)
class Library:
    """A way to the numbers: its function, what must be importable, and at how many queries it is measured."""

    run: Callable[[np.ndarray, np.ndarray, Relevance], Found]
    package: str
    queries: int
    gives: str


EVERY = "R@K, MRR, mAP"
LIBRARIES = {
    "NumPy, full sort": Library(numpy_sort, "numpy", 25_000, f"{EVERY}, k-occurrence"),
    "torchmetrics": Library(torchmetrics, "torchmetrics", 5_000, EVERY),
    "ranx": Library(ranx, "ranx", 5_000, EVERY),
    "pytrec_eval": Library(pytrec_eval, "pytrec_eval", 5_000, EVERY),
    "scikit-learn, metrics": Library(sklearn_metrics, "sklearn", 25_000, EVERY),
    "scikit-learn, NearestNeighbors": Library(sklearn_neighbours, "sklearn", 25_000, "R@K, k-occurrence"),
}


def once(path: str, name: str, queries: int) -> dict[str, float]:
    """Return seconds and the peak above what was resident, of the first ``queries`` captions against all images."""
    function = ours if name == "ours" else LIBRARIES[name].run
    small = make(TINY)
    function(small.captions, small.images, small.relevance)  # loads libraries and compiles what they compile
    workload = Workload.load(Path(path))
    captions, images, relevance = workload.captions[:queries], workload.images, workload.relevance[:queries]
    del workload
    resident = psutil.Process().memory_info().rss
    start = time.perf_counter()
    function(captions, images, relevance)
    return {"seconds": time.perf_counter() - start, "peak": max(0, peak() - resident)}


if __name__ == "__main__":
    json.dump(once(sys.argv[1], sys.argv[2], int(sys.argv[3])), sys.stdout)
