"""The dataset emoji: read from verified files, divided by code, described truly by its manifest."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from reprolib import paths
from reprolib.errors import DataUnavailable, InputError
from reprolib.loaders import Items, emoji, load_manifest, status
from reprolib.loaders.files import resolve
from reprolib.loaders.glyphs import known_duplicates
from reprolib.loaders.store import file_digest
from tests.loaders.conftest import Mirror, build_mirror


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a mirror that holds the miniature, also where the real one is at hand."""
    monkeypatch.delenv("REPROLIB_MIRROR", raising=False)
    monkeypatch.setenv("REPROLIB_CACHE", str(tmp_path / "no cache"))
    build_mirror(tmp_path / "small", tmp_path / "small manifests")
    monkeypatch.setattr(paths, "manifests", lambda: tmp_path / "small manifests")
    return tmp_path / "small"


@pytest.fixture
def described(small: Path) -> Path:
    """Return the miniature with groups, tags and labels in two more languages; emoji i is of subgroup i mod 4."""
    path = small / "emoji" / "emoji_text.json"
    entries = json.loads(path.read_text(encoding="utf-8"))
    for row, entry in enumerate(entries.values()):
        entry |= {"group": 1, "subgroup": row % 4, "tags": [f"Tag {row}", "all"]}
        entry["labels"] = {"de": f"Gesicht {row}", "fr": f"visage {row}"} | ({"et": "nägu"} if row else {})
    first = next(iter(entries.values()))
    first |= {"group": None, "subgroup": None, "tags": None}
    path.write_text(json.dumps(entries), encoding="utf-8")
    description = paths.manifests() / "datasets" / "emoji.yaml"
    stated = yaml.safe_load(description.read_text(encoding="utf-8"))
    stated["files"][1]["sha256"] = file_digest(path)
    description.write_text(yaml.safe_dump(stated), encoding="utf-8")
    return small


def parts_of(mirror: Path) -> dict[str, Items]:
    return {split: emoji.load_emoji(split, mirror) for split in emoji.SPLITS}


def test_an_image_is_a_drawing_that_exists_with_the_label_of_its_emoji(small: Path) -> None:
    parts = parts_of(small)
    assert sum(len(part.images) for part in parts.values()) == 4 * 40 - 8
    assert sum(len(part.texts) for part in parts.values()) == 39
    vendors = ["twemoji", "noto", "openmoji", "blob"]
    for part in parts.values():
        assert part.images.dtype == np.uint8 and part.images.shape[1:] == (8, 8, 3)
        pairs = part.relevance.tocoo()
        for row, column in zip(*pairs.coords, strict=True):
            code, vendor = part.image_ids[row].split("/")
            number = int(code, 16) - 0x1F600
            assert (part.images[row] == 4 * number + vendors.index(vendor)).all()
            assert code in part.text_ids[column].split("+")
            assert part.texts[column] == ("face 2" if number == 3 else f"face {number}")
            assert number % 5 or vendor != "noto"


def test_emoji_that_share_a_label_are_one_text_with_the_drawings_of_both(small: Path) -> None:
    (part,) = (part for part in parts_of(small).values() if "face 2" in part.texts)
    column = part.texts.index("face 2")
    assert part.text_ids[column] == "1f602+1f603"
    assert part.relevance[:, [column]].sum() == 8
    assert emoji.split_of("1f602") == part.split


def test_a_code_alone_decides_its_split_in_the_stated_shares() -> None:
    assert [emoji.split_of(code) for code in ("1f600", "1f601", "1f602")] == list(emoji.SPLITS)
    found = [emoji.split_of(f"{code:x}") for code in range(20_000)]
    assert {split: found.count(split) / 20_000 for split in emoji.SPLITS} == pytest.approx(emoji.SHARES, abs=0.01)


def test_splits_share_no_emoji_and_come_out_the_same_again(mirror: Mirror) -> None:
    parts = parts_of(mirror.path)
    for first, second in itertools.combinations(parts.values(), 2):
        assert not set(first.text_ids) & set(second.text_ids)
        assert not set(first.texts) & set(second.texts)
    again = emoji.load_emoji("test", mirror.path)
    np.testing.assert_array_equal(again.images, parts["test"].images)
    assert list(again.image_ids) == list(parts["test"].image_ids)


def test_the_manifest_states_what_is_measured(mirror: Mirror) -> None:
    manifest, parts = load_manifest("emoji"), parts_of(mirror.path)
    stated = manifest.statistics["splits"]
    assert sum(row["images"] for row in stated.values()) == manifest.counts["images"]
    assert sum(row["texts"] for row in stated.values()) == manifest.counts["texts"]
    if mirror.real:
        assert stated == {split: measured(part) for split, part in parts.items()}


def measured(part: Items) -> dict[str, float | int]:
    """Count images, texts and blank pictures, and bound what an oracle that sees only pictures can reach."""
    bounds = known_duplicates(part)
    blank = int((part.images.reshape(len(part.images), -1).min(axis=1) == 255).sum())
    shared = bounds["images_shared_with_another_character"]
    counts = {"images": len(part.images), "texts": len(part.texts), "blank_images": blank}
    oracle = {name: value for name, value in bounds.items() if name.startswith("oracle")}
    return counts | {"images_shared_with_another_emoji": shared} | oracle


def test_where_nothing_has_the_files_the_way_to_obtain_them_is_named(small: Path) -> None:
    with pytest.raises(DataUnavailable, match=r"emoji/emoji64\.npz .* to obtain it: the rendered arrays"):
        emoji.load_emoji("test")
    assert status("emoji").where == "must be obtained by hand"
    assert status("emoji", small).present


@pytest.mark.parametrize("damage", ["objects", "other arrays", "other codes"])
def test_files_of_another_format_are_refused_and_never_unpickled(small: Path, damage: str) -> None:
    path = resolve(load_manifest("emoji"), "emoji64.npz", small)
    with np.load(path) as archive:
        arrays = dict(archive)
    changed = {
        "objects": arrays | {"codes": arrays["codes"].astype(object)},
        "other arrays": {"pictures": arrays["images"]},
        "other codes": arrays | {"codes": np.char.add(arrays["codes"], "-FE0F")},
    }
    np.savez(path, **changed[damage])
    with pytest.raises(InputError, match="not the file that the manifest names"):
        emoji.load_emoji("test", small)
    description = paths.manifests() / "datasets" / "emoji.yaml"
    stated = yaml.safe_load(description.read_text(encoding="utf-8"))
    stated["files"][0]["sha256"] = file_digest(path)
    description.write_text(yaml.safe_dump(stated), encoding="utf-8")
    with pytest.raises(InputError, match=r"emoji64\.npz and emoji_text\.json are not of the format"):
        emoji.load_emoji("test", small)


def test_an_unknown_split_names_the_valid_ones() -> None:
    with pytest.raises(InputError, match="nearest valid: test"):
        emoji.load_emoji("tset")


def test_groups_are_those_of_the_emoji_that_is_drawn(described: Path) -> None:
    for part in parts_of(described).values():
        of_image, of_text = emoji.groups(part, "emoji", described)
        assert of_text.tolist() == part.text_ids.tolist()
        match = of_image[:, None] == of_text[None, :]
        np.testing.assert_array_equal(match, part.relevance.toarray())
        of_image, of_text = emoji.groups(part, "subgroup", described)
        for name, codes in zip(of_text, part.text_ids, strict=True):
            number = int(codes.split("+")[0], 16) - 0x1F600
            assert name == (f"1/{number % 4}" if number else "-")
        for name, image in zip(of_image, part.image_ids, strict=True):
            first = part.text_ids[[image.split("/")[0] in codes.split("+") for codes in part.text_ids]][0].split("+")[0]
            assert name == (f"1/{(int(first, 16) - 0x1F600) % 4}" if first != "1f600" else "-")


def test_labels_and_keywords_stand_in_the_order_of_the_texts(described: Path) -> None:
    for part in parts_of(described).values():
        numbers = [[int(code, 16) - 0x1F600 for code in codes.split("+")] for codes in part.text_ids]
        assert emoji.labels(part, "de", described).tolist() == [f"gesicht {codes[0]}" for codes in numbers]
        wanted = [[tag for row in codes if row for tag in (f"tag {row}", "all")] for codes in numbers]
        assert emoji.keywords(part, described) == wanted


def test_what_is_no_group_locale_or_emoji_is_named(described: Path) -> None:
    part = next(part for part in parts_of(described).values() if "1f600" in part.text_ids)
    with pytest.raises(InputError, match="unknown kind of group of emoji 'subgruop'; nearest valid: subgroup"):
        emoji.groups(part, "subgruop", described)
    for locale in ("dee", "et"):  # the second is missing from one emoji
        with pytest.raises(InputError, match=f"unknown locale of emoji '{locale}'; nearest valid: "):
            emoji.labels(part, locale, described)
    foreign = Items("toy", "test", part.images, part.texts, part.image_ids, part.text_ids + "z", part.relevance)
    with pytest.raises(InputError, match="z' of toy is no code of an emoji"):
        emoji.keywords(foreign, described)


def test_the_true_file_names_28_locales_and_a_subgroup_of_nearly_every_emoji(mirror: Mirror) -> None:
    part = emoji.load_emoji("test", mirror.path)
    names = emoji.groups(part, "subgroup", mirror.path)[1]
    if mirror.real:
        assert (names != "-").mean() > 0.97 and len(set(names)) > 50
        with pytest.raises(InputError, match="unknown locale of emoji 'xx'"):
            emoji.labels(part, "xx", mirror.path)
        german = emoji.labels(part, "de", mirror.path)
        assert german.shape == (len(part.texts),) and (german != np.array(part.texts)).mean() > 0.9
    else:
        assert set(names) == {"-"}
