"""Inverse graph convolution, dense and with local adjacency: invgc and invgc-localadj. Only the gallery moves."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, normalize

from reprolib.errors import InputError
from reprolib.methods.base import TILE, Bank, method, variant_of
from reprolib.ranking import Rows, Scorer

RATES = (0.1, 0.25, 0.5, 1.0, 2.0, 5.0)
_SOURCE = "Jian and Wang, Findings of EMNLP 2023, arXiv 2310.13276; InvGC/InvGC.py of the authors"


def _check(rate_gallery: float, rate_query: float) -> None:
    for name, rate in (("rate_gallery", rate_gallery), ("rate_query", rate_query)):
        if not (isinstance(rate, int | float) and math.isfinite(rate)):
            raise InputError(f"{name} = {rate!r} is not a finite number")


def _moved(gallery: Tensor, messages: list[tuple[Tensor, float]], released: bool) -> Tensor:
    """Return the gallery [m, d] after subtracting rate x message for both banks, rows of unit length."""
    if released:  # each message separately, renormalised, then averaged
        return normalize(sum(0.5 * normalize(gallery - rate * message) for message, rate in messages))
    return normalize(gallery - sum(rate * message for message, rate in messages))


def _dense_message(gallery: Tensor, bank: Bank, centre: bool) -> Tensor:
    """Return (1/n) sum_j w_j b_j over the bank, float32 [m, d]; ``centre`` subtracts the mean of all w first."""
    x, mean = gallery.double(), bank.mean(torch.float64)
    second = sum(b.T @ b for b in (tile.double() for tile in bank.tiles()))
    message = x @ second / len(bank)
    if centre:
        message -= (x.mean(0) @ mean) * mean
    return message.float()


@method(
    "invgc",
    year=2023,
    summary="inverse graph convolution: each item steps away from the similarity-weighted mean of both banks",
    source=_SOURCE,
    needs=("query_bank", "gallery_bank"),
    grid={"rate_gallery": RATES, "rate_query": RATES},
)
def inverse_graph_convolution(
    queries: Tensor,
    gallery: Tensor,
    query_bank: Bank,
    gallery_bank: Bank,
    *,
    rate_gallery: float = 1.0,
    rate_query: float = 1.0,
    variant: str = "released",
) -> Scorer:
    """Move each item by ``-rate mean_j w_j b_j``, w_j its similarity to bank item j; renormalise; rank by s.

    ``variant="released"`` (default: it is what could be verified): ``InvGC_func`` subtracts the mean of the whole
    bank x gallery matrix from the weights, and the results of the two banks are normalised separately and averaged.
    ``variant="paper"``: one step with plain similarities and both banks (as recalled from the text; unverified).
    The release has no default rates. The sums need only ``B^T B`` and the means, not the matrix.
    """
    _check(rate_gallery, rate_query)
    released = variant_of(variant)
    messages = [
        (bank.keep(gallery, ("dense", released), lambda bank=bank: _dense_message(gallery, bank, released)), rate)
        for bank, rate in ((gallery_bank, rate_gallery), (query_bank, rate_query))
    ]
    return Scorer(queries, _moved(gallery, messages, released))


def _local_message(gallery: Tensor, bank: Bank, pool_rate: float) -> Tensor:
    """Return (1/p) sum over each item's p nearest bank items of w_j b_j, float32 [m, d]; p = int(pool_rate x size)."""
    known = isinstance(pool_rate, int | float) and math.isfinite(pool_rate)
    pool = int(pool_rate * len(bank)) if known else 0
    if not 1 <= pool <= len(bank):
        raise InputError(
            f"pool_rate = {pool_rate!r} of a {bank.name} of {len(bank)} items is a pool of {pool}; "
            f"it must hold at least 1 item (pool_rate from {1 / len(bank):.2g} to 1)"
        )
    message = torch.empty_like(gallery)
    if isinstance(bank.embeddings, Rows):
        for rows, weights in bank.similarities(gallery):
            top = weights.topk(pool, dim=1)
            weights.zero_().scatter_(1, top.indices, top.values)
            parts = zip(weights.split(TILE, dim=1), bank.tiles(), strict=True)
            message[rows] = (sum(part.double() @ tile.double() for part, tile in parts) / pool).float()
        return message
    exact = bank.embeddings.double()

    def total(top: tuple[Tensor, Tensor]) -> Tensor:
        return embedding_bag(top[1], exact, per_sample_weights=top[0].double(), mode="sum")

    with ThreadPoolExecutor(torch.get_num_threads()) as threads:  # torch adds float64 bags in one
        for rows, weights in bank.similarities(gallery):
            parts = zip(*(part.split(16) for part in weights.topk(pool, dim=1)), strict=True)
            message[rows] = (torch.cat(list(threads.map(total, parts))) / pool).float()
    return message


@method(
    "invgc-localadj",
    year=2023,
    summary="inverse graph convolution with local adjacency: as invgc, over the nearest share of each bank",
    source=_SOURCE,
    needs=("query_bank", "gallery_bank"),
    grid={"rate_gallery": RATES[:4], "rate_query": RATES[:4], "pool_rate": (0.02, 0.05, 0.1)},
)
def inverse_graph_convolution_local(
    queries: Tensor,
    gallery: Tensor,
    query_bank: Bank,
    gallery_bank: Bank,
    *,
    rate_gallery: float = 1.0,
    rate_query: float = 1.0,
    pool_rate: float = 0.01,
    variant: str = "released",
) -> Scorer:
    """As ``invgc``, over the ``pool_rate`` share of nearest items of each bank, similarities taken as they are.

    In the release this branch does not subtract the mean, so it is not the dense method with a sparser graph; its
    wrapper has ``pool_rate=0.01`` and its function 0.1. A pool of fewer than one item, which gives NaN there, is an
    InputError here. ``variant`` as in ``invgc``.
    """
    _check(rate_gallery, rate_query)
    messages = [
        (
            bank.keep(gallery, ("local", pool_rate), lambda bank=bank: _local_message(gallery, bank, pool_rate)),
            rate,
        )
        for bank, rate in ((gallery_bank, rate_gallery), (query_bank, rate_query))
    ]
    return Scorer(queries, _moved(gallery, messages, variant_of(variant)))
