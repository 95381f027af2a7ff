"""The mirror that loader tests read: the real one if it is at hand, else a miniature of its format."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import yaml

from reprolib import paths


class Mirror(NamedTuple):
    path: Path
    real: bool


def miniature(n: int = 12) -> np.ndarray:
    """Return float32 [2, n, 2 n]: images e_i, texts 0.6 e_i + 0.8 e_last, with statistics known by hand."""
    pairs = np.zeros((2, n, 2 * n), dtype=np.float32)
    rows = np.arange(n)
    pairs[0, rows, rows] = 1
    pairs[1, rows, rows] = 0.6
    pairs[1, :, -1] = 0.8
    return pairs


def miniature_emoji(folder: Path, n: int = 40, size: int = 8) -> None:
    """Write ``n`` emoji in the format of the true files; two share a label, and vendors leave some undrawn.

    Emoji i has the code 1F600 + i, the pixels 4 i + j in the drawing of vendor j, and no drawing by noto if i is
    a multiple of 5.
    """
    numbers = np.arange(4 * n, dtype=np.uint8).reshape(n, 4)
    mask = np.ones((n, 4), dtype=bool)
    mask[::5, 1] = False
    codes = [f"{0x1F600 + row:X}" for row in range(n)]
    np.savez_compressed(
        folder / "emoji64.npz",
        images=np.where(mask, numbers, 0)[:, :, None, None, None] * np.ones((size, size, 3), dtype=np.uint8),
        mask=mask,
        codes=np.array(codes),
        vendors=np.array(["twemoji", "noto", "openmoji", "blob"]),
    )
    labels = {code: {"label": f"Face {row}", "tags": [], "labels": {}} for row, code in enumerate(codes)}
    labels[codes[3]]["label"] = "face 2"
    (folder / "emoji_text.json").write_text(json.dumps(labels), encoding="utf-8")


def build_mirror(folder: Path, manifests: Path) -> None:
    """Write the miniature of every dataset that a loader reads, and manifests that name its hashes."""
    (manifests / "datasets").mkdir(parents=True)
    for source in sorted((paths.manifests() / "datasets").glob("*.yaml")):
        manifest = yaml.safe_load(source.read_text(encoding="utf-8"))
        if manifest["name"] == "emoji":
            (folder / "emoji").mkdir(parents=True)
            miniature_emoji(folder / "emoji")
        for entry in manifest.get("files", []):
            path = folder / manifest.get("folder", manifest["name"]) / entry["name"]
            path.parent.mkdir(parents=True, exist_ok=True)
            if entry.get("role") == "features":
                np.save(path, miniature())
            elif entry.get("role") == "captions":
                notes = [
                    {"image_id": 50 - i, "id": 100 * j + i, "caption": f"picture {i}, caption {j} "}
                    for j in range(2)
                    for i in range(20)
                ]
                path.write_text(json.dumps({"annotations": notes}), encoding="utf-8")
            elif not path.exists():
                path.write_bytes(b"not read by any loader")
            entry["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
            entry["bytes"] = path.stat().st_size
        text = yaml.safe_dump(manifest, allow_unicode=True)
        (manifests / "datasets" / source.name).write_text(text, encoding="utf-8")


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mirror:
    """A mirror that holds every dataset that a loader reads; the cache is empty, and ``REPROLIB_MIRROR`` is unset."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "mirror"
    place = Path(os.environ.get("REPROLIB_MIRROR") or beside)
    monkeypatch.delenv("REPROLIB_MIRROR", raising=False)
    monkeypatch.setenv("REPROLIB_CACHE", str(tmp_path / "cache"))
    if place.is_dir():
        return Mirror(place, True)
    build_mirror(tmp_path / "mirror", tmp_path / "manifests")
    monkeypatch.setattr(paths, "manifests", lambda: tmp_path / "manifests")
    return Mirror(tmp_path / "mirror", False)
