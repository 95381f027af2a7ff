"""The style table can be read in grey, style leaves no trace, and files depend on the figure alone."""

import hashlib
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from reprolib.errors import InputError, RunError
from reprolib.figures import hubness, save, style

NAMES = [
    "none", "is", "dis", "dual-is", "dual-dis", "csls", "gc", "dn", "nnn", "sinkhorn",
    "dual-bank-sinkhorn", "invgc", "invgc-localadj",
]  # fmt: skip


def luminance(colour):
    """Relative luminance of sRGB, as WCAG 2 defines it."""
    channels = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return float(np.dot(channels, (0.2126, 0.7152, 0.0722)))


def test_every_method_has_a_look_of_its_own_without_colour():
    assert list(style.METHODS) == NAMES
    assert len({look.label for look in style.METHODS.values()}) == len(NAMES)
    for one, other in itertools.combinations(style.METHODS.values(), 2):
        assert (one.marker, one.filled) != (other.marker, other.filled), (one, other)


def test_where_only_the_hue_differs_marker_or_line_does_too():
    values = [style.look_of_value(i, str(i)) for i in range(7)]
    for looks in (values, list(style.METHODS.values())):
        for one, other in itertools.combinations(looks, 2):
            close = abs(luminance(one.colour) - luminance(other.colour)) < 0.1
            assert not close or (one.marker, one.linestyle) != (other.marker, other.linestyle), (one, other)


def test_every_colour_stands_out_from_white_paper():
    for look in style.METHODS.values():
        assert 1.05 / (luminance(look.colour) + 0.05) >= 2.2, look


def test_an_unknown_method_is_answered_with_the_nearest_names():
    with pytest.raises(InputError, match="sinkhorn"):
        style.look("sinkhron")


def test_drawing_changes_no_global_state(records, tmp_path):
    before = dict(matplotlib.rcParams)
    hubness.bank_size(records).save(tmp_path, "bank")
    assert dict(matplotlib.rcParams) == before


def test_the_callers_style_does_not_reach_the_figure(records, tmp_path):
    plain = hubness.bank_size(records).save(tmp_path / "plain", "bank")
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "black", "lines.linewidth": 9}):
        styled = hubness.bank_size(records).save(tmp_path / "styled", "bank")
    assert plain["png"].read_bytes() == styled["png"].read_bytes()


def test_a_drawing_shows_itself_as_its_file_with_the_alternative_text(records, tmp_path):
    drawing = hubness.bank_size(records)
    data, metadata = drawing._repr_mimebundle_()
    assert data["image/png"] == drawing.save(tmp_path, "bank")["png"].read_bytes()
    assert "63.7" in metadata["image/png"]["alt"]


SCRIPT = """
import sys, matplotlib
sys.path.insert(0, sys.argv[1])
from conftest import captions, hub_rows, pictures, records
from reprolib.figures import hubness
make = lambda fixture: fixture._get_wrapped_function()()
hubness.temperature(make(records), methods=["is"]).save(sys.argv[2], "temperature")
hubs = make(hub_rows).query("hub < 4")
hubness.hubs(hubs, make(pictures), make(captions), "text->image").save(sys.argv[2], "hubs")
assert not {"torch", "matplotlib.pyplot"} & set(sys.modules), "figures must not import these"
"""


def test_files_are_the_same_bytes_in_every_process(tmp_path):
    runs = []
    for seed in ("1", "2"):
        command = [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), str(tmp_path / seed)]
        environment = os.environ | {"PYTHONHASHSEED": seed, "SOURCE_DATE_EPOCH": seed * 9}
        runs.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    for run in runs:
        assert run.wait() == 0, run.stderr.read()
    digests = [
        {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (tmp_path / seed).iterdir()}
        for seed in "12"
    ]
    assert len(digests[0]) == 8
    assert digests[0] == digests[1]


def test_a_figure_saved_twice_is_the_same_bytes(records, tmp_path):
    drawing = hubness.temperature(records)
    first, second = (drawing.save(tmp_path / name, "temperature") for name in "ab")
    assert all(first[suffix].read_bytes() == second[suffix].read_bytes() for suffix in first)
    assert json.loads(first["json"].read_text("utf-8")) == {"alt": drawing.alt, "caption": drawing.caption}
    pdf = first["pdf"].read_bytes()
    assert b"/CreationDate" not in pdf
    assert re.search(rb"/FontFile2", pdf), "fonts are embedded as TrueType (type 42)"


def test_save_refuses_a_path_as_name_and_an_empty_alternative_text(records, tmp_path):
    figure, alt, caption = hubness.bank_size(records)
    for name in ("", "a/b", ".."):
        with pytest.raises(InputError, match="name"):
            save(figure, tmp_path, name, alt, caption)
    with pytest.raises(InputError, match="alternative text"):
        save(figure, tmp_path, "bank", " ", caption)


def test_a_folder_that_cannot_be_written_is_one_sentence(records, tmp_path):
    (tmp_path / "file").write_text("")
    figure, alt, caption = hubness.bank_size(records)
    with pytest.raises(RunError, match="cannot write figure 'bank'"):
        save(figure, tmp_path / "file", "bank", alt, caption)
