"""One job of a sweep: a notebook or a grid point, done in a process of its own and watched from outside.

The process stays for the jobs that follow, because imports take longer than small jobs do. It is killed with all that
it started when a job exceeds its time or memory; the next job gets a new one. If the watching process dies, however
suddenly, the job's process ends as well. Only as many processes start at a time as there are cores: a thousand starts
at once would time each other out.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import json
import os
import queue
import select
import shutil
import subprocess
import sys
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError

from reprolib.errors import InputError, ReprolibError, RunError, nearest
from reprolib.paths import manifests
from reprolib.study import parameters, provenance, records

POLL = 0.1  # seconds between two looks at a job's time and memory
START = 120.0  # seconds that a process may take until it is ready, once it is its turn to start
READY = "ready"
STOPPED = "the sweep was stopped"
LOST = "died at its start"  # and so done again, once


@dataclass(frozen=True)
class Job:
    """What is to be done: the ``study`` (a name or a notebook's path) or the ``point`` with these parameters.

    ``parameters`` are those given, ``values`` all of them, checked. ``key`` is the sha256 over the content that decides
    the result: values, the files and folders that they name, the notebook or the point's module, and the package.
    """

    kind: str
    name: str
    parameters: Mapping[str, Any]
    values: Mapping[str, Any]
    key: str

    @classmethod
    def of(cls, kind: str, name: str, given: Mapping[str, Any]) -> Job:
        """Return a job whose parameters are checked; InputError for what is not valid, before anything is executed."""
        if kind == "study":
            study = parameters.find_study(name)
            values, source = study.resolve(given), study.path
            name = str(study.path) if name.endswith(".ipynb") else name  # whatever folder a worker works in
        else:
            function = point(name)
            values, source = _checked(function, name, given), Path(inspect.getfile(function))
        files = {key: _content(Path(value)) for key, value in values.items() if isinstance(value, str) and value}
        try:
            key = _digest(kind, provenance.sha256(source), name.rpartition(":")[2], values, files, sources())
        except TypeError as error:
            raise InputError(f"{name} has a parameter that JSON cannot hold: {error}") from error
        return cls(kind, name, {each: values[each] for each in given}, values, key)

    def folder(self, out: Path) -> Path:
        """Return the run directory of the job within the sweep's folder."""
        return out / "jobs" / self.key[:16]

    def done(self, out: Path) -> bool:
        """Return whether a finished run of this very content is there, as it was written."""
        with contextlib.suppress(RunError):
            facts, found = provenance.read(self.folder(out)), provenance.digests(self.folder(out))
            return facts.get("key") == self.key and facts.get("files", {}).items() <= found.items()
        return False


@dataclass(frozen=True)
class Limits:
    """Of one job: ``seconds`` of time, ``memory`` in bytes of its process and all that it starts; None: no limit."""

    seconds: float | None = None
    memory: int | None = None


@dataclass(frozen=True)
class Outcome:
    """How a job ended: ``status`` is "done", "failed", "timeout", "memory", "died" or "stopped".

    "failed": the job itself raised an error. "died": its process or its kernel was killed or crashed.
    """

    status: str
    reason: str = ""
    seconds: float = 0.0
    memory: int = 0
    attempts: int = 1


def point(name: str) -> Callable[..., Iterable[Any]]:
    """Return a grid point: one of ``reprolib.study.points``, or ``package.module:function`` of one's own."""
    if ":" not in name:
        from reprolib.study import points  # with torch, which a process that runs notebooks does without

        if name not in points.POINTS:
            raise nearest(name, points.POINTS, "grid point")
        return points.POINTS[name]
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise InputError(f"the grid point {name} cannot be imported: {error}") from error
    return found


def _checked(function: Callable[..., Any], name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    try:
        known = inspect.signature(function, eval_str=True).parameters
    except (NameError, TypeError, ValueError) as error:
        raise InputError(f"the parameters of the grid point {name} cannot be read: {error}") from error
    for parameter, value in given.items():
        if parameter not in known:
            raise nearest(parameter, known, f"parameter of the grid point {name}")
        _of_type(known[parameter], value, name)
    values = {key: entry.default for key, entry in known.items()} | dict(given)
    missing = [key for key, value in values.items() if value is inspect.Parameter.empty]
    if missing:
        raise InputError(f"the grid point {name} needs a value for its parameter {missing[0]}")
    return parameters.check(values) if ":" not in name else values


def _of_type(parameter: inspect.Parameter, value: Any, name: str) -> None:
    if parameter.annotation is parameter.empty:
        return
    try:
        TypeAdapter(parameter.annotation, config=ConfigDict(strict=True, allow_inf_nan=False)).validate_python(value)
    except ValidationError as error:
        form = inspect.formatannotation(parameter.annotation)
        raise InputError(
            f"the grid point {name}: its parameter {parameter.name} must be {form}, not {value!r}"
        ) from error
    except PydanticUserError as error:
        raise InputError(f"the grid point {name}: YAML cannot give its parameter {parameter.name} a value") from error


def _digest(*values: Any) -> str:
    from reprolib.loaders.store import digest  # with SciPy, which would treble the start of the process that does jobs

    return digest(*values)


def _content(path: Path) -> str | None:
    """Return a text that changes when what lies at ``path`` does; None if nothing does."""
    with contextlib.suppress(OSError):  # a value that is no path may be too long for one
        if path.is_file():
            return _sha256(path, path.stat().st_mtime_ns, path.stat().st_size)
        if path.is_dir() and not (path / "jobs").is_dir():  # a sweep's own folder may be called like a value
            inside = [(each, each.stat()) for each in sorted(path.rglob("*"))]
            return _digest([[str(each), stat.st_size, stat.st_mtime_ns] for each, stat in inside])
    return None


@functools.cache
def _sha256(path: Path, _time: int, _size: int) -> str:
    return provenance.sha256(path)


@functools.cache
def sources() -> str:
    """Return the sha256 over the package's code and its manifests of data, so that no result outlives what made it."""
    package = Path(__file__).parents[1]
    data = [path for kind in ("datasets", "models") for path in (manifests() / kind).glob("*.yaml")]
    return _digest(sorted((path.name, provenance.sha256(path)) for path in [*package.rglob("*.py"), *data]))


# --- the process that does the jobs -------------------------------------------------------------------------


def serve() -> None:
    """Do the jobs that arrive on standard input, a line of JSON each; answer on standard output, a line each.

    What jobs print goes to standard error. When the input ends, so do this process and all that it started: whoever
    watches it is gone.
    """
    requests: queue.SimpleQueue[str] = queue.SimpleQueue()

    def listen() -> None:
        for line in sys.stdin:
            requests.put(line)
        kill(os.getpid())

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    threading.Thread(target=listen, daemon=True).start()
    while True:
        request = json.loads(requests.get())
        if request["kind"] == "study":
            import reprolib.study.runner  # noqa: F401 - slow, and so part of the start
        print(READY, file=answers, flush=True)
        print(json.dumps(_attempt(request)), file=answers, flush=True)


def _attempt(request: Mapping[str, Any]) -> dict[str, str]:
    try:
        _perform(request)
    except ReprolibError as error:
        return {"status": _status(error), "reason": str(error)}
    except MemoryError:
        return {"status": "memory", "reason": "the job ran out of memory"}
    except Exception as error:
        with contextlib.suppress(OSError):  # the disk that holds the log may be full
            traceback.print_exc()
        return {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
    return {"status": "done", "reason": ""}


def _status(error: ReprolibError) -> str:
    """Tell a kernel that died, or never answered, from a cell that raised, by the runner's words."""
    if isinstance(error, RunError) and ", in its start; " in str(error):
        return LOST
    return "died" if isinstance(error, RunError) and " lost its kernel, " in str(error) else "failed"


def _perform(request: Mapping[str, Any]) -> None:
    out = Path(request["out"])
    mirror = Path(request["mirror"]) if request["mirror"] else None
    given = request["parameters"]
    if request["kind"] == "study":
        from reprolib.study import runner

        study = parameters.find_study(request["name"])
        runner.run(study, given, out, mirror=mirror, threads=request["threads"], progress=False,
                   facts={"key": request["key"]})  # fmt: skip
        return
    if mirror:
        os.environ["REPROLIB_MIRROR"] = str(mirror.resolve())  # this process does nothing else
    begun = time.monotonic()
    rows = list(point(request["name"])(**given))
    if not rows:
        raise RunError(f"the grid point {request['name']} returned no record")
    facts = {"point": request["name"], "parameters": request["values"], "key": request["key"],
             "threads": request["threads"], "duration_seconds": round(time.monotonic() - begun, 3),
             "identities": {}, **request["machine"]}  # fmt: skip
    staging = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        staging.mkdir(parents=True)
        records.save(rows, staging)
        provenance.write(staging, facts)
        shutil.rmtree(out, ignore_errors=True)
        os.rename(staging, out)
    except OSError as error:
        raise RunError(f"cannot write the result into {out}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


# --- the process that watches -------------------------------------------------------------------------------


@functools.cache
def _machine() -> dict[str, Any]:
    return {"code": provenance.code(), "environment": provenance.environment()}


_once_only = threading.Lock()  # a cache alone would let all threads compute at once
_starts = threading.BoundedSemaphore(os.cpu_count() or 1)  # held by a process that starts


class _Table:
    """The process table, read once for all workers, and so seldom that reading takes a tenth of a core at most."""

    def __init__(self) -> None:
        self._lock, self._next = threading.Lock(), 0.0
        self._children: Mapping[int, list[psutil.Process]] = {}

    def family(self, pid: int) -> list[psutil.Process]:
        """Return the process and all that it started, as of the last reading."""
        with self._lock:
            begun = time.monotonic()
            if begun >= self._next:
                children = defaultdict(list)
                for process in psutil.process_iter(["ppid"]):
                    children[process.info["ppid"]].append(process)
                self._children = dict(children)
                self._next = begun + max(POLL, min(10 * (time.monotonic() - begun), 2.0))
            children = self._children
        found = [psutil.Process(pid)]
        for process in found:  # which grows as it is gone through
            found += children.get(process.pid, [])
        return found


_table = _Table()


class Worker:
    """A process that does jobs one after the other, started when it is first needed and after each loss.

    ``threads`` is what BLAS and OpenMP may use in it; what it prints goes to the file ``log``.
    """

    def __init__(self, log: Path, threads: int = 1, mirror: Path | None = None) -> None:
        self.log, self.threads, self.mirror = log, threads, mirror
        self._process: subprocess.Popen[str] | None = None
        self._family: list[psutil.Process] = []
        self._heard = b""

    def run(self, job: Job, out: Path, limits: Limits, stop: threading.Event | None = None) -> Outcome:
        """Do a job and return how it ended.

        Once again, in a new process, if its process or kernel died at the start, or if it passed its limit of memory
        in a process that had done others.
        """
        stop = stop or threading.Event()
        sweep_up(job, out)  # what a lost machine may have left
        used = self._process is not None
        outcome = self._once(job, out, limits, stop)
        crowded = used and outcome.status == "memory"  # by what an earlier job may have left behind
        if crowded or outcome.status == LOST:
            outcome = replace(self._once(job, out, limits, stop), attempts=2)
        return replace(outcome, status="died") if outcome.status == LOST else outcome

    def _once(self, job: Job, out: Path, limits: Limits, stop: threading.Event) -> Outcome:
        begun, highest, ready = time.monotonic(), 0, False
        request = {"kind": job.kind, "name": job.name, "parameters": job.parameters, "values": job.values,
                   "key": job.key, "out": str(job.folder(out).resolve()), "threads": self.threads,
                   "mirror": str(self.mirror.resolve()) if self.mirror else None,
                   "machine": None}  # fmt: skip
        if job.kind == "point":
            with _once_only:
                request["machine"] = _machine()

        def ended(status: str, reason: str) -> Outcome:
            if status not in ("done", "failed"):
                self.close()
                sweep_up(job, out)
            for each in self._family[1:]:  # none after ``close``; else what the job started and left behind
                with contextlib.suppress(psutil.Error):
                    each.kill()
            return Outcome(status, reason, round(time.monotonic() - begun, 2), highest)

        with contextlib.ExitStack() as start:
            try:
                if self._process is None or self._process.poll() is not None:
                    while not _starts.acquire(timeout=POLL):
                        if stop.is_set():
                            return ended("stopped", STOPPED)
                    start.callback(_starts.release)
                    begun = time.monotonic()
                    self._start()
                print(json.dumps(request), file=self._process.stdin, flush=True)
                while True:
                    arrived = self._answer()
                    highest = max(highest, self.memory())
                    if arrived == READY:  # from here on it is the job that takes time
                        begun, ready = time.monotonic(), True
                        start.close()
                    elif arrived is not None:
                        return ended(**json.loads(arrived))
                    elapsed = time.monotonic() - begun
                    if not ready and elapsed > START:
                        return ended(LOST, f"the job's process did not start within {START:g} s")
                    if ready and limits.seconds is not None and elapsed > limits.seconds:
                        return ended("timeout", f"the job ran longer than {limits.seconds:g} s")
                    if limits.memory is not None and highest > limits.memory:
                        found, most = (f"{size / 2**20:,.0f} MiB" for size in (highest, limits.memory))
                        return ended("memory", f"the job held {found} of memory, more than {most}")
                    if stop.is_set():
                        return ended("stopped", STOPPED)
            except (EOFError, OSError) as error:
                if self._process is None:
                    return ended(LOST, f"the job's process could not be started: {error}")
                where = "while the job ran" if ready else "at its start"
                reason = f"the job's process was killed or crashed {where} (exit code {self._process.wait()})"
                return ended("died" if ready else LOST, reason)

    def _answer(self) -> str | None:
        """Return the next line that the process writes, None if it writes none for a while; EOFError at its end."""
        if b"\n" not in self._heard:
            ready = select.poll()  # unlike select, with any number of open files
            ready.register(self._process.stdout.fileno())
            if not ready.poll(1000 * POLL):
                if self._process.poll() is not None:  # a process that it started may keep the pipe open
                    raise EOFError
                return None
            more = os.read(self._process.stdout.fileno(), 2**16)
            if not more:
                raise EOFError
            self._heard += more
        line, end, rest = self._heard.partition(b"\n")
        if not end:
            return None
        self._heard = rest
        return line.decode()

    def memory(self) -> int:
        """Return the resident bytes of the process and all that it started."""
        total = 0
        with contextlib.suppress(psutil.Error):
            self._family = _table.family(self._process.pid)
        for each in self._family:
            with contextlib.suppress(psutil.Error):
                total += each.memory_info().rss
        return total

    def _start(self) -> None:
        self.close()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        environment = {
            **os.environ, **dict.fromkeys(names, str(self.threads)),
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),  # so that it finds what this process finds
        }  # fmt: skip
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", "from reprolib.study.jobs import serve; serve()"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment, text=True,
                start_new_session=True,
            )  # fmt: skip
        self._heard = b""

    def close(self) -> None:
        """End the process with all that it started."""
        if self._process is not None:
            kill(self._process.pid)
            for each in self._family:  # those whose parent went first; psutil knows a number given out again
                with contextlib.suppress(psutil.Error):
                    each.kill()
            self._process.wait()
            with contextlib.suppress(OSError):
                self._process.stdin.close()
            self._process.stdout.close()
        self._process, self._family = None, []


def sweep_up(job: Job, out: Path) -> None:
    """Remove what a killed process left half-written of a job."""
    folder = job.folder(out)
    for partial in folder.parent.glob(f".{folder.name}.*partial*"):
        shutil.rmtree(partial, ignore_errors=True)


def kill(pid: int) -> None:
    """Kill a process and all that it started, itself last."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        for each in [*process.children(recursive=True), process]:
            with contextlib.suppress(psutil.Error):
                each.kill()
