"""Model manifests, and where a model's files come from."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from reprolib import paths
from reprolib.errors import DataUnavailable, InputError
from reprolib.models import find_model, load_model_manifest, models


@pytest.fixture
def project(tmp_path: Path, mini_clip: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of models of a project of one's own, with the manifest and files of "mini"."""
    folder = tmp_path / "models"
    shutil.copytree(mini_clip, folder / "mini")
    manifest = {"name": "mini", "title": "Mini", "source": "project", "licence": "MIT"}
    (folder / "mini.yaml").write_text(json.dumps(manifest))  # JSON is YAML
    monkeypatch.setattr(paths, "manifests", lambda: tmp_path)
    monkeypatch.setenv("REPROLIB_CACHE", str(tmp_path / "cache"))
    return folder


def test_every_manifest_is_valid() -> None:
    assert {"glyph-clip", "clip-vit-base-patch32"} <= set(models())
    for name in models():
        manifest = load_model_manifest(name)
        assert manifest.name == name
        if manifest.source == "hub":  # where its weights come from, and what they are checked against
            assert manifest.hub_id and manifest.projection and manifest.normalised is not None and manifest.licence


def test_unknown_names_get_the_nearest() -> None:
    for look_up in (find_model, load_model_manifest):
        with pytest.raises(InputError, match="unknown model 'glyph-clib'; nearest valid: glyph-clip"):
            look_up("glyph-clib")


def test_files_must_be_those_of_the_manifest(project: Path) -> None:
    assert find_model("mini").folder == project / "mini"
    manifest = json.loads((project / "mini.yaml").read_text())
    (project / "mini.yaml").write_text(json.dumps(manifest | {"files": {"config.json": "0" * 64}}))
    with pytest.raises(InputError, match=r"config\.json is not the file that was recorded"):
        find_model("mini")
    (project / "mini.yaml").write_text(json.dumps(manifest | {"files": {"gone.json": "0" * 64}}))
    with pytest.raises(DataUnavailable, match=r"gone\.json is missing"):
        find_model("mini")


@pytest.mark.parametrize("change", [{"colour": "red"}, {"name": "other"}, {"source": "elsewhere"}])
def test_a_wrong_manifest_is_named(project: Path, change: dict[str, str]) -> None:
    manifest = json.loads((project / "mini.yaml").read_text())
    (project / "mini.yaml").write_text(json.dumps(manifest | change))
    with pytest.raises(InputError, match=r"mini\.yaml"):
        load_model_manifest("mini")


def test_a_hub_model_that_is_not_at_hand_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def unreachable(*_: object, **__: object) -> str:
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    monkeypatch.setattr("huggingface_hub.HfApi.get_repo_discussions", unreachable)
    for name in ("clip-vit-base-patch32", "openai/clip-vit-base-patch32"):
        with pytest.raises(DataUnavailable, match=r"'hf download openai/clip-vit-base-patch32' fetches them"):
            find_model(name)


def test_a_hub_model_is_looked_for_locally_first_and_recorded(
    project: Path, mini_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tmp_path / "snapshots" / "c0ffee"
    shutil.copytree(mini_clip, snapshot)
    asked = []

    def download(hub_id: str, *, revision: str | None, allow_patterns: list[str], local_files_only: bool) -> str:
        assert not any("bin" in pattern for pattern in allow_patterns)
        asked.append((hub_id, revision, local_files_only))
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    manifest = {"name": "far", "title": "Far", "source": "hub", "hub_id": "some/where", "licence": "MIT"}
    (project / "far.yaml").write_text(json.dumps(manifest))
    first = find_model("far")
    assert asked == [("some/where", None, True)]
    assert json.loads((tmp_path / "cache" / "models" / "far.json").read_text())["revision"] == "c0ffee"
    assert find_model("far") == first
    assert asked[-1] == ("some/where", "c0ffee", True)  # the revision of the first use, whatever is newest now
    assert find_model("some/where").identity == first.identity
    (snapshot / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"config\.json is not the file that was recorded"):
        find_model("far")


def test_without_safetensors_the_conversion_of_the_hub_is_taken(
    project: Path, mini_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare, converted = tmp_path / "snapshots" / "ba4e", tmp_path / "snapshots" / "c0de"
    bare.mkdir(parents=True)
    (bare / "pytorch_model.bin").write_bytes(b"a pickle, which is never read")
    shutil.copytree(mini_clip, converted)

    def download(hub_id: str, *, revision: str | None, **_: object) -> str:
        return str({None: bare, "refs/pr/7": converted, "c0de": converted}[revision])

    def discussions(_: object, hub_id: str, *, author: str, discussion_type: str) -> list[SimpleNamespace]:
        assert (hub_id, author, discussion_type) == ("some/where", "SFconvertbot", "pull_request")
        titles = ["Update README.md", "Adding `safetensors` variant of this model"]
        return [SimpleNamespace(title=title, git_reference=f"refs/pr/{n}") for n, title in enumerate(titles, start=6)]

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.setattr("huggingface_hub.HfApi.get_repo_discussions", discussions)
    weights = hashlib.sha256((mini_clip / "model.safetensors").read_bytes()).hexdigest()
    manifest = {"name": "far", "title": "Far", "source": "hub", "hub_id": "some/where", "licence": "MIT"}
    (project / "far.yaml").write_text(json.dumps(manifest | {"files": {"model.safetensors": weights}}))
    assert find_model("far").folder == find_model("some/where").folder == converted
    record = json.loads((tmp_path / "cache" / "models" / "far.json").read_text())
    assert record["revision"] == "c0de" and set(record["files"]) >= {"config.json", "tokenizer.json"}
    monkeypatch.setattr("huggingface_hub.HfApi.get_repo_discussions", None)  # not asked again
    assert find_model("far").folder == converted
    (project / "far.yaml").write_text(json.dumps(manifest | {"files": {"model.safetensors": "0" * 64}}))
    with pytest.raises(InputError, match="not the file that was recorded"):
        find_model("far")


def test_the_ingredients_of_an_identity_have_names(mini_clip: Path) -> None:
    found = find_model(str(mini_clip))
    assert found.ingredients["activation"] == "quick_gelu quick_gelu"
    for file in ("model.safetensors", "config.json", "preprocessor_config.json", "tokenizer.json"):
        assert found.ingredients[file] == hashlib.sha256((mini_clip / file).read_bytes()).hexdigest()


def test_the_package_is_light_to_import() -> None:
    code = "import sys, reprolib.models; print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
