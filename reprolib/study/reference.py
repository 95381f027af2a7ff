"""Reference results: runs on embeddings that are committed with them, for any machine to repeat.

Determinism begins at stored embeddings, so the folder ``reference`` holds some (``glyphs.npz``, described by
``glyphs.yaml``), and of every study that needs no encoder the run on them: its notebook as it ships, its records, its
values per query and ``run.json``, with paths relative to the run. ``reprolib replay reference/RUN`` repeats one.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from reprolib.errors import RunError
from reprolib.loaders import Split
from reprolib.models import load_embeddings
from reprolib.paths import root
from reprolib.study import crate, provenance, records, runner
from reprolib.study.parameters import find_study, studies
from reprolib.study.replay import PER_QUERY
from reprolib.study.verify import verify

EMBEDDINGS = "glyphs.npz"
SETTINGS: dict[str, dict[str, Any]] = {  # small: what is repeated is the code, not the precision of the numbers
    "hubness": {
        "n_splits": 1, "betas": [5, 20, 50], "gallery_betas": [0, 1, 10], "bank_sizes": [0.3, 1.0],
        "gallery_sizes": [0.5, 1.0],
    },
    "modality-gap": {
        "n_splits": 1, "feature_sets": [], "shifts": [-0.5, 0, 0.5, 1], "temperatures": [0.01, 0.1], "n_pairs": 200,
        "n_halves": 2,
    },
    "intra-modal-inversion": {"tasks": ["image->image"], "n_images": 100},
    "paper-versus-code": {"n_splits": 2, "n_images": 50},
}  # fmt: skip
_FEW = {"n_bootstrap": 500, "n_permutations": 999}


def make(folder: Path) -> list[Path]:
    """Run every study of ``SETTINGS`` into ``folder`` and return the references; embeddings there stay as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / EMBEDDINGS).exists():
        store(folder / EMBEDDINGS)
    kept = []
    for name, settings in SETTINGS.items():
        with tempfile.TemporaryDirectory(prefix="reprolib-reference-") as place:
            given = {**settings, **_FEW, "embeddings": str(folder / EMBEDDINGS)}
            kept.append(keep(runner.run(find_study(name), given, Path(place) / name), folder / name))
    return kept


def keep(run: Path, out: Path) -> Path:
    """Write what is compared of the finished ``run`` as a reference into ``out``, which is replaced, and return it.

    Raises :class:`RunError` if the run is damaged or its notebook is not the one that ships.
    """
    if problems := verify(run):
        raise RunError(f"{run} is no reference: {problems[0]}")
    facts = provenance.read(run, study=True)
    shipped = studies().get(facts["study"])
    if shipped is None or provenance.sha256(shipped) != facts["notebook"]["sha256"]:
        raise RunError(f"{run} is no reference: its notebook {facts['notebook']['name']} is not the one that ships")
    embeddings = os.path.relpath(facts["parameters"]["embeddings"], out.resolve())
    facts["parameters"]["embeddings"] = Path(embeddings).as_posix()
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    shutil.copyfile(shipped, out / shipped.name)
    shutil.copyfile(run / records.RESULTS, out / records.RESULTS)
    pd.read_parquet(run / PER_QUERY).to_parquet(out / PER_QUERY, compression="zstd")
    facts = {name: value for name, value in facts.items() if name not in ("files", "sha256")}
    crate.write(out, facts)
    provenance.write(out, facts)
    return out


def store(path: Path) -> Path:
    """Write an excerpt of the embeddings of glyphs to ``path`` (npz), and what it is beside it (yaml)."""
    data = load_embeddings("glyphs")
    rng = np.random.default_rng(0)
    test = _excerpt(data.replicates[0].test, 400, 3, rng)
    bank = _excerpt(data.replicates[0].bank, 300, 2, rng)
    arrays = {**_arrays(test, ""), **_arrays(bank, "bank_")}
    np.savez_compressed(path, **arrays)
    about = {
        "title": "Embeddings of characters and their names, for reference runs",
        "made_from": {"dataset": data.name, "model": data.model, "identity": data.identity},
        "content": "the test split and the bank of the dataset in part: some texts, and some images of each",
        "format": "npz: image and text float32 as the model gives them, ids, relevance as pairs of rows; and a bank",
        "licence": "MIT, as the rest of this project; it holds no picture, no font and no character's name",
        "counts": {name: list(values.shape) for name, values in arrays.items()},
        "bytes": path.stat().st_size,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    path.with_suffix(".yaml").write_text(yaml.safe_dump(about, sort_keys=False, width=120), encoding="utf-8")
    return path


def _excerpt(split: Split, texts: int, images: int, rng: np.random.Generator) -> Split:
    """Return ``texts`` texts of a split, drawn at random, with at most ``images`` images of each."""
    columns = split.relevance.tocsc()
    rows = [
        rng.permutation(columns.indices[columns.indptr[text] : columns.indptr[text + 1]])[:images]
        for text in rng.permutation(len(split.text))[:texts]
    ]
    return split.take(np.sort(np.concatenate(rows)))


def _arrays(split: Split, prefix: str) -> dict[str, np.ndarray]:
    pairs = split.relevance.tocoo()
    order = np.lexsort((pairs.col, pairs.row))
    arrays = {
        "image": split.image, "text": split.text, "image_ids": split.image_ids, "text_ids": split.text_ids,
        "relevance_image": pairs.row[order], "relevance_text": pairs.col[order],
    }  # fmt: skip
    return {f"{prefix}{name}": values for name, values in arrays.items()}


if __name__ == "__main__":
    for reference in make(root() / "reference"):
        print(reference)
