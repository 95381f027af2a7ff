"""Grey images and their labels in IDX files, as MNIST and Fashion-MNIST are published."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np

from reprolib.errors import InputError
from reprolib.loaders.dataset import Items
from reprolib.loaders.files import resolve
from reprolib.loaders.manifest import Manifest
from reprolib.loaders.readers import Mirror, reader
from reprolib.loaders.readers.classes import in_part, labelled, option


@reader("idx")
def read_idx(manifest: Manifest, split: str, mirror: Mirror) -> Items:
    """Return images uint8 [n, h, w]; the id of an image is its published split and its place in the file.

    Validation is a share of the published training images.
    """
    published = "test" if split == "test" else "train"
    paths = [resolve(manifest, name, mirror) for name in option(manifest, "idx")[published]]
    images, labels = (_array(path, axes) for path, axes in zip(paths, (3, 1), strict=True))
    names = {str(label): name for label, name in enumerate(option(manifest, "classes"))}
    if len(images) != len(labels):
        raise InputError(f"{paths[0].name} holds {len(images)} images, but {paths[1].name} {len(labels)} labels")
    if len(labels) and labels.max() >= len(names):
        row = int(np.argmax(labels >= len(names)))
        raise InputError(f"{paths[1].name}, entry {row} (counting from 0): class {labels[row]} of {len(names)}")
    ids = np.array([f"{published}/{row:05d}" for row in range(len(images))])
    if split != "test":
        share = option(manifest, "validation_share")
        chosen = np.array([in_part(image, split, share) for image in ids.tolist()], dtype=bool)
        images, labels, ids = images[chosen], labels[chosen], ids[chosen]
    return labelled(manifest, split, images, ids.tolist(), labels.astype(str).tolist(), names)


def _array(path: Path, axes: int) -> np.ndarray:
    """Return the uint8 array of a gzipped IDX file: 0, 0, type 8, number of axes; a big-endian length each; bytes."""
    try:
        with gzip.open(path) as stream:
            content = stream.read()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} is not a whole gzip file: {error}") from error
    start = 4 + 4 * axes
    if len(content) < start or content[:4] != bytes((0, 0, 8, axes)):
        raise InputError(f"{path} is not an IDX file of bytes with {axes} axes: it starts with {content[:4].hex()!r}")
    shape = tuple(int(length) for length in np.frombuffer(content[4:start], dtype=">u4"))
    if len(content) - start != np.prod(shape, dtype=np.int64):
        raise InputError(f"{path} holds {len(content) - start} bytes of values; its header says {shape}")
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)
