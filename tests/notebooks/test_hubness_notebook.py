"""The hubness notebook, run as a user runs it: through the command line, on a file of one's own."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd

SMALL = {
    "methods": "[is, dual-is]", "betas": "[10, 30]", "gallery_betas": "[0, 1]", "bank_sizes": "[0.5, 1.0]",
    "gallery_sizes": "[1.0]", "n_splits": "2", "k": "5", "n_bootstrap": "100", "n_permutations": "99",
}  # fmt: skip


def _run(out: Path, **parameters: str) -> subprocess.CompletedProcess[str]:
    given = [word for pair in parameters.items() for word in ("-p", *pair)]
    command = [sys.executable, "-m", "reprolib.cli", "run", "hubness", *given, "--out", str(out)]
    return subprocess.run(command, capture_output=True, text=True, cwd=out.parent, check=False)


def test_run_on_own_embeddings_and_keep_it_when_the_next_run_fails(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    image = rng.normal(size=(80, 16))
    np.savez(tmp_path / "own.npz", image=image, text=image + rng.normal(size=image.shape) + 0.5)
    out = tmp_path / "run"
    done = _run(out, embeddings="own.npz", **SMALL)
    assert done.returncode == 0, done.stderr
    rows = json.loads((out / "results.json").read_text())
    assert {row["table"] for row in rows} >= {"main", "difference", "question", "temperature", "bank_source"}
    assert all("seeded share" in row["bank"] for row in rows if row["table"] == "main" and row["method"] == "is")
    assert len(pd.read_parquet(out / "occurrences.parquet")) and (out / "run.json").is_file()
    drawn = {path.stem for path in (out / "figures").glob("*.pdf")}
    assert {"temperature", "differences", "bank_size", "hubs_text_to_image"} <= drawn
    for path in (out / "figures").glob("*.json"):
        assert len(json.loads(path.read_text())["alt"]) > 40

    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    image[7] = np.nan
    np.savez(tmp_path / "own.npz", image=image, text=image)
    failed = _run(out, embeddings="own.npz", **SMALL)
    assert failed.returncode == 2 and "row 7" in failed.stderr.splitlines()[-1]
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert not list(tmp_path.glob(".run.partial*"))
