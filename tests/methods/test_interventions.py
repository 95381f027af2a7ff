"""Interventions on the gap: slow references, identities, and the values measured on the 500 real CLIP pairs."""

from __future__ import annotations

import numpy as np
import ot
import pytest
import scipy.linalg
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge

from reprolib.errors import InputError
from reprolib.methods import fit
from reprolib.methods.interventions import INTERVENTIONS, intervene
from reprolib.metrics import gap_metrics, gap_per_dimension, info_nce, mixed_gallery_metrics, retrieval_metrics
from reprolib.ranking import Scorer, rank

seeds = st.integers(0, 10**6)
fixtures = settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
SMALL = {"spectral": {"k": 5}, "drop-dimensions": {"k": 2}, "optimal-transport": {"tau": 0.1}}
INDUCTIVE = [name for name, entry in INTERVENTIONS.items() if not entry.transductive]
TRANSDUCTIVE = [name for name, entry in INTERVENTIONS.items() if entry.transductive]
VARIANTS = {
    "i0t": [{"variant": "paper"}, {"variant": "third-party"}],
    "procrustes": [{"centred": False}, {"centred": True}],
    "shift": [{"lam": lam, "sides": sides} for lam in (-0.5, 0.5, 1.0) for sides in ("both", "image", "text")],
    "shift-released": [{"delta": 0.3, "sides": sides} for sides in ("both", "image", "text")],
}
EVERY = [(name, parameters) for name in INTERVENTIONS for parameters in VARIANTS.get(name, [SMALL.get(name, {})])]


def unit(rows: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows, np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


class Sets:
    """Train pairs [30, 7] and test pairs [12, 7], unit float32 rows: overlapping cones, weak links."""

    def __init__(self, seed: int, n: int = 30, m: int = 12, d: int = 7) -> None:
        rng = np.random.default_rng(seed)
        cones, shared = 4 * np.eye(1, d) + rng.standard_normal((2, d)), rng.standard_normal((n + m, d))
        sides = [unit(cone + shared + 0.4 * rng.standard_normal((n + m, d))).astype(np.float32) for cone in cones]
        self.train = tuple(side[:n] for side in sides)
        self.test = tuple(side[n:] for side in sides)

    def exact(self) -> tuple[np.ndarray, ...]:
        """Train images and texts, test images and texts, as float64 unit rows."""
        return tuple(unit(side).astype(np.float32).astype(np.float64) for side in (*self.train, *self.test))

    def moved(self, name: str, *, renormalize: bool = True, **parameters: object) -> tuple[np.ndarray, np.ndarray]:
        moved = intervene(name, *self.train, renormalize=renormalize, **parameters)(*self.test)
        return tuple(side.numpy().astype(np.float64) for side in moved)


# --- every entry of the catalogue


@pytest.mark.parametrize(("name", "parameters"), EVERY, ids=str)
def test_rows_come_back_as_unit_float32_and_no_input_is_changed(name, parameters):
    sets = Sets(0)
    kept = [side.copy() for side in (*sets.train, *sets.test)]
    move = intervene(name, *sets.train, **parameters)
    moved, again = move(*sets.test), move(*sets.test)
    for side, second, given_rows in zip(moved, again, sets.test, strict=True):
        assert side.dtype == torch.float32 and len(side) == len(given_rows)
        assert side.double().norm(dim=1).numpy() == pytest.approx(1, abs=1e-6)
        assert torch.equal(side, second)
        assert not np.shares_memory(side.numpy(), given_rows)
    assert all((one == other).all() for one, other in zip(kept, (*sets.train, *sets.test), strict=True))
    tensors = intervene(name, *map(torch.as_tensor, sets.train), **parameters)(*map(torch.as_tensor, sets.test))
    assert all(torch.equal(one, other) for one, other in zip(moved, tensors, strict=True))


@pytest.mark.parametrize(("name", "parameters"), [e for e in EVERY if e[0] in INDUCTIVE], ids=str)
def test_inductive_ones_move_a_row_whatever_else_is_given(name, parameters):
    sets = Sets(1)
    move = intervene(name, *sets.train, **parameters)
    image, text = move(*sets.test)
    other = Sets(2).test
    assert move(sets.test[0], other[1])[0].numpy() == pytest.approx(image.numpy(), abs=1e-7)
    assert move(other[0], sets.test[1])[1].numpy() == pytest.approx(text.numpy(), abs=1e-7)
    alone = move(sets.test[0][3:4], sets.test[1][5:7])
    assert alone[0].numpy() == pytest.approx(image[3:4].numpy(), abs=1e-7)
    assert alone[1].numpy() == pytest.approx(text[5:7].numpy(), abs=1e-7)


@pytest.mark.parametrize("name", TRANSDUCTIVE)
def test_transductive_ones_use_the_rows_given_and_nothing_else(name):
    sets, other = Sets(1), Sets(2)
    here = intervene(name, *sets.train, **SMALL[name])(*sets.test)
    assert all(map(torch.equal, here, intervene(name, *other.train, **SMALL[name])(*sets.test)))
    fewer = intervene(name, *sets.train, **SMALL[name])(sets.test[0][:-2], sets.test[1])
    assert not np.allclose(fewer[1].numpy(), here[1].numpy(), atol=1e-3)


def test_all_but_the_optimal_and_spectral_are_inductive():
    assert TRANSDUCTIVE == ["spectral", "optimal-transport"]
    for entry in INTERVENTIONS.values():
        assert set(entry.grid) <= set(entry.parameters)
        for name, values in entry.grid.items():
            assert entry.parameters[name] in values


@fixtures
@given(seeds)
@pytest.mark.parametrize("name", [name for name in INTERVENTIONS if name not in ("i0t", "drop-dimensions")])
def test_a_common_rotation_goes_through(name, seed):
    # fewer pairs than dimensions too: what procrustes leaves open must not depend on the basis
    sets = Sets(seed, n=5 if name == "procrustes" else 30)
    rotation = np.linalg.qr(np.random.default_rng(seed).standard_normal((7, 7)))[0]
    before = intervene(name, *sets.train, **SMALL.get(name, {}))(*sets.test)
    train, test = ([side.astype(np.float64) @ rotation for side in part] for part in (sets.train, sets.test))
    after = intervene(name, *train, **SMALL.get(name, {}))(*test)
    # signs of eigenvectors are free, so it is the products of all rows that are compared
    wanted, found = (np.concatenate([s.double().numpy() for s in moved]) for moved in (before, after))
    assert found @ found.T == pytest.approx(wanted @ wanted.T, abs=2e-5)
    if name != "spectral":
        assert found == pytest.approx(wanted @ rotation, abs=2e-5)


# --- slow references


def slow(name: str, sets: Sets, **p: object) -> tuple[np.ndarray, np.ndarray]:
    """The rows of the test part after the move, not renormalised."""
    x, y, a, b = sets.exact()
    gap = x.mean(0) - y.mean(0)
    if name == "none":
        return a, b
    if name in ("shift", "shift-released"):
        step = p["lam"] * gap if name == "shift" else p["delta"] * gap / np.sqrt(sum(gap**2))
        if p["sides"] == "both":
            return a - step / 2, b + step / 2
        return (a - step, b) if p["sides"] == "image" else (a, b + step)
    if name == "mean-centring" or (name, p.get("variant")) == ("i0t", "paper"):
        return a - x.mean(0), b - y.mean(0)
    if name == "i0t":
        return (a - x.mean(0)) / (x.std(0) + 1e-6), (b - y.mean(0)) / (y.std(0) + 1e-6)
    if name == "drop-dimensions":
        a, b = a.copy(), b.copy()
        for _ in range(p["k"]):
            worst = int(np.argmax(abs(gap)))
            gap[worst] = a[:, worst] = b[:, worst] = 0
        return a, b
    if name == "procrustes":
        mean_x, mean_y = (x.mean(0), y.mean(0)) if p["centred"] else (0, 0)
        return a, (b - mean_y) @ scipy.linalg.orthogonal_procrustes(y - mean_y, x - mean_x)[0] + mean_x
    if name == "linear":
        return a, Ridge(alpha=0.01 * len(x)).fit(y, x).predict(b)
    if name == "optimal-transport":
        even = np.full(len(a), 1 / len(a)), np.full(len(b), 1 / len(b))
        plan = ot.sinkhorn(*even, 1 - a @ b.T, p["tau"], numItermax=10000, stopThr=1e-14)
        return a, (plan / plan.sum(0)).T @ a
    weights = np.maximum(a @ b.T, 0)
    graph = np.block([[np.zeros((len(a), len(a))), weights], [weights.T, np.zeros((len(b), len(b)))]])
    degree = np.diag(graph.sum(1))
    _, vectors = scipy.linalg.eigh(degree - graph, degree)  # (D - A) v = l D v is (I - D^-1 A) v = l v
    vectors = vectors[:, 1 : p["k"] + 1]
    return vectors[: len(a)], vectors[len(a) :]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("name", "parameters"), EVERY, ids=str)
def test_moves_are_those_of_the_formulas(name, parameters, seed):
    sets = Sets(seed)
    chosen = parameters | ({"iterations": 300} if name == "optimal-transport" else {})
    found, wanted = sets.moved(name, renormalize=False, **chosen), slow(name, sets, **parameters)
    if name == "spectral":  # an eigenvector has no length and no sign, but one for both modalities
        found, wanted = np.concatenate(found), np.concatenate(wanted)
        found, wanted = (v / np.linalg.norm(v, axis=0) * np.sign(v[0]) for v in (found, wanted))
    for one, other in zip(found, wanted, strict=True):
        assert one == pytest.approx(other, abs=2e-6)
    for one, other in zip(sets.moved(name, **chosen), slow(name, sets, **parameters), strict=True):
        if name != "spectral":
            assert one == pytest.approx(unit(other), abs=5e-6)


def test_many_texts_per_image_pair_as_the_relevance_says():
    sets = Sets(3)
    image, text = sets.train[0], np.repeat(sets.train[1], 2, axis=0)
    match = np.repeat(np.eye(30, dtype=bool), 2, axis=1)
    for name in ("procrustes", "linear"):
        one = intervene(name, image, text, match)(*sets.test)
        pairs = intervene(name, np.repeat(image, 2, axis=0), text)(*sets.test)
        assert one[1].numpy() == pytest.approx(pairs[1].numpy(), abs=1e-6)
        with pytest.raises(InputError, match="30 train images and 60 train texts: pass relevance"):
            intervene(name, image, text)
    centred = intervene("mean-centring", image, text)(*sets.test)  # which looks at no pair
    assert centred[1].numpy() == pytest.approx(sets.moved("mean-centring")[1], abs=1e-6)


# --- identities


@fixtures
@given(seeds)
def test_centring_closes_the_gap_before_renormalisation(seed):
    train = Sets(seed).train
    moved = intervene("mean-centring", *train, renormalize=False)(*train)
    assert gap_metrics(*moved, normalize=False, probe=False)["L2M"] < 1e-7
    moved = intervene("i0t", *train, renormalize=False)(*train)
    assert np.abs(gap_per_dimension(*moved, normalize=False)).max() < 1e-6
    for side in moved:
        assert side.double().std(0, correction=0).numpy() == pytest.approx(1, abs=1e-4)  # the epsilon of 1e-6


@fixtures
@given(seeds, st.floats(-1, 2), st.sampled_from(["both", "image", "text"]))
def test_a_shift_leaves_the_share_that_was_asked_for(seed, amount, sides):
    train = Sets(seed).train
    before = np.linalg.norm(gap_per_dimension(*train))
    for name, parameters, left in (
        ("shift", {"lam": amount}, abs(1 - amount) * before),
        ("shift-released", {"delta": amount}, abs(before - amount)),
    ):
        moved = intervene(name, *train, renormalize=False, sides=sides, **parameters)(*train)
        assert gap_metrics(*moved, normalize=False, probe=False)["L2M"] == pytest.approx(left, abs=1e-6)


@fixtures
@given(seeds)
def test_both_shifts_are_one_at_the_matching_amount(seed):
    sets = Sets(seed)
    length = float(np.linalg.norm(gap_per_dimension(*sets.train)))
    for one, other in zip(sets.moved("shift", lam=0.4), sets.moved("shift-released", delta=0.4 * length), strict=True):
        assert one == pytest.approx(other, abs=1e-6)


def ranks(queries: np.ndarray, gallery: np.ndarray, bias: torch.Tensor | None = None) -> list[int]:
    """Rank of every item for every query."""
    scorer = Scorer(torch.as_tensor(queries).float(), torch.as_tensor(gallery).float(), bias)
    return rank(scorer, np.ones(scorer.shape, bool), 0).rank.tolist()


@fixtures
@given(seeds, st.floats(-1, 1))
def test_before_renormalisation_an_offset_of_the_gallery_changes_no_ranking_and_one_of_the_queries_is_a_bias(seed, lam):
    sets = Sets(seed)
    image, text = sets.test
    offset = lam * gap_per_dimension(*sets.train)
    # texts search images: the gallery is moved
    moved, still = sets.moved("shift", renormalize=False, lam=lam, sides="image")
    assert still == pytest.approx(text, abs=1e-7)
    assert ranks(text, moved) == ranks(text, image)
    # images search texts: the queries are moved by -c, which is the bias c . g of every text g
    bias = torch.as_tensor(text.astype(np.float64) @ offset).float()[None]
    assert ranks(moved, text) == ranks(image, text, bias)
    scores = Scorer(torch.as_tensor(image), torch.as_tensor(text), bias).scores().numpy()
    assert (moved @ text.T).tolist() == [pytest.approx(row, abs=1e-6) for row in scores]


@fixtures
@given(seeds, st.booleans())
def test_centring_before_renormalisation_is_distribution_normalisation(seed, texts_search):
    sets = Sets(seed)
    order = (1, 0) if texts_search else (0, 1)
    moved = sets.moved("mean-centring", renormalize=False)
    queries, gallery = (moved[side] for side in order)
    banks = dict(zip(("query_bank", "gallery_bank"), (sets.train[side] for side in order), strict=True))
    dn = fit("dn", *(sets.test[side] for side in order), **banks, alpha=1.0)
    assert (queries @ gallery.T).tolist() == [pytest.approx(row, abs=1e-6) for row in dn.scores().numpy()]
    # and only the mean of the queries' modality decides, as the bias mean . g
    raw = [sets.test[side] for side in order]
    bias = torch.as_tensor(raw[1].astype(np.float64) @ banks["query_bank"].mean(0, dtype=np.float64)).float()[None]
    everything = np.ones(dn.shape, bool)
    assert rank(dn, everything, 0).rank.tolist() == ranks(*raw, bias) == ranks(queries, gallery)


@fixtures
@given(seeds)
def test_procrustes_is_a_rotation_that_undoes_one(seed):
    sets = Sets(seed)
    rotation = np.linalg.qr(np.random.default_rng(seed).standard_normal((7, 7)))[0]
    images = [side.astype(np.float64) for side in (sets.train[0], sets.test[0])]
    found = intervene("procrustes", images[0], images[0] @ rotation)(images[1], images[1] @ rotation)
    assert found[1].numpy() == pytest.approx(images[1], abs=1e-5)
    text = sets.moved("procrustes", renormalize=False)[1]
    assert text @ text.T == pytest.approx(sets.test[1] @ sets.test[1].T, abs=1e-5)


def test_procrustes_leaves_what_pairs_do_not_determine():
    rng = np.random.default_rng(5)
    train = np.zeros((3, 8))
    train[:, :4] = rng.standard_normal((3, 4))
    texts = np.eye(8)[4:]  # no train row reaches there
    moved = intervene("procrustes", train, train)(texts, texts)[1]
    assert moved.numpy() == pytest.approx(texts, abs=1e-6)


def test_dropping_dimensions_is_deleting_them():
    sets = Sets(6)
    gap = np.abs(gap_per_dimension(*sets.train))
    image, text = sets.moved("drop-dimensions", k=3)
    left = [unit(np.delete(side, np.argsort(-gap)[:3], axis=1)) for side in sets.test]
    assert image @ text.T == pytest.approx(left[0] @ left[1].T, abs=1e-6)


def test_transport_with_a_sharp_plan_finds_a_permutation():
    image = unit(np.random.default_rng(7).standard_normal((9, 20)))
    order = np.random.default_rng(8).permutation(9)
    moved = intervene("optimal-transport", image, image, tau=0.01)(image, image[order])[1]
    assert moved.numpy() == pytest.approx(image[order], abs=1e-6)


# --- bad input

IMAGE, TEXT = Sets(0).train
BAD = {
    "name": (("mean-centering",), {}, "unknown intervention 'mean-centering'; nearest valid: mean-centring"),
    "parameter": (("shift",), {"lambda": 1}, "unknown parameter of shift 'lambda'"),
    "lam": (("shift",), {"lam": float("nan")}, "lam = nan is not a finite number"),
    "sides": (("shift",), {"sides": "images"}, "unknown sides 'images'; nearest valid: image"),
    "delta": (("shift-released",), {"delta": "0.5"}, "delta = '0.5' is not a finite number"),
    "variant": (("i0t",), {"variant": "released"}, "unknown variant 'released'"),
    "k of 0": (("drop-dimensions",), {"k": 0}, "k = 0 is not between 1 and 6"),
    "all dimensions": (("drop-dimensions",), {"k": 7}, "k = 7 is not between 1 and 6"),
    "half a dimension": (("drop-dimensions",), {"k": 1.5}, "k = 1.5 is not between"),
    "centred": (("procrustes",), {"centred": 1}, "centred = 1 is neither True nor False"),
    "ridge": (("linear",), {"ridge": 0}, "ridge = 0 is not a number above 0"),
    "spectral k": (("spectral",), {"k": 0}, "k = 0 is not a finite number of at least 1"),
    "tau": (("optimal-transport",), {"tau": -1}, "tau = -1 is not a number above 0"),
    "iterations": (("optimal-transport",), {"iterations": 0}, "iterations = 0 is not"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_parameters_are_named_before_anything_is_moved(case):
    positional, parameters, message = BAD[case]
    with pytest.raises(InputError) as caught:
        intervene(*positional, IMAGE, TEXT, **parameters)
    assert str(caught.value).startswith(message)


def test_bad_rows_are_named():
    for rows, message in (
        ((IMAGE[:1], TEXT), "1 train images and 30 train texts: at least 2"),
        ((IMAGE, TEXT[:, :5]), "images have width 7 and texts 5"),
        ((IMAGE, TEXT * np.nan), "texts: row 0 holds NaN"),
        ((IMAGE * 0, TEXT), "images: row 0 is all zeros"),
    ):
        with pytest.raises(InputError) as caught:
            intervene("mean-centring", *rows)
        assert str(caught.value).startswith(message)
    with pytest.raises(InputError, match="centroids of train images and train texts coincide"):
        intervene("shift-released", IMAGE, IMAGE)
    with pytest.raises(InputError, match="shift was fitted on width 7, but the rows have 6"):
        intervene("shift", IMAGE, TEXT)(IMAGE[:, :6], TEXT[:, :6])
    with pytest.raises(InputError, match="relevance has shape"):
        intervene("linear", IMAGE, TEXT, np.ones((2, 3), bool))


def test_rows_that_cannot_be_moved_are_named():
    with pytest.raises(InputError, match=r"k = 60 is not between 1 and 28, two less"):
        intervene("spectral", IMAGE, TEXT)(IMAGE, TEXT)
    plain = np.eye(6, 7)
    with pytest.raises(InputError, match="spectral: image 5 has no positive similarity"):
        intervene("spectral", IMAGE, TEXT, k=2)(plain, np.eye(5, 7))
    with pytest.raises(InputError, match="images after drop-dimensions: row 0 is all zeros"):
        intervene("drop-dimensions", np.eye(2, 3)[[0, 0]], np.eye(2, 3)[[1, 1]])(plain[:1, :3], plain[2:3, :3])


# --- the measured values of the 500 real pairs; without them the protocol runs on made-up pairs, held to its reference

SHIFT = {  # lambda: InfoNCE at tau = 0.01 image->text, text->image, symmetric; R@1 both ways; gap
    -0.5: (2.066, 1.930, 1.998, 0.472, 0.516, 1.15),
    -0.25: (1.848, 1.872, 1.860, 0.522, 0.526, 1.01),
    0.0: (1.719, 1.882, 1.801, 0.552, 0.506, 0.85),
    0.25: (1.783, 2.030, 1.907, 0.542, 0.492, 0.67),
    0.5: (2.144, 2.401, 2.272, 0.468, 0.458, 0.46),
    0.75: (2.831, 3.031, 2.931, 0.422, 0.416, 0.24),
    1.0: (3.752, 3.849, 3.801, 0.358, 0.366, 0.01),
}


def at_1(image: torch.Tensor, text: torch.Tensor) -> tuple[float, float]:
    match = np.eye(len(image), dtype=bool)
    return retrieval_metrics(image, text, match)["R@1"], retrieval_metrics(text, image, match)["R@1"]


def slow_at_1(image: np.ndarray, text: np.ndarray) -> tuple[float, float]:
    scores = (image @ text.T).astype(np.float32)
    own = np.arange(len(scores))
    return (scores.argmax(1) == own).mean(), (scores.argmax(0) == own).mean()


@pytest.mark.parametrize("lam", SHIFT)
def test_the_loss_landscape(lam, features):
    image, text = features.image, features.text
    moved = intervene("shift", image, text, lam=lam)(image, text)
    loss = info_nce(*moved, 0.01)
    found = (*loss.values(), *at_1(*moved), np.linalg.norm(gap_per_dimension(*moved)))
    x, y = image.double().numpy(), text.double().numpy()
    half = lam / 2 * (x.mean(0) - y.mean(0))
    x, y = unit(x - half), unit(y + half)
    logits = x @ y.T / 0.01
    slow_loss = [np.mean(scipy.special.logsumexp(logits, axis=axis) - np.diag(logits)) for axis in (1, 0)]
    wanted = (*slow_loss, np.mean(slow_loss), *slow_at_1(x, y), np.linalg.norm(x.mean(0) - y.mean(0)))
    assert found == pytest.approx(wanted, abs=1e-5)
    if features.real:
        assert tuple(round(v, d) for v, d in zip(found, (3, 3, 3, 3, 3, 2), strict=True)) == SHIFT[lam]


def test_the_default_gap_is_the_minimum_from_image_to_text_and_symmetric_only(features):
    landscape = {}
    for lam in SHIFT:
        move = intervene("shift", features.image, features.text, lam=lam)
        landscape[lam] = info_nce(*move(features.image, features.text), 0.01)
    lowest = {name: min(SHIFT, key=lambda lam: landscape[lam][name]) for name in landscape[0.0]}
    assert set(lowest.values()) <= set(SHIFT)
    if features.real:
        assert lowest == {"image->text": 0.0, "text->image": -0.25, "symmetric": 0.0}


def test_the_metrics_of_the_gap(features):
    found = gap_metrics(features.image, features.text)
    x, y = (unit(side.numpy()) for side in (features.image, features.text))
    other = ~np.eye(len(x), dtype=bool)
    between, inside = (1 - (x * y).sum(1).mean()) / 2, [(1 - (s @ s.T)[other].mean()) / 2 for s in (x, y)]
    assert found["RMG"] == pytest.approx(between / (between + np.mean(inside)))
    assert found["L2I"] == pytest.approx(np.linalg.norm(x - y, axis=1).mean())
    if features.real:
        assert [round(found[name], 3) for name in ("L2M", "L2I", "RMG")] == [0.851, 1.174, 0.591]
        assert found["linear separability"] == 1.0


def test_two_rogue_dimensions(features):
    image, text = features.image, features.text
    before, gap = gap_metrics(image, text, probe=False), gap_per_dimension(image, text)
    shares = {2: before["gap share of 2 dimensions"], 8: before["gap share of 8 dimensions"]}
    for k, share in shares.items():
        assert share == pytest.approx(np.sort(gap**2)[-k:].sum() / (gap**2).sum())
    moved = intervene("drop-dimensions", image, text, k=2)(image, text)
    leading = np.argsort(-np.abs(gap))[:2]
    left = [unit(np.delete(side.double().numpy(), leading, axis=1)) for side in (image, text)]
    gap_left = np.linalg.norm(left[0].mean(0) - left[1].mean(0))
    after = gap_metrics(*moved, probe=False)["L2M"]
    assert after == pytest.approx(gap_left, abs=1e-6)
    assert at_1(*moved) == slow_at_1(*left)
    if features.real:
        assert leading.tolist() == [442, 362]
        assert [round(100 * share, 1) for share in shares.values()] == [68.6, 78.9]
        assert [round(before["L2M"], 3), round(after, 3)] == [0.851, 0.617]
        assert [at_1(image, text)[0], at_1(*moved)[0]] == [0.552, 0.498]


def test_centring_and_the_mixed_gallery(features):
    image, text = features.image, features.text
    moved = intervene("mean-centring", image, text)(image, text)
    shares = []
    for x, y in ((image, text), moved):
        shares.append(mixed_gallery_metrics(x, y)["share of texts in top-10 of texts"])
        n, both = len(x), torch.cat([x, y]).double().numpy()
        scores = both[n:] @ both.T
        scores[np.arange(n), n + np.arange(n)] = -np.inf
        assert shares[-1] == pytest.approx((np.argsort(-scores, axis=1)[:, :10] >= n).mean())
    centred = [unit(side.double().numpy() - side.double().numpy().mean(0)) for side in (image, text)]
    assert at_1(*moved) == slow_at_1(*centred)
    if features.real:
        assert [round(100 * share, 1) for share in shares] == [100, 94.4]
        assert at_1(*moved) == (0.542, 0.5)
