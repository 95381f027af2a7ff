"""Corrections by the mean similarity of an item to its nearest bank queries: csls and nnn."""

from __future__ import annotations

from torch import Tensor

from reprolib.methods.base import NEIGHBOURS, Bank, centred, method, positive
from reprolib.ranking import Scorer


@method(
    "csls",
    year=2018,
    summary="cross-domain similarity local scaling: s - half the mean of the k best bank similarities",
    source="Conneau et al., ICLR 2018, with a query bank as in QB-Norm (arXiv 2112.12777)",
    needs=("query_bank",),
    grid={"k": NEIGHBOURS},
)
def csls(queries: Tensor, gallery: Tensor, query_bank: Bank, gallery_bank: Bank | None, *, k: int = 10) -> Scorer:
    """Rank by ``2 s(q, g) - r(q) - r(g)``, r(g) the mean of g's ``k`` largest similarities to the query bank.

    r(q), the mean similarity of the query to its k best items, is constant for a query and left out, and the rest
    is halved: the scores are those of ``nnn`` with alpha = 0.5. k = 10 is the customary default (unverified).
    """
    return nnn(queries, gallery, query_bank, gallery_bank, alpha=0.5, k=k)


@method(
    "nnn",
    year=2024,
    summary="nearest neighbour normalisation: s - alpha times the mean of the k best bank similarities",
    source='"Nearest Neighbor Normalization", EMNLP 2024, arXiv 2410.24114, equations 1 and 2',
    needs=("query_bank",),
    grid={"alpha": tuple(0.25 + 0.125 * i for i in range(11)), "k": NEIGHBOURS},
)
def nnn(
    queries: Tensor,
    gallery: Tensor,
    query_bank: Bank,
    gallery_bank: Bank | None,
    *,
    alpha: float = 0.75,
    k: int = 128,
) -> Scorer:
    """Rank by ``s(q, g) - alpha r(g)``, r(g) the mean of g's ``k`` largest similarities to the query bank.

    Defaults are those the authors' README advises (k = 128, alpha = 0.75); the constructor of their library has
    k = 256, alpha = 0.5. Raises InputError if the bank has fewer than ``k`` items.
    """
    positive(alpha=alpha)
    return Scorer(queries, gallery, centred(alpha * query_bank.top_mean(gallery, k))[None])
