"""One job of a sweep: a notebook or a grid point, done in a process of its own and watched from outside.

The process stays for the jobs that follow, because imports take longer than small jobs do. It is killed with all that
it started when a job exceeds its time or memory; the next job gets a new one. If the watching process dies, however
suddenly, the job's process ends as well.
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
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from reprolib.errors import InputError, ReprolibError, RunError, nearest
from reprolib.loaders.store import digest
from reprolib.study import parameters, provenance, records

POLL = 0.1  # seconds between two looks at a job's time and memory
START = 120.0  # seconds that a process may take until it is ready
READY = "ready"


@dataclass(frozen=True)
class Job:
    """What is to be done: the ``study`` (a name or a notebook's path) or the ``point`` with these parameters.

    ``parameters`` are those given, ``values`` all of them, checked. ``key`` is the sha256 over the content that decides
    the result: values, notebook, and the package's own code.
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
            values = study.resolve(given)
            content = provenance.sha256(study.path)
        else:
            values = _checked(point(name), name, given)
            content = name
        return cls(kind, name, dict(given), values, digest(kind, content, values, sources()))

    def folder(self, out: Path) -> Path:
        """Return the run directory of the job within the sweep's folder."""
        return out / "jobs" / self.key[:16]

    def done(self, out: Path) -> bool:
        """Return whether a finished run of this very content is there."""
        with contextlib.suppress(RunError):
            return provenance.read(self.folder(out)).get("key") == self.key
        return False


@dataclass(frozen=True)
class Limits:
    """Of one job: ``seconds`` of time, ``memory`` in bytes of its process and all that it starts; None: no limit."""

    seconds: float | None = None
    memory: int | None = None


@dataclass(frozen=True)
class Outcome:
    """How a job ended: ``status`` is "done", "failed", "timeout", "memory", "died" or "stopped"."""

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
    known = inspect.signature(function).parameters
    for parameter in given:
        if parameter not in known:
            raise nearest(parameter, known, f"parameter of the grid point {name}")
    values = {key: entry.default for key, entry in known.items()} | dict(given)
    missing = [key for key, value in values.items() if value is inspect.Parameter.empty]
    if missing:
        raise InputError(f"the grid point {name} needs a value for its parameter {missing[0]}")
    return parameters.check(values) if ":" not in name else values


@functools.cache
def sources() -> str:
    """Return the sha256 over the package's own code, so that no result outlives the code that made it."""
    package = Path(__file__).parents[1]
    return digest({str(path.relative_to(package)): provenance.sha256(path) for path in sorted(package.rglob("*.py"))})


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
        print(READY, file=answers, flush=True)
        print(json.dumps(_attempt(request)), file=answers, flush=True)


def _attempt(request: Mapping[str, Any]) -> dict[str, str]:
    try:
        _perform(request)
    except ReprolibError as error:
        lost = isinstance(error, RunError) and "lost its kernel" in str(error) and "in its start" in str(error)
        return {"status": "died at its start" if lost else "failed", "reason": str(error)}
    except MemoryError:
        return {"status": "memory", "reason": "the job ran out of memory"}
    except Exception as error:
        traceback.print_exc()
        return {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
    return {"status": "done", "reason": ""}


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
    staging = out.with_name(f".{out.name}.{os.getpid()}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        begun = time.monotonic()
        records.save(point(request["name"])(**given), staging)
        facts = {"point": request["name"], "parameters": request["values"], "key": request["key"], "code": _code(),
                 "threads": request["threads"], "duration_seconds": round(time.monotonic() - begun, 3),
                 "identities": {}, "environment": _environment()}  # fmt: skip
        provenance.write(staging, facts)
        if out.exists():
            shutil.rmtree(out)
        os.rename(staging, out)
    except OSError as error:
        raise RunError(f"cannot write the result into {out}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


_code = functools.cache(provenance.code)
_environment = functools.cache(provenance.environment)


# --- the process that watches -------------------------------------------------------------------------------


class Worker:
    """A process that does jobs one after the other, started when it is first needed and after each loss.

    ``threads`` is what BLAS and OpenMP may use in it; what it prints goes to the file ``log``.
    """

    def __init__(self, log: Path, threads: int = 1, mirror: Path | None = None) -> None:
        self.log, self.threads, self.mirror = log, threads, mirror
        self._process: subprocess.Popen[str] | None = None
        self._heard = b""

    def run(self, job: Job, out: Path, limits: Limits, stop: threading.Event | None = None) -> Outcome:
        """Do a job, again once if its process or kernel died at the start, and return how it ended."""
        outcome = self._once(job, out, limits, stop)
        if outcome.status == "died at its start":
            outcome = replace(self._once(job, out, limits, stop), attempts=2)
        return replace(outcome, status="died") if outcome.status.startswith("died") else outcome

    def _once(self, job: Job, out: Path, limits: Limits, stop: threading.Event | None) -> Outcome:
        begun, highest, ready = time.monotonic(), 0, False
        request = {"kind": job.kind, "name": job.name, "parameters": job.parameters, "values": job.values,
                   "key": job.key, "out": str(job.folder(out).resolve()), "threads": self.threads,
                   "mirror": str(self.mirror.resolve()) if self.mirror else None}  # fmt: skip

        def ended(status: str, reason: str) -> Outcome:
            if status not in ("done", "failed"):
                self.close()
                sweep_up(job, out)
            return Outcome(status, reason, round(time.monotonic() - begun, 2), highest)

        try:
            self._start()
            print(json.dumps(request), file=self._process.stdin, flush=True)
            while True:
                arrived = self._answer()
                highest = max(highest, self.memory())
                if arrived == READY:  # from here on it is the job that takes time
                    begun, ready = time.monotonic(), True
                elif arrived is not None:
                    return ended(**json.loads(arrived))
                elapsed = time.monotonic() - begun
                if not ready and elapsed > START:
                    return ended("died at its start", f"the job's process did not start within {START:g} s")
                if ready and limits.seconds is not None and elapsed > limits.seconds:
                    return ended("timeout", f"the job ran longer than {limits.seconds:g} s")
                if limits.memory is not None and highest > limits.memory:
                    found, most = (f"{size / 2**20:,.0f} MiB" for size in (highest, limits.memory))
                    return ended("memory", f"the job held {found} of memory, more than {most}")
                if stop is not None and stop.is_set():
                    return ended("stopped", "the sweep was stopped")
        except (EOFError, OSError):
            where = "while the job ran" if ready else "at its start"
            reason = f"the job's process was killed or crashed {where} (exit code {self._process.wait()})"
            return ended("died" if ready else "died at its start", reason)

    def _answer(self) -> str | None:
        """Return the next line that the process writes, None if it writes none for a while; EOFError at its end."""
        if b"\n" not in self._heard:
            if not select.select([self._process.stdout], [], [], POLL)[0]:
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
            process = psutil.Process(self._process.pid)
            for each in [process, *process.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    total += each.memory_info().rss
        return total

    def _start(self) -> None:
        if self._process is not None and self._process.poll() is None:
            return
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
            self._process.wait()
            with contextlib.suppress(OSError):
                self._process.stdin.close()
            self._process.stdout.close()
        self._process = None


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
