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
from statsmodels.stats.multitest import multipletests

from reprolib.errors import InputError
from reprolib.metrics import statistics
from reprolib.metrics.statistics import ClusterBootstrap, bootstrap_mean, holm, jackknife, permutation_test


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


def test_holm_is_that_of_statsmodels():
    rng = np.random.default_rng(8)
    for n in (1, 2, 12):
        p = rng.random(n) ** 3
        p[n // 2 :] = p[-1]
        np.testing.assert_allclose(holm(p), multipletests(p, method="holm")[1], atol=1e-15)
    assert holm([]).tolist() == []


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
print(boot.mean(values), boot.median(values), permutation_test(values - 0.45, clusters, seed=2))
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
