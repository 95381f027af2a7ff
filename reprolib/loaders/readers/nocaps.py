"""nocaps: images of Open Images with ten captions each, of which the validation set is published.

The file is of COCO's form: ``images`` with ``id``, ``open_images_id``, ``file_name``, ``domain``, and ``annotations``
with ``id``, ``image_id``, ``caption``.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from reprolib.errors import InputError
from reprolib.loaders.dataset import Items
from reprolib.loaders.files import resolve, root
from reprolib.loaders.json_file import read_json
from reprolib.loaders.manifest import Manifest, load_manifest
from reprolib.loaders.readers import Mirror, karpathy
from reprolib.loaders.readers.captions import Captioned, caption_reader
from reprolib.loaders.readers.classes import option

ANNOTATIONS = "nocaps_val_4500_captions.json"


@caption_reader("nocaps")
def captioned(manifest: Manifest, split: str, mirror: Mirror) -> tuple[Path, list[Captioned]]:
    """Return the root and the images of a split.

    Test is the published validation set, all of it, as retrieval papers use it. Train and validation are those of
    the dataset that the option ``train`` names: nocaps has no captions to train on beside COCO's. The option
    ``images`` is the folder of the pictures under the root. Image ids are those of Open Images, text ids are
    "nocaps-" and the number of the annotation.
    """
    if split != "test":
        return karpathy.captioned(load_manifest(option(manifest, "train")), split, mirror)
    images, _ = _of(manifest, mirror)
    return root(manifest, mirror), images


def domains(items: Items, mirror: Mirror = None) -> np.ndarray:
    """Return the domain ("in-domain", "near-domain", "out-domain") of every image of nocaps' test items, string [n].

    Raises InputError for items of another dataset, and where the file states no domain.
    """
    _, of_image = _of(load_manifest("nocaps"), mirror)
    unknown = next((str(name) for name in items.image_ids if str(name) not in of_image), None)
    if unknown is not None:
        raise InputError(f"{unknown!r} is no image of nocaps with a domain; valid are items of its test split")
    return np.array([of_image[str(name)] for name in items.image_ids])


def _of(manifest: Manifest, mirror: Mirror) -> tuple[list[Captioned], dict[str, str]]:
    path = resolve(manifest, ANNOTATIONS, mirror)
    return _read(path, option(manifest, "images"), path.stat().st_mtime_ns)


@lru_cache(maxsize=1)
def _read(path: Path, folder: str, mtime_ns: int) -> tuple[list[Captioned], dict[str, str]]:
    stored = read_json(path.read_bytes(), path)
    texts: dict[Any, list[tuple[str, str]]] = {}
    for number, entry in enumerate(_entries(stored, "annotations", path)):
        try:
            texts.setdefault(entry["image_id"], []).append((f"nocaps-{entry['id']}", entry["caption"].strip()))
        except (KeyError, TypeError, AttributeError) as error:
            raise _wrong(f"{path}, annotations[{number}]", error, "id, image_id and caption") from error
    images, of_image = [], {}
    for number, entry in enumerate(_entries(stored, "images", path)):
        where = f"{path}, images[{number}]"
        try:
            image_id, name, found = str(entry["open_images_id"]), entry["file_name"], texts.pop(entry["id"], [])
            if "domain" in entry:
                of_image[image_id] = str(entry["domain"])
            images.append(Captioned(f"{folder}/{name}", image_id, tuple(found), where))
        except (KeyError, TypeError) as error:
            raise _wrong(where, error, "id, open_images_id and file_name") from error
    if texts:
        raise InputError(f"{path}: annotations name the image {next(iter(texts))!r}, which is not among the images")
    return images, of_image


def _entries(stored: Any, key: str, path: Path) -> list[Any]:
    entries = stored.get(key) if isinstance(stored, dict) else None
    if not isinstance(entries, list):
        raise InputError(f"{path}: there is no list {key!r}; valid is a file of COCO's form")
    return entries


def _wrong(where: str, error: Exception, fields: str) -> InputError:
    return InputError(f"{where} is not of COCO's form ({type(error).__name__}: {error}); valid has {fields}")
