"""Grid points against slow references, on a small file of features."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.stats

from reprolib.errors import InputError
from reprolib.models import load_embeddings
from reprolib.study import records
from reprolib.study.points import POINTS
from reprolib.study.protocol import oriented

SMALL = {"bank_share": 0.4, "n_splits": 2, "n_bootstrap": 100}
BETA, K = 20.0, 5


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a file of 300 pairs with a gap between the modalities."""
    rng = np.random.default_rng(0)
    concept = rng.normal(size=(300, 12))
    image, text = (concept + 0.7 * rng.normal(size=concept.shape) + shift for shift in (0.5, -0.5))
    path = tmp_path_factory.mktemp("own") / "own.npz"
    pairs = np.repeat(np.arange(300)[:, None], 2, axis=1)
    np.savez(path, image=image.astype(np.float32), text=text.astype(np.float32), relevance=pairs)
    return str(path)


def search(own: str, **parameters: Any) -> dict[tuple[str, str], records.Record]:
    rows = POINTS["approximate-search"](embeddings=own, k=K, **SMALL | parameters)
    checked = [records.Record.model_validate(row) for row in rows]
    found = {(row.table, row.metric): row for row in checked}
    assert len(found) == len(rows)
    return found


def slow(own: str) -> dict[str, float]:
    """Return R@1 and hubness of inverted softmax by float64 matrices and full sorts."""
    hits, hubness = [], []
    for split in load_embeddings("", None, embeddings=own, bank_share=0.4, n_splits=2, seed=0).replicates:
        (q, g, relevant), (bank, _, _) = (oriented(part, "text->image") for part in (split.test, split.bank))
        q, g, bank = (
            x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1)[:, None] for x in (q, g, bank)
        )
        scores = np.exp(BETA * q @ g.T) / np.exp(BETA * bank @ g.T).sum(0)
        top = np.argsort(-scores, axis=1, kind="stable")[:, :K]
        hits += [relevant[[row], [items[0]]].item() for row, items in enumerate(top)]
        counts = np.array([(top == item).sum() for item in range(len(g))])
        taken = counts[counts >= 2 * counts.mean()].sum() / counts.sum()
        hubness.append((scipy.stats.skew(counts), taken, (counts == 0).mean()))
    skewness, share, never = np.mean(hubness, axis=0)
    return {"R@1": np.mean(hits), "skewness": skewness, "hub share": share, "anti-hub share": never}


def test_the_exact_table_is_that_of_full_sorts_and_a_flat_index_agrees(own: str) -> None:
    found = search(own, kind="flat")
    for name, value in slow(own).items():
        assert found["exact", name].value == pytest.approx(value, abs=1e-9)
        assert found["approximate", name].value == pytest.approx(value, abs=1e-9)
        assert found["difference", name].value == 0
    assert found["approximate", f"recall@{K}"].value == 1


def test_more_effort_finds_more_and_all_lists_find_everything(own: str) -> None:
    recall = {}
    for nprobe in (1, 3, 1000):
        found = search(own, kind="ivf", nprobe=nprobe)
        row = found["approximate", f"recall@{K}"]
        recall[nprobe] = row.value
        assert row.parameters == {"kind": "ivf", "metric": "ip", "k": K, "nprobe": nprobe} and row.n == len_of(own)
        for name in ("R@1", "skewness"):
            change, one, other = (found[table, name] for table in ("difference", "exact", "approximate"))
            assert change.value == pytest.approx(other.value - one.value, abs=1e-12)
            assert change.ci_low <= change.value <= change.ci_high and change.reference == "exact"
    assert recall[1] < recall[3] < recall[1000] == 1


def len_of(own: str) -> int:
    data = load_embeddings("", None, embeddings=own, bank_share=0.4, n_splits=2, seed=0)
    return sum(len(split.test.text) for split in data.replicates)


def test_the_graph_of_either_metric_finds_nearly_all(own: str) -> None:
    for metric in ("ip", "l2"):
        found = search(own, kind="hnsw", metric=metric, ef_search=200)
        assert found["approximate", f"recall@{K}"].value > 0.99


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"kind": "flat", "nprobe": 3}, "nprobe = 3 is for an index of the kind ivf"),
        ({"kind": "ivf", "ef_search": 3}, "ef_search = 3 is for an index of the kind hnsw"),
        ({"kind": "ivf", "nprobe": 0}, "nprobe = 0 .* at least 1"),
        ({"kind": "tree"}, "unknown kind of index 'tree'"),
        ({"method": "dis"}, "the bias depends on the query"),
    ],
)
def test_what_does_not_fit_is_refused(own: str, parameters: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        search(own, **parameters)


def test_the_correction_point_agrees_with_exact_search(own: str) -> None:
    rows = POINTS["correction"](embeddings=own, k=K, **SMALL)
    found = {row["metric"]: row["value"] for row in rows}
    exact = slow(own)
    assert found["R@1"] == pytest.approx(exact["R@1"]) and found["skewness"] == pytest.approx(exact["skewness"])
