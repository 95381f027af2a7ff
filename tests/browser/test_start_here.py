"""The first notebook in JupyterLab, as a reader uses it: run, a slider moved, a method chosen, a hub pressed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from reprolib.explore.gap import GapView
from reprolib.explore.gap import State as GapState
from reprolib.explore.gap import numbers as gap_numbers
from reprolib.explore.hubs import HubView
from reprolib.explore.hubs import State as HubState
from reprolib.explore.hubs import numbers as hub_numbers
from reprolib.paths import notebooks
from tests.browser.chromium import Page

# The widget of a label, by its text, within the explorer that has it first.
CONTROL = "[...document.querySelectorAll('.widget-label')].find(l => l.textContent.startsWith('%s')).parentElement"
CHOOSE = """(() => {
    const select = %(control)s.querySelector('select')
    select.value = [...select.options].find(%(place)s).value
    select.dispatchEvent(new Event('change', {bubbles: true}))
})()"""
PRESS = """[...document.querySelectorAll("button[title^='%s']")].filter(b => b.offsetParent !== null)[%d].click()"""
TEXT = "[...document.querySelectorAll('.rx')].map(e => e.innerText).join(' ').replace(/\\s+/g, ' ')"
FAILED = "document.querySelector(\"[data-mime-type='application/vnd.jupyter.error']\")?.innerText ?? null"


def control(label: str) -> str:
    return CONTROL % label


def said(html: str) -> list[str]:
    """Return the words of a table of HTML."""
    from bs4 import BeautifulSoup

    return BeautifulSoup(html, "html.parser").get_text(" ").split()


def shows(page: Page, table: str, name: str) -> None:
    """Wait until the page has a table of numbers as the library gives it; ``name`` tells the table from others."""
    found = f"[...document.querySelectorAll('.rx table')].find(t => t.innerText.includes('{name}'))?.innerText"
    page.wait(
        f"({found})?.split(/\\s+/).filter(Boolean).join(' ') === {' '.join(said(table))!r}", f"the numbers {table}"
    )


def test_a_reader_plays(page: Page, run_all: Callable[..., None], screenshots: Path) -> None:
    run_all("00_start_here.ipynb")
    assert page.evaluate(FAILED) is None
    view, state = HubView("glyphs"), HubState(direction="image->text")
    shows(page, hub_numbers(view.compute(state)), "skewness")
    # a slider is moved by the keyboard
    page.evaluate(f"{control('Temperature β')}.querySelector('.noUi-handle').focus()")
    page.press("ArrowRight")
    state = replace(state, beta=30.0)
    shows(page, hub_numbers(view.compute(state)), "skewness")
    # a method is chosen
    page.evaluate(CHOOSE % {"place": "option => option.text === 'NNN'", "control": control("Method")})
    state = replace(state, method="nnn")
    result = view.compute(state)
    shows(page, hub_numbers(result), "skewness")
    page.wait(f"({TEXT}).includes({view.command(state)!r})", "the command")
    # the second of the largest hubs is pressed, then the last of its queries
    hub = result.hubs.iloc[1]
    page.evaluate(PRESS % ("Show queries", 1))
    page.wait(f"({TEXT}).includes('which {hub['n_k']:,} have in their top 10')", "the queries of the hub")
    page.evaluate(PRESS % ("Show what is found", len(hub["query_ids"]) - 1))
    page.wait(f"({TEXT}).includes({'Found for ' + view.shown().name(hub['query_ids'][-1])!r})", "the query's ranking")
    page.evaluate(f"{control('Data set')}.scrollIntoView()")
    both(page, screenshots, "hubs")
    # the picture of the README: hubs that are pictures, and what is found for a name
    page.evaluate(CHOOSE % {"place": "(_, place) => place === 0", "control": control("Direction")})
    state = replace(state, direction="text->image")
    shows(page, hub_numbers(view.compute(state)), "skewness")
    page.resize(1240, 1500)
    page.evaluate(f"{control('Data set')}.scrollIntoView()")
    time.sleep(1)  # a widget is drawn after its value
    page.screenshot(screenshots / "explorer.png", f"{control('Data set')}.closest('.jp-OutputArea-output')", scale=1.5)
    page.resize(0, 0)


def test_a_reader_closes_the_gap(page: Page, run_all: Callable[..., None], screenshots: Path) -> None:
    if page.evaluate("typeof window.opened") == "undefined":  # alone; else the notebook is open from the test before
        run_all("00_start_here.ipynb")
    view = GapView("glyphs")
    page.evaluate(f"{control('Shift λ')}.querySelector('.noUi-handle').focus()")
    page.press("ArrowRight")
    shows(page, gap_numbers(view.compute(GapState(lam=0.05))), "L2M")
    page.evaluate(f"{control('Shift λ')}.scrollIntoView()")
    both(page, screenshots, "gap")


def test_a_reader_stops_an_inversion(page: Page, run_all: Callable[..., None], screenshots: Path) -> None:
    if page.evaluate("typeof window.opened") == "undefined":
        run_all("00_start_here.ipynb")
    page.evaluate(f"{control('Query image')}.scrollIntoView()")
    both(page, screenshots, "inversion")
    cancel = f"{control('Query image')}.parentElement.querySelector(\"button[title^='Stop']\")"
    page.evaluate(CHOOSE % {"place": "(_, place) => place === 1", "control": control("Query image")})
    page.wait(f"!{cancel}.disabled", "the inversion begins")
    page.evaluate(f"{cancel}.click()")
    page.wait(f"/Stopped after \\d+ of 150 steps/.test({TEXT})", "it stops")
    assert not page.errors


def both(page: Page, screenshots: Path, name: str) -> None:
    """Take a screenshot in the light and in the dark theme."""
    for theme in ("Dark", "Light"):
        page.evaluate(f"jupyterapp.commands.execute('apputils:change-theme', {{theme: 'JupyterLab {theme}'}})")
        page.wait(f"document.body.dataset.jpThemeLight === '{str(theme == 'Light').lower()}'", f"the theme {theme}")
        time.sleep(1)  # the style sheet of a theme comes after its name
        page.screenshot(screenshots / f"{name}-{theme.lower()}.png")


@pytest.mark.browser
@pytest.mark.parametrize("name", sorted(path.name for path in notebooks().glob("0[1-9]*.ipynb")))
def test_every_study_runs_in_jupyterlab(name: str, page: Page, run_all: Callable[..., None], screenshots: Path) -> None:
    run_all(name, timeout=3600)
    assert page.evaluate(FAILED) is None
    page.screenshot(screenshots / "start.png")
    assert page.evaluate("document.querySelectorAll('.jp-RenderedImage img').length") > 0
    page.screenshot(screenshots / f"{name}.png")
