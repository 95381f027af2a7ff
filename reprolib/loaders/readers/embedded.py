"""The datasets ``glyphs`` and ``emoji``, which have modules of their own."""

from __future__ import annotations

from reprolib.loaders import emoji, glyphs
from reprolib.loaders.dataset import Items
from reprolib.loaders.manifest import Manifest
from reprolib.loaders.readers import Groups, Mirror, reader


def _glyph_groups(manifest: Manifest, items: Items, mirror: Mirror) -> Groups:
    return {kind: glyphs.groups(items, kind) for kind in glyphs.KINDS}


def _emoji_groups(manifest: Manifest, items: Items, mirror: Mirror) -> Groups:
    return {kind: emoji.groups(items, kind, mirror) for kind in emoji.KINDS}


@reader("glyphs", groups=_glyph_groups)
def read_glyphs(manifest: Manifest, split: str, mirror: Mirror) -> Items:
    """Return drawn characters; they are drawn, not read, so that a mirror holds nothing of them."""
    return glyphs.load_glyphs(split)


@reader("emoji", groups=_emoji_groups)
def read_emoji(manifest: Manifest, split: str, mirror: Mirror) -> Items:
    """Return drawn emoji with their labels."""
    return emoji.load_emoji(split, mirror)
