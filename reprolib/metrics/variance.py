"""Where variance comes from, and what it hides: components of a full factorial, and detectable improvements."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import scipy.integrate
import scipy.optimize
import scipy.stats

from reprolib.errors import InputError
from reprolib.metrics.statistics import Interval

RESIDUAL = "interactions"


def components(values: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """Return the variance component of every factor of a crossed design, and of all their interactions together.

    ``values`` float [n_1, ..., n_k] holds one value per combination of levels, each n at least 2. Method of moments
    for the random-effects model (Searle, Casella and McCulloch 1992, chapter 4): the component of a set S of factors
    is the sum over the sets T that hold S of (-1)^|T - S| MS_T, divided by the product of the n outside S, with MS the
    mean squares of the analysis of variance. Components may be negative: then the design shows no such variance.
    Interactions include what is not explained at all. Raises InputError for other shapes, NaN, repeated names.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != len(names) or len(set(names)) != values.ndim or values.ndim < 1 or min(values.shape) < 2:
        raise InputError(
            f"values of shape {values.shape} for the factors {', '.join(names)}: valid is one axis a factor, of two "
            "levels at least"
        )
    if not np.isfinite(values).all():
        raise InputError("values hold NaN or infinity: valid is one number for every combination of levels")
    axes = range(values.ndim)
    sets = [frozenset(s) for size in range(1, values.ndim + 1) for s in itertools.combinations(axes, size)]
    squares = {s: _mean_square(values, s) for s in sets}
    found = {}
    for s in sets:
        sign = {t: (-1) ** len(t - s) for t in sets if t >= s}
        outside = np.prod([values.shape[axis] for axis in axes if axis not in s], initial=1.0)
        found[s] = sum(sign[t] * squares[t] for t in sign) / outside
    alone = {name: float(found[frozenset([axis])]) for axis, name in enumerate(names)}
    return alone | {RESIDUAL: float(sum(value for s, value in found.items() if len(s) > 1))}


def _mean_square(values: np.ndarray, factors: frozenset[int]) -> float:
    """Return the mean square of the interaction of ``factors`` (of a main effect, for one)."""
    effect = values.mean(axis=tuple(set(range(values.ndim)) - factors), keepdims=True)
    for axis in factors:
        effect = effect - effect.mean(axis=axis, keepdims=True)
    freedom = np.prod([values.shape[axis] - 1 for axis in factors])
    return float((effect**2).sum() * values.size / effect.size / freedom)


def component_intervals(
    values: np.ndarray, names: Sequence[str], seeds: str = "seed", level: float = 0.95
) -> dict[str, Interval]:
    """Return ``components`` with delete-one-seed jackknife t-intervals; ``seeds`` names the axis of the seeds.

    The intervals speak of other seeds; the levels of the other factors stay as they were chosen. (The bootstrap draws
    seeds twice, which lowers their variance.) Needs three seeds at least.
    """
    whole, axis = components(values, names), list(names).index(seeds)
    n = np.shape(values)[axis]
    if n < 3:
        raise InputError(f"{n} seeds are too few for intervals of variance components: valid is 3 at least")
    left_out = [components(np.delete(values, seed, axis=axis), names) for seed in range(n)]
    quantile = scipy.stats.t.ppf((1 + level) / 2, n - 1)
    found = {}
    for name, value in whole.items():
        replicas = np.array([one[name] for one in left_out])
        error = quantile * np.sqrt((n - 1) / n * ((replicas - replicas.mean()) ** 2).sum())
        found[name] = Interval(value, float(value - error), float(value + error))
    return found


def spread(values: np.ndarray, level: float = 0.95) -> Interval:
    """Return the sample standard deviation of ``values`` [n] with its chi-square interval (normal values)."""
    values = np.asarray(values, dtype=np.float64)
    n = len(values)
    if n < 2:
        raise InputError("one value has no spread; valid is two at least")
    sd = float(values.std(ddof=1))
    low, high = (scipy.stats.chi2.ppf(q, n - 1) for q in ((1 + level) / 2, (1 - level) / 2))
    return Interval(sd, float(sd * np.sqrt((n - 1) / low)), float(sd * np.sqrt((n - 1) / high)))


def expected_range(n: int) -> float:
    """Return the expected range of ``n`` independent standard normal values (3.08 for ten; Tippett 1925)."""
    if n < 1:
        raise InputError(f"n = {n}: valid is at least one value")
    norm = scipy.stats.norm

    def outside(x: float) -> float:
        return 1 - norm.cdf(x) ** n - norm.sf(x) ** n

    return float(scipy.integrate.quad(outside, -12, 12, epsabs=1e-10)[0])


def power(difference: float, sd: float, n: int, level: float = 0.05) -> float:
    """Return the power of the two-sided t-test between two methods of ``n`` seeds each, both of spread ``sd``."""
    freedom, shift = 2 * (n - 1), difference / (sd * np.sqrt(2 / n))
    critical = scipy.stats.t.ppf(1 - level / 2, freedom)
    return float(scipy.stats.nct.sf(critical, freedom, shift) + scipy.stats.nct.cdf(-critical, freedom, shift))


def detectable(sd: float, n: int, *, wanted: float = 0.8, level: float = 0.05) -> float:
    """Return the smallest difference of means that two methods of ``n`` seeds each show with power ``wanted``.

    Two-sided t-test at ``level``, both methods with standard deviation ``sd`` over seeds. Infinity for n = 1: one seed
    has no spread. Raises InputError for a negative ``sd`` and n below 1.
    """
    if not sd >= 0 or n < 1 or not level < wanted < 1:
        raise InputError(
            f"sd {sd}, n {n}, power {wanted}: valid is sd of at least 0, n of at least 1, and a power above the level"
        )
    if n == 1 or sd == 0:
        return float("inf") if n == 1 else 0.0
    high = 0.5
    while power(high, 1.0, n, level) < wanted:
        high *= 1.5
    return sd * float(scipy.optimize.brentq(lambda d: power(d, 1.0, n, level) - wanted, 0.0, high))
