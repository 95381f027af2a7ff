"""Sweeps: what they expand to, and that no job is lost, repeated, left running or said to be what it is not."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from reprolib.cli import main
from reprolib.errors import InputError, RunError
from reprolib.paths import root
from reprolib.study import records, sweep
from reprolib.study.jobs import Job
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
        ({"limits": {"second": 4}}, "nearest valid: seconds"),
        ({"girds": {}}, "nearest valid: grid"),
    ],
)
def test_a_wrong_file_is_refused_by_field(write, content: dict, sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        sweep.read(write(**content))
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "must hold the fields of a sweep"),
        ("grid: {number: [1]", "is not valid YAML: expected ',' or '}'"),
        ("grid: {number: [1]}\ngrid: {kind: [a]}", "grid stands there twice"),
    ],
)
def test_what_is_no_sweep_is_refused_in_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        sweep.read(path)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_numbers_are_those_of_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(f"point: {POINT}\ngrid: {{seconds: [1e-3], kind: [no]}}", encoding="utf-8")
    assert list(sweep.read(path).combinations()) == [{"seconds": 0.001, "kind": "no"}]


def test_wrong_parameters_and_names_are_refused_before_anything_runs(write, tmp_path: Path) -> None:
    for content, sentence in (
        ({"grid": {"nubmer": [1]}}, "nearest valid: number"),
        ({"grid": {"number": ["one"]}}, "its parameter number must be int, not 'one'"),
        ({"point": "correlation"}, "nearest valid: correction"),
        ({"point": "tests.study.sweep_points:tinny"}, "cannot be imported"),
        ({"point": "correction", "grid": {"dataset": ["glyph"]}}, "nearest valid: glyphs"),
    ):
        with pytest.raises(InputError, match=sentence):
            sweep.run(write(**content), tmp_path / "out", progress=False)
    with pytest.raises(InputError, match="valid is dask://host:port or slurm"):
        sweep.run(write(), tmp_path / "out", cluster="dask:8786", progress=False)
    with pytest.raises(InputError, match="to use as a mirror"):
        sweep.run(write(), tmp_path / "out", mirror=tmp_path / "none", progress=False)
    assert not (tmp_path / "out" / "jobs").exists()


def test_a_job_is_its_content_and_not_its_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, data = tmp_path / "own_points_of_a_test.py", tmp_path / "data.npy"
    monkeypatch.syspath_prepend(str(tmp_path))
    keys = set()
    for code, content in (("return []", "a"), ("return [1]", "a"), ("return [1]", "bc")):
        module.write_text(f"def own(*, data: str, k: int = 1):\n    {code}\n")
        data.write_text(content)
        for given in ({}, {"k": 1}, {"k": 2}):
            keys.add(Job.of("point", "own_points_of_a_test:own", {"data": str(data), **given}).key)
    assert len(keys) == 6


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


@pytest.mark.parametrize("deaths", [1, 2])
def test_a_process_that_dies_at_its_start_is_started_once_more(
    write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deaths: int
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os, pathlib, sys\n"
        f"flags = [pathlib.Path({str(tmp_path)!r}, f'flag-{{n}}') for n in range({deaths})]\n"
        "fresh = [flag for flag in flags if not flag.exists()]\n"
        "if any('reprolib.study.jobs' in each for each in sys.orig_argv) and fresh:\n"
        "    fresh[0].touch()\n    os.kill(os.getpid(), 9)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    status = "done" if deaths == 1 else "died"
    assert sweep.run(write(), tmp_path / "out", progress=False) == {status: 1}
    (job,) = listed(tmp_path / "out")
    assert job["attempts"] == 2 and (deaths == 1 or job["reason"].endswith("at its start (exit code -9)"))


def test_results_of_a_sweep_are_those_of_its_jobs_alone(write, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert sweep.run(write(grid={"number": [1, 2]}), out, workers=1, progress=False) == {"done": 2}
    (out / "jobs" / listed(out)[0]["key"][:16] / "results.json").write_text("spoilt")
    assert sweep.run(write(list=[{"number": 1}, {"kind": "empty"}]), out, progress=False) == {"done": 1, "failed": 1}
    assert listed(out)[1]["reason"] == f"the grid point {POINT} returned no record"
    assert [record.value for record in records.load(out)] == [0.001]  # done again


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_text("[]")])
def test_a_result_that_is_lost_is_made_again(write, tmp_path: Path, damage: Callable[[Path], object]) -> None:
    out, path = tmp_path / "out", write(grid={"number": [1, 2]})
    assert sweep.run(path, out, workers=1, progress=False) == {"done": 2}
    whole = (out / "results.json").read_bytes()
    damage(out / "jobs" / listed(out)[0]["key"][:16] / "results.json")
    (out / "jobs" / listed(out)[1]["key"][:16] / "a note").write_text("of one's own")
    assert sweep.run(path, out, workers=1, progress=False) == {"done": 1, "cached": 1}
    assert (out / "results.json").read_bytes() == whole
    assert (out / "jobs" / listed(out)[1]["key"][:16] / "a note").exists()


def test_a_folder_that_is_called_like_a_value_is_not_its_content(write, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(list=[{"kind": "well"}])
    assert sweep.run(path, Path("well"), progress=False) == {"done": 1}
    assert sweep.run(path, Path("well"), progress=False) == {"cached": 1}


def test_memory_that_an_earlier_job_left_is_not_counted(write, tmp_path: Path) -> None:
    path = write(list=[{"kind": "leaving"}, {"kind": "large"}, {"kind": "greedy"}],
                 limits={"memory": "500 MiB"})  # fmt: skip
    out = tmp_path / "out"
    assert sweep.run(path, out, workers=1, progress=False) == {"done": 2, "memory": 1}
    assert {job["parameters"]["kind"]: job["status"] for job in listed(out)}["greedy"] == "memory"


def test_what_a_job_leaves_running_ends_with_it(write, tmp_path: Path) -> None:
    assert sweep.run(write(list=[{"kind": "child"}]), tmp_path / "out", progress=False) == {"done": 1}
    left = [p for p in psutil.process_iter(["cmdline"]) if "left by a job" in " ".join(p.info["cmdline"] or [])]
    assert not left


def test_a_worker_listens_however_many_files_are_open(write, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 1200:
        pytest.skip("not so many files may be open here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1200), hard))
    try:
        with contextlib.ExitStack() as stack:
            for _ in range(1030):
                stack.enter_context(open(os.devnull))
            assert sweep.run(write(list=[{}]), tmp_path / "out", progress=False) == {"done": 1}
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_jobs_of_a_point_are_compared_and_refused_where_a_notebook_is_needed(write, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    assert sweep.run(write(grid={"number": [1, 2]}), out, workers=1, progress=False) == {"done": 2}
    one, other = (out / "jobs" / job["key"][:16] for job in listed(out))
    for words in (["verify", str(one)], ["diff", str(one), str(other)]):
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 0
    assert "parameters.number" in capsys.readouterr().out
    for words in (["report", str(one), "--out", str(tmp_path / "r.html")], ["replay", str(one)], ["tables", str(one)]):
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code not in (0, None)
        assert f"{one} is a job of the grid point {POINT} and has no notebook" in capsys.readouterr().err


def test_points_see_the_mirror_of_the_sweep(write, tmp_path: Path) -> None:
    out, mirror = tmp_path / "out", tmp_path / "mirror"
    mirror.mkdir()
    sweep.run(write(parameters={"kind": "mirror"}), out, mirror=mirror, progress=False)
    assert json.loads((out / "results.json").read_text())[0]["parameters"]["mirror"] == str(mirror)


def test_a_job_that_ends_while_the_sweep_is_being_stopped_is_done(write, tmp_path: Path, monkeypatch) -> None:
    inner = sweep._here

    def stopped(*given):
        for ended in inner(*given):
            if ended:
                raise KeyboardInterrupt  # before its outcome is taken in
            yield ended

    monkeypatch.setattr(sweep, "_here", stopped)
    with pytest.raises(KeyboardInterrupt):
        sweep.run(write(), tmp_path / "out", progress=False)
    assert [job["status"] for job in listed(tmp_path / "out")] == ["done"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_when_the_watching_process_is_stopped_its_jobs_end_and_the_next_start_goes_on(
    write, tmp_path: Path, number: int, code: int
) -> None:
    out = tmp_path / "out"
    path = write(list=[{"number": 1}, {"number": 2, "seconds": 600.0}], workers=1)
    (tmp_path / "go.py").write_text("import sys\nfrom reprolib.cli import main\nmain(['sweep', *sys.argv[1:]])\n")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, str(tmp_path / "go.py"), str(path), "--out", str(out)]
    parent = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 120
    while not list((out / "jobs").glob("[!.]*")):
        assert time.monotonic() < until and parent.poll() is None
        time.sleep(0.1)
    children = psutil.Process(parent.pid).children(recursive=True)
    with pytest.raises(InputError, match="another sweep is at work"):
        sweep.run(path, out, progress=False)
    parent.send_signal(number)
    said = parent.communicate()[1]
    assert children and not psutil.wait_procs(children, timeout=30)[1]
    if number != signal.SIGKILL:
        assert "what is finished is kept" in said and parent.returncode == code
        assert [job["status"] for job in listed(out)] == ["done", "not run"]
    path = write(list=[{"number": 1}, {"number": 2, "seconds": 0.0}])
    assert sweep.run(path, out, workers=2, progress=False) == {"cached": 1, "done": 1}


# --- a cluster ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """Return a sweep's file and what it gives on this machine."""
    folder = tmp_path_factory.mktemp("here")
    path = folder / "sweep.yaml"
    path.write_text(
        yaml.safe_dump({"point": POINT, "grid": {"number": list(range(8))}, "parameters": {"seconds": 0.2}})
    )
    assert sweep.run(path, folder, workers=2, progress=False) == {"done": 8}
    return path, (folder / "results.json").read_bytes()


@pytest.fixture
def after_three(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Return a function that has something done when three jobs of the next sweep have ended."""

    board = sweep._Board

    def do(action: Callable[[], object]) -> None:
        class Acting(board):
            acted = False

            def show(self) -> None:
                super().show()
                if self.fresh >= 3 and not self.acted:
                    self.acted = True
                    action()

        monkeypatch.setattr(sweep, "_Board", Acting)

    return do


def test_a_dask_cluster_gives_what_one_machine_gives_though_a_worker_is_killed(here, tmp_path, after_three) -> None:
    distributed = pytest.importorskip("distributed")
    path, results = here
    with distributed.LocalCluster(2, processes=True, threads_per_worker=1, dashboard_address=None) as cluster:
        address = cluster.scheduler_address.replace("tcp://", "dask://")
        after_three(psutil.Process(next(iter(cluster.workers.values())).pid).kill)  # a nanny starts another
        assert sweep.run(path, tmp_path / "there", cluster=address, progress=False) == {"done": 8}
        assert not jobs_left()

        def interrupt() -> None:
            raise KeyboardInterrupt

        after_three(interrupt)
        with pytest.raises(KeyboardInterrupt):
            sweep.run(path, tmp_path / "again", cluster=address, progress=False)
        assert not jobs_left()
    assert (tmp_path / "there" / "results.json").read_bytes() == results
    assert Counter(job["status"] for job in listed(tmp_path / "again"))["done"] >= 3


def jobs_left() -> list[psutil.Process]:
    """Return the processes that do jobs, started at whatever distance by this one, which do not end by themselves."""
    jobs = [
        process
        for process in psutil.Process().children(recursive=True)
        if process.status() != psutil.STATUS_ZOMBIE and "jobs import serve" in " ".join(process.cmdline())
    ]
    return psutil.wait_procs(jobs, timeout=20)[1]


def test_a_cluster_that_does_not_answer_is_an_error(write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "ANSWER", 1.0)
    with pytest.raises(RunError, match=r"no scheduler answers at dask://127\.0\.0\.1:9"):
        sweep.run(write(), tmp_path / "out", cluster="dask://127.0.0.1:9", progress=False)


SLURM = {
    "sbatch": """
for id in $(seq 1000); do mkdir "$NODES/$id" 2>/dev/null && break; done
cp "$1" "$NODES/$id/script"
setsid bash "$NODES/$id/script" > "$NODES/$id/log" 2>&1 < /dev/null &
echo $! > "$NODES/$id/pid"
echo "Submitted batch job $id"
""",
    "scancel": 'for id; do kill -TERM -- "-$(cat "$NODES/$id/pid")"; done',
    "squeue": """
for job in "$NODES"/*; do kill -0 "$(cat "$job/pid")" 2>/dev/null && basename "$job"; done
exit 0
""",
}


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yield the folder of a stand-in for Slurm, with one numbered folder for each job, which is a process here."""
    pytest.importorskip("dask_jobqueue")
    import dask

    nodes, commands = tmp_path / "nodes", tmp_path / "commands"
    for folder in (nodes, commands):
        folder.mkdir()
    for name, text in SLURM.items():
        (commands / name).write_text(f"#!/bin/bash\n{text}")
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("NODES", str(nodes))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))  # Slurm hands the environment on
    described = {"cores": 1, "memory": "1 GiB", "interface": "lo", "scheduler-options": {"dashboard_address": ":0"},
                 "local-directory": str(tmp_path)}  # fmt: skip
    with dask.config.set({"jobqueue.slurm": dask.config.get("jobqueue.slurm") | described,
                          "distributed.deploy.lost-worker-timeout": "1 s"}):  # fmt: skip
        yield nodes


def at_work(nodes: Path) -> list[int]:
    """Return the stand-in's jobs whose process groups are there, by number."""
    groups = {int(job.name): int((job / "pid").read_text()) for job in nodes.iterdir()}
    alive = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.status() != psutil.STATUS_ZOMBIE:
                alive.add(os.getpgid(process.pid))
    return sorted(number for number, group in groups.items() if group in alive)


def test_slurm_gives_what_one_machine_gives_though_a_job_is_killed(here, slurm: Path, tmp_path, after_three) -> None:
    path, results = here
    after_three(lambda: os.killpg(int((slurm / "1" / "pid").read_text()), signal.SIGKILL))
    found = sweep.run(path, tmp_path / "there", cluster="slurm", workers=2, progress=False)
    assert found == {"done": 8}, (slurm / "1" / "log").read_text()
    assert (tmp_path / "there" / "results.json").read_bytes() == results
    script = (slurm / "1" / "script").read_text()
    assert "#SBATCH --cpus-per-task=1" in script and "#SBATCH --mem=1G" in script and "#SBATCH -t 00:30:00" in script
    until = time.monotonic() + 30
    while at_work(slurm) and time.monotonic() < until:
        time.sleep(0.2)
    assert not at_work(slurm) and not jobs_left()


def test_a_slurm_that_takes_no_job_or_loses_them_all_is_told(
    write, slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = tmp_path / "commands" / "sbatch"
    working = command.read_text()
    command.write_text("#!/bin/bash\necho 'invalid partition specified: fast' >&2\nexit 1\n")
    with pytest.raises(RunError, match=r"Slurm takes no job: .*invalid partition specified: fast"):
        sweep.run(write(), tmp_path / "out", cluster="slurm", workers=1, progress=False)
    command.write_text(working.replace('cp "$1" "$NODES/$id/script"', 'echo "exit 1" > "$NODES/$id/script"'))
    monkeypatch.setattr(sweep, "PATIENCE", 1.0)
    assert sweep.run(write(), tmp_path / "out", cluster="slurm", workers=1, progress=False) == {"died": 1}
    assert "the cluster had no worker" in listed(tmp_path / "out")[0]["reason"]


# --- the guide ----------------------------------------------------------------------------------------------


def test_every_sweep_of_the_guide_is_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (root() / "docs" / "guides" / "sweeps.md").read_text(encoding="utf-8")
    blocks = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.S)]
    queues, sweeps = (
        [each for each in blocks if "jobqueue" in each],
        [each for each in blocks if "jobqueue" not in each],
    )
    monkeypatch.chdir(tmp_path)
    numbers = []
    for content in sweeps:
        path = tmp_path / "sweep.yaml"
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
        numbers.append(len(sweep.jobs_of(sweep.read(path))))
    assert [int(number) for number in re.findall(r"(\d+) jobs:", text)] == numbers
    default = pytest.importorskip("dask_jobqueue").__file__
    known = yaml.safe_load(Path(default).with_name("jobqueue.yaml").read_text())["jobqueue"]["slurm"]
    assert queues and all(each["jobqueue"]["slurm"].keys() <= known.keys() for each in queues)
