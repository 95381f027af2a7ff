"""The explorer of runs: what has been run, what it says of published claims, and how two runs differ."""

from __future__ import annotations

import base64
import io
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import ipywidgets
import nbformat
import pandas as pd
from IPython.display import HTML, Markdown, display

from reprolib.errors import nearest
from reprolib.explore.common import escape, page, table
from reprolib.paths import root
from reprolib.study import board, provenance, records, replay
from reprolib.study.parameters import read_study
from reprolib.study.parameters import studies as shipped
from reprolib.study.report import find_runs
from reprolib.study.tables import arrow

LINES = 12  # of each kind of difference that are shown
PICTURES = {  # the figure that tells a study best; of others, the first by name
    "hubness": "hubs_image_to_text",
    "modality-gap": "overview",
    "intra-modal-inversion": "steps",
    "training-variance": "seeds",
}


class RunsView:
    """The finished runs in ``folder`` (default: ``runs`` of the checkout), without widgets."""

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = root() / "runs" if folder is None else Path(folder).expanduser()
        self.refresh()

    def refresh(self) -> None:
        """Read the folder again."""
        self.paths = {path.name: path for path in find_runs(self.folder)}
        self._results = {}
        for place, (name, path) in enumerate(self.paths.items()):
            found = records.load(path) if (path / records.RESULTS).exists() else []
            self._results[name] = board.Result(f"run-{place}", name, provenance.read(path, study=True), found)

    def table(self, study: str | None = None, text: str = "") -> pd.DataFrame:
        """Return a row per run: of one study, and with ``text`` somewhere in the row."""
        rows = []
        for name, result in self._results.items():
            found = result.records
            rows.append({
                "run": name, "study": result.facts["study"],
                "datasets": ", ".join(dict.fromkeys(r.dataset for r in found)),
                "models": ", ".join(dict.fromkeys(r.model for r in found if r.model)),
                "started": result.facts["started"][:16].replace("T", " "),
                "seconds": round(result.facts["duration_seconds"]), "numbers": len(found),
            })  # fmt: skip
        columns = ["run", "study", "datasets", "models", "started", "seconds", "numbers"]
        frame = pd.DataFrame(rows, columns=columns)
        if study is not None:
            frame = frame[frame["study"] == study]
        words = frame.astype(str).agg(" ".join, axis=1) if len(frame) else pd.Series(dtype=str)
        return frame[words.str.contains(text, case=False, regex=False)] if len(frame) else frame

    def studies(self) -> list[str]:
        """Return the studies that there are runs of."""
        return list(dict.fromkeys(result.facts["study"] for result in self._results.values()))

    def verdicts(self, names: Sequence[str] | None = None) -> pd.DataFrame:
        """Return what these runs (default: all) say of the ledger's claims, a row per claim with a verdict."""
        chosen = [self._result(name) for name in (self._results if names is None else names)]
        rows = [
            {
                "verdict": f"{row.symbol} {row.verdict.label}", "claim": row.claim.sentence, "paper": row.paper,
                "claimed": row.claimed[0], "measured": row.measured, "interval": row.interval, "on": row.where,
            }
            for row in sorted(board.board(chosen).decided, key=lambda row: row.order)
        ]  # fmt: skip
        return pd.DataFrame(rows, columns=["verdict", "claim", "paper", "claimed", "measured", "interval", "on"])

    def summary(self, study: str) -> str:
        """Return the verdicts of a study's runs in a sentence."""
        names = [name for name, result in self._results.items() if result.facts["study"] == study]
        if not names:
            return "not run yet"
        counts = board.board([self._results[name] for name in names]).counts
        said = [f"{count} {label}" for label, count in counts.items() if count and label != "not tested"]
        return ", ".join(said) or "run; no claim of the ledger rests on it"

    def compare(self, one: str, other: str) -> list[str]:
        """Return what two runs do not have in common, in lines, as ``reprolib diff`` prints them."""
        return list(replay.diff(self._path(one), self._path(other)).lines(LINES))

    def notebook(self, name: str) -> Path:
        """Return the path of a run's executed notebook."""
        return self._path(name) / self._result(name).facts["notebook"]["name"]

    def _result(self, name: str) -> board.Result:
        if name not in self._results:
            raise nearest(name, self._results, "run")
        return self._results[name]

    def _path(self, name: str) -> Path:
        self._result(name)
        return self.paths[name]


def framed(frame: pd.DataFrame) -> str:
    """Return a frame of texts as an HTML table, its first column as the heading of each row."""
    lines = [(str(row[0]), [arrow(str(cell)) for cell in row[1:]]) for row in frame.itertuples(index=False)]
    return table(list(frame.columns[1:]), lines, "words")


class Runs:
    """The explorer of runs; see ``runs``."""

    def __init__(self, view: RunsView) -> None:
        self.view = view
        wide = {"style": {"description_width": "initial"}}
        studies = [("all", ""), *((name, name) for name in view.studies())]
        self.study = ipywidgets.Dropdown(options=studies, description="Study", **wide)
        self.text = ipywidgets.Text(description="Contains", placeholder="data set, model, ...", **wide)
        self.one = ipywidgets.Dropdown(description="Run", **wide)
        self.other = ipywidgets.Dropdown(description="Compare with", **wide)
        self.table, self.verdicts, self.difference = (ipywidgets.HTML() for _ in range(3))
        self.link = ipywidgets.Output()
        wrap = {"flex_flow": "row wrap"}
        self.box = ipywidgets.VBox([
            ipywidgets.HBox([self.study, self.text], layout=wrap), self.table,
            ipywidgets.HBox([self.one, self.other], layout=wrap), self.link, self.verdicts, self.difference,
        ])  # fmt: skip
        for control in (self.study, self.text):
            control.observe(lambda _: self.filter(), "value")
        for control in (self.one, self.other):
            control.observe(lambda _: self.show(), "value")
        self.filter()

    def filter(self) -> None:
        """List the runs that the widgets ask for."""
        found = self.view.table(self.study.value or None, self.text.value)
        self.table.value = page(framed(found)) if len(found) else page("<p>No finished run.</p>")
        names = found["run"].to_list()
        self.other.options = [("none", ""), *((name, name) for name in names)]
        chosen = self.one.value
        self.one.options = names
        self.one.value = chosen if chosen in names else next(iter(names), None)
        self.show()

    def show(self) -> None:
        """Show the verdicts of the chosen run, its notebook, and how it differs from the other."""
        self.link.outputs = ()
        self.verdicts.value = self.difference.value = ""
        if self.one.value is None:
            return
        with self.link:
            display(Markdown(self.notebook_link(self.one.value)))
        found = self.view.verdicts([self.one.value])
        self.verdicts.value = page(
            framed(found) if len(found) else "<p>No claim of the ledger rests on this run alone.</p>"
        )
        if self.other.value:
            lines = self.view.compare(self.one.value, self.other.value)
            self.difference.value = page(f"<pre>{escape(chr(10).join(lines))}</pre>")

    def notebook_link(self, name: str) -> str:
        """Return a link to a run's notebook, relative to the working directory, as Markdown."""
        path = self.view.notebook(name)
        return f"[Open the executed notebook of {name}]({quote(Path(os.path.relpath(path)).as_posix())})"

    def _ipython_display_(self) -> None:
        display(self.view.table())
        display(self.box)


def runs(folder: str | Path | None = None) -> Runs:
    """Return the explorer of the finished runs in ``folder`` (default: ``runs`` of the checkout).

    Raises RunError for a run whose ``run.json`` cannot be read and InputError for one with invalid results.
    """
    return Runs(RunsView(folder))


def studies(folder: str | Path | None = None) -> HTML:
    """Return every study that has a question: what it asks, a picture, its verdicts so far, and a link.

    Verdicts and pictures are of the finished runs in ``folder`` (default: ``runs`` of the checkout); where there is
    none, the picture is that of the committed figures.
    """
    view, parts = RunsView(folder), []
    for name, path in shipped().items():
        text = "\n".join(
            cell["source"] for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown"
        )
        asked = re.search(r"\*\*Question\.\*\* (.+?)(?:\n\n|\Z)", text, re.S)
        if asked is None:
            continue
        link = quote(Path(os.path.relpath(path)).as_posix())
        question = re.sub(r"[*`]", "", " ".join(asked[1].split()))
        parts.append(
            f"<section><h3><a href='{link}'>{escape(read_study(path).title)}</a></h3><p>{escape(question)}</p>"
            f"<p><b>So far:</b> {escape(view.summary(name))}.</p>{_picture(view, name)}</section>"
        )
    return HTML(page(*parts))


def _picture(view: RunsView, study: str) -> str:
    """Return a study's figure as HTML, of its first run or of the committed ones; nothing where there is neither."""
    own = [view.paths[name] / "figures" for name in view.table(study)["run"]]
    found = [path for folder in (*own, *sorted((root() / "figures").glob(f"{study}-*"))) for path in _figures(folder)]
    best = [path for path in found if path.stem == PICTURES.get(study)] or found
    if not best:
        return ""
    from PIL import Image

    sidecar, buffer = best[0].with_suffix(".json"), io.BytesIO()
    alt = json.loads(sidecar.read_text(encoding="utf-8"))["alt"] if sidecar.is_file() else best[0].stem
    with Image.open(best[0]) as picture:
        picture.thumbnail((900, 900))
        picture.convert("RGB").save(buffer, format="png")
    source = base64.b64encode(buffer.getvalue()).decode()
    style = "max-width: 100%; max-height: none; width: 640px; border: none"
    return f"<img alt='{escape(alt)}' src='data:image/png;base64,{source}' style='{style}'>"


def _figures(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.png"))
