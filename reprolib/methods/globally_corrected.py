"""The globally corrected neighbour retriever: gc."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from torch import Tensor

from reprolib.methods.base import Bank, method
from reprolib.ranking import Scorer


@method(
    "gc",
    year=2015,
    summary="globally corrected: rank items by how high the query stands among the bank queries of the item",
    source="Dinu et al., 2015 (formula unverified), with a query bank as in QB-Norm (arXiv 2112.12777)",
    needs=("query_bank",),
)
def globally_corrected(queries: Tensor, gallery: Tensor, query_bank: Bank, gallery_bank: Bank | None) -> Scorer:
    """Order the gallery by ``Rank_g(q) - s(q, g)``, ascending; Rank_g(q) is the rank of q among bank and q for g.

    The similarity thus breaks ties of the rank. float32 cannot hold a rank and a similarity side by side, so the
    score is the negative position (0, -1, ...) in that order, equal where both agree. Unlike the other methods this
    one holds a matrix: the ranks [n_queries, n_gallery], uint16 for a bank of less than 2^16 items, else int32.
    """
    n = len(queries)
    everyone = Bank(torch.cat([queries, query_bank.embeddings]), "queries and query_bank", query_bank.block_bytes)
    ranks = np.empty((n, len(gallery)), np.uint16 if len(query_bank) < 2**16 else np.int32)
    for items, scores in everyone.similarities(gallery):
        ranks[:, items] = np.stack(_each(partial(_higher, n=n), scores.cpu().numpy())).T
    bits = (len(gallery) - 1).bit_length()
    place = partial(_positions, bits=bits if bits + len(query_bank).bit_length() < 32 else None)

    def positions(scores: Tensor, rows: slice) -> Tensor:
        placed = _each(place, ranks[rows], scores.cpu().numpy())
        return torch.from_numpy(np.stack(placed)).to(scores.device)

    return Scorer(queries, gallery, transform=positions)


def _each(function: Callable[..., np.ndarray], *blocks: np.ndarray) -> list[np.ndarray]:
    """Apply ``function`` to every row, in as many threads as torch uses: NumPy sorts faster, but in one."""
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return list(pool.map(function, *blocks))


def _falling(scores: np.ndarray) -> np.ndarray:
    """Return integers that order float32 scores from the highest, int64."""
    bits = (scores + 0.0).view(np.int32)  # + 0.0: minus zero equals zero
    return (~(bits ^ ((bits >> 31) & 0x7FFFFFFF))).astype(np.int64)


def _higher(scores: np.ndarray, n: int) -> np.ndarray:
    """Return how many of the scores from ``n`` on exceed each of the ``n`` before, int32 [n]: one sort of them all."""
    key = (_falling(scores) << 32) + np.arange(len(scores))  # among equal scores the later ones come last
    key.sort()
    member = key & 0xFFFFFFFF
    place = np.flatnonzero(member < n)
    higher = np.empty(n, np.int32)
    higher[member[place]] = place - np.arange(n)
    return higher


def _positions(ranks: np.ndarray, scores: np.ndarray, bits: int | None) -> np.ndarray:
    """Return minus the place of each item among the different pairs of rank and score, float32.

    Where rank, score and index (``bits`` wide) fit into one integer, a plain sort orders all, in a third of the time.
    """
    key = (ranks.astype(np.int64) << 32) + _falling(scores)
    if bits is None:
        order = np.argsort(key)
        key = key[order]
    else:
        key = np.sort((key << bits) + np.arange(len(key)))
        order = key & ((1 << bits) - 1)
        key >>= bits
    positions = np.zeros(len(key), np.float32)
    positions[order[1:]] = -np.cumsum(np.diff(key) != 0)
    return positions
