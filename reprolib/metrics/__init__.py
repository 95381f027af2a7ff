"""Metrics: what a ranking is worth, how hub-ridden it is, and how sure we are."""

from reprolib.metrics.hubness import hubness_metrics, hubness_of_counts, k_occurrence
from reprolib.metrics.retrieval import as_scorer, metrics_of_ranking, query_values, retrieval_metrics

__all__ = [
    "as_scorer",
    "hubness_metrics",
    "hubness_of_counts",
    "k_occurrence",
    "metrics_of_ranking",
    "query_values",
    "retrieval_metrics",
]
