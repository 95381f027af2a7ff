"""One function per figure: a stored artefact of a run in, a :class:`~reprolib.figures.style.Drawing` out.

Nothing here computes a result, imports torch, or leaves a trace in matplotlib's global state.
"""

from reprolib.figures.style import Drawing, save

__all__ = ["Drawing", "save"]
