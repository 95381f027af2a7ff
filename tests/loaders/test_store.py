"""The content-addressed store: what goes in comes out, and damage is noticed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from reprolib.loaders.store import digest, read_arrays, write_arrays

ARRAYS = {"a": np.arange(12, dtype=np.float32).reshape(3, 4), "b": np.array([1, 2], dtype=np.uint8)}


def test_arrays_come_back_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.safetensors"
    write_arrays(path, ARRAYS | {"transposed": ARRAYS["a"].T})
    back = read_arrays(path)
    assert back is not None
    np.testing.assert_array_equal(back["a"], ARRAYS["a"])
    np.testing.assert_array_equal(back["transposed"], ARRAYS["a"].T)
    assert back["b"].dtype == np.uint8
    assert [entry.name for entry in path.parent.iterdir()] == ["file.safetensors"]


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "other"])
def test_a_damaged_file_is_noticed(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "file.safetensors"
    write_arrays(path, ARRAYS)
    content = path.read_bytes()
    damaged = {
        "truncate": content[:-3],
        "flip": content[:-1] + bytes([content[-1] ^ 1]),
        "empty": b"",
        "other": b"not a safetensors file at all",
    }
    path.write_bytes(damaged[damage])
    assert read_arrays(path) is None


def test_a_missing_file_is_none(tmp_path: Path) -> None:
    assert read_arrays(tmp_path / "none.safetensors") is None


def test_a_failed_write_leaves_the_previous_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.safetensors"
    write_arrays(path, ARRAYS)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("reprolib.loaders.store.save_file", full)
    with pytest.raises(OSError, match="No space"):
        write_arrays(path, {"a": np.zeros(3)})
    assert read_arrays(path) is not None
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.safetensors"]


def test_the_digest_sees_every_part_and_its_type() -> None:
    row = np.arange(4, dtype=np.float32)
    variants = [
        (row,),
        (row.astype(np.float64),),
        (row.reshape(2, 2),),
        (row[::-1],),
        (row, "a"),
        ("a", row),
        ("ab",),
        ("a", "b"),
        (b"ab",),
        (["ab"],),
        (np.array(["ab"]),),
    ]
    digests = [digest(*variant) for variant in variants]
    assert digests[-1] == digests[-2]  # an array of strings counts as a list, whatever width numpy chose
    assert len(set(digests)) == len(digests) - 1
