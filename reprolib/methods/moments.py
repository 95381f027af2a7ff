"""First and second moments of embeddings, which may stay in their file: read part by part, found once and kept."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor

from reprolib.methods.base import TILE
from reprolib.ranking import Rows


class Moments:
    """Mean and spread of ``rows`` [n, d], all float64; each takes a pass over the rows when it is first asked for.

    ``weights`` [n] says how often each row counts; by default once.
    """

    def __init__(self, rows: Tensor | Rows, weights: Tensor | None = None) -> None:
        self.rows, self.width, self.device = rows, rows.shape[1], rows.device
        given = torch.ones(len(rows), device=rows.device) if weights is None else weights
        self._weights = given.double() / given.sum()

    def __len__(self) -> int:
        return len(self.rows)

    def _parts(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the rows in float64, 2,048 at a time, with their shares of the total weight."""
        return zip((rows.double() for rows in self.rows.split(TILE)), self._weights.split(TILE), strict=True)

    @cached_property
    def mean(self) -> Tensor:
        """The mean row [d]."""
        return sum(weights @ rows for rows, weights in self._parts())

    @cached_property
    def variance(self) -> Tensor:
        """The variance of each dimension [d], over n."""
        return sum(weights @ (rows - self.mean).square() for rows, weights in self._parts())

    @cached_property
    def covariance(self) -> Tensor:
        """The covariance of the dimensions [d, d], over n."""
        return sum(((rows - self.mean).T * weights) @ (rows - self.mean) for rows, weights in self._parts())

    @cached_property
    def principal(self) -> tuple[Tensor, Tensor]:
        """Variances [d], ascending, and principal axes, the columns of [d, d]."""
        return tuple(torch.linalg.eigh(self.covariance))


def pair_covariance(one: Moments, other: Moments, pairs: Tensor) -> Tensor:
    """Return the covariance [d, d] of the rows of ``one`` with those of ``other`` over ``pairs`` int64 [2, p], over p.

    Pairs with the same row of ``other`` should stand together: their rows of ``one`` are summed first.
    """
    total = torch.zeros(one.width, other.width, dtype=torch.float64, device=one.device)
    for mine, theirs in zip(*(side.split(TILE) for side in pairs), strict=True):
        partners, place = theirs.unique_consecutive(return_inverse=True)
        summed = total.new_zeros(len(partners), one.width)
        summed.index_add_(0, place, one.rows[mine].double() - one.mean)
        total += summed.T @ (other.rows[partners].double() - other.mean)
    return total / pairs.shape[1]
