"""Verdicts: a table of cases in which each one is reached more than once, and what holds for all of them."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reprolib.errors import InputError
from reprolib.metrics import gap_metrics, hubness_metrics, retrieval_metrics
from reprolib.study import ledger
from reprolib.study import margins as frozen
from reprolib.study.ledger import Claim
from reprolib.study.margins import Margins, margins
from reprolib.study.records import Record
from reprolib.study.verdicts import LABELS, verdict

LIMITS = Margins(level=0.95, measured="for these tests", floors={"R@1": 0.002, "RMG": 0.01})
CLAIM = {
    "id": "paper-claim", "sentence": "It is better.", "kind": "improvement", "dataset": "coco", "model": "clip",
    "method": "nnn", "reference": "none", "metric": "R@1", "where": "table 1", "provenance": "paper",
    "claimed": {"value": 37.5, "reference": 30.4, "decimals": 1, "unit": "percent"}, "status": "testable now",
    "test": {"study": "hubness", "select": {"table": "difference", "metric": "R@1 difference", "method": "nnn",
                                            "reference": "none"}},
}  # fmt: skip
VALUE = {"kind": "value", "reference": None, "claimed": {"value": 37.5, "decimals": 1, "unit": "percent"}}
DIRECTION = {"kind": "direction", "claimed": None}
PROPERTY = {"kind": "property", "claimed": None, "metric": "RMG", "bound": 0.5}
UNVERIFIED = {"provenance": "unverified"}
OTHER = {"dataset": "glyphs", "model": "glyph-clip"}


def claim(**changes: object) -> Claim:
    fields = CLAIM | changes
    if fields["kind"] == "value":
        fields["test"] = {"study": "hubness", "select": {"table": "main", "metric": "R@1", "method": "nnn"}}
    if fields["kind"] == "property":
        fields["test"] = {"study": "modality-gap", "select": {"table": "gap", "metric": "RMG", "method": "none"}}
    return Claim.model_validate(fields)


def record(about: Claim, value: float | None, low: float | None, high: float | None, **changes: object) -> Record:
    select = about.test.select
    fields = {
        "study": about.test.study, "dataset": "coco", "model": "clip", "direction": None, "method": select.method,
        "metric": select.metric, "value": value, "ci_low": low, "ci_high": high, "table": select.table,
        "reference": select.reference, "bank": "train, 20 %",
    }  # fmt: skip
    return Record.model_validate(fields | changes)


# claim, (value, low, high), changes of the record, verdict, words of the reason. Claimed: +0.071; margin: 0.001 + 0.002
CASES = [
    ({}, (0.071, 0.069, 0.073), {}, "reproduced", "the whole interval equals"),
    (VALUE, (0.375, 0.373, 0.377), {}, "reproduced", "within 0.0025"),
    (DIRECTION, (0.02, 0.01, 0.03), {}, "reproduced", "above 0"),
    (DIRECTION | {"expect": "lower"}, (-0.02, -0.03, -0.01), {}, "reproduced", "below 0, lower is claimed"),
    (PROPERTY, (0.59, 0.58, 0.6), {}, "reproduced", "above 0.5"),
    ({}, (0.071, 0.04, 0.1), {}, "consistent", "too wide for equality"),
    (VALUE, (0.37, 0.35, 0.39), {}, "consistent", "covers the claimed 0.375"),
    ({}, (0.02, 0.01, 0.03), {}, "deviates", "excludes the claimed 0.071"),
    ({}, (0.02, -0.01, 0.05), {}, "deviates", "excludes"),
    ({}, (0.12, 0.1, 0.14), {}, "deviates", "excludes"),
    (VALUE, (0.40, 0.39, 0.41), {}, "deviates", "excludes the claimed 0.375"),
    ({}, (-0.02, -0.03, -0.01), {}, "contradicted", "below 0, higher is claimed"),
    ({}, (0.0005, -0.001, 0.0015), {}, "contradicted", "no difference beyond the noise floor of 0.002"),
    ({}, (0.001, 0.0005, 0.0015), {}, "contradicted", "no difference beyond the noise floor"),
    (DIRECTION, (0.0, 0.0, 0.0), {}, "contradicted", "no difference"),
    (PROPERTY, (0.4, 0.3, 0.45), {}, "contradicted", "below 0.5"),
    ({}, (0.02, 0.01, 0.03), OTHER, "transfers", "above 0"),
    (DIRECTION, (0.02, 0.01, 0.03), {"model": "clip, fine-tuned"}, "transfers", "above 0"),
    (PROPERTY, (0.59, 0.58, 0.6), OTHER, "transfers", "above 0.5"),
    ({}, (-0.02, -0.03, -0.01), OTHER, "does not transfer", "below 0"),
    ({}, (0.0, -0.001, 0.001), OTHER, "does not transfer", "no difference"),
    (PROPERTY, (0.4, 0.3, 0.45), OTHER, "does not transfer", "below 0.5"),
    ({}, (0.05, -0.01, 0.11), {}, "not tested", "undecided, the interval holds 0"),
    ({}, (0.05, -0.01, 0.11), OTHER, "not tested", "undecided"),
    (DIRECTION, (0.0, -0.01, 0.01), {}, "not tested", "undecided"),
    (VALUE, (0.375, 0.373, 0.377), OTHER, "not tested", "own dataset and model only"),
    ({}, (0.071, None, None), {}, "not tested", "no interval"),
    ({}, (None, None, None), {}, "not tested", "no interval"),
    (VALUE | UNVERIFIED, (0.375, 0.373, 0.377), {}, "not tested", "unverified and decides nothing"),
    (UNVERIFIED, (0.02, 0.01, 0.03), {}, "reproduced", "only its sign was tested"),
    ({}, (0.071, 0.069, 0.073), {"method": "csls"}, "not tested", "no record of the study hubness"),
    ({}, (0.071, 0.069, 0.073), {"bank": "transductive: the test split itself"}, "not tested", "no record"),
    ({"status": "needs data", "reason": "no COCO", "test": None}, (0.1, 0.1, 0.1), {}, "not tested", "no COCO"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "measured", "about", "label", "words"), CASES)
def test_a_table_of_cases(changes: dict, measured: tuple, about: dict, label: str, words: str) -> None:
    tested = claim(**changes)
    found = verdict(tested, [record(tested if tested.test else claim(), *measured, **about)], LIMITS)
    assert found.label == label and words in found.reason
    if label != "not tested":
        assert (found.measured, found.low, found.high) == measured and found.dataset == about.get("dataset", "coco")
    assert (found.claimed is None) == (not tested.decisive or tested.test is None)


def test_each_verdict_is_reached_by_at_least_two_cases() -> None:
    assert min(Counter(label for *_, label, _ in CASES)[label] for label in LABELS) >= 2


def test_several_records() -> None:
    about = claim()
    good, bad = record(about, 0.071, 0.07, 0.072), record(about, -0.02, -0.03, -0.01)
    away = record(about, 0.02, 0.01, 0.03, **OTHER)
    open_ = record(about, 0.0, -0.1, 0.1, **OTHER, direction="text->image")
    counter = record(about, -0.02, -0.03, -0.01, **OTHER | {"dataset": "emoji"})
    for records, label in (
        ([good, bad], "contradicted"),
        ([good, counter], "reproduced"),  # the paper's own data count first
        ([away, open_], "transfers"),
        ([away, open_, counter], "does not transfer"),
        ([open_], "not tested"),
    ):
        found = verdict(about, records, LIMITS)
        assert found.label == label and len(found.evidence) == len(records)
        assert verdict(about, records[::-1], LIMITS).label == label, "the order of records decides nothing"
    mixed = verdict(about, [away, open_, counter], LIMITS).reason
    assert mixed.index("emoji with glyph-clip: -0.02 (-0.03 to -0.01)") < mixed.index("Otherwise")
    assert "glyphs with glyph-clip, text->image" in mixed
    at = [record(about, 0.02, 0.01, 0.03, **OTHER, parameters={"k": k, "alpha": [0.5, 0.7]}) for k in (1, 2)]
    assert "glyph-clip, k 2: 0.02 (0.01 to 0.03), the interval" in verdict(about, at, LIMITS).reason


numbers = st.floats(-0.2, 0.2)


@settings(max_examples=200)
@given(numbers, st.floats(0, 0.1), st.floats(0, 0.1), st.floats(0, 0.1), st.sampled_from(["own", "other"]))
def test_identities(value: float, below: float, above: float, wider: float, where: str) -> None:
    about, place = claim(), {} if where == "own" else OTHER
    interval = (value, value - below, value + above)
    found = verdict(about, [record(about, *interval, **place)], LIMITS)
    assert found == verdict(about, [record(about, *interval, **place)], LIMITS)
    if found.label == "reproduced":
        assert abs(found.low - found.claimed) <= found.margin and abs(found.high - found.claimed) <= found.margin
    if found.label in ("consistent", "transfers"):
        assert found.low > 0
    # mirrored claim and mirrored result: the same verdict
    mirror = claim(expect="lower", claimed={"value": 30.4, "reference": 37.5, "decimals": 1, "unit": "percent"})
    mirrored = record(mirror, -value, -value - above, -value + below, **place)
    assert verdict(mirror, [mirrored], LIMITS).label == found.label
    # less precision never shows equality, nor a direction that was open
    wide = verdict(about, [record(about, value, value - below - wider, value + above + wider, **place)], LIMITS).label
    if found.label != "reproduced":
        assert wide != "reproduced"
    if found.label == "not tested":
        assert wide == "not tested"
    # an unverified number decides nothing: another one gives the same verdict
    first, second = (
        verdict(
            claim(provenance="unverified", claimed={"value": v, "decimals": 1, "unit": "percent"}),
            [record(about, *interval, **place)],
            LIMITS,
        )
        for v in (7.1, 70.0)
    )
    assert first == second and first.claimed is None


def test_the_margin_is_rounding_plus_noise_floor() -> None:
    found = verdict(claim(), [record(claim(), 0.071, 0.07, 0.072)], LIMITS)
    assert found.claimed == pytest.approx(0.071) and found.margin == pytest.approx(2 * 0.0005 + 0.002)
    about = claim(**VALUE)
    assert verdict(about, [record(about, 0.375, 0.37, 0.38)], LIMITS).margin == pytest.approx(0.0005 + 0.002)
    assert LIMITS.floor("R@1 difference: DualIS, tuned - IS, tuned") == LIMITS.floor("R@1") == 0.002
    with pytest.raises(InputError, match=r"unknown metric .* 'R@2'; nearest valid: R@1"):
        LIMITS.floor("R@2")


def test_the_margins_and_their_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ledger.manifests() / "margins.yaml").read_text()
    monkeypatch.setattr(frozen, "manifests", lambda: tmp_path)
    hashes = []
    for content in (text, "# a comment\n" + text, text.replace("R@1: 0.004", "R@1: 0.005")):
        (tmp_path / "margins.yaml").write_text(content)
        os.utime(tmp_path / "margins.yaml", ns=(len(hashes), len(hashes)))
        hashes.append(frozen.margins_hash())
    assert hashes[0] == hashes[1] != hashes[2]
    (tmp_path / "margins.yaml").write_text(text.replace("level: 0.95", "level: 95"))
    with pytest.raises(InputError, match=r"margins\.yaml, field level: Input should be less than 1"):
        frozen.margins()


def _rows() -> tuple[np.ndarray, np.ndarray]:
    """The 500 real CLIP pairs if a mirror is at hand, else 200 made-up pairs; unit rows, float32."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "mirror"
    path = Path(os.environ.get("REPROLIB_MIRROR") or beside) / "coco-clip-500" / "features_clip.npy"
    if path.is_file():
        pair = np.load(path, allow_pickle=False).astype(np.float64)
    else:
        rng = np.random.default_rng(0)
        shared = rng.standard_normal((200, 64))
        pair = np.stack([shared + rng.standard_normal((200, 64)) + 2 * rng.standard_normal(64) for _ in range(2)])
    return tuple((pair / np.linalg.norm(pair, axis=2, keepdims=True)).astype(np.float32))


def test_half_precision_moves_no_metric_beyond_its_floor() -> None:
    image, text = _rows()
    limits, relevance = margins(), np.eye(len(image), dtype=bool)

    def measured(image: np.ndarray, text: np.ndarray) -> dict[tuple[str, str], float]:
        found = {(name, ""): value for name, value in gap_metrics(image, text, probe=False).items()}
        for way, queries, gallery in (("image->text", image, text), ("text->image", text, image)):
            values = retrieval_metrics(queries, gallery, relevance) | hubness_metrics(queries, gallery)
            found |= {(name, way): value for name, value in values.items()}
        return {key: value for key, value in found.items() if key[0] in limits.floors}

    exact = measured(image, text)
    rounded = measured(*(torch.as_tensor(rows).half().float().numpy() for rows in (image, text)))
    assert {"R@1", "mAP", "skewness", "L2M", "RMG"} <= {name for name, _ in exact}
    for key, value in exact.items():
        assert abs(rounded[key] - value) <= limits.floor(key[0]), key
