"""Any folder of images with a CSV of captions: columns ``image`` and ``caption``, if wanted ``split`` and ``id``.

An image is named by its path relative to the CSV, and has as many rows as captions. ``split`` is train, validation
(or val, dev, valid) or test; without that column the sha256 of the image's name decides. ``id`` names the caption.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from reprolib.errors import InputError
from reprolib.loaders.dataset import Items
from reprolib.loaders.files import root
from reprolib.loaders.manifest import Manifest, Source
from reprolib.loaders.readers import Mirror, hashed_split, items_of, reader

SPLIT_NAMES = {"train": "train", "test": "test"} | dict.fromkeys(("validation", "valid", "val", "dev"), "validation")
HASHED = "none is given: the sha256 of an image's name places it, about {} %"
_COLUMNS = ("image", "caption", "split", "id")


def is_folder_of_images(path: str) -> bool:
    """Whether ``path`` is an existing folder, or an existing CSV file."""
    place = Path(path).expanduser()
    return place.is_dir() or (place.suffix == ".csv" and place.is_file())


def describe(path: str) -> Manifest:
    """Return the manifest of a folder of images, or of its captions' CSV; InputError as the reader raises it."""
    table = _captions_of(Path(path).expanduser())
    split = "split" in _rows(table, *_state(table))[0]
    hashed = {name: HASHED.format(share) for name, share in (("train", 60), ("validation", 20), ("test", 20))}
    return Manifest(
        name=path,
        title=f"The images and captions of {table.name}",
        kind="items",
        summary="A folder of images with a CSV of captions, given by its path.",
        modalities=["image", "text"],
        licence="not stated: a folder of your own",
        access="a folder of your own",
        source=Source(),
        format="image files, and a CSV with the columns image and caption",
        reader="folder",
        row_correspondence="a caption is relevant to the image that its row names",
        counts={},
        splits=dict.fromkeys(hashed, "the column split") if split else hashed,
        known_issues=[] if split else [f"{table.name} has no column split: the sha256 of an image's name places it."],
        citation="none",
        how_to_obtain="it is your own",
        options={"path": str(table)},
    )


@reader("folder")
def read_folder(manifest: Manifest, split: str, mirror: Mirror) -> Items:
    """Return the images that the CSV puts in ``split``, with their captions.

    The CSV is ``options.path``, or ``options.captions`` (default: captions.csv) under the dataset's root. Raises
    InputError, naming file and line, for a row that is not valid and an image that is not there.
    """
    options: dict[str, Any] = manifest.options
    captions = options.get("captions", "captions.csv")
    table = Path(options["path"]) if "path" in options else root(manifest, mirror) / captions
    pictures: dict[str, Path] = {}
    texts = []
    counts: dict[str, int] = {}
    placed: dict[str, str] = {}
    for line, row in enumerate(_rows(table, *_state(table)), start=2):
        image = row["image"]
        here = _split_of(table, line, row)
        if placed.setdefault(image, here) != here:
            raise InputError(f"{table}, row {line}: {image} is in {here} and in {placed[image]}; valid is one split")
        counts[image] = counts.get(image, 0) + 1
        if here == split:
            if image not in pictures:
                pictures[image] = _existing(table, line, image)
            texts.append((row.get("id") or f"{image}#{counts[image] - 1}", image, row["caption"].strip()))
    try:
        return items_of(manifest.name, split, pictures, texts)
    except InputError as error:
        raise InputError(f"{table}: {error}") from error


def _captions_of(path: Path) -> Path:
    if path.is_file():
        return path.resolve()
    found = sorted(path.glob("*.csv"))
    named = [table for table in found if table.name == "captions.csv"] or found
    if len(named) != 1:
        what = "no CSV file" if not found else f"{len(found)} CSV files"
        raise InputError(f"{path} holds {what}; valid is a captions.csv, with the columns image and caption")
    return named[0].resolve()


def _state(table: Path) -> tuple[int, int]:
    try:
        return table.stat().st_size, table.stat().st_mtime_ns
    except OSError as error:
        raise InputError(f"{table} cannot be read: {error.strerror or error}") from error


@lru_cache(maxsize=4)
def _rows(table: Path, size: int, mtime_ns: int) -> list[dict[str, str]]:
    return list(_checked(table))


def _checked(table: Path) -> Iterator[dict[str, str]]:
    try:
        with table.open(encoding="utf-8-sig", newline="") as stream:
            rows = csv.DictReader(stream, strict=True)
            columns = rows.fieldnames or []
            if not {"image", "caption"} <= set(columns) <= set(_COLUMNS) or len(set(columns)) < len(columns):
                raise InputError(
                    f"{table}: the columns are {', '.join(columns) or 'none'}; valid are image and caption, and if "
                    "wanted split and id"
                )
            line = 1
            for line, row in enumerate(rows, start=2):
                if None in row or None in row.values() or not (row["image"] and row["caption"].strip()):
                    raise InputError(f"{table}, row {line}: valid is one value for each of {', '.join(columns)}")
                yield row
            if line == 1:
                raise InputError(f"{table} has no rows; valid is one for each caption")
    except csv.Error as error:
        raise InputError(f"{table}, row {line + 1}: this is not valid CSV ({error})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{table}: this is not UTF-8 text") from error


def _split_of(table: Path, line: int, row: dict[str, str]) -> str:
    if "split" not in row:
        return hashed_split(row["image"])
    if row["split"].strip().lower() not in SPLIT_NAMES:
        raise InputError(f"{table}, row {line}: unknown split {row['split']!r}; valid: {', '.join(SPLIT_NAMES)}")
    return SPLIT_NAMES[row["split"].strip().lower()]


def _existing(table: Path, line: int, image: str) -> Path:
    relative = PurePosixPath(image)
    if relative.is_absolute() or ".." in relative.parts:
        raise InputError(f"{table}, row {line}: {image} leads outside; valid is a path relative to the CSV's folder")
    path = table.parent / relative
    if not path.is_file():
        raise InputError(f"{table}, row {line}: there is no image {path}")
    return path
