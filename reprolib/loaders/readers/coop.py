"""Class sets as CoOp lays them out, with its fixed splits (KaiyangZhou/CoOp, DATASETS.md and datasets/*.py).

``coop``: a list of [path, label, class name] per split in one JSON file. ``aircraft``: the lists that FGVC-Aircraft
ships with. ``imagenet``: a folder per class; what CoOp tests on is the published validation set.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from reprolib.errors import DataUnavailable, InputError
from reprolib.loaders.manifest import Manifest
from reprolib.loaders.readers.classes import Listing, Row, class_reader, option, part_of_train, table

PUBLISHED = {"train": "train", "validation": "val", "test": "test"}


@class_reader("coop")
def coop(manifest: Manifest, root: Path, split: str) -> Listing:
    """List the images of ``split_zhou_*.json``: {"train": [[path, label, name], ...], "val": ..., "test": ...}."""
    path = root / option(manifest, "split_file")
    try:
        parts = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataUnavailable(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8 text") from error
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {error.lineno}: this is not valid JSON ({error.msg})") from error
    if not isinstance(parts, dict) or not all(isinstance(parts.get(part), list) for part in PUBLISHED.values()):
        raise InputError(f"{path}: valid is an object with the lists train, val and test")
    names: dict[str, str] = {}
    rows: list[Row] = []
    for part, entries in parts.items():
        for number, entry in enumerate(entries):
            where = f"{path.name}, {part}, entry {number} (counting from 0)"
            match entry:
                case [str(image), int(label), str(name)]:
                    if names.setdefault(str(label), name) != name:
                        raise InputError(
                            f"{where}: class {label} is called {name!r} here and {names[str(label)]!r} before"
                        )
                case _:
                    raise InputError(f"{where}: {json.dumps(entry)} is not [path, label, class name]")
            if part == PUBLISHED[split]:
                rows.append(Row(image, str(label), where))
    return Listing(root / option(manifest, "images"), rows, dict(sorted(names.items(), key=lambda item: int(item[0]))))


@class_reader("aircraft")
def aircraft(manifest: Manifest, root: Path, split: str) -> Listing:
    """List the images of ``images_variant_<split>.txt``, whose lines are the number of an image and its variant."""
    data = root / option(manifest, "data")
    names = {name: name for _, (name,) in table(data / "variants.txt", 1)}
    rows = [
        Row(f"{image}.jpg", variant, where)
        for where, (image, variant) in table(data / f"images_variant_{PUBLISHED[split]}.txt", 2)
    ]
    return Listing(data / "images", rows, names)


@class_reader("imagenet")
def imagenet(manifest: Manifest, root: Path, split: str) -> Listing:
    """List ``images/train`` and, as the test split, ``images/val``; validation is a share of train."""
    names = {folder: name for _, (folder, name) in table(root / "classnames.txt", 2)}
    published = "val" if split == "test" else "train"
    rows = [
        Row(f"{published}/{folder}/{image}", folder, f"the folder images/{published}")
        for folder in _names(root / "images" / published, of_folders=True)
        for image in _names(root / "images" / published / folder, of_folders=False)
    ]
    if not rows:
        raise InputError(f"{root / 'images' / published} holds no image; valid is one folder of images per class")
    return Listing(root / "images", part_of_train(manifest, rows, split), names)


def _names(folder: Path, of_folders: bool) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(
                entry.name for entry in entries if entry.is_dir() == of_folders and not entry.name.startswith(".")
            )
    except OSError as error:
        raise DataUnavailable(f"{folder} cannot be read: {error.strerror or error}") from error
