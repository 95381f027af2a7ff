"""Run directories made by hand: what a run leaves, without executing a notebook."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import pytest

from reprolib.study import crate, provenance, records

FACTS = {
    "study": "tiny",
    "title": "A tiny study",
    "notebook": {"name": "01_tiny.ipynb", "sha256": "0" * 64},
    "parameters": {"size": 3, "share": 0.5, "name": "x", "fast": True, "betas": [1, 2.5], "model": None},
    "seeds": {},
    "threads": 1,
    "code": {"version": "0.1.0", "commit": "c" * 40, "dirty": True, "tree": "d" * 64},
    "started": "2026-01-02T03:04:05+00:00",
    "duration_seconds": 61.5,
    "peak_memory_bytes": 1,
    "identities": {"none with nothing": "e" * 64},
    "environment": {"python": "3.11.0", "machine": "x", "packages": {"numpy": "2.0.0", "scipy": "1.0"}},
}
RECORD = {
    "study": "tiny", "dataset": "none", "model": None, "direction": "text->image", "method": "is", "table": "main",
    "parameters": {"beta": 20.0}, "bank": "train", "metric": "R@1", "value": 0.5, "ci_low": 0.4, "ci_high": 0.6, "n": 4,
}  # fmt: skip


@pytest.fixture
def record() -> Callable[..., dict[str, Any]]:
    """Return a function that makes a record, with the fields given."""
    return lambda **fields: RECORD | fields


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a whole run directory, with these records, per-query values and facts."""

    def make(name: str = "tiny", found: Any = (RECORD,), queries: pd.DataFrame | None = None, **facts: Any) -> Path:
        run = tmp_path / "runs" / name
        (run / "figures").mkdir(parents=True)
        (run / "figures" / "one figure.svg").write_text("<svg/>")
        nbformat.write(nbformat.v4.new_notebook(), run / "01_tiny.ipynb")
        if found:
            records.save(found, run)
        if queries is not None:
            queries.to_parquet(run / "per_query.parquet")
        crate.write(run, FACTS | facts)
        provenance.write(run, FACTS | facts)
        return run

    return make
