"""One way to load and to use any encoder: what holds for all, on a CLIP model."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from reprolib import paths
from reprolib.errors import DataUnavailable, InputError, RunError
from reprolib.loaders.dataset import Items
from reprolib.models.encoder import Encoder, load_encoder
from reprolib.models.families import Family
from reprolib.models.registry import find_model

LONG = "latin small letter a " * 9


def test_embeddings_equal_those_of_transformers_itself(mini_clip: Path, items: Items) -> None:
    from transformers import CLIPModel, CLIPProcessor

    encoder = load_encoder(str(mini_clip))
    images, texts = encoder.encode_images(items.images), encoder.encode_texts([*items.texts, LONG])
    assert images.dtype == texts.dtype == np.float32
    assert images.shape == (len(items.images), 16) and texts.shape == (len(items.texts) + 1, 16)

    model, processor = CLIPModel.from_pretrained(mini_clip).eval(), CLIPProcessor.from_pretrained(mini_clip)
    pictures = [Image.fromarray(image).convert("RGB") for image in items.images]
    inputs = processor(
        images=pictures, text=[*items.texts, LONG], padding=True, truncation=True, max_length=12, return_tensors="pt"
    )
    with torch.no_grad():
        output = model(**inputs)
    for ours, theirs in ((images, output.image_embeds), (texts, output.text_embeds)):
        np.testing.assert_allclose(ours / np.linalg.norm(ours, axis=1, keepdims=True), theirs, atol=1e-5)


def test_embeddings_do_not_depend_on_the_batch(mini_clip: Path, items: Items) -> None:
    encoder = load_encoder(str(mini_clip))
    for batch in (1, 7):
        small = replace(encoder, batch=batch)
        np.testing.assert_allclose(small.encode_images(items.images), encoder.encode_images(items.images), atol=1e-5)
        np.testing.assert_allclose(small.encode_texts(items.texts), encoder.encode_texts(items.texts), atol=1e-5)


def test_grey_rgb_and_pil_are_the_same_picture(mini_clip: Path, items: Items) -> None:
    encoder, grey = load_encoder(str(mini_clip)), items.images[:3]
    rgb = np.repeat(grey[..., None], 3, axis=3)
    expected = encoder.encode_images(grey)
    np.testing.assert_array_equal(encoder.encode_images(rgb), expected)
    np.testing.assert_array_equal(encoder.encode_images([Image.fromarray(image) for image in grey]), expected)
    with pytest.raises(InputError, match="valid is uint8"):
        encoder.encode_images(grey.astype(np.float32))


def test_nothing_to_encode_is_an_empty_matrix(mini_clip: Path) -> None:
    encoder = load_encoder(str(mini_clip))
    assert encoder.encode_texts([]).shape == encoder.encode_images([]).shape == (0, 16)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "preprocessor_config.json", "tokenizer.json"])
def test_the_identity_changes_with_every_ingredient(mini_clip: Path, tmp_path: Path, file: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(mini_clip, copy)
    before = find_model(str(copy)).identity
    assert before == find_model(str(mini_clip)).identity == load_encoder(str(copy)).identity
    (copy / file).write_bytes((copy / file).read_bytes() + b" ")
    assert find_model(str(copy)).identity != before


def test_the_activation_is_part_of_the_model(mini_clip: Path, tmp_path: Path, items: Items) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(mini_clip, copy)
    config = json.loads((copy / "config.json").read_text())
    config["text_config"]["hidden_act"] = "gelu"
    (copy / "config.json").write_text(json.dumps(config))
    quick, exact = load_encoder(str(mini_clip)), load_encoder(str(copy))
    assert quick.identity != exact.identity
    assert np.abs(quick.encode_texts(items.texts) - exact.encode_texts(items.texts)).max() > 1e-4


def test_weights_in_other_formats_are_not_read(mini_clip: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(mini_clip, copy)
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(DataUnavailable, match="no weights as safetensors"):
        load_encoder(str(copy))


def test_truncated_weights_are_one_sentence(mini_clip: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(mini_clip, copy)
    (copy / "model.safetensors").write_bytes((copy / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(RunError, match="does not load as CLIPModel"):
        load_encoder(str(copy))


def test_missing_weights_are_not_filled_in_at_random(mini_clip: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(mini_clip, copy)
    weights = load_file(copy / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RunError, match=r"1 weights are missing .* visual_projection\.weight"):
        load_encoder(str(copy))


def test_a_device_that_is_not_there_is_one_sentence(mini_clip: Path) -> None:
    with pytest.raises(InputError, match="device cuda:99 is not available here"):
        load_encoder(str(mini_clip), "cuda:99")


@pytest.mark.parametrize(
    "refusal",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: not enough memory: you tried to allocate"
        ),
        MemoryError(),
    ],
    ids=["device", "allocator", "numpy"],
)
def test_too_little_memory_halves_the_batch(
    mini_clip: Path, items: Items, monkeypatch: pytest.MonkeyPatch, refusal: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = load_encoder(str(mini_clip))
    expected, original, sizes = encoder.encode_images(items.images), Family.images, []

    def limited(family: Family, encoder: Encoder, images: np.ndarray) -> torch.Tensor:
        sizes.append(len(images))
        if len(images) > 6:
            raise refusal
        return original(family, encoder, images)

    monkeypatch.setattr(Family, "images", limited)
    np.testing.assert_allclose(encoder.encode_images(items.images), expected, atol=1e-5)
    assert sizes == [48, 24, 12] + [6] * 8  # and it does not try a larger one again
    assert "going on with 6 items at a time" in caplog.text


def test_one_item_that_does_not_fit_is_one_sentence(
    mini_clip: Path, items: Items, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(Family, "texts", full)
    with pytest.raises(RunError, match="cpu lacks the memory for a single item"):
        load_encoder(str(mini_clip)).encode_texts(items.texts)


def test_other_failures_are_not_taken_for_memory(mini_clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> torch.Tensor:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(Family, "texts", broken)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        load_encoder(str(mini_clip)).encode_texts(["a"])


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"activation": {"image": "quick_gelu", "text": "quick_gelu"}, "projection": 16}, None),
        ({"activation": {"text": "gelu"}}, "field activation.text: it says gelu, but the model's files say quick_gelu"),
        ({"projection": 512}, "field projection: it says 512, but the model's files say 16"),
        ({"preprocessing": {"image_mean": [0.48145466, 0.4578275, 0.40821073], "resample": 3}}, None),
        (
            {"preprocessing": {"image_mean": [0.5, 0.5, 0.5]}},
            r"field preprocessing.image_mean: it says \[0.5, 0.5, 0.5\]",
        ),
        (
            {"preprocessing": {"colour": "red"}},
            "field preprocessing.colour: it says red, but the model's files say None",
        ),
    ],
)
def test_a_manifest_that_the_files_contradict_is_refused(
    mini_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stated: dict[str, object], message: str | None
) -> None:
    shutil.copytree(mini_clip, tmp_path / "models" / "mini")
    manifest = {"name": "mini", "title": "Mini", "source": "project", "licence": "MIT"} | stated
    (tmp_path / "models" / "mini.yaml").write_text(json.dumps(manifest))
    monkeypatch.setattr(paths, "manifests", lambda: tmp_path)
    if message is None:
        assert load_encoder("mini").width == 16
    else:
        with pytest.raises(InputError, match=message):
            load_encoder("mini")
