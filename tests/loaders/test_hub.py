"""Datasets of the hub: parquet files in its true form, read in place, pictures decoded when asked for."""

from __future__ import annotations

import io
import json

import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from huggingface_hub.errors import LocalEntryNotFoundError
from PIL import Image

from reprolib import paths
from reprolib.errors import DataUnavailable, InputError
from reprolib.loaders import load_manifest, status
from reprolib.loaders.readers import SPLITS, hub, load_items
from reprolib.loaders.readers.hub import Cell

FACTS = {
    "name": "remote", "title": "t", "kind": "items", "summary": "s", "modalities": ["image", "text"],
    "licence": "MIT", "access": "a", "source": {}, "files": [], "format": "parquet", "reader": "hub",
    "row_correspondence": "r", "counts": {}, "splits": {}, "citation": "c", "how_to_obtain": "ask the hub",
}  # fmt: skip
OPTIONS = {"repository": "someone/remote", "splits": {split: split for split in SPLITS}}


def encoded(value, kind="PNG"):
    stream = io.BytesIO()
    Image.fromarray(np.full((5, 7, 3), value, dtype=np.uint8)).save(stream, kind)
    return stream.getvalue()


def write_parquet(path, captions, values, *, struct=True, group=3, **columns):
    """Write rows as the hub's tools do: an image is a struct of bytes and path, and the features are in the schema."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": encoded(value), "path": f"{value}.png"} if struct else encoded(value) for value in values]
    table = pa.table(
        {
            "image": pa.array(
                images, pa.struct([("bytes", pa.binary()), ("path", pa.string())]) if struct else pa.binary()
            ),
            "text": captions,
            **columns,
        }
    )
    features = {"info": {"features": {"image": {"_type": "Image"}}}}
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(features)}), path, row_group_size=group)


@pytest.fixture
def state(tmp_path, monkeypatch):
    """Return a function that states the dataset's options; its mirror is tmp_path/mirror."""
    monkeypatch.setenv("REPROLIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("REPROLIB_MIRROR", str(tmp_path / "mirror"))
    (tmp_path / "mirror" / "remote").mkdir(parents=True)
    (tmp_path / "manifests" / "datasets").mkdir(parents=True)
    monkeypatch.setattr(paths, "manifests", lambda: tmp_path / "manifests")

    def write(**options):
        text = yaml.safe_dump(FACTS | {"options": OPTIONS | options})
        (tmp_path / "manifests" / "datasets" / "remote.yaml").write_text(text)
        return tmp_path / "mirror" / "remote"

    return write


def fill(folder):
    """Two files of train and one of each other split, in the two layouts that the hub uses."""
    write_parquet(folder / "data/train-00000-of-00002.parquet", list("abcd"), range(4))
    write_parquet(folder / "data/train-00001-of-00002.parquet", list("ef"), range(4, 6))
    write_parquet(folder / "data/validation-00000-of-00001.parquet", list("gh"), range(6, 8))
    write_parquet(folder / "default/test/0000.parquet", [["i", "j"], ["k"]], range(8, 10))


def test_splits_captions_and_pictures(state):
    fill(state())
    train, validation, test = (load_items("remote", split) for split in SPLITS)
    assert train.texts == list("abcdef") and validation.texts == ["g", "h"] and test.texts == ["i", "j", "k"]
    assert [picture[0, 0, 0] for picture in train.images] == list(range(6))
    assert train.images[5].shape == (5, 7, 3) and test.relevance.toarray().tolist() == [[1, 1, 0], [0, 0, 1]]
    assert train.image_ids[3] == "data/train-00000-of-00002.parquet/3"
    assert test.text_ids.tolist() == [f"default/test/0000.parquet/{name}" for name in ("0#0", "0#1", "1#0")]
    assert status("remote").present and status("remote").where == "mirror"


def test_pictures_are_read_when_asked_for(state, monkeypatch):
    fill(state())
    read = []
    monkeypatch.setattr(hub, "_group", lambda path, column, group, *_: read.append((path.name, group)) or {0: None})
    items = load_items("remote", "train")
    assert read == []
    with pytest.raises(AttributeError):
        items.images[3]
    assert read == [("train-00000-of-00002.parquet", 1)]


def test_the_digest_is_of_the_pictures_not_of_their_packing(state):
    folder = state()
    fill(folder)
    digest = load_items("remote", "train").images.digest()
    for path in folder.glob("data/train-*"):
        path.unlink()
    write_parquet(folder / "data/train-00000-of-00001.parquet", list("abcdef"), range(6), struct=False, group=100)
    assert load_items("remote", "train").images.digest() == digest
    write_parquet(folder / "data/train-00000-of-00001.parquet", list("abcdef"), [0, 1, 2, 3, 4, 9])
    assert load_items("remote", "train").images.digest() != digest


def test_columns_are_mapped_and_rows_of_one_id_are_one_image(state):
    folder = state(image="picture", text="caption", id="key", split="part", splits={})
    path = folder / "all.parquet"
    write_parquet(
        path, list("abcde"), [1, 1, 2, 3, 4], key=[10, 10, 20, 30, 40], part=["train", "train", "dev", "test", "val"]
    )
    pq.write_table(pq.read_table(path).rename_columns(["picture", "caption", "key", "part"]), path)
    train = load_items("remote", "train")
    assert train.texts == ["a", "b"] and train.image_ids.tolist() == ["10"]
    assert train.text_ids.tolist() == ["10#0", "10#1"]
    assert load_items("remote", "validation").texts == ["c", "e"] and load_items("remote", "test").texts == ["d"]


@pytest.mark.parametrize("splits", [{"test": "whole"}, {"train": "whole", "test": "last"}])
def test_a_split_that_is_not_published_is_a_hashed_share(state, splits):
    folder = state(splits=splits)
    write_parquet(folder / "data/whole-0.parquet", [f"text {i}" for i in range(60)], range(60), group=20)
    write_parquet(folder / "data/last-0.parquet", ["z"], [99])
    found = {split: load_items("remote", split) for split in SPLITS}
    if "train" in splits:
        assert found["test"].texts == ["z"]
    ours = [text for items in found.values() for text in items.texts if text != "z"]
    assert sorted(ours) == sorted(f"text {i}" for i in range(60))
    assert len(found["train"].texts) > len(found["validation"].texts) > 0


def test_a_pattern_names_files(state):
    folder = state(splits={split: f"other/*{split}.parquet" for split in SPLITS})
    for split in SPLITS:
        write_parquet(folder / f"other/my-{split}.parquet", [split], [1])
        write_parquet(folder / f"data/{split}-0.parquet", ["not this"], [1])
    assert [load_items("remote", split).texts for split in SPLITS] == [[split] for split in SPLITS]


def test_what_is_not_at_hand_is_fetched_once(state, tmp_path, monkeypatch):
    state(revision="abc")
    asked = []

    def fetch(repository, *, repo_type, revision, allow_patterns, local_dir):
        asked.append((repository, repo_type, revision))
        assert {"test-*.parquet", "*/test-*.parquet", "*/test/*.parquet"} <= set(allow_patterns)
        (local_dir / ".cache").mkdir(parents=True)
        fill(local_dir)

    assert status("remote").where == "can be fetched" and not status("remote").present
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert [len(load_items("remote", split).texts) for split in SPLITS] == [6, 2, 3]
    assert asked == [("someone/remote", "dataset", "abc")]
    assert status("remote").where == "cache"
    (tmp_path / "cache/datasets/remote/.fetched").unlink()  # as if the download had been killed
    assert not status("remote").present


def test_a_hub_that_does_not_deliver_says_how_to_obtain(state, monkeypatch):
    state()

    def fail(*_, **__):
        raise LocalEntryNotFoundError("no connection\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(DataUnavailable, match=r"someone/remote \(no connection\); to obtain it: ask the hub"):
        load_items("remote", "test")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: None)
    with pytest.raises(InputError, match=r"no file test-\*\.parquet"):
        load_items("remote", "test")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"repository": 3}, ["remote.yaml", "options.repository"]),
        ({"revison": "a"}, ["remote.yaml", "options.revison"]),
        ({"splits": {"train": "train", "validation": "validation"}}, ["options.splits", "train, validation"]),
        ({"image": "picture"}, ["no column 'picture'", "its columns are image, text"]),
        ({"text": "caption"}, ["no column 'caption'"]),
        ({"text": "image"}, ["row 0", "a text or a list of texts"]),
    ],
)
def test_wrong_options_are_named(state, options, words):
    fill(state(**options))
    with pytest.raises(InputError) as error:
        load_items("remote", "test")
    assert all(word in str(error.value) for word in words), str(error.value)


def test_broken_files_and_pictures_are_named(state):
    folder = state()
    fill(folder)
    path = folder / "default/test/0000.parquet"
    table = pq.read_table(path)
    images = [{"bytes": b"no picture", "path": "x"}, {"bytes": None, "path": "y"}]
    pq.write_table(table.set_column(0, "image", pa.array(images, table.schema.field("image").type)), path)
    test = load_items("remote", "test")
    with pytest.raises(InputError, match=r"0000\.parquet, row group 0, row 0 is not a whole picture"):
        test.images[0]
    with pytest.raises(InputError, match=r"row group 0, row 1: the column image holds no encoded picture"):
        test.images[1]
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"0000\.parquet is not a whole parquet file"):
        load_items("remote", "test")


def test_an_unknown_split_in_a_column_is_named(state):
    folder = state(split="part", splits={})
    write_parquet(folder / "all.parquet", ["a"], [1], part=["restval"])
    with pytest.raises(InputError, match="unknown split 'restval'"):
        load_items("remote", "train")


def test_the_manifest_is_a_manifest(state):
    state()
    assert load_manifest("remote").options["repository"] == "someone/remote"
    assert str(Cell(paths.root() / "a.parquet", "image", 2, 3)).endswith("a.parquet, row group 2, row 3")
