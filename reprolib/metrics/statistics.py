"""Uncertainty: intervals and tests that respect which values belong together.

A *cluster* is a connected component of the relevance graph: an image with its captions, a character with its
pictures. Its queries are not independent, so clusters, not queries, are resampled. Everything is seeded through
``numpy.random.Generator`` and gives the same bytes in every process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.stats

from reprolib.errors import InputError

RESAMPLES = 2000
_CHUNK = 2**22  # numbers drawn at a time


@dataclass(frozen=True)
class Interval:
    """A value with the two ends of its confidence interval."""

    value: float
    low: float
    high: float


def _cluster_sums(values: np.ndarray, clusters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values = np.asarray(values, dtype=np.float64)
    _, index = np.unique(clusters, return_inverse=True)
    if len(values) != len(index) or not len(values):
        raise InputError(f"{len(values)} values but {len(index)} cluster labels; both must be given for every query")
    return np.bincount(index, weights=values), np.bincount(index).astype(np.float64)


def bootstrap_mean(
    values: np.ndarray,
    clusters: np.ndarray,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = 0.95,
) -> Interval:
    """Return the mean of ``values`` [n] with its percentile bootstrap interval over ``clusters`` [n].

    For a paired comparison pass the differences: both systems then see the same resamples. (Efron and Tibshirani
    1993, sections 8 and 13.)
    """
    sums, counts = _cluster_sums(values, clusters)
    n = len(sums)
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    step = max(1, _CHUNK // n)
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        weights = rng.multinomial(n, np.full(n, 1 / n), size=size)
        means[start : start + size] = (weights * sums).sum(1) / (weights * counts).sum(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(sums.sum() / counts.sum()), float(low), float(high))


def permutation_test(
    differences: np.ndarray, clusters: np.ndarray, *, seed: int = 0, permutations: int = 9999
) -> float:
    """Return the two-sided p-value of "the mean of ``differences`` is 0", by flipping the sign of whole clusters.

    (b + 1) / (m + 1) with b permutations at least as extreme of m (Phipson and Smyth 2010): never 0.
    """
    sums, _ = _cluster_sums(differences, clusters)
    sums = sums[sums != 0]  # a cluster without a difference says nothing either way
    observed = abs(sums.sum())
    rng = np.random.default_rng(seed)
    extreme, step = 0, max(1, _CHUNK // max(1, len(sums)))
    for start in range(0, permutations, step):
        size = min(step, permutations - start)
        signs = 2.0 * rng.integers(0, 2, size=(size, len(sums)), dtype=np.int8) - 1
        extreme += int((np.abs((signs * sums).sum(1)) >= observed * (1 - 1e-12)).sum())
    return (extreme + 1) / (permutations + 1)


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Return Holm's step-down adjusted p-values (Holm 1979), in the order given."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted


def jackknife(
    statistic: Callable[[np.ndarray], dict[str, float]],
    clusters: np.ndarray,
    *,
    seed: int = 0,
    groups: int = 30,
    level: float = 0.95,
) -> dict[str, Interval]:
    """Return statistics of a whole sample with delete-a-group jackknife t-intervals.

    ``statistic`` maps a boolean mask over the n queries to named values. It serves statistics such as the skewness
    of N_k, for which the bootstrap is biased: drawing a query twice adds spread to N_k that no new query would.
    Clusters are dealt into ``groups`` at random. (Shao and Tu 1995, section 2.3.) For statistics that are not
    smooth, such as a maximum, the interval is a rough guide.
    """
    _, index = np.unique(clusters, return_inverse=True)
    n_clusters = int(index.max()) + 1
    groups = min(groups, n_clusters)
    group = np.random.default_rng(seed).permutation(np.arange(n_clusters) % groups)[index]
    whole = statistic(np.ones(len(index), bool))
    if groups < 2:
        return {name: Interval(v, float("nan"), float("nan")) for name, v in whole.items()}
    left_out = [statistic(group != g) for g in range(groups)]
    quantile = scipy.stats.t.ppf((1 + level) / 2, groups - 1)
    intervals = {}
    for name, value in whole.items():
        replicas = np.array([values[name] for values in left_out])
        error = np.sqrt((groups - 1) / groups * ((replicas - replicas.mean()) ** 2).sum())
        intervals[name] = Interval(value, float(value - quantile * error), float(value + quantile * error))
    return intervals
