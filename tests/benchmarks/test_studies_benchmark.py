"""Whole studies on embeddings of COCO's size with full banks: the notebook, as ``reprolib run`` executes it.

At full size (``pytest --benchmark-only``) each study runs from its first cell to its last. Finished runs are kept in
the cache until the code or a notebook changes, so a run that was stopped goes on; once all are there, the table goes to
``docs/benchmarks_studies.md``. In an ordinary test run parameters are checked alone, as notebooks have their own tests.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from reprolib import paths
from reprolib.study.parameters import find_study
from tests.benchmarks import scale
from tests.benchmarks.table import MIB, machine, rows

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "docs" / "benchmarks_studies.md"
METHODS = "[none, is, dis, dual-is, dual-dis, csls, nnn, dn, invgc]"
SLOW = "[none, gc, invgc-localadj]"
SPLIT = {"n_splits": "1", "validation_share": "0.5"}
STUDIES = {  # run: its study, whether the file holds a validation part beside the test part, and what is set
    "hubness": ("hubness", True, {"methods": METHODS, "directions": "[text->image]", **SPLIT}),
    "hubness-slow": ("hubness", True, {"methods": SLOW, "directions": "[text->image]", **SPLIT}),
    "modality-gap": ("modality-gap", True, SPLIT),
    "intra-modal-inversion": ("intra-modal-inversion", False, {"tasks": "[text->text]"}),
    "paper-versus-code": ("paper-versus-code", False, {"directions": "[text->image]", "n_splits": "1"}),
}


@pytest.fixture(scope="module")
def folder(full: bool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return the folder of a full-size run, another one for other code; once all studies are done, write the table."""
    sources = [*sorted((ROOT / "reprolib").rglob("*.py")), *sorted((ROOT / "notebooks").glob("*.ipynb"))]
    code = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]
    folder = paths.cache() / "benchmarks" / f"studies-{code}" if full else tmp_path_factory.mktemp("studies")
    folder.mkdir(parents=True, exist_ok=True)
    yield folder
    done = {name: measured(folder / name) for name in STUDIES if (folder / name).exists()}
    if full and set(done) == set(STUDIES):
        TABLE.write_text(markdown(done, scale.COCO), encoding="utf-8")


def embeddings(folder: Path, full: bool, two: bool) -> Path:
    """Return a file of one or two test-sized parts and a bank; it is written unless it is there."""
    both = scale.COCO if full else scale.SMALL
    path = folder / f"{'two' if two else 'one'}.safetensors"
    if not path.exists():
        part = path.with_suffix(".part")
        scale.write(part, both if two else replace(both, images=both.images // 2, captions=both.captions // 2))
        part.rename(path)
    return path


def measured(run: Path) -> dict[str, float]:
    facts, records = (json.loads((run / name).read_text()) for name in ("run.json", "results.json"))
    return {"seconds": facts["duration_seconds"], "peak": facts["peak_memory_bytes"], "records": len(records)}


@pytest.mark.parametrize("name", STUDIES)
def test_study(name: str, benchmark, full: bool, folder: Path) -> None:
    study, two, given = STUDIES[name]

    def run() -> None:
        values = {"embeddings": str(embeddings(folder, full, two)), **given}
        checked = find_study(study).resolve(values, texts=True)
        assert checked["embeddings"] == values["embeddings"]
        if full and not (folder / name).exists():
            options = [word for pair in values.items() for word in ("-p", *pair)]
            command = [sys.executable, "-m", "reprolib.cli", "run", study, *options, "--out", str(folder / name)]
            subprocess.run(command, cwd=ROOT, check=True)

    benchmark.pedantic(run, rounds=1)


def markdown(measured: dict[str, dict[str, float]], sizes: scale.Sizes) -> str:
    def line(name: str, one: dict[str, float]) -> str:
        study, two, given = STUDIES[name]
        options = " ".join(
            f'-p {key} "{value}"' if " " in value else f"-p {key} {value}" for key, value in given.items()
        )
        command = f"`reprolib run {study} -p embeddings FILE {options}`"
        parts = "test and validation" if two else "test"
        return f"| {command} | {parts} | {one['seconds'] / 60:.1f} | {one['peak'] / MIB:.0f} | {one['records']:,} |"

    return "\n".join(
        [
            "# Whole studies with full COCO banks",
            "",
            f"Written by `pytest tests/benchmarks/test_studies_benchmark.py --benchmark-only` on "
            f"{datetime.date.today().isoformat()}: {machine()}; load average {os.getloadavg()[1]:.1f}.",
            "",
            f"A notebook from its first cell to its last. FILE holds {sizes.captions:,} captions and {sizes.images:,} "
            f"images to test on, where a study tunes as many again to tune on, and banks of {sizes.bank_captions:,} "
            f"captions and {sizes.bank_images:,} images; {sizes.width} dimensions; synthetic. The peak is that of the "
            "notebook's kernel.",
            "",
            *rows(
                "| command | parts | minutes | peak, MiB | records |",
                *(line(name, one) for name, one in measured.items()),
            ),
        ]
    )


def test_the_table_holds_what_was_measured() -> None:
    text = markdown({"modality-gap": {"seconds": 90.0, "peak": 800 * MIB, "records": 1234}}, scale.COCO)
    assert "-p n_splits 1 -p validation_share 0.5` | test and validation | 1.5 | 800 | 1,234 |" in text
