"""Archives, unpacked as if a stranger had packed them: nothing outside the target, no links, within limits."""

from __future__ import annotations

import contextlib
import lzma
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from reprolib.errors import InputError, RunError
from reprolib.loaders.download import check_room, progress, size_text

_PIECE = 1 << 20


@dataclass(frozen=True)
class Limits:
    """What an archive may hold at most: ``entries``, ``total`` bytes, and ``ratio`` of these to its own size.

    The ratio counts above ``free`` bytes: a small archive of zeros does no harm.
    """

    entries: int = 5_000_000
    total: int = 500_000_000_000
    ratio: float = 100
    free: int = 100_000_000


@dataclass(frozen=True)
class _Entry:
    name: str
    size: int
    folder: bool
    odd: str | None  # what it is, if neither file nor folder
    source: zipfile.ZipInfo | tarfile.TarInfo


def unpack(archive: Path, target: Path, limits: Limits | None = None) -> None:
    """Unpack a zip or tar archive (plain, gzip, bzip2, xz) into the folder ``target``, which may hold other files.

    All is written beside ``target`` first and moved in at the end. Raises InputError, naming archive and entry, for a
    path that leads outside, a link or device, an entry that stands twice or cannot be read, and more than ``limits``
    allows; RunError where the disk has no room. Nothing is in ``target`` then.
    """
    limits = limits or Limits()
    beside = target.parent / f".{target.name}.{archive.name}.unpacking"
    shutil.rmtree(beside, ignore_errors=True)  # what a killed process left
    try:
        beside.mkdir(parents=True)
        with _reading(archive), _opened(archive) as opened:
            _extract(opened, archive, beside, limits)
        target.mkdir(parents=True, exist_ok=True)
        _merge(beside, target)
    except OSError as error:
        raise RunError(f"{archive} cannot be unpacked into {target}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


@contextlib.contextmanager
def _reading(archive: Path) -> Iterator[None]:
    broken = (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, NotImplementedError)
    try:
        yield
    except InputError:
        raise
    except (*broken, ValueError, RuntimeError) as error:
        if isinstance(error, RunError):
            raise
        raise InputError(f"{archive} is not a whole zip or tar archive: {str(error).splitlines()[0]}") from error
    except OSError as error:
        if error.errno is None:  # gzip and bz2 say so of a file, not of the disk
            raise InputError(f"{archive} is not a whole zip or tar archive: {error}") from error
        raise


def _opened(archive: Path) -> zipfile.ZipFile | tarfile.TarFile:
    with archive.open("rb") as stream:
        zipped = stream.read(2) == b"PK"
    return zipfile.ZipFile(archive) if zipped else tarfile.open(archive)


def _entries(opened: zipfile.ZipFile | tarfile.TarFile) -> Iterator[_Entry]:
    if isinstance(opened, zipfile.ZipFile):
        for info in opened.infolist():
            mode = info.external_attr >> 16
            odd = "encrypted" if info.flag_bits & 1 else None
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
                odd = "a link" if stat.S_ISLNK(mode) else "a device"
            yield _Entry(info.filename, info.file_size, info.is_dir(), odd, info)
    else:
        for member in opened:
            odd = None if member.isfile() or member.isdir() else "a device"
            if member.islnk() or member.issym():
                odd = "a link"
            yield _Entry(member.name, member.size, member.isdir(), odd, member)


def _extract(opened: zipfile.ZipFile | tarfile.TarFile, archive: Path, folder: Path, limits: Limits) -> None:
    packed = archive.stat().st_size
    allowed = min(limits.total, max(limits.free, int(limits.ratio * packed)))
    listed = packed  # of a tar the sizes are known at its end only
    if isinstance(opened, zipfile.ZipFile):
        listed = sum(info.file_size for info in opened.infolist())
    if listed > allowed:
        raise _too_much(archive, allowed)
    check_room(folder, listed, f"unpacking {archive.name}")
    written = 0
    with progress(f"unpacking {archive.name}", listed if isinstance(opened, zipfile.ZipFile) else None) as bar:
        for count, entry in enumerate(_entries(opened), start=1):
            if count > limits.entries:
                raise InputError(f"{archive} is refused: it holds more than {limits.entries:,} entries")
            path = folder / _inside(archive, entry)
            if entry.folder:
                path.mkdir(parents=True, exist_ok=True)
                continue
            if written + entry.size > allowed:
                raise _too_much(archive, allowed)
            path.parent.mkdir(parents=True, exist_ok=True)
            source = (
                opened.open(entry.source) if isinstance(opened, zipfile.ZipFile) else opened.extractfile(entry.source)
            )
            try:
                with source, path.open("xb") as stream:
                    length = _copy(source, stream, entry.size, bar)
            except FileExistsError as error:
                raise InputError(f"{archive} is refused: the entry {entry.name!r} stands in it twice") from error
            if length != entry.size:
                raise InputError(
                    f"{archive} is refused: {entry.name!r} is not of the {entry.size} bytes that it states"
                )
            written += length


def _copy(source: IO[bytes], stream: IO[bytes], size: int, bar) -> int:
    """Copy at most one byte more than ``size``: a size that lies is noticed without being written out."""
    length = 0
    while length <= size and (piece := source.read(min(_PIECE, size + 1 - length))):
        stream.write(piece)
        length += len(piece)
        bar.update(len(piece))
    return length


def _inside(archive: Path, entry: _Entry) -> PurePosixPath:
    path = PurePosixPath(entry.name)
    if entry.odd:
        raise InputError(f"{archive} is refused: the entry {entry.name!r} is {entry.odd}; valid are files and folders")
    if path.is_absolute() or ".." in path.parts or "\\" in entry.name or "\0" in entry.name:
        raise InputError(f"{archive} is refused: the entry {entry.name!r} leads outside the folder")
    return path


def _too_much(archive: Path, allowed: int) -> InputError:
    return InputError(
        f"{archive} is refused: unpacked it is larger than {size_text(allowed)}, the most that is allowed"
    )


def _merge(source: Path, target: Path) -> None:
    for entry in list(os.scandir(source)):
        place = target / entry.name
        if entry.is_dir() and place.is_dir() and not place.is_symlink():
            _merge(Path(entry.path), place)
        else:
            os.replace(entry.path, place)
