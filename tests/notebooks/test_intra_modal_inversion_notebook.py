"""The intra-modal inversion notebook, run through the command line on stored features: the linear controls alone."""

import json
from pathlib import Path

import numpy as np

SMALL = {
    "controls": "[mean-centring, whitening]", "n_images": "40", "n_texts": "null", "k": "5", "n_bootstrap": "100",
    "n_permutations": "99",
}  # fmt: skip


def test_run_on_own_embeddings_with_several_texts_per_image(tmp_path: Path, run_study) -> None:
    rng = np.random.default_rng(0)
    concepts = rng.normal(size=(80, 16))
    image, text = (np.repeat(concepts, 2, 0) + 0.8 * rng.normal(size=(160, 16)) + shift for shift in (0.5, -0.5))
    relevance = np.kron(np.eye(80, dtype=bool), np.ones((2, 2), dtype=bool))
    np.savez(tmp_path / "own.npz", image=image, text=text, relevance=relevance)
    out = tmp_path / "run"
    done = run_study("intra-modal-inversion", out, embeddings="own.npz", **SMALL)
    assert done.returncode == 0, done.stderr
    rows = json.loads((out / "results.json").read_text())
    assert {row["table"] for row in rows} == {"main", "difference", "average", "hubness"}
    assert {row["method"] for row in rows} == {"none", "mean-centring", "whitening"}
    assert {row["direction"] for row in rows if row["table"] == "main"} == {"image->image", "text->text"}
    assert all(row["ci_low"] <= row["value"] <= row["ci_high"] for row in rows if row["metric"] == "mAP")
    drawn = {path.stem for path in (out / "figures").glob("*.pdf")}
    assert drawn == {"methods", "neighbours_image_to_image", "neighbours_text_to_text"}
