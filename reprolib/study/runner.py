"""Run a notebook into a run directory: checked before, watched during, moved into place only on success.

The parent process (this one) writes what counts as evidence. The kernel works in a staging folder beside
the run directory; when the notebook has finished and its results are valid, the parent adds the executed
notebook, the run crate and ``run.json``, flushes everything to the disk and swaps the folder with the previous
run in one step. Whatever goes wrong before that leaves the previous run as it was.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import nbformat
import psutil
from jupyter_client.client import KernelClient
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import DeadKernelError
from papermill import PapermillExecutionError, execute_notebook
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from reprolib import errors
from reprolib.errors import DataUnavailable, InputError, ReprolibError, RunError
from reprolib.paths import root
from reprolib.study import crate, provenance, records
from reprolib.study.margins import margins_hash
from reprolib.study.parameters import Study
from reprolib.study.signals import on_signal

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)
logging.getLogger("papermill").setLevel(logging.CRITICAL)  # this module reports in its own words
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Interrupted(SystemExit):
    """A signal stopped the run and nothing half-written is left; exits with 128 + the signal's number."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.sentence = f"stopped by {signal.Signals(number).name}; no run was written"


class _KernelManager(AsyncKernelManager):
    """This very interpreter, talking over IPC sockets in ``folder`` (TCP ports collide under load).

    A kernel spec called python3 may be registered for another interpreter, so none is looked up.
    """

    last_client: KernelClient | None = None

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        super().__init__(transport="ipc", ip=str(folder / "k"), connection_file=str(folder / "k.json"))
        self._kernel_spec = KernelSpec(
            argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
            display_name="Python 3",
            language="python",
        )
        self._environment = {**os.environ, **environment}

    async def start_kernel(self, **options: Any) -> None:
        await super().start_kernel(**{**options, "env": self._environment})

    def client(self, **options: Any) -> KernelClient:
        self.last_client = super().client(**options)  # to be closed by us: papermill closes only what it made
        return self.last_client

    @property
    def pid(self) -> int | None:
        return getattr(self.provisioner, "pid", None)


class _Bar:
    """A progress bar over the code cells: the section being run, time so far and time left.

    Cells count by what they took in the previous run, where there is one, and alike otherwise.
    """

    def __init__(self, notebook: nbformat.NotebookNode, weights: list[float], title: str) -> None:
        self._sections, section = {}, title
        for cell in notebook.cells:
            if cell.cell_type == "markdown" and cell.source.startswith("#"):
                section = cell.source.splitlines()[0].lstrip("# ")
            self._sections[cell.id] = section
        code = [cell.id for cell in notebook.cells if cell.cell_type == "code"]
        self._weights = dict(zip(code, weights if len(weights) == len(code) else [1.0] * len(code), strict=True))
        columns = (
            BarColumn(24),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self.progress = Progress(
            TextColumn("{task.description}"),
            *columns,
            console=Console(stderr=True),
            speed_estimate_period=600,
        )
        self._task = self.progress.add_task(title, total=sum(self._weights.values()))

    def start(self, cell: nbformat.NotebookNode, **_: Any) -> None:
        self.progress.update(self._task, description=self._sections.get(cell.get("id"), "parameters"))

    def done(self, cell: nbformat.NotebookNode, **_: Any) -> None:
        self.progress.advance(self._task, self._weights.get(cell.get("id"), 0.0))


def run(
    study: Study,
    parameters: Mapping[str, Any],
    out: Path,
    *,
    timeout: float | None = None,
    mirror: Path | None = None,
    threads: int | None = None,
    progress: bool = True,
    facts: Mapping[str, Any] | None = None,
) -> Path:
    """Execute ``study`` with ``parameters`` (those that differ from the defaults will do) and return ``out``.

    ``timeout`` is in seconds for the whole run; ``mirror`` is a folder of data files; ``threads`` is what
    BLAS and OpenMP may use in the kernel (default: ``OMP_NUM_THREADS``, else every core); ``facts``
    are added to ``run.json``.

    Raises :class:`InputError` before anything is executed if a parameter or ``out`` is not usable; the
    error that the notebook raised, if it is one of reprolib's; :class:`RunError` for any other failure, a
    dead kernel, the time limit or a full disk. On every error the previous run in ``out`` is intact; the
    notebook of a failed run is kept as ``.failed/<name of out>.ipynb`` beside it.
    """
    values = study.resolve(parameters)
    out = out.expanduser().resolve()
    if out.exists() and not (out / provenance.RUN).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists and is not a run; choose another folder for the run")
    if mirror is not None and not mirror.is_dir():
        raise InputError(f"no folder {mirror} to use as a mirror")
    failed = out.parent / ".failed" / f"{out.name}.ipynb"
    staging = out.parent / f".{out.name}.partial-{socket.gethostname()}-{os.getpid()}"
    with on_signal(_interrupted), _disk(out.parent):
        out.parent.mkdir(parents=True, exist_ok=True)
        _clean(out)
        staging.mkdir()
        try:
            found = _execute(study, values, parameters, out, staging, failed, timeout, mirror, threads, progress)
            if study.results or (staging / records.RESULTS).exists():
                _check_results(study, staging)
            found = provenance.complete(staging, {**found, **(facts or {})})
            crate.write(staging, found)
            provenance.write(staging, found)
            _flush(staging)
            _swap(staging, out)
        finally:
            with _deaf():
                shutil.rmtree(staging, ignore_errors=True)
        failed.unlink(missing_ok=True)
    return out


def _execute(
    study: Study,
    values: Mapping[str, Any],
    given: Mapping[str, Any],
    out: Path,
    staging: Path,
    failed: Path,
    timeout: float | None,
    mirror: Path | None,
    threads: int | None,
    progress: bool,
) -> dict[str, Any]:
    """Execute the notebook into ``staging`` and return the facts of the run for ``run.json``."""
    threads = threads or int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
    executed = staging / study.path.name
    notebook = nbformat.read(study.path, as_version=4)
    bar = _Bar(notebook, _durations(out / study.path.name), study.title)
    facts: dict[str, Any] = {
        "study": study.name,
        "title": study.title,
        "notebook": {"name": study.path.name, "sha256": provenance.sha256(study.path)},
        "parameters": dict(values),
        "seeds": {name: value for name, value in values.items() if name.startswith("seed")},
        "threads": threads,
        "code": provenance.code(),
        "margins": margins_hash(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    begun = time.monotonic()
    with _socket_folder() as folder:
        environment = {
            **dict.fromkeys(THREAD_VARIABLES, str(threads)),
            "GOMP_SPINCOUNT": "20000",  # threads that spin longer slow each other down where cores are shared
            "MALLOC_ARENA_MAX": "1",  # glibc: memory that every thread keeps to itself adds up over a long run
            records.RUN_DIRECTORY: str(staging),
            "PYTHONPATH": _import_path(),
            "IPYTHONDIR": str(folder),  # nobody's start-up files, no shared history
            "PYTHONHASHSEED": "0",
            **({"REPROLIB_MIRROR": str(mirror.resolve())} if mirror else {}),
        }
        kernel = _KernelManager(folder, environment)
        watchdog = _Watchdog(kernel, timeout)
        try:
            with watchdog, bar.progress if progress else contextlib.nullcontext():
                execute_notebook(
                    str(study.path),
                    str(executed),
                    parameters={name: values[name] for name in given},
                    kernel_name="python3",
                    language="python",
                    progress_bar=False,
                    start_timeout=120,
                    iopub_timeout=120,
                    km=kernel,
                    resources={"metadata": {"path": str(study.path.parent)}},
                    on_cell_start=bar.start,
                    on_cell_executed=bar.done,
                )
                facts["peak_memory_bytes"] = _peak_memory(kernel.pid)
        except PapermillExecutionError as error:
            raise _cell_error(study, error, executed, failed) from error
        except RuntimeError as error:
            where = _running(executed)
            if watchdog.expired:
                cause = f"ran longer than {timeout:g} s"
            elif isinstance(error, DeadKernelError):
                cause = "lost its kernel, which was killed or crashed"
            else:
                cause = f"could not be executed ({error})"
            kept = _keep(executed, failed)
            raise RunError(f"{study.path.name} {cause}, in {where}; {kept}") from error
        finally:
            with _deaf():
                _stop(kernel)
    facts["duration_seconds"] = round(time.monotonic() - begun, 3)
    _tidy(executed, out)
    return facts


# --- what can go wrong ------------------------------------------------------------------------------------


def _cell_error(study: Study, error: PapermillExecutionError, executed: Path, failed: Path) -> ReprolibError:
    """Turn the exception of a cell into a sentence, of reprolib's own class where the cell raised one."""
    kind = getattr(errors, error.ename, None)
    message = " ".join(str(error.evalue).split()) or "no message"
    if isinstance(kind, type) and issubclass(kind, InputError | DataUnavailable):
        return kind(message)
    if "No space left on device" in message or "Disk quota exceeded" in message:
        return RunError(
            f"the disk is full: cell In [{error.exec_count}] of {study.path.name} could not write: {message}"
        )
    raised = message if isinstance(kind, type) and issubclass(kind, ReprolibError) else f"{error.ename}: {message}"
    return RunError(f"{study.path.name} failed in cell In [{error.exec_count}]: {raised}; {_keep(executed, failed)}")


def _keep(executed: Path, failed: Path) -> str:
    """Move the notebook of a failed run to ``failed`` and return the words that say so."""
    if not executed.is_file():
        return "nothing was executed"
    failed.parent.mkdir(parents=True, exist_ok=True)
    _tidy(executed, failed.parent)
    os.replace(executed, failed)
    return f"its notebook is kept as {failed}"


def _running(executed: Path) -> str:
    """Name the cell that ran when the kernel went: the last one started, whatever its status says."""
    if not executed.is_file():
        return "its start"
    cells = nbformat.read(executed, as_version=4).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    started = [n for n, cell in enumerate(code, 1) if cell.metadata.get("papermill", {}).get("start_time")]
    return f"code cell {started[-1]} of {len(code)}" if started else "its start"


def _check_results(study: Study, staging: Path) -> None:
    try:
        records.load(staging)
    except InputError as error:
        message = str(error).replace(f"{staging}{os.sep}", "").replace(str(staging), "the run")
        raise RunError(f"{study.path.name} finished, but its results are not valid: {message}") from error


@contextlib.contextmanager
def _disk(folder: Path) -> Iterator[None]:
    """Turn a full disk, wherever in the chain of causes it shows, into one sentence."""
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(error, ReprolibError):
            if isinstance(cause, OSError) and cause.errno in _FULL:
                raise RunError(f"the disk that holds {folder} is full; no run was written") from error
            cause = cause.__cause__ or cause.__context__
        if isinstance(error, OSError):
            raise RunError(f"cannot write the run into {folder}: {error}") from error
        raise


def _interrupted(number: int, _frame: Any) -> None:
    raise Interrupted(number)


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """Let the clean-up finish: a second Ctrl-C must not leave a kernel or a folder behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


# --- the kernel process -----------------------------------------------------------------------------------


class _Watchdog:
    """Kills the kernel's whole process group when ``limit`` seconds have passed."""

    def __init__(self, kernel: _KernelManager, limit: float | None) -> None:
        self.expired = False
        self._kernel, self._limit, self._done = kernel, limit, threading.Event()

    def _watch(self) -> None:
        if not self._done.wait(self._limit):
            self.expired = True
            while not self._done.wait(0.1):  # again, should the kernel only be starting
                _kill(self._kernel.pid)

    def __enter__(self) -> _Watchdog:
        if self._limit is not None:
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()


def _kill(pid: int | None) -> None:
    # The kernel leads its own process group and session; its descendants may have left the group.
    if pid is None or not psutil.pid_exists(pid):
        return
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _stop(kernel: _KernelManager) -> None:
    _kill(kernel.pid)
    process = getattr(kernel.provisioner, "process", None)
    if process is not None:
        process.wait()
    kernel.cleanup_connection_file()
    if kernel.last_client is not None:
        kernel.last_client.stop_channels()
    kernel.context.destroy(linger=0)


def _import_path() -> str:
    """Return PYTHONPATH with the checkout, if any, first: the kernel runs the code that is recorded."""
    checkout = [str(root())] if (root() / "pyproject.toml").is_file() else []
    return os.pathsep.join([*checkout, *filter(None, [os.environ.get("PYTHONPATH")])])


def _peak_memory(pid: int | None) -> int | None:
    """Return the peak resident memory of a process in bytes, where the platform tells (Linux), else None."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)


@contextlib.contextmanager
def _socket_folder() -> Iterator[Path]:
    # A socket's path holds at most 103 bytes on some systems: a long TMPDIR does not do.
    base = tempfile.gettempdir()
    folder = Path(tempfile.mkdtemp(prefix="rl-", dir=base if len(os.fsencode(base)) < 80 else "/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# --- files ------------------------------------------------------------------------------------------------


def _durations(previous: Path) -> list[float]:
    """Return the seconds that each code cell of a previous run took, without the injected parameters."""
    with contextlib.suppress(OSError, ValueError, nbformat.ValidationError):
        cells = nbformat.read(previous, as_version=4).cells
        return [
            cell.metadata.get("papermill", {}).get("duration") or 0.0
            for cell in cells
            if cell.cell_type == "code" and "injected-parameters" not in cell.metadata.get("tags", [])
        ]
    return []


def _tidy(executed: Path, out: Path) -> None:
    """Name the run directory where the executed notebook names the staging folder, which means nothing later."""
    notebook = nbformat.read(executed, as_version=4)
    notebook.metadata.get("papermill", {}).update(input_path=executed.name, output_path=executed.name)
    text = nbformat.writes(notebook).replace(json.dumps(str(executed.parent))[1:-1], json.dumps(str(out))[1:-1])
    executed.write_text(text, encoding="utf-8")


def _clean(out: Path) -> None:
    """Remove the staging folders that processes of this machine left for ``out`` when they died."""
    prefix = f".{out.name}.partial-{socket.gethostname()}-"
    for folder in out.parent.glob(f"{prefix}*"):
        number = folder.name.removeprefix(prefix)
        if number.isdigit() and not _alive(int(number), folder):
            shutil.rmtree(folder, ignore_errors=True)


def _alive(pid: int, folder: Path) -> bool:
    """Return whether the process that made ``folder`` still runs (a number may have been given out again)."""
    try:
        return pid != os.getpid() and psutil.Process(pid).create_time() <= folder.stat().st_ctime
    except (psutil.NoSuchProcess, OSError):
        return False


def _flush(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _swap(staging: Path, out: Path) -> None:
    """Put ``staging`` in the place of ``out`` in one step; then ``staging`` is the previous run, if any."""
    if not out.exists():
        os.rename(staging, out)
    elif not _exchange(staging, out):
        # No atomic exchange here: the previous run is set aside, and put back should the second step fail.
        aside = staging.with_name(f"{staging.name}.previous")
        os.rename(out, aside)
        try:
            os.rename(staging, out)
        except OSError:
            os.rename(aside, out)
            raise
        os.rename(aside, staging)
    descriptor = os.open(out.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two folders atomically (Linux's renameat2, RENAME_EXCHANGE); False if it cannot be done."""
    renameat2: Callable[..., int] | None = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return renameat2 is not None and renameat2(here, os.fsencode(first), here, os.fsencode(second), exchange) == 0
