"""A gallery of a million items: exact search and FAISS, stage by stage.

``python -m tests.benchmarks.million FOLDER STAGE`` does one stage in a fresh process and writes ``STAGE.json`` into
``FOLDER``; the stages are ``STAGES``, in order. Arrays lie in the folder as well, so that a stage can be done alone.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import psutil
import torch

from reprolib import methods, ranking
from reprolib.methods import Bank
from reprolib.methods.export import faiss_index, index_topk
from reprolib.metrics.approximation import hubness_differences, places_found
from reprolib.metrics.hubness import HUB_FACTOR, k_occurrence
from reprolib.metrics.statistics import bootstrap_mean
from reprolib.ranking import Scorer
from tests.benchmarks.measure import peak
from tests.benchmarks.scale import matrix_rate
from tests.benchmarks.workload import LATENT, views_of

STAGES = ("data", "fit", "exact", "flat-ip", "ivf-ip", "ivf-l2", "hnsw-ip", "hnsw-l2")
SCORES = ("is", "none")
BLOCK = 2**28  # bytes of a block of scores: 67 queries at a time against a million items
_ROWS = 2**15  # made at a time


@dataclass(frozen=True)
class Sizes:
    """Gallery items, queries (each with one relevant item), bank items and dimensions; k and the efforts of search."""

    gallery: int
    queries: int
    bank: int
    width: int
    k: int
    nprobe: tuple[int, ...]
    ef_search: tuple[int, ...]


FULL = Sizes(1_000_000, 10_000, 10_000, 128, 100, (4, 16, 64), (128, 256, 512))
SMALL = Sizes(1_200, 60, 100, 96, 20, (1, 4), (32, 64))


def make(folder: Path, sizes: Sizes) -> None:
    """Write the gallery (images), the queries (a caption of each of the first images) and the bank (captions)."""
    rng = np.random.default_rng(0)
    view = views_of(rng, sizes.width)
    gallery = np.lib.format.open_memmap(
        folder / "gallery.npy", "w+", dtype=np.float32, shape=(sizes.gallery, sizes.width)
    )
    for start in range(0, sizes.gallery, _ROWS):
        latent = rng.standard_normal((min(_ROWS, sizes.gallery - start), LATENT))
        gallery[start : start + _ROWS] = view(latent, "image")
        if start == 0:
            np.save(folder / "queries.npy", view(latent[: sizes.queries], "text"))
    np.save(folder / "bank.npy", view(rng.standard_normal((sizes.bank, LATENT)), "text"))
    gallery.flush()


def scorer(folder: Path, score: str = "is") -> Scorer:
    """Return the scorer of "none" or "is"; of "is" once its stage is done."""
    queries, gallery = (torch.from_numpy(np.load(folder / f"{name}.npy")) for name in ("queries", "gallery"))
    bias = torch.from_numpy(np.load(folder / "bias.npy"))[None] if score == "is" else None
    return Scorer(queries, gallery, bias)


def fit(folder: Path, sizes: Sizes) -> dict[str, Any]:
    plain = scorer(folder, "none")
    bank = Bank(torch.from_numpy(np.load(folder / "bank.npy")), "query bank")
    found = measured(lambda: methods.fit("is", plain.queries, plain.gallery, query_bank=bank, normalize=False))
    np.save(folder / "bias.npy", found.pop("result").bias[0].numpy())
    return found


def exact(folder: Path, sizes: Sizes) -> dict[str, Any]:
    report = {}
    for score in SCORES:
        wanted = scorer(folder, score)
        found = measured(lambda wanted=wanted: ranking.topk(wanted, sizes.k, block_bytes=BLOCK))
        np.save(folder / f"exact-{score}.npy", found.pop("result"))
        report[score] = found
    return report | {"rate": matrix_rate(sizes.width, "cpu", min(4096, sizes.queries))}


def index(folder: Path, sizes: Sizes, stage: str) -> dict[str, Any]:
    """Build an index of the corrected gallery and search it with and without the correction, at every effort."""
    kind, metric = stage.split("-")
    wanted = scorer(folder)
    built = measured(lambda: faiss_index(wanted, kind, metric=metric))
    ctypes.CDLL(None).malloc_trim(0)  # what training took is given back
    (held, corrected), built["bytes"] = built.pop("result"), psutil.Process().memory_info().rss - built["before"]
    if kind == "ivf":
        built["imbalance"] = held.invlists.imbalance_factor()
    plain = corrected.copy()
    plain[:, sizes.width] = 0
    rows = []
    for effort in {"flat": (None,), "ivf": sizes.nprobe, "hnsw": sizes.ef_search}[kind]:
        if kind == "ivf":
            held.nprobe = effort
        if kind == "hnsw":
            held.hnsw.efSearch = effort
        for score, queries in zip(SCORES, (corrected, plain), strict=True):
            found = measured(lambda queries=queries: index_topk(held, queries, sizes.k))
            row = {"score": score, "effort": effort, "seconds": found["seconds"], "load": found["load"]}
            rows.append(row | compared(np.load(folder / f"exact-{score}.npy"), found["result"], sizes.gallery))
    return {"build": built, "searches": rows}


def compared(exact: np.ndarray, found: np.ndarray, gallery: int) -> dict[str, Any]:
    """Return recall, of all and of hubs' places, R@1 and hubness, each as [value, low, high]."""
    n = np.arange(len(exact))
    places = places_found(exact, found)
    counts = k_occurrence(exact, gallery)
    hubs = counts[exact] >= HUB_FACTOR * counts.mean()
    hits = {name: (lists[:, 0] == n).astype(float) for name, lists in (("exact", exact), ("approximate", found))}
    tables: dict[str, dict[str, Any]] = hubness_differences([exact], [found], [gallery], n)
    tables |= {"recall": {
        f"recall@{exact.shape[1]}": bootstrap_mean(places.mean(1), n),
        "recall@10": bootstrap_mean(places_found(exact[:, :10], found[:, :10]).mean(1), n),
        "recall@1": bootstrap_mean(places_found(exact[:, :1], found[:, :1])[:, 0], n),
    }}  # fmt: skip
    tables["exact"]["R@1"] = bootstrap_mean(hits["exact"], n)
    tables["approximate"]["R@1"] = bootstrap_mean(hits["approximate"], n)
    tables["difference"]["R@1"] = bootstrap_mean(hits["approximate"] - hits["exact"], n)
    shares = {"hubs": float(places[hubs].mean()), "others": float(places[~hubs].mean()), "of hubs": float(hubs.mean())}
    return {"places": shares, "missing": int((found < 0).sum())} | {
        table: {name: [i.value, i.low, i.high] for name, i in values.items()} for table, values in tables.items()
    }


def measured(work: Callable[[], Any]) -> dict[str, Any]:
    """Return the result of ``work``, its seconds, the memory before, the peak above it, and the load of the machine."""
    before, start = psutil.Process().memory_info().rss, time.perf_counter()
    result = work()
    seconds = time.perf_counter() - start
    return {
        "result": result, "seconds": seconds, "before": before, "peak": max(0, peak() - before),
        "load": os.getloadavg()[0],
    }  # fmt: skip


def run(folder: Path, stage: str) -> None:
    """Do one stage and write what it found."""
    sizes = Sizes(**{k: tuple(v) if isinstance(v, list) else v for k, v in _read(folder, "sizes").items()})
    if stage == "data":
        make(folder, sizes)
        found: dict[str, Any] = {}
    elif stage in ("fit", "exact"):
        found = {"fit": fit, "exact": exact}[stage](folder, sizes)
    else:
        faiss.omp_set_num_threads(torch.get_num_threads())
        found = index(folder, sizes, stage)
    _write(folder, stage, found)


def start(folder: Path, sizes: Sizes) -> None:
    """Make the folder of a run, which says what sizes it has."""
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder, "sizes", asdict(sizes))


def done(folder: Path) -> dict[str, Any] | None:
    """Return what all stages found, or None if one is still to come."""
    if any(not (folder / f"{stage}.json").exists() for stage in STAGES):
        return None
    return {stage: _read(folder, stage) for stage in STAGES}


def _read(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / f"{name}.json").read_text())


def _write(folder: Path, name: str, found: dict[str, Any]) -> None:
    part = folder / f"{name}.part"
    part.write_text(json.dumps(found))
    part.rename(folder / f"{name}.json")


if __name__ == "__main__":
    run(Path(sys.argv[1]), sys.argv[2])
