"""The manifests in the repository are valid, and what is not valid is refused by file and field."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import yaml

from reprolib import paths
from reprolib.errors import InputError
from reprolib.loaders import datasets, load_manifest, status
from reprolib.loaders.files import resolve

FEATURES = [name + end for name in ("coco-clip-500", "videoclip-100", "clasp-99") for end in ("", "-random")]


@pytest.mark.parametrize("name", datasets())
def test_every_manifest_is_valid_and_complete(name):
    manifest = load_manifest(name)
    assert manifest.name == name and manifest.licence and manifest.citation and manifest.how_to_obtain
    assert (manifest.kind == "features") == (manifest.reader == "paired-npy")
    if manifest.reader is None:
        assert manifest.known_issues, "a dataset that is listed without being used says why"
    assert manifest.spdx is None or re.fullmatch(r"[\w.+-]+( (AND|OR) [\w.+-]+)*", manifest.spdx)
    for entry in manifest.files:
        assert all(url.startswith(("https://", "http://")) for url in entry.urls)
        pinned = all(manifest.source.commit and manifest.source.commit in url for url in entry.urls)
        if entry.urls and (entry.sha256 or entry.md5):
            assert pinned or entry.checksum_source, f"{entry.name}: it is not said where its hash was read"


def test_the_addresses_of_the_stored_features_are_pinned_to_a_commit():
    for name in FEATURES:
        manifest = load_manifest(name)
        assert len(manifest.source.commit) == 40 and all(entry.sha256 and entry.bytes for entry in manifest.files)
        assert all(manifest.source.commit in url for entry in manifest.files for url in entry.urls)


def test_the_expected_datasets_are_there():
    assert {*FEATURES, "flickr8k", "emoji"} <= set(datasets())
    assert datasets() == sorted(datasets())


@pytest.mark.parametrize("name", FEATURES)
def test_files_of_the_mirror_are_those_of_the_manifests(name, mirror):
    manifest = load_manifest(name)
    for entry in manifest.files:
        path = resolve(manifest, entry, mirror.path)
        assert path.stat().st_size == entry.bytes


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(InputError, match="unknown dataset 'coco-clip-50'; nearest valid: coco-clip-500"):
        load_manifest("coco-clip-50")
    with pytest.raises(InputError, match="nearest valid"):
        load_manifest("../datasets/emoji")


def test_status_tells_present_fetchable_and_by_hand(mirror, monkeypatch):
    assert status("coco-clip-500", mirror.path).present and status("coco-clip-500", mirror.path).where == "mirror"
    missing = status("coco-clip-500")
    assert (missing.present, missing.where) == (False, "can be fetched")
    assert missing.size == sum(entry.bytes for entry in load_manifest("coco-clip-500").files)
    assert status("flickr8k").where == "must be obtained by hand"
    monkeypatch.setenv("REPROLIB_MIRROR", str(mirror.path))
    assert status("clasp-99").present


def test_status_of_what_is_unpacked_or_is_not_described_in_full(altered, tmp_path, monkeypatch):
    monkeypatch.setenv("REPROLIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("REPROLIB_MIRROR", raising=False)
    archive = {"name": "a.zip", "url": ["https://a.example/a.zip", "https://b.example/a.zip"], "unpack": True}
    altered(edit(files=[archive], root_files=["images/a", "labels.txt"]))
    assert load_manifest("clasp-99").files[0].urls == archive["url"]
    assert (status("clasp-99").present, status("clasp-99").size, status("clasp-99").where) == (
        False,
        0,
        "can be fetched",
    )
    place = tmp_path / "cache" / "datasets" / load_manifest("clasp-99").place
    (place / "images").mkdir(parents=True)
    (place / "images" / "a").touch()
    assert not status("clasp-99").present, "one of two"
    (place / "labels.txt").touch()
    assert status("clasp-99").present and status("clasp-99").where == "cache"
    (place / ".unpacked").mkdir()
    assert not status("clasp-99").present, "an unpacking has begun and not ended"


def test_status_of_a_tree_that_no_archive_is_known_of(altered, tmp_path, monkeypatch):
    monkeypatch.setenv("REPROLIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("REPROLIB_MIRROR", raising=False)
    altered(edit(files=[{"name": "a.csv", "url": "https://a.example/a.csv"}], root_files=["images", "a.csv"]))
    assert status("clasp-99").where == "must be obtained by hand"


@pytest.fixture
def altered(tmp_path, monkeypatch):
    """Write an altered copy of a manifest, and make it the only one."""

    def write(change):
        text = (paths.root() / "data_manifests" / "datasets" / "clasp-99.yaml").read_text(encoding="utf-8")
        folder = tmp_path / "datasets"
        folder.mkdir()
        (folder / "clasp-99.yaml").write_text(change(text), encoding="utf-8")
        monkeypatch.setattr(paths, "manifests", lambda: tmp_path)

    return write


def edit(**changes):
    return lambda text: yaml.safe_dump(yaml.safe_load(text) | changes)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (edit(licens="MIT"), ["field licens"]),
        (edit(kind="feature"), ["field kind", "items", "features"]),
        (edit(name="clasp"), ["field name", "'clasp-99'"]),
        (edit(files=[{"name": "a.npy", "url": None, "sha256": "12", "bytes": 1}]), ["field files.0.sha256"]),
        (edit(files=[{"name": "a.npy", "url": None, "md5": "0" * 64}]), ["field files.0.md5"]),
        (edit(files=[{"name": "a.npy", "url": None, "bytes": 0}]), ["field files.0.bytes"]),
        (edit(root_files=["../a"]), ["field root_files.0", "relative path"]),
        (edit(options=["a"]), ["field options"]),
        (
            edit(files=[{"name": "../a.npy", "url": None, "sha256": "0" * 64, "bytes": 1}]),
            ["field files.0.name"],
        ),
        (lambda text: text.replace("citation:", "quotation:"), ["field citation"]),
        (lambda text: text + "title: [", ["line ", "not valid YAML"]),
        (lambda text: "just words", ["the whole file"]),
    ],
)
def test_a_manifest_that_is_not_valid_is_named_by_file_and_field(altered, change, words):
    altered(change)
    with pytest.raises(InputError) as error:
        load_manifest("clasp-99")
    assert all(word in str(error.value) for word in ["clasp-99.yaml", *words]), str(error.value)
    assert "\n" not in str(error.value)


def test_importing_the_loaders_does_not_import_torch():
    code = "import sys, reprolib.loaders; sys.exit('torch' in sys.modules or 'pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=paths.root()).returncode == 0
