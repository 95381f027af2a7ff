"""Synthetic embeddings that are as hard to retrieve as COCO is for a dual encoder: modality gap, hubs, 5 captions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse

CAPTIONS = 5
LATENT = 64
_DECAY, _IMAGE_NOISE, _TEXT_NOISE, _REST, _GAP = 0.35, 0.85, 1.15, 0.02, 1.0


@dataclass(frozen=True)
class Size:
    """Numbers of images, of caption-bank and image-bank items, and of dimensions."""

    images: int
    query_bank: int
    gallery_bank: int
    width: int


FULL = Size(images=5_000, query_bank=40_000, gallery_bank=8_000, width=512)
TINY = Size(images=60, query_bank=400, gallery_bank=150, width=96)


@dataclass(frozen=True)
class Workload:
    """Unit-length float32 embeddings; captions are the queries, images the gallery."""

    images: np.ndarray
    captions: np.ndarray
    query_bank: np.ndarray
    gallery_bank: np.ndarray

    @property
    def relevance(self) -> scipy.sparse.csr_array:
        """Boolean CSR array [captions, images]."""
        n = len(self.captions)
        columns = np.repeat(np.arange(len(self.images)), CAPTIONS)
        return scipy.sparse.csr_array((np.ones(n, bool), columns, np.arange(n + 1)), shape=(n, len(self.images)))

    def save(self, path: Path) -> None:
        np.savez(path, **vars(self))

    @classmethod
    def load(cls, path: Path) -> Workload:
        with np.load(path) as arrays:
            return cls(**{name: arrays[name] for name in arrays.files})


def views_of(rng: np.random.Generator, width: int) -> Callable[[np.ndarray, str], np.ndarray]:
    """Return a function of latent vectors [n, LATENT] and "image" or "text" that gives noisy embeddings [n, width].

    The latent spectrum decays, and each modality has an offset of its own.
    """
    spectrum = (1.0 + np.arange(LATENT)) ** -_DECAY
    basis, _ = np.linalg.qr(rng.standard_normal((width, LATENT + 2)))
    directions = basis[:, :LATENT].T

    def view(latent: np.ndarray, modality: str) -> np.ndarray:
        noise, offset = (_TEXT_NOISE, basis[:, LATENT]) if modality == "text" else (_IMAGE_NOISE, basis[:, LATENT + 1])
        seen = (latent + noise * rng.standard_normal(latent.shape)) * spectrum
        x = seen @ directions / (np.linalg.norm(spectrum) * np.sqrt(1 + noise**2))
        x += _REST * rng.standard_normal(x.shape) + _GAP * offset
        return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)

    return view


def make(size: Size, seed: int = 0) -> Workload:
    """Return a workload: views of shared latent vectors."""
    rng = np.random.default_rng(seed)
    view = views_of(rng, size.width)

    def captions(latent: np.ndarray) -> np.ndarray:
        return view(np.repeat(latent, CAPTIONS, axis=0), "text")

    test = rng.standard_normal((size.images, LATENT))
    return Workload(
        images=view(test, "image"),
        captions=captions(test),
        query_bank=captions(rng.standard_normal((size.query_bank // CAPTIONS, LATENT))),
        gallery_bank=view(rng.standard_normal((size.gallery_bank, LATENT)), "image"),
    )
