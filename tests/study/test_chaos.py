"""Everything goes wrong at once, in notebooks and in grid points: a sweep ends in time and tells the truth."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import yaml

from reprolib.study import records, sweep

STARTS = 64
STATUS = {"well": "done", "killed": "died", "endless": "timeout", "greedy": "memory", "raising": "failed",
          "full disk": "failed"}  # fmt: skip
POINTS = {"killed": 3, "endless": 1, "greedy": 2, "raising": 3, "full disk": 3, "well": 52}
NOTEBOOKS = {"endless": 1, "greedy": 1, "killed": 1, "raising": 1, "full disk": 1, "well": 3}
CODE = """from reprolib.study import records
from tests.study.sweep_points import tiny
_ = records.save(tiny(number=number, kind=kind))"""
# The first kernel dies at its start, before it can say a word.
FLAW = """import os, sys
if "ipykernel_launcher" in sys.orig_argv:
    try:
        os.close(os.open({flag!r}, os.O_CREAT | os.O_EXCL))
        os.kill(os.getpid(), 9)
    except FileExistsError:
        pass
"""


def listed(out: Path) -> list[dict]:
    return json.loads((out / sweep.SWEEP).read_text())


def marked(text: str) -> list[psutil.Process]:
    """Return the processes that were started with this text in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if text in process.environ().values() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.fixture
def mark(monkeypatch: pytest.MonkeyPatch) -> str:
    """Return a text in the environment of all processes that the test starts."""
    text = uuid.uuid4().hex
    monkeypatch.setenv("REPROLIB_TEST_MARK", text)
    return text


@pytest.fixture
def chaos(make_notebook: Callable[..., Path], tmp_path: Path) -> dict[str, Path]:
    """Return the files of two sweeps with each way to go wrong: grid points and notebooks."""
    notebook = make_notebook(CODE, parameters='number: int = 0  # a number\nkind: str = "well"  # how it goes')
    files = {}
    for name, head, kinds in (
        ("notebooks", {"study": str(notebook), "limits": {"seconds": 15, "memory": "600 MiB"}}, NOTEBOOKS),
        ("points", {"point": "tests.study.sweep_points:tiny", "limits": {"seconds": 6, "memory": "400 MiB"}}, POINTS),
    ):
        spoilt = [kind for kind, count in kinds.items() for _ in range(count)]
        entries = [{"number": number, "kind": kind} for number, kind in enumerate(spoilt)]
        files[name] = tmp_path / f"{name}.yaml"
        files[name].write_text(yaml.safe_dump(head | {"list": entries}), encoding="utf-8")
    return files


def test_a_sweep_under_chaos_ends_with_the_right_status_of_every_job(
    chaos: dict[str, Path], tmp_path: Path, mark: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    flag = tmp_path / "flaw" / "done"
    flag.parent.mkdir()
    (flag.parent / "sitecustomize.py").write_text(FLAW.format(flag=str(flag)))
    monkeypatch.syspath_prepend(str(flag.parent))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    begun = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        running = {
            name: pool.submit(sweep.run, path, tmp_path / name, workers=STARTS, progress=False)
            for name, path in chaos.items()
        }
        counts = {name: future.result() for name, future in running.items()}
    assert time.monotonic() - begun < 240
    assert not marked(mark)
    assert sum(POINTS.values()) == STARTS and flag.exists()
    for name, kinds in (("points", POINTS), ("notebooks", NOTEBOOKS)):
        out = tmp_path / name
        told = [(job["parameters"]["kind"], job["status"], job["reason"]) for job in listed(out)]
        assert [(kind, status) for kind, status, _ in told] == [
            (kind, STATUS[kind]) for kind, count in kinds.items() for _ in range(count)
        ], told
        assert sum(counts[name].values()) == len(told) and counts[name]["done"] == kinds["well"]
        assert sum(job["attempts"] == 2 for job in listed(out)) == (name == "notebooks")
        numbers = [job["parameters"]["number"] for job in listed(out) if job["status"] == "done"]
        assert [record.parameters["number"] for record in records.load(out)] == numbers
        left = {folder.name for folder in (out / "jobs").iterdir()} - {".failed"}
        assert left == {job["key"][:16] for job in listed(out) if job["status"] == "done"}
        assert not list(out.glob(".results*"))
        made = {folder: folder.stat().st_mtime_ns for folder in (out / "jobs").glob("[!.]*")}
        content = yaml.safe_load(chaos[name].read_text())
        content["list"] = [job | {"kind": "well"} for job in content["list"] if job["kind"] in ("raising", "well")]
        chaos[name].write_text(yaml.safe_dump(content))
        counted = {"done": kinds["raising"], "cached": kinds["well"]}
        assert sweep.run(chaos[name], out, workers=2, progress=False) == counted
        assert made.items() < {folder: folder.stat().st_mtime_ns for folder in (out / "jobs").glob("[!.]*")}.items()
