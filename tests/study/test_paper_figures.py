"""Figures of a paper: from artefacts alone, the same bytes each time, and what differs is named."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from reprolib.cli import main
from reprolib.errors import InputError, RunError
from reprolib.study import ledger, paper_figures, provenance, records

Make = Callable[..., Any]
NAME = "paper-versus-code-glyphs"
STUDY = {"study": "paper-versus-code", "title": "Papers and their code"}


@pytest.fixture
def runs(make_run: Make, record: Make) -> Path:
    """The folder of a run of the audit: two effects, and a record that no figure needs."""
    effect = {"study": "paper-versus-code", "dataset": "glyphs", "table": "audit", "metric": "R@1 difference",
              "method": "released", "reference": "paper", "ci_low": -0.02, "value": 0.01, "ci_high": 0.03}  # fmt: skip
    found = [record(**effect, parameters={"finding": name, "noise floor": 0.004}) for name in ("one", "two")]
    return make_run(NAME, [*found, record(study="paper-versus-code", method="paper")], **STUDY).parent


@pytest.fixture
def figures(runs: Path, tmp_path: Path) -> Path:
    paper_figures.take(runs, tmp_path / "figures")
    return tmp_path / "figures"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_registry_names_claims_that_its_studies_test() -> None:
    claims = ledger.claims()
    for name, figure in paper_figures.FIGURES.items():
        run, _, own = name.partition("/")
        assert run.startswith(f"{figure.study}-") and own in paper_figures.of_run(run)
        assert {claims[claim].test.study for claim in figure.claims} <= {figure.study}, name
        assert figure.study in paper_figures.TABLES


def test_taking_keeps_what_is_drawn_and_says_where_it_came_from(runs: Path, figures: Path) -> None:
    folder = figures / NAME
    assert {path.name for path in folder.iterdir()} == {
        "results.json", "source.json", "forest.pdf", "forest.png", "forest.svg", "forest.json"
    }  # fmt: skip
    assert [record.table for record in records.load(folder)] == ["audit", "audit"]
    sidecar = json.loads((folder / "forest.json").read_text())
    digest = hashlib.sha256((folder / "results.json").read_bytes()).hexdigest()
    assert sidecar["artefacts"] == {"results.json": digest} and sidecar["alt"] and sidecar["caption"]
    facts = provenance.read(runs / NAME)
    assert sidecar["code"] == facts["code"] and sidecar["claims"] == []
    assert json.loads((folder / "source.json").read_text())["run.json"] == facts["sha256"]


def test_same_artefacts_same_bytes(runs: Path, figures: Path) -> None:
    before = contents(figures)
    assert paper_figures.check(figures) == []
    assert len(paper_figures.redraw(figures)) == 4 and contents(figures) == before
    taken, absent = paper_figures.take(runs, figures)
    assert taken == [NAME] and sorted([*taken, *absent]) == sorted(paper_figures.RUNS) and contents(figures) == before


def test_check_names_what_differs(figures: Path) -> None:
    folder = figures / NAME
    pdf = bytearray((folder / "forest.pdf").read_bytes())
    pdf[len(pdf) // 2] ^= 1
    (folder / "forest.pdf").write_bytes(pdf)
    (folder / "forest.svg").unlink()
    (folder / "old.png").write_bytes(b"")
    before = contents(figures)
    assert paper_figures.check(figures) == [
        f"{folder / 'forest.pdf'} differs from what its artefacts give",
        f"{folder / 'forest.svg'} is missing",
        f"{folder / 'old.png'} belongs to no figure of the registry",
    ]
    assert contents(figures) == before


def test_a_changed_artefact_changes_every_file(figures: Path) -> None:
    results = figures / NAME / "results.json"
    results.write_text(results.read_text().replace("0.03", "0.04"))
    assert len(paper_figures.check(figures)) == 4  # the sidecar tells the caption's numbers and the hash


def test_what_cannot_be_taken_leaves_the_figures_as_they_were(runs: Path, figures: Path, tmp_path: Path) -> None:
    before = contents(figures)
    (runs / NAME / "extra.txt").write_text("x")
    with pytest.raises(RunError, match=r"not as it was written: .*extra\.txt"):
        paper_figures.take(runs, figures)
    (runs / NAME / "extra.txt").unlink()
    provenance.write(runs / NAME, provenance.read(runs / NAME) | {"study": "hubness"})
    with pytest.raises(InputError, match="run of the study hubness, its figures are of paper-versus-code"):
        paper_figures.take(runs, figures)
    assert contents(figures) == before
    (figures / NAME / "results.json").unlink()
    with pytest.raises(InputError, match=r"lacks the artefact results\.json"):
        paper_figures.check(figures)
    with pytest.raises(InputError, match="holds no artefacts"):
        paper_figures.redraw(tmp_path / "nothing")


def test_hubs_come_with_their_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {"direction": direction, "when": when, "method": method, "hub": 1, "gallery_id": f"text {direction}",
         "n_k": 5, "query_ids": ["a", "b"], "correct": [True, False]}
        for direction in ("image->text", "text->image")
        for when, method in (("before", "none"), ("after", "is"))
    ]  # fmt: skip
    pd.DataFrame(rows).to_parquet(tmp_path / "hubs.parquet")
    pictures = {name: np.full((4, 4), value, np.uint8) for name, value in (("a", 7), ("b", 200), ("c", 0))}
    data = SimpleNamespace(name="glyphs", model="m", identity="1", pictures=pictures,
                           captions={"text image->text": "é ½"})  # fmt: skip
    monkeypatch.setattr("reprolib.models.embed.load_embeddings", lambda **_: data)
    chosen = ("dataset", "model", "bank_share", "validation_share", "bank_source", "n_splits", "seed")
    facts = {"parameters": dict.fromkeys(chosen), "identities": {"glyphs with m": "1"}}
    path = tmp_path / paper_figures.ITEMS
    paper_figures._take_items(tmp_path, facts, path)
    first = path.read_bytes()
    paper_figures._take_items(tmp_path, facts, path)
    images, texts = paper_figures._load(path)
    assert path.read_bytes() == first and texts == {"text image->text": "é ½"}
    assert images.keys() == {"a", "b"} and all(np.array_equal(images[name], pictures[name]) for name in images)
    stored = {"hubs.parquet": paper_figures._load(tmp_path / "hubs.parquet"), paper_figures.ITEMS: (images, texts)}
    assert "é ½ (5)" in paper_figures.FIGURES["hubness-glyphs/hubs_image_to_text"].draw(stored).alt
    with pytest.raises(InputError, match="made from other data or another model"):
        paper_figures._take_items(tmp_path, facts | {"identities": {"glyphs with m": "2"}}, path)


def test_the_command_draws_and_checks(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")

    def call(*arguments: str) -> int:
        with pytest.raises(SystemExit) as stop:
            main(["figures", "--out", out, *arguments])
        return int(stop.value.code or 0)

    assert call() == 2 and "holds no artefacts" in capsys.readouterr().err
    assert call("--from", str(runs)) == 0
    said = capsys.readouterr()
    assert NAME in said.out and "no run" in said.err
    (tmp_path / "out" / NAME / "forest.png").write_bytes(b"")
    capsys.readouterr()
    assert call("--check") == 1
    assert capsys.readouterr().out.splitlines() == [
        f"{Path(out) / NAME / 'forest.png'} differs from what its artefacts give"
    ]
    assert call("--check", "--from", str(runs)) == 2 and call() == 0 and call("--check") == 0


def test_drawing_needs_no_model() -> None:
    code = "import sys, reprolib.study.paper_figures; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
