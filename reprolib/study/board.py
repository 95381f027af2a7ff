"""What the report says of the ledger and of the audit: every claim with its verdict, every finding with its effect.

A row holds texts as they are printed, and numbers to sort by. Measured numbers are those of the records; claimed ones
are printed as the paper prints them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reprolib.study.audit import Finding, Place, Switch, findings
from reprolib.study.ledger import Claim, Paper, ledger
from reprolib.study.margins import Margins, margins, margins_hash
from reprolib.study.records import Record
from reprolib.study.tables import arrow, head, is_share, printed
from reprolib.study.verdicts import Label, Verdict, verdict

# In the order of the board's summary; a sign of its own for each, because colour alone says nothing to many readers.
SYMBOLS: Mapping[Label, str] = {
    "reproduced": "✓",
    "consistent": "≈",
    "deviates": "≠",
    "contradicted": "✗",
    "transfers": "→",
    "does not transfer": "↛",
    "not tested": "○",
}
PERCENT = "\N{NO-BREAK SPACE}%"


@dataclass(frozen=True)
class Result:
    """One finished run of the report: where on the page it stands (``slug``), its ``run.json`` and its records."""

    slug: str
    name: str
    facts: Mapping[str, Any]
    records: Sequence[Record]


@dataclass(frozen=True)
class Row:
    """One claim. ``measured`` and ``interval`` are empty where no record decides; ``link`` is a run's slug."""

    paper: str
    claim: Claim
    claimed: tuple[str, str]
    verdict: Verdict
    symbol: str
    measured: str
    interval: str
    where: str
    link: str

    @property
    def reason(self) -> str:
        """Why this is the verdict, without a full stop."""
        return arrow(self.verdict.reason).rstrip(".")

    @property
    def order(self) -> int:
        """The place of the verdict, to sort by."""
        return list(SYMBOLS).index(self.verdict.label)


@dataclass(frozen=True)
class Board:
    """Every claim of the ledger: those with a verdict, and by paper those without; ``counts`` by label."""

    decided: list[Row]
    untested: dict[str, list[Row]]
    counts: dict[Label, int]
    notices: list[str]


@dataclass(frozen=True)
class Audited:
    """One finding: where the code stands, the switch as calls (paper's, released), and effects (text, run's slug)."""

    finding: Finding
    paper: str
    place: str
    switch: list[tuple[str, str]]
    effects: list[tuple[str, str]]


@dataclass(frozen=True)
class Floors:
    """The frozen margins as a table."""

    rows: list[tuple[str, str]]
    margins: Margins
    digest: str


def board(results: Sequence[Result]) -> Board:
    """Return the verdicts on every claim of the ledger by all ``results``."""
    found = [record for result in results for record in result.records]
    limits = margins()
    rows = [
        _row(entry.paper, claim, verdict(claim, found, limits), results)
        for entry in ledger().values()
        for claim in entry.claims
    ]
    untested: dict[str, list[Row]] = {}
    for row in rows:
        if row.verdict.label == "not tested":
            untested.setdefault(row.paper, []).append(row)
    labels = [row.verdict.label for row in rows]
    decided = [row for row in rows if row.verdict.label != "not tested"]
    return Board(decided, untested, {label: labels.count(label) for label in SYMBOLS}, _notices(results))


def audit(results: Sequence[Result]) -> list[Audited]:
    """Return every finding of the audit with its measured effects."""
    papers = ledger()
    return [
        Audited(
            finding,
            _name(papers[finding.paper].paper),
            place(finding.place),
            switch(finding.switch) if finding.switch else [],
            _effects(finding, results),
        )
        for finding in findings().values()
    ]


def floors() -> Floors:
    """Return the noise floor of every metric, shares in points."""
    limits = margins()
    rows = [(head(metric).replace(", %", ", points"), _floor(metric, f)) for metric, f in limits.floors.items()]
    return Floors(rows, limits, margins_hash())


def claimed(claim: Claim) -> tuple[str, str]:
    """Return what is claimed and its numbers, as printed: "+7.62 points" and "37.93 against 30.31 %"; "higher", ""."""
    stated = claim.claimed
    if stated is None:
        side = {"higher": "more", "lower": "less"}[claim.expect]
        return claim.expect if claim.bound is None else f"{side} than {claim.bound:g}", ""
    unit, points = (PERCENT, " points") if stated.unit == "percent" else ("", "")
    if stated.reference is None and claim.kind == "value":
        return _minus(f"{stated.value:.{stated.decimals}f}{unit}"), ""
    difference = f"{stated.value - (stated.reference or 0.0):+.{stated.decimals}f}{points}"
    numbers = (
        ""
        if stated.reference is None
        else (f"{stated.value:.{stated.decimals}f} against {stated.reference:.{stated.decimals}f}{unit}")
    )
    return _minus(difference), _minus(numbers)


def place(where: Place) -> str:
    """Return where code stands: repository@commit file:lines (symbol)."""
    commit = f"@{where.commit[:10]}" if where.commit else ""
    lines = f":{where.lines}" if where.lines else ""
    symbol = f"({where.symbol})" if where.symbol else ""
    return " ".join(filter(None, (where.repository + commit, f"{where.file or ''}{lines}", symbol)))


def switch(found: Switch) -> list[tuple[str, str]]:
    """Return the two calls that show what the paper and what the released code does."""
    first = [repr(found.method)] if found.method else []
    return [
        (whose, f"{found.call}({', '.join([*first, *(f'{name}={value!r}' for name, value in arguments.items())])})")
        for whose, arguments in (("paper", found.paper), ("released", found.released))
    ]


def _row(paper: Paper, claim: Claim, said: Verdict, results: Sequence[Result]) -> Row:
    measured, interval = "", ""
    if claim.test is not None and said.measured is not None:
        measured, interval = _measured(claim.test.select.metric, said.measured, said.low, said.high)
    where = ", ".join(filter(None, (said.dataset, said.model)))
    links = (
        result.slug
        for result in results
        for record in result.records
        if claim.test is not None
        and record.study == claim.test.study
        and (record.dataset, record.model) == (said.dataset, said.model)
    )
    return Row(
        _name(paper), claim, claimed(claim), said, SYMBOLS[said.label], measured, interval, where, next(links, "")
    )


def _measured(metric: str, value: float, low: float | None, high: float | None) -> tuple[str, str]:
    """Return a value with its unit, and its interval; a difference of shares is in points, with its sign."""
    if low is None or high is None:
        return printed(metric, value)[0], ""
    shown, *ends = printed(metric, value, low, high)
    if " difference" in metric:
        shown = f"+{shown}" if value > 0 and float(shown) else shown
        return f"{shown}{' points' if is_share(metric) else ''}", " to ".join(ends)
    return f"{shown}{PERCENT if is_share(metric) else ''}", " to ".join(ends)


def _effects(finding: Finding, results: Sequence[Result]) -> list[tuple[str, str]]:
    if finding.effect is None:
        return []
    study, select = finding.effect.study, finding.effect.select
    return [
        (_effect(record), result.slug)
        for result in results
        for record in result.records
        if record.study == study and select.picks(record) and record.value is not None
    ]


def _effect(record: Record) -> str:
    """Return "R@1, text → image, glyphs: −1.2 points (−2.0 to −0.4)"."""
    value, interval = _measured(record.metric, record.value, record.ci_low, record.ci_high)
    grouping = record.parameters.get("grouping")
    about = (
        record.metric.split(" difference")[0],
        arrow(record.direction),
        f"same {grouping}" if grouping else "",
        record.dataset,
    )
    return f"{', '.join(filter(None, about))}: {value}{f' ({interval})' if interval else ''}"


def _notices(results: Iterable[Result]) -> list[str]:
    """Say which runs were judged by other margins than those they were made under, or do not record them."""
    other = [r.name for r in results if r.facts.get("margins") not in (None, margins_hash())]
    silent = [r.name for r in results if r.facts.get("margins") is None]
    said = (
        ("The margins have changed since these runs were made, so they were not fixed before them", other),
        ("These runs do not record the margins that they were made under", silent),
    )
    return [f"{sentence}: {', '.join(names)}." for sentence, names in said if names]


def _floor(metric: str, floor: float) -> str:
    return f"{floor * (100 if is_share(metric) else 1):.3g}"


def _name(paper: Paper) -> str:
    return f"{paper.title.split(':')[0]} ({paper.year})"


def _minus(text: str) -> str:
    return text.replace("-", "−")
