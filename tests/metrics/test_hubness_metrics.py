"""Hubness metrics against scipy and explicit formulas, and the released skewness of DBNorm."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import scipy.stats
import torch

from reprolib.errors import InputError
from reprolib.metrics import as_scorer, hubness_metrics, hubness_of_counts, k_occurrence

torch.set_num_threads(1)


def top_lists(q: np.ndarray, g: np.ndarray, k: int) -> np.ndarray:
    scores = as_scorer(q, g).scores().numpy()
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


@pytest.mark.parametrize(("seed", "k"), [(0, 1), (1, 5), (2, 10), (3, 30)])
def test_metrics_are_those_of_the_formulas(seed, k):
    rng = np.random.default_rng(seed)
    q, g = rng.standard_normal((50, 6)) + 0.5, rng.standard_normal((30, 6)) + 0.5
    counts = np.array([sum(j in row for row in top_lists(q, g, k)) for j in range(30)], float)
    found = hubness_metrics(q, g, k, block_bytes=400)
    assert counts.sum() == 50 * k
    mean = counts.mean()
    gini = sum(abs(a - b) for a in counts for b in counts) / (2 * 30 * counts.sum())
    wanted = {
        "skewness": scipy.stats.skew(counts) if k < 30 else 0.0,
        "kurtosis": scipy.stats.kurtosis(counts) if k < 30 else 0.0,
        "max k-occurrence": counts.max(),
        "mean absolute deviation": sum(abs(c - mean) for c in counts) / 30,
        "hub share": sum(c for c in counts if c >= 2 * mean) / counts.sum(),
        "anti-hub share": sum(c == 0 for c in counts) / 30,
        "Robin Hood": sum(c - mean for c in counts if c > mean) / counts.sum(),
        "Gini": gini,
    }
    assert found == pytest.approx(wanted, abs=1e-12)


def released_skewness(lists: np.ndarray) -> float:
    """DBNorm's get_skewness as described: the third standardised moment over the keys of a Counter of retrievals."""
    counted = Counter(lists.ravel().tolist())
    numbers = np.array([counted[key] for key in counted], float)
    return ((numbers - numbers.mean()) ** 3).mean() / numbers.std() ** 3


def test_retrieved_only_is_the_released_skewness():
    rng = np.random.default_rng(4)
    q, g = rng.standard_normal((60, 20)) + 0.3, rng.standard_normal((200, 20)) + 0.3
    lists = top_lists(q, g, 3)
    assert len(set(lists.ravel())) < 200, "there are anti-hubs to be dropped"
    released = hubness_metrics(q, g, 3, retrieved_only=True)
    whole = hubness_metrics(q, g, 3)
    assert released["skewness"] == pytest.approx(released_skewness(lists), abs=1e-12)
    assert released["skewness"] != pytest.approx(whole["skewness"], abs=0.05)
    assert {k: v for k, v in released.items() if k not in ("skewness", "kurtosis")} == {
        k: v for k, v in whole.items() if k not in ("skewness", "kurtosis")
    }


@pytest.mark.parametrize("m", [1, 2, 7, 100])
def test_extremes_by_hand(m):
    even = hubness_of_counts(np.full(m, 3))
    assert (even["Gini"], even["Robin Hood"], even["anti-hub share"], even["skewness"]) == (0, 0, 0, 0)
    one = np.zeros(m)
    one[m // 2] = 12
    found = hubness_of_counts(one)
    assert found["Gini"] == pytest.approx((m - 1) / m)
    assert found["Robin Hood"] == pytest.approx((m - 1) / m)
    assert found["anti-hub share"] == (m - 1) / m
    assert found["max k-occurrence"] == 12
    assert all(np.isfinite(v) for v in hubness_of_counts(one, retrieved_only=True).values())


def test_the_order_and_the_scale_of_the_counts_do_not_matter():
    counts = np.random.default_rng(5).poisson(2, 50)
    found = hubness_of_counts(counts)
    assert hubness_of_counts(counts[::-1]) == pytest.approx(found, abs=1e-12)
    tripled = hubness_of_counts(3 * counts)
    for name in ("skewness", "kurtosis", "hub share", "anti-hub share", "Robin Hood", "Gini"):
        assert tripled[name] == pytest.approx(found[name], abs=1e-12)


def test_k_occurrence_counts_lists_and_keeps_zeros():
    assert k_occurrence(np.array([[0, 2], [2, 3]]), 6).tolist() == [1, 0, 2, 1, 0, 0]
    with pytest.raises(InputError, match="no item was retrieved"):
        hubness_of_counts(np.zeros(4))
    for k in (0, -1, 5):
        with pytest.raises(InputError, match=f"k = {k} is not between 1 and the size of the gallery, 4"):
            hubness_metrics(np.ones((2, 3)), np.ones((4, 3)), k)
