"""COCO, Flickr30k and Flickr8k by Karpathy's ``dataset_*.json``: the split that retrieval papers report on.

The file is ``{"images": [{"filepath", "filename", "imgid", "cocoid", "split", "sentids", "sentences": [{"raw",
"tokens", "imgid", "sentid"}]}], "dataset": ...}``; ``filepath`` and ``cocoid`` are COCO's alone.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from reprolib.errors import InputError
from reprolib.loaders.files import resolve, root
from reprolib.loaders.json_file import read_json
from reprolib.loaders.manifest import Manifest
from reprolib.loaders.readers import Mirror
from reprolib.loaders.readers.captions import Captioned, caption_reader
from reprolib.loaders.readers.classes import option

PARTS = ("train", "restval", "val", "test")
ARCHIVE = "caption_datasets.zip"  # as published, with the files of all three datasets


@caption_reader("karpathy")
def captioned(manifest: Manifest, split: str, mirror: Mirror) -> tuple[Path, list[Captioned]]:
    """Return the root and the images of a split, in the order of the file.

    The manifest's options: ``annotations`` names the file, which stands in the root or in ``caption_datasets.zip``;
    ``images`` is the folder of the pictures under the root ("" where entries have a ``filepath``); ``splits`` maps
    each split to parts of the file (restval belongs to train). Image ids are COCO's, or the file name; text ids the
    ``sentid``. Texts are stripped of spaces at their ends.
    """
    folder, name = root(manifest, mirror), option(manifest, "annotations")
    beside = folder / name
    path = beside if beside.is_file() else resolve(manifest, ARCHIVE, mirror)
    state = path.stat()
    by_part = _read(path, name, manifest.options.get("images", ""), state.st_size, state.st_mtime_ns)
    parts = option(manifest, "splits")[split]
    unknown = next((part for part in parts if part not in PARTS), None)
    if unknown is not None:
        raise InputError(f"{manifest.name}.yaml, option splits: {unknown!r} is no part; valid: {', '.join(PARTS)}")
    return folder, [image for part, image in by_part if part in parts]


@lru_cache(maxsize=1)
def _read(path: Path, name: str, images: str, size: int, mtime_ns: int) -> list[tuple[str, Captioned]]:
    """Return part and content of every entry; the file of COCO takes seconds to read, so one is kept."""
    where = str(path) if path.name == name else f"{path}/{name}"
    stored = read_json(_bytes(path, name), where, object_hook=_without_tokens)
    entries = stored.get("images") if isinstance(stored, dict) else None
    if not isinstance(entries, list):
        raise InputError(f"{where}: there is no list 'images'; valid is a file of Karpathy's format")
    return [_entry(entry, f"{where}, images[{number}]", images) for number, entry in enumerate(entries)]


def _entry(entry: Any, where: str, images: str) -> tuple[str, Captioned]:
    try:
        part, folder = entry["split"], entry.get("filepath") or images
        path = f"{folder}/{entry['filename']}" if folder else entry["filename"]
        image_id = str(entry.get("cocoid", entry["filename"]))
        texts = tuple((str(sentence["sentid"]), sentence["raw"].strip()) for sentence in entry["sentences"])
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{where} is not of Karpathy's format ({type(error).__name__}: {error}); valid is an object with "
            "filename, split, and sentences, each with raw and sentid"
        ) from error
    if part not in PARTS:
        raise InputError(f"{where}: the split {part!r} is not known; valid: {', '.join(PARTS)}")
    return part, Captioned(path, image_id, texts, where)


def _without_tokens(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    return {key: value for key, value in entry.items() if key != "tokens"}  # most of the file, and not used


def _bytes(path: Path, name: str) -> bytes:
    try:
        if path.name == name:
            return path.read_bytes()
        with zipfile.ZipFile(path) as archive:
            return archive.read(name)
    except KeyError as error:
        raise InputError(f"{path} holds no {name}; valid is {ARCHIVE} as Karpathy published it") from error
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
