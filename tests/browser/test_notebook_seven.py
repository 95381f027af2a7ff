"""The first notebook in Notebook 7: run, a slider moved, a method chosen; skipped where Notebook is not installed.

Sliders are moved by the mouse: Notebook 7 takes the arrow keys for its own commands before a widget sees them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from reprolib.explore.hubs import HubView, State, numbers
from reprolib.methods.base import TEMPERATURES
from tests.browser.chromium import Page
from tests.browser.conftest import served
from tests.browser.test_start_here import CHOOSE, FAILED, both, control, shows

PANEL = "jupyterapp.shell.currentWidget"
END = """(() => {
    const track = %s.querySelector('.noUi-base')
    track.scrollIntoView({block: 'center'})
    const box = track.getBoundingClientRect()
    return [box.right - 1, box.y + box.height / 2]
})()"""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    pytest.importorskip("notebook")
    with served(tmp_path_factory.mktemp("notebook"), "notebook", "JupyterNotebookApp") as (base, token):
        yield f"{base}/notebooks/notebooks/00_start_here.ipynb?token={token}"


def test_a_reader_plays(page: Page, address: str, screenshots: Path) -> None:
    page.send("Page.navigate", url=address)
    page.wait(f"window.jupyterapp && {PANEL}?.sessionContext?.session?.kernel?.status === 'idle'", "a kernel", 120)
    page.evaluate("jupyterapp.commands.execute('notebook:run-all-cells')", 600)
    assert page.evaluate(FAILED) is None
    view, state = HubView("glyphs"), State(direction="image->text")
    shows(page, numbers(view.compute(state)), "skewness")
    # the mouse pulls the temperature to its end
    page.click(*page.evaluate(END % control("Temperature β")))
    state = replace(state, beta=max(TEMPERATURES))
    shows(page, numbers(view.compute(state)), "skewness")
    page.evaluate(CHOOSE % {"place": "option => option.text === 'NNN'", "control": control("Method")})
    shows(page, numbers(view.compute(replace(state, method="nnn"))), "skewness")
    page.evaluate(f"{control('Data set')}.scrollIntoView()")
    both(page, screenshots, "notebook-7")
