"""Where a run came from: code, environment, inputs and outputs, as ``run.json`` records them."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reprolib import __version__
from reprolib.errors import RunError
from reprolib.paths import root

RUN = "run.json"
IDENTITIES = "identities.json"


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _git(*arguments: str) -> bytes:
    # GIT_DIR and its kin, set in hooks, would answer for another repository.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    command = ["git", "-C", str(root()), *arguments]
    return subprocess.run(command, check=True, capture_output=True, env=environment).stdout


def code() -> dict[str, Any]:
    """Return the version and, in a checkout, the commit of reprolib's own code, with a hash of local edits.

    The checkout is the one that the package lies in, never the caller's working directory, and an installed
    package inside somebody's repository has no commit. ``tree`` is the SHA-256 over the diff to the commit
    and the untracked files, None where nothing differs.
    """
    found: dict[str, Any] = {"version": __version__, "commit": None, "dirty": None, "tree": None}
    try:
        if Path(os.fsdecode(_git("rev-parse", "--show-toplevel")).strip()).resolve() != root():
            return found
        found["commit"] = _git("rev-parse", "HEAD").decode().strip()
        difference = _git("diff", "HEAD", "--binary", "--no-ext-diff", "--no-textconv")
        untracked = sorted(filter(None, _git("ls-files", "--others", "--exclude-standard", "-z").split(b"\0")))
    except (OSError, subprocess.CalledProcessError):  # no git, no repository, or no commit yet
        return found
    found["dirty"] = bool(difference or untracked)
    if found["dirty"]:
        digest = hashlib.sha256(difference)
        for name in untracked:
            path = root() / os.fsdecode(name)
            digest.update(name + b"\0" + (sha256(path).encode() if path.is_file() else b""))
        found["tree"] = digest.hexdigest()
    return found


def environment() -> dict[str, Any]:
    """Return interpreter, platform, processor count and the version of every installed package."""
    packages = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions() if d.metadata["Name"]}
    return {
        "python": platform.python_version(),
        "implementation": sys.implementation.name,
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpu_count": os.cpu_count(),
        "packages": dict(sorted(packages.items(), key=lambda item: item[0].lower())),
    }


def identities(folder: Path) -> dict[str, str]:
    """Take the identities that the notebook left in ``folder``: name to SHA-256; the file is removed.

    Raises :class:`RunError` if the file is not a flat mapping of names to texts.
    """
    path = folder / IDENTITIES
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{IDENTITIES} is not valid JSON: {error}") from error
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise RunError(f"{IDENTITIES} must map names to SHA-256 texts")
    path.unlink()
    return found


def digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file under ``folder`` but ``run.json``, by its path within it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / RUN)
    return {path.relative_to(folder).as_posix(): sha256(path) for path in files}


def complete(folder: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``facts`` with the identities that the notebook left in ``folder`` and the environment."""
    return {**facts, "identities": identities(folder), "environment": environment()}


def write(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write ``run.json`` into ``folder``: ``facts``, completed if need be, the SHA-256 of each file and its own."""
    record = dict(facts) if "environment" in facts else complete(folder, facts)
    (folder / RUN).write_text(sealed({**record, "files": digests(folder)}), encoding="utf-8")


def sealed(record: Mapping[str, Any]) -> str:
    """Return the text of ``run.json``: the record, then the SHA-256 of its text without that last entry."""
    plain = {key: value for key, value in record.items() if key != "sha256"}
    return _text(plain | {"sha256": hashlib.sha256(_text(plain).encode()).hexdigest()})


def _text(record: Mapping[str, Any]) -> str:
    return json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def read(run: Path, study: bool = False) -> dict[str, Any]:
    """Return what ``run.json`` of the run directory ``run`` records; :class:`RunError` if there is none.

    ``study``: also if it is a job of a grid point, which has no notebook.
    """
    try:
        facts = json.loads((run / RUN).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{run} is not a finished run: {error}") from error
    if study and "study" not in facts:
        raise RunError(f"{run} is a job of the grid point {facts.get('point')} and has no notebook; valid is a study's")
    return facts
