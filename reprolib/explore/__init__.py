"""Explorers for notebooks: move a slider and see what a study would say, in the library's own numbers.

Each explorer is a *view*, plain Python that turns a state into a result, and a thin layer of widgets over it. A view
computes with the studies themselves; the state of an explorer is a ``reprolib run`` command that gives the same result.
"""

from reprolib.explore.gap import gap
from reprolib.explore.hubs import hubs
from reprolib.explore.inversion import inversion
from reprolib.explore.runs import runs, studies

__all__ = ["gap", "hubs", "inversion", "runs", "studies"]
