"""Stanford Online Products: images of products, which belong to twelve kinds; no product is in two splits."""

from __future__ import annotations

from pathlib import Path

from reprolib.errors import InputError
from reprolib.loaders.manifest import Manifest
from reprolib.loaders.readers.classes import Listing, Row, class_reader, option, part_of_train, table

COLUMNS = ["image_id", "class_id", "super_class_id", "path"]


@class_reader("sop")
def sop(manifest: Manifest, root: Path, split: str) -> Listing:
    """List the images of ``Ebay_train.txt`` or ``Ebay_test.txt``; a product is named after its kind.

    Validation is a share of the published training products.
    """
    folder, kinds = root / option(manifest, "folder"), option(manifest, "kinds")
    path = folder / ("Ebay_test.txt" if split == "test" else "Ebay_train.txt")
    lines = table(path, len(COLUMNS))
    where, header = next(lines, (f"{path.name}, line 1", []))
    if header != COLUMNS:
        raise InputError(f"{where}: valid is the header {' '.join(COLUMNS)!r}")
    names: dict[str, str] = {}
    rows = []
    for where, (_, product, kind, image) in lines:
        if not kind.isdecimal() or not 1 <= int(kind) <= len(kinds):
            raise InputError(f"{where}: the super-class {kind!r} is unknown; valid is 1 to {len(kinds)}")
        if names.setdefault(product, kinds[int(kind) - 1]) != kinds[int(kind) - 1]:
            raise InputError(f"{where}: the product {product} is of another super-class than before")
        rows.append(Row(image, product, where))
    return Listing(folder, part_of_train(manifest, rows, split, by="label"), names)
