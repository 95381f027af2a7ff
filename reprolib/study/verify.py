"""Whether a run directory still holds, byte for byte, what was written."""

from __future__ import annotations

from pathlib import Path

from reprolib.errors import RunError
from reprolib.study import provenance


def verify(run: Path) -> list[str]:
    """Return one sentence for every file of the run directory that is changed, missing or extra; empty: all is well.

    ``run.json`` names the SHA-256 of every file and ends in its own. Where that one does not fit, it vouches for
    nothing, and no other file is judged. Raises :class:`RunError` if there is no ``run.json``.
    """
    path = run / provenance.RUN
    if not path.is_file():
        raise RunError(f"{run} is not a finished run: it holds no {provenance.RUN}")
    vouches = ", so nothing vouches for the other files"
    try:
        record = provenance.read(run)
        whole = path.read_bytes() == provenance.sealed(record).encode()
    except (RunError, ValueError, AttributeError):  # not JSON, or not an object
        return [f"{provenance.RUN} is changed{vouches}"]
    if "sha256" not in record:
        return [f"{provenance.RUN} has no SHA-256 of its own (of an earlier version, or changed){vouches}"]
    if not whole:
        return [f"{provenance.RUN} is changed{vouches}"]
    recorded, found = record["files"], provenance.digests(run)
    return [
        *(f"{name} is changed" for name in recorded if found.get(name, recorded[name]) != recorded[name]),
        *(f"{name} is missing" for name in recorded if name not in found),
        *(f"{name} is extra: the run did not write it" for name in found if name not in recorded),
    ]
