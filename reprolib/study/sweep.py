"""Many jobs from one YAML file, side by side on this machine or on a cluster, resumable, and never silent.

A sweep is a study or a grid point with parameters that vary::

    study: hubness              # or  point: correction,  or  point: package.module:function
    parameters: {dataset: glyphs}
    grid: {seed: [0, 1, 2], k: [5, 10]}                 # every combination
    zip: {beta: [10, 20], name: [ten, twenty]}          # side by side
    list: [{model: glyph-clip}, {model: emoji-clip}]    # one after the other
    limits: {seconds: 3600, memory: 4 GiB}              # of one job

The folder of a sweep holds ``jobs/<key>/`` (a run directory for each finished job, named by its content),
``results.json`` (the records of all, in the order of the jobs), ``sweep.json`` (every job with its status, time and
memory) and ``logs/``. What is finished is not done again.
"""

from __future__ import annotations

import itertools
import json
import os
import queue
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from reprolib.errors import InputError, RunError
from reprolib.study import records
from reprolib.study.jobs import Job, Limits, Outcome, Worker

SWEEP = "sweep.json"
PATIENCE = 60.0  # seconds that a cluster may be without any worker
ANSWER = 20.0  # seconds that a scheduler may take to answer
_Values = Annotated[list[Any], Field(min_length=1)]
_UNITS = {"": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "kB": 10**3, "MB": 10**6, "GB": 10**9}


def _bytes(value: Any) -> Any:
    found = re.fullmatch(r"([\d.]+)\s*([A-Za-z]*)", str(value))
    if not found or found[2] not in _UNITS:
        raise ValueError(f"{value!r} is not a size; valid is, say, 4 GiB or 500 MB")
    return int(float(found[1]) * _UNITS[found[2]])


class _Limits(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    seconds: Annotated[float, Field(gt=0)] | None = None
    memory: Annotated[int, BeforeValidator(_bytes), Field(gt=0)] | None = None


class Sweep(BaseModel):
    """A sweep's file, validated; see the module's text for the fields. ``slurm`` is handed to dask-jobqueue."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    study: str | None = None
    point: str | None = None
    parameters: dict[str, Any] = {}
    grid: dict[str, _Values] = {}
    side_by_side: Annotated[dict[str, _Values], Field(alias="zip")] = {}
    entries: Annotated[list[dict[str, Any]], Field(alias="list")] = []
    limits: _Limits = _Limits()
    workers: Annotated[int, Field(ge=1)] | None = None
    slurm: dict[str, Any] = {}

    @model_validator(mode="after")
    def _whole(self) -> Sweep:
        if (self.study is None) == (self.point is None):
            raise ValueError("name either a study or a point")
        if len({len(values) for values in self.side_by_side.values()}) > 1:
            lengths = ", ".join(f"{name} {len(values)}" for name, values in self.side_by_side.items())
            raise ValueError(f"the lists of zip differ in length ({lengths})")
        names = Counter(
            [*self.parameters, *self.grid, *self.side_by_side, *{name for each in self.entries for name in each}]
        )
        twice = [name for name, count in names.items() if count > 1]
        if twice:
            raise ValueError(f"the parameter {twice[0]} stands in two places")
        return self

    def combinations(self) -> Iterator[dict[str, Any]]:
        """Yield the parameters of every job: entries of the list, then rows of zip, then the grid."""
        rows = [
            dict(zip(self.side_by_side, values, strict=True))
            for values in zip(*self.side_by_side.values(), strict=True)
        ]
        grid = [dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())]
        for one, row, cell in itertools.product(self.entries or [{}], rows or [{}], grid):
            yield self.parameters | one | row | cell


def read(path: Path) -> Sweep:
    """Return the sweep of a YAML file; InputError, naming the field, where it is not valid."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"there is no file {path}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid YAML: {str(error).splitlines()[0]}") from error
    try:
        return Sweep.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"]))
        raise InputError(
            f"{path}{f', {field}' if field else ''}: {first['msg'].removeprefix('Value error, ')}"
        ) from error


def jobs_of(sweep: Sweep) -> list[Job]:
    """Return the jobs in order, all checked; one that stands twice is done once."""
    kind, name = ("study", sweep.study) if sweep.study is not None else ("point", sweep.point)
    found = [Job.of(kind, name, given) for given in sweep.combinations()]
    return list({job.key: job for job in found}.values())


def run(
    path: Path,
    out: Path,
    *,
    workers: int | None = None,
    cluster: str | None = None,
    mirror: Path | None = None,
    progress: bool = True,
) -> dict[str, int]:
    """Do the jobs of the sweep in ``path`` that are not yet done in ``out``; return how many ended how.

    ``workers`` jobs run side by side (default: the file's, else the cores), each with its share of the cores as
    threads. ``cluster`` is "dask://host:port", a running scheduler whose workers see ``out``, or "slurm".
    Raises InputError before anything is executed. An interrupt stops all jobs; what is finished stays.
    """
    sweep = read(path)
    jobs = jobs_of(sweep)
    out.mkdir(parents=True, exist_ok=True)
    count = workers or sweep.workers or os.cpu_count() or 1
    limits = Limits(sweep.limits.seconds, sweep.limits.memory)
    outcomes: dict[str, Outcome] = {job.key: Outcome("cached") for job in jobs if job.done(out)}
    waiting = [job for job in jobs if job.key not in outcomes]
    board = _Board(jobs, outcomes, progress)
    try:
        with board:
            engine = (
                _distributed(waiting, out, limits, count, cluster, sweep, mirror)
                if cluster
                else _here(waiting, out, limits, min(count, max(1, len(waiting))), mirror)
            )
            for job, outcome in engine:
                outcomes[job.key] = outcome
                board.note(job, outcome)
                if time.monotonic() - board.written > 10:
                    _write(out, jobs, outcomes)
                    board.written = time.monotonic()
    finally:
        _write(out, jobs, outcomes)
    return dict(Counter(outcomes.get(job.key, Outcome("not run")).status for job in jobs))


def failures(out: Path) -> list[dict[str, Any]]:
    """Return the jobs of a sweep's folder that are not done, each with its parameters, status and reason."""
    listed = json.loads((out / SWEEP).read_text(encoding="utf-8"))
    return [job for job in listed if job["status"] not in ("done", "cached")]


# --- engines ------------------------------------------------------------------------------------------------


def _here(
    jobs: Sequence[Job], out: Path, limits: Limits, count: int, mirror: Path | None
) -> Iterator[tuple[Job, Outcome]]:
    """Do the jobs in ``count`` processes of this machine; yield each as it ends."""
    threads = max(1, (os.cpu_count() or 1) // count)
    stop, idle = threading.Event(), queue.SimpleQueue()
    everyone = [Worker(out / "logs" / f"worker-{number}.log", threads, mirror) for number in range(count)]
    for worker in everyone:
        idle.put(worker)

    def do(job: Job) -> Outcome:
        if stop.is_set():
            return Outcome("stopped", "the sweep was stopped")
        worker = idle.get()
        try:
            return worker.run(job, out, limits, stop)
        finally:
            idle.put(worker)

    pool = ThreadPoolExecutor(count)
    try:
        running = {pool.submit(do, job): job for job in jobs}
        while running:
            for future in wait(running, timeout=1, return_when=FIRST_COMPLETED).done:
                yield running.pop(future), future.result()
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)
        for worker in everyone:
            worker.close()


_own = threading.local()


def _on_worker(job: Job, out: str, limits: Limits, threads: int, mirror: str | None) -> Outcome:
    """Do one job on a worker of a cluster, in a process of its own; the process stays for the worker's next job."""
    if not hasattr(_own, "worker"):
        log = Path(out) / "logs" / f"{os.uname().nodename}-{os.getpid()}-{threading.get_ident()}.log"
        _own.worker = Worker(log, threads, Path(mirror) if mirror else None)
    if job.done(Path(out)):  # a worker that was lost had finished it
        return Outcome("done")
    return _own.worker.run(job, Path(out), limits)


def _distributed(
    jobs: Sequence[Job], out: Path, limits: Limits, count: int, cluster: str, sweep: Sweep, mirror: Path | None
) -> Iterator[tuple[Job, Outcome]]:
    """Do the jobs on the workers of a dask.distributed cluster; yield each as it ends."""
    try:
        import distributed
    except ImportError as error:
        raise InputError("--cluster needs the package distributed: pip install 'reprolib[cluster]'") from error
    own = None
    if cluster == "slurm":
        try:
            from dask_jobqueue import SLURMCluster
        except ImportError as error:
            raise InputError("--cluster slurm needs dask-jobqueue: pip install 'reprolib[cluster]'") from error
        own = SLURMCluster(**sweep.slurm)
        own.scale(jobs=count)
    elif not re.fullmatch(r"dask://[^/\s]+:\d+", cluster):
        raise InputError(f"the cluster {cluster!r} is not known; valid is dask://host:port or slurm")
    try:
        address = own or cluster.replace("dask://", "tcp://")
        try:
            client = distributed.Client(address, timeout=ANSWER, set_as_default=False)
        except (OSError, TimeoutError) as error:
            raise RunError(f"no scheduler answers at {cluster}") from error
        with client:
            arguments = (str(out.resolve()), limits, 1, str(mirror.resolve()) if mirror else None)
            running = {client.submit(_on_worker, job, *arguments, key=f"reprolib-{job.key}", pure=False): job
                       for job in jobs}  # fmt: skip
            seen = time.monotonic()
            while running:
                ended = [future for future in running if future.status in ("finished", "error", "cancelled", "lost")]
                for future in ended:
                    yield running.pop(future), _result(future)
                if client.scheduler_info()["workers"]:
                    seen = time.monotonic()
                elif time.monotonic() - seen > PATIENCE:
                    for job in running.values():
                        yield job, Outcome("died", f"the cluster had no worker for {PATIENCE:g} s")
                    return
                if not ended:
                    time.sleep(0.2)
    finally:
        if own is not None:
            own.close()


def _result(future: Any) -> Outcome:
    if future.status == "finished":
        return future.result()
    error = future.exception() if future.status == "error" else None
    return Outcome("died", f"the cluster lost the job: {error or future.status}")


# --- what is shown and written ------------------------------------------------------------------------------


class _Board:
    """The state of a sweep while it runs: a table on a terminal, else a line now and then, on stderr."""

    def __init__(self, jobs: Sequence[Job], outcomes: Mapping[str, Outcome], progress: bool) -> None:
        self.jobs, self.outcomes, self.progress = jobs, outcomes, progress
        self.begun = self.said = self.written = time.monotonic()
        self.fresh = 0
        self.live: Any = None

    def __enter__(self) -> _Board:
        if self.progress and sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self.live = Live(self._table(), console=Console(stderr=True), refresh_per_second=2)
            self.live.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        if self.live is not None:
            self.live.update(self._table())
            self.live.__exit__(*error)
        elif self.progress:
            print(self._line(), file=sys.stderr)

    def note(self, job: Job, outcome: Outcome) -> None:
        self.fresh += 1
        if self.live is not None:
            self.live.update(self._table())
        elif self.progress and time.monotonic() - self.said > 30:
            self.said = time.monotonic()
            print(self._line(), file=sys.stderr, flush=True)

    def _numbers(self) -> tuple[Counter, str]:
        counts = Counter(outcome.status for outcome in self.outcomes.values())
        left = len(self.jobs) - len(self.outcomes)
        elapsed = time.monotonic() - self.begun
        seconds = elapsed / self.fresh * left if self.fresh else None
        remaining = "-" if seconds is None else f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
        return counts, remaining if left else "none"

    def _line(self) -> str:
        counts, left = self._numbers()
        states = ", ".join(f"{count} {status}" for status, count in counts.items())
        return f"sweep: {len(self.outcomes)} of {len(self.jobs)} jobs ({states or 'none ended'}); time left {left}"

    def _table(self) -> Any:
        from rich.table import Table

        counts, _ = self._numbers()
        table = Table(box=None, pad_edge=False, title=self._line(), title_justify="left")
        for column in ("status", "jobs", "seconds, mean", "memory, most"):
            table.add_column(column, justify="left" if column == "status" else "right")
        for status, count in counts.items():
            ended = [each for each in self.outcomes.values() if each.status == status]
            mean = sum(each.seconds for each in ended) / count
            table.add_row(status, str(count), f"{mean:.1f}", f"{max(each.memory for each in ended) / 2**20:,.0f} MiB")
        return table


def _write(out: Path, jobs: Sequence[Job], outcomes: Mapping[str, Outcome]) -> None:
    """Write ``sweep.json`` and ``results.json``, each in one step."""
    listed, rows = [], []
    for job in jobs:
        outcome = outcomes.get(job.key, Outcome("not run"))
        listed.append({job.kind: job.name, "parameters": dict(job.parameters), "key": job.key,
                       "folder": str(job.folder(out).relative_to(out))} | asdict(outcome))  # fmt: skip
        if outcome.status in ("done", "cached"):
            rows += [record.model_dump() | {"parameters": record.parameters | {"job": job.key[:16]}}
                     for record in records.load(job.folder(out))]  # fmt: skip
    staging = out / f".results-{os.getpid()}"
    staging.mkdir(exist_ok=True)
    if rows:
        os.replace(records.save(rows, staging), out / records.RESULTS)
    (staging / SWEEP).write_text(json.dumps(listed, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(staging / SWEEP, out / SWEEP)
    staging.rmdir()
