"""What gc and invgc-localadj do tile by tile with banks of several tiles, against all similarities at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reprolib import mapped, methods, ranking
from reprolib.methods import globally_corrected, graph_convolution
from reprolib.methods.base import TILE, Bank, in_threads

N = 4 * TILE + 100


def unit(rng: np.random.Generator, n: int, width: int = 8) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.as_tensor(rng.standard_normal((n, width)), dtype=torch.float32))


def all_similarities(bank: Bank, items: torch.Tensor) -> np.ndarray:
    return torch.cat([tile.clone() for tile in bank.similarities(items)], 1).numpy()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each search for neighbours guessed a bound."""
    seen, inner = [], graph_convolution._weights

    def counted(items, bank, pool, guess=True):
        seen.append(guess)
        return inner(items, bank, pool, guess)

    monkeypatch.setattr(graph_convolution, "_weights", counted)
    return seen


@pytest.mark.parametrize("order", ["any", "near first", "near last", "copies", "all alike"])
@pytest.mark.parametrize("pool", [1, 7, 300, TILE, 3 * TILE, N])
def test_the_pool_is_that_of_a_stable_sort(order, pool, calls):
    rng = np.random.default_rng(pool)
    items, rows = unit(rng, 5), unit(rng, N)
    if order == "copies":  # every row some thirty times, at places far from each other
        rows = rows[rng.integers(0, 256, N)]
    elif order == "all alike":
        rows = rows[:1].repeat(N, 1)
    elif order != "any":
        items = items[:1].repeat(5, 1)
        near = (rows @ items[0]).argsort(descending=order == "near first")
        rows = rows[near]
    bank = Bank(rows, "bank")
    similarities = all_similarities(bank, items)
    found = graph_convolution._weights(items, bank, pool).tocsr()
    for row, wanted in enumerate(similarities):
        chosen = np.sort(np.argsort(-wanted, kind="stable")[:pool])
        places, values = (part[pool * row : pool * (row + 1)] for part in (found.indices, found.data))
        order_of = np.argsort(places)
        np.testing.assert_array_equal(places[order_of], chosen)
        np.testing.assert_array_equal(values[order_of], wanted[chosen])
    if order in ("any", "near last"):
        assert calls == [True]  # the guess held
    if order == "near first" and pool == 300:
        assert calls == [True, False]


@pytest.mark.parametrize("items", [1, 3, 70])
def test_a_message_is_the_same_however_many_items_are_taken_at_a_time(items, monkeypatch):
    rng = np.random.default_rng(5)
    gallery, bank = unit(rng, 70), Bank(unit(rng, N), "bank")
    wanted = graph_convolution._local_message(gallery, bank, 0.05)
    monkeypatch.setattr(graph_convolution, "_ITEMS", items)
    found = graph_convolution._local_message(gallery, bank, 0.05)
    assert torch.equal(found, wanted)
    similarities = all_similarities(bank, gallery).astype(np.float64)
    pool = int(0.05 * N)
    for row, given_ in zip(found, similarities, strict=True):
        chosen = np.argsort(-given_, kind="stable")[:pool]
        message = given_[chosen] @ bank.embeddings[torch.as_tensor(chosen)].double().numpy() / pool
        np.testing.assert_allclose(row, message, rtol=0, atol=1e-7)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([TILE, 3 * TILE]), st.integers(1, 40))
def test_ranks_of_gc_do_not_depend_on_the_parts(seed, width, step):
    rng = np.random.default_rng(seed)
    queries, gallery, bank = unit(rng, 60), unit(rng, 37), unit(rng, N)[rng.integers(0, N // 3, N)]
    queries[:20] = bank[:20]  # equal to entries of the bank: these do not stand above
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(globally_corrected, "_WIDTH", width)
        patch.setattr(globally_corrected, "_ITEMS", step)
        scorer = methods.fit("gc", queries, gallery, query_bank=bank, normalize=False)
    own, theirs = (all_similarities(Bank(rows, "bank"), gallery) for rows in (queries, bank))
    higher = (theirs[:, None] > own[:, :, None]).sum(2).T
    found = scorer.transform(torch.zeros(60, 37), slice(0, 60)) / -(2.0**32)
    np.testing.assert_array_equal(found, higher)


@pytest.mark.parametrize("large", [1, 2**27])
@pytest.mark.parametrize("n", [2**16 - 1, 2**16, 3 * 2**16])
def test_ranks_of_gc_may_be_high_and_lie_in_a_file(n, large, monkeypatch):
    made = []
    monkeypatch.setattr(ranking, "LARGE", large)
    monkeypatch.setattr(globally_corrected, "scratch", lambda *of: made.append(of) or mapped.scratch(*of))
    rng = np.random.default_rng(n)
    gallery, bank = unit(rng, 3), unit(rng, n)
    queries = torch.cat([unit(rng, 40), -gallery, gallery])  # below the whole bank, or above it
    scorer = methods.fit("gc", queries, gallery, query_bank=bank, normalize=False)
    own, theirs = (all_similarities(Bank(rows, "bank"), gallery) for rows in (queries, bank))
    higher = np.stack([(theirs > one[:, None]).sum(1) for one in own.T])
    assert higher.max() >= n - 1 and higher.min() <= 1
    assert len(made) == (large == 1)
    found = scorer.transform(torch.zeros(len(queries), 3), slice(0, len(queries))) / -(2.0**32)
    np.testing.assert_array_equal(found, higher)


def test_threads_return_in_the_order_of_the_parts(threads):
    for count in (1, 2, 3):
        threads(count)
        assert in_threads(lambda a, b: (a, b), range(7), "abcdefg") == list(zip(range(7), "abcdefg", strict=True))
        assert in_threads(abs, []) == []
        assert torch.get_num_threads() == count
