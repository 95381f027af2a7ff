"""The board and the audit of the report: every row of the ledger is there, and its texts are its numbers."""

from collections.abc import Callable
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reprolib.metrics.statistics import Interval
from reprolib.study import audit, board, ledger
from reprolib.study.hubness import STEPS
from reprolib.study.margins import margins, margins_hash
from reprolib.study.records import Record
from reprolib.study.verdicts import Label, verdict, verdicts

Make = Callable[..., Any]


def result(found: list[dict[str, Any]], slug: str = "run-1", **facts: Any) -> board.Result:
    return board.Result(slug, f"name of {slug}", facts, [Record.model_validate(item) for item in found])


@pytest.fixture
def difference(record: Make) -> Make:
    """Return a function that makes the record of a paired difference in R@1 of the hubness study."""
    common = {"study": "hubness", "dataset": "glyphs", "model": "glyph-clip", "table": "difference",
              "metric": "R@1 difference", "reference": "none", "value": 0.034, "ci_low": 0.003,
              "ci_high": 0.065}  # fmt: skip
    return lambda **fields: record(**common | fields)


def claim(**fields: Any) -> ledger.Claim:
    common = {"id": "a-b", "sentence": "s", "kind": "direction", "where": "here", "provenance": "paper",
              "status": "needs data", "reason": "none"}  # fmt: skip
    return ledger.Claim.model_validate(common | fields)


def test_every_claim_stands_on_the_board_once_with_its_verdict(difference: Make) -> None:
    results = [result([difference()]), result([difference(direction="image->text", value=0.05)], "run-2")]
    found = board.board(results)
    rows = [*found.decided, *(row for rows in found.untested.values() for row in rows)]
    judged = verdicts(ledger.claims(), [record for r in results for record in r.records])
    assert sorted(row.claim.id for row in rows) == sorted(judged)
    assert all(row.verdict == judged[row.claim.id] for row in rows)
    assert all((row.verdict.label == "not tested") == (row not in found.decided) for row in rows)
    assert sum(found.counts.values()) == len(rows) and found.counts["not tested"] == len(rows) - len(found.decided)
    assert all(row.verdict.reason for row in rows)


def test_a_decided_row_says_what_was_measured_and_where(difference: Make) -> None:
    elsewhere = result([difference(table="main", metric="R@1", dataset="other")])
    found = board.board([elsewhere, result([difference(method="is")], "run-2", margins=margins_hash())])
    (row,) = (row for row in found.decided if row.claim.id == "dbnorm-coco-is")
    assert (row.measured, row.interval) == ("+3.4 points", "0.3 to 6.5")
    assert (row.where, row.link, row.symbol) == ("glyphs, glyph-clip", "run-2", "→")
    assert row.claimed == ("+4.84 points", "35.15 against 30.31\N{NO-BREAK SPACE}%") and "→" in row.reason


def test_each_verdict_has_a_sign_of_its_own() -> None:
    assert set(board.SYMBOLS) == set(get_args(Label)) and len(set(board.SYMBOLS.values())) == len(board.SYMBOLS)


def test_what_is_claimed_without_numbers() -> None:
    assert board.claimed(claim(expect="lower")) == ("lower", "")
    assert board.claimed(claim(kind="property", bound=0.5)) == ("more than 0.5", "")
    value = {"kind": "value", "claimed": {"value": 0.82, "decimals": 2, "unit": "number"}}
    assert board.claimed(claim(**value)) == ("0.82", "")


@given(st.integers(-9999, 9999), st.integers(-9999, 9999), st.integers(0, 4))
def test_claimed_numbers_are_printed_as_published(value: int, reference: int, decimals: int) -> None:
    numbers = [n / 10**decimals for n in (value, reference)]
    stated = {"value": numbers[0], "reference": numbers[1], "decimals": decimals, "unit": "percent"}
    sign = "higher" if value >= reference else "lower"
    effect, both = board.claimed(claim(kind="improvement", expect=sign, claimed=stated))
    plain = effect.replace("−", "-").removesuffix(" points")
    assert round(float(plain) * 10**decimals) == value - reference and plain[0] in "+-"
    printed = [float(part) for part in both.replace("−", "-").removesuffix(board.PERCENT).split(" against ")]
    assert printed == numbers


@given(st.floats(-1, 1), st.floats(0, 0.5))
def test_measured_differences_of_shares_are_in_points(value: float, half: float) -> None:
    interval = Interval(value, value - half, value + half)
    shown, ends = board._measured("R@1 difference", interval.value, interval.low, interval.high)
    numbers = [float(text.replace("−", "-")) for text in (shown.removesuffix(" points"), *ends.split(" to "))]
    wanted = [100 * x for x in (interval.value, interval.low, interval.high)]
    assert all(abs(n - w) <= 0.0501 for n, w in zip(numbers, wanted, strict=True))
    assert shown.startswith("+") == (numbers[0] > 0)


def test_changed_and_unrecorded_margins_are_noticed(difference: Make) -> None:
    same, other, silent = (
        result([difference()], f"run-{place}", **facts)
        for place, facts in enumerate(({"margins": margins_hash()}, {"margins": "0" * 64}, {}))
    )
    assert board.board([same]).notices == []
    changed, unknown = board.board([same, other, silent]).notices
    assert "have changed" in changed and changed.endswith(": name of run-1.")
    assert "do not record" in unknown and unknown.endswith(": name of run-2.")


def test_the_audit_holds_every_finding_with_its_effects(record: Make) -> None:
    effect = {"study": "paper-versus-code", "table": "audit", "dataset": "glyphs", "metric": "R@1 difference",
              "direction": "image->text", "parameters": {"finding": "dbnorm-swapped-temperatures"}}  # fmt: skip
    found = [record(**effect, value=-0.012, ci_low=-0.02, ci_high=-0.004)]
    rows = {row.finding.id: row for row in board.audit([result(found, "run-7")])}
    assert list(rows) == list(audit.findings())
    row = rows["dbnorm-swapped-temperatures"]
    assert row.effects == [("R@1, image → text, glyphs: −1.2 points (−2.0 to −0.4)", "run-7")]
    assert row.place.split() == [f"{row.finding.place.repository}@{row.finding.place.commit[:10]}",
                                 "DBNorm/dbnorm.py:60-67", "(db_norm)"]  # fmt: skip
    calls = dict(row.switch)
    assert calls["released"].startswith("reprolib.methods.fit('dual-is', ") and "gallery_beta=3.0" in calls["released"]
    assert all(not other.effects for name, other in rows.items() if name != row.finding.id)


def test_floors_are_those_of_the_margins() -> None:
    found = board.floors()
    assert found.digest == margins_hash() and len(found.rows) == len(margins().floors)
    rows = dict(found.rows)
    assert float(rows["R@1, points"]) == pytest.approx(100 * margins().floor("R@1"))
    assert float(rows["skewness"]) == pytest.approx(margins().floor("skewness"))


# --- many claims at once ------------------------------------------------------------------------------------


def chances(difference: Make, *intervals: tuple[float, float, float], **fields: Any) -> float | None:
    """The p-value of a claim that text->image recall is higher, from records with these intervals."""
    select = {"table": "difference", "metric": "R@1 difference", "method": "is"}
    tested = claim(metric="R@1", status="testable now", reason=None,
                   test={"study": "hubness", "select": select}, **fields)  # fmt: skip
    found = [
        Record.model_validate(difference(value=value, ci_low=low, ci_high=high, dataset=f"set {place}"))
        for place, (value, low, high) in enumerate(intervals)
    ]
    return board.chance(tested, verdict(tested, found, margins()), margins())


@given(st.floats(-1, 1), st.floats(1e-6, 0.5), st.floats(1e-6, 0.5))
def test_a_direction_is_clear_where_its_interval_says_so(value: float, below: float, above: float) -> None:
    def make(**fields: Any) -> dict[str, Any]:
        common = {"study": "hubness", "model": None, "direction": None, "table": "difference", "method": "is",
                  "metric": "R@1 difference"}  # fmt: skip
        return common | fields

    p = chances(make, (value, value - below, value + above))
    distance = min(abs(value - below), abs(value + above))
    if distance > 1e-9:
        assert (p < 0.05) == (value - below > 0 or value + above < 0)
    assert 0 <= p <= 1 and chances(make, (-value, -value - above, -value + below)) == pytest.approx(p)
    assert chances(make, *[(value, value - below, value + above)] * 3) == pytest.approx(min(1, 3 * p))


def test_directions_that_were_not_tested_have_no_chance(difference: Make) -> None:
    assert chances(difference) is None
    number = {"kind": "value", "claimed": {"value": 37.5, "decimals": 1, "unit": "percent"}}
    assert chances(difference, (0.3, 0.2, 0.4), **number) is None
    assert chances(difference, (0.0, 0.0, 0.0)) == 1 and chances(difference, (0.1, 0.1, 0.1)) == 0
    # 1.96 standard errors from 0, by a table of the normal distribution
    assert chances(difference, (0.196, 0.0, 0.392)) == pytest.approx(0.05, abs=1e-3)


def test_the_board_tells_what_stays_when_all_are_tested_at_once(difference: Make) -> None:
    half = {"value": 0.03, "ci_low": 0.0005, "ci_high": 0.0595}  # clear at 5 %, and barely
    open_ = {"value": 0.03, "ci_low": -0.1, "ci_high": 0.16}
    found = [difference(method=name, **half) for name in ("is", "nnn")]
    found += [difference(method=name, **open_) for name in ("dual-is", "dual-dis", "invgc", "invgc-localadj", "csls")]
    page = board.board([result(found)])
    rows = [*page.decided, *(row for rows in page.untested.values() for row in rows)]
    tested = [row for row in rows if row.q is not None]
    assert page.directions == (len(tested), sum(row.verdict.label == "transfers" for row in tested), 0)
    assert page.directions[1] >= 2 and all(row.q > 0.05 for row in tested)
    clear = board.board([result([difference(method="is", value=0.1, ci_low=0.08, ci_high=0.12)])])
    assert clear.directions[1] == clear.directions[2] >= 1


# --- the question -------------------------------------------------------------------------------------------


def question(difference: Make, *last: float, beta: Any = 1.0, **fields: Any) -> list[dict[str, Any]]:
    """The records of the hubness study's question; ``last`` is the interval of what the gallery bank adds."""
    rows = []
    for one, other in STEPS:
        low, value, high = last if (one, other) == ("DualIS, tuned", "IS, tuned") else (0.01, 0.02, 0.03)
        about = {"table": "question", "metric": f"R@1 difference: {one} - {other}", "method": "dual-is"}
        numbers = {"value": value, "ci_low": low, "ci_high": high, "parameters": {"gallery_beta": beta}}
        rows.append(difference(**about | numbers | fields))
    return rows


ANSWERS = [
    ((0.01, 0.02, 0.03), 1.0, "yes", "beyond the temperature"),
    ((-0.03, -0.02, -0.01), 1.0, "no", "costs recall"),
    ((-0.003, 0.0, 0.003), 1.0, "no", "noise floor of 0.4 points"),
    ((-0.03, 0.0, 0.03), 1.0, "open", "a gain and a loss"),
    ((0.0, 0.0, 0.0), 0.0, "no", "switches the gallery bank off"),
    ((0.01, 0.02, 0.03), [0.0, 0.0], "no", "switches the gallery bank off"),
    ((0.01, 0.02, 0.03), [0.0, 1.0], "yes", "beyond the temperature"),
]


@pytest.mark.parametrize(("interval", "beta", "said", "why"), ANSWERS)
def test_the_question_is_answered_by_the_gallery_banks_step(
    difference: Make, interval: tuple[float, ...], beta: Any, said: str, why: str
) -> None:
    (answer,) = board.answers([result(question(difference, *interval, beta=beta, direction="image->text"), "run-3")])
    assert (answer.verdict, answer.link, answer.where) == (said, "run-3", "glyphs, glyph-clip") and why in answer.reason
    assert answer.direction == "image → text" and len(answer.steps) == len(board.STEP_NAMES) == len(STEPS)
    assert answer.steps[0] == ("+2.0", "1.0 to 3.0")
    assert float(answer.steps[2][0].replace("−", "-")) == pytest.approx(100 * interval[1])


def test_the_question_is_answered_for_every_search(difference: Make) -> None:
    asked = [
        record
        for dataset in ("glyphs", "coco")
        for way in ("text->image", "image->text")
        for record in question(difference, -0.03, 0.0, 0.03, dataset=dataset, direction=way)
    ]
    assert len(board.answers([result(asked), result([difference()], "run-2")])) == 4
    assert board.answers([result(asked[:3])]) == [] == board.answers([result([difference()])])
