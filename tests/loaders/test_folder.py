"""A folder of images with a CSV of captions is a dataset, given by its path."""

from __future__ import annotations

import csv
import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from reprolib.errors import InputError
from reprolib.loaders import Split, load_manifest, status
from reprolib.loaders.readers import SHARES, SPLITS, hashed_split, load_items
from reprolib.models import embed


def write(folder, rows, columns=("image", "caption", "split")):
    folder.mkdir(exist_ok=True)
    for row in rows:
        path = folder / row[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            Image.fromarray(np.full((8, 8, 3), len(row[0]), dtype=np.uint8)).save(path)
    with (folder / "captions.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([columns, *rows])
    return folder / "captions.csv"


@pytest.fixture
def folder(tmp_path):
    """Twelve images, four a split; image i of a split has i + 1 captions."""
    rows = [
        (f"{split}/{i}.png", f'picture {i}, caption {j}, "quoted"', name)
        for split, name in (("train", "train"), ("validation", " Val"), ("test", "TEST"))
        for i in range(4)
        for j in range(i + 1)
    ]
    return write(tmp_path / "mine", rows).parent


@pytest.mark.parametrize("end", ["", "captions.csv"])
def test_images_captions_and_splits(folder, end):
    path = str(folder / end)
    for split in SPLITS:
        items = load_items(path, split)
        assert items.image_ids.tolist() == [f"{split}/{i}.png" for i in range(4)]
        assert len(items.texts) == 10 and items.texts[1] == 'picture 1, caption 0, "quoted"'
        assert items.text_ids[:3].tolist() == [f"{split}/0.png#0", f"{split}/1.png#0", f"{split}/1.png#1"]
        assert items.relevance.sum(axis=1).tolist() == [1, 2, 3, 4]
        for image, name in enumerate(items.image_ids):
            relevant = [items.texts[text] for text in items.relevance[[image]].indices]
            assert all(text.startswith(f"picture {image}") for text in relevant)
            assert np.array_equal(items.images[image], np.full((8, 8, 3), len(name)))
    manifest = load_manifest(path)
    assert manifest.name == path and manifest.known_issues == [] and manifest.reader == "folder"
    assert status(path).present and status(path).where == "a folder of your own"


def test_ids_name_captions(tmp_path):
    rows = [(f"{split}.png", "a text", split, f"{split}-{j}") for split in SPLITS for j in range(2)]
    write(tmp_path / "mine", rows, ("image", "caption", "split", "id"))
    assert load_items(str(tmp_path / "mine"), "test").text_ids.tolist() == ["test-0", "test-1"]


def test_without_a_split_the_hash_places_an_image_and_it_is_said(tmp_path):
    names = [f"{i}.png" for i in range(30)]
    path = str(write(tmp_path / "mine", [(name, "a text") for name in names], ("image", "caption")))
    found = {split: load_items(path, split).image_ids.tolist() for split in SPLITS}
    assert sorted(image for images in found.values() for image in images) == sorted(names)
    for split, images in found.items():
        for image in images:
            place = int(hashlib.sha256(image.encode()).hexdigest()[:16], 16) / 16**16
            assert split == ("train" if place < 0.6 else "validation" if place < 0.8 else "test")
    manifest = load_manifest(path)
    assert "sha256" in manifest.known_issues[0] and "20 %" in manifest.splits["test"]


@given(st.text(max_size=20))
def test_a_name_has_one_split(name):
    assert hashed_split(name) in SHARES and hashed_split(name) == hashed_split(name)
    assert hashed_split(name, {"train": 0.0, "test": 3.0}) == "test"


def test_shares_come_out():
    counts = {split: sum(hashed_split(f"{i}") == split for i in range(20_000)) for split in SHARES}
    for split, share in SHARES.items():  # five standard deviations of a binomial
        assert abs(counts[split] / 20_000 - share) < 5 * (share * (1 - share) / 20_000) ** 0.5


def test_the_folder_goes_through_the_common_door(folder, monkeypatch):
    def encode(items, *_, **__):  # a model would take longer than all tests of this file
        rows = [np.eye(10, dtype=np.float32)[:n] for n in (len(items.images), len(items.texts))]
        return Split(*rows, items.relevance, items.image_ids, items.text_ids)

    monkeypatch.setattr(embed, "embed", encode)
    data = embed.load_embeddings(str(folder), "glyph-clip", bank_share=1.0)
    replicate = data.replicates[0]
    assert data.name == str(folder)
    assert [len(part.text) for part in (replicate.bank, replicate.validation, replicate.test)] == [10, 10, 10]
    assert data.captions["test/0.png#0"] == 'picture 0, caption 0, "quoted"'


@pytest.mark.parametrize(
    ("columns", "rows", "words"),
    [
        (("image", "text"), [("a.png", "x")], ["the columns are image, text", "image and caption"]),
        (("image", "caption", "splits"), [("a.png", "x", "test")], ["image, caption, splits"]),
        (("image", "caption"), [], ["has no rows"]),
        (("image", "caption"), [("a.png", "x"), ("a.png", " ")], ["row 3", "one value for each"]),
        (("image", "caption"), [("a.png",)], ["row 2", "one value for each"]),
        (("image", "caption"), [("a.png", "x", "y")], ["row 2", "one value for each"]),
        (("image", "caption", "split"), [("a.png", "x", "dave")], ["row 2", "unknown split 'dave'", "dev"]),
        (
            ("image", "caption", "split"),
            [("a.png", "x", "test"), ("a.png", "y", "train")],
            ["row 3", "a.png is in train and in test"],
        ),
        (("image", "caption", "split"), [("a.png", "x", "train")], ["no images with texts in the split test"]),
        (
            ("image", "caption", "split", "id"),
            [("a.png", "x", "test", "7"), ("a.png", "y", "test", "7")],
            ["'7'", "different id"],
        ),
    ],
)
def test_a_wrong_table_is_one_sentence_naming_file_and_row(tmp_path, columns, rows, words):
    table = write(tmp_path / "mine", rows, columns)
    with pytest.raises(InputError) as error:
        load_items(str(table), "test")
    assert all(word in str(error.value) for word in ["captions.csv", *words]), str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("image", ["/etc/hosts.png", "../a.png", "absent.png"])
def test_an_image_that_is_not_there_or_outside(folder, image):
    with (folder / "captions.csv").open("a") as stream:
        stream.write(f"{image},x,test\n")
    with pytest.raises(InputError, match=r"captions\.csv, row 32: .*" + image.replace(".", r"\.")):
        load_items(str(folder), "test")


def test_a_table_that_is_no_text(folder):
    (folder / "captions.csv").write_bytes(b"image,caption\na.png,\xff\n")
    with pytest.raises(InputError, match="not UTF-8 text"):
        load_items(str(folder), "test")
    (folder / "captions.csv").write_text('image,caption\na.png,"x\n')
    with pytest.raises(InputError, match="row 2: this is not valid CSV"):
        load_items(str(folder), "test")


def test_which_table_is_meant_is_clear(folder, tmp_path):
    (folder / "other.csv").write_text("x")
    assert len(load_items(str(folder), "test").texts) == 10  # captions.csv goes first
    (folder / "captions.csv").rename(folder / "third.csv")
    with pytest.raises(InputError, match="holds 2 CSV files"):
        load_items(str(folder), "test")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no CSV file"):
        load_items(str(tmp_path / "empty"), "test")
    with pytest.raises(InputError, match="unknown dataset"):
        load_items(str(tmp_path / "nowhere"), "test")


def test_a_byte_order_mark_does_no_harm(folder):
    table = folder / "captions.csv"
    before = load_items(str(table), "test").texts
    table.write_bytes(b"\xef\xbb\xbf" + table.read_bytes())
    assert load_items(str(table), "test").texts == before
