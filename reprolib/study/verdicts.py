"""Verdicts: what stored results say about a claim, as a pure function of claim, results and frozen margins.

Equivalence is two one-sided tests: an interval must lie *inside* the margin around the claim. "The difference is not
significant" decides nothing. Records carry 95 % intervals, so each one-sided test is at 2.5 %: conservative.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from reprolib.metrics.statistics import Interval, equivalent
from reprolib.study.ledger import Claim
from reprolib.study.margins import Margins, margins
from reprolib.study.records import Record

Label = Literal[
    "contradicted",
    "deviates",
    "does not transfer",
    "transfers",
    "not tested",
    "consistent",
    "reproduced",
]
LABELS: tuple[Label, ...] = get_args(Label)
_OWN = ("contradicted", "deviates", "not tested", "consistent", "reproduced")  # worst first
_ELSEWHERE = ("does not transfer", "transfers", "not tested")  # one counterexample outweighs; an open sign does not


@dataclass(frozen=True)
class Evidence:
    """One record and what it says about a claim by itself."""

    record: Record
    own: bool  # of the paper's dataset and model
    label: Label
    reason: str


@dataclass(frozen=True)
class Verdict:
    """The verdict on one claim. Numbers are in the unit of the records.

    ``measured``, ``low`` and ``high`` are those of the record that decided, None if none did; ``claimed`` is the value
    or difference claimed, and ``margin`` what counts as equal to it. ``evidence`` holds every record considered.
    """

    claim: str
    label: Label
    reason: str
    claimed: float | None = None
    margin: float | None = None
    measured: float | None = None
    low: float | None = None
    high: float | None = None
    dataset: str | None = None
    model: str | None = None
    evidence: tuple[Evidence, ...] = ()


def _margin(claim: Claim, limits: Margins) -> float:
    assert claim.claimed is not None
    return claim.claimed.rounding + limits.floor(claim.metric or "")


def _side(claim: Claim, interval: Interval, floor: float) -> tuple[bool | None, str]:
    """Return whether the claimed direction holds (None: open), and why."""
    bound = claim.bound or 0.0
    if claim.kind != "property" and equivalent(interval, 0.0, floor):
        return False, f"there is no difference beyond the noise floor of {floor:.3g}"
    above, below = interval.low > bound, interval.high < bound
    if above or below:
        holds = above == (claim.expect == "higher")
        return holds, f"the interval is {'above' if above else 'below'} {bound:g}, {claim.expect} is claimed"
    return None, f"undecided, the interval holds {bound:g}"


def _own(claim: Claim, interval: Interval, limits: Margins) -> tuple[Label, str]:
    holds, why = _side(claim, interval, limits.floor(claim.metric or ""))
    if not claim.decisive and claim.kind == "value":
        return "not tested", "the claimed number is unverified and decides nothing"
    if not claim.decisive or claim.kind in ("direction", "property"):
        labels: dict[bool | None, Label] = {True: "reproduced", False: "contradicted", None: "not tested"}
        unverified = "; the claimed number is unverified, only its sign was tested" if claim.claimed else ""
        return labels[holds], why + unverified
    effect, margin = claim.claimed.effect, _margin(claim, limits)
    equal = f"{effect:.4g} within {margin:.2g}"
    if equivalent(interval, effect, margin):
        return "reproduced", f"the whole interval equals the claimed {equal}"
    if claim.kind == "improvement" and holds is False:
        return "contradicted", why
    if interval.high < effect - margin or interval.low > effect + margin:
        return "deviates", f"the interval excludes the claimed {equal}"
    if claim.kind == "improvement" and holds is None:
        return "not tested", why
    return "consistent", f"the interval covers the claimed {effect:.4g}, too wide for equality within {margin:.2g}"


def _judge(claim: Claim, record: Record, limits: Margins) -> Evidence:
    own = record.dataset == claim.dataset and claim.model in (None, record.model)
    if None in (record.value, record.ci_low, record.ci_high):
        return Evidence(record, own, "not tested", "the record has no interval")
    interval = Interval(record.value, record.ci_low, record.ci_high)
    if own:
        return Evidence(record, own, *_own(claim, interval, limits))
    if claim.kind == "value":
        return Evidence(record, own, "not tested", "a value is tested on the paper's own dataset and model only")
    holds, why = _side(claim, interval, limits.floor(claim.metric or ""))
    labels: dict[bool | None, Label] = {True: "transfers", False: "does not transfer", None: "not tested"}
    return Evidence(record, own, labels[holds], why)


def _said(evidence: Evidence, several: bool) -> str:
    """Say where a record was measured, what it is, and what that means; with its parameters if there are several."""
    record = evidence.record
    told = [f"{name} {value}" for name, value in record.parameters.items() if several and not isinstance(value, list)]
    where = ", ".join(
        filter(None, (" with ".join(filter(None, (record.dataset, record.model))), record.direction, *told))
    )
    known = None not in (record.value, record.ci_low, record.ci_high)
    interval = f" {record.value:.4g} ({record.ci_low:.4g} to {record.ci_high:.4g})," if known else ""
    return f"{where}:{interval} {evidence.reason}"


def verdict(claim: Claim, results: Iterable[Record], limits: Margins) -> Verdict:
    """Return what ``results`` (records of any studies; the claim's test selects) say about ``claim``.

    On the paper's own dataset and model:

    * ``reproduced``: the interval lies within the margin of the claimed number (its rounding plus the noise floor); or
      without a number, the claimed direction or property holds.
    * ``consistent``: the direction holds and the interval covers the claimed number, but is too wide to show equality.
    * ``deviates``: the interval excludes the claimed number.
    * ``contradicted``: the direction is the other one, or there is no difference beyond the noise floor.

    On other data only the direction is tested: ``transfers`` or ``does not transfer``. ``not tested`` if there is no
    test, no record, no interval, or an interval that leaves the direction open; the reason says which. Several records:
    those of the paper's own data count first, and the worst of them decides; elsewhere one counterexample does.
    """
    numbers = (claim.claimed.effect, _margin(claim, limits)) if claim.decisive and claim.test else (None, None)
    if claim.test is None:
        return Verdict(claim.id, "not tested", f"{claim.status}: {claim.reason}")
    select = claim.test.select
    found = [record for record in results if record.study == claim.test.study and select.picks(record)]
    if not found:
        named = ", ".join(filter(None, (select.table, select.metric, select.method, select.reference)))
        return Verdict(claim.id, "not tested", f"no record of the study {claim.test.study} ({named})", *numbers)
    evidence = tuple(_judge(claim, record, limits) for record in found)
    considered = [e for e in evidence if e.own] or list(evidence)
    order = _OWN if considered[0].own else _ELSEWHERE
    label = min((e.label for e in considered), key=order.index)
    deciding = [e for e in considered if e.label == label]
    rest = [e for e in considered if e.label != label]
    told = ["; ".join(_said(e, len(considered) > 1) for e in group) for group in (deciding, rest) if group]
    reason = ". Otherwise ".join(told)
    one = deciding[0].record
    return Verdict(
        claim.id, label, reason, *numbers, one.value, one.ci_low, one.ci_high, one.dataset, one.model, evidence
    )  # fmt: skip


def verdicts(
    claims: Mapping[str, Claim], results: Iterable[Record], limits: Margins | None = None
) -> dict[str, Verdict]:
    """Return the verdict on every claim (``ledger.claims()``), in their order; ``limits``: ``margins()`` if None."""
    results, limits = list(results), limits or margins()
    return {name: verdict(claim, results, limits) for name, claim in claims.items()}
