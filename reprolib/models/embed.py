"""From a dataset and a model to embeddings: encoded once, kept under a key of all that decides them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from reprolib.errors import InputError, nearest
from reprolib.loaders.dataset import EmbeddingData, Items, Replicate, identity_of
from reprolib.loaders.features import BANK_SOURCES, divide, load_features
from reprolib.loaders.folds import folds
from reprolib.loaders.manifest import Manifest, load_manifest
from reprolib.loaders.pictures import PictureFiles
from reprolib.loaders.readers import SPLITS, load_items, reader_of
from reprolib.loaders.store import digest
from reprolib.models.extract import embed, part, without_bad_images
from reprolib.models.registry import DTYPE, find_model

__all__ = ["Pictures", "embed", "load_embeddings", "share_of_texts"]
DEFAULT_MODEL = "glyph-clip"
ON_BAD_IMAGE = ("fatal", "skip")


class Pictures(Mapping[str, np.ndarray]):
    """The pictures of several splits by image id, uint8 [h, w] or [h, w, 3], without a copy of them."""

    def __init__(self, *parts: Items) -> None:
        self._parts = parts
        self._rows = {str(name): (i, row) for i, part in enumerate(parts) for row, name in enumerate(part.image_ids)}

    def __getitem__(self, name: str) -> np.ndarray:
        part, row = self._rows[str(name)]
        return self._parts[part].images[row]

    def take(self, names: Iterable[str]) -> np.ndarray | PictureFiles:
        """Return the images of these ids as ``Items`` holds them."""
        places = [self._rows[str(name)] for name in names]
        files = [images.paths[row] for i, row in places if isinstance(images := self._parts[i].images, PictureFiles)]
        return PictureFiles(files) if files else np.stack([self._parts[i].images[row] for i, row in places])

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


def load_embeddings(
    dataset: str,
    model: str | None = None,
    *,
    embeddings: str | Path | None = None,
    bank_share: float = 0.2,
    validation_share: float = 0.2,
    bank_source: str = "train",
    n_splits: int = 5,
    seed: int = 0,
    device: str = "cpu",
    mirror: str | Path | None = None,
    dtype: str = DTYPE,
    on_bad_image: str = "fatal",
) -> EmbeddingData:
    """Return the embeddings of a dataset, divided into bank, validation and test.

    A dataset of raw items (``glyphs``, ``emoji``, or the path of a folder of images with their captions) is encoded
    with ``model`` (default: that of its manifest) and keeps the split of its manifest; its bank is a seeded
    ``bank_share`` of the texts of train with all their images. ``bank_source`` "validation" uses a random half of the
    validation split as bank and leaves the other to tune on; "transductive" uses the test split itself. Where the
    manifest asks for ``folds``, each fold of the test split is a replicate. ``dtype`` is what the model computes in
    (float32, float16, bfloat16). An image that cannot be decoded is "fatal", or left out by "skip" and listed in
    ``notes``. A dataset of stored features, and a file of one's own (``embeddings``, which wins over ``dataset``), is
    divided by ``reprolib.loaders.load_features``.

    Raises InputError for parameters, names and files that are not valid, DataUnavailable where data or
    weights are not at hand.
    """
    if embeddings is None:
        manifest = load_manifest(dataset)
        if manifest.kind == "items":
            return _encoded(
                manifest,
                model or manifest.model or DEFAULT_MODEL,
                bank_share,
                bank_source,
                seed,
                device,
                mirror,
                dtype,
                on_bad_image,
            )
        if model is not None and model != manifest.model:
            raise InputError(f"the dataset {dataset} holds stored features of {manifest.model}: leave out the model")
    return load_features(
        dataset if embeddings is None else Path(embeddings),
        bank_share=bank_share,
        validation_share=validation_share,
        bank_source=bank_source,
        n_splits=n_splits,
        seed=seed,
        mirror=mirror,
    )


def _encoded(
    manifest: Manifest,
    model: str,
    bank_share: float,
    bank_source: str,
    seed: int,
    device: str,
    mirror: str | Path | None,
    dtype: str,
    on_bad_image: str,
) -> EmbeddingData:
    reader_of(manifest)
    if on_bad_image not in ON_BAD_IMAGE:
        raise nearest(on_bad_image, ON_BAD_IMAGE, "value of on_bad_image")
    if bank_source not in BANK_SOURCES:
        raise nearest(bank_source, BANK_SOURCES, "bank source")
    if not 0 < bank_share <= 1:
        raise InputError(
            f"bank_share {bank_share} is not valid: it is a share of the train split, above 0 and at most 1"
        )
    if seed < 0:
        raise InputError(f"seed {seed} is not valid: seeds count from 0 upwards")
    files = find_model(model)
    parts = {split: load_items(manifest.name, split, mirror) for split in SPLITS}
    notes = list(manifest.known_issues)
    if on_bad_image == "skip":
        for split, items in parts.items():
            parts[split], left_out = without_bad_images(items)
            notes += left_out
    validation = embed(parts["validation"], files, device, dtype)
    test = embed(parts["test"], files, device, dtype)
    rng = np.random.default_rng(seed)
    if bank_source == "validation":
        bank, validation = divide(validation, [0.5], rng)
        source = "validation, the half that is not tuned on"
    elif bank_source == "transductive":
        bank, source = test, "transductive: the test split itself"
    else:
        bank = embed(share_of_texts(parts["train"], bank_share, rng), files, device, dtype)
        source = f"train, {100 * bank_share:g} %"
    tests = {"official split": test}
    if "folds" in manifest.options:
        found = folds(test, manifest.options["folds"])
        tests = {f"fold {number} of {len(found)}": fold for number, fold in enumerate(found, start=1)}
    captions = {
        str(name): text for part in parts.values() for name, text in zip(part.text_ids, part.texts, strict=True)
    }
    return EmbeddingData(
        manifest.name,
        model,
        digest(files.identity, dtype, identity_of(*parts.values())),
        tuple(Replicate(bank, validation, fold, label, source) for label, fold in tests.items()),
        tuple(notes),
        manifest.licence,
        captions,
        Pictures(*parts.values()),
    )


def share_of_texts(items: Items, share: float, rng: np.random.Generator) -> Items:
    """Return a random ``share`` (at least one) of the texts, in their order, with all the images of each."""
    count = max(1, round(share * len(items.texts)))
    texts = np.sort(rng.permutation(len(items.texts))[:count])
    return part(items, np.flatnonzero(items.relevance[:, texts].sum(axis=1) > 0), texts)
