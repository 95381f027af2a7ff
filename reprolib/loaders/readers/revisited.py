"""Revisited Oxford and Paris (Radenovic et al., CVPR 2018): landmarks, judged as easy, hard and junk.

The ground truth is ``gnd_<name>.mat``, which filipradenovic/revisitop offers beside a pickle of the same content; a
pickle can run code when it is read, so it is not.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.io
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from reprolib.errors import DataUnavailable, InputError
from reprolib.loaders.dataset import Items
from reprolib.loaders.files import root
from reprolib.loaders.manifest import Manifest, load_manifest
from reprolib.loaders.pictures import Crop, PictureFiles
from reprolib.loaders.readers import Mirror, Search, reader
from reprolib.loaders.readers.classes import in_part, labelled, option

# what counts as found, and what is left out of the ranking: revisitop, python/example_evaluate.py (commit 3bb68d3),
# below "search for easy", "search for easy & hard" and "search for hard"
PROTOCOL = {
    "easy": (("easy",), ("junk", "hard")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("junk", "easy")),
}
UNREADABLE = (OSError, ValueError, TypeError, LookupError, NotImplementedError, zlib.error)  # what scipy may raise
ELSEWHERE = "other"  # label of images that show none of the landmarks


@dataclass(frozen=True)
class Truth:
    """Names of the ``images`` [n] that are searched and of the ``queries`` [q], and the judgements.

    ``boxes`` float [q, 4] are (left, upper, right, lower) in pixels; ``judged`` has a bool CSR [q, n] each for
    "easy", "hard" and "junk".
    """

    images: list[str]
    queries: list[str]
    boxes: np.ndarray
    judged: dict[str, sparse.csr_array]

    @property
    def shown(self) -> sparse.csr_array:
        """Which images show the landmark of a query, easy or hard: bool CSR [q, n]."""
        return self.judged["easy"] + self.judged["hard"]

    def landmarks(self) -> np.ndarray:
        """Return for every query the row [q] of the first one that shows the same landmark.

        Queries are of one landmark if an image shows both; the file does not say which landmark it is.
        """
        labels = connected_components(self.shown @ self.shown.T, directed=False)[1]
        return np.unique(labels, return_index=True)[1][labels]


def read_truth(path: Path) -> Truth:
    """Return the content of ``gnd_roxford5k.mat`` or ``gnd_rparis6k.mat``; rows there count from 1.

    Raises InputError, naming the file and the query, where it is not of that format.
    """
    try:
        content = scipy.io.loadmat(path, variable_names=["imlist", "qimlist", "gnd"], squeeze_me=True)
    except FileNotFoundError as error:
        raise DataUnavailable(f"{path} cannot be read: {error.strerror}") from error
    except (*UNREADABLE, scipy.io.matlab.MatReadError) as error:
        raise InputError(f"{path} is not a MATLAB file of version 5, or is not whole") from error
    absent = [name for name in ("imlist", "qimlist", "gnd") if name not in content]
    if absent:
        raise InputError(f"{path} has no variable {absent[0]!r}; valid is one with imlist, qimlist and gnd")
    images, queries = ([str(name) for name in np.atleast_1d(content[key])] for key in ("imlist", "qimlist"))
    entries = np.atleast_1d(content["gnd"])
    fields = ("bbx", "easy", "hard", "junk")
    if len(entries) != len(queries) or entries.dtype.names is None or not set(fields) <= set(entries.dtype.names):
        raise InputError(f"{path}: gnd has not one entry with {', '.join(fields)} for each of {len(queries)} queries")
    boxes = []
    found: dict[str, list[np.ndarray]] = {kind: [] for kind in fields[1:]}
    for name, entry in zip(queries, entries, strict=True):
        boxes.append(_numbers(entry["bbx"]))
        if len(boxes[-1]) != 4:
            raise InputError(f"{path}, query {name}: bbx has {len(boxes[-1])} numbers; valid is four")
        for kind, rows in found.items():
            rows.append(_numbers(entry[kind]).astype(np.int64) - 1)
            if len(rows[-1]) and not 0 <= rows[-1].min() <= rows[-1].max() < len(images):
                raise InputError(f"{path}, query {name}: {kind} names an image outside 1 to {len(images)}")
    judged = {kind: _rows(rows, len(images)) for kind, rows in found.items()}
    return Truth(images, queries, np.array(boxes, dtype=float), judged)


def _numbers(value: np.ndarray | float) -> np.ndarray:
    return np.asarray(value, dtype=float).ravel()


def _rows(rows: list[np.ndarray], n: int) -> sparse.csr_array:
    start = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    columns = np.concatenate([*rows, np.empty(0, dtype=np.int64)])
    return sparse.csr_array((np.ones(len(columns), dtype=bool), columns, start), shape=(len(rows), n))


def _truth(manifest: Manifest, split: str, mirror: Mirror) -> tuple[Truth, Path]:
    """Return the ground truth that a split is taken from, and the folder of its images."""
    source = manifest if split == "test" else load_manifest(option(manifest, "development"))
    place = root(source, mirror)
    return read_truth(place / option(source, "ground_truth")), place


def _search(manifest: Manifest, items: Items, modality: str, mirror: Mirror) -> Search | None:
    if modality != "image":
        return None
    truth, _ = _truth(manifest, items.split, mirror)
    row = {name: index for index, name in enumerate(items.image_ids.tolist())}
    queries, images = (
        np.array([index for index, name in enumerate(names) if name in row], dtype=np.int64)
        for names in (truth.queries, truth.images)
    )
    pairs = {kind: judged[queries][:, images] for kind, judged in truth.judged.items()}

    def either(kinds: tuple[str, ...]) -> sparse.csr_array:
        return sum((pairs[kind] for kind in kinds[1:]), pairs[kinds[0]])

    return Search(
        np.array([row[truth.queries[query]] for query in queries], dtype=np.int64),
        np.array([row[truth.images[image]] for image in images], dtype=np.int64),
        {level: either(positive) for level, (positive, _) in PROTOCOL.items()},
        {level: either(left_out) for level, (_, left_out) in PROTOCOL.items()},
    )


@reader("revisited", search=_search)
def read_revisited(manifest: Manifest, split: str, mirror: Mirror) -> Items:
    """Return the queries, cut to their boxes where the option ``crop`` is true, and after them the other images.

    The test split is all of the set. Train and validation are the halves of the set ``development``, by the hash of
    the landmark, and of the name for images that show none. A landmark is named by the word that most of its queries
    are filed under, images that show none by the option ``elsewhere``.
    """
    truth, place = _truth(manifest, split, mirror)
    landmarks, shown = truth.landmarks(), truth.shown.tocoo()
    of_query = [truth.queries[first] for first in landmarks]  # a landmark is known by the name of its first query
    found = {truth.images[image]: of_query[query] for query, image in zip(shown.row, shown.col, strict=True)}
    labels = dict(zip(truth.queries, of_query, strict=True)) | {
        name: found.get(name, ELSEWHERE) for name in truth.images
    }
    parts = {name: name if label == ELSEWHERE else label for name, label in labels.items()}
    ids = [name for name in labels if split == "test" or in_part(parts[name], split, validation=0.5)]
    files = {path.stem: path for path in sorted(place.rglob("*.jpg"))}
    missing = next((name for name in ids if name not in files), None)
    if missing:
        raise InputError(f"{option(manifest, 'ground_truth')} names {missing}.jpg, which is not in {place}")
    boxes = dict(zip(truth.queries, truth.boxes.tolist(), strict=True)) if option(manifest, "crop") else {}
    pictures = [Crop(files[name], tuple(boxes[name])) if name in boxes else files[name] for name in ids]
    names = _names(truth, landmarks, set(option(manifest, "general"))) | {ELSEWHERE: option(manifest, "elsewhere")}
    return labelled(manifest, split, PictureFiles(pictures), ids, [labels[name] for name in ids], names)


def _names(truth: Truth, landmarks: np.ndarray, general: set[str]) -> dict[str, str]:
    """Return the name of every landmark by that of its first query; ``general`` words name none if others do."""
    words = [re.sub(r"_\d+$", "", name) for name in truth.queries]
    names = {}
    for first in np.unique(landmarks):
        own = [words[query] for query in np.flatnonzero(landmarks == first)]
        counted = Counter([word for word in own if word not in general] or own)
        names[truth.queries[first]] = counted.most_common(1)[0][0]
    return names
