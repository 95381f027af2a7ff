"""The training-variance notebook, run as a user runs it: through the command line, on a file of one's own."""

import json
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest

SMALL = {
    "n_seeds": "3", "epochs": "1", "dimension": "16", "batch": "16", "losses": "[infonce, infonce-k, one-to-k]",
    "noises": "[0.4]", "keeps": "[0.5]", "n_bootstrap": "100", "n_permutations": "99",
}  # fmt: skip


def test_run_on_own_embeddings_and_keep_it_when_the_next_run_is_refused(
    tmp_path: Path, run_study, own_image: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REPROLIB_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "run"
    done = run_study("training-variance", out, embeddings="own.npz", **SMALL)
    assert done.returncode == 0, done.stderr
    rows = json.loads((out / "results.json").read_text())
    assert {"effect", "loss", "range", "excess", "components", "detectable", "noise", "filtered", "replay"} <= {
        row["table"] for row in rows
    }
    assert {row["study"] for row in rows} == {"training-variance"}
    assert len(pd.read_parquet(out / "runs.parquet")) and (out / "run.json").is_file()
    assert {path.stem for path in (out / "figures").glob("*.pdf")} == {"effects", "seeds", "noise", "curation"}
    notebook = nbformat.read(next(out.glob("*.ipynb")), as_version=4)
    told = [cell.outputs[0]["data"] for cell in notebook.cells if "conclusion" in cell.metadata.get("tags", [])]
    assert len(told) == 2 and "published improvements are smaller" in told[0]["text/markdown"].replace("\n", " ")

    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    refused = run_study("training-variance", out, embeddings="own.npz", **SMALL | {"loses": "[infonce]"})
    assert refused.returncode == 2 and "losses" in refused.stderr
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
