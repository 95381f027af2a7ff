"""The one place of plotting style: sizes, fonts, the look of every method, and how a figure becomes files.

Style travels as a dictionary (``RC``) that is applied while a figure is drawn or saved and never stays in
``matplotlib.rcParams``; ``matplotlib.pyplot`` is not imported. Everything is told apart without colour: no
two methods share marker, its fill and line style. Colours: Okabe and Ito, https://jfly.uni-koeln.de/color/.
"""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from reprolib.errors import InputError, RunError, nearest

SINGLE, DOUBLE = 3.25, 6.75  # widths in inches of one column and of the page, as in ACM and ACL templates
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILLION, PURPLE, GREY = "#0072B2", "#D55E00", "#CC79A7", "#767676"  # Okabe-Ito, less the pale yellow

RC: Mapping[str, Any] = {
    "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "mathtext.fontset": "stix",
    "font.size": 8, "axes.labelsize": 8, "axes.titlesize": 8, "figure.labelsize": 8,
    "xtick.labelsize": 7, "ytick.labelsize": 7, "legend.fontsize": 7,
    "axes.linewidth": 0.6, "xtick.major.width": 0.6, "ytick.major.width": 0.6, "xtick.major.size": 2.5,
    "ytick.major.size": 2.5, "axes.spines.top": False, "axes.spines.right": False, "axes.titlepad": 4,
    "axes.grid": True, "axes.axisbelow": True, "grid.color": "#E4E4E4", "grid.linewidth": 0.5,
    "lines.linewidth": 1.2, "lines.markersize": 4, "legend.frameon": False, "legend.handlelength": 2.8,
    "legend.columnspacing": 1.4, "legend.handletextpad": 0.5, "legend.labelspacing": 0.35,
    "figure.dpi": 150, "pdf.fonttype": 42, "svg.fonttype": "path", "svg.hashsalt": "reprolib",
    "image.composite_image": False,  # pixels of a picture stay pixels in PDF and SVG
    "figure.constrained_layout.h_pad": 0.03, "figure.constrained_layout.w_pad": 0.03,
}  # fmt: skip

DPI = 300
METADATA: Mapping[str, dict[str, None]] = {  # what would otherwise hold dates and program names
    "pdf": {"Creator": None, "Producer": None, "CreationDate": None},
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
}


class Look(NamedTuple):
    """How one series is drawn: (marker, filled, linestyle) is unique within a table of looks."""

    label: str
    colour: str
    marker: str
    linestyle: Any
    filled: bool = True

    def line(self, **changes: Any) -> dict[str, Any]:
        """Return keyword arguments for ``Axes.plot`` and ``Axes.errorbar``, with ``changes``."""
        face = self.colour if self.filled else "white"
        look = {"color": self.colour, "marker": self.marker, "linestyle": self.linestyle, "label": self.label}
        return look | {"markerfacecolor": face} | changes


SOLID, DASHED, DOTTED, DASHDOT = "-", (0, (4, 1.4)), (0, (1, 1.2)), (0, (5, 1.4, 1, 1.4))

# A family shares hue; its second member is dashed, and open where it is a variant of the first.
METHODS: Mapping[str, Look] = {
    "none": Look("none", BLACK, "X", DOTTED),
    "is": Look("IS", BLUE, "o", SOLID),
    "dis": Look("QB-Norm (DIS)", BLUE, "o", DASHED, filled=False),
    "dual-is": Look("DualIS", VERMILLION, "s", SOLID),
    "dual-dis": Look("DualDIS", VERMILLION, "s", DASHED, filled=False),
    "csls": Look("CSLS", GREEN, "^", SOLID),
    "gc": Look("GC", GREY, "D", DASHDOT),
    "dn": Look("DN", SKY, "<", SOLID),
    "nnn": Look("NNN", GREEN, "v", DASHED),
    "sinkhorn": Look("Sinkhorn", ORANGE, "P", SOLID),
    "dual-bank-sinkhorn": Look("DBSN", ORANGE, "P", DASHED, filled=False),
    "invgc": Look("InvGC", PURPLE, ">", SOLID),
    "invgc-localadj": Look("InvGC+LocalAdj", PURPLE, ">", DASHED, filled=False),
}
# Interventions on the modality gap: the shifts in blue, the centrings in red, the maps in green; dashed as above.
INTERVENTIONS: Mapping[str, Look] = {
    "none": METHODS["none"],
    "shift": Look("shift", BLUE, "o", SOLID),
    "shift-released": Look("shift, as released", BLUE, "o", DASHED, filled=False),
    "mean-centring": Look("mean-centring", VERMILLION, "s", SOLID),
    "i0t": Look("I0T", VERMILLION, "s", DASHED, filled=False),
    "drop-dimensions": Look("drop dimensions", GREY, "D", DASHDOT),
    "procrustes": Look("Procrustes", GREEN, "^", SOLID),
    "linear": Look("linear map", GREEN, "v", DASHED),
    "spectral": Look("spectral", ORANGE, "P", SOLID),
    "optimal-transport": Look("optimal transport", PURPLE, ">", SOLID),
}
DIRECTIONS: Mapping[str, str] = {"text->image": "text → image", "image->text": "image → text"}


def look(method: str) -> Look:
    """Return the look of ``method`` or intervention; InputError with the nearest names for an unknown one."""
    known = {**METHODS, **INTERVENTIONS}
    if method not in known:
        raise nearest(method, known, "method")
    return known[method]


def look_of_value(position: int, label: str) -> Look:
    """Return the look of the ``position``-th value of a parameter, where lines are values and not methods."""
    colours = (BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY, GREY)
    lines = (SOLID, DASHED, DASHDOT, DOTTED)
    return Look(label, colours[position % 7], "os^Dv><"[position % 7], lines[position % 4])


class Drawing(NamedTuple):
    """A drawn figure with its alternative text (what it shows, in numbers) and its caption (how to read it).

    Unpacks as ``figure, alt, caption``; displays itself in Jupyter as the bytes of the saved PNG, with the
    alternative text attached.
    """

    figure: Figure
    alt: str
    caption: str

    def save(self, directory: str | Path, name: str) -> dict[str, Path]:
        """Write the figure's files; see :func:`save`."""
        return save(self.figure, directory, name, self.alt, self.caption)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict, dict]:
        with matplotlib.style.context(["default", dict(RC)]):
            buffer = io.BytesIO()
            self.figure.savefig(buffer, format="png", dpi=DPI, metadata=METADATA["png"])
        width = round(self.figure.get_figwidth() * 110)  # shown at about its printed size
        data = {"image/png": buffer.getvalue(), "text/plain": self.alt}
        return data, {"image/png": {"alt": self.alt, "width": width}}


def styled(draw: Callable[..., Drawing]) -> Callable[..., Drawing]:
    """Decorate a figure function: it draws under ``RC``, whatever the caller's rcParams, and changes none.

    The layout is computed once, here, so that the same figure gives the same bytes however often it is saved.
    """

    @functools.wraps(draw)
    def inner(*args: Any, **kwargs: Any) -> Drawing:
        with matplotlib.style.context(["default", dict(RC)]):
            drawing = draw(*args, **kwargs)
            drawing.figure.draw_without_rendering()
            drawing.figure.set_layout_engine("none")
        return drawing

    return inner


def save(figure: Figure, directory: str | Path, name: str, alt: str, caption: str) -> dict[str, Path]:
    """Write ``NAME.pdf``, ``NAME.png`` (300 dpi), ``NAME.svg`` and ``NAME.json`` ({"alt", "caption"}).

    The bytes depend on the figure alone: no dates, no program names, salted SVG ids. Returns the paths by
    suffix. Raises InputError for a name that is a path or an empty ``alt``; RunError if a file cannot be
    written.
    """
    if Path(name).name != name or name in ("", ".", ".."):
        raise InputError(f"a figure's name is a bare file name without a folder, not {name!r}")
    if not alt.strip():
        raise InputError(f"figure {name!r} has no alternative text")
    directory = Path(directory)
    paths = {suffix: directory / f"{name}.{suffix}" for suffix in (*METADATA, "json")}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with matplotlib.style.context(["default", dict(RC)]):
            for suffix, entries in METADATA.items():
                figure.savefig(paths[suffix], dpi=DPI, metadata=entries)
        text = json.dumps({"alt": alt, "caption": caption}, ensure_ascii=False, indent=2)
        paths["json"].write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise RunError(f"cannot write figure {name!r} to {directory}: {error.strerror or error}") from error
    return paths


def panels(
    columns: int, rows: int = 1, *, width: float | None = None, height: float = 2.2, **options: Any
) -> tuple[Figure, list[list[Axes]]]:
    """Return a figure of ``rows`` x ``columns`` axes; a lone panel fills one column, several fill the page.

    ``width`` and ``height`` in inches; ``options`` go to ``Figure.subplots``.
    """
    figure = Figure((width or (SINGLE if columns == 1 else DOUBLE), height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, [list(row) for row in axes]


def text_width(text: str, size: float) -> float:
    """Return the width in inches of a line of plain ``text`` set in ``size`` points (kerning left out)."""
    return sum(_advance(letter) for letter in text) * size / 100 / 72


@functools.lru_cache(maxsize=4096)
def _advance(letter: str) -> float:
    font = FontProperties(family="DejaVu Sans", size=100)
    return text_to_path.get_text_width_height_descent(letter, font, ismath=False)[0]


def legend_below(figure: Figure, axes: Sequence[Axes], extra: Mapping[str, Any] | None = None) -> None:
    """Put one legend for all ``axes`` under the figure: each label once, ``extra`` last, in few rows."""
    entries: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    entries |= extra or {}
    # legend.handlelength, handletextpad and columnspacing are in units of the 7 pt font
    widths = [text_width(label, 7) + (2.8 + 0.5 + 1.4) * 7 / 72 for label in entries]

    def width(rows: int) -> float:
        return sum(max(widths[start : start + rows]) for start in range(0, len(widths), rows))

    rows = next(
        rows for rows in range(1, len(widths) + 1) if width(rows) <= figure.get_figwidth() or rows == len(widths)
    )
    figure.legend(entries.values(), entries, loc="outside lower center", ncols=-(-len(entries) // rows))


def log_axis(ax: Axes, which: str, low: float, high: float, inches: float) -> None:
    """Make the "x" or "y" axis logarithmic, with plain numbers at 1, 2, 5 of a decade where the room allows.

    ``low`` and ``high`` are the least and greatest value shown, ``inches`` the length of the axis.
    """
    getattr(ax, f"set_{which}scale")("log")
    axis: Axis = getattr(ax, f"{which}axis")
    decades = max(np.log10(high / low), 0.3)
    digits = len(f"{high:,.0f}") if which == "x" else 2
    per_decade = inches / decades / (0.075 * digits + 0.08)  # labels of 7 pt that fit side by side
    subs = next(subs for subs in ((1, 2, 5), (1, 3), (1,)) if len(subs) <= per_decade or subs == (1,))
    axis.set_major_locator(LogLocator(subs=subs, numticks=20))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
