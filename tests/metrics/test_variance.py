"""Variance components and power against slow references, tables and simulation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.power import TTestIndPower

from reprolib.errors import InputError
from reprolib.metrics.variance import (
    RESIDUAL,
    component_intervals,
    components,
    detectable,
    expected_range,
    power,
    spread,
)

NAMES = ("seed", "loss", "start")


def slow_two_way(values: np.ndarray) -> dict[str, float]:
    """Return the components of a crossed design of two factors, by the textbook formulas."""
    a, b = values.shape
    grand = values.mean()
    rows = [values[i].mean() for i in range(a)]
    columns = [values[:, j].mean() for j in range(b)]
    ms_a = b * sum((row - grand) ** 2 for row in rows) / (a - 1)
    ms_b = a * sum((column - grand) ** 2 for column in columns) / (b - 1)
    rest = sum((values[i, j] - rows[i] - columns[j] + grand) ** 2 for i, j in itertools.product(range(a), range(b)))
    ms_e = rest / (a - 1) / (b - 1)
    return {"seed": (ms_a - ms_e) / b, "loss": (ms_b - ms_e) / a, RESIDUAL: ms_e}


@settings(max_examples=30)
@given(seed=st.integers(0, 2**16), a=st.integers(2, 6), b=st.integers(2, 4))
def test_two_factors_as_in_the_textbook(seed: int, a: int, b: int) -> None:
    values = np.random.default_rng(seed).normal(size=(a, b))
    found = components(values, NAMES[:2])
    assert found == pytest.approx(slow_two_way(values))


@settings(max_examples=20)
@given(seed=st.integers(0, 2**16), shift=st.floats(-5, 5), scale=st.floats(0.1, 5))
def test_shift_scale_and_order_of_axes_and_levels(seed: int, shift: float, scale: float) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(4, 3, 2))
    whole = components(values, NAMES)
    moved = components(shift + scale * values, NAMES)
    assert moved == pytest.approx({name: scale**2 * value for name, value in whole.items()}, abs=1e-9)
    turned = components(values.transpose(2, 0, 1), ("start", "seed", "loss"))
    assert turned == pytest.approx(whole)
    assert components(values[rng.permutation(4)], NAMES) == pytest.approx(whole)


def test_exact_effects_are_found_and_nothing_else() -> None:
    seeds, losses = np.array([-1.0, 0.0, 1.0]), np.array([2.0, -2.0])
    found = components(seeds[:, None, None] + losses[:, None] + np.zeros((3, 2, 4)), NAMES)
    assert found == pytest.approx({"seed": 1.0, "loss": 8.0, "start": 0.0, RESIDUAL: 0.0}, abs=1e-12)


def test_components_are_unbiased_in_simulation() -> None:
    rng, truth = np.random.default_rng(0), {"seed": 1.0, "loss": 4.0, "start": 0.25}
    drawn = []
    for _ in range(3000):
        parts = [np.sqrt(v) * rng.normal(size=n) for v, n in zip(truth.values(), (6, 4, 3), strict=True)]
        values = parts[0][:, None, None] + parts[1][:, None] + parts[2] + 0.5 * rng.normal(size=(6, 4, 3))
        drawn.append(list(components(values, NAMES).values()))
    wanted, error = [*truth.values(), 0.25], np.std(drawn, axis=0) / np.sqrt(len(drawn))
    assert (np.abs(np.mean(drawn, axis=0) - wanted) < 4 * error).all()


def test_jackknife_intervals_are_the_loop_over_left_out_seeds() -> None:
    values = np.random.default_rng(1).normal(size=(5, 3, 2))
    found = component_intervals(values, NAMES)
    left_out = [components(np.delete(values, seed, 0), NAMES)["seed"] for seed in range(5)]
    error = np.sqrt(4 / 5 * sum((value - np.mean(left_out)) ** 2 for value in left_out))
    half = scipy.stats.t.ppf(0.975, 4) * error
    whole = components(values, NAMES)["seed"]
    assert (found["seed"].value, found["seed"].low, found["seed"].high) == pytest.approx(
        (whole, whole - half, whole + half)
    )


@pytest.mark.parametrize("n", [2, 3, 5, 10, 50])
def test_the_detectable_difference_is_that_of_statsmodels(n: int) -> None:
    wanted = TTestIndPower().solve_power(nobs1=n, power=0.8, alpha=0.05)
    assert detectable(0.02, n) == pytest.approx(0.02 * float(wanted), rel=1e-3)
    assert power(detectable(0.02, n), 0.02, n) == pytest.approx(0.8)


def test_more_seeds_see_smaller_differences_and_one_sees_none() -> None:
    found = [detectable(1.0, n) for n in (2, 3, 5, 10, 100)]
    assert found == sorted(found, reverse=True) and found[-1] > 0
    assert detectable(1.0, 1) == float("inf") and detectable(0.0, 5) == 0.0
    assert detectable(3.0, 7) == pytest.approx(3 * detectable(1.0, 7))
    assert power(0.0, 1.0, 10) == pytest.approx(0.05)


def test_power_in_simulation() -> None:
    rng, gap = np.random.default_rng(0), detectable(1.0, 5)
    p = scipy.stats.ttest_ind(rng.normal(size=(4000, 5)) + gap, rng.normal(size=(4000, 5)), axis=1).pvalue
    assert abs((p < 0.05).mean() - 0.8) < 4 * np.sqrt(0.8 * 0.2 / 4000)


def test_the_expected_range_by_simulation_and_in_closed_form() -> None:
    assert expected_range(1) == pytest.approx(0, abs=1e-9)
    assert expected_range(2) == pytest.approx(2 / np.sqrt(np.pi))
    ranges = np.ptp(np.random.default_rng(0).normal(size=(20000, 10)), axis=1)
    assert abs(ranges.mean() - expected_range(10)) < 4 * ranges.std() / np.sqrt(20000)


def test_the_spread_covers_the_truth_as_often_as_it_says() -> None:
    found = [spread(row) for row in np.random.default_rng(0).normal(size=(3000, 10))]
    assert abs(np.mean([one.low <= 1 <= one.high for one in found]) - 0.95) < 4 * np.sqrt(0.95 * 0.05 / 3000)
    assert found[0].value == pytest.approx(np.std(np.random.default_rng(0).normal(size=(3000, 10))[0], ddof=1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: components(np.zeros((3, 1)), NAMES[:2]), "two levels"),
        (lambda: components(np.zeros((3, 2)), NAMES), "one axis a factor"),
        (lambda: components(np.full((3, 2), np.nan), NAMES[:2]), "NaN"),
        (lambda: component_intervals(np.zeros((2, 2)), NAMES[:2]), "2 seeds"),
        (lambda: spread(np.zeros(1)), "two at least"),
        (lambda: detectable(-1.0, 3), "sd of at least 0"),
        (lambda: expected_range(0), "at least one value"),
    ],
)
def test_bad_input(call, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
