"""The dataset glyphs: drawn from fonts at hand, divided by character, described truly by its manifest."""

from __future__ import annotations

import itertools
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse

from reprolib.errors import InputError
from reprolib.loaders import glyphs, load_manifest
from reprolib.loaders.dataset import Items


def items_of(images: np.ndarray, owner: list[int]) -> Items:
    """Return items in which image i belongs to text ``owner[i]``."""
    relevance = scipy.sparse.csr_array(np.eye(max(owner) + 1, dtype=bool)[owner])
    texts = [f"name {column}" for column in range(max(owner) + 1)]
    return Items("toy", "test", images, texts, np.arange(len(owner)), np.arange(len(texts)), relevance)


def test_the_manifest_states_what_is_measured() -> None:
    manifest, measured = load_manifest("glyphs"), glyphs.measure()
    assert manifest.counts == measured["counts"]
    assert manifest.statistics == measured["statistics"]
    assert manifest.statistics["known_words_share"] == {"validation": 1.0, "test": 1.0}


def test_every_font_of_the_manifest_is_installed_and_names_its_licence() -> None:
    fonts = load_manifest("glyphs").fonts
    assert [font.file for font in fonts] == [path.name for path in glyphs.font_files()]
    assert all(font.licence for font in fonts)
    glyphs.check_fonts({font.file: font.sha256 for font in fonts})


@pytest.mark.parametrize("change", ["altered", "missing"])
def test_other_fonts_are_refused_by_name(tmp_path: Path, change: str) -> None:
    expected = {font.file: font.sha256 for font in load_manifest("glyphs").fonts}
    for path in glyphs.font_files():
        shutil.copy(path, tmp_path)
    victim = tmp_path / "DejaVuSerif.ttf"
    if change == "altered":
        victim.write_bytes(victim.read_bytes() + b"\0")
    else:
        victim.unlink()
    with pytest.raises(InputError, match=r"1 of 31 differ, first DejaVuSerif\.ttf"):
        glyphs.check_fonts(expected, tmp_path)


def test_splits_are_disjoint_and_hold_out_new_compositions_of_known_words() -> None:
    parts = {split: glyphs.load_glyphs(split) for split in glyphs.SPLITS}
    for first, second in itertools.combinations(parts.values(), 2):
        assert not set(first.text_ids) & set(second.text_ids)
    known = {word for text in parts["train"].texts for word in glyphs.words(text)}
    for split in ("validation", "test"):
        assert len(parts[split].texts) == glyphs.HELD_OUT
        assert all(set(glyphs.words(text)) <= known for text in parts[split].texts)
        assert not set(parts[split].texts) & set(parts["train"].texts)


def test_the_assignment_depends_on_code_points_alone() -> None:
    names = {code: glyphs.name_of(code) for code in range(0x370, 0x500) if glyphs.name_of(code)}
    forwards = glyphs.assign_splits(names, held_out=20)
    backwards = glyphs.assign_splits(dict(reversed(names.items())), held_out=20)
    assert forwards == backwards
    assigned = list(forwards.values())
    assert assigned.count("test") == assigned.count("validation") == 20


def test_an_item_is_a_character_with_its_name() -> None:
    test = glyphs.load_glyphs("test")
    assert test.images.dtype == np.uint8 and test.images.shape[1:] == (glyphs.SIZE, glyphs.SIZE)
    assert test.images.reshape(len(test.images), -1).max(axis=1).min() > 0
    assert (np.diff(test.relevance.indptr) == 1).all()
    for row in (0, 1234, -1):
        code, face = test.image_ids[row].split("/")
        column = test.relevance[[row]].indices[0]
        assert test.text_ids[column] == code
        assert test.texts[column] == glyphs.name_of(int(code[2:], 16))
        assert face in {path.stem for path in glyphs.font_files()}


def test_drawing_is_deterministic_and_keeps_the_height_above_the_baseline() -> None:
    from PIL import ImageFont

    path = glyphs.font_folder() / "DejaVuSans.ttf"

    def draw(character: str) -> np.ndarray:
        return glyphs.draw(ord(character), {}, lambda size: ImageFont.truetype(str(path), size))

    np.testing.assert_array_equal(draw("g"), draw("g"))
    rows = {character: np.flatnonzero(draw(character).any(axis=1)) for character in ",'gH\u2014"}
    assert rows[","][0] > rows["'"][-1]
    assert rows["g"][-1] > rows["H"][-1] == glyphs.BASELINE - 1
    assert np.flatnonzero(draw("\ufdfa").any(axis=0)).size <= glyphs.SIZE  # wider than the picture: made to fit


def test_drawn_once_and_again_when_the_cache_is_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    tiny = glyphs.Glyphs(np.ones((2, 32, 32), np.uint8), np.array([65, 66], np.int32), np.zeros(2, np.int16))
    monkeypatch.setenv("REPROLIB_CACHE", str(tmp_path))
    monkeypatch.setattr(glyphs, "draw_all", lambda: drawn.append(1) or tiny)
    load = glyphs.all_glyphs.__wrapped__  # without the memory of this process
    for _ in range(2):
        np.testing.assert_array_equal(load().images, tiny.images)
    assert len(drawn) == 1
    (path,) = (tmp_path / "glyphs").iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    np.testing.assert_array_equal(load().codes, tiny.codes)
    assert len(drawn) == 2


def test_the_duplicate_bounds_equal_an_exhaustive_oracle() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        owner = [0, 1, 2, *rng.integers(0, 3, 4).tolist()]
        pictures = rng.integers(0, 3, len(owner))
        images = np.broadcast_to(pictures[:, None, None], (len(owner), 2, 2)).astype(np.uint8)
        found = glyphs.known_duplicates(items_of(images, owner))
        best = max(
            sum(answer[picture] == text for picture, text in zip(pictures, owner, strict=True))
            for answer in itertools.product(range(3), repeat=3)
        )
        assert found["oracle_r1_image_to_text"] == pytest.approx(100 * best / len(owner), abs=1e-3)
        # from text to image: one image of each picture comes first, and a text may pick any picture
        firsts = itertools.product(*(np.flatnonzero(pictures == value) for value in np.unique(pictures)))
        hits = max(len({owner[row] for row in chosen}) for chosen in firsts)
        assert found["oracle_r1_text_to_image"] == pytest.approx(100 * hits / 3, abs=1e-3)


def test_an_unknown_split_names_the_valid_ones() -> None:
    with pytest.raises(InputError, match="nearest valid: test"):
        glyphs.load_glyphs("tset")


def test_groups_are_characters_or_scripts_with_their_kind() -> None:
    items = glyphs.load_glyphs("test")
    of_image, of_text = glyphs.groups(items)
    assert of_text.tolist() == items.text_ids.tolist()
    assert of_image.tolist() == [name.split("/")[0] for name in items.image_ids]
    of_image, of_text = glyphs.groups(items, "script and kind")
    for name, text, group in zip(items.text_ids, items.texts, of_text, strict=True):
        script, category = group.split()
        assert text.startswith(script) and category == unicodedata.category(chr(int(name[2:], 16)))
        if text.startswith("greek small letter"):
            assert group == "greek Ll"
    assert of_image.tolist() == of_text[items.relevance.indices].tolist()
    with pytest.raises(InputError, match="unknown kind of group of glyphs 'charcter'; nearest valid: character"):
        glyphs.groups(items, "charcter")
    with pytest.raises(InputError, match="is no code point: valid are items of glyphs"):
        glyphs.groups(items_of(np.zeros((2, 4, 4), np.uint8), [0, 1]))
