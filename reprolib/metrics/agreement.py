"""Agreement of two runs of the same queries: their orderings, their per-query values, and the effects they show.

The measures of Breuer et al., "How to Measure the Reproducibility of System-oriented IR Experiments", SIGIR 2020, as
computed by the authors' package repro_eval 0.5.0 (github.com/irgroup/repro_eval). Lists of retrieved items are arrays
[n_queries, k], best first, without repeats: what ``ranking.topk`` returns. Per-query values are arrays [n_queries].
"""

from __future__ import annotations

import numpy as np
import scipy.stats

from reprolib.errors import InputError, nearest


def _lists(original: np.ndarray, repeated: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    one, other = np.asarray(original), np.asarray(repeated)
    if one.ndim != 2 or one.shape != other.shape or not one.size:
        raise InputError(f"lists of shapes {one.shape} and {other.shape}; both must be [n_queries, k], and not empty")
    for name, lists in (("original", one), ("repeated", other)):
        ordered = np.sort(lists, axis=1)
        repeats = (ordered[:, 1:] == ordered[:, :-1]).any(1)
        if repeats.any():
            raise InputError(f"the {name} list of query {int(repeats.argmax())} names an item twice")
    return one, other


def _values(*runs: np.ndarray) -> list[np.ndarray]:
    arrays = [np.asarray(run, dtype=np.float64) for run in runs]
    if any(a.ndim != 1 or a.shape != arrays[0].shape or not a.size for a in arrays):
        shapes = ", ".join(str(a.shape) for a in arrays)
        raise InputError(f"per-query values of shapes {shapes}; all must be [n_queries], and not empty")
    return arrays


def kendall_tau_union(original: np.ndarray, repeated: np.ndarray, *, variant: str = "order") -> np.ndarray:
    """Return Kendall's tau between two lists of every query over the union of their items, float64 [n_queries].

    Every item gets a number, and tau compares the two sequences of numbers. ``variant="order"`` numbers the union as
    the original lists it, then what only the other run retrieved, so that the names of items have no influence.
    ``variant="released"`` numbers it by sorted name, as repro_eval does (repro_eval/measure/document_order.py,
    ``_KTU``); tau then changes when items are renamed. 1 for equal lists; NaN where k = 1.
    """
    if variant not in ("order", "released"):
        raise nearest(str(variant), ("order", "released"), "variant")
    found = []
    for one, other in zip(*_lists(original, repeated), strict=True):
        new = other[~np.isin(other, one)]
        union = np.concatenate([one, new])
        names = np.sort(union) if variant == "released" else union
        number = {item: place for place, item in enumerate(names.tolist())}
        pair = ([number[item] for item in items.tolist()] for items in (one, other))
        found.append(scipy.stats.kendalltau(*pair).statistic if len(one) > 1 else np.nan)
    return np.array(found)


def rank_biased_overlap(original: np.ndarray, repeated: np.ndarray, *, p: float = 0.95) -> np.ndarray:
    """Return the rank-biased overlap of two lists of every query, truncated at k and normalised, float64 [n_queries].

    sum_d p^(d-1) |first d of both| / d, over d = 1..k, divided by sum_d p^(d-1) (Webber et al. 2010; normalised as
    in repro_eval, whose default p is 0.95 too). 1 for equal lists, 0 for disjoint ones; a larger ``p`` in (0, 1]
    weighs deeper ranks more.
    """
    if not 0 < p <= 1:
        raise InputError(f"p = {p!r} is not above 0 and at most 1")
    found = []
    for one, other in zip(*_lists(original, repeated), strict=True):
        _, first, second = np.intersect1d(one, other, assume_unique=True, return_indices=True)
        shared = np.bincount(np.maximum(first, second), minlength=len(one)).cumsum()  # seen in both by each depth
        weights = p ** np.arange(len(one))
        found.append((weights * shared / np.arange(1, len(one) + 1)).sum() / weights.sum())
    return np.array(found)


def rmse(original: np.ndarray, repeated: np.ndarray) -> float:
    """Return the root mean square error between the per-query values of two runs; 0 if they are equal."""
    one, other = _values(original, repeated)
    return float(np.sqrt(((one - other) ** 2).mean()))


def effect_ratio(
    original: np.ndarray, original_reference: np.ndarray, repeated: np.ndarray, repeated_reference: np.ndarray
) -> float:
    """Return the mean improvement over a reference in the repeated experiment, divided by that in the original.

    1: as large as before; between 0 and 1: smaller; below 0: in the other direction. NaN where the original has none.
    The two experiments may have different queries.
    """
    one, other = (
        float((a - b).mean()) for a, b in (_values(original, original_reference), _values(repeated, repeated_reference))
    )
    return other / one if one else float("nan")


def delta_relative_improvement(
    original: np.ndarray, original_reference: np.ndarray, repeated: np.ndarray, repeated_reference: np.ndarray
) -> float:
    """Return the relative improvement over a reference in the original experiment minus that in the repeated one.

    0: as large as before; above 0: smaller now. NaN where a reference has mean 0. Arguments as in ``effect_ratio``.
    """
    relative = []
    for a, b in (_values(original, original_reference), _values(repeated, repeated_reference)):
        relative.append(float((a.mean() - b.mean()) / b.mean()) if b.mean() else float("nan"))
    return relative[0] - relative[1]
