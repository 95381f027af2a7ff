"""Time and memory against NumPy that builds and sorts every matrix (see ``conftest.py``)."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from reprolib.methods import CATALOGUE
from reprolib.ranking import BLOCK_BYTES
from tests.benchmarks import measure as measured
from tests.benchmarks.naive import CORRECTIONS
from tests.benchmarks.table import Results, machine, markdown
from tests.benchmarks.workload import TINY, Size, Workload

Measure = Callable[..., dict[str, float]]


def same_metrics(ours: dict[str, float], naive: dict[str, float]) -> None:
    """The two sides must solve the same problem; float32 round-off may swap a few near ties."""
    for name in ("R@1", "R@5", "R@10", "MRR"):
        assert ours[name] == pytest.approx(naive[name], abs=0.002)
    assert ours["skewness"] == pytest.approx(naive["skewness"], rel=0.02, abs=0.02)


def test_metrics_of_both_directions(benchmark, data: Workload, full: bool, measure: Measure, results: Results) -> None:
    seconds: dict[str, list[float]] = {"product": [], "metrics": []}

    def timed(name: str, function: Callable) -> None:
        start = time.perf_counter()
        function(data)
        seconds[name].append(time.perf_counter() - start)

    benchmark.pedantic(
        timed,
        args=("metrics", measured.both),
        setup=lambda: timed("product", measured.product),
        rounds=9 if full else 1,
    )
    naive, ours = measure("naive", "none"), measure("ours", "none")
    results.metrics = seconds
    results.naive_metrics = {**naive, "ours peak": ours["peak"]}
    benchmark.extra_info.update(machine=machine(), product=seconds["product"], numpy=naive["seconds"])


@pytest.mark.parametrize("name", CORRECTIONS)
def test_correction(name: str, benchmark, data: Workload, full: bool, measure: Measure, results: Results) -> None:
    naive = measure("naive", name)
    rounds = 3 if full and "sinkhorn" not in name else 1  # those take minutes
    benchmark.pedantic(measured.corrected, args=(data, name), rounds=rounds)
    seconds = benchmark.stats.stats.data if benchmark.stats else [float("nan")]
    results.corrections[name] = {
        "naive": [naive["seconds"]],
        "naive peak": [naive["peak"]],
        "ours": list(seconds),
        "peak": [measure("ours", name)["peak"]],
    }
    benchmark.extra_info.update(machine=machine(), numpy=naive["seconds"])


@pytest.mark.parametrize("name", ["is", "nnn"])
def test_peak_memory(name: str, benchmark, size: Size, measure: Measure, results: Results) -> None:
    def peaks() -> None:
        for bank in (size.query_bank // 2, size.query_bank):
            for block_bytes in (BLOCK_BYTES // 4, 4 * BLOCK_BYTES):
                results.peaks[name, bank, block_bytes] = measure("ours", name, block_bytes, bank)["peak"]

    benchmark.pedantic(peaks, rounds=1)


def test_both_sides_solve_the_same_problem() -> None:
    small = measured.make(measured.TINY)
    for ours, naive in zip(measured.both(small), measured.naive_both(small), strict=True):
        same_metrics(ours, naive)
    for name in CORRECTIONS:
        same_metrics(measured.corrected(small, name), measured.naive_corrected(small, name))


def test_the_table_holds_what_was_measured() -> None:
    results = Results(
        {"product": [2.0], "metrics": [3.0]},
        {"seconds": 40.0, "peak": 2**30, "ours peak": 2**20},
        {name: {"naive": [20.0], "ours": [4.0], "naive peak": [2**30], "peak": [2**25]} for name in CORRECTIONS},
        {("is", 400, BLOCK_BYTES): 3 * 2**20},
    )
    assert results.complete()
    text = markdown(results, TINY)
    for line in (
        "| `rank_both`, metrics, k-occurrence | 3.00 | 1.50 (1.50 to 1.50, 1 rounds) | 1 |",
        "| is | 20.0 | 4.0 | 5.0 x | 1024 | 32 |",
        f"| is | 400 | {BLOCK_BYTES // 2**20} | 3 |",
    ):
        assert line in text
    del results.corrections["is"]
    assert not results.complete()


def test_every_correction_has_a_benchmark() -> None:
    assert set(CORRECTIONS) == set(CATALOGUE) - {"none"}
