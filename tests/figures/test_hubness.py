"""Every figure of the hubness study: axes with units, numbers of the data in words, nothing cut off."""

import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from reprolib.errors import InputError
from reprolib.figures import hubness
from reprolib.figures.hub_table import fit
from reprolib.figures.style import DOUBLE, RC, SINGLE, text_width

LONG = {"validation": "given in the file (bank_image, bank_text)"}


@pytest.fixture(scope="session")
def drawings(records, occurrences, hub_rows, pictures, captions):
    """Every figure, drawn once, by name."""
    one = records[records["direction"] == "text->image"]
    rate = {"x": "rate_gallery", "table": "invgc"}
    return {
        "k_occurrence": hubness.k_occurrence(occurrences),
        "k_occurrence, one direction": hubness.k_occurrence(occurrences, ["none", "is"], "text->image"),
        "temperature": hubness.temperature(records),
        "temperature, validation": hubness.temperature(one, {"is": 20, "dis": {"beta": 30}}, "validation"),
        "bank_size": hubness.bank_size(records),
        "bank_source": hubness.bank_source(records),
        "bank_source, own file": hubness.bank_source(one.replace({"bank": LONG})),
        "skewness_against_recall": hubness.skewness_against_recall(records),
        "differences": hubness.differences(records),
        "differences, one": hubness.differences(one[one["reference"] != "is"]),
        "gallery_size": hubness.ablation(records, "gallery_size"),
        "k": hubness.ablation(records, "k", methods=["csls"]),
        "invgc by pool": hubness.ablation(records, series="pool_rate", **rate),
        "invgc panels": hubness.ablation(records, panel="pool_rate", **rate),
        "hubs": hubness.hubs(hub_rows, pictures, captions, "text->image"),
        "hubs, text gallery": hubness.hubs(hub_rows, pictures, captions, "image->text"),
        "hubs, ids": hubness.hubs(hub_rows, direction="text->image"),
    }


NUMBERS = {
    "k_occurrence": ["text → image", "largest N_k", "mean N_k 10.0"],
    "temperature": [
        "none is at 59.7 % (57.7 to 61.7)",
        "R@1 of IS peaks at β = 30 with 64.8 % (62.8 to 66.8)",
        "DualIS (gallery β = 0.1)",
        "image → text: none is at 63.6 %",
    ],
    "temperature, validation": ["validation split", "tuned on validation is 20, with 64.5 %"],
    "bank_size": ["none is at 59.7 %", "to 64.8 % (62.8 to 66.8) at 5,000"],
    "bank_source": ["validation: 63.3 % (61.3 to 65.3)", "none is at 63.6 %"],
    "skewness_against_recall": ["NNN: skewness 0.62 (0.42 to 0.82), R@1 64.3 % (62.3 to 66.3)"],
    "differences": ["against none: IS +5.1 (+3.9 to +6.3, Holm p = 0.002)", "against tuned IS", "CSLS −2.0"],
    "gallery_size": ["none from 69.7 % (67.7 to 71.7) at 100, to 59.7 % (57.7 to 61.7) at 1,000"],
    "invgc by pool": ["pool = 0.05 from"],
    "invgc panels": ["image → text, pool = 0.1: none is at 63.6 %"],
    "hubs": ["in the top 10 of 226 queries", "i14 (119)", "a right answer to 19 of the 84"],
    "hubs, text gallery": ["$5 and $x_ (119)"],
}


@pytest.mark.parametrize("name", NUMBERS)
def test_alternative_text_states_the_numbers(drawings, name):
    for number in NUMBERS[name]:
        assert number in drawings[name].alt


def test_every_axis_is_labelled_and_numbers_have_units(drawings):
    for name, (figure, _, caption) in drawings.items():
        assert caption.endswith(".")
        for ax in (ax for ax in figure.axes if ax.axison):
            place = ax.get_subplotspec()
            if place.is_last_row() or "k_occurrence" in name:
                assert ax.get_xlabel(), name
            if place.is_first_col():
                assert ax.get_ylabel() or ax.get_yticklabels()[0].get_text(), name
            for label in filter(None, (ax.get_xlabel(), ax.get_ylabel())):
                unit = "(" in label or "β" in label or "rate" in label or label == "bank"
                assert unit, (name, label)


def _ticks_outside(ax):
    """Labels of ticks beyond the limits of an axis, which matplotlib keeps but does not draw."""
    for axis, (low, high) in ((ax.xaxis, sorted(ax.get_xlim())), (ax.yaxis, sorted(ax.get_ylim()))):
        for tick in axis.get_major_ticks():
            if not low <= tick.get_loc() <= high:
                yield from (tick.label1, tick.label2)


def test_nothing_is_cut_off_or_smaller_than_6_5_points(drawings):
    for name, (figure, _, _) in drawings.items():
        assert figure.get_figwidth() in (SINGLE, DOUBLE)
        hidden = [tick for ax in figure.axes for tick in _ticks_outside(ax)]
        for text in figure.findobj(Text):
            if not (text.get_visible() and text.get_text().strip()):
                continue
            assert text.get_fontsize() >= 6.5, (name, text)
            if text in hidden:
                continue
            box, page = text.get_window_extent(), figure.bbox
            assert page.x0 - 1 <= box.x0 and box.x1 <= page.x1 + 1, (name, text)
            assert page.y0 - 1 <= box.y0 and box.y1 <= page.y1 + 1, (name, text)


def test_texts_of_one_panel_do_not_overlap(drawings):
    for name, (figure, _, _) in drawings.items():
        for ax in (ax for ax in figure.axes if ax.axison):
            for labels in (ax.get_xticklabels(), ax.get_yticklabels()):
                inside = [t.get_window_extent() for t in labels if t.get_text() and t.get_visible()]
                inside = [box for box in inside if ax.bbox.expanded(1.6, 1.6).overlaps(box)]
                for one, other in itertools.pairwise(inside):
                    assert not one.overlaps(other), name


def test_a_ring_marks_each_tuned_value_and_only_where_it_is_known(records):
    untuned = records[records["table"] != "main"]
    assert "tuned" not in hubness.temperature(untuned).caption.replace("no gallery β was tuned", "")
    rings = hubness.temperature(records, {"text->image": {"is": 10.0}}).alt.count("tuned on validation is 10")
    assert rings == 1


def test_a_dual_method_without_tuned_gallery_temperature_takes_the_best_and_says_so(records):
    drawing = hubness.temperature(records, tuned={}, methods=["dual-is"])
    assert "DualIS (gallery β = 0.1)" in drawing.alt
    assert "at the best one here" in drawing.caption


def test_k_occurrence_states_the_shares_of_a_small_case():
    n_k = [0, 0, 0, 1, 1, 2, 4, 32]
    frame = pd.DataFrame({"direction": "text->image", "method": "none", "replicate": "a", "n_k": n_k})
    drawing = hubness.k_occurrence(frame, k=5)
    assert "none: 37.5 % of items with N_k = 0, largest N_k 32; mean N_k 5.0" in drawing.alt
    upper = drawing.figure.axes[0]
    line = next(line for line in upper.lines if line.get_label() == "none")
    np.testing.assert_allclose(line.get_xdata(), [1, 2, 4, 32])
    np.testing.assert_allclose(line.get_ydata(), [62.5, 37.5, 25.0, 12.5])


def test_no_method_is_named_twice_on_an_axis(drawings):
    for name, drawing in drawings.items():
        for ax in drawing.figure.axes:
            labels = [label.get_text() for label in ax.get_yticklabels() if label.get_text().strip()]
            assert len(labels) == len(set(labels)), name


def test_a_method_of_one_direction_only_is_drawn_there(occurrences):
    only = occurrences[(occurrences["method"] == "none") | (occurrences["direction"] == "text->image")]
    words = hubness.k_occurrence(only, ["none", "gc"]).alt.split("image → text: ")
    assert "GC" in words[0] and "GC" not in words[1]


def test_several_records_per_point_are_split_by_the_parameter_that_differs(records, drawings):
    alone = hubness.ablation(records, "rate_gallery", table="invgc")
    assert alone.alt == drawings["invgc by pool"].alt
    dense = records[(records["table"] == "invgc") & records["parameters"].map(lambda p: p.get("pool_rate") == 0.1)]
    dense = dense.assign(method="invgc", parameters=[{"rate_gallery": p["rate_gallery"]} for p in dense["parameters"]])
    both = hubness.ablation(pd.concat([records, dense]), "rate_gallery", table="invgc").alt
    assert "InvGC from 60.4 %" in both and "pool = 0.05 from" in both


def test_values_tuned_per_split_are_each_marked(records):
    tuned = {"is": {"beta": [20.0, 30.0, 20.0]}, "dual-is": {"query_beta": [30.0, 50.0], "gallery_beta": 1.0}}
    alt = hubness.temperature(records, tuned, methods=["is", "dual-is"]).alt
    assert alt.count("a β tuned on validation is 20") == alt.count("a β tuned on validation is 50") == 2


def test_differences_are_filled_only_below_five_percent(drawings, records):
    rows = records[(records["reference"] == "none") & (records["direction"] == "text->image")]
    faces = {
        line.get_ydata()[0]: line.get_markerfacecolor()
        for line in drawings["differences"].figure.axes[0].lines
        if line.get_marker() == "o"
    }
    assert len(faces) == len(rows) == 12
    assert sum(face != "white" for face in faces.values()) == (rows["p_holm"] < 0.05).sum()


def test_hubs_show_pictures_where_there_are_any(drawings, hub_rows):
    assert len(drawings["hubs"].figure.axes[0].images) == 20
    assert len(drawings["hubs, ids"].figure.axes[0].images) == 0
    shown = hub_rows.loc[hub_rows["direction"] == "image->text", "query_ids"].map(len).sum()
    assert len(drawings["hubs, text gallery"].figure.axes[0].images) == shown


def test_right_and_wrong_queries_differ_in_more_than_colour(drawings):
    boxes = drawings["hubs, text gallery"].figure.axes[0].patches
    assert len({(box.get_linestyle() == "-", box.get_linewidth()) for box in boxes}) == 2
    signs = {text.get_text() for text in drawings["hubs"].figure.axes[0].texts}
    assert {"✓", "✗"} <= signs


def test_long_texts_are_cut_to_their_column():
    text = "greek small letter alpha with psili and perispomeni and ypogegrammeni"
    lines = fit(text, 0.9, 3).split("\n")
    assert len(lines) == 3 and lines[-1].endswith("…")
    assert all(text_width(line, 6.5) <= 0.9 for line in lines)
    assert fit("short", 0.9, 3) == "short"
    assert fit("a" * 80, 0.9, 3).endswith("…")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r: hubness.temperature(r[r["table"] == "main"]), "no record of table 'temperature'"),
        (lambda r: hubness.bank_size(r, methods=["sinkhron"]), "unknown method 'sinkhron'"),
        (lambda r: hubness.bank_size(r, methods=["gc"]), "no record of method 'gc'"),
        (lambda r: hubness.ablation(r, "k", series="tau"), "has the parameters 'tau' and 'direction'"),
        (lambda r: hubness.ablation(r, "tau", table="k"), "has a number as parameter 'tau'"),
        (lambda r: hubness.differences(r.drop(columns="ci_low")), "lacks the column 'ci_low'"),
        (lambda r: hubness.skewness_against_recall(pd.concat([r, r])), "several records for"),
        (lambda r: hubness.k_occurrence(pd.DataFrame({"n_k": [1]})), "lacks the column 'direction'"),
    ],
)
def test_what_cannot_be_drawn_is_one_sentence(records, call, message):
    with pytest.raises(InputError, match=message):
        call(records)


def test_hubs_of_two_directions_must_be_told_apart(hub_rows):
    with pytest.raises(InputError, match="name one direction"):
        hubness.hubs(hub_rows)


def test_records_may_be_a_list_and_lack_optional_columns():
    row = {"direction": "text->image", "method": "none", "value": 0.5, "ci_low": 0.4, "ci_high": 0.6}
    rows = [
        row | {"metric": "R@1"},
        row | {"metric": "skewness", "value": 2.0, "ci_low": None, "ci_high": None},
    ]
    assert "none: skewness 2.00, R@1 50.0 % (40.0 to 60.0)" in hubness.skewness_against_recall(rows).alt


def test_the_style_is_that_of_the_printed_page():
    assert RC["pdf.fonttype"] == 42
    assert min(RC[f"{axis}tick.labelsize"] for axis in "xy") == RC["legend.fontsize"] == 7
