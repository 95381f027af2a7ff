"""Arrays on disk, addressed by content: written atomically, verified on every use, mapped, never unpickled."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Container, Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from reprolib.mapped import opened, parts


def digest(*values: object) -> str:
    """Return the sha256 (hex) of ``values``: arrays by dtype, shape and bytes, all else as JSON."""
    sha = hashlib.sha256()
    for part in values:
        if isinstance(part, np.ndarray) and part.dtype.kind not in "OU":
            sha.update(f"array {part.dtype.str} {part.shape}".encode())
            for rows in parts(part):
                sha.update(np.ascontiguousarray(rows).view(np.uint8).reshape(-1).data)
        elif isinstance(part, bytes):
            sha.update(b"bytes %d " % len(part) + part)
        else:
            value = part.tolist() if isinstance(part, np.ndarray) else part
            sha.update(json.dumps(value, sort_keys=True, ensure_ascii=False).encode() + b"\0")
    return sha.hexdigest()


def file_digest(path: Path) -> str:
    """Return the sha256 (hex) of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], about: str = "") -> None:
    """Write named arrays and their digest to one safetensors file, atomically.

    ``about`` is what they are, such as the key of a store; who reads them has to name the same.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".part")
    os.close(handle)
    contiguous = {key: np.ascontiguousarray(value) for key, value in arrays.items()}
    try:
        save_file(contiguous, name, metadata={"digest": _content(contiguous, about)})
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def read_arrays(path: Path, about: str = "") -> dict[str, np.ndarray] | None:
    """Return the arrays of ``path`` in memory, or None where ``map_arrays`` does."""
    arrays = map_arrays(path, about)
    return arrays and {key: np.array(value) for key, value in arrays.items()}


def map_arrays(path: Path, about: str = "") -> dict[str, np.ndarray] | None:
    """Return the arrays of ``path`` without reading them into memory; what is written to them never reaches the file.

    None if the file is missing, truncated, of another format, not what was written, or not written as ``about``. All
    of it is read once, to be verified.
    """
    try:
        arrays, metadata = map_tensors(path)
        expected = metadata["digest"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return None
    return arrays if _content(arrays, about) == expected else None


def map_tensors(path: Path, leave: Container[str] = ()) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return the tensors of a safetensors file, mapped and not verified, and its metadata.

    Those of the types ``leave`` (such as "BF16") are left out. Raises OSError, ValueError, KeyError, TypeError,
    AttributeError or OverflowError for what is not such a file.
    """
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > path.stat().st_size - 8:
            raise ValueError("the header is longer than the file")
        header = json.loads(stream.read(length))
    metadata = header.pop("__metadata__", {})
    kept = {key: entry for key, entry in header.items() if entry["dtype"] not in leave}
    return {key: _mapped(path, 8 + length, **entry) for key, entry in kept.items()}, metadata


def _mapped(path: Path, start: int, dtype: str, shape: list[int], data_offsets: list[int]) -> np.ndarray:
    begin, end = data_offsets
    if begin == end:  # no bytes cannot be mapped
        return np.empty(shape, _TYPES[dtype])
    array = opened(path, _TYPES[dtype], tuple(shape), start + begin)
    if array.nbytes != end - begin:
        raise ValueError("shape and offsets differ")
    return array


_TYPES = {  # https://github.com/huggingface/safetensors, README, Format
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "u1",
    "BOOL": "?",
}


def _content(arrays: Mapping[str, np.ndarray], about: str) -> str:
    named = (value for key in sorted(arrays) for value in (key, arrays[key]))
    return digest(*([about] if about else []), *named)
