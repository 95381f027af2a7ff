"""Make the files of ``emoji`` from their public sources: checkouts of svgmoji/svgmoji and milesj/emojibase.

svgmoji holds ``packages/svgmoji__<vendor>/svg/<code>.svg``, emojibase ``packages/data/<locale>/data.raw.json``. Another
renderer, or another version of one, gives other pixels: the drawings are the same, the hash of the file is not.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from reprolib.errors import InputError, RunError
from reprolib.loaders.json_file import read_json

VENDORS = ("twemoji", "noto", "openmoji", "blob")
SIZE = 64
FEWEST = 2  # vendors that draw an emoji which is taken


def build(svgmoji: Path, emojibase: Path, out: Path) -> tuple[Path, Path]:
    """Write ``emoji64.npz`` and ``emoji_text.json`` into ``out``, both or none, and return their paths.

    Taken are the emoji with an English label that at least two vendors draw, in the order of their codes: 64 x 64 RGB
    on white, and labels in every locale that has one for each of them. Raises InputError for folders that are not such
    checkouts and for a drawing that is no SVG, RunError without the package ``resvg-py``.
    """
    try:
        from resvg_py import svg_to_bytes
    except ImportError as error:
        raise RunError("drawings are rendered with resvg-py: pip install 'reprolib[svg]'") from error
    drawn = {vendor: _drawings(svgmoji, vendor) for vendor in VENDORS}
    labels = _labels(emojibase)
    english = labels.pop("en", None)
    if english is None:
        raise InputError(
            f"{emojibase} holds no packages/data/en/data.raw.json; valid is a checkout of milesj/emojibase"
        )
    codes = sorted(code for code in english if sum(code in found for found in drawn.values()) >= FEWEST)
    if not codes:
        raise InputError(f"no emoji of {emojibase} is drawn by {FEWEST} vendors in {svgmoji}")
    images = np.zeros((len(codes), len(VENDORS), SIZE, SIZE, 3), dtype=np.uint8)
    mask = np.zeros(images.shape[:2], dtype=bool)
    for column, vendor in enumerate(VENDORS):
        for row, code in enumerate(codes):
            if code in drawn[vendor]:
                images[row, column], mask[row, column] = _rendered(svg_to_bytes, drawn[vendor][code]), True
    whole = {"en": english} | {name: found for name, found in labels.items() if found.keys() >= set(codes)}
    texts = {
        code: {key: english[code].get(key) for key in ("label", "tags", "group", "subgroup")}
        | {"labels": {name: found[code]["label"] for name, found in sorted(whole.items())}}
        for code in codes
    }
    out.mkdir(parents=True, exist_ok=True)
    pictures, described = out / "emoji64.npz", out / "emoji_text.json"
    partial = [path.with_name(f".{path.name}.{os.getpid()}.part") for path in (pictures, described)]
    try:
        with partial[0].open("wb") as stream:
            np.savez_compressed(stream, images=images, mask=mask, codes=np.array(codes), vendors=np.array(VENDORS))
        partial[1].write_text(json.dumps(texts, ensure_ascii=False), encoding="utf-8")
        for source, target in zip(partial, (pictures, described), strict=True):
            os.replace(source, target)
    finally:
        for path in partial:
            path.unlink(missing_ok=True)
    return pictures, described


def _drawings(svgmoji: Path, vendor: str) -> dict[str, Path]:
    folder = svgmoji / "packages" / f"svgmoji__{vendor}" / "svg"
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}; valid is a checkout of svgmoji/svgmoji")
    return {path.stem: path for path in folder.glob("*.svg")}


def _labels(emojibase: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Return per locale what it says of every emoji, variants of skin among them, by code."""
    found = {}
    for path in sorted(emojibase.glob("packages/data/*/data.raw.json")):
        entries = {entry["hexcode"]: entry for entry in _flat(read_json(path.read_bytes(), path)) if "label" in entry}
        found[path.parent.name] = entries
    return found


def _flat(entries: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for entry in entries:
        yield entry
        for variant in entry.get("skins", ()):
            yield {key: entry[key] for key in ("tags", "group", "subgroup") if key in entry} | variant


def _rendered(svg_to_bytes: Any, path: Path) -> np.ndarray:
    from PIL import Image

    try:
        png = bytes(svg_to_bytes(svg_path=str(path), width=SIZE, height=SIZE, background="#ffffff"))
        image = Image.open(io.BytesIO(png)).convert("RGB")
    except (ValueError, OSError, RuntimeError) as error:
        raise InputError(f"{path} cannot be drawn: {str(error).splitlines()[0]}") from error
    whole = Image.new("RGB", (SIZE, SIZE), "white")  # a drawing that is not square leaves a margin
    whole.paste(image, ((SIZE - image.width) // 2, (SIZE - image.height) // 2))
    return np.asarray(whole)
