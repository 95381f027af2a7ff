"""Modality inversion, exact and fast: an image feature as text (OTI), a text feature as image (OVI).

Pseudo-tokens are optimised until the other tower, given them, returns a feature with the direction of the one at hand:
L = 1 - cos(psi_given, psi_inverted), AdamW. Source: "Cross the Gap", ICLR 2025, arXiv 2502.04263, algorithm 1;
miccunifi/Cross-the-Gap, ``src/oti.py``, ``src/ovi.py``, ``src/encode_with_pseudo_tokens.py``. The released code
optimises the mean over a batch in half precision. Here it is the sum, so that no item's steps depend on its companions.

Published steps are so long that the last digit grows: in float32, two ways to compute one thing (another batch size,
fast or plain) can differ by 1e-2 in the loss after 150 steps where the network has kinks (``glyph-clip`` has ReLU). In
float64 they agree. That takes twice the time, which a small model can bear, so there it is the default.
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from numbers import Integral
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

from reprolib.errors import InputError, nearest
from reprolib.loaders.store import digest, read_arrays, write_arrays
from reprolib.methods import towers
from reprolib.methods.towers import Encode, Prompt
from reprolib.models.encoder import SMALL

Progress = Callable[[int, int], object]
Observe = Callable[[int, torch.Tensor, torch.Tensor], object]
_PLACEHOLDERS = ("£", "x", "a", "*")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inversion:
    """Settings of an inversion; the defaults are the released ones.

    OVI was released with one patch for CLIP B/32, OpenCLIP B/32 and SLIP B/16, with two for OpenCLIP L/14 and SLIP
    L/16, and with four for CLIP L/14 and SigLIP B/16.
    """

    steps: int
    tokens: int = 1  # R word tokens (OTI) or P patches (OVI) per item
    learning_rate: float = 2e-2
    weight_decay: float = 0.01
    init_std: float = 0.02
    seed: int = 42
    batch: int = 64  # items at once: decides speed and memory, not the result
    template: str = "a photo of {}"  # OTI alone: {} is where the pseudo-tokens stand
    placeholder: str | None = None  # OTI alone: see ``prompt``
    path: Literal["auto", "fast", "plain"] = "auto"
    dtype: Literal["auto", "float32", "float64"] = "auto"  # float64 for models below ``reprolib.models.encoder.SMALL``


OTI = Inversion(steps=150)
OVI = Inversion(steps=1000)


@dataclass(frozen=True)
class Inverted:
    """What an inversion found for n items."""

    features: np.ndarray  # float32 [checkpoints, n, d], unit length; the last is that of the last step
    losses: np.ndarray  # float32 [steps + 1, n]: row t is the loss after t steps, row 0 that of random tokens
    tokens: np.ndarray  # float32 [n, tokens, width], after the last step
    steps: tuple[int, ...]  # the checkpoints: steps taken before each of ``features``
    path: str  # "fast" or "plain"
    seconds: float  # of computation, that of batches from the cache included


def oti(
    encoder: Any,
    image_features: np.ndarray,
    ids: Sequence[str],
    settings: Inversion = OTI,
    *,
    checkpoints: Sequence[int] = (),
    cache: Path | None = None,
    progress: Progress | None = None,
    observe: Observe | None = None,
) -> Inverted:
    """Optimisation-based textual inversion: the feature of the text that stands for each image.

    Parameters
    ----------
    encoder : has ``model`` (CLIP, SigLIP or alike, of transformers), ``tokenizer`` and, for the cache, ``identity``.
    image_features : [n, d], of the image tower of this very model; their length does not matter.
    ids : one per item; the random start of an item depends on ``settings.seed`` and its id alone.
    checkpoints : steps, 0 to ``settings.steps``, after which features are kept besides the last; 0 is the start.
    cache : folder that keeps each batch once it is done: a stopped run goes on from there; None keeps nothing.
    progress : called after each step with (image-steps done, in all); None shows a bar with the time left.
    observe : called with (step, losses [b], features [b, d] of unit length) of a batch: 0 is the start. It changes
        nothing; what it raises ends the inversion. A batch from the cache is not observed.

    ``path`` "auto" takes the fast path for causal text towers (CLIP) and the plain one for others (SigLIP, which
    attends to its padding). Raises InputError for settings, features and models that are not valid.
    """
    _two_towers(encoder.model)
    settings = _settled(settings, checkpoints, encoder.model, "text_model", towers.FAST_TEXT)
    where = prompt(encoder, settings)
    with _still(encoder.model, settings.dtype) as model:
        encode = (towers.fast_text if settings.path == "fast" else towers.plain_text)(model, where)
        job = _Job("oti", encoder, settings, encode, model.config.text_config.hidden_size)
        return job.run(image_features, ids, checkpoints, cache, progress, observe)


def ovi(
    encoder: Any,
    text_features: np.ndarray,
    ids: Sequence[str],
    settings: Inversion = OVI,
    *,
    checkpoints: Sequence[int] = (),
    cache: Path | None = None,
    progress: Progress | None = None,
    observe: Observe | None = None,
) -> Inverted:
    """Optimisation-based visual inversion: the feature of the image that stands for each text; as ``oti``.

    The pseudo-patches take the place of the embedded patches, and are stretched to the grid as one sequence, row
    after row, by torch's nearest-neighbour interpolation, as released: of two patches, the first is the upper half
    of the picture. CLS token and positions are the model's own.
    """
    _two_towers(encoder.model)
    settings = _settled(settings, checkpoints, encoder.model, "vision_model", towers.FAST_IMAGE)
    config = encoder.model.config.vision_config
    positions = (config.image_size // config.patch_size) ** 2
    if settings.tokens > positions:
        raise InputError(f"{settings.tokens} pseudo-patches do not fit: the grid of the model has {positions} places")
    with _still(encoder.model, settings.dtype) as model:
        encode = (towers.fast_image if settings.path == "fast" else towers.plain_image)(model, settings.tokens)
        job = _Job("ovi", encoder, settings, encode, config.hidden_size)
        return job.run(text_features, ids, checkpoints, cache, progress, observe)


def prompt(encoder: Any, settings: Inversion) -> Prompt:
    """Return the template as token ids, with one placeholder for each pseudo-token.

    The released code writes "£" for each pseudo-token and overwrites its embedding. A small vocabulary may split
    that character; as the embedding is overwritten, any other word does as well, so the first that the tokenizer
    keeps whole is taken unless ``settings.placeholder`` names one. Blanks around it keep it from joining a
    neighbour. Raises InputError for a template without one place for the tokens, or without room for them in the
    context, and for a placeholder that is split or that the template contains.
    """
    template, tokens = settings.template, settings.tokens
    if template.count("{}") != 1:
        raise InputError(f"the template {template!r} has {template.count('{}')} places for the tokens: write {{}} once")
    tokenizer, model = encoder.tokenizer, encoder.model
    context = model.config.text_config.max_position_embeddings
    words = _PLACEHOLDERS if settings.placeholder is None else (settings.placeholder,)
    for word in words:
        alone = tokenizer(word, add_special_tokens=False)["input_ids"]
        ids = tokenizer(template.replace("{}", f" {word} " * tokens))["input_ids"]
        found = [place for place, token in enumerate(ids) if [token] == alone]
        if len(found) == tokens == found[-1] - found[0] + 1:
            break
    else:
        raise InputError(
            f"the placeholder {' or '.join(map(repr, words))} does not give one token per place in the template "
            f"{template!r}: name a word that the tokenizer keeps whole and that the template does not contain"
        )
    if len(ids) > context:
        raise InputError(
            f"template {template!r} with {tokens} pseudo-tokens takes {len(ids)} positions: the model has {context}"
        )
    padded = tokenizer.pad({"input_ids": ids}, padding="max_length", max_length=context)["input_ids"]
    first, padded = padded.index(alone[0]), torch.tensor(padded, device=model.device)
    end = towers.read_position(model.text_model, padded)
    if model.text_model.config.model_type in towers.FAST_TEXT and end < first + tokens:
        raise InputError(f"the tokenizer ends no text as the model expects: it would read {template!r} too early")
    return Prompt(padded, first, first + tokens, end)


@dataclass(frozen=True)
class _Job:
    """One direction of inversion with one model; nothing in ``settings`` is left to "auto"."""

    direction: str
    encoder: Any
    settings: Inversion
    encode: Encode
    width: int

    def run(
        self,
        features: np.ndarray,
        ids: Sequence[str],
        checkpoints: Sequence[int],
        cache: Path | None,
        progress: Progress | None,
        observe: Observe | None,
    ) -> Inverted:
        features, ids = _checked(features, ids), [str(name) for name in ids]
        size, steps = self.settings.batch, tuple(sorted({*map(int, checkpoints), self.settings.steps}))
        batches = [slice(start, start + size) for start in range(0, len(ids), size)]
        paths = [cache and cache / f"{self.key(features[b], ids[b], steps)}.safetensors" for b in batches]
        done = [path and _kept(path) for path in paths]
        left = sum(len(ids[b]) for b, kept in zip(batches, done, strict=True) if kept is None) * self.settings.steps
        with _bar(self.direction.upper(), left, progress) as advance:
            for number, (b, path) in enumerate(zip(batches, paths, strict=True)):
                if done[number] is None:
                    done[number] = self.batch(features[b], ids[b], steps, advance, observe)
                    if path:
                        write_arrays(path, done[number])
        parts = {name: [part[name] for part in done] for name in done[0]}
        return Inverted(
            np.concatenate(parts["features"], axis=1),
            np.concatenate(parts["losses"], axis=1),
            np.concatenate(parts["tokens"]),
            steps,
            self.settings.path,
            float(np.sum(parts["seconds"])),
        )

    def key(self, features: np.ndarray, ids: list[str], steps: tuple[int, ...]) -> str:
        """Return the sha256 over all that decides the result of a batch."""
        return digest("inversion 1", self.direction, self.encoder.identity, asdict(self.settings), steps, ids, features)

    def batch(
        self,
        features: np.ndarray,
        ids: list[str],
        steps: tuple[int, ...],
        advance: Callable[[int], object],
        observe: Observe | None = None,
    ) -> dict[str, np.ndarray]:
        """Invert some items together."""
        began, settings, device = time.perf_counter(), self.settings, self.encoder.model.device
        kind = {"device": device, "dtype": getattr(torch, settings.dtype)}
        goal = F.normalize(torch.from_numpy(features).to(**kind), dim=1)
        tokens = torch.from_numpy(start(settings, ids, self.width)).to(**kind).requires_grad_()
        # items share no parameter and no state: a step with all of them is each one's own
        optimiser = torch.optim.AdamW([tokens], settings.learning_rate, weight_decay=settings.weight_decay, fused=True)
        losses, kept = [], []
        for step in range(settings.steps + 1):
            found = F.normalize(self.encode(tokens), dim=1)
            if found.shape != goal.shape:
                raise InputError(f"the features have {goal.shape[1]} dimensions: those of the model {found.shape[1]}")
            loss = 1 - (found * goal).sum(1)
            losses.append(loss.detach())
            if step in steps:
                kept.append(found.detach())
            if observe is not None:
                observe(step, losses[-1].clone(), found.detach().clone())
            if step < settings.steps:
                optimiser.zero_grad()
                loss.sum().backward()
                optimiser.step()
                advance(len(ids))
        return {
            "features": torch.stack(kept).float().cpu().numpy(),
            "losses": torch.stack(losses).float().cpu().numpy(),
            "tokens": tokens.detach().float().cpu().numpy(),
            "seconds": np.array([time.perf_counter() - began]),
        }


def start(settings: Inversion, ids: Sequence[str], width: int) -> np.ndarray:
    """Return the tokens before the first step, float32 [n, tokens, width]: N(0, init_std^2) from (seed, id)."""
    tokens = np.empty((len(ids), settings.tokens, width), np.float32)
    for row, name in enumerate(ids):
        entropy = int.from_bytes(hashlib.sha256(str(name).encode()).digest())
        np.random.default_rng([settings.seed, entropy]).standard_normal(out=tokens[row], dtype=np.float32)
    return tokens * np.float32(settings.init_std)


def _kept(path: Path) -> dict[str, np.ndarray] | None:
    arrays = read_arrays(path)
    if arrays is None and path.exists():
        _log.warning("the cached inversion %s is damaged: it is computed again", path)
    return arrays


@contextmanager
def _bar(name: str, total: int, progress: Progress | None) -> Iterator[Callable[[int], object]]:
    """Yield a function that advances ``progress``, or a bar, by a number of image-steps."""
    if progress is None:
        with tqdm(total=total, desc=name, unit=" image-steps", unit_scale=True, leave=False, disable=not total) as bar:
            yield bar.update
        return
    done = 0

    def advance(by: int) -> None:
        nonlocal done
        done += by
        progress(done, total)

    yield advance


@contextmanager
def _still(model: Any, dtype: str) -> Iterator[Any]:
    """Yield the model in ``dtype``, in evaluation mode and with fixed weights; leave the given one as it was."""
    training, threads = model.training, torch.get_num_threads()
    learned = [weight for weight in model.parameters() if weight.requires_grad]
    if _small(model):
        torch.set_num_threads(1)
    try:
        model.eval().requires_grad_(False)
        with torch.enable_grad():
            yield model if str(model.dtype) == f"torch.{dtype}" else deepcopy(model).to(getattr(torch, dtype))
    finally:
        torch.set_num_threads(threads)
        model.train(training)
        for weight in learned:
            weight.requires_grad_()


def _small(model: Any) -> bool:
    return model.num_parameters() < SMALL


def _two_towers(model: Any) -> None:
    missing = [name for name in ("text_model", "vision_model") if getattr(model, name, None) is None]
    if missing:
        raise InputError(
            f"a {type(model).__name__} has no {' and no '.join(missing)}: inversion needs a model with two towers, "
            "such as CLIP or SigLIP"
        )


def _settled(settings: Inversion, checkpoints: Sequence[int], model: Any, tower: str, fast: Sequence[str]) -> Inversion:
    """Return the settings with what is taken for "auto". Raises InputError for any that is not valid."""
    for name in ("steps", "tokens", "batch"):
        value = getattr(settings, name)
        if not (isinstance(value, int) and value >= 1):
            raise InputError(f"{name} = {value!r} is not an integer of at least 1")
    for name in ("learning_rate", "weight_decay", "init_std"):
        value = getattr(settings, name)
        if not (isinstance(value, int | float) and math.isfinite(value) and value >= 0):
            raise InputError(f"{name} = {value!r} is not a finite number of at least 0")
    if not (isinstance(settings.seed, int) and settings.seed >= 0):
        raise InputError(f"seed {settings.seed!r} is not valid: seeds count from 0 upwards")
    outside = [step for step in checkpoints if not (isinstance(step, Integral) and 0 <= step <= settings.steps)]
    if outside:
        raise InputError(f"checkpoint {outside[0]!r} is not valid: checkpoints are steps from 0 to {settings.steps}")
    for name, valid in (("path", ("auto", "fast", "plain")), ("dtype", ("auto", "float32", "float64"))):
        if getattr(settings, name) not in valid:
            raise nearest(str(getattr(settings, name)), valid, name)
    kind = getattr(model, tower).config.model_type
    if settings.path == "fast" and kind not in fast:
        raise InputError(
            f"there is no fast path for a {kind}, only for {' and '.join(fast)}: the path may be plain or auto"
        )
    path = "fast" if settings.path != "plain" and kind in fast else "plain"
    auto = "float64" if _small(model) else "float32"
    return replace(settings, path=path, dtype=auto if settings.dtype == "auto" else settings.dtype)


def _checked(features: np.ndarray, ids: Sequence[str]) -> np.ndarray:
    features = np.asarray(features)
    if features.ndim != 2 or features.dtype.kind != "f" or not len(features):
        raise InputError(f"features have dtype {features.dtype} and shape {features.shape}: valid is float [n >= 1, d]")
    if len(ids) != len(features):
        raise InputError(f"there are {len(features)} features and {len(ids)} ids: one id per feature is needed")
    bad = np.flatnonzero(~np.isfinite(features).all(1) | ~features.any(1))
    if len(bad):
        raise InputError(f"the feature of {ids[bad[0]]!r} (row {bad[0]}) is zero or not finite: it has no direction")
    return np.ascontiguousarray(features, dtype=np.float32)
