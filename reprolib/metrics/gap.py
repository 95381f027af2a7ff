"""The modality gap: how far apart images and texts lie, in what shape, and what that does to search and clusters.

Rows are L2-normalised in float64 first, unless ``normalize=False`` (rows moved by an intervention, not renormalised);
cosines, and RMG with them, are of unit rows either way. Nothing of size n x n is held: means of products need the
sums alone, and what needs every pair is summed block by block in float64.
"""

from __future__ import annotations

from numbers import Real

import numpy as np
import scipy.sparse
import torch
from scipy.special import logsumexp
from torch import Tensor

from reprolib import ranking
from reprolib.errors import InputError
from reprolib.ranking import ArrayLike, Relevance, Scorer

STARTS = 4  # of k-means
LEADING = (1, 2, 8)  # how many leading dimensions or axes the shares of the gap are reported for
_FLOOR = 1e-3  # of D in RMG
_NOTHING = 1e-14  # a squared length this small, relative to that of the rows, is rounding of float32


def matching(relevance: Relevance | None, n: int, m: int) -> scipy.sparse.csr_array:
    """Return which of ``n`` images and ``m`` texts match, bool CSR [n, m]; None pairs row i with row i.

    Raises InputError for a relevance that ``ranking.as_relevance`` refuses, a text without an image, and None with
    n != m.
    """
    if relevance is None:
        if n != m:
            raise InputError(f"without relevance row i matches row i, but there are {n} images and {m} texts; pass it")
        return scipy.sparse.eye_array(n, dtype=bool, format="csr")
    match = ranking.as_relevance(relevance, n, m)
    bare = np.flatnonzero(np.bincount(match.indices, minlength=m) == 0)
    if len(bare):
        raise InputError(f"relevance: text {bare[0]} matches no image ({len(bare)} such texts); every text must")
    return match


def _rows(array: ArrayLike, name: str, normalize: bool) -> np.ndarray:
    """Return checked rows in float64, of unit length if ``normalize``."""
    ranking.as_embeddings(array, name, normalize=normalize)
    tensor = array.detach().double().cpu() if isinstance(array, Tensor) else array
    rows = np.asarray(tensor, dtype=np.float64)
    return _unit(rows) if normalize else rows


def _unit(rows: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1)


def _both(image: ArrayLike, text: ArrayLike, normalize: bool) -> tuple[np.ndarray, np.ndarray]:
    x, y = _rows(image, "images", normalize), _rows(text, "texts", normalize)
    if x.shape[1] != y.shape[1]:
        raise InputError(f"images have width {x.shape[1]} and texts {y.shape[1]}; they must agree")
    return x, y


def gap_per_dimension(image: ArrayLike, text: ArrayLike, *, normalize: bool = True) -> np.ndarray:
    """Return the gap vector, mean of ``image`` [n, d] minus mean of ``text`` [m, d]; signed, float64 [d].

    Its norm is L2M (Liang et al., NeurIPS 2022: Delta_gap). Raises InputError for bad embeddings.
    """
    x, y = _both(image, text, normalize)
    return x.mean(0) - y.mean(0)


def _pairs(x: np.ndarray, y: np.ndarray, match: scipy.sparse.csr_array) -> tuple[np.ndarray, np.ndarray]:
    """Return the inner product and the squared distance of every matching pair, float64 [p], in the order of CSR."""
    owner = np.repeat(np.arange(len(x)), np.diff(match.indptr))
    product, squared = np.empty(len(owner)), np.empty(len(owner))
    for rows in ranking.blocks(len(owner), x.shape[1], ranking.BLOCK_BYTES // 2):
        one, other = x[owner[rows]], y[match.indices[rows]]
        product[rows] = (one * other).sum(1)
        squared[rows] = ((one - other) ** 2).sum(1)
    return product, squared


def _within(units: np.ndarray) -> float:
    """Return the mean cosine of different rows."""
    n = len(units)
    mean = ((units.sum(0) ** 2).sum() - (units**2).sum()) / (n * (n - 1))
    return min(1.0, float(mean))  # rounding may lift equal rows above 1


def _rmg(pairs: float, images: float, texts: float) -> float:
    """Return RMG from mean cosines: of matching pairs, within the images and within the texts."""
    distance = max((1 - pairs) / 2, _FLOOR)
    return distance / (distance + (1 - images) / 4 + (1 - texts) / 4)


def _effective_dimension(scatter: np.ndarray, rows: np.ndarray) -> float:
    spread = np.trace(scatter)
    return 0.0 if spread <= _NOTHING * (rows**2).sum() else float(spread**2 / (scatter**2).sum())


def _uniformity(rows: np.ndarray) -> float:
    squares, total = (rows**2).sum(1), 0.0
    for block in ranking.blocks(len(rows), len(rows), ranking.BLOCK_BYTES // 2):
        later = slice(block.start, None)  # of every two rows of different blocks, the product is taken once
        potential = rows[block] @ rows[later].T
        potential *= 4
        potential -= 2 * squares[block, None]
        potential -= 2 * squares[later]
        np.exp(np.minimum(potential, 0, out=potential), out=potential)  # minimum: no distance is below 0
        own = potential[:, : block.stop - block.start]
        total += 2 * potential.sum() - own.sum() - np.trace(own)
    return float(np.log(total / (len(rows) * (len(rows) - 1))))


def _frechet(x: np.ndarray, y: np.ndarray) -> float:
    """Return tr(Cx + Cy - 2 (Cx Cy)^(1/2)) for the covariances of centred rows.

    The last trace is the nuclear norm of X Y^T / (n m)^(1/2), and with X = Q R that of Rx Ry^T: no square root of a
    matrix, and no n x m matrix.
    """
    rx, ry = (np.linalg.qr(rows / np.sqrt(len(rows)), mode="r") for rows in (x, y))
    shared = np.linalg.svd(rx @ ry.T, compute_uv=False).sum()
    return max(0.0, float((rx**2).sum() + (ry**2).sum() - 2 * shared))


def _separability(x: np.ndarray, y: np.ndarray, seed: int) -> float:
    from sklearn.linear_model import LogisticRegression  # takes a second to import

    rng = np.random.default_rng(seed)
    halves = [[rows[part] for part in np.array_split(rng.permutation(len(rows)), 2)] for rows in (x, y)]
    train = [half[0] for half in halves]
    probe = LogisticRegression(class_weight="balanced", max_iter=1000)
    probe.fit(np.concatenate(train), np.repeat([0, 1], [len(rows) for rows in train]))
    return float(np.mean([(probe.predict(half[1]) == label).mean() for label, half in enumerate(halves)]))


def _shares(squares: np.ndarray, whole: float, names: tuple[str, str]) -> dict[str, float]:
    """Return the share of the first 1, 2, 8 of ``squares`` in ``whole``, by name (singular, plural)."""
    return {f"gap share of {k} {names[k > 1]}": float(squares[:k].sum() / whole) if whole else 0.0 for k in LEADING}


def gap_metrics(
    image: ArrayLike,
    text: ArrayLike,
    relevance: Relevance | None = None,
    *,
    seed: int = 0,
    probe: bool = True,
    normalize: bool = True,
) -> dict[str, float]:
    """Return how large the gap between ``image`` [n, d] and ``text`` [m, d] is and what shape it has, name to float.

    ``relevance`` (images x texts, see ``ranking.as_relevance``) says which pairs match; None: row i with row i.

    * ``L2M``: distance of the centroids (Liang et al., NeurIPS 2022). ``L2I``: mean distance of matching pairs.
    * ``RMG``: relative modality gap (Schrodi et al., ICLR 2025), D / (D + (D_img + D_txt) / 2) with the distance
      (1 - cos) / 2, D its mean over matching pairs and D_img, D_txt over the pairs within a modality, each item with
      the others. As in the released code (lmb-freiburg/two-effects-one-trigger, analysis/gap_precompute.py): there the
      diagonal is filled with 0 and the sum divided by n^2 - n, and an image is repeated for each of its captions in
      D only. D is at least 1e-3; the code sets it so only where D <= 0, which rounding decides for equal pairs.
    * ``cosine of pairs`` that match; ``cosine within images`` and ``cosine within texts``: of each item with the
      others (the cone effect: well above 0); ``cosine across``: of all images with all texts.
    * ``effective dimension, images`` and ``..., texts``: (sum l)^2 / sum l^2 over the eigenvalues l of the covariance
      (participation ratio); 0 if all rows are equal.
    * ``linear separability``: balanced accuracy in telling the modalities apart of a logistic regression, fitted on a
      random half of each and measured on the other half (``seed``; left out with ``probe=False``). 0.5 is chance.
    * ``gap share of 1 dimension``, ``gap share of 2 dimensions``, ``... of 8 dimensions``: share of the squared L2M
      in the dimensions with the largest gaps ("rogue dimensions"). ``gap share of 1 principal axis``, ``... of 2
      principal axes``, ``... of 8 principal axes``: likewise in the leading principal axes of all rows together,
      centred. 0 where there is no gap. The shares of dimensions depend on the basis, all else does not.
    * ``alignment``: mean squared distance of matching pairs; ``uniformity, images`` and ``..., texts``: log of the
      mean of exp(-2 distance^2) over the pairs of a modality (Wang and Isola, ICML 2020).
    * ``distribution gap``: what remains of ``FID`` after both modalities are centred: the squared Frechet distance of
      two Gaussians with their covariances, tr(Cx + Cy - 2 (Cx Cy)^(1/2)), covariances over n. "Geometry of
      Compromise" (arXiv 2604.00279) names a distribution gap; its formula was not verified, this one is ours.
    * ``FID``: squared Frechet distance between the modalities (Role et al. 2025): L2M^2 + ``distribution gap``.

    Raises InputError for bad embeddings or relevance, fewer than 2 rows, and without ``relevance`` if n != m.
    """
    x, y = _both(image, text, normalize)
    n, m = len(x), len(y)
    if min(n, m) < 2:
        raise InputError(f"{n} images and {m} texts: at least 2 of each are needed to compare within a modality")
    match = matching(relevance, n, m)
    product, squared = _pairs(x, y, match)
    units = x, y
    if not normalize:
        units = _unit(x), _unit(y)
        product, _ = _pairs(*units, match)
    cosine, images, texts = float(product.mean()), _within(units[0]), _within(units[1])
    gap = x.mean(0) - y.mean(0)
    centred = x - x.mean(0), y - y.mean(0)
    scatters = [rows.T @ rows for rows in centred]
    length = float(gap @ gap)
    whole = 0.0 if length <= _NOTHING * ((x**2).sum() / n + (y**2).sum() / m) else length
    axes = np.linalg.eigh(scatters[0] + scatters[1] + n * m / (n + m) * np.outer(gap, gap))[1][:, ::-1]
    remaining = _frechet(*centred)
    return {
        "L2M": float(np.sqrt(length)),
        "L2I": float(np.sqrt(squared).mean()),
        "RMG": _rmg(cosine, images, texts),
        "cosine of pairs": cosine,
        "cosine within images": images,
        "cosine within texts": texts,
        "cosine across": float(units[0].mean(0) @ units[1].mean(0)),
        "effective dimension, images": _effective_dimension(scatters[0], x),
        "effective dimension, texts": _effective_dimension(scatters[1], y),
        **({"linear separability": _separability(x, y, seed)} if probe else {}),
        **_shares(np.sort(gap**2)[::-1], whole, ("dimension", "dimensions")),
        **_shares((gap @ axes) ** 2, whole, ("principal axis", "principal axes")),
        "alignment": float(squared.mean()),
        "uniformity, images": _uniformity(x),
        "uniformity, texts": _uniformity(y),
        "distribution gap": remaining,
        "FID": length + remaining,
    }


def info_nce(
    image: ArrayLike, text: ArrayLike, tau: float, relevance: Relevance | None = None, *, normalize: bool = True
) -> dict[str, float]:
    """Return the contrastive loss at temperature ``tau``: ``image->text``, ``text->image`` and ``symmetric`` (mean).

    ``image->text`` is the mean over images of log sum_j exp(s_ij / tau) - s_i+ / tau, exact in float64, where s_i+ is
    the similarity to the matching text, or its mean over the matching texts (each counts as a target of its own).
    All other rows are negatives: the value depends on n and m. Natural logarithm. Raises InputError as
    ``gap_metrics`` does, and for a ``tau`` that is not a number above 0.
    """
    if not (isinstance(tau, Real) and 0 < tau < float("inf")):
        raise InputError(f"tau = {tau!r} is not a number above 0")
    x, y = _both(image, text, normalize)
    match = matching(relevance, len(x), len(y))
    positive = _pairs(x, y, match)[0] / tau
    forward, backward = np.empty(len(x)), np.full(len(y), -np.inf)
    for rows in ranking.blocks(len(x), len(y), ranking.BLOCK_BYTES // 2):
        logits = x[rows] @ y.T / tau
        forward[rows] = logsumexp(logits, axis=1)
        backward = np.logaddexp(backward, logsumexp(logits, axis=0))
    owner = np.repeat(np.arange(len(x)), np.diff(match.indptr))
    losses = [
        float((total - np.bincount(item, positive) / np.bincount(item)).mean())
        for total, item in ((forward, owner), (backward, match.indices))
    ]
    return {"image->text": losses[0], "text->image": losses[1], "symmetric": (losses[0] + losses[1]) / 2}


def _search_mixed(
    name: str, queries: Tensor, others: Tensor, match: scipy.sparse.csr_array, k: int, block_bytes: int
) -> dict[str, np.ndarray]:
    """Return the values of ``mixed_query_values`` for one modality, ``name``; ``match`` is [queries, others]."""
    n, m = match.shape
    nearest = ranking.topk(Scorer(queries, others), 1, block_bytes=block_bytes)[:, 0]
    first = scipy.sparse.csr_array((np.ones(n, np.int8), nearest, np.arange(n + 1)), shape=(n, m))
    sought = scipy.sparse.csr_array(first + 2 * match.astype(np.int8))  # 1: the first, 2: a match, 3: both
    sought = scipy.sparse.hstack([scipy.sparse.csr_array((n, n), dtype=np.int8), sought], format="csr")
    sought.sort_indices()
    union = Scorer(queries, torch.cat([queries, others]), exclude=torch.arange(n, device=queries.device))
    result = ranking.rank(union, sought, k, ordered=True, block_bytes=block_bytes)
    same = result.topk < n
    gain = np.where((sought.data >= 2) & (result.rank <= k), 1 / np.log2(1 + result.rank), 0)
    ideal = np.cumsum(1 / np.log2(1 + np.arange(1, k + 1)))[np.minimum(np.diff(match.indptr), k) - 1]
    return {
        f"share of {name} in top-{k} of {name}": same.mean(1),
        f"top-1 modality bias, {name}": same[:, 0].astype(np.float64),
        f"mean rank of best cross-modal item, {name}": np.minimum.reduceat(result.rank, sought.indptr[:-1]) * 1.0,
        f"nDCG@{k} mixed, {name}": np.add.reduceat(gain, sought.indptr[:-1]) / ideal,
    }


def mixed_query_values(
    image: ArrayLike,
    text: ArrayLike,
    relevance: Relevance | None = None,
    k: int = 10,
    *,
    normalize: bool = True,
    block_bytes: int = ranking.BLOCK_BYTES,
) -> dict[str, np.ndarray]:
    """Return the per-query values behind ``mixed_gallery_metrics``, under the same names.

    Float64 [m] for the names that end in ``texts`` (the queries are the texts, in order), [n] for ``images``.
    """
    x = ranking.as_embeddings(image, "images", normalize=normalize)
    y = ranking.as_embeddings(text, "texts", normalize=normalize)
    others = len(x) + len(y) - 1
    if not 1 <= k <= others:
        raise InputError(f"k = {k} is not between 1 and {others}, the number of images and texts besides the query")
    match = matching(relevance, len(x), len(y))
    texts = _search_mixed("texts", y, x, match.T.tocsr(), k, block_bytes)
    return texts | _search_mixed("images", x, y, match, k, block_bytes)


def mixed_gallery_metrics(
    image: ArrayLike,
    text: ArrayLike,
    relevance: Relevance | None = None,
    k: int = 10,
    *,
    normalize: bool = True,
    block_bytes: int = ranking.BLOCK_BYTES,
) -> dict[str, float]:
    """Search images and texts together, for every text and every image, and return what is found, name to float.

    The gallery of a query is its own modality, without itself, followed by the other; ties break by that order.

    * ``share of texts in top-10 of texts`` and ``share of images in top-10 of images``: share of the query's own
      modality among its ``k`` best. For a query that seeks its counterpart it is the share of the wrong modality
      (MM-Embed, ICLR 2025). The number in the names is ``k``.
    * ``top-1 modality bias, texts`` and ``..., images``: share of queries whose nearest item is of their own
      modality (Role et al. 2025: TIR, ITR; from a secondary source).
    * ``mean rank of best cross-modal item, texts`` and ``..., images``: rank of the first item of the other modality,
      relevant or not (TMR, IMR; from a secondary source); 1 = best.
    * ``nDCG@10 mixed, texts`` and ``..., images``: normalised discounted cumulative gain; relevant are the
      matching items of the other modality (GR-CLIP, arXiv 2507.19054, reports nDCG@10 on mixed galleries).

    Raises InputError as ``gap_metrics`` does, and for a ``k`` that is not between 1 and n + m - 1.
    """
    values = mixed_query_values(image, text, relevance, k, normalize=normalize, block_bytes=block_bytes)
    return {name: float(value.mean()) for name, value in values.items()}


def group_metrics(
    image: ArrayLike,
    text: ArrayLike,
    labels_image: ArrayLike,
    labels_text: ArrayLike,
    *,
    clusters: int | None = None,
    seed: int = 0,
    normalize: bool = True,
) -> dict[str, float]:
    """Cluster both modalities together by k-means and compare with the groups [n], [m] the items belong to.

    ``V-measure`` and ``ARI`` of clusters against labels (integers or strings); ``modality in clusters``: homogeneity
    of the clusters in modality (mutual information over the entropy of the modality), 1 if every cluster holds one
    modality, 0 if clusters say nothing about it. ``clusters`` is by default the number of different labels. k-means
    is scikit-learn's, the best of 4 seeded starts. Raises InputError for bad embeddings, labels that do not match the
    rows in number, and ``clusters`` that is not between 1 and n + m.
    """
    from sklearn.cluster import KMeans  # takes a second to import
    from sklearn.metrics import adjusted_rand_score, homogeneity_score, v_measure_score

    x, y = _both(image, text, normalize)
    labels = [np.asarray(given) for given in (labels_image, labels_text)]
    for name, rows, given in zip(("images", "texts"), (x, y), labels, strict=True):
        if given.shape != (len(rows),):
            raise InputError(
                f"labels of the {name} have shape {given.shape}, expected one for each of {len(rows)} rows"
            )
    groups = np.concatenate(labels)
    clusters = len(np.unique(groups)) if clusters is None else clusters
    if not 1 <= clusters <= len(groups):
        raise InputError(f"clusters = {clusters} is not between 1 and the number of rows, {len(groups)}")
    found = KMeans(clusters, n_init=STARTS, random_state=seed).fit_predict(np.concatenate([x, y]))
    return {
        "V-measure": float(v_measure_score(groups, found)),
        "ARI": float(adjusted_rand_score(groups, found)),
        "modality in clusters": float(homogeneity_score(np.repeat([0, 1], [len(x), len(y)]), found)),
    }
