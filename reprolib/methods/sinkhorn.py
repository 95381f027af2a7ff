"""Sinkhorn normalisation with one and with two banks: sinkhorn and dual-bank-sinkhorn."""

from __future__ import annotations

import torch
from torch import Tensor

from reprolib.errors import InputError
from reprolib.methods.base import TEMPERATURES, Bank, centred, method, positive
from reprolib.ranking import Scorer

_TILE = 2**22  # entries of a tile that is streamed
_HELD = 2**24  # entries of a kernel that may be held (128 MiB)
TAUS = tuple(1 / beta for beta in TEMPERATURES if beta >= 5)


def potentials(targets: Tensor, bank: Bank, tau: float, iterations: int) -> Tensor:
    """Return -tau log u of entropic transport between ``targets`` [m, d] and a bank, float64 [m], up to a constant.

    Cost 1 - s, uniform marginals, regularisation ``tau``; each of ``iterations`` rescales the bank, then the
    targets, starting from even targets (as ``ot.sinkhorn`` does). 0 iterations leave the bank even: that is
    ``tau LSE(s / tau)``, inverted softmax. float64 throughout, but for the product. Up to 2^24 entries the kernel
    exp(s / tau) is held; beyond that, or where it could underflow, each iteration streams the bank in log space.
    """
    positive(tau=tau)
    if not (isinstance(iterations, int) and iterations >= 0):
        raise InputError(f"iterations = {iterations!r} is not an integer of at least 0")
    if iterations == 0:
        return tau * bank.logsumexp(targets, 1 / tau)
    b, m = bank.embeddings, len(targets)
    # Tiles depend on the sizes alone: in float32 the shape of a product decides the last digit, and a rank with it.
    step = max(64, _TILE // m // 64 * 64)
    padded = torch.nn.functional.pad(targets, (0, 0, 0, -m % 64))

    def logits(tile: Tensor) -> Tensor:
        return (tile @ padded.T)[:, :m].double().div_(tau)

    span = 2 * float(b.norm(dim=1).max() * targets.norm(dim=1).max()) / tau
    if len(b) * m <= _HELD and span < 300:
        kernel = torch.cat([torch.exp(rows - rows.amax(1, keepdim=True)) for rows in map(logits, b.split(step))])
        u = torch.ones(m, dtype=torch.float64, device=targets.device)
        for _ in range(iterations):
            u = 1 / (((1 / (kernel @ u)) @ kernel) * (m / len(b)))
        return -tau * torch.log(u)
    log_u = torch.zeros(m, dtype=torch.float64, device=targets.device)
    for _ in range(iterations):
        received = sum((logits(tile) + log_u).softmax(1).sum(0) for tile in b.split(step))
        log_u -= torch.log(received * (m / len(b)))
    return -tau * log_u


@method(
    "sinkhorn",
    year=2025,
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
    year=2025,
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
