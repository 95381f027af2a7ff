"""Hubness corrections. A new method is one file here, with an entry in the catalogue, and its test."""

import importlib
import pkgutil

from reprolib.methods.base import CATALOGUE, Bank, Method, correct, fit
from reprolib.methods.export import faiss_index, index_topk

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
_chronological = sorted(CATALOGUE.items(), key=lambda entry: entry[1].year)
CATALOGUE.clear()
CATALOGUE.update(_chronological)


def catalogue() -> dict[str, str]:
    """Return the methods with a one-line summary each."""
    return {name: method.summary for name, method in CATALOGUE.items()}


__all__ = ["CATALOGUE", "Bank", "Method", "catalogue", "correct", "faiss_index", "fit", "index_topk"]
