"""What every hubness correction shares: the catalogue, and banks that are streamed past the gallery."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reprolib import ranking
from reprolib.errors import InputError, nearest
from reprolib.ranking import ArrayLike, Rows, Scorer

TEMPERATURES = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 50.0, 75.0, 100.0, 150.0)
NEIGHBOURS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
TILE = 2048  # bank items per tile: fixed, so that a reduction is summed in the same order whatever the block size
_ROWS = 64  # both sides of a product are padded to a multiple: thinner ones take other kernels and other roundings


class Bank:
    """Embeddings [n, d] that a correction learns from, and their reductions over the similarities to a gallery.

    A reduction streams the bank past the gallery in tiles and keeps a running result per gallery item: no
    bank x gallery matrix exists. Results are kept as long as the gallery's tensor, so one bank can serve a whole
    grid of parameters (``fit`` takes a float32 tensor as it is with ``normalize=False``). A bank that is ``Rows`` stays
    in its file and is read once per pass.
    """

    def __init__(self, embeddings: Tensor | Rows, name: str, block_bytes: int = ranking.BLOCK_BYTES) -> None:
        self.embeddings, self.name, self.block_bytes = embeddings, name, block_bytes
        self._kept: dict[tuple, tuple[weakref.ref[Tensor], Tensor]] = {}

    def __len__(self) -> int:
        return len(self.embeddings)

    def keep(self, gallery: Tensor, key: object, compute: Callable[[], Tensor]) -> Tensor:
        """Return what ``compute`` gave for this very gallery and ``key`` before, or compute it now."""
        full_key = (id(gallery), key)
        if full_key not in self._kept:
            bank = weakref.ref(self)

            def forget(_: object) -> None:  # with the gallery, whose id may be given again
                if (left := bank()) is not None:
                    left._kept.pop(full_key, None)

            self._kept[full_key] = (weakref.ref(gallery, forget), compute())
        return self._kept[full_key][1]

    def _tiles(self, gallery: Tensor) -> Iterator[tuple[slice, Iterator[Tensor]]]:
        """Yield (gallery rows, ``similarities`` of these), as many rows as a block of such tiles may have."""
        for start in range(0, len(gallery), self._step()):
            rows = gallery[start : start + self._step()]
            yield slice(start, start + len(rows)), self.similarities(rows)

    def _step(self) -> int:
        return max(2 * _ROWS, self.block_bytes // (4 * TILE) // _ROWS * _ROWS)

    def tiles(self) -> Iterable[Tensor]:
        """Yield the bank, 2,048 rows at a time, float32."""
        return self.embeddings.split(TILE)

    def similarities(self, rows: Tensor) -> Iterator[Tensor]:
        """Yield the similarities [r, tile] of gallery ``rows`` [r, d] to each tile of the bank, float32.

        A tile is soon overwritten. The tiles are always the same.
        """
        padded = _padded(rows)
        out = torch.empty(len(padded), TILE, device=rows.device)
        for tile in self.tiles():
            whole = _padded(tile)
            yield torch.mm(padded, whole.T, out=out[:, : len(whole)])[: len(rows), : len(tile)]

    def logsumexp(self, gallery: Tensor, beta: float) -> Tensor:
        """Return log sum_j exp(beta s(g, b_j)) over the bank, float64 [n_gallery]."""
        return self.logsumexps(gallery, (beta,))[0]

    def logsumexps(self, gallery: Tensor, betas: Iterable[float], best: bool = False) -> list[Tensor]:
        """Return ``logsumexp`` for several temperatures; those not yet known share one pass over the bank.

        ``best``: find ``best`` in the same pass, for a later call.
        """
        betas = [float(beta) for beta in betas]
        self._pass(gallery, betas, best)
        return [self._kept[id(gallery), ("lse", beta)][1] for beta in betas]

    def best(self, gallery: Tensor) -> Tensor:
        """Return the best gallery item of every bank entry by canonical score, int64 [n]."""
        self._pass(gallery, (), best=True)
        return self._kept[id(gallery), "best"][1]

    def activation(self, gallery: Tensor, k: int, beta: float) -> tuple[Tensor, Tensor]:
        """Return ``activation_set(gallery, k)`` and ``logsumexp(gallery, beta)``; for k = 1 one pass gives both."""
        self._pass(gallery, (float(beta),), best=k == 1)
        return self.activation_set(gallery, k), self.logsumexp(gallery, beta)

    def _pass(self, gallery: Tensor, betas: Iterable[float], best: bool = False) -> None:
        """Find whatever is not yet known of the log-sum-exps for ``betas`` and the best items, in one pass."""
        if 0.0 in betas:
            everything = torch.full((len(gallery),), len(self), dtype=torch.float64, device=gallery.device).log()
            self.keep(gallery, ("lse", 0.0), lambda: everything)
        missing = [beta for beta in dict.fromkeys(betas) if (id(gallery), ("lse", beta)) not in self._kept]
        best = best and (id(gallery), "best") not in self._kept
        top = _Best(Scorer(self.embeddings, gallery), self._step() * TILE) if best else None
        if not missing and top is None:
            return
        results = torch.empty(len(missing), len(gallery), dtype=torch.float64, device=gallery.device)
        scale = torch.tensor(missing, dtype=torch.float64, device=gallery.device)[:, None]
        for rows, tiles in self._tiles(gallery):
            peak = torch.full((rows.stop - rows.start,), -torch.inf, device=gallery.device)
            total = torch.zeros(len(missing), len(peak), dtype=torch.float64, device=gallery.device)
            for number, tile in enumerate(tiles):
                if top is not None:
                    top.see(tile, rows.start, number * TILE)
                if missing:
                    higher = torch.maximum(peak, tile.amax(1))
                    tile -= higher[:, None]
                    total *= torch.exp(scale * (peak.double() - higher.double()))
                    peak = higher
                for place, beta in enumerate(missing):
                    # below beta = 1 the sum is nearly constant and its differences are divided by beta
                    terms = tile.double() if beta < 1 else tile if beta == missing[-1] else tile.clone()
                    total[place] += terms.mul_(beta).exp_().sum(1)
            results[:, rows] = torch.log(total) + scale * peak.double()
        for beta, result in zip(missing, results, strict=True):
            self.keep(gallery, ("lse", beta), lambda result=result: result)
        if top is not None:
            self.keep(gallery, "best", top.items)

    def top_mean(self, gallery: Tensor, k: int, most: int | None = None) -> Tensor:
        """Return the mean of each gallery item's ``k`` largest similarities to the bank, float64 [n_gallery].

        ``most`` (at least k): keep that many, so that later calls with other ``k`` up to it cost nothing.
        """
        if not (isinstance(k, int) and 1 <= k <= len(self)):
            raise InputError(f"k = {k!r} is not between 1 and the size of the {self.name}, {len(self)}")
        kept = [key[1][1] for key in self._kept if key[0] == id(gallery) and key[1][0] == "top"]
        depth = max([min(most or k, len(self)), k])
        depth = next((d for d in sorted(kept) if d >= k), depth)
        sums = self.keep(gallery, ("top", depth), lambda: self._top_sums(gallery, depth))
        return sums[:, k - 1] / k

    def _top_sums(self, gallery: Tensor, k: int) -> Tensor:
        sums = torch.empty(len(gallery), k, dtype=torch.float64, device=gallery.device)
        for rows, tiles in self._tiles(gallery):
            best, waiting = torch.empty(rows.stop - rows.start, 0, device=gallery.device), []
            for tile in tiles:
                if best.shape[1] < k:
                    best = _largest(k, best, tile)
                    continue
                waiting.append(_above(tile, best[:, -1:]))
                if sum(found.shape[1] for found in waiting) > k + _ROWS:  # few pass the k-th best, ever fewer
                    best, waiting = _largest(k, best, *waiting), []
            sums[rows] = _largest(k, best, *waiting).double().cumsum(1)
        return sums

    def mean(self) -> Tensor:
        """Return the mean embedding, float32 [d], summed in float64."""
        return (sum(tile.sum(0, dtype=torch.float64) for tile in self.tiles()) / len(self)).float()

    def activation_set(self, gallery: Tensor, k: int) -> Tensor:
        """Return which gallery items are among the ``k`` best of any bank entry, bool [n_gallery] (QB-Norm)."""

        def compute() -> Tensor:
            scorer = Scorer(self.embeddings, gallery)
            top = self.best(gallery) if k == 1 else ranking.topk(scorer, k, ordered=False, block_bytes=self.block_bytes)
            active = torch.zeros(len(gallery), dtype=torch.bool, device=gallery.device)
            active[torch.as_tensor(top, device=gallery.device).ravel()] = True
            return active

        return self.keep(gallery, ("active", k), compute)


class _Best:
    """The best gallery item of every query, found along a pass of float32 tiles; canonical scores settle near ties.

    Tiles have at most ``entries``. What is kept is written into buffers: small tensors among the large ones that come
    and go would scatter the memory.
    """

    def __init__(self, scorer: Scorer, entries: int) -> None:
        self.scorer, self.error = scorer, scorer.error_bound()
        n, device = scorer.shape[0], scorer.queries.device
        self.mask = torch.empty(entries, dtype=torch.bool, device=device)
        self.highest = torch.full((n,), -torch.inf, device=device)
        self.count = 0  # of entries that may be the best: query, item and score
        self.found = [torch.empty(2 * n, dtype=dtype, device=device) for dtype in (torch.int64,) * 2 + (torch.float32,)]

    def see(self, tile: Tensor, item: int, query: int) -> None:
        """Take in a tile [items, queries] of scores that starts at ``item`` and ``query``."""
        highest = self.highest[query : query + tile.shape[1]]
        torch.maximum(highest, tile.amax(0), out=highest)
        reached = self.mask[: tile.numel()].view(tile.shape)
        flat = ranking.true_entries(torch.ge(tile, highest - 2 * self.error, out=reached).view(-1))
        items = torch.div(flat, tile.shape[1], rounding_mode="floor")
        end = self.count + len(flat)
        if end > len(self.found[0]):
            self.found = [torch.cat([kept, torch.empty_like(kept)]) for kept in self.found]
            return self.see(tile, item, query)
        new = flat - items * tile.shape[1] + query, items + item, tile.reshape(-1)[flat]
        for kept, values in zip(self.found, new, strict=True):
            kept[self.count : end] = values
        self.count = end

    def items(self) -> Tensor:
        """Return the best item of every query, the first of equal ones, int64 [n]."""
        query, item, value = (kept[: self.count] for kept in self.found)
        possible = value >= (self.highest - 2 * self.error)[query]
        query, item = query[possible], item[possible]
        contested = (torch.bincount(query, minlength=len(self.highest)) > 1)[query]
        score = torch.zeros(len(query), device=item.device)
        score[contested] = self.scorer.pairs(query[contested], item[contested])
        order = ranking.sort_key(query, score).argsort(stable=True)  # a query's items arrive in their order
        query, item = query[order], item[order]
        return item[torch.searchsorted(query, torch.arange(len(self.highest), device=item.device))]


def _largest(k: int, *parts: Tensor) -> Tensor:
    """Return the ``k`` largest of each row over ``parts``, descending; fewer where there are fewer."""
    both = torch.cat(parts, 1)
    return both.topk(min(k, both.shape[1]), dim=1).values


def _above(tile: Tensor, bound: Tensor) -> Tensor:
    """Return the entries of ``tile`` [b, t] above ``bound`` [b, 1], row by row, filled up with minus infinity."""
    flat = ranking.true_entries((tile > bound).reshape(-1))
    row = torch.div(flat, tile.shape[1], rounding_mode="floor")
    place = torch.arange(len(row), device=row.device) - torch.searchsorted(row, row)
    found = torch.full((len(tile), int(place.max()) + 1 if len(place) else 0), -torch.inf, device=tile.device)
    found[row, place] = tile.reshape(-1)[flat]
    return found


def _padded(rows: Tensor) -> Tensor:
    return torch.nn.functional.pad(rows, (0, 0, 0, -len(rows) % _ROWS)) if len(rows) % _ROWS else rows


def in_threads(function: Callable[..., Any], *parts: Sequence) -> list:
    """Apply ``function`` to every part, in as many threads as torch uses, each of which computes in one.

    For long chains of small operations, where threads would otherwise wait for each other after every one.
    """
    threads = torch.get_num_threads()
    calls = list(zip(*parts, strict=True))
    found: list[Any] = [None] * len(calls)

    def work(first: int) -> None:  # many parts are small: each in turn would wait for the queue
        found[first::threads] = [function(*call) for call in calls[first::threads]]

    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, range(threads)))
    finally:
        torch.set_num_threads(threads)
    return found


def centred(bias: Tensor) -> Tensor:
    """Return a float64 bias [m] as float32 with its median moved to 0.

    A constant changes no ranking but costs digits (at small beta the log-sum-exp divided by beta is in the
    thousands); the median does not depend on the order of the gallery.
    """
    return (bias - bias.median()).float()


@dataclass(frozen=True)
class Method:
    """A method in a catalogue: what it is called, where it comes from, what it needs, and what to tune.

    ``fit`` of a correction gives a ``Scorer``; interventions and controls are methods too, and give maps.
    """

    name: str
    year: int
    summary: str
    source: str
    fit: Callable[..., Any]
    needs: tuple[str, ...] = ()
    grid: Mapping[str, tuple] = field(default_factory=dict)

    @property
    def parameters(self) -> dict[str, object]:
        """Parameter names and defaults, in order."""
        signature = inspect.signature(self.fit)
        return {p.name: p.default for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY}

    def checked(self, parameters: Mapping[str, object]) -> dict[str, object]:
        """Return ``parameters`` with NumPy's numbers as Python's; raises InputError with the nearest valid names."""
        for parameter in parameters:
            if parameter not in self.parameters:
                raise nearest(parameter, self.parameters, f"parameter of {self.name}")
        return {key: value.item() if isinstance(value, np.generic) else value for key, value in parameters.items()}


CATALOGUE: dict[str, Method] = {}


def method(
    name: str,
    *,
    year: int,
    summary: str,
    source: str,
    needs: tuple[str, ...] = (),
    grid: Mapping[str, tuple] | None = None,
) -> Callable[[Callable[..., Scorer]], Callable[..., Scorer]]:
    """Enter a function ``(queries, gallery, query_bank, gallery_bank, *, parameters) -> Scorer`` in the catalogue.

    ``queries`` and ``gallery`` are float32 tensors, the banks ``Bank`` or None; those named in ``needs`` are given.
    """

    def enter(function: Callable[..., Scorer]) -> Callable[..., Scorer]:
        CATALOGUE[name] = Method(name, year, summary, source, function, needs, dict(grid or {}))
        return function

    return enter


def fit(
    name: str,
    queries: ArrayLike,
    gallery: ArrayLike,
    *,
    query_bank: ArrayLike | Bank | None = None,
    gallery_bank: ArrayLike | Bank | None = None,
    normalize: bool = True,
    device: str | None = None,
    **parameters: object,
) -> Scorer:
    """Fit correction ``name`` and return its ``Scorer`` (streamed scores, ranks, top-k); see ``correct``."""
    if name not in CATALOGUE:
        raise nearest(name, CATALOGUE, "method")
    chosen = CATALOGUE[name]
    parameters = chosen.checked(parameters)
    q = ranking.as_embeddings(queries, "queries", normalize=normalize, device=device)
    g = ranking.as_embeddings(gallery, "gallery", normalize=normalize, device=device)
    if q.shape[1] != g.shape[1]:
        raise InputError(f"queries have width {q.shape[1]} and the gallery {g.shape[1]}; they must agree")
    banks: dict[str, Bank | None] = {}
    for label, given in (("query_bank", query_bank), ("gallery_bank", gallery_bank)):
        if given is None or (not isinstance(given, Bank) and len(given) == 0):
            if label in chosen.needs:
                state = "is empty" if given is not None else "was not given"
                raise InputError(f"{name} needs a {label}, which {state}")
            banks[label] = None
            continue
        bank = given
        if not isinstance(bank, Bank):
            bank = Bank(ranking.as_rows(given, label, normalize=normalize, device=device), label)
        if bank.embeddings.shape[1] != g.shape[1]:
            raise InputError(
                f"{label} has width {bank.embeddings.shape[1]} and the gallery {g.shape[1]}; they must agree"
            )
        banks[label] = bank
    return chosen.fit(q, g, banks["query_bank"], banks["gallery_bank"], **parameters)


def correct(
    name: str,
    queries: ArrayLike,
    gallery: ArrayLike,
    *,
    query_bank: ArrayLike | Bank | None = None,
    gallery_bank: ArrayLike | Bank | None = None,
    normalize: bool = True,
    device: str | None = None,
    **parameters: object,
) -> Tensor:
    """Return the scores of ``queries`` [n, d] against ``gallery`` [m, d] after correction, float32 [n, m].

    ``query_bank`` [b, d] holds items of the queries' modality, ``gallery_bank`` [c, d] of the gallery's; which are
    needed, and the ``parameters``, depend on the method (``catalogue()``). All embeddings are L2-normalised first;
    ``normalize=False`` takes them as they are. No input is changed. Scores serve to rank the gallery for a query:
    terms that are constant for a query are left out, and where a correction is a bias per gallery item the scores
    stay in the unit of the similarities. To rank without the whole matrix, use ``fit``.

    Raises InputError for an unknown method or parameter (with the nearest names), a missing or empty bank or one
    too small for the method, and bad embeddings (naming the row).
    """
    return fit(
        name,
        queries,
        gallery,
        query_bank=query_bank,
        gallery_bank=gallery_bank,
        normalize=normalize,
        device=device,
        **parameters,
    ).scores()


def positive(**values: float) -> None:
    """Raise InputError unless every named value is a finite number above 0."""
    for name, value in values.items():
        if not (isinstance(value, int | float) and 0 < value < float("inf")):
            raise InputError(f"{name} = {value!r} is not a number above 0")


def variant_of(variant: str) -> bool:
    """Return whether the released code's behaviour is asked for; raise InputError for an unknown variant."""
    if variant not in ("paper", "released"):
        raise nearest(str(variant), ("paper", "released"), "variant")
    return variant == "released"
