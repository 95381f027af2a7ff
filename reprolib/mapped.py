"""Arrays that lie in a mapped file: read part by part, each let go of again, so that they never fill the memory."""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import sys
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from reprolib.errors import InputError

_PART = 2**24  # bytes of a part
_ours: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()  # what was mapped here: nobody else writes to it
_trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None


def mapping(array: np.ndarray) -> mmap.mmap | None:
    """Return the mapped file that holds the memory of ``array`` and can give it again, or None.

    Not a writeable mapping of somebody else's: what was written to it may be nowhere but in memory.
    """
    owner = _owner(array)
    return owner if owner is not None and (owner in _ours or memoryview(owner).readonly) else None


def _owner(array: np.ndarray) -> mmap.mmap | None:
    owner: object = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    return owner if isinstance(owner, mmap.mmap) else None


def opened(path: Path | str, dtype: np.dtype | type | str, shape: tuple[int, ...], start: int = 0) -> np.ndarray:
    """Return the array that lies in the file ``path`` from byte ``start`` on; it is only to be read."""
    return _entered(np.memmap(path, dtype, "c", start, shape))  # torch shares no memory that is read-only


def _entered(array: np.ndarray) -> np.ndarray:
    _ours.add(_owner(array))
    return array


def release(array: np.ndarray) -> None:
    """Let go of the pages of a mapped ``array``; whoever reads it again reads the file. Nothing for other arrays.

    What was written to ``scratch`` is in its file.
    """
    held = mapping(array)
    if held is not None and hasattr(mmap, "MADV_DONTNEED"):
        held.madvise(mmap.MADV_DONTNEED)


def scratch(shape: tuple[int, ...], dtype: np.dtype | type) -> np.ndarray:
    """Return an array of zeros in a file of its own, which is gone with the array.

    Raises InputError if the folder for temporary files has no room for it.
    """
    size = max(1, math.prod(shape) * np.dtype(dtype).itemsize)
    with tempfile.TemporaryFile() as file:
        if hasattr(os, "posix_fallocate"):  # a page that finds no room later would end the process
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                raise InputError(
                    f"a temporary file of {size / 2**20:,.0f} MiB cannot be written to {tempfile.gettempdir()} "
                    f"({error.strerror}); set TMPDIR to a folder with room for it"
                ) from error
        return _entered(np.memmap(file, dtype, "w+", shape=shape))


def parts(array: np.ndarray) -> Iterator[np.ndarray]:
    """Yield ``array`` by rows, about 16 MiB at a time; those of a mapped array are let go of one after the other."""
    rows = np.atleast_1d(array)
    step = max(1, _PART // max(1, rows[:1].nbytes))
    for start in range(0, len(rows), step):
        yield rows[start : start + step]
        release(array)


def trim() -> None:
    """Give freed memory back to the system, where the C library can (glibc): in a long run much of it is scattered."""
    if _trim is not None:
        _trim(0)
