"""Retrieval within one modality: many relevant items per query, and queries that are gallery items themselves.

Where most of a gallery can be relevant, the order of a whole row is what is needed, so rows are sorted here, block by
block. The contract is that of ``reprolib.ranking``: canonical scores, ties by gallery index, the self-match dropped
before anything is counted; the result is the ``Ranking`` that ``ranking.rank`` counts.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import scipy.sparse
import torch

from reprolib import ranking
from reprolib.errors import InputError
from reprolib.metrics.retrieval import as_scorer, query_values
from reprolib.ranking import ArrayLike, Ranking, Relevance, Scorer

METRICS = ("mAP", "mAP@R", "R-precision", "R@1")
TRAPEZOIDS = "mAP, trapezoids"
SelfMatch = Literal["drop"] | np.ndarray | None


def same_group(queries: np.ndarray, gallery: np.ndarray) -> scipy.sparse.csr_array:
    """Return which gallery items are of a query's group, bool CSR [n, m], from one group name per item."""
    names, of_item = np.unique(np.concatenate([queries, gallery]), return_inverse=True)
    one_hot = scipy.sparse.eye_array(len(names), dtype=bool, format="csr")[of_item]
    return one_hot[: len(queries)] @ one_hot[len(queries) :].T


def answerable(
    relevance: Relevance, n_gallery: int, self_match: SelfMatch = None, junk: scipy.sparse.csr_array | None = None
) -> np.ndarray:
    """Return which queries have a relevant item once their self-match and their junk are dropped, bool [n].

    Arguments as those of ``intra_modal_metrics``, but a query may have nothing relevant.
    """
    if isinstance(relevance, list | tuple):
        match = scipy.sparse.lil_array((len(relevance), n_gallery), dtype=bool)
        for query, items in enumerate(relevance):
            match[query, np.asarray(items, dtype=np.int64)] = True
        relevance = match
    elif isinstance(relevance, torch.Tensor):
        relevance = relevance.cpu().numpy()
    match = scipy.sparse.csr_array(relevance, dtype=bool)
    return np.diff(_without(match, _dropped(self_match, junk, *match.shape)).indptr) > 0


def intra_modal_metrics(
    queries: ArrayLike,
    gallery: ArrayLike,
    relevance: Relevance,
    *,
    self_match: SelfMatch = None,
    junk: scipy.sparse.csr_array | None = None,
    trapezoids: bool = False,
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
    to drop for each query (-1: none). ``junk`` bool CSR [n, m] names any number of further items to drop for each
    query. What is dropped is neither ranked nor relevant, and R does not count it.
    ``r_counts_query`` reproduces the released code of Cross the Gap (arXiv 2502.04263, ``src/retrieval.py``), which
    reads R for ``mAP@R`` before the self-match is dropped: one rank more is looked at, the divisor stays R, and
    ``R-precision`` is as above. ``trapezoids`` adds the metric ``TRAPEZOIDS``: average precision as the area under the
    precision-recall curve by trapezoids, which is what ROxford and RParis are reported in (filipradenovic/revisitop
    at 3bb68d3, ``python/evaluate.py``, lines 3 to 37; the junk is taken out in lines 83 to 94).

    ``relevance``: boolean matrix [n, m], sparse matrix, or list of n index arrays (``same_group`` makes one from
    group names). ``scores``: see ``as_scorer``. ``per_query=True`` returns also float64 arrays [n] by metric.
    Raises InputError for bad embeddings (which row), differing widths, an item to drop that does not exist, and a
    query without a relevant item beside itself (``answerable`` tells which to leave out).
    """
    scorer = as_scorer(queries, gallery, scores, normalize=normalize)
    dropped = _dropped(self_match, junk, *scorer.shape)
    before = ranking.as_relevance(relevance, *scorer.shape)
    match = _without(before, dropped)
    counts = np.diff(match.indptr)
    if not counts.all():
        alone = np.flatnonzero(counts == 0)
        raise InputError(
            f"relevance: query {alone[0]} has no relevant gallery item beside itself ({len(alone)} such queries); "
            "leave out what answerable() does not name"
        )
    depth = np.diff(before.indptr) if r_counts_query else counts
    parts = []
    for rows in ranking.blocks(*scorer.shape, max(1, block_bytes // 8)):  # a handful of int64 matrices of this size
        result = rank_by_sorting(scorer, match[rows], rows, None if dropped is None else dropped[rows])
        parts.append(_values(result, depth[rows], trapezoids))
    values = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    metrics = {name: float(value.mean()) for name, value in values.items()}
    return (metrics, values) if per_query else metrics


def nearest(
    scorer: Scorer, k: int, *, self_match: SelfMatch = None, junk: scipy.sparse.csr_array | None = None
) -> np.ndarray:
    """Return the ``k`` best items of every query, best first, int64 [n, k], without what is dropped for it.

    ``self_match`` and ``junk`` as in ``intra_modal_metrics``. Lists are as long as every query's can be.
    """
    dropped = _dropped(self_match, junk, *scorer.shape)
    if dropped is None:
        return ranking.topk(scorer, k)
    most = int(np.diff(dropped.indptr).max())
    top = ranking.topk(scorer, k + most)
    query = np.repeat(np.arange(len(top)), np.diff(dropped.indptr))
    kept = ~np.isin(np.arange(len(top))[:, None] * scorer.shape[1] + top, query * scorer.shape[1] + dropped.indices)
    first = np.argsort(~kept, axis=1, kind="stable")[:, : min(k, scorer.shape[1] - most)]
    return np.take_along_axis(top, first, axis=1)


def rank_by_sorting(
    scorer: Scorer, relevance: scipy.sparse.csr_array, rows: slice, dropped: scipy.sparse.csr_array | None = None
) -> Ranking:
    """Return the ``Ranking`` of the queries ``rows``, k = 0, at a cost that does not depend on how much is relevant.

    ``relevance`` bool CSR [rows, m] has no excluded item and none of the items ``dropped`` (likewise), which are not
    ranked. Equal to what ``ranking.rank`` counts for these queries.
    """
    scores = scorer.canonical(rows)
    if scorer.exclude is not None:
        own = scorer.exclude[rows]
        at = (own >= 0).nonzero().squeeze(1)
        scores[at, own[at]] = -torch.inf
    if dropped is not None:  # last, behind everything that is relevant
        scores[tuple(torch.as_tensor(at, device=scores.device) for at in dropped.nonzero())] = -torch.inf
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


def _values(result: Ranking, depth: np.ndarray, trapezoids: bool) -> dict[str, np.ndarray]:
    """Return the per-query metrics of a ranking; ``depth`` int [n] is how far ``mAP@R`` looks."""
    values = query_values(result, ks=(1,))
    start, counts = result.relevance.indptr[:-1], np.diff(result.relevance.indptr)
    owner = np.repeat(np.arange(len(counts)), counts)
    rank = result.rank[np.lexsort((result.rank, owner))]  # ascending within each query
    found = np.arange(len(rank)) - np.repeat(start, counts)  # relevant items before each
    precision = (found + 1) / rank
    within = np.add.reduceat(np.where(rank <= depth[owner], precision, 0.0), start)
    hits = np.add.reduceat((rank <= counts[owner]).astype(np.int64), start)
    result = {"mAP": values["mAP"], "mAP@R": within / counts, "R-precision": hits / counts, "R@1": values["R@1"]}
    if trapezoids:
        before = np.where(rank > 1, found / np.maximum(rank - 1, 1), 1.0)
        result[TRAPEZOIDS] = np.add.reduceat((before + precision) / 2, start) / counts
    return result


def _dropped(
    self_match: SelfMatch, junk: scipy.sparse.csr_array | None, n: int, m: int
) -> scipy.sparse.csr_array | None:
    """Return the gallery items to drop for each query, bool CSR [n, m], or None."""
    found = None if junk is None else _without(scipy.sparse.csr_array(junk, dtype=bool))
    if found is not None and found.shape != (n, m):
        raise InputError(f"junk has shape {found.shape}, expected ({n}, {m}): queries by gallery items")
    if self_match is None:
        return found
    if isinstance(self_match, str):
        if self_match != "drop":
            raise InputError(f"self_match {self_match!r} is not valid: valid is None, 'drop', or one item per query")
        if n != m:
            raise InputError(f"self_match 'drop' takes query i as gallery item i, but there are {n} and {m}")
        self_match = np.arange(n)
    items = np.asarray(self_match)
    if items.shape != (n,) or items.dtype.kind not in "iu" or (items < -1).any() or (items >= m).any():
        raise InputError(
            f"self_match of shape {items.shape} and dtype {items.dtype} is not valid: valid is one integer for each "
            f"of {n} queries, from -1 (none) to {m - 1}"
        )
    queries = np.flatnonzero(items >= 0)
    own = scipy.sparse.csr_array((np.ones(len(queries), dtype=bool), (queries, items[queries])), shape=(n, m))
    return own if found is None else _without(own + found)


def _without(match: scipy.sparse.csr_array, dropped: scipy.sparse.csr_array | None = None) -> scipy.sparse.csr_array:
    """Return bool CSR ``match`` [n, m], sorted, without the dropped items."""
    match = match.copy()
    match.sum_duplicates()
    if dropped is not None:
        match = scipy.sparse.csr_array(match > dropped)
    match.eliminate_zeros()
    return match
