"""The files of emoji, made from miniatures of their public sources."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from reprolib.cli import main
from reprolib.errors import InputError
from reprolib.loaders.emoji_build import VENDORS, build

COLOURS = {"twemoji": "#ff0000", "noto": "#00ff00", "openmoji": "#0000ff", "blob": "#000000"}


@pytest.fixture
def sources(tmp_path: Path) -> tuple[Path, Path]:
    """Two checkouts: 1F600 by all vendors, a variant 1F600-1F3FB by two, 1F601 by one alone, 1F602 not square."""
    svgmoji, emojibase = tmp_path / "svgmoji", tmp_path / "emojibase"
    for number, vendor in enumerate(VENDORS):
        folder = svgmoji / "packages" / f"svgmoji__{vendor}" / "svg"
        folder.mkdir(parents=True)
        codes = {"1F600": (36, 36)} | ({"1F600-1F3FB": (36, 36), "1F602": (72, 36)} if number < 2 else {})
        for code, (width, height) in (codes | ({"1F601": (36, 36)} if not number else {})).items():
            (folder / f"{code}.svg").write_text(
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">'
                f'<rect x="{width // 2}" width="{width // 2}" height="{height}" fill="{COLOURS[vendor]}"/></svg>'
            )
    for locale, words in {"en": ("Grin", "Beam", "Joy"), "de": ("Grinsen", "Strahlen", "Freude")}.items():
        folder = emojibase / "packages" / "data" / locale
        folder.mkdir(parents=True)
        entries = [
            {"hexcode": code, "label": label, "tags": ["face"], "group": 0, "subgroup": 1}
            for code, label in zip(("1F600", "1F601", "1F602"), words, strict=True)
        ]
        entries[0]["skins"] = [{"hexcode": "1F600-1F3FB", "label": f"{words[0]}: light"}]
        (folder / "data.raw.json").write_text(json.dumps(entries), encoding="utf-8")
    folder = emojibase / "packages" / "data" / "fr"  # does not label all
    folder.mkdir()
    (folder / "data.raw.json").write_text(json.dumps([{"hexcode": "1F600", "label": "sourire"}]), encoding="utf-8")
    return svgmoji, emojibase


def test_what_two_vendors_draw_is_taken_on_white_with_its_labels(sources: tuple[Path, Path], tmp_path: Path) -> None:
    pictures, described = build(*sources, tmp_path / "out")
    with np.load(pictures, allow_pickle=False) as found:
        assert found["codes"].tolist() == ["1F600", "1F600-1F3FB", "1F602"] and found["vendors"].tolist() == [*VENDORS]
        assert found["mask"].tolist() == [[True] * 4, [True, True, False, False], [True, True, False, False]]
        assert found["images"].shape == (3, 4, 64, 64, 3) and found["images"].dtype == np.uint8
        assert found["images"][0, :, 32, 48].tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255], [0, 0, 0]]
        assert (found["images"][0, :, 32, 16] == 255).all() and not found["images"][1, 2].any()
        assert found["images"][2, 0, 32, 48].tolist() == [255, 0, 0] and (found["images"][2, 0, 4, 48] == 255).all()
    texts = json.loads(described.read_text(encoding="utf-8"))
    assert texts["1F600-1F3FB"] == {
        "label": "Grin: light", "tags": ["face"], "group": 0, "subgroup": 1,
        "labels": {"de": "Grinsen: light", "en": "Grin: light"},
    }  # fmt: skip
    before = [path.read_bytes() for path in (pictures, described)]
    assert [path.read_bytes() for path in build(*sources, tmp_path / "out")] == before


def test_the_command_says_how_the_files_compare(sources, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["data", "build-emoji", *map(str, sources), "--out", str(tmp_path / "out")])
    assert not stop.value.code
    assert capsys.readouterr().out.count("differs from") == 2


def test_folders_that_are_no_checkouts_and_broken_drawings_are_named(sources, tmp_path: Path) -> None:
    svgmoji, emojibase = sources
    with pytest.raises(InputError, match="valid is a checkout of svgmoji/svgmoji"):
        build(emojibase, emojibase, tmp_path / "out")
    with pytest.raises(InputError, match="valid is a checkout of milesj/emojibase"):
        build(svgmoji, svgmoji, tmp_path / "out")
    (svgmoji / "packages" / "svgmoji__noto" / "svg" / "1F600.svg").write_text("no drawing")
    with pytest.raises(InputError, match=r"1F600\.svg cannot be drawn"):
        build(svgmoji, emojibase, tmp_path / "out")
    assert not (tmp_path / "out").exists()
