"""Sinkhorn normalisation with one and with two banks: sinkhorn and dual-bank-sinkhorn."""

from __future__ import annotations

import torch
from torch import Tensor

from reprolib import ranking
from reprolib.errors import InputError
from reprolib.methods.base import TEMPERATURES, Bank, centred, method, positive
from reprolib.ranking import Scorer

TAUS = tuple(1 / beta for beta in TEMPERATURES if beta >= 5)


def potentials(targets: Tensor, bank: Bank, tau: float, iterations: int) -> Tensor:
    """Return -tau log u of entropic transport between ``targets`` [m, d] and a bank, float64 [m], up to a constant.

    Cost 1 - s, uniform marginals, regularisation ``tau``; each of ``iterations`` rescales the bank, then the
    targets, starting from even targets (as ``ot.sinkhorn`` does). 0 iterations leave the bank even: that is
    ``tau LSE(s / tau)``, inverted softmax. One pass over the bank per iteration, in float64: with P the rows of the
    kernel normalised over the targets, u is multiplied by 1 / (m mean_j P_jg).
    """
    positive(tau=tau)
    if not (isinstance(iterations, int) and iterations >= 0):
        raise InputError(f"iterations = {iterations!r} is not an integer of at least 0")
    if iterations == 0:
        return tau * bank.logsumexp(targets, 1 / tau)
    exact = targets.double()
    log_u = torch.zeros(len(targets), dtype=torch.float64, device=targets.device)
    for _ in range(iterations):
        received = torch.zeros_like(log_u)
        for rows in ranking.blocks(len(bank), len(targets), bank.block_bytes // 2):
            # a float64 product: in float32 the shape of the block decides the last digit, and a rank with it
            kernel = (bank.embeddings[rows].double() @ exact.T).div_(tau).add_(log_u)
            received += kernel.softmax(1).sum(0)
        log_u -= torch.log(received * (len(targets) / len(bank)))
    return -tau * log_u


@method(
    "sinkhorn",
    summary="Sinkhorn normalisation: s - the potential of the item in transport to a query bank",
    source='"Dual Bank Sinkhorn Normalization", ACM MM 2025, arXiv 2508.02538; ppanzx/DBSN, Image_Retrieval/dbsn.py',
    needs=("query_bank",),
    grid={"tau": TAUS},
)
def sinkhorn(
    queries: Tensor,
    gallery: Tensor,
    query_bank: Bank,
    gallery_bank: Bank | None,
    *,
    tau: float = 0.01,
    iterations: int = 10,
) -> Scorer:
    """Rank by ``s(q, g) - potential(g)`` over the query bank; defaults as released (``numItermax=10``, reg 0.01)."""
    return Scorer(queries, gallery, centred(potentials(gallery, query_bank, tau, iterations))[None])


@method(
    "dual-bank-sinkhorn",
    summary="dual-bank Sinkhorn normalisation (DBSN): the gallery is joined by a gallery bank before transport",
    source='"Dual Bank Sinkhorn Normalization", ACM MM 2025, arXiv 2508.02538; ppanzx/DBSN, Image_Retrieval/dbsn.py',
    needs=("query_bank", "gallery_bank"),
    grid={"tau": TAUS},
)
def dual_bank_sinkhorn(
    queries: Tensor,
    gallery: Tensor,
    query_bank: Bank,
    gallery_bank: Bank,
    *,
    tau: float = 0.01,
    iterations: int = 10,
) -> Scorer:
    """As ``sinkhorn``, for [gallery; gallery bank] x query bank; only the potentials of the gallery are used."""
    targets = torch.cat([gallery, gallery_bank.embeddings])
    found = potentials(targets, query_bank, tau, iterations)[: len(gallery)]
    return Scorer(queries, gallery, centred(found)[None])
