"""Workloads for the benchmarks, and the table that a complete full-size run leaves in ``docs/benchmarks.md``.

``pytest --benchmark-only`` measures at full size. In an ordinary test run each benchmark runs once, tiny, so that it
keeps working; nothing is asserted about time.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.benchmarks import table, workload
from tests.benchmarks.measure import once

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def full(pytestconfig: pytest.Config) -> bool:
    return bool(pytestconfig.getoption("benchmark_only"))


@pytest.fixture(scope="session")
def size(full: bool) -> workload.Size:
    return workload.FULL if full else workload.TINY


@pytest.fixture(scope="session")
def data(size: workload.Size) -> workload.Workload:
    return workload.make(size)


@pytest.fixture(scope="session")
def measure(
    data: workload.Workload, full: bool, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., dict[str, float]]:
    """Return a function that takes one measurement (``measure.once``); at full size in a process of its own."""
    path = tmp_path_factory.mktemp("benchmark") / "workload.npz"
    data.save(path)

    def run(*arguments: object) -> dict[str, float]:
        if not full:
            return once(str(path), *arguments)
        command = [sys.executable, "-m", "tests.benchmarks.measure", str(path), *map(str, arguments)]
        return json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)

    return run


@pytest.fixture(scope="session")
def results(full: bool, size: workload.Size):
    """Collect what is measured; after a complete full-size run, write the table."""
    collected = table.Results()
    yield collected
    if full and collected.complete():
        (ROOT / "docs" / "benchmarks.md").write_text(table.markdown(collected, size), encoding="utf-8")
