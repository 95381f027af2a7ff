"""One way to load and to use any CLIP model."""

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

from reprolib.errors import DataUnavailable, InputError, RunError
from reprolib.loaders.dataset import Items
from reprolib.models.encoder import load_encoder
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
    with pytest.raises(RunError, match="does not load as a CLIP model"):
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
