"""What the readers of captioned images share: pictures with several captions each.

A reader of such a set is one function under ``@caption_reader(...)`` that lists the captioned images of a split. What
follows from the list is here: the items, the groups, and the search among captions.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy import sparse

from reprolib.errors import InputError
from reprolib.loaders.dataset import Items
from reprolib.loaders.judgements import judgements_of, merge
from reprolib.loaders.manifest import Manifest
from reprolib.loaders.readers import Groups, Mirror, Search, completed, items_of, reader


@dataclass(frozen=True, slots=True)
class Captioned:
    """One image: its ``path`` under the dataset's root, its id, its captions as (id, text), and who ``where`` says so.

    Raises InputError, naming ``where``, for an image without captions and for a blank caption.
    """

    path: str
    image_id: str
    texts: tuple[tuple[str, str], ...]
    where: str

    def __post_init__(self) -> None:
        if not self.texts:
            raise InputError(f"{self.where}: the image {self.path} has no caption; valid is at least one")
        for text_id, text in self.texts:
            if not text:
                raise InputError(f"{self.where}: the caption {text_id} of {self.path} is blank; valid is some text")


Listing = Callable[[Manifest, str, Mirror], tuple[Path, Sequence[Captioned]]]


def caption_reader(name: str) -> Callable[[Listing], Listing]:
    """Enter a function of manifest, split and mirror that returns the root and the captioned images of a split.

    The manifest's options that hold for every such reader: ``captions``, how many captions of an image are used, from
    the first (default all); ``judgements`` (see ``reprolib.loaders.judgements``); ``dataset``, another manifest from
    which files and all options that are not stated are taken.
    """

    def enter(listing: Listing) -> Listing:
        def read(manifest: Manifest, split: str, mirror: Mirror) -> Items:
            whole = completed(manifest)
            items = _items(whole, split, *listing(whole, split, mirror))
            judgements = judgements_of(whole, split, mirror)
            return items if judgements is None else merge(items, judgements)

        def groups(manifest: Manifest, items: Items, mirror: Mirror) -> Groups:
            return {"item": (items.image_ids, _owners(listing, completed(manifest), items, mirror))}

        def search(manifest: Manifest, items: Items, modality: str, mirror: Mirror) -> Search | None:
            if modality == "image":
                return None
            return first_captions(_owners(listing, completed(manifest), items, mirror))

        reader(name, groups=groups, search=search)(read)
        return listing

    return enter


def first_captions(owners: np.ndarray) -> Search:
    """Return the search among captions of Cross the Gap: the first caption of an image queries all the others.

    ``owners`` are image ids [n_text] in the order of the texts; the captions of the query's image are relevant, and
    no caption is query and gallery item at once. An image with one caption queries nothing. The protocol: miccunifi/
    Cross-the-Gap at 2e4de83, src/datasets/coco_text.py lines 42-51, flickr30k_text.py 45-50, nocaps_text.py 25-30.
    """
    first = np.sort(np.unique(owners, return_index=True)[1])
    gallery = np.setdiff1d(np.arange(len(owners)), first)
    queries = first[np.isin(owners[first], owners[gallery])]
    if not len(queries):
        raise InputError("no image has two captions; a search among captions takes images with at least two")
    names, of_gallery = np.unique(owners[gallery], return_inverse=True)
    columns = sparse.csr_array((np.ones(len(gallery), dtype=bool), (of_gallery, np.arange(len(gallery)))))
    relevance = columns[np.searchsorted(names, owners[queries])]
    nothing = sparse.csr_array(relevance.shape, dtype=bool)
    return Search(queries.astype(np.int64), gallery.astype(np.int64), {"item": relevance}, {"item": nothing})


def repeated_texts(items: Items) -> dict[str, int]:
    """Return the texts that stand for more than one item of ``items``, and how often each does.

    Which of them comes first is decided by their order in the gallery, so that no method can tell them apart.
    """
    return {text: count for text, count in Counter(items.texts).items() if count > 1}


def _owners(listing: Listing, manifest: Manifest, items: Items, mirror: Mirror) -> np.ndarray:
    """Return the id of the image that each text was written for, string [n_text]; judgements do not change it."""
    _, images = listing(manifest, items.split, mirror)
    owner = {text_id: image.image_id for image in images for text_id, _ in image.texts}
    return np.array([owner[str(name)] for name in items.text_ids])


def _items(manifest: Manifest, split: str, root: Path, images: Sequence[Captioned]) -> Items:
    most = manifest.options.get("captions")
    if most is not None:
        if not isinstance(most, int) or most < 1:
            raise InputError(f"{manifest.name}.yaml, option captions: {most!r} is not valid; valid is a number from 1")
        images = [replace(image, texts=image.texts[:most]) for image in images]
    _check_present(root, images)
    pictures: dict[str, Path] = {}
    for image in images:
        if image.image_id in pictures:
            raise InputError(
                f"{image.where}: the id {image.image_id!r} stands on an earlier entry too; valid is one each"
            )
        pictures[image.image_id] = root / image.path
    texts = [(text_id, image.image_id, text) for image in images for text_id, text in image.texts]
    return items_of(manifest.name, split, pictures, texts)


def _check_present(root: Path, images: Sequence[Captioned]) -> None:
    """Refuse a list that names pictures which are not there; folders are listed once, not files asked one by one."""
    folders = {image.path.rpartition("/")[0] for image in images}
    there = {folder: set(os.listdir(root / folder)) if (root / folder).is_dir() else set() for folder in folders}
    missing = [image for image in images if image.path.rpartition("/")[2] not in there[image.path.rpartition("/")[0]]]
    if missing:
        raise InputError(
            f"{missing[0].where}: there is no picture {root / missing[0].path} ({len(missing)} of {len(images)} "
            "pictures of the split are missing); complete the folder"
        )
