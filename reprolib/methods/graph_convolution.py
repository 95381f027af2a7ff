"""Inverse graph convolution, dense and with local adjacency: invgc and invgc-localadj. Only the gallery moves."""

from __future__ import annotations

import itertools
import math
from functools import partial

import numpy as np
import torch
from scipy.sparse import csc_array, csr_array
from torch import Tensor
from torch.nn.functional import embedding_bag, normalize

from reprolib.errors import InputError
from reprolib.methods.base import TILE, Bank, in_threads, method, variant_of
from reprolib.ranking import Scorer, true_entries

_ITEMS = 1728  # gallery items at a time, at most: a bank in a file is read twice for each so many
_ENTRIES = 10 * 2**20  # neighbours of these items that are held
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
    second, first = 0.0, 0.0
    for tile in bank.tiles():
        b = tile.double()
        second, first = second + b.T @ b, first + b.sum(0)
    x = gallery.double()
    message = x @ second / len(bank)
    if centre:
        mean = first / len(bank)
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


def least_rate(size: int) -> float:
    """Return a ``pool_rate`` of two digits, just large enough for a pool of one among ``size`` items."""
    unit = 10.0 ** (math.floor(math.log10(1 / size)) - 1)
    return next(rate for rate in (round(count * unit, 12) for count in itertools.count(10)) if int(rate * size) >= 1)


def _local_message(gallery: Tensor, bank: Bank, pool_rate: float) -> Tensor:
    """Return (1/p) sum over each item's p nearest bank items of w_j b_j, float32 [m, d]; p = int(pool_rate x size)."""
    known = isinstance(pool_rate, int | float) and math.isfinite(pool_rate)
    pool = int(pool_rate * len(bank)) if known else 0
    if not 1 <= pool <= len(bank):
        raise InputError(
            f"pool_rate = {pool_rate!r} of a {bank.name} of {len(bank)} items is a pool of {pool}; "
            f"it must hold at least 1 item (pool_rate from {least_rate(len(bank)):.2g} to 1)"
        )
    message = torch.empty_like(gallery)
    step = min(_ITEMS, max(_ITEMS // 16, _ENTRIES // pool))
    for start in range(0, len(gallery), step):
        weights = _weights(gallery[start : start + step], bank, pool)
        total = torch.zeros(weights.shape[0], gallery.shape[1], dtype=torch.float64, device=gallery.device)
        for number, tile in enumerate(bank.tiles()):
            here = weights[:, number * TILE : number * TILE + len(tile)].tocsr()
            given = here.indices, here.indptr, here.data
            which, begin, value = (torch.from_numpy(part).to(tile.device) for part in given)
            total += embedding_bag(which, tile, begin, mode="sum", per_sample_weights=value, include_last_offset=True)
        message[start : start + step] = total / pool
    return message


def _weights(items: Tensor, bank: Bank, pool: int, guess: bool = True) -> csc_array:
    """Return the similarities [n_items, n_bank] of each item to its ``pool`` nearest bank items, float32."""
    nearest = _Nearest(len(items), pool, len(bank) if guess else 0)
    for number, tile in enumerate(bank.similarities(items)):
        nearest.see(tile, number * TILE)
    places, values = nearest.found()
    missed = nearest.count < pool  # the guess was too high
    if bool(missed.any()):
        again = _weights(items[missed.to(items.device)], bank, pool, guess=False).tocsr()
        rows = missed.numpy()
        places[rows], values[rows] = again.indices.reshape(-1, pool), again.data.reshape(-1, pool)
    ends = pool * np.arange(len(items) + 1, dtype=np.int32)
    return csr_array((values.ravel(), places.ravel(), ends), shape=(len(items), len(bank))).tocsc()


class _Nearest:
    """The ``pool`` largest similarities of each item, of equal ones the first, found along tiles of them.

    What may be among them is kept, item by item, until there is twice as much as needed. The first time, a bound is
    guessed from the share seen of ``n`` bank items (0: not guessed), so that little is kept that is not needed later;
    an item for which it was too high has a ``count`` below the pool in the end.
    """

    def __init__(self, items: int, pool: int, n: int) -> None:
        self.pool, self.n, self.bound = pool, n, torch.full((items, 1), -torch.inf)
        self.values = torch.empty(items, 2 * pool + TILE)
        self.places = torch.empty(self.values.shape, dtype=torch.int32)
        self.count = torch.zeros(items, dtype=torch.int64)

    def see(self, tile: Tensor, first: int) -> None:
        """Take in similarities [items, t] to the bank items from ``first`` on, which follow those seen before."""
        width, end, most = tile.shape[1], first + tile.shape[1], self.pool
        if bool(self.bound[0] == -torch.inf):
            self.values[:, first:end], self.places[:, first:end] = tile, torch.arange(first, end)
            self.count += width
            share = self.pool * end / max(self.n, 1)
            most = min(most, int(share + 6 * share**0.5 + 6)) if self.n else most  # six standard deviations above
        else:
            flat = true_entries((tile > self.bound.to(tile.device)).reshape(-1))
            value, flat = tile.reshape(-1)[flat].cpu(), flat.cpu()
            row = torch.div(flat, width, rounding_mode="floor")
            new = torch.bincount(row, minlength=len(self.count))
            start = self.values.shape[1] * torch.arange(len(new)) + self.count - (new.cumsum(0) - new)
            at = torch.arange(len(flat)) + start[row]
            self.values.view(-1)[at], self.places.view(-1)[at] = value, (flat - width * row + first).int()
            self.count += new
        if int(self.count.max()) > 2 * self.pool:
            self._settle(most)

    def _settle(self, most: int) -> None:
        parts = (self.values.numpy(), self.places.numpy(), self.count.tolist())
        kept = in_threads(partial(_settle, most=most), *parts)
        self.bound[:, 0] = torch.tensor([bound for bound, _ in kept])
        self.count = torch.tensor([count for _, count in kept])

    def found(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the places, int32, ascending, and the similarities, float32: [items, pool] each."""
        self._settle(self.pool)
        return self.places[:, : self.pool].numpy(), self.values[:, : self.pool].numpy()


def _settle(values: np.ndarray, places: np.ndarray, count: int, most: int) -> tuple[float, int]:
    """Move the ``most`` largest of ``count`` values, and their places, to the front in their order.

    Returns the least of them and their number: there may be fewer than ``most``.
    """
    most = min(most, count)
    bound = np.partition(values[:count], count - most)[count - most]
    chosen = np.flatnonzero(values[:count] >= bound)
    if len(chosen) > most:
        equal = chosen[values[chosen] == bound]
        chosen = np.setdiff1d(chosen, equal[most - len(chosen) :])
    values[:most], places[:most] = values[chosen], places[chosen]
    return float(bound), most


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
