"""Whole studies on embeddings of COCO's size with full banks: the notebook, as ``reprolib run`` executes it.

At full size (``pytest --benchmark-only``) each study runs from its first cell to its last. Finished runs are kept in
the cache until the code or a notebook changes, so a run that was stopped goes on; once all are there, the table goes to
``docs/benchmarks_studies.md``. In an ordinary test run parameters are checked alone, as notebooks have their own tests,
and that products are counted.
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

import numpy as np
import pytest

from reprolib import paths
from reprolib.study.parameters import find_study
from tests.benchmarks import scale
from tests.benchmarks.table import MIB, machine, rows

ROOT = Path(__file__).resolve().parents[2]
COUNTING = Path(__file__).parent / "counting"  # on a kernel's path it counts the operations of its matrix products
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
    counted = json.loads(run.with_suffix(".json").read_text())
    return {
        "seconds": facts["duration_seconds"], "peak": facts["peak_memory_bytes"], "records": len(records), **counted
    }  # fmt: skip


def counting(file: Path) -> dict[str, str]:
    """Return the environment in which kernels add the operations of their matrix products to what is in ``file``."""
    np.zeros(1).tofile(file)
    path = os.pathsep.join([str(COUNTING), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "COUNTED": str(file)}


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
            rates, sums = [scale.matrix_rate(scale.COCO.width, "cpu", 4096)], folder / f"{name}.sum"
            subprocess.run(command, cwd=ROOT, check=True, env=counting(sums))
            rates.append(scale.matrix_rate(scale.COCO.width, "cpu", 4096))
            counted = {"operations": float(np.fromfile(sums)[0]), "rate": sum(rates) / 2}
            (folder / f"{name}.json").write_text(json.dumps(counted))

    benchmark.pedantic(run, rounds=1)


def markdown(measured: dict[str, dict[str, float]], sizes: scale.Sizes) -> str:
    def line(name: str, one: dict[str, float]) -> str:
        study, two, given = STUDIES[name]
        options = " ".join(
            f'-p {key} "{value}"' if " " in value else f"-p {key} {value}" for key, value in given.items()
        )
        command = f"`reprolib run {study} -p embeddings FILE {options}`"
        parts = "test and validation" if two else "test"
        products = one["operations"] / one["rate"]
        return (
            f"| {command} | {parts} | {one['seconds'] / 60:.1f} | {products / 60:.1f} "
            f"| {products / one['seconds']:.0%} | {one['peak'] / MIB:.0f} | {one['records']:,} |"
        )

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
            "notebook's kernel. Products: the operations of all dense matrix products of torch in that kernel, divided "
            "by the matrix rate in float32, which was measured before and after; those in float64 count alike, though "
            "they take twice as long. What else a study does (figures, resampling, reading the banks) is in the time.",
            "",
            *rows(
                "| command | parts | minutes | products, minutes | share of the matrix rate | peak, MiB | records |",
                *(line(name, one) for name, one in measured.items()),
            ),
        ]
    )


def test_the_table_holds_what_was_measured() -> None:
    facts = {"seconds": 90.0, "operations": 4.5e12, "rate": 1e11, "peak": 800 * MIB, "records": 1234}
    text = markdown({"modality-gap": facts}, scale.COCO)
    assert "-p n_splits 1 -p validation_share 0.5` | test and validation | 1.5 | 0.8 | 50% | 800 | 1,234 |" in text


def test_products_of_a_kernel_are_counted(tmp_path: Path) -> None:
    source = """import numpy as np, torch
one, other = torch.ones(2, 3), torch.ones(3, 5)
one @ other; torch.mm(one, other, out=torch.empty(2, 5)); one.double() @ other.double()  # 60 each
torch.ones(4, 2, 3) @ other; one @ other[:, 0]  # 240 and 12
one.to_sparse() @ other; np.ones((2, 3)) @ np.ones((3, 5))"""
    kernel, none = tmp_path / "kernel", tmp_path / "none"
    for file, words in ((kernel, ["ipykernel_launcher"]), (none, [])):
        subprocess.run([sys.executable, "-c", source, *words], check=True, env=counting(file))
    assert np.fromfile(kernel) == 3 * 60 + 240 + 12 and np.fromfile(none) == 0
