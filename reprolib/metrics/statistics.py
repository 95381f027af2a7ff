"""Uncertainty: intervals and tests that respect which values belong together.

A *cluster* is a connected component of the relevance graph: an image with its captions, a character with its
pictures. Its queries are not independent, so clusters, not queries, are resampled. Everything is seeded through
``numpy.random.Generator`` and gives the same bytes in every process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.special
import scipy.stats

from reprolib.errors import InputError, nearest

RESAMPLES = 2000
_CHUNK = 2**22  # numbers drawn at a time


@dataclass(frozen=True)
class Interval:
    """A value with the two ends of its confidence interval."""

    value: float
    low: float
    high: float


def _clusters(clusters: np.ndarray) -> np.ndarray:
    labels = np.unique(clusters, return_inverse=True)[1]
    if not len(labels):
        raise InputError("no queries, hence no clusters to resample")
    return labels


class ClusterBootstrap:
    """Bootstrap over clusters [n]; one set of resamples serves every metric and every system.

    Systems measured on the same queries therefore see the same resamples: pass differences for a paired
    comparison. (Efron and Tibshirani 1993, sections 8, 13 and 14.)
    """

    def __init__(self, clusters: np.ndarray, *, seed: int = 0, resamples: int = RESAMPLES, level: float = 0.95) -> None:
        self.label = _clusters(clusters)
        self.size = np.bincount(self.label).astype(np.float64)
        n = len(self.size)
        rng = np.random.default_rng(seed)
        step = max(1, _CHUNK // n)
        self.weights = np.concatenate(
            [
                rng.multinomial(n, np.full(n, 1 / n), size=min(step, resamples - start)).astype(np.uint8)
                for start in range(0, resamples, step)
            ]
        )
        self.ends = [(1 - level) / 2, (1 + level) / 2]

    def _interval(self, value: float, replicas: np.ndarray) -> Interval:
        low, high = np.quantile(replicas, self.ends)
        return Interval(float(value), float(low), float(high))

    def _check(self, values: np.ndarray) -> np.ndarray:
        values = np.asarray(values, dtype=np.float64)
        if values.shape != self.label.shape:
            raise InputError(f"{len(values)} values, but cluster labels for {len(self.label)} queries; they must agree")
        return values

    def mean(self, values: np.ndarray, method: str = "percentile") -> Interval:
        """Return the mean of ``values`` [n] with its interval.

        ``method="percentile"``, or ``"bca"``: corrected for bias and for the skewness of the cluster sums, with the
        delete-one-cluster jackknife (Efron and Tibshirani 1993, section 14.3).
        """
        if method not in ("percentile", "bca"):
            raise nearest(str(method), ("percentile", "bca"), "interval method")
        values = self._check(values)
        sums = np.bincount(self.label, weights=values)
        step = max(1, _CHUNK // len(sums))
        replicas = np.concatenate(
            [
                (w * sums).sum(1) / (w * self.size).sum(1)
                for w in (self.weights[start : start + step] for start in range(0, len(self.weights), step))
            ]
        )
        value = sums.sum() / self.size.sum()
        if method == "bca":
            return Interval(float(value), *self._bca(value, replicas, sums))
        return self._interval(value, replicas)

    def _bca(self, value: float, replicas: np.ndarray, sums: np.ndarray) -> tuple[float, float]:
        rounding = 1e-12 * np.abs(sums).sum() / self.size.sum()  # equal means in another order of addition are ties
        below, tied = (replicas < value - rounding).mean(), (np.abs(replicas - value) <= rounding).mean()
        if tied == 1:
            return float(value), float(value)
        bias = scipy.special.ndtri(below + tied / 2)
        left_out = (sums.sum() - sums) / (self.size.sum() - self.size)
        u = left_out.mean() - left_out
        acceleration = (u**3).sum() / (6 * (u**2).sum() ** 1.5)
        z = bias + scipy.special.ndtri(self.ends)
        low, high = np.quantile(replicas, scipy.special.ndtr(bias + z / (1 - acceleration * z)))
        return float(low), float(high)

    def median(self, values: np.ndarray) -> Interval:
        """Return the median of ``values`` [n] with its interval (of a resample: its lower median)."""
        values = self._check(values)
        order = np.argsort(values, kind="stable")
        ordered, label = values[order], self.label[order]
        step = max(1, _CHUNK // len(values))
        replicas = []
        for start in range(0, len(self.weights), step):
            reached = np.cumsum(self.weights[start : start + step][:, label], axis=1, dtype=np.int64)
            replicas.append(ordered[(2 * reached < reached[:, -1:]).sum(1)])
        return self._interval(float(np.median(values)), np.concatenate(replicas))


def bootstrap_mean(
    values: np.ndarray,
    clusters: np.ndarray,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = 0.95,
    method: str = "percentile",
) -> Interval:
    """Return the mean of ``values`` [n] with its bootstrap interval over ``clusters`` [n]; ``method`` as there."""
    return ClusterBootstrap(clusters, seed=seed, resamples=resamples, level=level).mean(values, method)


def equivalent(interval: Interval, target: float, margin: float) -> bool:
    """Return whether the whole interval lies within ``margin`` of ``target``.

    For an interval of level 1 - 2 alpha these are two one-sided tests (TOST) at alpha each (Schuirmann 1987): a 95 %
    interval tests at 2.5 %, half the customary alpha, and so is conservative. An interval that merely covers the
    target, p > 0.05, is no evidence of equality.
    """
    if not margin >= 0:
        raise InputError(f"margin = {margin!r} is not a number of at least 0")
    return target - margin <= interval.low and interval.high <= target + margin


def tost(differences: np.ndarray, clusters: np.ndarray, margin: float) -> float:
    """Return the p-value of "the mean of ``differences`` [n] is ``margin`` or more away from 0".

    Two one-sided t-tests with standard errors over ``clusters`` [n], of which the larger p counts. A small p shows
    equivalence. Where every query is a cluster this is the paired TOST.
    """
    label, differences = _clusters(clusters), _paired(differences, clusters)
    if not margin > 0:
        raise InputError(f"margin = {margin!r} is not a number above 0")
    n, size = int(label.max()) + 1, np.bincount(label)
    if n < 2:
        raise InputError("a single cluster has no standard error; a test needs at least two")
    mean = differences.mean()
    residual = np.bincount(label, weights=differences) - mean * size
    error = np.sqrt(n / (n - 1) * (residual**2).sum()) / len(differences)
    if error == 0:
        return float(abs(mean) >= margin)
    return float(scipy.stats.t.sf((margin - abs(mean)) / error, n - 1))


def _paired(differences: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    differences = np.asarray(differences, dtype=np.float64)
    if differences.shape != np.shape(clusters):
        raise InputError(f"{len(differences)} values, but cluster labels for {len(clusters)} queries; they must agree")
    if np.isnan(differences).any():
        raise InputError(f"the difference of query {int(np.isnan(differences).argmax())} is NaN")
    return differences


def permutation_test(
    differences: np.ndarray, clusters: np.ndarray, *, seed: int = 0, permutations: int = 9999
) -> float:
    """Return the two-sided p-value of "the mean of ``differences`` is 0", by flipping the sign of whole clusters.

    (b + 1) / (m + 1) with b permutations at least as extreme of m (Phipson and Smyth 2010): never 0.
    """
    label, differences = _clusters(clusters), _paired(differences, clusters)
    sums = np.bincount(label, weights=differences)
    sums = sums[sums != 0]  # a cluster without a difference says nothing either way
    least = abs(sums.sum()) - 1e-12 * np.abs(sums).sum()  # an equal sum in another order of addition is as extreme
    rng = np.random.default_rng(seed)
    extreme, step = 0, max(1, _CHUNK // max(1, len(sums)))
    for start in range(0, permutations, step):
        size = min(step, permutations - start)
        signs = 2.0 * rng.integers(0, 2, size=(size, len(sums)), dtype=np.int8) - 1
        extreme += int((np.abs((signs * sums).sum(1)) >= least).sum())
    return (extreme + 1) / (permutations + 1)


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Return Holm's step-down adjusted p-values (Holm 1979), in the order given."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted


def benjamini_hochberg(p_values: Sequence[float]) -> np.ndarray:
    """Return Benjamini and Hochberg's step-up adjusted p-values (1995), in the order given.

    They bound the false discovery rate of independent (or positively dependent) tests; ``holm`` bounds the chance of
    any false discovery, whatever the dependence.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(-p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, np.minimum.accumulate(p[order] * len(p) / np.arange(len(p), 0, -1)))
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
    index = _clusters(clusters)
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
