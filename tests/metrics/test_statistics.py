"""Intervals and tests against slow references, by simulation, and byte for byte across processes."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import DescrStatsW

from reprolib.errors import InputError
from reprolib.metrics import statistics
from reprolib.metrics.statistics import (
    ClusterBootstrap,
    Interval,
    benjamini_hochberg,
    bootstrap_mean,
    equivalent,
    holm,
    jackknife,
    permutation_test,
    tost,
)


def test_the_bootstrap_is_the_loop_over_drawn_clusters():
    rng = np.random.default_rng(0)
    clusters = np.array(["b", "a", "c", "a", "d", "b", "a", "e"])
    values = rng.standard_normal(8)
    boot = ClusterBootstrap(clusters, seed=1, resamples=300)
    names = sorted(set(clusters))
    means, medians = [], []
    for weights in boot.weights:
        assert weights.sum() == len(names)
        drawn = np.concatenate([np.repeat(values[clusters == c], w) for c, w in zip(names, weights, strict=True)])
        means.append(drawn.mean())
        medians.append(np.sort(drawn)[(len(drawn) - 1) // 2])
    for found, replicas, value in (
        (boot.mean(values), means, values.mean()),
        (boot.median(values), medians, np.median(values)),
    ):
        assert found.value == pytest.approx(value)
        assert (found.low, found.high) == pytest.approx(tuple(np.percentile(replicas, [2.5, 97.5])))


def test_the_bootstrap_agrees_with_scipy_where_every_query_is_a_cluster():
    values = np.random.default_rng(2).exponential(size=80)
    wanted = scipy.stats.bootstrap((values,), np.mean, n_resamples=9999, method="percentile", rng=3)
    found = bootstrap_mean(values, np.arange(80), seed=4, resamples=9999)
    error = wanted.standard_error
    assert found.low == pytest.approx(wanted.confidence_interval.low, abs=0.1 * error)
    assert found.high == pytest.approx(wanted.confidence_interval.high, abs=0.1 * error)


def test_coverage_with_clusters():
    """93 to 97 % of nominal 95 % intervals hold the true mean; taking queries for independent holds far less."""
    rng = np.random.default_rng(5)
    clusters = np.repeat(np.arange(60), 5)
    blind, held = 0, 0
    boot, naive = ClusterBootstrap(clusters, resamples=500), ClusterBootstrap(np.arange(300), resamples=500)
    runs = 1200
    for run in range(runs):
        values = rng.standard_normal(60)[clusters] + 0.5 * rng.standard_normal(300)
        interval = boot.mean(values)
        held += interval.low <= 0 <= interval.high
        if run < 100:
            interval = naive.mean(values)
            blind += interval.low <= 0 <= interval.high
    assert 0.93 <= held / runs <= 0.97
    assert blind < 80


def slow_bca(values: np.ndarray, clusters: np.ndarray, weights: np.ndarray, level: float) -> list[float]:
    """The recipe of Efron and Tibshirani 1993, (14.9) to (14.15), over drawn clusters."""
    names = sorted(set(clusters))
    parts = [values[clusters == c] for c in names]
    replicas = [
        np.concatenate([np.repeat(part, w) for part, w in zip(parts, row, strict=True)]).mean() for row in weights
    ]
    value = values.mean()
    less = np.mean([r < value - 1e-12 for r in replicas])
    z0 = scipy.stats.norm.ppf(less + np.mean([abs(r - value) <= 1e-12 for r in replicas]) / 2)
    left_out = [np.concatenate(parts[:i] + parts[i + 1 :]).mean() for i in range(len(parts))]
    u = [np.mean(left_out) - theta for theta in left_out]
    a = sum(x**3 for x in u) / (6 * sum(x**2 for x in u) ** 1.5)
    z = [z0 + scipy.stats.norm.ppf((1 + sign * level) / 2) for sign in (-1, 1)]
    return [float(np.quantile(replicas, scipy.stats.norm.cdf(z0 + t / (1 - a * t)))) for t in z]


@settings(max_examples=20)
@given(st.integers(0, 10**6))
def test_bca_is_its_recipe(seed: int):
    rng = np.random.default_rng(seed)
    clusters, values = rng.integers(0, 7, 20), rng.exponential(size=20).round(1)
    boot = ClusterBootstrap(clusters, seed=seed, resamples=200, level=0.9)
    found = boot.mean(values, "bca")
    assert [found.low, found.high] == pytest.approx(slow_bca(values, clusters, boot.weights, 0.9))
    assert found.value == boot.mean(values).value


def test_bca_agrees_with_scipy_where_every_query_is_a_cluster():
    values = np.random.default_rng(2).exponential(size=40)
    wanted = scipy.stats.bootstrap((values,), np.mean, n_resamples=9999, method="bca", rng=3)
    found = bootstrap_mean(values, np.arange(40), seed=4, resamples=9999, method="bca")
    plain = bootstrap_mean(values, np.arange(40), seed=4, resamples=9999)
    error = wanted.standard_error
    assert found.low == pytest.approx(wanted.confidence_interval.low, abs=0.1 * error)
    assert found.high == pytest.approx(wanted.confidence_interval.high, abs=0.1 * error)
    assert found.low > plain.low and found.high > plain.high, "the long tail is on the right"


def test_bca_of_what_does_not_vary_is_a_point():
    clusters = np.arange(30) // 3
    for values in (np.full(30, 0.1), np.ones(30), np.zeros(30)):
        found = bootstrap_mean(values, clusters, method="bca", resamples=50)
        assert found.low == found.high == found.value == pytest.approx(values[0])
    with pytest.raises(InputError, match="nearest valid: percentile"):
        bootstrap_mean(np.zeros(3), np.arange(3), method="percent")


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_coverage_of_a_skewed_mean(method: str):
    """93 to 97 % of nominal 95 % intervals hold the true share of hits, with clusters of unequal size."""
    rng = np.random.default_rng(11)
    clusters = np.repeat(np.arange(150), np.arange(150) % 3 + 1)
    boot = ClusterBootstrap(clusters, resamples=400)
    held, runs = 0, 1000
    for _ in range(runs):
        ease = rng.beta(1, 4, 150)
        interval = boot.mean((rng.random(len(clusters)) < ease[clusters]).astype(float), method)
        held += interval.low <= 0.2 <= interval.high
    assert 0.93 <= held / runs <= 0.97


def test_equivalence_is_an_interval_inside_the_margin():
    assert equivalent(Interval(0.51, 0.49, 0.53), 0.5, 0.03)
    assert not equivalent(Interval(0.51, 0.49, 0.54), 0.5, 0.03)
    assert not equivalent(Interval(0.5, 0.3, 0.7), 0.5, 0.1), "covering the target is no evidence"
    assert equivalent(Interval(0.5, 0.5, 0.5), 0.5, 0)
    for margin in (-1, float("nan")):
        with pytest.raises(InputError, match="margin"):
            equivalent(Interval(0.5, 0.5, 0.5), 0.5, margin)


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.floats(0.05, 2))
def test_tost_is_that_of_statsmodels_where_every_query_is_a_cluster(seed: int, margin: float):
    values = np.random.default_rng(seed).standard_normal(25) / 2
    wanted = DescrStatsW(values).ttost_mean(-margin, margin)[0]
    assert tost(values, np.arange(25), margin) == pytest.approx(wanted, abs=1e-12)
    interval = scipy.stats.t.interval(0.9, 24, values.mean(), scipy.stats.sem(values))
    assert (wanted < 0.05) == equivalent(Interval(values.mean(), *interval), 0, margin)


def test_tost_keeps_its_level_with_clusters():
    """At the edge of the margin 5 % are called equivalent, also where captions of an image agree."""
    rng, clusters, runs = np.random.default_rng(12), np.repeat(np.arange(40), 4), 1500
    called = sum(tost(1 + rng.standard_normal(40)[clusters], clusters, 1.0) < 0.05 for _ in range(runs))
    assert 0.03 < called / runs < 0.07


def test_tost_by_hand():
    assert tost(np.zeros(4), np.arange(4), 0.1) == 0
    assert tost(np.ones(4), np.arange(4), 0.1) == 1
    for arguments, message in (
        ((np.zeros(4), np.zeros(4), 0.1), "at least two"),
        ((np.zeros(4), np.arange(4), 0.0), "margin = 0.0"),
        ((np.zeros(3), np.arange(4), 0.1), "3 values, but cluster labels for 4"),
        ((np.array([0, np.nan]), np.arange(2), 0.1), "query 1 is NaN"),
    ):
        with pytest.raises(InputError, match=message):
            tost(*arguments)


def test_the_same_resamples_serve_every_system():
    clusters = np.arange(30) // 3
    one, other = np.random.default_rng(6).random((2, 30))
    boot = ClusterBootstrap(clusters, resamples=50)
    np.testing.assert_array_equal(boot.weights, ClusterBootstrap(clusters, resamples=50).weights)
    assert boot.mean(one - one).low == boot.mean(one - one).high == 0
    assert boot.mean(one - other).value == pytest.approx(boot.mean(one).value - boot.mean(other).value)
    with pytest.raises(InputError, match="29 values, but cluster labels for 30"):
        boot.mean(one[1:])
    with pytest.raises(InputError, match="no queries"):
        ClusterBootstrap(np.array([]))


def exact_p(differences: np.ndarray, clusters: np.ndarray) -> float:
    sums = np.array([differences[clusters == c].sum() for c in np.unique(clusters)])
    signs = np.array(list(itertools.product([-1, 1], repeat=len(sums))))
    return float((np.abs(signs @ sums) >= abs(sums.sum()) - 1e-9).mean())


@pytest.mark.parametrize("seed", range(4))
def test_the_permutation_test_approaches_the_enumeration_of_all_signs(seed):
    rng = np.random.default_rng(seed)
    clusters = np.repeat(np.arange(9), 2)
    for differences in (rng.integers(-1, 2, 18).astype(float), rng.standard_normal(18) + 0.5, rng.random(18) / 10):
        wanted = exact_p(differences, clusters)
        found = permutation_test(differences, clusters, seed=seed)
        assert abs(found - wanted) < 5 * np.sqrt(wanted * (1 - wanted) / 9999) + 2e-4


def test_p_is_uniform_when_nothing_is_the_case():
    rng = np.random.default_rng(7)
    clusters = np.repeat(np.arange(40), 2)
    p = [permutation_test(rng.standard_normal(80), clusters, seed=i, permutations=199) for i in range(300)]
    assert scipy.stats.kstest(p, "uniform").pvalue > 0.01
    assert min(p) >= 1 / 200


def test_p_by_hand():
    assert permutation_test(np.zeros(5), np.arange(5)) == 1
    assert permutation_test(np.array([0.1, 0.2, -0.3]), np.arange(3)) == 1, "the mean is 0 but for rounding"
    assert permutation_test(np.ones(40), np.arange(40)) == 1 / 10000
    with pytest.raises(InputError, match="NaN"):
        permutation_test(np.array([0.0, np.nan]), np.arange(2))
    with pytest.raises(InputError, match="3 values, but cluster labels for 2"):
        permutation_test(np.zeros(3), np.arange(2))


@pytest.mark.parametrize(("adjust", "name"), [(holm, "holm"), (benjamini_hochberg, "fdr_bh")])
def test_adjusted_p_values_are_those_of_statsmodels(adjust, name: str):
    rng = np.random.default_rng(8)
    for n in (1, 2, 12):
        p = rng.random(n) ** 3
        p[n // 2 :] = p[-1]
        np.testing.assert_allclose(adjust(p), multipletests(p, method=name)[1], atol=1e-15)
    assert adjust([]).tolist() == []
    p = rng.random(30)
    assert (p <= benjamini_hochberg(p)).all() and (benjamini_hochberg(p) <= holm(p)).all()


def test_the_jackknife_of_a_mean_is_its_standard_error():
    values = np.random.default_rng(9).standard_normal(30)
    found = jackknife(lambda mask: {"mean": values[mask].mean()}, np.arange(30))["mean"]
    half = scipy.stats.t.ppf(0.975, 29) * values.std(ddof=1) / np.sqrt(30)
    assert (found.value, found.low, found.high) == pytest.approx(
        (values.mean(), values.mean() - half, values.mean() + half)
    )
    grouped = np.random.default_rng(10).standard_normal(3000)
    found = jackknife(lambda mask: {"mean": grouped[mask].mean()}, np.arange(3000))["mean"]
    wanted = 2 * scipy.stats.t.ppf(0.975, 29) * grouped.std() / np.sqrt(3000)
    assert found.high - found.low == pytest.approx(wanted, rel=0.5)
    alone = jackknife(lambda mask: {"mean": 1.0}, np.zeros(4))["mean"]
    assert alone.value == 1 and np.isnan(alone.low)


BYTES = """
import numpy as np, torch, sys
torch.set_num_threads(int(sys.argv[1]))
from reprolib.metrics.statistics import *
clusters = np.array([f"image {i // 3}" for i in range(90)])
values = np.random.default_rng(0).random(90)
boot = ClusterBootstrap(clusters, seed=1)
print(boot.mean(values), boot.mean(values, "bca"), boot.median(values), tost(values - 0.45, clusters, 0.1))
print(permutation_test(values - 0.45, clusters, seed=2))
print(jackknife(lambda mask: {"a": values[mask].mean(), "b": values[mask].max()}, clusters, seed=3))
"""


def test_intervals_are_the_same_bytes_in_every_process():
    root = Path(statistics.__file__).resolve().parents[2]
    found = set()
    for hash_seed, threads in (("0", "1"), ("4711", "2")):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed, "OMP_NUM_THREADS": threads}
        command = [sys.executable, "-c", BYTES, threads]
        found.add(subprocess.run(command, cwd=root, env=environment, capture_output=True, check=True).stdout)
    assert len(found) == 1 and found.pop()
