"""Paper against released code: every finding as data, YAML, validated, in ``data_manifests/audit``.

A finding says what the paper says, what the released code does and where, which switch of this package shows either,
and where the effect of that switch is measured, or why it is not.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from reprolib.errors import InputError, nearest
from reprolib.paths import manifests
from reprolib.study.ledger import Check, Name, Provenance, Strict, read
from reprolib.study.parameters import manifest_names


class Place(Strict):
    """Where the code stands; ``commit`` and ``lines`` are None where they were not recorded when it was read."""

    repository: str
    commit: str | None = Field(None, pattern=r"^[0-9a-f]{40}$")
    file: str | None = None
    symbol: str | None = None
    lines: str | None = Field(None, pattern=r"^\d+(-\d+)?$")


class Switch(Strict):
    """A callable of this package with the arguments that show the paper's behaviour, and those that show the code's.

    ``method`` is the first argument of a callable that serves a whole catalogue.
    """

    call: str = Field(pattern=r"^reprolib(\.\w+)+$")
    method: str | None = None
    paper: dict[str, Any]
    released: dict[str, Any]


class Finding(Strict):
    """One difference between a paper and its released code, or a fault of either."""

    id: Name
    paper: str
    title: str
    paper_says: str
    code_does: str
    place: Place
    provenance: Provenance
    switch: Switch | None = None
    effect: Check | None = None
    reason: str | None = None

    @model_validator(mode="after")
    def _complete(self) -> Finding:
        if self.paper not in manifest_names("claims"):
            raise nearest(self.paper, manifest_names("claims"), "paper")
        if (self.effect is None) == (self.reason is None):
            raise ValueError("give either where the effect is measured, or a reason why it is not")
        return self


def finding(name: str) -> Finding:
    """Return the finding ``name``; InputError with the nearest names, or naming file and field."""
    if name not in manifest_names("audit"):
        raise nearest(name, manifest_names("audit"), "finding")
    path = manifests() / "audit" / f"{name}.yaml"
    found = read(path, Finding)
    if found.id != name:
        raise InputError(f"{path.name}, field id: valid is {name!r}, as the file is called")
    return found


def findings() -> dict[str, Finding]:
    """Return every finding by its id, sorted."""
    return {name: finding(name) for name in manifest_names("audit")}
