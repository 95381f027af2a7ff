"""Inverse graph convolution, dense and with local adjacency: invgc and invgc-localadj. Only the gallery moves."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from scipy.sparse import csc_array, csr_array, vstack
from torch import Tensor
from torch.nn.functional import normalize

from reprolib.errors import InputError
from reprolib.methods.base import TILE, Bank, in_threads, method, variant_of
from reprolib.ranking import Scorer

_ENTRIES = 2**22  # similarities that are held at a time
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
    for start, weights in _weights(gallery, bank, pool):
        total = np.zeros((weights.shape[0], gallery.shape[1]))
        for number, tile in enumerate(bank.tiles()):
            total += weights[:, number * TILE : number * TILE + len(tile)] @ tile.cpu().double().numpy()
        message[start : start + len(total)] = torch.from_numpy(total / pool).float()
    return message


def _weights(gallery: Tensor, bank: Bank, pool: int) -> Iterator[tuple[int, csc_array]]:
    """Yield (first row, similarities [rows, n] to the ``pool`` nearest bank items), float32, for parts of the gallery.

    The bank is read once more for each part, so these are as large as the memory of 2^22 similarities allows.
    """
    waiting: list[csr_array] = []
    for rows, found in bank.similarities(gallery):
        similarities = found.cpu().numpy()
        chosen = in_threads(partial(_nearest, pool=pool), similarities)
        ends = pool * np.arange(len(chosen) + 1, dtype=np.int32)
        values = np.take_along_axis(similarities, np.stack(chosen), 1).ravel()
        waiting.append(csr_array((values, np.concatenate(chosen), ends), shape=found.shape))
        height = sum(part.shape[0] for part in waiting)
        if rows.stop == len(gallery) or height * pool >= _ENTRIES:
            yield rows.stop - height, vstack(waiting, "csc")
            waiting.clear()


def _nearest(similarities: np.ndarray, pool: int) -> np.ndarray:
    """Return the places of the ``pool`` largest, ascending, int32; of equal ones the first."""
    bound = np.partition(similarities, len(similarities) - pool)[len(similarities) - pool]
    above, equal = np.flatnonzero(similarities > bound), np.flatnonzero(similarities == bound)
    return np.sort(np.concatenate([above, equal[: pool - len(above)]])).astype(np.int32)


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
