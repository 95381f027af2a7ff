"""The linear controls: against the definitions in NumPy, scikit-learn, and IsoCLIP through the backbone."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.covariance import shrunk_covariance
from sklearn.decomposition import PCA

from reprolib.errors import InputError
from reprolib.methods.intra_modal import (
    CONTROLS,
    PUBLISHED,
    SIDES,
    average,
    fit_control,
    isoclip_grid,
    projections_of,
)

torch.set_num_threads(1)


def unit(rows: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows, dtype=np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def rows_of(seed: int, n: int = 30, d: int = 8) -> np.ndarray:
    """Return rows in a cone, with directions of unequal variance."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((n, d)) * np.geomspace(1, 0.1, d) + 0.7 * rng.standard_normal(d)).astype(np.float32)


def weights(seed: int, d: int = 8, image: int = 12, text: int = 9) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((d, image)), rng.standard_normal((d, text))


def similarities(rows: np.ndarray) -> np.ndarray:
    return unit(rows) @ unit(rows).T


def close(found: torch.Tensor, wanted: np.ndarray, atol: float = 1e-6) -> None:
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), unit(wanted), rtol=0, atol=atol)


# --- against the definitions ----------------------------------------------------------------------------------


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.integers(0, 3), st.integers(1, 5) | st.none())
def test_pca_is_that_of_scikit_learn_without_its_leading_components(seed, drop, keep):
    train, rows = rows_of(seed), rows_of(seed + 1, 6)
    fitted = PCA().fit(unit(train))
    coordinates = fitted.transform(unit(rows))[:, drop : None if keep is None else drop + keep]
    mapped = fit_control("pca", train=train, drop=drop, keep=keep)(rows)
    close(mapped, coordinates @ fitted.components_[drop : None if keep is None else drop + keep], atol=1e-5)


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.sampled_from([0.01, 0.1, 0.9]))
def test_whitened_rows_have_the_inner_products_of_the_shrunk_precision(seed, shrinkage):
    train, rows = unit(rows_of(seed)), unit(rows_of(seed + 1, 6))
    precision = np.linalg.inv(shrunk_covariance(np.cov(train.T, ddof=0), shrinkage))
    centred = rows - train.mean(0)
    products = centred @ precision @ centred.T
    scale = np.sqrt(np.diag(products))
    mapped = fit_control("whitening", train=train, shrinkage=shrinkage)(rows).double().numpy()
    np.testing.assert_allclose(mapped @ mapped.T, products / np.outer(scale, scale), rtol=0, atol=1e-5)


def test_centring_subtracts_the_mean_of_unit_rows():
    train, rows = rows_of(0), rows_of(1, 6)
    close(fit_control("mean-centring", train=train)(rows), unit(rows) - unit(train).mean(0))


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.integers(0, 3), st.integers(0, 3), st.sampled_from(SIDES))
def test_isoclip_is_the_papers_weights_applied_to_the_hidden_state(seed, top, bottom, side):
    image, text = weights(seed)
    left, _, right = np.linalg.svd(image.T @ text, full_matrices=False)  # the rank is 8, as the embedding
    basis = left[:, top : 8 - bottom] if side == "image" else right.T[:, top : 8 - bottom]
    weight = image if side == "image" else text
    hidden = np.random.default_rng(seed + 1).standard_normal((5, weight.shape[1]))
    mapped = fit_control("isoclip", projections=(image, text), side=side, top=top, bottom=bottom)(hidden @ weight.T)
    close(mapped, hidden @ (weight @ basis @ basis.T).T, atol=1e-5)


# --- identities -----------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(st.integers(0, 10**6))
def test_what_drops_nothing_changes_nothing(seed):
    train, rows = rows_of(seed), rows_of(seed + 1, 6)
    native = fit_control("none")(rows)
    np.testing.assert_allclose(native.numpy(), unit(rows), rtol=0, atol=1e-7)
    close(fit_control("isoclip", projections=weights(seed), top=0, bottom=0)(rows), rows, atol=1e-5)
    close(fit_control("random-map", train=train, drop=0)(rows), rows)
    centred = fit_control("mean-centring", train=train)(rows).numpy()
    np.testing.assert_allclose(fit_control("pca", train=train, drop=0)(rows).numpy(), centred, rtol=0, atol=1e-5)
    np.testing.assert_allclose(
        fit_control("whitening", train=train, shrinkage=1.0)(rows).numpy(), centred, rtol=0, atol=1e-5
    )


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.integers(1, 7), st.sampled_from(["pca", "random-map"]))
def test_projections_lose_exactly_what_is_dropped_and_are_idempotent(seed, drop, name):
    control = fit_control(name, train=rows_of(seed), drop=drop)
    singular = np.linalg.svd(control.matrix.numpy(), compute_uv=False)
    np.testing.assert_allclose(singular, [1.0] * (8 - drop) + [0.0] * drop, rtol=0, atol=1e-9)
    np.testing.assert_allclose(control.matrix @ control.matrix, control.matrix, rtol=0, atol=1e-12)


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.integers(0, 3), st.integers(0, 3))
def test_isoclip_is_an_oblique_projection_of_the_rank_that_is_left(seed, top, bottom):
    matrix = fit_control("isoclip", projections=weights(seed), top=top, bottom=bottom).matrix
    np.testing.assert_allclose(matrix @ matrix, matrix, rtol=0, atol=1e-8)
    assert np.linalg.matrix_rank(matrix, tol=1e-8) == 8 - top - bottom
    scaled = tuple(4.0 * weight for weight in weights(seed))  # exact in float32
    again = fit_control("isoclip", projections=scaled, top=top, bottom=bottom).matrix
    np.testing.assert_allclose(again, matrix, rtol=0, atol=1e-8)


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.sampled_from([name for name in CONTROLS if name not in ("isoclip", "none")]))
def test_a_rotation_of_the_space_changes_no_similarity(seed, name):
    train, rows = rows_of(seed), rows_of(seed + 1, 6)
    turn = np.linalg.qr(np.random.default_rng(seed).standard_normal((8, 8)))[0]
    if name == "random-map":  # its directions are drawn, not fitted: only the norm of what is kept is bounded
        mapped = fit_control(name, train=train, drop=3)
        assert (np.linalg.norm(unit(rows) @ mapped.matrix.numpy(), axis=1) <= 1 + 1e-12).all()
        return
    plain = fit_control(name, train=train)(rows).double().numpy()
    turned = fit_control(name, train=train @ turn)(rows @ turn).double().numpy()
    np.testing.assert_allclose(turned @ turned.T, plain @ plain.T, rtol=0, atol=1e-4)


def test_directions_are_counted_within_the_rank():
    image, text = weights(0, d=3)  # widths 12 and 9, rank 3
    assert {choice["top"] + choice["bottom"] for choice in isoclip_grid((image, text))} == {0}
    with pytest.raises(InputError, match="top = 3 is not a whole number from 0 to 2"):
        fit_control("isoclip", projections=(image, text), top=3)
    grid = isoclip_grid(tuple(np.random.default_rng(1).standard_normal((2, 40, 50))))
    assert {choice["top"] for choice in grid} == {choice["bottom"] for choice in grid} == {0, 2, 4, 8, 12}
    assert all(fit_control("isoclip", projections=(image, text), side=side) for side in SIDES)


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.floats(0, 1))
def test_the_average_lies_between_its_ends(seed, weight):
    native, inverted = rows_of(seed, 6), rows_of(seed + 1, 6)
    mixed = average(native, inverted, weight)
    close(mixed, (1 - weight) * unit(native) + weight * unit(inverted))
    close(average(native, inverted, 0.0), native)
    close(average(native, inverted, 1.0), inverted)
    close(average(native, native, weight), native)


# --- through the backbone -------------------------------------------------------------------------------------


def tiny_clip():
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    common = {"intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = common | {"hidden_size": 24, "vocab_size": 50, "max_position_embeddings": 8, "eos_token_id": 49}
    vision = common | {"hidden_size": 32, "image_size": 16, "patch_size": 8}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).eval()
    for layer in (model.visual_projection, model.text_projection):
        torch.nn.init.normal_(layer.weight, std=0.3)
    return model


@pytest.mark.parametrize(("side", "top", "bottom"), [("image", 3, 2), ("text", 1, 5), ("image", 0, 0)])
def test_isoclip_through_the_model_is_the_linear_map_of_its_embeddings(side, top, bottom):
    model = tiny_clip()
    image, text = projections_of(model)
    assert (tuple(image.shape), tuple(text.shape)) == ((16, 32), (16, 24))
    left, _, right = torch.linalg.svd(image.double().T @ text.double(), full_matrices=False)
    changed = copy.deepcopy(model)
    with torch.no_grad():
        for layer, basis in ((changed.visual_projection, left), (changed.text_projection, right.T)):
            kept = basis[:, top : 16 - bottom]  # the rank is that of the embedding
            layer.weight.copy_(layer.weight.double() @ kept @ kept.T)
        if side == "image":
            pixels = torch.rand(5, 3, 16, 16)
            native, wanted = (m.get_image_features(pixel_values=pixels).pooler_output for m in (model, changed))
        else:
            tokens = torch.randint(0, 48, (5, 8))
            tokens[:, -1] = 49
            native, wanted = (m.get_text_features(input_ids=tokens).pooler_output for m in (model, changed))
    control = fit_control("isoclip", projections=(image, text), side=side, top=top, bottom=bottom)
    np.testing.assert_allclose(control(native).numpy(), unit(wanted.numpy()), rtol=0, atol=1e-6)


def test_a_model_without_projections_is_refused():
    with pytest.raises(InputError, match="Linear has no visual_projection and text_projection"):
        projections_of(torch.nn.Linear(2, 2))


# --- the catalogue --------------------------------------------------------------------------------------------


def test_every_control_says_what_it_is():
    assert list(CONTROLS) == ["none", "mean-centring", "pca", "whitening", "random-map", "isoclip"]
    for name, control in CONTROLS.items():
        assert control.name == name and control.summary and control.source
        assert set(control.grid) <= set(control.parameters)
        assert set(control.needs) <= {"train", "projections"}
    assert all(side in SIDES and top >= 0 and bottom >= 0 for (_, side), (top, bottom) in PUBLISHED.items())


def test_the_published_choices_can_be_made_at_their_width():
    rng = np.random.default_rng(3)
    projections = rng.standard_normal((512, 768)), rng.standard_normal((512, 512))
    top, bottom = PUBLISHED["CLIP ViT-B/32", "image"]
    control = fit_control("isoclip", projections=projections, top=top, bottom=bottom)
    assert float(torch.trace(control.matrix)) == pytest.approx(512 - top - bottom, abs=1e-6)


def test_bad_input_is_named():
    train, rows = rows_of(0), rows_of(1)
    refused = {
        "unknown control 'pcaa'; nearest valid: pca": lambda: fit_control("pcaa", train=train),
        "unknown parameter of pca 'dorp'; nearest valid: drop": lambda: fit_control("pca", train=train, dorp=1),
        "unknown side 'images'; nearest valid: image": lambda: fit_control("pca", train=train, side="images"),
        "pca needs train, which was not given": lambda: fit_control("pca"),
        "isoclip needs projections, which was not given": lambda: fit_control("isoclip", train=train),
        "drop = 8 is not a whole number from 0 to 7": lambda: fit_control("pca", train=train, drop=8),
        "drop = True is not a whole number": lambda: fit_control("pca", train=train, drop=True),
        "keep = 8 is not a whole number from 1 to 7": lambda: fit_control("pca", train=train, drop=1, keep=8),
        "shrinkage = 0 is not above 0": lambda: fit_control("whitening", train=train, shrinkage=0),
        "there is no variance to whiten": lambda: fit_control("whitening", train=np.ones((3, 8))),
        "train: row 0 holds NaN": lambda: fit_control("pca", train=train * np.nan),
        "rows have width 5, but the map was fitted for 8": lambda: fit_control("pca", train=train)(rows[:, :5]),
        "the projections give widths 8 and 7": lambda: fit_control("isoclip", projections=(train.T, train.T[:7])),
        "bottom = -1 is not": lambda: fit_control("isoclip", projections=weights(0), bottom=-1),
        "mapped rows: row 0 is all zeros": lambda: fit_control("mean-centring", train=train[:1])(train[:1]),
        "native rows have shape": lambda: average(rows, rows[:2]),
        "weight = 1.5 is not between 0 and 1": lambda: average(rows, rows, 1.5),
    }
    for message, call in refused.items():
        with pytest.raises(InputError) as error:
            call()
        assert message in str(error.value)
