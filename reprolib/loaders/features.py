"""Stored embeddings as datasets: the features that manifests name, and anybody's own files.

A file of one's own has these parts (``.npz`` keys, ``.safetensors`` tensors); anything else in it is an
error:

* ``image`` [n_image, d] and ``text`` [n_text, d]: the embeddings, any floating-point type
* ``image_ids``, ``text_ids``: optional strings or integers, default the row numbers
* ``relevance``: optional, bool [n_image, n_text], or integer pairs [m, 2] (image row, text row)
* ``relevance_image``, ``relevance_text``: the same pairs as two integer lists [m]
* ``bank_image``, ``bank_text``: an optional bank, with ``bank_image_ids``, ... ``bank_relevance_text``

Without relevance, row i pairs with row i. ``.npy`` is one array [2, n, d], images first. In
``.safetensors`` ids of strings are JSON lists in the metadata. ``.parquet`` has a row per item:
``modality`` ("image", "text", "bank_image", "bank_text"), ``id``, ``embedding`` (list of floats), and
optionally either ``relevant`` (list of the ids in the other modality, on one side or both) or ``pair``
(items of the two modalities that share a value are relevant to each other). Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from reprolib.errors import DataUnavailable, InputError, nearest
from reprolib.loaders.dataset import EmbeddingData, Replicate, Split, identity_of
from reprolib.loaders.files import resolve
from reprolib.loaders.manifest import datasets, load_manifest
from reprolib.loaders.store import map_tensors
from reprolib.mapped import parts

if TYPE_CHECKING:
    import pandas as pd

BANK_SOURCES = ("train", "validation", "transductive")
_PARTS = ("image", "text", "image_ids", "text_ids", "relevance", "relevance_image", "relevance_text")
_BFLOAT16 = np.dtype(np.float32, metadata={"stored": "bfloat16"})
_KEYS = (*_PARTS, *(f"bank_{part}" for part in _PARTS))


@dataclass(frozen=True)
class _Stored:
    name: str
    model: str
    licence: str
    split: Split
    bank: Split | None
    identity: str
    notes: tuple[str, ...]
    captions: Mapping[str, str]


def load_features(
    name_or_path: str | Path,
    *,
    bank_share: float = 0.2,
    validation_share: float = 0.2,
    bank_source: str = "train",
    n_splits: int = 5,
    seed: int = 0,
    mirror: str | Path | None = None,
) -> EmbeddingData:
    """Return stored embeddings, divided ``n_splits`` times into bank, validation and test.

    ``name_or_path`` is a dataset of kind "features", or a file as described above. Stored features have no
    official split: in replicate i, numpy's generator seeded with (``seed``, i) sets aside ``bank_share`` of
    the images as bank and ``validation_share`` as validation, together with their texts, and the rest is
    test. Whole connected components of the relevance are moved, so that the three are disjoint and no image
    is separated from its captions. A bank in the file takes the place of the seeded one.

    ``bank_source`` "validation" uses half of the validation rows as bank and leaves the other half to tune
    on; "transductive" uses the test rows themselves, which no honest comparison does. The test rows are the
    same for all bank sources (given bank apart).

    Raises InputError for parameters, names and file contents that are not valid, DataUnavailable where a
    dataset can neither be found nor fetched.
    """
    _check(bank_share, validation_share, bank_source, n_splits, seed)
    stored = _stored(name_or_path, mirror)
    replicates = []
    for number in range(1, n_splits + 1):
        rng = np.random.default_rng([seed, number])
        if stored.bank is not None:
            bank, source = stored.bank, "given in the file (bank_image, bank_text)"
            validation, test = divide(stored.split, [validation_share], rng)
        else:
            bank, validation, test = divide(stored.split, [bank_share, validation_share], rng)
            source = f"seeded share, {100 * bank_share:g} % of rows"
        if bank_source == "validation":
            bank, validation = divide(validation, [0.5], rng)
            source = f"validation, the half that is not tuned on ({50 * validation_share:g} % of rows)"
        elif bank_source == "transductive":
            bank, source = test, "transductive: the test rows themselves"
        replicates.append(Replicate(bank, validation, test, f"seeded split {number} of {n_splits}", source))
    return EmbeddingData(
        stored.name,
        stored.model,
        stored.identity,
        tuple(replicates),
        stored.notes,
        stored.licence,
        stored.captions,
    )


def load_split(name_or_path: str | Path, *, mirror: str | Path | None = None) -> Split:
    """Return all rows of stored embeddings, undivided and without a bank of their own; raises as above."""
    return _stored(name_or_path, mirror).split


def divide(split: Split, shares: Sequence[float], rng: np.random.Generator) -> tuple[Split, ...]:
    """Divide ``split`` at random into ``len(shares) + 1`` disjoint splits that together hold everything.

    Part i gets ``shares[i]`` of the images (rounded; less where no further connected component fits in),
    the last part the rest. Components stay whole, rows keep their order. Raises InputError for a part that
    would be empty.
    """
    if not all(share > 0 for share in shares) or sum(shares) >= 1:
        raise InputError(f"the shares {list(shares)} are not valid: each must be above 0, and their sum below 1")
    labels, _ = split.components()
    sizes = np.bincount(labels)
    room = np.diff(np.round(np.cumsum(shares) * len(split.image)), prepend=0).tolist()
    part = np.full(len(sizes), len(shares))
    for component in rng.permutation(len(sizes)).tolist():
        fitting = next((i for i, left in enumerate(room) if sizes[component] <= left), None)
        if fitting is not None:
            part[component] = fitting
            room[fitting] -= sizes[component]
    counts = np.bincount(part[labels], minlength=len(shares) + 1)
    if not counts.all():
        raise InputError(
            f"{len(split.image)} images in {len(sizes)} groups of related items cannot be divided into the "
            f"shares {list(shares)} and a rest: one part would be empty; valid are larger shares, or more "
            "groups"
        )
    return tuple(split.take(np.flatnonzero(part[labels] == i)) for i in range(len(counts)))


def _check(bank_share: float, validation_share: float, bank_source: str, n_splits: int, seed: int) -> None:
    for name, share in (("bank_share", bank_share), ("validation_share", validation_share)):
        if not 0 < share < 1:
            raise InputError(f"{name} {share} is not valid: it is the share of rows to set aside, between 0 and 1")
    if bank_share + validation_share >= 1:
        raise InputError(
            f"bank_share {bank_share} and validation_share {validation_share} leave no rows to test on; "
            "valid is a sum below 1"
        )
    if bank_source not in BANK_SOURCES:
        raise nearest(bank_source, BANK_SOURCES, "bank source")
    if n_splits < 1 or seed < 0:
        raise InputError(f"n_splits {n_splits} and seed {seed}: valid is at least one split and a seed from 0 upwards")


def _stored(name_or_path: str | Path, mirror: str | Path | None) -> _Stored:
    text = str(name_or_path)
    if not isinstance(name_or_path, Path):
        if text in datasets():
            return _from_manifest(text, mirror)
        if os.sep not in text and Path(text).suffix not in _READERS and not Path(text).exists():
            raise nearest(text, datasets(), "dataset")
    return _from_file(Path(text).expanduser())


def _from_manifest(name: str, mirror: str | Path | None) -> _Stored:
    manifest = load_manifest(name)
    if manifest.reader != "paired-npy":
        raise InputError(
            f"the dataset {name} has no stored embeddings to load: it holds raw items, which a model has to encode "
            "first"
        )
    features, captions = manifest.file("features"), manifest.file("captions")
    if features is None:
        raise InputError(f"{name}.yaml, field files: the reader paired-npy needs a file with the role features")
    arrays = _read(resolve(manifest, features, mirror))
    split, notes = _split(arrays, "")
    identity = identity_of(split)  # before rows get names, so that it does not depend on an optional file
    named: dict[str, str] = {}
    if captions is not None:
        try:
            split, named = _name_rows(split, resolve(manifest, captions, mirror))
        except DataUnavailable:
            notes.append(f"rows are named by number: {captions.name}, which holds ids and captions, is not at hand")
    return _Stored(name, manifest.model or name, manifest.licence, split, None, identity, tuple(notes), named)


def _from_file(path: Path) -> _Stored:
    arrays = _read(path)
    unknown = next((key for key in arrays if key not in _KEYS), None)
    if unknown is not None:
        raise InputError(f"{path}: {nearest(unknown, _KEYS, 'key')}")
    try:
        split, notes = _split(arrays, "")
        whole = [split]
        bank = None
        if any(key.startswith("bank_") for key in arrays):
            bank, more = _split(arrays, "bank_")
            whole.append(bank)
            notes += more + _shared_rows(bank, split)
            if bank.image.shape[1] != split.image.shape[1]:
                raise InputError(
                    f"the bank is {bank.image.shape[1]} wide and the rest {split.image.shape[1]}; valid is "
                    "one width for all"
                )
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return _Stored(
        path.name,
        f"embeddings of {path.name}",
        "not stated by the file",
        split,
        bank,
        identity_of(*whole),
        tuple(notes),
        {},
    )


def _split(arrays: Mapping[str, np.ndarray], prefix: str) -> tuple[Split, list[str]]:
    """Build a Split from the parts whose keys start with ``prefix``, with notes on types and norms."""
    for key in (f"{prefix}image", f"{prefix}text"):
        if key not in arrays:
            raise InputError(f"there is no {key!r}; valid are the keys {prefix}image and {prefix}text together")
    image, text = arrays[f"{prefix}image"], arrays[f"{prefix}text"]
    for key, values in ((f"{prefix}image", image), (f"{prefix}text", text)):
        if values.ndim != 2:
            raise InputError(f"{key!r} has shape {values.shape}; valid is [rows, columns]")
    ids = (
        arrays.get(f"{prefix}{key}_ids", _row_names(prefix, len(values)))
        for key, values in (("image", image), ("text", text))
    )
    try:
        split = Split(image, text, _relevance(arrays, prefix, (len(image), len(text))), *ids)
    except InputError as error:
        raise InputError(f"bank: {error}" if prefix else str(error)) from error
    notes = []
    for key, values, kept in ((f"{prefix}image", image, split.image), (f"{prefix}text", text, split.text)):
        stored = (values.dtype.metadata or {}).get("stored", str(values.dtype))
        if stored != "float32":
            notes.append(f"{key} is stored as {stored} and used as float32")
        norms = np.concatenate([np.linalg.norm(rows.astype(np.float64), axis=1) for rows in parts(kept)])
        if abs(norms - 1).max() > 1e-5:
            notes.append(f"{key} norms lie between {norms.min():.5g} and {norms.max():.5g}; rows are kept as stored")
    return split, notes


def _row_names(prefix: str, n: int) -> np.ndarray:
    return np.char.add("bank-" if prefix else "", np.arange(n).astype(str))


def _relevance(arrays: Mapping[str, np.ndarray], prefix: str, shape: tuple[int, int]) -> sparse.csr_array:
    matrix = arrays.get(f"{prefix}relevance")
    rows, columns = (arrays.get(f"{prefix}relevance_{modality}") for modality in ("image", "text"))
    if (rows is None) != (columns is None) or (matrix is not None and rows is not None):
        raise InputError(
            f"relevance is given in parts; valid is either {prefix}relevance, or {prefix}relevance_image "
            f"with {prefix}relevance_text"
        )
    if matrix is None and rows is None:
        if shape[0] != shape[1]:
            raise InputError(
                f"there are {shape[0]} image rows and {shape[1]} text rows and no {prefix}relevance; valid "
                "is a relevance, or equal numbers (row i then pairs with row i)"
            )
        rows = columns = np.arange(shape[0])
    elif matrix is not None:
        if matrix.dtype == bool:
            return sparse.csr_array(matrix) if matrix.shape == shape else _refuse(prefix, matrix, shape)
        if matrix.dtype.kind not in "iu" or matrix.ndim != 2 or matrix.shape[1] != 2:
            _refuse(prefix, matrix, shape)
        rows, columns = matrix.T
    if rows.ndim != 1 or rows.shape != columns.shape or {rows.dtype.kind, columns.dtype.kind} - set("iu"):
        _refuse(prefix, rows, shape)
    for modality, indices, n in (("image", rows, shape[0]), ("text", columns, shape[1])):
        outside = np.flatnonzero((indices < 0) | (indices >= n))
        if len(outside):
            raise InputError(
                f"{prefix}relevance, pair {outside[0]} names {modality} row {indices[outside[0]]}; valid is "
                f"0 to {n - 1}"
            )
    return sparse.csr_array(
        (np.ones(len(rows), dtype=bool), (rows.astype(np.int64), columns.astype(np.int64))), shape=shape
    )


def _refuse(prefix: str, values: np.ndarray, shape: tuple[int, int]) -> sparse.csr_array:
    raise InputError(
        f"{prefix}relevance has shape {values.shape} and dtype {values.dtype}; valid is a bool matrix"
        f" {shape}, or integer pairs [m, 2] of image row and text row"
    )


def _shared_rows(bank: Split, split: Split) -> list[str]:
    """Say how many vectors of the bank are rows of the evaluation too: such a bank is not an honest one."""
    notes = []
    for modality in ("image", "text"):
        known = {hash(row.tobytes()) for row in getattr(split, modality)}  # 64 bits a row, not the row
        shared = sum(hash(row.tobytes()) in known for rows in parts(getattr(bank, modality)) for row in rows)
        if shared:
            notes.append(
                f"{shared} of {len(getattr(bank, modality))} bank {modality} rows equal rows that are"
                " evaluated: to that extent the bank is transductive"
            )
    return notes


def _name_rows(split: Split, path: Path) -> tuple[Split, dict[str, str]]:
    """Name rows after COCO captions: images in order of first annotation, each with its last caption."""
    last = {entry["image_id"]: entry for entry in json.loads(path.read_text(encoding="utf-8"))["annotations"]}
    entries = list(last.values())[: len(split.image)]  # a dict keeps the place of a key's first appearance
    image_ids = np.array([str(entry["image_id"]) for entry in entries])
    text_ids = np.array([str(entry["id"]) for entry in entries])
    captions = {str(entry["id"]): entry["caption"].strip() for entry in entries}
    return Split(split.image, split.text, split.relevance, image_ids, text_ids), captions


# ---------------------------------------------------------------- files -> arrays


def _read(path: Path) -> dict[str, np.ndarray]:
    """Return the named arrays of ``path``; raises InputError, naming the file, for all that is wrong."""
    if path.suffix not in _READERS:
        raise InputError(f"{path}: the ending {path.suffix!r} is not known; valid: {', '.join(_READERS)}")
    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    from pyarrow import ArrowException
    from safetensors import SafetensorError

    broken = (
        OSError,
        ValueError,
        EOFError,
        KeyError,
        MemoryError,
        RuntimeError,  # an encrypted archive
        SyntaxError,  # this and the next: a damaged .npy header
        TokenError,
        zipfile.BadZipFile,
        zlib.error,
        ArrowException,
        SafetensorError,
    )
    try:
        return _READERS[path.suffix](path)
    except InputError as error:  # before ValueError, which it derives from
        raise InputError(f"{path}: {error}") from error
    except broken as error:
        if "Object arrays" in str(error):
            raise InputError(
                f"{path}: it holds Python objects, which are never unpickled; valid are arrays of numbers, "
                "and ids as arrays of strings"
            ) from error
        raise InputError(f"{path}: the file is truncated, corrupted or not a {path.suffix} file") from error


def _npz(path: Path) -> dict[str, np.ndarray]:
    archive = np.load(path, allow_pickle=False)
    if isinstance(archive, np.ndarray):
        raise InputError("this is a single array, as .npy holds it, and not an .npz archive")
    with archive:
        return {key: np.asarray(archive[key]) for key in archive.files}


def _npy(path: Path) -> dict[str, np.ndarray]:
    with path.open("rb") as stream:
        array = np.lib.format.read_array(stream, allow_pickle=False)
    if array.ndim != 3 or len(array) != 2:
        raise InputError(f"the array has shape {array.shape}; valid is (2, n, d), images first")
    return {"image": array[0], "text": array[1]}


def _safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as stream:  # it checks the whole of the header
        bfloat = [name for name in stream.keys() if stream.get_slice(name).get_dtype() == "BF16"]  # noqa: SIM118
        # numpy has no such type; torch has, and the dtype's metadata keeps the fact for the notes
        arrays = {name: stream.get_tensor(name).float().numpy().view(_BFLOAT16) for name in bfloat}
    mapped, metadata = map_tensors(path, leave=["BF16"])
    arrays |= mapped
    return arrays | {
        key: np.array(json.loads(metadata[key])) for key in _KEYS if key.endswith("_ids") and key in metadata
    }


def _parquet(path: Path) -> dict[str, np.ndarray]:
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    missing = {"modality", "id", "embedding"} - set(table.column_names)
    unknown = set(table.column_names) - {"modality", "id", "embedding", "relevant", "pair"}
    if missing or unknown or {"relevant", "pair"} <= set(table.column_names):
        raise InputError(
            f"the columns are {', '.join(table.column_names)}; valid are modality, id, embedding, and at most"
            " one of relevant and pair"
        )
    lengths = pc.list_value_length(table["embedding"]).fill_null(0).to_numpy()
    if len(set(lengths.tolist())) > 1:
        row = int(np.flatnonzero(lengths != lengths[0])[0])
        raise InputError(
            f"row {row} has {lengths[row]} numbers in embedding and row 0 has {lengths[0]}; valid is one width"
        )
    values = pc.list_flatten(table["embedding"]).to_numpy().reshape(len(lengths), -1)
    frame = table.drop_columns(["embedding"]).to_pandas()
    frame["id"] = frame["id"].astype(str)
    arrays: dict[str, np.ndarray] = {}
    kinds = ("image", "text", "bank_image", "bank_text")
    other = np.flatnonzero(~frame["modality"].isin(kinds).to_numpy())
    if len(other):
        raise InputError(f"row {other[0]} has the modality {frame['modality'][other[0]]!r}; valid: {', '.join(kinds)}")
    for kind in kinds:
        rows = (frame["modality"] == kind).to_numpy()
        if rows.any():
            arrays |= {kind: values[rows], f"{kind}_ids": frame["id"][rows].to_numpy(dtype=str)}
    for prefix in ("", "bank_"):
        if {f"{prefix}image", f"{prefix}text"} <= set(arrays):
            pairs = _parquet_pairs(frame, prefix)
            if pairs is not None:
                arrays[f"{prefix}relevance"] = pairs
    return arrays


def _parquet_pairs(frame: pd.DataFrame, prefix: str) -> np.ndarray | None:
    import pandas as pd

    sides = {side: frame[frame["modality"] == prefix + side].reset_index(drop=True) for side in ("image", "text")}
    image, text = sides["image"], sides["text"]
    if "pair" in frame:
        joined = image.reset_index().dropna(subset="pair").merge(text.reset_index(), on="pair")
        return joined[["index_x", "index_y"]].to_numpy(dtype=np.int64)
    if "relevant" not in frame:
        return None
    found = []
    for here, there, flip in (("image", "text", False), ("text", "image", True)):
        named = sides[here]["relevant"].explode().dropna().astype(str)
        index = pd.Index(sides[there]["id"])
        if not index.is_unique:
            raise InputError(
                f"{prefix}{there} id {index[index.duplicated()][0]!r} stands on several rows; valid is a "
                "different id for every item"
            )
        target = index.get_indexer(named)
        if (target < 0).any():
            raise InputError(
                f"relevant names {named.to_numpy()[target < 0][0]!r}, which is the id of no {prefix}{there} "
                "row; valid are ids of the other modality"
            )
        pairs = np.stack([named.index.to_numpy(), target], axis=1).astype(np.int64)
        found.append(pairs[:, ::-1] if flip else pairs)
    return np.concatenate(found)


_READERS: dict[str, Callable[[Path], dict[str, np.ndarray]]] = {
    ".npz": _npz,
    ".npy": _npy,
    ".safetensors": _safetensors,
    ".parquet": _parquet,
}
