"""reprolib: a Jupyter-first reproducibility study package for cross-modal retrieval."""

__version__ = "0.1.0"
