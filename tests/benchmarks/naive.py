"""What one would write with NumPy: every matrix is built whole, every ranking is a sort. float32, vectorised."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.benchmarks.workload import CAPTIONS, Workload

K = 10


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def ranks(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the ranks [n, p] of ``positive`` [n, p] in each row, and the k-occurrence of each column."""
    order = np.argsort(-scores, axis=1, kind="stable")
    places = np.empty(order.shape, dtype=np.int32)
    np.put_along_axis(places, order, np.arange(order.shape[1], dtype=np.int32)[None], axis=1)
    counts = np.bincount(order[:, :K].ravel(), minlength=scores.shape[1])
    return 1 + np.take_along_axis(places, positive, axis=1), counts


def caption_to_image(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return ranks(scores, (np.arange(len(scores)) // CAPTIONS)[:, None])


def image_to_caption(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return ranks(scores.T, np.arange(len(scores)).reshape(-1, CAPTIONS))


def summary(found: tuple[np.ndarray, np.ndarray]) -> dict[str, float]:
    best = found[0].min(axis=1)
    recall = {f"R@{k}": float((best <= k).mean()) for k in (1, 5, 10)}
    spread = found[1] - found[1].mean()
    return recall | {
        "median rank": float(np.median(best)),
        "mean rank": float(best.mean()),
        "MRR": float((1 / best).mean()),
        "skewness": float((spread**3).mean() / (spread**2).mean() ** 1.5),
    }


def normalised(scores: np.ndarray, bank: np.ndarray, beta: float) -> np.ndarray:
    return np.exp(beta * scores) / np.exp(beta * bank).sum(axis=0)


def gated(scores: np.ndarray, bank: np.ndarray, beta: float) -> np.ndarray:
    """QB-Norm as released: the bank's ranking is sorted whole, its first column makes the activation set."""
    active = np.unique(np.argsort(-bank, axis=1)[:, 0])
    gate = np.isin(scores.argmax(axis=1), active)
    return np.where(gate[:, None], normalised(scores, bank, beta), scores)


def nearest_mean(similarities: np.ndarray, k: int) -> np.ndarray:
    return np.partition(similarities, -k, axis=1)[:, -k:].mean(axis=1)


def globally_corrected(w: Workload) -> np.ndarray:
    scores, bank = w.images @ w.captions.T, np.sort(w.images @ w.query_bank.T, axis=1)
    higher = np.empty(scores.shape, dtype=np.int32)
    for item in range(len(scores)):
        higher[item] = bank.shape[1] - np.searchsorted(bank[item], scores[item], side="right")
    scores, higher = np.ascontiguousarray(scores.T), np.ascontiguousarray(higher.T)
    order = np.lexsort((-scores, higher), axis=1)
    places = np.empty(order.shape, dtype=np.float32)
    np.put_along_axis(places, order, -np.arange(order.shape[1], dtype=np.float32)[None], axis=1)
    return places


def transport(w: Workload, targets: np.ndarray, tau: float = 0.01, iterations: int = 10) -> np.ndarray:
    similarities = targets @ w.query_bank.T
    peak = similarities.max(axis=1)
    kernel = np.exp((similarities - peak[:, None]) / np.float32(tau))
    scale = np.exp((peak - peak.max()) / np.float32(tau))
    for _ in range(iterations):
        scale = 1 / (kernel @ (1 / (scale @ kernel)))
    potential = (peak - tau * np.log(scale))[: len(w.images)]
    return w.captions @ w.images.T - potential


def graph_message(w: Workload, bank: np.ndarray, pool_rate: float | None) -> np.ndarray:
    weights = w.images @ bank.T
    if pool_rate is None:
        return (weights - weights.mean()) @ bank / len(bank)
    pool = int(pool_rate * len(bank))
    lowest = np.partition(weights, -pool, axis=1)[:, -pool, None]
    return np.where(weights >= lowest, weights, 0) @ bank / pool


def graph(w: Workload, pool_rate: float | None) -> np.ndarray:
    messages = [graph_message(w, bank, pool_rate) for bank in (w.query_bank, w.gallery_bank)]
    return w.captions @ unit(sum(unit(w.images - message) for message in messages)).T


def scores(w: Workload) -> np.ndarray:
    return w.captions @ w.images.T


def of_queries(w: Workload) -> np.ndarray:
    return w.query_bank @ w.images.T


def of_gallery(w: Workload) -> np.ndarray:
    return w.gallery_bank @ w.images.T


def dual(w: Workload, factor: Callable[[np.ndarray, np.ndarray, float], np.ndarray]) -> np.ndarray:
    similarities = scores(w)
    first, second = factor(similarities, of_queries(w), 20), factor(similarities, of_gallery(w), 1)
    return np.where((first < 0) & (second < 0), -first * second, first * second)  # s x s must not lift the lowest s


# With the parameters that the library has by default.
CORRECTIONS: dict[str, Callable[[Workload], np.ndarray]] = {
    "is": lambda w: normalised(scores(w), of_queries(w), 20),
    "dis": lambda w: gated(scores(w), of_queries(w), 20),
    "dual-is": lambda w: dual(w, normalised),
    "dual-dis": lambda w: dual(w, gated),
    "csls": lambda w: scores(w) - 0.5 * nearest_mean(w.images @ w.query_bank.T, 10),
    "nnn": lambda w: scores(w) - 0.75 * nearest_mean(w.images @ w.query_bank.T, 128),
    "gc": globally_corrected,
    "dn": lambda w: (w.captions - 0.5 * w.query_bank.mean(0)) @ (w.images - 0.5 * w.gallery_bank.mean(0)).T,
    "sinkhorn": lambda w: transport(w, w.images),
    "dual-bank-sinkhorn": lambda w: transport(w, np.concatenate([w.images, w.gallery_bank])),
    "invgc": lambda w: graph(w, None),
    "invgc-localadj": lambda w: graph(w, 0.01),
}
