"""A correction in bias form as an ordinary FAISS index: the bias is one more coordinate of the gallery."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from reprolib import ranking
from reprolib.errors import InputError, nearest
from reprolib.ranking import ArrayLike, Scorer

if TYPE_CHECKING:  # an import of faiss takes longer than that of all methods
    import faiss

KINDS = ("flat", "hnsw", "ivf")
_EXTRA = {"ip": 1, "l2": 2}  # metric: coordinates that the vectors get
_LINKS = 32  # neighbours per node of an HNSW graph
_SAMPLE = 256  # gallery items per list that IVF is trained on: as many as FAISS itself would take


def faiss_index(
    scorer: Scorer, kind: str = "flat", *, metric: str = "ip", seed: int = 0
) -> tuple[faiss.Index, np.ndarray]:
    """Return a FAISS index of the corrected gallery, and the queries to search it with.

    The gallery [m, d] gets its bias b and the queries [n, d] get -1 as coordinate d + 1, so that the inner product
    is ``s(q, g) - b(g)`` (NNN, arXiv 2410.24114, section 3; float32, within about ``scorer.error_bound()`` of the
    canonical scores; ties in FAISS's order). The queries are float32 [n, d + 1]; any other query needs the same -1,
    and a 0 instead searches without the correction. ``index_topk`` searches with plain queries too.

    ``kind``: ``"flat"`` (``IndexFlat``, exact); ``"hnsw"`` (``IndexHNSWFlat``, 32 links; set
    ``index.hnsw.efSearch``, 64 here, for recall; built by several threads it is another graph each time); ``"ivf"``
    (``IndexIVFFlat`` with about the square root of m lists, trained on a sample of the gallery drawn with ``seed``;
    set ``index.nprobe``, a quarter of the lists here, for recall).

    ``metric``: ``"ip"`` searches for the highest inner product. ``"l2"`` gives gallery items one more coordinate,
    which makes all of them equally long, and the queries a 0: the nearest item is then the one with the highest score
    (Bachrach et al., RecSys 2014), and lists and graphs are built in a metric space. Where biases are as large as the
    similarities, lists of ``ivf`` find clearly more with it; on the million items of docs/benchmarks_million.md neither
    lists nor graphs gained from it (for graphs Morozov and Babenko, NeurIPS 2018, advise against it).

    The index grows block by block, and beside it there is one block: ``flat`` and ``hnsw`` hold the gallery once, the
    lists of ``ivf`` have up to twice that room. Raises InputError if the scores are no bias per gallery item (a
    transform or several states), if an item is excluded per query, and for an unknown ``kind`` or ``metric``.
    """
    if kind not in KINDS:
        raise nearest(str(kind), KINDS, "kind of index")
    if metric not in _EXTRA:
        raise nearest(str(metric), _EXTRA, "metric of an index")
    if scorer.transform is not None:
        raise InputError("these scores are not the inner product less a bias per gallery item, so no index holds them")
    if scorer.exclude is not None:
        raise InputError("an index cannot exclude an item per query; fit without exclude and drop it from the results")
    if scorer.state is not None or (scorer.bias is not None and len(scorer.bias) != 1):
        raise InputError("the bias depends on the query (a dynamic correction), so no single index holds it")
    import faiss

    m, extra = len(scorer.gallery), _EXTRA[metric]
    width = scorer.gallery.shape[1] + extra
    parts = list(ranking.blocks(m, width))
    longest = max(float(_squares(scorer, part).max()) for part in parts) if metric == "l2" else None
    measure = faiss.METRIC_INNER_PRODUCT if metric == "ip" else faiss.METRIC_L2
    if kind == "flat":
        index = faiss.IndexFlat(width, measure)
        _reserve(index, m)
    elif kind == "hnsw":
        index = faiss.IndexHNSWFlat(width, _LINKS, measure)
        index.hnsw.efSearch = 64
        _reserve(faiss.downcast_index(index.storage), m)
    else:
        lists = max(1, round(m**0.5))
        index = faiss.IndexIVFFlat(faiss.IndexFlat(width, measure), width, lists, measure)
        index.cp.seed = seed
        index.cp.min_points_per_centroid = 1  # a small gallery is no reason to warn
        index.cp.max_points_per_centroid = _SAMPLE
        sample = np.random.default_rng(seed).choice(m, min(m, _SAMPLE * lists), replace=False)
        index.train(_augmented(scorer, np.sort(sample), longest))
        index.nprobe = max(1, lists // 4)
    for part in parts:
        index.add(_augmented(scorer, part, longest))
    return index, _with_tail(scorer.queries[:], width, extra)


def index_topk(index: faiss.Index, queries: ArrayLike, k: int, *, block: int = 4096) -> np.ndarray:
    """Return the ``k`` best items that an index of ``faiss_index`` finds for every query, int64 [n, k], best first.

    ``queries``: floating-point [n, d], as plain as those that the correction was fitted for, or with the coordinates
    that ``faiss_index`` gives them. ``block`` of them are searched at a time. Where an approximate index finds fewer
    than ``k`` items, the rest of the row is -1; more of ``index.nprobe`` or ``index.hnsw.efSearch`` finds more.
    Ties are in FAISS's order. Raises InputError for queries of another width and for ``k`` beyond the index.
    """
    if not 1 <= k <= index.ntotal:
        raise InputError(f"k = {k!r} is not between 1 and the number of items in the index, {index.ntotal}")
    import faiss

    extra = _EXTRA["ip" if index.metric_type == faiss.METRIC_INNER_PRODUCT else "l2"]
    found = np.empty((len(queries), k), dtype=np.int64)
    for start in range(0, len(queries), block):
        part = ranking.as_embeddings(queries[start : start + block], "queries", normalize=False)
        found[start : start + block] = index.search(_with_tail(part, index.d, extra), k)[1]
    return found


def _with_tail(queries: Tensor, width: int, extra: int) -> np.ndarray:
    """Return queries [n, d] as float32 [n, width] with the -1 that takes the bias and the 0 of the metric ``l2``."""
    missing = width - queries.shape[1]
    if missing not in (0, extra):
        raise InputError(f"queries have width {queries.shape[1]}; this index takes {width - extra} or {width}")
    tail = torch.tensor([-1.0, 0.0])[:missing].expand(len(queries), -1)
    return torch.cat([queries.cpu(), tail], dim=1).contiguous().numpy()


def _bias(scorer: Scorer, rows: slice | np.ndarray) -> Tensor:
    return torch.zeros(len(scorer.gallery))[rows] if scorer.bias is None else scorer.bias[0].cpu()[rows]


def _squares(scorer: Scorer, rows: slice | np.ndarray) -> Tensor:
    """Return the squared lengths of gallery items with their biases, float64."""
    return scorer.gallery[rows].cpu().double().square().sum(1) + _bias(scorer, rows).double().square()


def _augmented(scorer: Scorer, rows: slice | np.ndarray, longest: float | None) -> np.ndarray:
    """Return gallery items with their biases, float32; with ``longest``, all lengthened to that squared length."""
    columns = [scorer.gallery[rows].cpu(), _bias(scorer, rows)[:, None]]
    if longest is not None:
        columns.append((longest - _squares(scorer, rows)).clamp_min(0).sqrt().float()[:, None])
    return torch.cat(columns, dim=1).contiguous().numpy()


def _reserve(flat: faiss.IndexFlat, items: int) -> None:
    """Make room for all items at once: growing by doubling would hold them twice for a moment."""
    flat.codes.resize(items * flat.code_size)
    flat.codes.resize(0)
