"""Flickr8k as ``captions.txt`` (CSV, ``image,caption``) with the official ``train.txt``, ``dev.txt``, ``test.txt``.

Where the photographs are not at hand, ``load_features`` gives features of an image classifier in their place. They
share no space with any text: retrieval takes a head that is trained on them.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from scipy import sparse

from reprolib.errors import InputError, nearest
from reprolib.loaders.files import resolve, root
from reprolib.loaders.manifest import Manifest, load_manifest
from reprolib.loaders.readers import Mirror
from reprolib.loaders.readers.captions import Captioned, caption_reader
from reprolib.loaders.readers.classes import option

LISTS = {"train": "train.txt", "validation": "dev.txt", "test": "test.txt"}


@dataclass(frozen=True, eq=False)
class Features:
    """A split of Flickr8k without photographs: ``image`` float32 [n_image, d], and the rest as ``Items`` has it."""

    image: np.ndarray
    texts: list[str]
    image_ids: np.ndarray
    text_ids: np.ndarray
    relevance: sparse.csr_array


@caption_reader("flickr8k")
def captioned(manifest: Manifest, split: str, mirror: Mirror) -> tuple[Path, list[Captioned]]:
    """Return the root and the images of a split, in the order of its list.

    The manifest's option ``images`` is the folder of the photographs under the root. Image ids are the file names;
    text ids add a number from 0 ("1000268201_693b08cb0e.jpg#0"), as ``Flickr8k.token.txt`` does.
    """
    folder = root(manifest, mirror)
    return folder, _listed(manifest, split, mirror)


def load_features(split: str, mirror: Mirror = None) -> Features:
    """Return the MobileNetV1 features [n, 1024] and the captions of a split ("train", "validation", "test").

    Raises InputError for an unknown split and for files that are not of the manifest's format, DataUnavailable where
    they are not at hand.
    """
    if split not in LISTS:
        raise nearest(split, LISTS, "split of flickr8k")
    manifest = load_manifest("flickr8k")
    images = _listed(manifest, split, mirror)
    stored, names = (resolve(manifest, name, mirror) for name in ("mobilenet_v1_features.npy", "filenames.txt"))
    try:
        features = np.load(stored, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{stored} is not a .npy file of numbers: {error}") from error
    row_of = {name: row for row, name in enumerate(_lines(names))}
    if features.ndim != 2 or len(features) != len(row_of):
        raise InputError(f"{stored} has shape {features.shape}; valid is a row for each of {len(row_of)} names")
    missing = next((image for image in images if image.image_id not in row_of), None)
    if missing is not None:
        raise InputError(f"{names} does not name {missing.image_id}, which stands in {LISTS[split]}")
    texts = [text for image in images for _, text in image.texts]
    owners = np.repeat(np.arange(len(images)), [len(image.texts) for image in images])
    pairs = (np.ones(len(texts), dtype=bool), (owners, np.arange(len(texts))))
    return Features(
        features[[row_of[image.image_id] for image in images]].astype(np.float32),
        texts,
        np.array([image.image_id for image in images]),
        np.array([text_id for image in images for text_id, _ in image.texts]),
        sparse.csr_array(pairs, shape=(len(images), len(texts))),
    )


def _listed(manifest: Manifest, split: str, mirror: Mirror) -> list[Captioned]:
    captions, listing = (resolve(manifest, name, mirror) for name in ("captions.txt", LISTS[split]))
    texts = _captions(captions, captions.stat().st_mtime_ns)
    folder = option(manifest, "images")
    return [
        Captioned(
            f"{folder}/{name}",
            name,
            tuple((f"{name}#{number}", text) for number, text in enumerate(texts.get(name, ()))),
            f"{listing}, line {line}",
        )
        for line, name in enumerate(_lines(listing), start=1)
    ]


@lru_cache(maxsize=1)
def _captions(path: Path, mtime_ns: int) -> dict[str, list[str]]:
    texts: dict[str, list[str]] = {}
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            rows = csv.reader(stream)
            if (header := next(rows, [])) != ["image", "caption"]:
                raise InputError(f"{path}, line 1: the columns are {header}; valid is image,caption")
            for row in rows:
                if len(row) != 2:
                    raise InputError(f"{path}, line {rows.line_num}: there are {len(row)} columns; valid is 2")
                texts.setdefault(row[0], []).append(row[1].strip())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as CSV: {error}") from error
    return texts


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
