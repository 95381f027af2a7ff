"""The training-variance study on a made-up corpus: records, intervals and words; published seeds and sentence pairs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from reprolib.errors import InputError
from reprolib.metrics.variance import components, expected_range
from reprolib.models.heads import PC2, Head
from reprolib.study import records, sweep, training_variance
from reprolib.study.ledger import claims
from reprolib.study.records import Record
from reprolib.study.training_variance import (
    DIRECTIONS,
    Study,
    overlap_pairs,
    published,
    read_sts,
    seed_tables,
    selected,
    trained,
)
from reprolib.study.verdicts import margins

TINY = {
    "n_seeds": 3, "epochs": 2, "dimension": 16, "batch": 16, "n_bootstrap": 200, "n_permutations": 99,
    "losses": ["infonce", "infonce-k", "one-to-k", "sum-of-hinges", "hardest-negative"], "noises": [0.4],
    "keeps": [0.5],
}  # fmt: skip


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Return the study of a file of 100 images with two texts each, known by features alone, with every part run."""
    folder = tmp_path_factory.mktemp("study")
    rng = np.random.default_rng(0)
    image = rng.normal(size=(100, 12))
    text = np.repeat(image, 2, axis=0) + 0.8 * rng.normal(size=(200, 12))
    relevance = np.kron(np.eye(100, dtype=bool), np.ones((1, 2), bool))
    np.savez(folder / "own.npz", image=image, text=text, relevance=relevance)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REPROLIB_CACHE", str(folder / "cache"))
        patch.setenv("REPROLIB_RUN_DIR", str(folder / "run"))
        patch.setattr("reprolib.models.heads.TOGETHER", 3)
        (folder / "run").mkdir()
        found = Study(embeddings=str(folder / "own.npz"), **TINY)
        found.train()
        for part in (
            found.factors, found.losses_compared, found.ranges, found.decomposition, found.power, found.protocols,
            found.noise, found.curation, found.text_quality, found.replayed,
        ):  # fmt: skip
            part()
        found.save()
    return found


def rows(study: Study, table: str, **fields: object) -> list[dict]:
    return [row for row in study.rows if row["table"] == table and all(row[k] == v for k, v in fields.items())]


def test_every_record_is_valid_and_has_an_interval_around_its_value(study: Study) -> None:
    stored = [Record.model_validate(row) for row in study.rows]
    tables = {
        "factors", "effect", "loss", "range", "excess", "components", "detectable", "protocol", "protocol difference",
        "selection", "selection difference", "noise", "robust", "curation", "filtered", "replay",
    }  # fmt: skip
    assert {record.table for record in stored} == tables
    for record in stored:
        assert record.ci_low <= record.value + 1e-12 and record.value <= record.ci_high + 1e-12, record


def test_a_stored_run_holds_everything(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPROLIB_RUN_DIR", str(tmp_path))
    study.save()
    assert len(records.load(tmp_path)) == len(study.rows)
    frame = pd.read_parquet(tmp_path / "runs.parquet")
    assert len(frame) == len(study.found) * 6 and frame["R@1"].between(0, 1).all()
    assert set(pd.read_parquet(tmp_path / "seeds.parquet")["model"]) >= {"VSE++", f"{study.data.name}, base"}


def test_means_and_differences_are_those_of_the_runs(study: Study) -> None:
    base, other = (study.levels["normalisation"][name] for name in ("l2", "standard"))
    for place, direction in enumerate(DIRECTIONS):
        one, two = (
            np.array([run.test[run.validation.sum(1).argmax()] for run in map(study.found.get, study.seeded(head))])
            for head in (other, base)
        )
        (row,) = rows(study, "effect", direction=direction, method="standard", reference="l2")
        assert row["value"] == pytest.approx((one - two)[:, place].mean())
        (row,) = [r for r in rows(study, "factors", direction=direction, method="l2")]
        assert row["value"] == pytest.approx(two[:, place].mean()) and row["n"] == 3


def test_ranges_excess_and_components(study: Study) -> None:
    typical = np.median(list(published().values()))
    for place, direction in enumerate(DIRECTIONS):
        means = [study.values(head)[:, place].mean() for head in study.levels["loss"].values()]
        (row,) = rows(study, "range", direction=direction, method="loss")
        assert row["value"] == pytest.approx(max(means) - min(means))
        (seeds,) = rows(study, "range", direction=direction, method="seed")
        sd = study.values(study.base)[:, place].std(ddof=1)
        assert seeds["value"] == pytest.approx(sd * expected_range(3))
        (beyond,) = rows(study, "excess", direction=direction, method="loss")
        assert beyond["value"] == pytest.approx(row["value"] - typical)
        cells = [
            [study.values(Head(**vars(study.base) | {"loss": loss, "normalisation": scaled}))[:, place]
             for scaled in study.crossed["normalisation"]] for loss in study.crossed["loss"]
        ]  # fmt: skip
        exact = components(100 * np.array(cells).transpose(2, 0, 1), ["seed", "loss", "normalisation"])
        found = {row["method"]: row["value"] for row in rows(study, "components", direction=direction)}
        assert found == pytest.approx(exact)
        shares = [row["parameters"]["share"] for row in rows(study, "components", direction=direction)]
        assert sum(shares) == pytest.approx(1)


def test_protocols_bound_each_other(study: Study) -> None:
    value = {(row["direction"], row["method"]): row["value"] for row in rows(study, "protocol")}
    chosen = {(row["direction"], row["method"]): row["value"] for row in rows(study, "selection")}
    for direction in DIRECTIONS:
        low, middle, high = (value[direction, name] for name in ("ties pessimistic", "all partners", "ties optimistic"))
        assert low <= middle <= high
        assert value[direction, "five folds"] > middle  # a fifth of the gallery
    best, validated = (sum(chosen[d, how] for d in DIRECTIONS) for how in ("best on test", "best on validation"))
    assert best >= validated


def test_noise_and_curation_are_compared_with_what_they_say(study: Study) -> None:
    for row in rows(study, "robust"):
        assert (row["method"], row["reference"], row["parameters"]) == (PC2, "hardest-negative", {"noise": 0.4})
    assert {row["reference"] for row in rows(study, "filtered")} == {"all", "random"}
    assert all(row["parameters"] == {"keep": 0.5, "noise": 0.4} for row in rows(study, "filtered"))
    assert "against `all`" in study.answer() and "50%" in study.answer()


def test_the_conclusion_states_the_numbers(study: Study) -> None:
    told = study.conclusion()
    (row,) = rows(study, "range", direction=DIRECTIONS[0], method="loss")
    assert f"loss {100 * row['value']:.1f}" in told and f"of {len(published())} published improvements" in told


def test_every_run_is_trained_once_with_every_seed_by_what_the_data_allows(study: Study) -> None:
    assert len(study.heads) == len(set(study.heads)) == len(study.found)
    assert {head.seed for head in study.heads} == {0, 1, 2}
    assert study.encoders == ["frozen"] and "initialisation" not in study.levels


def test_the_full_grid_is_trained_in_parts_that_the_study_finds_again(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = [study.share_of_heads(share, 4) for share in range(4)]
    assert sorted(map(repr, study.heads)) == sorted(repr(head) for share in shares for head in share)
    assert all(len(share) % 3 == 0 for share in shares)
    with pytest.raises(InputError, match="valid is 0 to 3"):
        study.share_of_heads(4, 4)
    (tmp_path / "sweep.yaml").write_text(
        "point: reprolib.study.training_variance:trained\nparameters: {shares: 8}\n"
        "grid: {share: [0, 1, 2, 3, 4, 5, 6, 7]}\n"
    )
    assert len(sweep.jobs_of(sweep.read(tmp_path / "sweep.yaml"))) == 8

    monkeypatch.setenv("REPROLIB_CACHE", str(tmp_path))
    monkeypatch.setattr("reprolib.models.heads.TOGETHER", 3)
    monkeypatch.setattr(training_variance, "load_corpus", lambda *a, **k: study.data)
    small = {name: value for name, value in TINY.items() if name in ("n_seeds", "epochs", "dimension", "batch")}
    rows = [trained(share=share, shares=2, full=False, **small) for share in (0, 1)]
    assert all(Record.model_validate(row).table == "trained" for part in rows for row in part)
    monkeypatch.setattr("reprolib.models.heads.train", lambda *a, **k: pytest.fail("nothing is left to train"))
    whole = Study(**small)
    assert len(whole.train()) == 6 * len(whole.heads) and len(rows[0]) + len(rows[1]) == 2 * len(whole.heads) // 3


def test_published_seeds_are_those_of_the_readme() -> None:
    # mean, sample standard deviation and range of both directions; their notes give them to two and one decimals
    known = {
        "VSE++": (44.40, 1.43, 5.1, 32.70, 0.20, 0.6), "SCAN i-t AVG": (66.22, 0.41, 1.2, 43.93, 0.75, 2.4),
        "VSRN": (66.86, 1.81, 5.9, 49.42, 1.31, 4.2), "SAEM": (69.88, 1.36, 4.2, 52.64, 0.46, 1.3),
        "SGRAF-SGR": (75.99, 1.53, 4.9, 56.16, 1.24, 4.5), "CAMERA": (76.41, 0.87, 2.9, 58.75, 0.33, 1.2),
        "SAEM, random BERT": (50.67, 0.52, 1.7, 33.94, 0.49, 1.8),
        "CAMERA, random BERT": (44.98, 6.71, 21.5, 29.20, 4.66, 14.5),
    }  # fmt: skip
    table = seed_tables()
    assert set(table["model"]) == set(known) and (table.groupby(["model", "direction"]).size() == 10).all()
    for model, numbers in known.items():
        for direction, (mean, sd, span) in zip(DIRECTIONS, (numbers[:3], numbers[3:]), strict=True):
            values = 100 * table.loc[(table["model"] == model) & (table["direction"] == direction), "R@1"]
            assert (values.mean(), values.std(), np.ptp(values)) == pytest.approx((mean, sd, span), abs=0.0051)
    repeated = table[table["repeats"] > 0]
    assert set(zip(repeated["model"], repeated["seed"], repeated["repeats"], strict=True)) == {("SGRAF-SGR", 6, 2)}
    stated = {name: claim.claimed.value for name, claim in claims().items() if name.endswith("vse-seeds")}
    assert list(stated.values()) == [pytest.approx(100 * table.query("model == 'VSE++'")["R@1"].iloc[::2].mean())]


def test_published_improvements_are_verified_and_of_others() -> None:
    found, every = published(), claims()
    assert len(found) >= 10 and min(found.values()) > 0
    for name in found:
        assert every[name].provenance in ("paper", "code") and every[name].metric == "R@1"
        assert not name.startswith(training_variance.PAPER)
    assert margins().floor("R@1 difference") == margins().floor("R@1")


def test_selection_takes_the_checkpoint_of_the_best_sum() -> None:
    from reprolib.models.heads import Run

    nothing = np.zeros((0, 2))
    validation, test = np.array([[0.1, 0.2], [0.3, 0.3], [0.2, 0.2]]), np.array([[0.5, 0.1], [0.2, 0.2], [0.3, 0.2]])
    run = Run(validation, test, nothing, nothing, nothing)
    assert selected(run, "last").tolist() == [0.3, 0.2]
    assert selected(run, "best on validation").tolist() == [0.2, 0.2]
    assert selected(run, "best on test").tolist() == [0.5, 0.1]


# --- sentence pairs -----------------------------------------------------------------------------------------

STSB = 'main-captions\tMSRvid\t2012test\t000{}\t{}\tA "man is {}.\tA man sits.\n'


def test_sts_files_with_and_without_a_header(tmp_path: Path) -> None:
    (tmp_path / "sts-dev.csv.tsv").write_text("".join(STSB.format(i, i / 2, i) for i in range(4)))
    first, second, scores = read_sts(tmp_path / "sts-dev.csv.tsv")
    assert first[2] == 'A "man is 2.' and second[0] == "A man sits." and scores.tolist() == [0, 0.5, 1, 1.5]
    (tmp_path / "pairs.csv").write_text('score,sentence1,sentence2\n1,"a, b",c\n2,d,e\n3,f,g\n')
    assert read_sts(tmp_path / "pairs.csv")[0] == ["a, b", "d", "f"]
    for name, text, message in (
        ("short.tsv", "a\tb\n", "line 1"), ("few.csv", "sentence1,sentence2,score\na,b,1\n", "at least 3"),
        ("word.csv", "sentence1,sentence2,score\na,b,high\n", "line 2"),
    ):  # fmt: skip
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match=message):
            read_sts(tmp_path / name)
    with pytest.raises(InputError, match="cannot be read"):
        read_sts(tmp_path / "none.csv")


def test_pairs_that_share_words_are_scored_by_what_they_share() -> None:
    texts = ["red old house", "red new house", "green tree", "old green door", "red old house"]
    first, second, scores = overlap_pairs(texts, 50, 0)
    for one, other, score in zip(first, second, scores, strict=True):
        a, b = set(one.split()), set(other.split())
        assert score == pytest.approx(len(a & b) / len(a | b)) and 0 < score < 1 and one != other
    again = overlap_pairs(texts, 50, 0)
    assert again[0] == first and (again[2] == scores).all()
    assert overlap_pairs(["a", "b"], 5, 0)[0] == []


def test_text_quality_of_a_corpus_with_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from reprolib.models.corpus import Corpus
    from tests.models.test_heads import part  # a corpus in words

    whole = part("test", 24, 3, 3)
    corpus = Corpus(
        "made", "axes", part("train", 64, 3, 1), part("validation", 20, 1, 2), whole.thinned(1), whole, "made"
    )
    monkeypatch.setattr(training_variance, "load_corpus", lambda *a, **k: corpus)
    monkeypatch.setattr("reprolib.models.heads.TOGETHER", 3)
    monkeypatch.setenv("REPROLIB_CACHE", str(tmp_path))
    given = TINY | {"losses": ["infonce"], "encoders": ["linear", "mlp"], "noises": [], "keeps": []}
    found = Study(**given)
    found.train()
    table = found.text_quality()
    assert set(table["metric"]) == {"Spearman with word overlap", "R@1"} and set(table["method"]) == {"linear", "mlp"}
    _, first, _, scores = found.reference
    probes = [found.found[head].probe for head in found.seeded(found.base)]
    exact = [scipy.stats.spearmanr((p[: len(first)] * p[len(first) :]).sum(1), scores).statistic for p in probes]
    (row,) = [r for r in found.rows if r["method"] == "linear" and r["metric"] != "R@1"]
    assert row["value"] == pytest.approx(np.mean(exact)) and row["direction"] == "text->text"
    assert found.curation().empty and found.answer().startswith("Nothing")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"losses": ["infonse"]}, "infonce"), ({"n_seeds": 2}, "at least 3"), ({"noises": [1.0]}, "shares"),
        ({"keeps": [0.0]}, "keeps above 0"), ({"encoders": ["gru"]}, "frozen"), ({"seed": -1}, "seed"),
        ({"batch": 20}, "multiple of 8"), ({"device": "cuda:7"}, "not available"),
    ],
)  # fmt: skip
def test_bad_parameters(change: dict, message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "own.npz", image=np.eye(20, 6) + 1, text=np.eye(20, 6) + 1)
    with pytest.raises(InputError, match=message):
        Study(embeddings=str(tmp_path / "own.npz"), **TINY | change)
