"""From a manifest to a verified file: the cache, then a mirror directory, then the manifest's addresses."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

from reprolib import paths
from reprolib.errors import DataUnavailable, InputError, RunError
from reprolib.loaders.download import DownloadError, discard, download, locked, part_of
from reprolib.loaders.manifest import DataFile, Manifest
from reprolib.loaders.unpack import unpack

_MARKERS = ".unpacked"  # a folder in the root, with a file per archive: the sha256 of what was unpacked


class Expected(NamedTuple):
    """What a file is checked against: ``hash`` by ``algorithm``, ``known`` from the manifest or a first use."""

    algorithm: Literal["sha256", "md5"]
    hash: str
    known: Literal["manifest", "recorded"]


@lru_cache(maxsize=4096)
def _hash(path: Path, algorithm: str, size: int, mtime_ns: int) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, algorithm).hexdigest()


def hash_of(path: Path, algorithm: str = "sha256") -> str:
    """Return the hash (hex) of a file, computed once for as long as its size and time stay."""
    state = path.stat()
    return _hash(path, algorithm, state.st_size, state.st_mtime_ns)


def expected(manifest: Manifest, file: DataFile) -> Expected | None:
    """Return what ``file`` must be: by the manifest, else by the record of its first use; None before that."""
    if file.sha256:
        return Expected("sha256", file.sha256, "manifest")
    if file.md5:
        return Expected("md5", file.md5, "manifest")
    recorded = _records(manifest).get(file.name)
    return Expected("sha256", recorded, "recorded") if recorded else None


def _record_file(manifest: Manifest) -> Path:
    return _folder(manifest) / "recorded.json"


def _records(manifest: Manifest) -> dict[str, str]:
    path = _record_file(manifest)
    if not path.is_file():
        return {}
    try:
        return {str(name): str(value) for name, value in json.loads(path.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{path} is damaged: delete it, and the files are recorded anew") from error


def _record(manifest: Manifest, file: DataFile, sha256: str) -> None:
    path = _record_file(manifest)
    try:
        with locked(path.with_name(".recorded.lock")):
            part = path.with_name(f".{path.name}.part")
            part.write_text(json.dumps(_records(manifest) | {file.name: sha256}, indent=1), encoding="utf-8")
            os.replace(part, path)
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror or error}") from error


def problem(manifest: Manifest, file: DataFile, path: Path) -> str | None:
    """Return how ``path`` departs from what ``file`` must be, in words, or None if it does not."""
    size, wanted = path.stat().st_size, expected(manifest, file)
    of = f"{size} of {file.bytes} bytes" if file.bytes else f"{size} bytes"
    if wanted:
        actual = hash_of(path, wanted.algorithm)
        if actual != wanted.hash:
            sums = f"{of}, {wanted.algorithm} {actual}, expected {wanted.hash}"
            if wanted.known == "manifest":
                return f"is not the file that the manifest names ({sums})"
            record = _record_file(manifest)
            return f"is not the file of the first use, which {record} tells ({sums}; if this is right, delete the line)"
    if not file.sha256 and file.bytes and size != file.bytes:
        return f"is not the file that the manifest names ({of})"
    return None


def _verify(manifest: Manifest, file: DataFile, path: Path, remedy: str, label: str = "") -> None:
    """Check a file, and record it if nothing was known about it."""
    found = problem(manifest, file, path)
    if found:
        raise InputError(f"{label or path} {found}: {remedy}")
    if expected(manifest, file) is None:
        _record(manifest, file, hash_of(path))


def _folder(manifest: Manifest) -> Path:
    return paths.cache() / "datasets" / manifest.place


def places(manifest: Manifest, mirror: str | Path | None = None) -> dict[str, Path]:
    """Return the folders that may hold the dataset, "cache" before "mirror" (default: ``REPROLIB_MIRROR``).

    Raises InputError for a mirror that is not a folder.
    """
    folder = Path(mirror).expanduser() if mirror else paths.mirror()
    if folder and not folder.is_dir():
        raise InputError(f"the mirror {folder} is not a folder; valid is one laid out as <dataset>/<file name>")
    found = {"cache": _folder(manifest)}
    return found | {"mirror": folder / manifest.place} if folder else found


def at_hand(manifest: Manifest, file: DataFile, mirror: str | Path | None = None) -> tuple[Path, str] | None:
    """Return the path of ``file`` and "cache" or "mirror", or None where neither has it; nothing is verified.

    ``mirror`` defaults to ``REPROLIB_MIRROR``. Raises InputError for a mirror that is not a folder.
    """
    for where, place in places(manifest, mirror).items():
        if (path := place / file.name).is_file():
            return path, where
    return None


def resolve(manifest: Manifest, file: DataFile | str, mirror: str | Path | None = None) -> Path:
    """Return the local path of ``file`` (an entry of the manifest, or its name), its content verified.

    Places, in order: the cache (``paths.cache()/datasets/<folder>/<file name>``), the mirror (argument,
    else ``REPROLIB_MIRROR``; ``<folder>/<file name>``, used in place and never written to), the manifest's
    addresses. A download appears in the cache whole and verified, or not at all; one that broke off goes on at the
    next call. Where the manifest states no hash, that of the first use is kept in ``recorded.json`` of the cache.

    Raises InputError, naming the file and both hashes, for a file that is not what the manifest says, and
    DataUnavailable, with the way to obtain it, where no place has it.
    """
    if isinstance(file, str):
        names = {entry.name: entry for entry in manifest.files}
        if file not in names:
            raise InputError(f"{manifest.name} has no file {file!r}; valid: {', '.join(names)}")
        file = names[file]
    found = at_hand(manifest, file, mirror)
    if found:
        path, where = found
        _verify(manifest, file, path, f"delete it from the {where}, or replace it by a complete copy")
        return path
    if not file.urls:
        raise DataUnavailable(
            f"{manifest.name}/{file.name} is neither in the cache nor in a mirror, and has no direct "
            f"address; to obtain it: {manifest.how_to_obtain}"
        )
    return _fetch(manifest, file)


def _fetch(manifest: Manifest, file: DataFile) -> Path:
    target = _folder(manifest) / file.name
    failed: list[str] = []
    try:
        with locked(target.with_name(f".{file.name}.lock")):
            if target.is_file():  # another process brought it meanwhile
                return resolve(manifest, file)
            for url in file.urls:
                try:
                    _fetch_from(url, manifest, file, target)
                    return target
                except DownloadError as error:
                    failed.append(f"{url} did not deliver it ({error})")
                except InputError as error:
                    discard(target)
                    if url == file.urls[-1]:
                        raise
                    failed.append(str(error))
    except OSError as error:
        raise RunError(f"{target} cannot be written: {error.strerror or error}") from error
    raise DataUnavailable(
        f"{manifest.name}/{file.name} is neither in the cache nor in a mirror, and {'; '.join(failed)}; "
        f"to obtain it: {manifest.how_to_obtain}"
    )


def _fetch_from(url: str, manifest: Manifest, file: DataFile, target: Path) -> None:
    remedy = "it was discarded; use a mirror that holds the file, or check whether the source has changed"
    resumed = download(url, target, file.bytes, hashed=expected(manifest, file) is not None)
    if resumed and problem(manifest, file, part_of(target)):  # the part may have been of another version
        discard(target)
        download(url, target, file.bytes)
    _verify(manifest, file, part_of(target), remedy, label=f"what {url} returned")
    os.replace(part_of(target), target)
    discard(target)


# ---------------------------------------------------------------- the tree that archives unpack to


def unpacked(manifest: Manifest, mirror: str | Path | None = None) -> tuple[Path, str] | None:
    """Return the root of the dataset's tree and "cache" or "mirror", or None where neither has all of it."""
    archives = [file for file in manifest.files if file.unpack and not file.optional]
    for where, folder in places(manifest, mirror).items():
        marked = (folder / _MARKERS).is_dir()  # else somebody put the tree there by hand
        if marked and not all(_is_unpacked(folder, file) for file in archives):
            continue
        if not _missing(manifest, folder) and (manifest.root_files or (marked and archives)):
            return folder, where
    return None


def root(manifest: Manifest, mirror: str | Path | None = None) -> Path:
    """Return the folder that holds the dataset's unpacked tree, in the layout of its publisher.

    That is its place in the cache or in the mirror if all ``root_files`` are there; else the manifest's archives are
    found or fetched, verified, and unpacked into the cache. A mirror is never written to.

    Raises InputError for an archive that is not what the manifest says or is not safe to unpack, and DataUnavailable,
    with the way to obtain the dataset and the first missing path, where no place has it.
    """
    place = unpacked(manifest, mirror)
    if place:
        return place[0]
    folder = _folder(manifest)
    archives = [
        file for file in manifest.files if file.unpack and (not file.optional or at_hand(manifest, file, mirror))
    ]
    plain = [file for file in manifest.files if file.name in manifest.root_files and not file.unpack]
    missing = _missing(manifest, folder)
    if archives or plain:
        trees = [path for path in manifest.root_files if path not in {file.name for file in plain}]
        try:
            with locked(folder / ".root.lock"):
                whole = all((folder / path).exists() for path in trees)
                by_hand = bool(trees) and whole and not (folder / _MARKERS).is_dir()
                for file in [] if by_hand else archives:
                    if not (whole and _is_unpacked(folder, file)):
                        _unpack(manifest, file, resolve(manifest, file, mirror))
                for file in plain:
                    _bring(resolve(manifest, file, mirror), folder / file.name)
        except OSError as error:
            raise RunError(f"{folder} cannot be written: {error.strerror or error}") from error
        missing = _missing(manifest, folder)
        if not missing:
            return folder
    raise DataUnavailable(
        f"{manifest.name}/{missing or ''} is neither in the cache ({folder}) nor in a mirror, and no archive that the "
        f"manifest names holds it; to obtain it: {manifest.how_to_obtain}"
    )


def _missing(manifest: Manifest, folder: Path) -> str | None:
    return next((path for path in manifest.root_files if not (folder / path).exists()), None)


def _is_unpacked(folder: Path, file: DataFile) -> bool:
    marker = folder / _MARKERS / file.name
    return marker.is_file() and file.sha256 in (None, marker.read_text(encoding="utf-8").strip())


def _unpack(manifest: Manifest, file: DataFile, archive: Path) -> None:
    folder = _folder(manifest)
    marker = folder / _MARKERS / file.name
    marker.parent.mkdir(parents=True, exist_ok=True)  # from now on the folder counts only with all its marks
    marker.unlink(missing_ok=True)
    try:
        unpack(archive, folder)
        marker.write_text(f"{hash_of(archive)}\n", encoding="utf-8")
    finally:
        with contextlib.suppress(OSError):
            marker.parent.rmdir()  # only if it is empty


def _bring(source: Path, target: Path) -> None:
    """Copy a file of a mirror to its place in the tree."""
    if target.exists():
        return
    part = target.with_name(f".{target.name}.part")
    try:
        shutil.copyfile(source, part)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
