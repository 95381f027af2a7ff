"""Model manifests, and where a model's files come from."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

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
        assert load_model_manifest(name).name == name


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
        asked.append((hub_id, local_files_only))
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    manifest = {"name": "far", "title": "Far", "source": "hub", "hub_id": "some/where", "licence": "MIT"}
    (project / "far.yaml").write_text(json.dumps(manifest))
    first = find_model("far")
    assert asked == [("some/where", True)]
    assert json.loads((tmp_path / "cache" / "models" / "far.json").read_text())["revision"] == "c0ffee"
    assert find_model("far") == first
    assert find_model("some/where").identity == first.identity
    (snapshot / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"config\.json is not the file that was recorded"):
        find_model("far")


def test_the_package_is_light_to_import() -> None:
    code = "import sys, reprolib.models; print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
