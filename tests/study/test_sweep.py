"""Sweeps: what they expand to, and that no job is lost, repeated, left running or said to be what it is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml

from reprolib.cli import main
from reprolib.errors import InputError, RunError
from reprolib.study import records, sweep
from reprolib.study.verify import verify

POINT = "tests.study.sweep_points:tiny"


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a sweep's file."""

    def make(**content: object) -> Path:
        path = tmp_path / "sweep.yaml"
        path.write_text(yaml.safe_dump({"point": POINT} | content, sort_keys=False), encoding="utf-8")
        return path

    return make


def listed(out: Path) -> list[dict]:
    return json.loads((out / "sweep.json").read_text())


# --- the file -----------------------------------------------------------------------------------------------


def test_list_zip_and_grid_are_combined_in_this_order(write) -> None:
    path = write(
        parameters={"seconds": 0}, list=[{"kind": "a"}, {"kind": "b"}], zip={"number": [1, 2], "x": [3, 4]},
        grid={"y": [5, 6], "z": [7]},
    )  # fmt: skip
    found = [
        tuple(each[name] for name in ("kind", "number", "x", "y", "z")) for each in sweep.read(path).combinations()
    ]
    assert found == [(k, n, n + 2, y, 7) for k in "ab" for n in (1, 2) for y in (5, 6)]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"study": "hubness"}, "name either a study or a point"),
        ({"zip": {"number": [1, 2], "kind": ["a"]}}, "differ in length (number 2, kind 1)"),
        ({"grid": {"number": [1]}, "parameters": {"number": 2}}, "the parameter number stands in two places"),
        ({"grid": {"number": []}}, "grid.number"),
        ({"limits": {"memory": "4 gigs"}}, "'4 gigs' is not a size"),
        ({"girds": {}}, "girds"),
    ],
)
def test_a_wrong_file_is_refused_by_field(write, content: dict, sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        sweep.read(write(**content))
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_wrong_parameters_and_names_are_refused_before_anything_runs(write, tmp_path: Path) -> None:
    for content, sentence in (
        ({"grid": {"nubmer": [1]}}, "nearest valid: number"),
        ({"point": "correlation"}, "nearest valid: correction"),
        ({"point": "tests.study.sweep_points:tinny"}, "cannot be imported"),
        ({"point": "correction", "grid": {"dataset": ["glyph"]}}, "nearest valid: glyphs"),
    ):
        with pytest.raises(InputError, match=sentence):
            sweep.run(write(**content), tmp_path / "out", progress=False)
    with pytest.raises(InputError, match="valid is dask://host:port or slurm"):
        sweep.run(write(), tmp_path / "out", cluster="dask:8786", progress=False)
    assert not (tmp_path / "out" / "jobs").exists()


# --- the jobs -----------------------------------------------------------------------------------------------


def test_five_hundred_jobs_are_done_once_each(write, tmp_path: Path) -> None:
    out = tmp_path / "out"
    path = write(grid={"number": list(range(499))})
    assert sweep.run(path, out, workers=2, progress=False) == {"done": 499}
    made = {folder.name: folder.stat().st_mtime_ns for folder in (out / "jobs").iterdir()}
    assert len(made) == 499
    path = write(grid={"number": list(range(500))})
    assert sweep.run(path, out, workers=2, progress=False) == {"cached": 499, "done": 1}
    assert made.items() < {folder.name: folder.stat().st_mtime_ns for folder in (out / "jobs").iterdir()}.items()
    found = records.load(out)
    assert [(record.parameters["number"], record.value) for record in found] == [(n, n / 1000) for n in range(500)]
    assert not verify(out / "jobs" / found[7].parameters["job"])


def test_the_command_tells_what_is_not_done(write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(grid={"kind": ["well", "raising"]})
    with pytest.raises(SystemExit) as stop:
        main(["sweep", str(path), "--out", str(tmp_path / "out"), "--workers", "1"])
    shown = capsys.readouterr()
    assert stop.value.code == 1 and "1 done, 1 failed" in shown.out
    assert "of no use" in shown.out and "sweep: 2 of 2 jobs (1 done, 1 failed)" in shown.err
    with pytest.raises(SystemExit) as stop:
        main(["sweep", str(tmp_path / "none.yaml")])
    assert stop.value.code == 2 and "there is no file" in capsys.readouterr().err


def test_every_way_to_go_wrong_is_told_apart_and_spoils_nothing_else(write, tmp_path: Path) -> None:
    out = tmp_path / "out"
    kinds = ["well", "killed", "endless", "greedy", "raising", "full disk"]
    path = write(grid={"kind": kinds}, limits={"seconds": 8, "memory": "1.5 GiB"})
    begun = time.monotonic()
    assert sweep.run(path, out, workers=2, progress=False) == {
        "done": 1, "died": 1, "timeout": 1, "memory": 1, "failed": 2
    }  # fmt: skip
    assert time.monotonic() - begun < 240
    reasons = {job["parameters"]["kind"]: job["reason"] for job in listed(out)}
    assert "killed or crashed while the job ran (exit code -9)" in reasons["killed"]
    assert reasons["endless"] == "the job ran longer than 8 s"
    assert "of memory, more than 1,536 MiB" in reasons["greedy"]
    assert reasons["raising"] == "ValueError: of no use" and "No space left" in reasons["full disk"]
    assert len(sweep.failures(out)) == 5 and len(records.load(out)) == 1
    assert sorted(folder.name for folder in (out / "jobs").iterdir()) == sorted(
        job["key"][:16] for job in listed(out) if job["status"] == "done"
    )


def test_notebooks_are_jobs_too(make_notebook, tmp_path: Path) -> None:
    save = (
        "from reprolib.study import records\n"
        "_ = records.save([dict(study='tiny', dataset='none', model=None, direction=None, method=None, "
        "parameters={'number': number}, metric='R@1', value=number / 10, n=1)])"
    )
    killed = "import os\nif number == 2:\n    os.kill(os.getpid(), 9)"
    full = "if number == 3:\n    with open('/dev/full', 'w') as file:\n        file.write('x')"
    notebook = make_notebook(killed, full, save, parameters="number: int = 1  # a number")
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump({"study": str(notebook), "grid": {"number": [1, 2, 3]}}), encoding="utf-8")
    out = tmp_path / "out"
    assert sweep.run(path, out, workers=2, progress=False) == {"done": 1, "failed": 2}
    reasons = {job["parameters"]["number"]: job["reason"] for job in listed(out)}
    assert "lost its kernel" in reasons[2] and "the disk is full" in reasons[3]
    assert [record.value for record in records.load(out)] == [0.1]
    assert sweep.run(path, out, workers=2, progress=False) == {"cached": 1, "failed": 2}


def test_when_the_watching_process_is_killed_its_jobs_end_and_the_next_start_goes_on(write, tmp_path: Path) -> None:
    out = tmp_path / "out"
    path = write(list=[{"number": 1}, {"number": 2, "seconds": 600.0}])
    (tmp_path / "go.py").write_text(
        "from pathlib import Path\nfrom reprolib.study import sweep\n"
        f"if __name__ == '__main__':\n    sweep.run(Path({str(path)!r}), Path({str(out)!r}), workers=2)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    parent = subprocess.Popen([sys.executable, str(tmp_path / "go.py")], env=environment, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while not list((out / "jobs").glob("[!.]*")) or not list((out / "jobs").glob(".*partial")):
        assert time.monotonic() < until and parent.poll() is None
        time.sleep(0.1)
    children = psutil.Process(parent.pid).children(recursive=True)
    parent.kill()
    parent.wait()
    assert not psutil.wait_procs(children, timeout=30)[1]
    path = write(list=[{"number": 1}, {"number": 2, "seconds": 0.0}])
    assert sweep.run(path, out, workers=2, progress=False) == {"cached": 1, "done": 1}


# --- a cluster ----------------------------------------------------------------------------------------------


def test_a_cluster_gives_what_one_machine_gives_though_a_worker_is_killed(write, tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    path = write(grid={"number": list(range(12))}, parameters={"seconds": 0.3})
    sweep.run(path, tmp_path / "here", workers=2, progress=False)
    with distributed.LocalCluster(2, processes=True, threads_per_worker=1, dashboard_address=None) as cluster:
        pids = [worker.pid for worker in cluster.workers.values()]

        class Killing(sweep._Board):
            def note(self, job: object, outcome: object) -> None:
                super().note(job, outcome)
                if self.fresh == 3:  # a nanny starts another in its place
                    psutil.Process(pids[0]).kill()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sweep, "_Board", Killing)
            address = cluster.scheduler_address.replace("tcp://", "dask://")
            found = sweep.run(path, tmp_path / "there", cluster=address, progress=False)
    assert found == {"done": 12}
    assert (tmp_path / "there" / "results.json").read_bytes() == (tmp_path / "here" / "results.json").read_bytes()


def test_a_cluster_that_does_not_answer_is_an_error(write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "ANSWER", 1.0)
    with pytest.raises(RunError, match=r"no scheduler answers at dask://127\.0\.0\.1:9"):
        sweep.run(write(), tmp_path / "out", cluster="dask://127.0.0.1:9", progress=False)
