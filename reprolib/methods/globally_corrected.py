"""The globally corrected neighbour retriever: gc."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from reprolib import ranking
from reprolib.errors import InputError
from reprolib.mapped import release, scratch
from reprolib.methods.base import TILE, Bank, in_threads, method
from reprolib.ranking import Scorer, ascending

_ITEMS = 320  # gallery items at a time: a bank in a file is read once for each so many
_WIDTH = 96 * TILE  # bank items whose similarities to them are sorted at a time
_MOST = 2**20  # ranks below it leave room for a float32 similarity in the 53 bits of a float64


@method(
    "gc",
    year=2015,
    summary="globally corrected: rank items by how high the query stands among the bank queries of the item",
    source="Dinu et al., 2015 (formula unverified), with a query bank as in QB-Norm (arXiv 2112.12777)",
    needs=("query_bank",),
)
def globally_corrected(queries: Tensor, gallery: Tensor, query_bank: Bank, gallery_bank: Bank | None) -> Scorer:
    """Order the gallery by ``Rank_g(q) - s(q, g)``, ascending; Rank_g(q) is the rank of q among bank and q for g.

    The similarity thus breaks ties of the rank. float32 cannot hold a rank and a similarity side by side, float64 can:
    the scorer is ``wide``, and its float32 scores are the negative positions (0, -1, ...) in that order, equal where
    both agree. Unlike the other methods this one keeps a matrix: the ranks of all pairs, in a temporary file if they
    take 128 MiB or more. Raises InputError for a bank of 2^20 items or more.
    """
    if len(query_bank) >= _MOST:
        raise InputError(f"gc: the query_bank holds {len(query_bank)} items; valid is a bank of less than {_MOST}")
    own, n, step = Bank(queries, "queries"), len(queries), min(_ITEMS, len(gallery))
    dtype = np.dtype(np.uint16 if len(query_bank) < 2**16 else np.int32)
    large = n * len(gallery) * dtype.itemsize >= ranking.LARGE
    # Queries lie together within a group of items: whoever reads a few of them reads few pages of the file.
    ranks = (scratch if large else np.empty)((-(-len(gallery) // step), n, step), dtype)
    held = torch.empty(step, n, device=gallery.device)
    block = torch.empty(step, min(_WIDTH, len(query_bank)), device=gallery.device)
    for items, group in zip(gallery.split(step), ranks, strict=True):
        (scores,) = (part.cpu().numpy() for part in _parts(own, items, held))
        order = in_threads(_sort, scores)
        lower = np.zeros(scores.shape, np.int32)
        for part in _parts(query_bank, items, block):
            in_threads(_count, part.cpu().numpy(), scores, lower)
        in_threads(_restore, order, lower)
        np.subtract(len(query_bank), lower.T, out=group[:, : len(items)], casting="unsafe")
        release(ranks)

    def keys(scores: Tensor, rows: slice) -> Tensor:
        taken = np.concatenate(ranks[:, rows], axis=1, dtype=np.float64)[:, : len(gallery)]
        release(ranks)
        return ascending(scores).double().sub_(torch.from_numpy(taken).to(scores.device), alpha=2.0**32)

    return Scorer(queries, gallery, transform=keys, wide=True)


def _parts(bank: Bank, items: Tensor, out: Tensor) -> Iterator[Tensor]:
    """Write the similarities to one part of the bank after the other to ``out`` [>= n_items, width]; yield each part.

    ``width`` is a multiple of a tile, or all of the bank; the last part is what is left.
    """
    filled = 0
    for tile in bank.similarities(items):
        if filled == out.shape[1]:
            yield out[: len(items)]
            filled = 0
        out[: len(items), filled : filled + tile.shape[1]] = tile
        filled += tile.shape[1]
    yield out[: len(items), :filled]


def _sort(scores: np.ndarray) -> np.ndarray:
    """Sort ``scores`` in place, since in order they are found faster; return where each stood, int32."""
    order = scores.argsort()
    scores[:] = scores[order]
    return order.astype(np.int32)


def _count(bank: np.ndarray, scores: np.ndarray, lower: np.ndarray) -> None:
    """Add to ``lower`` how many of the bank's scores, which are sorted in place, do not exceed each of ``scores``."""
    bank.sort()
    lower += bank.searchsorted(scores, side="right")


def _restore(order: np.ndarray, values: np.ndarray) -> None:
    """Put ``values`` back to where they stood before ``_sort``."""
    values[order] = values.copy()
