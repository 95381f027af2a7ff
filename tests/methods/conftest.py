"""Embeddings for the tests of the methods: random, clustered like those of a dual encoder, raw, and real ones."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch


class Data(NamedTuple):
    queries: np.ndarray
    gallery: np.ndarray
    query_bank: np.ndarray
    gallery_bank: np.ndarray

    @property
    def banks(self) -> dict[str, np.ndarray]:
        return {"query_bank": self.query_bank, "gallery_bank": self.gallery_bank}

    def double(self) -> Data:
        return Data(*(rows.astype(np.float64) for rows in self))


class Features(NamedTuple):
    image: torch.Tensor
    text: torch.Tensor
    real: bool


def unit(rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float64)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def pairs(seed: int, n: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    """n pairs of two modalities: a cone each, clusters within, and a weak link between the members of a pair."""
    rng = np.random.default_rng(seed)
    cones, centres = rng.standard_normal((2, d)), rng.standard_normal((max(2, n // 8), d))
    shared = centres[rng.integers(0, len(centres), n)] + rng.standard_normal((n, d))
    sides = (1.5 * cone + 0.5 * shared + 0.6 * rng.standard_normal((n, d)) for cone in cones)
    return tuple(unit(side) for side in sides)


def make(kind: str = "clustered", seed: int = 0, n: int = 9, m: int = 31, bank: int = 40, d: int = 12) -> Data:
    """Queries [n], a gallery [m] and two banks (the gallery's with five more items), float32."""
    sizes = (n, m, bank, bank + 5)
    if kind == "clustered":
        text, image = pairs(seed, max(n, m) + bank + 5, d)
        return Data(text[:n], image[:m], text[-bank:], image[-bank - 5 :])
    rng = np.random.default_rng(seed)
    rows = [rng.standard_normal((size, d)).astype(np.float32) for size in sizes]
    if kind == "random":
        rows = [unit(r) for r in rows]
    return Data(*rows)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def make_data() -> Callable[..., Data]:
    return make


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Return a function that sets the number of threads; afterwards there is one again."""
    yield torch.set_num_threads
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def features() -> Features:
    """The 500 real CLIP pairs, unit rows, if a mirror is at hand; else 60 made-up pairs, to run the protocol on."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "mirror"
    path = Path(os.environ.get("REPROLIB_MIRROR") or beside) / "coco-clip-500" / "features_clip.npy"
    if path.is_file():
        image, text = np.load(path, allow_pickle=False)
        return Features(torch.as_tensor(unit(image)), torch.as_tensor(unit(text)), True)
    text, image = pairs(0, 60, 24)
    return Features(torch.as_tensor(image), torch.as_tensor(text), False)
