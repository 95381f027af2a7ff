import json
import subprocess
from pathlib import Path

import pytest

from reprolib.errors import RunError
from reprolib.study import provenance


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "checkout"
    folder.mkdir()
    (folder / "code.py").write_text("a = 1\n")
    for command in ("init -q", "add .", "-c user.name=a -c user.email=a@b commit -q -m first"):
        subprocess.run(["git", "-C", str(folder), *command.split()], check=True)
    monkeypatch.setattr(provenance, "root", lambda: folder)
    return folder


def test_commit_is_that_of_the_package(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    clean = provenance.code()
    assert len(clean["commit"]) == 40 and clean["dirty"] is False and clean["tree"] is None
    monkeypatch.setenv("GIT_DIR", str(tmp_path))
    assert provenance.code() == clean
    (checkout / "code.py").write_text("a = 2\n")
    edited = provenance.code()
    (checkout / "new.py").write_text("b = 1\n")
    added = provenance.code()
    (checkout / "new.py").write_text("b = 2\n")
    trees = {edited["tree"], added["tree"], provenance.code()["tree"]}
    assert edited["dirty"] and len(trees) == 3 and None not in trees


def test_package_inside_anothers_repository_has_no_commit(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = checkout / "lib" / "reprolib"
    inner.mkdir(parents=True)
    monkeypatch.setattr(provenance, "root", lambda: inner)
    assert provenance.code()["commit"] is None


def test_run_record(tmp_path: Path) -> None:
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "one.png").write_bytes(b"png")
    (tmp_path / "identities.json").write_text(json.dumps({"glyphs": "a" * 64}))
    provenance.write(tmp_path, {"study": "tiny"})
    record = provenance.read(tmp_path)
    assert record["identities"] == {"glyphs": "a" * 64}
    assert record["files"] == {"figures/one.png": provenance.sha256(tmp_path / "figures" / "one.png")}
    assert record["environment"]["packages"]["numpy"]
    (tmp_path / "identities.json").write_text("[1]")
    with pytest.raises(RunError, match="must map names"):
        provenance.write(tmp_path, {})
    with pytest.raises(RunError, match="not a finished run"):
        provenance.read(tmp_path / "absent")
