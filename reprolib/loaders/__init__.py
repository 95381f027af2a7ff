"""Datasets: from a manifest to verified files, and from files to checked arrays."""

from reprolib.loaders.dataset import EmbeddingData, Items, Replicate, Split, identity_of
from reprolib.loaders.features import divide, load_features, load_split
from reprolib.loaders.manifest import datasets, load_manifest, status

__all__ = [
    "EmbeddingData",
    "Items",
    "Replicate",
    "Split",
    "datasets",
    "divide",
    "identity_of",
    "load_features",
    "load_manifest",
    "load_split",
    "status",
]
