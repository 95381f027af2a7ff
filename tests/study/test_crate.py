import json
import tempfile
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from rocrate.rocrate import ROCrate

import reprolib
from reprolib.paths import root
from reprolib.study import crate, provenance


def test_rocrate_reads_it_back(make_run: Callable[..., Path]) -> None:
    run = make_run()
    read = ROCrate(run)
    workflow, facts = read.mainEntity, provenance.read(run)
    assert workflow.id == "01_tiny.ipynb" and set(workflow.type) == {
        "File",
        "SoftwareSourceCode",
        "ComputationalWorkflow",
    }
    assert workflow["programmingLanguage"]["version"] == "3.11.0"
    action = read.root_dataset["mentions"]
    assert action.type == "CreateAction" and action["instrument"] is workflow
    assert (action["startTime"], action["endTime"]) == ("2026-01-02T03:04:05+00:00", "2026-01-02T03:05:06+00:00")
    results = {entity["name"]: entity for entity in action["result"]}
    assert "one figure.svg" in results and results["one figure.svg"].id == "figures/one%20figure.svg"
    for path, digest in facts["files"].items():
        if path != crate.METADATA:
            entity = read.dereference(path.replace(" ", "%20"))
            assert entity["sha256"] == digest and int(entity["contentSize"]) == (run / path).stat().st_size
    parts = {part.id for part in read.root_dataset["hasPart"]}
    assert parts == {path.replace(" ", "%20") for path in facts["files"] if path != crate.METADATA} | {"run.json"}
    values = {entity["name"]: entity for entity in action["object"] if entity.type == "PropertyValue"}
    assert {name: entity["value"] for name, entity in values.items()} == {
        "size": 3, "share": 0.5, "name": "x", "fast": True, "betas": "[1, 2.5]", "model": "null",
    }  # fmt: skip
    kinds = {"size": "Integer", "share": "Float", "name": "Text", "fast": "Boolean", "betas": "Text", "model": "Text"}
    assert {name: entity["exampleOfWork"]["additionalType"] for name, entity in values.items()} == kinds
    assert {entity["name"] for entity in workflow["input"]} == set(values)
    data = next(entity for entity in action["object"] if entity.type == "CreativeWork")
    assert facts["identities"] == {data["name"]: data["sha256"]}
    profiles = {entity.id for entity in read.root_dataset["conformsTo"]}
    assert {"https://w3id.org/ro/wfrun/process/0.6", "https://w3id.org/ro/wfrun/workflow/0.6"} < profiles


def test_same_run_same_bytes(make_run: Callable[..., Path]) -> None:
    one, other = make_run("one"), make_run("other")
    assert (one / crate.METADATA).read_bytes() == (other / crate.METADATA).read_bytes()
    assert str(one.parent) not in (one / crate.METADATA).read_text()


def references(value: Any) -> set[str]:
    if isinstance(value, list):
        return set().union(*map(references, value))
    if not isinstance(value, dict):
        return set()
    return {value["@id"]} if set(value) == {"@id"} else set().union(*map(references, value.values()))


@settings(max_examples=30)
@given(st.dictionaries(st.text("abc_é ", min_size=1, max_size=4), st.text(max_size=5) | st.none() | st.integers()))
def test_the_graph_is_flat_and_closed(parameters: dict[str, Any]) -> None:
    facts = {
        "study": "s", "title": "t", "notebook": {"name": "a ä#%.ipynb", "sha256": "0"}, "parameters": parameters,
        "threads": 1, "code": {"version": "1", "commit": None}, "started": "2026-01-02T03:04:05+00:00",
        "duration_seconds": 0.0, "identities": {}, "environment": {"python": "3"},
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "a ä#%.ipynb").touch()
        graph = json.loads(crate.write(Path(folder), facts).read_text())["@graph"]
    names = [entity["@id"] for entity in graph]
    assert len(set(names)) == len(names)
    outside = {"https://w3id.org/ro/crate/1.3", "http://schema.org/CompletedActionStatus"}
    assert references(graph) <= set(names) | outside
    shown = {e["name"]: e["value"] for e in graph if e["@type"] == "PropertyValue" and e["@id"] != "#threads"}
    assert shown == {name: "null" if value is None else value for name, value in parameters.items()}


def test_codemeta_says_what_pyproject_and_the_citation_say() -> None:
    codemeta = json.loads((root() / "codemeta.json").read_text())
    project = tomllib.loads((root() / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((root() / "CITATION.cff").read_text())
    assert codemeta["@context"] == "https://w3id.org/codemeta/3.0" and codemeta["@type"] == "SoftwareSourceCode"
    assert codemeta["name"] == project["name"] == "reprolib"
    assert codemeta["version"] == project["version"] == str(citation["version"]) == reprolib.__version__
    assert codemeta["license"] == f"https://spdx.org/licenses/{project['license']}"
    assert citation["license"] == project["license"]
    assert codemeta["description"] == project["description"]
    assert codemeta["abstract"] == " ".join(citation["abstract"].split())
    authors = [author["name"] for author in codemeta["author"]]
    assert authors == [a["name"] for a in project["authors"]] == [a["name"] for a in citation["authors"]]
    assert codemeta["dateModified"] == str(citation["date-released"])
    assert (
        set(citation["keywords"]) <= set(codemeta["keywords"]) == set(project["keywords"]) | set(citation["keywords"])
    )
    assert codemeta["runtimePlatform"] == f"Python {project['requires-python']}"
