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
memory) and ``logs/``. What is finished is not done again. docs/guides/sweeps.md has examples.
"""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Generator, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from reprolib.errors import InputError, RunError, nearest
from reprolib.study import parameters, records
from reprolib.study.jobs import STOPPED, Job, Limits, Outcome, Worker, sources
from reprolib.study.signals import on_signal

SWEEP = "sweep.json"
LOCK = ".sweep"  # held by the sweep that works in the folder
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
    """A sweep's file, validated; see the module's text for the fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    study: str | None = None
    point: str | None = None
    parameters: dict[str, Any] = {}
    grid: dict[str, _Values] = {}
    side_by_side: Annotated[dict[str, _Values], Field(alias="zip")] = {}
    entries: Annotated[list[dict[str, Any]], Field(alias="list")] = []
    limits: _Limits = _Limits()
    workers: Annotated[int, Field(ge=1)] | None = None

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


class _Yaml(parameters.Yaml):
    """The values of a command line, and no name twice in a mapping: YAML itself would keep the last in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        names = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = [name for name, count in Counter(map(str, names)).items() if count > 1]
        if twice:
            raise yaml.YAMLError(f"{twice[0]} stands there twice, line {node.start_mark.line + 1}")
        return super().construct_mapping(node, deep)


def read(path: Path) -> Sweep:
    """Return the sweep of a YAML file; InputError, naming the field, where it is not valid."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Yaml)  # builds plain values only
    except FileNotFoundError as error:
        raise InputError(f"there is no file {path}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise InputError(f"{path} is not valid YAML: {getattr(error, 'problem', None) or error}{where}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold the fields of a sweep, say point and grid")
    try:
        return Sweep.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if first["type"] == "extra_forbidden":
            model = _Limits if len(first["loc"]) > 1 else Sweep
            known = [field.alias or name for name, field in model.model_fields.items()]
            raise nearest(str(first["loc"][-1]), known, f"field in {path}") from error
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
    threads. ``cluster`` is "dask://host:port", a running scheduler whose workers see ``out``, or "slurm", where
    ``workers`` is the number of Slurm jobs that do them. Raises InputError before anything is executed. An interrupt
    stops all jobs; what is finished stays.
    """
    sweep = read(path)
    jobs = jobs_of(sweep)
    if mirror is not None and not mirror.is_dir():
        raise InputError(f"no folder {mirror} to use as a mirror")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out} cannot be the folder of a sweep: {error.strerror}") from error
    limits = Limits(sweep.limits.seconds, sweep.limits.memory)
    with _alone(out) as token, on_signal(_interrupt):
        for left in [*out.glob(".results-*"), *(out / "jobs").glob(".*partial*")]:  # by a sweep that was killed
            shutil.rmtree(left, ignore_errors=True)
        outcomes: dict[str, Outcome] = {job.key: Outcome("cached") for job in jobs if job.done(out)}
        waiting = [job for job in jobs if job.key not in outcomes]
        count = min(workers or sweep.workers or os.cpu_count() or 1, max(1, len(waiting)))
        board = _Board(jobs, outcomes, progress)
        try:
            if not waiting:
                engine: _Engine = (None for _ in ())
            elif cluster:
                engine = _distributed(waiting, out, limits, count, cluster, mirror, token)
            else:
                engine = _here(waiting, out, limits, count, mirror)
            with board, contextlib.closing(engine):
                for ended in engine:
                    if ended:
                        outcomes[ended[0].key] = ended[1]
                        board.fresh += 1
                    board.show()
                    if time.monotonic() > board.due:
                        begun = time.monotonic()
                        with contextlib.suppress(OSError):  # the next time, or at the end
                            _write(out, jobs, outcomes)
                        board.due = time.monotonic() + max(10.0, 20 * (time.monotonic() - begun))
        finally:
            with on_signal(_ignore):
                for job in jobs:  # one may have ended while the sweep was being stopped
                    if job.key not in outcomes and job.done(out):
                        outcomes[job.key] = Outcome("done")
                try:
                    _write(out, jobs, outcomes)
                except OSError as error:
                    raise RunError(f"cannot write what came out into {out}: {error.strerror or error}") from error
    return dict(Counter(outcomes.get(job.key, Outcome("not run")).status for job in jobs))


def failures(out: Path) -> list[dict[str, Any]]:
    """Return the jobs of a sweep's folder that are not done, each with its parameters, status and reason."""
    listed = json.loads((out / SWEEP).read_text(encoding="utf-8"))
    return [job for job in listed if job["status"] not in ("done", "cached")]


# --- one sweep in a folder, and its end ------------------------------------------------------------------------


class Stopped(SystemExit):
    """SIGTERM stopped the sweep: its jobs are ended, what is finished is kept; exits with 143."""

    sentence = "stopped by SIGTERM; what is finished is kept, and the same command goes on"


def _interrupt(number: int, _frame: Any) -> None:
    raise KeyboardInterrupt if number == signal.SIGINT else Stopped(128 + number)


def _ignore(_number: int, _frame: Any) -> None:
    """Let the clean-up finish: a second Ctrl-C must not leave a process behind."""


@contextlib.contextmanager
def _alone(out: Path) -> Iterator[str]:
    """Hold the folder of a sweep and yield a text that stands in its lock file, by which others know the folder."""
    token = uuid.uuid4().hex
    with (out / LOCK).open("a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"another sweep is at work in {out}; wait for it or choose another folder") from error
        except OSError:
            pass  # a file system without locks
        file.truncate(0)
        print(token, end="", file=file, flush=True)
        yield token


# --- engines ------------------------------------------------------------------------------------------------

_Engine = Generator[tuple[Job, Outcome] | None, None, None]  # a job that ended, or None now and then


class _Crew:
    """The processes that do jobs on one machine: as many as work at a time, kept for the jobs that follow."""

    def __init__(self, logs: Path, threads: int, mirror: Path | None) -> None:
        self.stop = threading.Event()
        self._logs, self._threads, self._mirror = logs, threads, mirror
        self._lock, self._idle, self._numbers = threading.Lock(), [], itertools.count()

    def do(self, job: Job, out: Path, limits: Limits) -> Outcome:
        """Do one job in a process of its own."""
        if self.stop.is_set():
            return Outcome("stopped", STOPPED)
        with self._lock:
            log = self._logs.with_name(f"{self._logs.name}-{next(self._numbers)}.log") if not self._idle else None
            worker = Worker(log, self._threads, self._mirror) if log else self._idle.pop()
        try:
            return worker.run(job, out, limits, self.stop)
        finally:
            with self._lock:
                if self.stop.is_set():
                    worker.close()
                else:
                    self._idle.append(worker)

    def end(self) -> None:
        """Stop the jobs and end all processes."""
        self.stop.set()
        with self._lock:
            while self._idle:
                self._idle.pop().close()


def _here(jobs: Sequence[Job], out: Path, limits: Limits, count: int, mirror: Path | None) -> _Engine:
    """Do the jobs in ``count`` processes of this machine; yield each as it ends."""
    crew = _Crew(out / "logs" / "worker", max(1, (os.cpu_count() or 1) // count), mirror)
    pool = ThreadPoolExecutor(count)
    try:
        running = {pool.submit(crew.do, job, out, limits): job for job in jobs}
        while running:
            ended = wait(running, timeout=1, return_when=FIRST_COMPLETED).done
            yield from [(running.pop(future), future.result()) for future in ended] or [None]
    finally:
        with on_signal(_ignore):
            crew.stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            crew.end()


_crews: dict[str, _Crew] = {}  # on a cluster's worker: of each sweep


def _on_worker(job: Job, out: Path, limits: Limits, mirror: Path | None, token: str, code: str) -> Outcome:
    """Do one job on a worker of a cluster, watched there as it would be here."""
    try:
        seen = (out / LOCK).read_text(encoding="utf-8") == token
    except OSError:
        seen = False
    node = os.uname().nodename
    if not seen:
        return Outcome("failed", f"the worker on {node} does not see the sweep's folder {out}")
    if sources() != code:
        return Outcome("failed", f"the worker on {node} has another version of reprolib")
    if job.done(out):  # a worker that was lost had finished it
        return Outcome("done")
    threads = int(os.environ.get("OMP_NUM_THREADS") or 1)
    return _crews.setdefault(token, _Crew(out / "logs" / f"{node}-{os.getpid()}", threads, mirror)).do(job, out, limits)


def _leave(token: str) -> None:
    """End what a sweep holds on a cluster's worker."""
    _crews.setdefault(token, _Crew(Path(), 1, None)).end()


def _distributed(
    jobs: Sequence[Job], out: Path, limits: Limits, count: int, cluster: str, mirror: Path | None, token: str
) -> _Engine:
    """Do the jobs on the workers of a dask.distributed cluster; yield each as it ends."""
    try:
        import distributed
    except ImportError as error:
        raise InputError("--cluster needs the package distributed: pip install 'reprolib[cluster]'") from error
    if cluster != "slurm" and not re.fullmatch(r"dask://[^/\s]+:\d+", cluster):
        raise InputError(f"the cluster {cluster!r} is not known; valid is dask://host:port or slurm")
    with contextlib.ExitStack() as stack:
        own = stack.enter_context(_slurm(count)) if cluster == "slurm" else None
        try:
            address = own or cluster.replace("dask://", "tcp://")
            client = stack.enter_context(distributed.Client(address, timeout=ANSWER, set_as_default=False))
        except (OSError, TimeoutError) as error:
            raise RunError(f"no scheduler answers at {cluster}") from error
        arguments = (out.resolve(), limits, mirror and mirror.resolve(), token, sources())
        running = {client.submit(_on_worker, job, *arguments, key=f"reprolib-{token}-{job.key}", pure=False): job
                   for job in jobs}  # fmt: skip
        seen = looked = time.monotonic()
        try:
            while running:
                ended = [future for future in running if future.status in ("finished", "error", "cancelled", "lost")]
                yield from [(running.pop(future), _result(future)) for future in ended] or [None]
                if time.monotonic() - looked > 2:
                    looked = time.monotonic()
                    if own:
                        own.scale(jobs=count)  # another in the place of each that Slurm has ended
                    if _workers(client) or (own and _queued(own)):
                        seen = time.monotonic()
                if time.monotonic() - seen > PATIENCE:
                    for job in running.values():
                        yield job, Outcome("died", f"the cluster had no worker for {PATIENCE:g} s")
                    return
                if not ended:
                    time.sleep(0.2)
        finally:
            with on_signal(_ignore):
                _end(client, list(running), token)


def _end(client: Any, running: list[Any], token: str) -> None:
    """Stop the jobs on a cluster and the processes that did them."""
    with contextlib.suppress(OSError, TimeoutError):  # a cluster that is gone holds none
        if client.status == "running":
            client.cancel(running)
            client.run(_leave, token, on_error="ignore")


def _workers(client: Any) -> bool:
    """Return whether the scheduler answers and has a worker."""
    try:
        return bool(client.scheduler_info()["workers"])
    except (OSError, TimeoutError):
        return False


@contextlib.contextmanager
def _slurm(count: int) -> Iterator[Any]:
    """Submit ``count`` Slurm jobs with a Dask worker each, as the user's jobqueue.yaml says; cancel them at the end."""
    try:
        from dask_jobqueue import SLURMCluster
        from distributed.core import Status
    except ImportError as error:
        raise InputError("--cluster slurm needs dask-jobqueue: pip install 'reprolib[cluster]'") from error
    try:
        cluster = SLURMCluster()
    except ValueError as error:
        raise InputError(
            f"dask's jobqueue.yaml does not describe a Slurm job: {' '.join(str(error).split())}"
        ) from error

    async def submitted() -> None:
        for _ in range(count):
            cluster.worker_spec.update(cluster.new_worker_spec())
        await cluster

    async def ended() -> None:
        cluster.worker_spec.clear()
        await cluster._correct_state()  # after which no job is made any more
        for job in cluster._created:  # Dask insists on this status at the end, and dask-jobqueue does not set it
            job.status = Status.closing

    try:
        try:
            cluster.sync(submitted)
        except (OSError, RuntimeError, ValueError) as error:
            raise RunError(f"Slurm takes no job: {' '.join(str(error).split())}") from error
        yield cluster
    finally:
        with on_signal(_ignore):
            cluster.sync(ended)
            cluster.close()


def _queued(cluster: Any) -> bool:
    """Return whether Slurm lists a job of the cluster, running or waiting; True as well if Slurm does not answer."""
    command = ["squeue", "--noheader", "--format", "%i", "--user", getpass.getuser()]
    try:
        listed = subprocess.run(command, check=True, capture_output=True, text=True, timeout=ANSWER).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return True
    return not {str(job.job_id) for job in cluster.workers.values()}.isdisjoint(listed)


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
        self.begun = self.said = time.monotonic()
        self.due = self.begun + 10  # when the files are written next
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

    def show(self) -> None:
        """Show the state: at once on a terminal, else every half minute."""
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


def _write(out: Path, jobs: Sequence[Job], outcomes: dict[str, Outcome]) -> None:
    """Write ``sweep.json`` and ``results.json``, each in one step."""
    listed, rows, missing = [], [], Outcome("not run")
    for job in jobs:
        if outcomes.get(job.key, missing).status in ("done", "cached"):
            folder = job.folder(out)
            try:
                if not folder.is_dir():
                    raise InputError(f"{folder} is not there")
                found = records.load(folder) if (folder / records.RESULTS).exists() else []  # a study may have none
                rows += [record.model_dump() | {"parameters": record.parameters | {"job": job.key[:16]}}
                         for record in found]  # fmt: skip
            except InputError as error:
                outcomes[job.key] = Outcome("failed", f"the result is lost: {error}")
        listed.append({job.kind: job.name, "parameters": dict(job.parameters), "key": job.key,
                       "folder": str(job.folder(out).relative_to(out))}
                      | asdict(outcomes.get(job.key, missing)))  # fmt: skip
    with tempfile.TemporaryDirectory(prefix=".results-", dir=out) as name:
        staging = Path(name)
        (staging / SWEEP).write_text(json.dumps(listed, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        if rows:
            os.replace(records.save(rows, staging), out / records.RESULTS)
        else:
            (out / records.RESULTS).unlink(missing_ok=True)
        os.replace(staging / SWEEP, out / SWEEP)
