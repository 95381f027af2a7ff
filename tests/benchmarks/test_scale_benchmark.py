"""Corrections with full COCO banks, which stay in their file: time, share of the matrix rate, and peak memory.

At full size (``pytest --benchmark-only``) each correction is done in a process of its own, and the table goes to
``docs/benchmarks_coco.md``; in an ordinary test run each is done once, tiny. With ``REPROLIB_DEVICE=cuda`` the
products run there.
"""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from reprolib import ranking
from reprolib.loaders.features import load_features
from tests.benchmarks import scale
from tests.benchmarks.table import MIB, machine, rows

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "docs" / "benchmarks_coco.md"
METHODS = ("none", "is", "dis", "dual-is", "dual-dis", "csls", "nnn", "dn", "invgc", "gc", "invgc-localadj", "sinkhorn")
DEVICE = os.environ.get("REPROLIB_DEVICE", "cpu")


@pytest.fixture(scope="module")
def file(full: bool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("coco") / "embeddings.safetensors"
    scale.write(path, scale.COCO if full else scale.SMALL)
    yield path
    path.unlink()


@pytest.fixture(scope="module")
def found(full: bool) -> Iterator[dict[str, dict[str, float]]]:
    """Collect what is measured; after a complete full-size run, write the table."""
    measured: dict[str, dict[str, float]] = {}
    yield measured
    if full and set(measured) == set(METHODS):
        TABLE.write_text(markdown(measured, scale.COCO), encoding="utf-8")


@pytest.mark.parametrize("name", METHODS)
def test_correction(
    name: str, benchmark, full: bool, file: Path, found: dict, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    def measure() -> dict[str, float]:
        if not full:
            monkeypatch.setattr(ranking, "LARGE", 1)
            return scale.once(str(file), name)
        command = [sys.executable, "-m", "tests.benchmarks.scale", str(file), name, DEVICE]
        return json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)

    found[name] = benchmark.pedantic(measure, rounds=1)
    assert 0 < found[name]["R@1"] < 1


def test_the_file_is_what_it_says(tmp_path: Path) -> None:
    path, sizes = tmp_path / "own.safetensors", scale.SMALL
    scale.write(path, sizes)
    split = load_features(path, validation_share=0.5, n_splits=1).replicates[0]
    assert (len(split.bank.image), len(split.bank.text)) == (sizes.bank_images, sizes.bank_captions)
    assert len(split.test.image) == sizes.images and abs(len(split.test.text) - sizes.captions) <= sizes.images
    counts = np.diff(split.bank.relevance.indptr)
    assert counts.min() == 5 and counts.max() == 6
    np.testing.assert_allclose(np.linalg.norm(split.bank.text, axis=1), 1, atol=1e-6)


def markdown(measured: dict[str, dict[str, float]], sizes: scale.Sizes) -> str:
    rate = np.median([numbers["rate"] for numbers in measured.values()])
    lines = [
        f"| {name} | {one['seconds']:.1f} | {one['product']:.1f} | {100 * one['share']:.0f} % "
        f"| {one['peak'] / MIB:.0f} |"
        for name, one in measured.items()
    ]
    matrix = 4 * sizes.bank_captions * sizes.images
    banks = 4 * sizes.width * (sizes.bank_images + sizes.bank_captions) / MIB
    return "\n".join(
        [
            "# Full COCO banks",
            "",
            f"Written by `pytest tests/benchmarks/test_scale_benchmark.py --benchmark-only` on "
            f"{datetime.date.today().isoformat()}: {machine()}; {DEVICE}; load average {os.getloadavg()[1]:.1f}.",
            "",
            f"{sizes.captions:,} captions against {sizes.images:,} images; query bank {sizes.bank_captions:,}, gallery "
            f"bank {sizes.bank_images:,}; {sizes.width} dimensions; synthetic. Fit, ranks, metrics and k-occurrence, "
            f"each correction in a process of its own. The banks ({banks:.0f} MiB) stay in their file and are "
            "read a few megabytes at a time. *Products* is what the necessary matrix products alone would take at the "
            f"rate measured beside each run (median {rate / 1e9:.0f} GFLOP/s in float32); the share is theirs of the "
            "whole time. The peak is that of the whole process, with libraries and the embeddings of test and "
            f"validation. The query bank x gallery matrix alone would take {matrix / MIB:,.0f} MiB.",
            "",
            *rows("| method | seconds | products, s | share of the matrix rate | peak, MiB |", *lines),
            "`dn` and `invgc` need no similarities to a bank and take seconds. For `dn` only the product of ranking "
            "is counted; for `invgc` also that of each bank with itself (its sums are in float64, which halves the "
            "rate). `gc` sorts every similarity, which takes about as long as the product on this processor, and finds "
            "the rank of every query among them; what it holds in between leaves room for 320 items at a time, so that "
            "the bank is read again for each 320. `invgc-localadj` chooses thousands of neighbours per item and reads "
            "the banks twice for each 1,728. Sinkhorn computes the product anew in each of its ten iterations, since "
            "its kernel would not fit. Dual-bank Sinkhorn does so for 118,000 targets instead of 5,000: about 24 times "
            "as long.",
            "",
        ]
    )


def test_the_table_holds_what_was_measured() -> None:
    text = markdown(
        {"is": {"seconds": 30.0, "rate": 1e11, "product": 24.0, "share": 0.8, "peak": 800 * MIB}}, scale.COCO
    )
    assert "| is | 30.0 | 24.0 | 80 % | 800 |" in text and "median 100 GFLOP/s" in text
