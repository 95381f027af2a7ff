"""What approximate search does to a ranking: which places it finds, and what it makes of hubs.

Lists are int64 [n_queries, k], best first: ``exact`` as ``ranking.topk`` returns them, ``approximate`` as
``methods.index_topk`` does, with -1 where it found nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from reprolib.errors import InputError
from reprolib.metrics.hubness import hubness_of_counts, k_occurrence
from reprolib.metrics.statistics import Interval, jackknife


def places_found(exact: np.ndarray, approximate: np.ndarray) -> np.ndarray:
    """Return which items of the ``exact`` lists [n, k] the ``approximate`` ones [n, any] hold, bool [n, k].

    Its mean over a row is the recall@k of that query. Raises InputError if the numbers of queries differ.
    """
    if len(exact) != len(approximate):
        raise InputError(f"{len(exact)} exact lists, but {len(approximate)} approximate ones; they must agree")
    span = 1 + max(int(exact.max(initial=0)), int(approximate.max(initial=0)))
    one, other = (span * np.arange(len(lists))[:, None] + lists for lists in (exact, approximate))
    return np.isin(one, other[approximate >= 0])


def hubness_differences(
    exact: Sequence[np.ndarray],
    approximate: Sequence[np.ndarray],
    sizes: Sequence[int],
    clusters: np.ndarray,
    *,
    seed: int = 0,
) -> dict[str, dict[str, Interval]]:
    """Return the hubness metrics of exact and approximate lists, and approximate minus exact, each with its interval.

    The result maps "exact", "approximate" and "difference" to the metrics of ``hubness_of_counts``. One pair of lists
    per replicate, with the size of its gallery; metrics are means over replicates. ``clusters`` holds the labels of
    all queries, replicate after replicate. Intervals are ``jackknife``'s; those of a difference are paired.
    """
    ends = np.cumsum([0] + [len(lists) for lists in exact])
    parts = [slice(start, stop) for start, stop in itertools.pairwise(ends)]

    def described(every: Sequence[np.ndarray], mask: np.ndarray) -> dict[str, float]:
        found = []
        for lists, size, part in zip(every, sizes, parts, strict=True):
            counts = k_occurrence(lists[mask[part]] + 1, size + 1)[1:]  # -1, nothing found, counts for nobody
            found.append(hubness_of_counts(counts))
        return {name: float(np.mean([each[name] for each in found])) for name in found[0]}

    def statistic(mask: np.ndarray) -> dict[str, float]:
        one, other = described(exact, mask), described(approximate, mask)
        sides = {"exact": one, "approximate": other, "difference": {name: other[name] - one[name] for name in one}}
        return {f"{side}|{name}": value for side, values in sides.items() for name, value in values.items()}

    nested: dict[str, dict[str, Interval]] = {"exact": {}, "approximate": {}, "difference": {}}
    for key, interval in jackknife(statistic, clusters, seed=seed).items():
        side, name = key.split("|")
        nested[side][name] = interval
    return nested
