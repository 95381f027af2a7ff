"""What the explorers share: what they can be given, work in the background, and pictures and drawings as HTML."""

from __future__ import annotations

import atexit
import base64
import html
import io
import shlex
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import ipywidgets
import numpy as np
from IPython import get_ipython
from IPython.display import display

from reprolib.errors import InputError, ReprolibError, nearest
from reprolib.figures.style import Drawing
from reprolib.loaders import datasets
from reprolib.loaders.manifest import status
from reprolib.loaders.store import digest
from reprolib.study.parameters import EMBEDDING_SUFFIXES
from reprolib.study.records import run_directory

Source = str | Path | tuple[np.ndarray, np.ndarray]
Step = Callable[[str], object]  # told what is about to be done; what it raises ends the work
_REST = 0.5  # seconds without anything to do before what may be asked for next is computed
_SAID = 0.2  # seconds between two words of progress

# Colours are those of the page, so that a dark theme stays dark; the frames are those of the figures.
STYLE = """<style>
.rx { color: var(--jp-ui-font-color1, inherit); line-height: 1.35 }
.rx table { border-collapse: collapse; font-variant-numeric: tabular-nums }
.rx th, .rx td { padding: 1px 12px 1px 0; text-align: right; background: none; color: inherit }
.rx th:first-child { text-align: left; font-weight: normal; white-space: nowrap }
.rx .words th, .rx .words td { text-align: left; vertical-align: middle }
.rx img { max-width: 48px; max-height: 48px; padding: 2px; box-sizing: border-box }
.rx img, .rx .item { border: 1px solid currentColor; vertical-align: middle; margin: 1px }
.rx .right { border: 3px solid currentColor } .rx .wrong { border: 1px dashed currentColor }
.rx .item { display: inline-block; padding: 2px 6px; max-width: 22em }
.rx code { user-select: all; white-space: pre-wrap; overflow-wrap: anywhere; color: inherit; background: none }
.rx svg { max-width: 100%; height: auto } .rx svg text { fill: currentColor; font-size: 11px }
.rx .error { font-weight: bold }
</style>"""


# --- what an explorer is given, and what says the same in batch -----------------------------------------------


def source(data: Source) -> dict[str, str]:
    """Return ``data`` as parameters of a study: ``dataset``, or ``embeddings`` for a file or a pair of arrays.

    A pair is (image [n, d], text [n, d]), row i with row i; it is written below ``runs/interactive-explore``, so that
    a command can name it. Raises InputError for anything else.
    """
    if isinstance(data, tuple) and len(data) == 2:
        image, text = map(np.asarray, data)
        path = run_directory("explore") / f"pairs-{digest(image, text)[:16]}.npz"
        if not path.exists():
            np.savez(path, image=image, text=text)
        return {"embeddings": str(path)}
    if not isinstance(data, str | Path):
        raise InputError(f"an explorer takes a dataset's name, a file or (image, text), not a {type(data).__name__}")
    return {"embeddings" if Path(data).suffix in EMBEDDING_SUFFIXES else "dataset": str(data)}


def command(study: str, parameters: Mapping[str, Any]) -> str:
    """Return the command that runs ``study`` with ``parameters``; those that are None are left to the study."""
    words = ["reprolib", "run", study]
    for name, value in parameters.items():
        if value is not None:
            listed = f"[{', '.join(map(str, value))}]" if isinstance(value, list | tuple) else str(value)
            words += ["-p", name, listed]
    return shlex.join(words)


def at_hand(mirror: str | Path | None = None) -> list[str]:
    """Return the names of the datasets that can be read now."""
    return [name for name in datasets() if status(name, mirror).present]


# --- work -----------------------------------------------------------------------------------------------------


class Cancelled(ReprolibError):
    """Whoever asked for it has stopped it."""


class Work:
    """A thread that does the latest thing asked for; what was asked for in between is passed over.

    ``busy`` is called with True and False as work starts and ends, ``fail`` with the sentence of an error.
    """

    def __init__(self, busy: Callable[[bool], object] = bool, fail: Callable[[str], object] = str) -> None:
        self._busy, self._fail = busy, fail
        self._lock = threading.Lock()
        self._next: tuple[Callable[[], Any], Callable[[Any], object]] | None = None
        self._thread: threading.Thread | None = None
        self.cancelled = threading.Event()  # of the job that runs

    def submit(self, job: Callable[[], Any], show: Callable[[Any], object]) -> None:
        """Do ``job`` and give its result to ``show``, unless something else is asked for before it starts."""
        with self._lock:
            self._next = (job, show)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, daemon=True)
                self._thread.start()
                atexit.register(self._leave)

    def cancel(self) -> None:
        """Drop what waits, and the result of what runs; a job that looks at ``cancelled`` stops at once."""
        with self._lock:
            self._next = None
            self.cancelled.set()

    def wait(self, timeout: float | None = None) -> None:
        """Return when nothing is left to do."""
        if (thread := self._thread) is not None:
            thread.join(timeout)

    @property
    def idle(self) -> bool:
        """Whether nothing is being done or waits."""
        return self._thread is None

    def _leave(self) -> None:
        """End with the process: a thread that it leaves behind inside a computation may bring it down."""
        self.cancel()
        self.wait(5)

    def _run(self) -> None:
        self._busy(True)
        while True:
            with self._lock:
                if self._next is None:
                    self._thread = None
                    self._busy(False)
                    atexit.unregister(self._leave)
                    return
                (job, show), self._next = self._next, None
                self.cancelled = stop = threading.Event()
            try:
                result = job()
                if not stop.is_set():
                    show(result)
            except ReprolibError as error:
                self._fail(str(error))
            except Exception as error:  # a thread has nobody above it: what is not said here is never seen
                self._fail(f"{type(error).__name__}: {error}")


class _Cells:
    """Whether the kernel runs a cell; outside of a kernel, where nobody moves a widget, it is as if one always ran."""

    def __init__(self) -> None:
        self.run, self.ended = True, 0.0
        shell = get_ipython()
        if hasattr(shell, "kernel"):
            shell.events.register("pre_execute", lambda: self._set(True))
            shell.events.register("post_execute", lambda: self._set(False))

    def _set(self, run: bool) -> None:
        self.run, self.ended = run, time.monotonic()


class Ahead:
    """What may be asked for next, computed while ``work`` rests and no cell runs."""

    _cells: _Cells | None = None

    def __init__(self, work: Work) -> None:
        self._work, self._own = work, Work()
        Ahead._cells = Ahead._cells or _Cells()

    def follow(self, jobs: Iterable[Callable[[Step], object]]) -> None:
        """Do ``jobs`` in their order, and no more what was to be done so far; each waits at its steps."""
        self.stop()
        self._own.submit(lambda: self._all(jobs), bool)

    def stop(self) -> None:
        """Do no more."""
        self._own.cancel()

    def wait(self, timeout: float | None = None) -> None:
        """Return when nothing is left to do."""
        self._own.wait(timeout)

    def _all(self, jobs: Iterable[Callable[[Step], object]]) -> None:
        for job in jobs:
            with suppress(InputError):  # of a state that cannot be: whoever asks for it is told
                self._rest()
                job(self._rest)

    def _rest(self, _: str = "") -> None:
        """Wait until nobody works, or raise Cancelled."""
        while not self._own.cancelled.is_set():
            if self._work.idle and not self._cells.run and time.monotonic() - self._cells.ended > _REST:
                return
            time.sleep(0.05)
        raise Cancelled("Something else is to be computed ahead.")


class View:
    """What an explorer shows of a study, without widgets: its data and settings, as parameters of the study.

    ``data`` as ``source`` takes it.
    """

    def __init__(
        self, data: Source = "glyphs", *, model: str | None = None, mirror: str | Path | None = None, seed: int = 0,
        device: str = "cpu",
    ) -> None:  # fmt: skip
        self.given = source(data) | {"model": model}
        self.settings = {"mirror": None if mirror is None else str(mirror), "seed": seed, "device": device}

    def _command(self, study: str, asked: Mapping[str, Any]) -> str:
        """Return the command that runs ``study`` on this data with what is ``asked``."""
        settings = {name: value for name, value in self.settings.items() if value not in (None, 0, "cpu")}
        return command(study, self.given | asked | settings)


class Explorer(ABC):
    """Widgets over a view. Displayed, it leaves a figure first, so that a notebook read later shows more than a hole.

    ``box`` holds the widgets; a subclass fills it and says what ``figure`` it leaves.
    """

    displayed = False

    def __init__(self) -> None:
        self.state = ipywidgets.HTML()
        self.cancel = ipywidgets.Button(
            description="Cancel", tooltip="Stop what is being computed", disabled=True, icon="stop"
        )
        self.cancel.on_click(lambda _: self.work.cancel())
        self.work = Work(self._busy, self._fail)
        self.ahead = Ahead(self.work)
        self.box = ipywidgets.VBox()
        self._command = ""
        self._told = 0.0  # when a step was last told

    @abstractmethod
    def figure(self) -> Drawing:
        """Return the library's figure of the present state."""

    def _busy(self, busy: bool) -> None:
        self.cancel.disabled = not busy
        self._told = 0.0
        if not busy and "role='status'" in self.state.value:  # what was told of is over
            self._say(self._command)

    def _step(self, words: str) -> None:
        """Show what is being computed, if it has a name; raise Cancelled once it is cancelled."""
        if self.work.cancelled.is_set():
            raise Cancelled("Stopped.")
        if words and time.monotonic() - self._told > _SAID:
            self._told = time.monotonic()
            self.state.value = page(f"<span role='status'>{escape(words)} …</span>")

    def _fail(self, sentence: str) -> None:
        self.state.value = page(f"<p class='error' role='alert'>{escape(sentence)}</p>")

    def _say(self, text: str) -> None:
        """Show the command that gives the present result in batch."""
        self._command = text
        self.state.value = page(f"The same in batch: <code>{escape(text)}</code>")

    def next(self) -> Iterable[Callable[[Step], object]]:
        """Return what may be asked for next, as functions that compute it."""
        return ()

    def prepare(self) -> None:
        """Compute what may be asked for next while nobody works, if the explorer is displayed."""
        if self.displayed:
            self.ahead.follow(self.next())

    def _ipython_display_(self) -> None:
        display(self.figure())
        display(self.box)
        self.displayed = True
        self.prepare()


def chosen(state: Any, given: Mapping[str, Any]) -> Any:
    """Return the dataclass ``state`` with what is ``given``; InputError with the nearest names for what it has not."""
    for name in given:
        if name not in asdict(state):
            raise nearest(name, asdict(state), "part of the state")
    return replace(state, **given)


# --- HTML -----------------------------------------------------------------------------------------------------


def escape(text: object) -> str:
    """Return a text as HTML."""
    return html.escape(str(text))


def page(*parts: str) -> str:
    """Return HTML in the style of the explorers."""
    return f"{STYLE}<div class='rx'>{''.join(parts)}</div>"


def table(columns: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]], kind: str = "") -> str:
    """Return a table of texts, of numbers or of ``kind`` "words"; the first of each row is its heading."""
    head = "".join(f"<th scope='col'>{escape(name)}</th>" for name in ("", *columns))
    body = "".join(
        f"<tr><th scope='row'>{escape(name)}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
        for name, cells in rows
    )
    return f"<table class='{kind}'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def rows(lines: Iterable[tuple[str, Sequence[str]]]) -> str:
    """Return lines of items, given as HTML, as a table; the first of each line is its heading."""
    body = "".join(f"<tr><th scope='row'>{escape(name)}</th><td>{''.join(items)}</td></tr>" for name, items in lines)
    return f"<table class='words'>{body}</table>"


class Shown:
    """Items by id as HTML: as their pictures where there are any, else as their captions or ids."""

    def __init__(self, pictures: Mapping[str, np.ndarray] | None, captions: Mapping[str, str]) -> None:
        self.pictures, self.captions = pictures or {}, captions
        self._sources: dict[str, str] = {}

    def name(self, item: str) -> str:
        """Return an item in words."""
        return " ".join(str(self.captions.get(item, item)).split())

    def __call__(self, item: str, correct: bool | None = None) -> str:
        """Return an item as HTML; a solid frame is a right answer, a dashed one a wrong one."""
        kind = {True: "right", False: "wrong", None: ""}[correct]
        words = self.name(item) + {True: ", right", False: ", wrong", None: ""}[correct]
        if item not in self.pictures:
            return f"<span class='item {kind}' title='{escape(words)}'>{escape(self.name(item))}</span>"
        return f"<img class='{kind}' src='{self._source(item)}' alt='{escape(words)}' title='{escape(words)}'>"

    def named(self, item: str) -> str:
        """Return an item as HTML with its name, once."""
        return f"{self(item)} {escape(self.name(item))}" if item in self.pictures else self(item)

    def _source(self, item: str) -> str:
        if item not in self._sources:
            from PIL import Image

            picture, buffer = Image.fromarray(self.pictures[item]), io.BytesIO()
            picture.thumbnail((96, 96))
            picture.save(buffer, format="png")
            self._sources[item] = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        return self._sources[item]


# --- drawings that follow a slider: a figure of matplotlib takes half a second, these a millisecond -------------


def svg(width: int, height: int, alt: str, *parts: str) -> str:
    """Return an SVG with its alternative text."""
    return (
        f"<svg role='img' aria-label='{escape(alt)}' viewBox='0 0 {width} {height}' width='{width}' height='{height}'>"
        f"<title>{escape(alt)}</title>{''.join(parts)}</svg>"
    )


def label(x: float, y: float, text: str, anchor: str = "middle") -> str:
    """Return a text of an SVG."""
    return f"<text x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}'>{escape(text)}</text>"


def path(points: np.ndarray, **style: object) -> str:
    """Return a line of an SVG through ``points`` [n, 2]."""
    said = " ".join(f"{name.replace('_', '-')}='{value}'" for name, value in style.items())
    return f"<polyline fill='none' points='{' '.join(f'{x:.1f},{y:.1f}' for x, y in points)}' {said}/>"


def scaled(values: Sequence[float] | np.ndarray, low: float, high: float, start: float, stop: float) -> np.ndarray:
    """Return ``values`` on a linear scale that takes ``low`` to ``start`` and ``high`` to ``stop``."""
    return start + (np.asarray(values, dtype=np.float64) - low) / max(high - low, 1e-12) * (stop - start)
