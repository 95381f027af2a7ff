"""Parts of a test split that are searched on their own, as in COCO's 1k protocol."""

from __future__ import annotations

import numpy as np

from reprolib.errors import InputError
from reprolib.loaders.dataset import Split


def folds(split: Split, n: int) -> list[Split]:
    """Return ``n`` parts of equal size (at most one image more or less), images in their order, with their texts.

    COCO's 1k numbers are means over five such parts of the 5k test split: fartashf/vsepp at 175b897, evaluation.py,
    ``evalrank`` with ``fold5``. Raises InputError for fewer than one part or more parts than images, and where a text
    is relevant to images of two parts.
    """
    if not 1 <= n <= len(split.image):
        raise InputError(f"{n} folds of {len(split.image)} images: valid is a number from 1 to the number of images")
    parts = [split.take(rows) for rows in np.array_split(np.arange(len(split.image)), n)]
    if sum(len(part.text) for part in parts) != len(split.text):
        raise InputError(
            f"{n} folds: a text is relevant to images of two folds; valid is a relevance that stays within a fold"
        )
    return parts
