"""Every loss against loops over pairs in NumPy, its identities, and what the release does otherwise."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reprolib.errors import InputError
from reprolib.models import losses
from reprolib.models.losses import LOSSES, Batch, K

MANY = settings(max_examples=15)


def draw(seed: int, items: int, partners: int, r: int = 2, d: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Return unit rows and columns float64 [r, items * partners, d]; rows of an item are equal."""
    rng = np.random.default_rng(seed)
    rows = np.repeat(rng.normal(size=(r, items, d)), partners, axis=1)
    columns = rows + rng.normal(size=rows.shape)
    return tuple(x / np.linalg.norm(x, axis=2, keepdims=True) for x in (rows, columns))


def batch(rows: np.ndarray, columns: np.ndarray, partners: int, scale: float = 7.0, hardest: bool = True) -> Batch:
    scales = torch.full((len(rows), 1, 1), scale, dtype=torch.float64)
    return Batch(torch.from_numpy(rows), torch.from_numpy(columns), scales, partners, hardest)


def log_softmax(x: np.ndarray) -> np.ndarray:
    return x - np.log(np.exp(x).sum())


def slow_hinges(s: np.ndarray, hardest: bool, margin: float = 0.2) -> float:
    total = 0.0
    for i in range(len(s)):
        for line in (s[i], s[:, i]):
            costs = [max(0.0, margin + line[j] - s[i, i]) for j in range(len(s)) if j != i]
            total += max(costs) if hardest else sum(costs)
    return total


def slow_nce(s: np.ndarray, scale: float, partners: int) -> float:
    total = 0.0
    for matrix in (s, s.T):
        for i in range(len(s)):
            log = log_softmax(scale * matrix[i])
            total -= np.mean([log[j] for j in range(len(s)) if j // partners == i // partners])
    return total / 2 / len(s)


def slow_sdm(s: np.ndarray, partners: int) -> float:
    n, total = len(s), 0.0
    for matrix in (s, s.T):
        for i in range(n):
            log = log_softmax(50 * matrix[i])
            for j in range(n):
                label = (j // partners == i // partners) / partners
                total += math.exp(log[j]) * (log[j] - math.log(label + 1e-8)) / n
    return total


def slow_one_to_k(s: np.ndarray, scale: float, partners: int) -> float:
    items = s[::partners]
    to_partners = -np.mean(
        [sum(log_softmax(scale * items[i])[i * partners + k] for k in range(partners)) for i in range(len(items))]
    )
    to_items = -np.mean([log_softmax(scale * items[:, j])[j // partners] for j in range(len(s))])
    return (to_partners + to_items) / 2 / partners


def slow_transport(cost: np.ndarray, source: np.ndarray, target: np.ndarray) -> float:
    n, m = cost.shape
    total = 0.0
    for i in range(n):
        weights = np.array([target[j] * math.exp(-cost[i, j]) for j in range(m)])
        total += source[i] * sum(weights / weights.sum() * cost[i])
    for j in range(m):
        weights = np.array([source[i] * math.exp(-cost[i, j]) for i in range(n)])
        total += target[j] * sum(weights / weights.sum() * cost[:, j])
    return total


def slow_intra(w: np.ndarray, scale: float, partners: int) -> float:
    total = 0.0
    for i in range(len(w)):
        others = [j for j in range(len(w)) if j != i]
        bottom = math.log(sum(math.exp(scale * w[i, j]) for j in others))
        positives = [j for j in others if j // partners == i // partners]
        total -= np.mean([scale * w[i, j] - bottom for j in positives])
    return total / len(w)


def slow_set(s: np.ndarray, partners: int) -> float:
    found = []
    for i in range(len(s) // partners):
        own = 1 - s[i * partners, i * partners : (i + 1) * partners]
        found.append(slow_transport(own[None], np.ones(1), np.full(partners, 1 / partners)))
    return float(np.mean(found))


SLOW = {
    "sum-of-hinges": lambda s, w, k: slow_hinges(s, False),
    "hardest-negative": lambda s, w, k: slow_hinges(s, True),
    "infonce": lambda s, w, k: slow_nce(s, 7, 1),
    "infonce-fixed": lambda s, w, k: slow_nce(s, 20, 1),
    "infonce-k": lambda s, w, k: slow_nce(s, 7, k),
    "sdm": lambda s, w, k: slow_sdm(s, k),
    "one-to-k": lambda s, w, k: slow_one_to_k(s, 7, k),
    "transport": lambda s, w, k: slow_nce(s, 7, k) + 0.5 * slow_set(s, k),
    "intra-modal": lambda s, w, k: slow_nce(s, 7, k) + 0.5 * slow_intra(w, 7, k),
}


@pytest.mark.parametrize("name", LOSSES)
@MANY
@given(seed=st.integers(0, 2**16), items=st.integers(2, 4))
def test_every_loss_is_its_loop(name: str, seed: int, items: int) -> None:
    partners = LOSSES[name].partners
    rows, columns = draw(seed, items, partners)
    found = LOSSES[name].value(batch(rows, columns, partners))
    assert found.shape == (2,)
    for run in range(2):
        slow = SLOW[name](rows[run] @ columns[run].T, columns[run] @ columns[run].T, partners)
        assert float(found[run]) == pytest.approx(slow, rel=1e-5, abs=1e-9)


def test_every_loss_has_a_slow_reference_and_those_with_partners_take_the_same_number() -> None:
    assert set(SLOW) == set(LOSSES)
    assert {loss.partners for loss in LOSSES.values()} == {1, K}


@MANY
@given(seed=st.integers(0, 2**16))
def test_one_partner_makes_several_losses_one(seed: int) -> None:
    rows, columns = draw(seed, 5, 1)
    one = batch(rows, columns, 1)
    plain = losses.info_nce(one.scores, one.scale)
    torch.testing.assert_close(losses.one_to_k(one.scores, one.scale, 1), plain)
    early = batch(rows, columns, 1, hardest=False)
    for name, other in (("hardest-negative", early), ("sum-of-hinges", one)):
        torch.testing.assert_close(LOSSES[name].value(other), LOSSES["sum-of-hinges"].value(early))
    assert bool((LOSSES["hardest-negative"].value(one) <= LOSSES["sum-of-hinges"].value(one) + 1e-12).all())


@MANY
@given(seed=st.integers(0, 2**16), name=st.sampled_from(sorted(LOSSES)))
def test_the_order_of_items_and_the_other_runs_do_not_matter(seed: int, name: str) -> None:
    partners = LOSSES[name].partners
    rows, columns = draw(seed, 4, partners, r=3)
    whole = LOSSES[name].value(batch(rows, columns, partners))
    order = np.random.default_rng(seed).permutation(4)
    moved = (order[:, None] * partners + np.arange(partners)).ravel()
    torch.testing.assert_close(LOSSES[name].value(batch(rows[:, moved], columns[:, moved], partners)), whole)
    torch.testing.assert_close(LOSSES[name].value(batch(rows[1:2], columns[1:2], partners)), whole[1:2])


def test_released_sdm_divides_by_columns_which_shows_only_in_an_asymmetric_batch() -> None:
    rows, columns = draw(0, 4, 1)
    scores = batch(rows, columns, 1).scores
    symmetric = losses.same_item(4, 2)
    torch.testing.assert_close(losses.sdm(scores, symmetric), losses.sdm(scores, symmetric, released=True))
    torn = torch.eye(4, dtype=torch.bool)
    torn[0, 1] = True
    assert float((losses.sdm(scores, torn) - losses.sdm(scores, torn, released=True)).abs().min()) > 1e-3


@MANY
@given(seed=st.integers(0, 2**16), n=st.integers(1, 4), m=st.integers(1, 4))
def test_conditional_transport_between_weighted_sets(seed: int, n: int, m: int) -> None:
    rng = np.random.default_rng(seed)
    cost, source, target = rng.random((n, m)), rng.dirichlet(np.ones(n)), rng.dirichlet(np.ones(m))
    parts = [torch.from_numpy(part) for part in (cost, source, target)]
    found = float(losses.conditional_transport(*parts))
    assert found == pytest.approx(slow_transport(cost, source, target))
    assert 2 * cost.min() - 1e-12 <= found <= 2 * cost.max() + 1e-12
    back = losses.conditional_transport(parts[0].T, parts[2], parts[1])
    assert float(back) == pytest.approx(found)


def test_a_soft_margin_and_masked_negatives() -> None:
    rows, columns = draw(3, 4, 1)
    scores, off = batch(rows, columns, 1).scores, ~torch.eye(4, dtype=torch.bool)
    full = torch.full((2, 4), 0.2, dtype=torch.float64)
    torch.testing.assert_close(losses.hinges(scores, off, full, hardest=True), losses.hinges(scores, off, hardest=True))
    assert float(losses.hinges(scores, torch.zeros_like(off), hardest=True).abs().max()) == 0
    none = losses.hinges(scores, off, 0 * full, hardest=False)
    assert bool((none <= losses.hinges(scores, off, hardest=False)).all())


def test_an_unknown_loss_names_the_nearest() -> None:
    with pytest.raises(InputError, match="infonce"):
        losses.loss_named("info-nce")
