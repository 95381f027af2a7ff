"""Hubness metrics: how unevenly a gallery is retrieved."""

from __future__ import annotations

import numpy as np
import scipy.stats

from reprolib import ranking
from reprolib.errors import InputError
from reprolib.metrics.retrieval import as_scorer
from reprolib.ranking import ArrayLike, Scorer

HUB_FACTOR = 2.0  # a hub is retrieved at least this many times as often as the average item


def k_occurrence(topk: np.ndarray, n_gallery: int) -> np.ndarray:
    """Return N_k, int64 [n_gallery]: in how many of the lists ``topk`` [n_queries, k] each gallery item occurs."""
    return np.bincount(np.ravel(topk), minlength=n_gallery)


def hubness_of_counts(counts: np.ndarray, *, retrieved_only: bool = False) -> dict[str, float]:
    """Return the hubness metrics of a k-occurrence distribution N_k [n_gallery] (or weights of that shape).

    See ``hubness_metrics`` for the names. If every item is retrieved equally often, skewness and kurtosis are 0.
    """
    n = np.asarray(counts, dtype=np.float64)
    if not n.sum():
        raise InputError("k-occurrence: no item was retrieved; there is no distribution to describe")
    mean = n.mean()
    shaped = n[n > 0] if retrieved_only else n
    uneven = shaped.std() > 1e-12 * shaped.mean()
    ordered = np.sort(n)
    weights = 2 * np.arange(1, len(n) + 1) - len(n) - 1
    deviation = np.abs(n - mean).mean()
    return {
        "skewness": float(scipy.stats.skew(shaped)) if uneven else 0.0,
        "kurtosis": float(scipy.stats.kurtosis(shaped)) if uneven else 0.0,
        "max k-occurrence": float(n.max()),
        "mean absolute deviation": float(deviation),
        "hub share": float(n[n >= HUB_FACTOR * mean].sum() / n.sum()),
        "anti-hub share": float((n == 0).mean()),
        "Robin Hood": float(deviation / (2 * mean)),
        "Gini": float((weights * ordered).sum() / (len(n) * n.sum())),
    }


def hubness_metrics(
    queries: ArrayLike,
    gallery: ArrayLike,
    k: int = 10,
    *,
    scores: Scorer | ArrayLike | None = None,
    retrieved_only: bool = False,
    normalize: bool = True,
    block_bytes: int = ranking.BLOCK_BYTES,
) -> dict[str, float]:
    """Return how unevenly ``gallery`` [m, d] is retrieved by ``queries`` [n, d], as a mapping of name to float.

    N_k(g) is the number of queries that have g among their k best (ties by gallery index); its mean is k n / m.

    * ``skewness`` and (excess) ``kurtosis`` of N_k over **all** gallery items (Radovanovic et al., JMLR 2010).
      ``retrieved_only=True`` takes them over items with N_k > 0 only, as DBNorm's released ``get_skewness`` does
      (yimuwangcs/Better_Cross_Modal_Retrieval, DBNorm/dbnorm.py), which drops the anti-hubs.
    * ``max k-occurrence``, and ``mean absolute deviation`` of N_k from its mean (NNN, Table 3: "MAE").
    * ``hub share``: share of all top-k places taken by hubs, items with N_k >= 2 x the mean; ``anti-hub share``:
      share of the gallery with N_k = 0.
    * ``Robin Hood``: share of the places that would have to move to make N_k even; ``Gini`` coefficient of N_k.

    Raises InputError if ``k`` is not between 1 and m, or for bad embeddings.
    """
    scorer = as_scorer(queries, gallery, scores, normalize=normalize)
    if not 1 <= k <= scorer.shape[1]:
        raise InputError(f"k = {k} is not between 1 and the size of the gallery, {scorer.shape[1]}")
    top = ranking.topk(scorer, k, ordered=False, block_bytes=block_bytes)
    return hubness_of_counts(k_occurrence(top, scorer.shape[1]), retrieved_only=retrieved_only)
