"""The one place that turns embeddings into scores, ranks and top-k lists, block by block.

The contract (see ``docs/design.md``):

* The *score* of a query and a gallery item is ``float32(q . g - b(g))``: embeddings are up-cast, the product and the
  bias are combined in float64, and the result is rounded once. This **canonical score** depends on the two vectors
  and the bias alone: not on block size, thread count, or the order in which anything is stored.
* Ties break by gallery index, the lower index first; optimistic and pessimistic ranks are returned as well.
* Whole blocks are computed in float32. A float32 product lies within a known bound of the canonical score, so it
  settles every comparison outside that bound; the few pairs inside it are scored canonically. Ranks are therefore
  those of the canonical scores, at about the cost of the float32 product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from reprolib.errors import InputError
from reprolib.mapped import mapping, release, trim

BLOCK_BYTES = 32 * 2**20  # one float32 block of scores; about a last-level cache
_UNIT = 2.0**-24  # unit round-off of float32
_PAIR_CHUNK = 2**18  # elements taken to float64 at a time: they stay in cache
_FAR = 64  # rows of a mapped array that are read between two releases, where they lie anywhere
LARGE = 2**27  # bytes of a mapped array from which on it stays in its file

ArrayLike = np.ndarray | Tensor
Relevance = np.ndarray | Tensor | scipy.sparse.sparray | scipy.sparse.spmatrix | list


def as_embeddings(
    array: ArrayLike, name: str, *, device: str | torch.device | None = None, normalize: bool = True, first: int = 0
) -> Tensor:
    """Return ``array`` [n, d] as contiguous float32 rows, of unit length if ``normalize``.

    Rows are normalised in float64 and rounded once, so the storage type of the input is all that matters.
    Raises InputError for another shape, no rows, NaN or infinity, and (if ``normalize``) rows of zeros; rows are
    counted from ``first``.
    """
    tensor = torch.as_tensor(for_torch(array), device=device)
    norms = _norms(tensor, name, normalize, first)
    return _unit(tensor, norms) if normalize else tensor.to(torch.float32).contiguous()


def for_torch(array: ArrayLike) -> ArrayLike:
    """Return ``array``, or a copy of what torch cannot share: it knows no read-only memory and no negative strides."""
    if isinstance(array, np.ndarray) and not (array.flags.writeable and min(array.strides, default=0) >= 0):
        return array.copy()
    return array


def _norms(tensor: Tensor, name: str, normalize: bool, first: int | np.ndarray) -> Tensor:
    """Return the length of every row, float64 [n], once all checks of ``as_embeddings`` are passed.

    ``first`` is the number of the first row, or those of all rows, as a message names them.
    """
    if tensor.ndim != 2 or not tensor.shape[0] or not tensor.shape[1]:
        raise InputError(f"{name}: expected embeddings [n, d] with n, d >= 1, got shape {tuple(tensor.shape)}")
    if not tensor.is_floating_point():
        raise InputError(f"{name}: expected floating-point embeddings, got {tensor.dtype}")
    step = max(1, _PAIR_CHUNK // tensor.shape[1])
    norms = torch.cat([torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64) for rows in tensor.split(step)])
    finite = norms <= torch.finfo(torch.float32).max  # False for NaN too
    if not bool(finite.all()):
        row = _number(first, (~finite).nonzero())
        raise InputError(f"{name}: row {row} holds NaN or infinity (in float32); every value must be finite")
    if normalize and not bool((norms > 0).all()):
        row = _number(first, (norms == 0).nonzero())
        raise InputError(f"{name}: row {row} is all zeros and has no direction; remove it or pass normalize=False")
    return norms


def _number(first: int | np.ndarray, found: Tensor) -> int:
    row = int(found[0])
    return first + row if isinstance(first, int) else int(first[row])


def _unit(tensor: Tensor, norms: Tensor) -> Tensor:
    """Return the rows divided by ``norms``, float32, rounded once."""
    step = max(1, _PAIR_CHUNK // tensor.shape[1])
    out = torch.empty(tensor.shape, dtype=torch.float32, device=tensor.device)
    wide = torch.empty(tensor[:step].shape, dtype=torch.float64, device=tensor.device)  # one for all: it stays in cache
    for rows, length, unit in zip(tensor.split(step), norms.split(step), out.split(step), strict=True):
        unit.copy_(wide[: len(rows)].copy_(rows).div_(length[:, None]))
    return out


class Rows:
    """Embeddings [n, d] that stay in their file: ``as_embeddings`` of the rows that are asked for, when they are.

    They stand in for a float32 tensor where its rows are taken a few at a time: as a bank, or as queries of a
    ``Scorer``. ``index`` int [n] picks rows of ``array``. Lengths are kept: the file is checked when it is first read.
    """

    def __init__(
        self, array: np.ndarray, name: str, *, device: str | torch.device | None = None, normalize: bool = True,
        index: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        self._array, self._name, self._index = array, name, index
        self._normalize, self.device = normalize, torch.device(device or "cpu")
        self.shape = torch.Size([len(array) if index is None else len(index), array.shape[1]])
        self._norms = torch.full((len(self),), torch.nan, dtype=torch.float64)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        rows = rows if isinstance(rows, slice) else rows.cpu()
        key = rows if isinstance(rows, slice) else rows.numpy()
        key = key if self._index is None else self._index[key]
        if isinstance(key, slice):
            found = self._array[key]  # where it lies in the file: what is made of it is a copy
        else:  # a few at a time: a row of its own brings many pages with it
            found = np.empty((len(key), self.shape[1]), self._array.dtype)
            for start in range(0, len(key), _FAR):
                found[start : start + _FAR] = self._array[key[start : start + _FAR]]
                release(self._array)
        tensor = torch.from_numpy(for_torch(found)).to(self.device)
        norms = self._norms[rows].to(self.device)
        if bool(norms.isnan().any()):
            norms = _norms(tensor, self._name, self._normalize, key.start or 0 if isinstance(key, slice) else key)
            self._norms[rows] = norms.cpu()
        taken = _unit(tensor, norms) if self._normalize else tensor.to(torch.float32, copy=True)
        release(self._array)
        return taken

    def split(self, size: int) -> Iterator[Tensor]:
        """Yield the rows, ``size`` at a time."""
        trim()  # before each pass, which takes far longer
        return (self[start : start + size] for start in range(0, len(self), size))

    def norm(self, dim: int) -> Tensor:
        """Return the length of every row, float32 [n]."""
        return torch.cat([rows.norm(dim=dim) for rows in self.split(2048)])


def as_rows(
    array: ArrayLike, name: str, *, device: str | torch.device | None = None, normalize: bool = True,
    index: np.ndarray | None = None,
) -> Tensor | Rows:  # fmt: skip
    """Return the rows ``index`` (default: all) of ``array`` [n, d] as ``as_embeddings`` does.

    Those of a mapped array of 128 MiB or more stay in its file, as ``Rows``.
    """
    if isinstance(array, np.ndarray) and array.ndim == 2 and array.nbytes >= LARGE and mapping(array) is not None:
        return Rows(array, name, device=device, normalize=normalize, index=index)
    return as_embeddings(array if index is None else array[index], name, device=device, normalize=normalize)


def as_relevance(relevance: Relevance, n_queries: int, n_gallery: int) -> scipy.sparse.csr_array:
    """Return ``relevance`` as a boolean CSR array [n_queries, n_gallery].

    Accepts a boolean matrix (array or tensor), a sparse matrix, or a list of ``n_queries`` index arrays. Raises
    InputError if the shape differs, an index is out of range, or a query has no relevant item.
    """
    if isinstance(relevance, list | tuple):
        if len(relevance) != n_queries:
            raise InputError(f"relevance lists {len(relevance)} queries, but there are {n_queries}")
        columns = [np.unique(_indices(items, query, n_gallery)) for query, items in enumerate(relevance)]
        indptr = np.concatenate([[0], np.cumsum([len(c) for c in columns])])
        indices = np.concatenate(columns) if columns else np.empty(0, np.int64)
        matrix = scipy.sparse.csr_array((np.ones(len(indices), bool), indices, indptr), shape=(n_queries, n_gallery))
    elif scipy.sparse.issparse(relevance):
        matrix = scipy.sparse.csr_array(relevance).astype(bool)
    else:
        dense = relevance.cpu() if isinstance(relevance, Tensor) else relevance
        matrix = scipy.sparse.csr_array(np.asarray(dense).astype(bool))
    if matrix.shape != (n_queries, n_gallery):
        raise InputError(f"relevance has shape {matrix.shape}, expected ({n_queries}, {n_gallery})")
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    matrix.sort_indices()
    empty = np.flatnonzero(np.diff(matrix.indptr) == 0)
    if len(empty):
        raise InputError(f"relevance: query {int(empty[0])} has no relevant gallery item ({len(empty)} such queries)")
    return matrix


def _indices(items: object, query: int, n_gallery: int) -> np.ndarray:
    """Return one query's list of relevant gallery items as int64, after checking it."""
    indices = np.atleast_1d(np.asarray(items))
    if indices.size and indices.dtype.kind not in "iu":
        raise InputError(f"relevance: query {query} lists {indices.dtype} values instead of indices of gallery items")
    wrong = indices[(indices < 0) | (indices >= n_gallery)]
    if len(wrong):
        raise InputError(f"relevance: query {query} names gallery item {int(wrong[0])}, but there are {n_gallery}")
    return indices.astype(np.int64)


@dataclass(frozen=True, eq=False)
class Scorer:
    """How queries are scored against a gallery: the result of fitting a correction.

    ``queries`` [n, d] and ``gallery`` [m, d] are float32 on one device. Query ``i`` is scored
    ``queries[i] . gallery[j] - bias[state[i], j]`` (``bias`` float32 [states, m] or None; ``state`` int64 [n], by
    default all 0). A correction that is no bias (rank-based GC, DualDIS) gives ``transform``: it receives a block of
    canonical raw scores [b, m] and the rows it covers, and returns the scores of that block, float32, or float64 if
    ``wide``: for an order that float32 cannot hold.
    ``exclude`` int64 [n] names one gallery item per query to be dropped before anything is counted (-1: none),
    for searches of a set within itself.
    """

    queries: Tensor
    gallery: Tensor
    bias: Tensor | None = None
    state: Tensor | None = None
    transform: Callable[[Tensor, slice], Tensor] | None = None
    exclude: Tensor | None = None
    wide: bool = False
    notes: dict[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.queries.shape[1] != self.gallery.shape[1]:
            raise InputError(
                f"queries have width {self.queries.shape[1]} and the gallery {self.gallery.shape[1]}; they must agree"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """Number of queries and of gallery items."""
        return self.queries.shape[0], self.gallery.shape[0]

    def error_bound(self) -> float:
        """Return a bound on the distance between a float32 block and the canonical scores (0 with ``transform``).

        The standard bound of a float32 inner product of length d (Higham 2002, section 3.1), with Cauchy-Schwarz
        for the sum of the absolute terms, plus the roundings of the bias, of the result, and of the factors where
        torch may round them first (``torch.set_float32_matmul_precision``).
        """
        if self.transform is not None:
            return 0.0
        product = float(self.queries.norm(dim=1).max() * self.gallery.norm(dim=1).max())
        bias = 0.0 if self.bias is None else float(self.bias.abs().max())
        unit = _rounding()
        return 1.1 * (_UNIT * ((self.queries.shape[1] + 4) * product + 3 * bias) + (2 + unit) * unit * product)

    def block(self, rows: slice) -> Tensor:
        """Return the scores of ``rows`` against the whole gallery, float32 [b, m], within ``error_bound``."""
        if self.transform is not None:
            return self._drop(self.canonical(rows), rows)
        scores = self.queries[rows] @ self.gallery.T
        if self.bias is not None:
            scores -= self.bias[0] if self.state is None else self.bias[self.state[rows]]
        return self._drop(scores, rows)

    def transformed(self, scores: Tensor, rows: slice) -> Tensor:
        """Return what ``transform`` makes of canonical raw scores [b, m]; InputError where it makes NaN."""
        scores = self.transform(scores, rows).contiguous()
        broken = scores.isnan().any(1)
        if bool(broken.any()):
            row = rows.start + int(broken.nonzero()[0])
            raise InputError(f"the scores of query {row} hold NaN and cannot be ranked (an overflow, as a rule)")
        return scores

    def canonical(self, rows: slice) -> Tensor:
        """Return the canonical scores of ``rows``, float32 (or ``wide``) [b, m]: one float64 product, rounded once."""
        scores = self.queries[rows].double() @ self.gallery.double().T
        if self.transform is not None:
            scores = scores.float()  # the float64 block is let go of before the transform makes its own
            return self.transformed(scores, rows)
        if self.bias is not None:
            bias = self.bias.double()
            scores -= bias[0] if self.state is None else bias[self.state[rows]]
        return scores.float()

    def _drop(self, scores: Tensor, rows: slice) -> Tensor:
        if self.exclude is not None:
            dropped = self.exclude[rows]
            at = (dropped >= 0).nonzero().squeeze(1)
            scores[at, dropped[at]] = -torch.inf
        return scores

    def pairs(self, rows: Tensor, items: Tensor) -> Tensor:
        """Return the canonical scores float32 [p] of the pairs (``rows``[i], ``items``[i]); not with ``transform``."""
        step = max(1, _PAIR_CHUNK // self.queries.shape[1])
        out = torch.empty(len(rows), dtype=torch.float32, device=self.queries.device)
        for start in range(0, len(rows), step):
            r, g = rows[start : start + step], items[start : start + step]
            score = (self.queries[r].double() * self.gallery[g].double()).sum(1)
            if self.bias is not None:
                score -= self.bias[0 if self.state is None else self.state[r], g].double()
            out[start : start + step] = score.float()
        return out

    def scores(self, block_bytes: int = BLOCK_BYTES) -> Tensor:
        """Return all canonical scores, float32 [n, m]; of a ``wide`` scorer only their order (``ordinals``)."""
        out = torch.empty(self.shape, dtype=torch.float32, device=self.queries.device)
        for rows in blocks(*self.shape, block_bytes // 2):
            found = self._drop(self.canonical(rows), rows)
            out[rows] = ordinals(found) if self.wide else found
        return out


def blocks(n: int, m: int, block_bytes: int = BLOCK_BYTES) -> Iterator[slice]:
    """Yield slices over ``n`` rows such that a float32 block [rows, m] takes about ``block_bytes`` (at least 1 row)."""
    step = max(1, block_bytes // (4 * m))
    for start in range(0, n, step):
        yield slice(start, min(n, start + step))


@dataclass(frozen=True, eq=False)
class Ranking:
    """Where the relevant items stand, and who stands at the top.

    One entry per relevant pair, in the order of ``relevance`` (CSR): ``score`` as the scorer gives it, ``above``
    (gallery items with a higher score), ``tied`` (others with the same score) and ``tied_before`` (those of lower
    index), int64. ``topk`` int64 [n, k]: the k best items of each query; their order within a row is that of the
    canonical scores if it was asked for, else unspecified. ``k`` is at most the size of the gallery.
    """

    relevance: scipy.sparse.csr_array
    score: np.ndarray
    above: np.ndarray
    tied: np.ndarray
    tied_before: np.ndarray
    topk: np.ndarray

    @property
    def rank(self) -> np.ndarray:
        """Rank of every relevant pair, 1 = best, ties broken by gallery index; int64 [number of pairs]."""
        return 1 + self.above + self.tied_before


class _Side:
    """Counts for the items of one axis of the score matrix, against the other axis as rivals."""

    def __init__(
        self, scorer: Scorer, relevance: scipy.sparse.csr_array, k: int, axis: int, score: Tensor | None = None
    ) -> None:
        n, m = scorer.shape if axis == 1 else scorer.shape[::-1]
        device = scorer.queries.device
        if k < 0:
            raise InputError(f"k = {k} is below 0; there is no such number of best items")
        self.axis, self.n, self.scorer = axis, n, scorer
        self.k = min(k, m if scorer.exclude is None else m - 1)
        self.relevance = relevance
        counts = np.diff(relevance.indptr)
        self.item = torch.as_tensor(np.repeat(np.arange(n), counts), device=device)
        self.rival = torch.as_tensor(relevance.indices.astype(np.int64), device=device)
        width = int(counts.max(initial=0))
        self.slot = torch.zeros_like(self.item)  # of a positive among those of its item, from the lowest score
        dtype = torch.float64 if scorer.wide else torch.float32
        self.target = torch.full((n, width), torch.inf, dtype=dtype, device=device)  # canonical scores of the positives
        self.own = torch.full((n, width), -1, dtype=torch.int64, device=device)
        if scorer.transform is None:
            pair = (self.item, self.rival) if axis == 1 else (self.rival, self.item)
            self.score = scorer.pairs(*pair) if score is None else score
            self._place(slice(0, len(self.item)), self.score)
        self.above = torch.zeros((n, width), dtype=torch.int64, device=device)
        self.tied, self.before = torch.zeros_like(self.above), torch.zeros_like(self.above)
        self.maxima = torch.full((n, self.k), -torch.inf, dtype=dtype, device=device)
        # Candidates for the k best: item, rival, score. Small tensors among large ones would scatter the memory.
        self.candidates = [torch.empty(2 * self.k * n, dtype=t, device=device) for t in (torch.int64,) * 2 + (dtype,)]
        self.kept = self.blocks = 0

    def _place(self, positives: slice, score: Tensor) -> None:
        """Enter the scores of the positives of some items, each item's from the lowest."""
        item, rival = self.item[positives], self.rival[positives]
        order = sort_key(item, -score).argsort(stable=True)
        slot = torch.empty_like(item)
        slot[order] = torch.arange(len(item), device=item.device) - torch.searchsorted(item, item)
        self.slot[positives], self.target[item, slot], self.own[item, slot] = slot, score, rival

    def update(self, scores: Tensor, rows: slice, error: float) -> None:
        """Account for one block of scores, whose first axis covers ``rows`` of the queries."""
        items = rows if self.axis == 1 else slice(0, self.n)
        if self.scorer.transform is not None:  # the block itself is canonical
            here = slice(*self.relevance.indptr[[items.start, items.stop]].tolist())
            self._place(here, scores[self.item[here] - items.start, self.rival[here]])
        target = self.target[items]
        if self.k:
            self.blocks += 1
            if self.axis == 1 or self.blocks.bit_count() == 1:  # later blocks hardly raise it: 1, 2, 4, 8, ...
                self._raise_maxima(scores, items)
            bound = self.maxima[items, -1] - 2 * error
        else:
            bound = torch.full((len(target),), torch.inf, device=target.device)
        cut = torch.minimum(target.amin(1) - error, bound) if target.shape[1] else bound
        mask = scores >= (cut[:, None] if self.axis == 1 else cut)
        flat = true_entries(mask.view(-1))
        value = scores.view(-1)[flat]
        row = torch.div(flat, scores.shape[1], rounding_mode="floor")
        column = flat - row * scores.shape[1]
        item, rival = (row, column) if self.axis == 1 else (column, row + rows.start)
        if self.k:
            keep = (value >= bound[item]).nonzero().squeeze(1)
            found = item[keep] + items.start, rival[keep], value[keep]
            crowded = len(keep) > 2 * self.k * len(target)  # with equal scores everywhere all are candidates
            self._keep(*(self._leading(*found) if crowded and self.scorer.transform is not None else found))
        self._count(item, rival, value, items, error)

    def _keep(self, *found: Tensor) -> None:
        end = self.kept + len(found[0])
        if end > len(self.candidates[0]):
            self.candidates = [torch.cat([kept, kept.new_empty(end)]) for kept in self.candidates]
        for kept, new in zip(self.candidates, found, strict=True):
            kept[self.kept : end] = new
        self.kept = end

    def _leading(self, item: Tensor, rival: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the k best of the candidates of each item, of equal ones the first; their ``value`` is canonical."""
        order = sort_key(item, value).argsort(stable=True)
        ordered = item[order]
        place = torch.arange(len(item), device=item.device) - torch.searchsorted(ordered, ordered)
        first = order[place < self.k].sort().values  # as they arrived
        return item[first], rival[first], value[first]

    def _raise_maxima(self, scores: Tensor, items: slice) -> None:
        """Raise the lower bound of each item's k-th best score: the k-th largest of the maxima of disjoint groups."""
        length = scores.shape[self.axis]
        groups = min(length, max(8 * self.k, length // 32))
        if groups < self.k:  # such a short block says nothing about the k-th best
            return
        used = length - length % groups
        if self.axis == 1:
            maxima = scores[:, :used].unflatten(1, (-1, groups))[:, ::2].amax(1)  # every other run says nearly as much
        else:
            maxima = scores[:used].unflatten(0, (-1, groups)).amax(0).T
        both = torch.cat([self.maxima[items], maxima], dim=1)
        self.maxima[items] = both.topk(self.k, dim=1).values

    def _count(self, item: Tensor, rival: Tensor, value: Tensor, items: slice, error: float) -> None:
        """Count the rivals ``item``, ``rival``, ``value`` [p] of a block above each positive of their items."""
        size, width = items.stop - items.start, self.target.shape[1]
        low, high = self.target[items] - error, self.target[items] + error
        dtype = torch.uint8 if width < 2**8 else torch.int32  # the fastest that can count to the width
        reached = torch.zeros(len(value), dtype=dtype, device=value.device)
        for slot in range(width):  # from the lowest positive: who reaches one has reached those before
            reached += (value >= low[:, slot].contiguous().index_select(0, item)).view(torch.uint8)
        cell = item * (width + 1) + reached
        near = value <= torch.nn.functional.pad(high, (1, 0), value=-torch.inf).view(-1).index_select(0, cell)
        near = near.nonzero().squeeze(1)
        every, unsure = (torch.bincount(c, minlength=size * (width + 1)) for c in (cell, cell[near]))
        cells = every - unsure
        self.above[items] += cells.view(size, width + 1)[:, 1:].flip(1).cumsum(1).flip(1)
        item, rival, value, reached = item[near], rival[near], value[near], reached[near]
        for slot in range(width):
            here = ((reached > slot) & (rival != self.own[items, slot][item])).nonzero().squeeze(1)
            who, other, exact = item[here] + items.start, rival[here], value[here]
            settled = exact > high[item[here], slot]
            if self.scorer.transform is None and not bool(settled.all()):
                unsettled = (~settled).nonzero().squeeze(1)
                pair = (who[unsettled], other[unsettled])
                exact[unsettled] = self.scorer.pairs(*(pair if self.axis == 1 else pair[::-1]))
            wanted = self.target[who, slot]
            same = exact == wanted
            for counter, chosen in (
                (self.above, exact > wanted),
                (self.tied, same),
                (self.before, same & (other < self.own[who, slot])),
            ):
                counter[:, slot] += torch.bincount(who[chosen], minlength=self.n)

    def _best(self, error: float, ordered: bool) -> Tensor:
        """Return the k best rivals of each item from the candidates; near ties are settled by canonical scores."""
        item, rival, value = (kept[: self.kept] for kept in self.candidates)
        exact = self.scorer.transform is not None
        order = sort_key(item, value).argsort(stable=True)  # stable, and candidates arrive in the order of their rivals
        item, rival, value = item[order], rival[order], value[order]
        start = torch.searchsorted(item, torch.arange(self.n, device=item.device))
        place = torch.arange(len(item), device=item.device) - start[item]
        kth = value[start + self.k - 1]
        possible = value >= kth[item] - 2 * error
        contested = torch.zeros(self.n, dtype=torch.bool, device=item.device)
        contested[item[possible & (place >= self.k)]] = True
        again = possible & (contested[item] | ordered) & (not exact)
        if bool(again.any()):
            rescored = again.nonzero().squeeze(1)
            pair = (item[rescored], rival[rescored])
            value = torch.where(contested[item] & ~possible, -torch.inf, value)
            value[rescored] = self.scorer.pairs(*(pair if self.axis == 1 else pair[::-1]))
            arrived = torch.empty_like(order)
            arrived[order] = torch.arange(len(order), device=order.device)
            item, rival, value = item[arrived], rival[arrived], value[arrived]
            order = sort_key(item, value).argsort(stable=True)
            item, rival = item[order], rival[order]
        return rival[place < self.k].view(self.n, self.k)

    def finish(self, error: float, ordered: bool) -> Ranking:
        best = self._best(error, ordered) if self.k else torch.empty((self.n, 0), dtype=torch.int64)
        pick = (self.item, self.slot)
        columns = (self.target, self.above, self.tied, self.before)
        return Ranking(self.relevance, *(c[pick].cpu().numpy() for c in columns), best.cpu().numpy())


def _rounding() -> float:
    """Return the unit round-off of what torch may round the factors of a float32 product to, 0 if it may not."""
    try:
        allowed = torch.get_float32_matmul_precision()
    except RuntimeError:  # set by torch's newer interface
        allowed = "medium"
    return {"highest": 0.0, "high": 2.0**-11}.get(allowed, 2.0**-8)  # TensorFloat-32, bfloat16


def true_entries(mask: Tensor) -> Tensor:
    """Return where a sparse mask [n] holds, ascending; it is searched eight entries at a time."""
    body = len(mask) // 8 * 8
    words = mask[:body].view(torch.int64).nonzero().squeeze(1)
    inside = mask[:body].view(torch.int64).index_select(0, words).view(torch.bool).nonzero().squeeze(1)
    return torch.cat([8 * words.index_select(0, inside >> 3) + (inside & 7), mask[body:].nonzero().squeeze(1) + body])


def ascending(value: Tensor) -> Tensor:
    """Return int32 that are ordered as the float32 ``value``; minus zero equals zero."""
    bits = (value + 0.0).view(torch.int32)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def sort_key(group: Tensor, value: Tensor) -> Tensor:
    """Return int64 keys that sort by ``group`` (int, 0 <= group < 2^31), then from the highest float ``value``."""
    wide = value.dtype == torch.float64  # no room for it in a key; its place among all values is as good
    place = torch.unique(value, return_inverse=True)[1] if wide else ascending(value).long()
    return (group.long() << 32) + (0x7FFFFFFF - place)


def ordinals(scores: Tensor) -> Tensor:
    """Return minus the place of each score among the different ones of its row (0 for the highest), float32 [b, m]."""
    falling, order = scores.sort(dim=1, descending=True)
    steps = torch.nn.functional.pad(falling[:, 1:] != falling[:, :-1], (1, 0))
    return torch.empty_like(scores, dtype=torch.float32).scatter_(1, order, -steps.cumsum(1).float())


def rank(
    scorer: Scorer,
    relevance: Relevance,
    k: int = 10,
    *,
    ordered: bool = False,
    block_bytes: int = BLOCK_BYTES,
) -> Ranking:
    """Rank the gallery for every query: where each relevant item stands, and the top k (see ``Ranking``).

    ``relevance`` is anything ``as_relevance`` takes. ``ordered`` asks for the order within the top k too.
    Ranks do not depend on ``block_bytes``, which bounds the memory of a block of scores.
    """
    if scorer.exclude is not None:
        relevance = scipy.sparse.lil_array(as_relevance(relevance, *scorer.shape))
        dropped = scorer.exclude.cpu().numpy()
        relevance[np.flatnonzero(dropped >= 0), dropped[dropped >= 0]] = False
    return _one_way(scorer, as_relevance(relevance, *scorer.shape), k, ordered, block_bytes)


def _one_way(scorer: Scorer, relevance: scipy.sparse.csr_array, k: int, ordered: bool, block_bytes: int) -> Ranking:
    side = _Side(scorer, relevance, k, axis=1)
    error = scorer.error_bound()
    whole = scorer.transform is None  # a transform holds a block several times over, in float64
    for rows in blocks(*scorer.shape, block_bytes if whole else block_bytes // 4):
        side.update(scorer.block(rows), rows, error)
    return side.finish(error, ordered)


def rank_both(
    scorer: Scorer, relevance: Relevance, k: int = 10, *, block_bytes: int = BLOCK_BYTES
) -> tuple[Ranking, Ranking]:
    """Rank gallery for query and query for gallery from one product; every gallery item needs a relevant query.

    Only for scores that mean the same in both directions: no state, no transform, no excluded item. (A corrected
    score is specific to its direction; read by column it misleads.)
    """
    if scorer.state is not None or scorer.transform is not None or scorer.exclude is not None:
        raise InputError("rank_both needs scores that mean the same in both directions; call rank for each instead")
    forward = as_relevance(relevance, *scorer.shape)
    backward = as_relevance(forward.T, *scorer.shape[::-1])
    by_query = _Side(scorer, forward, k, axis=1)
    order = forward.indices.argsort(kind="stable")  # CSR of the transpose: by item, then by query
    sides = by_query, _Side(scorer, backward, k, axis=0, score=by_query.score[torch.as_tensor(order)])
    error = scorer.error_bound()
    for rows in blocks(*scorer.shape, block_bytes):
        scores = scorer.block(rows)
        for side in sides:
            side.update(scores, rows, error)
    return sides[0].finish(error, False), sides[1].finish(error, False)


def topk(scorer: Scorer, k: int, *, ordered: bool = True, block_bytes: int = BLOCK_BYTES) -> np.ndarray:
    """Return the ``k`` best gallery items of every query, int64 [n, min(k, m)], best first if ``ordered``."""
    nothing = scipy.sparse.csr_array(scorer.shape, dtype=bool)
    return _one_way(scorer, nothing, k, ordered, block_bytes).topk
