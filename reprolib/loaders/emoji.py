"""The dataset ``emoji``: one emoji drawn by up to four vendors, with its English label.

An image is one vendor's drawing, 64 x 64 RGB on white, as the file holds it; its text is the label of emojibase in
lower case ("grinning face"). One text has two to four images. The files come from the cache or from a mirror.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np
import scipy.sparse

from reprolib.errors import InputError, nearest
from reprolib.loaders.dataset import Items
from reprolib.loaders.files import resolve
from reprolib.loaders.manifest import load_manifest

SHARES = {"train": 0.6, "validation": 0.2, "test": 0.2}  # expected shares: an emoji is placed on its own
SPLITS = tuple(SHARES)


def split_of(code: str) -> str:
    """Return the split of a code ("1f600"), a function of a hash of the code and of nothing else."""
    place = int.from_bytes(hashlib.sha256(f"emoji {code}".encode()).digest()[:8]) / 2**64
    bounds = np.cumsum(list(SHARES.values()))[:-1]
    return SPLITS[int(np.searchsorted(bounds, place, side="right"))]


def load_emoji(split: str, mirror: str | Path | None = None) -> Items:
    """Return the items of ``split`` ("train", "validation", "test").

    Images are uint8 [n, 64, 64, 3], the drawings that the file's mask marks as existing. Codes are lower-case
    ("1f600"); image ids add the vendor ("1f600/noto"). Emoji whose labels agree in lower case are one text, relevant
    to the drawings of all of them: its id joins their codes by "+", and the first code decides the split. ``mirror``
    as in ``resolve``. Nothing is unpickled.

    Raises InputError for an unknown split and for files that are not of the manifest's format, DataUnavailable where
    the files are not at hand.
    """
    if split not in SPLITS:
        raise nearest(split, SPLITS, "split of emoji")
    manifest = load_manifest("emoji")
    drawings, labels = (resolve(manifest, name, mirror) for name in ("emoji64.npz", "emoji_text.json"))
    try:
        names = {code.lower(): str(entry["label"]).strip().lower() for code, entry in _json(labels).items()}
        with np.load(drawings, allow_pickle=False) as archive:
            images, mask, stored, vendors = (archive[key] for key in ("images", "mask", "codes", "vendors"))
        codes = [str(code).lower() for code in stored]
        groups: dict[str, list[int]] = {}
        for row, code in enumerate(codes):
            groups.setdefault(names[code], []).append(row)
        groups = {label: rows for label, rows in groups.items() if split_of(codes[rows[0]]) == split}
        text_of = {row: column for column, rows in enumerate(groups.values()) for row in rows}
        drawn = [(row, vendor) for row in sorted(text_of) for vendor in np.flatnonzero(mask[row])]
        rows, columns = np.array(drawn, dtype=np.int64).reshape(-1, 2).T
        chosen = images[rows, columns]
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{drawings} and {labels.name} are not of the format that emoji.yaml states: {error}"
        ) from error
    relevance = scipy.sparse.csr_array(
        (np.ones(len(rows), dtype=bool), (np.arange(len(rows)), [text_of[row] for row in rows.tolist()])),
        shape=(len(rows), len(groups)),
    )
    image_ids = np.array([f"{codes[row]}/{vendors[vendor]}" for row, vendor in drawn])
    text_ids = np.array(["+".join(codes[row] for row in group) for group in groups.values()])
    return Items("emoji", split, chosen, list(groups), image_ids, text_ids, relevance)


def _json(path: Path) -> dict[str, dict[str, object]]:
    return json.loads(path.read_text(encoding="utf-8"))
