"""Many heads at once against a few: seconds of a training step, per configuration of the text encoder.

At full size (``pytest --benchmark-only``) this writes ``docs/benchmarks_heads.md``; in an ordinary test run each
benchmark runs once, tiny. The numbers of heads take turns, so that a busy machine slows all alike.
"""

from __future__ import annotations

import datetime
import os
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
import scipy.sparse

from reprolib.models.corpus import Corpus, Part
from reprolib.models.heads import Head, train
from tests.benchmarks.table import machine, rows

TABLE = Path(__file__).resolve().parents[2] / "docs" / "benchmarks_heads.md"
ENCODERS = ("linear", "gru")
NUMBERS = (1, 4, 10, 100)
Seconds = dict[str, dict[int, list[float]]]


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
def measured(full: bool) -> Any:
    """Collect seconds per step; after a complete full-size run, write the table."""
    found: Seconds = {}
    yield found
    if full and set(found) == set(ENCODERS):
        TABLE.write_text(markdown(found), encoding="utf-8")


@pytest.mark.parametrize("encoder", ENCODERS)
def test_training(encoder: str, benchmark, corpus: Corpus, full: bool, measured: Seconds) -> None:
    numbers = NUMBERS if full else (1, 2)
    head = Head(encoder=encoder, dimension=32, batch=128 if full else 16, epochs=1)
    steps = len(corpus.train.texts) // head.batch
    seconds: dict[int, list[float]] = {number: [] for number in numbers}

    def timed(number: int) -> None:
        heads = [Head(**vars(head) | {"seed": seed}) for seed in range(number)]
        began = time.perf_counter()
        train(corpus, heads, together=number)
        seconds[number].append((time.perf_counter() - began) / steps)

    def others() -> None:
        for number in numbers[:-1]:
            timed(number)

    timed(1)  # loads libraries
    seconds[1].clear()
    benchmark.pedantic(timed, args=(numbers[-1],), setup=others, rounds=3 if full else 1)
    measured[encoder] = seconds


def markdown(found: Seconds) -> str:
    lines = []
    for encoder, seconds in found.items():
        for number, taken in seconds.items():
            alone = [number * one / many for one, many in zip(seconds[1], taken, strict=True)]
            four = [many / few for few, many in zip(seconds[4], taken, strict=True)]
            lines.append(
                f"| {encoder} | {number} | {1e3 * median(taken):.2f} | {1e3 * median(taken) / number:.3f} "
                f"| {median(alone):.1f} x ({min(alone):.1f} to {max(alone):.1f}) "
                f"| {median(four):.1f} ({min(four):.1f} to {max(four):.1f}) |"
            )
    return "\n".join(
        [
            "# Benchmarks of heads",
            "",
            f"Written by `pytest tests/benchmarks/test_heads_benchmark.py --benchmark-only` on "
            f"{datetime.date.today().isoformat()}: {machine()}; load average {os.getloadavg()[1]:.1f}.",
            "",
            "One epoch of 5,346 items of 128 dimensions, batches of 128 pairs, 32 common dimensions, InfoNCE, with "
            "set-up and evaluation; milliseconds are per training step of all heads together. The numbers of heads "
            "take turns; medians of 3 rounds.",
            "",
            *rows("| text encoder | heads | ms | ms per head | faster than one by one | time of four heads |", *lines),
        ]
    )


def test_the_table_holds_what_was_measured() -> None:
    text = markdown({"linear": {1: [0.002], 4: [0.004], 100: [0.05]}})
    assert "| linear | 100 | 50.00 | 0.500 | 4.0 x (4.0 to 4.0) | 12.5 (12.5 to 12.5) |" in text
    assert "| linear | 1 | 2.00 | 2.000 | 1.0 x (1.0 to 1.0) | 0.5 (0.5 to 0.5) |" in text
