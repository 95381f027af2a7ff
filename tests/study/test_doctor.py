import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from reprolib import paths
from reprolib.loaders import manifest
from reprolib.models import registry
from reprolib.study import doctor, provenance
from reprolib.study.runner import THREAD_VARIABLES


def states(checks: object) -> list[str]:
    return [check.state for check in checks]


def test_every_finding_is_one_sentence(tmp_path: Path) -> None:
    found = doctor.examine(tmp_path)
    assert {"kernel", "threads", "blas", "packages", "data", "models", "code", "disk"} == {c.name for c in found}
    assert all(check.sentence and "\n" not in check.sentence for check in found)
    assert {"models", "disk", "blas"} <= {check.name for check in found if check.state == "ok"}


@pytest.mark.parametrize(
    ("given", "state"),
    [
        ({}, "ok"),
        ({"OMP_NUM_THREADS": "1"}, "ok"),
        ({"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "2"}, "weak"),
        ({"OMP_NUM_THREADS": "9999"}, "weak"),
        ({"MKL_NUM_THREADS": "two"}, "broken"),
        ({"OMP_NUM_THREADS": "0"}, "broken"),
    ],
)
def test_threads(monkeypatch: pytest.MonkeyPatch, given: dict[str, str], state: str) -> None:
    for name in THREAD_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert states(doctor.threads()) == [state]


def test_kernel_of_another_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = tmp_path / "kernels" / "python3"
    spec.mkdir(parents=True)
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    beside = str(Path(sys.executable).with_name("python"))
    for program, state in (("/usr/bin/another/python3", "weak"), ("python", "ok"), (beside, "ok")):
        (spec / "kernel.json").write_text(json.dumps({"argv": [program], "display_name": "x", "language": "python"}))
        assert states(doctor.kernel()) == [state], program


def test_versions_against_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "root", lambda: tmp_path)
    assert states(doctor.versions()) == ["weak"]  # no lock
    numpy = provenance.environment()["packages"]["numpy"]
    lock = tmp_path / "requirements.lock"
    lock.write_text(f"# made by\nNumPy=={numpy}\n")
    assert states(doctor.versions()) == ["ok"]
    lock.write_text(f"numpy=={numpy}\nscipy==0.0.1\nno-such-package==1.0\n")
    (check,) = doctor.versions()
    assert check.state == "weak" and "no-such-package missing instead of 1.0" in check.sentence
    assert check.sentence.startswith("2 of 3 are not as locked: scipy ")
    monkeypatch.setattr(doctor, "_needed", lambda: ["numpy", "no-such-package"])
    broken, weak = doctor.versions()
    assert broken.state == "broken" and "no-such-package" in broken.sentence
    assert weak.sentence.startswith("1 of 3 are not as locked: scipy ")


def test_what_the_package_needs_is_read_from_its_own_metadata() -> None:
    needed = doctor._needed()
    assert {"numpy", "faiss-cpu", "pyyaml"} <= set(needed) and "pytest" not in needed


def test_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPROLIB_CACHE", str(tmp_path))
    monkeypatch.delenv("REPROLIB_MIRROR", raising=False)
    (check,) = doctor.data()
    assert check.state == "weak" and "coco-clip-500" in check.sentence
    monkeypatch.setenv("REPROLIB_MIRROR", str(tmp_path / "absent"))
    assert states(doctor.data()) == ["broken"]
    monkeypatch.setattr(manifest, "_folder", lambda: tmp_path)
    assert states(doctor.data()) == ["broken"]


def test_models_that_do_not_fit_their_manifest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "file_digest", lambda path: "0" * 64)
    checks = list(doctor.weights())
    assert [check.state for check in checks] == ["broken"] * 2
    assert all(name in check.sentence for name, check in zip(("emoji-clip", "glyph-clip"), checks, strict=True))


@pytest.mark.parametrize(
    ("commit", "dirty", "state"), [("a" * 40, False, "ok"), ("a" * 40, True, "weak"), (None, None, "weak")]
)
def test_code(monkeypatch: pytest.MonkeyPatch, commit: str | None, dirty: bool | None, state: str) -> None:
    monkeypatch.setattr(provenance, "code", lambda: {"version": "1", "commit": commit, "dirty": dirty, "tree": None})
    assert states(doctor.code()) == [state]


@pytest.mark.parametrize(("gigabytes", "state"), [(0.01, "broken"), (1, "weak"), (10, "ok")])
def test_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gigabytes: float, state: str) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: SimpleNamespace(free=gigabytes * 2**30))
    assert states(doctor.disk(tmp_path)) == [state]


@pytest.mark.parametrize(("blas", "state"), [({"found": True, "name": "x", "version": "1"}, "ok"), ({}, "weak")])
def test_blas(monkeypatch: pytest.MonkeyPatch, blas: dict[str, object], state: str) -> None:
    monkeypatch.setattr(doctor.np, "show_config", lambda mode: {"Build Dependencies": {"blas": blas}})
    assert states(doctor.blas()) == [state]
