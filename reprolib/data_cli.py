"""The verbs of `reprolib data`: what datasets there are, and to get, verify, cite and describe them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reprolib.console import escape, show, table
from reprolib.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

app = typer.Typer(help="Datasets: list, get, verify, licence, cite, croissant.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME", help="A dataset (see `reprolib data list`), or a folder's path.")]
Names = Annotated[list[str], typer.Argument(metavar="NAME...", help="Datasets (see `reprolib data list`).")]
Mirror = Annotated[Path | None, typer.Option(help="Folder of data files, DATASET/FILE; used before the network.")]


def datasets_table() -> Table:
    """Return the datasets with licence, size and whether they are present."""
    from reprolib.loaders import datasets, load_manifest, status
    from reprolib.loaders.download import size_text

    made = table("datasets", "name", "licence", "size", "present", "title")
    for name in datasets():
        manifest, state = load_manifest(name), status(name)
        size = size_text(state.size) if state.size else "-"
        licence = manifest.spdx or manifest.licence
        made.add_row(name, escape(licence), size, escape(state.where), escape(manifest.title))
    return made


@app.command("list")
def list_() -> None:
    """Show all datasets: licence, size, whether present, title."""
    show(datasets_table())


@app.command()
def get(names: Names, mirror: Mirror = None) -> None:
    """Bring datasets into the cache, verified and unpacked; a download that broke off goes on.

    Example: reprolib data get dtd eurosat
    """
    from reprolib.loaders.inventory import obtain

    for name in names:
        place = obtain(name, mirror)
        print(f"{name}: {place or 'ships with the package and its dependencies'}")


@app.command("build-emoji")
def build_emoji(
    svgmoji: Annotated[Path, typer.Argument(help="A checkout of svgmoji/svgmoji.")],
    emojibase: Annotated[Path, typer.Argument(help="A checkout of milesj/emojibase.")],
    out: Annotated[Path, typer.Option(help="Folder of the two files.")] = Path("emoji"),
) -> None:
    """Render the dataset emoji from its public sources, and say whether it is what the manifest names."""
    from reprolib.loaders import load_manifest
    from reprolib.loaders.emoji_build import build
    from reprolib.loaders.store import file_digest

    stated = {file.name: file.sha256 for file in load_manifest("emoji").files}
    for path in build(svgmoji, emojibase, out):
        digest = file_digest(path)
        same = digest == stated[path.name]
        said = "as the manifest names it" if same else f"differs from {stated[path.name]}, which the manifest names"
        print(f"{path}: sha256 {digest}, {said}")


@app.command()
def verify(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME...", help="Datasets; default: all that are at hand.")
    ] = None,
    images: Annotated[
        bool, typer.Option("--images", help="Decode every picture, and list those that cannot be.")
    ] = False,
    mirror: Mirror = None,
) -> None:
    """Check files against their hashes and splits against their counts; exit 1 if something is missing or differs."""
    from reprolib.loaders import datasets, status
    from reprolib.loaders.inventory import check

    chosen = names or [name for name in datasets() if status(name, mirror).present]
    if not chosen:
        raise InputError("no dataset is at hand to verify; start with `reprolib data get NAME`")
    bad = False
    for name in chosen:
        for finding in check(name, mirror, images=images):
            print(f"{finding.state:8}  {name}/{finding.subject}: {finding.sentence}")
            bad |= finding.bad
    raise typer.Exit(int(bad))


@app.command()
def licence(name: Name) -> None:
    """Print the licence and the terms of access."""
    from reprolib.loaders import load_manifest

    manifest = load_manifest(name)
    print(f"{manifest.title}: {manifest.licence}")
    if manifest.spdx:
        print(f"SPDX: {manifest.spdx}")
    print(f"access: {manifest.access}")
    for file in manifest.files:
        if file.licence:
            print(f"{file.name}: {file.licence}")


@app.command()
def cite(name: Name) -> None:
    """Print the reference to cite."""
    from reprolib.loaders import load_manifest

    print(load_manifest(name).citation)


@app.command()
def croissant(name: Name) -> None:
    """Print the manifest as Croissant 1.0 (JSON-LD); what that requires and the manifest lacks goes to stderr."""
    from reprolib.loaders import load_manifest
    from reprolib.loaders.croissant import croissant, unstated

    described = croissant(load_manifest(name))
    print(json.dumps(described, indent=2, ensure_ascii=False))
    lacking = unstated(described)
    if lacking:
        print(f"reprolib: Croissant requires {', '.join(lacking)}, which {name}.yaml does not state", file=sys.stderr)
