"""Who else is relevant: published judgements of many-to-many relevance for COCO's test captions.

ECCV Caption (arXiv 2204.03359; naver-ai/eccv-caption) has judged part of the queries, each direction on its own: R@1,
R-precision and mAP@R are over these queries alone, and COCO's own pair counts only if it was judged right. CxC (arXiv
2004.15020; google-research-datasets/Crisscrossed-Captions) rates caption-image pairs from 0 to 5.

``merge`` adds the positives of both directions to the relevance of a split, so that every study takes them; its
queries are all items, and COCO's own pairs stay positives. ``judged`` gives the published protocol itself.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import sparse

from reprolib.errors import InputError, nearest
from reprolib.loaders.dataset import Items, Split
from reprolib.loaders.files import resolve
from reprolib.loaders.json_file import read_json
from reprolib.loaders.manifest import Manifest, load_manifest

# "a score >= 3 (for STS, SITS) ... is considered positive": section 3 of the CxC paper, as naver-ai/eccv-caption at
# 0be8d41 quotes it, data_tools/merge.py lines 56-59
CXC_POSITIVE = 3.0
ECCV_FILES = ("eccv_image_to_caption.json", "eccv_caption_to_image.json")
CXC_FILES = {"validation": "sits_val.csv", "test": "sits_test.csv"}
_CXC_HEADER = ["caption", "image", "agg_score", "sampling_method"]


@dataclass(frozen=True)
class Judgements:
    """The relevant items of every judged query, by id: ``images`` are queries for texts, ``texts`` for images."""

    images: Mapping[str, tuple[str, ...]]
    texts: Mapping[str, tuple[str, ...]]


def read_eccv(image_to_caption: Path, caption_to_image: Path) -> Judgements:
    """Return ECCV Caption's positives; ids are those of COCO's images and captions.

    Raises InputError, naming file and key, for what is not its format: a JSON object of ids to lists of ids.
    """
    return Judgements(_id_lists(image_to_caption), _id_lists(caption_to_image))


def read_cxc(path: Path, positive: float = CXC_POSITIVE) -> Judgements:
    """Return the caption-image pairs of CxC (``sits_val.csv``, ``sits_test.csv``) rated ``positive`` or higher.

    Raises InputError, naming file and line, for what is not its format.
    """
    pairs = []
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            rows = csv.reader(stream)
            header = next(rows, [])
            if header != _CXC_HEADER:
                raise InputError(f"{path}, line 1: the columns are {header}; valid is {','.join(_CXC_HEADER)}")
            for row in rows:
                try:
                    caption, image, rating, _ = row
                    pair = (_number(image.removesuffix(".jpg"), "_"), _number(caption, ":"))
                    relevant = float(rating) >= positive
                except ValueError as error:
                    raise InputError(
                        f"{path}, line {rows.line_num}: {','.join(row)!r} is not a rated pair; valid is, say, "
                        "COCO_val2014:sentid:732091,COCO_val2014_000000365325.jpg,2.2,c2i_intrasim"
                    ) from error
                if relevant:
                    pairs.append(pair)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as CSV: {error}") from error
    return Judgements(_grouped(pairs), _grouped((text, image) for image, text in pairs))


def _number(name: str, mark: str) -> str:
    return str(int(name.rpartition(mark)[2]))


def _eccv(manifest: Manifest, split: str, mirror: str | Path | None) -> Judgements | None:
    if split != "test":
        return None
    first, second = (resolve(manifest, name, mirror) for name in ECCV_FILES)
    return read_eccv(first, second)


def _cxc(manifest: Manifest, split: str, mirror: str | Path | None) -> Judgements | None:
    return read_cxc(resolve(manifest, CXC_FILES[split], mirror)) if split in CXC_FILES else None


SOURCES: Mapping[str, Callable[[Manifest, str, str | Path | None], Judgements | None]] = {"eccv": _eccv, "cxc": _cxc}


def judgements_of(manifest: Manifest, split: str, mirror: str | Path | None = None) -> Judgements | None:
    """Return the judgements that the manifest's option ``judgements`` ("eccv", "cxc") names; None without any."""
    kind = manifest.options.get("judgements")
    if kind is None:
        return None
    if kind not in SOURCES:
        raise nearest(str(kind), SOURCES, f"judgements in {manifest.name}.yaml")
    return SOURCES[kind](manifest, split, mirror)


def load_judgements(name: str, split: str = "test", mirror: str | Path | None = None) -> Judgements:
    """Return the judgements of a split of the dataset ``name`` ("coco-eccv", "coco-cxc").

    Raises InputError for datasets and splits without any, DataUnavailable where the files are not at hand.
    """
    found = judgements_of(load_manifest(name), split, mirror)
    if found is None:
        raise InputError(f"the {split} split of {name} has no judgements; valid is the test split of coco-eccv, say")
    return found


def merge(items: Items, judgements: Judgements) -> Items:
    """Return the items with all positives of the judgements, either direction, added to their relevance.

    Judgements on items of other splits are left out. The relevance that the items have stays.
    """
    added = _matrix(items, judgements.images) + _matrix(items, _turned(judgements.texts))
    relevance = sparse.csr_array(items.relevance + added, dtype=bool)
    return Items(items.name, items.split, items.images, items.texts, items.image_ids, items.text_ids, relevance)


def judged(split: Split | Items, judgements: Judgements, direction: str) -> tuple[np.ndarray, sparse.csr_array]:
    """Return the published protocol of a direction ("image->text", "text->image").

    That is the rows of the judged queries, int64 [q], and what is relevant to them, bool CSR [q, gallery]; the gallery
    is all of the other modality. Queries of which no positive is in the gallery are left out. With these rows,
    ``retrieval_metrics`` gives R@K, ``R-precision`` and ``mAP@R`` as naver-ai/eccv-caption at 0be8d41 counts them
    (eccv_caption/_metrics.py lines 159-203); its gallery holds the first five captions of an image.

    Raises InputError for another direction, and where no judged query is in the split.
    """
    if direction == "image->text":
        matrix = _matrix(split, judgements.images)
    elif direction == "text->image":
        matrix = sparse.csr_array(_matrix(split, _turned(judgements.texts)).T)
    else:
        raise nearest(direction, ["image->text", "text->image"], "direction")
    rows = np.flatnonzero(np.diff(matrix.indptr))
    if not len(rows):
        raise InputError("no judged query is among the ids of the split; valid is COCO's test split, by COCO's ids")
    return rows.astype(np.int64), matrix[rows]


def _matrix(split: Split | Items, of_image: Mapping[str, tuple[str, ...]]) -> sparse.csr_array:
    """Return bool CSR [images, texts] of positives by image id; ids that the split does not hold are left out."""
    places = [{str(name): row for row, name in enumerate(ids)} for ids in (split.image_ids, split.text_ids)]
    pairs = [
        (places[0][image], places[1][text])
        for image, texts in of_image.items()
        if image in places[0]
        for text in texts
        if text in places[1]
    ]
    rows, columns = np.array(sorted(set(pairs)), dtype=np.int64).reshape(-1, 2).T
    shape = (len(places[0]), len(places[1]))
    return sparse.csr_array((np.ones(len(rows), dtype=bool), (rows, columns)), shape=shape)


def _turned(of_text: Mapping[str, tuple[str, ...]]) -> Mapping[str, tuple[str, ...]]:
    return _grouped((image, text) for text, images in of_text.items() for image in images)


def _grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, tuple[str, ...]]:
    found: dict[str, list[str]] = {}
    for key, value in pairs:
        found.setdefault(key, []).append(value)
    return {key: tuple(values) for key, values in found.items()}


def _id_lists(path: Path) -> dict[str, tuple[str, ...]]:
    try:
        stored = read_json(path.read_bytes(), path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    valid = "valid is a JSON object of ids to lists of ids"
    if not isinstance(stored, dict):
        raise InputError(f"{path} holds a {type(stored).__name__}; {valid}")
    for key, values in stored.items():
        if not isinstance(values, list) or not all(isinstance(value, int | str) for value in values):
            raise InputError(f"{path}, key {key!r}: the value is not a list of ids; {valid}")
    return {key: tuple(str(value) for value in values) for key, values in stored.items()}
