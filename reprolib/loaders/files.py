"""From a manifest to a verified file: the cache, then a mirror directory, then the manifest's address."""

from __future__ import annotations

import contextlib
import os
import sys
from functools import lru_cache
from pathlib import Path

from reprolib import paths
from reprolib.errors import DataUnavailable, InputError, RunError
from reprolib.loaders.manifest import DataFile, Manifest


@lru_cache(maxsize=4096)
def _sha256(path: Path, size: int, mtime_ns: int) -> str:
    import pooch

    return pooch.file_hash(str(path), alg="sha256")


def _verify(path: Path, file: DataFile, remedy: str, label: str = "") -> None:
    stat = path.stat()
    actual = _sha256(path, stat.st_size, stat.st_mtime_ns)
    if actual != file.sha256:
        raise InputError(
            f"{label or path} is not the file that the manifest names ({stat.st_size} of {file.bytes} bytes,"
            f" sha256 {actual}, expected {file.sha256}): {remedy}"
        )


def at_hand(manifest: Manifest, file: DataFile, mirror: str | Path | None = None) -> tuple[Path, str] | None:
    """Return the path of ``file`` and "cache" or "mirror", or None where neither has it; nothing is verified.

    ``mirror`` defaults to ``REPROLIB_MIRROR``. Raises InputError for a mirror that is not a folder.
    """
    folder = Path(mirror).expanduser() if mirror else paths.mirror()
    if folder and not folder.is_dir():
        raise InputError(f"the mirror {folder} is not a folder; valid is one laid out as <dataset>/<file name>")
    places = {"cache": paths.cache() / "datasets", "mirror": folder}
    for where, place in places.items():
        if place and (path := place / manifest.place / file.name).is_file():
            return path, where
    return None


def resolve(manifest: Manifest, file: DataFile | str, mirror: str | Path | None = None) -> Path:
    """Return the local path of ``file`` (an entry of the manifest, or its name), its sha256 verified.

    Places, in order: the cache (``paths.cache()/datasets/<folder>/<file name>``), the mirror (argument,
    else ``REPROLIB_MIRROR``; ``<folder>/<file name>``, used in place and never written to), the manifest's
    URL through pooch. A download appears in the cache whole and verified, or not at all.

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
        _verify(path, file, f"delete it from the {where}, or replace it by a complete copy")
        return path
    if not file.url:
        raise DataUnavailable(
            f"{manifest.name}/{file.name} is neither in the cache nor in a mirror, and has no direct "
            f"address; to obtain it: {manifest.how_to_obtain}"
        )
    return _fetch(manifest, file)


def _fetch(manifest: Manifest, file: DataFile) -> Path:
    import pooch
    import requests

    target = paths.cache() / "datasets" / manifest.place / file.name
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    download = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), chunk_size=1 << 16)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        download(file.url, str(part), None)
        _verify(
            part,
            file,
            "it was discarded; use a mirror that holds the file, or check whether the source has changed",
            label=f"what {file.url} returned",
        )
        os.replace(part, target)
    except requests.RequestException as error:  # before OSError, which it derives from
        raise DataUnavailable(
            f"{manifest.name}/{file.name} is neither in the cache nor in a mirror, and {file.url} did "
            f"not deliver it ({_reason(error)}); to obtain it: {manifest.how_to_obtain}"
        ) from error
    except OSError as error:
        raise RunError(f"{target} cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):  # what made the download fail may keep this from working, too
            part.unlink(missing_ok=True)
    return target


def _reason(error: Exception) -> str:
    import requests

    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"HTTP status {error.response.status_code}"
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection closed before the end of the file"
    return "no connection" if isinstance(error, requests.ConnectionError) else type(error).__name__
