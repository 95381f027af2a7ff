"""Every method against a slow reference, written from the published formula with whole matrices in float64.

Scores are compared up to a constant per query, which no ranking sees; methods whose scores are positions or
products are compared by the order they give.
"""

from __future__ import annotations

import itertools

import mpmath
import numpy as np
import ot
import pytest
import torch
from scipy.special import logsumexp

from reprolib.errors import InputError
from reprolib.methods import CATALOGUE, correct

KINDS = ("random", "clustered", "raw")


def lse(bank: np.ndarray, gallery: np.ndarray, beta: float) -> np.ndarray:
    return logsumexp(beta * (bank @ gallery.T), axis=0)


def none(x):
    return x.queries @ x.gallery.T


def inverted_softmax(x, *, beta):
    return (beta * none(x) - lse(x.query_bank, x.gallery, beta)) / beta


def gate(x, bank: np.ndarray, k: int) -> list[bool]:
    """QB-Norm: is the query's best item retrieved among the k best of some bank entry?"""
    activated = set()
    for entry in bank:
        activated |= set(np.argsort(-(x.gallery @ entry), kind="stable")[:k].tolist())
    return [int(np.argmax(x.gallery @ query)) in activated for query in x.queries]


def dynamic_inverted_softmax(x, *, beta, activation_k=1):
    gates = np.array(gate(x, x.query_bank, activation_k))
    return np.where(gates[:, None], inverted_softmax(x, beta=beta), none(x))


def dual_inverted_softmax(x, *, query_beta, gallery_beta):
    logs = (query_beta + gallery_beta) * none(x)
    logs -= lse(x.query_bank, x.gallery, query_beta) + lse(x.gallery_bank, x.gallery, gallery_beta)
    return logs / (query_beta + gallery_beta)


def top_mean(bank: np.ndarray, gallery: np.ndarray, k: int) -> np.ndarray:
    return np.array([np.mean(sorted(bank @ item, reverse=True)[:k]) for item in gallery])


def csls(x, *, k):
    of_query = np.array([np.mean(sorted(x.gallery @ query, reverse=True)[:k]) for query in x.queries])
    return (2 * none(x) - of_query[:, None] - top_mean(x.query_bank, x.gallery, k)) / 2


def nnn(x, *, alpha, k):
    return none(x) - alpha * top_mean(x.query_bank, x.gallery, k)


def distribution_normalisation(x, *, alpha):
    return (x.queries - alpha * x.query_bank.mean(0)) @ (x.gallery - alpha * x.gallery_bank.mean(0)).T


def transport(targets: np.ndarray, x, tau: float, iterations: int) -> np.ndarray:
    m, n = len(targets), len(x.query_bank)
    log = ot.bregman.sinkhorn_log(
        np.full(m, 1 / m),
        np.full(n, 1 / n),
        1 - targets @ x.query_bank.T,
        tau,
        numItermax=iterations,
        stopThr=-1,
        log=True,
        warn=False,
    )[1]
    return none(x) + tau * log["log_u"][: len(x.gallery)]


def sinkhorn(x, *, tau, iterations=10):
    return transport(x.gallery, x, tau, iterations)


def dual_bank_sinkhorn(x, *, tau, iterations=10):
    return transport(np.concatenate([x.gallery, x.gallery_bank]), x, tau, iterations)


def unit(row: np.ndarray) -> np.ndarray:
    return row / np.sqrt((row * row).sum())


def dense_message(item: np.ndarray, bank: np.ndarray, average: float) -> np.ndarray:
    total = np.zeros_like(item)
    for entry in bank:
        total += (item @ entry - average) * entry
    return total / len(bank)


def local_message(item: np.ndarray, bank: np.ndarray, pool_rate: float) -> np.ndarray:
    pool = int(pool_rate * len(bank))
    total = np.zeros_like(item)
    for j in np.argsort(-(bank @ item), kind="stable")[:pool]:
        total += (item @ bank[j]) * bank[j]
    return total / pool


def move(x, message, rate_gallery: float, rate_query: float, variant: str) -> np.ndarray:
    moved = []
    for item in x.gallery:
        by_gallery, by_query = message(item, x.gallery_bank), message(item, x.query_bank)
        if variant == "released":
            one, other = unit(item - rate_gallery * by_gallery), unit(item - rate_query * by_query)
            moved.append(unit(0.5 * one + 0.5 * other))
        else:
            moved.append(unit(item - rate_gallery * by_gallery - rate_query * by_query))
    return x.queries @ np.array(moved).T


def invgc(x, *, rate_gallery, rate_query, variant="released"):
    def message(item, bank):
        average = (x.gallery @ bank.T).mean() if variant == "released" else 0.0
        return dense_message(item, bank, average)

    return move(x, message, rate_gallery, rate_query, variant)


def invgc_localadj(x, *, rate_gallery, rate_query, pool_rate, variant="released"):
    return move(x, lambda item, bank: local_message(item, bank, pool_rate), rate_gallery, rate_query, variant)


def globally_corrected(x):
    """Minus (rank of the query among bank and query for the item, less the cosine)."""
    out = np.empty((len(x.queries), len(x.gallery)))
    for i, query in enumerate(x.queries):
        for j, item in enumerate(x.gallery):
            score = query @ item
            out[i, j] = -(1 + sum(entry @ item > score for entry in x.query_bank) - score / 1e3)
    return out


def dual_dynamic(x, *, query_beta, gallery_beta, activation_k=1) -> list[list[mpmath.mpf]]:
    """The product of the two factors as such, in extended precision."""
    gates = gate(x, x.query_bank, activation_k), gate(x, x.gallery_bank, activation_k)
    logs = lse(x.query_bank, x.gallery, query_beta), lse(x.gallery_bank, x.gallery, gallery_beta)
    out = []
    for i, row in enumerate(none(x)):
        out.append([])
        for j, s in enumerate(row):
            product = mpmath.mpf(1)
            for gated, beta, log_total in zip(gates, (query_beta, gallery_beta), logs, strict=True):
                product *= mpmath.exp(mpmath.mpf(beta * s) - log_total[j]) if gated[i] else mpmath.mpf(s)
            both_closed = not (gates[0][i] or gates[1][i])
            out[-1].append(mpmath.mpf(s) if both_closed else product)  # as the docstring states
    return out


SCORED = {
    "none": (none, [{}]),
    "is": (inverted_softmax, [{"beta": b} for b in (0.01, 1.0, 20.0, 150.0)]),
    "dis": (dynamic_inverted_softmax, [{"beta": 20.0}, {"beta": 50.0, "activation_k": 3}]),
    "dual-is": (
        dual_inverted_softmax,
        [{"query_beta": q, "gallery_beta": g} for q, g in ((20, 1), (30, 0.1), (5, 50), (0, 10), (20, 0))],
    ),
    "csls": (csls, [{"k": k} for k in (1, 10, 31)]),
    "nnn": (nnn, [{"alpha": 0.75, "k": 40}, {"alpha": 1.5, "k": 1}, {"alpha": 0.25, "k": 7}]),
    "dn": (distribution_normalisation, [{"alpha": a} for a in (0.0, 0.5, 1.0)]),
    "sinkhorn": (
        sinkhorn,
        [{"tau": 0.05}, {"tau": 0.01}, {"tau": 0.2, "iterations": 1}, {"tau": 0.1, "iterations": 40}],
    ),
    "dual-bank-sinkhorn": (dual_bank_sinkhorn, [{"tau": 0.05}, {"tau": 0.01}, {"tau": 0.1, "iterations": 3}]),
    "invgc": (
        invgc,
        [
            {"rate_gallery": 1.0, "rate_query": 0.5},
            {"rate_gallery": 5.0, "rate_query": 0.1},
            {"rate_gallery": 0.5, "rate_query": 1.0, "variant": "paper"},
        ],
    ),
    "invgc-localadj": (
        invgc_localadj,
        [
            {"rate_gallery": 0.5, "rate_query": 0.25, "pool_rate": 0.1},
            {"rate_gallery": 1.0, "rate_query": 2.0, "pool_rate": 1.0},
            {"rate_gallery": 0.1, "rate_query": 0.1, "pool_rate": 0.03, "variant": "paper"},
        ],
    ),
}
ORDERED = {
    "gc": [{}],
    "dual-dis": [
        {"query_beta": q, "gallery_beta": g, "activation_k": k} for q, g, k in ((20, 1, 1), (30, 3, 2), (2, 0, 1))
    ],
}
SCORED_CASES = [(name, p) for name, (_, grid) in SCORED.items() for p in grid]
ORDERED_CASES = [(name, p) for name, grid in ORDERED.items() for p in grid]


def label(value: object) -> str | None:
    return ",".join(f"{k}={v}" for k, v in value.items()) or "-" if isinstance(value, dict) else None


def test_every_method_has_a_reference():
    assert set(SCORED) | set(ORDERED) == set(CATALOGUE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "parameters"), SCORED_CASES, ids=label)
def test_scores_are_those_of_the_formula(name, parameters, kind, make_data):
    for seed in range(3):
        x = make_data(kind, seed)
        found = correct(name, x.queries, x.gallery, **x.banks, normalize=kind != "raw", **parameters)
        assert found.dtype == torch.float32 and found.shape == (9, 31)
        wanted = SCORED[name][0](x.double(), **parameters)
        offset = found.numpy().astype(np.float64) - wanted
        offset -= np.median(offset, axis=1, keepdims=True)
        scale = max(1.0, np.abs(wanted - np.median(wanted)).max())
        assert np.abs(offset).max() < 2e-6 * scale


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["none", "dn", "invgc", "invgc-localadj"])
def test_scores_without_a_free_constant_agree_as_they_are(name, kind, make_data):
    x = make_data(kind, 4)
    reference, (parameters, *_) = SCORED[name]
    found = correct(name, x.queries, x.gallery, **x.banks, normalize=kind != "raw", **parameters)
    np.testing.assert_allclose(found.numpy(), reference(x.double(), **parameters), atol=5e-5 if kind == "raw" else 2e-6)


def test_gc_orders_by_rank_then_by_similarity(make_data):
    for kind in KINDS:
        for seed in range(4):
            x = make_data(kind, seed)
            found = correct("gc", x.queries, x.gallery, query_bank=x.query_bank, normalize=kind != "raw").numpy()
            wanted = globally_corrected(x.double())
            np.testing.assert_array_equal(np.argsort(-found, axis=1), np.argsort(-wanted, axis=1))
            np.testing.assert_array_equal(np.sort(-found, axis=1), np.tile(np.arange(31.0), (9, 1)))


def test_gc_gives_equal_items_equal_scores(make_data):
    x = make_data("clustered", 5)
    gallery = np.concatenate([x.gallery, x.gallery[::-1]])
    found = correct("gc", x.queries, gallery, query_bank=x.query_bank).numpy()
    np.testing.assert_array_equal(found[:, :31], found[:, :30:-1])


@pytest.mark.parametrize("kind", ["random", "clustered"])
@pytest.mark.parametrize("parameters", ORDERED["dual-dis"], ids=label)
def test_dual_dis_orders_as_the_product_does(parameters, kind, make_data):
    """In extended precision; pairs that differ by less than float32 similarities can tell are left open."""
    seen = set()
    for seed in range(4):
        x = make_data(kind, seed, n=12, m=25, bank=6)
        found = correct("dual-dis", x.queries, x.gallery, **x.banks, **parameters).numpy()
        gates = (gate(x.double(), bank, parameters["activation_k"]) for bank in (x.query_bank, x.gallery_bank))
        seen |= set(zip(*gates, strict=True))
        for got, wanted in zip(found, dual_dynamic(x.double(), **parameters), strict=True):
            order = np.argsort(-got, kind="stable")
            for better, worse in itertools.pairwise(order):
                allowed = 1e-4 * max(abs(wanted[better]), abs(wanted[worse]))
                assert wanted[better] >= wanted[worse] - allowed
    assert len(seen) == 4, "every combination of gates occurred"


def test_dual_dis_with_closed_gates_left_out_keeps_the_bias_form(make_data):
    for seed in range(4):
        x = make_data("clustered", seed, n=12, m=25, bank=6)
        found = correct("dual-dis", x.queries, x.gallery, **x.banks, query_beta=20, gallery_beta=3, ungated="none")
        y = x.double()
        gates = zip(gate(y, y.query_bank, 1), gate(y, y.gallery_bank, 1), strict=True)
        for i, (by_query, by_gallery) in enumerate(gates):
            betas = 20 * by_query, 3 * by_gallery
            wanted = none(y)[i]
            if any(betas):
                wanted = sum(betas) * wanted - by_query * lse(y.query_bank, y.gallery, 20)
                wanted = (wanted - by_gallery * lse(y.gallery_bank, y.gallery, 3)) / sum(betas)
            offset = found[i].double().numpy() - wanted
            assert np.ptp(offset) < 2e-6


@pytest.mark.parametrize("beta", [0.5, 20.0, 60.0])
def test_released_dis_mixes_two_scales(beta, make_data):
    x = make_data("clustered", 6, n=30, bank=6)
    found = correct("dis", x.queries, x.gallery, query_bank=x.query_bank, beta=beta, variant="released")
    y = x.double()
    gates = np.array(gate(y, y.query_bank, 1))
    assert 0 < gates.sum() < 30
    softmax = np.exp(beta * none(y)) / np.exp(beta * (y.query_bank @ y.gallery.T)).sum(0)
    np.testing.assert_allclose(found.numpy(), np.where(gates[:, None], softmax, none(y)), rtol=2e-5, atol=1e-7)
    paper = correct("dis", x.queries, x.gallery, query_bank=x.query_bank, beta=beta)
    np.testing.assert_array_equal(paper.numpy().argmax(1), found.numpy().argmax(1))


def test_released_dual_is_normalises_the_gallery_bank_and_ignores_the_queries(make_data):
    x = make_data("clustered", 7)
    betas = {"query_beta": 1 / 1.99, "gallery_beta": 3.0}
    found = correct("dual-is", x.queries, x.gallery, **x.banks, **betas, variant="released")
    again = correct("dual-is", -x.queries[:2], x.gallery, **x.banks, **betas, variant="released")
    assert found.shape == (len(x.gallery_bank), len(x.gallery))
    assert torch.equal(found, again), "the test queries are not used"
    y = x.double()
    matrix = y.gallery_bank @ y.gallery.T
    wanted = np.ones_like(matrix)
    for bank, beta in ((y.query_bank, betas["query_beta"]), (y.gallery_bank, betas["gallery_beta"])):
        wanted *= np.exp(beta * matrix) / np.exp(beta * (bank @ y.gallery.T)).sum(0)
    offset = found.double().numpy() - np.log(wanted) / sum(betas.values())
    assert np.abs(offset - np.median(offset, axis=1, keepdims=True)).max() < 2e-6


def overwrite(bank: np.ndarray, test: np.ndarray, beta: float, k: int) -> np.ndarray:
    """What the release does to ``test``, in place: rows whose best item is activated become exp(beta s) / Z."""
    activated = set(np.argsort(-bank, axis=1, kind="stable")[:, :k].ravel().tolist())
    total = np.exp(beta * bank).sum(0)
    exponentials = np.exp(beta * test)
    for row in range(len(test)):
        if int(exponentials[row].argmax()) in activated:
            test[row] = exponentials[row] / total
    return test


@pytest.mark.parametrize(("query_beta", "gallery_beta", "k"), [(1 / 1.99, 3.0, 1), (4.0, 1.0, 1), (1.0, 5.0, 3)])
def test_released_dual_dis_is_the_square_of_a_twice_overwritten_matrix(query_beta, gallery_beta, k, make_data):
    for seed in range(3):
        x = make_data("clustered", seed, bank=8)
        betas = {"query_beta": query_beta, "gallery_beta": gallery_beta, "activation_k": k}
        found = correct("dual-dis", x.queries, x.gallery, **x.banks, **betas, variant="released")
        y = x.double()
        matrix = y.gallery_bank @ y.gallery.T
        first = overwrite(y.query_bank @ y.gallery.T, matrix, query_beta, k)
        second = overwrite(matrix, matrix, gallery_beta, k)
        assert first is second
        np.testing.assert_allclose(found.numpy(), first * second, rtol=1e-4, atol=1e-7)


def test_an_overflow_of_the_release_is_named_and_not_ranked(make_data):
    """exp(beta s) / Z of the first call exceeds 88, so that exp() of the second is infinite, and so is its sum."""
    x = make_data("clustered", 1, bank=8)
    betas = {"query_beta": 20.0, "gallery_beta": 10.0, "variant": "released"}
    with pytest.raises(InputError, match=r"query .* hold NaN .*overflow"):
        correct("dual-dis", x.queries, x.gallery, **x.banks, **betas)
