"""The dataset ``glyphs``: characters drawn in the fonts that matplotlib ships, with their Unicode names.

An image is one character in one face, 32 x 32 grey, white ink on black; its text is the Unicode name in lower
case ("greek small letter alpha with tonos"). One text has about seven images. Nothing is downloaded.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter, defaultdict
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse
import scipy.sparse.csgraph

from reprolib import paths
from reprolib.errors import InputError, nearest
from reprolib.loaders.dataset import Items
from reprolib.loaders.manifest import load_manifest
from reprolib.loaders.store import digest, file_digest, read_arrays, write_arrays

SIZE = 32  # pixels, both sides
EM = 22  # pixels per em: capitals, ascenders and descenders of every face fit
BASELINE = 23  # row of the baseline: the height of a mark is part of what tells characters apart
HELD_OUT = 1000  # characters in validation, and in test
SPLITS = ("train", "validation", "test")
KINDS = ("character", "script and kind")


class Glyphs(NamedTuple):
    """All drawn images, ordered by code point, then face."""

    images: np.ndarray  # uint8 [n, 32, 32]
    codes: np.ndarray  # int32 [n], Unicode code point
    faces: np.ndarray  # int16 [n], index into the sorted font files


def font_folder() -> Path:
    """Return the folder of the fonts that the installed matplotlib ships."""
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf"


def font_files(folder: Path | None = None) -> list[Path]:
    """Return the DejaVu and STIX font files, sorted by name."""
    folder = folder or font_folder()
    return sorted(path for path in folder.glob("*.ttf") if path.name.startswith(("DejaVu", "STIX")))


def check_fonts(expected: dict[str, str], folder: Path | None = None) -> None:
    """Raise InputError, naming the file, unless the fonts are byte for byte those of the manifest."""
    found = {path.name: file_digest(path) for path in font_files(folder)}
    wrong = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    if wrong:
        raise InputError(
            f"the fonts of the installed matplotlib are not those of the dataset glyphs "
            f"({len(wrong)} of {len(expected)} differ, first {wrong[0]}): install the locked matplotlib"
        )


def words(name: str) -> list[str]:
    """Return the words of a character's name: runs of letters, and single digits."""
    return re.findall(r"[a-z]+|[0-9]", name.lower())


def name_of(code: int) -> str:
    """Return the lower-cased Unicode name of a code point, or an empty string if it has none."""
    return unicodedata.name(chr(code), "").lower()


def assign_splits(names: dict[int, str], held_out: int = HELD_OUT) -> dict[int, str]:
    """Assign every code point to train, validation or test.

    Characters are visited in the order of a hash of their code point. One is held out, alternately for test
    and for validation, if each word of its name still occurs in the name of a character that stays in train:
    a held-out character is a new composition of known words.
    """
    left = Counter(word for name in names.values() for word in set(words(name)))
    splits = dict.fromkeys(names, "train")
    order = sorted(names, key=lambda code: hashlib.sha256(f"glyphs {code:x}".encode()).hexdigest())
    taken = 0
    for code in order:
        if taken == 2 * held_out:
            break
        if all(left[word] > 1 for word in set(words(names[code]))):
            left.subtract(set(words(names[code])))
            splits[code] = "test" if taken % 2 == 0 else "validation"
            taken += 1
    return splits


def draw(code: int, fonts: dict[int, Any], open_font: Any) -> np.ndarray:
    """Return one character as uint8 [32, 32]: centred, on the baseline, made smaller only to fit."""
    from PIL import Image, ImageDraw

    size, text = EM, chr(code)
    left, top, right, bottom = _font(fonts, open_font, size).getbbox(text, anchor="ls")
    extent = max(right - left, bottom - top)
    if extent > SIZE:
        size = max(1, EM * SIZE // extent)
        left, top, right, bottom = _font(fonts, open_font, size).getbbox(text, anchor="ls")
    x = (SIZE - (right - left)) // 2 - left
    y = min(max(BASELINE, -top), SIZE - bottom)
    picture = Image.new("L", (SIZE, SIZE))
    ImageDraw.Draw(picture).text((x, y), text, fill=255, font=_font(fonts, open_font, size), anchor="ls")
    return np.asarray(picture)


def _font(fonts: dict[int, Any], open_font: Any, size: int) -> Any:
    if size not in fonts:
        fonts[size] = open_font(size)
    return fonts[size]


def draw_all(folder: Path | None = None) -> Glyphs:
    """Draw every named character in every face that holds it; blank and ``.notdef`` glyphs are left out."""
    from fontTools.ttLib import TTFont
    from PIL import ImageFont

    images, codes, faces = [], [], []
    for face, path in enumerate(font_files(folder)):
        fonts: dict[int, Any] = {}

        def open_font(size: int, path: Path = path) -> Any:
            return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)

        with TTFont(path, lazy=True) as table:
            character_map = table.getBestCmap()
        for code, glyph in character_map.items():
            if glyph == ".notdef" or not name_of(code):
                continue
            image = draw(code, fonts, open_font)
            if image.any():
                images.append(image)
                codes.append(code)
                faces.append(face)
    order = np.lexsort((faces, codes))
    return Glyphs(np.stack(images)[order], np.asarray(codes, np.int32)[order], np.asarray(faces, np.int16)[order])


@lru_cache(maxsize=1)
def all_glyphs() -> Glyphs:
    """Return all images, drawn once and then kept in the cache under a key of fonts, drawing and libraries.

    Raises InputError if the installed fonts are not those of the manifest.
    """
    import PIL
    from PIL import features

    fonts = {font.file: font.sha256 for font in load_manifest("glyphs").fonts}
    check_fonts(fonts)
    key = digest(
        fonts,
        [SIZE, EM, BASELINE],
        PIL.__version__,
        features.version("freetype2"),
        unicodedata.unidata_version,
    )
    path = paths.cache() / "glyphs" / f"{key}.safetensors"
    arrays = read_arrays(path)
    if arrays is None:
        arrays = draw_all()._asdict()
        write_arrays(path, arrays)
    return Glyphs(arrays["images"], arrays["codes"], arrays["faces"])


@lru_cache(maxsize=1)
def splits() -> dict[int, str]:
    """Return the split of every code point."""
    return assign_splits({int(code): name_of(int(code)) for code in np.unique(all_glyphs().codes)})


def load_glyphs(split: str) -> Items:
    """Return the items of ``split`` ("train", "validation", "test").

    Images are uint8 [n, 32, 32]; text ids are code points ("U+03AC"), image ids add the face
    ("U+03AC/DejaVuSans-Bold"). Raises InputError for an unknown split or foreign fonts.
    """
    if split not in SPLITS:
        raise nearest(split, SPLITS, "split of glyphs")
    glyphs, assigned = all_glyphs(), splits()
    members = np.array(sorted(code for code, name in assigned.items() if name == split), dtype=np.int32)
    rows = np.flatnonzero(np.isin(glyphs.codes, members))
    columns = np.searchsorted(members, glyphs.codes[rows])
    stems = [path.stem for path in font_files()]
    text_ids = np.array([f"U+{code:04X}" for code in members])
    image_ids = np.array(
        [f"{text_ids[column]}/{stems[glyphs.faces[row]]}" for row, column in zip(rows, columns, strict=True)]
    )
    relevance = scipy.sparse.csr_array(
        (np.ones(len(rows), dtype=bool), (np.arange(len(rows)), columns)), shape=(len(rows), len(members))
    )
    texts = [name_of(int(code)) for code in members]
    return Items("glyphs", split, glyphs.images[rows], texts, image_ids, text_ids, relevance)


def groups(items: Items, kind: str = "character") -> tuple[np.ndarray, np.ndarray]:
    """Return the group of every image and of every text, two string arrays in the order of ``items``.

    ``kind`` "character": two images agree if they show one character, drawn in two faces. "script and kind", which
    is harder to see: the first word of the Unicode name, which for a letter is its script, and the general category
    ("greek Ll": lower-case letters). Some groups have one member; ``metrics.intra_modal.answerable`` finds them.

    Raises InputError for an unknown kind and for items that are not of glyphs.
    """
    if kind not in KINDS:
        raise nearest(kind, KINDS, "kind of group of glyphs")
    foreign = [name for name in items.text_ids if not re.fullmatch(r"U\+[0-9A-F]{4,6}", name)]
    if foreign:
        raise InputError(f"the text id {str(foreign[0])!r} of {items.name} is no code point: valid are items of glyphs")
    of_text = items.text_ids
    if kind == "script and kind":
        characters = [chr(int(name.removeprefix("U+"), 16)) for name in items.text_ids]
        of_text = np.array([f"{name_of(ord(c)).split()[0]} {unicodedata.category(c)}" for c in characters])
    return of_text[items.relevance.indices], of_text  # every image has one text


def split_counts(items: Items) -> dict[str, int]:
    """Return the number of images, characters and distinct words of a split."""
    return {
        "images": len(items.images),
        "characters": len(items.texts),
        "words": len({word for text in items.texts for word in words(text)}),
    }


def known_words_share(held_out: Items, train: Items) -> float:
    """Return the share of held-out names all of whose words occur in a train name."""
    known = {word for text in train.texts for word in words(text)}
    return float(np.mean([set(words(text)) <= known for text in held_out.texts]))


def known_duplicates(items: Items) -> dict[str, float | int]:
    """Count the pictures that several characters share, and bound what an oracle for pictures can reach.

    The oracle knows everything that a picture shows, but it cannot tell byte-equal pictures apart. From image
    to text it names, for each picture, the character that most images with this picture stand for. From text
    to image it places one of the byte-equal images first; a text whose every picture is shared is found only
    if one of its pictures is given to it, so the bound is a maximum matching of such texts to pictures.

    Returns counts of images and characters, and both bounds of R@1 in percent.
    """
    characters = items.relevance.indices
    pictures: dict[bytes, Counter[int]] = defaultdict(Counter)
    for image, character in zip(items.images, characters, strict=True):
        pictures[image.tobytes()][int(character)] += 1
    shared = [owners for owners in pictures.values() if len(owners) > 1]
    own = {next(iter(owners)) for owners in pictures.values() if len(owners) == 1}
    rows = [(column, row) for row, owners in enumerate(shared) for column in owners if column not in own]
    matched = 0
    if rows:
        graph = scipy.sparse.csr_array(
            (np.ones(len(rows), dtype=bool), tuple(np.array(rows).T)), shape=(len(items.texts), len(shared))
        )
        matched = int((scipy.sparse.csgraph.maximum_bipartite_matching(graph, perm_type="column") >= 0).sum())
    hits = sum(max(owners.values()) for owners in pictures.values())
    return {
        "images_shared_with_another_character": sum(sum(owners.values()) for owners in shared),
        "characters_sharing_a_picture": len({character for owners in shared for character in owners}),
        "characters_without_own_picture": len(items.texts) - len(own),
        "images_repeated_within_character": sum(n - 1 for owners in pictures.values() for n in owners.values()),
        "oracle_r1_image_to_text": round(100 * hits / len(items.images), 3),
        "oracle_r1_text_to_image": round(100 * (len(own) + matched) / len(items.texts), 3),
    }


def measure() -> dict[str, Any]:
    """Recompute the numbers that the manifest states: counts, known words and duplicates of every split."""
    items = {split: load_glyphs(split) for split in SPLITS}
    everything = [word for part in items.values() for text in part.texts for word in words(text)]
    return {
        "counts": {
            "images": sum(len(part.images) for part in items.values()),
            "texts": sum(len(part.texts) for part in items.values()),
            "words": len(set(everything)),
        },
        "statistics": {
            "splits": {split: split_counts(part) for split, part in items.items()},
            "known_words_share": {
                split: known_words_share(items[split], items["train"]) for split in ("validation", "test")
            },
            "known_duplicates": {split: known_duplicates(part) for split, part in items.items()},
        },
    }
