"""The paper-versus-code study on a small file of features: every effect against a slow reference, and its verdict."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from reprolib import methods, ranking
from reprolib.errors import InputError
from reprolib.figures.paper_versus_code import FLOOR, weight_of
from reprolib.metrics.statistics import holm
from reprolib.ranking import Scorer
from reprolib.study import audit, paper_versus_code, records
from reprolib.study.audit import Place
from reprolib.study.modality_gap import pairs_of
from reprolib.study.paper_versus_code import (
    DIRECTIONS,
    READINGS,
    Study,
    address,
    best_by_column,
    numbers_first,
)
from reprolib.study.records import Record
from reprolib.study.verdicts import margins

CONCEPTS, IMAGES, TEXTS, WIDTH = 80, 3, 2, 12
TOO_SMALL = {"cross-the-gap-template", "invgc-two-defaults", "nnn-two-defaults"}  # no model; banks too small


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of concepts with three images and two texts each, and a gap between the modalities."""
    rng = np.random.default_rng(0)
    concepts = rng.normal(size=(CONCEPTS, WIDTH))
    image, text = (
        np.repeat(concepts, times, 0) + 0.7 * rng.normal(size=(CONCEPTS * times, WIDTH)) + shift
        for times, shift in ((IMAGES, 0.5), (TEXTS, -0.5))
    )
    relevance = np.kron(np.eye(CONCEPTS, dtype=bool), np.ones((IMAGES, TEXTS), bool))
    path = tmp_path_factory.mktemp("own") / "own.npz"
    np.savez(path, image=image.astype(np.float32), text=text.astype(np.float32), relevance=relevance)
    return path


def _study(own: Path, **parameters: object) -> Study:
    small = {"bank_share": 0.4, "n_splits": 2, "k": 5, "n_images": 20, "n_bootstrap": 200, "n_permutations": 2999}
    return Study(embeddings=str(own), **{**small, **parameters})


@pytest.fixture(scope="module")
def study(own: Path) -> Study:
    made = _study(own)
    made.measure()
    return made


def _records(study: Study, table: str, finding: str) -> list[dict]:
    return [row for row in study.rows if row["table"] == table and row["parameters"]["finding"] == finding]


def _unit(rows: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows, dtype=np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _values(study: Study, finding: str, direction: str) -> tuple[float, float]:
    """Return what the study recorded for the paper and for the release."""
    found = {row["method"]: row["value"] for row in _records(study, "main", finding) if row["direction"] == direction}
    return found["paper"], found["released"]


def _parts(study: Study, direction: str):
    """Yield queries, gallery, relevance, query bank and gallery bank of every replicate, as NumPy has them."""
    for replicate in study.data.replicates:
        test, bank = replicate.test, replicate.bank
        image, text, relevance = _unit(test.image), _unit(test.text), test.relevance.toarray()
        banks = _unit(bank.image), _unit(bank.text)
        if direction == "image->text":
            yield image, text, relevance, *banks
        else:
            yield text, image, relevance.T, *banks[::-1]


def _recall(study: Study, direction: str, score) -> float:
    """Return R@1 of ``score(queries, gallery, query bank, gallery bank)`` [rows, m]; row i answers query i."""
    hits = []
    for queries, gallery, relevance, *banks in _parts(study, direction):
        scores = score(queries, gallery, *banks)
        for query in range(len(queries)):
            hits.append(query < len(scores) and bool(relevance[query, scores[query].argmax()]))
    return float(np.mean(hits))


# --- every effect against a slow reference --------------------------------------------------------------------


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_unused_test_queries_leave_a_row_per_bank_item(study: Study, direction: str) -> None:
    def paper(q, g, query_bank, gallery_bank):
        factors = [
            np.exp(b * q @ g.T) / np.exp(b * bank @ g.T).sum(0) for b, bank in ((20, query_bank), (1, gallery_bank))
        ]
        return factors[0] * factors[1]

    def released(q, g, query_bank, gallery_bank):
        return paper(gallery_bank, g, query_bank, gallery_bank)

    found = _values(study, "dbnorm-test-queries-unused", direction)
    assert found == pytest.approx((_recall(study, direction, paper), _recall(study, direction, released)))
    assert found[1] < 0.1 < found[0], "rows of bank items answer nothing"


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_temperatures_that_change_places(study: Study, direction: str) -> None:
    def dual(query_beta, gallery_beta):
        def score(q, g, query_bank, gallery_bank):
            parts = ((query_beta, query_bank), (gallery_beta, gallery_bank))
            return sum(b * q @ g.T - np.log(np.exp(b * bank @ g.T).sum(0)) for b, bank in parts)

        return _recall(study, direction, score)

    assert _values(study, "dbnorm-swapped-temperatures", direction) == pytest.approx(
        (dual(3, 1 / 1.99), dual(1 / 1.99, 3))
    )
    assert _values(study, "dbnorm-default-temperatures", direction) == pytest.approx((dual(30, 0), dual(1 / 1.99, 3)))


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_matrix_of_two_scales_is_read_by_column(study: Study, direction: str) -> None:
    def gated(q, g, query_bank, beta=20):
        raw, bank = q @ g.T, query_bank @ g.T
        open_ = np.isin(raw.argmax(1), bank.argmax(1))
        return np.where(open_[:, None], np.exp(beta * raw) / np.exp(beta * bank).sum(0), raw)

    paper = _recall(study, direction, lambda q, g, query_bank, gallery_bank: gated(q, g, query_bank))
    # read by column: the gallery asks, with the bank of its own modality
    crossed = _recall(study, direction, lambda q, g, query_bank, gallery_bank: gated(g, q, gallery_bank).T)
    assert _values(study, "qb-norm-mixed-scales", direction) == pytest.approx((paper, crossed))


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_what_overflows_is_ranked_last(study: Study, direction: str) -> None:
    def released(q, g, query_bank, gallery_bank):
        raw, bank = q @ g.T, query_bank @ g.T
        open_ = np.isin(raw.argmax(1), bank.argmax(1))
        with np.errstate(over="ignore", invalid="ignore"):
            ratio = np.exp(np.float32(2000) * raw.astype(np.float32)) / np.exp(2000 * bank).sum(0).astype(np.float32)
        ratio = np.where(np.isnan(ratio), -np.inf, ratio)
        return np.where(open_[:, None], ratio, raw)

    found = _values(study, "qb-norm-overflow", direction)
    assert found[1] == pytest.approx(_recall(study, direction, released)) and found[1] < found[0]


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_test_queries_as_bank(study: Study, direction: str) -> None:
    def sinkhorn(bank):
        def score(q, g, query_bank, gallery_bank):
            used = q if bank == "test" else query_bank
            return methods.correct("sinkhorn", q, g, query_bank=used).numpy()

        return _recall(study, direction, score)

    assert _values(study, "dbsn-transductive", direction) == pytest.approx((sinkhorn("train"), sinkhorn("test")))
    banks = {row["method"]: row["bank"] for row in _records(study, "main", "dbsn-transductive")}
    assert "transductive" in banks["released"] and "transductive" not in banks["paper"]


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_skewness_without_the_items_never_retrieved(study: Study, direction: str) -> None:
    skewness = []
    for queries, gallery, *_ in _parts(study, direction):
        counts = np.zeros(len(gallery))
        for scores in queries @ gallery.T:
            counts[np.argsort(-scores, kind="stable")[: study.k]] += 1
        skewness.append((scipy.stats.skew(counts), scipy.stats.skew(counts[counts > 0])))
    found = _values(study, "dbnorm-skewness-retrieved-only", direction)
    assert found == pytest.approx(np.mean(skewness, axis=0))


def test_a_shift_by_a_distance_is_not_one_by_a_share(study: Study) -> None:
    row = _records(study, "audit", "mind-the-gap-unit-shift")[0]
    found = []
    for replicate in study.data.replicates:
        bank = _unit(replicate.bank.image).mean(0) - _unit(replicate.bank.text).mean(0)
        pairs = pairs_of(replicate.test, study.seed)
        gaps = []
        for step in (0.5 * bank, 0.5 * bank / np.linalg.norm(bank)):
            image, text = _unit(_unit(pairs.image) - step / 2), _unit(_unit(pairs.text) + step / 2)
            gaps.append(np.linalg.norm(image.mean(0) - text.mean(0)))
        found.append(gaps)
    paper, released = np.mean(found, axis=0)
    assert row["value"] == pytest.approx(released - paper, abs=1e-6) and row["p_value"] is None


def test_r_that_counts_the_query_looks_one_rank_further(study: Study) -> None:
    part = study._within.parts["image->image", "test"]
    gallery, groups = part.gallery.double().numpy(), part.labels["item"]
    found = []
    for row in part.rows:
        order = [item for item in np.argsort(-(gallery @ gallery[row]), kind="stable") if item != row]
        right = groups[order] == groups[row]
        precision = np.cumsum(right) / np.arange(1, len(right) + 1) * right
        found.append([precision[:r].sum() / right.sum() for r in (right.sum(), right.sum() + 1)])
    paper, released = np.mean(found, axis=0)
    assert _values(study, "cross-the-gap-map-at-r", "image->image") == pytest.approx((paper, released))
    assert released >= paper and len(found) == study.n_images


def test_templates_differ_by_what_inversion_gives_under_each(own: Path) -> None:
    study = _study(own)
    inner, seen = study._within, []

    def inverted(part, template):
        seen.append((template, len(part.rows)))
        noise = np.random.default_rng(len(seen)).normal(size=part.queries.shape).astype(np.float32)
        exact = part.queries.numpy()
        return SimpleNamespace(features=np.stack([noise, exact if template.startswith("a") else noise]))

    inner.encoder, inner.inverted = object(), inverted
    finding = audit.finding("cross-the-gap-template")
    study._inversion(finding)
    assert {template for template, _ in seen} == {"a photo of {}", "A photo of {}."}
    assert {number for _, number in seen} == {min(study.n_inverted, study.n_images)}
    paper, released = _values(study, finding.id, "image->image")
    assert paper > 0.5 > released


# --- what holds for all of them -------------------------------------------------------------------------------


def test_every_finding_is_measured_or_has_a_reason(study: Study) -> None:
    measured = {row["parameters"]["finding"] for row in study.rows if row["table"] == "audit"}
    here = {name for name, found in audit.findings().items() if found.effect and found.effect.study == study.study}
    assert set(study.left_out) == TOO_SMALL and measured == here - TOO_SMALL
    assert "needs the model" in study.left_out["cross-the-gap-template"]
    assert "k = 128" in study.left_out["nnn-two-defaults"] and "pool_rate" in study.left_out["invgc-two-defaults"]
    assert set(READINGS) <= here
    assert len(study.effects().data) == len(measured)
    assert len(study.unmeasured().data) == len(audit.findings()) - len(measured)


def test_records_are_found_by_the_findings_and_by_no_other(study: Study) -> None:
    rows = [Record.model_validate(row) for row in study.rows]
    for name, finding in audit.findings().items():
        picked = [row for row in rows if finding.effect and finding.effect.select.picks(row)]
        own = [row for row in rows if row.table == "audit" and row.parameters["finding"] == name]
        assert picked == own, name
    for row in (row for row in rows if row.table == "audit"):
        assert row.reference == "paper" and row.method == "released"
        assert row.parameters[FLOOR] == margins().floor(row.metric)


def test_differences_are_released_minus_paper_and_holm_covers_them_all(study: Study) -> None:
    rows = [row for row in study.rows if row["table"] == "audit"]
    for row in rows:
        levels = {
            other["method"]: other["value"]
            for other in _records(study, "main", row["parameters"]["finding"])
            if other["direction"] == row["direction"] and f"{other['metric']} difference" == row["metric"]
        }
        assert row["value"] == pytest.approx(levels["released"] - levels["paper"])
        assert row["ci_low"] - 1e-12 <= row["value"] <= row["ci_high"] + 1e-12
    tested = [row for row in rows if row["p_value"] is not None]
    assert {row["metric"] for row in rows if row["p_value"] is None} == {"skewness difference", "L2M difference"}
    assert [row["p_holm"] for row in tested] == list(holm([row["p_value"] for row in tested]))


def test_per_query_values_have_the_recorded_means(study: Study) -> None:
    each = study.per_query()
    for row in (row for row in study.rows if row["table"] == "main" and row["metric"] not in ("skewness", "L2M")):
        of = (each["finding"] == row["parameters"]["finding"]) & (each["direction"] == row["direction"])
        assert each.loc[of, row["method"]].mean() == pytest.approx(row["value"]) and of.sum() == row["n"]


@pytest.mark.parametrize(
    ("finding", "said"),
    [
        ("dbnorm-dynamic-overwrites", "dual-dis holds the similarities of both banks to the gallery"),
        ("dbsn-labels-gc", "gc holds the ranks of the queries"),
    ],
)
def test_a_matrix_that_is_too_large_to_hold_is_a_reason(
    own: Path, monkeypatch: pytest.MonkeyPatch, finding: str, said: str
) -> None:
    def size(task) -> int:
        if finding == "dbsn-labels-gc":
            return 2 * len(task.test.queries) * len(task.test.gallery)
        return 4 * sum(map(len, task.banks["train"])) * len(task.test.gallery)

    kept = ("dbnorm-swapped-temperatures", finding)
    for short in (0, 1):
        study = _study(own, n_bootstrap=20, n_permutations=99)
        study.findings = {name: study.findings[name] for name in kept}
        largest = max(size(task) for tasks in study.tasks.values() for task in tasks)
        monkeypatch.setattr(paper_versus_code, "MATRIX", largest - short)
        study.measure()
        assert {row["parameters"]["finding"] for row in study.rows} == set(kept[: 2 - short])
        assert set(study.left_out) == set(kept[2 - short :])
    assert said in study.left_out[finding] and "GiB; valid is a size of up to" in study.left_out[finding]


def test_banks_in_files_give_the_same_effects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    concept = np.random.default_rng(1).normal(size=(150, WIDTH))
    noise = {side: np.random.default_rng(place) for place, side in enumerate(("image", "text"))}
    parts = {side: (concept + rng.normal(size=concept.shape)).astype(np.float32) for side, rng in noise.items()}
    bank = {f"bank_{side}": rows[60:].copy() for side, rows in parts.items()}
    save_file({side: rows[:60] for side, rows in parts.items()} | bank, tmp_path / "own.safetensors")
    found = []
    for large in (2**27, 1):
        monkeypatch.setattr(ranking, "LARGE", large)
        study = _study(tmp_path / "own.safetensors", n_splits=1, n_bootstrap=50, n_permutations=99)
        study.measure()
        held = study.tasks["text->image"][0].banks["train"][0].embeddings
        assert isinstance(held, ranking.Rows) == (large == 1)
        found.append(study.table())
    pd.testing.assert_frame_equal(*found, check_exact=True)
    assert len(found[0]) > 20


def test_a_switch_without_two_sides_has_no_effect(own: Path) -> None:
    study, same = _study(own), {}
    for name in ("invgc-two-steps", "dbnorm-skewness-retrieved-only", "cross-the-gap-map-at-r"):
        finding = study.findings[name]
        switch = finding.switch.model_copy(update={"released": finding.switch.paper})
        same[name] = finding.model_copy(update={"switch": switch})
    study.findings = same
    rows = study.measure().to_dict("records")
    assert len(rows) == 5
    for row in rows:
        assert (row["value"], row["ci_low"], row["ci_high"]) == (0, 0, 0) and weight_of(row) == "within noise"


def test_the_same_seed_gives_the_same_records(study: Study, own: Path) -> None:
    again = _study(own)
    again.measure()
    assert again.rows == study.rows


def test_the_conclusion_names_every_effect_once_and_every_finding_left_out(study: Study) -> None:
    text = study.conclusion()
    matters, rest = text.split("**What does not**")
    assert "`dbnorm-test-queries-unused`" in matters and "`dbnorm-test-queries-unused`" not in rest
    for name in TOO_SMALL:
        assert f"`{name}`" in rest.split("**Not measured**")[1]
    assert text.count(" → ") == sum(row["table"] == "audit" and row["direction"] is not None for row in study.rows)


def test_saved_records_load_again(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(records.RUN_DIRECTORY, str(tmp_path))
    study.save()
    assert len(records.load(tmp_path)) == len(study.rows)
    assert len(pd.read_parquet(tmp_path / "per_query.parquet"))
    assert json.loads((tmp_path / "identities.json").read_text())


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"n_images": 0}, "n_images must be at least 1"), ({"directions": ["text->video"]}, "text->image"),
     ({"k": 1000}, "exceeds the smallest test gallery"), ({"bank_share": 0.0}, "bank_share")],
)  # fmt: skip
def test_wrong_parameters_are_named(own: Path, wrong: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        _study(own, **wrong)


# --- the parts ------------------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 2**16))
def test_best_by_column_is_the_first_greatest_row(n: int, m: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    q, g = (torch.from_numpy(rng.integers(-2, 3, size=(size, 3)).astype(np.float32)) for size in (n, m))
    scores = (q.double() @ g.double().T).numpy()
    slow = [max(range(n), key=lambda row: (scores[row, column], -row)) for column in range(m)]
    assert list(best_by_column(Scorer(q, g))) == slow


def test_best_by_column_does_not_depend_on_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    scorer = Scorer(*(torch.from_numpy(rng.normal(size=(size, 4)).astype(np.float32)) for size in (50, 7)))
    whole = best_by_column(scorer)
    blocks = ranking.blocks
    monkeypatch.setattr(ranking, "blocks", lambda n, m: blocks(n, m, 4 * m * 3))
    assert (best_by_column(scorer) == whole).all()


def test_numbers_come_first() -> None:
    values = torch.tensor([[float("nan"), -5.0, float("inf")], [float("nan"), float("nan"), -1e30]])
    scorer = Scorer(torch.ones(2, 1), torch.ones(3, 1), transform=lambda _, rows: values[rows].clone())
    found = numbers_first(scorer).scores()
    assert found.argsort(dim=1, descending=True, stable=True).tolist() == [[2, 1, 0], [2, 0, 1]]
    plain = Scorer(torch.ones(2, 1), torch.ones(3, 1))
    assert numbers_first(plain) is plain


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, "https://github.com/a/b"),
        ({"file": "c.py"}, "https://github.com/a/b/blob/HEAD/c.py"),
        ({"file": "c.py", "lines": "7"}, "https://github.com/a/b/blob/HEAD/c.py#L7"),
        ({"commit": "0" * 40}, f"https://github.com/a/b/tree/{'0' * 40}"),
        (
            {"commit": "0" * 40, "file": "c/d.py", "lines": "7-9"},
            f"https://github.com/a/b/blob/{'0' * 40}/c/d.py#L7-L9",
        ),
        ({"repository": "huggingface.co/datasets/a/b"}, "https://huggingface.co/datasets/a/b"),
    ],
)
def test_addresses(given: dict, found: str) -> None:
    assert address(Place.model_validate({"repository": "github.com/a/b"} | given)) == found


@given(st.floats(-1, 1), st.floats(0, 1), st.floats(0.001, 0.1), st.none() | st.floats(0, 1))
def test_weights_are_symmetric_and_exclude_each_other(low: float, width: float, floor: float, p: float | None) -> None:
    row = {"ci_low": low, "ci_high": low + width, "p_holm": p, "parameters": {FLOOR: floor}}
    mirrored = row | {"ci_low": -row["ci_high"], "ci_high": -row["ci_low"]}
    found = weight_of(row)
    assert found == weight_of(mirrored)
    inside = -floor <= row["ci_low"] and row["ci_high"] <= floor
    beyond = row["ci_low"] > floor or row["ci_high"] < -floor
    assert (found == "within noise") == inside
    assert (found == "matters") == (beyond and (p is None or p < 0.05))
