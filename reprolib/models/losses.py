"""Losses of two-tower retrieval, for many runs at once: each takes the cosines of a batch and returns one value a run.

A batch is n pairs. Rows are the items that have several partners (an image with its captions, a text with its
pictures), columns are partners, pairs stand on the diagonal. With ``partners`` = K, every item stands in K rows, one
after the other, each with another of its partners; the other columns of the same item are positives too. A loss that
takes one partner per item is fed with K = 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from reprolib.errors import nearest

MARGIN = 0.2  # of VSE++ and of those that followed it
TEMPERATURE = 0.07  # at which a learnt temperature starts (CLIP, CCR^K)
FIXED_TEMPERATURE = 0.05
SDM_TEMPERATURE = 0.02  # of IRRA: recalled, not verified
WEIGHT = 0.5  # of a term that stands beside InfoNCE
_EPSILON = 1e-8


@dataclass(frozen=True)
class Batch:
    """What a loss may look at, for r runs.

    ``rows`` and ``columns`` [r, n, d] are unit embeddings, ``scale`` [r, 1, 1] the learnt inverse temperature,
    ``partners`` K, ``hardest`` whether only the hardest negative counts by now.
    """

    rows: Tensor
    columns: Tensor
    scale: Tensor
    partners: int = 1
    hardest: bool = True

    @property
    def scores(self) -> Tensor:
        """Cosines [r, n, n] of rows and columns."""
        return self.rows @ self.columns.transpose(1, 2)

    @property
    def within(self) -> Tensor:
        """Cosines [r, n, n] of columns."""
        return self.columns @ self.columns.transpose(1, 2)

    @property
    def same(self) -> Tensor:
        """Whether row and column belong to one item, bool [n, n]."""
        return same_item(self.rows.shape[1], self.partners, self.rows.device)


def same_item(n: int, partners: int, device: torch.device | str = "cpu") -> Tensor:
    """Return whether row and column belong to one item, bool [n, n]: blocks of ``partners`` on the diagonal."""
    item = torch.arange(n, device=device) // partners
    return item[:, None] == item


def hinges(scores: Tensor, negative: Tensor, margin: Tensor | float = MARGIN, *, hardest: bool) -> Tensor:
    """Return the hinge loss [r] of VSE++ (Faghri et al., BMVC 2018): sum of hinges, or hardest negative.

    Each pair i with every column j and row j of ``negative`` bool [n, n] or [r, n, n]: [m + s_ij - s_ii]_+ and
    [m + s_ji - s_ii]_+, summed, or with ``hardest`` their largest per pair and direction. As in the released code
    (fartashf/vsepp, model.py, ContrastiveLoss) the batch is summed. ``margin`` is a number, or [r, n] per pair.
    """
    own = scores.diagonal(dim1=1, dim2=2) - margin
    scores = scores.masked_fill(~negative, -torch.inf)
    if hardest:
        return sum((scores.amax(axis) - own).clamp(min=0).sum(1) for axis in (2, 1))
    return sum((scores - line).clamp(min=0).sum((1, 2)) for line in (own[:, :, None], own[:, None, :]))


def info_nce(scores: Tensor, scale: Tensor | float, partners: int = 1) -> Tensor:
    """Return InfoNCE [r], the mean over both directions (van den Oord et al. 2018; CLIP).

    With several partners, the target of a row is uniform over its positives (as in X-VLM, get_contrastive_loss).
    """
    target = same_item(scores.shape[1], partners, scores.device) / partners
    logits = scale * scores
    log = logits.log_softmax(1) + logits.log_softmax(2)
    return -(log * target).sum((1, 2)) / (2 * scores.shape[1])


def sdm(scores: Tensor, same: Tensor, scale: float = 1 / SDM_TEMPERATURE, *, released: bool = False) -> Tensor:
    """Return IRRA's similarity distribution matching [r]: KL(softmax(scale s) || labels), summed over directions.

    ``same`` bool [n, n]: every pair of one item is a positive; the labels of a row are uniform over them, plus 1e-8.
    ``released`` divides by the sums of the columns instead (anosorae/IRRA, model/objectives.py, compute_sdm: the sum
    keeps no dimension), which is the same wherever ``same`` is symmetric, as it is in every batch here.
    """
    total = torch.zeros(len(scores), device=scores.device)
    for matrix, labels in ((scores, same.float()), (scores.transpose(1, 2), same.T.float())):
        target = labels / (labels.sum(1) if released else labels.sum(1, keepdim=True))
        log = (scale * matrix).log_softmax(2)
        total = total + (log.exp() * (log - (target + _EPSILON).log())).sum(2).mean(1)
    return total


def one_to_k(scores: Tensor, scale: Tensor, partners: int) -> Tensor:
    """Return the 1-to-K loss of CCR^K [r] as released (BUAADreamer/CCRK, models/xvlm.py, unialign loss).

    An item against all n columns, of which its K partners are positives; each partner against all items. Sums of
    -log softmax over positives, meant over items and over partners; their mean is divided by K, both parts alike.
    """
    items = scale * scores[:, ::partners]
    positive = same_item(scores.shape[1], partners, scores.device)[::partners]
    to_partners = -(items.log_softmax(2) * positive).sum((1, 2)) / items.shape[1]
    to_items = -(items.log_softmax(1) * positive).sum((1, 2)) / items.shape[2]
    return (to_partners + to_items) / 2 / partners


def conditional_transport(cost: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """Return the two-way conditional transport cost [...] between weighted point sets (PatchCT, ICCV 2023).

    ``cost`` [..., n, m], weights ``source`` [n] and ``target`` [m] of sum 1. Forward: sum_ij source_i pi(j | i) cost_ij
    with pi(j | i) proportional to target_j exp(-cost_ij); plus the same backward. The definition is recalled, not
    verified; code was announced, but its repository holds none.
    """
    forward = (target.log() - cost).softmax(-1) * source[:, None]
    backward = (source.log()[:, None] - cost).softmax(-2) * target
    return ((forward + backward) * cost).sum((-2, -1))


def transport(scores: Tensor, partners: int) -> Tensor:
    """Return the mean over items of the conditional transport cost 1 - s [r] between an item and its partners.

    The sets of PatchCT are patches and labels; heads on whole images have the item itself and its K partners.
    """
    r, n = scores.shape[:2]
    blocks = scores[:, ::partners].reshape(r, n // partners, n // partners, partners)
    own = blocks.diagonal(dim1=1, dim2=2).transpose(1, 2)[:, :, None]  # [r, items, 1, K]
    weights = torch.full((partners,), 1 / partners, device=scores.device)
    return conditional_transport(1 - own, weights.new_ones(1), weights).mean(1)


def intra_modal(within: Tensor, scale: Tensor, partners: int) -> Tensor:
    """Return the contrastive loss [r] among partners, those of one item being positives, each left out for itself.

    The supervised contrastive loss L_out (Khosla et al., NeurIPS 2020).
    """
    itself = torch.eye(within.shape[1], dtype=torch.bool, device=within.device)
    positive = same_item(within.shape[1], partners, within.device) & ~itself
    log = (scale * within).masked_fill(itself, -torch.inf).log_softmax(2)
    return -log.masked_fill(~positive, 0).sum((1, 2)) / (partners - 1) / within.shape[1]


def _nce(b: Batch, scores: Tensor) -> Tensor:
    return info_nce(scores, b.scale, b.partners)


def _transport(b: Batch) -> Tensor:
    scores = b.scores
    return _nce(b, scores) + WEIGHT * transport(scores, b.partners)


@dataclass(frozen=True)
class Loss:
    """A loss by name: what it computes from a batch, and how many partners of an item it takes."""

    title: str
    value: Callable[[Batch], Tensor]
    partners: int = 1


K = 4  # partners of the losses that take several; the batch keeps its number of pairs
LOSSES: Mapping[str, Loss] = {
    "sum-of-hinges": Loss("sum of hinges", lambda b: hinges(b.scores, ~b.same, hardest=False)),
    "hardest-negative": Loss("hardest negative", lambda b: hinges(b.scores, ~b.same, hardest=b.hardest)),
    "infonce": Loss("InfoNCE, learnt τ", lambda b: _nce(b, b.scores)),
    "infonce-fixed": Loss(f"InfoNCE, τ = {FIXED_TEMPERATURE}", lambda b: info_nce(b.scores, 1 / FIXED_TEMPERATURE)),
    "infonce-k": Loss(f"InfoNCE, {K} partners", lambda b: _nce(b, b.scores), K),
    "sdm": Loss("SDM", lambda b: sdm(b.scores, b.same), K),
    "one-to-k": Loss("1-to-K", lambda b: one_to_k(b.scores, b.scale, b.partners), K),
    "transport": Loss("InfoNCE + transport", _transport, K),
    "intra-modal": Loss(
        "InfoNCE + intra-modal", lambda b: _nce(b, b.scores) + WEIGHT * intra_modal(b.within, b.scale, b.partners), K
    ),
}


def loss_named(name: str) -> Loss:
    """Return the loss ``name``; InputError with the nearest names for an unknown one."""
    if name not in LOSSES:
        raise nearest(name, LOSSES, "loss")
    return LOSSES[name]
