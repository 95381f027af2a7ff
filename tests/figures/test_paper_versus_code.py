"""The figure of the paper-versus-code study: numbers in words, a panel per family, marks by weight, nothing cut off."""

import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from reprolib.errors import InputError
from reprolib.figures import paper_versus_code as draw
from reprolib.figures.style import DOUBLE

FLOORS = {"R@1": 0.004, "mAP@R": 0.003, "mAP": 0.003, "L2M": 0.00002, "skewness": 0.05}


def record(finding, metric, value, half, direction="text->image", p_holm=0.003, **parameters):
    """Return one effect of results.json."""
    known = {"finding": finding, "noise floor": FLOORS[metric]} | parameters
    return {
        "study": "paper-versus-code", "dataset": "glyphs", "model": "glyph-clip", "bank": "train, 20 %", "n": 500,
        "direction": direction, "method": "released", "reference": "paper", "parameters": known, "table": "audit",
        "metric": f"{metric} difference", "value": value, "ci_low": value - half, "ci_high": value + half,
        "p_value": p_holm, "p_holm": p_holm,
    }  # fmt: skip


@pytest.fixture(scope="module")
def rows():
    return [
        record("dbnorm-test-queries-unused", "R@1", -0.55, 0.03),
        record("dbnorm-test-queries-unused", "R@1", -0.494, 0.03, "image->text"),
        record("dbsn-labels", "R@1", -0.027, 0.026, p_holm=0.25),
        record("invgc-two-steps", "R@1", -0.001, 0.002, "image->text", p_holm=1.0),
        record("cross-the-gap-map-at-r", "mAP@R", 0.017, 0.004, "image->image", grouping="character"),
        record("cross-the-gap-map-at-r", "mAP@R", 0.001, 0.001, "image->image", grouping="script and kind"),
        record("cross-the-gap-template", "mAP", -0.005, 0.01, "image->image", p_holm=1.0, grouping="character"),
        record("mind-the-gap-unit-shift", "L2M", 0.149, 0.013, None, None),
        record("dbnorm-skewness-retrieved-only", "skewness", 0.392, 0.13, p_holm=None),
    ]


@pytest.fixture(scope="module")
def drawing(rows):
    return draw.forest(pd.DataFrame(rows))


@pytest.mark.parametrize(
    "words",
    [
        "dbnorm-test-queries-unused, R@1, text → image: −55.0 points (−58.0 to −52.0; p = 0.003), matters",
        "dbsn-labels, R@1, text → image: −2.7 points (−5.3 to −0.1; p = 0.250), open",
        "invgc-two-steps, R@1, image → text: −0.1 points (−0.3 to +0.1; p = 1.000), within noise",
        "mAP@R, image → image, same character: +1.7 points (+1.3 to +2.1; p = 0.003), matters",
        "L2M, images and texts: +0.149 (+0.136 to +0.162), matters",
        "Hubness: dbnorm-skewness-retrieved-only, skewness, text → image: +0.392 (+0.262 to +0.522), matters",
    ],
)
def test_alternative_text_states_the_numbers(drawing, words):
    assert words in drawing.alt


def test_words_for_tiny_effects_and_for_those_without_a_test(rows):
    assert draw.effect_in_words(rows[0] | {"p_holm": 0.0001}).endswith("p < 0.001)")
    assert "p" not in draw.effect_in_words(rows[0], tested=False).split(":")[1].replace("points", "")
    nothing = record("x", "R@1", 0.0, 0.0001)
    assert draw.effect_in_words(nothing, tested=False) == "R@1, text → image: 0.0 points (0.0 to 0.0)"


def test_a_panel_for_each_family_that_was_measured(rows, drawing):
    assert [ax.get_title(loc="left") for ax in drawing.figure.axes] == list(draw.FAMILIES)
    few = draw.forest(rows[:4]).figure.axes
    assert [ax.get_title(loc="left") for ax in few] == ["Recall"]


def test_every_axis_has_its_unit_and_every_row_its_finding(rows, drawing):
    units = [ax.get_xlabel().split("(")[1] for ax in drawing.figure.axes]
    assert units == ["points)", "points)", "no unit)", "no unit)"]
    shown = [label.get_text() for ax in drawing.figure.axes for label in ax.get_yticklabels()]
    assert sorted(shown) == sorted({row["parameters"]["finding"] for row in rows})


def test_marks_stand_at_their_values_and_are_filled_where_it_matters(rows, drawing):
    for ax, metrics in zip(drawing.figure.axes, draw.FAMILIES.values(), strict=True):
        here = [row for row in rows if draw.metric_of(row) in metrics]
        scale = 100 if metrics[0] in draw.SHARES else 1
        marks = [line for line in ax.lines if line.get_marker() not in ("None", "|", "")]
        assert [mark.get_xdata()[0] for mark in marks] == pytest.approx([scale * row["value"] for row in here])
        filled = [mark.get_markerfacecolor() != "white" for mark in marks]
        assert filled == [draw.weight_of(row) == "matters" for row in here]


def test_series_are_told_apart_without_colour(rows, drawing):
    looks = {}
    for ax, metrics in zip(drawing.figure.axes, draw.FAMILIES.values(), strict=True):
        here = [row for row in rows if draw.metric_of(row) in metrics]
        marks = [line for line in ax.lines if line.get_marker() not in ("None", "|", "")]
        for mark, row in zip(marks, here, strict=True):
            looks.setdefault(draw.series_of(row), set()).add(mark.get_marker())
    assert all(len(markers) == 1 for markers in looks.values())
    assert len(set.union(*looks.values())) == len(looks)


def test_nothing_is_cut_off_or_overlaps(drawing):
    figure = drawing.figure
    assert figure.get_figwidth() == DOUBLE
    for ax in figure.axes:
        low, high = ax.get_xlim()
        labels = [t for t in ax.get_xticklabels() if t.get_text() and low <= t.get_position()[0] <= high]
        for one, other in itertools.pairwise(t.get_window_extent() for t in labels):
            assert not one.overlaps(other)
        names = [t.get_window_extent() for t in ax.get_yticklabels()]
        assert not any(one.overlaps(other) for one, other in itertools.pairwise(names))
        for text in [*labels, *ax.get_yticklabels(), ax.xaxis.label, *figure.legends[0].get_texts()]:
            box = text.get_window_extent()
            assert figure.bbox.x0 - 1 <= box.x0 and box.x1 <= figure.bbox.x1 + 1, text
            assert figure.bbox.y0 - 1 <= box.y0 and box.y1 <= figure.bbox.y1 + 1, text
    for text in figure.findobj(Text):
        assert text.get_fontsize() >= 6.5 or not text.get_text()


def test_the_band_is_the_noise_floor(drawing):
    for ax, metrics in zip(drawing.figure.axes, draw.FAMILIES.values(), strict=True):
        band = ax.patches[0].get_extents().transformed(ax.transData.inverted())
        scale = 100 if metrics[0] in draw.SHARES else 1
        assert np.allclose([band.x0, band.x1], [-scale * FLOORS[metrics[0]], scale * FLOORS[metrics[0]]])


def test_what_is_missing_or_twice_is_named(rows):
    with pytest.raises(InputError, match="no record of table 'audit'"):
        draw.forest([row | {"table": "main"} for row in rows])
    with pytest.raises(InputError, match="several records for finding dbnorm-test-queries-unused"):
        draw.forest([*rows, rows[0]])
