"""A correction in bias form as an ordinary FAISS index: the bias is one more coordinate of the gallery."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from reprolib.errors import InputError, nearest
from reprolib.ranking import Scorer

if TYPE_CHECKING:  # an import of faiss takes longer than that of all methods
    import faiss

KINDS = ("flat", "hnsw", "ivf")
_LINKS = 32  # neighbours per node of an HNSW graph


def faiss_index(scorer: Scorer, kind: str = "flat", *, seed: int = 0) -> tuple[faiss.Index, np.ndarray]:
    """Return a FAISS inner-product index of the corrected gallery, and the queries to search it with.

    The gallery [m, d] gets its bias b and the queries [n, d] get -1 as coordinate d + 1, so that the inner product
    is ``s(q, g) - b(g)`` (NNN, arXiv 2410.24114, section 3; float32, within about ``scorer.error_bound()`` of the
    canonical scores; ties in FAISS's order). The queries are float32 [n, d + 1]; any other query needs the same -1.

    ``kind``: ``"flat"`` (``IndexFlatIP``, exact); ``"hnsw"`` (``IndexHNSWFlat``, 32 links; set
    ``index.hnsw.efSearch``, 64 here, for recall); ``"ivf"`` (``IndexIVFFlat`` with about the square root of m
    lists, trained on the gallery with ``seed``; set ``index.nprobe``, a quarter of the lists here, for recall).

    Raises InputError if the scores are no bias per gallery item (a transform or several states), if an item is
    excluded per query, and for an unknown ``kind``.
    """
    if kind not in KINDS:
        raise nearest(str(kind), KINDS, "kind of index")
    if scorer.transform is not None:
        raise InputError("these scores are not the inner product less a bias per gallery item, so no index holds them")
    if scorer.exclude is not None:
        raise InputError("an index cannot exclude an item per query; fit without exclude and drop it from the results")
    if scorer.state is not None or (scorer.bias is not None and len(scorer.bias) != 1):
        raise InputError("the bias depends on the query (a dynamic correction), so no single index holds it")
    import faiss

    gallery, queries = (side.cpu().numpy() for side in (scorer.gallery, scorer.queries))
    bias = np.zeros(len(gallery), np.float32) if scorer.bias is None else scorer.bias[0].cpu().numpy()
    gallery = np.ascontiguousarray(np.column_stack([gallery, bias]), dtype=np.float32)
    queries = np.ascontiguousarray(np.column_stack([queries, np.full(len(queries), -1)]), dtype=np.float32)
    width = gallery.shape[1]
    if kind == "flat":
        index = faiss.IndexFlatIP(width)
    elif kind == "hnsw":
        index = faiss.IndexHNSWFlat(width, _LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efSearch = 64
    else:
        lists = max(1, round(len(gallery) ** 0.5))
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, lists, faiss.METRIC_INNER_PRODUCT)
        index.cp.seed = seed
        index.cp.min_points_per_centroid = 1  # a small gallery is no reason to warn
        index.train(gallery)
        index.nprobe = max(1, lists // 4)
    index.add(gallery)
    return index, queries
