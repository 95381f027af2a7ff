"""Readers of raw items, one module per format; importing the registry imports them all.

A reader takes a manifest, so that one format serves every dataset that is stored in it. To add a format: a module
here with a function under ``@reader(...)``, and its test. To add a dataset in a known format: its YAML file.
"""

from __future__ import annotations

import hashlib
import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from scipy import sparse

from reprolib.errors import InputError, nearest
from reprolib.loaders.dataset import Items
from reprolib.loaders.manifest import Manifest, load_manifest
from reprolib.loaders.pictures import Picture, PictureFiles

SPLITS = ("train", "validation", "test")
SHARES = {"train": 0.6, "validation": 0.2, "test": 0.2}
Mirror = str | Path | None
Groups = Mapping[str, tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Search:
    """How the items of one modality are searched with items of the same modality, where it is not all against all.

    ``queries`` int64 [q] and ``gallery`` int64 [g] are rows of the items. ``relevance`` bool CSR [q, g] per grouping
    ("easy", "medium", "hard", say); ``junk`` of the same shape names what is left out of a query's ranking.
    """

    queries: np.ndarray
    gallery: np.ndarray
    relevance: Mapping[str, sparse.csr_array]
    junk: Mapping[str, sparse.csr_array]


@dataclass(frozen=True)
class Reader:
    """A format: ``read`` gives the items of a split.

    ``groups`` gives per grouping a string label for every image and every text (items that share one are relevant to
    each other within their modality); without it the connected components of the relevance are the one grouping.
    ``search`` gives the protocol of a modality ("image", "text"), or None for all against all without the query.
    """

    name: str
    read: Callable[[Manifest, str, Mirror], Items]
    groups: Callable[[Manifest, Items, Mirror], Groups] | None = None
    search: Callable[[Manifest, Items, str, Mirror], Search | None] | None = None


READERS: dict[str, Reader] = {}


def reader(
    name: str,
    *,
    groups: Callable[[Manifest, Items, Mirror], Groups] | None = None,
    search: Callable[[Manifest, Items, str, Mirror], Search | None] | None = None,
) -> Callable[[Callable[[Manifest, str, Mirror], Items]], Callable[[Manifest, str, Mirror], Items]]:
    """Enter a function of manifest, split and mirror that returns ``Items`` in the registry."""

    def enter(function: Callable[[Manifest, str, Mirror], Items]) -> Callable[[Manifest, str, Mirror], Items]:
        READERS[name] = Reader(name, function, groups, search)
        return function

    return enter


@cache
def readers() -> Mapping[str, Reader]:
    """Return all readers by name."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return READERS


def reader_of(manifest: Manifest) -> Reader:
    """Return the reader of a dataset of raw items; InputError where the manifest names none, or none that exists."""
    if manifest.kind != "items" or manifest.reader is None:
        raise InputError(f"the dataset {manifest.name} is listed, but nothing in this package reads its items")
    if manifest.reader not in readers():
        raise nearest(manifest.reader, readers(), f"reader in {manifest.name}.yaml")
    return readers()[manifest.reader]


def completed(manifest: Manifest) -> Manifest:
    """Return a manifest that shares the files of another one (``options.dataset``) with those files and options."""
    if "dataset" not in manifest.options:
        return manifest
    source = load_manifest(manifest.options["dataset"])
    update = {
        "name": manifest.name,
        "folder": source.place,
        "files": [*source.files, *manifest.files],
        "options": source.options | manifest.options,
    }
    return source.model_copy(update=update)


def hashed_split(name: str, shares: Mapping[str, float] = SHARES) -> str:
    """Return the split of an item that its publisher puts in none: by the sha256 of its name, in these shares."""
    place = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) / 2**64 * sum(shares.values())
    for split, share in shares.items():
        place -= share
        if place < 0:
            return split
    return next(reversed(shares))  # only where rounding leaves nothing else


def items_of(
    name: str,
    split: str,
    pictures: Mapping[str, str | Path | Picture],
    texts: Sequence[tuple[str, str, str]],
) -> Items:
    """Return items of pictures by image id, and ``texts`` as (text id, image id, text), one image for each text.

    Raises InputError for a split without items, and as ``Items`` does.
    """
    if not pictures or not texts:
        raise InputError(f"{name} has no images with texts in the split {split}; valid is at least one")
    rows = {image: row for row, image in enumerate(pictures)}
    relevance = sparse.csr_array(
        (np.ones(len(texts), dtype=bool), ([rows[image] for _, image, _ in texts], range(len(texts)))),
        shape=(len(pictures), len(texts)),
    )
    text_ids = np.array([text_id for text_id, _, _ in texts])
    captions = [text for _, _, text in texts]
    return Items(
        name, split, PictureFiles(list(pictures.values())), captions, np.array(list(pictures)), text_ids, relevance
    )


def load_items(name: str, split: str, mirror: Mirror = None) -> Items:
    """Return the items of a split ("train", "validation", "test") of the dataset ``name``.

    ``name`` is that of a manifest, or the path of a folder of images (see ``readers.folder``).

    Raises InputError for unknown names and for files that are not of the manifest's format, DataUnavailable where
    they are not at hand.
    """
    manifest = load_manifest(name)
    if split not in SPLITS:
        raise nearest(split, SPLITS, f"split of {name}")
    return reader_of(manifest).read(manifest, split, mirror)


def groups_of(name: str, items: Items, mirror: Mirror = None) -> Groups:
    """Return per grouping the label of every image and of every text; items that share one are relevant."""
    manifest = load_manifest(name)
    found = reader_of(manifest).groups
    if found is not None:
        return found(manifest, items, mirror)
    images, texts = items.components()
    return {"item": (images.astype(str), texts.astype(str))}


def search_of(name: str, items: Items, modality: str, mirror: Mirror = None) -> Search | None:
    """Return how a modality ("image", "text") of these items is searched within itself; None: all against all."""
    manifest = load_manifest(name)
    found = reader_of(manifest).search
    return found(manifest, items, modality, mirror) if found else None
