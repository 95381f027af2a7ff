import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reprolib.errors import InputError
from reprolib.study import tables
from reprolib.study.records import Record

Make = Callable[..., Any]


@pytest.fixture
def run(make_run: Make, record: Make) -> Path:
    """A run with two methods and two metrics, one significant difference, and a comparison of two directions."""
    main = [
        record(method="none", parameters={}, bank="none", value=0.5, ci_low=0.4, ci_high=0.6),
        record(method="none", parameters={}, bank="none", metric="skewness", value=-1.23456, ci_low=-1.3, ci_high=-1.1),
        record(method="a_b & 50 %", value=0.6125, ci_low=0.6, ci_high=0.62),
        record(method="a_b & 50 %", metric="skewness", value=None, ci_low=None, ci_high=None),
    ]
    test = {"table": "difference", "metric": "R@1 difference", "method": "a_b & 50 %", "value": 0.1125}
    more = [
        record(**test, reference="none", p_value=0.001, p_holm=0.002),
        record(**test, reference="other", p_value=0.9, p_holm=1.0),
        *(
            record(table="question", metric="R@1 difference: x - y", direction=direction, reference="none",
                   value=value, ci_low=value - 0.01, ci_high=value + 0.02, p_value=p, p_holm=p)
            for direction, value, p in (("text->image", -0.0001, 0.5), ("image->text", 0.03, 0.03))
        ),
    ]  # fmt: skip
    return make_run(found=[*main, *more])


def test_values_half_widths_and_marks(run: Path) -> None:
    main, comparisons = tables.build([run])
    assert main.columns == ("R@1, %", "skewness") and main.title == "A tiny study · text -> image · none".replace(
        "->", "→"
    )
    (none, corrected) = main.rows
    assert [cell.texts() for cell in none[1]] == [("50.0", "10.0"), ("−1.23", "0.10")]
    assert [cell.texts() for cell in corrected[1]] == [("61.3", "1.0"), ("–", "")]
    assert [cell.mark for _, cells in main.rows for cell in cells] == ["", "", "‡", ""]
    assert main.note.startswith("n = 4; ± half the width") and "against none" in main.note
    ((heads, cells),) = comparisons.rows
    assert heads == ("R@1: x - y",) and comparisons.columns == ("text → image, points", "image → text, points")
    assert [(*cell.texts(), cell.mark) for cell in cells] == [("0.0", "1.5", ""), ("3.0", "1.5", "†")]


def test_latex(run: Path) -> None:
    text = tables.render(tables.build([run]), "latex")
    assert r"a\_b \& 50 \% & beta 20 & train & $61.3 \pm 1.0^{\ddagger}$ & – \\" in text
    assert r"none &  & none & $50.0 \pm 10.0$ & $-1.23 \pm 0.10$ \\" in text
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 2
    for body in re.findall(r"\\midrule\n(.*?)\\bottomrule", text, re.S):
        width = {len(re.findall(r"(?<!\\)&", line)) for line in body.splitlines()}
        assert len(width) == 1


UNTEX = {escaped: plain for plain, escaped in tables._TEX.items()}


@given(st.text())
def test_latex_escapes_can_be_read_back(text: str) -> None:
    escaped = tables._tex(text)
    pattern = "|".join(sorted(map(re.escape, UNTEX), key=len, reverse=True))
    assert re.sub(pattern, lambda found: UNTEX[found[0]], escaped) == " ".join(text.split())
    assert not set("{}$&%#_~^<>|\\") & set(re.sub(pattern, "", escaped))


def test_markdown(run: Path) -> None:
    text = tables.render(tables.build([run]), "markdown")
    assert "| a\\_b & 50 % | beta 20 | train | 61.3 ± 1.0 ‡ | – |" in text
    for block in re.findall(r"(?:^\|.*\n)+", text, re.M):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1


@given(st.text())
def test_markdown_keeps_the_columns(text: str) -> None:
    escaped = tables._plain(text)
    assert re.sub(r"\\(.)", r"\1", escaped) == " ".join(text.split())
    assert not re.search(r"(?<!\\)(?:\\\\)*[|`*_<\[]", escaped)


def test_csv_is_unrounded(run: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(tables.render(tables.build([run]), "csv"))))
    first = next(row for row in rows if row["method"] == "a_b & 50 %" and row["metric"] == "R@1")
    assert (float(first["value"]), float(first["p_holm"]), first["mark"]) == (0.6125, 0.002, "‡")
    assert float(first["half_width"]) == (0.62 - 0.6) / 2 and first["settings"] == "beta 20"
    stored = json.loads((run / "results.json").read_text())
    assert len(rows) == sum(record["table"] != "difference" for record in stored)


@pytest.mark.parametrize("form", tables.FORMS)
def test_same_runs_same_bytes(run: Path, form: str) -> None:
    one, other = (tables.render(tables.build([run, run]), form) for _ in range(2))
    assert one == other and one.endswith("\n") and "\r" not in one


def test_bad_input(run: Path, make_run: Make, record: Make) -> None:
    with pytest.raises(InputError, match="nearest valid: latex"):
        tables.render(tables.build([run]), "latx")
    with pytest.raises(InputError, match="no table to print"):
        tables.render(tables.build([make_run("other", [record(table="gap")])]), "csv")
    with pytest.raises(InputError, match=r"holds no results\.json"):
        tables.build([make_run("none", found=())])


@given(st.floats(0, 1), st.floats(0, 1), st.none() | st.floats(0, 1))
def test_a_mark_is_a_small_p(low: float, high: float, p: float | None) -> None:
    low, high = sorted((low, high))
    about = {"study": "s", "dataset": "d", "model": None, "direction": None, "method": None}
    cell = tables.Cell(Record(**about, metric="R@1", value=low, ci_low=low, ci_high=high), p)
    assert cell.mark == ("" if p is None or p >= 0.05 else "†" if p >= 0.01 else "‡")
    value, half = cell.texts()
    assert abs(float(value) - 100 * low) <= 0.0501 and abs(float(half) - 50 * (high - low)) <= 0.0501


@pytest.mark.parametrize(
    ("metric", "share"),
    [("R@1 difference: A - B", True), ("mAP difference: a - b, same script", True), ("anti-hub share difference", True),
     ("mAP@R, released counting", True), ("R-precision", True), ("accuracy difference", True),
     ("gap share of 8 dimensions", True), ("share of texts in top-10 of texts", True), ("skewness", False),
     ("L2M difference", False), ("MRR", False)],
)  # fmt: skip
def test_what_is_printed_in_percent(metric: str, share: bool) -> None:
    assert tables.is_share(metric) == share


@given(st.floats(-1e3, 1e3), st.lists(st.floats(-1e3, 1e3), max_size=3))
def test_numbers_keep_the_decimals_of_the_first(value: float, others: list[float]) -> None:
    texts = tables.printed("skewness", value, *others)
    assert len({len(text.partition(".")[2]) for text in texts}) == 1 and "−0" not in {t.rstrip(".0") for t in texts}
    half = 0.501 * 10.0 ** -len(texts[0].partition(".")[2])
    assert all(abs(float(t.replace("−", "-")) - x) <= half for t, x in zip(texts, [value, *others], strict=True))
    assert tables.printed("skewness", None, *others) == ["–"] * len(texts)
