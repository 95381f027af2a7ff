"""The committed emoji-clip is the one that its manifest describes, and is worth what the manifest says."""

from __future__ import annotations

from pathlib import Path

import pytest

from reprolib.errors import DataUnavailable
from reprolib.loaders.emoji import load_emoji
from reprolib.models import find_model, load_model_manifest
from reprolib.models.embed import embed
from reprolib.models.encoder import load_encoder
from reprolib.models.release import measure
from reprolib.models.training import Training

NAME = "emoji-clip"


def test_the_files_are_those_of_the_manifest_and_small() -> None:
    manifest, found = load_model_manifest(NAME), find_model(NAME)
    assert set(manifest.files or {}) == {path.name for path in found.folder.iterdir()}
    assert (found.folder / "model.safetensors").stat().st_size < 6_000_000


def test_the_manifest_says_how_it_was_trained() -> None:
    record = load_model_manifest(NAME).training
    settings = Training(**record["settings"])
    steps, losses, validation = zip(*record["curve"]["rows"], strict=True)
    assert list(steps) == sorted(steps) and steps[-1] == settings.steps
    assert losses[-1] < losses[0] and validation[-1] > validation[0]
    assert record["dataset"] == "emoji, train split"


def test_the_measured_numbers_come_out_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = load_model_manifest(NAME).measured["test"]
    assert recorded["image->text"]["R@1"] > 10 and recorded["text->image"]["R@1"] > 10  # chance is 0.14
    try:
        items = load_emoji("test")
    except DataUnavailable:  # the drawings are in a mirror alone; what is committed still has to load
        encoder = load_encoder(NAME)
        assert encoder.encode_texts(["grinning face"]).shape == (1, encoder.model.config.projection_dim)
        return
    monkeypatch.setenv("REPROLIB_CACHE", str(tmp_path))  # an empty cache: the weights are really used
    again = measure(embed(items, find_model(NAME)))
    for direction in ("image->text", "text->image"):
        for metric in ("R@1", "R@10"):
            assert again[direction][metric] == pytest.approx(recorded[direction][metric], abs=0.15)
        assert again[direction]["skewness"] == pytest.approx(recorded[direction]["skewness"], abs=0.05)
    assert again["modality_gap"] == pytest.approx(recorded["modality_gap"], abs=1e-3)
