"""The dataset ``emoji``: one emoji drawn by up to four vendors, with its English label.

An image is one vendor's drawing, 64 x 64 RGB on white, as the file holds it; its text is the label of emojibase in
lower case ("grinning face"). One text has two to four images. The files come from the cache or from a mirror.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse

from reprolib.errors import InputError, nearest
from reprolib.loaders.dataset import Items
from reprolib.loaders.files import resolve
from reprolib.loaders.manifest import load_manifest

KINDS = ("emoji", "subgroup")
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
        names = {code: _clean(entry["label"]) for code, entry in _entries(labels).items()}
        with np.load(drawings, allow_pickle=False) as archive:
            images, mask, stored, vendors = (archive[key] for key in ("images", "mask", "codes", "vendors"))
        codes = [str(code).lower() for code in stored]
        by_label: dict[str, list[int]] = {}
        for row, code in enumerate(codes):
            by_label.setdefault(names[code], []).append(row)
        by_label = {label: rows for label, rows in by_label.items() if split_of(codes[rows[0]]) == split}
        text_of = {row: column for column, rows in enumerate(by_label.values()) for row in rows}
        drawn = [(row, vendor) for row in sorted(text_of) for vendor in np.flatnonzero(mask[row])]
        rows, columns = np.array(drawn, dtype=np.int64).reshape(-1, 2).T
        chosen = images[rows, columns]
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{drawings} and {labels.name} are not of the format that emoji.yaml states: {error}"
        ) from error
    relevance = scipy.sparse.csr_array(
        (np.ones(len(rows), dtype=bool), (np.arange(len(rows)), [text_of[row] for row in rows.tolist()])),
        shape=(len(rows), len(by_label)),
    )
    image_ids = np.array([f"{codes[row]}/{vendors[vendor]}" for row, vendor in drawn])
    text_ids = np.array(["+".join(codes[row] for row in group) for group in by_label.values()])
    return Items("emoji", split, chosen, list(by_label), image_ids, text_ids, relevance)


def groups(items: Items, kind: str = "emoji", mirror: str | Path | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return the group of every image and of every text, two string arrays in the order of ``items``.

    ``kind`` "emoji": the label and the drawings that stand for it, so that two images agree if they show one emoji,
    as a rule drawn by two vendors. "subgroup": emojibase's group and subgroup ("0/3"; "-" where it states none, which
    are the regional indicators); variants of one emoji (skin tones, say) share it. ``mirror`` as in ``resolve``.

    Raises InputError for an unknown kind and for items that are not of emoji, DataUnavailable where the labels are not
    at hand.
    """
    if kind not in KINDS:
        raise nearest(kind, KINDS, "kind of group of emoji")
    of_text = items.text_ids
    if kind == "subgroup":
        pairs = [(entry[0].get("group"), entry[0].get("subgroup")) for entry in _of_texts(items, mirror)]
        of_text = np.array(["-" if None in pair else f"{pair[0]}/{pair[1]}" for pair in pairs])
    return of_text[items.relevance.indices], of_text  # every image has one text


def labels(items: Items, locale: str, mirror: str | Path | None = None) -> np.ndarray:
    """Return the labels of ``items`` in another language, in lower case, a string array in the order of the texts.

    ``locale`` is one of 28, such as "de" or "zh-hant". Where several emoji share an English label, it is the label of
    the first. A model whose tokenizer and training know English alone reads most of them byte by byte, as nothing that
    it was trained for. Raises as ``groups``.
    """
    entries = [entry[0]["labels"] for entry in _of_texts(items, mirror)]
    valid = sorted(set.intersection(*(set(entry) for entry in entries)))
    if locale not in valid:
        raise nearest(locale, valid, "locale of emoji")
    return np.array([_clean(entry[locale]) for entry in entries])


def keywords(items: Items, mirror: str | Path | None = None) -> list[list[str]]:
    """Return emojibase's English tags of every text, in lower case: further words to train with.

    Raises as ``groups``.
    """
    described = _of_texts(items, mirror)
    return [[_clean(tag) for entry in entries for tag in entry.get("tags") or ()] for entries in described]


def _of_texts(items: Items, mirror: str | Path | None) -> list[list[dict[str, Any]]]:
    """Return what the file says about the emoji of every text of ``items``."""
    entries = _entries(resolve(load_manifest("emoji"), "emoji_text.json", mirror))
    codes = [str(name).split("+") for name in items.text_ids]
    unknown = next((code for group in codes for code in group if code not in entries), None)
    if unknown is not None:
        raise InputError(f"the text id {unknown!r} of {items.name} is no code of an emoji: valid are items of emoji")
    return [[entries[code] for code in group] for group in codes]


def _clean(label: object) -> str:
    return str(label).strip().lower()


def _entries(path: Path) -> dict[str, dict[str, Any]]:
    return {code.lower(): entry for code, entry in json.loads(path.read_text(encoding="utf-8")).items()}
