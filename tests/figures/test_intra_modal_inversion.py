"""Every figure of the intra-modal inversion study: axes with units, numbers of the data in words, nothing cut off."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from reprolib.errors import InputError
from reprolib.figures import intra_modal_inversion as draw
from reprolib.figures.style import DOUBLE, SINGLE

CASES = (("image->image", "character"), ("image->image", "script and kind"), ("text->text", "script and kind"))
VALUES = {"none": 0.6, "inversion": 0.55, "inversion-stopped": 0.62, "inversion-average": 0.61, "random-token": 0.02,
          "random-map": 0.58, "mean-centring": 0.6, "pca": 0.63, "whitening": 0.65, "isoclip": 0.64}  # fmt: skip


def _record(table, case, method, metric, value, half=0.02, **more):
    parameters = {"grouping": case[1]} | more.pop("parameters", {})
    return {
        "study": "intra-modal-inversion", "dataset": "glyphs", "model": "glyph-clip", "direction": case[0],
        "method": method, "parameters": parameters, "metric": metric, "value": value, "ci_low": value - half,
        "ci_high": value + half, "n": 200, "table": table, "reference": None, "p_value": None, "p_holm": None, **more,
    }  # fmt: skip


@pytest.fixture(scope="module")
def rows():
    """Records of every table that is drawn."""
    found = []
    for place, case in enumerate(CASES):
        for method, value in VALUES.items():
            chosen = {"parameters": {"steps": 20}} if method == "inversion-stopped" else {}
            found.append(_record("main", case, method, "mAP", value - 0.1 * place, **chosen))
            if method != "none":
                p = {"reference": "none", "p_value": 0.001, "p_holm": 0.0004 if value > 0.62 else 0.3}
                found.append(_record("difference", case, method, "mAP difference", value - VALUES["none"], **p))
        found.append(_record("curve", case, "none", "mAP", 0.6))
        lines = [{"tokens": n} | ({"template": "a photo of {}"} if case[0] == "image->image" else {}) for n in (1, 4)]
        for line in lines:
            for step in (0, 1, 5, 20, 150):
                height = 0.6 * (1 - np.exp(-step / 4)) + 0.01 * line["tokens"]
                at = {"parameters": line | {"steps": step}}
                found.append(_record("curve", case, "inversion", "mAP", height, **at))
                found.append(_record("curve", case, "inversion", "loss", 0.1 + 0.9 * np.exp(-step / 20), **at))
        for tau, gap, difference in ((None, 0.85, 0.03), (0.01, 0.8, 0.0), (1.0, 0.1, -0.05)) if place < 2 else ():
            at = {"parameters": {"temperature": tau}}
            found.append(_record("gap", case, "none", "modality gap", gap, **at))
            found.append(_record("gap", case, "none", "mAP", 0.6, **at))
            found.append(_record("gap", case, "inversion", "mAP", 0.6 + difference, **at))
            found.append(_record("gap", case, "inversion", "mAP difference", difference, **at))
    return pd.DataFrame(found)


def _neighbours(names, task):
    found = []
    for query in range(5):
        for method, precision in (("none", 0.5), ("inversion", 0.3 + 0.1 * query)):
            found.append({
                "direction": task, "grouping": "character", "dataset": "glyphs", "model": "glyph-clip",
                "query_id": names[query], "method": method, "AP": precision,
                "neighbours": [names[(query + i) % len(names)] for i in range(1, 11)],
                "correct": [i % 3 == 0 for i in range(10)],
            })  # fmt: skip
    return pd.DataFrame(found)


@pytest.fixture(scope="module")
def drawings(rows, pictures, captions):
    """Every figure, drawn once, by name."""
    return {
        "methods": draw.methods(rows),
        "methods, one": draw.methods(rows[rows["direction"] == "text->text"]),
        "steps": draw.steps(rows),
        "steps, harder grouping": draw.steps(rows, {"image->image": "script and kind"}),
        "gap_table": draw.gap_table(rows),
        "neighbours": draw.neighbours(_neighbours([f"i{i}" for i in range(20)], "image->image"), pictures, captions),
        "neighbours, texts": draw.neighbours(_neighbours([f"t{i}" for i in range(20)], "text->text"), {}, captions),
    }


NUMBERS = {
    "methods": [
        "image → image, same character: native 60.0 % (58.0 to 62.0); inverted, all steps 55.0 % (53.0 to 57.0), "
        "difference −5.0 (−7.0 to −3.0), Holm p = 0.300",
        "whitening 65.0 % (63.0 to 67.0), difference +5.0 (+3.0 to +7.0), Holm p < 0.001",
        "Not drawn: random token, 0 steps, 2.0 % (0.0 to 4.0) in image → image, same character",
        "text → text, same script and kind: native 40.0 %",
    ],
    "steps": ["native is at 60.0 %", "1 token, “a photo of {}”: highest 61.0 % (59.0 to 63.0) at 150 steps",
              "loss 1.00 at 0, 0.10 at the end", "validation stops at 20 steps", "4 patches"],
    "steps, harder grouping": ["image → image, same script and kind"],
    "gap_table": ["as trained: gap 0.85, native 60.0 % (58.0 to 62.0), inverted 63.0 % (61.0 to 65.0), "
                  "difference +3.0 (+1.0 to +5.0) points", "τ = 1: gap 0.10", "−5.0 (−7.0 to −3.0)"],
    "neighbours": ["inverted, all steps: 3 of the 7 nearest are right, AP 30 %"],
    "neighbours, texts": ["native: 2 of the 4 nearest are right, AP 50 %", "$5 and $x_: native"],
}  # fmt: skip


def test_labels_of_five_panels_stand_apart(rows):
    more = rows[rows["direction"] == "text->text"]
    for locale in ("da", "fr"):
        renamed = [at | {"grouping": f"label in {locale}"} for at in more["parameters"]]
        rows = pd.concat([rows, more.assign(parameters=renamed)])
    figure = draw.methods(rows).figure
    figure.draw_without_rendering()
    for row in range(2):
        boxes = [ax.xaxis.label.get_window_extent() for ax in figure.axes[5 * row : 5 * row + 5]]
        assert all(one.x1 < other.x0 for one, other in pairwise(boxes))


@pytest.mark.parametrize("name", NUMBERS)
def test_alternative_text_states_the_numbers(drawings, name):
    for number in NUMBERS[name]:
        assert number in drawings[name].alt, drawings[name].alt


def test_every_axis_is_labelled_and_captions_are_sentences(drawings):
    for name, (figure, _, caption) in drawings.items():
        assert caption.endswith(".") and figure.get_figwidth() in (SINGLE, DOUBLE), name
        for ax in (ax for ax in figure.axes if ax.axison):
            place = ax.get_subplotspec()
            if place.is_last_row():
                assert ax.get_xlabel(), name
            if place.is_first_col():
                assert ax.get_ylabel() or ax.get_yticklabels()[0].get_text(), name


def test_nothing_is_cut_off_or_smaller_than_6_5_points(drawings):
    for name, (figure, _, _) in drawings.items():
        texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
        assert min(text.get_fontsize() for text in texts) >= 6.5, name
        drawn, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
        assert drawn.x0 > -0.01 and drawn.y0 > -0.01, name
        assert drawn.x1 < width + 0.01 and drawn.y1 < height + 0.01, name


def test_columns_of_the_gap_table_do_not_overlap(drawings):
    figure = drawings["gap_table"].figure
    boxes = [text.get_window_extent() for text in figure.findobj(Text) if text.get_text().strip()]
    for place, one in enumerate(boxes):
        assert not any(one.overlaps(other) for other in boxes[place + 1 :])


def test_a_marker_is_filled_where_the_difference_is_clear(drawings):
    drawn = {method: value for method, value in VALUES.items() if method != "random-token"}
    upper, lower = drawings["methods, one"].figure.axes
    for ax, names in ((upper, list(drawn)), (lower, list(drawn)[1:])):
        points = [line for line in ax.lines if line.get_marker() not in ("None", None, "")]
        filled = [line.get_markerfacecolor() != "white" for line in points]
        assert filled == [name == "none" or drawn[name] > 0.62 for name in names]
    assert [line.get_xdata()[0] for line in points] == pytest.approx([100 * (drawn[n] - 0.6) for n in list(drawn)[1:]])


def test_the_winner_of_the_gap_table_is_bold_where_the_interval_excludes_zero(drawings):
    bold = [text.get_text() for text in drawings["gap_table"].figure.findobj(Text) if text.get_weight() == "bold"]
    assert bold[-4:] == ["63.0 (61.0 to 65.0)", "60.0 (58.0 to 62.0)"] * 2


def test_the_ring_stands_on_the_first_line_at_the_chosen_steps(drawings):
    upper = drawings["steps"].figure.axes[0]
    ring = next(line for line in upper.lines if line.get_markersize() == 9)
    assert ring.get_xdata().tolist() == [20]
    assert ring.get_ydata() == pytest.approx(100 * (0.6 * (1 - np.exp(-5)) + 0.01))


def test_what_is_missing_or_unknown_is_named(rows):
    with pytest.raises(InputError, match="no record of table 'curve'"):
        draw.steps(rows[rows["table"] == "main"])
    strange = rows.assign(method=rows["method"].replace("pca", "pac"))
    with pytest.raises(InputError, match=r"unknown method 'pac'; nearest valid: .*pca"):
        draw.methods(strange)
    with pytest.raises(InputError, match="one task and one grouping at a time"):
        both = [_neighbours(["a"] * 20, "image->image"), _neighbours(["a"] * 20, "text->text")]
        draw.neighbours(pd.concat(both))
    with pytest.raises(InputError, match="lacks the column 'AP'"):
        draw.neighbours(_neighbours(["a"] * 20, "image->image").drop(columns="AP"))
