"""The explorers of inversion and of runs: what OTI and the studies say, stage by stage and run by run."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from bs4 import BeautifulSoup

from reprolib import explore
from reprolib.errors import InputError
from reprolib.explore.inversion import Inversion, InversionView, State
from reprolib.explore.runs import RunsView
from reprolib.methods.inversion import OTI, oti
from reprolib.study import crate, provenance, records
from reprolib.study.parameters import find_study, studies
from tests.explore.test_views import resolved
from tests.explore.test_widgets import standard

STEPS = 5


@pytest.fixture(scope="module")
def view() -> InversionView:
    return InversionView("glyphs")


def words(html: str) -> str:
    return " ".join(BeautifulSoup(html, "html.parser").get_text(" ").split())


# --- inversion ------------------------------------------------------------------------------------------------


def test_stages_are_those_of_oti(view: InversionView) -> None:
    state, watched = State(view.queries[1], STEPS), []
    stages = [view.native(state), *view.run(state, watched.append)]
    assert [stage.step for stage in stages] == [0, 1, 2, 5] and watched == stages[1:]
    feature = view._feature(1).numpy()
    settings = replace(OTI, steps=STEPS, tokens=view.study.tokens[0], template=view.study.templates[0])
    found = oti(view.study.encoder, feature, [view.queries[1]], settings, checkpoints=[1, 2])
    for stage in stages[1:]:
        assert np.array_equal(stage.losses, found.losses[: stage.step + 1, 0])
    gallery, one = view._part.gallery.double().numpy(), view._target.take(np.array([1]))
    relevant = np.asarray(one.relevance.todense()).ravel()
    relevant[one.own] = False
    for stage, query in zip(stages, [feature, *found.features], strict=True):
        scores = (gallery[one.gallery] @ query[0].astype(np.float64)).astype(np.float32)
        scores[one.own] = -np.inf
        order = np.argsort(-scores, kind="stable")
        places = np.flatnonzero(relevant[order]) + 1
        assert stage.precision == pytest.approx(np.mean(np.arange(1, len(places) + 1) / places), abs=1e-9)
        best = [str(view._part.ids[one.gallery[item]]) for item in order[: view.study.k]]
        assert [item for item, _ in stage.neighbours] == best


def test_the_native_stage_and_the_command_are_those_of_the_study(view: InversionView) -> None:
    state = State(view.queries[3], STEPS)
    case = view.study.cases[0]
    assert view.native(state).precision == view.study.measure(case, "none", {})["mAP"][3]
    parameters = resolved(view.command(state))
    assert parameters["oti_steps"] == STEPS and parameters["tasks"] == ["image->image"]
    assert parameters["n_images"] == view.study.n_images  # the sample that the queries are of


def test_every_step_can_be_watched(view: InversionView) -> None:
    state = State(view.queries[1], STEPS)
    every = view.run(state, wanted=lambda step: True)
    assert [stage.step for stage in every] == [1, 2, 3, 4, 5]
    for stage in view.run(state):
        same = every[stage.step - 1]
        assert stage.neighbours == same.neighbours and np.array_equal(stage.losses, same.losses)


def test_an_inversion_can_be_stopped(view: InversionView) -> None:
    explorer = Inversion(view, State(steps=2))
    assert [stage.step for stage in explorer.stages] == [0, 1, 2]
    stepped = threading.Event()
    explorer.progress.observe(lambda _: (stepped.set(), explorer.cancel.click()), "value")
    explorer.query.value = view.queries[2]
    assert stepped.wait(60)
    explorer.work.wait(60)
    assert "Stopped after 1 of 2 steps" in words(explorer.state.value) and explorer.cancel.disabled
    explorer.progress.unobserve_all()
    explorer.start.click()
    explorer.work.wait(60)
    assert [stage.step for stage in explorer.stages] == [0, 1, 2] and view.queries[2] in explorer.neighbours.value
    assert explorer.figure().alt.startswith("Nearest neighbours of 1 queries, image → image")
    standard(explorer.box)
    for item in (explorer.curve, explorer.neighbours):
        assert all(tag.get("alt") or tag.get("aria-label") for tag in
                   BeautifulSoup(item.value, "html.parser").find_all(["img", "svg"]))  # fmt: skip


@pytest.mark.parametrize(
    ("change", "said"), [({"query": "nobody"}, "unknown query of the sample"), ({"steps": 0}, "not an integer of at")]
)
def test_a_state_that_is_not_valid_is_named(view: InversionView, change: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        list(view.run(replace(State(), **change)))


def test_stored_features_have_no_model_to_invert_with(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pairs = np.stack([np.arange(60), np.arange(60) // 2], 1)
    np.savez(tmp_path / "own.npz", image=rng.normal(size=(60, 6)), text=rng.normal(size=(30, 6)), relevance=pairs)
    with pytest.raises(InputError, match="an inversion needs the model itself"):
        explore.inversion(tmp_path / "own.npz")


# --- runs -----------------------------------------------------------------------------------------------------

FACTS = {
    "study": "hubness", "title": "Hubness", "notebook": {"name": "01_hubness.ipynb", "sha256": "0" * 64},
    "parameters": {"dataset": "glyphs"}, "seeds": {}, "threads": 1,
    "code": {"version": "0.1.0", "commit": None, "dirty": None, "tree": None},
    "started": "2026-01-02T03:04:05+00:00", "duration_seconds": 61.5, "peak_memory_bytes": 1, "identities": {},
    "environment": {"python": "3.11", "packages": {}},
}  # fmt: skip
RECORD = {
    "study": "hubness", "dataset": "glyphs", "model": "glyph-clip", "direction": "text->image", "method": "is",
    "parameters": {"beta": 20.0}, "bank": "train", "metric": "R@1", "value": 0.5, "ci_low": 0.4, "ci_high": 0.6, "n": 4,
    "table": "main",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Make three finished runs, and one that is not finished."""
    for name, change, value in (("one", {}, 0.5), ("two", {}, 0.25), ("other", {"study": "modality-gap"}, 0.5)):
        run, facts = tmp_path / name, FACTS | change
        run.mkdir()
        nbformat.write(nbformat.v4.new_notebook(), run / "01_hubness.ipynb")
        records.save([RECORD | {"study": facts["study"], "value": value, "ci_low": None, "ci_high": None}], run)
        crate.write(run, facts)
        provenance.write(run, facts)
    (tmp_path / ".failed-three").mkdir()
    return tmp_path


def test_runs_are_listed_filtered_and_compared(folder: Path) -> None:
    view = RunsView(folder)
    assert view.table()["run"].to_list() == ["one", "other", "two"]
    assert view.table("hubness")["run"].to_list() == ["one", "two"]
    assert view.table(text="MODALITY")["run"].to_list() == ["other"] and view.table(text="(").empty
    assert view.studies() == ["hubness", "modality-gap"]
    assert any("0.5" in line and "0.25" in line for line in view.compare("one", "two"))
    assert view.notebook("one") == folder / "one" / "01_hubness.ipynb"
    assert view.summary("intra-modal-inversion") == "not run yet"
    with pytest.raises(InputError, match="unknown run 'on'; nearest valid: one"):
        view.compare("on", "two")


def test_the_runs_follow_the_widgets(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    explorer = explore.runs(folder)
    assert explorer.one.value == "one" and "2026-01-02 03:04" in words(explorer.table.value)
    assert explorer.notebook_link("two") == "[Open the executed notebook of two](two/01_hubness.ipynb)"
    explorer.other.value = "two"
    assert "0.25" in words(explorer.difference.value)
    standard(explorer.box)
    explorer.study.value = "modality-gap"
    assert explorer.one.options == ("other",) and explorer.one.value == "other" and not explorer.difference.value
    explorer.text.value = "nothing like this"
    assert "No finished run" in words(explorer.table.value) and explorer.one.value is None


def test_without_runs_every_study_is_told(tmp_path: Path) -> None:
    soup = BeautifulSoup(explore.studies(tmp_path).data, "html.parser")
    told = [heading.get_text() for heading in soup.find_all("h3")]
    asked = [name for name, path in studies().items() if "**Question.**" in path.read_text(encoding="utf-8")]
    assert told == [find_study(name).title for name in asked] and len(told) >= 4
    assert soup.get_text().count("not run yet") == len(told)
    assert all(image["alt"] and image["src"].startswith("data:") for image in soup.find_all("img"))
    assert not explore.runs(tmp_path).view.table().size
