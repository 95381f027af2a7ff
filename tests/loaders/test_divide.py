"""Dividing rows: disjoint, complete, whole components, the same again from the same seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reprolib.errors import InputError
from reprolib.loaders import Split, divide


def random_split(groups: int, seed: int, most: int = 3) -> Split:
    """A split of ``groups`` connected components with 1 to ``most`` images and texts each, rows shuffled."""
    rng = np.random.default_rng(seed)
    image_group = np.repeat(np.arange(groups), rng.integers(1, most + 1, groups))
    text_group = np.repeat(np.arange(groups), rng.integers(1, most + 1, groups))
    rng.shuffle(image_group)
    rng.shuffle(text_group)
    return Split(
        rng.normal(size=(len(image_group), 3)),
        rng.normal(size=(len(text_group), 3)),
        image_group[:, None] == text_group[None, :],
        np.char.add("i", np.arange(len(image_group)).astype(str)),
        np.char.add("t", np.arange(len(text_group)).astype(str)),
    )


shares = st.sampled_from([[0.2, 0.2], [0.3], [0.5], [0.1, 0.3, 0.2]])


@settings(max_examples=60, deadline=None)
@given(groups=st.integers(40, 90), seed=st.integers(0, 10**6), shares=shares)
def test_parts_are_disjoint_complete_whole_and_near_their_shares(groups, seed, shares):
    split = random_split(groups, seed)
    parts = divide(split, shares, np.random.default_rng(seed))
    assert len(parts) == len(shares) + 1
    for ids in ("image_ids", "text_ids"):
        together = np.concatenate([getattr(part, ids) for part in parts])
        assert sorted(together) == sorted(getattr(split, ids))

    image_label = dict(zip(split.image_ids, split.components()[0], strict=True))
    text_label = dict(zip(split.text_ids, split.components()[1], strict=True))
    homes = [{image_label[i] for i in part.image_ids} | {text_label[t] for t in part.text_ids} for part in parts]
    assert sum(map(len, homes)) == groups == len(set.union(*homes))
    assert sum(part.relevance.nnz for part in parts) == split.relevance.nnz
    for part, share in zip(parts, shares, strict=False):
        assert abs(len(part.image) - share * len(split.image)) <= 3 + 0.5, "within one component of the share"


@settings(max_examples=20, deadline=None)
@given(n=st.integers(5, 400), seed=st.integers(0, 10**6))
def test_pairs_are_divided_exactly_and_again_the_same(n, seed):
    split = random_split(n, 0, most=1)
    first, second = (divide(split, [0.2, 0.2], np.random.default_rng(seed)) for _ in range(2))
    assert [len(part.image) for part in first[:1]] == [round(0.2 * n)]
    for one, two in zip(first, second, strict=True):
        assert one.image_ids.tolist() == two.image_ids.tolist() and (one.image == two.image).all()


def test_rows_keep_their_order_and_their_vectors():
    split = random_split(50, 1)
    place = {name: i for i, name in enumerate(split.image_ids)}
    for part in divide(split, [0.2, 0.2], np.random.default_rng(0)):
        rows = [place[name] for name in part.image_ids]
        assert rows == sorted(rows) and (part.image == split.image[rows]).all()


def test_another_seed_divides_otherwise():
    split = random_split(50, 1)
    first, second = (divide(split, [0.2, 0.2], np.random.default_rng([0, i]))[0] for i in (1, 2))
    assert first.image_ids.tolist() != second.image_ids.tolist()


@pytest.mark.parametrize("shares", [[0.0], [0.5, 0.5], [1.2], [-0.1, 0.2], [float("nan")]])
def test_shares_that_leave_nothing_are_refused(shares):
    with pytest.raises(InputError, match="shares"):
        divide(random_split(50, 1), shares, np.random.default_rng(0))


@pytest.mark.parametrize("seed", range(10))
def test_a_component_too_large_for_a_share_goes_to_the_rest(seed):
    group = np.concatenate([np.zeros(50, dtype=int), np.arange(1, 51)])
    rows = np.random.default_rng(0).normal(size=(100, 3))
    split = Split(rows, rows, group[:, None] == group[None, :], np.arange(100), np.arange(100))
    parts = divide(split, [0.2, 0.2], np.random.default_rng(seed))
    assert [len(part.image) for part in parts] == [20, 20, 60]
    assert set(map(str, range(50))) <= set(parts[2].image_ids)


def test_one_component_cannot_be_divided():
    ids = np.arange(6)
    rows = np.random.default_rng(0).normal(size=(6, 3))
    split = Split(rows, rows, np.ones((6, 6), dtype=bool), ids, ids)
    with pytest.raises(InputError, match="6 images in 1 groups"):
        divide(split, [0.2, 0.2], np.random.default_rng(0))
