"""How long the explorers take to follow a move.

At full size (``pytest --benchmark-only``): the embedded default, and 25,000 texts x 5,000 images of stored features;
it then writes ``docs/benchmarks_explore.md``. In an ordinary test run each is done once, tiny; nothing is asserted of
time. An update is what a move costs the kernel: the view's result, and all widgets set to it. What is computed ahead
while nobody moves anything is measured at its first visit, and again. What is measured is the processor time of one
thread: on a busy machine that is disturbed least.
"""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
import torch

from reprolib import explore
from reprolib.explore.common import Explorer
from reprolib.explore.gap import State as GapState
from reprolib.explore.hubs import BANK_SHARES
from reprolib.explore.hubs import State as HubState
from reprolib.methods import CATALOGUE
from reprolib.methods.base import TEMPERATURES
from tests.benchmarks.table import machine, rows

TABLE = Path(__file__).resolve().parents[2] / "docs" / "benchmarks_explore.md"
CASES = ("embedded default", "25,000 x 5,000")
DIRECTIONS = ("text->image", "image->text")


@dataclass
class Moves:
    """Seconds of updates: at the first visit, and with what is computed ahead (of a shift nothing: at others)."""

    first: list[float]
    later: list[float]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def found(full: bool) -> Iterator[dict[tuple[str, str], Moves]]:
    """Collect what is measured; after a complete full-size run, write the table."""
    measured: dict[tuple[str, str], Moves] = {}
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


def timed(explorer: Explorer, states: Sequence[Any]) -> list[float]:
    """Return the seconds of an update to each state."""
    seconds = []
    for state in states:
        began = time.thread_time()
        explorer.show(explorer.view.compute(state))
        seconds.append(time.thread_time() - began)
    return seconds


def moved(explorer: Explorer, states: Sequence[Any], others: Sequence[Any] = ()) -> Moves:
    return Moves(timed(explorer, states), timed(explorer, others or states))


def deeper(explorer: Explorer, state: HubState) -> list[HubState]:
    """Let k be prepared, as it is ahead; return states of other k than before."""
    explorer.view.deepen(state)
    return [replace(state, k=k) for k in (1, 4, 9, 10, 21, 49)]


@pytest.mark.parametrize("case", CASES)
def test_hubs(benchmark: Any, full: bool, source: Callable[[str], Any], found: dict, case: str) -> None:
    small = case == CASES[0]
    start = HubState(bank_share=0.2 if small and full else 0.1)
    explorer = explore.hubs(source(case), bank_share=start.bank_share)
    if not small or not full:  # one split of the several
        study = explorer.view.study(start.bank_share)
        study._every = {direction: tasks[:1] for direction, tasks in study._every.items()}
    methods = [name for name in CATALOGUE if small or name in ("none", "is", "csls", "nnn")]

    def measure() -> dict[str, Moves]:
        every = {}
        for direction in DIRECTIONS if small else DIRECTIONS[:1]:
            here, name = replace(start, direction=direction), direction.replace("->", " → ")
            timed(explorer, [here])
            ks = [replace(here, k=k) for k in (2, 3, 5, 11, 20, 50)]
            every |= {
                f"{name}: temperature of IS": moved(explorer, [replace(here, beta=b) for b in TEMPERATURES if b != 20]),
                f"{name}: method": moved(explorer, [replace(here, method=m) for m in methods if m != "is"]),
                f"{name}: k": Moves(timed(explorer, ks), timed(explorer, deeper(explorer, here))),
            }
            if small:
                warm = [replace(here, method="dual-is", beta=b) for b in TEMPERATURES]
                every[f"{name}: temperature of DualIS"] = moved(explorer, warm)
                banks = [replace(here, bank_share=share) for share in BANK_SHARES if share <= start.bank_share]
                every[f"{name}: size of the bank"] = moved(explorer, banks if full else [here])
        if small:
            turns = [replace(start, direction=direction, method="nnn") for direction in DIRECTIONS]
            every["direction, with NNN"] = moved(explorer, turns)
        return every

    everything = benchmark.pedantic(measure, rounds=1)
    found.update({(case, f"hubs, {name}"): moves for name, moves in everything.items()})


def test_gap(benchmark: Any, source: Callable[[str], Any], found: dict) -> None:
    explorer = explore.gap(source(CASES[0]))
    taus = explorer.view.study.temperatures

    def measure() -> dict[str, Moves]:
        return {
            "shift": moved(
                explorer,
                [GapState(lam=lam) for lam in (0.05, 0.1, 0.15)],
                [GapState(lam=0.2 + i / 20) for i in range(9)],
            ),
            "temperature of the loss": moved(explorer, [GapState(lam=0.5, tau=tau) for tau in taus]),
            "mean-centring": moved(explorer, [GapState(centred=True), GapState()]),
            "direction": moved(explorer, [GapState(direction=direction) for direction in DIRECTIONS]),
        }

    everything = benchmark.pedantic(measure, rounds=1)
    found.update({(CASES[0], f"gap, {name}"): moves for name, moves in everything.items()})


def markdown(measured: dict[tuple[str, str], Moves]) -> str:
    lines = [
        "# Explorers",
        "",
        "How long the kernel takes to follow a move: the result, and all widgets set to it. At a first visit, methods",
        "choose their parameters on validation, and banks are reduced. What one move leads to is computed ahead while",
        "nobody moves anything and no cell runs; then a move takes what the last two columns say. (Nothing is known",
        "ahead of a shift. Larger banks than the present one may have to be encoded, and are not prepared: the page",
        "tells what it does and can be stopped.) Processor time of one thread, which a busy machine disturbs least.",
        "Measured by",
        "`pytest tests/benchmarks/test_explore_benchmark.py --benchmark-only`.",
        "",
        f"{datetime.date.today()}; {machine()}; load {os.getloadavg()[1]:.1f}.",
        "",
    ]
    body = [
        f"| {case} | {what} | {1000 * max(moves.first):,.0f} | {1000 * median(moves.later):.0f} | "
        f"{1000 * max(moves.later):.0f} |"
        for (case, what), moves in measured.items()
    ]
    header = "| data | what moves | first visit, slowest, ms | then, median, ms | then, slowest, ms |"
    return "\n".join([*lines, *rows(header, *body)])
