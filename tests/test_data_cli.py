"""`reprolib data`: get, verify, licence, cite, croissant and list, on a dataset made here."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from reprolib import cli, paths
from reprolib.loaders import status

FACTS = {
    "name": "tiny", "title": "Tiny pictures", "kind": "items", "summary": "Pictures of one colour.",
    "modalities": ["image", "text"], "licence": "their own", "spdx": "LicenseRef-tiny", "access": "ask first",
    "source": {"url": "https://tiny.example"}, "format": "folder", "reader": "folder", "row_correspondence": "r",
    "splits": {"train": "official"}, "citation": "Tiny et al., 2020", "how_to_obtain": "ask the authors of tiny",
    "counts": {"train_images": 2, "train_texts": 2, "test_images": 2, "test_unique_texts": 1},
    "root_files": ["images", "captions.csv"],
}  # fmt: skip


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main(["data", *arguments])
    return int(stop.value.code or 0)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A mirror with the archive of the dataset, and the manifest that states it; the archive's folder is returned."""
    monkeypatch.setenv("REPROLIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("REPROLIB_MIRROR", str(tmp_path / "mirror"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(paths, "manifests", lambda: tmp_path / "manifests")
    (tmp_path / "manifests" / "datasets").mkdir(parents=True)
    folder = tmp_path / "mirror" / "tiny"
    folder.mkdir(parents=True)
    rows = [(f"images/{i}.png", "a text", split) for i, split in enumerate(["train", "val", "test"] * 2)]
    with zipfile.ZipFile(folder / "tiny.zip", "w") as archive:
        for name, *_ in rows:
            Image.fromarray(np.zeros((4, 4, 3), dtype=np.uint8)).save(tmp_path / "one.png")
            archive.write(tmp_path / "one.png", name)
        archive.writestr("captions.csv", "\n".join(map(",".join, [("image", "caption", "split"), *rows])))
    state(tmp_path)
    return folder


def state(tmp_path: Path, entry: dict | None = None, **changes: object) -> None:
    archive = tmp_path / "mirror" / "tiny" / "tiny.zip"
    stated = {"name": "tiny.zip", "url": None, "unpack": True, "licence": "their own", "sha256": None}
    if archive.exists():
        stated["sha256"] = hashlib.sha256(archive.read_bytes()).hexdigest()
    facts = FACTS | {"files": [stated | (entry or {})]} | changes
    (tmp_path / "manifests" / "datasets" / "tiny.yaml").write_text(yaml.safe_dump(facts))


def test_get_unpacks_and_says_where(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = tmp_path / "cache" / "datasets" / "tiny"
    for _ in range(2):
        assert run("get", "tiny") == 0
        assert capsys.readouterr().out == f"tiny: {tree}\n"
    assert (tree / "images" / "5.png").is_file() and sorted(path.name for path in place.iterdir()) == ["tiny.zip"]


def test_a_dataset_that_shares_files_gets_them(place: Path, tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = tmp_path / "cache" / "datasets" / "tiny"
    shared = FACTS | {"name": "tiny-1k", "folder": "tiny", "files": [], "options": {"dataset": "tiny"}}
    (tmp_path / "manifests" / "datasets" / "tiny-1k.yaml").write_text(yaml.safe_dump(shared))
    assert status("tiny-1k") == status("tiny") and not tree.exists()
    assert run("get", "tiny-1k") == 0 and capsys.readouterr().out == f"tiny-1k: {tree}\n"
    assert run("verify", "tiny-1k") == 0


def test_get_says_how_to_obtain_what_is_nowhere(place: Path, tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "tiny.zip").unlink()
    for files in (None, []):
        state(tmp_path, **({} if files is None else {"files": files}))
        assert run("get", "tiny") == 1
        assert "ask the authors of tiny" in capsys.readouterr().err
    state(tmp_path, files=[], root_files=[], reader=None)
    assert run("get", "tiny") == 1
    assert "must be obtained by hand: ask the authors" in capsys.readouterr().err
    assert run("get", "tny") == 2 and "nearest valid: tiny" in capsys.readouterr().err


def test_verify_names_files_and_counts(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("verify", "tiny") == 0
    assert "not unpacked yet" in capsys.readouterr().out
    run("get", "tiny")
    capsys.readouterr()
    assert run("verify") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("ok") and lines[0].endswith("in the mirror: as the manifest names (sha256)")
    assert lines[1].endswith("tiny/train: 2 images and 2 texts: as the manifest names")
    assert lines[2].endswith("tiny/validation: 2 images and 2 texts; the manifest names no counts of it")
    (place / "tiny.zip").unlink()
    assert run("verify", "tiny") == 0
    assert "the archive itself is not at hand" in capsys.readouterr().out


def test_verify_finds_what_differs(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("get", "tiny")
    state(tmp_path, counts=FACTS["counts"] | {"test_unique_texts": 2, "train_images": 5})
    assert run("verify", "tiny") == 1
    shown = capsys.readouterr().out
    assert "differs   tiny/test: 1 unique texts (the manifest names 2)" in shown
    assert "differs   tiny/train: 2 images (the manifest names 5)" in shown
    state(tmp_path, {"sha256": "0" * 64})
    assert run("verify", "tiny") == 1
    assert "is not the file that the manifest names" in capsys.readouterr().out
    (tmp_path / "cache/datasets/tiny/captions.csv").write_text("image,caption\nimages/9.png,x\n")
    state(tmp_path)
    assert run("verify", "tiny") == 1
    assert "differs   tiny/train: " in capsys.readouterr().out


def test_verify_finds_what_is_missing(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "tiny.zip").unlink()
    assert run("verify", "tiny") == 1
    assert "missing   tiny/tiny.zip: neither in the cache nor in a mirror" in capsys.readouterr().out
    assert run("verify") == 2 and "no dataset is at hand" in capsys.readouterr().err
    state(tmp_path, {"optional": True}, root_files=[], reader=None)
    assert run("verify", "tiny") == 0 and "absent    tiny/tiny.zip: optional" in capsys.readouterr().out


def test_verify_records_a_file_without_a_hash(place: Path, tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    state(tmp_path, {"sha256": None})
    assert run("verify", "tiny") == 0
    assert "recorded  tiny/tiny.zip" in capsys.readouterr().out
    assert run("verify", "tiny") == 0
    assert "as recorded on first use (no hash is published)" in capsys.readouterr().out
    (place / "tiny.zip").write_bytes(b"another")
    assert run("verify", "tiny") == 1
    assert "recorded.json tells" in capsys.readouterr().out


def test_verify_lists_bad_images(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("get", "tiny")
    (tmp_path / "cache/datasets/tiny/images/2.png").write_bytes(b"no picture")
    assert run("verify", "tiny") == 0, "without --images no picture is decoded"
    capsys.readouterr()
    assert run("verify", "tiny", "--images") == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if "picture" in line]
    assert len(lines) == 3 and sum(line.startswith("ok ") for line in lines) == 2
    assert lines[2].startswith("differs   tiny/test images/2.png: ") and "2.png is not a whole picture" in lines[2]


def test_licence_and_citation(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("licence", "tiny") == 0
    assert capsys.readouterr().out.splitlines() == [
        "Tiny pictures: their own", "SPDX: LicenseRef-tiny", "access: ask first", "tiny.zip: their own",
    ]  # fmt: skip
    assert run("cite", "tiny") == 0 and capsys.readouterr().out == "Tiny et al., 2020\n"


def test_croissant_is_json_and_names_what_is_not_stated(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("croissant", "tiny") == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["name"] == "tiny"
    assert shown.err == "reprolib: Croissant requires creator, datePublished, which tiny.yaml does not state\n"


def test_list_shows_what_is_present(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("list") == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("tiny", "LicenseRef-tiny", "mirror", "Tiny pictures"))


def test_a_folder_of_ones_own_is_a_dataset(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("get", "tiny")
    folder = str(tmp_path / "cache" / "datasets" / "tiny")
    capsys.readouterr()
    assert run("verify", folder) == 0
    assert "test: 2 images and 2 texts" in capsys.readouterr().out
    assert run("get", folder) == 0 and capsys.readouterr().out == f"{folder}: {folder}\n"
