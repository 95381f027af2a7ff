"""The protocol of the modality gap study, on small synthetic pairs and on the real ones."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from reprolib import cli, ranking
from reprolib.errors import InputError
from reprolib.loaders import EmbeddingData, Items, Replicate, Split
from reprolib.mapped import opened
from reprolib.methods.interventions import INTERVENTIONS, intervene
from reprolib.metrics import gap_metrics, gap_per_dimension, info_nce, mixed_gallery_metrics, retrieval_metrics
from reprolib.models.embed import Pictures
from reprolib.study import modality_gap, records, report
from reprolib.study.modality_gap import DIRECTIONS, Study, delete_half, losses, over_seeds, pairs_of, random_shares
from tests.models import checkpoints

METHODS = ["shift", "mean-centring", "drop-dimensions", "linear", "optimal-transport"]
SMALL = {"shifts": [-0.5, 0.5, 1.0], "temperatures": [0.05, 0.5], "feature_sets": [], "k": 5, "n_bootstrap": 200,
         "n_permutations": 199, "n_halves": 3}  # fmt: skip
MIRROR = Path(os.environ.get("REPROLIB_MIRROR") or Path(__file__).resolve().parents[3] / "shared" / "mirror")


def _split(n: int, seed: int, prefix: str, images: int = 2) -> Split:
    """Return n texts with ``images`` images each around shared concepts, the modalities apart by an offset."""
    rng = np.random.default_rng(seed)
    concepts = rng.normal(size=(n, 12))
    owner = np.repeat(np.arange(n), images)
    return Split(
        (concepts[owner] + 0.5 * rng.normal(size=(n * images, 12)) - 0.7).astype(np.float32),
        (concepts + 0.5 * rng.normal(size=concepts.shape) + 0.7).astype(np.float32),
        np.eye(n, dtype=bool)[owner],
        np.array([f"{prefix}-i{i}" for i in range(n * images)]),
        np.array([f"{prefix}-t{i}" for i in range(n)]),
    )


def _data(test_seed: int = 3, replicates: int = 2) -> EmbeddingData:
    parts = tuple(
        Replicate(
            _split(50, 10 + r, f"bank{r}"),
            _split(30, 20 + r, f"validation{r}"),
            _split(40, test_seed + r, f"test{r}"),
            f"seeded split {r + 1} of {replicates}",
            "train, 20 %",
        )
        for r in range(replicates)
    )
    return EmbeddingData("synthetic", "none", "0" * 64, parts, (), "CC0-1.0")


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Study]:
    """Return a function that makes a study over given data, with the test of its first replicate as a whole."""

    def build(data: EmbeddingData | None = None, **parameters: object) -> Study:
        data = data or _data()
        monkeypatch.setattr(modality_gap, "load_embeddings", lambda *_, **__: data)
        monkeypatch.setattr(modality_gap, "load_split", lambda *_, **__: data.replicates[0].test)
        return Study(**{"interventions": METHODS, **SMALL, **parameters})

    return build


@pytest.fixture(scope="module")
def finished() -> Study:
    with pytest.MonkeyPatch.context() as patch:
        data = _data()
        patch.setattr(modality_gap, "load_embeddings", lambda *_, **__: data)
        patch.setattr(modality_gap, "load_split", lambda *_, **__: data.replicates[0].test)
        study = Study(interventions=METHODS, **SMALL)
        for step in ("gap", "landscape", "finetune", "tune", "evaluate", "compare"):
            getattr(study, step)()
        return study


# --- small parts --------------------------------------------------------------------------------------------


def test_pairs_hold_every_item_once_with_one_of_its_texts() -> None:
    split = _split(20, 1, "x", images=3)
    pairs = pairs_of(split, 5)
    assert len(pairs.image) == len(pairs.text) == 20 and (pairs.relevance.toarray() == np.eye(20, dtype=bool)).all()
    images = {name: row for row, name in enumerate(split.image_ids)}
    texts = {name: row for row, name in enumerate(split.text_ids)}
    for i, (image, text) in enumerate(zip(pairs.image_ids, pairs.text_ids, strict=True)):
        assert split.relevance[images[image], texts[text]]
        np.testing.assert_array_equal(pairs.image[i], split.image[images[image]])
    assert len(set(pairs.text_ids)) == 20
    assert list(pairs.image_ids) == list(pairs_of(split, 5).image_ids) != list(pairs_of(split, 6).image_ids)
    few = pairs_of(split, 5, most=7)
    assert len(few.image) == 7 and set(few.image_ids) <= set(pairs.image_ids)
    one_to_one = _split(9, 2, "y", images=1)
    np.testing.assert_array_equal(pairs_of(one_to_one, 3).image, one_to_one.image)


@given(st.integers(2, 9), st.integers(1, 6), st.sampled_from([0.01, 0.1, 1.0, 7.0]), st.integers(0, 99))
def test_losses_are_the_values_behind_info_nce(n: int, d: int, tau: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    image, text = (rng.normal(size=(n, d)).astype(np.float32) for _ in range(2))
    image, text = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (image, text))
    found, whole = losses(image, text, tau), info_nce(image, text, tau, normalize=False)
    logits = image.astype(np.float64) @ text.T.astype(np.float64) / tau
    for i in range(n):
        by_row = np.log(np.sum(np.exp(logits[i] - logits[i, i])))
        by_column = np.log(np.sum(np.exp(logits[:, i] - logits[i, i])))
        assert found["image->text"][i] == pytest.approx(by_row, abs=1e-9)
        assert found["text->image"][i] == pytest.approx(by_column, abs=1e-9)
    for direction, values in found.items():
        assert values.mean() == pytest.approx(whole[direction or "symmetric"], rel=1e-6, abs=1e-6)


def test_intervals_over_seeds_are_those_of_students_t() -> None:
    values = np.random.default_rng(0).normal(size=5)
    found = over_seeds([{"a": v} for v in values])["a"]
    low, high = scipy.stats.t.interval(0.95, 4, loc=values.mean(), scale=scipy.stats.sem(values))
    assert (found.value, found.low, found.high) == pytest.approx((values.mean(), low, high))
    single = over_seeds([{"a": 2.0}])["a"]
    assert single.value == 2 and np.isnan(single.low)


def test_halves_of_a_sample_give_the_standard_error_of_its_mean() -> None:
    rng = np.random.default_rng(1)
    sample = rng.normal(size=400)
    halves = [rng.permutation(sample)[:200].mean() for _ in range(2000)]
    found = delete_half([sample.mean(), *halves])
    error = sample.std(ddof=1) / 20
    assert found.value == sample.mean()
    assert found.high - found.value == pytest.approx(scipy.stats.t.ppf(0.975, 1999) * error, rel=0.08)


def test_shares_of_a_random_direction_are_those_of_many() -> None:
    rng = np.random.default_rng(2)
    squares = np.sort(rng.normal(size=(4000, 30)) ** 2, axis=1)[:, ::-1]
    many = (squares / squares.sum(1, keepdims=True)).mean(0)
    shares = random_shares(30)
    assert shares.sum() == pytest.approx(1) and (np.diff(shares) < 0).all()
    np.testing.assert_allclose(np.cumsum(shares), np.cumsum(many), atol=0.03)


# --- the protocol -------------------------------------------------------------------------------------------


def test_every_record_is_named_and_has_its_interval(finished: Study) -> None:
    frame = finished.table()
    assert set(frame["table"]) == {"gap", "landscape", "landscape difference", "main", "difference"}
    assert (frame["n"] > 0).all() and frame["method"].notna().all()
    bounded = frame[frame["metric"].str.match(r"(R@|nDCG|share of|InfoNCE$|mAP$)")]
    assert ((bounded["ci_low"] <= bounded["value"] + 1e-12) & (bounded["value"] <= bounded["ci_high"] + 1e-12)).all()
    tested = frame[(frame["table"] == "difference") & frame["metric"].str.match(r"(R@1|mAP|nDCG|share)")]
    assert tested["p_holm"].notna().all() and (tested["p_holm"] >= tested["p_value"]).all()
    banks = frame[frame["table"] == "main"].groupby("method")["bank"].unique()
    for method in METHODS:
        assert ("transductive" in banks[method][0]) == INTERVENTIONS[method].transductive


def test_main_equals_the_metrics_computed_directly(finished: Study) -> None:
    main = finished.table("main")
    whole = main[main["direction"].isna()].set_index(["method", "metric"])["value"]
    ranked = main[main["direction"].notna()].set_index(["method", "direction", "metric"])["value"]
    for method in ["none", *METHODS]:
        gaps, mixed, recall = [], [], {direction: [] for direction in DIRECTIONS}
        for replicate, parameters in zip(finished.data.replicates, finished.tuned[method], strict=True):
            bank, test = replicate.bank, pairs_of(replicate.test, finished.seed)
            move = intervene(method, bank.image, bank.text, bank.relevance, **parameters)
            image, text = (rows.numpy() for rows in move(test.image, test.text))
            gaps.append(np.linalg.norm(gap_per_dimension(image, text)))
            mixed.append(mixed_gallery_metrics(image, text, k=5))
            recall["image->text"].append(retrieval_metrics(image, text, np.eye(len(text), dtype=bool)))
            recall["text->image"].append(retrieval_metrics(text, image, np.eye(len(text), dtype=bool)))
        assert whole[method, "L2M"] == pytest.approx(np.mean(gaps))
        for name in mixed[0]:
            assert whole[method, name] == pytest.approx(np.mean([m[name] for m in mixed]))
        for direction, metric in itertools.product(DIRECTIONS, ("R@1", "R@10", "mAP")):
            expected = np.mean([r[metric] for r in recall[direction]])
            assert ranked[method, direction, metric] == pytest.approx(expected)


def test_differences_are_those_of_the_main_table(finished: Study) -> None:
    main, rows = finished.table("main"), finished.table("difference")
    value = {(r["method"], str(r["direction"]), r["metric"]): r["value"] for r in main.to_dict("records")}
    for row in rows.to_dict("records"):
        direction, metric = str(row["direction"]), row["metric"].removesuffix(" difference")
        change = value[row["method"], direction, metric] - value["none", direction, metric]
        assert row["value"] == pytest.approx(change, abs=1e-12), row


def test_tuning_never_sees_the_test_split(make) -> None:
    chosen = []
    for test_seed in (3, 300):
        study = make(_data(test_seed))
        study.tune()
        chosen.append(study.tuned)
    assert chosen[0] == chosen[1]


def test_a_bank_in_a_file_gives_the_same_numbers(make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, found = _data(replicates=1), []
    for large in (2**27, 1):
        monkeypatch.setattr(ranking, "LARGE", large)
        replicates = []
        for each in whole.replicates:
            files = {}
            for side in ("image", "text"):
                rows, path = getattr(each.bank, side), tmp_path / f"{each.label}, {side}"
                rows.tofile(path)
                files[side] = opened(path, rows.dtype, rows.shape)
            replicates.append(replace(each, bank=replace(each.bank, **files)))
        study = make(replace(whole, replicates=tuple(replicates)), interventions=["i0t", "procrustes", "linear"])
        study.tune()
        study.evaluate()
        assert isinstance(study.parts[0].train.text.rows, ranking.Rows) == (large == 1)
        found.append(study.table())
    pd.testing.assert_frame_equal(*found, check_exact=True)
    assert len(found[0]) > 50


def test_the_landscape_starts_from_the_embeddings_as_they_are(finished: Study) -> None:
    rows = finished.table("landscape")
    rows = rows.assign(lam=[p["lam"] for p in rows["parameters"]], tau=[p.get("tau") for p in rows["parameters"]])
    assert set(rows["lam"]) == {-0.5, 0.0, 0.5, 1.0}  # 0 is always among them
    whole = finished.whole
    for tau in (finished.trained, 0.05, 0.5):
        expected = info_nce(whole.image, whole.text, tau)
        here = rows[(rows["lam"] == 0) & (rows["tau"] == tau)]
        for direction, value in zip(here["direction"].fillna("symmetric"), here["value"], strict=True):
            assert value == pytest.approx(expected[direction], abs=1e-6)
        assert len(here) == 3
    gaps = rows[rows["metric"] == "L2M"].set_index("lam")["value"]
    assert gaps.is_monotonic_decreasing and gaps[0.0] == pytest.approx(
        np.linalg.norm(gap_per_dimension(whole.image, whole.text))
    )
    least = finished.minima()
    for (tau, direction), here in (
        rows[rows["metric"] == "InfoNCE"].fillna({"direction": "symmetric"}).groupby(["tau", "direction"])
    ):
        assert least.loc[tau, direction] == here.loc[here["value"].idxmin(), "lam"]
    assert finished.answer_landscape().count("\n") == 2


def test_the_energy_adds_up_to_the_gap(finished: Study) -> None:
    energy = finished.energy()
    squared = np.sum(gap_per_dimension(finished.whole.image, finished.whole.text) ** 2)
    for (_, basis), here in energy[energy["weights"] == "trained"].groupby(["weights", "basis"]):
        assert here["share"].sum() == pytest.approx(1), basis
        assert (here["gap"] ** 2).sum() == pytest.approx(squared), basis
        assert here["share"].is_monotonic_decreasing


def test_the_conclusion_names_exactly_the_clear_differences(finished: Study) -> None:
    rows = finished.table("difference")
    lines = finished.conclusion().splitlines()
    for direction in DIRECTIONS:
        (line,) = [line for line in lines if line.startswith(f"- R@1 {direction}:")]
        higher, lower = line.split("; lower")
        here = rows[(rows["metric"] == "R@1 difference") & (rows["direction"] == direction)]
        for row in here.to_dict("records"):
            clear = row["p_holm"] < 0.05
            assert (f"`{row['method']}`" in higher) == (clear and row["value"] > 0)
            assert (f"`{row['method']}`" in lower) == (clear and row["value"] < 0)
    assert "nothing here says which items belong together" in lines[-1]
    closing = finished.table("main")
    left = closing[closing["metric"] == "L2M"].set_index("method")["value"]
    for method in METHODS:
        assert (f"`{method}`" in lines[0]) == (left[method] <= left["none"] / 2)


def test_what_needs_a_model_is_left_out_with_a_sentence(make, capsys: pytest.CaptureFixture[str]) -> None:
    study = make()
    study.gap()
    assert study.finetune().empty and "Not asked" in study.answer_temperature()
    said = capsys.readouterr().out
    assert "neither a model to initialise nor a stored twin" in said and "stored features come without a model" in said
    assert "not known here" in study.answer_gap()
    assert study.feature_clouds().empty


@pytest.fixture
def glyphs() -> EmbeddingData:
    """Return 14 letters of each of three scripts, plainly apart, with pictures and a model."""
    names = [f"U+{code:04X}" for start in (0x61, 0x3B1, 0x430) for code in range(start, start + 14)]
    centres = np.repeat(np.eye(3), 14, axis=0)
    rng = np.random.default_rng(0)
    image, text = ((centres + 0.05 * rng.normal(size=centres.shape)).astype(np.float32) for _ in range(2))
    split = Split(image, text, np.eye(42, dtype=bool), np.array([f"{n}/face" for n in names]), np.array(names))
    captions = {name: chr(int(name[2:], 16)) for name in names}
    drawn = np.full((42, 4, 4), 7, np.uint8)
    pictures = Pictures(
        Items("glyphs", "test", drawn, [*captions.values()], split.image_ids, split.text_ids, np.eye(42))
    )
    part = Replicate(split, split, split, "official split", "train, 20 %")
    return EmbeddingData("glyphs", "glyph-clip", "0" * 64, (part,), (), "", captions, pictures)


def test_a_model_of_another_family_is_measured_and_not_fine_tuned(make, glyphs, tmp_path: Path, capsys) -> None:
    model = str(checkpoints.build(tmp_path, ["siglip"])["siglip"])
    study = make(replace(glyphs, model=model), interventions=["mean-centring"])
    assert study.finetune().empty and f"{model} is no CLIP model" in capsys.readouterr().out
    assert "Not asked" in study.answer_temperature()


def test_groups_are_found_again_where_they_are_plain(make, glyphs: EmbeddingData) -> None:
    study = make(glyphs, interventions=["mean-centring"])
    study.tune()
    study.evaluate()
    main = study.table("main").set_index(["method", "metric"])["value"]
    assert main["none", "V-measure"] == pytest.approx(1) and main["none", "modality in clusters"] == pytest.approx(
        0, abs=1e-9
    )
    assert "V-measure" in " ".join(study.compare()["metric"]) and "groups, V-measure" in study.conclusion()


def test_records_and_artefacts_are_the_same_bytes_each_time(make, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    for name in ("one", "two"):
        folder = tmp_path / name
        monkeypatch.setenv("REPROLIB_RUN_DIR", str(folder))
        study = make(interventions=["mean-centring", "spectral"])
        for step in ("gap", "landscape", "tune", "evaluate", "compare"):
            getattr(study, step)()
        assert study.save() == folder
        written.append((folder / "results.json").read_bytes())
        per_query = pd.read_parquet(folder / "per_query.parquet")
        assert json.loads((folder / "identities.json").read_text()) == {"synthetic with none": "0" * 64}
        assert len(pd.read_parquet(folder / "energy.parquet")) and len(pd.read_parquet(folder / "clouds.parquet"))
    assert written[0] == written[1]
    assert records.load(tmp_path / "one")[0].study == "modality-gap"
    assert (per_query.groupby(["direction", "method"]).size() == 80).all()  # 2 replicates of 40 pairs
    assert per_query["share of own modality in top-5 of own modality"].between(0, 1).all()


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"interventions": ["centring"]}, "unknown intervention 'centring'; nearest valid: mean-centring"),
        ({"interventions": ["none"]}, "interventions names no intervention"),
        ({"shifts": []}, "parameter shifts is empty"),
        ({"temperatures": [0.0]}, "temperatures must be greater than 0"),
        ({"temperature": -1.0}, "temperature must be greater than 0"),
        ({"n_halves": 1}, "n_halves must be at least 2"),
        ({"feature_sets": ["coco-clip"]}, "unknown dataset 'coco-clip'"),
        ({"k": 30}, "k = 30 needs more than 30 pairs in every validation and test part; the smallest has 30"),
    ],
)
def test_bad_parameters_are_one_sentence(make, parameters: dict, said: str) -> None:
    with pytest.raises(InputError, match=said) as error:
        make(**parameters)
    assert "\n" not in str(error.value)


def test_an_intervention_that_the_rows_are_too_few_for_is_left_out_with_a_sentence(
    make, capsys: pytest.CaptureFixture[str]
) -> None:
    data = _data(replicates=1)
    tiny = replace(data, replicates=(replace(data.replicates[0], validation=_split(8, 1, "few")),))
    study = make(tiny, interventions=["spectral", "mean-centring"])
    assert list(study.tune()["intervention"]) == study.interventions == ["none", "mean-centring"]
    assert "Left out spectral: k = 120 is not between" in capsys.readouterr().out
    assert set(study.evaluate()["method"]) == {"none", "mean-centring"}
    with pytest.raises(InputError, match="no intervention fits these rows; spectral: k = 120"):
        make(tiny, interventions=["spectral"]).tune()


def test_interventions_that_come_to_the_same_are_measured_once(make) -> None:
    study = make(interventions=["shift", "i0t", "mean-centring"])
    study.tuned = {"none": [{}] * 2, "shift": [{"lam": 0.0}] * 2, "i0t": [{"variant": "paper"}] * 2,
                   "mean-centring": [{}] * 2}  # fmt: skip
    assert study.measure("shift") is study.measure("none") is not study.measure("i0t")
    assert study.measure("i0t") is study.measure("mean-centring")


# --- where the study shows elsewhere ----------------------------------------------------------------------------


def test_the_report_shows_what_has_no_direction_in_tables_of_its_own(finished: Study, tmp_path: Path) -> None:
    records.save(finished.rows, tmp_path)
    found = records.load(tmp_path)
    *_, both = report._summary(found)
    assert both.columns == ["settings", "L2M", "RMG"]  # mixed search is among the first ten only by default
    assert [name for name, _ in both.rows] == ["none", *METHODS]
    assert len(report._summary(found)) == 3 and len(report._differences(found)) == 2
    (changes,) = report._changes(found)
    rows = finished.table("difference")
    gap = rows[rows["metric"] == "L2M difference"].set_index("method")["value"]
    for name, cells in changes.rows:
        assert float(cells[0][0].replace("−", "-")) == pytest.approx(gap[name], abs=6e-3)


def test_a_star_in_the_report_is_a_clear_difference() -> None:
    common = {"study": "modality-gap", "dataset": "d", "model": "m", "direction": None, "table": "difference",
              "reference": "none", "metric": "nDCG@10 mixed, texts difference", "ci_low": 0.1,
              "ci_high": 0.3}  # fmt: skip
    rows = [
        records.Record(**common, method=method, value=0.2, p_holm=p)
        for method, p in (("shift", 0.01), ("linear", 0.2), ("i0t", None))
    ]
    (table,) = report._changes(rows)
    assert table.columns == ["nDCG@10 mixed, texts, points"]
    assert [cells[0] for _, cells in table.rows] == [("20.0*", "10.0 to 30.0"), *[("20.0", "10.0 to 30.0")] * 2]


def test_records_may_search_within_a_modality() -> None:
    for direction in ("image->image", "text->text"):
        one = {"study": "s", "dataset": "d", "model": None, "method": None, "metric": "R@1", "value": 0.5}
        assert records.Record(**one, direction=direction).direction == direction


def test_interventions_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["list", "methods"])
    shown = capsys.readouterr().out
    assert all(name in shown for name in INTERVENTIONS)


# --- the real pairs: printed digits of the measured values ------------------------------------------------------

LAMBDAS = (-0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0)
LANDSCAPE = {  # methods (e): each side moved by lambda / 2 of the centroid difference, tau = 0.01, 500 pairs
    ("InfoNCE", "image->text"): (2.066, 1.848, 1.719, 1.783, 2.144, 2.831, 3.752),
    ("InfoNCE", "text->image"): (1.930, 1.872, 1.882, 2.030, 2.401, 3.031, 3.849),
    ("InfoNCE", "symmetric"): (1.998, 1.860, 1.801, 1.907, 2.272, 2.931, 3.801),
    ("R@1", "image->text"): (0.472, 0.522, 0.552, 0.542, 0.468, 0.422, 0.358),
    ("R@1", "text->image"): (0.516, 0.526, 0.506, 0.492, 0.458, 0.416, 0.366),
}
GAPS = (1.15, 1.01, 0.85, 0.67, 0.46, 0.24, 0.01)
MEASURED = {"trained": {"L2M": 0.8514, "cosine of pairs": 0.3099}, "random": {"L2M": 1.1361, "cosine of pairs": 0.0285}}


def test_the_measured_landscape_of_500_coco_pairs_comes_out_again(tmp_path: Path) -> None:
    """Without the stored features, what holds for any pairs is asserted on made-up ones."""
    real = (MIRROR / "coco-clip-500").is_dir()
    made_up = _split(60, 0, "own", images=1)
    np.savez(tmp_path / "own.npz", image=made_up.image, text=made_up.text)
    source = {"dataset": "coco-clip-500", "mirror": str(MIRROR)} if real else {"embeddings": str(tmp_path / "own.npz")}
    study = Study(**source, temperatures=[0.01], feature_sets=[], n_bootstrap=50, n_splits=1)
    found, least = study.landscape(), study.minima().loc[0.01]
    assert tuple(found.index) == LAMBDAS and study.trained == 0.01
    whole = study.whole
    assert found["InfoNCE", "symmetric"][0.0] == pytest.approx(
        info_nce(whole.image, whole.text, 0.01)["symmetric"], abs=1e-5
    )
    assert found["L2M", ""].is_monotonic_decreasing and found["L2M", ""][1.0] < 0.1 * found["L2M", ""][0.0]
    if real:
        for key, printed in LANDSCAPE.items():
            assert tuple(found[key].round(3)) == printed, key
        assert tuple(found["L2M", ""].round(2)) == GAPS
        assert (least["image->text"], least["symmetric"], least["text->image"]) == (0.0, 0.0, -0.25)
        for split, expected in ((whole, MEASURED["trained"]), (study.random[0], MEASURED["random"])):
            values = gap_metrics(split.image, split.text, probe=False)
            assert {name: round(values[name], 4) for name in expected} == expected
