"""A gallery of a million items by exact search and by FAISS: cost, recall, and what becomes of hubs.

At full size (``pytest --benchmark-only``) every stage is a process of its own whose result is kept in the cache: a run
that was interrupted goes on where it stopped, and the last stage writes ``docs/benchmarks_million.md``. In an ordinary
test run each stage is done once, tiny; nothing is asserted of time.
"""

from __future__ import annotations

import datetime
import hashlib
import inspect
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reprolib import paths, ranking
from reprolib.methods import export
from tests.benchmarks import million, workload
from tests.benchmarks.million import FULL, SCORES, SMALL, STAGES, Sizes
from tests.benchmarks.table import MIB, machine, rows

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "benchmarks_million.md"
COLUMNS = ("skewness", "max k-occurrence", "hub share", "anti-hub share", "Robin Hood", "R@1")
NAMES = {"is": "inverted softmax", "none": "no correction"}
Found = dict[str, Any]


def folder_of(sizes: Sizes) -> Path:
    """Return the folder of a full-size run: another one for other sizes or other code."""
    code = [inspect.getsource(module) for module in (million, workload, export, ranking)]
    key = hashlib.sha256("".join([*code, repr(asdict(sizes))]).encode()).hexdigest()[:12]
    return paths.cache() / "benchmarks" / f"million-{key}"


@pytest.fixture(scope="module")
def folder(full: bool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return the folder of the run; once all stages of a full-size run are done, write the page."""
    folder = folder_of(FULL) if full else tmp_path_factory.mktemp("million")
    million.start(folder, FULL if full else SMALL)
    yield folder
    found = million.done(folder)
    if full and found:
        PAGE.write_text(markdown(found, FULL), encoding="utf-8")


@pytest.fixture(scope="module")
def do(full: bool, folder: Path) -> Callable[[str], None]:
    """Return a function that does a stage, and those it needs, unless they are done."""

    def stage(name: str) -> None:
        for each in (*STAGES[: min(3, STAGES.index(name))], name):
            if (folder / f"{each}.json").exists():
                continue
            if full:
                subprocess.run([sys.executable, "-m", million.__name__, str(folder), each], cwd=ROOT, check=True)
            else:
                million.run(folder, each)

    return stage


@pytest.mark.parametrize("stage", STAGES)
def test_stage(stage: str, benchmark: Any, do: Callable[[str], None]) -> None:
    benchmark.pedantic(do, args=(stage,), rounds=1)


def interval(of: list[float], digits: int = 3) -> str:
    value, low, high = (f"{number:+.{digits}f}" for number in of)
    return f"{value} ({low} to {high})"


def effort_of(stage: str, row: Found) -> str:
    return {"flat": "all", "ivf": f"nprobe {row['effort']}", "hnsw": f"efSearch {row['effort']}"}[stage[:-3]]


def label(stage: str) -> str:
    return {"flat-ip": "flat", "ivf-ip": "IVF", "ivf-l2": "IVF, L2", "hnsw-ip": "HNSW", "hnsw-l2": "HNSW, L2"}[stage]


def searches(found: Found, score: str) -> Iterator[tuple[str, Found]]:
    for stage in STAGES[3:]:
        yield from ((stage, row) for row in found[stage]["searches"] if row["score"] == score)


def direction(pairs: list[list[float]], more: str, less: str) -> str:
    """Say how often intervals lie above and below 0."""
    above, below = sum(low > 0 for _, low, _ in pairs), sum(high < 0 for _, _, high in pairs)
    return f"{more} in {above}, {less} in {below} and not clearly either in {len(pairs) - above - below}"


def verdict(found: Found, score: str, k: int) -> str:
    """Say what the searches that miss more than 1 % of the places do to hubs."""
    lossy = [row for _, row in searches(found, score) if row["recall"][f"recall@{k}"][0] < 0.99]
    if not lossy:
        return f"{NAMES[score]}: every search found 99 % of the places or more."
    better = sum(row["places"]["hubs"] > row["places"]["others"] for row in lossy)
    skewness = direction([row["difference"]["skewness"] for row in lossy], "higher", "lower")
    never = direction([row["difference"]["anti-hub share"] for row in lossy], "larger", "smaller")
    return (
        f"{NAMES[score]}: of the {len(lossy)} searches that miss more than 1 % of the places, {better} find the places "
        f"of hubs more often than the others'. The skewness is {skewness}; the share of anti-hubs is {never}."
    )


def markdown(found: Found, sizes: Sizes) -> str:
    times = {score: found["exact"][score]["seconds"] for score in SCORES}
    held = 4 * sizes.gallery * sizes.width
    last = f"recall@{sizes.k}"
    build, cost, hubs = [], [], {score: [] for score in SCORES}
    for stage in STAGES[3:]:
        built = found[stage]["build"]
        build.append(
            f"| {label(stage)} | {built['seconds']:.0f} | {built['bytes'] / MIB:.0f} | {built['bytes'] / held:.2f} "
            f"| {built['peak'] / MIB:.0f} | {built['load']:.1f} |"
        )
    for score in SCORES:
        for stage, row in searches(found, score):
            recall = " | ".join(f"{row['recall'][name][0]:.3f}" for name in (last, "recall@10", "recall@1"))
            low, high = row["recall"][last][1:]
            cost.append(
                f"| {score} | {label(stage)} | {effort_of(stage, row)} | {row['seconds']:.1f} "
                f"| {times[score] / row['seconds']:.1f} x | {recall} | {low:.3f} to {high:.3f} "
                f"| {row['places']['hubs']:.3f} | {row['places']['others']:.3f} | {row['load']:.1f} |"
            )
            changes = " | ".join(interval(row["difference"][name]) for name in COLUMNS)
            hubs[score].append(f"| {label(stage)} | {effort_of(stage, row)} | {changes} |")
        row = next(searches(found, score))[1]["exact"]
        hubs[score].insert(0, f"| **exact** | | {' | '.join(f'{row[name][0]:.3f}' for name in COLUMNS)} |")
    table = f"| index | effort | {' | '.join(COLUMNS)} |"
    fit, rate = found["fit"], found["exact"]["rate"]
    flops = 2 * sizes.queries * sizes.gallery * sizes.width
    return "\n".join(
        [
            f"# A gallery of {sizes.gallery:,} items",
            "",
            "Written by `pytest tests/benchmarks/test_million_benchmark.py --benchmark-only` on "
            f"{datetime.date.today().isoformat()}: {machine()}, FAISS {million.faiss.__version__}.",
            "",
            f"{sizes.gallery:,} images, {sizes.queries:,} captions as queries, each with one relevant image; "
            f"{sizes.width} dimensions; synthetic, with a modality gap and hubs (`tests/benchmarks/workload.py`). The "
            f"correction is inverted softmax, fitted with a bank of {sizes.bank:,} other captions. k = {sizes.k}, "
            f"so that an item stands in {sizes.k * sizes.queries / sizes.gallery:g} lists on average. Every stage is a "
            "process of its own; the load average beside a time says how busy the machine was.",
            "",
            f"The gallery takes {held / MIB:.0f} MiB. Fitting the bias took {fit['seconds']:.0f} s and "
            f"{fit['peak'] / MIB:.0f} MiB above it. Exact search here (`ranking.topk`, blocks of "
            f"{million.BLOCK // MIB} MiB) took {times['is']:.0f} s with the correction, "
            f"{flops / times['is'] / rate:.0%} of the matrix rate measured beside it, and {times['none']:.0f} s "
            f"without; {found['exact']['is']['peak'] / MIB:.0f} MiB above the gallery (load "
            f"{found['exact']['is']['load']:.1f}).",
            "",
            "## Building an index",
            "",
            'The bias is one more coordinate (`faiss_index`). "L2" is the same index after the reduction of inner '
            "products to distances. The process holds the gallery itself beside the index.",
            "",
            *rows("| index | seconds | index, MiB | of the gallery | peak while building, MiB | load |", *build),
            "## Searching",
            "",
            "One index serves both: a query that has 0 in place of -1 searches without the correction. The recall is "
            "the share of the exact list that the index found, over queries, with a 95 % interval for that at "
            f"k = {sizes.k}; hubs are items with at least twice the mean k-occurrence in the exact lists, and "
            "their column is the share of their places that was found.",
            "",
            *rows(
                f"| scores | index | effort | seconds | faster than exact | {last} | recall@10 | recall@1 "
                f"| {last}, interval | places of hubs | other places | load |",
                *cost,
            ),
            "## Does approximate search hide hubs, or make them?",
            "",
            *(f"* {verdict(found, score, sizes.k)}" for score in SCORES),
            "",
            "Approximate less exact, with 95 % intervals (delete-a-group jackknife over queries; bootstrap for R@1; "
            "for a maximum a rough guide).",
            "",
            "### With inverted softmax",
            "",
            *rows(table, *hubs["is"]),
            "### Without a correction",
            "",
            *rows(table, *hubs["none"]),
        ]
    )


def test_the_page_holds_what_was_measured(do: Callable[[str], None], folder: Path) -> None:
    for stage in STAGES:
        do(stage)
    found = million.done(folder)
    assert found is not None
    sizes = Sizes(
        **{name: tuple(v) if isinstance(v, list) else v for name, v in million._read(folder, "sizes").items()}
    )
    text = markdown(found, sizes)
    assert text.count("| nprobe ") == 2 * 2 * 2 * len(sizes.nprobe)  # scores, metrics, tables
    for score in SCORES:
        (stage, flat), *_ = searches(found, score)
        assert stage == "flat-ip" and flat["recall"][f"recall@{sizes.k}"][0] > 0.999 and flat["missing"] == 0
        assert f"| {interval(flat['difference']['skewness'])} |" in text
    built = found["hnsw-ip"]["build"]
    assert f"| HNSW | {built['seconds']:.0f} | {built['bytes'] / MIB:.0f} |" in text


def test_the_comparison_says_what_lists_say() -> None:
    exact = np.array([[0, 1], [0, 2], [3, 1]])
    found = np.array([[0, 4], [2, 0], [1, -1]])
    told = million.compared(exact, found, 8)
    assert told["missing"] == 1
    assert told["recall"]["recall@2"][0] == pytest.approx((1 + 2 + 1) / 6)
    assert told["recall"]["recall@1"][0] == pytest.approx(1 / 3)
    assert told["exact"]["R@1"][0] == pytest.approx(1 / 3) and told["approximate"]["R@1"][0] == pytest.approx(1 / 3)
    assert told["places"] == {"hubs": pytest.approx(3 / 4), "others": pytest.approx(1 / 2), "of hubs": 4 / 6}
    assert told["difference"]["max k-occurrence"][0] == 0
