import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reprolib.errors import DataUnavailable, InputError, RunError
from reprolib.study import provenance, replay, runner
from reprolib.study.margins import Margins
from reprolib.study.parameters import read_study

Make = Callable[..., Any]
RESULTS = """
import numpy as np, pandas as pd
from reprolib.study import records
rng = np.random.default_rng(seed)
ranks = rng.integers(1, 9, size).astype(float)
about = dict(study='tiny', dataset='none', model=None, direction='text->image', method='is', n=size)
values = {'R@1': (ranks == 1).mean(), 'InfoNCE': ranks.mean() + noise}
records.save([about | dict(metric=name, value=value) for name, value in values.items()])
frame = pd.DataFrame(dict(direction='text->image', method='is', query_id=[str(i) for i in range(size)], rank=ranks))
frame.to_parquet(records.run_directory() / 'per_query.parquet')
"""


@pytest.fixture
def margins(monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = Margins(level=0.95, measured="here", floors={"R@1": 0.02})
    monkeypatch.setattr(replay, "margins", lambda: frozen)


def queries(**columns: Any) -> pd.DataFrame:
    keys = {"direction": "text->image", "method": ["none", "none", "none", "is"], "query_id": list("abca")}
    values = {"R@1": [1.0, 0.0, 0.0, 1.0], "rank": [1.0, 3.0, 2.0, 1.0], "loss": [0.1, 0.2, math.nan, 0.4]}
    return pd.DataFrame(keys | values | columns)


def held(found: replay.Difference) -> list[bool]:
    return [agreement.holds for agreement in replay.agreements(found)]


def test_a_run_is_repeated_from_itself_alone(make_notebook: Make, tmp_path: Path) -> None:
    declared = "size: int = 4  # n\nseed: int = 0  # s\nnoise: float = 0  # of the loss"
    notebook = make_notebook(RESULTS, parameters=declared)
    run = runner.run(read_study(notebook), {"size": 50}, tmp_path / "runs" / "tiny", threads=1, progress=False)
    notebook.unlink()
    found, kept = replay.replay(run, out=tmp_path / "again", progress=False)
    assert [(a.tier, a.compared, a.broken) for a in kept] == [("A", 3, []), ("B", 2, []), ("C", 0, [])]
    assert provenance.read(tmp_path / "again")["parameters"] == {"size": 50, "seed": 0, "noise": 0}
    assert provenance.read(tmp_path / "again")["threads"] == 1
    assert found.files == [] and found.missing == found.extra == [] and not found.unmatched
    assert {name for name, _, _ in found.facts} <= {"notebook.sha256", "code.commit", "code.tree", "code.dirty"}
    assert (tmp_path / "again" / "01_tiny.ipynb").read_text().count("injected-parameters") == 1


def test_every_kind_of_difference_is_told(make_run: Make, record: Make) -> None:
    found = [record(), record(metric="loss", value=1.0), record(table="gap"), record(method="none", p_value=0.5)]
    other = [record(), record(metric="loss", value=2.0), record(table="k"), record(method="none", p_value=0.4)]
    one = make_run("one", found, queries())
    two = make_run(
        "two", other, queries(rank=[1.0, 2.0, 3.0, 1.0]), threads=2, identities={}, parameters={"size": 4, "extra": 1}
    )
    difference = replay.diff(one, two)
    facts = {name: (a, b) for name, a, b in difference.facts}
    assert facts["parameters.size"] == (3, 4) and facts["parameters.extra"] == (None, 1)
    assert facts["threads"] == (1, 2) and facts["identities.none with nothing"] == ("e" * 64, None)
    assert next(iter(facts)).startswith("parameters.") and "environment.python" not in facts
    changed = [(n.metric, n.field, n.one, n.other) for n in difference.numbers if n.distance]
    assert changed == [("loss", "value", 1.0, 2.0), ("R@1", "p_value", 0.5, 0.4)]
    assert [r.table for r in difference.missing] == ["gap"] and [r.table for r in difference.extra] == ["k"]
    assert not difference.same and {n.tier for n in difference.numbers} == {"C"}
    assert difference.files == ["per_query.parquet", "results.json"]
    text = "\n".join(difference.lines())
    assert text.index("parameters.size: 3 | 4") < text.index("identities") < text.index("loss") < text.index("RMSE")
    assert "first  gap" in text and "second k" in text and "files    2 differ in bytes: per_query" in text
    assert "and 1 more" in "\n".join(difference.lines(1))


def test_queries_are_matched_by_name_not_by_row(make_run: Make) -> None:
    frame = queries()
    shuffled = frame.iloc[[3, 1, 0, 2]].reset_index(drop=True)
    one, two = make_run("one", queries=frame), make_run("two", queries=shuffled)
    found = replay.diff(one, two)
    assert (found.queries["equal"] == 1).all() and found.unmatched == 0 and held(found) == [True] * 3
    assert found.queries["n"].tolist() == [3, 3, 3, 1, 1, 1]
    fewer = replay.diff(one, make_run("fewer", queries=frame.iloc[:3]))
    assert fewer.unmatched == 1 and held(fewer) == [False, True, True]
    twice = pd.concat([frame, frame.iloc[:1]], ignore_index=True)
    assert replay.diff(one, make_run("twice", queries=twice)).unmatched == 1
    without = replay.diff(one, make_run("without"))
    assert without.queries.empty and without.unmatched == 4 and held(without) == [False, True, True]
    narrow = replay.diff(one, make_run("narrow", queries=frame.drop(columns="rank")))
    assert narrow.columns == ["rank"] and narrow.unmatched == 0 and held(narrow) == [False, True, True]
    assert "in one run only: rank" in "\n".join(narrow.lines())
    bare = [make_run(f"bare {n}", queries=frame[["rank"]].iloc[:n]) for n in (4, 3)]
    assert replay.diff(*bare).unmatched == 1 and replay.diff(*bare).queries["n"].tolist() == [3]


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=2, max_size=12))
def test_agreement_of_queries_against_the_slow_way(pairs: list[tuple[int, int]]) -> None:
    one, other = (np.array(side, dtype=float) for side in zip(*pairs, strict=True))
    found = replay._compared("rank", one, other)
    assert found["equal"] == sum(a == b for a, b in pairs) / len(pairs)
    assert found["rmse"] == pytest.approx(math.sqrt(sum((a - b) ** 2 for a, b in pairs) / len(pairs)))
    assert found["bytes"] is found["close"] is all(a == b for a, b in pairs)
    if found["equal"] < 1:
        concordant, sizes = 0, [0, 0]
        for i, (a, b) in enumerate(pairs):
            for c, d in pairs[:i]:
                concordant += np.sign(a - c) * np.sign(b - d)
                sizes[0] += a != c
                sizes[1] += b != d
        tau = concordant / math.sqrt(sizes[0] * sizes[1]) if all(sizes) else math.nan
        assert found["tau"] == pytest.approx(tau, nan_ok=True)
    assert math.isnan(replay._compared("loss", one, other)["tau"])
    assert replay._compared("rank", one, one)["tau"] == 1


TIERS = [  # metric of the record, change, tiers that hold
    ("R@1", 0.0, [True, True, True]),
    ("R@1", 1e-12, [False, True, True]),
    ("R@1 difference: x - y", 1e-12, [False, True, True]),
    ("skewness, retrieved items only", 1e-12, [False, True, True]),
    ("InfoNCE", 1e-7, [True, True, True]),
    ("InfoNCE", 1e-5, [True, False, True]),
]


@pytest.mark.parametrize(("metric", "change", "holds"), TIERS)
def test_tiers_of_records(make_run: Make, record: Make, metric: str, change: float, holds: list[bool]) -> None:
    one, two = (make_run(str(n), [record(metric=metric, value=0.5 + n * change)]) for n in (0, 1))
    assert held(replay.diff(one, two)) == holds
    assert held(replay.diff(two, one)) == holds


NOISE = [  # metric, what changes, whether tier C holds where a noise floor of 0.02 is known for R@1 alone
    ("R@1", {"value": 0.515}, True),
    ("R@1", {"value": 0.525}, False),
    ("R@1 difference: x - y", {"value": 0.515}, True),
    ("R@1", {"p_value": 0.9}, True),
    ("R@1", {"n": 5}, False),
    ("R@1", {"value": None}, False),
    ("loss", {"value": 0.5}, True),
    ("loss", {"value": 0.5 + 1e-9}, False),
]


@pytest.mark.parametrize(("metric", "changed", "holds"), NOISE)
@pytest.mark.parametrize("trained", ["data", "method", "reference", "table"])
def test_tier_c(
    make_run: Make, record: Make, margins: None, metric: str, changed: dict, holds: bool, trained: str
) -> None:
    about = {
        "data": {},
        "method": {"method": "inversion-stopped"},
        "reference": {"reference": "inversion"},
        "table": {"study": "modality-gap", "table": "temperature"},
    }[trained]
    first = record(metric=metric, p_value=0.1, **about)
    facts = {"identities": {"none": "f" * 64}} if trained == "data" else {}
    found = replay.diff(make_run("one", [first]), make_run("two", [first | changed], **facts))
    assert held(found) == [True, True, holds]


def test_tiers_of_queries(make_run: Make, margins: None) -> None:
    def compared(**changed: Any) -> list[bool]:
        folder = str(len(list(Path(one).parent.iterdir())))
        return held(replay.diff(one, make_run(folder, queries=queries(**changed))))

    one = make_run("one", queries=queries())
    assert compared() == [True, True, True]
    assert compared(rank=[1.0, 3.0, 4.0, 1.0]) == [False, True, True]
    assert compared(rank=[1, 3, 2, 1]) == [False, True, True]  # equal, but not in bytes
    assert compared(loss=[0.1, 0.2, math.nan, 0.4 + 1e-8]) == [True, True, True]
    assert compared(loss=[0.1, 0.2, math.nan, 0.4 + 1e-4]) == [True, False, True]
    assert compared(loss=[0.1, 0.2, 0.3, 0.4]) == [True, False, True]
    trained = [{"method": ["inversion"] * 4, "rank": rank} for rank in ([1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0])]
    pair = [make_run(f"trained {n}", queries=queries(**columns)) for n, columns in enumerate(trained)]
    assert held(replay.diff(*pair)) == [True, True, True]


def test_a_record_of_one_run_alone_breaks_its_tier(make_run: Make, record: Make) -> None:
    one = make_run("one", [record(), record(metric="loss")])
    two = make_run("two", [record(), record(metric="loss", parameters={"beta": 10})])
    assert held(replay.diff(one, two)) == [True, False, True]
    assert (
        held(replay.diff(one, make_run("whole", [record(parameters={"beta": 20}), record(metric="loss")])))
        == [True] * 3
    )
    doubled = make_run("doubled", [record(), record(), record(metric="loss")])
    assert held(replay.diff(one, doubled)) == [False, True, True]


def test_repeating_takes_the_notebook_that_ships_only_if_it_is_the_same(
    make_run: Make, make_notebook: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shipped = make_notebook("1", title="As it ships")
    monkeypatch.setattr(replay, "studies", lambda: {"tiny": shipped})
    facts = provenance.read(make_run())
    run = tmp_path / "runs" / "tiny"
    (tmp_path / "work").mkdir()
    assert replay._study(run, facts, tmp_path / "work").path == tmp_path / "work" / "01_tiny.ipynb"
    facts["notebook"]["sha256"] = provenance.sha256(shipped)
    assert replay._study(run, facts, tmp_path / "work").title == "As it ships"
    shipped.write_text("changed")
    (run / "01_tiny.ipynb").write_text("no notebook")
    with pytest.raises(InputError, match=r"01_tiny\.ipynb is not readable"):
        replay.replay(run)
    with pytest.raises(RunError, match="not a finished run"):
        replay.diff(run, tmp_path)


def test_only_parameters_that_were_changed_are_given_again(
    make_run: Make, make_notebook: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    notebook = make_notebook("size, share", parameters="size: int = 3  # n\nshare: float = 1  # s")
    run = make_run(parameters={"size": 3, "share": 0.5})
    (run / "01_tiny.ipynb").write_bytes(notebook.read_bytes())
    seen = {}

    def repeat(study: Any, given: dict, out: Path, **options: Any) -> Path:
        seen.update(given=given, options=options)
        return run

    monkeypatch.setattr(runner, "run", repeat)
    _, kept = replay.replay(run, mirror=tmp_path, timeout=9, progress=False)
    assert seen["given"] == {"share": 0.5} and all(agreement.holds for agreement in kept)
    assert seen["options"] == {"threads": 1, "mirror": tmp_path, "timeout": 9, "progress": False}


@pytest.mark.parametrize(
    ("error", "message"),
    [(RunError("it broke"), r"^it broke; .* other code \(c{40}\)$"), (DataUnavailable("no"), "^no$")],
)
def test_a_run_of_other_code_is_named_as_such_when_it_fails(
    make_run: Make, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(runner, "run", fail)
    with pytest.raises(type(error), match=message):
        replay.replay(make_run(parameters={}))


def test_real_metrics_have_the_tier_that_is_promised() -> None:
    ranked = ["R@1", "R@5 optimistic", "MRR", "mAP", "mAP@R, released counting", "rank", "median rank", "hub share"]
    assert {replay.tier(name) for name in [*ranked, "skewness difference", "nDCG@10 mixed, texts"]} == {"A"}
    assert {replay.tier(name) for name in ("L2M", "InfoNCE", "RMG", "V-measure", "loss", "cosine of pairs")} == {"B"}
    assert replay.tier("R@1", study="train-clip") == replay.tier("rank", method="inversion") == "C"
    assert replay.tier("R@1", study="modality-gap", table="landscape") == "A"
