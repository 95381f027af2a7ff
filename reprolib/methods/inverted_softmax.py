"""Inverted softmax and its dynamic and dual forms: none, is, dis, dual-is, dual-dis.

With LSE(beta, B)(g) = log sum_j exp(beta s(g, b_j)) over a bank B, all of them rank by ``s(q, g) - b(g)``:

    is        b = LSE(beta, Q) / beta
    dual-is   b = [LSE(query_beta, Q) + LSE(gallery_beta, G)] / (query_beta + gallery_beta)

and the dynamic forms apply a term only to queries whose best item is in that bank's activation set.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from reprolib import ranking
from reprolib.errors import InputError, nearest
from reprolib.methods.base import TEMPERATURES, Bank, centred, method, positive, variant_of
from reprolib.ranking import Scorer

# From "as good as off" to the range of the query bank; NNN's authors found 0.001 to 15 useful (arXiv 2410.24114, B2).
GALLERY_TEMPERATURES = (0.0, 0.01, 0.1, 1.0, 3.0, 10.0, 30.0)
_CHUNK = 2**20  # bytes of scores transformed at a time: they stay in cache


@method("none", year=0, summary="inner products, uncorrected", source="")
def none(queries: Tensor, gallery: Tensor, query_bank: Bank | None, gallery_bank: Bank | None) -> Scorer:
    """Rank by s(q, g)."""
    return Scorer(queries, gallery)


@method(
    "is",
    year=2017,
    summary="inverted softmax: s - LSE(beta s(g, query bank)) / beta",
    source="Smith et al., ICLR 2017, as in QB-Norm (Bogolin et al., CVPR 2022, arXiv 2112.12777)",
    needs=("query_bank",),
    grid={"beta": TEMPERATURES},
)
def inverted_softmax(
    queries: Tensor, gallery: Tensor, query_bank: Bank, gallery_bank: Bank | None, *, beta: float = 20.0
) -> Scorer:
    """Rank by ``exp(beta s(q, g)) / sum_j exp(beta s(q_j, g))`` over the query bank, in log space.

    ``beta``: inverse temperature on the similarity scale; 20 in QB-Norm's code.
    """
    positive(beta=beta)
    return Scorer(queries, gallery, centred(query_bank.logsumexp(gallery, beta) / beta)[None])


def _check_activation(activation_k: int, gallery: Tensor) -> None:
    if not (isinstance(activation_k, int) and 1 <= activation_k <= len(gallery)):
        raise InputError(
            f"activation_k = {activation_k!r} is not between 1 and the size of the gallery, {len(gallery)}"
        )


def _best(queries: Tensor, gallery: Tensor, bank: Bank) -> Tensor:
    """Return the best item of every query, int64 [n]; kept with the bank, for a grid of parameters."""
    return bank.keep(
        gallery, ("best", _Same(queries)), lambda: Bank(queries, "queries", bank.block_bytes).best(gallery)
    )


@dataclass(frozen=True)
class _Same:
    """A key that equals another of the very same tensor, and keeps it alive so that its id is not reused."""

    tensor: Tensor

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.tensor is other.tensor

    def __hash__(self) -> int:
        return id(self.tensor)


@method(
    "dis",
    year=2022,
    summary="dynamic inverted softmax (QB-Norm): is, for queries whose best item some bank query also retrieves",
    source="Bogolin et al., CVPR 2022, arXiv 2112.12777",
    needs=("query_bank",),
    grid={"beta": TEMPERATURES},
)
def dynamic_inverted_softmax(
    queries: Tensor,
    gallery: Tensor,
    query_bank: Bank,
    gallery_bank: Bank | None,
    *,
    beta: float = 20.0,
    activation_k: int = 1,
    variant: str = "paper",
) -> Scorer:
    """Apply ``is`` to queries whose best item is among the ``activation_k`` best of some bank query.

    ``variant="released"`` gives the numbers of ioanacroi/qb-norm, dynamic_inverted_softmax.py, ``qb_norm``: gated
    rows hold exp(beta s) / Z, the others raw similarities, in float32 without log space (beta times the similarity
    above about 88 overflows to infinity). Rows rank alike unless something overflows; columns mix two scales.
    The release also overwrites its input; nothing here does.
    """
    positive(beta=beta)
    _check_activation(activation_k, gallery)
    active, lse = query_bank.activation(gallery, activation_k, beta)
    gate = active[_best(queries, gallery, query_bank)]
    notes = {"share of queries corrected": float(gate.float().mean())}
    if variant_of(variant):
        total = lse.exp().float()

        def mixed(scores: Tensor, rows: slice) -> Tensor:
            return torch.where(gate[rows, None], torch.exp(scores * beta) / total, scores)

        return Scorer(queries, gallery, transform=mixed, notes=notes)
    bias = centred(lse / beta)
    return Scorer(queries, gallery, torch.stack([torch.zeros_like(bias), bias]), gate.long(), notes=notes)


def _temperatures(query_beta: float, gallery_beta: float) -> None:
    for name, value in (("query_beta", query_beta), ("gallery_beta", gallery_beta)):
        if not (isinstance(value, int | float) and 0 <= value < float("inf")):
            raise InputError(f"{name} = {value!r} is not a number of at least 0")
    if query_beta == 0 and gallery_beta == 0:
        raise InputError("query_beta and gallery_beta are both 0; at least one must be above 0")


@method(
    "dual-is",
    year=2023,
    summary="dual inverted softmax (DBNorm): inverted softmax over a query bank and a gallery bank",
    source="Wang et al., EMNLP 2023, arXiv 2310.11612",
    needs=("query_bank", "gallery_bank"),
    grid={"query_beta": TEMPERATURES, "gallery_beta": GALLERY_TEMPERATURES},
)
def dual_inverted_softmax(
    queries: Tensor,
    gallery: Tensor,
    query_bank: Bank,
    gallery_bank: Bank,
    *,
    query_beta: float = 20.0,
    gallery_beta: float = 1.0,
    variant: str = "paper",
) -> Scorer:
    """Rank by ``(query_beta + gallery_beta) s(q, g) - LSE(query_beta, query bank) - LSE(gallery_beta, gallery bank)``.

    Divided by the sum of the temperatures, which changes no ranking. At ``gallery_beta=0`` this is ``is``. The
    paper's beta1 is the gallery bank's and its beta2 the query bank's (as quoted by third parties); the released
    code swaps the names (DBNorm/dbnorm.py: ``beta1=1/1.99`` scales the query bank, ``beta2=3`` the gallery bank).

    ``variant="released"``: yimuwangcs/Better_Cross_Modal_Retrieval, DBNorm/dbnorm.py, ``db_norm`` normalises the
    gallery bank x gallery matrix in both of its calls and never uses the test queries; so do we then, and the
    scores have shape [n_gallery_bank, n_gallery].
    """
    _temperatures(query_beta, gallery_beta)
    total = query_bank.logsumexp(gallery, query_beta) + gallery_bank.logsumexp(gallery, gallery_beta)
    bias = centred(total / (query_beta + gallery_beta))[None]
    return Scorer(gallery_bank.embeddings if variant_of(variant) else queries, gallery, bias)


def _signed_log(similarity: Tensor, log_factor: Tensor) -> Tensor:
    """Return a value per entry that orders each row as ``similarity * exp(log_factor)`` does, without overflow."""
    magnitude = similarity.abs().log() + log_factor
    finite = torch.where(magnitude.isfinite(), magnitude, torch.inf)
    lowest = finite.amin(1, keepdim=True).clamp_max(0.0)
    lifted = torch.where(magnitude.isfinite(), magnitude - lowest + 1, 0.0)
    return similarity.sign() * lifted


@method(
    "dual-dis",
    year=2023,
    summary="dual dynamic inverted softmax (DBNorm): each factor of dual-is only where its activation set is hit",
    source="Wang et al., EMNLP 2023, arXiv 2310.11612",
    needs=("query_bank", "gallery_bank"),
    grid={"query_beta": TEMPERATURES, "gallery_beta": GALLERY_TEMPERATURES},
)
def dual_dynamic_inverted_softmax(
    queries: Tensor,
    gallery: Tensor,
    query_bank: Bank,
    gallery_bank: Bank,
    *,
    query_beta: float = 20.0,
    gallery_beta: float = 1.0,
    activation_k: int = 1,
    ungated: str = "similarity",
    variant: str = "paper",
) -> Scorer:
    """Multiply the two inverted softmax factors, each gated by the activation set of its own bank.

    A factor whose gate is closed is replaced by the raw similarity (``ungated="similarity"``, the paper as quoted
    by third parties; the product is ordered in log space, and with both gates closed the ranking is that of the
    similarity), or left out (``ungated="none"``, which keeps the bias form).

    ``variant="released"``: as ``db_norm(dynamic_normalized=True)`` computes it. ``qb_norm`` overwrites its input, so
    the second call receives the first call's result as bank *and* as test, and the product is the square of the
    doubly overwritten gallery bank x gallery matrix (float32, [n_gallery_bank, n_gallery], held in memory).
    """
    _temperatures(query_beta, gallery_beta)
    if ungated not in ("similarity", "none"):
        raise nearest(str(ungated), ("similarity", "none"), "ungated")
    _check_activation(activation_k, gallery)
    if variant_of(variant):
        matrix = _released_dynamic(gallery, query_bank, gallery_bank, query_beta, gallery_beta, activation_k)
        return Scorer(gallery_bank.embeddings, gallery, transform=lambda _, rows: matrix[rows].clone())
    betas = (query_beta, gallery_beta)
    best = _best(queries, gallery, query_bank)
    known = [
        bank.activation(gallery, activation_k, b) for bank, b in zip((query_bank, gallery_bank), betas, strict=True)
    ]
    gates, terms = [active[best] for active, _ in known], [term for _, term in known]
    state = gates[0].long() + 2 * gates[1].long()
    notes = {
        "share of queries corrected, query bank": float(gates[0].float().mean()),
        "share of queries corrected, gallery bank": float(gates[1].float().mean()),
    }
    single = [
        centred(term / beta) if beta > 0 else torch.zeros_like(term, dtype=torch.float32)
        for term, beta in zip(terms, betas, strict=True)
    ]
    bias = torch.stack([torch.zeros_like(single[0]), *single, centred(sum(terms) / sum(betas))])
    if ungated == "none":
        return Scorer(queries, gallery, bias, state, notes=notes)

    def product(scores: Tensor, rows: slice) -> Tensor:
        out = torch.empty_like(scores)
        for part in ranking.blocks(*scores.shape, _CHUNK):
            states = state[rows][part]
            torch.sub(scores[part], bias[states], out=out[part])
            for number, (term, beta) in enumerate(zip(terms, betas, strict=True), start=1):
                one = (states == number).nonzero().squeeze(1)
                exact = scores[part][one].double()
                out[part][one] = _signed_log(exact, beta * exact - term).float()
        return out

    return Scorer(queries, gallery, transform=product, notes=notes)


def _released_dynamic(
    gallery: Tensor,
    query_bank: Bank,
    gallery_bank: Bank,
    query_beta: float,
    gallery_beta: float,
    activation_k: int,
) -> Tensor:
    first_bank = query_bank.embeddings[:] @ gallery.T
    matrix = gallery_bank.embeddings[:] @ gallery.T
    for bank, beta in ((first_bank, query_beta), (None, gallery_beta)):
        similarities = matrix if bank is None else bank
        active = torch.zeros(len(gallery), dtype=torch.bool, device=gallery.device)
        active[similarities.topk(activation_k, dim=1).indices.ravel()] = True
        gate = active[matrix.argmax(1)]
        normalised = torch.exp(matrix * beta) / torch.exp(similarities * beta).sum(0)
        matrix = torch.where(gate[:, None], normalised, matrix)
    return matrix * matrix
