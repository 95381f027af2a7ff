"""Train a small CLIP model from scratch on pictures and names: contrastive, resumable, on CPU or GPU.

Every random choice of step ``s`` comes from a generator seeded with (seed, s), so a run that was stopped and
resumed takes the same steps as one that was not. On one machine with one thread count the weights agree
within 1e-6 (tier B); elsewhere only within the noise of training (tier C).
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from reprolib.errors import InputError
from reprolib.loaders.dataset import Items


@dataclass(frozen=True)
class Training:
    """What is trained and how; the whole of it goes into the model's manifest."""

    steps: int = 1550
    batch: int = 256  # distinct texts per step, each with one random image of its own
    negatives: int = 512  # further texts without images: the text tower is cheap, and they make the choice harder
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    warmup: int = 100
    cooldown: int = 500
    label_smoothing: float = 0.1
    ema: float = 0.997
    word_dropout: float = 0.1  # probability with which a word is left out of a name
    keywords: float = 0.0  # probability with which a name is followed by some of its keywords, where it has any
    mean: float = 0.15  # of every channel, as a share of white, and
    std: float = 0.3  # its deviation: what the image processor normalises with
    ground: int = 0  # what surrounds a picture: 0 black, 1 white
    image_width: int = 192
    image_layers: int = 4
    patch: int = 8
    text_width: int = 128
    text_layers: int = 2
    projection: int = 128
    mlp_ratio: int = 2
    activation: str = "relu"  # cheaper on a CPU than CLIP's quick_gelu, which is not fused there
    vocabulary: int = 2304
    validate_every: int = 50
    seed: int = 0


PRESETS = {  # what the model of each dataset was trained with
    "glyphs": Training(),
    "emoji": Training(
        steps=1550, batch=128, negatives=128, cooldown=600, keywords=0.5, mean=0.77, std=0.32, ground=1, patch=16
    ),
}


def build_tokenizer(texts: Iterable[str], vocabulary: int) -> Any:
    """Train the sub-word vocabulary of a ``CLIPTokenizer`` (byte-level BPE, as CLIP's own) on ``texts``."""
    from tokenizers import pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    special = ["<|startoftext|>", "<|endoftext|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = CLIPTokenizer().backend_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(special),
        end_of_word_suffix="</w>",
        initial_alphabet=alphabet,
        # every byte also as the end of a word, as in CLIP's vocabulary; without them the trainer adds those that
        # it meets in the order of a hash table, and neither ids nor ties are the same in the next process
        special_tokens=[f"{byte}</w>" for byte in alphabet],
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer=trainer)
    trained = json.loads(core.to_str())["model"]
    # as in CLIP's vocabulary, the special tokens come last: an end with id 2 means legacy pooling
    tokens = [token for token, _ in sorted(trained["vocab"].items(), key=lambda item: item[1]) if token not in special]
    tokens += special
    return CLIPTokenizer(
        vocab={token: row for row, token in enumerate(tokens)},
        merges=[tuple(pair) for pair in trained["merges"]],
        model_max_length=64,
    )


def build_processor(training: Training, size: int) -> Any:
    """Return the ``CLIPImageProcessor`` (without torchvision) for ``size`` x ``size`` pictures."""
    from transformers import CLIPImageProcessorPil

    return CLIPImageProcessorPil(
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        image_mean=[training.mean] * 3,
        image_std=[training.std] * 3,
    )


def build_model(training: Training, tokenizer: Any, size: int) -> Any:
    """Return a randomly initialised ``CLIPModel``; its weights depend on ``training.seed`` alone."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(training.seed)
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": training.text_width,
        "intermediate_size": training.mlp_ratio * training.text_width,
        "num_hidden_layers": training.text_layers,
        "hidden_act": training.activation,
        "num_attention_heads": training.text_width // 32,
        "max_position_embeddings": tokenizer.model_max_length,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "hidden_size": training.image_width,
        "intermediate_size": training.mlp_ratio * training.image_width,
        "num_hidden_layers": training.image_layers,
        "hidden_act": training.activation,
        "num_attention_heads": training.image_width // 32,
        "image_size": size,
        "patch_size": training.patch,
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=training.projection))


def augment(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return [n, c, h, w] in [0, 1], 0 outside, moved, scaled, turned, slanted, thickened or blurred, with noise."""
    n = len(images)

    def draw(low: float, high: float) -> torch.Tensor:
        return torch.empty(n).uniform_(low, high, generator=generator)

    angle, scale_x, scale_y, shear = draw(-0.12, 0.12), draw(0.85, 1.15), draw(0.85, 1.15), draw(-0.15, 0.15)
    cos, sin = torch.cos(angle), torch.sin(angle)
    first = torch.stack([cos / scale_x, shear - sin, draw(-0.1, 0.1)], dim=1)
    second = torch.stack([sin, cos / scale_y, draw(-0.1, 0.1)], dim=1)
    grid = F.affine_grid(torch.stack([first, second], dim=1), list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid.to(images.device), align_corners=False)
    thick, blurred = F.max_pool2d(moved, 3, 1, 1), F.avg_pool2d(moved, 3, 1, 1)
    kind, share = torch.randint(0, 3, (n,), generator=generator), draw(0, 0.7)
    a = torch.where(kind == 0, share, 0.0)[:, None, None, None].to(images.device)
    b = torch.where(kind == 1, share, 0.0)[:, None, None, None].to(images.device)
    noise = 0.04 * torch.randn(images.shape, generator=generator).to(images.device)
    return (moved + a * (thick - moved) + b * (blurred - moved) + noise).clamp(0, 1)


def channels_first(images: np.ndarray) -> torch.Tensor:
    """Return uint8 [n, c, h, w], c 1 or 3, from uint8 [n, h, w] (grey) or [n, h, w, 3] (RGB)."""
    pictures = torch.from_numpy(np.ascontiguousarray(images))
    return pictures[:, None] if pictures.ndim == 3 else pictures.permute(0, 3, 1, 2).contiguous()


def normalise(images: torch.Tensor, training: Training) -> torch.Tensor:
    """Return [n, 3, h, w] pixel values from [n, 1 or 3, h, w] in [0, 1], as the image processor makes them."""
    return ((images - training.mean) / training.std).expand(-1, 3, -1, -1)


def drop_words(text: str, probability: float, random: np.random.Generator) -> str:
    """Leave out each word of a name with the given probability, but never all of them."""
    parts = text.split()
    kept = [part for part, chance in zip(parts, random.random(len(parts)), strict=True) if chance >= probability]
    return " ".join(kept or parts)


def add_keywords(text: str, keywords: Sequence[str], probability: float, random: np.random.Generator) -> str:
    """Let one to three of its ``keywords``, drawn at random, follow a name with the given probability."""
    if not probability or random.random() >= probability or not len(keywords):
        return text
    count = min(int(random.integers(1, 4)), len(keywords))
    return " ".join([text, *random.permutation(np.asarray(keywords))[:count]])


class Batches:
    """Draw the batch of a step from the train items: distinct texts, each with one of its images."""

    def __init__(
        self, items: Items, tokenizer: Any, training: Training, keywords: Sequence[Sequence[str]] | None = None
    ) -> None:
        by_text = items.relevance.tocsc()
        self.first, self.rows = by_text.indptr, by_text.indices
        self.images = channels_first(items.images)
        self.texts, self.tokenizer, self.training = items.texts, tokenizer, training
        self.keywords = [()] * len(items.texts) if keywords is None else keywords

    def __call__(self, step: int, device: str) -> dict[str, torch.Tensor]:
        """Return pixels float [b, 3, h, w] and tokens int64 [b + negatives, t]; rows below b belong together."""
        random = np.random.default_rng([self.training.seed, step])
        generator = torch.Generator().manual_seed(int(random.integers(2**62)))
        count = min(self.training.batch + self.training.negatives, len(self.texts))
        drawn = random.choice(len(self.texts), count, replace=False)
        chosen = drawn[: self.training.batch]
        rows = self.rows[random.integers(self.first[chosen], self.first[chosen + 1])]
        images = self.images[torch.from_numpy(rows.astype(np.int64))].to(device).float() / 255
        texts = [
            drop_words(
                add_keywords(self.texts[row], self.keywords[row], self.training.keywords, random),
                self.training.word_dropout,
                random,
            )
            for row in drawn
        ]
        tokens = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")["input_ids"]
        ground = self.training.ground
        moved = (ground - augment((ground - images).abs(), generator)).abs()  # what moves in is ground
        return {"pixels": normalise(moved, self.training), "tokens": tokens.to(device)}


def text_features(model: Any, tokens: torch.Tensor, buckets: int = 4) -> torch.Tensor:
    """Return the embeddings of padded ``tokens``, computed in buckets of similar length to save time."""
    lengths = (tokens == model.config.text_config.eos_token_id).int().argmax(dim=1) + 1
    order = lengths.argsort(stable=True)
    parts = [
        model.get_text_features(input_ids=tokens[rows, : int(lengths[rows].max())]).pooler_output
        for rows in order.chunk(buckets)
    ]
    return torch.cat(parts)[order.argsort()]


def loss_of(model: Any, batch: dict[str, torch.Tensor], label_smoothing: float) -> torch.Tensor:
    """Return the symmetric InfoNCE loss (Radford et al. 2021, figure 3); pictures choose among all names."""
    image = F.normalize(model.get_image_features(pixel_values=batch["pixels"]).pooler_output, dim=-1)
    text = F.normalize(text_features(model, batch["tokens"]), dim=-1)
    logits = model.logit_scale.exp() * image @ text.T
    own = torch.arange(len(logits), device=logits.device)
    to_text = F.cross_entropy(logits, own, label_smoothing=label_smoothing)
    to_image = F.cross_entropy(logits[:, : len(own)].T, own, label_smoothing=label_smoothing)
    return (to_text + to_image) / 2


def learning_rate(step: int, training: Training) -> float:
    """Return the rate of a step: linear warm-up, a plateau, then linearly down to zero.

    Before the cool-down nothing depends on the number of steps: a run can be made longer or shorter on the way.
    """
    warm, left = (step + 1) / training.warmup, (training.steps - step) / training.cooldown
    return training.learning_rate * min(1.0, warm, left)


@torch.no_grad()
def validation_r1(model: Any, tokenizer: Any, items: Items, training: Training, images: int = 2000) -> float:
    """Return R@1 (percent), image to text, of the first ``images`` of a seeded order against all texts."""
    device = model.logit_scale.device
    rows = np.random.default_rng(0).permutation(len(items.images))[:images]
    pictures = channels_first(items.images[rows]).float() / 255
    tokens = tokenizer(list(items.texts), padding=True, truncation=True, return_tensors="pt")["input_ids"]
    model.eval()
    text = torch.cat([model.get_text_features(input_ids=part.to(device)).pooler_output for part in tokens.split(500)])
    hits = []
    for part in pictures.split(500):
        image = model.get_image_features(pixel_values=normalise(part.to(device), training)).pooler_output
        hits.append((image @ F.normalize(text, dim=-1).T).argmax(dim=1).cpu())
    model.train()
    return 100 * float(np.mean(items.relevance.indices[rows] == torch.cat(hits).numpy()))


@dataclass
class State:
    """Everything that a resumed run needs."""

    model: Any
    average: dict[str, torch.Tensor]  # exponential moving average of the weights
    optimiser: torch.optim.AdamW
    step: int
    curve: list[list[float]]  # [step, mean train loss since the last entry, validation R@1 in percent]
    seconds: float


def start(training: Training, batches: Batches, tokenizer: Any, device: str) -> State:
    """Return the state before the first step."""
    size = batches.images.shape[-1]
    model = build_model(training, tokenizer, size).to(device).train()
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": training.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    average = {name: value.detach().clone() for name, value in model.state_dict().items()}
    return State(model, average, torch.optim.AdamW(groups, betas=(0.9, 0.98)), 0, [], 0.0)


def take_step(state: State, batches: Batches, training: Training, device: str) -> float:
    """Take one optimisation step in place and return the loss."""
    torch.manual_seed(training.seed * 1_000_003 + state.step)
    for group in state.optimiser.param_groups:
        group["lr"] = learning_rate(state.step, training)
    loss = loss_of(state.model, batches(state.step, device), training.label_smoothing)
    state.optimiser.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(state.model.parameters(), 1.0)
    state.optimiser.step()
    with torch.no_grad():
        state.model.logit_scale.clamp_(max=math.log(100))
        decay = min(training.ema, (1 + state.step) / (10 + state.step))
        for name, value in state.model.state_dict().items():
            state.average[name].lerp_(value, 1 - decay)
    state.step += 1
    return float(loss.detach())


def save_checkpoint(folder: Path, state: State, training: Training) -> None:
    """Write the state to ``folder``/checkpoint.safetensors, atomically; settings are its metadata."""
    tensors = {f"model.{name}": value for name, value in state.model.state_dict().items()}
    tensors |= {f"average.{name}": value for name, value in state.average.items()}
    for row, moments in state.optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{row}.{name}": value for name, value in moments.items()}
    record = {
        "training": asdict(training),
        "step": state.step,
        "curve": state.curve,
        "seconds": state.seconds,
    }
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / "checkpoint.part"
    save_file(
        {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()},
        partial,
        {"record": json.dumps(record)},
    )
    os.replace(partial, folder / "checkpoint.safetensors")


def load_checkpoint(folder: Path, state: State, training: Training) -> None:
    """Bring ``state`` to the checkpoint in ``folder``, if there is one; InputError if its settings differ."""
    path = folder / "checkpoint.safetensors"
    if not path.is_file():
        return
    with safe_open(path, framework="pt") as stream:
        record = json.loads(stream.metadata()["record"])
    settings = asdict(training)
    steps = min(settings["steps"], record["training"]["steps"])
    if record["step"] <= steps - training.cooldown:  # the same path so far, however long it goes on
        record["training"]["steps"] = settings["steps"]
    if record["training"] != settings:
        raise InputError(f"{path} was written with other training parameters: name another folder, or remove it")
    tensors = load_file(path)

    def under(prefix: str) -> dict[str, torch.Tensor]:
        return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

    state.model.load_state_dict(under("model."))
    for name, value in under("average.").items():
        state.average[name].copy_(value)
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in under("optimiser.").items():
        row, key = name.split(".")
        moments.setdefault(int(row), {})[key] = value
    state.optimiser.load_state_dict({**state.optimiser.state_dict(), "state": moments})
    state.step, state.curve, state.seconds = record["step"], record["curve"], record["seconds"]


def train(
    training: Training,
    items: Items,
    validation: Items,
    folder: Path,
    *,
    keywords: Sequence[Sequence[str]] | None = None,
    device: str = "cpu",
    stop_after: int | None = None,
    report: Callable[[str], None] = print,
) -> tuple[Any, Any, State]:
    """Train on ``items``, resume from ``folder`` if it holds a checkpoint, and write one at every validation.

    Parameters
    ----------
    training : sizes, schedule and seed.
    items, validation : the splits; nothing is selected on validation here, it only gives the curve.
    folder : where the checkpoint lies.
    keywords : further words for each text of ``items``; see ``Training.keywords``.
    stop_after : stop after this many steps of this call (the schedule stays that of ``training.steps``).
    report : receives one line of progress, with the time left, per validation.

    Returns
    -------
    The ``CLIPModel`` with the averaged weights, its ``CLIPTokenizer``, and the state.

    Raises InputError if the checkpoint was written with other settings.
    """
    further = [word for words in keywords or () for word in words] if training.keywords else []
    tokenizer = build_tokenizer([*items.texts, *further], training.vocabulary)
    batches = Batches(items, tokenizer, training, keywords)
    state = start(training, batches, tokenizer, device)
    load_checkpoint(folder, state, training)
    last = training.steps if stop_after is None else min(training.steps, state.step + stop_after)
    first, began, before, losses = state.step, time.monotonic(), state.seconds, []
    averaged = build_model(training, tokenizer, batches.images.shape[-1]).to(device).eval()
    while state.step < last:
        losses.append(take_step(state, batches, training, device))
        if state.step % training.validate_every == 0 or state.step == last:
            averaged.load_state_dict(state.average)
            r1 = validation_r1(averaged, tokenizer, validation, training)
            state.seconds = before + time.monotonic() - began
            state.curve.append([state.step, round(float(np.mean(losses)), 4), round(r1, 2)])
            save_checkpoint(folder, state, training)
            left = (time.monotonic() - began) / (state.step - first) * (training.steps - state.step)
            report(
                f"step {state.step} of {training.steps}: loss {np.mean(losses):.3f}, "
                f"validation R@1 {r1:.1f} %, {left / 60:.0f} min left"
            )
            losses = []
    averaged.load_state_dict(state.average)
    return averaged.eval(), tokenizer, state
