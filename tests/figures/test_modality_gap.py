"""Every figure of the modality gap study: axes with units, numbers of the data in words, nothing cut off."""

import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from reprolib.errors import InputError
from reprolib.figures import modality_gap as draw
from reprolib.figures import style
from reprolib.figures.style import DOUBLE, SINGLE

DIRECTIONS = ("text->image", "image->text")
LAMBDAS, TAUS, TRAINED = (-0.5, 0.0, 0.5, 1.0), (0.01, 0.07, 1.0), 0.07


def record(table, metric, value, half=0.02, direction=None, method="none", parameters=None, **more):
    """Return one record of results.json."""
    return {
        "study": "modality-gap", "dataset": "glyphs", "model": "glyph-clip", "bank": "none", "n": 500,
        "direction": direction, "method": method, "parameters": parameters or {}, "metric": metric, "value": value,
        "ci_low": value - half, "ci_high": value + half, "table": table, "reference": None, "p_value": None,
        "p_holm": None, **more,
    }  # fmt: skip


@pytest.fixture(scope="module")
def gap_records():
    rows = [record("gap", "L2M", 0.851, 0.01), record("gap", "L2M", 1.136, 0.1, model="glyph-clip, random weights")]
    for lam in LAMBDAS:
        shift = {"method": "shift"}
        rows.append(record("landscape", "L2M", 0.85 * (1 - lam), np.nan, parameters={"lam": lam}, **shift))
        for direction in DIRECTIONS:
            rows.append(
                record("landscape", "R@1", 0.5 - 0.1 * lam**2, 0.02, direction, parameters={"lam": lam}, **shift)
            )
        for tau, direction in itertools.product(TAUS, (*DIRECTIONS, None)):
            loss = 2 + (lam - (0.0 if tau < 0.05 else 0.5)) ** 2
            rows.append(
                record("landscape", "InfoNCE", loss, 0.02, direction, parameters={"lam": lam, "tau": tau}, **shift)
            )
    for tau in TAUS:
        point = {"tau": tau, "tuned": "projections", "steps": 150}
        rows.append(record("temperature", "L2M", 0.3 - 0.1 * tau, 0.02, parameters=point, n=3, method=None))
        for direction in DIRECTIONS:
            rows.append(record("temperature", "R@1", 0.5, 0.02, direction, parameters=point, n=3, method=None))
    for place, method in enumerate(style.INTERVENTIONS):
        rows.append(record("main", "L2M", 0.85 - 0.09 * place, 0.02, method=method))
        for name in ("texts", "images"):
            rows.append(record("main", f"share of {name} in top-10 of {name}", 1 - 0.06 * place, 0.01, method=method))
        for direction in DIRECTIONS:
            rows.append(record("main", "R@1", 0.5 + 0.01 * place, 0.02, direction, method=method))
        if method != "none":
            more = {"method": method, "reference": "none", "p_holm": 0.001 if place > 4 else 0.5}
            rows += [record("difference", "R@1 difference", 0.01 * place, 0.02, d, **more) for d in DIRECTIONS]
            for name in ("texts", "images"):
                rows.append(record("difference", f"nDCG@10 mixed, {name} difference", 0.03 * place, 0.02, **more))
            rows.append(record("difference", "V-measure difference", 0.004 * place, 0.02, **more | {"p_holm": None}))
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def points():
    rng = np.random.default_rng(0)
    parts = []
    for weights, view, (modality, place) in itertools.product(
        ("trained", "random"), ("PCA", "t-SNE"), (("image", 0.0), ("text", 4.0))
    ):
        x, y = rng.normal(size=(2, 30))
        parts.append(pd.DataFrame({"set": "glyphs", "weights": weights, "view": view, "modality": modality,
                                   "pair": np.arange(30), "x": x + place, "y": y}))  # fmt: skip
    return pd.concat(parts, ignore_index=True)


@pytest.fixture(scope="module")
def energies():
    parts = []
    for weights, basis, decay in (("trained", "dimension", 0.5), ("trained", "principal axis", 0.2),
                                  ("random", "dimension", 0.9), ("none", "random direction", 0.95)):  # fmt: skip
        share = decay ** np.arange(64)
        share /= share.sum()
        parts.append(pd.DataFrame({"weights": weights, "basis": basis, "rank": np.arange(1, 65),
                                   "share": share, "cumulative": np.cumsum(share)}))  # fmt: skip
    return pd.concat(parts, ignore_index=True)


@pytest.fixture(scope="module")
def drawings(gap_records, points, energies):
    """Every figure, drawn once, by name."""
    several = pd.concat([points[points["view"] == "PCA"].assign(set=name) for name in ("coco-clip-500", "clasp-99")])
    untuned = gap_records[gap_records["table"] != "temperature"]
    return {
        "clouds": draw.clouds(points, seed=3),
        "feature sets": draw.clouds(several),
        "energy": draw.energy(energies, "glyphs"),
        "landscape": draw.landscape(gap_records, TRAINED),
        "temperature": draw.temperature(gap_records),
        "mixed_bias": draw.mixed_bias(gap_records),
        "gap_against_recall": draw.gap_against_recall(gap_records),
        "effects": draw.effects(gap_records),
        "overview": draw.overview(gap_records, points, energies, TRAINED),
        "overview, nothing tuned": draw.overview(untuned, points, energies, TRAINED),
    }


NUMBERS = {
    "clouds": ["30 pairs", "t-SNE, random weights"],
    "feature sets": ["clasp-99, trained weights: 30 pairs"],
    "energy": ["dimensions: 50.0 % in 1, 75.0 % in 2, 99.6 % in 8", "random direction: "],
    "landscape": ["τ = 0.01: least at λ = 0 with 2.000 (greatest 3.000)", "τ = 1: least at λ = 0.5",
                  "R@1 text → image by λ: 47.5 % (45.5 to 49.5) at -0.5"],
    "temperature": ["gap L2M: 0.30 (0.28 to 0.32) at τ = 0.01", "gap before fine-tuning 0.85 (0.84 to 0.86)",
                    "R@1 image → text: 50.0 % (48.0 to 52.0) at τ = 0.01"],
    "mixed_bias": ["Queries texts: none 100.0 % (99.0 to 101.0)", "mean-centring 82.0 %"],
    "gap_against_recall": ["Procrustes: L2M 0.31 (0.29 to 0.33), R@1 56.0 % (54.0 to 58.0)"],
    "effects": ["text → image: shift +1.0 (−1.0 to +3.0)", "optimal transport +9.0 (+7.0 to +11.0, clear)",
                "V-measure, of groups: shift +0.004", "optimal transport +0.036 (+0.016 to +0.056, clear)"],
    "overview": ["(b) dimensions: 50.0 %", "(d) gap L2M: 0.30", "(f) none: L2M 0.85"],
    "overview, nothing tuned": ["(d) 30 pairs"],
}  # fmt: skip


@pytest.mark.parametrize("name", NUMBERS)
def test_alternative_text_states_the_numbers(drawings, name):
    for number in NUMBERS[name]:
        assert number in drawings[name].alt


def test_captions_say_what_is_left_out_and_how_it_was_made(drawings):
    assert "seed 3" in drawings["clouds"].caption and "ConVIRT" not in drawings["clouds"].caption
    assert "ConVIRT features are left out" in drawings["feature sets"].caption
    assert "over 3 seeds" in drawings["temperature"].caption
    assert "t-SNE" in drawings["overview, nothing tuned"].caption
    for drawing in drawings.values():
        assert drawing.caption.endswith(".")


def test_every_axis_is_labelled_with_its_unit(drawings):
    for name, (figure, _, _) in drawings.items():
        for ax in (ax for ax in figure.axes if ax.axison):
            place = ax.get_subplotspec()
            assert ax.get_xlabel() or (name == "landscape" and not place.is_last_row()), name
            assert not place.is_first_col() or ax.get_ylabel() or ax.get_yticklabels()[0].get_text(), name
            for label in filter(None, (ax.get_xlabel(), ax.get_ylabel())):
                assert "(" in label, (name, label)


def test_nothing_is_cut_off_or_smaller_than_6_5_points(drawings):
    for name, (figure, _, _) in drawings.items():
        assert figure.get_figwidth() in (SINGLE, DOUBLE)
        hidden = []
        for ax in figure.axes:
            for axis, (low, high) in ((ax.xaxis, sorted(ax.get_xlim())), (ax.yaxis, sorted(ax.get_ylim()))):
                outside = (tick for tick in axis.get_major_ticks() if not low <= tick.get_loc() <= high)
                hidden += [label for tick in outside for label in (tick.label1, tick.label2)]
        for text in figure.findobj(Text):
            if not (text.get_visible() and text.get_text().strip()):
                continue
            assert text.get_fontsize() >= 6.5, (name, text)
            if text not in hidden:
                box, page = text.get_window_extent(), figure.bbox
                assert page.x0 - 1 <= box.x0 and box.x1 <= page.x1 + 1, (name, text)
                assert page.y0 - 1 <= box.y0 and box.y1 <= page.y1 + 1, (name, text)


def test_tick_labels_of_one_axis_do_not_overlap(drawings):
    for name, (figure, _, _) in drawings.items():
        for ax in (ax for ax in figure.axes if ax.axison):
            for labels, ends in ((ax.get_xticklabels(), ax.get_xlim()), (ax.get_yticklabels(), ax.get_ylim())):
                axis = 0 if labels is not None and ends == ax.get_xlim() else 1
                inside = [t for t in labels if t.get_text() and min(ends) <= t.get_position()[axis] <= max(ends)]
                boxes = [t.get_window_extent() for t in inside]
                for one, other in itertools.pairwise(boxes):
                    assert not one.overlaps(other), (name, inside)


def test_every_intervention_has_a_look_of_its_own_without_colour():
    looks = style.INTERVENTIONS
    assert looks["none"] == style.METHODS["none"] and style.look("mean-centring") == looks["mean-centring"]
    assert len({look.label for look in looks.values()}) == len(looks)
    for one, other in itertools.combinations(looks.values(), 2):
        assert (one.marker, one.filled) != (other.marker, other.filled), (one, other)


def test_every_intervention_of_the_catalogue_can_be_drawn():
    from reprolib.methods.interventions import INTERVENTIONS

    assert set(style.INTERVENTIONS) == set(INTERVENTIONS)


def test_the_least_loss_is_marked_at_its_place(drawings):
    ax = drawings["landscape"].figure.axes[0]
    rings = [line.get_xdata()[0] for line in ax.lines if line.get_markerfacecolor() == "none"]
    assert rings == [0.0, 0.5, 0.5]
    curves = [line for line in ax.lines if len(line.get_xdata()) == len(LAMBDAS)]
    for line in curves:
        assert min(line.get_ydata()) == 0 and max(line.get_ydata()) == 1


def test_clear_is_filled_and_not_clear_is_open(gap_records, drawings):
    ax = drawings["effects"].figure.axes[0]
    faces = [line.get_markerfacecolor() for line in ax.lines if line.get_marker() == "o"]
    rows = gap_records[(gap_records["metric"] == "R@1 difference") & (gap_records["direction"] == "text->image")]
    assert [face == "white" for face in faces] == list(rows["p_holm"] >= 0.05)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (draw.landscape, "no record of table 'landscape'"),
        (draw.temperature, "no record of table 'temperature'"),
        (draw.mixed_bias, "no record of table 'main'"),
        (draw.gap_against_recall, "no record of table 'main'"),
        (draw.effects, "no record of table 'difference'"),
    ],
)
def test_what_was_not_run_is_named(gap_records, function, said):
    other = gap_records[gap_records["table"] == "gap"]
    with pytest.raises(InputError, match=said):
        function(other, TRAINED) if function is draw.landscape else function(other)


def test_missing_columns_and_unknown_interventions_are_named(gap_records, points, energies):
    with pytest.raises(InputError, match="lacks the column 'pair'"):
        draw.clouds(points.drop(columns="pair"))
    with pytest.raises(InputError, match="no points"):
        draw.clouds(points.iloc[:0])
    with pytest.raises(InputError, match="lacks the column 'cumulative'"):
        draw.energy(energies.drop(columns="cumulative"))
    with pytest.raises(InputError, match="mean-centring"):
        draw.gap_against_recall(gap_records.replace({"method": {"mean-centring": "mean-centering"}}))
