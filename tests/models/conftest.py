"""Miniature items, and a miniature CLIP model in the file layout of ``openai/clip-vit-base-patch32``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import torch

from reprolib.loaders.dataset import Items

NAMES = [
    f"{script} {case} letter {letter}"
    for script in ("latin", "greek", "cyrillic")
    for case in ("small", "capital")
    for letter in ("a", "beta", "gamma", "delta with tonos")
]


def make_items(n_texts: int = len(NAMES), faces: int = 2, seed: int = 0, split: str = "train") -> Items:
    """Return ``n_texts`` names with ``faces`` random pictures each."""
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(n_texts), faces)
    base = np.kron(rng.integers(0, 256, (n_texts, 4, 4)), np.ones((8, 8), dtype=int))
    images = np.clip(base[owner] + rng.integers(-20, 20, (len(owner), 32, 32)), 0, 255).astype(np.uint8)
    return Items(
        "toy",
        split,
        images,
        NAMES[:n_texts],
        np.array([f"{split} image {row}" for row in range(len(owner))]),
        np.array([f"{split} text {row}" for row in range(n_texts)]),
        scipy.sparse.csr_array(np.eye(n_texts, dtype=bool)[owner]),
    )


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Compute with one thread: miniatures gain nothing from more, and a busy machine makes them wait."""
    torch.set_num_threads(1)


@pytest.fixture
def items() -> Items:
    return make_items()


@pytest.fixture(scope="session")
def mini_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a randomly initialised CLIP model with the files that the public one has."""
    from transformers import CLIPConfig, CLIPModel

    from reprolib.models.training import build_tokenizer

    folder = tmp_path_factory.mktemp("mini-clip")
    tokenizer = build_tokenizer(NAMES, 700)
    torch.manual_seed(0)
    common = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    # the public configuration keeps 2 as the end-of-text id, which means: read at the largest id
    text = common | {"vocab_size": len(tokenizer), "eos_token_id": 2, "max_position_embeddings": 12}
    vision = common | {"image_size": 32, "patch_size": 8}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    preprocessor = {
        "crop_size": 32,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "size": 32,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor), encoding="utf-8")
    return folder
