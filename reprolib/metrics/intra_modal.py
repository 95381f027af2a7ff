"""Retrieval within one modality: many relevant items per query, and queries that are gallery items themselves.

Where most of a gallery can be relevant, the order of a whole row is what is needed, so rows are sorted here, block by
block. The contract is that of ``reprolib.ranking``: canonical scores, ties by gallery index, the self-match dropped
before anything is counted; the result is the ``Ranking`` that ``ranking.rank`` counts.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import scipy.sparse
import torch

from reprolib import ranking
from reprolib.errors import InputError
from reprolib.metrics.retrieval import as_scorer, query_values
from reprolib.ranking import ArrayLike, Ranking, Relevance, Scorer

METRICS = ("mAP", "mAP@R", "R-precision", "R@1")
SelfMatch = Literal["drop"] | np.ndarray | None


def same_group(queries: np.ndarray, gallery: np.ndarray) -> scipy.sparse.csr_array:
    """Return which gallery items are of a query's group, bool CSR [n, m], from one group name per item."""
    names, of_item = np.unique(np.concatenate([queries, gallery]), return_inverse=True)
    one_hot = scipy.sparse.eye_array(len(names), dtype=bool, format="csr")[of_item]
    return one_hot[: len(queries)] @ one_hot[len(queries) :].T


def answerable(relevance: Relevance, n_gallery: int, self_match: SelfMatch = None) -> np.ndarray:
    """Return which queries have a relevant item once their self-match is dropped, bool [n].

    ``relevance`` as ``intra_modal_metrics`` takes it, but a query may have nothing relevant.
    """
    if isinstance(relevance, list | tuple):
        match = scipy.sparse.lil_array((len(relevance), n_gallery), dtype=bool)
        for query, items in enumerate(relevance):
            match[query, np.asarray(items, dtype=np.int64)] = True
        relevance = match
    elif isinstance(relevance, torch.Tensor):
        relevance = relevance.cpu().numpy()
    match = scipy.sparse.csr_array(relevance, dtype=bool)
    return np.diff(_without(match, _dropped(self_match, *match.shape)).indptr) > 0


def intra_modal_metrics(
    queries: ArrayLike,
    gallery: ArrayLike,
    relevance: Relevance,
    *,
    self_match: SelfMatch = None,
    r_counts_query: bool = False,
    scores: Scorer | ArrayLike | None = None,
    normalize: bool = True,
    per_query: bool = False,
    block_bytes: int = ranking.BLOCK_BYTES,
) -> dict[str, float] | tuple[dict[str, float], dict[str, np.ndarray]]:
    """Retrieve ``gallery`` [m, d] for ``queries`` [n, d] of the same modality; return metric name to float in [0, 1].

    With R relevant items: ``mAP`` is average precision over the full ranking; ``mAP@R`` sums the precision at the
    relevant items among the first R and divides by R (Musgrave et al., ECCV 2020); ``R-precision`` is the share of
    relevant items among the first R; ``R@1`` says whether the first item is relevant. Ties break by gallery index.

    ``self_match``: "drop" drops gallery item i for query i (one set, in one order); an int array [n] names the item
    to drop for each query (-1: none). What is dropped is neither ranked nor relevant, and R does not count it.
    ``r_counts_query`` reproduces the released code of Cross the Gap (arXiv 2502.04263, ``src/retrieval.py``), which
    reads R for ``mAP@R`` before the self-match is dropped: one rank more is looked at, the divisor stays R, and
    ``R-precision`` is as above.

    ``relevance``: boolean matrix [n, m], sparse matrix, or list of n index arrays (``same_group`` makes one from
    group names). ``scores``: see ``as_scorer``. ``per_query=True`` returns also float64 arrays [n] by metric.
    Raises InputError for bad embeddings (which row), differing widths, an item to drop that does not exist, and a
    query without a relevant item beside itself (``answerable`` tells which to leave out).
    """
    scorer = as_scorer(queries, gallery, scores, normalize=normalize)
    dropped = _dropped(self_match, *scorer.shape)
    before = ranking.as_relevance(relevance, *scorer.shape)
    match = _without(before, dropped)
    counts = np.diff(match.indptr)
    if not counts.all():
        alone = np.flatnonzero(counts == 0)
        raise InputError(
            f"relevance: query {alone[0]} has no relevant gallery item beside itself ({len(alone)} such queries); "
            "leave out what answerable() does not name"
        )
    if dropped is not None:
        scorer = replace(scorer, exclude=torch.as_tensor(dropped, device=scorer.queries.device))
    depth = np.diff(before.indptr) if r_counts_query else counts
    parts = []
    for rows in ranking.blocks(*scorer.shape, max(1, block_bytes // 8)):  # a handful of int64 matrices of this size
        result = rank_by_sorting(scorer, match[rows], rows)
        parts.append(_values(result, depth[rows]))
    values = {name: np.concatenate([part[name] for part in parts]) for name in METRICS}
    metrics = {name: float(value.mean()) for name, value in values.items()}
    return (metrics, values) if per_query else metrics


def rank_by_sorting(scorer: Scorer, relevance: scipy.sparse.csr_array, rows: slice) -> Ranking:
    """Return the ``Ranking`` of the queries ``rows``, k = 0, at a cost that does not depend on how much is relevant.

    ``relevance`` bool CSR [rows, m] has no excluded item. Equal to what ``ranking.rank`` counts for these queries.
    """
    scores = scorer.canonical(rows)
    if scorer.exclude is not None:
        dropped = scorer.exclude[rows]
        at = (dropped >= 0).nonzero().squeeze(1)
        scores[at, dropped[at]] = -torch.inf
    n, m = scores.shape
    descending = ranking.sort_key(torch.zeros_like(scores, dtype=torch.int64), scores)  # in [0, 2^32)
    keys = np.sort(((descending << 31) + torch.arange(m, device=scores.device)).cpu().numpy(), axis=1)
    position = np.empty((n, m), dtype=np.int64)
    np.put_along_axis(position, keys & (2**31 - 1), np.arange(m)[None], axis=1)
    higher = keys >> 31
    new = np.ones((n, m), dtype=bool)
    new[:, 1:] = higher[:, 1:] != higher[:, :-1]
    run = np.flatnonzero(new)  # where a run of equal scores starts; one ends where the next starts
    length = np.diff(run, append=n * m)
    query = np.repeat(np.arange(n), np.diff(relevance.indptr))
    place = position[query, relevance.indices]
    of_pair = np.searchsorted(run, query * m + place, side="right") - 1
    above = run[of_pair] - query * m
    score = scores.cpu().numpy()[query, relevance.indices]
    nothing = np.empty((n, 0), dtype=np.int64)
    return Ranking(relevance, score, above, length[of_pair] - 1, place - above, nothing)


def _values(result: Ranking, depth: np.ndarray) -> dict[str, np.ndarray]:
    """Return the per-query metrics of a ranking; ``depth`` int [n] is how far ``mAP@R`` looks."""
    values = query_values(result, ks=(1,))
    start, counts = result.relevance.indptr[:-1], np.diff(result.relevance.indptr)
    owner = np.repeat(np.arange(len(counts)), counts)
    rank = result.rank[np.lexsort((result.rank, owner))]  # ascending within each query
    precision = (np.arange(len(rank)) - np.repeat(start, counts) + 1) / rank
    within = np.add.reduceat(np.where(rank <= depth[owner], precision, 0.0), start)
    hits = np.add.reduceat((rank <= counts[owner]).astype(np.int64), start)
    return {"mAP": values["mAP"], "mAP@R": within / counts, "R-precision": hits / counts, "R@1": values["R@1"]}


def _dropped(self_match: SelfMatch, n: int, m: int) -> np.ndarray | None:
    """Return the gallery item to drop for each query, int64 [n] (-1: none), or None."""
    if self_match is None:
        return None
    if isinstance(self_match, str):
        if self_match != "drop":
            raise InputError(f"self_match {self_match!r} is not valid: valid is None, 'drop', or one item per query")
        if n != m:
            raise InputError(f"self_match 'drop' takes query i as gallery item i, but there are {n} and {m}")
        return np.arange(n)
    items = np.asarray(self_match)
    if items.shape != (n,) or items.dtype.kind not in "iu" or (items < -1).any() or (items >= m).any():
        raise InputError(
            f"self_match of shape {items.shape} and dtype {items.dtype} is not valid: valid is one integer for each "
            f"of {n} queries, from -1 (none) to {m - 1}"
        )
    return items.astype(np.int64)


def _without(match: scipy.sparse.csr_array, dropped: np.ndarray | None) -> scipy.sparse.csr_array:
    """Return bool CSR ``match`` [n, m], sorted, without the dropped items."""
    match = match.copy()
    match.sum_duplicates()
    if dropped is not None:
        match.data &= match.indices != np.repeat(dropped, np.diff(match.indptr))
    match.eliminate_zeros()
    return match
