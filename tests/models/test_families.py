"""Every family of encoders, from a tiny random checkpoint in the format in which the public ones are stored."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from reprolib.errors import InputError, RunError
from reprolib.models.encoder import Encoder, load_encoder
from reprolib.models.registry import find_model
from tests.models.checkpoints import TEXTS, build, clap, sentences

DUAL = ("clip", "siglip", "siglip2", "altclip", "align", "blip", "clap")
LONG = "latin small letter a " * 40
ACTIVATIONS = {
    "clip": {"image": "quick_gelu", "text": "quick_gelu"},
    "siglip": {"image": "gelu_pytorch_tanh", "text": "gelu_pytorch_tanh"},
    "siglip2": {"image": "gelu_pytorch_tanh", "text": "gelu_pytorch_tanh"},
    "altclip": {"image": "quick_gelu", "text": "gelu"},
    "align": {"image": "swish", "text": "gelu"},
    "blip": {"image": "gelu", "text": "gelu"},
    "clap": {"image": "gelu", "text": "gelu"},
    "sentences": {"text": "gelu"},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return build(tmp_path_factory.mktemp("families"))


@pytest.fixture(scope="module")
def encoders(folders: dict[str, Path]) -> dict[str, Encoder]:
    return {name: load_encoder(str(folder)) for name, folder in folders.items()}


def inputs_of(name: str, n: int = 5) -> np.ndarray:
    rng = np.random.default_rng(0)
    if name == "clap":
        return rng.normal(size=(n, 1500)).astype(np.float32)
    base = np.kron(rng.integers(0, 256, (n, 5, 6, 3)), np.ones((8, 8, 1), dtype=int))
    return base.astype(np.uint8)


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def by_the_library(name: str, folder: Path, images: np.ndarray, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the normalised embeddings as transformers' own forward pass gives them, one pair at a time."""
    import transformers

    kind = "BlipForImageTextRetrieval" if name == "blip" else "AutoModel"
    model = getattr(transformers, kind).from_pretrained(folder, dtype="float32").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    extractor = "AutoFeatureExtractor" if name == "clap" else "AutoImageProcessor"
    processor = getattr(transformers, extractor).from_pretrained(folder)
    rows: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    for image, text in zip(images, texts, strict=True):
        if name == "clap":
            inputs = processor([image], sampling_rate=1000, return_tensors="pt")
        else:
            inputs = processor(Image.fromarray(image), return_tensors="pt")
        if name.startswith("siglip"):
            tokens = tokenizer(text.lower(), padding="max_length", truncation=True, max_length=24, return_tensors="pt")
        else:
            tokens = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            if name == "blip":  # the library returns the similarity alone: its two sides are taken with a stand-in
                states = model(**inputs, **tokens, use_itm_head=False)
                rows[0].append(model.vision_proj(states.last_hidden_state[:, 0]))
                rows[1].append(model.text_proj(states.question_embeds[:, 0]))
                expected = torch.nn.functional.cosine_similarity(rows[0][-1], rows[1][-1])
                torch.testing.assert_close(states.itm_score[0], expected)
            else:
                output = model(**inputs, **tokens)
                rows[0].append(output.audio_embeds if name == "clap" else output.image_embeds)
                rows[1].append(output.text_embeds)
    return unit(torch.cat(rows[0]).numpy()), unit(torch.cat(rows[1]).numpy())


@pytest.mark.parametrize("name", DUAL)
def test_embeddings_equal_those_of_transformers_itself(
    name: str, encoders: dict[str, Encoder], folders: dict[str, Path]
) -> None:
    encoder, images, texts = encoders[name], inputs_of(name, len(TEXTS[:5])), TEXTS[:5]
    ours = encoder.encode_images(images), encoder.encode_texts(texts)
    for found, expected in zip(ours, by_the_library(name, folders[name], images, texts), strict=True):
        assert found.dtype == np.float32 and found.shape == (5, encoder.width)
        np.testing.assert_allclose(unit(found), expected, atol=2e-6)
        assert np.linalg.matrix_rank(unit(found)) > 1  # a constant would agree with a constant


@pytest.mark.parametrize("name", ["mean", "cls", "max"])
@pytest.mark.parametrize("normalise", [True, False])
def test_sentences_are_pooled_as_their_folder_says(tmp_path: Path, name: str, normalise: bool) -> None:
    from transformers import AutoModel, AutoTokenizer

    sentences(tmp_path, name, normalise=normalise)
    found = load_encoder(str(tmp_path)).encode_texts([*TEXTS, LONG])
    model, tokenizer = AutoModel.from_pretrained(tmp_path).eval(), AutoTokenizer.from_pretrained(tmp_path)
    for row, text in zip(found, [*TEXTS, LONG], strict=True):
        tokens = tokenizer(text, truncation=True, max_length=8, return_tensors="pt")
        with torch.no_grad():
            states = model(**tokens).last_hidden_state[0].numpy()
        expected = {"mean": states.mean(0), "cls": states[0], "max": states.max(0)}[name]
        np.testing.assert_allclose(row, expected / (np.linalg.norm(expected) if normalise else 1), atol=2e-6)


def test_the_newer_format_of_sentence_encoders_is_the_same(folders: dict[str, Path], tmp_path: Path) -> None:
    copy = tmp_path / "newer"  # as sentence-transformers 6 writes it
    shutil.copytree(folders["sentences"], copy)
    modules = json.loads((copy / "modules.json").read_text())
    for module, kind in zip(modules, ("base", "sentence_transformer", "base"), strict=True):
        last = module["type"].rsplit(".", 1)[1]
        module["type"] = f"sentence_transformers.{kind}.modules.{last.lower()}.{last}"
    (copy / "modules.json").write_text(json.dumps(modules))
    (copy / "1_Pooling" / "config.json").write_text('{"embedding_dimension": 32, "pooling_mode": "mean"}')
    newer, older = load_encoder(str(copy)), load_encoder(str(folders["sentences"]))
    np.testing.assert_array_equal(newer.encode_texts(TEXTS), older.encode_texts(TEXTS))
    assert newer.identity != older.identity  # 1_Pooling/config.json is part of it


def digest_of(encoder: Encoder, name: str) -> str:
    arrays = [encoder.encode_texts(TEXTS)]
    if name in DUAL:
        arrays.append(encoder.encode_images(inputs_of(name)))
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


def test_every_run_gives_the_same_bytes(folders: dict[str, Path], encoders: dict[str, Encoder]) -> None:
    code = (
        "import sys, torch; from tests.models.test_families import digest_of; "
        "from reprolib.models.encoder import load_encoder; torch.set_num_threads(1); "
        "[print(digest_of(load_encoder(folder), folder.rsplit('/', 1)[1])) for folder in sys.argv[1:]]"
    )
    command = [sys.executable, "-c", code, *map(str, folders.values())]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert done.stdout.split() == [digest_of(encoders[name], name) for name in folders]


@pytest.mark.parametrize("name", [*DUAL, "sentences"])
def test_embeddings_do_not_depend_on_the_batch_or_on_neighbours(name: str, encoders: dict[str, Encoder]) -> None:
    encoder, texts = encoders[name], [*TEXTS[:6], LONG, LONG.upper()]
    scale = np.abs(encoder.encode_texts(texts)).max()
    for batch in (1, 3):
        small = replace(encoder, batch=batch)
        np.testing.assert_allclose(small.encode_texts(texts), encoder.encode_texts(texts), atol=2e-6 * scale)
        if name in DUAL:
            found = small.encode_images(inputs_of(name)), encoder.encode_images(inputs_of(name))
            np.testing.assert_allclose(*found, atol=2e-6 * np.abs(found[0]).max())


@pytest.mark.parametrize("name", [*DUAL, "sentences"])
def test_the_activation_is_reported_and_half_precision_is_near(name: str, encoders: dict[str, Encoder]) -> None:
    encoder = encoders[name]
    assert encoder.activation == ACTIVATIONS[name]
    exact, half = (replace(encoder, dtype=dtype).encode_texts(TEXTS) for dtype in ("float32", "bfloat16"))
    assert half.dtype == np.float32 and not np.array_equal(exact, half)
    assert (unit(exact) * unit(half)).sum(axis=1).min() > 0.99
    with pytest.raises(InputError, match="unknown dtype 'float15'; nearest valid: float16"):
        replace(encoder, dtype="float15").encode_texts(TEXTS)


def test_siglip_reads_lower_case(encoders: dict[str, Encoder]) -> None:
    texts = ["Latin Small Letter A", "GREEK capital letter beta"]
    for name in ("siglip", "siglip2"):
        lower = encoders[name].encode_texts([text.lower() for text in texts])
        np.testing.assert_array_equal(encoders[name].encode_texts(texts), lower)


@pytest.mark.parametrize("fusion", [False, True])
def test_sounds_are_cut_at_their_end_and_not_at_random(tmp_path: Path, fusion: bool) -> None:
    clap(tmp_path, fusion=fusion)
    encoder = load_encoder(str(tmp_path))
    waves = np.random.default_rng(0).normal(size=(4, 5000)).astype(np.float32)
    first = encoder.encode_images(waves)
    np.testing.assert_array_equal(encoder.encode_images(waves), first)
    np.testing.assert_array_equal(encoder.encode_images(waves[:, :2000]), first)  # two seconds at 1,000 a second
    np.testing.assert_allclose(np.concatenate([encoder.encode_images([wave]) for wave in waves]), first, atol=1e-6)
    for bad in (waves[None], (waves * 100).astype(np.int16)):
        with pytest.raises(InputError, match=r"a sound has dtype .* valid is floating-point \[samples\]"):
            encoder.encode_images(bad)


def test_a_sentence_encoder_has_no_images(encoders: dict[str, Encoder]) -> None:
    with pytest.raises(InputError, match="encodes texts alone"):
        encoders["sentences"].encode_images(inputs_of("clip"))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            "modules.json",
            '[{"type": "a.Transformer", "path": ""}, {"type": "a.Dense", "path": "1"}]',
            "Dense: valid is",
        ),
        ("1_Pooling/config.json", '{"pooling_mode_weightedmean_tokens": true}', "pooling weightedmean_tokens is not"),
        ("1_Pooling/config.json", '{"pooling_mode": ', "is not valid JSON"),
        ("sentence_bert_config.json", '{"do_lower_case": true}', "asks for lower case"),
    ],
)
def test_sentence_encoders_of_another_kind_are_refused(
    folders: dict[str, Path], tmp_path: Path, file: str, content: str, message: str
) -> None:
    shutil.copytree(folders["sentences"], tmp_path / "copy")
    (tmp_path / "copy" / file).write_text(content)
    with pytest.raises((RunError, InputError), match=message):
        load_encoder(str(tmp_path / "copy"))


def test_other_architectures_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["sentences"], tmp_path / "copy")
    (tmp_path / "copy" / "modules.json").unlink()
    with pytest.raises(RunError, match="its model_type is 'bert'; valid are clip, siglip"):
        load_encoder(str(tmp_path / "copy"))


def test_a_tokenizer_without_its_package_is_one_sentence(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(*_: object, **__: object) -> None:
        raise ImportError("\nSiglipTokenizer requires the SentencePiece library. Check out the instructions.\nAnd more")

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", absent)
    with pytest.raises(RunError) as failure:
        load_encoder(str(folders["siglip"]))
    assert str(failure.value).endswith("not installed: SiglipTokenizer requires the SentencePiece library")


@pytest.fixture
def open_clip_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "open"
    folder.mkdir()
    (folder / "open_clip_config.json").write_text('{"model_cfg": {"embed_dim": 3}, "preprocess_cfg": {}}')
    save_file({"weight": torch.ones(3)}, folder / "open_clip_model.safetensors")
    return folder


def test_open_clip_is_asked_for_where_it_is_needed(open_clip_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)  # as if it were not installed
    with pytest.raises(RunError, match="open_clip, which is not installed: 'pip install open_clip_torch' adds it"):
        load_encoder(str(open_clip_folder))


def test_a_model_of_open_clip_goes_through_its_package(open_clip_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class QuickGELU(torch.nn.Module):
        pass

    class Stub(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.activation = torch.nn.Parameter(torch.ones(3)), QuickGELU()
            self.visual = SimpleNamespace(output_dim=3)

        def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
            return pixels.mean(dim=(2, 3)) * self.weight

        def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
            return tokens.float() * self.weight

    def pixels(image: Image.Image) -> torch.Tensor:
        return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float()

    def tokens(texts: list[str]) -> torch.Tensor:
        return torch.tensor([[len(text)] * 3 for text in texts])

    asked: list[str] = []
    stub: Any = ModuleType("open_clip")
    stub.create_model_from_pretrained = lambda place: asked.append(place) or (Stub(), pixels)
    stub.get_tokenizer = lambda place: asked.append(place) or tokens
    monkeypatch.setitem(sys.modules, "open_clip", stub)
    encoder, images = load_encoder(str(open_clip_folder)), inputs_of("clip")
    assert asked == [f"local-dir:{open_clip_folder}"] * 2 and encoder.width == 3
    assert encoder.activation == {"image": "quick_gelu", "text": "quick_gelu"}
    np.testing.assert_allclose(encoder.encode_images(images), images.mean(axis=(1, 2)), rtol=1e-5)
    np.testing.assert_array_equal(encoder.encode_texts(["ab", "c"]), [[2, 2, 2], [1, 1, 1]])
    assert encoder.identity == find_model(str(open_clip_folder)).identity
