"""The committed model is the one that its manifest describes, and is worth what the manifest says."""

from __future__ import annotations

from pathlib import Path

import pytest

from reprolib.loaders.glyphs import load_glyphs
from reprolib.models import find_model, load_model_manifest
from reprolib.models.embed import embed
from reprolib.models.release import LIMIT, measure
from reprolib.models.training import Training

DIRECTIONS = ("image->text", "text->image")


def test_the_files_are_those_of_the_manifest_and_small() -> None:
    manifest, found = load_model_manifest("glyph-clip"), find_model("glyph-clip")
    assert set(manifest.files or {}) == {path.name for path in found.folder.iterdir()}
    assert (found.folder / "model.safetensors").stat().st_size < LIMIT


def test_the_manifest_says_how_it_was_trained() -> None:
    record = load_model_manifest("glyph-clip").training
    settings = Training(**record["settings"])
    steps, losses, validation = zip(*record["curve"]["rows"], strict=True)
    assert list(steps) == sorted(steps) and steps[-1] == settings.steps
    assert losses[-1] < losses[0] and validation[-1] > validation[0]
    assert {"parameters", "wall_time_minutes", "code", "packages", "device", "threads"} <= set(record)


def test_the_measured_numbers_come_out_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded, items = load_model_manifest("glyph-clip").measured["test"], load_glyphs("test")
    monkeypatch.setenv("REPROLIB_CACHE", str(tmp_path))  # an empty cache: the weights are really used
    again = measure(embed(items, find_model("glyph-clip")))
    for direction in DIRECTIONS:
        for metric in ("R@1", "R@10"):
            assert again[direction][metric] == pytest.approx(recorded[direction][metric], abs=0.1)
        assert again[direction]["skewness"] == pytest.approx(recorded[direction]["skewness"], abs=0.05)
    assert again["modality_gap"] == pytest.approx(recorded["modality_gap"], abs=1e-3)


def test_the_target_on_held_out_characters_is_met() -> None:
    recorded = load_model_manifest("glyph-clip").measured["test"]
    for direction in DIRECTIONS:
        assert recorded[direction]["R@1"] > 30
        assert recorded[direction]["R@10"] > 70
