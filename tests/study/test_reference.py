"""The committed references: whole, free of any machine, and repeated with identical ranks."""

import hashlib
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from reprolib.errors import RunError
from reprolib.paths import root
from reprolib.study import provenance, records, reference, replay
from reprolib.study.hubness import Study
from reprolib.study.parameters import read_study
from reprolib.study.verify import verify

FOLDER = root() / "reference"
# Other kernels in PyTorch, MKL, oneDNN and OpenBLAS: what a processor without vector extensions would run.
PLAIN = {
    "ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE", "ONEDNN_MAX_CPU_ISA": "SSE41",
    "OPENBLAS_CORETYPE": "Nehalem",
}  # fmt: skip


@pytest.fixture
def repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The records and ranks of the hubness reference, computed again in this process."""
    monkeypatch.setenv(records.RUN_DIRECTORY, str(tmp_path))
    parameters = provenance.read(FOLDER / "hubness")["parameters"]
    study = Study(**parameters | {"embeddings": str(FOLDER / reference.EMBEDDINGS)})
    study.tune()
    study.evaluate()
    study.save()
    return tmp_path


def test_the_embeddings_are_those_that_are_described() -> None:
    path, about = FOLDER / reference.EMBEDDINGS, yaml.safe_load((FOLDER / "glyphs.yaml").read_text())
    assert hashlib.sha256(path.read_bytes()).hexdigest() == about["sha256"] and path.stat().st_size == about["bytes"]
    with np.load(path, allow_pickle=False) as arrays:
        assert {name: list(values.shape) for name, values in arrays.items()} == about["counts"]
        for name in ("image", "text", "bank_image", "bank_text"):
            assert arrays[name].dtype == np.float32 and np.isfinite(arrays[name]).all()
        assert not set(arrays["image_ids"]) & set(arrays["bank_image_ids"])


@pytest.mark.parametrize("name", reference.SETTINGS)
def test_a_reference_is_whole_and_names_no_machine(name: str) -> None:
    run = FOLDER / name
    assert verify(run) == []
    facts = provenance.read(run)
    assert facts["study"] == name and facts["parameters"]["embeddings"] == f"../{reference.EMBEDDINGS}"
    (notebook,) = run.glob("*.ipynb")
    assert facts["notebook"] == {"name": notebook.name, "sha256": provenance.sha256(notebook)}
    resolved = read_study(notebook).parameters
    assert set(facts["parameters"]) == set(resolved)
    for path in run.glob("*.*"):
        if path.suffix != ".parquet":
            assert not re.search(r'["\s](/[a-z]+/|[A-Z]:\\|~/)', path.read_text(encoding="utf-8")), path
    assert sum(path.stat().st_size for path in FOLDER.rglob("*")) < 4e6


def test_ranks_are_those_of_the_reference(repeated: Path) -> None:
    found, kept = (pd.read_parquet(run / replay.PER_QUERY) for run in (repeated, FOLDER / "hubness"))
    assert set(kept) <= set(found) and len(found) == len(kept) > 10_000
    for column in kept:
        one, other = found[column].to_numpy(), kept[column].to_numpy()
        same = one.tobytes() == other.tobytes() if one.dtype.kind == "f" else (one == other).all()
        assert same, column


def test_a_reference_is_repeated_on_plain_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in PLAIN.items():
        monkeypatch.setenv(name, value)
    found, agreements = replay.replay(FOLDER / "paper-versus-code", progress=False)
    assert found.same and found.unmatched == 0 and found.missing == found.extra == []
    assert [agreement.broken for agreement in agreements] == [[], [], []]
    assert found.queries["bytes"].all() and len(found.queries) > 0 and agreements[0].compared > 100


def test_only_a_whole_run_of_a_notebook_that_ships_is_kept(
    make_run, make_notebook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notebook = make_notebook("embeddings", parameters="embeddings: str | None = None  # a file")
    queries = pd.DataFrame({"query_id": ["a", "b"], "rank": [1.0, 2.0]})
    run = make_run(
        queries=queries, parameters={"embeddings": str(tmp_path / "some.npz")},
        notebook={"name": notebook.name, "sha256": provenance.sha256(notebook)},
    )  # fmt: skip
    out = tmp_path / "kept" / "tiny"
    with pytest.raises(RunError, match="is not the one that ships"):
        reference.keep(run, out)
    monkeypatch.setattr(reference, "studies", lambda: {"tiny": notebook})
    for _ in range(2):  # the second replaces the first
        assert reference.keep(run, out) == out and verify(out) == []
    assert provenance.read(out)["parameters"] == {"embeddings": "../../some.npz"}
    assert not any(str(tmp_path) in path.read_text("latin-1") for path in out.iterdir())
    assert (out / notebook.name).read_bytes() == notebook.read_bytes()
    pd.testing.assert_frame_equal(pd.read_parquet(out / replay.PER_QUERY), queries)
    found = replay.diff(run, out)
    assert all(agreement.holds for agreement in replay.agreements(found)) and not found.missing
    (run / records.RESULTS).write_text("[]")
    with pytest.raises(RunError, match=r"is no reference: results\.json is changed"):
        reference.keep(run, out)
