"""Interventions on the modality gap: ways to move images and texts, fitted on train rows and applied to others.

``INTERVENTIONS`` is the catalogue; ``intervene`` fits one. To add one: a function here under ``@intervention(...)``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.sparse.linalg
import torch
from torch import Tensor

from reprolib import ranking
from reprolib.errors import InputError, nearest
from reprolib.methods.base import Bank, Method, positive
from reprolib.methods.moments import Moments, pair_covariance
from reprolib.methods.sinkhorn import potentials
from reprolib.metrics.gap import matching
from reprolib.ranking import ArrayLike, Relevance, Rows

Map = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
SIDES = ("both", "image", "text")
_ROLE = "Role et al., 2025, arXiv 2505.03703 (Fill the Gap), from a secondary source"
_LIANG = "Liang et al., NeurIPS 2022, arXiv 2203.02053"


@dataclass(frozen=True)
class Intervention(Method):
    """An intervention in the catalogue; ``fit`` gives a ``Map``.

    ``transductive``: it uses the very rows it is applied to, both modalities together, and nothing else.
    """

    transductive: bool = False


class Train:
    """The rows that interventions are fitted on, and what they ask of them: moments, found once and kept.

    Fit many interventions on one ``Train``: a whole grid of parameters costs no more than one of them. The rows are
    read part by part; those of a large mapped array stay in their file (``ranking.as_rows``). Arguments and errors as
    those of ``intervene``.
    """

    def __init__(self, image: ArrayLike, text: ArrayLike, relevance: Relevance | None = None) -> None:
        self.image, self.text = (Moments(rows) for rows in _sides(image, text, ranking.as_rows))
        n, m = self.sizes = len(self.image), len(self.text)
        if min(self.sizes) < 2:
            raise InputError(f"{n} train images and {m} train texts: at least 2 of each are needed")
        self._match = None if relevance is None and n != m else matching(relevance, n, m)

    @cached_property
    def gap(self) -> Tensor:
        """mean(image) - mean(text), float64 [d]."""
        return self.image.mean - self.text.mean

    @cached_property
    def pairs(self) -> tuple[Moments, Moments, Tensor]:
        """The images and the texts of the matching pairs, and the covariance [d, d] of the texts with the images."""
        if self._match is None:
            n, m = self.sizes
            raise InputError(f"{n} train images and {m} train texts: pass relevance to say what matches")
        places = [torch.as_tensor(side.astype(np.int64), device=self.image.device) for side in self._match.nonzero()]
        image, text = (
            Moments(side.rows, torch.bincount(place, minlength=len(side)))
            for side, place in zip((self.image, self.text), places, strict=True)
        )
        return image, text, pair_covariance(text, image, torch.stack(places[::-1]))


INTERVENTIONS: dict[str, Intervention] = {}


def intervention(
    name: str,
    *,
    year: int,
    summary: str,
    source: str,
    grid: Mapping[str, tuple] | None = None,
    transductive: bool = False,
) -> Callable[[Callable[..., Map]], Callable[..., Map]]:
    """Enter a function ``(train, *, parameters) -> Map`` in the catalogue; ``train`` is a ``Train``.

    The map it returns takes and gives float64 rows; ``intervene`` does the rest.
    """

    def enter(function: Callable[..., Map]) -> Callable[..., Map]:
        INTERVENTIONS[name] = Intervention(
            name, year, summary, source, function, grid=dict(grid or {}), transductive=transductive
        )
        return function

    return enter


def intervene(
    name: str,
    image: ArrayLike | Train,
    text: ArrayLike | None = None,
    relevance: Relevance | None = None,
    *,
    renormalize: bool = True,
    **parameters: object,
) -> Map:
    """Fit intervention ``name`` on the train rows ``image`` [n, d], ``text`` [m, d] and return the map that moves rows.

    The map takes images [a, d] and texts [b, d] and returns both after the move, float32, rows of unit length again
    unless ``renormalize=False``. Everything is L2-normalised first and computed in float64; no input is changed.
    Only if ``INTERVENTIONS[name].transductive`` does what becomes of a row depend on the other rows given with it.
    ``relevance`` (images x texts, see ``ranking.as_relevance``) says which train rows match; None: row i with row i
    where n = m. Only ``procrustes`` and ``linear`` look at it. A ``Train`` may stand for all three. ``parameters`` and
    defaults: ``INTERVENTIONS[name].parameters``; values to select from on validation data: ``.grid``.

    Raises InputError for an unknown intervention or parameter (with the nearest names) or a bad value, bad embeddings
    (naming the row), differing widths, fewer than 2 train rows, missing pairs, and a row that is moved onto 0.
    """
    if name not in INTERVENTIONS:
        raise nearest(name, INTERVENTIONS, "intervention")
    chosen = INTERVENTIONS[name]
    parameters = chosen.checked(parameters)
    shared = isinstance(image, Train)
    if shared != (text is None) or (shared and relevance is not None):
        raise InputError(f"{name} is fitted on images and texts, or on a Train alone")
    train = image if shared else Train(image, text, relevance)
    move = chosen.fit(train, **parameters)

    def apply(image: ArrayLike, text: ArrayLike) -> tuple[Tensor, Tensor]:
        rows = [side.double() for side in _sides(image, text, ranking.as_embeddings)]
        if rows[0].shape[1] != train.image.width:
            raise InputError(f"{name} was fitted on width {train.image.width}, but the rows have {rows[0].shape[1]}")
        moved = zip(("images", "texts"), move(*rows), strict=True)
        return tuple(ranking.as_embeddings(r, f"{side} after {name}", normalize=renormalize) for side, r in moved)

    return apply


def _sides(image: ArrayLike, text: ArrayLike, taken: Callable[..., Tensor | Rows]) -> list[Tensor | Rows]:
    """Return images and texts as unit rows, which ``taken`` makes of them, in memory of their own or in their file."""
    rows = [taken(side, name) for side, name in ((image, "images"), (text, "texts"))]
    if rows[0].shape[1] != rows[1].shape[1]:
        raise InputError(f"images have width {rows[0].shape[1]} and texts {rows[1].shape[1]}; they must agree")
    return rows


def _number(least: float = -np.inf, **values: float) -> None:
    """Raise InputError unless every named value is a finite number of at least ``least``."""
    for name, value in values.items():
        if isinstance(value, bool) or not (isinstance(value, int | float) and least <= value < np.inf):
            bound = "" if least == -np.inf else f" of at least {least:g}"
            raise InputError(f"{name} = {value!r} is not a finite number{bound}")


def _count(k: int, most: int, what: str) -> None:
    if isinstance(k, bool) or not (isinstance(k, int) and 1 <= k <= most):
        raise InputError(f"k = {k!r} is not between 1 and {most}, {what}")


def _along(step: Tensor, sides: str) -> Map:
    """Return the map that brings images and texts nearer by ``step`` [d]: half each, or one side alone."""
    if sides not in SIDES:
        raise nearest(str(sides), SIDES, "sides")
    share = {"both": (0.5, 0.5), "image": (1.0, 0.0), "text": (0.0, 1.0)}[sides]
    return lambda image, text: (image - share[0] * step, text + share[1] * step)


@intervention("none", year=0, summary="the rows as they are", source="")
def none(train: Train) -> Map:
    """Leave everything where it is."""
    return lambda image, text: (image, text)


@intervention(
    "shift",
    year=2022,
    summary="shift along the centroid difference by a share of it",
    source=_LIANG,
    grid={"lam": (-0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0)},
)
def shift(train: Train, *, lam: float = 1.0, sides: str = "both") -> Map:
    """Take the share ``lam`` of the gap Delta = mean(image) - mean(text) away: x - lam/2 Delta, y + lam/2 Delta.

    The paper (from a secondary source) writes x - lambda Delta, y + lambda Delta: its lambda is ``lam / 2``. Before
    renormalisation the gap becomes (1 - lam) Delta: 1 closes it, below 0 widens it. ``sides`` "image" or "text" moves
    that modality alone, by lam Delta.
    """
    _number(lam=lam)
    return _along(lam * train.gap, sides)


@intervention(
    "shift-released",
    year=2022,
    summary="shift along the unit centroid difference by an absolute distance, as in the released notebooks",
    source=_LIANG + "; shift_features.ipynb and get_gap_stats.ipynb of Weixin-Liang/Modality-Gap",
    grid={"delta": (-0.5, -0.25, 0.0, 0.25, 0.5, 0.75)},
)
def shift_released(train: Train, *, delta: float = 0.5, sides: str = "both") -> Map:
    """Move by the distance ``delta`` along u = Delta / norm(Delta): x - delta/2 u, y + delta/2 u.

    As the release does it, where the paper scales Delta itself: the same ``delta`` is another share of another gap.
    ``sides`` "image" (released too) or "text" moves that modality alone, by ``delta``. Before renormalisation the gap
    becomes norm(Delta) - delta. Raises InputError if the centroids coincide.
    """
    _number(delta=delta)
    length = train.gap.norm()
    if length < 1e-7:  # the resolution of float32
        raise InputError("the centroids of train images and train texts coincide; there is no direction to shift along")
    return _along(delta * train.gap / length, sides)


@intervention(
    "mean-centring",
    year=2025,
    summary="subtract the mean of each modality (GR-CLIP)",
    source="Closing the Modality Gap for Mixed Modality Search, 2025, arXiv 2507.19054",
)
def mean_centring(train: Train) -> Map:
    """x - mean(train images), y - mean(train texts): the gap of the train rows is 0 before renormalisation."""
    return lambda image, text: (image - train.image.mean, text - train.text.mean)


@intervention(
    "i0t",
    year=2025,
    summary="standardise each modality",
    source="I0T, 2025 (unverified); the third-party variant from a secondary source",
    grid={"variant": ("paper", "third-party")},
)
def i0t(train: Train, *, variant: str = "third-party") -> Map:
    """Standardise each modality with its train statistics.

    ``variant="third-party"`` (default: a baseline that was read about, and other than mean-centring):
    (x - mean) / (std + 1e-6) per dimension, std over n; its epsilon is not known, 1e-6 is ours. ``variant="paper"``:
    subtract the mean and renormalise (unverified), which is ``mean-centring``.
    """
    if variant not in ("paper", "third-party"):
        raise nearest(str(variant), ("paper", "third-party"), "variant")
    centre = mean_centring(train)
    if variant == "paper":
        return centre
    spread = [side.variance.sqrt() + 1e-6 for side in (train.image, train.text)]

    def move(image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        x, y = centre(image, text)
        return x / spread[0], y / spread[1]

    return move


@intervention(
    "drop-dimensions",
    year=2025,
    summary="remove the dimensions with the largest gaps",
    source="after the rogue dimensions of Schrodi et al., ICLR 2025",
    grid={"k": (1, 2, 4, 8)},
)
def drop_dimensions(train: Train, *, k: int = 2) -> Map:
    """Set the ``k`` dimensions with the largest absolute centroid difference to 0 in both modalities.

    For inner products that is to delete them; the width stays. Raises InputError unless 1 <= k < d.
    """
    _count(k, train.image.width - 1, "one less than the width")
    kept = torch.ones_like(train.gap)
    kept[train.gap.abs().argsort(descending=True, stable=True)[:k]] = 0
    return lambda image, text: (image * kept, text * kept)


@intervention(
    "procrustes",
    year=1966,
    summary="orthogonal map of the texts onto their images",
    source="Schonemann, Psychometrika 1966",
    grid={"centred": (False, True)},
)
def procrustes(train: Train, *, centred: bool = False) -> Map:
    """Map texts by the orthogonal Q that minimises sum |x - y Q|^2 over the train pairs; images stay.

    ``centred``: both sides are centred on the means of the pairs before, and texts become (y - mean_y) Q + mean_x.
    Directions that the pairs do not determine (fewer pairs than dimensions) stay as near to where they are as can be.
    """
    if not isinstance(centred, bool):
        raise InputError(f"centred = {centred!r} is neither True nor False")
    x, y, product = train.pairs
    mean_x, mean_y = (x.mean, y.mean) if centred else (0.0, 0.0)
    product = product if centred else product + torch.outer(y.mean, x.mean)
    towards = 1e-8 * product.norm() * torch.eye(len(product), dtype=torch.float64, device=product.device)
    u, _, vh = torch.linalg.svd(product + towards)  # what the pairs leave open is drawn towards the identity
    return lambda image, text: (image, (text - mean_y) @ (u @ vh) + mean_x)


@intervention(
    "linear",
    year=1970,
    summary="ridge regression from texts to their images",
    source="Hoerl and Kennard, Technometrics 1970",
    grid={"ridge": (1e-4, 1e-3, 1e-2, 1e-1, 1.0)},
)
def linear(train: Train, *, ridge: float = 0.01) -> Map:
    """Map texts to (y - mean_y) W + mean_x, W minimising mean |x - mean_x - (y - mean_y) W|^2 + ridge |W|^2.

    Means and sum are over the train pairs; images stay. (scikit-learn's ``Ridge`` with alpha = ridge x pairs.)
    """
    positive(ridge=ridge)
    x, y, product = train.pairs
    penalty = ridge * torch.eye(y.width, dtype=torch.float64, device=y.device)
    weights = torch.linalg.solve(y.covariance + penalty, product)
    return lambda image, text: (image, (text - y.mean) @ weights + x.mean)


@intervention(
    "spectral",
    year=2025,
    summary="eigenvectors of the bipartite similarity graph as new embeddings",
    source=_ROLE,
    grid={"k": (30, 60, 120)},
    transductive=True,
)
def spectral(train: Train, *, k: int = 60) -> Map:
    """Embed the rows given by the ``k`` smallest non-trivial eigenvectors of a graph Laplacian; rows become [., k].

    The graph joins images and texts by W = max(X Y^T, 0) (clipping is ours: a weight below 0 has no degree);
    L = I - D^-1 A with A = [[0, W], [W^T, 0]]. Computed from the singular vectors u, v of D_x^-1/2 W D_y^-1/2: an
    eigenvector is [D_x^-1/2 u; D_y^-1/2 v], its eigenvalue 1 - the singular value. Holds W in float64 [a, b].
    Transductive. Raises InputError unless 1 <= k <= min(a, b) - 2, and for a row without a positive similarity.
    """
    _number(1, k=k)

    def move(image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        size = min(len(image), len(text))
        _count(k, size - 2, f"two less than the smaller modality of {len(image)} images and {len(text)} texts")
        weights = (image @ text.T).clamp_min(0).cpu().numpy()
        roots = [np.sqrt(weights.sum(axis, keepdims=True)) for axis in (1, 0)]
        for name, root in zip(("image", "text"), roots, strict=True):
            if not root.all():
                row = int(np.flatnonzero(root.ravel() == 0)[0])
                raise InputError(f"spectral: {name} {row} has no positive similarity to the other modality")
        start = np.random.default_rng(0).standard_normal(size)
        u, value, vt = scipy.sparse.linalg.svds(weights / roots[0] / roots[1], k + 1, v0=start)
        order = np.argsort(-value)[1:]  # the first is trivial: constant over all rows
        moved = u[:, order] / roots[0], vt[order].T / roots[1].T
        return tuple(torch.as_tensor(rows, device=image.device) for rows in moved)

    return move


@intervention(
    "optimal-transport",
    year=2025,
    summary="texts become the mean of the images they are transported to (entropic optimal transport)",
    source=_ROLE + ", which regularises by graph Laplacians instead",
    grid={"tau": (0.01, 0.02, 0.05, 0.1)},
    transductive=True,
)
def optimal_transport(train: Train, *, tau: float = 0.02, iterations: int = 100) -> Map:
    """Map each text given onto the mean of the images given, weighted by its row of a transport plan; images stay.

    Entropic transport with cost 1 - s, uniform marginals and regularisation ``tau`` (``sinkhorn.potentials``); the
    barycentric map is softmax((s - potential of the image) / tau) over the images. The paper's plan is regularised
    by graph Laplacians (secondary source); this is the plain entropic one. Transductive.
    """
    positive(tau=tau)
    _number(1, iterations=iterations)

    def move(image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        bias = potentials(image.float(), Bank(text.float(), "texts"), tau, iterations)
        moved = torch.empty_like(text)
        for rows in ranking.blocks(len(text), len(image), ranking.BLOCK_BYTES // 2):
            moved[rows] = ((text[rows] @ image.T - bias) / tau).softmax(1) @ image
        return image, moved

    return move
