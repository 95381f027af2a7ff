"""Downloads that go on where they broke off: to a part file beside the target, retried, within the disk's room."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from reprolib.errors import ReprolibError, RunError

if TYPE_CHECKING:
    from tqdm import tqdm

TIMEOUT = (15.0, 60.0)  # seconds to connect, and between two pieces: a slow server is waited for, a dead one is not
ATTEMPTS = 4  # in a row that bring nothing new
PAUSE = 1.0  # seconds before the first repetition, doubled each time
_PIECE = 1 << 16


class DownloadError(ReprolibError):
    """An address did not deliver the file; the message is the reason, in a few words."""


def part_of(target: Path) -> Path:
    """Return where the beginning of a download waits for its rest."""
    return target.with_name(f"{target.name}.part")


def discard(target: Path) -> None:
    """Remove the unfinished download of ``target``, if there is one."""
    for path in (part_of(target), _origin(target)):
        with contextlib.suppress(OSError):  # what made the download fail may keep this from working, too
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file ``path``, which other processes on this machine wait for; it goes with its holder."""
    try:
        import fcntl
    except ImportError:  # not on Windows, where two downloads of one file may get in each other's way
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with path.open("a") as lock:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                same = path.stat().st_ino == os.fstat(lock.fileno()).st_ino
            except FileNotFoundError:
                same = False
            if not same:  # its last holder removed it while this one waited
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def check_room(folder: Path, needed: int, what: str) -> None:
    """Raise RunError if the disk of ``folder`` has no room for ``needed`` more bytes."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise RunError(f"{what} needs {size_text(needed)}, and {folder} has {size_text(free)} left")


def size_text(size: float) -> str:
    """Return a number of bytes in words: "12.3 MB"."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} bytes" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def download(url: str, target: Path, size: int | None = None, *, hashed: bool = True) -> bool:
    """Bring ``url`` whole into ``part_of(target)``, whose folder exists; return whether it went on with a part.

    ``size`` in bytes, where known. A part that the server gives no means to recognise is continued only where a hash
    will tell (``hashed``). A broken connection is tried again, with growing pauses, until ``ATTEMPTS`` in a
    row bring nothing new; what has arrived stays for the next call. Raises DownloadError with the reason, RunError for
    want of room on the disk, OSError where a file cannot be written.
    """
    import requests

    part = part_of(target)
    resumed = False
    best, failures = _length(part), 0
    while True:
        try:
            resumed |= _attempt(url, target, size, hashed)
            return resumed
        except requests.RequestException as error:
            if not _passing(error):
                raise DownloadError(_reason(error)) from error
            failures = 0 if _length(part) > best else failures + 1
            best = max(best, _length(part))
            if failures >= ATTEMPTS:
                raise DownloadError(_reason(error)) from error
            time.sleep(PAUSE * 2 ** max(failures - 1, 0))


def _attempt(url: str, target: Path, size: int | None, hashed: bool) -> bool:
    """Ask for what is missing, and write it; return whether the server continued the part."""
    import requests

    part, begun, validator = part_of(target), 0, None
    with contextlib.suppress(OSError, ValueError):
        origin = json.loads(_origin(target).read_text(encoding="utf-8"))
        if origin["url"] == url and (origin["validator"] or hashed):
            begun, validator = _length(part), origin["validator"]
    headers = {"Accept-Encoding": "identity"}  # a range of a compressed answer is no range of the file
    if begun:
        headers["Range"] = f"bytes={begun}-"
        if validator:
            headers["If-Range"] = validator  # a changed file comes whole
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
        if answer.status_code == requests.codes.requested_range_not_satisfiable:
            if begun and answer.headers.get("Content-Range", "").endswith(f"/{begun}"):
                return True  # all of it had arrived
            discard(target)
            raise requests.ConnectionError("the range was refused")
        answer.raise_for_status()
        continued = answer.status_code == requests.codes.partial_content
        if continued and not answer.headers.get("Content-Range", "").startswith(f"bytes {begun}-"):
            discard(target)
            raise requests.ConnectionError("another range was sent than asked for")
        if answer.headers.get("Content-Type", "").startswith("text/html") and target.suffix not in (".html", ".htm"):
            raise DownloadError("it sent a web page instead")
        answer.raw.headers.pop("Content-Encoding", None)  # hashes are published of the bytes as sent
        begun = begun if continued else 0
        length = answer.headers.get("Content-Length")
        whole = begun + int(length) if length else size
        check_room(target.parent, (whole or 0) - begun, f"the download of {url}")
        etag = answer.headers.get("ETag", "")
        strong = etag if etag and not etag.startswith("W/") else answer.headers.get("Last-Modified")
        _origin(target).write_text(json.dumps({"url": url, "validator": strong}), encoding="utf-8")
        answer.raw.enforce_content_length = False  # it would drop the piece that a break cuts short
        with part.open("ab" if continued else "wb") as stream, progress(target.name, whole, begun) as bar:
            for piece in answer.iter_content(_PIECE):
                stream.write(piece)
                bar.update(len(piece))
    if whole is not None and length and _length(part) < whole:
        raise requests.exceptions.ChunkedEncodingError("the connection closed early")
    return continued


def progress(name: str, total: int | None, initial: int = 0) -> tqdm:
    """Return a bar of bytes, shown on a terminal only."""
    from tqdm import tqdm

    return tqdm(
        desc=name, total=total, initial=initial, unit="B", unit_scale=True, disable=not sys.stderr.isatty(), leave=False
    )


def _origin(target: Path) -> Path:
    return target.with_name(f"{target.name}.part.json")


def _length(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _passing(error: Exception) -> bool:
    """Whether the same request may succeed in a moment."""
    import requests

    if isinstance(error, requests.HTTPError) and error.response is not None:
        return error.response.status_code in (408, 425, 429) or error.response.status_code >= 500
    return isinstance(error, requests.ConnectionError | requests.Timeout | requests.exceptions.ChunkedEncodingError)


def _reason(error: Exception) -> str:
    import requests

    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"HTTP status {error.response.status_code}"
    if isinstance(error, requests.Timeout) or "timed out" in str(error):
        return "no answer in time"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection closed before the end of the file"
    return "no connection" if isinstance(error, requests.ConnectionError) else type(error).__name__
