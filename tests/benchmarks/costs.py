"""How costs grow: one operation at one size in a fresh process, and the models that are fitted to many of them.

``python -m tests.benchmarks.costs OPERATION ROUNDS QUERIES GALLERY BANK WIDTH RELEVANT`` prints seconds (of each
round) and the peak of the resident set above what was resident before, in bytes, as JSON.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil
import scipy.optimize
import scipy.sparse
import scipy.stats
import torch

from reprolib import methods, ranking
from reprolib.methods import Bank
from reprolib.metrics.hubness import hubness_of_counts, k_occurrence
from reprolib.metrics.retrieval import metrics_of_ranking
from reprolib.ranking import Ranking, Scorer
from tests.benchmarks.measure import peak
from tests.benchmarks.workload import LATENT, views_of

OPERATIONS = ("metrics", "is", "nnn", "sinkhorn")
ITERATIONS = 10  # of Sinkhorn
HELD = 2**29  # entries of the kernel that Sinkhorn holds; above, every iteration computes it anew
K = 10


@dataclass(frozen=True)
class Point:
    """Numbers of queries, of gallery and of bank items, of dimensions, and of items that show the same.

    Of the shorter side so many show the same; of the longer side more, as it has the same things to show.
    """

    queries: int
    gallery: int
    bank: int
    width: int
    relevant: int = 1

    @property
    def shown(self) -> int:
        """How many different things the queries and the gallery show."""
        return min(self.queries, self.gallery) // self.relevant


@dataclass(frozen=True)
class Plan:
    """A base point, the four values that each of its numbers takes, one point that no model sees, and rounds.

    ``anew``: more points for Sinkhorn, whose kernel is not held there.
    """

    base: Point
    axes: dict[str, tuple[int, ...]]
    unseen: Point
    rounds: int
    anew: tuple[Point, ...] = ()

    def points(self, operation: str) -> list[Point]:
        """Return the points at which an operation is measured; metrics need no bank."""
        axes = {name: values for name, values in self.axes.items() if operation != "metrics" or name != "bank"}
        points = [replace(self.base, **{name: v}) for name, values in axes.items() for v in values]
        return list(dict.fromkeys([*points, *(self.anew if operation == "sinkhorn" else ())]))


FULL = Plan(
    Point(8_000, 8_000, 16_000, 512),
    {
        "queries": (4_000, 8_000, 16_000, 32_000),
        "gallery": (2_000, 4_000, 8_000, 16_000),
        "bank": (8_000, 16_000, 32_000, 64_000),
        "width": (128, 256, 512, 1024),
        "relevant": (1, 2, 4, 8),
    },
    Point(8_000, 36_000, 16_000, 256),
    3,
    (Point(8_000, 8_000, 72_000, 128), Point(8_000, 8_000, 72_000, 256), Point(8_000, 16_000, 36_000, 128)),
)
SMALL = Plan(
    Point(40, 30, 200, 96),
    {"queries": (20, 40), "gallery": (30, 60), "bank": (200, 400), "width": (80, 96, 112), "relevant": (1, 2)},
    Point(50, 40, 250, 96),
    1,
)


def flops(operation: str, p: Point) -> float:
    """Return the operations of the matrix products: queries x gallery, and bank x gallery if there is a bank."""
    return 2.0 * p.width * p.gallery * (p.queries + passes(operation, p) * p.bank)


def passes(operation: str, p: Point) -> int:
    """Return how often the bank x gallery matrix is computed."""
    if operation == "metrics":
        return 0
    return ITERATIONS if operation == "sinkhorn" and p.gallery * p.bank > HELD else 1


def terms(operation: str, p: Point, further: float | None = None) -> list[float]:
    """Return what seconds are a sum of: operations; entries, and entries that are counted once more; the bank; and 1.

    Entries are those of queries x gallery. They are counted once more for each further relevant item of a query, and
    with both directions for each further query of an item. The bank: its entries with the gallery as often as they are
    computed, and for Sinkhorn those of the kernel that is held. ``further``: not as ``make`` has it.
    """
    entries = float(p.queries * p.gallery)
    if further is None:
        further = p.gallery / p.shown - 1 + (p.queries / p.shown - 1 if operation == "metrics" else 0)
    bank = [] if operation == "metrics" else [float(passes(operation, p) * p.gallery * p.bank)]
    held = [float(kernel_entries(operation, p))] if operation == "sinkhorn" else []
    return [flops(operation, p), entries, further * entries, *bank, *held, 1.0]


def memory_terms(operation: str, p: Point) -> list[float]:
    """Return what the peak is a sum of: queries, gallery items, bank items, the kernel that Sinkhorn holds, and 1."""
    held = [float(kernel_entries(operation, p))] if operation == "sinkhorn" else []
    return [float(p.queries), float(p.gallery), *([] if operation == "metrics" else [float(p.bank)]), *held, 1.0]


def kernel_entries(operation: str, p: Point) -> int:
    """Return the entries of the kernel that Sinkhorn holds."""
    return p.gallery * p.bank if operation == "sinkhorn" and passes(operation, p) == 1 else 0


@dataclass(frozen=True)
class Model:
    """``value = terms . weights``, fitted by least squares of relative residuals, no weight below 0."""

    weights: np.ndarray
    covariance: np.ndarray
    spread: float  # standard deviation of the relative residuals
    worst: float  # the largest of them
    freedom: int

    def predict(self, terms: Sequence[float]) -> tuple[float, float, float]:
        """Return the value at ``terms`` with a 95 % interval for one more measurement there."""
        x = np.asarray(terms)
        value = float(x @ self.weights)
        error = float(np.sqrt(x @ self.covariance @ x + (self.spread * value) ** 2))
        reach = float(scipy.stats.t.ppf(0.975, self.freedom)) * error
        return value, max(0.0, value - reach), value + reach


def model(rows: Sequence[Sequence[float]], values: Sequence[float]) -> Model:
    """Fit ``values`` [n] to ``rows`` [n, terms]."""
    y = np.asarray(values)
    scale = np.abs(np.asarray(rows)).max(0)  # operations and entries differ by many orders of magnitude
    x = np.asarray(rows) / scale / y[:, None]
    weights = scipy.optimize.nnls(x, np.ones(len(y)))[0]
    used = weights > 0
    residuals = x @ weights - 1
    freedom = len(y) - int(used.sum())
    spread = float(np.sqrt((residuals**2).sum() / freedom))
    covariance = np.zeros((len(weights), len(weights)))
    covariance[np.ix_(used, used)] = spread**2 * np.linalg.inv(x[:, used].T @ x[:, used])
    return Model(weights / scale, covariance / np.outer(scale, scale), spread, float(np.abs(residuals).max()), freedom)


@dataclass(frozen=True)
class Data:
    """Unit-length embeddings, and which gallery items are relevant: every query and every item has at least one."""

    queries: torch.Tensor
    gallery: torch.Tensor
    bank: torch.Tensor
    relevance: scipy.sparse.csr_array


def make(p: Point) -> Data:
    rng = np.random.default_rng(0)
    view, latent = views_of(rng, p.width), rng.standard_normal((p.shown, LATENT))
    query, item = (np.arange(size) % p.shown for size in (p.queries, p.gallery))
    shows = [scipy.sparse.csr_array((np.ones(len(x), bool), (np.arange(len(x)), x))) for x in (query, item)]
    relevance = shows[0] @ shows[1].T
    queries, gallery = view(latent[query], "text"), view(latent[item], "image")
    bank = view(rng.standard_normal((p.bank, LATENT)), "text")
    return Data(*map(torch.from_numpy, (queries, gallery, bank)), scipy.sparse.csr_array(relevance))


def _summary(found: Ranking, size: int) -> dict[str, float]:
    return metrics_of_ranking(found) | hubness_of_counts(k_occurrence(found.topk, size))


def metrics(data: Data) -> None:
    """Complete metrics and k-occurrence of both directions."""
    forward, backward = ranking.rank_both(Scorer(data.queries, data.gallery), data.relevance, K)
    _summary(forward, len(data.gallery))
    _summary(backward, len(data.queries))


def corrected(data: Data, name: str) -> None:
    """Fit a correction, then complete metrics and k-occurrence of one direction."""
    bank = Bank(data.bank, "query bank")  # nothing of an earlier round is kept
    scorer = methods.fit(name, data.queries, data.gallery, query_bank=bank, normalize=False)
    _summary(ranking.rank(scorer, data.relevance, K), len(data.gallery))


def once(operation: str, p: Point, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each round and the peak of the first above what was resident."""
    work: Callable[[Data], None] = metrics if operation == "metrics" else lambda data: corrected(data, operation)
    work(make(Point(40, 30, 200, 96)))  # loads libraries and their thread pools
    data = make(p)
    ctypes.CDLL(None).malloc_trim(0)  # what making the data took is given back, and the peak counted anew
    Path("/proc/self/clear_refs").write_text("5")
    resident, seconds, highest = psutil.Process().memory_info().rss, [], 0
    for _ in range(rounds):
        start = time.perf_counter()
        work(data)
        seconds.append(time.perf_counter() - start)
        highest = highest or peak()
    return {"seconds": seconds, "peak": [max(1.0, float(highest - resident))]}


if __name__ == "__main__":
    json.dump(once(sys.argv[1], Point(*map(int, sys.argv[3:])), int(sys.argv[2])), sys.stdout)
