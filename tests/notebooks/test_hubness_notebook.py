"""The hubness notebook, run as a user runs it: through the command line, on a file of one's own."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

SMALL = {
    "directions": "[text->image]", "methods": "[is, dual-is]", "betas": "[10, 30]", "gallery_betas": "[0, 1]",
    "bank_sizes": "[0.5, 1.0]", "gallery_sizes": "[1.0]", "n_splits": "2", "k": "5", "n_bootstrap": "100",
    "n_permutations": "99",
}  # fmt: skip


def test_run_on_own_embeddings_and_keep_it_when_the_next_run_fails(tmp_path: Path, run_study, own_image) -> None:
    out = tmp_path / "run"
    done = run_study("hubness", out, embeddings="own.npz", **SMALL)
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
    own_image[7] = np.nan
    np.savez(tmp_path / "own.npz", image=own_image, text=own_image)
    failed = run_study("hubness", out, embeddings="own.npz", **SMALL)
    assert failed.returncode == 2 and "row 7" in failed.stderr.splitlines()[-1]
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert not list(tmp_path.glob(".run.partial*"))
