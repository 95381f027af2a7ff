"""What a dataset is once it is loaded: arrays of two modalities, their ids, and what is relevant to what.

Everything is checked on construction, so that no later step meets a NaN, a zero row or a query without a
positive.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from reprolib.errors import InputError
from reprolib.loaders.pictures import PictureFiles
from reprolib.mapped import parts


def _row(bad: np.ndarray, ids: np.ndarray | None = None) -> str:
    """Name the first of the rows where the bool array ``bad`` [n] is true, and how many more there are."""
    rows = np.flatnonzero(bad)
    name = f"row {rows[0]} (counting from 0" + (f", id {str(ids[rows[0]])!r})" if ids is not None else ")")
    return name if len(rows) == 1 else f"{name} and {len(rows) - 1} more"


def _embeddings(modality: str, values: np.ndarray) -> np.ndarray:
    values = np.asarray(values)
    if values.ndim != 2 or values.dtype.kind != "f":
        raise InputError(
            f"{modality} embeddings have shape {values.shape} and dtype {values.dtype}; valid "
            "is a matrix [n, d] of floating-point numbers"
        )
    if 0 in values.shape:
        raise InputError(
            f"{modality} embeddings are empty (shape {values.shape}); valid is at least one row and one column"
        )
    with np.errstate(over="ignore"):  # an overflow becomes infinity, which the next check names
        values = np.ascontiguousarray(values, dtype=np.float32)
    # squares of float32 cannot overflow in float64: what is not finite here was NaN or infinity before
    squares = np.concatenate([np.einsum("ij,ij->i", rows, rows, dtype=np.float64) for rows in parts(values)])
    for bad, what, valid in (
        (~np.isfinite(squares), "NaN or infinity", "only finite float32 numbers"),
        (squares == 0, "zeros only", "at least one non-zero number"),
    ):
        if bad.any():
            raise InputError(f"{modality} embeddings, {_row(bad)}: the row holds {what}; valid is {valid}")
    return values


def _ids(modality: str, values: Sequence[str] | np.ndarray, n: int) -> np.ndarray:
    ids = np.asarray(values)
    if ids.ndim != 1 or ids.dtype.kind not in "USTiu":
        raise InputError(
            f"{modality}_ids have shape {ids.shape} and dtype {ids.dtype}; valid is a list of "
            f"strings or integers, one for each {modality} row"
        )
    if len(ids) != n:
        raise InputError(
            f"{modality}_ids name {len(ids)} rows, but there are {n} {modality} rows; valid is one id for each row"
        )
    ids = np.char.decode(ids, "utf-8") if ids.dtype.kind == "S" else ids.astype(str)
    if len(np.unique(ids)) != n:
        _, first = np.unique(ids, return_index=True)
        repeated = np.ones(n, dtype=bool)
        repeated[first] = False
        raise InputError(
            f"{modality}_ids, {_row(repeated, ids)}: the id stands on an earlier row too; valid "
            f"is a different id for every {modality}"
        )
    return ids


def _relevance(values: sparse.sparray | np.ndarray, image_ids: np.ndarray, text_ids: np.ndarray) -> sparse.csr_array:
    shape = (len(image_ids), len(text_ids))
    if values.shape != shape:
        raise InputError(f"relevance has shape {tuple(values.shape)}; valid is {shape}, images by texts")
    matrix = sparse.csr_array(values, dtype=bool, copy=True)
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    for modality, counts, ids in (
        ("image", np.diff(matrix.indptr), image_ids),
        ("text", np.bincount(matrix.indices, minlength=shape[1]), text_ids),
    ):
        if not counts.all():
            other = "text" if modality == "image" else "image"
            raise InputError(
                f"relevance, {modality} {_row(counts == 0, ids)}: no {other} is relevant to it; "
                f"valid is at least one positive for every {modality}"
            )
    return matrix


def _components(relevance: sparse.csr_array) -> tuple[np.ndarray, np.ndarray]:
    graph = sparse.block_array([[None, relevance], [relevance.T, None]], format="csr")
    labels = connected_components(graph, directed=False)[1].astype(np.int64)
    return labels[: relevance.shape[0]], labels[relevance.shape[0] :]


@dataclass(frozen=True, eq=False)
class Split:
    """The embeddings of one split, both modalities.

    ``image`` float32 [n_image, d] and ``text`` float32 [n_text, d] are kept as stored (not re-normalised;
    other floating-point types are cast). ``relevance`` is a bool matrix [n_image, n_text], dense or sparse,
    kept as CSR with sorted indices; many-to-many is allowed. ``image_ids`` and ``text_ids`` are strings,
    unique within their modality.

    Raises InputError, naming modality and row (from 0), for NaN, infinity or zero rows, differing widths, ids
    that are repeated or do not match in number, a relevance of another shape, and an item without a positive.
    """

    image: np.ndarray
    text: np.ndarray
    relevance: sparse.csr_array
    image_ids: np.ndarray
    text_ids: np.ndarray

    def __post_init__(self) -> None:
        image, text = _embeddings("image", self.image), _embeddings("text", self.text)
        if image.shape[1] != text.shape[1]:
            raise InputError(
                f"image embeddings have {image.shape[1]} columns and text embeddings "
                f"{text.shape[1]}; valid is the same width in both"
            )
        image_ids = _ids("image", self.image_ids, len(image))
        text_ids = _ids("text", self.text_ids, len(text))
        checked = (image, text, _relevance(self.relevance, image_ids, text_ids), image_ids, text_ids)
        for entry, value in zip(fields(self), checked, strict=True):
            object.__setattr__(self, entry.name, value)

    def take(self, images: np.ndarray) -> Split:
        """Return the images at the indices ``images`` [m] int, in that order, and the texts relevant to them.

        Raises InputError for an empty list and for indices that are repeated or outside 0 to n_image - 1.
        """
        images = np.asarray(images)
        if images.ndim != 1 or not len(images) or images.dtype.kind not in "iu":
            raise InputError(
                f"image indices have shape {images.shape} and dtype {images.dtype}; valid is a "
                "list of integers, at least one"
            )
        if images.min() < 0 or images.max() >= len(self.image):
            raise InputError(
                f"image indices run from {images.min()} to {images.max()}; valid is 0 to {len(self.image) - 1}"
            )
        rows = self.relevance[images]
        texts = np.unique(rows.indices)
        return Split(self.image[images], self.text[texts], rows[:, texts], self.image_ids[images], self.text_ids[texts])

    def components(self) -> tuple[np.ndarray, np.ndarray]:
        """Return int64 labels [n_image] and [n_text] of the connected components of the relevance graph.

        An image, its texts, and the other images of these texts share a label: the unit that is never
        separated when rows are split, and the cluster that is resampled in intervals and tests.
        """
        return _components(self.relevance)


@dataclass(frozen=True, eq=False)
class Replicate:
    """One division of a dataset: ``bank`` to estimate hubness, ``validation`` to tune on, ``test`` to report.

    ``label`` is "official split" or, say, "seeded split 3 of 5"; ``bank_source`` says where the bank comes
    from, e.g. "train, 20 %". Raises InputError where the three differ in width.
    """

    bank: Split
    validation: Split
    test: Split
    label: str
    bank_source: str

    def __post_init__(self) -> None:
        widths = {name: getattr(self, name).image.shape[1] for name in ("bank", "validation", "test")}
        if len(set(widths.values())) > 1:
            raise InputError(f"{self.label}: the embeddings differ in width ({widths}); valid is one width for all")


@dataclass(frozen=True, eq=False)
class EmbeddingData:
    """A dataset, encoded: what a study receives.

    ``identity`` is the sha256 of ``identity_of`` and does not depend on seeds or shares. ``captions`` maps
    text ids to texts, ``pictures`` image ids to uint8 [h, w] grey or [h, w, 3] colour arrays, where known.
    """

    name: str
    model: str
    identity: str
    replicates: tuple[Replicate, ...]
    notes: tuple[str, ...]
    licence: str
    captions: Mapping[str, str] = field(default_factory=dict)
    pictures: Mapping[str, np.ndarray] | None = None

    def __post_init__(self) -> None:
        if not self.replicates:
            raise InputError(
                f"{self.name} has no replicate; valid is at least one split into bank, validation and test"
            )


@dataclass(frozen=True, eq=False)
class Items:
    """Raw items of one split before encoding: ``images``, and ``texts``.

    ``images`` are uint8 [n, h, w] or [n, h, w, 3], or ``PictureFiles``. Ids and ``relevance`` as in ``Split``. Raises
    InputError as ``Split`` does, and for blank texts.
    """

    name: str
    split: str
    images: np.ndarray | PictureFiles
    texts: list[str]
    image_ids: np.ndarray
    text_ids: np.ndarray
    relevance: sparse.csr_array

    def __post_init__(self) -> None:
        images = self.images if isinstance(self.images, PictureFiles) else np.asarray(self.images)
        if isinstance(images, np.ndarray) and (
            images.dtype != np.uint8 or not (images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3))
        ):
            raise InputError(
                f"images have shape {images.shape} and dtype {images.dtype}; valid is uint8 [n, h, w] or [n, h, w, 3]"
            )
        blank = np.fromiter((not text.strip() for text in self.texts), dtype=bool, count=len(self.texts))
        if blank.any():
            raise InputError(f"texts, {_row(blank)}: the text is blank; valid is at least one visible character")
        image_ids = _ids("image", self.image_ids, len(images))
        text_ids = _ids("text", self.text_ids, len(self.texts))
        relevance = _relevance(self.relevance, image_ids, text_ids)
        for name, value in (
            ("images", images),
            ("texts", list(self.texts)),
            ("image_ids", image_ids),
            ("text_ids", text_ids),
            ("relevance", relevance),
        ):
            object.__setattr__(self, name, value)

    def components(self) -> tuple[np.ndarray, np.ndarray]:
        """Return int64 labels [n_image] and [n_text] of the connected components, as ``Split.components``."""
        return _components(self.relevance)


def identity_of(*values: Split | Items) -> str:
    """Return the sha256 (hex) over arrays, shapes, dtypes, ids and relevance of ``values``, in their order.

    It does not depend on what numpy and scipy choose for themselves (index types, string widths).
    """
    digest = hashlib.sha256()
    for part in values:
        for entry in fields(part):
            value = getattr(part, entry.name)
            if sparse.issparse(value):
                arrays = [value.indptr.astype("<i8"), value.indices.astype("<i8")]
            elif isinstance(value, PictureFiles):
                arrays = [np.frombuffer(value.digest().encode(), dtype=np.uint8)]
            elif isinstance(value, np.ndarray) and value.dtype.kind != "U":
                arrays = [np.ascontiguousarray(value, dtype=value.dtype.newbyteorder("<"))]
            else:
                text = json.dumps(value.tolist() if isinstance(value, np.ndarray) else value)
                arrays = [np.frombuffer(text.encode(), dtype=np.uint8)]
            for array in arrays:
                header = f"{type(part).__name__}.{entry.name} {array.dtype.str} {array.shape}\n"
                digest.update(header.encode())
                for rows in parts(array):
                    digest.update(rows.data)
    return digest.hexdigest()
