"""The figures of a paper: drawn from the artefacts beside them, so that no data, model or network is needed.

``figures/RUN/`` holds what :func:`take` took out of the finished run ``RUN`` (results and whatever else is drawn, and
``source.json``, which says where it came from) and, for each of its figures, PDF, SVG and PNG with a sidecar that
names the artefacts by hash, the commit of the run's code and the claims that the figure bears on. :func:`check` draws
all again and compares bytes.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from reprolib.errors import InputError, RunError
from reprolib.figures import hubness, intra_modal_inversion, modality_gap, paper_versus_code, training_variance
from reprolib.figures.style import METADATA, Drawing
from reprolib.study import provenance, records
from reprolib.study.verify import verify

SOURCE, ITEMS = "source.json", "items.npz"
Artefacts = Mapping[str, Any]  # by file name: results.json and parquet as DataFrame, items.npz as (pictures, captions)


@dataclass(frozen=True)
class PaperFigure:
    """A figure: the study whose run it is drawn from, its artefacts, how it is drawn, and the claims it bears on."""

    study: str
    artefacts: tuple[str, ...]
    draw: Callable[[Artefacts], Drawing]
    claims: tuple[str, ...] = ()


# What figures need of results.json: the rest of it stays in the run.
TABLES: Mapping[str, tuple[str, ...]] = {
    "hubness": ("main", "difference", "temperature"),
    "modality-gap": ("main", "gap", "landscape", "landscape difference", "temperature"),
    "intra-modal-inversion": ("main", "difference", "curve"),
    "paper-versus-code": ("audit",),
    "training-variance": ("effect", "detectable", "noise", "curation"),
}
HUBS = "image->text"


def _hubs(stored: Artefacts) -> Drawing:
    return hubness.hubs(stored["hubs.parquet"], *stored[ITEMS], direction=HUBS)


def _recall(stored: Artefacts) -> Drawing:
    return hubness.skewness_against_recall(stored[records.RESULTS])


def _temperature(stored: Artefacts) -> Drawing:
    return hubness.temperature(stored[records.RESULTS], methods=("is", "dis", "dual-is", "dual-dis"))


def _differences(stored: Artefacts) -> Drawing:
    return hubness.differences(stored[records.RESULTS])


def _overview(stored: Artefacts) -> Drawing:
    found = stored[records.RESULTS]
    return modality_gap.overview(found, stored["clouds.parquet"], stored["energy.parquet"], _trained(found))


def _landscape(stored: Artefacts) -> Drawing:
    found = stored[records.RESULTS]
    return modality_gap.landscape(found, _trained(found))


def _trained(found: pd.DataFrame) -> float:
    """Return the temperature of training, which is the one whose losses are compared along the gap."""
    rows = found[(found["table"] == "landscape difference") & (found["metric"] == "InfoNCE difference")]
    if rows.empty:
        raise InputError("no record of table 'landscape difference': the study did not run this part")
    return rows["parameters"].iloc[0]["tau"]


def _methods(stored: Artefacts) -> Drawing:
    return intra_modal_inversion.methods(stored[records.RESULTS])


def _steps(stored: Artefacts) -> Drawing:
    return intra_modal_inversion.steps(stored[records.RESULTS])


def _forest(stored: Artefacts) -> Drawing:
    return paper_versus_code.forest(stored[records.RESULTS])


def _effects(stored: Artefacts) -> Drawing:
    return training_variance.effects(stored[records.RESULTS])


def _seeds(stored: Artefacts) -> Drawing:
    return training_variance.seeds(stored["seeds.parquet"])


def _noise(stored: Artefacts) -> Drawing:
    return training_variance.noise(stored[records.RESULTS])


_RESULTS = (records.RESULTS,)
_GAP = (*_RESULTS, "clouds.parquet", "energy.parquet")
_CORRECTIONS = (
    "csls-direction", "dbnorm-coco-dual-is", "dbnorm-coco-is", "dbnorm-coco-dual-dis", "dbsn-sinkhorn-over-is",
    "dbsn-dual-over-is", "invgc-direction", "invgc-localadj-direction", "nnn-coco-clip", "nnn-coco-clip-text",
    "nnn-coco-clip-dual-is", "nnn-coco-clip-dual-is-text", "nnn-coco-clip-dn", "qb-norm-coco-dis",
)  # fmt: skip
_TUNING = ("dbnorm-coco-dual-is-over-is", "dbnorm-both-banks")
_LOSS = ("mind-the-gap-default-gap-least-loss",)
_OVERVIEW = (
    *_LOSS, "mind-the-gap-temperature", "two-effects-one-trigger-few-dimensions", "fill-the-gap-spectral",
    "fill-the-gap-optimal-transport", "gr-clip-own-modality-bias",
)  # fmt: skip
_INVERSION = ("cross-the-gap-i2i-clip-b32", "cross-the-gap-t2t-clip-b32", "isoclip-i2i-b32", "isoclip-t2t-b32")

_FACTORS = (
    "where-does-the-improvement-come-from-factors", "where-does-the-improvement-come-from-vse-hard-negative",
    "irra-headline", "ccrk-recall", "patchct-transport",
)  # fmt: skip

# By RUN/NAME: the run's folder under runs/, which is also the figure's, and the figure's file name.
FIGURES: Mapping[str, PaperFigure] = {
    "hubness-glyphs/hubs_image_to_text": PaperFigure("hubness", ("hubs.parquet", ITEMS), _hubs),
    "hubness-glyphs/skewness_against_recall": PaperFigure("hubness", _RESULTS, _recall, _CORRECTIONS),
    "hubness-glyphs/temperature": PaperFigure("hubness", _RESULTS, _temperature, _TUNING),
    "hubness-glyphs/differences": PaperFigure("hubness", _RESULTS, _differences, _CORRECTIONS),
    "hubness-coco-clip-500/skewness_against_recall": PaperFigure("hubness", _RESULTS, _recall, _CORRECTIONS),
    "hubness-coco-clip-500/temperature": PaperFigure("hubness", _RESULTS, _temperature, _TUNING),
    "hubness-coco-clip-500/differences": PaperFigure("hubness", _RESULTS, _differences, _CORRECTIONS),
    "modality-gap-glyphs/overview": PaperFigure("modality-gap", _GAP, _overview, _OVERVIEW),
    "modality-gap-glyphs/landscape": PaperFigure("modality-gap", _RESULTS, _landscape, _LOSS),
    "modality-gap-coco-clip-500/overview": PaperFigure("modality-gap", _GAP, _overview, _OVERVIEW),
    "modality-gap-coco-clip-500/landscape": PaperFigure("modality-gap", _RESULTS, _landscape, _LOSS),
    "intra-modal-inversion-glyphs/methods": PaperFigure("intra-modal-inversion", _RESULTS, _methods, _INVERSION),
    "intra-modal-inversion-glyphs/steps": PaperFigure(
        "intra-modal-inversion", _RESULTS, _steps, ("cross-the-gap-early-peak",)
    ),
    "paper-versus-code-glyphs/forest": PaperFigure("paper-versus-code", _RESULTS, _forest),
    "training-variance-glyphs/effects": PaperFigure("training-variance", _RESULTS, _effects, _FACTORS),
    "training-variance-glyphs/seeds": PaperFigure("training-variance", ("seeds.parquet",), _seeds, _FACTORS[:1]),
    "training-variance-glyphs/noise": PaperFigure("training-variance", _RESULTS, _noise, ("pc2-headline",)),
}
RUNS = tuple(dict.fromkeys(name.split("/")[0] for name in FIGURES))


def of_run(run: str) -> dict[str, PaperFigure]:
    """Return the figures that are drawn from the run of this name, by their own names; empty if there are none."""
    return {name.removeprefix(f"{run}/"): figure for name, figure in FIGURES.items() if name.startswith(f"{run}/")}


def take(runs: Path, folder: Path) -> tuple[list[str], list[str]]:
    """Take the artefacts of the registered runs under ``runs`` into ``folder`` and draw them; return taken and absent.

    A run's folder of figures is replaced as a whole, or stays as it was. Raises :class:`RunError` for a run that is no
    longer as it was written, :class:`InputError` for one of another study or without what is drawn.
    """
    taken, absent = [], []
    for name in RUNS:
        if not (runs / name / provenance.RUN).is_file():
            absent.append(name)
            continue
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".") as staging:
            fresh = Path(staging) / name
            fresh.mkdir()
            _take(runs / name, fresh)
            _draw(fresh, name, fresh)
            if (folder / name).exists():
                (folder / name).rename(Path(staging) / "before")
            fresh.rename(folder / name)
        taken.append(name)
    return taken, absent


def redraw(folder: Path) -> list[Path]:
    """Draw every figure again whose artefacts lie in ``folder``; return the files. InputError if there is none."""
    return [path for run in _held(folder) for path in _draw(folder / run, run, folder / run)]


def check(folder: Path) -> list[str]:
    """Draw every figure anew elsewhere and say, a sentence for each file, what differs from ``folder``."""
    found = []
    with tempfile.TemporaryDirectory() as fresh:
        for run in _held(folder):
            drawn = _draw(folder / run, run, Path(fresh) / run)
            wanted = {path.name for path in drawn} | _artefacts(run) | {SOURCE}
            for path in drawn:
                old = folder / run / path.name
                if not old.is_file():
                    found.append(f"{old} is missing")
                elif old.read_bytes() != path.read_bytes():
                    found.append(f"{old} differs from what its artefacts give")
            extra = sorted(path for path in (folder / run).iterdir() if path.name not in wanted)
            found += [f"{path} belongs to no figure of the registry" for path in extra]
    return found


def _held(folder: Path) -> list[str]:
    """Return the runs whose artefacts lie in ``folder``."""
    runs = [run for run in RUNS if (folder / run / SOURCE).is_file()]
    if not runs:
        raise InputError(
            f"{folder} holds no artefacts of figures; take them out of runs with `reprolib figures --from`"
        )
    return runs


def _artefacts(run: str) -> set[str]:
    return {name for figure in of_run(run).values() for name in figure.artefacts}


def _take(run: Path, folder: Path) -> None:
    """Copy what is drawn of a run into ``folder``, less what no figure needs."""
    if problems := verify(run):
        raise RunError(f"{run} is not as it was written: {problems[0]}")
    facts = provenance.read(run, study=True)
    study = next(iter(of_run(run.name).values())).study
    if facts["study"] != study:
        raise InputError(f"{run} is a run of the study {facts['study']}, its figures are of {study}")
    for name in sorted(_artefacts(run.name)):
        if name == ITEMS:
            _take_items(run, facts, folder / ITEMS)
        elif name == records.RESULTS:
            records.save([r for r in records.load(run) if (r.table or "main") in TABLES[study]], folder)
        elif (run / name).is_file():
            shutil.copyfile(run / name, folder / name)
        else:
            raise InputError(f"{run} holds no {name}, which its figures are drawn from")
    source = {key: facts[key] for key in ("study", "title", "started", "code", "identities")}
    _write(folder / SOURCE, source | {"run.json": facts["sha256"]})


def _take_items(run: Path, facts: Mapping[str, Any], path: Path) -> None:
    """Store the pictures and texts of the hubs that are drawn: the run names them, the data set holds them."""
    from reprolib.models.embed import load_embeddings  # imports torch

    chosen = ("dataset", "model", "bank_share", "validation_share", "bank_source", "n_splits", "seed")
    data = load_embeddings(**{name: facts["parameters"][name] for name in chosen})
    if facts["identities"].get(f"{data.name} with {data.model}") != data.identity:
        raise InputError(f"{run} was made from other data or another model than {data.name} with {data.model} is today")
    hubs = pd.read_parquet(run / "hubs.parquet")
    hubs = hubs[hubs["direction"] == HUBS]
    queries = sorted({query for listed in hubs["query_ids"] for query in listed})
    texts = sorted(set(hubs["gallery_id"]))
    np.savez_compressed(
        path,
        image_ids=np.array(queries),
        images=np.stack([data.pictures[name] for name in queries]),
        text_ids=np.array(texts),
        texts=np.array([data.captions[name] for name in texts]),
    )


def _load(path: Path) -> Any:
    """Return an artefact as the drawing functions take it."""
    if path.name == records.RESULTS:
        return pd.DataFrame([record.model_dump() for record in records.load(path.parent)])
    if path.suffix == ".parquet":
        return pd.read_parquet(path)
    with np.load(path, allow_pickle=False) as arrays:
        images = dict(zip(arrays["image_ids"].tolist(), arrays["images"], strict=True))
        return images, dict(zip(arrays["text_ids"].tolist(), arrays["texts"].tolist(), strict=True))


def _draw(folder: Path, run: str, out: Path) -> list[Path]:
    """Draw the figures of a run from the artefacts in ``folder`` into ``out``; return the files."""
    figures, source = of_run(run), json.loads((folder / SOURCE).read_text(encoding="utf-8"))
    names = sorted(_artefacts(run))
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise InputError(
            f"{folder} lacks the artefact {missing[0]}; take it out of the run with `reprolib figures --from`"
        )
    stored = {name: _load(folder / name) for name in names}
    hashes = {name: provenance.sha256(folder / name) for name in names}
    written = []
    for name, figure in figures.items():
        drawing = figure.draw(stored)
        paths = drawing.save(out, name)
        sidecar = {
            "alt": drawing.alt,
            "caption": drawing.caption,
            "claims": list(figure.claims),
            "artefacts": {artefact: hashes[artefact] for artefact in figure.artefacts},
            "study": source["study"],
            "code": source["code"],
        }
        _write(paths["json"], sidecar)
        written += [paths[suffix] for suffix in (*METADATA, "json")]
    return written


def _write(path: Path, facts: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(facts, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
