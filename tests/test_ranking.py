"""The ranking core against a reference that builds the whole matrix and counts, and its invariances."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reprolib import ranking
from reprolib.errors import InputError
from reprolib.metrics import hubness_metrics, retrieval_metrics
from reprolib.ranking import Scorer, as_embeddings, as_relevance, rank, rank_both, topk

torch.set_num_threads(1)

STYLES = ("unit", "duplicates", "last bit", "integers", "large", "one point", "huge bias", "tiny")


def canonical(scorer: Scorer) -> np.ndarray:
    """The canonical scores by the definition: float64 product, bias, one rounding."""
    scores = scorer.queries.numpy().astype(np.float64) @ scorer.gallery.numpy().astype(np.float64).T
    if scorer.bias is not None:
        state = np.zeros(len(scores), int) if scorer.state is None else scorer.state.numpy()
        scores = scores - scorer.bias.numpy().astype(np.float64)[state]
    scores = scores.astype(np.float32)
    if scorer.exclude is not None:
        for query, item in enumerate(scorer.exclude.tolist()):
            if item >= 0:
                scores[query, item] = -np.inf
    return scores


def naive(scores: np.ndarray, relevance: np.ndarray) -> dict[str, list]:
    """Where every relevant pair stands, by counting in the whole matrix."""
    found: dict[str, list] = {"score": [], "above": [], "tied": [], "tied_before": []}
    for query, item in zip(*np.nonzero(relevance), strict=True):
        row, own = scores[query], scores[query, item]
        found["score"].append(own)
        found["above"].append(int((row > own).sum()))
        found["tied"].append(int((row == own).sum()) - 1)
        found["tied_before"].append(int((row[:item] == own).sum()))
    return found


def naive_topk(scores: np.ndarray, k: int) -> np.ndarray:
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


def make(seed: int, n: int, m: int, d: int, style: str, states: int = 0) -> Scorer:
    """Queries [n, d] and gallery [m, d] in one of several awkward styles, with ``states`` biases."""
    rng = np.random.default_rng(seed)
    q, g = rng.standard_normal((n, d)), rng.standard_normal((m, d))
    if style in ("unit", "duplicates", "last bit", "huge bias"):
        q /= np.linalg.norm(q, axis=1, keepdims=True)
        g /= np.linalg.norm(g, axis=1, keepdims=True)
    if style == "duplicates":
        g = g[rng.integers(0, max(1, m // 3), m)]
    if style == "integers":
        q, g = rng.integers(-2, 3, (n, d)), rng.integers(-2, 3, (m, d))
    if style == "large":
        q, g = q * 1e4, g * 1e4 * rng.uniform(0.1, 10, (m, 1))
    if style == "tiny":
        q, g = q * 1e-12, g * 1e-12
    q, g = q.astype(np.float32), g.astype(np.float32)
    if style == "one point":
        g = np.repeat(g[:1], m, axis=0)
    if style == "last bit":
        g = np.repeat(g[: max(1, m // 4)], 4, axis=0)[rng.permutation(4 * max(1, m // 4))[:m] % (4 * max(1, m // 4))]
        g = g[rng.integers(0, len(g), m)]
        for _ in range(2):
            g = np.where(rng.random(g.shape) < 0.3, np.nextafter(g, np.float32(2)), g).astype(np.float32)
    bias = None
    if states:
        bias = rng.standard_normal((states, m)) * (1e6 if style == "huge bias" else 0.1)
        bias = torch.as_tensor(bias.astype(np.float32))
    state = torch.as_tensor(rng.integers(0, states, n)) if states > 1 else None
    return Scorer(torch.as_tensor(q), torch.as_tensor(g), bias, state)


def some_relevance(seed: int, n: int, m: int, both: bool = False) -> np.ndarray:
    rng = np.random.default_rng(seed)
    relevance = rng.random((n, m)) < rng.choice([0.0, 0.1, 0.5])
    relevance[np.arange(n), rng.integers(0, m, n)] = True
    if both:
        relevance[rng.integers(0, n, m), np.arange(m)] = True
    return relevance


def assert_agrees(found: ranking.Ranking, scores: np.ndarray, relevance: np.ndarray, k: int, ordered: bool) -> None:
    wanted = naive(scores, relevance)
    for name, value in wanted.items():
        np.testing.assert_array_equal(getattr(found, name), np.array(value), err_msg=name)
    place = np.argsort(np.argsort(-scores, axis=1, kind="stable"), axis=1) + 1
    np.testing.assert_array_equal(found.rank, place[np.nonzero(relevance)])
    best = naive_topk(scores, k)
    assert found.topk.shape == best.shape
    got = found.topk if ordered else np.sort(found.topk, axis=1)
    np.testing.assert_array_equal(got, best if ordered else np.sort(best, axis=1))


cases = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 10**6),
        "n": st.integers(1, 14),
        "m": st.integers(1, 80),
        "d": st.integers(1, 40),
        "style": st.sampled_from(STYLES),
        "states": st.integers(0, 3),
    }
)


@settings(max_examples=70)
@given(cases, st.integers(0, 90), st.booleans(), st.sampled_from([1, 200, 1500, 2**24]))
def test_ranks_and_top_k_are_those_of_the_whole_matrix(case, k, ordered, block_bytes):
    scorer = make(**case)
    relevance = some_relevance(case["seed"] + 1, case["n"], case["m"])
    found = rank(scorer, relevance, k, ordered=ordered, block_bytes=block_bytes)
    assert_agrees(found, canonical(scorer), relevance, min(k, case["m"]), ordered)
    np.testing.assert_array_equal(scorer.scores(block_bytes).numpy(), canonical(scorer))


@settings(max_examples=50)
@given(cases, st.integers(0, 20), st.sampled_from([1, 200, 1500, 2**24]))
def test_both_directions_come_from_one_product(case, k, block_bytes):
    case["states"] = min(case["states"], 1)
    scorer = make(**case)
    relevance = some_relevance(case["seed"] + 1, case["n"], case["m"], both=True)
    forward, backward = rank_both(scorer, relevance, k, block_bytes=block_bytes)
    scores = canonical(scorer)
    assert_agrees(forward, scores, relevance, min(k, case["m"]), False)
    assert_agrees(backward, scores.T, relevance.T, min(k, case["n"]), False)


@settings(max_examples=40)
@given(cases, st.integers(0, 12), st.booleans())
def test_an_excluded_item_is_dropped_before_anything_is_counted(case, k, ordered):
    case.update(m=max(2, case["m"]))
    scorer = make(**case)
    rng = np.random.default_rng(case["seed"])
    exclude = rng.integers(-1, case["m"], case["n"])
    scorer = Scorer(scorer.queries, scorer.gallery, scorer.bias, scorer.state, exclude=torch.as_tensor(exclude))
    relevance = some_relevance(case["seed"] + 1, case["n"], case["m"])
    relevance[np.arange(case["n"]), (exclude + 1) % case["m"]] = True  # someone is left
    relevance[np.arange(case["n"]), exclude] |= exclude >= 0
    left = relevance.copy()
    left[np.flatnonzero(exclude >= 0), exclude[exclude >= 0]] = False
    found = rank(scorer, relevance, k, ordered=ordered, block_bytes=700)
    assert_agrees(found, canonical(scorer), left, min(k, case["m"] - 1), ordered)


def test_the_self_match_does_not_count_as_a_retrieved_item():
    x = as_embeddings(np.random.default_rng(0).standard_normal((20, 6)), "x")
    groups = np.arange(20) // 2
    relevance = groups[:, None] == groups
    found = rank(Scorer(x, x, exclude=torch.arange(20)), relevance, 19, ordered=True)
    assert len(found.rank) == 20, "each item has one other of its group"
    assert all(query not in row for query, row in enumerate(found.topk.tolist()))
    assert {len(set(row)) for row in found.topk.tolist()} == {19}
    with pytest.raises(InputError, match="query 0 has no relevant"):
        rank(Scorer(x, x, exclude=torch.arange(20)), np.eye(20, dtype=bool))


@settings(max_examples=40)
@given(cases)
def test_the_order_of_the_gallery_matters_only_among_exact_ties(case):
    scorer = make(**case)
    n, m = scorer.shape
    order = np.random.default_rng(case["seed"] + 2).permutation(m)
    moved = Scorer(
        scorer.queries,
        scorer.gallery[order],
        None if scorer.bias is None else scorer.bias[:, order],
        scorer.state,
    )
    relevance = some_relevance(case["seed"] + 1, n, m)
    one, two = rank(scorer, relevance, min(3, m)), rank(moved, relevance[:, order], min(3, m))
    query, item = np.nonzero(relevance)
    query_two, place = np.nonzero(relevance[:, order])
    back = np.lexsort((order[place], query_two))
    for name in ("score", "above", "tied"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name)[back])
    untied = one.tied == 0
    np.testing.assert_array_equal(one.rank[untied], two.rank[back][untied])
    scores = canonical(scorer)
    for row, (first, second) in enumerate(zip(one.topk, two.topk, strict=True)):
        np.testing.assert_array_equal(np.sort(scores[row, first]), np.sort(scores[row, order[second]]))
    np.testing.assert_array_equal(query, query_two[back])
    np.testing.assert_array_equal(item, order[place][back])


@pytest.fixture
def two_threads():
    yield lambda count: torch.set_num_threads(count)
    torch.set_num_threads(1)


@pytest.mark.parametrize("style", ["unit", "last bit", "duplicates"])
def test_ranks_do_not_depend_on_block_size_or_threads(style, two_threads):
    scorer = make(3, 100, 1200, 48, style, states=1)
    relevance = some_relevance(4, 100, 1200)
    results = []
    for threads in (1, 2):
        two_threads(threads)
        for block_bytes in (1, 4800 * 7, 4800 * 64 + 4, 2**24):
            found = rank(scorer, relevance, 10, ordered=True, block_bytes=block_bytes)
            results.append(tuple(getattr(found, f).tobytes() for f in ("score", "above", "tied", "rank", "topk")))
    assert len(set(results)) == 1
    assert_agrees(found, canonical(scorer), relevance, 10, True)


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("normalize", [True, False])
def test_the_storage_type_does_not_matter(stored, normalize):
    rng = np.random.default_rng(5)
    same = torch.as_tensor(rng.standard_normal((40, 24))).to(torch.bfloat16).to(torch.float32)
    wanted = as_embeddings(same, "x", normalize=normalize)
    assert wanted.dtype == torch.float32
    for given_rows in (same.to(stored), same.to(stored).T.contiguous().T):
        assert torch.equal(as_embeddings(given_rows, "x", normalize=normalize), wanted)
    if stored != torch.bfloat16:
        assert torch.equal(as_embeddings(same.to(stored).numpy(), "x", normalize=normalize), wanted)


def test_rows_are_normalised_in_double_precision_and_rounded_once():
    rows = np.random.default_rng(6).standard_normal((30, 50)) * 1e5
    wanted = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    np.testing.assert_array_equal(as_embeddings(rows, "x").numpy(), wanted)
    rows = rows.astype(np.float32)
    rows.flags.writeable = False
    before = rows.tobytes()
    as_embeddings(rows, "x", normalize=False).mul_(2)
    assert rows.tobytes() == before, "a read-only array stays as it was"


def test_the_positive_is_scored_by_the_rule_that_scores_its_rivals():
    """An item equal to the positive ties with it exactly, wherever it stands and however it was computed."""
    g = make(7, 1, 600, 512, "unit").gallery
    g[::2] = g[311].clone()
    q = make(8, 33, 1, 512, "unit").queries
    for block_bytes in (1, 2**14, 2**24):
        found = rank(Scorer(q, g), [[311]] * 33, 5, block_bytes=block_bytes)
        assert (found.tied == 300).all()
        assert (found.tied_before == 156).all()
        np.testing.assert_array_equal(found.score, canonical(Scorer(q, g))[:, 311])


def test_a_constant_scorer_scores_chance():
    n = 60
    same = torch.ones(n, 4) / 2
    found = rank(Scorer(same, same), np.eye(n, dtype=bool), 5)
    assert (found.rank == 1).mean() == 1 / n
    assert (found.rank <= 10).mean() == 10 / n
    assert found.topk.tolist() == [[0, 1, 2, 3, 4]] * n or sorted(found.topk[0]) == [0, 1, 2, 3, 4]
    rng = np.random.default_rng(9)
    hits = [(rank(Scorer(same, same), rng.integers(0, n, (n, 1)).tolist(), 0).rank == 1).mean() for _ in range(225)]
    assert abs(np.mean(hits) - 1 / n) < 4 * np.std(hits) / 15
    wide = make(10, n, n, 8, "unit")
    flat = Scorer(wide.queries, wide.gallery, transform=lambda scores, rows: torch.zeros_like(scores))
    np.testing.assert_array_equal(rank(flat, np.eye(n, dtype=bool), 0).rank, np.arange(1, n + 1))


@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_infinite_scores_tie_with_each_other(value):
    scores = torch.tensor([[0.0, value, 1.0, value, value], [value] * 5])
    nothing = Scorer(torch.zeros(2, 1), torch.zeros(5, 1), transform=lambda _, rows: scores[rows].clone())
    relevance = np.array([[0, 0, 0, 1, 0], [0, 0, 1, 0, 0]], bool)
    found = rank(nothing, relevance, 2, ordered=True)
    assert_agrees(found, scores.numpy(), relevance, 2, True)


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 14), st.integers(1, 60), st.integers(0, 12), st.booleans())
def test_a_wide_scorer_keeps_an_order_that_float32_cannot_hold(seed, n, m, k, ordered):
    rng = np.random.default_rng(seed)
    scores = 2.0**40 * rng.integers(-3, 1, (n, m)) + rng.integers(-2, 3, (n, m))  # equal in float32, some in float64
    wide = Scorer(torch.zeros(n, 1), torch.zeros(m, 1), transform=lambda _, rows: torch.tensor(scores[rows]), wide=True)
    relevance = some_relevance(seed + 1, n, m)
    assert_agrees(rank(wide, relevance, k, ordered=ordered, block_bytes=900), scores, relevance, min(k, m), ordered)
    places = [[-sorted(set(row), reverse=True).index(value) for value in row] for row in scores]
    np.testing.assert_array_equal(wide.scores(900).numpy(), places)


def test_a_score_that_is_no_number_is_an_error_not_a_rank():
    scores = torch.tensor([[0.0, 1.0, 2.0], [1.0, torch.nan, 0.0]])
    broken = Scorer(torch.zeros(2, 1), torch.zeros(3, 1), transform=lambda _, rows: scores[rows].clone())
    for call in (lambda: rank(broken, [[0], [1]]), lambda: topk(broken, 1), broken.scores):
        with pytest.raises(InputError, match=r"query 1\b.*NaN"):
            call()


def test_the_error_bound_holds():
    for style in ("unit", "large", "huge bias", "last bit"):
        for d in (1, 3, 64, 700):
            scorer = make(d, 20, 50, d, style, states=1)
            gap = np.abs(scorer.block(slice(0, 20)).double().numpy() - canonical(scorer).astype(np.float64)).max()
            assert gap <= scorer.error_bound()


def test_top_k_alone_and_the_extremes():
    scorer = make(11, 9, 30, 5, "integers")
    scores = canonical(scorer)
    for k in (0, 1, 29, 30, 31, 500):
        np.testing.assert_array_equal(topk(scorer, k, block_bytes=300), naive_topk(scores, min(k, 30)))
    one = make(12, 1, 1, 3, "unit")
    found = rank(one, [[0]], 10)
    assert (found.rank.tolist(), found.topk.tolist(), found.tied.tolist()) == ([1], [[0]], [0])
    with pytest.raises(InputError, match="-1"):
        topk(scorer, -1)


def test_one_score_matrix_is_not_read_in_both_directions_after_a_correction():
    plain = make(13, 4, 5, 3, "unit", states=2)
    transformed = Scorer(plain.queries, plain.gallery, transform=lambda s, rows: s)
    excluded = Scorer(plain.queries, plain.gallery, exclude=torch.zeros(4, dtype=torch.int64))
    for scorer in (plain, transformed, excluded):
        with pytest.raises(InputError, match="both directions"):
            rank_both(scorer, np.ones((4, 5), bool))
    with pytest.raises(InputError, match="query 2 has no relevant"):
        rank_both(Scorer(plain.queries, plain.gallery), np.eye(4, 5, dtype=bool)[:, [0, 1, 4, 2, 3]])


BAD_EMBEDDINGS = {
    "row 2 holds NaN or infinity": lambda x: x.__setitem__((2, 1), np.nan),
    "row 3 holds NaN or infinity": lambda x: x.__setitem__((3, 0), -np.inf),
    "row 1 is all zeros": lambda x: x.__setitem__(1, 0),
}


@pytest.mark.parametrize("message", BAD_EMBEDDINGS)
def test_bad_embeddings_are_named_by_row(message):
    x = np.random.default_rng(14).standard_normal((5, 3))
    BAD_EMBEDDINGS[message](x)
    for rows in (x, x.astype(np.float32), torch.as_tensor(x, dtype=torch.bfloat16)):
        with pytest.raises(InputError, match=f"gallery.*{message}"):
            as_embeddings(rows, "gallery")


def test_shapes_and_types_that_are_no_embeddings():
    for bad in (np.zeros((0, 3)), np.zeros((3, 0)), np.zeros(3), np.zeros((2, 2, 2)), np.array(1.0)):
        with pytest.raises(InputError, match="queries: expected embeddings"):
            as_embeddings(bad, "queries")
    with pytest.raises(InputError, match="floating-point"):
        as_embeddings(np.ones((2, 2), int), "queries")
    with pytest.raises(InputError, match="width 3 and the gallery 4"):
        Scorer(torch.ones(2, 3), torch.ones(2, 4))
    zeros = as_embeddings(np.zeros((2, 3)), "queries", normalize=False)
    assert not zeros.any()


@pytest.mark.parametrize("normalize", [True, False])
def test_a_value_beyond_float32_is_not_finite(normalize):
    rows = np.ones((3, 4))
    rows[1, 2] = 1e39
    with pytest.raises(InputError, match="row 1 holds NaN or infinity"):
        as_embeddings(rows, "x", normalize=normalize)


@pytest.mark.parametrize("kind", ["dense", "tensor", "csr", "coo", "csr_matrix", "list", "tuple", "repeated"])
def test_relevance_in_every_form_is_the_same_relevance(kind):
    dense = some_relevance(15, 7, 9)
    sparse = scipy.sparse.csr_array(dense)
    if kind == "repeated":  # explicit zeros, unsorted and repeated entries
        rows = np.repeat(np.arange(7), dense.sum(1)).tolist()
        rows, columns = rows + rows + [0], sparse.indices.tolist() * 2 + [int(np.flatnonzero(~dense[0])[0])]
        data = [1] * (len(rows) - 1) + [0]
        given_form = scipy.sparse.coo_array((data[::-1], (rows[::-1], columns[::-1])), shape=dense.shape)
    else:
        given_form = {
            "dense": dense,
            "tensor": torch.as_tensor(dense),
            "csr": sparse,
            "coo": sparse.tocoo(),
            "csr_matrix": scipy.sparse.csr_matrix(dense),
            "list": [np.flatnonzero(row) for row in dense],
            "tuple": tuple(np.flatnonzero(row)[::-1].tolist() for row in dense),
        }[kind]
    before = given_form.copy() if scipy.sparse.issparse(given_form) else None
    found = as_relevance(given_form, 7, 9)
    assert found.dtype == bool and found.has_canonical_format
    np.testing.assert_array_equal(found.toarray(), dense)
    if before is not None:
        assert before.data.tobytes() == given_form.data.tobytes(), "the input stays as it was"
    assert rank(make(16, 7, 9, 3, "unit"), given_form).relevance.nnz == dense.sum()


def test_bad_relevance_is_named():
    good = some_relevance(17, 6, 4)
    empty = good.copy()
    empty[[2, 5]] = False
    for form in (empty, scipy.sparse.csr_array(empty), [np.flatnonzero(row) for row in empty]):
        with pytest.raises(InputError, match=r"query 2 has no relevant gallery item \(2 such queries\)"):
            as_relevance(form, 6, 4)
    with pytest.raises(InputError, match="lists 6 queries, but there are 7"):
        as_relevance([[0]] * 6, 7, 4)
    with pytest.raises(InputError, match=r"shape \(6, 4\), expected \(6, 5\)"):
        as_relevance(good, 6, 5)
    with pytest.raises(InputError, match=r"query 1\b.* 4\b.*4"):
        as_relevance([[0], [1, 4]], 2, 4)
    with pytest.raises(InputError, match=r"query 0\b.* -1\b"):
        as_relevance([[-1, 3], [0]], 2, 4)
    with pytest.raises(InputError, match="query 0 lists bool values"):
        as_relevance([np.array([True, False, True, False]), [0]], 2, 4)


MEMORY = """
import resource, sys
import numpy as np, torch
from reprolib import ranking
torch.set_num_threads(1)

def peak():
    if sys.platform == "linux":  # ru_maxrss survives exec there, and with it the peak of the parent
        lines = open("/proc/self/status").read().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

rng = np.random.default_rng(0)
q, g = (torch.nn.functional.normalize(torch.as_tensor(rng.standard_normal((n, 8), dtype="f4"))) for n in (600, 100_000))
g[:600] = 0.7 * q + 0.3 * g[:600]
equal = torch.zeros_like if sys.argv[2] == "equal" else None
scorer = ranking.Scorer(q, g, transform=equal and (lambda scores, rows: equal(scores)))
relevance = [[i] for i in range(600)]
ranking.rank(ranking.Scorer(q[:2], g[:2000]), relevance[:2], 10)
before = peak()
ranking.rank(scorer, relevance, 10, block_bytes=int(sys.argv[1]))
print(peak() - before)
"""


@pytest.mark.parametrize("scores", ["different", "equal"])
def test_memory_is_set_by_the_block_and_not_by_the_matrix(scores):
    """600 x 100,000 scores are 240 MB; with blocks of 4 MB the peak stays far below, also if every item is a best."""
    root = Path(ranking.__file__).resolve().parents[1]
    command = [sys.executable, "-c", MEMORY, str(4 * 2**20), scores]
    found = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True, timeout=120)
    assert int(found.stdout) < 80e6


@pytest.mark.parametrize("many", [254, 255, 256, 257, 600])
@pytest.mark.parametrize("style", ["unit", "duplicates", "last bit"])
def test_a_query_may_have_any_number_of_relevant_items(many: int, style: str) -> None:
    scorer = make(many, 3, 700, 8, style)
    scores, relevance = canonical(scorer), np.zeros((3, 700), bool)
    relevance[0, np.argsort(-scores[0])[1 : many + 1]] = True  # all but the best, so that one item is above them all
    relevance[1, np.random.default_rng(0).permutation(700)[:many]] = True
    relevance[2, 5] = True
    assert_agrees(rank(scorer, relevance, 10), scores, relevance, 10, ordered=False)
    backward = Scorer(scorer.gallery, scorer.queries)
    relevance[0] = True
    forward, other = rank_both(backward, relevance.T, 2)
    assert_agrees(other, scores, relevance, 2, ordered=False)
    assert_agrees(forward, scores.T, relevance.T, 2, ordered=False)


@pytest.mark.parametrize(("allowed", "bits"), [("high", 13), ("medium", 16)])
@pytest.mark.parametrize("style", ["unit", "duplicates", "last bit", "large"])
def test_ranks_are_exact_where_torch_may_round_the_factors(allowed: str, bits: int, style: str, monkeypatch) -> None:
    """``bits`` of a float32 are lost, as TensorFloat-32 and bfloat16 lose them."""

    def rounded(x: torch.Tensor) -> torch.Tensor:
        whole = (x.view(torch.int32) + (1 << (bits - 1))) >> bits << bits
        return whole.view(torch.float32)

    def block(self: Scorer, rows: slice) -> torch.Tensor:
        return rounded(self.queries[rows]) @ rounded(self.gallery).T

    scorer, relevance = make(0, 40, 200, 24, style), some_relevance(1, 40, 200)
    exact = scorer.error_bound()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(allowed)
    try:
        assert scorer.error_bound() > 100 * exact
        monkeypatch.setattr(Scorer, "block", block)
        assert_agrees(rank(scorer, relevance, 5, ordered=True), canonical(scorer), relevance, 5, ordered=True)
        np.testing.assert_array_equal(topk(scorer, 5), naive_topk(canonical(scorer), 5))
    finally:
        torch.set_float32_matmul_precision(before)


def test_arrays_of_any_layout_are_taken() -> None:
    rng = np.random.default_rng(0)
    rows, scores = rng.standard_normal((9, 4)), rng.standard_normal((7, 9)).astype(np.float32)
    np.testing.assert_array_equal(as_embeddings(rows[::-1], "rows"), as_embeddings(rows[::-1].copy(), "rows"))
    relevance = some_relevance(0, 9, 7)
    np.testing.assert_array_equal(
        as_relevance(relevance[::-1], 9, 7).toarray(), as_relevance(relevance[::-1].copy(), 9, 7).toarray()
    )
    queries, gallery = np.ones((9, 2)), np.ones((7, 2))
    wanted = retrieval_metrics(queries, gallery, relevance, scores=scores.T.copy())
    for matrix in (scores.T, torch.from_numpy(scores).T, scores.T.copy()[::-1][::-1], scores[:, ::-1].copy().T[::-1]):
        assert retrieval_metrics(queries, gallery, relevance, scores=matrix) == wanted
    assert hubness_metrics(queries, gallery, k=3, scores=scores.T) == hubness_metrics(
        queries, gallery, k=3, scores=scores.T.copy()
    )
