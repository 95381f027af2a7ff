"""The README's commands and code are run, not believed."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import typer

from reprolib import cli
from reprolib.loaders import datasets
from reprolib.paths import root
from reprolib.study import sweep
from reprolib.study.parameters import find_study

TEXT = (root() / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", TEXT, re.S)
LINES = [line for language, block in BLOCKS if language == "bash" for line in block.strip().splitlines()]
PYTHON = [block for language, block in BLOCKS if language == "python"]


def test_the_two_commands_come_first() -> None:
    assert LINES[:2] == ["make reproduce", "make test"]


@pytest.mark.parametrize("line", LINES)
def test_every_command_is_one_that_exists(line: str, tmp_path: Path) -> None:
    words = shlex.split(line)
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (root() / "Makefile").read_text(encoding="utf-8"), re.M)
        assert words[1] in targets
        return
    assert words[0] == "reprolib"
    if words[1] == "data":
        verb = typer.main.get_command(cli.app).commands["data"].commands[words[2]]  # type: ignore[attr-defined]
        given = verb.make_context(words[2], words[3:], resilient_parsing=True).params
        named = given.get("names") or given.get("name") or []
        assert ({named} if isinstance(named, str) else set(named)) <= set(datasets())
        return
    if words[1] != "run":
        command = typer.main.get_command(cli.app).commands[words[1]]  # type: ignore[attr-defined]
        made = {line.split("--out ")[1] for line in LINES if "--out " in line}
        context = command.make_context(words[1], words[2:], resilient_parsing=True)
        assert not context.args
        for name in ("runs", "run", "one", "other"):
            given = context.params.get(name) or []
            assert {str(path) for path in (given if isinstance(given, list | tuple) else [given])} <= made
        return
    study, given, rest = find_study(words[2]), {}, words[3:]
    while rest:
        option = rest.pop(0)
        if option == "-p":
            name, value = rest.pop(0), rest.pop(0)
            if value == "path/to/file.npz":
                value = str(tmp_path / "file.npz")
                np.savez(value, image=np.eye(2), text=np.eye(2))
            if value == "path/to/folder":
                value = str(tmp_path)
                (tmp_path / "captions.csv").write_text("image,caption\na.png,a letter\n")
            given[name] = value
        elif option != "--parameters":
            assert option in ("--out", "--mirror") and rest.pop(0)
    assert study.resolve(given, texts=True)  # names and values are checked as the command does


def test_the_sweep_is_valid(tmp_path: Path) -> None:
    (text,) = (block for language, block in BLOCKS if language == "yaml")
    (tmp_path / "sweep.yaml").write_text(text)
    assert len(sweep.jobs_of(sweep.read(tmp_path / "sweep.yaml"))) == 6


def test_every_link_and_picture_is_there() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert target.startswith("http") or (root() / target).exists(), target


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(PYTHON[-1], "README.md", "exec"), {})
    recall, skewness = map(float, capsys.readouterr().out.split())
    assert 0.1 < recall <= 1 and abs(skewness) < 10


def test_the_encoding_example_makes_a_file_that_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from reprolib.loaders import load_features

    monkeypatch.chdir(tmp_path)
    images = np.random.default_rng(0).integers(0, 255, (12, 32, 32, 3), dtype=np.uint8)
    names = {"images": images, "captions": [f"letter {i}" for i in range(12)]}
    names["pairs"] = np.stack([np.arange(12), np.arange(12)], 1)
    exec(compile(PYTHON[0].replace("openai/clip-vit-base-patch32", "glyph-clip"), "README.md", "exec"), names)
    assert len(load_features(tmp_path / "mine.npz", n_splits=1).replicates) == 1


def test_the_speed_numbers_are_those_of_the_benchmark() -> None:
    measured = "\n".join(page.read_text(encoding="utf-8") for page in (root() / "docs").glob("benchmarks*.md"))
    speed = TEXT.split("## Speed and memory")[1].split("\n## ")[0]
    rows = [line for line in speed.splitlines() if line.startswith("| ")]
    assert len(rows) > 10 and all(row in measured for row in rows)
    ratio = re.search(r"take ([\d.]+) times one bare", speed)
    assert ratio and f"| {ratio[1]} (" in measured
