"""The widgets without a browser: what they show, in words that a screen reader has too, and work in the background."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ipywidgets
import nbformat
import numpy as np
import pytest
from bs4 import BeautifulSoup
from nbclient import NotebookClient

from reprolib import explore
from reprolib.errors import InputError, RunError
from reprolib.explore.common import Ahead, Explorer, Shown, Work, page, svg
from reprolib.explore.hubs import HubView, numbers
from reprolib.figures.style import Drawing


@pytest.fixture(scope="module")
def pairs() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    image = rng.normal(size=(120, 8))
    return image, image + rng.normal(size=image.shape) + 0.5


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPROLIB_RUN_DIR", str(tmp_path))


def words(html: str) -> str:
    return " ".join(BeautifulSoup(html, "html.parser").get_text(" ").split())


def every(widget: ipywidgets.Widget) -> list[ipywidgets.Widget]:
    return [widget, *(inner for child in getattr(widget, "children", ()) for inner in every(child))]


def labelled(box: ipywidgets.Widget) -> None:
    """Check that every control has a name and every picture words."""
    for widget in every(box):
        if isinstance(widget, ipywidgets.Button):
            assert bool(widget.tooltip) == bool(widget.description)  # without either it is hidden
        elif hasattr(widget, "description") and not isinstance(widget, ipywidgets.HTML):
            assert widget.description
        if isinstance(widget, ipywidgets.HTML):
            soup = BeautifulSoup(widget.value, "html.parser")
            assert all(tag.get("alt") for tag in soup.find_all("img"))
            assert all(tag.get("aria-label") and tag["role"] == "img" for tag in soup.find_all("svg"))


def standard(box: ipywidgets.Widget) -> None:
    """Check that a front end needs nothing but the controls of ipywidgets and what is in the page itself."""
    for widget in every(box):
        assert widget._model_module in ("@jupyter-widgets/controls", "@jupyter-widgets/base", "@jupyter-widgets/output")
        if isinstance(widget, ipywidgets.HTML):
            soup = BeautifulSoup(widget.value, "html.parser")
            assert not soup.find(["script", "link", "iframe"]) and "url(" not in widget.value
            assert all(tag["src"].startswith("data:image/png") for tag in soup.find_all(src=True))
            assert not any(name.startswith("on") for tag in soup.find_all(True) for name in tag.attrs)


# --- explorers ------------------------------------------------------------------------------------------------


def test_hubs_follow_the_widgets(pairs: tuple[np.ndarray, np.ndarray]) -> None:
    explorer = explore.hubs(pairs, beta=5.0)
    labelled(explorer.box)
    for change in ({"beta": 50.0}, {"method": "nnn"}, {"k": 3}, {"bank_share": 0.5}, {"direction": "image->text"}):
        for name, value in change.items():
            getattr(explorer, name).value = value
        explorer.work.wait()
        state = explorer._state()
        assert explorer.result.state == state
        expected = explorer.view.compute(state)
        assert explorer.numbers.value == page(numbers(expected))
        assert explorer.view.command(state) in words(explorer.state.value)
    hub = explorer.result.hubs.iloc[3]
    explorer.walls[hub["when"]][3].button.click()
    assert hub["gallery_id"] in explorer.hub.value
    shown = [tile for tile in explorer.queries if tile.box.layout.display != "none"]
    assert [tile.item for tile in shown] == hub["query_ids"]
    shown[-1].button.click()
    assert hub["query_ids"][-1] in explorer.answers.value
    labelled(explorer.box)
    standard(explorer.box)


def test_another_data_set_can_be_taken_and_left(tmp_path: Path, pairs: tuple[np.ndarray, np.ndarray]) -> None:
    explorer = explore.hubs(pairs)
    own = explorer.result.metrics
    other = tmp_path / "other.npz"
    np.savez(other, image=pairs[1], text=pairs[0])
    assert explorer.dataset.value == "arrays" and explorer.model.label == "the data set's own"
    explorer.dataset.options = [*explorer.dataset.options, str(other)]
    explorer.dataset.value = str(other)
    explorer.work.wait()
    assert explorer.result.metrics == HubView(other).compute(explorer.result.state).metrics != own
    assert str(other) in words(explorer.state.value)
    explorer.dataset.value = "arrays"
    explorer.work.wait()
    assert explorer.result.metrics == own


def test_what_cannot_be_is_said_and_forgotten(pairs: tuple[np.ndarray, np.ndarray]) -> None:
    explorer = explore.hubs(pairs)
    explorer.method.value = "sinkhorn"
    explorer.beta.value = 1.0
    explorer.work.wait()
    assert "sinkhorn has no parameters to try at beta = 1" in words(explorer.state.value)
    explorer.beta.value = 50.0
    explorer.work.wait()
    assert "The same in batch" in words(explorer.state.value) and explorer.result.state.beta == 50.0


def test_the_gap_follows_the_widgets(pairs: tuple[np.ndarray, np.ndarray]) -> None:
    explorer = explore.gap(pairs)
    labelled(explorer.box)
    before = explorer.result.metrics["before"]["L2M"]
    explorer.lam.value = 0.75
    explorer.work.wait()
    assert explorer.result.metrics["after"]["L2M"] < before / 2
    assert f"{explorer.result.metrics['after']['L2M']:.4f}" in words(explorer.numbers.value)
    explorer.centred.value = True
    explorer.work.wait()
    assert explorer.lam.disabled and "mean-centring" in words(explorer.state.value)
    assert explorer.query.value == explorer.result.query  # the pairs of one split: other queries than before
    explorer.direction.value = "image->text"
    explorer.work.wait()
    assert explorer.result.state.direction == "image->text" and explorer.result.query in words(explorer.mixed.value)
    labelled(explorer.box)
    standard(explorer.box)


@pytest.mark.parametrize("make", [explore.hubs, explore.gap])
def test_an_unknown_part_of_the_state_is_named(make: Callable[..., Any]) -> None:
    with pytest.raises(InputError, match="unknown part of the state 'directon'; nearest valid: direction"):
        make("glyphs", directon="text->image")


def test_a_notebook_keeps_a_figure(tmp_path: Path, pairs: tuple[np.ndarray, np.ndarray]) -> None:
    np.savez(tmp_path / "own.npz", image=pairs[0], text=pairs[1])
    lines = f"from reprolib import explore\nexplore.hubs({str(tmp_path / 'own.npz')!r})"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(lines)])
    NotebookClient(notebook, timeout=120).execute()
    outputs = [output for output in notebook.cells[0].outputs if output.output_type == "display_data"]
    assert "image/png" in outputs[0].data
    assert outputs[0].metadata["image/png"]["alt"].startswith("Table of the largest hubs")
    assert "application/vnd.jupyter.widget-view+json" in outputs[1].data
    assert not [output for output in notebook.cells[0].outputs if output.output_type in ("error", "stream")]


# --- items as HTML --------------------------------------------------------------------------------------------


def test_captions_are_text_not_markup() -> None:
    shown = Shown({}, {"a": "<script>alert('x')</script> & so on"})
    soup = BeautifulSoup(page(shown("a", True)), "html.parser")
    assert soup.find("script") is None and "alert" in soup.get_text()
    assert "right" in soup.find("span")["class"] and soup.find("span")["title"].endswith(", right")


def test_a_picture_is_shown_small_with_its_words() -> None:
    shown = Shown({"i": np.zeros((300, 200, 3), np.uint8)}, {"i": "black"})
    image = BeautifulSoup(shown("i", False), "html.parser").find("img")
    assert image["alt"] == "black, wrong" and image["src"].startswith("data:image/png;base64,")
    assert len(image["src"]) < 2000
    assert "&lt;" in svg(1, 1, "a < b")


# --- work in the background -----------------------------------------------------------------------------------


class Waiting:
    """Work that waits until it is let go, and what came of it."""

    def __init__(self) -> None:
        self.busy: list[bool] = []
        self.failed: list[str] = []
        self.shown: list[int] = []
        self.let_go, self.began = threading.Event(), threading.Event()
        self.work = Work(self.busy.append, self.failed.append)

    def first(self) -> int:
        self.began.set()
        assert self.let_go.wait(30)
        return 1


def test_the_latest_is_done_and_what_lies_between_is_not() -> None:
    waiting = Waiting()
    waiting.work.submit(waiting.first, waiting.shown.append)
    assert waiting.began.wait(30)
    for number in (2, 3, 4):
        waiting.work.submit(lambda number=number: number, waiting.shown.append)
    waiting.let_go.set()
    waiting.work.wait(30)
    assert waiting.shown == [1, 4] and waiting.busy == [True, False] and not waiting.failed


def test_what_is_cancelled_is_not_shown() -> None:
    waiting = Waiting()
    waiting.work.submit(waiting.first, waiting.shown.append)
    assert waiting.began.wait(30)
    waiting.work.submit(lambda: 2, waiting.shown.append)
    waiting.work.cancel()
    waiting.work.submit(lambda: 3, waiting.shown.append)
    waiting.let_go.set()
    waiting.work.wait(30)
    assert waiting.shown == [3]


def test_an_error_is_said_and_ends_nothing() -> None:
    waiting = Waiting()

    def fails(error: Exception) -> Callable[[], int]:
        def job() -> int:
            raise error

        return job

    for error in (RunError("a sentence."), ZeroDivisionError("by zero")):
        waiting.work.submit(fails(error), waiting.shown.append)
        waiting.work.wait(30)
    assert waiting.failed == ["a sentence.", "ZeroDivisionError: by zero"]
    waiting.work.submit(lambda: 5, waiting.shown.append)
    waiting.work.wait(30)
    assert waiting.shown == [5]


class Plain(Explorer):
    def figure(self) -> Drawing:
        raise AssertionError


def test_steps_are_told_and_forgotten() -> None:
    explorer, told, let_go = Plain(), threading.Event(), threading.Event()
    explorer._say("reprolib run tiny")

    def job() -> None:
        explorer._step("")
        assert "The same in batch" in explorer.state.value  # nothing to tell of
        explorer._step("Trying 1 of 2")
        told.set()
        assert let_go.wait(30)
        explorer._step("Trying 2 of 2")

    for end, said in ((lambda: None, "The same in batch: reprolib run tiny"), (explorer.cancel.click, "Stopped.")):
        told.clear(), let_go.clear()
        explorer.work.submit(job, lambda _: None)
        assert told.wait(30) and "Trying 1 of 2" in words(explorer.state.value)
        assert BeautifulSoup(explorer.state.value, "html.parser").find(role="status")
        end()
        let_go.set()
        explorer.work.wait(30)
        assert words(explorer.state.value) == said
        explorer._say("reprolib run tiny")


def test_what_comes_next_waits_until_nobody_works(monkeypatch: pytest.MonkeyPatch) -> None:
    class Cells:
        run, ended = True, 0.0

    monkeypatch.setattr(Ahead, "_cells", Cells)
    explorer, done, waiting = Plain(), [], Waiting()
    explorer.next = lambda: ([lambda step, n=n: (step("a part"), done.append(n)) for n in range(3)])
    explorer.prepare()
    assert explorer.ahead._own.idle  # it is not displayed
    explorer.displayed = True
    explorer.prepare()
    explorer.ahead.wait(0.2)
    assert not done  # a cell runs
    explorer.work.submit(waiting.first, bool)
    Cells.run = False
    assert waiting.began.wait(30)
    explorer.ahead.wait(0.2)
    assert not done  # the explorer works
    waiting.let_go.set()
    explorer.ahead.wait(30)
    assert done == [0, 1, 2]
    Cells.run = True
    explorer.prepare()
    explorer.ahead.stop()
    explorer.ahead.wait(30)
    assert explorer.ahead._own.idle and len(done) == 3


def test_an_explorer_that_is_displayed_works_ahead(
    pairs: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Cells:
        run, ended = False, 0.0

    monkeypatch.setattr(Ahead, "_cells", Cells)
    for explorer, change in (
        (explore.hubs(pairs, method="csls"), {"method": "gc"}),
        (explore.gap(pairs), {"tau": 0.02}),
    ):
        after = replace(explorer.result.state, **change)
        assert after in explorer.view.around(explorer.result.state)
        monkeypatch.setattr(explorer.view, "around", lambda state, after=after: [after])  # one of many
        explorer._ipython_display_()
        explorer.ahead.wait(60)
        told: list[str] = []
        explorer.view.compute(after, told.append)
        assert not any(told)


def test_an_error_in_an_explorer_is_escaped() -> None:
    explorer = Plain()
    explorer.work.submit(lambda: explorer._fail("a < b"), lambda _: None)
    explorer.work.wait(30)
    assert "a &lt; b" in explorer.state.value and explorer.cancel.disabled
