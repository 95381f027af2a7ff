"""Random copies and short fine-tunes: what decides them, and that nothing else does."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from reprolib.errors import InputError
from reprolib.loaders.dataset import EmbeddingData, Items, Replicate
from reprolib.models import encoder
from reprolib.models.embed import Pictures, embed
from reprolib.models.finetune import PARTS, Tuning, embed_random, finetune, items_of, trained_temperature
from reprolib.models.registry import ModelFiles, find_model
from tests.models import checkpoints
from tests.models.conftest import make_items

TUNING = Tuning(0.1, steps=3, batch=8)


@pytest.fixture
def files(mini_clip: Path) -> ModelFiles:
    return find_model(str(mini_clip))


@pytest.fixture(autouse=True)
def loads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    """Give the test an empty cache, and return the list of models that were loaded."""
    names: list[str] = []
    original = encoder.load_encoder
    monkeypatch.setenv("REPROLIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(encoder, "load_encoder", lambda name, device: names.append(name) or original(name, device))
    yield names


def _loss(image: np.ndarray, text: np.ndarray, tau: float) -> float:
    """Return the symmetric InfoNCE loss of pairs, slowly."""
    image, text = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (image, text))
    logits = image.astype(np.float64) @ text.T / tau
    losses = [-math.log(math.exp(row[i]) / sum(map(math.exp, row))) for i, row in enumerate(logits)]
    losses += [-math.log(math.exp(row[i]) / sum(map(math.exp, row))) for i, row in enumerate(logits.T)]
    return sum(losses) / len(losses)


def test_the_temperature_is_that_of_the_weights(files: ModelFiles) -> None:
    scale = encoder.load_encoder(files.name, "cpu").model.logit_scale
    assert trained_temperature(files.name) == pytest.approx(math.exp(-float(scale.detach())))


def test_a_random_copy_depends_on_its_seed_alone(items: Items, files: ModelFiles, tmp_path: Path, monkeypatch) -> None:
    state = torch.random.get_rng_state()
    first = embed_random(items, files, 3)
    assert torch.equal(state, torch.random.get_rng_state())
    monkeypatch.setenv("REPROLIB_CACHE", str(tmp_path / "another"))
    torch.rand(7)
    again, other, trained = embed_random(items, files, 3), embed_random(items, files, 4), embed(items, files)
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.text, again.text)
    for different in (other, trained):
        assert not np.allclose(first.image, different.image) and not np.allclose(first.text, different.text)
    assert first.image.shape == trained.image.shape and list(first.text_ids) == list(items.text_ids)


@pytest.mark.parametrize("part", PARTS)
def test_without_a_step_to_take_the_embeddings_are_the_models_own(items: Items, files: ModelFiles, part: str) -> None:
    still = finetune(items, items, files, replace(TUNING, part=part, learning_rate=0.0))
    own = embed(items, files)
    np.testing.assert_allclose(still.image, own.image, atol=1e-6)
    np.testing.assert_allclose(still.text, own.text, atol=1e-6)


@pytest.mark.parametrize("part", PARTS)
def test_training_lowers_the_loss_at_its_temperature(files: ModelFiles, part: str) -> None:
    items = make_items(faces=1)
    before = embed(items, files)
    tuned = finetune(items, items, files, Tuning(0.2, steps=12, part=part, batch=24, learning_rate=3e-3))
    assert _loss(tuned.image, tuned.text, 0.2) < _loss(before.image, before.text, 0.2) - 0.01


def test_every_setting_counts_and_the_second_time_nothing_is_trained(
    items: Items, files: ModelFiles, loads: list[str]
) -> None:
    base = finetune(items, items, files, TUNING)
    changes = [{"tau": 0.5}, {"seed": 1}, {"steps": 2}, {"batch": 4}, {"learning_rate": 1e-2}, {"part": "all"}]
    for change in changes:
        tuned = finetune(items, items, files, replace(TUNING, **change))
        assert not np.array_equal(tuned.image, base.image), change
    other = make_items(seed=1)
    assert not np.array_equal(finetune(other, items, files, TUNING).image, base.image)
    loaded = len(loads)
    np.testing.assert_array_equal(finetune(items, items, files, TUNING).image, base.image)
    assert len(loads) == loaded


def test_projections_need_the_towers_once(items: Items, files: ModelFiles, loads: list[str]) -> None:
    for seed in range(3):
        finetune(items, items, files, replace(TUNING, seed=seed))
    assert len(loads) == 1


def test_items_come_back_from_ids(items: Items, files: ModelFiles) -> None:
    split = embed(items, files)
    captions = dict(zip(items.text_ids, items.texts, strict=True))
    data = EmbeddingData(
        "toy", "m", "0" * 64, (Replicate(split, split, split, "", ""),), (), "", captions, Pictures(items)
    )
    part = split.take(np.array([5, 2, 9]))
    found = items_of(data, part)
    np.testing.assert_array_equal(found.images, items.images[[5, 2, 9]])
    assert found.texts == [captions[name] for name in part.text_ids]
    with pytest.raises(InputError, match="without pictures"):
        items_of(replace(data, pictures=None), part)


@pytest.mark.parametrize(
    ("change", "said"),
    [({"tau": 0.0}, "tau 0.0"), ({"tau": math.nan}, "tau nan"), ({"part": "head"}, "'head'"), ({"steps": 0}, "steps 0"),
     ({"batch": 1}, "batch 1"), ({"seed": -1}, "seed -1")],
)  # fmt: skip
def test_bad_settings_are_one_sentence(change: dict, said: str) -> None:
    with pytest.raises(InputError, match=said) as error:
        replace(TUNING, **change)
    assert "\n" not in str(error.value)


def test_weights_without_a_temperature_are_named(mini_clip: Path, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    folder = tmp_path / "bare"
    shutil.copytree(mini_clip, folder)
    weights = load_file(folder / "model.safetensors")
    weights.pop("logit_scale")
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(InputError, match="no logit_scale"):
        trained_temperature(str(folder))


@pytest.mark.parametrize("part", PARTS)
def test_another_family_is_refused(items: Items, tmp_path: Path, part: str) -> None:
    model = find_model(str(checkpoints.build(tmp_path, ["siglip"])["siglip"]))
    with pytest.raises(InputError, match="is no CLIP model: only such are fine-tuned"):
        finetune(items, items, model, Tuning(0.07, part=part))
