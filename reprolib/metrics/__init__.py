"""Metrics: what a ranking is worth, how hub-ridden it is, how far apart the modalities lie, and how sure we are."""

from reprolib.metrics.gap import (
    gap_metrics,
    gap_per_dimension,
    group_metrics,
    info_nce,
    mixed_gallery_metrics,
    mixed_query_values,
)
from reprolib.metrics.hubness import hubness_metrics, hubness_of_counts, k_occurrence
from reprolib.metrics.intra_modal import answerable, intra_modal_metrics, same_group
from reprolib.metrics.retrieval import as_scorer, metrics_of_ranking, query_values, retrieval_metrics

__all__ = [
    "answerable",
    "as_scorer",
    "gap_metrics",
    "gap_per_dimension",
    "group_metrics",
    "hubness_metrics",
    "hubness_of_counts",
    "info_nce",
    "intra_modal_metrics",
    "k_occurrence",
    "metrics_of_ranking",
    "mixed_gallery_metrics",
    "mixed_query_values",
    "query_values",
    "retrieval_metrics",
    "same_group",
]
