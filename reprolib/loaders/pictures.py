"""Pictures in files, read when they are asked for: as good as an array of images, without holding them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import overload

import numpy as np

from reprolib.errors import InputError
from reprolib.loaders.store import digest, file_digest


class PictureFiles(Sequence[np.ndarray]):
    """A sequence of image files; item i is uint8 [h, w, 3], decoded on access, rows may differ in size.

    A slice, a list or an integer array of rows gives the ``PictureFiles`` of these. Raises InputError, naming the
    file, for one that cannot be decoded.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(Path(path) for path in paths)

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, rows: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, rows: slice | Sequence[int] | np.ndarray) -> PictureFiles: ...
    def __getitem__(self, rows: int | slice | Sequence[int] | np.ndarray) -> np.ndarray | PictureFiles:
        if isinstance(rows, int | np.integer):
            return decode(self.paths[rows])
        if isinstance(rows, slice):
            return PictureFiles(self.paths[rows])
        return PictureFiles([self.paths[row] for row in np.arange(len(self))[np.asarray(rows)]])

    def __iter__(self) -> Iterator[np.ndarray]:
        return map(decode, self.paths)

    def digest(self) -> str:
        """Return the sha256 (hex) over the bytes of the files, in their order; their names do not matter."""
        return digest([_digest(path, *_state(path)) for path in self.paths])


def decode(path: Path) -> np.ndarray:
    """Return the picture as uint8 [h, w, 3], transparent parts on white, turned as its EXIF tag says.

    Raises InputError, naming the file, where it is missing, truncated or no picture.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            if "A" in image.getbands() or "transparency" in image.info:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return np.asarray(image.convert("RGB"))
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} is not a whole picture: {str(error).splitlines()[0]}") from error


def _state(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    return stat.st_size, stat.st_mtime_ns


@lru_cache(maxsize=1_000_000)
def _digest(path: Path, size: int, mtime_ns: int) -> str:
    return file_digest(path)
