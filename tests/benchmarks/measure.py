"""One measurement: ``python -m tests.benchmarks.measure WORKLOAD.npz SIDE METHOD [BLOCK BANK]`` in a fresh process.

Prints seconds and the peak of the resident set above what was resident before, in bytes, as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import torch

from reprolib import methods, ranking
from reprolib.methods import CATALOGUE, Bank
from reprolib.metrics.hubness import hubness_of_counts, k_occurrence
from reprolib.metrics.retrieval import metrics_of_ranking
from reprolib.ranking import BLOCK_BYTES, Ranking, Scorer
from tests.benchmarks import naive
from tests.benchmarks.workload import TINY, Workload, make


def product(w: Workload) -> torch.Tensor:
    """The unit: one float32 matrix product, the result kept whole."""
    return torch.from_numpy(w.captions) @ torch.from_numpy(w.images).T


def _summary(found: Ranking, n_gallery: int) -> dict[str, float]:
    return metrics_of_ranking(found) | hubness_of_counts(k_occurrence(found.topk, n_gallery))


def both(w: Workload, block_bytes: int = BLOCK_BYTES) -> list[dict[str, float]]:
    """Complete metrics and k-occurrence of both directions."""
    scorer = Scorer(torch.from_numpy(w.captions), torch.from_numpy(w.images))
    forward, backward = ranking.rank_both(scorer, w.relevance, naive.K, block_bytes=block_bytes)
    return [_summary(forward, len(w.images)), _summary(backward, len(w.captions))]


def corrected(w: Workload, name: str, block_bytes: int = BLOCK_BYTES) -> dict[str, float]:
    """Fit a correction, then complete metrics and k-occurrence of caption to image.

    The embeddings are of unit length already, so neither side copies them to normalise.
    """
    banks = {
        label: Bank(ranking.as_embeddings(getattr(w, label), label, normalize=False), label, block_bytes)
        for label in CATALOGUE[name].needs
    }
    scorer = methods.fit(name, w.captions, w.images, normalize=False, **banks)
    return _summary(ranking.rank(scorer, w.relevance, naive.K, block_bytes=block_bytes), len(w.images))


def naive_both(w: Workload) -> list[dict[str, float]]:
    scores = naive.scores(w)
    return [naive.summary(naive.caption_to_image(scores)), naive.summary(naive.image_to_caption(scores))]


def naive_corrected(w: Workload, name: str) -> dict[str, float]:
    return naive.summary(naive.caption_to_image(naive.CORRECTIONS[name](w)))


def peak() -> int:
    """Highest resident set of this process so far, in bytes.

    Not ``getrusage``: a process starts with the ``ru_maxrss`` of the one that spawned it.
    """
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def once(path: str, side: str, name: str, block_bytes: int = BLOCK_BYTES, bank: int | None = None) -> dict[str, float]:
    """Return seconds and the peak resident bytes above what was resident before.

    ``side`` is "naive" or "ours"; ``name`` a correction, or "none" for the metrics of both directions; ``bank`` keeps
    that many items of the query bank. The peak means something in a fresh process only.
    """

    def run(w: Workload) -> None:
        if side == "naive":
            naive_both(w) if name == "none" else naive_corrected(w, name)
        else:
            both(w, block_bytes) if name == "none" else corrected(w, name, block_bytes)

    run(make(TINY))  # loads libraries and their thread pools
    workload = Workload.load(Path(path))
    workload = replace(workload, query_bank=workload.query_bank[:bank].copy())
    resident = psutil.Process().memory_info().rss
    start = time.perf_counter()
    run(workload)
    return {"seconds": time.perf_counter() - start, "peak": max(0, peak() - resident)}


if __name__ == "__main__":
    json.dump(once(*sys.argv[1:4], *map(int, sys.argv[4:])), sys.stdout)
