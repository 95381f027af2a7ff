"""The notebook of papers against code, run as a user runs it: through the command line, on a file of one's own."""

import json
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd

SMALL = {"n_splits": "2", "k": "5", "n_images": "20", "n_bootstrap": "100", "n_permutations": "99"}


def test_run_on_own_embeddings_and_keep_it_when_the_next_run_fails(tmp_path: Path, run_study, own_image) -> None:
    out = tmp_path / "run"
    done = run_study("paper-versus-code", out, embeddings="own.npz", **SMALL)
    assert done.returncode == 0, done.stderr
    rows = json.loads((out / "results.json").read_text())
    assert {row["table"] for row in rows} == {"main", "audit"}
    assert {row["study"] for row in rows} == {"paper-versus-code"}
    assert len(pd.read_parquet(out / "per_query.parquet")) and (out / "run.json").is_file()
    assert {path.stem for path in (out / "figures").glob("*.pdf")} == {"effects"}
    assert len(json.loads((out / "figures" / "effects.json").read_text())["alt"]) > 40
    notebook = nbformat.read(next(out.glob("*.ipynb")), as_version=4)
    told = [cell.outputs[0]["data"] for cell in notebook.cells if "conclusion" in cell.metadata.get("tags", [])]
    assert len(told) == 1 and "**What matters** on own" in told[0]["text/markdown"]
    shown = "".join(o["data"].get("text/html", "") for c in notebook.cells for o in c.get("outputs", []) if "data" in o)
    assert "github.com/yimuwangcs/Better_Cross_Modal_Retrieval/blob/" in shown and "Counter" in shown

    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    refused = run_study("paper-versus-code", out, embeddings="own.npz", **SMALL | {"direction": "[text->image]"})
    assert refused.returncode == 2 and "directions" in refused.stderr
    own_image[7] = np.nan
    np.savez(tmp_path / "own.npz", image=own_image, text=own_image)
    failed = run_study("paper-versus-code", out, embeddings="own.npz", **SMALL)
    assert failed.returncode == 2 and "row 7" in failed.stderr.splitlines()[-1]
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert not list(tmp_path.glob(".run.partial*"))
