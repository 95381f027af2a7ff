"""Retrieval metrics against ranx, against brute force over the order of ties, and by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import ranx
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reprolib.errors import InputError
from reprolib.metrics import as_scorer, query_values, retrieval_metrics
from reprolib.metrics.retrieval import at_r
from reprolib.ranking import rank

torch.set_num_threads(1)


def sample(seed: int, n: int, m: int, several: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    relevance = rng.random((n, m)) < (0.1 if several else 0)
    relevance[np.arange(n), rng.integers(0, m, n)] = True
    return rng.standard_normal((n, 8)), rng.standard_normal((m, 8)), relevance


@pytest.mark.parametrize("several", [False, True])
def test_metrics_are_those_of_ranx(several):
    q, g, relevance = sample(0, 30, 40, several)
    metrics, values = retrieval_metrics(q, g, relevance, per_query=True)
    scores = as_scorer(q, g).scores().numpy().astype(float)
    qrels = {f"q{i}": {f"g{j}": 1 for j in np.flatnonzero(row)} for i, row in enumerate(relevance)}
    run = {f"q{i}": {f"g{j}": float(s) for j, s in enumerate(row)} for i, row in enumerate(scores)}
    names = {"R@1": "hit_rate@1", "R@5": "hit_rate@5", "R@10": "hit_rate@10", "MRR": "mrr", "mAP": "map"}
    names["R-precision"] = "r-precision"
    wanted = ranx.evaluate(ranx.Qrels(qrels), ranx.Run(run), list(names.values()), threads=1)
    for ours, theirs in names.items():
        assert metrics[ours] == pytest.approx(wanted[theirs], abs=1e-12)
        assert metrics[ours] == pytest.approx(values[ours].mean(), abs=1e-15)
    best = [1 + min((row > row[j]).sum() for j in np.flatnonzero(r)) for row, r in zip(scores, relevance, strict=True)]
    assert metrics["median rank"] == np.median(best)
    assert metrics["mean rank"] == np.mean(best)
    np.testing.assert_array_equal(values["rank"], best)
    assert all(isinstance(value, float) for value in metrics.values())
    assert all(value.shape == (30,) and value.dtype == np.float64 for value in values.values())


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 6))
def test_the_bounds_bracket_every_order_of_the_ties(seed, m):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 3, (2, m)).astype(np.float32)
    relevance = rng.random((2, m)) < 0.4
    relevance[:, rng.integers(0, m)] = True
    nothing = np.ones((2, 1)), np.ones((m, 1))
    values = query_values(rank(as_scorer(*nothing, scores), relevance, 0), ks=(1, 2, 3))
    for query in range(2):
        reached = []
        for tie_break in itertools.permutations(range(m)):
            order = np.lexsort((tie_break, -scores[query]))
            ranks = 1 + np.flatnonzero(relevance[query, order])
            reached.append(ranks[0])
            if tie_break == tuple(range(m)):
                assert values["rank"][query] == ranks[0], "ties break by gallery index"
                assert values["mAP"][query] == pytest.approx(np.mean(np.arange(1, len(ranks) + 1) / ranks))
                assert values["MRR"][query] == 1 / ranks[0]
        assert (values["rank optimistic"][query], values["rank pessimistic"][query]) == (min(reached), max(reached))
        for k in (1, 2, 3):
            assert values[f"R@{k} optimistic"][query] == (min(reached) <= k)
            assert values[f"R@{k} pessimistic"][query] == (max(reached) <= k)


def test_by_hand():
    scores = np.array([[0.9, 0.8, 0.7, 0.6], [0.1, 0.5, 0.5, 0.5]])
    nothing = np.ones((2, 1)), np.ones((4, 1))
    found = retrieval_metrics(*nothing, [[1, 3], [2]], scores=scores, ks=(1, 2))
    assert found == {
        "R@1": 0.0,
        "R@1 optimistic": 0.5,
        "R@1 pessimistic": 0.0,
        "R@2": 1.0,
        "R@2 optimistic": 1.0,
        "R@2 pessimistic": 0.5,
        "MRR": 0.5,
        "mAP": 0.5,
        "mAP@R": 0.125,
        "R-precision": 0.25,
        "median rank": 2.0,
        "mean rank": 2.0,
    }


def at_r_slowly(scores: np.ndarray, relevant: set[int]) -> tuple[float, float]:
    """mAP@R and R-precision of one query, by their definitions."""
    order = np.argsort(-scores, kind="stable").tolist()
    hits = [item in relevant for item in order[: len(relevant)]]
    precisions = [sum(hits[: place + 1]) / (place + 1) if hit else 0.0 for place, hit in enumerate(hits)]
    return sum(precisions) / len(relevant), sum(hits) / len(relevant)


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 9))
def test_at_r_is_its_definition_ties_included(seed, n, m):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 4, (n, m)).astype(np.float32)
    relevance = rng.random((n, m)) < 0.5
    relevance[np.arange(n), rng.integers(0, m, n)] = True
    result = rank(as_scorer(np.ones((n, 1)), np.ones((m, 1)), scores), relevance, 0)
    values = query_values(result)
    for query in range(n):
        wanted = at_r_slowly(scores[query], set(np.flatnonzero(relevance[query]).tolist()))
        assert (values["mAP@R"][query], values["R-precision"][query]) == pytest.approx(wanted, abs=1e-12)
    deeper = at_r(result, np.full(n, m))
    np.testing.assert_allclose(deeper["mAP@R"], values["mAP"], atol=1e-12)
    np.testing.assert_array_equal(deeper["R-precision"], values["R-precision"])


def test_a_constant_scorer_scores_chance_and_its_bounds_say_so():
    n = 40
    found = retrieval_metrics(np.ones((n, 3)), np.ones((n, 3)), np.eye(n, dtype=bool))
    assert (found["R@1"], found["R@10"]) == (pytest.approx(1 / n), pytest.approx(10 / n))
    assert (found["R@1 optimistic"], found["R@10 pessimistic"]) == (1, 0)


def test_wrong_scores_are_named():
    q, g, relevance = sample(1, 3, 4, False)
    with pytest.raises(InputError, match=r"shape \(4, 3\), expected \(3, 4\)"):
        retrieval_metrics(q, g, relevance, scores=np.ones((4, 3)))
    with pytest.raises(InputError, match="scores hold NaN"):
        retrieval_metrics(q, g, relevance, scores=np.full((3, 4), np.nan))
    with pytest.raises(InputError, match="query 0 has no relevant"):
        retrieval_metrics(q, g, np.zeros((3, 4), bool))
    with pytest.raises(InputError, match="queries: row 0"):
        retrieval_metrics(q * np.nan, g, relevance)


def test_a_score_matrix_is_not_changed():
    q, g, relevance = sample(2, 5, 6, True)
    scores = np.random.default_rng(0).random((5, 6)).astype(np.float32)
    before = scores.tobytes()
    retrieval_metrics(q, g, relevance, scores=scores)
    as_scorer(q, g, scores).scores().mul_(0)
    assert scores.tobytes() == before
