"""A corrected gallery as a FAISS index gives the top-k of the corrected scores."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from reprolib import ranking
from reprolib.errors import InputError
from reprolib.methods import CATALOGUE, faiss_index, fit
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
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found.tolist(), best.tolist(), strict=True)])
    record_property("recall", float(recall))
    assert recall >= least, recall
    if kind == "ivf":
        index.nprobe = index.nlist
        np.testing.assert_array_equal(np.sort(index.search(queries, 10)[1]), np.sort(faiss_flat(scorer)))


def faiss_flat(scorer: Scorer) -> np.ndarray:
    index, queries = faiss_index(scorer)
    return index.search(queries, 10)[1]


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
