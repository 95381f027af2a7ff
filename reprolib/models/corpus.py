"""What heads are trained on: frozen image features with texts, in train, validation and test."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse

from reprolib import paths
from reprolib.errors import InputError, nearest
from reprolib.loaders import load_features, load_manifest
from reprolib.loaders.dataset import Items, Split
from reprolib.loaders.readers import SPLITS, load_items
from reprolib.loaders.store import digest, read_arrays, write_arrays
from reprolib.models.embed import DEFAULT_MODEL, embed
from reprolib.models.registry import DTYPE, ModelFiles, find_model

FEATURES = ("model", "pixels")
PIXELS = 128  # principal components
WHOLE = 5  # partners of an item in the whole test part: five captions, as everybody has them
_SIDE = 16  # pixels, both sides, that pictures are reduced to first


@dataclass(frozen=True, eq=False)
class Part:
    """One split: image features float32 [n, w], texts or None, text features float32 [m, e] or None, and relevance.

    ``relevance`` bool CSR [n, m]. Ids are strings.
    """

    image: np.ndarray
    texts: list[str] | None
    text: np.ndarray | None
    relevance: scipy.sparse.csr_array
    image_ids: np.ndarray
    text_ids: np.ndarray

    def take(self, images: np.ndarray, texts: np.ndarray) -> Part:
        """Return the images and texts at these rows, in that order."""
        return Part(
            self.image[images],
            None if self.texts is None else [self.texts[row] for row in texts],
            None if self.text is None else self.text[texts],
            scipy.sparse.csr_array(self.relevance[images][:, texts]),
            self.image_ids[images],
            self.text_ids[texts],
        )

    def thinned(self, partners: int) -> Part:
        """Return the part with the first ``partners`` of each item's partners at most; items are the rarer side."""
        n, m = self.relevance.shape
        first = np.unique(_first(self.relevance.T if m < n else self.relevance, partners))
        return self.take(first, np.arange(m)) if m < n else self.take(np.arange(n), first)

    def folds(self, count: int) -> list[Part]:
        """Return ``count`` parts of equal numbers of images, in their order, each with the texts of its images.

        Where texts are the rarer side, they are divided instead, each with its images.
        """
        n, m = self.relevance.shape
        found = []
        for rows in np.array_split(np.arange(min(n, m)), count):
            matrix = self.relevance.T.tocsr()[rows] if m < n else self.relevance[rows]
            other = np.unique(matrix.indices)
            found.append(self.take(other, rows) if m < n else self.take(rows, other))
        return found


@dataclass(frozen=True, eq=False)
class Corpus:
    """A dataset of frozen features; ``whole`` is the test part with up to five partners an item, ``identity`` a sha256.

    ``model`` says what made the image features.
    """

    name: str
    model: str
    train: Part
    validation: Part
    test: Part
    whole: Part
    identity: str
    notes: tuple[str, ...] = field(default=())


def _first(matrix: scipy.sparse.csr_array, count: int) -> np.ndarray:
    """Return the first ``count`` columns of every row, row after row."""
    matrix = scipy.sparse.csr_array(matrix)
    place = np.arange(len(matrix.indices)) - np.repeat(matrix.indptr[:-1], np.diff(matrix.indptr))
    return matrix.indices[place < count]


def load_corpus(
    dataset: str,
    model: str | None = None,
    *,
    embeddings: str | Path | None = None,
    features: str = "pixels",
    views: int = 4,
    per_item: int = 1,
    seed: int = 0,
    device: str = "cpu",
    mirror: str | Path | None = None,
) -> Corpus:
    """Return frozen features and texts of a dataset.

    Of a dataset of raw items, text features are those of ``model``, and image features too ("model") or principal
    components of the pixels ("pixels"), which have seen no text; training keeps ``views`` images of a text at most.
    flickr8k brings its own image features. A file of one's own (``embeddings``) wins over ``dataset``; it is divided
    into train 60 %, validation and test 20 % each, unless it holds a bank to train on. Validation and test keep the
    first ``per_item`` partners of each item. Raises InputError for names and files that are not valid,
    DataUnavailable where data or weights are not at hand.
    """
    if features not in FEATURES:
        raise nearest(features, FEATURES, "kind of features")
    if min(views, per_item) < 1:
        raise InputError(f"views {views} and per_item {per_item}: valid is at least 1 each")
    if embeddings is None and dataset == "flickr8k":
        from reprolib.loaders.readers import flickr8k

        found = {split: flickr8k.load_features(split, mirror) for split in SPLITS}
        parts = {s: Part(f.image, f.texts, None, f.relevance, f.image_ids, f.text_ids) for s, f in found.items()}
        return _corpus(dataset, "MobileNetV1 features", parts, per_item)
    if embeddings is None and load_manifest(dataset).kind == "items":
        parts, made = _of_items(dataset, model, features, views, device, mirror)
        return _corpus(dataset, made, parts, per_item)
    source = dataset if embeddings is None else Path(embeddings)
    data = load_features(source, bank_share=0.6, validation_share=0.2, n_splits=1, seed=seed, mirror=mirror)
    one = data.replicates[0]
    splits = dict(zip(SPLITS, (one.bank, one.validation, one.test), strict=True))
    parts = {name: _of_split(split, data.captions) for name, split in splits.items()}
    return _corpus(data.name, data.model, parts, per_item, data.notes)


def _corpus(name: str, model: str, parts: Mapping[str, Part], per_item: int, notes: tuple[str, ...] = ()) -> Corpus:
    held = {split: parts[split].thinned(per_item) for split in ("validation", "test")}
    arrays = [
        array
        for part in parts.values()
        for array in (part.image, part.texts, part.text, part.relevance.indptr, part.relevance.indices)
        if array is not None
    ]
    identity = digest(name, model, per_item, *arrays)
    whole = parts["test"].thinned(WHOLE)
    return Corpus(name, model, parts["train"], held["validation"], held["test"], whole, identity, notes)


def _of_split(split: Split, captions: Mapping[str, str]) -> Part:
    texts = [captions[name] for name in split.text_ids] if set(split.text_ids) <= set(captions) else None
    return Part(split.image, texts, split.text, split.relevance, split.image_ids, split.text_ids)


def _of_items(
    dataset: str, model: str | None, features: str, views: int, device: str, mirror: str | Path | None
) -> tuple[dict[str, Part], str]:
    items = {split: load_items(dataset, split, mirror) for split in SPLITS}
    items["train"] = _thinned(items["train"], views)
    files = find_model(model or load_manifest(dataset).model or DEFAULT_MODEL)
    if features == "model":
        embedded = {split: embed(part, files, device) for split, part in items.items()}
        image, text = ({s: getattr(part, side) for s, part in embedded.items()} for side in ("image", "text"))
        made = files.name
    else:
        flat = {split: _pixels(part) for split, part in items.items()}
        centre = flat["train"].mean(0)
        rng = np.random.default_rng(0)
        sample = flat["train"][np.sort(rng.permutation(len(flat["train"]))[:4000])] - centre
        axes = np.linalg.eigh(sample.T @ sample)[1][:, ::-1][:, :PIXELS]
        image = {split: ((rows - centre) @ axes).astype(np.float32) for split, rows in flat.items()}
        encoder = cache(partial(_encoder, files.name, device))  # loaded once, and only if the cache lacks something
        text = {split: _text_features(part.texts, files, encoder) for split, part in items.items()}
        made = f"pixels, {PIXELS} principal components"
    return {
        split: Part(image[split], part.texts, text[split], part.relevance, part.image_ids, part.text_ids)
        for split, part in items.items()
    }, made


def _encoder(name: str, device: str) -> Any:
    from reprolib.models.encoder import load_encoder

    return load_encoder(name, device)


def _text_features(texts: list[str], model: ModelFiles, encoder: Callable[[], Any]) -> np.ndarray:
    """Return the text embeddings of a model, from the cache if it holds them."""
    path = paths.cache() / "embeddings" / f"{digest('texts', model.identity, DTYPE, texts)}.safetensors"
    arrays = read_arrays(path)
    if arrays is None:
        arrays = {"text": encoder().encode_texts(texts)}
        write_arrays(path, arrays)
    return arrays["text"]


def _thinned(items: Items, views: int) -> Items:
    rows = np.unique(_first(items.relevance.T, views))
    texts = np.unique(items.relevance[rows].indices)
    return replace(
        items,
        images=items.images[rows],
        texts=[items.texts[row] for row in texts],
        image_ids=items.image_ids[rows],
        text_ids=items.text_ids[texts],
        relevance=items.relevance[rows][:, texts],
    )


def _pixels(items: Items) -> np.ndarray:
    """Return the pictures as grey rows float32 [n, 256] in [0, 1], each pixel the mean of a square."""
    if not isinstance(items.images, np.ndarray):
        raise InputError(f"{items.name} has pictures of many sizes: valid is features 'model'")
    grey = items.images if items.images.ndim == 3 else items.images.mean(-1, dtype=np.float32)
    n, height, width = grey.shape
    if height % _SIDE or width % _SIDE:
        raise InputError(f"{items.name} has pictures of {height} x {width} pixels: valid is a multiple of {_SIDE}")
    squares = grey.reshape(n, _SIDE, height // _SIDE, _SIDE, width // _SIDE)
    return squares.mean((2, 4), dtype=np.float32).reshape(n, -1) / 255
