"""Turn a trained model into the files that a manifest names, and measure what these files are worth."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from reprolib.errors import InputError
from reprolib.loaders.dataset import Split
from reprolib.loaders.store import file_digest

if TYPE_CHECKING:
    from reprolib.models.training import State, Training

LIMIT = 12_000_000  # bytes of weights that the project keeps under version control
ABOUT: dict[str, dict[str, Any]] = {  # the model of each dataset
    "glyphs": {
        "name": "glyph-clip",
        "title": "A small CLIP model of characters and their Unicode names, trained from scratch on glyphs",
        "licence": "MIT, as this project",
        "notes": [],
    },
    "emoji": {
        "name": "emoji-clip",
        "title": "A small CLIP model of emoji and their English labels, trained from scratch on emoji",
        "licence": (
            "MIT, as this project; trained on drawings of twemoji (CC BY 4.0), openmoji (CC BY-SA 4.0), noto and blob "
            "(Apache-2.0), and on labels and tags of emojibase (MIT)"
        ),
        "notes": [
            "Skin tones stand in 1,725 of 3,567 labels, and such variants are in every split: much of the test split "
            "recombines what was trained on; the rest often has words that no training text holds.",
            "Tokenizer and training know English alone: a label in another language is read in bytes.",
        ],
    },
}


def store_model(folder: Path, model: Any, tokenizer: Any, processor: Any) -> dict[str, str]:
    """Write weights (float16), configuration, tokenizer and preprocessing in the layout of transformers.

    Returns the sha256 of every file. ``model`` itself is left as it is. Raises InputError above 12 MB of
    weights.
    """
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config = type(model.config).from_dict(model.config.to_dict() | {"architectures": [type(model).__name__]})
    config.dtype = torch.float16
    config.save_pretrained(folder)
    weights = {name: value.detach().half().cpu().contiguous() for name, value in model.state_dict().items()}
    size = sum(value.nbytes for value in weights.values())
    if size > LIMIT:
        raise InputError(f"the weights take {size / 1e6:.1f} MB as float16: valid is at most {LIMIT / 1e6:.0f} MB")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save_pretrained(folder)
    processor.save_pretrained(folder)
    return {path.name: file_digest(path) for path in sorted(folder.iterdir()) if path.is_file()}


def modality_gap(split: Split) -> float:
    """Return the distance between the mean image and the mean text, L2-normalised (Liang et al. 2022)."""
    means = [(rows / np.linalg.norm(rows, axis=1, keepdims=True)).mean(axis=0) for rows in (split.image, split.text)]
    return float(np.linalg.norm(means[0] - means[1]))


def measure(split: Split, k: int = 10) -> dict[str, Any]:
    """Return R@1 and R@10 (percent) and k-occurrence skewness in both directions, and the modality gap."""
    from reprolib.metrics import hubness_metrics, retrieval_metrics

    result: dict[str, Any] = {"images": len(split.image), "texts": len(split.text)}
    for direction, queries, gallery, relevance in (
        ("image->text", split.image, split.text, split.relevance),
        ("text->image", split.text, split.image, split.relevance.T.tocsr()),
    ):
        retrieval = retrieval_metrics(queries, gallery, relevance)
        result[direction] = {
            "R@1": round(100 * retrieval["R@1"], 2),
            "R@10": round(100 * retrieval["R@10"], 2),
            "skewness": round(hubness_metrics(queries, gallery, k)["skewness"], 3),
        }
    return result | {"modality_gap": round(modality_gap(split), 4)}


def measured_records(
    measured: Mapping[str, Mapping[str, Any]], study: str, dataset: str, model: str
) -> list[dict[str, Any]]:
    """Return what ``measure`` found on each split as the flat records of a run (shares in [0, 1])."""
    records = []
    for split, numbers in measured.items():
        common = {
            "study": study,
            "dataset": dataset,
            "model": model,
            "table": "main",
            "parameters": {"split": split},
        }
        for direction, queries in (("image->text", numbers["images"]), ("text->image", numbers["texts"])):
            for metric, value in numbers[direction].items():
                share = value / 100 if metric.startswith("R@") else value
                own = {
                    "direction": direction,
                    "method": "none",
                    "metric": metric,
                    "value": share,
                    "n": queries,
                }
                records.append(common | own)
        gap = {"direction": None, "method": None, "metric": "modality gap", "value": numbers["modality_gap"]}
        records.append(common | gap)
    return records


def model_manifest(
    training: Training,
    state: State,
    files: Mapping[str, str],
    measured: Mapping[str, Any],
    machine: Mapping[str, Any],
    dataset: str = "glyphs",
) -> dict[str, Any]:
    """Return the manifest of the model of ``dataset``: its files, how it was trained, and what it is worth."""
    import safetensors
    import tokenizers
    import torch
    import transformers

    packages = {
        library.__name__: str(library.__version__) for library in (torch, transformers, tokenizers, safetensors, np)
    }
    about = ABOUT[dataset]
    return {
        "name": about["name"],
        "title": about["title"],
        "source": "project",
        "licence": about["licence"],
        "files": dict(files),
        "notes": [
            f"Trained on the train split of {dataset} alone; validation gave the curve, test the result.",
            "Stored as float16; the numbers are those of the stored files, the gallery is the whole split.",
            *about["notes"],
        ],
        "training": {
            "notebook": "notebooks/90_train_clip.ipynb",
            "command": f"make {about['name']}",
            "dataset": f"{dataset}, train split",
            "settings": asdict(training),
            "parameters": sum(value.numel() for value in state.model.parameters()),
            "wall_time_minutes": round(state.seconds / 60, 1),
            **machine,
            "packages": {"python": platform.python_version(), **packages},
            "curve": {
                "columns": ["step", "train loss", "validation R@1 (%), image->text"],
                "rows": state.curve,
            },
        },
        "measured": dict(measured),
    }


def write_manifest(path: Path, manifest: Mapping[str, Any]) -> None:
    """Write a model manifest as YAML, in the order given, and check that it reads as one."""
    from reprolib.models.registry import ModelManifest

    ModelManifest.model_validate(manifest)
    path.write_text(
        yaml.safe_dump(dict(manifest), sort_keys=False, default_flow_style=None, allow_unicode=True, width=110),
        encoding="utf-8",
    )
