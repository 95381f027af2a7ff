"""How long the explorers take to follow a slider.

At full size (``pytest --benchmark-only``): the embedded default, and 25,000 texts x 5,000 images of stored features;
it then writes ``docs/benchmarks_explore.md``. In an ordinary test run each is done once, tiny; nothing is asserted of
time. An update is what a moved slider costs the kernel: the view's result and the HTML that is shown. The first one
of a bank also computes what the later ones reuse; it is measured apart. What is measured is the processor time of one
thread: on a busy machine that is disturbed least.
"""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
import torch

from reprolib.explore.gap import GapView, clouds, landscape
from reprolib.explore.gap import State as GapState
from reprolib.explore.gap import numbers as gap_numbers
from reprolib.explore.hubs import HubView, histogram, numbers
from reprolib.explore.hubs import State as HubState
from tests.benchmarks.table import machine, rows

TABLE = Path(__file__).resolve().parents[2] / "docs" / "benchmarks_explore.md"
CASES = ("embedded default", "25,000 x 5,000")
ROUNDS = 5


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def found(full: bool) -> Iterator[dict[tuple[str, str], tuple[float, list[float]]]]:
    """Collect what is measured; after a complete full-size run, write the table."""
    measured: dict[tuple[str, str], tuple[float, list[float]]] = {}
    yield measured
    if full and {case for case, _ in measured} == set(CASES):
        TABLE.write_text(markdown(measured), encoding="utf-8")


@pytest.fixture(scope="module")
def source(full: bool, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """Return a function that gives the data of a case; tiny features stand for both unless at full size."""

    def make(case: str) -> Any:
        if full and case == CASES[0]:
            return "glyphs"
        images, captions, width = (5_000, 5, 512) if full else (100, 2, 8)
        rng = np.random.default_rng(0)
        count = round(images / 0.7)  # a tenth is the bank, a fifth validation
        concept = rng.normal(size=(count, width)).astype(np.float32)
        text = np.repeat(concept, captions, 0) + 3 * rng.normal(size=(count * captions, width)).astype(np.float32)
        path = tmp_path_factory.mktemp("features") / "own.npz"
        pairs = np.stack([np.repeat(np.arange(count), captions), np.arange(count * captions)], 1)
        np.savez(path, image=concept, text=text, relevance=pairs)
        return path

    return make


def timed(update: Callable[[Any], object], states: list[Any]) -> tuple[float, list[float]]:
    """Return the seconds of the first update and of the later ones."""
    seconds = []
    for state in states:
        began = time.thread_time()
        update(state)
        seconds.append(time.thread_time() - began)
    return seconds[0], seconds[1:]


@pytest.mark.parametrize("case", CASES)
def test_hubs(benchmark: Any, full: bool, source: Callable[[str], Any], found: dict, case: str) -> None:
    view = HubView(source(case))
    if case != CASES[0] or not full:  # one split of the several
        study = view.study(0.1)
        study._every = {direction: tasks[:1] for direction, tasks in study._every.items()}
    share = 0.2 if case == CASES[0] and full else 0.1

    def update(state: HubState) -> str:
        result = view.compute(state)
        return numbers(result) + histogram(result)

    start = HubState(bank_share=share)
    moves = {
        "temperature of IS": [replace(start, beta=beta) for beta in (20.0, 30.0, 50.0, 75.0, 10.0, 5.0)],
        "CSLS, then back and forth": [replace(start, method=name) for name in ("csls", "is", "csls", "is")],
        "neighbours k": [replace(start, k=k) for k in (2, 3, 5, 8, 11)],
    }
    everything = benchmark.pedantic(lambda: {name: timed(update, states) for name, states in moves.items()}, rounds=1)
    found.update({(case, f"hubs, {name}"): seconds for name, seconds in everything.items()})


def test_gap(benchmark: Any, full: bool, source: Callable[[str], Any], found: dict) -> None:
    view = GapView(source(CASES[0]))

    def update(state: GapState) -> str:
        result = view.compute(state)
        return gap_numbers(result) + clouds(view, result) + landscape(result)

    states = [GapState(lam=lam) for lam in (0.0, 0.05, 0.1, 0.15, 0.2, 0.3)]
    found[CASES[0], "gap, shift"] = benchmark.pedantic(lambda: timed(update, states), rounds=1)


def markdown(measured: dict[tuple[str, str], tuple[float, list[float]]]) -> str:
    lines = [
        "# Explorers",
        "",
        "How long the kernel takes when a slider is moved: the result and the HTML that is shown. The first update",
        "also computes what later ones reuse (products, reductions of the bank); that of a method also chooses its",
        "parameters on validation. Processor time of one thread, which a busy machine disturbs least. Measured by",
        "`pytest tests/benchmarks/test_explore_benchmark.py --benchmark-only`.",
        "",
        f"{datetime.date.today()}; {machine()}; load {os.getloadavg()[1]:.1f}.",
        "",
    ]
    body = [
        f"| {case} | {what} | {1000 * first:.0f} | {1000 * median(later):.0f} | {1000 * max(later):.0f} |"
        for (case, what), (first, later) in measured.items()
    ]
    return "\n".join([*lines, *rows("| data | what moves | first, ms | later, median, ms | slowest, ms |", *body)])
