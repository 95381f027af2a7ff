"""Distribution normalisation: dn."""

from __future__ import annotations

from torch import Tensor

from reprolib.errors import InputError
from reprolib.methods.base import Bank, method
from reprolib.ranking import Scorer


@method(
    "dn",
    year=2023,
    summary="distribution normalisation: inner products after subtracting alpha times the mean of each modality",
    source="Zhou et al., 2023, as in the NNN authors' nnn/dn_ranker.py",
    needs=("query_bank", "gallery_bank"),
    grid={"alpha": (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)},
)
def distribution_normalisation(
    queries: Tensor, gallery: Tensor, query_bank: Bank, gallery_bank: Bank, *, alpha: float = 0.5
) -> Scorer:
    """Rank by ``(q - alpha mean(query bank)) . (g - alpha mean(gallery bank))``, not renormalised.

    ``alpha`` is the lambda of the paper (0.5 in the code). Only the offset of the queries changes a ranking; it
    acts as the bias ``alpha mean(query bank) . g``.
    """
    if not (isinstance(alpha, int | float) and 0 <= alpha < float("inf")):
        raise InputError(f"alpha = {alpha!r} is not a number of at least 0")
    return Scorer(queries - alpha * query_bank.mean(), gallery - alpha * gallery_bank.mean())
