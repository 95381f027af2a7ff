"""A dataset's manifest in the terms of Croissant 1.0 (http://mlcommons.org/croissant/1.0), as JSON-LD."""

from __future__ import annotations

import mimetypes
import re
from typing import Any

from reprolib.loaders.files import expected
from reprolib.loaders.manifest import DataFile, Manifest

_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "rai": "http://mlcommons.org/croissant/RAI/",
    "sc": "https://schema.org/",
    "conformsTo": "dct:conformsTo",
} | {
    term: f"cr:{term}"
    for term in (
        *("citeAs", "column", "equivalentProperty", "extract", "field", "fileObject", "fileProperty", "fileSet"),
        *("format", "includes", "isLiveDataset", "jsonPath", "key", "md5", "parentField", "path", "recordSet"),
        *("references", "regex", "repeated", "replace", "samplingRate", "separator", "source", "subField", "transform"),
    )
}
_REQUIRED = ("name", "description", "license", "url", "creator", "datePublished", "distribution")
_ARCHIVES = {".tgz": "application/gzip", ".gz": "application/gzip", ".bz2": "application/x-bzip2"}


def croissant(manifest: Manifest) -> dict[str, Any]:
    """Return the manifest as a Croissant 1.0 description: what it does not state is left out, see ``unstated``.

    A file without a known address is named by its file name; one without a published hash has the recorded one, once
    it has been used.
    """
    described = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": manifest.name,
        "alternateName": manifest.title,
        "description": manifest.summary,
        "license": _licence(manifest),
        "usageInfo": manifest.access,
        "url": manifest.source.url or _repository(manifest.source.repository),
        "citeAs": manifest.citation,
        "distribution": [_file_object(manifest, file) for file in manifest.files],
        "recordSet": [_splits(manifest)] if manifest.splits else None,
    }
    return {key: value for key, value in described.items() if value}


def unstated(description: dict[str, Any]) -> list[str]:
    """Return the properties that Croissant requires, or its validator asks for, and the manifest does not state."""
    files = [file for file in description.get("distribution", ()) if not file.keys() & {"sha256", "md5"}]
    return [key for key in _REQUIRED if key not in description] + [f"sha256 of {file['name']}" for file in files]


def _licence(manifest: Manifest) -> str:
    if manifest.spdx and re.fullmatch(r"(?!LicenseRef-)[\w.+-]+", manifest.spdx):
        return f"https://spdx.org/licenses/{manifest.spdx}"
    return manifest.licence


def _repository(name: str | None) -> str | None:
    return f"https://github.com/{name}" if name and re.fullmatch(r"[\w.-]+/[\w.-]+", name) else name


def _file_object(manifest: Manifest, file: DataFile) -> dict[str, Any]:
    known = expected(manifest, file)
    suffix = "." + file.name.rpartition(".")[2].lower()
    media = _ARCHIVES.get(suffix) or mimetypes.guess_type(file.name)[0] or "application/octet-stream"
    described = {
        "@type": "cr:FileObject",
        "@id": file.name,
        "name": file.name,
        "license": file.licence,
        "contentUrl": file.urls[0] if file.urls else file.name,
        "contentSize": f"{file.bytes} B" if file.bytes else None,
        "encodingFormat": media,
        known.algorithm if known else "sha256": known.hash if known else None,
    }
    return {key: value for key, value in described.items() if value}


def _splits(manifest: Manifest) -> dict[str, Any]:
    return {
        "@type": "cr:RecordSet",
        "@id": "splits",
        "name": "splits",
        "description": "The splits, and where each comes from.",
        "key": {"@id": "splits/name"},
        "field": [
            {"@type": "cr:Field", "@id": f"splits/{name}", "name": name, "dataType": "sc:Text"}
            for name in ("name", "provenance")
        ],
        "data": [{"splits/name": name, "splits/provenance": why} for name, why in manifest.splits.items()],
    }
