import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from reprolib.errors import RunError
from reprolib.study import provenance
from reprolib.study.verify import verify


def test_one_flipped_byte_is_named(make_run: Callable[..., Path]) -> None:
    run = make_run()
    assert verify(run) == []
    files = sorted(path for path in run.rglob("*") if path.is_file())
    assert len(files) == 5
    rng = np.random.default_rng(0)
    for path in files:
        whole = path.read_bytes()
        ends = [0, len(whole) - 1]
        for place in {*ends, *map(int, rng.integers(0, len(whole), 60 if path.name == provenance.RUN else 5))}:
            changed = bytearray(whole)
            changed[place] ^= 1 << int(rng.integers(8))
            path.write_bytes(changed)
            name = path.relative_to(run).as_posix()
            (sentence,) = verify(run)
            assert sentence.startswith((f"{name} is changed", f"{name} has no SHA-256")), (name, place)
        path.write_bytes(whole)
    assert verify(run) == []


def test_missing_and_extra_files_are_named(make_run: Callable[..., Path]) -> None:
    run = make_run()
    (run / "results.json").unlink()
    (run / "figures" / "new.txt").touch()
    assert verify(run) == ["results.json is missing", "figures/new.txt is extra: the run did not write it"]


@pytest.mark.parametrize("text", ["", "[]", "1", "{", '{"sha256": ""}', '{"sha256": NaN}', "\ud800"])
def test_a_record_that_vouches_for_nothing(make_run: Callable[..., Path], text: str) -> None:
    run = make_run()
    (run / provenance.RUN).write_bytes(text.encode("utf-8", "surrogatepass"))
    assert verify(run) == ["run.json is changed, so nothing vouches for the other files"]


def test_a_record_without_its_own_digest(make_run: Callable[..., Path]) -> None:
    run = make_run()
    record = provenance.read(run)
    del record["sha256"]
    (run / provenance.RUN).write_text(json.dumps(record))
    (sentence,) = verify(run)
    assert sentence.startswith("run.json has no SHA-256 of its own") and sentence.endswith("the other files")


def test_an_edit_that_keeps_the_digests_is_seen(make_run: Callable[..., Path]) -> None:
    run = make_run()
    record = provenance.read(run)
    record["parameters"]["size"] = 4
    (run / provenance.RUN).write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    assert verify(run) == ["run.json is changed, so nothing vouches for the other files"]
    (run / provenance.RUN).unlink()
    with pytest.raises(RunError, match="not a finished run"):
        verify(run)
