"""Datasets of the Hugging Face hub: their parquet files, read directly, pictures decoded when asked for.

``options`` of the manifest:

* ``repository``, and ``revision`` (a commit; default: the main branch)
* ``image``, ``text``: columns; ``text`` is a string, or a list of strings, the captions of the row's image
* ``splits``: train, validation and test -> the hub's name of a split, or a pattern of file paths. Without validation
  it is a fifth of train, by the sha256 of the image id; where one alone is named, all three are shares of it
* ``split``: a column that names the split of a row, in place of ``splits``
* ``id``: a column that names the image; rows that share it are captions of one image. Default: file and row
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from reprolib.errors import DataUnavailable, InputError
from reprolib.loaders.dataset import Items
from reprolib.loaders.files import places
from reprolib.loaders.manifest import Manifest
from reprolib.loaders.pictures import Picture, decode
from reprolib.loaders.readers import SHARES, SPLITS, Mirror, hashed_split, items_of, reader
from reprolib.loaders.readers.folder import SPLIT_NAMES

if TYPE_CHECKING:
    import pyarrow as pa

_FETCHED = ".fetched"  # written when all files of a download are there


class Options(BaseModel):
    """The columns and splits of a dataset of the hub; see the module."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    repository: str
    revision: str | None = None
    image: str = "image"
    text: str = "text"
    id: str | None = None
    split: str | None = None
    splits: dict[str, str] = {}


@dataclass(frozen=True)
class Cell:
    """An encoded picture in a parquet file: ``row`` of its row group ``group``, bytes or a struct with bytes."""

    path: Path
    column: str
    group: int
    row: int

    def read(self) -> bytes:
        """Return the encoded picture; raises InputError, naming file, group and row, where there is none."""
        state = self.path.stat()
        value = _group(self.path, self.column, self.group, state.st_size, state.st_mtime_ns)[self.row].as_py()
        if isinstance(value, Mapping):
            value = value.get("bytes")
        if not isinstance(value, bytes):
            raise InputError(f"{self}: the column {self.column} holds no encoded picture")
        return value

    def pixels(self) -> np.ndarray:
        """Return uint8 [h, w, 3], as ``reprolib.loaders.pictures.decode`` does."""
        return decode(self.read(), str(self))

    def digest(self) -> str:
        """Return the sha256 (hex) of the encoded picture."""
        state = self.path.stat()
        return _digest(self, state.st_size, state.st_mtime_ns)

    def __str__(self) -> str:
        return f"{self.path}, row group {self.group}, row {self.row}"


@lru_cache(maxsize=4)
def _group(path: Path, column: str, group: int, size: int, mtime_ns: int) -> pa.ChunkedArray:
    import pyarrow.parquet as pq

    with _readable(path), pq.ParquetFile(path) as file:
        return file.read_row_group(group, columns=[column])[column]


@lru_cache(maxsize=1_000_000)
def _digest(cell: Cell, size: int, mtime_ns: int) -> str:
    return hashlib.sha256(cell.read()).hexdigest()


@reader("hub")
def read_hub(manifest: Manifest, split: str, mirror: Mirror) -> Items:
    """Return the items of a split; the files come from the cache, a mirror (paths as on the hub) or the hub.

    Raises InputError, naming file and column, for files that are not of the stated form, and DataUnavailable where
    they are nowhere.
    """
    options = options_of(manifest)
    folder = files_of(manifest, mirror)
    source, shares = _source_of(manifest, options, split)
    pictures: dict[str, Picture] = {}
    texts: list[tuple[str, str, str]] = []
    counts: dict[str, int] = {}
    for path in _matching(folder, source):
        for image, cell, captions, named in _rows(folder, path, options):
            here = SPLIT_NAMES.get(named.strip().lower()) if named is not None else hashed_split(image, shares)
            if here is None:
                raise InputError(f"{path}: unknown split {named!r} of {image}; valid: {', '.join(SPLIT_NAMES)}")
            if here != split:
                continue
            pictures.setdefault(image, cell)
            for caption in captions:
                counts[image] = counts.get(image, -1) + 1
                texts.append((f"{image}#{counts[image]}", image, caption))
    return items_of(manifest.name, split, pictures, texts)


def options_of(manifest: Manifest) -> Options:
    """Return the checked options; raises InputError, naming the field."""
    try:
        return Options.model_validate(manifest.options)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in ("options", *first["loc"]))
        raise InputError(f"{manifest.name}.yaml, field {field}: {first['msg']}") from error


def local(manifest: Manifest, mirror: Mirror = None) -> tuple[Path, str] | None:
    """Return the folder that holds all the parquet files and "cache" or "mirror", or None."""
    wanted = _patterns(options_of(manifest))
    for where, folder in places(manifest, mirror).items():
        broken_off = (folder / ".cache").is_dir() and not (folder / _FETCHED).is_file()
        if not broken_off and all(_matching(folder, source) for source in wanted):
            return folder, where
    return None


def files_of(manifest: Manifest, mirror: Mirror = None) -> Path:
    """Return the folder that holds the parquet files, as on the hub: the cache, a mirror, or fetched into the cache."""
    found = local(manifest, mirror)
    if found:
        return found[0]
    options = options_of(manifest)
    return _fetch(manifest, options, [pattern for source in _patterns(options) for pattern in source])


def _fetch(manifest: Manifest, options: Options, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    folder = places(manifest)["cache"]
    (folder / _FETCHED).unlink(missing_ok=True)
    try:
        snapshot_download(
            options.repository,
            repo_type="dataset",
            revision=options.revision,
            allow_patterns=patterns,
            local_dir=folder,
        )
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataUnavailable(
            f"{manifest.name} is neither in the cache nor in a mirror, and the hub did not deliver "
            f"{options.repository} ({reason}); to obtain it: {manifest.how_to_obtain}"
        ) from error
    for source in _patterns(options):
        if not _matching(folder, source):
            raise InputError(f"{options.repository} on the hub has no file {' or '.join(source)}: check options.splits")
    (folder / _FETCHED).write_text(f"{options.revision or 'main'}\n", encoding="utf-8")
    return folder


def _patterns(options: Options) -> list[list[str]]:
    return [_files(source) for source in options.splits.values()] if not options.split else [["*.parquet"]]


def _files(source: str) -> list[str]:
    if "*" in source or source.endswith(".parquet"):
        return [source]
    return [f"{source}-*.parquet", f"*/{source}-*.parquet", f"*/{source}/*.parquet"]


def _matching(folder: Path, patterns: list[str]) -> list[Path]:
    found = sorted(folder.rglob("*.parquet"))
    names = {path: path.relative_to(folder).as_posix() for path in found}
    return [
        path
        for path, name in names.items()
        if not name.startswith(".") and any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    ]


def _source_of(manifest: Manifest, options: Options, split: str) -> tuple[list[str], Mapping[str, float]]:
    """Return the files that hold our ``split``, and the shares of our splits in them."""
    named = set(options.splits)
    if options.split:
        return _patterns(options)[0], {}
    if named == set(SPLITS) or (named == {"train", "test"} and split == "test"):
        return _files(options.splits[split]), {split: 1.0}
    if named == {"train", "test"}:
        return _files(options.splits["train"]), {"train": 0.8, "validation": 0.2}
    if len(named) == 1 and named <= set(SPLITS):
        return _files(next(iter(options.splits.values()))), SHARES
    raise InputError(
        f"{manifest.name}.yaml, field options.splits: it names {', '.join(options.splits) or 'none'}; valid are train, "
        "validation and test, or train and test, or one of them"
    )


def _rows(folder: Path, path: Path, options: Options) -> Iterator[tuple[str, Cell, list[str], str | None]]:
    """Yield image id, picture, captions and, where a column names it, the split of every row."""
    import pyarrow.parquet as pq

    columns = [column for column in (options.text, options.id, options.split) if column]
    with _readable(path), pq.ParquetFile(path) as file:
        missing = [column for column in (*columns, options.image) if column not in file.schema_arrow.names]
        if missing:
            raise InputError(
                f"{path} has no column {missing[0]!r}; its columns are {', '.join(file.schema_arrow.names)}"
            )
        row = 0
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=columns)
            for place, values in enumerate(table.to_pylist()):
                image = values[options.id] if options.id else f"{path.relative_to(folder).as_posix()}/{row}"
                text = values[options.text]
                captions = [text] if isinstance(text, str) else text
                if image is None or not isinstance(captions, list) or not all(isinstance(c, str) for c in captions):
                    raise InputError(
                        f"{path}, row {row}: valid is a text or a list of texts in {options.text}, and an id where one "
                        "is named"
                    )
                named = str(values[options.split]) if options.split else None
                yield str(image), Cell(path, options.image, group, place), captions, named
                row += 1


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    from pyarrow import ArrowException

    try:
        yield
    except InputError:
        raise
    except (ArrowException, OSError, ValueError) as error:
        raise InputError(f"{path} is not a whole parquet file: {str(error).splitlines()[0]}") from error
