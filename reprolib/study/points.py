"""Grid points: small pieces of a study as functions of parameters, for sweeps that need no notebook.

A point returns records. To add one: a function under ``@point("name")`` with keyword parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from reprolib import ranking
from reprolib.methods import fit
from reprolib.methods.base import CATALOGUE, Bank
from reprolib.metrics import hubness_of_counts, k_occurrence, query_values
from reprolib.metrics.statistics import ClusterBootstrap
from reprolib.models import load_embeddings
from reprolib.study.protocol import Side, oriented

POINTS: dict[str, Callable[..., list[dict[str, Any]]]] = {}


def point(name: str) -> Callable[[Callable[..., list[dict[str, Any]]]], Callable[..., list[dict[str, Any]]]]:
    """Enter a function of keyword parameters that returns records."""

    def enter(function: Callable[..., list[dict[str, Any]]]) -> Callable[..., list[dict[str, Any]]]:
        POINTS[name] = function
        return function

    return enter


@point("correction")
def correction(
    *,
    dataset: str = "glyphs",
    model: str | None = None,
    embeddings: str | None = None,
    direction: str = "text->image",
    method: str = "is",
    settings: Mapping[str, Any] = {},
    bank_share: float = 0.2,
    bank_source: str = "train",
    k: int = 10,
    n_splits: int = 5,
    n_bootstrap: int = 2000,
    seed: int = 0,
    device: str = "cpu",
) -> list[dict[str, Any]]:
    """Return R@1, R@5, R@10, MRR with intervals, and the skewness, of one correction on the test splits.

    ``settings`` are the parameters of the method; nothing is tuned.
    """
    data = load_embeddings(
        dataset, model, embeddings=embeddings, bank_share=bank_share, bank_source=bank_source, n_splits=n_splits,
        seed=seed, device=device,
    )  # fmt: skip
    values, clusters, skewness = [], [], []
    for replicate in data.replicates:
        side = Side(replicate.test, direction, device)
        query_bank, gallery_bank, _ = oriented(replicate.bank, direction)
        banks = {"query_bank": query_bank, "gallery_bank": gallery_bank}
        needed = {name: Bank(ranking.as_embeddings(banks[name], name, device=device), name)
                  for name in CATALOGUE[method].needs}  # fmt: skip
        scorer = fit(method, side.queries, side.gallery, **needed, **settings)
        result = ranking.rank(scorer, side.relevance, k)
        values.append(query_values(result))
        clusters.append(side.clusters)
        skewness.append(hubness_of_counts(k_occurrence(result.topk, len(side.gallery)))["skewness"])
    bootstrap = ClusterBootstrap(np.concatenate(clusters), seed=seed, resamples=n_bootstrap)
    common = {
        "study": "correction", "dataset": data.name, "model": data.model, "direction": direction, "method": method,
        "parameters": dict(settings), "bank": data.replicates[0].bank_source, "table": "main",
    }  # fmt: skip
    found = {}
    for name in ("R@1", "R@5", "R@10", "MRR"):
        pooled = np.concatenate([each[name] for each in values])
        found[name] = bootstrap.mean(pooled)
    rows = [
        common | {"metric": name, "value": each.value, "ci_low": each.low, "ci_high": each.high, "n": len(pooled)}
        for name, each in found.items()
    ]
    return [*rows, common | {"metric": "skewness", "value": float(np.mean(skewness)), "n": len(pooled)}]
