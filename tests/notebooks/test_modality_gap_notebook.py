"""The notebook of the modality gap, run as a user runs it: through the command line, on a file of one's own."""

import json
from pathlib import Path

import pandas as pd

SMALL = {
    "interventions": "[shift, mean-centring]", "shifts": "[-0.5, 1]", "temperatures": "[0.05, 0.5]",
    "feature_sets": "[]", "n_splits": "2", "k": "5", "n_bootstrap": "100", "n_permutations": "99",
}  # fmt: skip


def test_run_on_own_embeddings_and_keep_it_when_the_next_run_is_refused(tmp_path: Path, run_study, own_image) -> None:
    out = tmp_path / "run"
    done = run_study("modality-gap", out, embeddings="own.npz", **SMALL)
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
    refused = run_study("modality-gap", out, embeddings="own.npz", **SMALL | {"interventions": "[mean-centering]"})
    assert refused.returncode == 2 and "mean-centring" in refused.stderr
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert not list(tmp_path.glob(".run.partial*"))
