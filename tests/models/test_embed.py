"""Embeddings are computed once, and never taken for those of something else."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from reprolib import paths
from reprolib.errors import DataUnavailable, InputError
from reprolib.loaders import emoji, glyphs
from reprolib.loaders.dataset import Items
from reprolib.models import encoder, load_embeddings
from reprolib.models.embed import embed, share_of_texts
from reprolib.models.registry import find_model
from tests.loaders.conftest import build_mirror
from tests.models.conftest import make_items


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    """Give the test an empty cache, and return the list of models that were loaded to encode something."""
    names: list[str] = []
    original = encoder.load_encoder
    monkeypatch.setenv("REPROLIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(encoder, "load_encoder", lambda name, device: names.append(name) or original(name, device))
    yield names


def test_the_second_time_nothing_is_encoded(items: Items, mini_clip: Path, loads: list[str]) -> None:
    first, second = (embed(items, find_model(str(mini_clip))) for _ in range(2))
    assert len(loads) == 1
    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(first.text, second.text)
    assert list(first.image_ids) == list(items.image_ids)


def test_every_changed_ingredient_is_a_miss(items: Items, mini_clip: Path, tmp_path: Path, loads: list[str]) -> None:
    other = tmp_path / "other"
    shutil.copytree(mini_clip, other)
    (other / "preprocessor_config.json").write_text(
        (other / "preprocessor_config.json").read_text().replace("0.48145466", "0.5")
    )
    reordered = replace(items, image_ids=items.image_ids[::-1])
    renamed = replace(items, texts=["changed", *items.texts[1:]])
    redrawn = replace(items, images=items.images ^ 1)
    model = find_model(str(mini_clip))
    variants = [(items, model), (items, find_model(str(other)))]
    variants += [(changed, model) for changed in (reordered, renamed, redrawn, replace(items, split="test"))]
    for number, (changed, files) in enumerate(variants, start=1):
        embed(changed, files)
        assert len(loads) == number


@pytest.mark.parametrize("damage", ["truncated", "altered"])
def test_a_damaged_file_is_computed_again_with_a_notice(
    items: Items, mini_clip: Path, tmp_path: Path, loads: list[str], damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = find_model(str(mini_clip))
    first = embed(items, model)
    (path,) = (tmp_path / "cache" / "embeddings").iterdir()
    content = path.read_bytes()
    path.write_bytes(content[:-9] if damage == "truncated" else content[:-1] + bytes([content[-1] ^ 64]))
    with caplog.at_level(logging.WARNING):
        again = embed(items, model)
    assert len(loads) == 2 and "damaged" in caplog.text
    np.testing.assert_array_equal(again.text, first.text)
    assert path.read_bytes() == content


def test_a_share_of_texts_keeps_all_images_of_each(items: Items) -> None:
    part = share_of_texts(items, 0.25, np.random.default_rng(0))
    assert len(part.texts) == 6 and len(part.images) == 12
    assert (part.relevance.sum(axis=0) == 2).all()
    assert set(part.text_ids) <= set(items.text_ids)


@pytest.fixture
def toy_glyphs(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = {split: make_items(seed=seed, split=split) for seed, split in enumerate(glyphs.SPLITS)}
    monkeypatch.setattr(glyphs, "load_glyphs", parts.__getitem__)


def test_the_official_split_with_a_bank_from_train(toy_glyphs: None, mini_clip: Path, loads: list[str]) -> None:
    data = load_embeddings("glyphs", str(mini_clip), bank_share=0.25, seed=3)
    (replicate,) = data.replicates
    assert (replicate.label, replicate.bank_source) == ("official split", "train, 25 %")
    assert all(name.startswith("train") for name in replicate.bank.text_ids)
    assert len(replicate.bank.text) == 6 and len(replicate.test.text) == len(replicate.validation.text) == 24
    assert data.captions["test text 0"] == "latin small letter a"
    assert data.pictures is not None and len(data.pictures) == 144
    np.testing.assert_array_equal(data.pictures["test image 5"], make_items(seed=2, split="test").images[5])
    again, other = (load_embeddings("glyphs", str(mini_clip), bank_share=0.25, seed=seed) for seed in (3, 4))
    assert again.identity == data.identity == other.identity
    assert list(other.replicates[0].bank.text_ids) != list(replicate.bank.text_ids)


def test_other_banks_are_asked_for_by_name(toy_glyphs: None, mini_clip: Path, loads: list[str]) -> None:
    (validation,) = load_embeddings("glyphs", str(mini_clip), bank_source="validation").replicates
    assert not set(validation.bank.image_ids) & set(validation.validation.image_ids)
    assert len(validation.bank.text) == len(validation.validation.text) == 12
    (transductive,) = load_embeddings("glyphs", str(mini_clip), bank_source="transductive").replicates
    assert transductive.bank is transductive.test and transductive.bank_source.startswith("transductive")


@pytest.fixture
def emoji_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a mirror that holds miniature emoji; nothing else is at hand."""
    monkeypatch.delenv("REPROLIB_MIRROR", raising=False)
    build_mirror(tmp_path / "mirror", tmp_path / "manifests")
    monkeypatch.setattr(paths, "manifests", lambda: tmp_path / "manifests")
    return tmp_path / "mirror"


def test_emoji_of_a_mirror_are_encoded_by_any_model(emoji_mirror: Path, mini_clip: Path, loads: list[str]) -> None:
    data = load_embeddings("emoji", str(mini_clip), bank_share=0.5, mirror=emoji_mirror)
    (replicate,) = data.replicates
    parts = {split: emoji.load_emoji(split, emoji_mirror) for split in emoji.SPLITS}
    assert (data.name, data.model, replicate.bank_source) == ("emoji", str(mini_clip), "train, 50 %")
    assert set(replicate.bank.text_ids) < set(parts["train"].text_ids)
    assert list(replicate.test.image_ids) == list(parts["test"].image_ids)
    assert replicate.test.image.shape == (len(parts["test"].images), 16)
    assert data.captions["1f602+1f603"] == "face 2"
    assert data.pictures is not None and (data.pictures["1f601/noto"] == 5).all()
    assert data.licence.startswith("per vendor: twemoji CC-BY-4.0")
    load_embeddings("emoji", str(mini_clip), bank_share=0.5, mirror=emoji_mirror)
    assert len(loads) == 3  # bank, validation and test, once each


def test_without_a_mirror_emoji_are_not_at_hand(emoji_mirror: Path, mini_clip: Path, loads: list[str]) -> None:
    with pytest.raises(DataUnavailable, match="to obtain it"):
        load_embeddings("emoji", str(mini_clip))


def test_a_dataset_that_is_only_listed_is_not_encoded() -> None:
    with pytest.raises(InputError, match="flickr8k is listed, but nothing in this package reads its items"):
        load_embeddings("flickr8k")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dataset": "glyfs"}, "unknown dataset 'glyfs'; nearest valid: glyphs"),
        ({"dataset": "glyphs", "model": "glyph-clib"}, "unknown model 'glyph-clib'"),
        ({"dataset": "glyphs", "bank_source": "trian"}, "unknown bank source 'trian'; nearest valid: train"),
        ({"dataset": "glyphs", "bank_share": 0.0}, "bank_share 0.0 is not valid"),
        ({"dataset": "glyphs", "seed": -1}, "seed -1 is not valid"),
        ({"dataset": "coco-clip-500", "model": "glyph-clip"}, "stored features"),
    ],
)
def test_wrong_arguments_are_one_sentence(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_embeddings(**arguments)


def test_a_file_of_ones_own_wins_over_the_dataset(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "own.npz", image=rng.normal(size=(40, 8)), text=rng.normal(size=(40, 8)))
    data = load_embeddings("glyphs", embeddings=tmp_path / "own.npz", n_splits=2)
    assert [replicate.label for replicate in data.replicates] == ["seeded split 1 of 2", "seeded split 2 of 2"]
