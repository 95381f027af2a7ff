"""Linear controls for retrieval within one modality: what a fixed map does that costs nothing per query.

Each control is an affine map of the final embedding, applied to queries and gallery alike, after which rows are
normalised again. They stand beside modality inversion (Cross the Gap, arXiv 2502.04263), which optimises every query.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from reprolib import ranking
from reprolib.errors import InputError, nearest
from reprolib.methods.base import TILE, Method
from reprolib.methods.moments import Moments
from reprolib.ranking import ArrayLike

Map = Callable[[ArrayLike], Tensor]
SIDES = ("image", "text")
SHARES = (0.0, 0.05, 0.1, 0.2, 0.3)  # of the rank: the published choices lie between 0.04 and 0.33 where not OpenCLIP's
# (model, side) -> top, bottom directions that IsoCLIP's authors drop; from the scripts of simomagi/IsoCLIP
PUBLISHED = {
    ("CLIP ViT-B/32", "image"): (150, 50),
    ("CLIP ViT-B/32", "text"): (20, 100),
    ("CLIP ViT-B/16", "text"): (10, 50),
    ("CLIP ViT-L/14", "image"): (250, 200),
    ("OpenCLIP ViT-B/32", "image"): (50, 50),
}


@dataclass(frozen=True, eq=False)
class AffineMap:
    """The map x -> matrix (x - offset), float64 [d, d] and [d]; its output is normalised."""

    matrix: Tensor
    offset: Tensor

    def __call__(self, rows: ArrayLike) -> Tensor:
        """Return ``rows`` [n, d] mapped, float32 of unit length; they are normalised before, too.

        Raises InputError for bad rows, another width, and a row of which the map leaves nothing.
        """
        unit = ranking.as_embeddings(rows, "rows", device=self.matrix.device)
        if unit.shape[1] != len(self.offset):
            raise InputError(f"rows have width {unit.shape[1]}, but the map was fitted for {len(self.offset)}")
        mapped = torch.empty(len(unit), len(self.matrix), device=unit.device)
        for start, part, out in zip(range(0, len(unit), TILE), unit.split(TILE), mapped.split(TILE), strict=True):
            moved = (part.double() - self.offset) @ self.matrix.T
            out.copy_(ranking.as_embeddings(moved, "mapped rows", first=start))
        return mapped


CONTROLS: dict[str, Method] = {}


def control(
    name: str,
    *,
    year: int,
    summary: str,
    source: str,
    needs: tuple[str, ...] = (),
    grid: Mapping[str, tuple] | None = None,
) -> Callable[[Callable[..., Map]], Callable[..., Map]]:
    """Enter a function of what it ``needs`` (in that order) and keyword parameters in the catalogue."""

    def enter(function: Callable[..., Map]) -> Callable[..., Map]:
        CONTROLS[name] = Method(name, year, summary, source, function, needs, dict(grid or {}))
        return function

    return enter


def fit_control(
    name: str,
    *,
    train: ArrayLike | Moments | None = None,
    projections: tuple[ArrayLike, ArrayLike] | None = None,
    side: str = "image",
    **parameters: object,
) -> Map:
    """Fit control ``name`` and return its map, to be applied to queries and gallery of the modality ``side``.

    ``train`` [n, d] holds embeddings of that modality which are neither queries nor gallery; they are normalised. To
    fit many controls on them, pass ``Moments`` of ``ranking.as_rows``, which keep what was found.
    ``projections`` are (W_image [d, width], W_text [d, width]) as ``torch.nn.Linear`` keeps them
    (``projections_of``). Which is needed, and the ``parameters``, depend on the control (``CONTROLS``).

    Raises InputError for an unknown control, parameter or side (with the nearest names), for what is needed and was
    not given, for bad arrays, and for a parameter out of range.
    """
    if name not in CONTROLS:
        raise nearest(name, CONTROLS, "control")
    chosen = CONTROLS[name]
    parameters = chosen.checked(parameters)
    if side not in SIDES:
        raise nearest(side, SIDES, "side")
    given: dict[str, object] = {}
    if train is not None:
        given["train"] = train if isinstance(train, Moments) else Moments(ranking.as_rows(train, "train"))
    if projections is not None:
        pair = [_matrix(weight, f"projection of {label}s") for label, weight in zip(SIDES, projections, strict=True)]
        if len(pair[0]) != len(pair[1]):
            raise InputError(f"the projections give widths {len(pair[0])} and {len(pair[1])}; they must agree")
        given["projections"] = pair if side == "image" else pair[::-1]  # the side's own comes first
    for need in chosen.needs:
        if need not in given:
            raise InputError(f"the control {name} needs {need}, which was not given")
    return chosen.fit(*(given[need] for need in chosen.needs), **parameters)


def projections_of(model: Any) -> tuple[Tensor, Tensor]:
    """Return the projections (image, text) [d, width] of a ``CLIPModel``; InputError for a model without them."""
    layers = [getattr(model, f"{part}_projection", None) for part in ("visual", "text")]
    if None in layers:
        raise InputError(
            f"{type(model).__name__} has no visual_projection and text_projection: IsoCLIP needs both, as CLIP has them"
        )
    return layers[0].weight.detach(), layers[1].weight.detach()


def average(native: ArrayLike, inverted: ArrayLike, weight: float = 0.5) -> Tensor:
    """Return unit rows of ``(1 - weight) native + weight inverted``, float32 [n, d]; both are normalised first.

    Row i of both belongs to one item. Raises InputError for shapes that differ and a weight outside [0, 1].
    """
    one, other = ranking.as_embeddings(native, "native"), ranking.as_embeddings(inverted, "inverted")
    if one.shape != other.shape:
        raise InputError(f"native rows have shape {tuple(one.shape)}, inverted {tuple(other.shape)}; they must agree")
    if not 0 <= weight <= 1:
        raise InputError(f"weight = {weight!r} is not between 0 and 1")
    return ranking.as_embeddings((1 - weight) * one.double() + weight * other.double(), "average")


@control("none", year=0, summary="the embeddings as they are", source="baseline")
def none() -> Map:
    """Leave everything as it is."""
    return partial(ranking.as_embeddings, name="rows")


@control(
    "mean-centring",
    year=2018,
    summary="subtract the mean of the modality",
    source="Mu and Viswanath, ICLR 2018 (the first half of all-but-the-top)",
    needs=("train",),
)
def mean_centring(train: Moments) -> AffineMap:
    """x - mean(train)."""
    return AffineMap(torch.eye(train.width, dtype=torch.float64, device=train.device), train.mean)


@control(
    "pca",
    year=2018,
    summary="subtract the mean, drop the leading principal components, keep the next ones",
    source="Mu and Viswanath, ICLR 2018 (all-but-the-top)",
    needs=("train",),
    grid={"drop": (0, 1, 2, 4, 8, 16, 32)},
)
def pca(train: Moments, *, drop: int = 1, keep: int | None = None) -> AffineMap:
    """P (x - mean), P onto the principal components of ``train`` from ``drop`` on; ``keep`` of them, or all.

    Components are those of the covariance, by descending variance; those beyond the rank of ``train`` count as
    components of no variance.
    """
    _count(drop=drop, below=train.width)
    if keep is not None:
        _count(keep=keep, below=train.width - drop + 1, least=1)
    chosen = train.principal[1].flip(1)[:, drop : None if keep is None else drop + keep]
    return AffineMap(chosen @ chosen.T, train.mean)


@control(
    "whitening",
    year=2012,
    summary="subtract the mean and give all directions the same variance, with shrinkage",
    source="Jegou and Chum, ECCV 2012 (PCA whitening of retrieval features); shrinkage as scikit-learn's",
    needs=("train",),
    grid={"shrinkage": (0.003, 0.01, 0.03, 0.1, 0.3)},
)
def whitening(train: Moments, *, shrinkage: float = 0.1) -> AffineMap:
    """C^(-1/2) (x - mean), with C = (1 - shrinkage) cov(train) + shrinkage trace(cov) / d I; 1 only centres."""
    if not (isinstance(shrinkage, int | float) and 0 < shrinkage <= 1):
        raise InputError(f"shrinkage = {shrinkage!r} is not above 0 and at most 1")
    variances, axes = train.principal
    variances = variances.clamp(min=0)
    if float(variances.sum()) < 1e-12:
        raise InputError("train: all rows are equal, there is no variance to whiten")
    shrunk = (1 - shrinkage) * variances + shrinkage * variances.mean()
    return AffineMap((axes / shrunk.sqrt()) @ axes.T, train.mean)


@control(
    "random-map",
    year=0,
    summary="drop random directions: what losing dimensions costs by itself",
    source="baseline",
    needs=("train",),
    grid={"drop": (1, 8, 32)},
)
def random_map(train: Moments, *, drop: int = 1, seed: int = 0) -> AffineMap:
    """P x, P onto a random subspace (uniform) of ``drop`` dimensions fewer; ``train`` gives the width."""
    width = train.width
    _count(drop=drop, below=width)
    draw = torch.randn(width, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    kept = torch.linalg.qr(draw.to(train.device)).Q[:, drop:]
    return _linear(kept @ kept.T)


@control(
    "isoclip",
    year=2026,
    summary="drop the directions in which the two projections agree most and least",
    source="CVPR 2026, arXiv 2603.19862; simomagi/IsoCLIP, src/retrieval.py",
    needs=("projections",),
)
def isoclip(projections: tuple[Tensor, Tensor], *, top: int = 0, bottom: int = 0) -> AffineMap:
    """M = W U_S U_S^T W^+, where W^T W' = U S V^T and U_S leaves out ``top`` leading and ``bottom`` last directions.

    W [d, width] is the projection of the side, W' the other's. The paper replaces W by W U_S U_S^T; as span(U) lies
    in the row space of W, that is this linear map of the final embedding. Directions are counted within the rank of
    W^T W' (the released code counts up to the smaller width, which is the same unless the rank is lower). What the
    authors drop is in ``PUBLISHED``; ``isoclip_grid`` gives shares of the rank for other models.
    """
    own, directions = projections[0], _directions(*projections)
    rank = directions.shape[1]
    _count(top=top, below=rank)
    _count(bottom=bottom, below=rank - top)
    kept = directions[:, top : rank - bottom]
    return _linear(own @ kept @ (kept.T @ torch.linalg.pinv(own)))


def isoclip_grid(projections: tuple[ArrayLike, ArrayLike]) -> list[dict[str, int]]:
    """Return the parameters of ``isoclip`` to try: all pairs of ``SHARES`` of the rank, each pair once."""
    pair = [_matrix(weight, f"projection of {label}s") for label, weight in zip(SIDES, projections, strict=True)]
    rank = _directions(*pair).shape[1]
    counts = sorted({int(share * rank) for share in SHARES})
    return [{"top": top, "bottom": bottom} for top in counts for bottom in counts]


def _directions(own: Tensor, other: Tensor) -> Tensor:
    """Return the left singular vectors of own^T other that belong to singular values above 0, [width, rank]."""
    vectors, values, _ = torch.linalg.svd(own.T @ other, full_matrices=False)
    return vectors[:, values > values[0] * max(own.shape) * torch.finfo(torch.float64).eps]


def _linear(matrix: Tensor) -> AffineMap:
    return AffineMap(matrix, torch.zeros(matrix.shape[1], dtype=torch.float64, device=matrix.device))


def _matrix(weight: ArrayLike, name: str) -> Tensor:
    return ranking.as_embeddings(weight, name, normalize=False).double()


def _count(*, below: int, least: int = 0, **value: int) -> None:
    """Raise InputError unless the one named value is a whole number from ``least`` to below ``below``."""
    ((name, number),) = value.items()
    if isinstance(number, bool) or not isinstance(number, int) or not least <= number < below:
        raise InputError(f"{name} = {number!r} is not a whole number from {least} to {below - 1}")
