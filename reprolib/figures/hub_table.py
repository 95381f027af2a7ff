"""The hubs themselves, as a table of pictures and texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from reprolib.errors import InputError
from reprolib.figures.artefacts import directions_of, frame, methods_of, once, subject, title
from reprolib.figures.style import BLACK, DOTTED, DOUBLE, GREY, SOLID, Drawing, look, styled, text_width

SIZE = 6.5  # points, of the items' texts
LINE = 0.112  # inches from one line of text to the next
PICTURE, PITCH = 0.22, 0.25  # inches, of a query's picture
RULES = {"✓": {"edgecolor": BLACK, "linewidth": 1.1, "linestyle": SOLID},
         "✗": {"edgecolor": GREY, "linewidth": 0.6, "linestyle": DOTTED},
         "": {"edgecolor": GREY, "linewidth": 0.5, "linestyle": SOLID}}  # fmt: skip


@styled
def hubs(
    hubs: pd.DataFrame,
    pictures: Mapping[str, np.ndarray] | None = None,
    captions: Mapping[str, str] | None = None,
    direction: str | None = None,
    k: int = 10,
) -> Drawing:
    """Draw the largest hubs with queries that they attract, before and after correction, side by side.

    ``hubs`` has one row per (direction, when, hub) with method, gallery_id, n_k, query_ids and correct (the
    hub is a right answer to that query); ``direction`` names the one to draw where there are several. Items
    with a picture (uint8, grey [h, w] or RGB [h, w, 3]) in ``pictures`` are shown by it, others by their
    text in ``captions`` or by their id. Right and wrong queries differ in frame (solid, dotted) or sign (✓,
    ✗), not in colour.
    """
    rows = frame(hubs, ("direction", "when", "method", "hub", "gallery_id", "n_k", "query_ids", "correct"))
    present = directions_of(rows)
    direction = direction or (present[0] if len(present) == 1 else None)
    rows = rows[rows["direction"] == direction]
    if rows.empty:
        raise InputError(f"name one direction of hubs to draw; present: {', '.join(present) or 'none'}")
    methods_of(rows)
    pictures, captions = pictures or {}, captions or {}
    pictured = [all(name in pictures for name in names) for names in (rows["gallery_id"], *rows["query_ids"])]
    picture_hubs, picture_queries = pictured[0], all(pictured[1:])
    wide = 0.42 if picture_hubs else 1.08  # of the column of hubs
    half = DOUBLE / 2
    per_line = int((half - 0.12 - 0.2 - wide - 0.36) / PITCH)
    most = max(map(len, rows["query_ids"]))
    texts = [caption_of(query, captions) for listed in rows["query_ids"] for query in listed]
    widest = max((text_width(text, SIZE) for text in texts), default=0.0)
    columns = min(3, max(1, int((half - 0.8 - wide) / (widest + 0.2))))  # of texts, where they are short
    tall = 0.1 + (PITCH * min(2, -(-most // per_line)) if picture_queries else LINE * min(4, -(-most // columns)))
    tall = max(tall, 0.4)
    height = 0.5 + rows["hub"].nunique() * tall + 0.28
    figure = Figure((DOUBLE, height))
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set_axis_off()
    sentences = []
    for left, when in ((0.06, "before"), (half + 0.06, "after")):
        side = once(rows[rows["when"] == when].sort_values("hub"), ["hub"])
        if side.empty:
            raise InputError(f"no hubs {when!r} correction for {direction}")
        method = look(side["method"].iloc[0]).label
        start, end = left + 0.2 + wide + 0.36, left + half - 0.12  # of the queries
        write_lines(ax, left, 0.13, f"{when.capitalize()} ({method})", size=8, weight="bold")
        write_lines(ax, left + 0.2, 0.34, "hub")
        ax.text(start - 0.06, 0.376, "$N_k$", size=7, ha="right")
        write_lines(ax, start + 0.06, 0.34, f"queries with it in their top {k}")
        ax.plot([left, end], [0.45, 0.45], color=BLACK, linewidth=0.6)
        for place, (_, hub) in enumerate(side.iterrows()):
            y = 0.48 + tall * (place + 0.5)
            write_lines(ax, left + 0.14, y, str(hub["hub"]), ha="right")
            if picture_hubs:
                show_picture(ax, left + 0.38, y, 0.34, pictures[hub["gallery_id"]], "")
            else:
                write_lines(ax, left + 0.2, y, fit(caption_of(hub["gallery_id"], captions), wide - 0.06, 3), size=SIZE)
            write_lines(ax, start - 0.06, y, f"{hub['n_k']:,}", ha="right")
            pairs = [(q, "✓" if c else "✗") for q, c in zip(hub["query_ids"], hub["correct"], strict=True)]
            pairs.sort(key=lambda pair: pair[1])  # right ones first, they must not be the ones cut off
            if picture_queries:
                lines = min(2, -(-len(pairs) // per_line))
                for i, (query, sign) in enumerate(pairs[: 2 * per_line]):
                    line, column = divmod(i, per_line)
                    x = start + 0.06 + PITCH * column + PICTURE / 2
                    show_picture(ax, x, y + PITCH * (line - (lines - 1) / 2), PICTURE, pictures[query], sign)
            else:
                room = (end - start - 0.06) / columns
                shown = pairs[: 4 * columns]
                lines = -(-len(shown) // columns)
                for i, (query, sign) in enumerate(shown):
                    x, at = start + 0.06 + room * (i % columns), y + LINE * (i // columns - (lines - 1) / 2)
                    write_lines(ax, x, at, sign, size=SIZE)
                    write_lines(ax, x + 0.12, at, fit(caption_of(query, captions), room - 0.16), size=SIZE)
            if place:
                ax.plot([left, end], [y - tall / 2] * 2, color="#D8D8D8", linewidth=0.4)
        flags = [bool(flag) for correct in side["correct"] for flag in correct]
        listing = ", ".join(f"{caption_of(hub['gallery_id'], captions)} ({hub['n_k']:,})" for _, hub in side.iterrows())
        sentences.append(
            f"{when.capitalize()} ({method}): the largest hub is in the top {k} of {side['n_k'].iloc[0]:,} "
            f"queries, the smallest of the {len(side)} in that of {side['n_k'].iloc[-1]:,}; the hub is a "
            f"right answer to {sum(flags)} of the {len(flags)} listed queries. Hubs: {listing}."
        )
    key = "✓ the hub is a right answer to the query; ✗ it is not"
    if picture_queries:
        key = "solid frame: the hub is a right answer to the query; dotted frame: it is not"
    write_lines(ax, half, height - 0.12, key, ha="center")
    ax.set(xlim=(0, DOUBLE), ylim=(height, 0))  # one unit is one inch, y downwards
    alt = f"Table of the largest hubs, {title(direction)}, before and after correction. {' '.join(sentences)}"
    caption = (
        f"The largest hubs before and after correction, {title(direction)}{subject(rows)}: each with the "
        f"number of queries that have it in their top {k}, and some of these, right ones first ({key})."
    )
    return Drawing(figure, alt, caption)


def caption_of(name: str, captions: Mapping[str, str]) -> str:
    return " ".join(str(captions.get(name, name)).split())


def write_lines(ax: Axes, x: float, y: float, text: str, size: float = 7, **options: Any) -> None:
    """Write lines centred on y, as they stand: a dollar sign in a caption is no formula."""
    lines = text.split("\n")
    for place, line in enumerate(lines):
        baseline = y + LINE * (place - (len(lines) - 1) / 2) + 0.0051 * size  # half the height of a capital
        ax.text(x, baseline, line, size=size, parse_math=False, **options)


def show_picture(ax: Axes, x: float, y: float, size: float, pixels: np.ndarray, sign: str) -> None:
    """Draw a picture, its longer side ``size`` inches, centred on (x, y), in the frame of ``sign``."""
    high, wide = (size * side / max(pixels.shape[:2]) / 2 for side in pixels.shape[:2])
    ax.imshow(
        pixels, cmap="gray", vmin=0, vmax=255, interpolation="none", aspect="auto",
        extent=(x - wide, x + wide, y + high, y - high),
    )  # fmt: skip
    ax.add_patch(Rectangle((x - wide, y - high), 2 * wide, 2 * high, fill=False, zorder=3, **RULES[sign]))


def fit(text: str, width: float, lines: int = 1) -> str:
    """Return ``text`` in at most ``lines`` lines of ``width`` inches; where it is cut, it ends in "…"."""
    done: list[str] = []
    words = text.split(" ")
    while words and len(done) < lines - 1:
        fits = [n for n in range(1, len(words) + 1) if text_width(" ".join(words[:n]), SIZE) <= width]
        if not fits:
            break  # one word wider than the line: cut it below
        done.append(" ".join(words[: fits[-1]]))
        words = words[fits[-1] :]
    rest = " ".join(words)
    if text_width(rest, SIZE) > width:
        while rest and text_width(rest + "…", SIZE) > width:
            rest = rest[:-1].rstrip()
        rest += "…"
    return "\n".join([*done, rest] if rest else done)
