"""What approximate search finds, against sets and loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reprolib.errors import InputError
from reprolib.metrics.approximation import hubness_differences, places_found
from reprolib.metrics.hubness import hubness_of_counts


def lists(rng: np.random.Generator, n: int, m: int, k: int) -> np.ndarray:
    return np.stack([rng.permutation(m)[:k] for _ in range(n)])


def with_gaps(rng: np.random.Generator, found: np.ndarray) -> np.ndarray:
    """Return the lists with some of their ends missing."""
    kept = rng.integers(1, found.shape[1] + 1, size=len(found))
    return np.where(np.arange(found.shape[1]) < kept[:, None], found, -1)


def slow_counts(found: np.ndarray, size: int) -> np.ndarray:
    counts = np.zeros(size)
    for row in found.tolist():
        for item in row:
            if item >= 0:
                counts[item] += 1
    return counts


@given(st.integers(0, 10**6), st.integers(1, 8), st.integers(2, 12), st.data())
def test_places_found_is_membership_row_by_row(seed: int, n: int, m: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(seed)
    k, other = data.draw(st.integers(1, m)), data.draw(st.integers(1, m))
    exact, approximate = lists(rng, n, m, k), with_gaps(rng, lists(rng, n, m, other))
    found, rows = places_found(exact, approximate), zip(exact.tolist(), approximate.tolist(), strict=True)
    assert found.tolist() == [[item in set(other) for item in one] for one, other in rows]
    assert places_found(exact, exact).all() and not places_found(exact, np.full((n, 1), -1)).any()
    shuffled = rng.permuted(approximate, axis=1)
    np.testing.assert_array_equal(places_found(exact, shuffled), found)


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.integers(1, 3))
def test_hubness_is_that_of_slow_counts_and_differences_are_differences(seed: int, replicates: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(4, 12, size=replicates).tolist()
    exact = [lists(rng, 9, m, 3) for m in sizes]
    approximate = [with_gaps(rng, lists(rng, 9, m, 3)) for m in sizes]
    found = hubness_differences(exact, approximate, sizes, np.arange(9 * replicates), seed=seed)
    for side, every in (("exact", exact), ("approximate", approximate)):
        slow = [hubness_of_counts(slow_counts(a, m)) for a, m in zip(every, sizes, strict=True)]
        for name, interval in found[side].items():
            assert interval.value == pytest.approx(np.mean([s[name] for s in slow]), abs=1e-12)
            assert interval.low <= interval.value <= interval.high
    for name, interval in found["difference"].items():
        assert interval.value == pytest.approx(found["approximate"][name].value - found["exact"][name].value, abs=1e-9)


def test_an_exact_answer_differs_in_nothing_and_for_certain() -> None:
    exact = lists(np.random.default_rng(0), 40, 20, 4)
    found = hubness_differences([exact], [exact], [20], np.arange(40))["difference"]
    assert {(i.value, i.low, i.high) for i in found.values()} == {(0.0, 0.0, 0.0)}


def test_lists_of_other_queries_are_refused() -> None:
    with pytest.raises(InputError, match="3 exact lists, but 2 approximate"):
        places_found(np.zeros((3, 1), np.int64), np.zeros((2, 1), np.int64))
