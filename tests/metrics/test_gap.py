"""Gap metrics against slow, obvious formulas, and what must hold for any two modalities."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reprolib import ranking
from reprolib.errors import InputError
from reprolib.metrics import (
    gap_metrics,
    gap_per_dimension,
    group_metrics,
    info_nce,
    mixed_gallery_metrics,
    mixed_query_values,
)

torch.set_num_threads(1)
seeds = st.integers(0, 10**6)
few = settings(max_examples=10)


def unit(rows: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows, np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def data(seed: int, n: int = 14, captions: int = 1, d: int = 6) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images [n, d], texts [n captions, d] in shuffled order, each in a cone of its own, and what matches."""
    rng = np.random.default_rng(seed)
    owner = rng.permutation(np.repeat(np.arange(n), captions))
    cones, shared = 1.2 * rng.standard_normal((2, d)), rng.standard_normal((n, d))
    image = cones[0] + shared + 0.4 * rng.standard_normal((n, d))
    text = cones[1] + shared[owner] + 0.4 * rng.standard_normal((len(owner), d))
    return image, text, np.arange(n)[:, None] == owner


def slow_metrics(x: np.ndarray, y: np.ndarray, match: np.ndarray) -> dict[str, float]:
    """Every metric but the probe, from its definition, on unit rows."""
    pairs = [(x[i], y[j]) for i, j in np.argwhere(match)]
    gap = x.mean(0) - y.mean(0)
    cosines = [[a @ b for i, a in enumerate(side) for j, b in enumerate(side) if i != j] for side in (x, y)]

    def distance(cosine: float) -> float:
        return (1 - cosine) / 2

    between = max(np.mean([distance(a @ b) for a, b in pairs]), 1e-3)
    inside = np.mean([np.mean([distance(c) for c in side]) for side in cosines])
    covariances = [np.cov(side.T, bias=True) for side in (x, y)]
    values = [np.linalg.eigvalsh(c) for c in covariances]
    root = np.real(scipy.linalg.sqrtm(covariances[0] @ covariances[1]))
    remaining = np.trace(covariances[0] + covariances[1] - 2 * root)
    largest = sorted(gap**2, reverse=True)
    axes = np.linalg.svd(np.concatenate([x, y]) - np.concatenate([x, y]).mean(0))[2]
    found = {
        "L2M": np.sqrt((gap**2).sum()),
        "L2I": np.mean([np.linalg.norm(a - b) for a, b in pairs]),
        "RMG": between / (between + inside),
        "cosine of pairs": np.mean([a @ b for a, b in pairs]),
        "cosine within images": np.mean(cosines[0]),
        "cosine within texts": np.mean(cosines[1]),
        "cosine across": np.mean([a @ b for a in x for b in y]),
        "effective dimension, images": values[0].sum() ** 2 / (values[0] ** 2).sum(),
        "effective dimension, texts": values[1].sum() ** 2 / (values[1] ** 2).sum(),
        "alignment": np.mean([((a - b) ** 2).sum() for a, b in pairs]),
        "distribution gap": remaining,
        "FID": (gap**2).sum() + remaining,
    }
    for k, dimension, axis in ((1, "dimension", "axis"), (2, "dimensions", "axes"), (8, "dimensions", "axes")):
        found[f"gap share of {k} {dimension}"] = sum(largest[:k]) / (gap**2).sum()
        found[f"gap share of {k} principal {axis}"] = sum((gap @ a) ** 2 for a in axes[:k]) / (gap**2).sum()
    for name, side in (("images", x), ("texts", y)):
        potentials = [math.exp(-2 * ((a - b) ** 2).sum()) for i, a in enumerate(side) for b in side[:i]]
        found[f"uniformity, {name}"] = math.log(np.mean(potentials))
    return found


@few
@given(seeds, st.integers(8, 20), st.integers(1, 3), st.sampled_from([3, 10]))
def test_metrics_are_those_of_the_formulas(seed, n, captions, d):
    image, text, match = data(seed, n, captions, d)
    found = gap_metrics(image, text, match, probe=False)
    wanted = slow_metrics(unit(image), unit(text), match)
    for name in ("distribution gap", "FID"):  # the root of a singular matrix, in the formula, has half the digits
        assert found.pop(name) == pytest.approx(wanted.pop(name), abs=1e-7)
    assert found == pytest.approx(wanted, abs=1e-11)
    assert gap_per_dimension(image, text) == pytest.approx(unit(image).mean(0) - unit(text).mean(0), abs=1e-15)
    assert np.linalg.norm(gap_per_dimension(image, text)) == pytest.approx(found["L2M"], abs=1e-15)


def test_without_relevance_row_i_matches_row_i():
    image, text, _ = data(1)
    assert gap_metrics(image, text) == gap_metrics(image, text, np.eye(14, dtype=bool))
    assert info_nce(image, text, 0.1) == info_nce(image, text, 0.1, np.eye(14, dtype=bool))
    assert mixed_gallery_metrics(image, text) == mixed_gallery_metrics(image, text, [[i] for i in range(14)])


@few
@given(seeds)
def test_a_modality_has_no_gap_to_itself(seed):
    image, _, _ = data(seed)
    found = gap_metrics(image, image, probe=False)
    zero = [found[name] for name in ("L2M", "L2I", "alignment", "distribution gap", "FID")]
    assert zero == pytest.approx([0] * 5, abs=1e-13)
    assert found["gap share of 1 dimension"] == found["gap share of 8 principal axes"] == 0
    distance = (1 - found["cosine within images"]) / 2
    assert found["RMG"] == pytest.approx(1e-3 / (1e-3 + distance))
    assert found["uniformity, images"] == found["uniformity, texts"]


@few
@given(seeds)
def test_a_common_rotation_changes_nothing(seed):
    image, text, match = data(seed, captions=2)
    rotation = np.linalg.qr(np.random.default_rng(seed).standard_normal((6, 6)))[0]
    before, after = gap_metrics(image, text, match), gap_metrics(image @ rotation, text @ rotation, match)
    for name in list(before):
        if name.endswith(("dimension", "dimensions")) and name.startswith("gap share"):
            del before[name], after[name]  # these are about the basis
    assert after == pytest.approx(before, abs=1e-7)
    assert info_nce(image @ rotation, text @ rotation, 0.05, match) == pytest.approx(info_nce(image, text, 0.05, match))
    assert mixed_gallery_metrics(image @ rotation, text @ rotation, match) == mixed_gallery_metrics(image, text, match)


@few
@given(seeds)
def test_the_order_of_rows_does_not_matter(seed):
    image, text, match = data(seed, captions=2)
    rng = np.random.default_rng(seed)
    one, other = rng.permutation(len(image)), rng.permutation(len(text))
    before = gap_metrics(image, text, match, probe=False)
    after = gap_metrics(image[one], text[other], match[one][:, other], probe=False)
    assert after == pytest.approx(before, abs=1e-12)


@settings(max_examples=40)
@given(seeds, st.sampled_from(["cones", "collapsed", "opposite", "equal"]), st.integers(2, 6))
def test_rmg_lies_between_0_and_1(seed, kind, n):
    image, text, _ = data(seed, n)
    if kind in ("collapsed", "opposite"):
        image = np.repeat(image[:1], n, axis=0)
        text = -image if kind == "opposite" else np.repeat(text[:1], n, axis=0)
    elif kind == "equal":
        text = image = np.repeat(image[:1], n, axis=0)
    rmg = gap_metrics(image, text, probe=False)["RMG"]
    assert 0 <= rmg <= 1
    if kind != "cones":
        assert rmg == pytest.approx(1), "no spread within a modality: all distance is between them"


def test_collapsed_modalities_have_no_effective_dimension():
    image, text, _ = data(0)
    found = gap_metrics(np.repeat(image[:1], 14, axis=0), text, probe=False)
    assert found["effective dimension, images"] == 0
    assert found["effective dimension, texts"] > 1
    assert found["uniformity, images"] == pytest.approx(0, abs=1e-14)


def test_rows_as_they_are():
    image, text, match = data(3)
    as_given = gap_metrics(image, text, match, normalize=False)
    assert as_given["L2M"] == pytest.approx(np.linalg.norm(image.mean(0) - text.mean(0)))
    assert as_given["alignment"] == pytest.approx(((image[match.argmax(0)] - text) ** 2).sum(1).mean())
    once = gap_metrics(image, text, match)
    for name in ("RMG", "cosine of pairs", "cosine within images", "cosine within texts", "cosine across"):
        assert as_given[name] == pytest.approx(once[name], abs=1e-12)
    assert info_nce(unit(image), unit(text), 0.1, match, normalize=False) == pytest.approx(
        info_nce(image, text, 0.1, match)
    )


@pytest.mark.parametrize("kind", [np.float16, np.float32, torch.float64, torch.bfloat16])
def test_arrays_and_tensors_are_not_changed(kind):
    image, text, match = data(4)
    if isinstance(kind, torch.dtype):
        image, text = (torch.as_tensor(rows).to(kind) for rows in (image, text))
        kept, exact = (image.clone(), text.clone()), (image.double().numpy(), text.double().numpy())
    else:
        image, text = image.astype(kind), text.astype(kind)
        kept, exact = (image.copy(), text.copy()), (image.astype(np.float64), text.astype(np.float64))
    assert gap_metrics(image, text, match) == gap_metrics(*exact, match)
    info_nce(image, text, 0.1, match), mixed_gallery_metrics(image, text, match)
    assert (kept[0] == image).all() and (kept[1] == text).all()


def test_the_probe_is_held_out_seeded_and_balanced():
    rng = np.random.default_rng(0)
    cloud, many = rng.standard_normal((200, 30)), rng.standard_normal((2000, 30))
    same = [gap_metrics(cloud, many, np.ones((200, 2000), bool), seed=s)["linear separability"] for s in (0, 0, 1)]
    assert same[0] == same[1] != same[2]
    # 100 and 1000 rows are held out; four standard errors of the mean of the two rates at chance
    assert abs(np.array(same) - 0.5).max() < 4 * 0.5 * math.sqrt(0.25 / 100 + 0.25 / 1000)
    assert gap_metrics(cloud + 3, cloud - 3)["linear separability"] == 1
    assert "linear separability" not in gap_metrics(cloud, cloud, probe=False)


@pytest.mark.parametrize("block_bytes", [8, 700, 5000])
def test_streamed_equals_at_once(block_bytes, monkeypatch):
    image, text, match = data(5, n=12, captions=3)
    whole = gap_metrics(image, text, match, probe=False), info_nce(image, text, 0.05, match)
    mixed = mixed_query_values(image, text, match)
    blocked = mixed_query_values(image, text, match, block_bytes=block_bytes)
    assert all((mixed[name] == blocked[name]).all() for name in mixed)
    monkeypatch.setattr(ranking, "BLOCK_BYTES", block_bytes)
    assert gap_metrics(image, text, match, probe=False) == pytest.approx(whole[0], abs=1e-13)
    assert info_nce(image, text, 0.05, match) == pytest.approx(whole[1], abs=1e-13)


# --- the contrastive loss


@few
@given(seeds, st.sampled_from([0.01, 0.07, 1.0]), st.integers(1, 3))
def test_info_nce_is_that_of_the_formula(seed, tau, captions):
    image, text, match = data(seed, captions=captions)
    logits = unit(image) @ unit(text).T / tau

    def loss(rows: np.ndarray, positives: np.ndarray) -> float:
        each = []
        for row, wanted in zip(rows, positives, strict=True):
            log_softmax = row - row.max() - math.log(np.exp(row - row.max()).sum())
            each.append(-log_softmax[wanted].mean())
        return float(np.mean(each))

    forward, backward = loss(logits, match), loss(logits.T, match.T)
    wanted = {"image->text": forward, "text->image": backward, "symmetric": (forward + backward) / 2}
    assert info_nce(image, text, tau, match) == pytest.approx(wanted, rel=1e-11)


def test_info_nce_is_cross_entropy_with_one_match_each():
    image, text, _ = data(6, d=9)
    text = text[np.random.default_rng(6).permutation(14)]
    logits = torch.as_tensor(unit(image) @ unit(text).T) / 0.03
    target = torch.arange(14)
    found = info_nce(image, text, np.float64(0.03))
    assert found["image->text"] == pytest.approx(float(torch.nn.functional.cross_entropy(logits, target)))
    assert found["text->image"] == pytest.approx(float(torch.nn.functional.cross_entropy(logits.T, target)))


@pytest.mark.parametrize("tau", [0, -1, float("nan"), float("inf"), "0.1", None])
def test_info_nce_refuses_a_temperature(tau):
    with pytest.raises(InputError, match=r"tau = .* is not a number above 0"):
        info_nce(*data(0)[:2], tau)


def test_info_nce_does_not_overflow():
    found = info_nce(*data(0)[:2], 1e-5)
    assert all(math.isfinite(value) and value >= 0 for value in found.values())


# --- mixed galleries


def slow_mixed(image: np.ndarray, text: np.ndarray, match: np.ndarray, k: int) -> dict[str, list[float]]:
    """Sort every query's list of all other items, by the canonical float32 score, then its own modality first."""
    x, y = (unit(rows).astype(np.float32).astype(np.float64) for rows in (image, text))
    n, both, found = len(x), np.concatenate([x, y]), {}
    for name, own in (("texts", range(n, n + len(y))), ("images", range(n))):
        lists = {what: [] for what in ("share", "top", "rank", "ndcg")}
        for query in own:
            scores = (both @ both[query]).astype(np.float32)
            rest = [item for item in range(len(both)) if item != query]
            order = sorted(rest, key=lambda i: (-scores[i], i not in own, i))
            same = [item in own for item in order]
            right = [
                not s and bool(match[item, query - n] if query >= n else match[query, item - n])
                for s, item in zip(same, order, strict=True)
            ]
            dcg, ideal = (
                sum(1 / math.log2(place + 2) for place, hit in enumerate(hits[:k]) if hit)
                for hits in (right, sorted(right, reverse=True))
            )
            for what, value in zip(
                lists, (np.mean(same[:k]), same[0], same.index(False) + 1, dcg / ideal), strict=True
            ):
                lists[what].append(float(value))
        found |= {
            f"share of {name} in top-{k} of {name}": lists["share"],
            f"top-1 modality bias, {name}": lists["top"],
            f"mean rank of best cross-modal item, {name}": lists["rank"],
            f"nDCG@{k} mixed, {name}": lists["ndcg"],
        }
    return found


@settings(max_examples=10)
@given(seeds, st.integers(1, 3), st.integers(1, 13), st.booleans())
def test_mixed_search_is_that_of_sorted_lists(seed, captions, k, tied):
    image, text, match = data(seed, n=7, captions=captions, d=4)
    if tied:  # few values: many scores tie
        image, text = np.sign(image), np.sign(text)
    found = mixed_query_values(image, text, match, k)
    wanted = slow_mixed(image, text, match, k)
    assert list(found) == list(wanted)
    for name, values in found.items():
        assert values.dtype == np.float64
        assert values.tolist() == pytest.approx(wanted[name], abs=1e-12), name
    assert mixed_gallery_metrics(image, text, match, k) == {name: v.mean() for name, v in found.items()}


def test_a_gap_keeps_search_within_the_modality_and_equal_sets_do_not():
    rng = np.random.default_rng(8)
    cloud = rng.standard_normal((30, 8))
    apart = mixed_gallery_metrics(cloud + 9, cloud - 9)
    for own in ("texts", "images"):
        assert apart[f"share of {own} in top-10 of {own}"] == apart[f"top-1 modality bias, {own}"] == 1
        assert apart[f"mean rank of best cross-modal item, {own}"] == 30, "behind the 29 others of its own"
        assert apart[f"nDCG@10 mixed, {own}"] == 0
    together = mixed_gallery_metrics(cloud, cloud)
    for own in ("texts", "images"):
        assert together[f"top-1 modality bias, {own}"] == 0
        assert together[f"mean rank of best cross-modal item, {own}"] == together[f"nDCG@10 mixed, {own}"] == 1


# --- groups


def entropy(*labels: np.ndarray) -> float:
    _, counts = np.unique(np.stack(labels), axis=1, return_counts=True)
    return float(-(counts / counts.sum() * np.log(counts / counts.sum())).sum())


def test_group_metrics_of_clusters_known_by_construction():
    rng = np.random.default_rng(9)
    group = np.repeat(np.arange(4), 10)
    centres = 10 * np.eye(4, 5)
    image, text = (centres[group] + 0.1 * rng.standard_normal((40, 5)) for _ in range(2))
    found = group_metrics(image, text, group, group)
    assert found == pytest.approx({"V-measure": 1, "ARI": 1, "modality in clusters": 0}, abs=1e-12)

    coarse = group // 2  # two labels for four clusters: homogeneous, not complete
    labels, clusters = np.concatenate([coarse, coarse]), np.concatenate([group, group])
    complete = 1 - (entropy(clusters, labels) - entropy(labels)) / entropy(clusters)
    found = group_metrics(image, text, coarse.astype(str), coarse.astype(str), clusters=4, seed=1)
    assert found["V-measure"] == pytest.approx(2 * complete / (1 + complete))
    same = [clusters[:, None] == clusters, labels[:, None] == labels]
    together = [s[np.triu_indices(80, 1)] for s in same]
    both, chance = (together[0] & together[1]).sum(), together[0].sum() * together[1].sum() / len(together[0])
    assert found["ARI"] == pytest.approx((both - chance) / ((together[0].sum() + together[1].sum()) / 2 - chance))


def test_a_gap_hides_the_groups_and_clusters_are_modalities():
    rng = np.random.default_rng(10)
    group = np.repeat([0, 1], 20)
    image, text = (0.3 * np.eye(2, 6)[group] + 0.05 * rng.standard_normal((40, 6)) for _ in range(2))
    apart = np.eye(1, 6, 5)
    found = group_metrics(image + 4 * apart, text - 4 * apart, group, group)
    assert found["modality in clusters"] == pytest.approx(1)
    assert found["V-measure"] == pytest.approx(0, abs=1e-12)
    assert group_metrics(image, text, group, group)["V-measure"] == pytest.approx(1)
    assert group_metrics(image, text, group, group, seed=3) == group_metrics(image, text, group, group, seed=3)


# --- bad input


def broken(rows: np.ndarray, value: float) -> np.ndarray:
    rows = rows.copy()
    rows[2] = value
    return rows


IMAGE, TEXT, MATCH = data(0, n=5)
BAD = {
    "NaN": (lambda: gap_metrics(broken(IMAGE, np.nan), TEXT), "images: row 2 holds NaN"),
    "zeros": (lambda: info_nce(IMAGE, broken(TEXT, 0), 0.1), "texts: row 2 is all zeros"),
    "width": (lambda: gap_metrics(IMAGE, TEXT[:, :3]), "images have width 6 and texts 3"),
    "mixed width": (
        lambda: mixed_gallery_metrics(IMAGE, TEXT[:, :3], k=3),
        "width 6 and the gallery 3|width 3 and the gallery 6",
    ),
    "one row": (lambda: gap_metrics(IMAGE[:1], TEXT[:1]), "at least 2 of each"),
    "not paired": (lambda: gap_metrics(IMAGE, TEXT[:4]), "5 images and 4 texts"),
    "mixed not paired": (lambda: mixed_gallery_metrics(IMAGE, TEXT[:4], k=3), "5 images and 4 texts"),
    "shape": (lambda: gap_metrics(IMAGE, TEXT, MATCH[:4]), r"relevance has shape \(4, 5\)"),
    "bare text": (lambda: info_nce(IMAGE, TEXT, 0.1, [[0]] * 5), "text 1 matches no image"),
    "k of 0": (lambda: mixed_gallery_metrics(IMAGE, TEXT, k=0), "k = 0 is not between 1 and 9"),
    "k too large": (lambda: mixed_query_values(IMAGE, TEXT, k=10), "k = 10 is not between 1 and 9"),
    "labels": (lambda: group_metrics(IMAGE, TEXT, [0] * 5, [0] * 4), r"labels of the texts have shape \(4,\)"),
    "clusters": (lambda: group_metrics(IMAGE, TEXT, [0] * 5, [0] * 5, clusters=11), "clusters = 11"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case):
    call, message = BAD[case]
    with pytest.raises(InputError, match=message):
        call()
