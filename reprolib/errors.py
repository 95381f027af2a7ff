"""What can go wrong, as one sentence for the person who has to mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ReprolibError(Exception):
    """Base class; the message is one sentence, and ``exit_code`` is what the command returns."""

    exit_code = 1


class InputError(ReprolibError, ValueError):
    """A parameter, a name or the content of a file is not valid; nothing was executed."""

    exit_code = 2


class RunError(ReprolibError, RuntimeError):
    """Something failed while a study ran; the previous run is intact."""


class DataUnavailable(RunError):
    """Data that is neither in the cache, nor in the mirror, nor reachable; the message says how to obtain it."""


def nearest(name: str, valid: Iterable[str], kind: str) -> InputError:
    """Return the error for an unknown ``name``, with the nearest valid names (or all, if none is near)."""
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5) or names
    return InputError(f"unknown {kind} {name!r}; nearest valid: {', '.join(close)}")
