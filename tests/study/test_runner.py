import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import nbformat
import numpy as np
import psutil
import pytest
from rocrate.rocrate import ROCrate

from reprolib.errors import DataUnavailable, InputError, RunError
from reprolib.study import crate, provenance, records, runner
from reprolib.study.margins import margins_hash
from reprolib.study.parameters import read_study
from reprolib.study.verify import verify

RECORD = (
    "from reprolib.study import records\n"
    "records.save([dict(study='tiny', dataset='none', model=None, direction=None, method=None, "
    "metric='size', value=size)])"
)
PARAMETERS = "size: int = 3  # how many\nseed: int = 0  # random numbers"
MakeNotebook = Callable[..., Path]


def execute(notebook: Path, out: Path, **options: object) -> Path:
    values = {"size": options.pop("size")} if "size" in options else {}
    return runner.run(read_study(notebook), values, out, progress=False, **options)


@pytest.fixture
def previous(tmp_path: Path) -> Path:
    """A finished run, to be found intact after a failure."""
    out = tmp_path / "runs" / "tiny"
    out.mkdir(parents=True)
    (out / provenance.RUN).write_text("{}")
    (out / "kept").touch()
    return out


def assert_intact(out: Path) -> None:
    assert sorted(path.name for path in out.iterdir()) == ["kept", provenance.RUN]
    assert {path.name for path in out.parent.iterdir()} <= {out.name, ".failed"}


def test_run_is_complete_and_replaces_the_previous(
    make_notebook: MakeNotebook, previous: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = tmp_path / "share" / "kernels" / "python3"
    spec.mkdir(parents=True)
    other = {"argv": ["/bin/false"], "display_name": "another interpreter", "language": "python"}
    (spec / "kernel.json").write_text(json.dumps(other))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "share"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("long" * 30)))  # too long for a socket's path
    notebook = make_notebook(
        RECORD,
        "import json, os, sys\n"
        "facts = [sys.executable, os.getcwd(), os.environ['OPENBLAS_NUM_THREADS'], seed]\n"
        "_ = (records.run_directory() / 'facts.json').write_text(json.dumps(facts))\n"
        "_ = (records.run_directory() / 'identities.json').write_text(json.dumps({'data': 'a' * 64}))",
        parameters=PARAMETERS,
    )
    (previous.parent / ".failed").mkdir()
    (previous.parent / ".failed" / "tiny.ipynb").touch()
    out = execute(notebook, previous, size=5, threads=1, mirror=tmp_path)
    assert out == previous
    names = sorted(path.name for path in out.iterdir())
    assert names == ["01_tiny.ipynb", "facts.json", "results.json", crate.METADATA, provenance.RUN]
    assert json.loads((out / "facts.json").read_text()) == [sys.executable, str(tmp_path), "1", 0]
    assert records.load(out)[0].value == 5
    assert not list((out.parent / ".failed").iterdir())
    facts = provenance.read(out)
    assert facts["parameters"] == {"size": 5, "seed": 0} and facts["seeds"] == {"seed": 0}
    assert facts["identities"] == {"data": "a" * 64}
    assert facts["notebook"]["sha256"] == provenance.sha256(notebook)
    assert facts["threads"] == 1 and facts["duration_seconds"] > 0 and facts["peak_memory_bytes"] > 1e6
    assert facts["files"] == {name: provenance.sha256(out / name) for name in names if name != provenance.RUN}
    assert facts["margins"] == margins_hash()
    assert verify(out) == [] and ROCrate(out).mainEntity["name"] == "A tiny study"
    text = (out / "01_tiny.ipynb").read_text()
    assert ".partial" not in text and "injected-parameters" in text
    nbformat.validate(nbformat.read(out / "01_tiny.ipynb", as_version=4))


IMPORT = "from reprolib.errors import *; "
FAILURES = [
    ("1 / 0", RunError, r"01_tiny.ipynb failed in cell In \[2\]: ZeroDivisionError: division by zero", True),
    (f"{IMPORT}raise InputError('row 3 is zero')", InputError, "^row 3 is zero$", False),
    (f"{IMPORT}raise DataUnavailable('no file')", DataUnavailable, "^no file$", False),
    ("with open('/dev/full', 'w') as f: f.write('x')", RunError, "the disk is full: cell In", False),
    ("import os; os.kill(os.getpid(), 9)", RunError, "lost its kernel.*in code cell 2 of 3", True),
    ("records.run_directory().joinpath('results.json').unlink()", RunError, "results are not valid", False),
]


@pytest.mark.parametrize(("code", "error", "message", "kept"), FAILURES)
def test_failure_leaves_the_previous_run(
    make_notebook: MakeNotebook, previous: Path, code: str, error: type[Exception], message: str, kept: bool
) -> None:
    notebook = make_notebook(RECORD.replace("=size", "=1"), code, "1")
    with pytest.raises(error, match=message) as caught:
        execute(notebook, previous)
    assert type(caught.value) is error and "\n" not in str(caught.value)
    assert_intact(previous)
    failed = previous.parent / ".failed" / "tiny.ipynb"
    assert failed.exists() is kept and (str(failed) in str(caught.value)) is kept


def test_time_limit_ends_the_whole_process_group(make_notebook: MakeNotebook, previous: Path, tmp_path: Path) -> None:
    notebook = make_notebook(
        "import subprocess, time\n"
        "child = subprocess.Popen(['sleep', '600'], start_new_session=True)\n"
        f"open({str(tmp_path / 'child')!r}, 'w').write(str(child.pid))\n"
        "time.sleep(600)"
    )
    begun = time.monotonic()
    with pytest.raises(RunError, match="ran longer than 4 s, in code cell 1 of 1; its notebook is kept"):
        execute(notebook, previous, timeout=4)
    assert time.monotonic() - begun < 30
    child = int((tmp_path / "child").read_text())
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE
    assert_intact(previous)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_leave_nothing_half_written(make_notebook: MakeNotebook, previous: Path, number: int) -> None:
    ready = previous.parent.parent / "ready"
    notebook = make_notebook(f"import os, time; open({str(ready)!r}, 'w').write(str(os.getpid())); time.sleep(600)")
    command = [sys.executable, "-m", "reprolib.cli", "run", str(notebook), "--out", str(previous)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not (ready.exists() and ready.read_text()):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert f"stopped by {signal.Signals(number).name}" in stderr and "Traceback" not in stderr
    assert not psutil.pid_exists(int(ready.read_text()))
    assert_intact(previous)


@pytest.mark.parametrize("step", ["crate", "write", "_flush", "_swap"])
def test_full_disk_in_the_parent(
    make_notebook: MakeNotebook, previous: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(runner, "_execute", lambda *_: {})
    monkeypatch.setattr(runner, "_check_results", lambda *_: None)
    monkeypatch.setattr(crate, "write", full if step == "crate" else lambda *_: None)
    if step != "crate":
        monkeypatch.setattr(provenance if step == "write" else runner, step, full)
    with pytest.raises(RunError, match=r"the disk that holds .* is full; no run was written"):
        execute(make_notebook("1"), previous)
    assert_intact(previous)


def test_nothing_is_executed_for_wrong_input(
    make_notebook: MakeNotebook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(runner, "_execute")
    notebook = make_notebook("size, seed", parameters=PARAMETERS)
    study = read_study(notebook)
    with pytest.raises(InputError, match="nearest valid: size"):
        runner.run(study, {"sizes": 3}, tmp_path / "out")
    with pytest.raises(InputError, match="exists and is not a run"):
        runner.run(study, {}, tmp_path)
    with pytest.raises(InputError, match="exists and is not a run"):
        runner.run(study, {}, notebook)
    with pytest.raises(InputError, match="to use as a mirror"):
        runner.run(study, {}, tmp_path / "out", mirror=tmp_path / "absent")
    assert [path.name for path in tmp_path.iterdir()] == [notebook.name]


def test_what_dead_processes_left_is_removed(tmp_path: Path) -> None:
    prefix = f".tiny.partial-{runner.socket.gethostname()}-"
    finished = subprocess.Popen(["true"])
    finished.wait()
    stale = tmp_path / f"{prefix}{finished.pid}"
    running = tmp_path / f"{prefix}{os.getppid()}"
    elsewhere = tmp_path / f".tiny.partial-another-host-{finished.pid}"
    other = tmp_path / f".tiny.partial-{runner.socket.gethostname()}-x"
    for folder in (stale, running, elsewhere, other):
        folder.mkdir()
    runner._clean(tmp_path / "tiny")
    assert not stale.exists() and running.exists() and elsewhere.exists() and other.exists()


@pytest.mark.parametrize("exchange", [True, False])
def test_swap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool) -> None:
    new, old = tmp_path / "new", tmp_path / "old"
    for folder in (new, old):
        folder.mkdir()
        (folder / folder.name).touch()
    if not exchange:
        monkeypatch.setattr(runner, "_exchange", lambda *_: False)
    runner._swap(new, old)
    assert (old / "new").exists() and (new / "old").exists()


def test_swap_that_fails_puts_the_previous_run_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "old"
    old.mkdir()
    (old / "old").touch()
    monkeypatch.setattr(runner, "_exchange", lambda *_: False)
    with pytest.raises(FileNotFoundError):
        runner._swap(tmp_path / "absent", old)
    assert (old / "old").exists() and [path.name for path in tmp_path.iterdir()] == ["old"]


# The parent's part of a run, killed at the step whose number is given; every touch of a file is a step. Without a
# number it prints how many steps there are, and leaves a whole run.
KILLED = """
import json, os, signal, sys
from pathlib import Path
from reprolib.study import records, runner
from reprolib.study.parameters import read_study

notebook, folder = map(Path, sys.argv[1:3])
study, steps = read_study(notebook), 0
FACTS = dict(study="tiny", title="Tiny", notebook=dict(name=notebook.name, sha256="0" * 64), parameters={}, threads=1,
             code=dict(version="1", commit=None), started="2026-01-02T03:04:05+00:00", duration_seconds=1.0)

def count(event, arguments):
    global steps
    if counting and event.startswith(("open", "os.", "shutil.")):
        steps += 1
        if steps == moment:
            os.kill(os.getpid(), signal.SIGKILL)

def execute(study, values, given, out, staging, *rest):
    (staging / notebook.name).write_bytes(notebook.read_bytes())
    (staging / "figures").mkdir()
    (staging / "figures" / "one.svg").write_text("<svg/>" * 1000)
    about = dict(study="tiny", dataset="none", model=None, direction=None, method=None, metric="size")
    records.save([about | dict(value=value)], staging)
    return dict(FACTS)

runner._execute = execute
runner.provenance.environment = lambda: dict(python="3", packages={})
counting, moment, value = False, 0, 0
sys.addaudithook(count)
for line in sys.stdin:
    moment, target, value = json.loads(line)
    if child := os.fork():
        _, status = os.waitpid(child, 0)
        print(json.dumps(os.waitstatus_to_exitcode(status)), flush=True)
        continue
    counting = True
    runner.run(study, {}, folder / target, progress=False)
    counting = False
    print(json.dumps(steps), flush=True)
    os._exit(0)
"""


def test_killing_the_parent_at_any_moment_leaves_no_run_or_a_whole_one(
    make_notebook: MakeNotebook, tmp_path: Path
) -> None:
    folder = tmp_path / "runs"
    command = [sys.executable, "-c", KILLED, str(make_notebook("1")), str(folder)]
    rng, left = np.random.default_rng(0), set()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def attempt(moment: int, target: str, value: int) -> int:
            process.stdin.write(json.dumps([moment, target, value]) + "\n")
            process.stdin.flush()
            found = json.loads(process.stdout.readline())
            return found if moment else (found, json.loads(process.stdout.readline()))[0]

        attempt(0, "old", 0)
        for target in ("old", "new"):  # the first replaces a run, the second does not
            out = folder / target
            total = attempt(0, target, 0)
            edges = np.linspace(1, total + 1, 11).astype(int)  # ten moments at random, spread over all steps
            for value, moment in enumerate(map(int, rng.integers(edges[:-1], edges[1:])), 1):
                if target == "new":
                    shutil.rmtree(out, ignore_errors=True)
                before = records.load(out)[0].value if out.exists() else None
                assert attempt(moment, target, value) == -signal.SIGKILL
                after = records.load(out)[0].value if out.exists() else None
                assert after in (before, value)
                left.add("before" if after == before else "after")
                for path in folder.iterdir():
                    if path.name.startswith("."):
                        shutil.rmtree(path)
                    else:
                        assert verify(path) == []
        process.stdin.close()
    assert left == {"before", "after"}


def test_killing_a_whole_run_leaves_the_previous_one(make_notebook: MakeNotebook, tmp_path: Path) -> None:
    notebook = make_notebook("import time; time.sleep(60)")
    runs = {}
    for moment in np.random.default_rng(1).uniform(0.5, 6, 4):
        out = tmp_path / f"runs-{moment}" / "tiny"
        out.mkdir(parents=True)
        (out / provenance.RUN).write_text("{}")
        command = [sys.executable, "-m", "reprolib.cli", "run", str(notebook), "--out", str(out)]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
        runs[out] = (time.monotonic() + moment, process)
    for end, process in sorted(runs.values(), key=lambda pair: pair[0]):
        time.sleep(max(0.0, end - time.monotonic()))
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    for out in runs:
        assert [path.name for path in out.iterdir()] == [provenance.RUN]
        assert (out / provenance.RUN).read_text() == "{}"
        assert all(path.name.startswith(".tiny.partial-") for path in out.parent.iterdir() if path != out)
