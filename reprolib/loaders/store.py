"""Arrays on disk, addressed by content: written atomically, verified on every use, never unpickled."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file


def digest(*parts: object) -> str:
    """Return the sha256 (hex) of ``parts``: arrays by dtype, shape and bytes, all else as JSON."""
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray) and part.dtype.kind not in "OU":
            sha.update(f"array {part.dtype.str} {part.shape}".encode())
            sha.update(np.ascontiguousarray(part).view(np.uint8).reshape(-1).data)
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


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write named arrays and their digest to one safetensors file, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".part")
    os.close(handle)
    contiguous = {key: np.ascontiguousarray(value) for key, value in arrays.items()}
    try:
        save_file(contiguous, name, metadata={"digest": _content(contiguous)})
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def read_arrays(path: Path) -> dict[str, np.ndarray] | None:
    """Return the arrays of ``path``, or None if the file is missing, truncated or not what was written."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="numpy") as stream:
            arrays = {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118 (not a mapping)
            expected = (stream.metadata() or {}).get("digest")
    except (SafetensorError, OSError, ValueError):
        return None
    return arrays if _content(arrays) == expected else None


def _content(arrays: Mapping[str, np.ndarray]) -> str:
    return digest(*(part for key in sorted(arrays) for part in (key, arrays[key])))
