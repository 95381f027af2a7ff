"""The views compute what the studies do: the command that a view gives is resolved and run, and compared."""

from __future__ import annotations

import shlex
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reprolib import ranking
from reprolib.errors import InputError
from reprolib.explore.common import source
from reprolib.explore.gap import FOUND, GapView, clouds, landscape
from reprolib.explore.gap import State as GapState
from reprolib.explore.hubs import ANSWERS, BANK_SHARES, HUBS, METRICS, QUERIES, HubView, histogram, lists_of, numbers
from reprolib.explore.hubs import State as HubState
from reprolib.methods import CATALOGUE
from reprolib.ranking import Scorer
from reprolib.study import hubness, modality_gap
from reprolib.study.parameters import find_study

QUICK = {"n_bootstrap": 20, "n_permutations": 19}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write 150 made-up pairs, whose modalities lie apart and where some images are near to everything."""
    rng = np.random.default_rng(0)
    image = rng.normal(size=(150, 12)) * rng.uniform(0.2, 2, size=(150, 1)) + 0.4
    path = tmp_path_factory.mktemp("own") / "own.npz"
    np.savez(path, image=image, text=image + 1.2 * rng.normal(size=image.shape) - 0.8)
    return path


@pytest.fixture(scope="module")
def view(own: Path) -> HubView:
    return HubView(own)


@pytest.fixture(scope="module")
def gap_view(own: Path) -> GapView:
    return GapView(own)


def resolved(command: str) -> dict[str, Any]:
    """Return all parameters of the study that a command runs, read as the command line reads them."""
    words = shlex.split(command)
    assert words[:2] == ["reprolib", "run"] and words[3::3] == ["-p"] * ((len(words) - 3) // 3)
    return find_study(words[2]).resolve(dict(zip(words[4::3], words[5::3], strict=True)), texts=True)


# --- hubs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "beta", "direction", "k", "share"),
    [
        ("is", 20.0, "text->image", 10, 0.2),
        ("dual-is", 5.0, "image->text", 3, 0.2),
        ("nnn", 50.0, "text->image", 5, 0.5),
        ("dual-dis", 30.0, "text->image", 10, 0.2),
        ("gc", 20.0, "image->text", 1, 0.2),
        ("sinkhorn", 10.0, "text->image", 10, 0.2),
    ],
)
def test_hubs_are_those_of_the_study(
    view: HubView, method: str, beta: float, direction: str, k: int, share: float
) -> None:
    state = HubState(direction, method, beta, k, share)
    result = view.compute(state)
    study = hubness.Study(**resolved(view.command(state)) | QUICK)
    study.tune()
    main = study.evaluate().set_index(["method", "metric"])["value"]
    assert list(result.parameters) == study.tuned[direction, method]
    for when, name in (("before", "none"), ("after", method)):
        assert result.metrics[when] == {metric: pytest.approx(main[name, metric], abs=1e-12) for metric in METRICS}
        occurrences = study.occurrences()
        counts = occurrences.loc[occurrences["method"] == name, "n_k"]
        assert np.array_equal(result.counts[when], counts)
    expected = study.hubs(method, HUBS, QUERIES)
    assert result.hubs.equals(expected)


def test_large_sides_are_ranked_alike(view: HubView, monkeypatch: pytest.MonkeyPatch) -> None:
    state = HubState(method="dis", k=4)
    expected = view.compute(state)
    monkeypatch.setattr(sys.modules[HubView.__module__], "_KEPT", 0)
    view.study()._lists.clear()
    view.study()._ordered.clear()
    found = view.compute(state)
    assert found.metrics == expected.metrics and found.hubs.equals(expected.hubs)


def test_every_method_can_be_chosen(view: HubView) -> None:
    for method in CATALOGUE:
        result = view.compute(HubState(method=method))
        assert 0 <= result.metrics["after"]["R@1"] <= 1
        assert numbers(result) and "N_k" in histogram(result)


def test_states_that_are_computed_at_the_same_time_do_not_meet(own: Path) -> None:
    states = [HubState(direction, method, beta, k) for method in ("csls", "dual-is", "gc")
              for direction, beta, k in (("text->image", 5.0, 3), ("image->text", 20.0, 10))]  # fmt: skip
    one, several = HubView(own), HubView(own)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(several.compute, states))
    for state, result in zip(states, found, strict=True):
        expected = one.compute(state)
        assert result.metrics == expected.metrics and result.hubs.equals(expected.hubs)
        assert result.parameters == expected.parameters


def test_a_move_that_was_computed_ahead_tries_nothing(own: Path) -> None:
    view, state = HubView(own), HubState(method="nnn", k=5)
    view.compute(state)
    moves = list(view.around(state))
    changed = [sum(getattr(move, name) != getattr(state, name) for name in asdict(state)) for move in moves]
    assert set(changed) == {1} and len(set(moves)) == len(moves)
    assert {move.method for move in moves} == set(CATALOGUE) and {move.bank_share for move in moves} < set(BANK_SHARES)
    for move in moves:
        view.compute(move)
    told: list[str] = []
    for move in moves:
        view.compute(replace(move, k=9), told.append)  # k is quick, whatever it is
    assert not any(told)
    told.clear()
    view.compute(replace(state, bank_share=0.5), told.append)
    assert told[0] == "Loading the data with a bank of 50 %"
    assert any(words.startswith("NNN: trying parameters on validation, 2 of ") for words in told)


def test_every_bank_has_the_same_sides() -> None:
    view = HubView("glyphs")
    one, other = view.study(0.02), view.study(0.05)
    for direction in hubness.DIRECTIONS:
        mine, theirs = one._every[direction][0], other._every[direction][0]
        assert mine.test is theirs.test and mine.validation is theirs.validation
        assert len(mine.query_bank) < len(theirs.query_bank)


def test_a_ranking_is_that_of_the_scores(view: HubView) -> None:
    state = HubState(method="dual-dis")
    result = view.compute(state)
    query = result.hubs["query_ids"].iloc[0][0]
    study = view.study().at(state, bool)
    task = study.tasks[state.direction][0]
    row = list(task.test.query_ids).index(query)
    for method, found in view.ranking(state, query).items():
        scores = task.fit(task.test, method, study.tuned[state.direction, method][0]).scores()[row].numpy()
        order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:ANSWERS]
        assert found == [(str(task.test.gallery_ids[i]), bool(task.test.relevance[row, i])) for i in order]
    hub = result.hubs.iloc[0]
    task_queries = {q: np.isin(hub["gallery_id"], [i for i, _ in view.ranking(state, q, state.k)["none"]])
                    for q in hub["query_ids"]}  # fmt: skip
    assert all(task_queries.values())  # every query of a hub has it among its k best


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"method": "i"}, "unknown method 'i'; nearest valid: "),
        ({"direction": "text"}, "unknown direction 'text'"),
        ({"k": 0}, "k = 0 is not between 1 and the size of the gallery, 90"),
        ({"k": 91}, "k = 91 is not between"),
        ({"method": "sinkhorn", "beta": 1.0}, "sinkhorn has no parameters to try at beta = 1"),
    ],
)
def test_a_state_that_is_not_valid_is_named(view: HubView, change: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        view.compute(replace(HubState(), **change))


@given(
    st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 60), st.integers(1, 60), st.booleans(), st.booleans()
)
def test_lists_from_products_are_those_of_the_ranking(
    seed: int, n: int, m: int, k: int, biased: bool, dynamic: bool
) -> None:
    rng = np.random.default_rng(seed)
    queries, gallery = (torch.from_numpy(rng.integers(-2, 3, (size, 4)).astype(np.float32)) for size in (n, m))
    bias = torch.from_numpy(rng.integers(-2, 3, (2 if dynamic else 1, m)).astype(np.float32)) if biased else None
    state = torch.from_numpy(rng.integers(0, 2, n)) if biased and dynamic else None
    scorer, k = Scorer(queries, gallery, bias, state), min(k, m)
    error = rng.uniform(-0.9, 0.9, (n, m)) * scorer.error_bound()  # products are only so near
    products = ((queries @ gallery.T).numpy() + error).astype(np.float32)
    before = products.copy()
    best, top = lists_of(scorer, products, k)
    assert np.array_equal(best, ranking.topk(scorer, 1)[:, 0])
    assert np.array_equal(np.sort(top), np.sort(ranking.topk(scorer, k)))
    assert np.array_equal(products, before)


# --- gap ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("lam", "tau"), [(0.35, None), (-0.5, 0.1), (1.0, 1.0)])
def test_a_shift_is_that_of_the_landscape(gap_view: GapView, lam: float, tau: float | None) -> None:
    state = GapState(lam=lam, tau=tau)
    result = gap_view.compute(state)
    study = modality_gap.Study(**resolved(gap_view.command(state)) | QUICK)
    study.landscape()
    rows = study.table("landscape")
    for when, at in (("before", 0.0), ("after", lam)):
        here = rows[[p["lam"] == at and p.get("tau", result.tau) == result.tau for p in rows["parameters"]]]
        found = {
            ("L2M", None): "L2M", ("R@1", "text->image"): "R@1 text->image", ("R@1", "image->text"): "R@1 image->text",
            ("InfoNCE", None): "InfoNCE",
        }  # fmt: skip
        for (metric, direction), name in found.items():
            row = here[
                (here["metric"] == metric)
                & (here["direction"].isna() if direction is None else here["direction"] == direction)
            ]
            assert result.metrics[when][name] == pytest.approx(row["value"].item(), rel=1e-12), (when, name)


def test_centring_is_that_of_the_main_table(gap_view: GapView) -> None:
    state = GapState(centred=True)
    result = gap_view.compute(state)
    study = modality_gap.Study(**resolved(gap_view.command(state)) | QUICK)
    study.tune()
    measured = study.measure("mean-centring")
    for direction in modality_gap.DIRECTIONS:
        assert result.metrics["after"][f"R@1 {direction}"] == measured.values[direction]["R@1"].mean()
    everything = np.ones(len(study.clusters), dtype=bool)
    assert result.metrics["after"]["L2M"] == pytest.approx(measured.statistics[None](everything)["L2M"], abs=1e-9)


@pytest.mark.parametrize("direction", modality_gap.DIRECTIONS)
def test_a_mixed_ranking_leaves_out_the_query_alone(gap_view: GapView, direction: str) -> None:
    state = GapState(lam=0.5, direction=direction)
    result = gap_view.compute(state)
    for when, split in result.pairs.items():
        own, other = ("text", "image") if direction == "text->image" else ("image", "text")
        unit = {n: getattr(split, n) / np.linalg.norm(getattr(split, n), axis=1, keepdims=True) for n in (own, other)}
        row = list(getattr(split, f"{own}_ids")).index(result.query)
        scores = np.concatenate([unit[own], unit[other]]) @ unit[own][row]
        scores[row] = -np.inf
        ids = [(str(i), n) for n in (own, other) for i in getattr(split, f"{n}_ids")]
        best = np.argsort(-scores, kind="stable")[:FOUND]
        assert [(item, name) for item, name, _ in result.mixed[when]] == [ids[i] for i in best]
        assert [pair for *_, pair in result.mixed[when]] == [i == len(unit[own]) + row for i in best]


def test_the_plane_does_not_move_with_the_pairs(gap_view: GapView) -> None:
    far, near = (gap_view.compute(GapState(lam=lam)) for lam in (-0.5, 0.9))
    assert np.array_equal(gap_view.places(far.pairs["before"]), gap_view.places(near.pairs["before"]))
    distances = []
    for result in (far, near):
        places = gap_view.places(result.pairs["after"])
        distances.append(np.linalg.norm(places[0].mean(0) - places[1].mean(0)))
        assert "pairs in the plane" in clouds(gap_view, result) and "least at" in landscape(result)
    assert distances[1] < distances[0] / 2


@pytest.mark.parametrize(
    ("change", "said"),
    [({"lam": np.nan}, "a shift of nan"), ({"tau": 0.0}, "tau above 0"), ({"query": "x"}, "unknown query 'x'"),
     ({"direction": "both"}, "unknown direction 'both'")],
)  # fmt: skip
def test_a_gap_that_is_not_valid_is_named(gap_view: GapView, change: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        gap_view.compute(replace(GapState(), **change))


# --- what an explorer is given --------------------------------------------------------------------------------


def test_arrays_are_written_where_a_command_can_name_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPROLIB_RUN_DIR", str(tmp_path))
    rng = np.random.default_rng(0)
    image = rng.normal(size=(60, 6))
    text = image + rng.normal(size=image.shape)
    given = source((image, text))
    assert given == source((image, text)) and given != source((text, image))
    with np.load(given["embeddings"]) as stored:
        assert np.array_equal(stored["image"], image) and np.array_equal(stored["text"], text)
    assert source("glyphs") == {"dataset": "glyphs"} and source(Path("x.npz")) == {"embeddings": "x.npz"}
    with pytest.raises(InputError, match="not a list"):
        source([image, text])
