"""Commands: `reprolib run`, `list`, `data`, `report`, `figures`, `tables`, `verify`, `replay`, `diff`, `doctor`.

Nothing heavy is imported before a verb needs it, so that help comes at once.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reprolib import data_cli
from reprolib.console import escape, show, table
from reprolib.errors import DataUnavailable, InputError, ReprolibError

if TYPE_CHECKING:
    from rich.table import Table

    from reprolib.study.parameters import Study

app = typer.Typer(
    help="Check what papers on cross-modal retrieval claim.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(data_cli.app, name="data")


class Kind(StrEnum):
    """What `reprolib list` can show."""

    studies = "studies"
    datasets = "datasets"
    models = "models"
    methods = "methods"


class Format(StrEnum):
    """How `reprolib tables` prints."""

    latex = "latex"
    markdown = "markdown"
    csv = "csv"


@app.command()
def run(
    study: Annotated[str, typer.Argument(help="A study's name (see `reprolib list studies`) or a notebook.")],
    parameter: Annotated[
        list[str] | None,
        typer.Option("-p", "--parameter", metavar="NAME VALUE", help="Set a parameter; the value is YAML."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Run directory; default: runs/STUDY, or runs/STUDY-DATASET if it has one."),
    ] = None,
    mirror: Annotated[
        Path | None, typer.Option(help="Folder of data files, DATASET/FILE; used before the network.")
    ] = None,
    timeout: Annotated[float | None, typer.Option(min=1, help="Stop the whole run after so many seconds.")] = None,
    skip_unavailable: Annotated[
        bool, typer.Option("--skip-unavailable", help="Data that cannot be had is a notice, not an error.")
    ] = False,
    parameters: Annotated[
        bool, typer.Option("--parameters", help="Show the study's parameters and run nothing.")
    ] = False,
) -> None:
    """Execute a study with checked parameters into a run directory.

    Example: reprolib run hubness -p dataset glyphs -p methods "[is, dual-is]" --out runs/mine
    """
    from reprolib.study.parameters import find_study

    found = find_study(study)
    if parameters:
        _show_parameters(found)
        return
    values = found.resolve(_pairs(parameter or []), texts=True)
    name = "-".join(str(part) for part in (found.name, _subject(values)) if part)
    target = out or Path("runs") / name
    from reprolib.study import (
        runner,
    )  # papermill takes a second to import: not before the parameters are right

    given = {pair: values[pair] for pair in _pairs(parameter or [])}
    try:
        folder = runner.run(found, given, target, timeout=timeout, mirror=mirror)
    except DataUnavailable as error:
        if not skip_unavailable:
            raise
        print(f"reprolib: skipped {name}: {error}", file=sys.stderr)
        return
    print(f"{found.title}: {_relative(folder)}")


@app.command("list")
def list_(
    kind: Annotated[Kind | None, typer.Argument(help="What to list; default: all.")] = None,
) -> None:
    """Show studies, datasets (licence, size, whether present), models and methods."""
    tables = {
        Kind.studies: _studies,
        Kind.datasets: data_cli.datasets_table,
        Kind.models: _models,
        Kind.methods: _methods,
    }
    for shown in [kind] if kind else list(Kind):
        show(tables[shown]())


@app.command()
def report(
    runs: Annotated[list[Path] | None, typer.Argument(help="Run directories; default: all under runs/.")] = None,
    out: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("report/index.html"),
    pdf: Annotated[Path | None, typer.Option(help="Print it through Chromium into this PDF as well.")] = None,
) -> None:
    """Build one HTML file, readable offline, from finished runs: verdicts, results, notebooks, audit."""
    from reprolib.study import report as page

    folders = runs or page.find_runs(Path("runs"))
    if not folders:
        raise InputError("there is no finished run under runs/; start with `reprolib run hubness`")
    written = page.build(folders, out)
    count = f"{len(folders)} run{'s' if len(folders) > 1 else ''}"
    print(f"{_relative(written)}: {count}, {written.stat().st_size / 1e6:.1f} MB")
    if pdf:
        printed = page.print_pdf(written, pdf)
        print(f"{_relative(printed)}: {printed.stat().st_size / 1e6:.1f} MB")


@app.command()
def figures(
    source: Annotated[
        Path | None, typer.Option("--from", help="First take the artefacts out of the runs in this folder.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Draw elsewhere and compare; exit 1 if a byte differs.")
    ] = False,
    out: Annotated[Path, typer.Option(help="The folder of figures and artefacts.")] = Path("figures"),
) -> None:
    """Draw every figure of the paper from stored artefacts: no data, model or network."""
    from reprolib.study import paper_figures

    if check and source:
        raise InputError("--check compares figures with the artefacts beside them, so it goes without --from")
    if check:
        found = paper_figures.check(out)
        print("\n".join(found) if found else f"{_relative(out)}: every figure is what its artefacts give")
        raise typer.Exit(int(bool(found)))
    if source is None:
        print(f"{_relative(out)}: {len(paper_figures.redraw(out))} files drawn")
        return
    taken, absent = paper_figures.take(source, out)
    for name in absent:
        print(f"reprolib: there is no run {source / name}, so its figures stay as they are", file=sys.stderr)
    if not taken:
        raise InputError(f"none of the runs that figures are drawn from is under {source}")
    print(f"{_relative(out)}: figures of {', '.join(taken)}")


@app.command()
def sweep(
    file: Annotated[Path, typer.Argument(help="The sweep: a YAML file.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the sweep; default: runs/FILE's name.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Jobs side by side; default: the cores.")] = None,
    cluster: Annotated[str | None, typer.Option(help="dask://host:port, or slurm.")] = None,
    mirror: Annotated[
        Path | None, typer.Option(help="Folder of data files, DATASET/FILE; used before the network.")
    ] = None,
) -> None:
    """Do many runs or grid points side by side: what is finished is kept, and the same command goes on.

    FILE: `study` or `point`, `parameters`, what varies (`grid`, `zip`, `list`), `limits` of a job (seconds, memory).
    """
    from reprolib.study import sweep as sweeps

    folder = out or Path("runs") / file.stem
    try:
        counts = sweeps.run(file, folder, workers=workers, cluster=cluster, mirror=mirror)
    except KeyboardInterrupt:
        print("reprolib: stopped; what is finished is kept, and the same command goes on", file=sys.stderr)
        raise typer.Exit(130) from None
    print(f"{_relative(folder)}: " + ", ".join(f"{count} {status}" for status, count in counts.items()))
    failed = sweeps.failures(folder)
    if failed:
        listed = table("not done", "status", "parameters", "reason")
        for job in failed:
            listed.add_row(job["status"], escape(job["parameters"]), escape(job["reason"]))
        show(listed)
    raise typer.Exit(int(bool(failed)))


@app.command()
def verify(
    runs: Annotated[list[Path] | None, typer.Argument(help="Run directories; default: all under runs/.")] = None,
) -> None:
    """Check every file of finished runs against the SHA-256 in run.json; exit 1 if one is changed, missing or extra."""
    from reprolib.study import report, verify

    found = {run: verify.verify(run) for run in runs or report.find_runs(Path("runs"))}
    if not found:
        raise InputError("there is no finished run under runs/ to verify")
    for run, problems in found.items():
        for sentence in problems or ["as written"]:
            print(f"{_relative(run)}: {sentence}")
    raise typer.Exit(int(any(found.values())))


@app.command()
def replay(
    run: Annotated[Path, typer.Argument(help="Directory of the finished run to repeat.")],
    out: Annotated[Path | None, typer.Option(help="Keep the repetition in this folder.")] = None,
    mirror: Annotated[
        Path | None, typer.Option(help="Folder of data files, DATASET/FILE; used before the network.")
    ] = None,
    timeout: Annotated[float | None, typer.Option(min=1, help="Stop the whole run after so many seconds.")] = None,
) -> None:
    """Repeat a run in a fresh process and say per tier what agrees; exit 1 if a promise is broken."""
    from reprolib.study import replay

    found, agreements = replay.replay(run, out=out, mirror=mirror, timeout=timeout)
    print("\n".join([*found.lines(), *(line for agreement in agreements for line in agreement.lines())]))
    raise typer.Exit(int(not all(agreement.holds for agreement in agreements)))


@app.command()
def diff(
    one: Annotated[Path, typer.Argument(metavar="RUN_A", help="A run directory.")],
    other: Annotated[Path, typer.Argument(metavar="RUN_B", help="Another one.")],
    limit: Annotated[int, typer.Option(min=1, help="Show at most so many numbers, records and columns.")] = 20,
) -> None:
    """Compare two runs: what was set and installed, then number by number and query by query."""
    from reprolib.study import replay

    print("\n".join(replay.diff(one, other).lines(limit)))


@app.command()
def doctor() -> None:
    """Tell what in this environment would prevent or weaken a reproduction; exit 1 if something is broken."""
    from reprolib.study import doctor

    checks = doctor.examine()
    for check in checks:
        print(f"{check.state:6}  {check.name:8}  {check.sentence}")
    raise typer.Exit(int(any(check.state == "broken" for check in checks)))


@app.command()
def tables(
    runs: Annotated[list[Path] | None, typer.Argument(help="Run directories; default: all under runs/.")] = None,
    form: Annotated[Format, typer.Option("--format", help="How to print them.")] = Format.markdown,
) -> None:
    """Print the tables a paper would print: value ± half the interval, and marks of significance."""
    from reprolib.study import report, tables

    folders = runs or report.find_runs(Path("runs"))
    if not folders:
        raise InputError("there is no finished run under runs/; start with `reprolib run hubness`")
    print(tables.render(tables.build(folders), form.value), end="")


def _pairs(texts: Iterable[str]) -> dict[str, str]:
    """Split NAME=VALUE texts, as :func:`main` hands them on; each name may be given once."""
    pairs: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"-p {text} lacks a value; write -p NAME VALUE")
        if name in pairs:
            raise InputError(f"parameter {name} is given twice")
        pairs[name] = value
    return pairs


def _subject(values: dict[str, object]) -> object:
    """Return what a run is about, for its folder's name: the embeddings' file or the dataset, maybe a folder."""
    if embeddings := values.get("embeddings"):
        return Path(str(embeddings)).stem
    return Path(str(values["dataset"])).name.removesuffix(".csv") if values.get("dataset") else None


def _relative(path: Path) -> str:
    path = path.resolve()
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def _show_parameters(study: Study) -> None:
    shown = table(f"{study.name}: {study.title}", "parameter", "type", "default", "help")
    for p in study.parameters.values():
        shown.add_row(*map(escape, (p.name, p.text, repr(p.default), p.help)))
    show(shown)


def _studies() -> Table:
    from reprolib.study.parameters import read_study, studies

    shown = table("studies", "name", "notebook", "title")
    for name, path in studies().items():
        shown.add_row(name, path.name, escape(read_study(path).title))
    return shown


def _models() -> Table:
    import yaml

    from reprolib.paths import manifests
    from reprolib.study.parameters import manifest_names

    shown = table("models", "name", "licence", "title")
    for name in manifest_names("models"):
        facts = yaml.safe_load((manifests() / "models" / f"{name}.yaml").read_text(encoding="utf-8"))
        title = facts.get("title") or facts.get("summary") or ""
        shown.add_row(name, escape(facts.get("licence", "")), escape(" ".join(title.split())))
    return shown


def _methods() -> Table:
    from reprolib.methods import CATALOGUE
    from reprolib.methods.interventions import INTERVENTIONS

    shown = table("methods", "name", "for", "what it is", "source")
    for purpose, methods in (("hubness", CATALOGUE), ("modality gap", INTERVENTIONS)):
        for name, method in methods.items():
            shown.add_row(name, purpose, escape(method.summary), escape(method.source))
    return shown


def _joined(arguments: Sequence[str]) -> list[str]:
    """Turn `-p NAME VALUE` into `-p NAME=VALUE`: a repeated option of typer takes one value each time."""
    joined: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        joined.append(argument)
        if argument in ("-p", "--parameter") and (name := next(rest, None)) is not None:
            whole = re.match(r"\w+=", name)
            value = None if whole else next(rest, None)
            joined.append(name if value is None else f"{name}={value}")
    return joined


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0, or 1 and 2 as the error says, with one sentence on stderr."""
    try:
        app(args=_joined(sys.argv[1:] if arguments is None else arguments), prog_name="reprolib")
    except ReprolibError as error:
        print(f"reprolib: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except SystemExit as stop:
        if sentence := getattr(stop, "sentence", None):
            print(f"reprolib: {sentence}", file=sys.stderr)
        raise


if __name__ == "__main__":
    main()
