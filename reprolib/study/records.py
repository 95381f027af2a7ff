"""Results as a flat list of records, one per number: what ``results.json`` holds.

A notebook writes its files into :func:`run_directory`; the runner moves the folder into place when all is
well.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    ValidationError,
    model_validator,
)

from reprolib.errors import InputError
from reprolib.paths import root

RESULTS = "results.json"
RUN_DIRECTORY = "REPROLIB_RUN_DIR"


def _plain(value: Any) -> Any:
    """Turn NumPy scalars and arrays into Python's own, and NaN (undefined) into None, at every depth."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


Number = Annotated[FiniteFloat | None, BeforeValidator(_plain)]
Probability = Annotated[Annotated[float, Field(ge=0, le=1)] | None, BeforeValidator(_plain)]


class Record(BaseModel):
    """One number with its interval and all that is needed to know what it measures.

    ``value`` is None where the quantity is undefined (JSON has no NaN). ``bank`` names where the bank came
    from and ``table`` the table of the study that the record belongs to. For a difference, ``reference`` is
    the method that it was compared with, ``p_value`` the paired permutation test and ``p_holm`` the same
    after Holm.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    study: str
    dataset: str
    model: str | None
    direction: Literal["text->image", "image->text", "image->image", "text->text"] | None
    method: str | None
    parameters: Annotated[dict[str, Any], BeforeValidator(_plain)] = {}
    bank: str | None = None
    metric: str
    value: Number
    ci_low: Number = None
    ci_high: Number = None
    n: Annotated[Annotated[int, Field(ge=0)] | None, BeforeValidator(_plain)] = None
    table: str | None = None
    reference: str | None = None
    p_value: Probability = None
    p_holm: Probability = None

    @model_validator(mode="after")
    def _ordered(self) -> Record:
        if self.ci_low is not None and self.ci_high is not None and self.ci_low > self.ci_high:
            raise ValueError(f"ci_low {self.ci_low} exceeds ci_high {self.ci_high}")
        return self


def _records(items: Iterable[Any], source: str) -> list[Record]:
    records = []
    for number, item in enumerate(items, 1):
        try:
            records.append(item if isinstance(item, Record) else Record.model_validate(item))
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"])) or "record"
            raise InputError(f"{source}: record {number}, {field}: {first['msg']}") from error
    return records


def run_directory(study: str = "study") -> Path:
    """Return the folder that a notebook writes its files into, made if need be.

    The runner names it in ``REPROLIB_RUN_DIR``; in JupyterLab it is ``runs/interactive-<study>`` of the
    checkout.
    """
    named = os.environ.get(RUN_DIRECTORY)
    home = root() if (root() / "pyproject.toml").is_file() else Path.cwd()
    folder = Path(named) if named else home / "runs" / f"interactive-{study}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def save(records: Iterable[Record | Mapping[str, Any]], folder: Path | None = None) -> Path:
    """Write ``records`` as ``results.json`` into ``folder`` (or :func:`run_directory`); return its path.

    Mappings are validated; NumPy scalars are welcome; NaN becomes null. Fields without a value that are
    optional by the schema are left out. Raises :class:`InputError` with the number of the record and the
    field at fault.
    """
    path = (folder or run_directory()) / RESULTS
    checked = _records(records, RESULTS)
    optional = {"table", "reference", "p_value", "p_holm"}
    rows = [
        {key: value for key, value in record.model_dump().items() if value is not None or key not in optional}
        for record in checked
    ]
    try:
        lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows]
    except (TypeError, ValueError) as error:
        raise InputError(f"{RESULTS}: parameters hold what JSON cannot: {error}") from error
    path.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
    return path


def load(run: Path) -> list[Record]:
    """Return the records of the run directory ``run``; :class:`InputError` if missing or invalid."""
    path = run / RESULTS
    try:
        items = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant)
    except FileNotFoundError as error:
        raise InputError(f"{run} holds no {RESULTS}") from error
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(items, list) or not items:
        raise InputError(f"{path} must be a list of at least one record")
    return _records(items, str(path))


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON; an undefined value is null")
