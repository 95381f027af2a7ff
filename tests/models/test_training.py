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
from reprolib.models.release import measure, measured_records, model_manifest, store_model, write_manifest

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
    from reprolib.models.embed import Split

    model, tokenizer, state = train(items, tmp_path / "run")
    folder = tmp_path / "tiny"
    files = store_model(folder, model, tokenizer, t.build_processor(32))
    assert {"model.safetensors", "config.json", "preprocessor_config.json", "tokenizer.json"} <= set(files)
    encoder = load_encoder(str(folder))
    pixels = t.normalise(torch.from_numpy(items.images)[:, None].float() / 255)
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
        store_model(tmp_path / "tiny", model, tokenizer, t.build_processor(32))
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
