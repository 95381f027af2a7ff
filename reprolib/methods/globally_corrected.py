"""The globally corrected neighbour retriever: gc."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from reprolib import ranking
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
    one holds a matrix: the ranks, int32 [n_queries, n_gallery].
    """
    exact_queries, exact_bank = queries.double(), query_bank.embeddings.double()
    ranks = torch.empty(len(queries), len(gallery), dtype=torch.int32, device=gallery.device)
    wide = len(queries) + 2 * len(query_bank)
    for columns in ranking.blocks(len(gallery), wide, query_bank.block_bytes):
        items = gallery[columns].double()
        bank = _sorted((items @ exact_bank.T).float())
        scores = (items @ exact_queries.T).float()
        higher = bank.shape[1] - torch.searchsorted(bank, scores, right=True)
        ranks[:, columns] = higher.T.to(torch.int32)

    def positions(scores: Tensor, rows: slice) -> Tensor:
        key = ranking.sort_key(ranks[rows], scores)
        order = _argsorted(key)
        step = key.gather(1, order).diff(dim=1) != 0
        place = torch.nn.functional.pad(step.cumsum(1), (1, 0)).float()
        return torch.empty_like(scores).scatter_(1, order, -place)

    return Scorer(queries, gallery, transform=positions)


# NumPy sorts the rows of a matrix in processor memory four times as fast as torch does; equal keys need no order.
def _sorted(rows: Tensor) -> Tensor:
    return torch.from_numpy(np.sort(rows.numpy(), axis=1)) if rows.device.type == "cpu" else rows.sort(1).values


def _argsorted(rows: Tensor) -> Tensor:
    return torch.from_numpy(np.argsort(rows.numpy(), axis=1)) if rows.device.type == "cpu" else rows.argsort(1)
