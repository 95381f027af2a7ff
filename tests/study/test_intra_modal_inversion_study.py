"""The protocol of the intra-modal inversion study, on small synthetic features and a stand-in for the inversion."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import scipy.stats
import torch

from reprolib import ranking
from reprolib.errors import InputError
from reprolib.loaders import EmbeddingData, Replicate, Split, glyphs
from reprolib.loaders.readers import Search
from reprolib.mapped import opened
from reprolib.methods.intra_modal import projections_of
from reprolib.methods.inversion import Inverted
from reprolib.study import intra_modal_inversion as module
from reprolib.study import records
from reprolib.study.intra_modal_inversion import Study

WIDTH, PEAK = 16, 5  # of the embeddings; the step at which the stand-in is best
SMALL = {
    "oti_steps": 10, "ovi_steps": 20, "checkpoints": [1, 5, 10], "tokens": [1, 2], "templates": ["a photo of {}"],
    "n_images": 40, "n_texts": 30, "n_curve": 12, "n_narrow": 20, "narrow_share": 1.0, "taus": [0.1], "k": 3,
    "n_bootstrap": 200, "n_permutations": 199,
}  # fmt: skip


def _split(n: int, seed: int, prefix: str) -> Split:
    """Return n concepts with three images and two texts each, and a gap between the modalities."""
    rng = np.random.default_rng(seed)
    concepts = rng.normal(size=(n, WIDTH))
    image, text = (
        np.repeat(concepts, times, 0) + 0.9 * rng.normal(size=(n * times, WIDTH)) + shift
        for times, shift in ((3, 0.7), (2, -0.7))
    )
    return Split(
        image.astype(np.float32),
        text.astype(np.float32),
        np.kron(np.eye(n, dtype=bool), np.ones((3, 2), bool)),
        np.array([f"{prefix}-i{i}" for i in range(3 * n)]),
        np.array([f"{prefix}-t{i}" for i in range(2 * n)]),
    )


def _data(test_seed: int = 3) -> EmbeddingData:
    parts = Replicate(
        _split(40, 1, "bank"),
        _split(30, 2, "validation"),
        _split(35, test_seed, "test"),
        "official split",
        "train, 20 %",
    )
    captions = {str(name): f"text {name}" for part in (parts.validation, parts.test) for name in part.text_ids}
    return EmbeddingData("synthetic", "toy", "0" * 64, (parts,), (), "CC0-1.0", captions)


def _stand_in(encoder, features, ids, settings, *, checkpoints, cache) -> Inverted:
    """Move each query from noise of its own to itself at PEAK, and on to other noise: a curve with a summit."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    noise = np.stack([np.random.default_rng([settings.seed, len(i), *i.encode()]).normal(size=(2, WIDTH)) for i in ids])
    kept = []
    for step in checkpoints:
        away = 0.5 * abs(step - PEAK) / PEAK
        found = unit + (away if step != 0 else 100) * noise[:, int(step > PEAK)]
        kept.append(found / np.linalg.norm(found, axis=1, keepdims=True))
    losses = np.linspace(1, 0.1, settings.steps + 1)[:, None] * np.ones(len(ids))
    tokens = np.zeros((len(ids), settings.tokens, 4), np.float32)
    return Inverted(np.array(kept, np.float32), losses.astype(np.float32), tokens, tuple(checkpoints), "fast", 0.5)


def _builder(monkeypatch: pytest.MonkeyPatch):
    """Return a function that makes a study over given data, with a model (a stand-in) or without."""
    rng = np.random.default_rng(0)
    weights = [torch.from_numpy(rng.normal(size=(WIDTH, width)).astype(np.float32)) for width in (24, 20)]
    model = SimpleNamespace(
        visual_projection=SimpleNamespace(weight=weights[0]), text_projection=SimpleNamespace(weight=weights[1])
    )
    encoder = SimpleNamespace(model=model, identity="toy")
    monkeypatch.setattr(module, "load_encoder", lambda *_: encoder)
    monkeypatch.setattr(module.inversion, "oti", _stand_in)
    monkeypatch.setattr(module.inversion, "ovi", _stand_in)

    def build(data: EmbeddingData | None = None, raw: bool = True, encode_texts=None, **parameters: object) -> Study:
        encoder.encode_texts = encode_texts
        monkeypatch.setattr(module, "load_embeddings", lambda *_, **__: data or _data())
        monkeypatch.setattr(module, "load_manifest", lambda _: SimpleNamespace(kind="items" if raw else "features"))
        return Study(**{**SMALL, **parameters})

    return build


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch):
    return _builder(monkeypatch)


@pytest.fixture(scope="module")
def finished():
    with pytest.MonkeyPatch.context() as patch:
        yield _finished(_builder(patch)())


def _finished(study: Study) -> Study:
    study.invert()
    study.tune()
    for step in ("evaluate", "compare", "question", "curve", "counterpart", "hubness"):
        getattr(study, step)()
    return study


def _unit(rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float64)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def _average_precision(scores: np.ndarray, own: int, relevant: np.ndarray) -> float:
    """Return AP of one query by definition; ``own`` is dropped, ties go to the lower index."""
    order = [item for item in sorted(range(len(scores)), key=lambda item: (-scores[item], item)) if item != own]
    hits, total = 0, 0.0
    for place, item in enumerate(order, start=1):
        if relevant[item]:
            hits += 1
            total += hits / place
    return total / hits


def test_every_record_is_named_and_has_its_interval(finished: Study, tmp_path, monkeypatch) -> None:
    frame = finished.table()
    assert set(frame["table"]) == {"main", "difference", "average", "question", "curve", "counterpart", "hubness"}
    assert {p["grouping"] for p in frame.loc[frame["table"] == "main", "parameters"]} == {"item"}
    assert set(frame.loc[frame["table"] == "main", "direction"]) == {"image->image", "text->text"}
    assert (frame["n"] > 0).all() and frame["value"].notna().all()
    shares = frame[frame["metric"].isin(["mAP", "mAP@R", "R@1"])]
    assert ((shares["ci_low"] <= shares["value"]) & (shares["value"] <= shares["ci_high"])).all()
    assert (frame["p_holm"].dropna() >= frame["p_value"][frame["p_holm"].notna()]).all()
    monkeypatch.setenv(records.RUN_DIRECTORY, str(tmp_path))
    folder = finished.save()
    assert len(records.load(folder)) == len(frame)
    assert set(pd.read_parquet(folder / "neighbours.parquet")["method"]) == {"none", "inversion"}
    assert json.loads((folder / "identities.json").read_text()) == {"synthetic with toy": "0" * 64}


def test_native_search_equals_a_slow_reference(finished: Study) -> None:
    main = finished.table("main").set_index(["direction", "method", "metric"])["value"]
    split = finished.data.replicates[0].test
    for task, rows, owners in (
        ("image->image", split.image, np.arange(105) // 3),
        ("text->text", split.text, np.arange(70) // 2),
    ):
        unit = _unit(rows).astype(np.float64)
        part = finished.parts[task, "test"]
        values = []
        for query in part.rows:
            scores = (unit @ unit[query]).astype(np.float32)
            values.append(_average_precision(scores, query, owners == owners[query]))
        assert main[task, "none", "mAP"] == pytest.approx(np.mean(values), abs=1e-12)
        np.testing.assert_allclose(finished.measure((task, "item"), "none")["mAP"], values)


def test_only_the_query_is_inverted_and_the_controls_map_both(finished: Study) -> None:
    part = finished.parts["image->image", "test"]
    for method in ("inversion", "inversion-stopped", "inversion-average", "random-token"):
        queries, gallery = finished.embedded(part, method, finished.tuned[("image->image", "item"), method])
        assert gallery is part.gallery, method
        at_summit = method in ("inversion-stopped", "inversion-average")  # where the stand-in is the query itself
        assert torch.allclose(queries, part.queries, atol=1e-6) == at_summit, method
    for method in finished.controls:
        queries, gallery = finished.embedded(part, method, finished.tuned[("image->image", "item"), method])
        assert torch.equal(queries, gallery[part.rows]), method
    centre = _unit(finished.data.replicates[0].bank.image).astype(np.float64).mean(0)
    expected = _unit(part.gallery.double().numpy() - centre)
    _, mapped = finished.embedded(part, "mean-centring", {})
    np.testing.assert_allclose(mapped.numpy(), expected, atol=1e-6)
    half = finished.embedded(part, "inversion-average", {"steps": PEAK})[0]
    np.testing.assert_allclose(half.numpy(), part.queries.numpy(), atol=1e-6)  # at the summit both are the same


def test_early_stopping_finds_the_summit_on_validation_alone(make) -> None:
    chosen = []
    for test_seed in (3, 300):
        study = make(_data(test_seed))
        study.tune()
        chosen.append(study.tuned)
        assert study.tuned[("image->image", "item"), "inversion-stopped"] == {"steps": PEAK}
        assert study.tuned[("text->text", "item"), "inversion"] == {"steps": 20}
        assert study.tuned[("text->text", "item"), "random-token"] == {"steps": 0}
    assert chosen[0] == chosen[1]


def test_longer_curves_leave_the_main_setting_what_it_is(make) -> None:
    study = make(longest=40)
    study.tune()
    assert study.inverted(study.parts["image->image", "test"]).steps[-1] == 40
    assert study.tuned[("image->image", "item"), "inversion"] == {"steps": 10}


def test_words_follow_the_intervals(finished: Study) -> None:
    rows = finished.table("difference").set_index(["direction", "method"])
    inverted = rows.loc[("image->image", "inversion")]
    assert inverted["ci_high"] < 0  # the stand-in ends in noise
    assert (
        "worse, against the claim" in finished.conclusion()
        and "On 0 of 2 the sign is as claimed" in finished.conclusion()
    )
    assert f"{100 * inverted['value']:+.1f} points" in finished.conclusion()
    assert "stops after 5 of 10 steps" in finished.answer()
    assert finished.counter_answer().count("a loss, as claimed") == 2


def test_hubness_counts_how_often_an_item_is_near(finished: Study) -> None:
    rows = finished.table("main", "hubness").set_index(["table", "direction", "method", "metric"])["value"]
    size, skewness = len(finished.parts["text->text", "test"].gallery), {}
    for method in ("none", "random-token"):
        top = finished.nearest(("text->text", "item"), method)
        assert top.shape == (30, 3) and not (top == finished.parts["text->text", "test"].rows[:, None]).any()
        counts = np.array([(top == item).sum() for item in range(size)])
        skewness[method] = scipy.stats.skew(counts)
        assert rows["main", "text->text", method, "skewness"] == pytest.approx(skewness[method])
        assert rows["main", "text->text", method, "max k-occurrence"] == counts.max()
    change = rows["hubness", "text->text", "random-token", "skewness difference"]
    assert change == pytest.approx(skewness["random-token"] - skewness["none"])
    assert finished.hub_answer().count("hubness.") == 2


def test_the_average_gives_every_task_the_same_weight(finished: Study) -> None:
    table = finished.table("difference", "average").set_index(["table", "method"])
    for method in finished.methods[1:]:
        found = table.loc[("average", method)]
        assert found["value"].item() == pytest.approx(table.loc[("difference", method), "value"].mean())
        assert found["ci_low"].item() <= found["value"].item() <= found["ci_high"].item()


def test_the_claimed_sign_is_told_where_it_holds(make) -> None:
    study = make(tasks=["image->image"], oti_steps=PEAK, checkpoints=[PEAK])
    study.tune()
    study.evaluate()
    precision = study.measure(("image->image", "item"), "none")["mAP"]
    study.measure(("image->image", "item"), "inversion")["mAP"][:] = np.minimum(precision + 0.1, 1)
    study.compare()
    assert "better, as claimed" in study.conclusion() and "On 1 of 1" in study.conclusion()


def test_a_curve_is_that_of_its_own_queries(finished: Study) -> None:
    rows = finished.table("curve")
    rows = rows[(rows["direction"] == "image->image") & (rows["metric"] == "mAP")]
    assert set(rows["n"]) == {12} and len(rows) == 1 + 2 * 4  # native, and 0, 1, 5 and 10 steps of 1 and 2 tokens
    at = rows[rows["parameters"].map(lambda p: p.get("steps") == PEAK and p["tokens"] == 1)]["value"].item()
    assert at == pytest.approx(rows.loc[rows["method"] == "none", "value"].item())  # at the summit it is the query
    losses = finished.table("curve")
    losses = losses[(losses["metric"] == "loss") & (losses["direction"] == "text->text")]["value"]
    assert losses.is_monotonic_decreasing and losses.iloc[0] == 1


def test_the_counterpart_searches_the_other_modality(finished: Study) -> None:
    rows = finished.table("counterpart")
    native = rows[(rows["method"] == "none") & (rows["direction"] == "image->text")]["value"].item()
    split, part = finished.data.replicates[0].test, finished.parts["image->image", "test"]
    scores = _unit(split.image)[part.rows] @ _unit(split.text).T
    assert native == pytest.approx(np.mean(scores.argmax(1) // 2 == part.rows // 3))
    assert set(rows["metric"]) == {"R@1", "R@1 difference"}  # no classes without names
    assert (rows["p_holm"].dropna() >= rows["p_value"].dropna()).all() and rows["p_holm"].notna().sum() == 4


def test_class_names_are_scripts_and_kinds_in_words() -> None:
    labels = {"script and kind": np.array(["greek Ll", "latin Lu", "black So", "greek Ll"])}
    part = SimpleNamespace(labels=labels, rows=np.array([0, 2, 3]))
    assert module._class_names(part).tolist() == [
        "greek small letter",
        "latin capital letter",
        "",
        "greek small letter",
    ]
    assert module._of_classes(part).tolist() == [0, 2]


def test_targets_of_a_share_are_those_of_its_own_items() -> None:
    items = glyphs.load_glyphs("test")
    rows, texts = np.arange(900, 960), np.unique(items.relevance[900:960].indices)
    part = Split(
        np.ones((60, 2), np.float32),
        np.ones((len(texts), 2), np.float32),
        items.relevance[rows][:, texts],
        items.image_ids[rows],
        items.text_ids[texts],
    )
    found, labels = module._targets("glyphs", part, "image", items, None)
    assert list(found) == list(labels) == ["character", "script and kind"]
    character = np.array([name.split("/")[0] for name in part.image_ids])
    assert labels["character"].tolist() == character.tolist()
    target = found["character"]
    wanted = character[target.queries][:, None] == character[target.gallery]
    np.testing.assert_array_equal(target.relevance.toarray(), wanted)
    assert target.gallery.tolist() == list(range(60)) and target.own.tolist() == target.queries.tolist()
    assert list(module._targets("glyphs", part, "text", items, None)[0]) == ["script and kind"]  # one text each


def _published(seed: int) -> Search:
    """Return a search of 12 of 105 images among the 70 last, three gradings, with junk, and queries out of order."""
    rng = np.random.default_rng(seed)
    queries, gallery = rng.permutation(40)[:12], np.arange(35, 105)
    easy, hard, junk = (rng.random((12, 70)) < share for share in (0.1, 0.05, 0.2))
    easy[3] = False  # no answer among the easy ones
    relevance = {"easy": easy, "medium": easy | hard, "hard": hard}
    dropped = {"easy": junk | hard, "medium": junk, "hard": junk | easy}
    return Search(
        queries, gallery, *({k: scipy.sparse.csr_array(v) for k, v in of.items()} for of in (relevance, dropped))
    )


def test_a_published_search_is_searched_as_it_says(make, monkeypatch) -> None:
    search = _published(0)
    monkeypatch.setattr(module, "datasets", lambda: ["synthetic"])
    monkeypatch.setattr(module, "load_items", lambda name, split, mirror: _items(split))
    monkeypatch.setattr(
        module, "search_of", lambda name, items, side, mirror: search if items.split == "test" else None
    )
    monkeypatch.setattr(module, "groups_of", lambda name, items, mirror: {"item": items.components()})
    study = make(tasks=["image->image"], n_images=None)
    assert study.cases == [("image->image", f"item, {kind}") for kind in ("easy", "medium", "hard")]
    study.tune()  # validation knows no such gradings: its only grouping stands in
    assert study.parts["image->image", "validation"].target("item, easy").junk is None
    table, main = study.evaluate(), study.table("main")
    assert module.TRAPEZOIDS in table
    split, part = study.data.replicates[0].test, study.parts["image->image", "test"]
    unit = _unit(split.image).astype(np.float64)
    for kind in ("easy", "medium", "hard"):
        case, values, areas = ("image->image", f"item, {kind}"), {}, {}
        for row, query in enumerate(search.queries):
            scores = (unit[search.gallery] @ unit[query]).astype(np.float32)
            drop = search.junk[kind].toarray()[row] | (search.gallery == query)
            match = search.relevance[kind].toarray()[row] & ~drop
            if match.any():
                kept = np.flatnonzero(~drop)
                found = match[kept][np.argsort(-scores[kept], kind="stable")]
                places = np.flatnonzero(found)
                after = (np.arange(len(places)) + 1) / (places + 1)
                before = np.where(places > 0, np.arange(len(places)) / np.maximum(places, 1), 1)
                values[query], areas[query] = after.mean(), (after + before).mean() / 2
        target = part.target(case[1])
        assert target.queries.tolist() == sorted(values)
        assert kind != "easy" or search.queries[3] not in values
        np.testing.assert_allclose(study.measure(case, "none")["mAP"], [values[q] for q in sorted(values)])
        rows = main[(main["method"] == "none") & main["parameters"].map(lambda p, g=case[1]: p["grouping"] == g)]
        rows = rows.set_index("metric")
        assert rows.loc[module.TRAPEZOIDS, "value"] == pytest.approx(np.mean(list(areas.values())))
        assert rows.loc["mAP", "n"] == len(values)
        top, junk = study.nearest(case, "none"), target.junk.toarray()
        assert not any(junk[row, items].any() for row, items in enumerate(top))
    frame = study.per_query()
    assert len(frame) == len(study.methods) * sum(len(study._clusters(case)) for case in study.cases)
    study.compare(), study.question(), study.curve(), study.hubness()
    assert {row["correct"][0] for _, row in study.neighbours("image->image").iterrows()} <= {True, False}


def _items(split: str) -> SimpleNamespace:
    data = getattr(_data().replicates[0], split)
    return SimpleNamespace(split=split, image_ids=data.image_ids, text_ids=data.text_ids, components=data.components)


def test_a_share_of_a_published_search_keeps_its_own_items() -> None:
    search, kept = _published(1), np.random.default_rng(0).permutation(105)[:60]
    place = np.full(105, -1)
    place[kept] = np.arange(60)
    found = module._by_protocol(search, place)
    for kind in ("easy", "hard"):
        target = found[f"item, {kind}"]
        queries, gallery = kept[target.queries], kept[target.gallery]
        assert set(gallery) == set(kept) & set(search.gallery) and (np.diff(target.queries) > 0).all()
        rows, columns = (
            pd.Index(of).get_indexer(at) for of, at in ((search.queries, queries), (search.gallery, gallery))
        )
        own = queries[:, None] == gallery
        match, junk = (of[kind].toarray()[rows][:, columns] for of in (search.relevance, search.junk))
        np.testing.assert_array_equal(target.relevance.toarray(), match | own)  # by the released way of counting
        np.testing.assert_array_equal(target.junk.toarray(), junk & ~own)
        assert own.any() == (target.own >= 0).any()
    one = Search(search.queries, search.gallery, {"image": search.relevance["easy"]}, {})
    (target,) = module._by_protocol(one, np.arange(105)).values()
    assert list(module._by_protocol(one, np.arange(105))) == ["image"] and target.junk is None


def test_labels_in_another_language_are_searched_with_the_english_ones(make, monkeypatch) -> None:
    data = replace(_data(), name="emoji")
    words = np.array([f"word {i}" for i in range(70)])
    other = np.array([f"ord {i}" for i in range(70)])
    other[:4], other[10] = words[:4], other[11]  # four that are the same, two that agree
    embedding = {text: row for row, text in enumerate(other)}
    there = np.random.default_rng(5).normal(size=(70, WIDTH)).astype(np.float32)

    def items(name, split, mirror):
        part = getattr(data.replicates[0], split)
        texts = words[: len(part.text_ids)].tolist()
        return SimpleNamespace(split=split, image_ids=part.image_ids, text_ids=part.text_ids, texts=texts,
                               components=part.components)  # fmt: skip

    monkeypatch.setattr(module, "datasets", lambda: ["emoji"])
    monkeypatch.setattr(module, "load_items", items)
    monkeypatch.setattr(module, "groups_of", lambda name, items, mirror: {"subgroup": items.components()})
    monkeypatch.setattr(module, "search_of", lambda *_: None)
    monkeypatch.setattr(module.emoji, "labels", lambda items, locale, mirror: other[: len(items.texts)])
    study = make(data, tasks=["text->text"], locales=["xx"], n_texts=None, encode_texts=lambda texts: there[
        [embedding[text] for text in texts]])  # fmt: skip
    assert study.cases == [("text->text", "subgroup"), ("text->text", "label in xx")]
    part = study.parts["text->text", "test"]
    target = part.target("label in xx")
    assert target.queries.tolist() == list(range(4, 70)) and (target.own == -1).all()
    assert len(target.gallery) == 70 and part.ids[target.gallery[5]] == f"{part.ids[5]}@xx"
    study.tune()
    unit = _unit(study.data.replicates[0].test.text).astype(np.float64)
    foreign = _unit(there[[embedding[text] for text in other]]).astype(np.float64)
    values = [_average_precision((foreign @ unit[q]).astype(np.float32), -1, other == other[q]) for q in range(4, 70)]
    np.testing.assert_allclose(study.measure(("text->text", "label in xx"), "none")["mAP"], values)
    clusters = study._clusters(("text->text", "label in xx"))
    assert clusters.tolist() == part.clusters[4:70].tolist() and len(part.clusters) == 140
    study.evaluate()
    assert module.TRAPEZOIDS not in set(study.table("main")["metric"])


def test_texts_that_several_images_share_are_classes(make) -> None:
    def of_classes(n: int, seed: int, prefix: str) -> Split:
        split = _split(n, seed, prefix)
        one = np.arange(0, 2 * n, 2)
        return Split(split.image, split.text[one], np.kron(np.eye(n, dtype=bool), np.ones((3, 1), bool)),
                     split.image_ids, split.text_ids[one])  # fmt: skip

    parts = Replicate(of_classes(40, 1, "b"), of_classes(30, 2, "v"), of_classes(35, 3, "t"), "official split", "train")
    data = EmbeddingData("synthetic", "toy", "0" * 64, (parts,), (), "CC0-1.0")
    study = make(data, tasks=["image->image"])
    study.tune()
    rows = study.counterpart()
    assert set(rows["metric"]) == {"accuracy", "accuracy difference"}
    part = study.parts["image->image", "test"]
    scores = _unit(parts.test.image)[part.rows] @ _unit(parts.test.text).T
    native = rows.loc[rows["method"] == "none", "value"].item()
    assert native == pytest.approx(np.mean(scores.argmax(1) == part.rows // 3))
    assert "zero-shot classification" in study.counter_answer()


def test_the_gap_is_the_distance_of_the_means(make) -> None:
    split = _split(20, 9, "x")
    found = module._gap(split, 0)
    expected = np.linalg.norm(_unit(split.image).mean(0) - _unit(split.text).mean(0))
    assert found.value == pytest.approx(expected, abs=1e-6) and found.low < expected < found.high


def test_fine_tuned_models_are_searched_with_their_own_embeddings(make, monkeypatch, capsys) -> None:
    study = make(tasks=["image->image"])
    study.tune()
    asked = []

    def tuned(train, files, tuning, device):
        asked.append(tuning.tau)
        return SimpleNamespace(identity=f"tau {tuning.tau}")

    monkeypatch.setattr(module, "find_model", lambda name: SimpleNamespace(name=name))
    monkeypatch.setattr(module.finetune, "can_be_tuned", lambda files: False)
    assert study.narrow().empty and "is no CLIP model" in capsys.readouterr().out
    monkeypatch.setattr(module.finetune, "can_be_tuned", lambda files: True)
    monkeypatch.setattr(module, "embed", lambda items, *_: items)
    monkeypatch.setattr(module.finetune, "items_of", lambda _, split: split)
    monkeypatch.setattr(module.finetune, "tuned_encoder", tuned, raising=False)
    closed = _split(35, 50, "test")
    monkeypatch.setattr(module.finetune, "finetune", lambda *_: closed)
    rows = study.narrow()
    assert asked == [0.1]
    gaps = rows[rows["metric"] == "modality gap"]
    assert [p["temperature"] for p in gaps["parameters"]] == [None, 0.1]
    assert gaps["value"].tolist() == [module._gap(study.data.replicates[0].test, 0).value, module._gap(closed, 0).value]
    whole = study._part("image->image", "test", study.data.replicates[0])
    part = module._taken(whole, module._spread(whole, 20))
    unit = _unit(closed.image)
    values = [
        _average_precision(
            (unit.astype(np.float64) @ unit[q].astype(np.float64)).astype(np.float32), q, np.arange(105) // 3 == q // 3
        )
        for q in part.rows
    ]
    native = rows[(rows["metric"] == "mAP") & (rows["method"] == "none")].iloc[1]
    assert native["value"] == pytest.approx(np.mean(values)) and native["n"] == 20
    assert "tau 0.1: gap" in study.gap_answer()


def test_neighbours_run_from_the_greatest_loss_to_the_greatest_gain(finished: Study) -> None:
    shown = finished.neighbours("image->image", number=5)
    wide = shown.pivot(index="query_id", columns="method", values="AP").loc[shown["query_id"].unique()]
    change = (wide["inversion"] - wide["none"]).to_numpy()
    every = (
        finished.measure(("image->image", "item"), "inversion")["mAP"]
        - finished.measure(("image->image", "item"), "none")["mAP"]
    )
    assert (np.diff(change) >= 0).all() and change[0] == every.min() and change[-1] == every.max()
    first = shown.iloc[0]
    assert first["query_id"] not in first["neighbours"] and len(first["neighbours"]) == 3
    owner = {name: int(name.split("-i")[1]) // 3 for name in [first["query_id"], *first["neighbours"]]}
    assert first["correct"] == [owner[name] == owner[first["query_id"]] for name in first["neighbours"]]


def test_a_model_without_projections_does_without_the_controls_that_need_them(make, monkeypatch, capsys) -> None:
    monkeypatch.setattr(module, "projections_of", lambda _: projections_of(SimpleNamespace()))
    study = make()
    assert "Left out what needs projections: SimpleNamespace has no visual_projection" in capsys.readouterr().out
    assert study.controls == make(raw=False).controls != []
    assert set(study.methods) > {"none", "inversion"} and not {"isoclip"} & set(study.methods)


def test_stored_features_get_the_linear_controls_alone(make, capsys) -> None:
    study = make(raw=False)
    assert set(study.methods) == {"none", "mean-centring", "pca", "whitening", "random-map"}
    assert study.invert().empty and "stored features" in capsys.readouterr().out
    study.tune()
    study.evaluate()
    study.compare()
    assert study.question().empty and study.curve().empty and study.counterpart().empty and study.narrow().empty
    assert all(
        "without the model" in text
        for text in (study.conclusion(), study.answer(), study.counter_answer(), study.hub_answer())
    )
    assert set(study.neighbours("text->text", study.methods[-1])["method"]) == {"none", study.methods[-1]}


def test_a_train_split_in_a_file_gives_the_same_controls(make, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, found = _data(), []
    (replicate,) = data.replicates
    for large in (2**27, 1):
        monkeypatch.setattr(ranking, "LARGE", large)
        files = {}
        for side in ("image", "text"):
            rows = getattr(replicate.bank, side)
            rows.tofile(tmp_path / side)
            files[side] = opened(tmp_path / side, rows.dtype, rows.shape)
        bank = replace(replicate.bank, **files)
        study = make(replace(data, replicates=(replace(replicate, bank=bank),)), raw=False)
        study.tune()
        study.evaluate()
        assert isinstance(study._train["text"].rows, ranking.Rows) == (large == 1)
        found.append(study.table())
    pd.testing.assert_frame_equal(*found, check_exact=True)
    assert len(found[0]) > 50


def test_a_released_counting_is_told_apart(finished: Study) -> None:
    main = finished.table("main").set_index(["direction", "method", "metric"])["value"]
    one, released = (main["text->text", "none", metric] for metric in ("mAP@R", module.RELEASED))
    split, part = finished.data.replicates[0].test, finished.parts["text->text", "test"]
    unit = _unit(split.text).astype(np.float64)
    expected = {1: [], 2: []}  # one relevant text beside the query; the released code looks at two places
    for query in part.rows:
        scores = (unit @ unit[query]).astype(np.float32)
        scores[query] = -np.inf
        place = 1 + int(np.sum(scores > scores[query ^ 1]))
        for depth, values in expected.items():
            values.append(1 / place if place <= depth else 0.0)
    assert (one, released) == (pytest.approx(np.mean(expected[1])), pytest.approx(np.mean(expected[2])))


def test_same_items_same_sample_whatever_else_is_asked(make) -> None:
    one, other = make(), make(tasks=["text->text"], controls=["pca"], n_images=3)
    assert np.array_equal(one.parts["text->text", "test"].rows, other.parts["text->text", "test"].rows)
    assert not np.array_equal(one.parts["text->text", "test"].rows, make(seed=1).parts["text->text", "test"].rows)
    whole = make(n_texts=None).parts["text->text", "test"].rows
    assert np.array_equal(whole, np.arange(70))


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"tasks": ["image->text"]}, "unknown task 'image->text'; nearest valid: .*image->image"),
        ({"controls": ["isoclop"]}, "unknown control 'isoclop'; nearest valid: isoclip"),
        ({"tasks": []}, "parameter tasks must name at least one task"),
        ({"checkpoints": [0, 5]}, "checkpoints must be at least 1, not 0"),
        ({"oti_steps": 0}, "oti_steps must be at least 1, not 0"),
        ({"narrow_share": 0.0}, "narrow_share must be greater than 0 and at most 1"),
        ({"n_images": 0}, "n_images must be at least 1"),
        ({"k": 0}, "parameter k must be at least 1"),
    ],
)
def test_bad_parameters_are_refused_in_one_sentence(make, parameters, words) -> None:
    with pytest.raises(InputError, match=words):
        make(**parameters)


def test_a_set_without_groups_is_refused(make) -> None:
    data = _data()
    alone = {
        name: Split(part.image[:20], part.text[:20], np.eye(20, dtype=bool), part.image_ids[:20], part.text_ids[:20])
        for name, part in vars(data.replicates[0]).items()
        if isinstance(part, Split)
    }
    pairs = EmbeddingData("pairs", "toy", "0", (Replicate(**alone, label="x", bank_source="y"),), (), "CC0-1.0")
    with pytest.raises(InputError, match="pairs, image->image: no image of the validation split has another one"):
        make(pairs, raw=False)
    assert ranking.as_embeddings(pairs.replicates[0].test.image, "x").shape == (20, WIDTH)
