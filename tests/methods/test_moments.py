"""Moments that are found part by part: a slow reference, and the same numbers from a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reprolib import ranking
from reprolib.errors import InputError
from reprolib.mapped import opened
from reprolib.methods import moments
from reprolib.methods.interventions import INTERVENTIONS, Train, intervene
from reprolib.methods.intra_modal import CONTROLS, fit_control
from reprolib.methods.moments import Moments, pair_covariance
from reprolib.ranking import Rows

INDUCTIVE = [name for name, entry in INTERVENTIONS.items() if not entry.transductive]
LEARNED = [name for name, entry in CONTROLS.items() if entry.needs == ("train",)]
quick = settings(max_examples=25)


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def rows_of(seed: int, n: int, d: int = 5) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return unit(2 * rng.standard_normal(d) + rng.standard_normal((n, d))).astype(np.float32)


def on_disk(path: Path, array: np.ndarray) -> np.ndarray:
    array.tofile(path)
    return opened(path, array.dtype, array.shape)


def matching_of(seed: int, n: int, m: int) -> np.ndarray:
    """Some matching, many to many: nobody without a match, in no order."""
    rng = np.random.default_rng(seed)
    match = rng.random((n, m)) < 0.5 / n
    match[np.arange(m) % n, rng.permutation(m)] = True
    match[rng.permutation(n), np.arange(n) % m] = True
    return match


@quick
@given(st.integers(0, 10**6), st.integers(1, 40), st.sampled_from([1, 7, 2048]), st.booleans())
def test_moments_are_those_of_the_repeated_rows(seed: int, n: int, tile: int, weighted: bool) -> None:
    rows = rows_of(seed, n)
    counts = np.random.default_rng(seed).integers(0, 4, n) if weighted else np.ones(n, int)
    counts[0] += 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moments, "TILE", tile)
        found = Moments(torch.as_tensor(rows), torch.as_tensor(counts))
        repeated = np.repeat(rows.astype(np.float64), counts, axis=0)
        covariance = np.cov(repeated, rowvar=False, ddof=0)
        np.testing.assert_allclose(found.mean, repeated.mean(0), rtol=0, atol=1e-12)
        np.testing.assert_allclose(found.variance, repeated.var(0), rtol=0, atol=1e-12)
        np.testing.assert_allclose(found.covariance, covariance, rtol=0, atol=1e-12)
    variances, axes = found.principal
    np.testing.assert_allclose(axes * variances @ axes.T, covariance, rtol=0, atol=1e-12)
    assert len(found) == n and found.width == 5 and found.covariance is found.covariance


@quick
@given(st.integers(0, 10**6), st.integers(2, 30), st.integers(2, 30), st.sampled_from([1, 7, 2048]))
def test_the_covariance_of_pairs_is_that_of_the_rows_side_by_side(seed: int, n: int, m: int, tile: int) -> None:
    image, text = rows_of(seed, n).astype(np.float64), rows_of(seed + 1, m).astype(np.float64)
    places = np.stack(matching_of(seed, n, m).nonzero())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moments, "TILE", tile)
        sides = [
            Moments(torch.as_tensor(side), torch.bincount(torch.as_tensor(place), minlength=len(side)))
            for side, place in zip((image, text), places, strict=True)
        ]
        found = pair_covariance(sides[1], sides[0], torch.as_tensor(places[::-1].copy()))
    x, y = image[places[0]], text[places[1]]
    np.testing.assert_allclose(found, (y - y.mean(0)).T @ (x - x.mean(0)) / len(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", INDUCTIVE)
def test_interventions_fitted_on_a_file_and_on_shared_moments_are_the_same(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, text, match = rows_of(0, 2100), rows_of(1, 2300), matching_of(2, 2100, 2300)
    files = on_disk(tmp_path / "image", image), on_disk(tmp_path / "text", text)
    test = rows_of(3, 20), rows_of(4, 20)
    shared, here = Train(image, text, match), intervene(name, image, text, match)(*test)
    monkeypatch.setattr(ranking, "LARGE", 1)
    kept = Train(*files, match)
    assert isinstance(kept.text.rows, Rows) and isinstance(shared.text.rows, torch.Tensor)
    for train in (kept, shared, shared):
        assert all(map(torch.equal, here, intervene(name, train)(*test)))
    there = intervene(name, *files, match)(*test)
    assert all(map(torch.equal, here, there))


@pytest.mark.parametrize("name", LEARNED)
def test_controls_fitted_on_a_file_and_on_shared_moments_are_the_same(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, rows = rows_of(0, 2100), rows_of(1, 2100)
    shared = Moments(ranking.as_embeddings(train, "train"))
    here = fit_control(name, train=train)(rows)
    assert torch.equal(here, fit_control(name, train=shared)(rows))
    monkeypatch.setattr(ranking, "LARGE", 1)
    assert torch.equal(here, fit_control(name, train=on_disk(tmp_path / "train", train))(rows))


def test_shared_moments_are_found_once(monkeypatch: pytest.MonkeyPatch) -> None:
    train = Train(rows_of(0, 50), rows_of(1, 50))
    for name in INDUCTIVE:
        intervene(name, train)
    monkeypatch.setattr(Moments, "_parts", None)  # nothing is read again
    grids = {"shift": {"lam": 0.5}, "i0t": {"variant": "paper"}, "drop-dimensions": {"k": 1}, "linear": {"ridge": 1.0}}
    for name, parameters in grids.items():
        intervene(name, train, **parameters)(rows_of(2, 5), rows_of(3, 5))


def test_a_train_stands_alone() -> None:
    image, text = rows_of(0, 9), rows_of(1, 9)
    train = Train(image, text)
    for given_rows in ((train, text), (train, None, np.eye(9, dtype=bool)), (image,)):
        with pytest.raises(InputError, match="shift is fitted on images and texts, or on a Train alone"):
            intervene("shift", *given_rows)
    with pytest.raises(InputError, match="9 train images and 8 train texts: pass relevance"):
        intervene("linear", Train(image, text[:8]))
    with pytest.raises(InputError, match="images have width 5 and texts 4"):
        Train(image, text[:, :4])
