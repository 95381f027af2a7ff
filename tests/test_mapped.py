"""Arrays in files: the same numbers as in memory, without filling it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reprolib import mapped, methods, ranking
from reprolib.errors import InputError
from reprolib.methods import CATALOGUE
from reprolib.ranking import Rows

RNG = np.random.default_rng(0)


def on_disk(path: Path, array: np.ndarray) -> np.ndarray:
    array.tofile(path)
    return mapped.opened(path, array.dtype, array.shape)


def resident(array: np.ndarray) -> int:
    """Return the bytes of the mapping of ``array`` that this process holds."""
    blocks = Path("/proc/self/smaps").read_text().split("VmFlags")
    address = array.ctypes.data
    for block in blocks:
        found = re.search(r"^([0-9a-f]+)-([0-9a-f]+) ", block, re.M)
        if found and int(found[1], 16) <= address < int(found[2], 16):
            return 1024 * int(re.search(r"^Rss: +(\d+)", block, re.M)[1])
    raise AssertionError("no such mapping")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let arrays of any size stay in their files."""
    monkeypatch.setattr(ranking, "LARGE", 1)


def test_parts_of_a_mapped_array_leave_memory(tmp_path: Path) -> None:
    array = on_disk(tmp_path / "rows", np.ones((9000, 1024), np.float32))
    view = np.ascontiguousarray(array, np.float32)[10:]
    assert type(view) is np.ndarray and mapped.mapping(view) is mapped.mapping(array) is not None
    most = total = 0
    for rows in mapped.parts(view):
        total += rows.sum()
        most = max(most, resident(array))
    assert total == view.size
    assert 0 < most <= 2**24 + 2**21 and resident(array) < view.nbytes
    mapped.release(view)
    assert resident(array) == 0


@given(st.integers(0, 50), st.sampled_from([(), (3,), (0,), (700, 2)]))
def test_parts_are_the_whole_in_order(n: int, rest: tuple[int, ...]) -> None:
    array = np.arange(n * int(np.prod(rest)), dtype=np.float64).reshape(n, *rest)
    np.testing.assert_array_equal(np.concatenate([array[:0], *mapped.parts(array)]), array)
    assert mapped.mapping(array) is None


@pytest.mark.parametrize("dtype", ["f4", "f2", "f8"])
@pytest.mark.parametrize("normalize", [True, False])
def test_rows_are_those_of_a_tensor(tmp_path: Path, dtype: str, normalize: bool) -> None:
    array = RNG.normal(size=(3000, 24)).astype(dtype)
    rows = Rows(on_disk(tmp_path / "rows", array), "bank", normalize=normalize)
    whole = ranking.as_embeddings(array, "bank", normalize=normalize)
    assert rows.shape == whole.shape and len(rows) == 3000 and rows.device == whole.device
    picked = torch.tensor([7, 2999, 7])
    assert torch.equal(rows[picked], whole[picked])
    assert torch.equal(torch.cat(list(rows.split(700))), whole) and torch.equal(rows[:], whole)
    assert torch.equal(rows.norm(1), whole.norm(dim=1))
    index = RNG.permutation(3000)[:100]
    some = Rows(on_disk(tmp_path / "again", array), "bank", normalize=normalize, index=index)
    assert torch.equal(some[:], whole[index]) and torch.equal(some[picked[:1]], whole[index][7:8])


def test_a_bad_row_is_named_by_its_place_in_the_file(tmp_path: Path) -> None:
    array = np.ones((5000, 4), np.float32)
    array[4321] = 0
    rows = Rows(on_disk(tmp_path / "rows", array), "query_bank")
    with pytest.raises(InputError, match=r"query_bank: row 4321 is all zeros"):
        list(rows.split(2048))


def test_only_large_arrays_in_files_stay_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = RNG.normal(size=(64, 4)).astype(np.float32)
    kept = on_disk(tmp_path / "rows", array)
    assert isinstance(ranking.as_rows(kept, "bank"), torch.Tensor)
    monkeypatch.setattr(ranking, "LARGE", array.nbytes)
    assert isinstance(ranking.as_rows(kept, "bank"), Rows) and isinstance(ranking.as_rows(array, "bank"), torch.Tensor)
    index = np.array([3, 1])
    for given_array in (kept, array):
        found = ranking.as_rows(given_array, "bank", index=index)[:]
        assert torch.equal(found, ranking.as_embeddings(array[index], "bank"))


@pytest.mark.parametrize("name", sorted(CATALOGUE))
def test_every_correction_takes_a_bank_in_a_file(name: str, tmp_path: Path, small: None) -> None:
    queries, gallery = RNG.normal(size=(40, 16)), RNG.normal(size=(130, 16))
    banks = {"query_bank": RNG.normal(size=(2500, 16)), "gallery_bank": RNG.normal(size=(300, 16))}
    files = {label: on_disk(tmp_path / label, rows) for label, rows in banks.items()}
    variants = ["paper", "released"] if "variant" in CATALOGUE[name].parameters else [None]
    for variant in variants:
        chosen = {"variant": variant} if variant else {}
        here, there = (methods.fit(name, queries, gallery, **given, **chosen) for given in (banks, files))
        assert torch.equal(here.scores(), there.scores()), variant


def test_a_study_takes_banks_in_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.numpy import save_file

    from reprolib.study.hubness import Study

    concept = RNG.normal(size=(300, 12))
    parts = {side: (concept + RNG.normal(size=concept.shape)).astype(np.float32) for side in ("image", "text")}
    arrays = {side: rows[:120] for side, rows in parts.items()} | {
        f"bank_{side}": rows[120:].copy() for side, rows in parts.items()
    }
    save_file(arrays, tmp_path / "own.safetensors")
    found = []
    for large in (2**27, 1):
        monkeypatch.setattr(ranking, "LARGE", large)
        study = Study(
            embeddings=str(tmp_path / "own.safetensors"), methods=["is", "nnn", "dual-is"], n_splits=1, k=5,
            betas=[5.0, 20.0], gallery_betas=[0.0, 1.0], bank_sizes=[0.3, 1.0], n_bootstrap=50, n_permutations=99,
        )  # fmt: skip
        for part in (study.tune, study.evaluate, study.bank_size, study.bank_sources):
            part()
        assert isinstance(study.tasks["text->image"][0].query_bank.embeddings, Rows) == (large == 1)
        found.append(study.rows)
    assert found[0] == found[1] and len(found[0]) > 40


def test_a_temporary_file_without_room_is_one_sentence() -> None:
    kept = mapped.scratch((3, 5), np.uint16)
    kept[1] = 7
    mapped.release(kept)
    assert kept.sum() == 35
    with pytest.raises(InputError, match=r"a temporary file of [\d,]+ MiB cannot be written to .*; set TMPDIR"):
        mapped.scratch((2**58,), np.uint8)


SCATTERED = """
import numpy as np, psutil
from reprolib.mapped import opened
from reprolib.ranking import as_rows
def held(): return psutil.Process().memory_info().rss / 2**20
rows = as_rows(opened({path!r}, np.float32, ({n}, 64)), "bank")
before, kept = held(), []
for _ in range(40):
    large = np.ones(2**20, np.float32)
    kept += [large, np.ones(2**14, np.float32)]
del large
del kept[::2]
after = held()
next(iter(rows.split(1)))
print(after - before, held() - before)
"""


def test_a_pass_over_a_bank_in_a_file_gives_scattered_memory_back(tmp_path: Path) -> None:
    n = ranking.LARGE // 256
    path = tmp_path / "bank"
    with path.open("wb") as file:
        file.truncate(256 * n)
        file.write(np.ones(64, np.float32).tobytes())
    script = SCATTERED.format(path=str(path), n=n)
    # as after the end of a large array: the next ones come from the heap, not from the system directly
    environment = os.environ | {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": str(2**24)}
    told = subprocess.run([sys.executable, "-c", script], env=environment, check=True, capture_output=True, text=True)
    scattered, left = map(float, told.stdout.split())
    assert scattered > 120 and left < 60, told.stdout


def test_what_a_caller_wrote_to_a_mapped_array_is_used_and_stays(tmp_path: Path, small: None) -> None:
    rows = RNG.standard_normal((5000, 8)).astype(np.float32) + 3
    rows.tofile(tmp_path / "rows")
    changed = np.memmap(tmp_path / "rows", np.float32, "c", shape=rows.shape)
    changed -= changed.mean(0)
    kept = np.array(changed)
    queries, gallery = (RNG.standard_normal((n, 8)).astype(np.float32) for n in (4, 6))
    found, wanted = (methods.correct("is", queries, gallery, query_bank=bank) for bank in (changed, kept))
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    for _ in mapped.parts(changed):
        pass
    np.testing.assert_array_equal(changed, kept)
    np.testing.assert_array_equal(np.fromfile(tmp_path / "rows", np.float32), rows.ravel())
    np.save(tmp_path / "rows.npy", rows)
    unchanged = np.load(tmp_path / "rows.npy", mmap_mode="r")
    assert isinstance(ranking.as_rows(unchanged, "bank"), Rows)  # only to be read: it may stay in its file


def test_a_bad_row_has_the_number_that_it_has_in_the_file(tmp_path: Path, small: None) -> None:
    rows = np.ones((5000, 8), np.float32)
    rows[4321, 2] = np.nan
    index = np.arange(5000)[::-1]
    bank = ranking.as_rows(on_disk(tmp_path / "rows", rows), "bank", index=index)
    with pytest.raises(InputError, match="row 4321 holds NaN"):
        list(bank.split(500))
    with pytest.raises(InputError, match="row 4321 holds NaN"):
        Rows(on_disk(tmp_path / "rows", rows), "bank")[torch.tensor([3, 4321])]
    with pytest.raises(InputError, match=r"expected embeddings \[n, d\]"):
        ranking.as_rows(on_disk(tmp_path / "flat", rows[:, 0].copy()), "bank")
