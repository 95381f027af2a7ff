"""What must be the same whichever way it is computed, as properties over random data."""

from __future__ import annotations

import gc
import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp

from reprolib import ranking
from reprolib.methods import CATALOGUE, Bank, correct, fit, sinkhorn
from reprolib.ranking import Scorer, as_embeddings, rank

seeds = st.integers(0, 10**6)
kinds = st.sampled_from(["random", "clustered", "raw"])
fixtures = settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
PARAMETERS = {
    "dual-is": {"gallery_beta": 3.0},
    "dual-dis": {"gallery_beta": 3.0},
    "nnn": {"k": 7},
    "invgc-localadj": {"pool_rate": 0.1},
}
VARIANTS = [(name, v) for name in CATALOGUE for v in ("paper", "released") if "variant" in CATALOGUE[name].parameters]
ALL = [(name, None) for name in CATALOGUE] + VARIANTS


def settings_of(name: str, variant: str | None = None) -> dict[str, object]:
    """Parameters that suit the small data of these tests; a new method runs with its defaults."""
    chosen = PARAMETERS.get(name, {}) | ({"variant": variant} if variant else {})
    if (name, variant) == ("dual-dis", "released"):  # the release has no log space: larger values overflow here
        chosen |= {"query_beta": 1.0, "gallery_beta": 0.5}
    return chosen


def fitted(name: str, x, kind: str = "random", variant: str | None = None, **parameters: object) -> Scorer:
    chosen = settings_of(name, variant) | parameters
    return fit(name, x.queries, x.gallery, **x.banks, normalize=kind != "raw", **chosen)


def up_to_constants(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference after the best constant per query."""
    gap = one.double() - other.double()
    gap -= gap.median(dim=1, keepdim=True).values
    return float(gap.abs().max())


@fixtures
@given(seeds, kinds, st.integers(1, 40))
def test_csls_ranks_as_nnn_with_alpha_one_half(make_data, seed, kind, k):
    x = make_data(kind, seed)
    assert torch.equal(fitted("csls", x, kind, k=k).scores(), fitted("nnn", x, kind, k=k, alpha=0.5).scores())


@fixtures
@given(seeds, kinds, st.floats(0.5, 150))
def test_inverted_softmax_is_one_sided_sinkhorn(make_data, seed, kind, beta):
    x = make_data(kind, seed)
    one = fitted("sinkhorn", x, kind, tau=1 / beta, iterations=0)
    assert up_to_constants(one.scores(), fitted("is", x, kind, beta=beta).scores()) < 1e-6 * (
        30 if kind == "raw" else 1
    )


@fixtures
@given(seeds, kinds, st.floats(0.01, 150))
def test_dual_is_with_gallery_temperature_zero_is_inverted_softmax(make_data, seed, kind, beta):
    x = make_data(kind, seed)
    dual = fitted("dual-is", x, kind, query_beta=beta, gallery_beta=0.0)
    single = fitted("is", x, kind, beta=beta)
    assert up_to_constants(dual.scores(), single.scores()) < 1e-6 * (30 if kind == "raw" else 1)


@fixtures
@given(seeds, kinds)
def test_dis_with_everything_activated_is_inverted_softmax(make_data, seed, kind):
    x = make_data(kind, seed)
    dynamic = fitted("dis", x, kind, activation_k=len(x.gallery))
    assert dynamic.notes["share of queries corrected"] == 1.0
    assert torch.equal(dynamic.scores(), fitted("is", x, kind).scores())
    dual = fitted("dual-dis", x, kind, activation_k=len(x.gallery))
    # an ulp apart: where a product may be needed, the similarity is rounded before the bias is subtracted
    gap = dual.scores() - fitted("dual-is", x, kind).scores()
    assert float(gap.abs().max()) <= 2.0**-23 * max(1.0, float(dual.scores().abs().max()))


@pytest.mark.parametrize("name", CATALOGUE)
def test_bias_form_equals_score_form(name, make_data):
    for kind in ("random", "clustered", "raw"):
        x = make_data(kind, 1)
        scorer = fitted(name, x, kind)
        if scorer.transform is not None or scorer.bias is None:
            continue
        state = torch.zeros(9, dtype=torch.int64) if scorer.state is None else scorer.state
        raw = Scorer(scorer.queries, scorer.gallery).scores().double()
        wanted = (raw - scorer.bias.double()[state]).float()
        torch.testing.assert_close(scorer.scores(), wanted, rtol=2e-7, atol=2e-7)
        chosen = settings_of(name)
        assert torch.equal(
            scorer.scores(),
            correct(name, x.queries, x.gallery, **x.banks, normalize=kind != "raw", **chosen),
        )


@fixtures
@given(seeds, kinds, st.floats(0, 2))
def test_dn_is_a_bias(make_data, seed, kind, alpha):
    x = make_data(kind, seed)
    bias = alpha * torch.as_tensor(x.gallery.astype(np.float64) @ x.query_bank.astype(np.float64).mean(0))
    raw = torch.as_tensor(x.queries.astype(np.float64) @ x.gallery.astype(np.float64).T)
    scores = fitted("dn", x, kind, alpha=alpha).scores()
    assert up_to_constants(scores, raw - bias) < (1e-4 if kind == "raw" else 2e-6)


def test_several_temperatures_at_once_equal_one_by_one(make_data):
    x = make_data("clustered", 2, m=200, bank=3000, d=16)
    gallery, embeddings = torch.as_tensor(x.gallery), torch.as_tensor(x.query_bank)
    betas = (0.0, 1e-3, 0.5, 1.0, 20.0, 400.0)
    together = Bank(embeddings, "bank").logsumexps(gallery, betas)
    in_steps = Bank(embeddings, "bank")
    in_steps.logsumexps(gallery, betas[2:4])
    exact = x.gallery.astype(np.float64) @ x.query_bank.astype(np.float64).T
    for beta, one, other in zip(betas, together, in_steps.logsumexps(gallery, betas), strict=True):
        assert torch.equal(one, Bank(embeddings, "bank").logsumexp(gallery, beta))
        assert torch.equal(one, other)
        error = np.abs(one.numpy() - logsumexp(beta * exact, axis=1)).max()
        assert error <= 1e-6 * max(beta, 1e-3), "in units of the similarity, 1e-6"


def test_top_means_of_several_depths_equal_one_by_one(make_data):
    x = make_data("clustered", 3, m=100, bank=2100, d=16)
    gallery, embeddings = torch.as_tensor(x.gallery), torch.as_tensor(x.query_bank)
    bank = Bank(embeddings, "bank")
    bank.top_mean(gallery, 3, most=512)
    ordered = np.sort(x.gallery.astype(np.float64) @ x.query_bank.astype(np.float64).T, axis=1)[:, ::-1]
    for k in (1, 3, 512, 600, 2, 2100):
        found = bank.top_mean(gallery, k)
        torch.testing.assert_close(found, Bank(embeddings, "bank").top_mean(gallery, k), rtol=0, atol=1e-12)
        np.testing.assert_allclose(found.numpy(), ordered[:, :k].mean(1), atol=3e-7)


@pytest.mark.parametrize("n_bank", [5, 2049])
def test_a_bank_that_is_streamed_equals_one_in_memory(n_bank, make_data):
    x = make_data("clustered", 4, n=8, m=130, bank=n_bank, d=16)
    for name in CATALOGUE:
        chosen = {"pool_rate": 0.3} if name == "invgc-localadj" else {"k": 5} if name == "nnn" else settings_of(name)
        if name == "csls":
            chosen = {"k": 4}
        found = []
        for block_bytes in (2**16, 2**20, 2**28):
            banks = {
                label: Bank(ranking.as_embeddings(rows, label), label, block_bytes) for label, rows in x.banks.items()
            }
            found.append(fit(name, x.queries, x.gallery, **banks, **chosen).scores())
        assert torch.equal(found[0], found[1]), name
        assert torch.equal(found[0], found[2]), name


def order_of(scorer: Scorer, m: int) -> np.ndarray:
    return ranking.topk(scorer, m, ordered=True)


@pytest.mark.parametrize(("name", "variant"), ALL)
def test_ranks_do_not_change_with_threads(name, variant, make_data, threads):
    x = make_data("clustered", 5, n=20, m=200, bank=2100, d=32)
    found = []
    for count in (1, 2):
        threads(count)
        found.append(ranking.topk(fitted(name, x, variant=variant), 50, ordered=True))
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize(("name", "variant"), ALL)
def test_ranks_do_not_change_with_the_order_of_the_gallery(name, variant, make_data):
    x = make_data("clustered", 6, n=60, m=700, bank=300, d=64)
    order = np.random.default_rng(0).permutation(700)
    one = fitted(name, x, variant=variant)
    two = fitted(name, x._replace(gallery=x.gallery[order]), variant=variant)
    items = np.random.default_rng(1).integers(0, 700, (one.shape[0], 1))
    place = np.argsort(order)
    first, second = rank(one, items.tolist(), 5), rank(two, place[items].tolist(), 5)
    np.testing.assert_array_equal(first.above, second.above)
    np.testing.assert_array_equal(first.tied, second.tied)


@pytest.mark.parametrize(("name", "variant"), ALL)
def test_ranks_do_not_change_with_the_order_of_the_bank(name, variant, make_data):
    x = make_data("clustered", 7, n=40, m=200, bank=300, d=32)
    turned = x._replace(query_bank=x.query_bank[::-1].copy())
    np.testing.assert_array_equal(
        order_of(fitted(name, x, variant=variant), 200)[:, :10],
        order_of(fitted(name, turned, variant=variant), 200)[:, :10],
    )


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("name", "variant"), ALL)
def test_ranks_do_not_change_with_the_storage_type(name, variant, stored, make_data):
    x = make_data("clustered", 8)
    same = [torch.as_tensor(rows).to(torch.bfloat16) for rows in x]
    found = [
        fitted(name, type(x)(*(rows.to(dtype) for rows in same)), variant=variant) for dtype in (torch.float32, stored)
    ]
    assert torch.equal(found[0].scores(), found[1].scores())


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(("name", "variant"), ALL)
def test_no_input_is_changed(name, variant, normalize, make_data):
    for wrap in (np.array, lambda rows: torch.as_tensor(rows.copy())):
        x = make_data("raw" if normalize else "clustered", 9)
        x = type(x)(*(wrap(rows) for rows in x))
        before = [np.asarray(rows).tobytes() for rows in x]
        scorer = fit(name, x.queries, x.gallery, **x.banks, normalize=normalize, **settings_of(name, variant))
        scorer.scores().mul_(0)
        relevance = np.ones(scorer.shape, bool)
        rank(scorer, relevance, 3)
        first = scorer.scores()
        rank(scorer, relevance, 3, block_bytes=1)
        assert torch.equal(first, scorer.scores()), "scoring twice gives the same scores"
        assert [np.asarray(rows).tobytes() for rows in x] == before


@pytest.mark.parametrize("beta", [1e-3, 0.03, 1.0, 30.0, 400.0])
@pytest.mark.parametrize("kind", ["random", "clustered"])
def test_scores_are_finite_at_any_temperature(beta, kind, make_data):
    x = make_data(kind, 10, bank=60)
    same = np.repeat(x.gallery[:1], 60, axis=0)
    for banks in (x.banks, {"query_bank": same, "gallery_bank": same}):
        for name, method in CATALOGUE.items():
            for swept in {"beta", "query_beta", "gallery_beta"} & set(method.parameters):
                scores = correct(name, x.queries, x.gallery, **banks, **{swept: beta})
                assert bool(scores.isfinite().all()), (name, swept)
                assert len(scores[0].unique()) > 20, "float32 still tells the items apart"
        scores = correct("sinkhorn", x.queries, x.gallery, **banks, tau=1 / beta)
        assert bool(scores.isfinite().all())


@fixtures
@given(seeds)
def test_a_large_beta_approaches_the_largest_similarity_and_a_small_one_the_mean(make_data, seed):
    x = make_data("clustered", seed)
    similarity = torch.as_tensor(x.gallery.astype(np.float64) @ x.query_bank.astype(np.float64).T)
    raw = fitted("none", x).scores()
    hot = fitted("is", x, beta=1e5).scores()
    assert up_to_constants(hot, raw.double() - similarity.amax(1)) < 1e-5 * math.log(40) + 1e-6
    cold = fitted("is", x, beta=1e-3).scores()
    assert up_to_constants(cold, raw.double() - similarity.mean(1)) < 1e-3


@fixtures
@given(seeds, st.integers(2, 20))
def test_nnn_over_the_whole_bank_is_dn(make_data, seed, bank):
    x = make_data("clustered", seed, bank=bank)
    one = fitted("nnn", x, k=bank, alpha=0.6).scores()
    assert up_to_constants(one, fitted("dn", x, alpha=0.6).scores()) < 2e-6


@fixtures
@given(seeds)
def test_a_bank_of_one_repeated_item_changes_nothing_that_the_item_does_not(make_data, seed):
    """All of the one-bank corrections then subtract (a multiple of) the similarity to that item."""
    x = make_data("clustered", seed)
    one = np.repeat(x.query_bank[:1], 30, axis=0)
    x = x._replace(query_bank=one)
    gap = x.gallery.astype(np.float64) @ one[0].astype(np.float64)
    wanted = torch.as_tensor(x.queries.astype(np.float64) @ x.gallery.astype(np.float64).T - gap)
    for scorer in (fitted("is", x, beta=7.0), fitted("nnn", x, alpha=1.0, k=5), fitted("dn", x, alpha=1.0)):
        assert up_to_constants(scorer.scores(), wanted) < 2e-6


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_kept_reduction_does_not_leak_into_another_gallery_or_parameter(name, make_data):
    x, y = make_data("clustered", 11), make_data("clustered", 12)
    tensors = [torch.as_tensor(rows) for rows in x]
    banks = {"query_bank": Bank(tensors[2], "query_bank"), "gallery_bank": Bank(tensors[3], "gallery_bank")}
    grid = CATALOGUE[name].grid
    varied = [settings_of(name) | {key: value} for key, values in grid.items() for value in values[:3]]
    if "variant" in CATALOGUE[name].parameters:
        varied += [p | {"variant": v} for p in varied[:1] for v in ("released", "paper")]
    for _ in range(2):
        for chosen in [settings_of(name), *varied]:
            if chosen.get("pool_rate", 1) * 40 < 1:
                continue
            for gallery in (tensors[1], torch.as_tensor(y.gallery)):
                kept = fit(name, tensors[0], gallery, **banks, normalize=False, **chosen)
                fresh = fit(name, tensors[0], gallery, **x.banks, normalize=False, **chosen)
                torch.testing.assert_close(kept.scores(), fresh.scores(), rtol=1e-6, atol=1e-6)


def test_similarities_of_a_pair_do_not_depend_on_where_it_stands(make_data, threads):
    x = make_data("clustered", 13, m=150, bank=2100, d=48)
    gallery, embeddings = torch.as_tensor(x.gallery), torch.as_tensor(x.query_bank)
    rows, columns = torch.randperm(150), torch.randperm(2100)
    wanted = Bank(embeddings, "bank")
    wanted = torch.cat([tile.clone() for tile in wanted.similarities(gallery)], 1)
    turned = Bank(embeddings[columns], "bank")
    for count, step in ((1, 1), (2, 64), (2, 130), (2, 150)):
        threads(count)
        blocks = gallery[rows].split(step)
        found = [torch.cat([tile.clone() for tile in turned.similarities(block)], 1) for block in blocks]
        assert torch.equal(torch.cat(found), wanted[rows][:, columns])


@fixtures
@given(seeds, kinds, st.integers(1, 3))
def test_the_best_item_of_a_bank_entry_is_the_first_of_the_highest_canonical_scores(make_data, seed, kind, copies):
    x = make_data(kind, seed, m=90, bank=70)
    nudged = np.nextafter(x.gallery, np.float32(9))  # near ties, beside exact ones
    gallery = torch.as_tensor(np.concatenate([nudged, *[x.gallery] * copies]))
    embeddings = torch.as_tensor(x.query_bank)
    canonical = (embeddings.double() @ gallery.double().T).float()
    found = Bank(embeddings, "bank", 1).best(gallery)
    np.testing.assert_array_equal(found.numpy(), canonical.numpy().argmax(1))
    active, total = Bank(embeddings, "bank").activation(gallery, 1, 5.0)
    assert active.nonzero().squeeze(1).tolist() == sorted(set(found.tolist()))
    assert torch.equal(total, Bank(embeddings, "bank").logsumexp(gallery, 5.0))


@fixtures
@given(seeds, kinds, st.floats(0.005, 1))
def test_sinkhorn_is_the_same_held_streamed_or_in_log_space(make_data, seed, kind, tau):
    x = make_data(kind, seed)
    gallery, bank = torch.as_tensor(x.gallery), Bank(torch.as_tensor(x.query_bank), "bank")
    held = sinkhorn.potentials(gallery, bank, tau, 10)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sinkhorn, "_HELD", 0)
        assert torch.equal(sinkhorn.potentials(gallery, bank, tau, 10), held)
        patch.setattr(sinkhorn, "_REACH", 0.0)
        in_logs = sinkhorn.potentials(gallery, bank, tau, 10)
    assert float((in_logs - held).abs().max()) < 5e-7 * (30 if kind == "raw" else 1)


def test_gc_ranks_among_a_bank_of_more_than_two_bytes_count(make_data):
    x = make_data("random", 14, n=3, m=6, bank=70_000, d=4)
    found = fitted("gc", x).scores().numpy()
    exact = (x.query_bank.astype(np.float64) @ x.gallery.astype(np.float64).T).astype(np.float32)
    own = (x.queries.astype(np.float64) @ x.gallery.astype(np.float64).T).astype(np.float32)
    higher = (exact[None] > own[:, None]).sum(1)
    np.testing.assert_array_equal(np.argsort(-found), np.lexsort((-own, higher)))


@pytest.mark.parametrize("tau", [0.01, 0.02])
def test_float32_sums_of_sinkhorn_move_no_score(tau, make_data, monkeypatch):
    x = make_data("clustered", 9, m=3000, bank=700, d=256)
    targets, bank = torch.as_tensor(x.gallery), Bank(torch.as_tensor(x.query_bank), "bank")
    fast = sinkhorn.potentials(targets, bank, tau, 10)
    monkeypatch.setattr(sinkhorn, "_SHARP", 0.0)
    exact = sinkhorn.potentials(targets, bank, tau, 10)
    assert 0 < float((fast - exact).abs().max()) < 4e-8


def test_a_bank_forgets_a_gallery_with_it(make_data):
    data = make_data("clustered", 0, n=4, m=7, bank=9, d=6)
    bank, kept = Bank(as_embeddings(data.query_bank, "bank"), "query bank"), []
    for _ in range(3):
        kept.append(len(bank._kept))
        fit("dis", data.queries, data.gallery, query_bank=bank, beta=20)
        gc.collect()
    assert kept == [0, 0, 0]
    same = as_embeddings(data.gallery, "gallery")
    for _ in range(2):
        fit("is", data.queries, same, query_bank=bank, beta=20, normalize=False)
        assert len(bank._kept) == 1
