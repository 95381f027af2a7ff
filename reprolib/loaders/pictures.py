"""Pictures in files, read when they are asked for: as good as an array of images, without holding them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Protocol, overload

import numpy as np

from reprolib.errors import InputError
from reprolib.loaders.store import digest, file_digest


class Picture(Protocol):
    """One picture that is not a file of its own: part of one, or packed with others."""

    def pixels(self) -> np.ndarray:
        """Return uint8 [h, w, 3]; raises InputError, naming the place, where it cannot be decoded."""
        ...

    def digest(self) -> str:
        """Return the sha256 (hex) of what decides the pixels."""
        ...


@dataclass(frozen=True)
class Crop:
    """The part of an image file inside ``box`` (left, upper, right, lower), in pixels; fractions are rounded."""

    path: Path
    box: tuple[float, float, float, float]

    def pixels(self) -> np.ndarray:
        """Return uint8 [h, w, 3]; raises InputError, naming the file, for a box without area or outside the image."""
        whole = decode(self.path)
        left, upper, right, lower = (round(edge) for edge in self.box)
        part = whole[max(upper, 0) : max(lower, 0), max(left, 0) : max(right, 0)]
        if not part.size:
            height, width = whole.shape[:2]
            raise InputError(f"{self.path} is {width} x {height} pixels: nothing of it lies in the box {self.box}")
        return part

    def digest(self) -> str:
        """Return the sha256 (hex) over the file's bytes and the box."""
        return digest([_digest(self.path, *_state(self.path)), list(self.box)])


class PictureFiles(Sequence[np.ndarray]):
    """A sequence of image files; item i is uint8 [h, w, 3], decoded on access, rows may differ in size.

    An entry of ``paths`` is the path of a file, or a ``Picture``. A slice, a list or an integer array of rows gives
    the ``PictureFiles`` of these. Raises InputError, naming the file, for one that cannot be decoded.
    """

    def __init__(self, paths: Sequence[str | Path | Picture]) -> None:
        self.paths = tuple(Path(path) if isinstance(path, str) else path for path in paths)

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, rows: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, rows: slice | Sequence[int] | np.ndarray) -> PictureFiles: ...
    def __getitem__(self, rows: int | slice | Sequence[int] | np.ndarray) -> np.ndarray | PictureFiles:
        if isinstance(rows, int | np.integer):
            return _pixels(self.paths[rows])
        if isinstance(rows, slice):
            return PictureFiles(self.paths[rows])
        return PictureFiles([self.paths[row] for row in np.arange(len(self))[np.asarray(rows)]])

    def __iter__(self) -> Iterator[np.ndarray]:
        return map(_pixels, self.paths)

    def digest(self) -> str:
        """Return the sha256 (hex) over the bytes of the pictures, in their order; their names do not matter."""
        return digest(
            [_digest(path, *_state(path)) if isinstance(path, Path) else path.digest() for path in self.paths]
        )


def _pixels(path: Path | Picture) -> np.ndarray:
    return decode(path) if isinstance(path, Path) else path.pixels()


def decode(source: Path | bytes, label: str | None = None) -> np.ndarray:
    """Return the picture as uint8 [h, w, 3], transparent parts on white, turned as its EXIF tag says.

    ``source`` is a file, or the bytes of one; ``label`` names it in errors. Raises InputError where it is missing,
    truncated or no picture.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(BytesIO(source) if isinstance(source, bytes) else source) as opened:
            image = ImageOps.exif_transpose(opened)
            if "A" in image.getbands() or "transparency" in image.info:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return np.asarray(image.convert("RGB"))
    except UnidentifiedImageError as error:
        raise InputError(f"{label or source} is not a whole picture: its format is not known") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{label or source} is not a whole picture: {str(error).splitlines()[0]}") from error


def _state(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    return stat.st_size, stat.st_mtime_ns


@lru_cache(maxsize=1_000_000)
def _digest(path: Path, size: int, mtime_ns: int) -> str:
    return file_digest(path)
