"""Many heads at once against a few and against one: seconds of a training step, per text encoder and batch size.

One thread, as each batch of runs of a study has; other cores train other heads. At full size
(``pytest --benchmark-only``) this writes ``docs/benchmarks_heads.md``; in an ordinary test run each benchmark runs
once, tiny. The numbers of heads take turns, so that a busy machine slows all alike.
"""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import pytest
import scipy.sparse
import torch

from reprolib.models.corpus import Corpus, Part
from reprolib.models.heads import TOGETHER, Head, train
from tests.benchmarks.table import machine, rows

TABLE = Path(__file__).resolve().parents[2] / "docs" / "benchmarks_heads.md"
SETTINGS = (("linear", 128), ("linear", 16), ("gru", 128), ("gru", 16))  # text encoder and pairs in a batch
NUMBERS = ((1, 1), (4, 4), (10, 10), (100, 10), (100, 100))  # heads, and how many of them train together
STEPS = 20
KINDS = {  # of operations, by what their names hold
    "matrix products": ("mm",), "softmax": ("softmax",), "optimiser": ("adam",),
    "sums of token vectors": ("embedding_bag",), "gathers": ("index",),
    "other passes over tensors": ("",),
}  # fmt: skip
Setting = tuple[str, int]
Seconds = dict[Setting, dict[tuple[int, int], list[float]]]
Shares = dict[Setting, dict[str, float]]


@pytest.fixture(scope="module")
def corpus(full: bool) -> Corpus:
    """Return as many made-up items as ``glyphs`` trains on, of as many dimensions, with texts of four words."""
    items = 5346 if full else 40
    rng = np.random.default_rng(0)

    def part(name: str, n: int) -> Part:
        texts = [" ".join(f"word{w}" for w in rng.integers(1800, size=4)) for _ in range(n)]
        ids = np.array([f"{name}{row}" for row in range(n)])
        relevance = scipy.sparse.eye_array(n, dtype=bool, format="csr")
        return Part(rng.normal(size=(n, 128)).astype(np.float32), texts, None, relevance, ids, ids)

    test = part("test", 8)
    return Corpus("made", "made", part("train", items), part("validation", 8), test, test, "made")


@pytest.fixture(scope="module")
def measured(full: bool) -> Iterator[tuple[Seconds, Shares]]:
    """Collect seconds per step and shares of kinds of operations; after a complete full-size run, write the table."""
    found: tuple[Seconds, Shares] = {}, {}
    yield found
    if full and set(found[0]) == set(SETTINGS):
        TABLE.write_text(markdown(*found), encoding="utf-8")


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: f"{setting[0]}-{setting[1]}")
def test_training(setting: Setting, benchmark, corpus: Corpus, full: bool, measured: tuple[Seconds, Shares]) -> None:
    numbers = NUMBERS if full else ((1, 1), (2, 2))
    head = Head(encoder=setting[0], dimension=32, batch=setting[1] if full else 16, epochs=1)
    part = corpus.train.take(*[np.arange((STEPS if full else 2) * head.batch)] * 2)
    small = replace(corpus, train=part)
    steps = len(part.texts) // head.batch
    seconds: dict[tuple[int, int], list[float]] = {number: [] for number in numbers}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def timed(number: int, together: int) -> None:
        heads = [replace(head, seed=seed) for seed in range(number)]
        began = time.perf_counter()
        train(small, heads, together=together)
        seconds[number, together].append((time.perf_counter() - began) / steps)

    def others() -> None:
        for number in numbers[:-1]:
            timed(*number)

    try:
        timed(1, 1)  # loads libraries
        seconds[1, 1].clear()
        benchmark.pedantic(timed, args=numbers[-1], setup=others, rounds=3 if full else 1)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
            train(small, [replace(head, seed=seed) for seed in range(TOGETHER)], together=TOGETHER)
    finally:
        torch.set_num_threads(threads)
    measured[0][setting] = seconds
    measured[1][setting] = shares({event.key: event.self_cpu_time_total for event in profiler.key_averages()})


def shares(taken: Mapping[str, float]) -> dict[str, float]:
    """Return the share of each kind of operation in the time ``taken`` by all operations of the library, by name."""
    found = dict.fromkeys(KINDS, 0.0)
    for name, value in taken.items():
        if name.startswith("aten::"):
            kind = next(kind for kind, parts in KINDS.items() if any(part in name for part in parts))
            found[kind] += value
    return {kind: value / sum(found.values()) for kind, value in found.items()}


def markdown(found: Seconds, parts: Shares) -> str:
    lines = []
    for (encoder, batch), seconds in found.items():
        for (number, together), taken in seconds.items():
            one, four = (
                [many / few for few, many in zip(seconds[count, count], taken, strict=True)] for count in (1, 4)
            )
            lines.append(
                f"| {encoder} | {batch} | {number} | {together} | {1e3 * median(taken):.2f} "
                f"| {1e3 * median(taken) / number:.3f} "
                f"| {median(one):.1f} ({min(one):.1f} to {max(one):.1f}) "
                f"| {median(four):.1f} ({min(four):.1f} to {max(four):.1f}) |"
            )
    told = [f"| {encoder} | {batch} | " + " | ".join(f"{part[kind]:.0%}" for kind in KINDS) + " |"
            for (encoder, batch), part in parts.items()]  # fmt: skip
    return "\n".join(
        [
            "# Benchmarks of heads",
            "",
            f"Written by `pytest tests/benchmarks/test_heads_benchmark.py --benchmark-only` on "
            f"{datetime.date.today().isoformat()}: {machine()}; load average {os.getloadavg()[1]:.1f}.",
            "",
            f"{STEPS} steps on items of 128 dimensions, 32 common dimensions, InfoNCE, with set-up and evaluation, in "
            "one thread: a study trains a batch of heads in every thread. Milliseconds are per training step of all "
            "heads together. The numbers of heads take turns; medians of 3 rounds (lowest to highest).",
            "",
            *rows(
                "| text encoder | batch | heads | together | ms | ms per head | time of one head "
                "| time of four heads |",
                *lines,
            ),
            "## What bounds it",
            "",
            "Heads that train together share the starts of operations, and nothing else: each has its own parameters, "
            "pairs and scores. Where batches are small or sequences are read token by token, a step is mostly such "
            "starts, and many heads cost little more than a few. Four linear heads with 128 pairs keep a core busy: "
            f"from there on the time grows with the number of heads. More than {TOGETHER} at a time gain only where "
            f"operations are small. Of the time of operations, {TOGETHER} heads together:",
            "",
            *rows(f"| text encoder | batch | {' | '.join(KINDS)} |", *told),
            "A linear head does 5.2 million multiplications and additions in matrix products in a step of 128 pairs. "
            "Its table of 2,048 x 32 numbers, the two moments and the gradient are four arrays of 0.26 MB; the "
            "optimiser reads them all and writes three, 1.8 MB a step. The arrays of ten heads are 10 MB and stay in "
            "a cache, those of a hundred are 105 MB and come from memory.",
            "",
        ]
    )


def test_the_table_holds_what_was_measured() -> None:
    split = dict.fromkeys(KINDS, 0.1) | {"optimiser": 0.5}
    text = markdown({("linear", 16): {(1, 1): [0.002], (4, 4): [0.004], (100, 10): [0.05]}}, {("linear", 16): split})
    assert "| linear | 16 | 100 | 10 | 50.00 | 0.500 | 25.0 (25.0 to 25.0) | 12.5 (12.5 to 12.5) |" in text
    assert "| linear | 16 | 1 | 1 | 2.00 | 2.000 | 1.0 (1.0 to 1.0) | 0.5 (0.5 to 0.5) |" in text
    assert "| linear | 16 | 10% | 10% | 50% | 10% | 10% | 10% |" in text


def test_operations_are_counted_once_by_kind() -> None:
    found = shares({"aten::bmm": 1, "aten::_fused_adam_": 2, "aten::_log_softmax": 3, "aten::add": 4, "Python": 9})
    assert found["matrix products"] == 0.1 and found["optimiser"] == 0.2 and found["softmax"] == 0.3
    assert found["other passes over tensors"] == 0.4 and sum(found.values()) == pytest.approx(1)
