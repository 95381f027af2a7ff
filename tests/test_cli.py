import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from reprolib import cli
from reprolib.study import records
from tests.conftest import RECORD

HEAVY = {"torch", "pandas", "papermill", "transformers", "numpy", "rich.console", "reprolib.study.runner"}


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    return int(stop.value.code or 0)


@pytest.mark.parametrize("verb", [[], ["run"], ["list"], ["report"], ["data"], ["data", "get"]])
def test_help_imports_nothing_heavy(verb: list[str]) -> None:
    code = (
        "import sys, time; begun = time.perf_counter()\n"
        "from reprolib import cli\n"
        "try: cli.main(sys.argv[1:])\n"
        "except SystemExit as stop: assert not stop.code\n"
        f"loaded = {HEAVY!r} & set(sys.modules); assert not loaded, loaded\n"
        "print(f'{time.perf_counter() - begun:.3f} s')"
    )
    begun = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code, *verb, "--help"], capture_output=True, text=True)
    print(f"help {verb}: {time.perf_counter() - begun:.3f} s in all, {done.stdout.splitlines()[-1]} in Python")
    assert done.returncode == 0, done.stderr
    assert "--help" in done.stdout


@pytest.fixture
def study(make_notebook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    return str(
        make_notebook(
            "dataset, methods, embeddings, directions, model, k",
            RECORD,
            parameters='dataset: str = "glyphs"  # a dataset [by name]\n'
            'methods: list[str] = ["none"]  # corrections\n'
            "embeddings: str | None = None\n"
            'directions: list[str] = ["text->image"]\n'
            "model: str | None = None\n"
            "k: int = 10",
        )
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["-p", "metods", "[is]"], "unknown parameter 'metods'; nearest valid: methods"),
        (["-p", "dataset", "glyps"], "unknown dataset 'glyps'; nearest valid: glyphs"),
        (["-p", "methods", "[none, dual_is]"], "unknown method 'dual_is'; nearest valid: "),
        (["-p", "model", "no-such-model"], "unknown model 'no-such-model'; nearest valid: "),
        (["-p", "directions", "text->images"], "unknown direction 'text->images'; nearest valid: text->image"),
        (["-p", "k", "ten"], "parameter k must be int, not 'ten' (default: 10)"),
        (["-p", "embeddings", "absent.npz"], "parameter embeddings: no file "),
        (["-p", "k", "1", "-p", "k", "2"], "parameter k is given twice"),
        (["-p", "k"], "-p k lacks a value"),
    ],
)
def test_wrong_input_is_one_sentence_and_two(
    study: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert run("run", study, *arguments) == 2
    stderr = capsys.readouterr().err
    assert stderr.startswith(f"reprolib: {sentence}") and stderr.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["no-such-study", "absent.ipynb"])
def test_wrong_study(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("run", name) == 2
    assert name in capsys.readouterr().err


def test_run_and_report(study: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.npz").touch()
    assert run("report") == 2
    assert run("run", study, "-p", "embeddings", "mine.npz", "-p", "methods=[none, is]", "-p", "k", "3") == 0
    folder = tmp_path / "runs" / "tiny-mine"
    assert records.load(folder)[0].method == "is"
    parameters = json.loads((folder / "run.json").read_text())["parameters"]
    assert parameters["embeddings"] == str(tmp_path / "mine.npz")
    assert parameters["methods"] == ["none", "is"] and parameters["k"] == 3
    assert run("report", "--out", "page.html") == 0
    assert "page.html: 1 run" in capsys.readouterr().out and (tmp_path / "page.html").is_file()


@pytest.mark.parametrize(("flag", "status"), [((), 1), (("--skip-unavailable",), 0)])
def test_data_that_cannot_be_had(
    make_notebook, tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: tuple[str, ...], status: int
) -> None:
    notebook = make_notebook("from reprolib.errors import *; raise DataUnavailable('connect to the network')")
    assert run("run", str(notebook), "--out", str(tmp_path / "out"), *flag) == status
    assert "connect to the network\n" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_parameters_are_shown(study: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("run", study, "--parameters") == 0
    shown = capsys.readouterr().out
    assert "list[str]" in shown and "corrections" in shown and "[by name]" in shown


def test_lists(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("list") == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("studies", "datasets", "models", "methods", "coco-clip-500", "MIT"))
    assert run("list", "methods") == 0
    assert "dual-is" in capsys.readouterr().out
