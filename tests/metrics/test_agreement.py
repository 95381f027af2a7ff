"""Agreement of two runs against the formulas written out, as repro_eval 0.5.0 has them, and their identities."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reprolib.errors import InputError
from reprolib.metrics.agreement import (
    delta_relative_improvement,
    effect_ratio,
    kendall_tau_union,
    rank_biased_overlap,
    rmse,
)

seeds = st.integers(0, 10**6)


def two_lists(seed: int, n: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    k = int(rng.integers(2, 9))
    items = k + int(rng.integers(0, 6))
    return tuple(np.stack([rng.permutation(items)[:k] for _ in range(n)]) for _ in range(2))


def tau(x: list[int], y: list[int]) -> float:
    """Kendall's tau of two sequences without ties, pair by pair."""
    pairs = [(i, j) for i in range(len(x)) for j in range(i)]
    return sum(np.sign(x[i] - x[j]) * np.sign(y[i] - y[j]) for i, j in pairs) / len(pairs)


def slow_union(one: list[int], other: list[int], names: bool) -> float:
    union = sorted(set(one + other)) if names else one + [item for item in other if item not in one]
    return tau([union.index(item) for item in one], [union.index(item) for item in other])


def slow_overlap(one: list[int], other: list[int], p: float) -> float:
    score, normaliser = 0.0, 0.0
    for depth in range(1, len(one) + 1):
        weight = p ** (depth - 1)
        score += weight * len(set(one[:depth]) & set(other[:depth])) / depth
        normaliser += weight
    return score / normaliser


@settings(max_examples=30)
@given(seeds)
def test_orderings_are_compared_as_the_formulas_say(seed: int) -> None:
    one, other = two_lists(seed)
    rows = list(zip(one.tolist(), other.tolist(), strict=True))
    np.testing.assert_allclose(kendall_tau_union(one, other), [slow_union(*row, False) for row in rows], atol=1e-12)
    released = kendall_tau_union(one, other, variant="released")
    np.testing.assert_allclose(released, [slow_union(*row, True) for row in rows], atol=1e-12)
    for p in (0.3, 0.95, 1.0):
        np.testing.assert_allclose(
            rank_biased_overlap(one, other, p=p), [slow_overlap(*row, p) for row in rows], atol=1e-12
        )


@settings(max_examples=30)
@given(seeds)
def test_identities_of_the_orderings(seed: int) -> None:
    one, other = two_lists(seed)
    for measure in (kendall_tau_union, rank_biased_overlap):
        np.testing.assert_allclose(measure(one, one), 1)
        names = np.random.default_rng(seed).permutation(100).astype(str)
        np.testing.assert_allclose(measure(names[one], names[other]), measure(one, other), atol=1e-12)
    np.testing.assert_allclose(kendall_tau_union(one, one[:, ::-1]), -1)
    np.testing.assert_allclose(rank_biased_overlap(one, one + 100), 0)
    np.testing.assert_allclose(rank_biased_overlap(one, other), rank_biased_overlap(other, one))


def test_the_released_tau_depends_on_names() -> None:
    one, other, names = np.array([[0, 1, 2, 3, 4]]), np.array([[2, 0, 1, 4, 3]]), np.array([3, 4, 0, 2, 1])
    before, after = (
        kendall_tau_union(*lists, variant="released")[0] for lists in ((one, other), (names[one], names[other]))
    )
    assert before == pytest.approx(kendall_tau_union(one, other)[0])
    assert after != pytest.approx(before)


@settings(max_examples=30)
@given(seeds)
def test_effects_are_compared_as_the_formulas_say(seed: int) -> None:
    a, b, c, d = np.random.default_rng(seed).random((4, 6))
    assert rmse(a, c) == pytest.approx((sum((x - y) ** 2 for x, y in zip(a, c, strict=True)) / 6) ** 0.5)
    assert rmse(a, a) == 0
    assert effect_ratio(a, b, c, d) == pytest.approx((np.mean(c) - np.mean(d)) / (np.mean(a) - np.mean(b)))
    assert effect_ratio(a, b, a, b) == pytest.approx(1)
    assert effect_ratio(a, b, b, a) == pytest.approx(-1)
    assert effect_ratio(a, b, a[:3], a[:3]) == 0, "the repetition may have other queries"
    wanted = np.mean(a) / np.mean(b) - np.mean(c) / np.mean(d)
    assert delta_relative_improvement(a, b, c, d) == pytest.approx(wanted)
    assert delta_relative_improvement(a, b, a, b) == 0
    assert np.isnan(effect_ratio(a, a, c, d))
    assert np.isnan(delta_relative_improvement(a, 0 * b, c, d))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kendall_tau_union([[1, 2]], [[1, 2, 3]]), r"shapes \(1, 2\) and \(1, 3\)"),
        (lambda: rank_biased_overlap([1, 2], [1, 2]), r"must be \[n_queries, k\]"),
        (lambda: kendall_tau_union([[1, 2]], [[3, 3]]), "the repeated list of query 0 names an item twice"),
        (lambda: rank_biased_overlap([[1]], [[1]], p=0), "p = 0 is not above 0"),
        (lambda: kendall_tau_union([[1, 2]], [[1, 2]], variant="release"), "nearest valid: released"),
        (lambda: rmse([1.0], [1.0, 2.0]), r"shapes \(1,\), \(2,\)"),
        (lambda: rmse([], []), "not empty"),
    ],
)
def test_bad_input(call, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


def test_a_single_item_has_no_order() -> None:
    assert np.isnan(kendall_tau_union([[1]], [[1]])).all()
    assert rank_biased_overlap([[1]], [[1]]) == 1
