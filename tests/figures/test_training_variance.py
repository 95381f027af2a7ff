"""The figures of the training-variance study: numbers in words, every level and seed drawn, nothing without data."""

import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from reprolib.errors import InputError
from reprolib.figures import training_variance as draw
from reprolib.figures.style import DOUBLE

DIRECTIONS = ("image->text", "text->image")


def record(table, metric, method, value, half, direction, reference=None, n=10, **parameters):
    """Return one record of results.json."""
    return {
        "study": "training-variance", "dataset": "glyphs", "model": "pixels", "bank": None, "n": n, "table": table,
        "metric": metric, "method": method, "reference": reference, "direction": direction, "parameters": parameters,
        "value": value, "ci_low": value - half, "ci_high": value + half, "p_value": None, "p_holm": None,
    }  # fmt: skip


@pytest.fixture(scope="module")
def rows():
    found = []
    for direction in DIRECTIONS:
        sign = 1 if direction == DIRECTIONS[0] else -1
        levels = (("loss", "sdm", -0.161), ("loss", "one-to-k", sign * 0.02), ("batch", "64", 0.004))
        for factor, level, value in levels:
            found.append(record("effect", "R@1 difference", level, value, 0.01, direction, "base", factor=factor))
        found.append(record("detectable", "R@1 difference", "glyphs", 0.018, 0.004, direction, seeds=10))
        found.append(record("detectable", "R@1 difference", "VSRN", 0.5, 0.1, direction, seeds=10))
        for loss, noise in itertools.product(("pc2", "infonce"), (0.4, 0.0)):
            value = 0.3 - 0.5 * noise + 0.02 * (loss == "pc2")
            found.append(record("noise", "R@1", loss, value, 0.01, direction, noise=noise))
        found.append(record("curation", "R@1", "all", 0.1, 0.01, direction, keep=1.0, noise=0.4))
        for how, keep in itertools.product(("score", "random"), (0.5, 0.8)):
            value = 0.1 + (1 - keep) * 0.2 * (how == "score")
            found.append(record("curation", "R@1", how, value, 0.01, direction, keep=keep, noise=0.4))
    return pd.DataFrame(found)


@pytest.fixture(scope="module")
def seeds():
    found = [
        {"model": model, "seed": seed, "direction": direction, "R@1": base + 0.001 * (seed % 4), "claimed": claimed,
         "repeats": 1 if model == "SGRAF-SGR" and seed == 5 else 0}
        for direction in DIRECTIONS
        for model, base, claimed in (("SGRAF-SGR", 0.75, 0.752), ("glyphs, base", 0.3, np.nan))
        for seed in range(1, 11)
    ]  # fmt: skip
    return pd.DataFrame(found)


@pytest.fixture(scope="module")
def drawings(rows, seeds):
    return {
        "effects": draw.effects(rows), "seeds": draw.seeds(seeds), "noise": draw.noise(rows),
        "curation": draw.curation(rows),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("effects", "loss sdm, not base, image → text: −16.1"),
        ("effects", "loss one-to-k, not base, text → image: −2.0"),
        ("seeds", "SGRAF-SGR, image → text: 75.0 to 75.3, claimed 75.2"),
        ("seeds", "glyphs, base, text → image: 30.0 to 30.3;"),
        ("noise", "PC² (robust), image → text: 32.0 % (31.0 to 33.0) at 0 %, 12.0 % (11.0 to 13.0) at 40 %"),
        ("curation", "highest alignment, text → image: 20.0 % (19.0 to 21.0) at 50 %, 14.0 % (13.0 to 15.0) at 80 %"),
        ("curation", "10.0 % (9.0 to 11.0) at 100 %"),
    ],
)
def test_alternative_text_states_the_numbers(drawings, name, words):
    assert words in drawings[name].alt


def test_effects_lie_on_one_axis_with_the_band_of_this_dataset(drawings):
    (ax,) = drawings["effects"].figure.axes
    names = [label.get_text() for label in sorted(ax.get_yticklabels(), key=lambda label: label.get_position()[1])]
    assert names == ["loss", "sdm, not base", "one-to-k, not base", "batch", "64, not base"]
    band = ax.patches[0]
    assert (band.get_x(), band.get_width()) == pytest.approx((-1.8, 3.6))
    assert len(ax.containers) == 6


def test_every_seed_is_a_point_and_a_repeated_one_is_open(drawings):
    for ax in drawings["seeds"].figure.axes:
        points = [line for line in ax.lines if line.get_marker() == "o"]
        assert sum(len(line.get_xdata()) for line in points) == 20
        opened = [line for line in points if line.get_markerfacecolor() == "white" and len(line.get_xdata())]
        assert [len(line.get_xdata()) for line in opened] == [1]
        assert sum(line.get_marker() == "D" for line in ax.lines) == 1


@pytest.mark.parametrize("name", ["effects", "seeds", "noise", "curation"])
def test_nothing_is_cut_off_or_overlaps(drawings, name):
    figure = drawings[name].figure
    assert figure.get_figwidth() == DOUBLE
    for ax in figure.axes:
        low, high = ax.get_xlim()
        labels = [t for t in ax.get_xticklabels() if t.get_text() and low <= t.get_position()[0] <= high]
        for one, other in itertools.pairwise(t.get_window_extent() for t in labels):
            assert not one.overlaps(other)
        rows = sorted(ax.get_yticklabels(), key=lambda t: t.get_position()[1]) if name in ("effects", "seeds") else []
        for one, other in itertools.pairwise(t.get_window_extent() for t in rows if t.get_text()):
            assert not one.overlaps(other)
        for text in [*labels, *rows, ax.xaxis.label, *figure.legends[0].get_texts()]:
            box = text.get_window_extent()
            assert figure.bbox.x0 - 1 <= box.x0 and box.x1 <= figure.bbox.x1 + 1, text
            assert figure.bbox.y0 - 1 <= box.y0 and box.y1 <= figure.bbox.y1 + 1, text
    for text in figure.findobj(Text):
        assert text.get_fontsize() >= 6.5 or not text.get_text()


def test_missing_parts_are_named(rows, seeds):
    other = rows[rows["table"] == "detectable"]
    for function, table in ((draw.effects, "effect"), (draw.noise, "noise"), (draw.curation, "curation")):
        with pytest.raises(InputError, match=table):
            function(other)
    with pytest.raises(InputError, match="repeats"):
        draw.seeds(seeds.drop(columns="repeats"))
    bare = draw.effects(rows[rows["table"] == "effect"])  # without the spread of the seeds there is no band
    assert not bare.figure.axes[0].patches
