"""CUB-200-2011: text files that number the images, and say by number what they are."""

from __future__ import annotations

from pathlib import Path

from reprolib.errors import InputError
from reprolib.loaders.manifest import Manifest
from reprolib.loaders.readers.classes import Listing, Row, class_reader, option, part_of_train, table


@class_reader("cub")
def cub(manifest: Manifest, root: Path, split: str) -> Listing:
    """List the images of ``images.txt`` by ``image_class_labels.txt`` and ``train_test_split.txt``.

    Validation is a share of the published training images.
    """
    folder = root / option(manifest, "folder")
    images, labels, training, classes = (
        {fields[0]: (fields[1], where) for where, fields in table(folder / name, 2)}
        for name in ("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt")
    )
    rows = []
    for number, (path, where) in images.items():
        for values, file in ((labels, "image_class_labels.txt"), (training, "train_test_split.txt")):
            if number not in values:
                raise InputError(f"{where}: the image {number} has no line in {file}")
        is_training, at = training[number]
        if is_training not in ("0", "1"):
            raise InputError(f"{at}: {is_training!r} is neither 1 (training) nor 0 (test)")
        if (split == "test") == (is_training == "0"):
            rows.append(Row(path, labels[number][0], where))
    names = {label: name.partition(".")[2] for label, (name, _) in classes.items()}  # of 001.Black_footed_Albatross
    return Listing(folder / "images", part_of_train(manifest, rows, split), names)
