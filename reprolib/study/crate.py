"""A run as a Workflow Run Crate: ``ro-crate-metadata.json`` says in the words of other tools what was run and made.

RO-Crate 1.3 with the profiles Process Run Crate 0.6, Workflow Run Crate 0.6 (w3id.org/ro/wfrun) and Workflow RO-Crate
1.1. The notebook is the workflow, its parameters are the formal parameters, and ``run.json`` remains the full record:
the crate says nothing that is not in there. Who ran it is not recorded, so the action has no agent.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from reprolib.study import provenance

METADATA = "ro-crate-metadata.json"
_CRATE = "https://w3id.org/ro/crate/1.3"
_PROFILES = (
    ("https://w3id.org/ro/wfrun/process/0.6", "Process Run Crate", "0.6"),
    ("https://w3id.org/ro/wfrun/workflow/0.6", "Workflow Run Crate", "0.6"),
    ("https://w3id.org/workflowhub/workflow-ro-crate/1.1", "Workflow RO-Crate", "1.1"),
)
_FORMATS = {  # the machine's own table of types would make the bytes depend on the machine
    ".ipynb": "application/x-ipynb+json",
    ".json": "application/json",
    ".parquet": "application/vnd.apache.parquet",
    ".pdf": "application/pdf",
    ".png": "image/png",
    ".svg": "image/svg+xml",
}
_TYPES = {bool: "Boolean", int: "Integer", float: "Float", str: "Text"}
_LICENCE = "Results belong to whoever ran the study; data and models keep the licences that their manifests name."


def write(folder: Path, facts: Mapping[str, Any]) -> Path:
    """Describe the files of ``folder`` and the run in ``facts`` (see ``provenance.complete``); return the crate's path.

    The bytes follow from the arguments alone. ``run.json``, written after it, is named without a digest.
    """
    path = folder / METADATA
    path.unlink(missing_ok=True)
    text = json.dumps(_document(folder, facts), indent=1, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")
    return path


def _document(folder: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    notebook = quote(facts["notebook"]["name"])
    started = datetime.fromisoformat(facts["started"])
    ended = (started + timedelta(seconds=facts["duration_seconds"])).isoformat(timespec="seconds")
    files = [_file(folder, name, digest) for name, digest in provenance.digests(folder).items()]
    record = {"@id": provenance.RUN, "@type": "File", "name": provenance.RUN, "about": {"@id": "#run"},
              "description": "The full record of the run, with the SHA-256 of every file.",
              "encodingFormat": _FORMATS[".json"]}  # fmt: skip
    inputs = [_input(name, value) for name, value in facts["parameters"].items()]
    data = [
        {"@id": f"#sha256-{digest}", "@type": "CreativeWork", "name": name, "sha256": digest}
        for name, digest in facts["identities"].items()
    ]
    threads = {"@id": "#threads", "@type": "PropertyValue", "name": "OMP_NUM_THREADS", "value": str(facts["threads"])}
    for entity in files:
        if entity["@id"] == notebook:
            entity |= {
                "@type": ["File", "SoftwareSourceCode", "ComputationalWorkflow"],
                "name": facts["title"],
                "alternateName": facts["notebook"]["name"],
                "description": f"The executed notebook; the SHA-256 of its source is {facts['notebook']['sha256']}.",
                "programmingLanguage": {"@id": "#python"},
                "softwareRequirements": {"@id": "#reprolib"},
                "input": _references(parameter for parameter, _ in inputs),
            }
    root = {
        "@id": "./",
        "@type": "Dataset",
        "name": f"{facts['title']}: a run of the study {facts['study']}",
        "description": "Results, figures and executed notebook of one run, as written by reprolib.",
        "datePublished": ended,
        "license": _LICENCE,
        "conformsTo": [{"@id": identifier} for identifier, _, _ in _PROFILES],
        "hasPart": _references([*files, record]),
        "mainEntity": {"@id": notebook},
        "mentions": {"@id": "#run"},
    }
    action = {
        "@id": "#run",
        "@type": "CreateAction",
        "name": f"Run of {facts['study']}",
        "description": f"reprolib run {facts['study']}, with the parameters given as objects",
        "startTime": facts["started"],
        "endTime": ended,
        "actionStatus": {"@id": "http://schema.org/CompletedActionStatus"},
        "instrument": {"@id": notebook},
        "object": _references([*(value for _, value in inputs), *data]),
        "result": _references(files),
        "environment": [{"@id": "#threads"}],
    }
    graph = [
        {"@id": METADATA, "@type": "CreativeWork", "about": {"@id": "./"}, "conformsTo": {"@id": _CRATE}},
        root,
        *({"@id": i, "@type": "CreativeWork", "name": name, "version": version} for i, name, version in _PROFILES),
        *files,
        record,
        action,
        threads,
        *_software(facts),
        *(entity for pair in inputs for entity in pair),
        *data,
    ]
    return {"@context": [f"{_CRATE}/context", "https://w3id.org/ro/terms/workflow-run/context"], "@graph": graph}


def _references(entities: Any) -> list[dict[str, str]]:
    return [{"@id": entity["@id"]} for entity in entities]


def _file(folder: Path, name: str, digest: str) -> dict[str, Any]:
    entity = {"@id": quote(name), "@type": "File", "name": PurePosixPath(name).name, "sha256": digest,
              "contentSize": str((folder / name).stat().st_size)}  # fmt: skip
    kind = _FORMATS.get(PurePosixPath(name).suffix)
    return entity | ({"encodingFormat": kind} if kind else {})


def _input(name: str, value: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a parameter of the notebook and the value it had; lists and null are given as JSON."""
    kind = _TYPES.get(type(value), "Text")
    shown = value if type(value) in _TYPES else json.dumps(value, ensure_ascii=False)
    formal = {"@id": f"#parameter-{name}", "@type": "FormalParameter", "name": name, "additionalType": kind}
    return formal, {"@id": f"#value-{name}", "@type": "PropertyValue", "name": name, "value": shown,
                    "exampleOfWork": {"@id": formal["@id"]}}  # fmt: skip


def _software(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    code, environment = facts["code"], facts["environment"]
    package = {"@id": "#reprolib", "@type": "SoftwareApplication", "name": "reprolib",
               "softwareVersion": code["version"]}  # fmt: skip
    if code["commit"]:
        edits = f" with local edits (SHA-256 {code['tree']})" if code["dirty"] else ""
        package["description"] = f"git commit {code['commit']}{edits}"
    language = {"@id": "#python", "@type": "ComputerLanguage", "name": "Python", "version": environment["python"],
                "url": "https://www.python.org/"}  # fmt: skip
    return [language, package]
