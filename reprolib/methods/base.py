"""What every hubness correction shares: the catalogue, and banks that are streamed past the gallery."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from reprolib import ranking
from reprolib.errors import InputError, nearest
from reprolib.ranking import ArrayLike, Scorer

TEMPERATURES = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 50.0, 75.0, 100.0, 150.0)
NEIGHBOURS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_TILE = 2048  # bank items per tile: fixed, so that a reduction is summed in the same order whatever the block size
_ROWS = 64  # gallery rows are padded to a multiple of this: thinner products take other kernels and other roundings


class Bank:
    """Embeddings [n, d] that a correction learns from, and their reductions over the similarities to a gallery.

    A reduction streams the bank past the gallery in tiles and keeps a running result per gallery item: no
    bank x gallery matrix exists. Results are kept, so one bank can serve a whole grid of parameters.
    """

    def __init__(self, embeddings: Tensor, name: str, block_bytes: int = ranking.BLOCK_BYTES) -> None:
        self.embeddings, self.name, self.block_bytes = embeddings, name, block_bytes
        self._kept: dict[tuple, tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        return len(self.embeddings)

    def keep(self, gallery: Tensor, key: object, compute: Callable[[], Tensor]) -> Tensor:
        """Return what ``compute`` gave for this very gallery and ``key`` before, or compute it now."""
        full_key = (id(gallery), key)
        if full_key not in self._kept:
            self._kept[full_key] = (gallery, compute())  # holding the gallery keeps its id from being reused
        return self._kept[full_key][1]

    def _tiles(self, gallery: Tensor) -> Iterable[tuple[slice, Iterable[Tensor]]]:
        """Yield (gallery rows, similarities [rows, tile] of each tile of the bank), float32."""
        step = max(_ROWS, self.block_bytes // (4 * _TILE) // _ROWS * _ROWS)
        for start in range(0, len(gallery), step):
            rows = gallery[start : start + step]
            padded = torch.nn.functional.pad(rows, (0, 0, 0, -len(rows) % _ROWS))
            products = ((padded @ tile.T)[: len(rows)] for tile in self.embeddings.split(_TILE))
            yield slice(start, start + len(rows)), products

    def logsumexp(self, gallery: Tensor, beta: float) -> Tensor:
        """Return log sum_j exp(beta s(g, b_j)) over the bank, float64 [n_gallery]."""
        return self.logsumexps(gallery, (beta,))[0]

    def logsumexps(self, gallery: Tensor, betas: Iterable[float]) -> list[Tensor]:
        """Return ``logsumexp`` for several temperatures; those not yet known share one pass over the bank."""
        betas = [float(beta) for beta in betas]
        if 0.0 in betas:
            everything = torch.full((len(gallery),), len(self), dtype=torch.float64, device=gallery.device).log()
            self.keep(gallery, ("lse", 0.0), lambda: everything)
        missing = [beta for beta in betas if (id(gallery), ("lse", beta)) not in self._kept]
        if missing:
            results = torch.empty(len(missing), len(gallery), dtype=torch.float64, device=gallery.device)
            scale = torch.tensor(missing, dtype=torch.float64, device=gallery.device)[:, None]
            for rows, tiles in self._tiles(gallery):
                peak = torch.full((rows.stop - rows.start,), -torch.inf, device=gallery.device)
                total = torch.zeros(len(missing), len(peak), dtype=torch.float64, device=gallery.device)
                for tile in tiles:
                    higher = torch.maximum(peak, tile.amax(1))
                    tile = tile - higher[:, None]
                    total *= torch.exp(scale * (peak.double() - higher.double()))
                    for number, beta in enumerate(missing):
                        # below beta = 1 the sum is nearly constant and its differences are divided by beta
                        terms = (tile.double() if beta < 1 else tile) * beta
                        total[number] += terms.exp_().sum(1)
                    peak = higher
                results[:, rows] = torch.log(total) + scale * peak.double()
            for beta, result in zip(missing, results, strict=True):
                self.keep(gallery, ("lse", beta), lambda result=result: result)
        return [self._kept[id(gallery), ("lse", beta)][1] for beta in betas]

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
            best = torch.empty(rows.stop - rows.start, 0, device=gallery.device)
            for tile in tiles:
                both = torch.cat([best, tile.topk(min(k, tile.shape[1]), dim=1, sorted=False).values], 1)
                best = both.topk(min(k, both.shape[1]), dim=1).values
            sums[rows] = best.double().cumsum(1)
        return sums

    def mean(self) -> Tensor:
        """Return the mean embedding, float32 [d]."""
        return self.embeddings.mean(0, dtype=torch.float64).float()

    def activation_set(self, gallery: Tensor, k: int) -> Tensor:
        """Return which gallery items are among the ``k`` best of any bank entry, bool [n_gallery] (QB-Norm)."""

        def compute() -> Tensor:
            top = ranking.topk(Scorer(self.embeddings, gallery), k, ordered=False, block_bytes=self.block_bytes)
            active = torch.zeros(len(gallery), dtype=torch.bool, device=gallery.device)
            active[torch.as_tensor(top.ravel(), device=gallery.device)] = True
            return active

        return self.keep(gallery, ("active", k), compute)


def centred(bias: Tensor) -> Tensor:
    """Return a float64 bias [m] as float32 with its median moved to 0.

    A constant changes no ranking but costs digits (at small beta the log-sum-exp divided by beta is in the
    thousands); the median does not depend on the order of the gallery.
    """
    return (bias - bias.median()).float()


@dataclass(frozen=True)
class Method:
    """A correction in the catalogue: what it is called, where it comes from, what it needs, and what to tune."""

    name: str
    year: int
    summary: str
    source: str
    fit: Callable[..., Scorer]
    needs: tuple[str, ...] = ()
    grid: Mapping[str, tuple] = field(default_factory=dict)

    @property
    def parameters(self) -> dict[str, object]:
        """Parameter names and defaults, in order."""
        signature = inspect.signature(self.fit)
        return {p.name: p.default for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY}


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
    for parameter in parameters:
        if parameter not in chosen.parameters:
            raise nearest(parameter, chosen.parameters, f"parameter of {name}")
    # numbers of a numpy grid are as good as Python's
    parameters = {key: value.item() if isinstance(value, np.generic) else value for key, value in parameters.items()}
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
            bank = Bank(ranking.as_embeddings(given, label, normalize=normalize, device=device), label)
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
