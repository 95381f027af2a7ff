"""The set-up agrees with itself, and the source keeps the project's rules."""

import ast
import importlib.metadata
import json
import os
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import reprolib
from reprolib.study.parameters import read_study

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DIRECT = [Requirement(text) for text in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"]]]
CONDA = {"torch": "pytorch", "matplotlib": "matplotlib-base"}  # where conda-forge has another name
IMPORTED_AS = {
    "yaml": "pyyaml",
    "sklearn": "scikit-learn",
    "faiss": "faiss-cpu",
    "ot": "pot",
    "bs4": "beautifulsoup4",
    "PIL": "pillow",
    "open_clip": "open-clip-torch",
    "resvg_py": "resvg-py",
}
LAYERS = (
    "cli",
    "data_cli",
    "explore",
    "study",
    "figures",
    "methods",
    "models",
    "loaders",
    "metrics",
    "ranking",
    "mapped",
)
SOURCES = sorted((ROOT / "reprolib").rglob("*.py"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def locked() -> dict[str, str]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pins = [line.split("==") for line in lines if not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pins}


def cells(notebook: Path, kind: str) -> list[str]:
    content = json.loads(notebook.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == kind]


def code(notebook: Path) -> str:
    """Return the Python of a notebook, without the lines that only IPython understands."""
    return re.sub(r"^\s*[%!].*$", "", "\n".join(cells(notebook, "code")), flags=re.M)


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


# --- pyproject.toml, requirements.lock, environment.yml -----------------------------------------------------


def test_lock_pins_every_direct_dependency_in_its_range() -> None:
    pins = locked()
    for requirement in DIRECT:
        version = pins.get(canonicalize_name(requirement.name))
        assert version and requirement.specifier.contains(version), f"{requirement} is locked at {version}"
    assert pins["torch"] == "2.13.0"
    assert "reprolib" not in pins


def test_lock_is_portable_and_complete() -> None:
    pins = locked()
    assert all(re.fullmatch(r"\d[\w.]*", version) for version in pins.values())  # no local label, path or address
    for name in pins:
        try:
            needed = importlib.metadata.distribution(name).requires or []
        except importlib.metadata.PackageNotFoundError:
            continue  # an environment made by other means than the lock
        for requirement in map(Requirement, needed):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                assert canonicalize_name(requirement.name) in pins, f"{name} needs {requirement}"


def test_environment_is_that_of_pyproject() -> None:
    entries = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    pip = next(entry["pip"] for entry in entries if isinstance(entry, dict))
    found = {
        canonicalize_name(entry.name): entry.specifier
        for entry in map(Requirement, [*(text for text in entries if isinstance(text, str)), *pip])
    }
    expected = {canonicalize_name(CONDA.get(entry.name, entry.name)): entry.specifier for entry in DIRECT}
    expected |= {"python": Requirement(f"python{PROJECT['requires-python']}").specifier}
    assert {name: spec for name, spec in found.items() if name != "pip"} == expected


def test_version_and_licence_are_stated_once_and_alike() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0" and {"message", "title", "authors"} <= set(citation)
    assert str(citation["version"]) == PROJECT["version"] == reprolib.__version__
    assert citation["license"] == PROJECT["license"] == "MIT"
    assert (ROOT / "LICENSE").read_text().startswith("MIT License")


def test_ci_lints_and_tests() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert {"make lint", "make test"} <= set(script.read_text().splitlines())


# --- the source ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_downwards(path: Path) -> None:
    layer = path.relative_to(ROOT / "reprolib").with_suffix("").parts[0]
    for name in imports(ast.parse(path.read_text(encoding="utf-8"))):
        package, _, rest = name.partition(".")
        target = rest.split(".")[0]
        if package == "reprolib" and target in LAYERS:
            assert layer in LAYERS, f"{layer} stands below all layers, but imports {name}"
            assert LAYERS.index(target) >= LAYERS.index(layer), f"{layer} imports {name}, upwards"


@pytest.mark.parametrize("path", [*SOURCES, *NOTEBOOKS], ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_are_declared_and_nothing_unpickles(path: Path) -> None:
    tree = ast.parse(code(path) if path.suffix == ".ipynb" else path.read_text(encoding="utf-8"))
    extras = [text for name, texts in PROJECT["optional-dependencies"].items() if name != "test" for text in texts]
    stated = [*PROJECT["dependencies"], *extras, "reprolib"]
    declared = {canonicalize_name(Requirement(text).name) for text in stated}
    for name in {name.split(".")[0] for name in imports(tree)} - sys.stdlib_module_names - {"None"}:
        assert canonicalize_name(IMPORTED_AS.get(name, name)) in declared, f"{name} is not in pyproject.toml"
    pickling = {"pickle", "_pickle", "shelve", "marshal", "dill", "cloudpickle", "joblib"}
    assert not {name.split(".")[0] for name in imports(tree)} & pickling
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            assert ast.unparse(node) != "torch.load" and node.attr not in ("read_pickle", "to_pickle")
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            assert isinstance(node.value, ast.Constant) and node.value.value is False


# --- the notebooks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_hold_narrative_parameters_and_calls(path: Path) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    for cell in content["cells"]:
        assert not cell.get("outputs") and cell.get("execution_count") is None, "the notebook holds outputs"
    tagged = [cell for cell in content["cells"] if "parameters" in cell["metadata"].get("tags", [])]
    assert len(tagged) == 1 and tagged[0]["cell_type"] == "code"
    study = read_study(path)
    assert study.parameters and all(parameter.help for parameter in study.parameters.values())
    study.resolve({})
    for cell in content["cells"]:
        if cell["cell_type"] == "code" and cell is not tagged[0]:
            lines = "".join(cell["source"]).splitlines()  # handing parameters on, `k=k,`, does not count
            assert sum(not re.fullmatch(r"\s*(\w+)=\1,", line) for line in lines) <= 20, lines[0]
    for node in ast.walk(ast.parse(code(path))):
        assert not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda)
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            assert not re.match(r"[/~\\]|[A-Za-z]:[/\\]", node.value), f"{node.value!r} is an absolute path"
    prose = "\n".join(cells(path, "markdown"))
    assert not re.search(r"(?<![\w:/.])/(?:home|Users|tmp|root|mnt|opt|work)/", prose), "absolute path in the text"
