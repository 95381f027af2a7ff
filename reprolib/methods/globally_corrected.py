"""The globally corrected neighbour retriever: gc."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from reprolib.errors import InputError
from reprolib.methods.base import Bank, in_threads, method
from reprolib.ranking import Scorer, ascending

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
    both agree. Unlike the other methods this one holds a matrix: the ranks [n_queries, n_gallery], uint16 for a bank of
    less than 2^16 items, else int32. Raises InputError for a bank of 2^20 items or more.
    """
    if len(query_bank) >= _MOST:
        raise InputError(f"gc: the query_bank holds {len(query_bank)} items; valid is a bank of less than {_MOST}")
    n = len(queries)
    own = Bank(queries, "queries", query_bank.block_bytes)
    ranks = np.empty((n, len(gallery)), np.uint16 if len(query_bank) < 2**16 else np.int32)
    for items, scores in own.similarities(gallery, query_bank):
        higher = in_threads(_higher, *(part.cpu().numpy() for part in scores.split([n, len(query_bank)], dim=1)))
        ranks[:, items] = np.stack(higher).T

    def keys(scores: Tensor, rows: slice) -> Tensor:
        rank = torch.from_numpy(ranks[rows].astype(np.float64)).to(scores.device)
        return rank.mul_(-(2.0**32)).add_(ascending(scores))

    return Scorer(queries, gallery, transform=keys, wide=True)


def _higher(scores: np.ndarray, bank: np.ndarray) -> np.ndarray:
    """Return how many of the bank's scores, which are sorted in place, exceed each of ``scores``, int32 [n]."""
    bank.sort()
    order = scores.argsort()
    higher = np.empty(len(scores), np.int32)
    higher[order] = len(bank) - bank.searchsorted(scores[order], side="right")  # ordered, they stay in the cache
    return higher
