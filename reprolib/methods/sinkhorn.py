"""Sinkhorn normalisation with one and with two banks: sinkhorn and dual-bank-sinkhorn."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from reprolib.errors import InputError
from reprolib.methods.base import TEMPERATURES, Bank, centred, in_threads, method, positive
from reprolib.ranking import Scorer

_TILE = 2**22  # entries of a tile that is streamed
_VISIT = 2**20  # entries taken to float64 at a time: they stay in cache
_SHARP = 0.02  # up to this tau, float32 sums of 1,024 terms are exact enough: they move a score by tau x 2e-6
_TERMS = 1024
_GROUPS = 16  # sums over the bank are taken in as many groups, whatever the threads, and then added in order
_HELD = 2**29  # entries of a float32 kernel that may be held (2 GiB)
_LOWEST = -87.0  # the least exponent whose exp() is a normal float32
_REACH = math.exp(50)  # e^50 e^-87 is the round-off of float64
TAUS = tuple(1 / beta for beta in TEMPERATURES if beta >= 5)


def potentials(targets: Tensor, bank: Bank, tau: float, iterations: int) -> Tensor:
    """Return -tau log u of entropic transport between ``targets`` [m, d] and a bank, float64 [m], up to a constant.

    Cost 1 - s, uniform marginals, regularisation ``tau``; each of ``iterations`` rescales the bank, then the
    targets, starting from even targets (as ``ot.sinkhorn`` does). 0 iterations leave the bank even: that is
    ``tau LSE(s / tau)``, inverted softmax. The kernel exp(s / tau) is float32. Sums over it are float64; up to ``tau``
    = 0.02, float64 sums of float32 sums over at most 1,024 terms, which moves a potential by up to 4e-8. A kernel of
    up to 2^29 entries (2 GiB) is held; a larger one is computed anew in each iteration, tile by tile. Where its
    smallest entries could matter, and above ``tau`` = 1, all is done in log space, tile by tile, in float64.
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

    def similarities(rows: slice) -> Tensor:
        return (b[rows] @ padded.T)[:, :m]

    def kernel(rows: slice) -> Tensor:
        s = similarities(rows)
        return (s - s.amax(1, keepdim=True)).div_(tau).clamp_(min=_LOWEST).exp_()

    tiles = [slice(start, min(len(b), start + step)) for start in range(0, len(b), step)]
    held = in_threads(kernel, tiles) if tau <= 1 and len(b) * m <= _HELD else None
    u = torch.ones(m, dtype=torch.float64, device=targets.device)
    sums = torch.float32 if tau <= _SHARP else torch.float64
    if tau <= 1 and _rescale(u, len(b), held or tiles, (lambda k: k) if held else kernel, iterations, sums):
        return -tau * torch.log(u)
    log_u = torch.zeros_like(u)
    for _ in range(iterations):
        received = sum((similarities(tile).double().div_(tau) + log_u).softmax(1).sum(0) for tile in tiles)
        log_u -= torch.log(received * (m / len(b)))
    return -tau * log_u


def _rescale(
    u: Tensor, n: int, tiles: Sequence, kernel: Callable[[Any], Tensor], iterations: int, dtype: torch.dtype
) -> bool:
    """Iterate the scales ``u`` of the targets, float64 [m], in place; return whether they can be relied on.

    ``kernel`` makes of each of the ``tiles`` one of exp(s / tau), the highest entry of each of the ``n`` rows of all 1,
    entries below e^-87 raised to it. These change no sum by more than the share m max(u) max(v) e^-87 of it, v the
    scales of the bank. Short sums are taken in ``dtype``, those of them in float64.
    """
    exact = dtype == torch.float64

    def reached(group: Sequence) -> tuple[Tensor, Tensor]:
        received, highest = torch.zeros_like(u), torch.zeros_like(u[0])
        buffer = u.new_empty(max(1, _VISIT // len(u)) if exact else 0, len(u))
        scales = (u / u.max()).to(dtype).split(len(u) if exact else _TERMS)  # float32 has no room for large ones
        for tile in group:
            whole = kernel(tile)
            for part in whole.split(len(buffer) if exact else _TERMS):
                rows = buffer[: len(part)].copy_(part) if exact else part
                columns = rows.split(len(scales[0]), dim=1)
                v = 1 / sum((some @ scale).double() for some, scale in zip(columns, scales, strict=True))
                received += rows.T @ v.to(dtype)
                highest = torch.maximum(highest, v.max())
        return received / u.max(), highest / u.max()

    groups = [tiles[start::_GROUPS] for start in range(min(_GROUPS, len(tiles)))]
    for _ in range(iterations):
        received, highest = map(list, zip(*in_threads(reached, groups), strict=True))
        reach = u.max()
        u.copy_(1 / (torch.stack(received).sum(0) * (len(u) / n)))
        if not len(u) * torch.stack(highest).max() * torch.maximum(reach, u.max()) < _REACH:
            return False
    return True


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
    targets = torch.cat([gallery, gallery_bank.embeddings[:]])
    found = potentials(targets, query_bank, tau, iterations)[: len(gallery)]
    return Scorer(queries, gallery, centred(found)[None])
