"""Images of classes: the items are the images of a split, and one text for each class among them.

A format says where its images are listed (``Listing``); what is the same for all of them is here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from reprolib.errors import DataUnavailable, InputError, nearest
from reprolib.loaders.dataset import Items
from reprolib.loaders.files import root
from reprolib.loaders.manifest import Manifest
from reprolib.loaders.pictures import PictureFiles
from reprolib.loaders.readers import SPLITS, Mirror, Search, completed, hashed_split, reader


class Row(NamedTuple):
    """An image in a list: ``path`` under the folder of the images, ``label`` of its class, ``where`` it is listed."""

    path: str
    label: str
    where: str


@dataclass(frozen=True)
class Listing:
    """The images of a split: ``rows`` of files in ``folder``, and the name of every class by its label."""

    folder: Path
    rows: Sequence[Row]
    names: Mapping[str, str]


def class_reader(name: str) -> Callable[[Callable[[Manifest, Path, str], Listing]], None]:
    """Enter a format in the registry: a function of manifest, root folder and split that returns a ``Listing``.

    Where the manifest has the option ``search`` (``queries`` and ``gallery``, both lists of splits), the test split
    holds the images of all these splits, and its images are searched as the option says. With the option ``dataset``
    the files, and all options that are not stated, are those of another manifest.
    """

    def enter(listing: Callable[[Manifest, Path, str], Listing]) -> None:
        def read(manifest: Manifest, split: str, mirror: Mirror) -> Items:
            whole = completed(manifest)
            place = root(whole, mirror)
            parts = [listing(whole, place, part) for part in _parts(whole, split)]
            rows = {row: None for part in parts for row in part.rows}  # a split may be named twice
            names = {label: name for part in parts for label, name in part.names.items()}
            return _items(whole, split, parts[0].folder, list(rows), names)

        def search(manifest: Manifest, items: Items, modality: str, mirror: Mirror) -> Search | None:
            whole = completed(manifest)
            if modality != "image" or items.split != "test" or "search" not in whole.options:
                return None
            place = root(whole, mirror)
            sides = (
                {row.path for part in whole.options["search"][side] for row in listing(whole, place, part).rows}
                for side in ("queries", "gallery")
            )
            return _search(items, *sides)

        reader(name, search=search)(read)

    return enter


def _parts(manifest: Manifest, split: str) -> list[str]:
    if split != "test" or "search" not in manifest.options:
        return [split]
    parts = [part for side in ("queries", "gallery") for part in manifest.options["search"][side]]
    for part in parts:
        if part not in SPLITS:
            raise nearest(part, SPLITS, f"split in the options of {manifest.name}.yaml")
    return parts


def _search(items: Items, queries: set[str], gallery: set[str]) -> Search:
    rows = [np.flatnonzero([image in side for image in items.image_ids.tolist()]) for side in (queries, gallery)]
    classes = items.relevance.astype(np.int32)
    same = sparse.coo_array(classes[rows[0]] @ classes[rows[1]].T)
    itself = rows[0][same.row] == rows[1][same.col]

    def pairs(chosen: np.ndarray) -> sparse.csr_array:
        ones = np.ones(int(chosen.sum()), dtype=bool)
        return sparse.csr_array((ones, (same.row[chosen], same.col[chosen])), shape=same.shape)

    return Search(rows[0], rows[1], {"item": pairs(~itself)}, {"item": pairs(itself)})


def _items(manifest: Manifest, split: str, folder: Path, rows: Sequence[Row], names: Mapping[str, str]) -> Items:
    for path, label, where in rows:
        if label not in names:
            raise InputError(f"{where}: no class is called {label!r}; valid are the {len(names)} classes of the set")
        if not _inside(path):
            raise InputError(f"{where}: {path!r} is not a path below {folder}; valid is a relative path without ..")
        if not os.path.isfile(f"{folder}/{path}"):  # a million of them: pathlib is too slow
            raise InputError(f"{where}: the image {folder / path} is not there; unpack the archive again")
    images = PictureFiles([folder / row.path for row in rows])
    return labelled(manifest, split, images, [row.path for row in rows], [row.label for row in rows], names)


def _inside(path: str) -> bool:
    parts = PurePosixPath(path)
    return not parts.is_absolute() and ".." not in parts.parts and "\\" not in path


def labelled(
    manifest: Manifest,
    split: str,
    images: PictureFiles | np.ndarray,
    ids: Sequence[str],
    labels: Sequence[str],
    names: Mapping[str, str],
) -> Items:
    """Return ``images`` with one text for each class that occurs in ``labels`` [n], in the order of ``names``.

    The text is the option ``template`` with the name of the class in it, underscores read as blanks; its id is the
    label. Raises InputError for a split without images.
    """
    if not len(labels):
        raise InputError(f"{manifest.name} has no image in its split {split!r}; valid is at least one")
    occur = set(labels)
    column = {label: index for index, label in enumerate(name for name in names if name in occur)}
    template = option(manifest, "template")
    relevance = sparse.csr_array(
        (np.ones(len(labels), dtype=bool), (np.arange(len(labels)), [column[label] for label in labels])),
        shape=(len(labels), len(column)),
    )
    texts = [template.format(names[label].replace("_", " ")) for label in column]
    return Items(manifest.name, split, images, texts, np.array(ids), np.array(list(column)), relevance)


def option(manifest: Manifest, key: str) -> Any:
    """Return an option of the reader; InputError where the manifest does not state it."""
    if key not in manifest.options:
        raise InputError(f"{manifest.name}.yaml, field options: the reader {manifest.reader} needs {key!r}")
    return manifest.options[key]


def in_part(key: str, split: str, validation: float) -> bool:
    """Return whether ``key``, published as training data, is in ``split``, "train" or "validation", by its hash."""
    return hashed_split(key, {"validation": validation, "train": 1 - validation}) == split


def part_of_train(manifest: Manifest, rows: Iterable[Row], split: str, by: str = "path") -> list[Row]:
    """Return the published training rows that are in ``split``; all of them where the split is "test".

    The option ``validation_share`` is held out, by the hash of the ``path``, or of the ``label`` where classes stay
    whole.
    """
    share = option(manifest, "validation_share")
    return [row for row in rows if split == "test" or in_part(getattr(row, by), split, share)]


def table(path: Path, columns: int) -> Iterator[tuple[str, list[str]]]:
    """Yield "file, line n" and the fields of every line that is not blank; blanks part them, all but in the last.

    Raises InputError, naming file and line, for a line with fewer than ``columns`` fields, and for bytes that are not
    UTF-8; DataUnavailable for a file that is not there.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8 text") from error
    except OSError as error:
        raise DataUnavailable(f"{path} cannot be read: {error.strerror or error}") from error
    for number, line in enumerate(lines, start=1):
        fields = line.split(maxsplit=columns - 1)
        if fields and len(fields) < columns:
            raise InputError(f"{path.name}, line {number}: {line!r} has {len(fields)} of {columns} fields")
        if fields:
            yield f"{path.name}, line {number}", [field.strip() for field in fields]
