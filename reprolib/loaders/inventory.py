"""What of a dataset is here: bring all of it, and check files, splits and pictures against the manifest."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from reprolib.errors import DataUnavailable, ReprolibError
from reprolib.loaders.dataset import Items
from reprolib.loaders.files import at_hand, expected, problem, resolve, root, unpacked
from reprolib.loaders.manifest import DataFile, Manifest, load_manifest, status
from reprolib.loaders.pictures import PictureFiles
from reprolib.loaders.readers import SPLITS, Mirror, load_items
from reprolib.loaders.readers.hub import files_of


@dataclass(frozen=True)
class Finding:
    """What was found about ``subject``, a file or a split; "missing" and "differs" are problems."""

    subject: str
    state: Literal["ok", "recorded", "absent", "missing", "differs"]
    sentence: str

    @property
    def bad(self) -> bool:
        """Whether the dataset is not what its manifest says."""
        return self.state in ("missing", "differs")


def obtain(name: str, mirror: Mirror = None) -> Path | None:
    """Bring everything that a dataset needs, verified and unpacked; return its folder, None where it has no files.

    Raises DataUnavailable, with the way to obtain it, for what must be obtained by hand.
    """
    manifest = load_manifest(name)
    if manifest.reader == "hub":
        return files_of(manifest, mirror)
    if "path" in manifest.options:
        return Path(manifest.options["path"]).parent
    if "dataset" in manifest.options:
        shared = obtain(manifest.options["dataset"], mirror)
        if not manifest.files:
            return shared
    if not manifest.files and not manifest.root_files:
        if manifest.reader is None:
            raise DataUnavailable(f"{name} must be obtained by hand: {manifest.how_to_obtain}")
        return None
    found = [resolve(manifest, file, mirror) for file in manifest.files if not (file.optional or file.unpack)]
    if manifest.root_files or any(file.unpack for file in manifest.files):
        return root(manifest, mirror)
    return found[0].parent if found else None


def check(name: str, mirror: Mirror = None, *, images: bool = False) -> list[Finding]:
    """Return how the dataset's files, and the numbers of its splits, compare with its manifest; nothing is fetched.

    With ``images`` every picture is decoded, and those that fail are listed. Counts are compared where the manifest
    names them: ``<split>_images``, ``<split>_texts``, ``<split>_unique_texts``.
    """
    manifest = load_manifest(name)
    tree = unpacked(manifest, mirror)
    findings = [_file(manifest, file, mirror, tree is not None) for file in manifest.files]
    if manifest.root_files and not tree:
        archives = any(file.unpack and at_hand(manifest, file, mirror) for file in manifest.files)
        state: Literal["absent", "missing"] = "absent" if archives else "missing"
        why = "not unpacked yet: `reprolib data get` does it" if archives else "neither in the cache nor in a mirror"
        findings.append(Finding(manifest.root_files[0], state, why))
    if not (manifest.kind == "items" and manifest.reader) or any(finding.bad for finding in findings):
        return findings
    if not status(name, mirror).present:
        return [*findings, Finding(name, "missing", "neither in the cache nor in a mirror")]
    for split in SPLITS:
        findings += _split(manifest, split, mirror, images)
    return findings


def _file(manifest: Manifest, file: DataFile, mirror: Mirror, unpacked_already: bool) -> Finding:
    found = at_hand(manifest, file, mirror)
    if found is None:
        if file.unpack and unpacked_already:
            return Finding(file.name, "ok", "unpacked; the archive itself is not at hand")
        if file.optional:
            return Finding(file.name, "absent", "optional, and not at hand")
        return Finding(file.name, "missing", "neither in the cache nor in a mirror")
    path, where = found
    wrong = problem(manifest, file, path)
    if wrong:
        return Finding(file.name, "differs", f"{path} {wrong}")
    known = expected(manifest, file)
    if known is None:
        resolve(manifest, file, mirror)
        return Finding(file.name, "recorded", f"in the {where}: no hash is published, its sha256 is recorded now")
    if known.known == "recorded":
        return Finding(file.name, "ok", f"in the {where}: as recorded on first use (no hash is published)")
    return Finding(file.name, "ok", f"in the {where}: as the manifest names ({known.algorithm})")


def _split(manifest: Manifest, split: str, mirror: Mirror, images: bool) -> Iterator[Finding]:
    try:
        items = load_items(manifest.name, split, mirror)
    except ReprolibError as error:
        yield Finding(split, "differs", str(error))
        return
    found = {
        f"{split}_images": len(items.images),
        f"{split}_texts": len(items.texts),
        f"{split}_unique_texts": len(set(items.texts)),
    }
    wrong = [
        f"{number} {key.removeprefix(f'{split}_').replace('_', ' ')} (the manifest names {manifest.counts[key]})"
        for key, number in found.items()
        if manifest.counts.get(key, number) != number
    ]
    numbers = f"{found[f'{split}_images']} images and {found[f'{split}_texts']} texts"
    if wrong:
        yield Finding(split, "differs", ", ".join(wrong))
    elif found.keys() & manifest.counts.keys():
        yield Finding(split, "ok", f"{numbers}: as the manifest names")
    else:
        yield Finding(split, "ok", f"{numbers}; the manifest names no counts of it")
    if images:
        yield from _pictures(items)


def _pictures(items: Items) -> Iterator[Finding]:
    if not isinstance(items.images, PictureFiles):
        return
    from tqdm import tqdm

    failed = 0
    rows = tqdm(range(len(items.images)), desc=f"{items.split} pictures", disable=not sys.stderr.isatty(), leave=False)
    for row in rows:
        try:
            items.images[row]
        except ReprolibError as error:
            failed += 1
            yield Finding(f"{items.split} {items.image_ids[row]}", "differs", str(error))
    if not failed:
        yield Finding(items.split, "ok", f"all {len(items.images)} pictures can be decoded")
