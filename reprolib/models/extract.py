"""Extraction of embeddings: encoded once, resumable at any kill, kept under a key of all that decides them.

An entry of the store is ``<key>.safetensors``, and ``<key>.json`` says in words what the key is made of. Batches that
are done wait in ``<key>.partial/``, so that a stopped extraction loses one batch at most; as batches begin at the
same rows in every run, a resumed run gives the bytes of one that was not stopped. Any number of processes may work on
one key: files appear whole, and what another process has done already is taken over.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from reprolib import paths
from reprolib.errors import InputError, RunError
from reprolib.loaders.dataset import Items, Split
from reprolib.loaders.pictures import PictureFiles
from reprolib.loaders.store import digest, map_arrays, read_arrays, write_arrays
from reprolib.models.registry import DTYPE, ModelFiles

PATIENCE = 3.0  # seconds before a bar appears
_log = logging.getLogger(__name__)


def embed(items: Items, model: ModelFiles, device: str = "cpu", dtype: str = DTYPE) -> Split:
    """Return the embeddings of ``items``, memory-mapped from the store if it holds them.

    The key is the sha256 over weights, preprocessing, tokenizer and activations of the model, the ``dtype`` of the
    computation, and content, order and ids of the items. An entry is verified on use; one that is damaged is computed
    anew, with a notice. Raises InputError for images that cannot be decoded, listing them, and for ids that stand in
    another order than those of stored embeddings of the same contents.
    """
    about = ingredients(items, model, dtype)
    key = digest(about)
    path = paths.cache() / "embeddings" / f"{key}.safetensors"
    arrays, partial = map_arrays(path, key), path.with_suffix(".partial")
    if arrays is None:
        if path.exists():
            _log.warning("the stored embeddings %s are damaged: they are computed again", path)
        _compare(path.parent, about, items, model)
        if bad := bad_images(items.images):
            raise InputError(f"{_listed(items, bad)}; mend them, or leave them out by choice (on_bad_image=skip)")
        found = _extract(items, model, device, dtype, partial)
        _describe(path.with_suffix(".json"), items, model, about)
        write_arrays(path, found, key)
        arrays = map_arrays(path, key)
        if arrays is None:
            raise RunError(f"{path} is not what was written to it a moment ago: its disk cannot be trusted")
    shutil.rmtree(partial, ignore_errors=True)  # also that of a process killed before it came to this
    return Split(arrays["image"], arrays["text"], items.relevance, items.image_ids, items.text_ids)


def ingredients(items: Items, model: ModelFiles, dtype: str = DTYPE) -> dict[str, str]:
    """Return by name all that decides the embeddings of ``items``: hashes, and what can be read as it is."""
    images = items.images.digest() if isinstance(items.images, PictureFiles) else digest(items.images)
    return {
        **{
            f"{name} of the model": value for name, value in (model.ingredients or {"identity": model.identity}).items()
        },
        "dtype": dtype,
        "images": images,
        "image ids": digest(items.image_ids),
        "texts": digest(items.texts),
        "text ids": digest(items.text_ids),
    }


def _extract(items: Items, model: ModelFiles, device: str, dtype: str, partial: Path) -> dict[str, np.ndarray]:
    from reprolib.models.encoder import load_encoder

    encoder = replace(load_encoder(model.name, device), dtype=dtype)
    with _kept(partial, "images", len(items.images)) as keep:
        image = encoder.encode_images(items.images, keep)
    with _kept(partial, "texts", len(items.texts)) as keep:
        text = encoder.encode_texts(items.texts, keep)
    return {"image": image, "text": text}


@contextmanager
def _kept(partial: Path, kind: str, n: int) -> Iterator[Callable[[slice, Callable[[], np.ndarray]], np.ndarray]]:
    """Yield a function that keeps each batch in ``partial`` and takes those that are there, with a bar over them."""
    with tqdm(total=n, desc=f"encode {kind}", unit=f" {kind}", leave=False, delay=PATIENCE, mininterval=1) as bar:

        def keep(rows: slice, compute: Callable[[], np.ndarray]) -> np.ndarray:
            path = partial / f"{kind} {rows.start}-{rows.stop}.safetensors"
            done = read_arrays(path)
            if done is None:
                done = {kind: compute()}
                try:
                    write_arrays(path, done)
                except FileNotFoundError:  # another process has finished the whole and tidied up
                    _log.info("%s is complete elsewhere", partial)
            else:
                bar.initial += rows.stop - rows.start  # the rate counts what is computed now
            bar.update(rows.stop - rows.start)
            return done[kind]

        yield keep


def _describe(path: Path, items: Items, model: ModelFiles, about: Mapping[str, str]) -> None:
    """Write down what an entry is made of, atomically."""
    content = {"model": model.name, "dataset": items.name, "split": items.split, "ingredients": about} | _orders(items)
    partial = path.with_suffix(f".{os.getpid()}.part")
    partial.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
    os.replace(partial, path)


def _orders(items: Items) -> dict[str, str]:
    """Return hashes that do not depend on the order of the ids, by which a permutation is known."""
    return {"sorted image ids": digest(np.sort(items.image_ids)), "sorted text ids": digest(np.sort(items.text_ids))}


def _compare(folder: Path, about: Mapping[str, str], items: Items, model: ModelFiles) -> None:
    """Name what sets ``about`` apart from the nearest entry; InputError where that is the order of the ids alone."""
    orders, nearest = _orders(items), None
    for path in folder.glob("*.json"):
        if not path.with_suffix(".safetensors").is_file():
            continue
        try:
            entry = json.loads(path.read_text(encoding="utf-8"))
            other = entry["ingredients"]
        except (OSError, ValueError, KeyError, TypeError):  # of a killed or a strange process: it only informs
            continue
        apart = sorted(name for name in about.keys() | other.keys() if about.get(name) != other.get(name))
        for kind in ("image", "text"):
            moved = f"{kind} ids" in apart and f"{kind}s" not in apart
            if moved and entry.get(f"sorted {kind} ids") == orders[f"sorted {kind} ids"]:
                raise InputError(
                    f"{_place(items)}: the {kind} ids stand in another order than in the stored embeddings {path}, "
                    f"beside the same {kind}s in the same order; valid is one id for each {kind} (where those "
                    "are wrong, remove the file)"
                )
        if apart and (nearest is None or len(apart) < len(nearest[1])):
            nearest = path.stem[:12], apart
    if nearest:
        what = f"{_place(items)}, by {model.name}"
        _log.info("%s: not stored; the nearest entry %s differs in: %s", what, nearest[0], ", ".join(nearest[1]))


def bad_images(images: np.ndarray | PictureFiles) -> dict[int, str]:
    """Return by row why an image cannot be decoded; what was found is kept under the hash of the images."""
    if isinstance(images, np.ndarray):
        return {}
    path = paths.cache() / "pictures" / f"{images.digest()}.json"
    if path.is_file():
        return {int(row): reason for row, reason in json.loads(path.read_text(encoding="utf-8")).items()}

    def why(row: int) -> str | None:
        try:
            images[row]
        except InputError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        results = pool.map(why, range(len(images)))
        reasons = list(
            tqdm(results, "check images", len(images), unit=" images", leave=False, delay=PATIENCE, mininterval=1)
        )
    found = {row: reason for row, reason in enumerate(reasons) if reason is not None}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.part")
    partial.write_text(json.dumps(found), encoding="utf-8")
    os.replace(partial, path)
    return found


def without_bad_images(items: Items) -> tuple[Items, list[str]]:
    """Return ``items`` without the images that cannot be decoded and the texts that have no other, and notes on them.

    Raises InputError where nothing is left.
    """
    bad = bad_images(items.images)
    if not bad:
        return items, []
    images = np.setdiff1d(np.arange(len(items.images)), list(bad))
    if not len(images):
        raise InputError(f"{_listed(items, bad)}; nothing is left without them")
    texts = np.unique(items.relevance[images].indices)
    lost = len(items.texts) - len(texts)
    return part(items, images, texts), [f"{_listed(items, bad)}; left out, with {lost} texts that have no other image"]


def part(items: Items, images: np.ndarray, texts: np.ndarray) -> Items:
    """Return the images and texts at these indices, int, in their order."""
    return Items(
        items.name,
        items.split,
        items.images[images],
        [items.texts[row] for row in texts],
        items.image_ids[images],
        items.text_ids[texts],
        items.relevance[images][:, texts],
    )


def _listed(items: Items, bad: Mapping[int, str], most: int = 10) -> str:
    names = [f"{items.image_ids[row]} ({reason})" for row, reason in list(bad.items())[:most]]
    more = f"; and {len(bad) - most} more" if len(bad) > most else ""
    total = f"{len(bad)} of {len(items.images)} images cannot be decoded"
    return f"{_place(items)}: {total}: {'; '.join(names)}{more}"


def _place(items: Items) -> str:
    return f"{items.name}, {items.split}"
