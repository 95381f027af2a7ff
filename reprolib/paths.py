"""Where things are: the one place that knows the layout of a checkout and of an installed package."""

from __future__ import annotations

import os
from pathlib import Path


def root() -> Path:
    """Return the folder that holds ``data_manifests`` and ``notebooks``: the checkout, or the installed package."""
    package = Path(__file__).resolve().parent
    return package.parent if (package.parent / "data_manifests").is_dir() else package


def manifests() -> Path:
    """Return the folder of the dataset, model and claim manifests."""
    return root() / "data_manifests"


def notebooks() -> Path:
    """Return the folder of the study notebooks."""
    return root() / "notebooks"


def cache() -> Path:
    """Return the cache folder: ``REPROLIB_CACHE``, else ``.cache`` beside the manifests."""
    return Path(os.environ.get("REPROLIB_CACHE") or root() / ".cache").expanduser()


def mirror() -> Path | None:
    """Return the read-only mirror named by ``REPROLIB_MIRROR``, laid out as ``<dataset>/<file name>``, or None."""
    value = os.environ.get("REPROLIB_MIRROR")
    return Path(value).expanduser() if value else None
