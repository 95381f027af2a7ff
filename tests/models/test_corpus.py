"""Corpora: from raw items, from the features of Flickr8k and from a file, with what each split holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse

from reprolib.errors import InputError
from reprolib.loaders.dataset import Items
from reprolib.loaders.readers import flickr8k
from reprolib.models import corpus
from reprolib.models.corpus import load_corpus

COUNTS = {"train": 12, "validation": 6, "test": 7}


def items(split: str, views: int = 6) -> Items:
    """Return made-up characters: ``views`` pictures of each of a few names."""
    count = COUNTS[split]
    rng = np.random.default_rng(count)
    images = rng.integers(0, 255, size=(count * views, 32, 32), dtype=np.uint8)
    relevance = scipy.sparse.csr_array(np.kron(np.eye(count, dtype=bool), np.ones((views, 1), bool)))
    ids = ([f"{split} {kind}{row}" for row in range(n)] for kind, n in (("i", len(images)), ("t", count)))
    return Items("glyphs", split, images, [f"letter {split} {row}" for row in range(count)], *ids, relevance)


@pytest.fixture
def made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPROLIB_CACHE", str(tmp_path))
    monkeypatch.setattr(corpus, "load_items", lambda name, split, mirror: items(split))


def test_pixels_are_principal_components_and_texts_have_the_features_of_the_model(made_up: None) -> None:
    found = load_corpus("glyphs", views=2, per_item=3)
    assert found.train.relevance.shape == (24, 12) and found.validation.relevance.shape == (18, 6)
    assert found.test.relevance.shape == (21, 7) and found.whole.relevance.shape == (35, 7)
    assert found.model.startswith("pixels") and found.train.text.shape[0] == 12
    assert found.train.texts[3] == "letter train 3" and found.train.image_ids[2] == "train i6"
    # the reduced pictures as they would be computed one by one; components keep their distances
    pictures = items("train").images[[0, 1, 6]].astype(float) / 255
    flat = np.stack(
        [[p[2 * y : 2 * y + 2, 2 * x : 2 * x + 2].mean() for y in range(16) for x in range(16)] for p in pictures]
    )
    distance = np.linalg.norm(flat[0] - flat[2])
    assert np.linalg.norm(found.train.image[0] - found.train.image[2]) == pytest.approx(distance, rel=1e-4)
    again = load_corpus("glyphs", views=2, per_item=3)  # text features from the cache
    assert again.identity == found.identity and (again.train.text == found.train.text).all()
    assert load_corpus("glyphs", views=3, per_item=3).identity != found.identity


def test_features_of_the_model_are_its_embeddings_of_both(made_up: None) -> None:
    found, pixels = load_corpus("glyphs", features="model", views=2), load_corpus("glyphs", views=2)
    assert found.model == "glyph-clip" and found.train.image.shape[1] == found.train.text.shape[1]
    np.testing.assert_allclose(found.test.text, pixels.test.text, atol=1e-5)
    assert found.identity != pixels.identity


def test_flickr8k_brings_its_own_features(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(split: str, mirror: object) -> flickr8k.Features:
        n = COUNTS[split]
        relevance = scipy.sparse.csr_array(np.kron(np.eye(n, dtype=bool), np.ones((1, 5), bool)))
        ids = [np.array([f"{split}{row}" for row in range(count)]) for count in (n, 5 * n)]
        return flickr8k.Features(np.ones((n, 8), np.float32), [f"caption {i}" for i in range(5 * n)], *ids, relevance)

    monkeypatch.setattr(flickr8k, "load_features", load)
    found = load_corpus("flickr8k", per_item=5)
    assert found.train.relevance.shape == (12, 60) and found.test.relevance.shape == (7, 35)
    assert found.train.text is None and found.test.texts[5] == "caption 5" and "MobileNet" in found.model
    assert load_corpus("flickr8k").test.text_ids.tolist() == [f"test{5 * row}" for row in range(7)]


def test_what_is_not_valid_is_refused(made_up: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for change, message in (
        ({"features": "pixel"}, "pixels"), ({"views": 0}, "at least 1"), ({"per_item": 0}, "at least 1"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            load_corpus("glyphs", **change)
    odd = items("train")
    object.__setattr__(odd, "images", odd.images[:, :30])
    monkeypatch.setattr(corpus, "load_items", lambda name, split, mirror: odd)
    with pytest.raises(InputError, match="multiple of 16"):
        load_corpus("glyphs")
