"""Model manifests, and the files of a model: where they are, if they are right, and what identifies them.

Nothing here imports torch or transformers, so that cached embeddings are found quickly.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from reprolib import paths
from reprolib.errors import DataUnavailable, InputError, nearest
from reprolib.loaders.store import digest, file_digest

DTYPE = "float32"  # weights are up-cast to this, however they are stored
_FILES = (  # what makes a model, weights apart
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "modules.json",
    "sentence_bert_config.json",
    "1_Pooling/config.json",
    "open_clip_config.json",
)

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class ModelManifest(BaseModel):
    """A model as described by ``data_manifests/models/<name>.yaml``.

    ``source`` says whether the files lie beside the manifest or are those of ``hub_id`` at ``revision``. Null
    for ``revision`` or ``files`` means that they are recorded on first use. ``activation`` (of each tower),
    ``preprocessing`` (settings of the processor) and ``projection`` (width of the embeddings) have to be what the
    files say, where they are stated; ``normalised`` says if the model itself gives embeddings of unit length.
    ``training`` and ``measured`` are facts about a model of this project.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    title: str
    source: Literal["project", "hub"]
    hub_id: str | None = None
    revision: str | None = None
    licence: str
    files: dict[str, Sha256] | None = None
    activation: dict[Literal["image", "text"], str] | None = None
    preprocessing: dict[str, Any] = {}
    normalised: bool | None = None
    projection: int | None = None
    notes: list[str] = []
    training: dict[str, Any] = {}
    measured: dict[str, Any] = {}


@dataclass(frozen=True)
class ModelFiles:
    """A model on disk: its name, its folder, and the sha256 over everything that decides its embeddings.

    ``ingredients`` names what ``identity`` is made of: the sha256 of each file, and the activations.
    """

    name: str
    folder: Path
    identity: str
    ingredients: Mapping[str, str] = field(default_factory=dict)


def models() -> list[str]:
    """Return the names of all models that have a manifest, sorted."""
    return sorted(path.stem for path in (paths.manifests() / "models").glob("*.yaml"))


def load_model_manifest(name: str) -> ModelManifest:
    """Return the manifest of a model; InputError for an unknown name or a manifest that is not valid."""
    if name not in models():
        raise nearest(name, models(), "model")
    path = paths.manifests() / "models" / f"{name}.yaml"
    try:
        manifest = ModelManifest.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, ValidationError) as error:
        raise InputError(f"{path.name} is not a valid model manifest: {str(error).splitlines()[0]}") from error
    if manifest.name != name:
        raise InputError(f"{path.name}, field name: valid is {name!r}, as the file is called")
    return manifest


def find_model(name: str) -> ModelFiles:
    """Return the files of a model: the name of a manifest, a folder, or a hub id (openai/clip-vit-base-patch32).

    A hub model is taken from the local hub cache if it is there, else fetched: configuration, tokenizer and
    safetensors only, and where its main revision has none, the conversion to safetensors that the hub's own bot
    proposed. Raises InputError for an unknown name and for files that are not those of the manifest,
    DataUnavailable where the weights are not at hand.
    """
    if name in models():
        manifest = load_model_manifest(name)
        if manifest.source == "project":
            folder = paths.manifests() / "models" / name
            _check_files(name, folder, manifest.files or {})
        else:
            record = _record(name)
            folder = _from_hub(manifest.hub_id or name, manifest.revision or record.get("revision"))
            _check_files(name, folder, (record.get("files") or _recorded(name, folder)) | (manifest.files or {}))
    elif Path(name).expanduser().is_dir():
        folder = Path(name).expanduser()
    elif name.count("/") == 1 and not name.startswith((".", "/", "~")):
        folder = _from_hub(name, None)
    else:
        raise nearest(name, models(), "model")
    return _described(name, folder)


def _check_files(name: str, folder: Path, files: dict[str, str]) -> None:
    for file, expected in files.items():
        if not (folder / file).is_file():
            raise DataUnavailable(f"model {name}: the file {file} is missing from {folder}")
        if file_digest(folder / file) != expected:
            raise InputError(f"model {name}: {folder / file} is not the file that was recorded (sha256 differs)")


def _record(name: str) -> dict[str, Any]:
    """Return revision and files of a hub model as recorded on its first use; empty before."""
    path = paths.cache() / "models" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _recorded(name: str, folder: Path) -> dict[str, str]:
    """Record the sha256 of each file of a hub model, and return them."""
    record = paths.cache() / "models" / f"{name}.json"
    files = {file: file_digest(folder / file) for file in _present(folder)}
    record.parent.mkdir(parents=True, exist_ok=True)
    partial = record.with_suffix(f".{os.getpid()}.part")
    # the hub cache names a snapshot's folder after its commit
    partial.write_text(json.dumps({"revision": folder.name, "files": files}, indent=1), encoding="utf-8")
    os.replace(partial, record)
    return files


def _present(folder: Path) -> list[str]:
    """Return the names of the files in ``folder`` that make the model."""
    weights = sorted(path.name for path in folder.glob("*.safetensors"))
    return [*weights, *(file for file in _FILES if (folder / file).is_file())]


def _described(name: str, folder: Path) -> ModelFiles:
    files = {file: file_digest(folder / file) for file in _present(folder)}
    if not any(file.endswith(".safetensors") for file in files):
        raise DataUnavailable(f"model {name}: {folder} holds no weights as safetensors; no other format is read")
    if not {"config.json", "open_clip_config.json"} & set(files):
        raise DataUnavailable(f"model {name}: {folder} holds no config.json")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8")) if "config.json" in files else {}
    except ValueError as error:
        raise InputError(f"model {name}: {folder / 'config.json'} is not valid JSON") from error
    activation = [config.get(tower, {}).get("hidden_act", "quick_gelu") for tower in ("text_config", "vision_config")]
    return ModelFiles(name, folder, digest(files, DTYPE, activation), files | {"activation": " ".join(activation)})


def _from_hub(hub_id: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = [*_FILES, "*.safetensors"]

    def fetched(revision: str | None, offline: bool) -> Path | None:
        try:
            folder = Path(
                snapshot_download(hub_id, revision=revision, allow_patterns=patterns, local_files_only=offline)
            )
        except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError):
            return None
        return folder if any(folder.glob("*.safetensors")) else None

    folder = fetched(revision, True) or fetched(revision, False)
    if folder is None and revision is None and (converted := _conversion(hub_id)):
        folder = fetched(converted, True) or fetched(converted, False)
    if folder is not None:
        return folder
    raise DataUnavailable(
        f"the weights of {hub_id} are not at hand: no safetensors in the local hub cache, and none could be "
        f"fetched; with a network, 'hf download {hub_id}' fetches them, or name a folder that holds them"
    )


def _conversion(hub_id: str) -> str | None:
    """Return the revision with the weights of ``hub_id`` as safetensors, as the hub's own bot proposed it, or None."""
    from huggingface_hub import HfApi

    try:
        proposed = HfApi().get_repo_discussions(hub_id, author="SFconvertbot", discussion_type="pull_request")
        return next((request.git_reference for request in proposed if "safetensors" in request.title), None)
    except Exception:  # of whichever HTTP client the hub's library has; the caller says what is not at hand
        return None
