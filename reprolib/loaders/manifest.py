"""Dataset manifests: what a dataset is, where it comes from, under which terms; YAML, validated."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from reprolib import paths
from reprolib.errors import InputError, nearest

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Md5 = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


def _inside(path: str) -> str:
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or "\\" in path:
        raise ValueError("valid is a relative path with / between its parts, without ..")
    return path


RelativePath = Annotated[str, AfterValidator(_inside)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(_Strict):
    """Where the files were published; ``commit`` and ``path`` are those of ``repository``."""

    repository: str | None = None
    commit: str | None = None
    path: str | None = None
    url: str | None = None


class DataFile(_Strict):
    """One file, at ``url``: several addresses are tried in order, None where no direct one is known.

    ``sha256``, ``md5`` and ``bytes`` are what its publisher or this package states, ``checksum_source`` where that
    was read. With neither hash the sha256 is recorded on first use, and holds ever after. ``role`` says what a reader
    does with the file; a dataset still loads without an ``optional`` one. ``unpack``: a zip or tar archive, to be
    unpacked into the dataset's root.
    """

    name: str = Field(pattern=r"^[\w][\w.-]*$")
    url: str | list[str] | None
    sha256: Sha256 | None = None
    md5: Md5 | None = None
    bytes: int | None = Field(default=None, gt=0)
    role: Literal["features", "captions", "data"] = "data"
    optional: bool = False
    licence: str | None = None
    unpack: bool = False
    checksum_source: str | None = None

    @property
    def urls(self) -> list[str]:
        """Addresses in the order in which they are tried."""
        return [self.url] if isinstance(self.url, str) else list(self.url or [])


class Font(_Strict):
    """A font file that items are drawn with."""

    file: str
    sha256: Sha256
    licence: str


class Manifest(_Strict):
    """A dataset as described by ``data_manifests/datasets/<name>.yaml``.

    ``kind`` is "items" (raw images and texts, to be encoded, by ``model`` if no other is named) or "features"
    (embeddings, made by ``model``).
    ``reader`` names the code that loads it, or is None where this package lists the dataset without using
    it; ``known_issues`` then says why. ``splits`` maps each split to its provenance, ``counts`` names to
    numbers of items. ``folder`` is where cache and mirror keep the files, if not under ``name``. ``root_files`` are
    paths under the dataset's root, all of which are there if the dataset is. ``spdx`` is the licence's SPDX
    identifier or a LicenseRef. ``options`` are the reader's own; ``options.dataset`` names another dataset whose files
    it reads as well.
    """

    name: str
    title: str
    kind: Literal["items", "features"]
    summary: str
    modalities: list[str]
    model: str | None = None
    licence: str
    spdx: str | None = None
    access: str
    source: Source
    folder: str | None = None
    files: list[DataFile] = []
    root_files: list[RelativePath] = []
    format: str
    reader: str | None = None
    options: dict[str, Any] = {}
    row_correspondence: str
    counts: dict[str, int]
    splits: dict[str, str]
    known_issues: list[str] = []
    citation: str
    how_to_obtain: str
    fonts: list[Font] = []
    statistics: dict[str, Any] = {}

    @property
    def place(self) -> str:
        """Name of the folder that holds the files, in the cache and in a mirror."""
        return self.folder or self.name

    def file(self, role: str) -> DataFile | None:
        """Return the first file with this role, or None."""
        return next((entry for entry in self.files if entry.role == role), None)


@dataclass(frozen=True)
class Status:
    """Whether a dataset can be read now: ``size`` in bytes, ``where`` in words."""

    present: bool
    size: int
    where: str


def _folder() -> Path:
    return paths.manifests() / "datasets"


def datasets() -> list[str]:
    """Return the names of all datasets that have a manifest, sorted."""
    return sorted(path.stem for path in _folder().glob("*.yaml"))


def load_manifest(name: str) -> Manifest:
    """Return the manifest of the dataset ``name``, or of a folder of images or its captions CSV, given by path.

    Raises InputError with the nearest names if there is none, or naming file and field if it is not valid.
    """
    if name not in datasets():
        from reprolib.loaders.readers.folder import describe, is_folder_of_images  # it needs the models of this module

        if is_folder_of_images(name):
            return describe(name)
        raise nearest(name, datasets(), "dataset")
    path = _folder() / f"{name}.yaml"
    return _read(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=64)
def _read(path: Path, mtime_ns: int) -> Manifest:
    try:
        manifest = Manifest.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise InputError(f"{path.name}{where}: this is not valid YAML") from error
    except (ValidationError, UnicodeDecodeError) as error:
        if isinstance(error, UnicodeDecodeError):
            raise InputError(f"{path.name}: this is not UTF-8 text") from error
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "the whole file"
        raise InputError(f"{path.name}, field {field}: {first['msg']}") from error
    if manifest.name != path.stem:
        raise InputError(f"{path.name}, field name: valid is {path.stem!r}, as the file is called")
    return manifest


def status(name: str, mirror: str | Path | None = None) -> Status:
    """Return whether the files of the dataset ``name`` are at hand, without hashing or fetching them.

    Raises InputError as ``load_manifest`` does, and for a mirror that is not a folder.
    """
    from reprolib.loaders.files import at_hand, unpacked  # files needs the models of this module

    manifest = load_manifest(name)
    if "path" in manifest.options:
        return Status(True, 0, "a folder of your own")
    if manifest.reader == "hub":
        from reprolib.loaders.readers.hub import local

        where = local(manifest, mirror)
        return Status(bool(where), 0, where[1] if where else "can be fetched")
    if "dataset" in manifest.options:
        shared = status(manifest.options["dataset"], mirror)
        if not shared.present or not manifest.files:
            return shared
    needed = [entry for entry in manifest.files if not entry.optional]
    size = sum(entry.bytes or 0 for entry in manifest.files)
    place = unpacked(manifest, mirror)
    if place:
        return Status(True, size, place[1])
    found = [at_hand(manifest, entry, mirror) for entry in needed]
    if not needed and not manifest.root_files:
        known = manifest.reader is not None
        where = "ships with the package and its dependencies" if known else "must be obtained by hand"
        return Status(known, size, where)
    complete = {entry.name for entry in needed} >= set(manifest.root_files) or any(entry.unpack for entry in needed)
    if not complete:
        return Status(False, size, "must be obtained by hand")
    if all(found):
        return Status(True, size, " and ".join(sorted({where for _, where in filter(None, found)})))
    if all(hit or entry.urls for hit, entry in zip(found, needed, strict=True)):
        return Status(False, size, "can be fetched")
    return Status(False, size, "must be obtained by hand")
