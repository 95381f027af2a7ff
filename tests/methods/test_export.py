"""A corrected gallery as a FAISS index gives the top-k of the corrected scores."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reprolib import ranking
from reprolib.errors import InputError
from reprolib.methods import CATALOGUE, fit
from reprolib.methods.export import KINDS, faiss_index, index_topk
from reprolib.metrics.approximation import places_found
from reprolib.ranking import Scorer

SMALL = {"nnn": {"k": 8}, "invgc-localadj": {"pool_rate": 0.1}}
EXPORTABLE = [name for name in CATALOGUE if name not in ("gc", "dis", "dual-dis")]


def fitted(name: str, x) -> Scorer:
    return fit(name, x.queries, x.gallery, **x.banks, **SMALL.get(name, {}))


@pytest.mark.parametrize("name", EXPORTABLE)
def test_a_flat_index_gives_the_top_k_of_the_corrected_scores(name, make_data):
    x = make_data("clustered", 0, n=40, m=500, bank=80, d=24)
    scorer = fitted(name, x)
    index, queries = faiss_index(scorer)
    assert (queries.dtype, queries.shape, index.ntotal, index.d) == (np.float32, (40, 25), 500, 25)
    values, found = index.search(queries, 10)
    scores = scorer.scores().numpy().astype(np.float64)
    error = 2 * scorer.error_bound()  # one term more in the sum, and FAISS has an order of summation of its own
    best = ranking.topk(scorer, 10)
    assert (np.abs(np.take_along_axis(scores, found, 1) - values) <= error).all()
    kth = np.take_along_axis(scores, best, 1)[:, -1:]
    assert (np.take_along_axis(scores, found, 1) >= kth - 2 * error).all(), "whatever is in the list belongs there"
    sure = scores > kth + 2 * error
    for row, items in enumerate(found):
        assert set(np.flatnonzero(sure[row])) <= set(items.tolist()), "whatever surely belongs there is in the list"


@pytest.mark.parametrize(("kind", "least"), [("hnsw", 0.9), ("ivf", 0.6)])
def test_approximate_indices_find_most_of_it(kind, least, make_data, record_property):
    x = make_data("clustered", 1, n=100, m=2000, bank=200, d=24)
    scorer = fitted("is", x)
    index, queries = faiss_index(scorer, kind)
    found = index.search(queries, 10)[1]
    best = ranking.topk(scorer, 10)
    recall = places_found(best, found).mean()
    record_property("recall", float(recall))
    assert recall >= least, recall
    if kind == "ivf":
        index.nprobe = index.nlist
        np.testing.assert_array_equal(np.sort(index.search(queries, 10)[1]), np.sort(faiss_flat(scorer)))


def faiss_flat(scorer: Scorer) -> np.ndarray:
    index, queries = faiss_index(scorer)
    return index.search(queries, 10)[1]


@pytest.mark.parametrize("metric", ["ip", "l2"])
@given(
    seed=st.integers(0, 10**6), n=st.integers(1, 9), m=st.integers(1, 40), d=st.integers(1, 6), spread=st.floats(0, 2)
)
def test_a_flat_index_of_either_metric_is_a_full_sort(metric, seed, n, m, d, spread):
    rng = np.random.default_rng(seed)
    gallery = (rng.normal(size=(m, d)) * np.exp(spread * rng.normal(size=(m, 1)))).astype(np.float32)
    queries, bias = rng.normal(size=(n, d)).astype(np.float32), spread * rng.normal(size=m).astype(np.float32)
    scorer = Scorer(*map(torch.from_numpy, (queries, gallery)), torch.from_numpy(bias)[None])
    index, longer = faiss_index(scorer, metric=metric)
    k = int(rng.integers(1, m + 1))
    found = index_topk(index, queries, k, block=int(rng.integers(1, n + 1)))
    assert found.dtype == np.int64 and found.shape == (n, k)
    scores = queries.astype(np.float64) @ gallery.T.astype(np.float64) - bias
    best = np.take_along_axis(scores, np.argsort(-scores, axis=1, kind="stable")[:, :k], 1)
    longest = np.square(gallery.astype(np.float64)).sum(1) + np.square(bias.astype(np.float64))
    reach = longest.max() + np.square(queries.astype(np.float64)).sum(1).max() + 1
    np.testing.assert_allclose(np.take_along_axis(scores, found, 1), best, rtol=0, atol=1e-5 * reach)
    np.testing.assert_array_equal(index_topk(index, longer, k), index_topk(index, torch.from_numpy(queries), k))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("metric", ["ip", "l2"])
def test_an_index_built_by_blocks_holds_every_item_once_and_in_order(kind, metric, make_data, monkeypatch):
    scorer = fitted("is", make_data("clustered", 5, n=5, m=150, bank=60, d=12))
    blocks = ranking.blocks
    monkeypatch.setattr(ranking, "blocks", lambda n, m: blocks(n, m, 7 * 4 * m))  # seven items at a time
    index = faiss_index(scorer, kind, metric=metric)[0]
    if kind == "ivf":
        index.make_direct_map()
    held = index.reconstruct_n(0, 150)
    np.testing.assert_array_equal(held[:, :12], scorer.gallery.numpy())
    np.testing.assert_array_equal(held[:, 12], scorer.bias[0].numpy())
    if metric == "l2":
        lengths = np.linalg.norm(held.astype(np.float64), axis=1)
        np.testing.assert_allclose(lengths, np.linalg.norm(held[:, :13].astype(np.float64), axis=1).max(), rtol=1e-6)


def test_a_zero_in_place_of_the_bias_searches_without_it(make_data):
    x = make_data("clustered", 6, n=30, m=300, bank=80, d=24)
    scorer = fitted("is", x)
    plain = Scorer(scorer.queries, scorer.gallery)
    for metric, extra in (("ip", 1), ("l2", 2)):
        queries = np.pad(scorer.queries.numpy(), ((0, 0), (0, extra)))
        found = index_topk(faiss_index(scorer, metric=metric)[0], queries, 10)
        assert places_found(ranking.topk(plain, 10), found).mean() > 0.99  # near ties in float32
        assert places_found(ranking.topk(scorer, 10), found).mean() < 0.9


def test_large_biases_leave_lists_of_inner_products_behind():
    rng = np.random.default_rng(0)
    queries, gallery = (torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(n, 16)))).float()
                        for n in (100, 2000))  # fmt: skip
    scorer = Scorer(queries, gallery, torch.from_numpy(rng.normal(size=(1, 2000))).float())
    best, recall = ranking.topk(scorer, 10), {}
    for metric in ("ip", "l2"):
        index, _ = faiss_index(scorer, "ivf", metric=metric)
        index.nprobe = 2
        recall[metric] = places_found(best, index_topk(index, queries, 10)).mean()
    assert recall["l2"] > 0.8 and recall["ip"] < 0.6


def test_places_that_an_index_cannot_fill_are_minus_one(make_data):
    scorer = fitted("is", make_data("clustered", 7, n=20, m=400, bank=80, d=24))
    index, _ = faiss_index(scorer, "ivf")
    index.nprobe = 1
    found = index_topk(index, scorer.queries, 100)
    sizes = np.array([index.get_list_size(number) for number in range(index.nlist)])
    assert sizes.max() < 100 and ((found >= 0).sum(1) <= sizes.max()).all()
    assert all((row[(row >= 0).sum() :] == -1).all() for row in found)


def test_queries_of_another_width_and_too_many_places_are_refused(make_data):
    scorer = fitted("is", make_data("clustered", 8, n=6, m=50, bank=40, d=24))
    index, _ = faiss_index(scorer, metric="l2")
    with pytest.raises(InputError, match="queries have width 25; this index takes 24 or 26"):
        index_topk(index, np.ones((3, 25), np.float32), 5)
    for k in (0, 51):
        with pytest.raises(InputError, match=f"k = {k} is not between 1 and .* 50"):
            index_topk(index, scorer.queries, k)
    with pytest.raises(InputError, match="unknown metric of an index 'cosine'"):
        faiss_index(scorer, metric="cosine")


def test_the_seed_decides_the_lists(make_data):
    scorer = fitted("is", make_data("clustered", 2, n=20, m=600, bank=50))
    one, other = (faiss_index(scorer, "ivf", seed=3) for _ in range(2))
    np.testing.assert_array_equal(one[0].search(one[1], 10)[1], other[0].search(other[1], 10)[1])


def test_what_no_index_can_hold_is_refused(make_data):
    x = make_data("clustered", 3, n=4)
    for name in ("gc", "dual-dis"):
        with pytest.raises(InputError, match="not the inner product less a bias"):
            faiss_index(fitted(name, x))
    with pytest.raises(InputError, match="depends on the query"):
        faiss_index(fitted("dis", x))
    plain = fitted("none", x)
    with pytest.raises(InputError, match="exclude"):
        faiss_index(Scorer(plain.queries, plain.gallery, exclude=torch.zeros(4, dtype=torch.int64)))
    with pytest.raises(InputError, match="unknown kind of index 'flta'; nearest valid: flat"):
        faiss_index(plain, "flta")


def test_faiss_is_imported_only_when_it_is_needed():
    code = "import sys, reprolib.methods; sys.exit('faiss' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
