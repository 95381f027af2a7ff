"""The notebook of the modality gap, run as a user runs it: through the command line, on a file of one's own."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd

SMALL = {
    "interventions": "[shift, mean-centring]", "shifts": "[-0.5, 1]", "temperatures": "[0.05, 0.5]",
    "feature_sets": "[]", "n_splits": "2", "k": "5", "n_bootstrap": "100", "n_permutations": "99",
}  # fmt: skip


def _run(out: Path, **parameters: str) -> subprocess.CompletedProcess[str]:
    given = [word for pair in parameters.items() for word in ("-p", *pair)]
    command = [sys.executable, "-m", "reprolib.cli", "run", "modality-gap", *given, "--out", str(out)]
    return subprocess.run(command, capture_output=True, text=True, cwd=out.parent, check=False)


def test_run_on_own_embeddings_and_keep_it_when_the_next_run_is_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    image = rng.normal(size=(80, 16))
    np.savez(tmp_path / "own.npz", image=image, text=image + rng.normal(size=image.shape) + 0.5)
    out = tmp_path / "run"
    done = _run(out, embeddings="own.npz", **SMALL)
    assert done.returncode == 0, done.stderr
    rows = json.loads((out / "results.json").read_text())
    assert {row["table"] for row in rows} == {"gap", "landscape", "landscape difference", "main", "difference"}
    assert {row["study"] for row in rows} == {"modality-gap"}
    assert len(pd.read_parquet(out / "per_query.parquet")) and (out / "run.json").is_file()
    drawn = {path.stem for path in (out / "figures").glob("*.pdf")}
    assert drawn == {"clouds", "energy", "landscape", "mixed_bias", "gap_against_recall", "effects", "overview"}
    for path in (out / "figures").glob("*.json"):
        assert len(json.loads(path.read_text())["alt"]) > 40

    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    refused = _run(out, embeddings="own.npz", **SMALL | {"interventions": "[mean-centering]"})
    assert refused.returncode == 2 and "mean-centring" in refused.stderr
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert not list(tmp_path.glob(".run.partial*"))
