"""The content-addressed store: what goes in comes out, and damage is noticed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from reprolib.loaders.store import digest, map_arrays, read_arrays, write_arrays

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


def test_any_changed_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    write_arrays(path, ARRAYS | {"none": np.empty((0, 4), np.float32)}, "key")
    content = path.read_bytes()
    for place in range(len(content)):
        for bit in range(8):
            path.write_bytes(content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :])
            assert map_arrays(path, "key") is None, (place, bit)
    path.write_bytes(content)
    assert map_arrays(path, "key") is not None


def test_a_file_under_a_foreign_name_is_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    write_arrays(path, ARRAYS, "one key")
    assert read_arrays(path, "one key") is not None
    assert read_arrays(path, "another key") is None and read_arrays(path) is None


@pytest.mark.parametrize("dtype", ["f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "?"])
def test_arrays_are_mapped_where_they_lie(tmp_path: Path, dtype: str) -> None:
    from safetensors.numpy import load_file

    path = tmp_path / "file.safetensors"
    odd = {"a": np.ones(3, np.uint8), "b": np.arange(24).reshape(4, 6).astype(dtype), "c": np.zeros((0, 2), dtype)}
    write_arrays(path, odd)
    mapped = map_arrays(path)
    assert mapped is not None and mapped.keys() == odd.keys()
    for name, expected in load_file(path).items():
        np.testing.assert_array_equal(mapped[name], expected)
        assert mapped[name].dtype == expected.dtype and mapped[name].flags.aligned
    assert isinstance(mapped["b"], np.memmap)
    mapped["b"][:] = 0  # a private copy of the page: the file stays as it was
    again = map_arrays(path)
    assert again is not None
    np.testing.assert_array_equal(again["b"], odd["b"])


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
