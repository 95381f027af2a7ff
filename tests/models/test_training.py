"""Training: deterministic, resumable, and leading to files that load like any other CLIP model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from reprolib.errors import InputError
from reprolib.loaders.dataset import Items
from reprolib.models import training as t
from reprolib.models.encoder import load_encoder
from reprolib.models.release import ABOUT, measure, measured_records, model_manifest, store_model, write_manifest

TINY = t.Training(
    steps=5,
    batch=8,
    negatives=8,
    vocabulary=700,
    warmup=2,
    cooldown=2,
    image_width=32,
    image_layers=1,
    text_width=32,
    text_layers=1,
    projection=16,
    validate_every=2,
)


def quiet(_: str) -> None:
    """Report nothing."""


def train(items: Items, folder: Path, **arguments: object) -> tuple[object, object, t.State]:
    return t.train(TINY, items, items, folder, report=quiet, **arguments)


def test_five_steps_are_deterministic_and_resumable(items: Items, tmp_path: Path) -> None:
    model, _, state = train(items, tmp_path / "a")
    again, _, _ = train(items, tmp_path / "b")
    train(items, tmp_path / "c", stop_after=3)
    resumed, _, resumed_state = train(items, tmp_path / "c")
    assert state.step == resumed_state.step == 5
    assert [row[0] for row in state.curve] == [2, 4, 5]
    assert [row[0] for row in resumed_state.curve] == [2, 3, 4, 5]
    for name, value in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value, rtol=0, atol=1e-6)
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=0, atol=1e-6)


def test_a_finished_run_is_not_trained_again(items: Items, tmp_path: Path) -> None:
    _, _, first = train(items, tmp_path)
    _, _, second = train(items, tmp_path)
    assert second.curve == first.curve and second.seconds == first.seconds


def test_a_checkpoint_of_other_settings_is_refused(items: Items, tmp_path: Path) -> None:
    train(items, tmp_path, stop_after=1)
    with pytest.raises(InputError, match="other training parameters"):
        t.train(replace(TINY, seed=1), items, items, tmp_path, report=quiet)


def test_a_run_can_be_made_longer_until_the_cool_down(items: Items, tmp_path: Path) -> None:
    model, _, _ = train(items, tmp_path / "direct")
    t.train(replace(TINY, steps=9), items, items, tmp_path / "other", stop_after=3, report=quiet)
    same, _, _ = train(items, tmp_path / "other")
    for name, value in model.state_dict().items():
        torch.testing.assert_close(same.state_dict()[name], value, rtol=0, atol=1e-6)
    with pytest.raises(InputError, match="other training parameters"):
        t.train(replace(TINY, steps=9), items, items, tmp_path / "direct", report=quiet)


def test_the_rate_rises_stays_and_falls() -> None:
    setting = t.Training(steps=100, warmup=10, cooldown=20, learning_rate=1.0)
    rates = [t.learning_rate(step, setting) for step in range(100)]
    assert rates[0] == 0.1 and rates[9:81] == [1.0] * 72
    assert rates[90] == 0.5 and rates[99] == 0.05


def test_training_lowers_the_loss(items: Items, tmp_path: Path) -> None:
    longer = replace(TINY, steps=60, cooldown=20, validate_every=10, batch=16, learning_rate=3e-3)
    _, _, state = t.train(longer, items, items, tmp_path, report=quiet)
    assert state.curve[-1][1] < state.curve[0][1] - 0.15


def test_the_stored_model_loads_like_any_other(items: Items, tmp_path: Path) -> None:
    from reprolib.loaders import Split

    model, tokenizer, state = train(items, tmp_path / "run")
    folder = tmp_path / "tiny"
    files = store_model(folder, model, tokenizer, t.build_processor(TINY, 32))
    assert {"model.safetensors", "config.json", "preprocessor_config.json", "tokenizer.json"} <= set(files)
    encoder = load_encoder(str(folder))
    pixels = t.normalise(t.channels_first(items.images).float() / 255, TINY)
    with torch.no_grad():
        expected = model.half().float().get_image_features(pixel_values=pixels).pooler_output
    np.testing.assert_allclose(encoder.encode_images(items.images), expected, atol=1e-5)

    texts = encoder.encode_texts(items.texts)
    split = Split(encoder.encode_images(items.images), texts, items.relevance, items.image_ids, items.text_ids)
    measured = {"test": measure(split, k=3)}
    assert len(measured_records(measured, "study", "toy", "tiny")) == 7
    write_manifest(tmp_path / "tiny.yaml", model_manifest(TINY, state, files, measured, {"device": "cpu"}))


def test_more_than_the_limit_is_not_stored(items: Items, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer, _ = train(items, tmp_path / "run")
    monkeypatch.setattr("reprolib.models.release.LIMIT", 1000)
    with pytest.raises(InputError, match="valid is at most"):
        store_model(tmp_path / "tiny", model, tokenizer, t.build_processor(TINY, 32))
    assert not (tmp_path / "tiny" / "model.safetensors").exists()


def test_the_tokenizer_reads_unknown_words_in_pieces() -> None:
    tokenizer = t.build_tokenizer(["greek small letter alpha", "dots-127"], 700)
    assert tokenizer.tokenize("letter") == ["letter</w>"]
    assert len(tokenizer.tokenize("omega")) > 1
    assert tokenizer.decode(tokenizer("omega 7")["input_ids"], skip_special_tokens=True).split() == ["omega", "7"]
    ids = tokenizer("alpha")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id == len(tokenizer) - 1


def test_buckets_do_not_change_the_text_embeddings(items: Items) -> None:
    tokenizer = t.build_tokenizer(items.texts, 700)
    model = t.build_model(TINY, tokenizer, 32).eval()
    texts = ["latin", *items.texts, "greek capital letter delta with tonos and more words than the others"]
    tokens = tokenizer(texts, padding=True, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        whole = model.get_text_features(input_ids=tokens).pooler_output
        torch.testing.assert_close(t.text_features(model, tokens), whole, rtol=0, atol=1e-5)


def test_a_batch_holds_distinct_texts_and_only_words_are_left_out(items: Items) -> None:
    tokenizer = t.build_tokenizer(items.texts, 700)
    batch = t.Batches(items, tokenizer, replace(TINY, word_dropout=0.0))(0, "cpu")
    texts = tokenizer.batch_decode(batch["tokens"], skip_special_tokens=True)
    assert len({text.strip() for text in texts}) == 16 and {text.strip() for text in texts} <= set(items.texts)
    assert batch["pixels"].shape == (8, 3, 32, 32)
    random = np.random.default_rng(0)
    for _ in range(50):
        kept = t.drop_words("greek small letter alpha", 0.7, random).split()
        assert kept and set(kept) <= {"greek", "small", "letter", "alpha"}


def test_augmentation_keeps_pictures_recognisable() -> None:
    image = torch.zeros(64, 1, 32, 32)
    image[:, :, 8:24, 12:20] = 1
    changed = t.augment(image, torch.Generator().manual_seed(0))
    assert changed.min() >= 0 and changed.max() <= 1
    assert (changed != image).flatten(1).any(dim=1).all()
    ink = changed.sum(dim=(1, 2, 3)) / image.sum(dim=(1, 2, 3))
    assert ink.min() > 0.5 and ink.max() < 2.5
    overlap = (changed * image).sum(dim=(1, 2, 3)) / image.sum(dim=(1, 2, 3))
    assert overlap.mean() > 0.7


def coloured(items: Items) -> Items:
    """Return the items with pictures in three different channels, ink on white."""
    return replace(items, images=255 - np.stack([items.images, items.images // 2, items.images // 3], axis=3))


def test_colour_pictures_are_trained_on_and_encoded_alike(items: Items, tmp_path: Path) -> None:
    bright, setting = coloured(items), replace(TINY, steps=2, mean=0.7, std=0.25, ground=1)
    model, tokenizer, state = t.train(setting, bright, bright, tmp_path / "run", report=quiet)
    assert state.step == 2
    store_model(tmp_path / "bright", model, tokenizer, t.build_processor(setting, 32))
    encoder = load_encoder(str(tmp_path / "bright"))
    pixels = t.normalise(t.channels_first(bright.images).float() / 255, setting)
    assert pixels.shape == (len(bright.images), 3, 32, 32) and not torch.equal(pixels[:, 0], pixels[:, 1])
    with torch.no_grad():
        expected = model.half().float().get_image_features(pixel_values=pixels).pooler_output
    np.testing.assert_allclose(encoder.encode_images(bright.images), expected, atol=1e-5)


def test_what_moves_into_a_picture_is_its_ground(items: Items) -> None:
    tokenizer = t.build_tokenizer(items.texts, 700)
    blank = replace(items, images=np.full((len(items.images), 32, 32, 3), 255, np.uint8))
    setting = replace(TINY, mean=0.5, std=0.5, ground=1)
    pixels = t.Batches(blank, tokenizer, setting)(0, "cpu")["pixels"]
    assert pixels.mean() > 0.9  # white is 1 here, and only the noise is not white
    dark = t.Batches(blank, tokenizer, replace(setting, ground=0))(0, "cpu")["pixels"]
    assert dark.min() == -1  # the corners


def test_keywords_follow_a_name_as_often_as_asked_and_teach_the_tokenizer(items: Items, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    drawn = [t.add_keywords("greek letter", ["alpha", "beta", "gamma", "delta"], 0.5, random) for _ in range(400)]
    longer = [text.split()[2:] for text in drawn if text != "greek letter"]
    assert 150 < len(longer) < 250 and {len(words) for words in longer} == {1, 2, 3}
    assert all(len(set(words)) == len(words) <= 3 for words in longer)
    assert t.add_keywords("greek letter", [], 1.0, random) == "greek letter"
    assert t.add_keywords("greek letter", ["alpha"], 0.0, random) == "greek letter"
    words = [["zeppelin"]] * len(items.texts)
    setting = replace(TINY, steps=1, keywords=1.0)
    _, tokenizer, _ = t.train(setting, items, items, tmp_path / "a", keywords=words, report=quiet)
    assert tokenizer.tokenize("zeppelin") == ["zeppelin</w>"]
    _, tokenizer, _ = t.train(
        replace(setting, keywords=0.0), items, items, tmp_path / "b", keywords=words, report=quiet
    )
    assert len(tokenizer.tokenize("zeppelin")) > 1


def test_every_preset_has_a_model_that_its_manifest_can_describe() -> None:
    assert set(t.PRESETS) == set(ABOUT)
    assert len({about["name"] for about in ABOUT.values()}) == len(ABOUT)
    for setting in t.PRESETS.values():
        assert setting.warmup < setting.steps - setting.cooldown < setting.steps
