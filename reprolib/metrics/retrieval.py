"""Retrieval metrics from counted ranks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from reprolib import ranking
from reprolib.errors import InputError
from reprolib.ranking import ArrayLike, Ranking, Relevance, Scorer

KS = (1, 5, 10)


def as_scorer(
    queries: ArrayLike,
    gallery: ArrayLike,
    scores: Scorer | ArrayLike | None = None,
    *,
    normalize: bool = True,
    device: str | None = None,
) -> Scorer:
    """Return what ranks ``gallery`` [m, d] for ``queries`` [n, d].

    ``scores`` may be a fitted correction (``reprolib.methods.fit``), which is returned as it is; a score matrix
    [n, m] (float; its entries are taken as float32 canonical scores); or None for the inner products of the
    embeddings, L2-normalised first unless ``normalize=False``.
    """
    if isinstance(scores, Scorer):
        return scores
    if scores is None:
        return Scorer(
            ranking.as_embeddings(queries, "queries", normalize=normalize, device=device),
            ranking.as_embeddings(gallery, "gallery", normalize=normalize, device=device),
        )
    matrix = torch.as_tensor(ranking.for_torch(scores), dtype=torch.float32, device=device)
    shape = (len(queries), len(gallery))
    if tuple(matrix.shape) != shape:
        raise InputError(f"scores have shape {tuple(matrix.shape)}, expected {shape} (queries, gallery items)")
    if bool(matrix.isnan().any()):
        raise InputError("scores hold NaN; every score must be a number")
    nothing = [torch.zeros(n, 1, device=matrix.device) for n in shape]
    return Scorer(*nothing, transform=lambda _, rows: matrix[rows].clone())


def query_values(result: Ranking, ks: Sequence[int] = KS) -> dict[str, np.ndarray]:
    """Return the per-query values behind ``retrieval_metrics``: one float64 array [n_queries] per metric.

    ``rank`` is that of the best-ranked relevant item (1 = best) under the tie rule; ``rank optimistic`` and
    ``rank pessimistic`` place it before and after everything non-relevant that ties with it. ``mAP@R`` and
    ``R-precision`` are those of ``at_r``.
    """
    start = result.relevance.indptr[:-1]
    counts = np.diff(result.relevance.indptr)
    owner = np.repeat(np.arange(len(counts)), counts)
    rank = result.rank
    best = np.minimum.reduceat(rank, start)
    optimistic = 1 + np.minimum.reduceat(result.above, start)
    top_score = np.maximum.reduceat(result.score, start)
    at_top = result.score == top_score[owner]
    tied = np.maximum.reduceat(np.where(at_top, result.tied, 0), start)
    relevant_tied = np.add.reduceat(at_top.astype(np.int64), start) - 1
    pessimistic = optimistic + tied - relevant_tied
    values: dict[str, np.ndarray] = {}
    for k in ks:
        values[f"R@{k}"] = best <= k
        values[f"R@{k} optimistic"] = optimistic <= k
        values[f"R@{k} pessimistic"] = pessimistic <= k
    order = np.lexsort((rank, owner))
    hit_number = np.arange(len(rank)) - np.repeat(start, counts) + 1
    values["rank"] = best
    values["rank optimistic"] = optimistic
    values["rank pessimistic"] = pessimistic
    values["MRR"] = 1.0 / best
    values["mAP"] = np.add.reduceat(hit_number / rank[order], start) / counts
    values |= at_r(result)
    return {name: np.asarray(value, dtype=np.float64) for name, value in values.items()}


def at_r(result: Ranking, depth: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Return ``mAP@R`` and ``R-precision`` per query, float64 [n_queries], with R the number of its relevant items.

    ``R-precision`` is the share of relevant items among the first R. ``mAP@R`` sums the precision at every hit within
    the first R (``depth`` int [n_queries], if given, says how far it looks instead) and divides by R (Musgrave et al.,
    ECCV 2020). These are what ECCV Caption (arXiv 2204.03359) reports where many items are relevant:
    naver-ai/eccv-caption at 0be8d41, eccv_caption/_metrics.py lines 159-203.
    """
    start, counts = result.relevance.indptr[:-1], np.diff(result.relevance.indptr)
    owner = np.repeat(np.arange(len(counts)), counts)
    rank = result.rank[np.lexsort((result.rank, owner))]  # ascending within each query
    precision = (np.arange(len(rank)) - np.repeat(start, counts) + 1) / rank
    within = np.where(rank <= (counts if depth is None else depth)[owner], precision, 0.0)
    hits = np.add.reduceat((rank <= counts[owner]).astype(np.int64), start)
    return {"mAP@R": np.add.reduceat(within, start) / counts, "R-precision": hits / counts}


def metrics_of_ranking(result: Ranking, ks: Sequence[int] = KS) -> dict[str, float]:
    """Return the metrics of ``retrieval_metrics`` for a ranking that is already at hand."""
    values = query_values(result, ks)
    metrics = {name: float(v.mean()) for name, v in values.items() if not name.startswith("rank")}
    metrics["median rank"] = float(np.median(values["rank"]))
    metrics["mean rank"] = float(values["rank"].mean())
    return metrics


def retrieval_metrics(
    queries: ArrayLike,
    gallery: ArrayLike,
    relevance: Relevance,
    *,
    scores: Scorer | ArrayLike | None = None,
    ks: Sequence[int] = KS,
    normalize: bool = True,
    per_query: bool = False,
    block_bytes: int = ranking.BLOCK_BYTES,
) -> dict[str, float] | tuple[dict[str, float], dict[str, np.ndarray]]:
    """Retrieve ``gallery`` [m, d] for ``queries`` [n, d] and return a mapping of metric name to float.

    ``R@K`` in [0, 1]: share of queries with a relevant item among the first K (with several relevant items this is
    TREC's Success@K, trec_eval ``success_K``; the cross-modal literature calls it Recall@K), each with its
    ``optimistic`` and ``pessimistic`` bound over the order of ties; ``median rank`` and ``mean rank`` of the
    best-ranked relevant item (1 = best); ``MRR`` (trec_eval ``recip_rank``); ``mAP`` over the full ranking
    (trec_eval ``map``); ``mAP@R`` and ``R-precision`` (``at_r``). Ties break by gallery index.

    ``relevance``: boolean matrix [n, m], sparse matrix, or list of n index arrays. ``scores``: see ``as_scorer``.
    ``per_query=True`` returns also the per-query arrays (``query_values``). Raises InputError for bad embeddings
    (which row), differing widths, and queries without a relevant item.
    """
    scorer = as_scorer(queries, gallery, scores, normalize=normalize)
    result = ranking.rank(scorer, relevance, 0, block_bytes=block_bytes)
    metrics = metrics_of_ranking(result, ks)
    return (metrics, query_values(result, ks)) if per_query else metrics
