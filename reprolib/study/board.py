"""What the report says of the ledger and of the audit: every claim with its verdict, every finding with its effect.

A row holds texts as they are printed, and numbers to sort by. Measured numbers are those of the records; claimed ones
are printed as the paper prints them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import scipy.stats

from reprolib.metrics.statistics import Interval, benjamini_hochberg, equivalent
from reprolib.study.audit import Finding, Place, Switch, findings
from reprolib.study.hubness import STEPS
from reprolib.study.ledger import Claim, Paper, ledger
from reprolib.study.margins import Margins, margins, margins_hash
from reprolib.study.records import Record
from reprolib.study.tables import arrow, groups, head, is_share, printed
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
FALSE_DISCOVERIES = 0.05
QUESTION = "Is DBNorm's gain over inverted softmax more than temperature tuning?"
# What the steps of the question are called, in their order; the third answers it.
STEP_NAMES = ("IS as released", "its temperature tuned", "gallery bank added", "or forced on", "DualIS in all")


@dataclass(frozen=True)
class Result:
    """One finished run of the report: where on the page it stands (``slug``), its ``run.json`` and its records."""

    slug: str
    name: str
    facts: Mapping[str, Any]
    records: Sequence[Record]


@dataclass(frozen=True)
class Row:
    """One claim. ``measured`` and ``interval`` are empty where no record decides; ``link`` is a run's slug.

    ``q`` is the p-value of the claim's direction after Benjamini and Hochberg, None where no direction was tested.
    """

    paper: str
    claim: Claim
    claimed: tuple[str, str]
    verdict: Verdict
    symbol: str
    measured: str
    interval: str
    where: str
    link: str
    q: float | None = None

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
    """Every claim of the ledger: those with a verdict, and by paper those without; ``counts`` by label.

    ``directions`` counts the claims whose direction was tested, those of them where an interval lies on one side, and
    those where it would at a false discovery rate of 5 % over all of them.
    """

    decided: list[Row]
    untested: dict[str, list[Row]]
    counts: dict[Label, int]
    notices: list[str]
    directions: tuple[int, int, int]


@dataclass(frozen=True)
class Answer:
    """One search's answer to ``QUESTION``; ``steps`` are (value, interval) in points of R@1, in their order."""

    where: str
    direction: str
    steps: list[tuple[str, str]]
    verdict: str
    reason: str
    link: str


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
    judged = [
        (entry.paper, claim, verdict(claim, found, limits)) for entry in ledger().values() for claim in entry.claims
    ]
    chances = {claim.id: p for _, claim, said in judged if (p := chance(claim, said, limits)) is not None}
    corrected = dict(zip(chances, benjamini_hochberg(list(chances.values())).tolist(), strict=True))
    rows = [_row(paper, claim, said, results, corrected.get(claim.id)) for paper, claim, said in judged]
    untested: dict[str, list[Row]] = {}
    for row in rows:
        if row.verdict.label == "not tested":
            untested.setdefault(row.paper, []).append(row)
    labels = [row.verdict.label for row in rows]
    decided = [row for row in rows if row.verdict.label != "not tested"]
    alone = sum(p <= 1 - limits.level for p in chances.values())
    together = sum(q <= FALSE_DISCOVERIES for q in corrected.values())
    counts = {label: labels.count(label) for label in SYMBOLS}
    return Board(decided, untested, counts, _notices(results), (len(chances), alone, together))


def chance(claim: Claim, said: Verdict, limits: Margins) -> float | None:
    """Return the p-value of what a verdict says of a claim's direction; None where no direction was tested.

    It is the two-sided one that the record's interval implies if it is taken for a normal one: below 5 % just where a
    95 % interval excludes the bound. Of several records the smallest counts, times their number (Bonferroni).
    """
    own = any(evidence.own for evidence in said.evidence)
    records = [evidence.record for evidence in said.evidence if evidence.own == own]
    values = [(r.value, r.ci_low, r.ci_high) for r in records if None not in (r.value, r.ci_low, r.ci_high)]
    if claim.kind == "value" or not values:
        return None
    return min(1.0, len(values) * min(_p(Interval(*value), claim.bound or 0.0, limits.level) for value in values))


def _p(interval: Interval, bound: float, level: float) -> float:
    distance = abs(interval.value - bound)
    half = interval.value - interval.low if interval.value > bound else interval.high - interval.value
    if half <= 0 or not distance:
        return float(not distance)
    return float(2 * scipy.stats.norm.sf(scipy.stats.norm.ppf((1 + level) / 2) * distance / half))


def answers(results: Sequence[Result]) -> list[Answer]:
    """Return the answer to ``QUESTION`` of every search in which the hubness study asked it."""
    found = []
    for result in results:
        asked = [record for record in result.records if (record.study, record.table) == ("hubness", "question")]
        for (dataset, model, direction), rows in groups(asked, "dataset", "model", "direction").items():
            by = {record.metric.partition(" difference: ")[2]: record for record in rows}
            steps = [by[name] for one, other in STEPS if (name := f"{one} - {other}") in by]
            if len(steps) < len(STEPS):  # nothing that this study left
                continue
            values = [_measured(r.metric, r.value, r.ci_low, r.ci_high) for r in steps]
            shown = [(value.removesuffix(" points"), interval) for value, interval in values]
            where = ", ".join(filter(None, (dataset, model)))
            found.append(Answer(where, arrow(direction), shown, *_answer(steps[2]), result.slug))
    return found


def _answer(record: Record) -> tuple[str, str]:
    """Return "yes", "no" or "open", and why, by the difference between tuned DualIS and tuned inverted softmax."""
    interval, floor = Interval(record.value, record.ci_low, record.ci_high), margins().floor(record.metric)
    chosen = record.parameters.get("gallery_beta")
    if chosen is not None and not any(chosen if isinstance(chosen, list) else [chosen]):
        return "no", "validation switches the gallery bank off, which leaves inverted softmax"
    if equivalent(interval, 0.0, floor):
        return "no", f"no difference beyond the noise floor of {100 * floor:g} points"
    if interval.low > 0:
        return "yes", "the gallery bank adds recall beyond the temperature"
    if interval.high < 0:
        return "no", "the gallery bank costs recall"
    return "open", "the interval allows a gain and a loss"


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


def _row(paper: Paper, claim: Claim, said: Verdict, results: Sequence[Result], q: float | None) -> Row:
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
        _name(paper), claim, claimed(claim), said, SYMBOLS[said.label], measured, interval, where, next(links, ""), q
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
