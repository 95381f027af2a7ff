"""The Croissant description says what the manifest says, in the terms of its specification, and no more."""

from __future__ import annotations

import json

import pytest

from reprolib.loaders import datasets, load_manifest
from reprolib.loaders.croissant import croissant, unstated
from tests.loaders.test_files import MD5, SHA, manifest


@pytest.mark.parametrize("name", datasets())
def test_every_manifest_has_a_description(name):
    stated = load_manifest(name)
    found = json.loads(json.dumps(croissant(stated)))
    assert found["@type"] == "sc:Dataset" and found["conformsTo"] == "http://mlcommons.org/croissant/1.0"
    assert found["name"] == name and found["description"] == stated.summary and found["citeAs"] == stated.citation
    assert [entry["@id"] for entry in found.get("distribution", [])] == [file.name for file in stated.files]
    for entry, file in zip(found.get("distribution", []), stated.files, strict=True):
        assert entry["@type"] == "cr:FileObject" and "/" in entry["encodingFormat"]
        assert entry["contentUrl"] == (file.urls[0] if file.urls else file.name)
        assert entry.get("sha256") == file.sha256
    (splits,) = found.get("recordSet", [{"data": []}])
    assert {row["splits/name"]: row["splits/provenance"] for row in splits["data"]} == stated.splits
    ids = [entry["@id"] for entry in found.get("distribution", [])]
    ids += [field["@id"] for field in splits.get("field", [])]
    assert len(set(ids)) == len(ids), "an @id is unique within a description"


def test_every_term_is_in_the_context():
    found = croissant(load_manifest("coco-clip-500"))
    schema = {"name", "alternateName", "description", "license", "usageInfo", "url", "distribution", "creator"}
    schema |= {"contentUrl", "contentSize", "encodingFormat", "sha256"}

    def terms(part):
        if isinstance(part, dict):
            for key, value in part.items():
                if key not in ("@context", "data"):
                    yield key
                    yield from terms(value)
        elif isinstance(part, list):
            for entry in part:
                yield from terms(entry)

    plain = {term for term in terms(found) if not term.startswith("@")}
    assert plain <= schema | found["@context"].keys()
    for term in ("citeAs", "recordSet", "field", "key", "md5"):
        assert found["@context"][term] == f"cr:{term}"


def test_what_is_not_known_is_left_out_and_named(tmp_path, monkeypatch):
    monkeypatch.setenv("REPROLIB_CACHE", str(tmp_path))
    bare = croissant(manifest(entry={"sha256": None, "bytes": None}))
    assert "url" not in bare and not {"sha256", "contentSize"} & bare["distribution"][0].keys()
    assert unstated(bare) == ["url", "creator", "datePublished", "sha256 of rows.npy"]
    assert unstated(croissant(manifest(files=[]))) == ["url", "creator", "datePublished", "distribution"]
    place = tmp_path / "datasets" / "small"
    place.mkdir(parents=True)
    (place / "recorded.json").write_text(json.dumps({"rows.npy": SHA}))
    assert croissant(manifest(entry={"sha256": None}))["distribution"][0]["sha256"] == SHA
    assert croissant(manifest(entry={"sha256": None, "md5": MD5}))["distribution"][0]["md5"] == MD5


@pytest.mark.parametrize(
    ("spdx", "licence"),
    [
        ("CC-BY-4.0", "https://spdx.org/licenses/CC-BY-4.0"),
        ("LicenseRef-terms", "MIT"),
        ("MIT AND CC-BY-4.0", "MIT"),
        (None, "MIT"),
    ],
)
def test_a_licence_is_an_address_where_it_has_one(spdx, licence):
    assert croissant(manifest(spdx=spdx))["license"] == licence


@pytest.mark.parametrize(
    ("name", "media"),
    [
        ("a.zip", "application/zip"),
        ("a.tar", "application/x-tar"),
        ("a.tar.gz", "application/gzip"),
        ("a.json", "application/json"),
        ("a.csv", "text/csv"),
        ("a.npy", "application/octet-stream"),
    ],
)
def test_formats_are_mime_types(name, media):
    assert croissant(manifest(entry={"name": name}))["distribution"][0]["encodingFormat"] == media
