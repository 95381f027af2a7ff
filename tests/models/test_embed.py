"""Embeddings are computed once, and never taken for those of something else."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from reprolib import paths
from reprolib.errors import DataUnavailable, InputError
from reprolib.loaders import emoji, glyphs
from reprolib.loaders.dataset import Items
from reprolib.loaders.manifest import load_manifest
from reprolib.loaders.pictures import PictureFiles
from reprolib.loaders.store import digest, write_arrays
from reprolib.models import embed as embed_module
from reprolib.models import encoder, load_embeddings
from reprolib.models.embed import embed, share_of_texts
from reprolib.models.extract import bad_images, ingredients, part, without_bad_images
from reprolib.models.registry import ModelFiles, find_model
from tests.loaders.conftest import build_mirror
from tests.models.conftest import make_items
from tests.models.kills import MOMENTS


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


def test_every_changed_ingredient_is_a_miss_and_named(
    items: Items, mini_clip: Path, tmp_path: Path, loads: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    other = tmp_path / "other"
    shutil.copytree(mini_clip, other)
    config = json.loads((other / "config.json").read_text())
    config["vision_config"]["hidden_act"] = "gelu"
    (other / "config.json").write_text(json.dumps(config))
    tilted = tmp_path / "tilted"
    shutil.copytree(mini_clip, tilted)
    preprocessor = (tilted / "preprocessor_config.json").read_text()
    (tilted / "preprocessor_config.json").write_text(preprocessor.replace("0.48145466", "0.5"))
    heavier = tmp_path / "heavier"
    shutil.copytree(mini_clip, heavier)
    weights = load_file(heavier / "model.safetensors")
    weights["logit_scale"] += 1
    save_file(weights, heavier / "model.safetensors", metadata={"format": "pt"})
    model = find_model(str(mini_clip))
    names = items.image_ids.copy()
    names[0] = "another"
    variants: list[tuple[Items, ModelFiles, str, str | None]] = [
        (items, model, "float32", None),
        (items, find_model(str(heavier)), "float32", "model.safetensors of the model"),
        (items, find_model(str(tilted)), "float32", "preprocessor_config.json of the model"),
        (items, find_model(str(other)), "float32", "activation of the model, config.json of the model"),
        (items, model, "bfloat16", "dtype"),
        (replace(items, images=items.images ^ 1), model, "float32", "images"),
        (replace(items, texts=["changed", *items.texts[1:]]), model, "float32", "texts"),
        (replace(items, image_ids=names), model, "float32", "image ids"),
    ]
    for number, (changed, files, dtype, differs) in enumerate(variants, start=1):
        caplog.clear()
        with caplog.at_level(logging.INFO, "reprolib"):
            embed(changed, files, dtype=dtype)
        assert len(loads) == number
        assert (differs is None) == ("differs in" not in caplog.text)
        assert differs is None or f"differs in: {differs}\n" in caplog.text
    embed(replace(items, split="test", name="alias"), model)  # a name decides no embedding
    assert len(loads) == len(variants)


@pytest.mark.parametrize("kind", ["image", "text"])
def test_permuted_ids_are_an_error(items: Items, mini_clip: Path, loads: list[str], kind: str) -> None:
    model = find_model(str(mini_clip))
    embed(items, model)
    ids = getattr(items, f"{kind}_ids")
    permuted = replace(items, **{f"{kind}_ids": np.roll(ids, 1)})
    with pytest.raises(InputError, match=f"toy, train: the {kind} ids stand in another order than in the stored"):
        embed(permuted, model)
    # items in another order, each with its own id, are merely other rows
    rows = np.random.default_rng(0).permutation(len(items.images))
    moved = embed(part(items, rows, np.arange(len(items.texts))), model)
    np.testing.assert_allclose(moved.image, embed(items, model).image[rows], atol=1e-5)
    assert list(moved.image_ids) == list(items.image_ids[rows])


@pytest.mark.parametrize("damage", ["truncated", "altered", "foreign"])
def test_a_damaged_file_is_computed_again_with_a_notice(
    items: Items, mini_clip: Path, tmp_path: Path, loads: list[str], damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = find_model(str(mini_clip))
    first = np.array(embed(items, model).text)
    (path,) = (tmp_path / "cache" / "embeddings").glob("*.safetensors")
    content = path.read_bytes()
    if damage == "foreign":  # whole, but written for another key
        write_arrays(path, {"image": np.ones((48, 16), np.float32), "text": np.ones((24, 16), np.float32)}, "another")
    else:
        path.write_bytes(content[:-9] if damage == "truncated" else content[:-1] + bytes([content[-1] ^ 64]))
    with caplog.at_level(logging.WARNING):
        again = embed(items, model)
    assert len(loads) == 2 and f"{path} are damaged" in caplog.text
    np.testing.assert_array_equal(again.text, first)
    assert path.read_bytes() == content


def test_an_entry_says_what_it_is_made_of(items: Items, mini_clip: Path, tmp_path: Path, loads: list[str]) -> None:
    model = find_model(str(mini_clip))
    split = embed(items, model)
    (path,) = (tmp_path / "cache" / "embeddings").glob("*.json")
    entry = json.loads(path.read_text())
    assert (entry["model"], entry["dataset"], entry["split"]) == (str(mini_clip), "toy", "train")
    assert entry["ingredients"] == ingredients(items, model) and digest(entry["ingredients"]) == path.stem
    assert entry["ingredients"]["dtype"] == "float32"
    assert entry["ingredients"]["activation of the model"] == "quick_gelu quick_gelu"
    assert isinstance(split.image.base, np.memmap)  # as it lies in the file, not a copy


def test_a_killed_extraction_loses_at_most_one_batch(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.models.kills", str(tmp_path)]
    root = Path(__file__).parents[2]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    whole, *resumed = found["alone"]
    batches = 15
    assert whole["computed"] == batches and whole["end"] is None
    for (number, seen), run in zip(MOMENTS, resumed, strict=True):
        assert run["end"] == -signal.SIGKILL and run["code"] == 0
        kept = number + (seen == "after")  # files that had appeared when it was killed
        assert run["left"] == min(kept, batches)
        assert run["computed"] == (batches - kept if kept <= batches else 0)  # a batch at most is done twice
        assert run["digest"] == whole["digest"]
        assert set(run["entries"]) - {".part"} == {".json", ".safetensors"}  # what it was writing may stay
    assert found["codes"] == [0, 0, 0] and found["entries"] == [".json", ".safetensors"]
    assert {run["digest"] for run in found["together"]} == {whole["digest"]}


@pytest.fixture
def picture_items(items: Items, tmp_path: Path) -> Items:
    """Return items whose pictures are files, of which three cannot be decoded; two of them share a text."""
    (tmp_path / "pictures").mkdir()
    files = [tmp_path / "pictures" / f"{row}.png" for row in range(len(items.images))]
    for path, image in zip(files, items.images, strict=True):
        Image.fromarray(image).save(path)
    for row in (4, 5, 10):
        files[row].write_bytes(files[row].read_bytes()[:60])
    return replace(items, images=PictureFiles(files))


def test_bad_images_are_listed_and_fatal(picture_items: Items, mini_clip: Path, loads: list[str]) -> None:
    with pytest.raises(InputError, match="toy, train: 3 of 48 images cannot be decoded: train image 4 ") as failure:
        embed(picture_items, find_model(str(mini_clip)))
    for row in (4, 5, 10):
        assert f"train image {row} (" in str(failure.value) and f"{row}.png is not a whole picture" in str(
            failure.value
        )
    assert loads == []  # before anything was encoded


def test_bad_images_are_left_out_by_choice(picture_items: Items, mini_clip: Path, loads: list[str]) -> None:
    kept, notes = without_bad_images(picture_items)
    assert len(kept.images) == 45 and len(kept.texts) == 23 and "train text 2" not in kept.text_ids
    assert not {"train image 4", "train image 5", "train image 10"} & set(kept.image_ids)
    (note,) = notes
    assert note.endswith("left out, with 1 texts that have no other image")
    split = embed(kept, find_model(str(mini_clip)))
    assert split.image.shape == (45, 16) and (np.abs(split.image).sum(axis=1) > 0).all()
    with pytest.raises(InputError, match="nothing is left"):
        without_bad_images(part(picture_items, np.array([4, 5]), np.array([2])))
    assert without_bad_images(kept) == (kept, [])


def test_bad_images_are_found_once(picture_items: Items, loads: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    found = bad_images(picture_items.images)
    monkeypatch.setattr(PictureFiles, "__getitem__", None)
    assert bad_images(picture_items.images) == found and set(found) == {4, 5, 10}


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


def test_a_dataset_that_is_only_listed_is_not_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = load_manifest("emoji").model_copy(update={"name": "listed", "reader": None})
    monkeypatch.setattr(embed_module, "load_manifest", lambda name: listed)
    with pytest.raises(InputError, match="listed is listed, but nothing in this package reads its items"):
        load_embeddings("listed")


def test_folds_of_the_test_split_are_replicates(
    toy_glyphs: None, mini_clip: Path, loads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folded = load_manifest("glyphs").model_copy(update={"options": {"folds": 3}})
    monkeypatch.setattr(embed_module, "load_manifest", lambda name: folded)
    data = load_embeddings("glyphs", str(mini_clip))
    assert [replicate.label for replicate in data.replicates] == [f"fold {n} of 3" for n in (1, 2, 3)]
    assert [len(replicate.test.image) for replicate in data.replicates] == [16, 16, 16]
    assert len({name for replicate in data.replicates for name in replicate.test.image_ids}) == 48
    assert all(replicate.bank is data.replicates[0].bank for replicate in data.replicates)


@pytest.fixture
def folder_of_images(tmp_path: Path) -> Path:
    """Return a folder with a captions.csv: 18 images, of which one of the test split is cut short."""
    items, folder = make_items(9), tmp_path / "own"
    folder.mkdir()
    rows = ["image,caption,split"]
    for row, image in enumerate(items.images):
        Image.fromarray(image).save(folder / f"{row}.png")
        text = items.texts[items.relevance[[row]].indices[0]]
        rows.append(f"{row}.png,{text} {row},{('train', 'validation', 'test')[row % 3]}")
    (folder / "captions.csv").write_text("\n".join(rows) + "\n")
    (folder / "5.png").write_bytes((folder / "5.png").read_bytes()[:60])
    return folder


def test_a_folder_of_ones_own_is_a_dataset(folder_of_images: Path, mini_clip: Path, loads: list[str]) -> None:
    with pytest.raises(InputError, match=r"1 of 6 images cannot be decoded: 5\.png"):
        load_embeddings(str(folder_of_images), str(mini_clip), bank_share=0.5)
    data = load_embeddings(str(folder_of_images), str(mini_clip), bank_share=0.5, on_bad_image="skip", dtype="bfloat16")
    (replicate,) = data.replicates
    assert list(replicate.test.image_ids) == ["2.png", "8.png", "11.png", "14.png", "17.png"]
    assert any("5.png" in note and "left out, with 1 texts" in note for note in data.notes)
    assert data.pictures is not None and "5.png" not in data.pictures
    exact = load_embeddings(str(folder_of_images), str(mini_clip), bank_share=0.5, on_bad_image="skip")
    assert exact.identity != data.identity
    assert not np.array_equal(exact.replicates[0].test.image, replicate.test.image)
    np.testing.assert_allclose(exact.replicates[0].test.image, replicate.test.image, atol=0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dataset": "glyfs"}, "unknown dataset 'glyfs'; nearest valid: glyphs"),
        ({"dataset": "glyphs", "model": "glyph-clib"}, "unknown model 'glyph-clib'"),
        ({"dataset": "glyphs", "bank_source": "trian"}, "unknown bank source 'trian'; nearest valid: train"),
        ({"dataset": "glyphs", "bank_share": 0.0}, "bank_share 0.0 is not valid"),
        ({"dataset": "glyphs", "seed": -1}, "seed -1 is not valid"),
        ({"dataset": "glyphs", "on_bad_image": "skipp"}, "unknown value of on_bad_image 'skipp'; nearest valid: skip"),
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
