"""COCO-sized banks in a file, and what a correction over them costs in a fresh process.

``python -m tests.benchmarks.scale FILE METHOD [DEVICE]`` prints seconds, share of the matrix rate and peak as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch

from reprolib import methods, ranking
from reprolib.loaders.features import load_features
from reprolib.methods import CATALOGUE
from reprolib.metrics.hubness import hubness_of_counts, k_occurrence
from reprolib.metrics.retrieval import metrics_of_ranking
from reprolib.study.protocol import Side, banks_of
from tests.benchmarks.measure import peak
from tests.benchmarks.workload import LATENT, views_of

K = 10
_ROWS = 2**15  # written at a time
_PASSES = {"sinkhorn": 10, "dn": 0, "invgc": 0}  # products of banks and gallery: Sinkhorn's iterations; moments suffice


@dataclass(frozen=True)
class Sizes:
    """Images, and captions, of each of test and validation, and of the bank; and dimensions."""

    images: int
    captions: int
    bank_images: int
    bank_captions: int
    width: int


COCO = Sizes(images=5_000, captions=25_010, bank_images=113_000, bank_captions=566_000, width=512)
SMALL = Sizes(images=60, captions=310, bank_images=300, bank_captions=1_510, width=96)


def write(path: Path, sizes: Sizes, seed: int = 0) -> None:
    """Write embeddings of two test-sized parts and a bank as one safetensors file, a few rows at a time."""
    rng = np.random.default_rng(seed)
    parts = {"": (2 * sizes.images, 2 * sizes.captions), "bank_": (sizes.bank_images, sizes.bank_captions)}
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {}
    for prefix, (images, captions) in parts.items():
        shapes |= {
            f"{prefix}image": ("F32", (images, sizes.width)), f"{prefix}text": ("F32", (captions, sizes.width)),
            f"{prefix}relevance_image": ("I64", (captions,)), f"{prefix}relevance_text": ("I64", (captions,)),
        }  # fmt: skip
    header, end = {}, 0
    for name, (dtype, shape) in shapes.items():
        start, end = end, end + (4 if dtype == "F32" else 8) * int(np.prod(shape))
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": (start, end)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        view = views_of(rng, sizes.width)
        for images, captions in parts.values():
            latent = rng.standard_normal((images, LATENT)).astype(np.float32)
            owner = np.sort(np.arange(captions) % images)
            for modality, rows in (("image", np.arange(images)), ("text", owner)):
                for start in range(0, len(rows), _ROWS):
                    view(latent[rows[start : start + _ROWS]], modality).tofile(file)
            owner.tofile(file)
            np.arange(captions).tofile(file)


def matrix_rate(width: int, device: str, n: int) -> float:
    """Return float32 operations per second of a product [n, width] x [width, n] that is written into place."""
    one, other = (torch.rand(n, width, device=device) for _ in range(2))
    out = torch.empty(n, n, device=device)
    seconds = []
    for _ in range(12):
        start = time.perf_counter()
        torch.mm(one, other.T, out=out)
        if device != "cpu":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return 2 * n * n * width / median(seconds[2:])


def once(path: str, name: str, device: str = "cpu") -> dict[str, float]:
    """Return what one correction costs, text to image, from fitting to metrics and k-occurrence."""
    data = load_features(Path(path), validation_share=0.5, n_splits=1).replicates[0]
    side = Side(data.test, "text->image", device)
    query_bank, gallery_bank = banks_of(data.bank, "text->image", device)
    n, m, width = *map(len, (side.queries, side.gallery)), side.queries.shape[1]
    needs = CATALOGUE[name].needs
    used = len(query_bank) * ("query_bank" in needs) + len(gallery_bank) * ("gallery_bank" in needs)
    rates = [matrix_rate(width, device, min(4096, m))]
    start = time.perf_counter()
    scorer = methods.fit(
        name, side.queries, side.gallery, query_bank=query_bank, gallery_bank=gallery_bank, normalize=False,
        device=device,
    )  # fmt: skip
    found = ranking.rank(scorer, side.relevance, K)
    numbers = metrics_of_ranking(found) | hubness_of_counts(k_occurrence(found.topk, m))
    seconds = time.perf_counter() - start
    rates.append(matrix_rate(width, device, min(4096, m)))
    rate = sum(rates) / 2
    operations = 2 * width * m * (n + used * _PASSES.get(name, 1)) + 2 * width**2 * used * (name == "invgc")
    return {
        "seconds": seconds, "rate": rate, "product": operations / rate, "share": operations / seconds / rate,
        "peak": peak(), "R@1": numbers["R@1"], "skewness": numbers["skewness"],
    }  # fmt: skip


if __name__ == "__main__":
    json.dump(once(*sys.argv[1:]), sys.stdout)
