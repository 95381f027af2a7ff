import json
from pathlib import Path

import numpy as np
import pytest

from reprolib.errors import InputError
from reprolib.study import records

ROW = {
    "study": "tiny", "dataset": "d", "model": "m", "direction": "text->image", "method": "is",
    "parameters": {"beta": 20.0}, "bank": "train", "metric": "R@1", "value": 0.5, "n": 3,
}  # fmt: skip


def test_numpy_in_json_out(tmp_path: Path) -> None:
    row = {
        **ROW,
        "parameters": {"beta": np.float32(0.5), "grid": np.array([1, 2])},
        "value": np.float64("nan"),
        "ci_low": np.float32(0.25),
        "n": np.int64(7),
        "p_value": np.float64(0.01),
    }
    records.save([row], tmp_path)
    (loaded,) = records.load(tmp_path)
    assert loaded.value is None and loaded.ci_low == 0.25 and loaded.n == 7 and loaded.p_value == 0.01
    assert loaded.parameters == {"beta": 0.5, "grid": [1, 2]}
    (raw,) = json.loads((tmp_path / "results.json").read_text())
    assert records.Record(**{**ROW, "n": None}).n is None
    assert {"study", "ci_high", "n"} <= set(raw) and "table" not in raw


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"value": float("inf")}, "value"),
        ({"direction": "text-image"}, "direction"),
        ({"n": -1}, "n"),
        ({"p_value": 1.5}, "p_value"),
        ({"ci_low": 2.0, "ci_high": 1.0}, "ci_low 2.0 exceeds"),
        ({"valeu": 1.0}, "valeu"),
    ],
)
def test_wrong_records_are_named(tmp_path: Path, change: dict[str, object], field: str) -> None:
    with pytest.raises(InputError, match=f"record 2, .*{field}"):
        records.save([ROW, {**ROW, **change}], tmp_path)
    assert not (tmp_path / "results.json").exists()


@pytest.mark.parametrize("text", ["", "[]", "{}", '[{"value": NaN}]', '[{"study": "x"}]'])
def test_files_that_are_no_results(tmp_path: Path, text: str) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(InputError):
        records.load(tmp_path)
    with pytest.raises(InputError, match=r"holds no results\.json"):
        records.load(tmp_path / "absent")


def test_run_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(records.RUN_DIRECTORY, str(tmp_path / "run"))
    assert records.run_directory("tiny") == tmp_path / "run"
    monkeypatch.delenv(records.RUN_DIRECTORY)
    monkeypatch.setattr(records, "root", lambda: tmp_path)
    monkeypatch.chdir(tmp_path)
    assert records.run_directory("tiny") == tmp_path / "runs" / "interactive-tiny"
