"""Two runs compared number by number and query by query, and a run repeated and judged by the tiers of determinism.

Tier A: ranks and what is computed from them are the same bytes. Tier B: scores and losses are equal within 1e-6.
Tier C: what training or optimisation made stays within the noise floor of its metric (``data_manifests/margins.yaml``).
Where the embeddings of two runs are not the same, every number is of tier C: the tiers above start from stored ones.
"""

from __future__ import annotations

import math
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
import scipy.stats

from reprolib.errors import DataUnavailable, InputError, RunError
from reprolib.metrics.agreement import rmse
from reprolib.study import crate, provenance, records, runner
from reprolib.study.margins import margins
from reprolib.study.parameters import Study, read_study, studies
from reprolib.study.records import Record

PER_QUERY = "per_query.parquet"
TOLERANCE = 1e-6  # of tier B, absolute and relative
FIELDS = ("value", "ci_low", "ci_high", "p_value", "p_holm", "n")
_IDENTITY = tuple(name for name in Record.model_fields if name not in FIELDS)
_RANKED = re.compile(
    r"R@|nDCG@|MRR|mAP|R-precision|accuracy|(mean |median )?rank|skewness|kurtosis|max k-occurrence"
    r"|mean absolute deviation|hub share|anti-hub share|share of|Robin Hood|Gini"
)
# What training or optimisation made: whole tables of a study (None: all of them), and methods.
_TRAINED_TABLES = {
    "train-clip": None,
    "modality-gap": ("temperature", "temperature difference"),
    "intra-modal-inversion": ("curve", "gap"),
}
_TRAINED_METHODS = re.compile(r"inversion|random-token")


def tier(metric: str, *, study: str = "", table: str | None = None, method: str | None = None) -> str:
    """Return the tier, "A", "B" or "C", of a metric (or a column of per-query values) from the same embeddings."""
    tables = _TRAINED_TABLES.get(study, ())
    if tables is None or table in tables or _TRAINED_METHODS.match(method or ""):
        return "C"
    return "A" if _RANKED.match(metric) else "B"


@dataclass(frozen=True)
class Number:
    """One field of one record in two runs; None where it is undefined."""

    name: str
    metric: str
    field: str
    tier: str
    one: float | None
    other: float | None

    @property
    def distance(self) -> float:
        """How far apart the two are: 0 if equal (or both undefined), infinite if one is undefined."""
        if self.one == self.other:
            return 0.0
        return math.inf if self.one is None or self.other is None else abs(self.one - self.other)


@dataclass(frozen=True)
class Difference:
    """What two runs, ``one`` and ``other``, do not have in common, and how near the numbers of both are.

    ``facts`` are (name, one, other) of what ``run.json`` records differently, and ``same`` says whether the embeddings
    are the same. ``missing`` are records of ``one`` alone, ``extra`` those of ``other``. ``queries`` has a row for each
    group of queries and column of values: direction, method, column, tier, n, share equal, Kendall's tau (of ranks),
    RMSE, whether all are within 1e-6 and whether they are the same bytes. ``unmatched`` counts queries of one run
    alone, ``columns`` names its columns; ``files`` are those whose bytes differ, or that one run lacks.
    """

    facts: list[tuple[str, Any, Any]]
    same: bool
    numbers: list[Number]
    missing: list[Record]
    extra: list[Record]
    queries: pd.DataFrame
    unmatched: int
    columns: list[str]
    files: list[str]

    def lines(self, limit: int = 20) -> list[str]:
        """Return the comparison as text: facts first, then numbers and queries, at most ``limit`` of each."""
        changed = sorted((n for n in self.numbers if n.distance), key=lambda n: -n.distance)
        apart = self.queries[self.queries["equal"] < 1]
        counts = f"{len(self.numbers) - len(changed)} of {len(self.numbers)} equal"
        alone = f"{len(self.missing)} records in the first run only, {len(self.extra)} in the second only"
        return [
            *(f"differs  {name}: {_text(one)} | {_text(other)}" for name, one, other in self.facts),
            f"numbers  {counts}; {alone}",
            *_some((f"         {n.name}, {n.field}: {_text(n.one)} | {_text(n.other)}" for n in changed), limit),
            *_some((f"  first  {_name(record)}" for record in self.missing), limit),
            *_some((f"  second {_name(record)}" for record in self.extra), limit),
            f"queries  {len(self.queries) - len(apart)} of {len(self.queries)} columns equal; {self.unmatched} queries "
            "in one run only",
            *_some(map(_query_line, apart.to_dict("records")), limit),
            *([f"         columns in one run only: {', '.join(self.columns)}"] if self.columns else []),
            f"files    {len(self.files)} differ in bytes{': ' if self.files else ''}{', '.join(self.files[:limit])}",
        ]


@dataclass(frozen=True)
class Agreement:
    """How a tier's promise was kept: ``compared`` numbers and columns, and a sentence for each that ``broken`` it."""

    tier: str
    promise: str
    compared: int
    broken: list[str]

    @property
    def holds(self) -> bool:
        """Whether nothing broke the promise."""
        return not self.broken

    def lines(self, limit: int = 20) -> list[str]:
        """Return the verdict as text, at most ``limit`` of what broke it."""
        kept = f"{self.compared - len(self.broken)} of {self.compared} keep it" if self.compared else "nothing of it"
        return [f"tier {self.tier}   {self.promise}: {kept}", *_some((f"         {b}" for b in self.broken), limit)]


# --- two runs -----------------------------------------------------------------------------------------------


def diff(one: Path, other: Path) -> Difference:
    """Compare two run directories.

    Records are matched by all that says what they measure, queries by every column that is not a number. Raises
    :class:`RunError` for a folder that is no finished run, :class:`InputError` for invalid results.
    """
    facts = [provenance.read(run) for run in (one, other)]
    same = facts[0]["identities"] == facts[1]["identities"]
    first, second = (_numbered(run) for run in (one, other))
    numbers = [
        Number(_name(a), a.metric, field, _tier(a, same), getattr(a, field), getattr(b, field))
        for key, a in first.items()
        if (b := second.get(key))
        for field in FIELDS
        if (getattr(a, field), getattr(b, field)) != (None, None)
    ]
    queries, unmatched, columns = _queries(one, other, facts[0].get("study", ""), same)
    files = {name for name, _ in set(facts[0]["files"].items()) ^ set(facts[1]["files"].items())}
    own = {crate.METADATA, *(one["notebook"]["name"] for one in facts if "notebook" in one)}  # these tell the time
    return Difference(
        facts=_changes(*facts),
        same=same,
        numbers=numbers,
        missing=[record for key, record in first.items() if key not in second],
        extra=[record for key, record in second.items() if key not in first],
        queries=queries,
        unmatched=unmatched,
        columns=columns,
        files=sorted(files - own),
    )


def _changes(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return what ``run.json`` of two runs records differently, most telling first; times and memory are no facts."""
    named = ("study", "point", "parameters", "identities", "notebook", "code", "threads", "environment", "margins")
    found = []
    for name in named:
        flat = [dict(_flat(name, facts.get(name))) for facts in (one, other)]
        keys = list(dict.fromkeys([*flat[0], *flat[1]]))
        found += [(key, flat[0].get(key), flat[1].get(key)) for key in keys if flat[0].get(key) != flat[1].get(key)]
    return found


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield from chain.from_iterable(_flat(f"{name}.{key}", item) for key, item in value.items())
    else:
        yield name, value


def _numbered(run: Path) -> dict[Any, Record]:
    """Return the records of a run by what they measure; equal ones are told apart by their order."""
    found = records.load(run) if (run / records.RESULTS).exists() else []
    seen: Counter[Any] = Counter()
    numbered = {}
    for record in found:
        key = _frozen([getattr(record, name) for name in _IDENTITY])
        numbered[key, seen[key]] = record
        seen[key] += 1
    return numbered


def _frozen(value: Any) -> Any:
    if isinstance(value, Mapping):
        return frozenset((key, _frozen(item)) for key, item in value.items())
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


def _tier(record: Record, same: bool) -> str:
    found = tier(record.metric, study=record.study, table=record.table, method=record.method)
    # A difference to what was trained is of its tier.
    return "C" if not same or _TRAINED_METHODS.match(record.reference or "") else found


def _name(record: Record) -> str:
    settings = ", ".join(f"{name} {_text(value)}" for name, value in record.parameters.items())
    method = f"{record.method} ({settings})" if record.method and settings else record.method or settings
    about = (record.table, record.metric, record.direction, method, record.bank, record.dataset, record.model)
    return " · ".join(str(part) for part in about if part)


def _queries(one: Path, other: Path, study: str, same: bool) -> tuple[pd.DataFrame, int, list[str]]:
    """Return the agreement of per-query values, a row per group and column, and the queries and columns left over."""
    paths = [run / PER_QUERY for run in (one, other)]
    first, second = (pd.read_parquet(path) if path.is_file() else pd.DataFrame() for path in paths)
    columns = ["direction", "method", "column", "tier", "n", "equal", "tau", "rmse", "close", "bytes"]
    if first.empty or second.empty:
        return pd.DataFrame(columns=columns), len(first) + len(second), []
    lengths, left = len(first) + len(second), sorted(set(first) ^ set(second))
    values = [name for name in first if name in second and pd.api.types.is_numeric_dtype(first[name])]
    keys = [name for name in first if name in second and name not in values]
    rows, partners = _partners(first[keys], second[keys])
    first, second = first.iloc[rows].reset_index(drop=True), second.iloc[partners]
    by = [name for name in ("direction", "method") if name in keys]
    groups = first.groupby(by, sort=False, dropna=False).indices if by else {(): np.arange(len(first))}
    found = []
    for labels, places in groups.items():
        about = dict(zip(by, labels if isinstance(labels, tuple) else (labels,), strict=True))
        for name in values:
            kind = tier(name, study=study, method=about.get("method")) if same else "C"
            pair = (frame[name].to_numpy()[places] for frame in (first, second))
            found.append({**about, "column": name, "tier": kind, **_compared(name, *pair)})
    return pd.DataFrame(found, columns=columns), lengths - 2 * len(rows), left


def _partners(first: pd.DataFrame, second: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return the places of queries that both frames of keys hold; equal keys are told apart by their order."""
    if first.columns.empty or first.equals(second):  # without keys, by place
        places = np.arange(min(len(first), len(second)))
        return places, places
    keys = list(first)
    frames = [
        frame.assign(_turn=frame.groupby(keys, dropna=False).cumcount(), _row=np.arange(len(frame)))
        for frame in (first, second)
    ]
    both = frames[0].merge(frames[1], on=[*keys, "_turn"])
    return both["_row_x"].to_numpy(), both["_row_y"].to_numpy()


def _compared(name: str, one: np.ndarray, other: np.ndarray) -> dict[str, Any]:
    exact = one.dtype == other.dtype and one.tobytes() == other.tobytes()
    one, other = one.astype(np.float64), other.astype(np.float64)
    equal = (one == other) | (np.isnan(one) & np.isnan(other))
    tau = math.nan
    if name.startswith("rank"):
        tau = 1.0 if equal.all() else float(scipy.stats.kendalltau(one, other).statistic)
    return {
        "n": len(one),
        "equal": float(equal.mean()),
        "tau": tau,
        "rmse": 0.0 if equal.all() else rmse(one, other),
        "close": bool(np.isclose(one, other, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True).all()),
        "bytes": exact,
    }


# --- a run and its repetition -------------------------------------------------------------------------------


def replay(
    run: Path,
    *,
    out: Path | None = None,
    mirror: Path | None = None,
    timeout: float | None = None,
    progress: bool = True,
) -> tuple[Difference, list[Agreement]]:
    """Repeat ``run`` with its notebook, parameters and threads in a fresh kernel, and say per tier what agrees.

    The repetition is kept in ``out`` if one is given. A relative path of embeddings starts at ``run``. ``mirror`` and
    ``timeout`` are those of ``runner.run``, which also says what is raised; a parameter that names a file or folder
    not at hand here is an InputError.
    """
    facts = provenance.read(run, study=True)
    with tempfile.TemporaryDirectory(prefix="reprolib-replay-") as folder:
        study = _study(run, facts, Path(folder))
        given = {
            name: str((run / value).resolve()) if name == "embeddings" else value  # a reference has it relative
            for name, value in facts["parameters"].items()
            if name not in study.parameters or study.parameters[name].default != value
        }
        options: dict[str, Any] = {"mirror": mirror, "timeout": timeout, "progress": progress}
        try:
            repeated = runner.run(study, given, out or Path(folder) / "run", threads=facts["threads"], **options)
        except RunError as error:
            if type(error) is DataUnavailable or provenance.code() == facts["code"]:
                raise
            made = facts["code"]["commit"] or f"version {facts['code']['version']}"
            raise RunError(f"{error}; the run was made with other code ({made})") from error
        found = diff(run, repeated)
    return found, agreements(found)


def _study(run: Path, facts: Mapping[str, Any], folder: Path) -> Study:
    """Return the study as it was: the notebook that ships if it is still the same, else the one kept in the run."""
    name, digest = facts["notebook"]["name"], facts["notebook"]["sha256"]
    shipped = studies().get(facts["study"])
    if shipped and provenance.sha256(shipped) == digest:
        return read_study(shipped)
    try:
        notebook = nbformat.read(run / name, as_version=4)
    except (OSError, ValueError) as error:
        raise InputError(f"{run} cannot be repeated: its notebook {name} is not readable") from error
    notebook.metadata.pop("papermill", None)
    notebook.cells = [c for c in notebook.cells if "injected-parameters" not in c.metadata.get("tags", [])]
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(notebook, folder / name)
    return read_study(folder / name)


def agreements(found: Difference) -> list[Agreement]:
    """Return how the promise of each tier was kept.

    Tier A is about every number of a record and the bytes of per-query columns. Tiers B and C promise nothing about
    p-values, which jump where scores move in the last digit; C says nothing about single queries. A record that only
    one run has breaks its tier: tuned parameters belong to what a record measures.
    """
    promises = {"A": "identical", "B": f"equal within {TOLERANCE:g}", "C": "within the noise floor"}
    result = []
    for kind, promise in promises.items():
        numbers = [n for n in found.numbers if n.tier == kind and (kind == "A" or not n.field.startswith("p_"))]
        columns = [] if kind == "C" else found.queries[found.queries["tier"] == kind].to_dict("records")
        kept = "bytes" if kind == "A" else "close"
        alone = [_name(r) for r in (*found.missing, *found.extra) if _tier(r, found.same) == kind]
        if kind == ("A" if found.same else "C"):
            alone += [f"{found.unmatched} queries"] if found.unmatched else []
            alone += [f"the column {name} of {PER_QUERY}" for name in found.columns]
        broken = [
            *filter(None, map(_broken, numbers)),
            *(_query_line(column).strip() for column in columns if not column[kept]),
            *(f"{name}: in one run only" for name in alone),
        ]
        result.append(Agreement(kind, promise, len(numbers) + len(columns) + len(alone), broken))
    return result


def _broken(number: Number) -> str | None:
    """Return the sentence that says how a number broke the promise of its tier, None if it kept it."""
    if not number.distance:
        return None
    values = f"{number.name}, {number.field}: {_text(number.one)} | {_text(number.other)}"
    if number.tier == "A" or number.field == "n" or math.isinf(number.distance):
        return values
    if number.tier == "B":
        return None if np.isclose(number.one, number.other, rtol=TOLERANCE, atol=TOLERANCE) else values
    try:
        floor = margins().floor(number.metric)
    except InputError:
        return f"{values}; no noise floor is known for it"
    return f"{values}; the noise floor is {floor:g}" if number.distance > floor else None


# --- text ---------------------------------------------------------------------------------------------------


def _query_line(row: Mapping[str, Any]) -> str:
    about = " · ".join(str(row[name]) for name in ("direction", "method", "column") if isinstance(row[name], str))
    tau = "" if math.isnan(row["tau"]) else f", Kendall's tau {row['tau']:.4f}"
    return f"         {about}: {100 * row['equal']:.2f} % of {row['n']} equal{tau}, RMSE {row['rmse']:.3g}"


def _text(value: Any) -> str:
    return "-" if value is None else f"{value:.10g}" if isinstance(value, float) else str(value)


def _some(lines: Iterable[str], limit: int) -> Sequence[str]:
    every = list(lines)
    return every if len(every) <= limit else [*every[:limit], f"         and {len(every) - limit} more"]
