"""Intra-modal metrics against scikit-learn, against a plain loop over sorted rows, and against counted ranks."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from reprolib import ranking
from reprolib.errors import InputError
from reprolib.metrics import as_scorer, retrieval_metrics
from reprolib.metrics.intra_modal import (
    METRICS,
    TRAPEZOIDS,
    answerable,
    intra_modal_metrics,
    nearest,
    rank_by_sorting,
    same_group,
)
from reprolib.ranking import Scorer

torch.set_num_threads(1)


def case(seed: int, n: int, m: int, levels: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Return scores [n, m] with many ties, and a relevance with one or more relevant items per query."""
    rng = np.random.default_rng(seed)
    relevance = rng.random((n, m)) < rng.choice([0.1, 0.5, 0.9])
    relevance[np.arange(n), rng.integers(0, m, n)] = True
    return rng.integers(0, levels, (n, m)).astype(np.float32), relevance


def nothing(n: int, m: int) -> tuple[np.ndarray, np.ndarray]:
    """Return embeddings where the scores are given."""
    return np.ones((n, 1)), np.ones((m, 1))


def slow(scores: np.ndarray, relevance: np.ndarray, drop=(), deeper: bool = False) -> dict[str, float]:
    """Return the metrics of one query by the definitions: leave out, sort stably, walk down the list."""
    items = [j for j in range(len(scores)) if j not in np.atleast_1d(drop)]
    found = relevance[sorted(items, key=lambda j: (-scores[j], j))]
    r = int(found.sum())
    depth = int(relevance.sum()) if deeper else r
    precisions = [found[: i + 1].mean() if found[i] else 0.0 for i in range(len(found))]
    curve = [(0.0, 1.0)]  # recall and precision: a step along, then down
    area = 0.0
    for i in range(len(found)):
        if found[i]:
            before = found[:i].mean() if i else 1.0
            curve += [(curve[-1][0], before), (found[: i + 1].sum() / r, precisions[i])]
    for (left, one), (right, other) in pairwise(curve):
        area += (right - left) * (one + other) / 2
    return {
        TRAPEZOIDS: area,
        "mAP": sum(precisions) / r,
        "mAP@R": sum(precisions[:depth]) / r,
        "R-precision": found[:r].sum() / r,
        "R@1": float(found[0]),
    }


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 12), st.sampled_from([32, 400, 10**6]))
def test_metrics_are_those_of_a_plain_walk_down_the_list(seed, n, m, block_bytes):
    scores, relevance = case(seed, n, m)
    means, values = intra_modal_metrics(
        *nothing(n, m), relevance, scores=scores, per_query=True, block_bytes=block_bytes
    )
    wanted = [slow(row, match) for row, match in zip(scores, relevance, strict=True)]
    for name in METRICS:
        np.testing.assert_allclose(values[name], [query[name] for query in wanted], rtol=0, atol=1e-12)
        assert means[name] == pytest.approx(values[name].mean(), abs=1e-12)
        assert values[name].dtype == np.float64


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.integers(3, 9), st.booleans())
def test_the_self_match_is_dropped_before_anything_is_counted(seed, n, released):
    scores, relevance = case(seed, n, n)
    relevance |= np.eye(n, dtype=bool)
    scores[np.arange(n), np.arange(n)] = 9  # the query finds itself first
    kept = answerable(relevance, n, "drop")
    np.testing.assert_array_equal(kept, (relevance & ~np.eye(n, dtype=bool)).any(axis=1))
    rows = np.flatnonzero(kept)
    if not len(rows):
        return
    given_scores, match = scores[rows], relevance[rows]
    _, values = intra_modal_metrics(
        *nothing(len(rows), n), match, scores=given_scores, self_match=rows, r_counts_query=released, per_query=True
    )
    for place, row in enumerate(rows):
        wanted = slow(scores[row], relevance[row], row, deeper=released)
        for name in METRICS:
            assert values[name][place] == pytest.approx(wanted[name], abs=1e-12)


def revisited_map(ranked, positive, junk):
    """Return AP of one query as revisitop defines it: positives move up past the junk in front of them, then areas.

    ``ranked`` are gallery items, best first. After Radenovic et al., CVPR 2018.
    """
    places, passed = [], 0
    for place, item in enumerate(ranked):
        passed += item in junk
        if item in positive:
            places.append(place - passed)
    area = 0.0
    for count, place in enumerate(places):
        area += (1.0 if place == 0 else count / place) + (count + 1) / (place + 1)
    return area / 2 / len(positive)


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(2, 14), st.booleans(), st.sampled_from([32, 10**6]))
def test_junk_is_neither_ranked_nor_counted(seed, n, m, with_own, block_bytes):
    scores, relevance = case(seed, n, m)
    rng = np.random.default_rng(seed + 1)
    junk = rng.random((n, m)) < 0.4
    own = rng.integers(-1, m, n) if with_own else np.full(n, -1)
    dropped = junk | (own[:, None] == np.arange(m))
    rows = np.flatnonzero((relevance & ~dropped).any(axis=1))
    given_junk = scipy.sparse.csr_array(junk)
    np.testing.assert_array_equal(np.flatnonzero(answerable(relevance, m, own, given_junk)), rows)
    if not len(rows):
        return
    more = {"self_match": own[rows], "junk": given_junk[rows], "trapezoids": True, "per_query": True}
    means, values = intra_modal_metrics(
        *nothing(len(rows), m), relevance[rows], scores=scores[rows], block_bytes=block_bytes, **more
    )
    assert set(means) == {*METRICS, TRAPEZOIDS}
    for place, row in enumerate(rows):
        out = np.flatnonzero(dropped[row])
        wanted = slow(scores[row], relevance[row], out)
        for name in wanted:
            assert values[name][place] == pytest.approx(wanted[name], abs=1e-12), name
        ranked = sorted(range(m), key=lambda j: (-scores[row, j], j))
        positive = set(np.flatnonzero(relevance[row] & ~dropped[row]))
        assert values[TRAPEZOIDS][place] == pytest.approx(revisited_map(ranked, positive, set(out)), abs=1e-12)


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(2, 12), st.integers(1, 5))
def test_the_nearest_are_the_first_that_are_not_dropped(seed, n, m, k):
    rng = np.random.default_rng(seed)
    scorer = as_scorer(rng.standard_normal((n, 3)), rng.standard_normal((4, 3))[rng.integers(0, 4, m)])
    junk, own = rng.random((n, m)) < 0.3, rng.integers(-1, m, n)
    junk[:, 0] = False
    own[own == 0] = -1
    dropped = junk | (own[:, None] == np.arange(m))
    found = nearest(scorer, k, self_match=own, junk=scipy.sparse.csr_array(junk))
    scores, width = scorer.scores().numpy(), min(k, m - dropped.sum(axis=1).max())
    wanted = [[j for j in sorted(range(m), key=lambda j: (-s[j], j)) if not d[j]][:width] for s, d in
              zip(scores, dropped, strict=True)]  # fmt: skip
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(nearest(scorer, k), ranking.topk(scorer, k))
    alone = Scorer(scorer.queries, scorer.gallery, exclude=torch.as_tensor(own))
    if (own >= 0).any():
        np.testing.assert_array_equal(nearest(scorer, k, self_match=own), ranking.topk(alone, k))


def test_trapezoids_between_perfect_and_last():
    scores = -np.arange(4.0)[None, :]
    for match, area in (([0, 1], 1.0), ([3], 1 / 8), ([1, 3], ((0 + 1 / 2) / 2 + (1 / 3 + 1 / 2) / 2) / 2)):
        found = intra_modal_metrics(*nothing(1, 4), [match], scores=scores.astype(np.float32), trapezoids=True)
        assert found[TRAPEZOIDS] == pytest.approx(area)
    assert TRAPEZOIDS not in intra_modal_metrics(*nothing(1, 4), [[0]], scores=scores.astype(np.float32))


def test_drop_means_the_item_of_the_same_row():
    rng = np.random.default_rng(0)
    x, groups = rng.standard_normal((20, 6)), np.repeat(["a", "b", "c", "d"], 5)
    match = same_group(groups, groups)
    np.testing.assert_array_equal(match.toarray(), groups[:, None] == groups[None, :])
    dropped = intra_modal_metrics(x, x, match, self_match="drop")
    assert dropped == intra_modal_metrics(x, x, match, self_match=np.arange(20))
    kept = intra_modal_metrics(x, x, match)
    assert kept["R@1"] == 1.0 > dropped["R@1"]
    assert kept == intra_modal_metrics(x, x, match, self_match=np.full(20, -1))


def test_the_released_counting_looks_one_rank_further_and_divides_by_the_same_number():
    scores = np.array([[9.0, 3.0, 5.0, 4.0], [3.0, 9.0, 5.0, 4.0]])
    match = [[0, 1, 3], [0, 1, 3]]  # without the query: at ranks 2 and 3, of R = 2
    ours = intra_modal_metrics(*nothing(2, 4), match, scores=scores, self_match=np.array([0, 1]))
    theirs = intra_modal_metrics(*nothing(2, 4), match, scores=scores, self_match=np.array([0, 1]), r_counts_query=True)
    assert ours["mAP@R"] == pytest.approx((1 / 2) / 2)
    assert theirs["mAP@R"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert {**ours, "mAP@R": 0} == {**theirs, "mAP@R": 0}


@settings(max_examples=40)
@given(st.integers(0, 10**6))
def test_average_precision_is_that_of_scikit_learn_where_nothing_ties(seed):
    rng = np.random.default_rng(seed)
    q, g = rng.standard_normal((5, 4)), rng.standard_normal((40, 4))
    relevance = rng.random((5, 40)) < 0.3
    relevance[:, 0] = True
    _, values = intra_modal_metrics(q, g, relevance, per_query=True)
    scores = as_scorer(q, g).scores().numpy()
    assert all(len(set(row)) == 40 for row in scores)
    wanted = [average_precision_score(match, row) for match, row in zip(relevance, scores, strict=True)]
    np.testing.assert_allclose(values["mAP"], wanted, rtol=0, atol=1e-12)


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.booleans())
def test_sorted_ranks_are_the_counted_ones(seed, several_sets):
    rng = np.random.default_rng(seed)
    n, m = 6, 15
    scores, relevance = case(seed, n, m)
    relevance[:, 1] = True
    scorer = as_scorer(*nothing(n, m), scores)
    if several_sets:  # embeddings, some of them equal: ties of canonical scores
        scorer = as_scorer(rng.standard_normal((n, 4)), rng.standard_normal((5, 4))[rng.integers(0, 5, m)])
    scorer = replace(scorer, exclude=torch.tensor([0, -1, 3, 0, -1, 2]))
    wanted = ranking.rank(scorer, relevance, 0)
    found = rank_by_sorting(scorer, wanted.relevance, slice(0, n))
    for name in ("score", "above", "tied", "tied_before", "rank"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))


def test_one_relevant_item_makes_mean_average_precision_the_reciprocal_rank():
    rng = np.random.default_rng(1)
    q, g = rng.standard_normal((2, 12, 5))
    found, known = intra_modal_metrics(q, g, np.eye(12, dtype=bool)), retrieval_metrics(q, g, np.eye(12, dtype=bool))
    assert (found["mAP"], found["R@1"]) == (known["MRR"], known["R@1"])
    assert found["mAP@R"] == found["R-precision"] == found["R@1"]


def test_a_constant_scorer_scores_by_index_alone():
    match = np.zeros((2, 6), dtype=bool)
    match[0, [4, 5]], match[1, [0, 1]] = True, True
    _, values = intra_modal_metrics(np.ones((2, 3)), np.ones((6, 3)), match, per_query=True)
    assert values["R-precision"].tolist() == [0.0, 1.0]
    assert values["mAP"][0] == pytest.approx((1 / 5 + 2 / 6) / 2)


def test_who_can_be_answered_whatever_form_relevance_has():
    dense = np.array([[1, 0, 0], [0, 1, 1], [0, 0, 0]], dtype=bool)
    lists = [[0], [1, 2], []]
    for relevance in (dense, torch.as_tensor(dense), lists):
        assert answerable(relevance, 3).tolist() == [True, True, False]
        assert answerable(relevance, 3, "drop").tolist() == [False, True, False]


def test_bad_input_is_named():
    x = np.random.default_rng(2).standard_normal((3, 4))
    everything = np.ones((3, 3), dtype=bool)
    with pytest.raises(InputError, match="query 1 has no relevant gallery item beside itself"):
        intra_modal_metrics(x, x, [[1], [1], [0]], self_match="drop")
    with pytest.raises(InputError, match="valid is None, 'drop'"):
        intra_modal_metrics(x, x, everything, self_match="dorp")
    with pytest.raises(InputError, match="there are 3 and 2"):
        intra_modal_metrics(x, x[:2], everything[:, :2], self_match="drop")
    for wrong in (np.array([0, 1]), np.array([0.0, 1.0, 2.0]), np.array([0, 1, 3]), np.array([0, 1, -2])):
        with pytest.raises(InputError, match="one integer for each of 3 queries, from -1"):
            intra_modal_metrics(x, x, everything, self_match=wrong)
    with pytest.raises(InputError, match=r"junk has shape \(3, 2\), expected \(3, 3\)"):
        intra_modal_metrics(x, x, everything, junk=scipy.sparse.csr_array(everything[:, :2]))
    with pytest.raises(InputError, match="query 0 has no relevant gallery item beside itself"):
        intra_modal_metrics(x, x, everything, junk=scipy.sparse.csr_array(everything))
    with pytest.raises(InputError, match="queries: row 0"):
        intra_modal_metrics(x * np.nan, x, everything)
