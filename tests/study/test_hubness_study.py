"""The protocol of the hubness study, on small synthetic features."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch

from reprolib import ranking
from reprolib.errors import InputError
from reprolib.loaders import EmbeddingData, Replicate, Split
from reprolib.methods import CATALOGUE, Bank
from reprolib.metrics import retrieval_metrics
from reprolib.study import hubness, records
from reprolib.study.hubness import Study
from reprolib.study.protocol import Side, oriented

METHODS = ["is", "dis", "dual-is", "dual-dis", "nnn", "gc", "invgc"]
SMALL = {"betas": [5, 20, 50], "gallery_betas": [0, 1], "bank_sizes": [0.5, 1.0], "gallery_sizes": [0.5, 1.0]}


def _split(n: int, seed: int, prefix: str, texts: int = 2) -> Split:
    """Return n images with ``texts`` texts each, around shared concepts, with an offset between the modalities."""
    rng = np.random.default_rng(seed)
    concepts = rng.normal(size=(n, 24))
    text = np.repeat(concepts, texts, 0) + 1.1 * rng.normal(size=(n * texts, 24)) + 0.8
    relevance = np.kron(np.eye(n, dtype=bool), np.ones((1, texts), bool))
    return Split(
        (concepts + 0.3 * rng.normal(size=concepts.shape) - 0.8).astype(np.float32),
        text.astype(np.float32),
        relevance,
        np.array([f"{prefix}-i{i}" for i in range(n)]),
        np.array([f"{prefix}-t{i}" for i in range(n * texts)]),
    )


def _data(test_seed: int = 3, replicates: int = 2) -> EmbeddingData:
    parts = tuple(
        Replicate(
            _split(60, 10 + r, f"bank{r}"),
            _split(40, 20 + r, f"validation{r}"),
            _split(50, test_seed + r, f"test{r}"),
            f"seeded split {r + 1} of {replicates}",
            "train, 20 %",
        )
        for r in range(replicates)
    )
    return EmbeddingData("synthetic", "none", "0" * 64, parts, (), "CC0-1.0")


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch):
    """Return a function that makes a study over given data."""

    def build(data: EmbeddingData | None = None, **parameters: object) -> Study:
        monkeypatch.setattr(hubness, "load_embeddings", lambda *_, **__: data or _data())
        return Study(**{"methods": METHODS, "k": 5, "n_bootstrap": 200, "n_permutations": 199, **SMALL, **parameters})

    return build


@pytest.fixture
def finished(make) -> Study:
    study = make()
    study.tune()
    for step in ("evaluate", "compare", "question", "temperature", "bank_size", "bank_sources", "gallery_size"):
        getattr(study, step)()
    study.neighbours()
    study.rates()
    return study


def test_every_record_is_named_and_has_its_interval(finished: Study) -> None:
    frame = finished.table()
    assert set(frame["table"]) == {
        "main", "difference", "question", "temperature", "bank_size", "bank_source", "gallery_size", "k", "invgc",
    }  # fmt: skip
    assert frame["bank"].notna().all() and (frame["n"] > 0).all()
    shares = frame[frame["metric"].str.startswith("R@") & ~frame["metric"].str.contains("difference")]
    assert ((shares["ci_low"] <= shares["value"]) & (shares["value"] <= shares["ci_high"])).all()
    assert (shares["ci_high"] - shares["ci_low"]).median() > 0.01  # 100 to 200 queries leave real doubt
    assert {"p_value", "p_holm"} <= set(frame) and (frame["p_holm"].dropna() >= frame["p_value"].dropna()).all()


def test_main_equals_the_metrics_computed_directly(finished: Study) -> None:
    main = finished.table("main").set_index(["direction", "method", "metric"])["value"]
    for direction in finished.directions:
        each = []
        for replicate in finished.data.replicates:
            q, g, relevance = oriented(replicate.test, direction)
            each.append(retrieval_metrics(q, g, relevance)["R@1"])
        assert main[direction, "none", "R@1"] == pytest.approx(np.mean(each))
        for method in METHODS:  # the fast path of a grid search and the full ranking agree on every query
            for task, chosen in zip(finished.tasks[direction], finished.tuned[direction, method], strict=True):
                scorer = task.fit(task.test, method, chosen)
                result = ranking.rank(scorer, task.test.relevance, 1)
                assert (task.test.best(scorer) == result.topk[:, 0]).all(), method


def test_one_configuration_has_one_number_in_every_table(finished: Study) -> None:
    frame = finished.table()
    for direction in finished.directions:
        here = frame[(frame["direction"] == direction) & (frame["metric"] == "R@1") & (frame["method"] == "is")]
        main = here[here["table"] == "main"]["value"].iloc[0]
        full_bank = here[(here["table"] == "bank_size")].iloc[-1]["value"]
        full_gallery = here[(here["table"] == "gallery_size")].iloc[-1]["value"]
        own_bank = here[(here["table"] == "bank_source") & (here["bank"] == "train, 20 %")]["value"].iloc[0]
        assert main == full_bank == full_gallery == own_bank


def test_tuning_never_sees_the_test_split(make) -> None:
    chosen = []
    for test_seed in (3, 300):
        study = make(_data(test_seed))
        study.tune()
        chosen.append(study.tuned)
    assert chosen[0] == chosen[1]


def test_ties_in_tuning_go_to_the_first_candidate(make) -> None:
    study = make(betas=[20, 20.0000001, 20.0000002])
    study.tune()
    assert all(p["beta"] == 20 for p in study.tuned["text->image", "is"])


def test_dual_is_without_its_gallery_bank_is_is(make) -> None:
    study = make(gallery_betas=[0, 1e-9])
    study.tune()
    question = study.question().set_index(["direction", "step"])["points"]
    assert (question[:, "DualIS, tuned - IS, tuned"] == 0).all()
    assert "the two are the same method" in study.answer() and study.answer().count("\n") == 1


def test_one_method_alone_goes_through_every_step(make) -> None:
    study = make(methods=["gc"])
    study.tune()
    for step in ("evaluate", "compare", "temperature", "bank_size", "bank_sources", "gallery_size"):
        getattr(study, step)()
    assert study.question().empty and "takes both" in study.answer()
    assert study.neighbours().empty and study.rates().empty
    assert set(study.hubs()["method"]) == {"none", "gc"}
    assert {"bank_size", "bank_source", "gallery_size", "difference"} <= set(study.table()["table"])


def test_the_conclusion_names_exactly_the_clear_differences(finished: Study) -> None:
    rows = finished.table("difference").copy()
    lines = finished.conclusion().splitlines()
    assert len(lines) == rows.groupby(["direction", "reference"]).ngroups
    for line, (_, here) in zip(lines, rows.groupby(["direction", "reference"], sort=False), strict=True):
        better, worse = line.split("worse")
        for row in here.to_dict("records"):
            clear = row["p_holm"] < 0.05
            assert (f"`{row['method']}` (" in better) == (clear and row["value"] > 0)
            assert (f"`{row['method']}` (" in worse) == (clear and row["value"] < 0)


def test_question_steps_add_up(finished: Study) -> None:
    steps = finished.table("question").set_index(["direction", "metric"])["value"]
    for direction in finished.directions:
        names = [f"R@1 difference: {one} - {other}" for one, other in hubness.STEPS]
        first, second, third, _, whole = (steps[direction, name] for name in names)
        assert first + second + third == pytest.approx(whole)


def test_records_and_artefacts_are_the_same_bytes_each_time(make, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    for name in ("one", "two"):
        folder = tmp_path / name
        monkeypatch.setenv("REPROLIB_RUN_DIR", str(folder))
        study = make(methods=["is", "dual-is"])
        study.tune()
        study.evaluate()
        study.compare()
        assert study.save() == folder
        written.append((folder / "results.json").read_bytes())
        occurrences = pd.read_parquet(folder / "occurrences.parquet")
        per_query = pd.read_parquet(folder / "per_query.parquet")
        hubs = pd.read_parquet(folder / "hubs.parquet")
        assert json.loads((folder / "identities.json").read_text()) == {"synthetic with none": "0" * 64}
    assert written[0] == written[1]
    assert records.load(tmp_path / "one")[0].study == "hubness"
    queries = per_query.groupby(["direction", "method"]).size()
    counts = occurrences.groupby(["direction", "method"])["n_k"].sum()
    assert (counts == 5 * queries).all()  # every query fills k places
    assert set(per_query.groupby("direction")["cluster"].nunique()) == {100}  # 2 replicates of 50 images
    for hub in hubs.to_dict("records"):
        assert len(hub["query_ids"]) == len(hub["correct"]) <= 12 and hub["n_k"] >= len(hub["query_ids"])


def test_clusters_join_what_belongs_together() -> None:
    split = _split(5, 0, "x", texts=3)
    by_text, by_image = Side(split, "text->image", "cpu"), Side(split, "image->text", "cpu")
    assert list(by_image.clusters) == [f"x-i{i}" for i in range(5)]
    assert list(by_text.clusters) == [f"x-i{i}" for i in range(5) for _ in range(3)]


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"methods": ["inverted"]}, "unknown method 'inverted'"),
        ({"directions": ["text->picture"]}, "unknown direction"),
        ({"betas": []}, "parameter betas is empty"),
        ({"methods": ["none"]}, "methods names no correction"),
        ({"k": 51}, "k = 51 exceeds the smallest test gallery, 50"),
    ],
)
def test_bad_parameters_are_one_sentence(make, parameters: dict, said: str) -> None:
    with pytest.raises(InputError, match=said) as error:
        make(**parameters)
    assert "\n" not in str(error.value)


def test_a_bank_too_small_for_a_method_is_named(make) -> None:
    data = _data(replicates=1)
    tiny = _split(3, 1, "tiny", texts=1)
    part = data.replicates[0]
    small = Replicate(tiny, part.validation, part.test, part.label, "train, 1 %")
    study = make(EmbeddingData("synthetic", "none", "0" * 64, (small,), (), "CC0-1.0"), methods=["invgc-localadj"])
    with pytest.raises(InputError, match="invgc-localadj: the train, 1 % bank is too small"):
        study.tune()


def test_transductive_is_asked_for_by_name_and_named_in_every_record(tmp_path) -> None:
    split = _split(60, 5, "own", texts=1)
    path = tmp_path / "own.npz"
    np.savez(path, image=split.image, text=split.text)
    for source in ("train", "transductive"):
        study = Study(embeddings=str(path), methods=["is"], bank_source=source, n_splits=1, k=5, **SMALL)
        study.tune()
        study.evaluate()
        shared = set(study.data.replicates[0].bank.text_ids) & set(study.data.replicates[0].test.text_ids)
        assert bool(shared) == (source == "transductive")
        banks = set(study.table("main")["bank"])
        assert all(("transductive" in bank) == (source == "transductive") for bank in banks - {"none"})


def test_one_slow_method_alone_goes_through_every_step(make) -> None:
    study = make(methods=["invgc-localadj"], bank_sizes=[0.05, 1.0], directions=["text->image"])
    study.tune()
    for step in ("evaluate", "bank_size", "bank_sources", "gallery_size", "rates"):
        getattr(study, step)()
    assert len(study.table("bank_size")) == 2


def test_a_cell_may_be_run_again(make) -> None:
    study = make(methods=["is"])
    first, second = study.tune(), study.tune()
    pd.testing.assert_frame_equal(first, second)
    assert all(len(chosen) == 2 for chosen in study.tuned.values())
    study.evaluate()


def test_without_a_gallery_bank_nothing_is_forced_on(make) -> None:
    study = make(methods=["is", "dual-is"], gallery_betas=[0])
    study.tune()
    study.evaluate()
    asked = study.question()
    assert len(asked) == 2 * 4 and not asked["step"].str.contains("gallery bank on").any()
    assert study.answer()


def test_an_empty_grid_is_told_by_what_makes_it_empty(make) -> None:
    with pytest.raises(InputError, match="sinkhorn: tau = 1 / beta is tried from beta = 5 on, and betas has no such"):
        make(methods=["sinkhorn"], betas=[1, 2]).tune()
    with pytest.raises(InputError, match="parameter gallery_betas is empty"):
        make(gallery_betas=[])


def test_one_bank_alone_is_tuned_and_told_for_each_replicate(make, monkeypatch: pytest.MonkeyPatch) -> None:
    study = make(methods=["is", "dual-is"], betas=[5, 50], directions=["text->image"])
    study.tune()
    first, hits = study.tasks["text->image"][0].validation, Side.hits

    def hit(side: Side, scorer: ranking.Scorer) -> np.ndarray:  # the two validation parts want other temperatures
        found = hits(side, scorer)
        sides = [task.validation for task in study.tasks["text->image"]]
        if side not in sides:
            return found
        asked.append(side is first)
        return np.full(len(found), float((len(asked) % 2 == 1) == (side is first)))

    asked: list[bool] = []
    monkeypatch.setattr(Side, "hits", hit)
    table = study.bank_sources()
    alone = table[table["bank"] == "query bank only"]["parameters"].tolist()
    assert alone and all("5" in str(point) and "50" in str(point) for point in alone)


def test_the_best_item_is_that_of_the_ranking_where_two_all_but_agree() -> None:
    split = Split(
        np.array([[1.0, 1e-3], [1.0, 0.0]], np.float32), np.array([[1.0, 0.0]], np.float32),
        np.array([[True], [True]]), np.array(["a", "b"]), np.array(["t"]),
    )  # fmt: skip
    side = Side(split, "text->image", "cpu")
    bank = Bank(torch.tensor([[0.0, 1.0]]), "query bank")
    scorer = CATALOGUE["gc"].fit(side.queries, side.gallery, bank, None)
    assert side.best(scorer).tolist() == ranking.topk(scorer, 1)[:, 0].tolist() == [1]
