"""Variants of a model for the study of the modality gap: its random initialisation, and short fine-tunes.

Both give the embeddings of some items and keep them in the cache of embeddings, under a key of the model, the
settings and the items. Training agrees within its noise only (tier C); what is in the cache stays the same bytes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open

from reprolib import paths
from reprolib.errors import InputError
from reprolib.loaders.dataset import EmbeddingData, Items, Split, identity_of
from reprolib.loaders.store import digest, read_arrays, write_arrays
from reprolib.models.registry import DTYPE, ModelFiles, find_model

if TYPE_CHECKING:
    from reprolib.models.encoder import Encoder

PARTS = ("projections", "all")


@dataclass(frozen=True)
class Tuning:
    """A short fine-tune at a fixed temperature ``tau``; all of it decides the result.

    ``part`` "projections" trains the two projection matrices on the towers' outputs, which takes a second; "all"
    trains every weight.
    """

    tau: float
    seed: int = 0
    steps: int = 100
    part: Literal["projections", "all"] = "projections"
    batch: int = 128  # distinct texts per step, each with one random image of its own
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 < self.tau < math.inf:
            raise InputError(f"tau {self.tau} is not valid: a temperature is a number above 0")
        if self.part not in PARTS:
            raise InputError(f"part {self.part!r} is not valid: valid are {' and '.join(PARTS)}")
        if min(self.steps, self.batch - 1) < 1 or self.seed < 0:
            raise InputError(
                f"steps {self.steps}, batch {self.batch}, seed {self.seed}: valid is at least 1 step, 2 texts in a "
                "batch, and a seed from 0 upwards"
            )


def can_be_tuned(model: ModelFiles) -> bool:
    """Return whether ``finetune`` takes the model: it has to be of the CLIP family."""
    from reprolib.models.families import FAMILIES, family_of

    return family_of(model.folder) is FAMILIES["clip"]


def trained_temperature(model: str) -> float:
    """Return the temperature a model was trained to, exp(-logit_scale); raises as ``find_model`` does."""
    files = find_model(model)
    for path in sorted(files.folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as stream:
            if "logit_scale" in stream.keys():  # noqa: SIM118 (not a mapping)
                return math.exp(-float(stream.get_tensor("logit_scale")))
    raise InputError(f"model {model}: its weights hold no logit_scale, so its temperature has to be given")


def items_of(data: EmbeddingData, split: Split) -> Items:
    """Return the pictures and texts behind ``split``; InputError where ``data`` does not hold them."""
    if data.pictures is None:
        raise InputError(f"{data.name} holds embeddings without pictures: nothing can be encoded again")
    return Items(
        data.name,
        "part",
        data.pictures.take(split.image_ids),
        [data.captions[name] for name in split.text_ids],
        split.image_ids,
        split.text_ids,
        split.relevance,
    )


def embed_random(items: Items, model: ModelFiles, seed: int, device: str = "cpu") -> Split:
    """Return the embeddings of ``items`` by a copy of ``model`` with the weights of its initialisation.

    The architecture's own initialisation with torch's generator seeded with ``seed``; tokenizer and image processor
    are the model's. Raises as ``load_encoder`` does.
    """

    def compute() -> dict[str, np.ndarray]:
        encoder = _encoder(model, device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            fresh = type(encoder.model)(encoder.model.config)
        return _encoded(replace(encoder, model=fresh.to(device).eval()), items)

    return _split(items, _cached(["random initialisation", seed], model, compute, items))


def finetune(train: Items, items: Items, model: ModelFiles, tuning: Tuning, device: str = "cpu") -> Split:
    """Fine-tune a copy of ``model`` on ``train`` and return its embeddings of ``items``.

    Symmetric InfoNCE at the fixed temperature ``tuning.tau``, AdamW, batches of distinct texts, each with one of its
    images; no augmentation. Raises as ``load_encoder`` does.
    """

    def compute() -> dict[str, np.ndarray]:
        if tuning.part == "projections":
            there, weights = _towers(items, model, device), _tuned_projections(train, model, tuning, device)
            return {name: there[name] @ weight.T for name, weight in weights.items()}
        return _encoded(tuned_encoder(train, model, tuning, device), items)

    return _split(items, _cached(["fine-tuned", asdict(tuning)], model, compute, train, items))


def tuned_encoder(train: Items, model: ModelFiles, tuning: Tuning, device: str = "cpu") -> Encoder:
    """Fine-tune a copy of ``model`` on ``train`` as ``finetune`` does, and return it to encode with; raises alike."""
    encoder = _clip(model, device)
    tuned = copy.deepcopy(encoder.model)  # the encoder's own weights belong to all
    if tuning.part == "projections":
        layers = {"image": tuned.visual_projection, "text": tuned.text_projection}
        for name, weight in _tuned_projections(train, model, tuning, device).items():
            layers[name].weight.data.copy_(torch.from_numpy(weight))
    else:
        _tune_all(replace(encoder, model=tuned.train()), train, tuning)
    identity = digest(encoder.identity, asdict(tuning), identity_of(train))
    return replace(encoder, model=tuned.eval(), identity=identity)


def _tuned_projections(train: Items, model: ModelFiles, tuning: Tuning, device: str) -> dict[str, np.ndarray]:
    """Train the two matrices that map the towers' outputs into the common space; the towers are fixed."""
    here = _towers(train, model, device)
    weights = {name: torch.from_numpy(here[f"{name} projection"]).requires_grad_() for name in ("image", "text")}
    tower = {name: torch.from_numpy(here[name]) for name in weights}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the products are small: threads would wait for each other
    try:
        _descend(
            list(weights.values()),
            lambda images, texts: (
                tower["image"][images] @ weights["image"].T,
                tower["text"][texts] @ weights["text"].T,
            ),
            train,
            tuning,
        )
    finally:
        torch.set_num_threads(threads)
    return {name: weight.detach().numpy() for name, weight in weights.items()}


def _tune_all(encoder: Encoder, train: Items, tuning: Tuning) -> None:
    """Train every weight of the encoder's model, in place."""
    tuned = encoder.model

    def embeddings(images: np.ndarray, texts: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        pixels = _pixels(encoder, train.images[images])
        tokens = _tokens(encoder, [train.texts[row] for row in texts])
        return (
            tuned.get_image_features(pixel_values=pixels).pooler_output,
            tuned.get_text_features(input_ids=tokens).pooler_output,
        )

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(tuning.seed)  # dropout, where a model has any
        _descend([p for p in tuned.parameters() if p.requires_grad], embeddings, train, tuning)


def _descend(
    weights: list[torch.Tensor],
    embeddings: Callable[[np.ndarray, np.ndarray], tuple[torch.Tensor, torch.Tensor]],
    train: Items,
    tuning: Tuning,
) -> None:
    """Change ``weights`` in place by ``tuning.steps`` steps; ``embeddings`` maps image rows and text rows to both."""
    by_text = train.relevance.tocsc()
    optimiser = torch.optim.AdamW(weights, lr=tuning.learning_rate, weight_decay=0.0)
    rng = np.random.default_rng(tuning.seed)
    for _ in range(tuning.steps):
        texts = rng.permutation(len(train.texts))[: tuning.batch]
        images = by_text.indices[rng.integers(by_text.indptr[texts], by_text.indptr[texts + 1])]
        image, text = (F.normalize(rows, dim=-1) for rows in embeddings(images, texts))
        logits = image @ text.T / tuning.tau
        own = torch.arange(len(logits), device=logits.device)
        loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()


def _towers(items: Items, model: ModelFiles, device: str) -> dict[str, np.ndarray]:
    """Return what the projections of ``model`` are applied to, for images and texts, and the projections."""

    def compute() -> dict[str, np.ndarray]:
        encoder = _clip(model, device)
        clip = encoder.model

        def image(rows: slice) -> torch.Tensor:
            return clip.vision_model(pixel_values=_pixels(encoder, items.images[rows])).pooler_output

        def text(rows: slice) -> torch.Tensor:
            return clip.text_model(input_ids=_tokens(encoder, items.texts[rows])).pooler_output

        found = {}
        with torch.inference_mode():
            for name, tower, n in (("image", image, len(items.images)), ("text", text, len(items.texts))):
                rows = [slice(start, start + encoder.batch) for start in range(0, n, encoder.batch)]
                found[name] = torch.cat([tower(part).float().cpu() for part in rows]).numpy()
        projections = {"image": clip.visual_projection, "text": clip.text_projection}
        return found | {f"{name} projection": p.weight.detach().cpu().numpy() for name, p in projections.items()}

    return _cached(["towers"], model, compute, items)


def _pixels(encoder: Encoder, images: np.ndarray) -> torch.Tensor:
    from reprolib.models.families import picture

    pictures = [picture(image) for image in images]
    return encoder.processor(pictures, return_tensors="pt")["pixel_values"].to(encoder.model.device)


def _tokens(encoder: Encoder, texts: list[str]) -> torch.Tensor:
    tokens = encoder.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")["input_ids"]
    return tokens.to(encoder.model.device)


def _encoder(model: ModelFiles, device: str) -> Encoder:
    from reprolib.models.encoder import load_encoder

    return load_encoder(model.name, device)


def _clip(model: ModelFiles, device: str) -> Encoder:
    """Load a model that can be fine-tuned."""
    if not can_be_tuned(model):
        raise InputError(f"model {model.name} is no CLIP model: only such are fine-tuned")
    return _encoder(model, device)


def _encoded(encoder: Encoder, items: Items) -> dict[str, np.ndarray]:
    return {"image": encoder.encode_images(items.images), "text": encoder.encode_texts(items.texts)}


def _cached(
    about: list[Any], model: ModelFiles, compute: Callable[[], dict[str, np.ndarray]], *parts: Items
) -> dict[str, np.ndarray]:
    key = digest(about, model.identity, DTYPE, identity_of(*parts))
    path = paths.cache() / "embeddings" / f"{key}.safetensors"
    arrays = read_arrays(path)
    if arrays is None:
        arrays = compute()
        write_arrays(path, arrays)
    return arrays


def _split(items: Items, arrays: dict[str, np.ndarray]) -> Split:
    return Split(arrays["image"], arrays["text"], items.relevance, items.image_ids, items.text_ids)
