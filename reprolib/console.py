"""Tables on the terminal, for the verbs of the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


def table(title: str, *columns: str) -> Table:
    """Return an empty table with a title and the headers ``columns``; one called "size" is set to the right."""
    from rich.table import Table

    made = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for column in columns:
        justify = "right" if column == "size" else "left"
        made.add_column(column, justify=justify, header_style="dim", no_wrap=column == columns[0])
    made.padding = (0, 3, 0, 0)
    return made


def show(made: Table) -> None:
    """Print a table and an empty line."""
    from rich.console import Console

    Console().print(made, end="\n\n")


def escape(text: object) -> str:
    """Return the text as rich shows it unchanged: it would read list[str] as mark-up."""
    return str(text).replace("[", r"\[")
