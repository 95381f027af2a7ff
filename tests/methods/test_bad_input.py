"""Whatever is wrong with the input of a method, one sentence names it. Every method of the catalogue is tried."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from reprolib.errors import InputError
from reprolib.methods import CATALOGUE, catalogue, correct, fit, globally_corrected
from reprolib.methods.base import Bank
from reprolib.methods.graph_convolution import least_rate

ROWS = ("queries", "gallery", "query_bank", "gallery_bank")
SMALL = {"csls": {"k": 3}, "nnn": {"k": 3}, "invgc-localadj": {"pool_rate": 0.5}}
WITH = {name: method.parameters for name, method in CATALOGUE.items()}


def call(name: str, x, **parameters: object) -> torch.Tensor:
    given = x if isinstance(x, dict) else x._asdict()
    banks = {label: given[label] for label in ROWS[2:] if label in given}
    return correct(name, given["queries"], given["gallery"], **banks, **(SMALL.get(name, {}) | parameters))


@pytest.fixture
def data(make_data):
    return make_data("clustered", 0, n=4, m=7, bank=9, d=6)


@pytest.mark.parametrize("name", CATALOGUE)
def test_the_catalogue_says_what_a_method_is(name):
    method = CATALOGUE[name]
    assert catalogue()[name] == method.summary and len(method.summary) > 10
    assert method.source or name == "none"
    assert set(method.grid) <= set(method.parameters)
    assert set(method.needs) <= set(ROWS[2:])
    assert "Raises" in correct.__doc__ and method.fit.__doc__


@pytest.mark.parametrize("wrong", ["dual-si", "sinkhorm", "IS", "nothing of the kind", ""])
def test_an_unknown_method_is_answered_with_the_nearest(wrong, data):
    with pytest.raises(InputError, match=re.escape(f"unknown method {wrong!r}; nearest valid: ")):
        call(wrong, data)
    with pytest.raises(InputError, match="dual-is"):
        call("dual-si", data)


@pytest.mark.parametrize("name", CATALOGUE)
def test_an_unknown_parameter_is_named(name, data):
    with pytest.raises(InputError, match=f"unknown parameter of {name} 'bata'"):
        call(name, data, bata=1.0)


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_missing_or_empty_bank_is_named(name, data):
    for label in CATALOGUE[name].needs:
        given = data._asdict()
        empty = np.zeros((0, 6), np.float32)
        for nothing in (empty, torch.as_tensor(empty)):
            with pytest.raises(InputError, match=f"{name} needs a {label}, which is empty"):
                call(name, given | {label: nothing})
        del given[label]
        with pytest.raises(InputError, match=f"{name} needs a {label}, which was not given"):
            call(name, given)
    unused = {label: None for label in ROWS[2:] if label not in CATALOGUE[name].needs}
    assert call(name, data._asdict() | unused).isfinite().all()


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_bad_row_is_named_in_every_input(name, data):
    for label in ("queries", "gallery", *CATALOGUE[name].needs):
        for value, message in ((np.nan, "row 2 holds NaN or infinity"), (np.inf, "row 2 holds NaN"), (0.0, "row 2 is")):
            rows = getattr(data, label).copy()
            rows[2, slice(None) if value == 0 else 3] = value
            with pytest.raises(InputError, match=f"{label}: {message}"):
                call(name, data._replace(**{label: rows}))


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_wrong_shape_or_type_is_named(name, data):
    for label in ("queries", "gallery", *CATALOGUE[name].needs):
        rows = getattr(data, label)
        with pytest.raises(InputError, match="width"):
            call(name, data._replace(**{label: rows[:, :5]}))
        with pytest.raises(InputError, match=f"{label}: expected embeddings"):
            call(name, data._replace(**{label: rows[0]}))
        with pytest.raises(InputError, match=f"{label}: expected floating-point"):
            call(name, data._replace(**{label: np.ones(rows.shape, int)}))
    for label in CATALOGUE[name].needs:
        narrow = Bank(torch.ones(9, 5), label)
        with pytest.raises(InputError, match=f"{label} has width 5 and the gallery 6"):
            call(name, data._replace(**{label: narrow}))


WRONG = {
    "beta": (0, -1.0, np.nan, np.inf, "20"),
    "query_beta": (-1.0, np.nan, np.inf, "20"),
    "gallery_beta": (-0.1, np.nan, np.inf, None),
    "tau": (0.0, -0.01, np.nan, np.inf, "x"),
    "alpha": (-1.0, np.nan, np.inf, "x"),
    "k": (0, -1, 10, 2.5, "3"),
    "activation_k": (0, -1, 8, 2.5, "3"),
    "iterations": (-1, 2.5, "3"),
    "rate_gallery": (np.nan, np.inf, "1"),
    "rate_query": (np.nan, -np.inf, "1"),
    "pool_rate": (0.0, -0.5, 1.2, 0.05, np.nan, np.inf, "1"),
    "variant": ("release", "", None),
    "ungated": ("nothing", None),
}


def test_every_parameter_has_wrong_values_to_try():
    assert {parameter for parameters in WITH.values() for parameter in parameters} == set(WRONG)


@pytest.mark.parametrize(("name", "parameter"), [(name, p) for name in WITH for p in WITH[name]])
def test_a_wrong_value_is_named(name, parameter, data):
    variants = ("paper", "released") if "variant" in WITH[name] and parameter != "variant" else (None,)
    for variant in variants:
        for value in WRONG[parameter]:
            with pytest.raises(InputError, match=rf"\b{parameter}\b") as caught:
                call(name, data, **{parameter: value} | ({"variant": variant} if variant else {}))
            assert repr(value) in str(caught.value) or str(value) in str(caught.value)
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "parameter"), [(name, p) for name in WITH for p in WITH[name]])
def test_a_number_may_come_from_numpy(name, parameter, data):
    value = (WITH[name] | SMALL.get(name, {}))[parameter]
    if isinstance(value, str):
        return
    for kind in (np.int64, np.int32) if isinstance(value, int) else (np.float32, np.float64):
        if parameter == "pool_rate" or kind(value) == value:
            wanted, found = call(name, data, **{parameter: value}), call(name, data, **{parameter: kind(value)})
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


def test_a_pool_of_less_than_one_item_says_which_rate_would_do(data):
    with pytest.raises(InputError, match=r"pool_rate = 0.01 of a gallery_bank of 14 items is a pool of 0.*0\.072 to 1"):
        call("invgc-localadj", data, pool_rate=0.01)
    call("invgc-localadj", data, pool_rate=least_rate(9))  # of the smaller bank


def test_the_least_rate_holds_one_item_and_little_less_holds_none():
    for size in range(1, 3000):
        rate = float(f"{least_rate(size):.2g}")
        assert rate == least_rate(size) and int(rate * size) == 1 and 0.89 * rate * size < 1


def test_a_bank_whose_ranks_would_leave_no_room_for_the_similarity(data, monkeypatch):
    monkeypatch.setattr(globally_corrected, "_MOST", 3)
    with pytest.raises(InputError, match=r"gc: the query_bank holds \d+ items; valid is a bank of less than 3"):
        call("gc", data)


def test_both_temperatures_at_zero_leave_nothing_to_do(data):
    for name in ("dual-is", "dual-dis"):
        with pytest.raises(InputError, match="query_beta and gallery_beta are both 0"):
            call(name, data, query_beta=0.0, gallery_beta=0.0)


@pytest.mark.parametrize("name", CATALOGUE)
def test_the_smallest_input_is_fine(name, make_data):
    one = make_data("random", 1, n=1, m=1, bank=1, d=2)
    small = {"csls": {"k": 1}, "nnn": {"k": 1}, "invgc-localadj": {"pool_rate": 1.0}}.get(name, {})
    scores = correct(name, one.queries, one.gallery, **one.banks, **small)
    assert scores.shape == (1, 1) and bool(scores.isfinite().all())


@pytest.mark.parametrize("name", CATALOGUE)
def test_raw_embeddings_are_normalised_unless_told_otherwise(name, make_data):
    raw = make_data("raw", 2, n=4, m=7, bank=9)
    unit = type(raw)(*(rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in raw.double()))
    torch.testing.assert_close(call(name, raw), call(name, unit), rtol=1e-6, atol=1e-6)
    kept = call(name, raw, normalize=False)
    assert not torch.allclose(kept, call(name, raw)) or name == "gc"


def test_a_method_is_a_scorer_of_its_inputs(data):
    scorer = fit("none", data.queries, data.gallery, normalize=False)
    np.testing.assert_array_equal(scorer.queries.numpy(), data.queries)
    np.testing.assert_array_equal(scorer.gallery.numpy(), data.gallery)
