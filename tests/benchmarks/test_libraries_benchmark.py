"""Time and memory against the libraries that people take today, on the same arrays; and that all agree.

At full size (``pytest --benchmark-only``) each is measured in a process of its own, ours before and after it, and a
complete run writes ``docs/benchmarks_libraries.md``. In an ordinary test run each runs once, tiny.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch

from reprolib.metrics.hubness import hubness_of_counts
from reprolib.metrics.retrieval import KS, as_scorer, query_values
from reprolib.ranking import rank
from tests.benchmarks import libraries, workload
from tests.benchmarks.libraries import LIBRARIES
from tests.benchmarks.table import MIB, machine, rows

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "benchmarks_libraries.md"
DISTRIBUTIONS = {"sklearn": "scikit-learn", "pytrec_eval": "pytrec-eval-terrier"}
NAMES = (*(f"R@{k}" for k in KS), "MRR", "mAP")


@dataclass
class Measured:
    """What a library and we took at one size: seconds, and peaks in bytes; ours twice."""

    queries: int
    theirs: dict[str, float]
    ours: list[dict[str, float]] = field(default_factory=list)


@pytest.fixture(scope="module")
def found(full: bool) -> Iterator[dict[str, Measured]]:
    """Collect what is measured; after a complete full-size run, write the page."""
    collected: dict[str, Measured] = {}
    yield collected
    if full and set(collected) == set(LIBRARIES):
        PAGE.write_text(markdown(collected, workload.FULL), encoding="utf-8")


@pytest.fixture(scope="module")
def once(full: bool, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], dict[str, float]]:
    """Return a function that takes one measurement; at full size in a process of its own."""
    path = tmp_path_factory.mktemp("libraries") / "workload.npz"
    workload.make(replace(workload.FULL, query_bank=5, gallery_bank=1) if full else workload.TINY).save(path)

    def run(name: str, queries: int) -> dict[str, float]:
        if not full:
            return libraries.once(str(path), name, 20)
        command = [sys.executable, "-m", libraries.__name__, str(path), name, str(queries)]
        return json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)

    return run


@pytest.mark.parametrize("name", LIBRARIES)
def test_library(name: str, benchmark: Any, once: Callable, found: dict[str, Measured]) -> None:
    pytest.importorskip(LIBRARIES[name].package)
    queries = LIBRARIES[name].queries
    before = once("ours", queries)
    theirs = benchmark.pedantic(once, args=(name, queries), rounds=1)
    found[name] = Measured(queries, theirs, [before, once("ours", queries)])


def markdown(found: dict[str, Measured], size: workload.Size) -> str:
    lines = []
    for name, each in found.items():
        library = LIBRARIES[name]
        version = importlib.metadata.version(DISTRIBUTIONS.get(library.package, library.package))
        seconds, peaks = ([one[what] for one in each.ours] for what in ("seconds", "peak"))
        low, high = (each.theirs["seconds"] / second for second in (max(seconds), min(seconds)))
        slower = f"{(low + high) / 2:.1f} x ({low:.1f} to {high:.1f})"
        lines.append(
            f"| {name} ({version}) | {each.queries:,} x {size.images:,} | {library.gives} "
            f"| {each.theirs['seconds']:.1f} | {median(seconds):.2f} | {slower} "
            f"| {each.theirs['peak'] / MIB:.0f} | {median(peaks) / MIB:.0f} "
            f"| {each.theirs['peak'] / max(1, median(peaks)):.1f} x |"
        )
    captions = workload.CAPTIONS * size.images
    scaled = [
        f"{name} {each.theirs['peak'] * captions / each.queries / 2**30:.0f} GiB"
        for name, each in found.items()
        if each.queries < captions
    ]
    return "\n".join(
        [
            "# Against other libraries",
            "",
            f"Written by `pytest tests/benchmarks/test_libraries_benchmark.py --benchmark-only` on "
            f"{datetime.date.today().isoformat()}: {machine()}; load average {os.getloadavg()[1]:.1f}.",
            "",
            f"From embeddings ({size.width} dimensions, float32) to R@1, R@5, R@10, MRR and mAP of caption to image, "
            "with k-occurrence where there is one, on the same arrays. Each is used as its documentation says, in a "
            "process of its own, after one run on a tiny workload that loads libraries and compiles what they "
            "compile; ours, which gives all of the numbers and more, is measured at the same size before and after. "
            "Peak memory is that above the embeddings.",
            "",
            "Where all captions would take too much memory, some are measured. Scaled up from the peaks measured, all "
            f"of them would take: {', '.join(scaled)}. `NearestNeighbors` knows the first 10 only, and so "
            "gives neither MRR nor mAP. scikit-learn's `label_ranking_average_precision_score` is mAP, and with one "
            "relevant item per query MRR.",
            "",
            *rows(
                "| library | queries x gallery | gives | seconds | here, s | slower | peak, MiB | here, MiB | more |",
                *lines,
            ),
            "The numbers agree, which a test asserts at small size: equal without ties; with ties wherever a library "
            "states its rule (TREC: the last name first; `top_k_accuracy_score`: the last index first; "
            "`label_ranking_average_precision_score`: the worst order), and within the bounds of all orders where it "
            "does not (torchmetrics, ranx, `NearestNeighbors`).",
            "",
            "One trap: in MRR and mAP torchmetrics 1.9 loses every relevant item whose score is not above 0, as "
            "cosine similarities can be. Here all scores are moved above 0 first; without that, its numbers are lower.",
            "",
        ]
    )


# --- agreement ----------------------------------------------------------------------------------------------


def distinct(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    unit = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (rng.normal(size=(n, 16)) for n in (30, 40)))
    queries, gallery = (x.astype(np.float32) for x in unit)
    return queries, gallery


def tied(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return unit vectors of four coordinates of one half, up to sign: their products are 0, 1/2, 1 in any order."""
    rng = np.random.default_rng(seed)
    sides = (np.zeros((n, 8), np.float32) for n in (30, 40))
    queries, gallery = (_halves(x, rng) for x in sides)
    return queries, gallery


def _halves(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    for row in x:
        row[rng.permutation(8)[:4]] = 0.5 * rng.choice([-1, 1], size=4)
    return x


def single(seed: int) -> scipy.sparse.csr_array:
    columns = np.random.default_rng(seed).integers(0, 40, size=30)
    return scipy.sparse.csr_array((np.ones(30, bool), columns, np.arange(31)), shape=(30, 40))


def several(seed: int) -> scipy.sparse.csr_array:
    matrix = np.random.default_rng(seed).random((30, 40)) < 0.1
    matrix[:, 0] |= ~matrix.any(1)
    return scipy.sparse.csr_array(matrix)


@pytest.mark.parametrize("relevant", [single, several])
@pytest.mark.parametrize("name", LIBRARIES)
def test_without_ties_all_numbers_agree(name: str, relevant: Callable) -> None:
    pytest.importorskip(LIBRARIES[name].package)
    if name == "NumPy, full sort":
        relevant = single  # the only case it is made for
    queries, gallery = distinct(0)
    ours = libraries.ours(queries, gallery, relevant(1))
    theirs = LIBRARIES[name].run(queries, gallery, relevant(1))
    assert theirs and set(theirs) <= {*NAMES, "k-occurrence"}
    for metric, value in theirs.items():
        np.testing.assert_allclose(value, ours[metric], atol=1e-6, err_msg=metric)
    assert hubness_of_counts(ours["k-occurrence"])["max k-occurrence"] > 0


@pytest.mark.parametrize("name", ["NumPy, full sort", "pytrec_eval"])
def test_with_ties_those_that_go_by_index_or_name_agree(name: str) -> None:
    pytest.importorskip(LIBRARIES[name].package)
    queries, gallery = tied(2)
    theirs = LIBRARIES[name].run(queries, gallery, single(3))
    ours = libraries.ours(queries, gallery, single(3))
    for metric, value in theirs.items():
        np.testing.assert_allclose(value, ours[metric], atol=1e-6, err_msg=metric)


def test_with_ties_scikit_learn_goes_from_the_last_index_and_by_the_worst_order() -> None:
    queries, gallery = tied(4)
    relevance = single(5)
    values = query_values(rank(as_scorer(queries, gallery, normalize=False), relevance, 10))
    assert (values["rank pessimistic"] > values["rank"]).any()
    backwards = scipy.sparse.csr_array(relevance.toarray()[:, ::-1])
    theirs = libraries.sklearn_metrics(queries, np.ascontiguousarray(gallery[::-1]), backwards)
    for k in KS:
        assert theirs[f"R@{k}"] == pytest.approx(values[f"R@{k}"].mean())
    assert theirs["mAP"] == pytest.approx((1 / values["rank pessimistic"]).mean(), abs=1e-6)


@pytest.mark.parametrize("name", ["torchmetrics", "ranx", "scikit-learn, NearestNeighbors"])
def test_with_ties_the_others_lie_within_the_bounds_of_all_orders(name: str) -> None:
    pytest.importorskip(LIBRARIES[name].package)
    queries, gallery = tied(6)
    theirs, ours = LIBRARIES[name].run(queries, gallery, single(7)), libraries.ours(queries, gallery, single(7))
    for k in KS:
        assert ours[f"R@{k} pessimistic"] - 1e-6 <= theirs[f"R@{k}"] <= ours[f"R@{k} optimistic"] + 1e-6


def test_torchmetrics_loses_relevant_items_whose_score_is_not_above_0() -> None:
    functional = pytest.importorskip("torchmetrics.functional.retrieval")
    best = torch.tensor([True, False])
    for metric in (functional.retrieval_reciprocal_rank, functional.retrieval_average_precision):
        assert metric(torch.tensor([-0.1, -0.2]), best) == 0
        assert metric(torch.tensor([0.2, 0.1]), best) == 1


def test_the_page_holds_what_was_measured() -> None:
    pytest.importorskip("pytrec_eval")
    sides = {"seconds": 2.0, "peak": 2.0**21}, {"seconds": 0.5, "peak": 2.0**20}, {"seconds": 0.4, "peak": 2.0**20}
    text = markdown({"pytrec_eval": Measured(5000, sides[0], list(sides[1:]))}, workload.FULL)
    assert "| 5,000 x 5,000 | R@K, MRR, mAP | 2.0 | 0.45 | 4.5 x (4.0 to 5.0) | 2 | 1 | 2.0 x |" in text
