"""Reading a run's artefacts for drawing, and saying their numbers in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd

from reprolib.errors import InputError
from reprolib.figures.style import DIRECTIONS, INTERVENTIONS, METHODS, look

Records = pd.DataFrame | Iterable[Mapping[str, Any]]

# Axis label with unit, and short name, of every parameter that a figure may put on an axis or in a legend.
PARAMETERS: Mapping[str, tuple[str, str]] = {
    "beta": ("inverse temperature β", "β"),
    "query_beta": ("query-bank inverse temperature β", "query β"),
    "gallery_beta": ("gallery-bank inverse temperature β", "gallery β"),
    "bank_size": ("bank size (items)", "bank"),
    "gallery_size": ("gallery size (items)", "gallery"),
    "k": ("neighbours $k$ (items)", "k"),
    "activation_k": ("neighbours $k$ of the activation set (items)", "activation k"),
    "alpha": ("weight α of the bias", "α"),
    "rate_gallery": ("rate of the gallery bank $r_g$", "gallery rate"),
    "rate_query": ("rate of the query bank $r_q$", "query rate"),
    "pool_rate": ("pool (share of the bank)", "pool"),
}
UNBOUNDED = (
    "skewness",
    "kurtosis",
    "max k-occurrence",
    "median rank",
    "mean rank",
)  # metrics that are no share


def frame(data: Records, needed: Sequence[str]) -> pd.DataFrame:
    """Return ``data`` as a DataFrame with the ``needed`` columns; InputError names one that is missing."""
    table = data.copy() if isinstance(data, pd.DataFrame) else pd.DataFrame(list(data))
    missing = [name for name in needed if name not in table]
    if missing:
        raise InputError(f"the artefact lacks the column {missing[0]!r}; present: {', '.join(map(str, table))}")
    return table


def every_record(records: Records) -> pd.DataFrame:
    """Return the records with all optional columns; one without a table belongs to table main."""
    table = frame(records, ("direction", "method", "metric", "value", "ci_low", "ci_high"))
    for name in ("table", "reference", "parameters", "p_holm", "n"):
        if name not in table:
            table[name] = None
    table["table"] = table["table"].where(table["table"].notna(), "main")
    table["parameters"] = [p if isinstance(p, Mapping) else {} for p in table["parameters"]]
    return table.astype({"value": float, "ci_low": float, "ci_high": float, "p_holm": float})


def select(records: Records, table: str, metric: str) -> pd.DataFrame:
    """Return the records of one table and metric; InputError if there are none."""
    rows = every_record(records)
    rows = rows[(rows["table"] == table) & (rows["metric"] == metric)]
    if rows.empty:
        raise InputError(f"no record of table {table!r} and metric {metric!r}: the study did not run this part")
    return rows


def once(rows: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Return ``rows`` if each combination of ``keys`` occurs once; InputError names one that does not."""
    twice = rows[rows.duplicated(keys, keep=False)]
    if not twice.empty:
        where = ", ".join(f"{key} {twice.iloc[0][key]}" for key in keys)
        raise InputError(f"several records for {where}: filter the records, or name what tells them apart")
    return rows


def number(value: Any) -> float:
    """Return a parameter as a float, NaN where it is not a number."""
    return float(value) if isinstance(value, Real) and not isinstance(value, bool) else float("nan")


def values_of(rows: pd.DataFrame, name: str) -> np.ndarray:
    """Return parameter ``name`` per record as float64, NaN where a record does not have it.

    "beta" of a dual method is its ``query_beta``.
    """
    if name == "beta":
        return np.array([number(p.get("beta", p.get("query_beta"))) for p in rows["parameters"]])
    return np.array([number(p.get(name)) for p in rows["parameters"]], dtype=float)


def directions_of(rows: pd.DataFrame) -> list[str]:
    """Return the directions present, text->image first."""
    present = set(rows["direction"])
    return [name for name in DIRECTIONS if name in present] + sorted(present - set(DIRECTIONS))


def methods_of(rows: pd.DataFrame, wanted: Sequence[str] | None = None) -> list[str]:
    """Return the methods in the order of the style table; InputError for an unknown or absent one."""
    present = set(rows["method"])
    for name in (*present, *(wanted or ())):
        look(name)
    if absent := sorted(set(wanted or ()) - present):
        raise InputError(f"no record of method {absent[0]!r}; present: {', '.join(sorted(present))}")
    return [name for name in {**METHODS, **INTERVENTIONS} if name in (wanted or present)]


def title(direction: str) -> str:
    """Return the direction as it is printed."""
    return DIRECTIONS.get(direction, direction)


def interval(row: Any, percent: bool = True) -> str:
    """Return "64.8 % (62.1 to 67.0)", or "2.36 (2.10 to 2.71)", for a record; bare without interval."""
    scale, form = (100, "{:.1f}") if percent else (1, "{:.2f}")
    text = form.format(scale * row["value"]) + (" %" if percent else "")
    if pd.isna(row["ci_low"]) or pd.isna(row["ci_high"]):
        return text
    return f"{text} ({form.format(scale * row['ci_low'])} to {form.format(scale * row['ci_high'])})"


def signed(points: float) -> str:
    """Return a difference with its sign, "+5.1", "−0.3" or "0.0"."""
    return "0.0" if abs(points) < 0.05 else f"{points:+.1f}".replace("-", "−")


def subject(rows: pd.DataFrame) -> str:
    """Return " on glyphs with glyph-clip" for a caption, as far as the rows say so and agree."""
    names = [str(rows[name].iloc[0]) for name in ("dataset", "model") if name in rows and rows[name].nunique() == 1]
    return f" on {' with '.join(names)}" if names else ""


def queries(rows: pd.DataFrame) -> str:
    """Return the numbers of queries behind the points, as a sentence of a caption."""
    counts = rows.dropna(subset=["n"]).groupby("direction")["n"].max()
    words = [f"{int(counts[name]):,} ({title(name)})" for name in directions_of(rows) if name in counts]
    return f" Queries: {', '.join(words)}." if words else ""
