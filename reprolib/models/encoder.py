"""Encode pictures (or sounds) and texts with the models of ``reprolib.models.families``, our own or public ones."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from reprolib.errors import InputError, RunError, nearest
from reprolib.models.families import FAMILIES, Family, family_of
from reprolib.models.registry import ModelManifest, find_model, load_model_manifest, models

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

# Parameters below which one thread is used: threads wait for each other after every operation, which gains little
# where operations are small, and costs five times as much on a busy machine.
SMALL = 10_000_000
DTYPES = ("float32", "float16", "bfloat16")
Compute = Callable[[], np.ndarray]
Keep = Callable[[slice, Compute], np.ndarray]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Encoder:
    """An encoder in evaluation mode. ``identity`` is the sha256 over all that decides its embeddings.

    The weights are float32; with another ``dtype`` the computation is autocast to it. An encoding takes ``batch``
    items at a time, and halves that where memory does not suffice; results depend on it within the noise of float32
    (tier C). ``keep``, where given, is called for each batch with its rows and a function that computes it.
    """

    name: str
    identity: str
    model: Any
    tokenizer: Any
    processor: Any
    batch: int = 64  # larger ones leave the processor cache
    family: Family = FAMILIES["clip"]
    dtype: str = "float32"

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    @property
    def width(self) -> int:
        """How many columns the embeddings have."""
        return self.family.width_of(self.model)

    @property
    def activation(self) -> dict[str, str]:
        """The activation of each tower ("image", "text"), as the configuration has it: "quick_gelu", "gelu", ..."""
        return self.family.activation_of(self.model)

    def encode_images(self, images: np.ndarray | Sequence[Image | np.ndarray], keep: Keep | None = None) -> np.ndarray:
        """Return float32 [n, d], not normalised unless the model itself does it (CLAP).

        ``images`` are PIL images, or arrays uint8 [n, h, w] (grey) or [n, h, w, 3] (RGB); for CLAP they are sounds,
        floating-point [n, samples] at the model's sampling rate. Raises InputError for other arrays, and from a model
        without an image tower.
        """
        return self._batched(images, self.family.images, keep)

    def encode_texts(self, texts: Sequence[str], keep: Keep | None = None) -> np.ndarray:
        """Return float32 [n, d], not normalised. Texts longer than the model reads are cut at its end."""
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))  # similar lengths together: less padding
        embedded = self._batched([texts[row] for row in order], self.family.texts, keep)
        result = np.empty_like(embedded)
        result[order] = embedded
        return result

    def _batched(self, items: Any, encode: Callable[[Encoder, Any], torch.Tensor], keep: Keep | None) -> np.ndarray:
        import torch

        if self.dtype not in DTYPES:
            raise nearest(self.dtype, DTYPES, "dtype")
        size, n = self.batch, len(items)

        def compute(rows: slice) -> np.ndarray:
            nonlocal size
            while True:
                try:
                    steps = range(rows.start, rows.stop, size)
                    done = [encode(self, items[step : min(step + size, rows.stop)]).float().cpu() for step in steps]
                    return torch.cat(done).numpy()
                except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
                    if not _out_of_memory(error):
                        raise
                    if size == 1:
                        raise RunError(f"model {self.name}: {self.device} lacks the memory for a single item") from None
                size = max(1, min(size, rows.stop - rows.start) // 2)
                torch.cuda.empty_cache()  # does nothing where no GPU was used
                _log.warning(
                    "model %s: %s lacks memory, going on with %d items at a time", self.name, self.device, size
                )

        parts = [np.empty((0, self.width), np.float32)]
        threads = torch.get_num_threads()
        if sum(weight.numel() for weight in self.model.parameters()) < SMALL:
            torch.set_num_threads(1)
        mixed = torch.autocast(self.device.type, getattr(torch, self.dtype), enabled=self.dtype != "float32")
        try:
            with torch.inference_mode(), mixed:
                for start in range(0, n, self.batch):
                    rows = slice(start, min(start + self.batch, n))
                    parts.append(keep(rows, lambda rows=rows: compute(rows)) if keep else compute(rows))
        finally:
            torch.set_num_threads(threads)
        return np.concatenate(parts)


def load_encoder(name: str, device: str = "cpu") -> Encoder:
    """Load an encoder: the name of a manifest, a folder, or a hub id.

    Raises InputError for an unknown name, for files that are not those of the manifest and for a manifest that the
    files contradict, DataUnavailable where the weights are not at hand, RunError where the files are not those of an
    encoder.
    """
    found = find_model(name)
    family = family_of(found.folder)
    from safetensors import SafetensorError
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    try:
        loaded = family.load(found.folder)
    except (InputError, RunError):
        raise
    except ImportError as error:  # transformers asks for sentencepiece, for one, in a paragraph
        reason = str(error).strip().split(". ")[0]
        raise RunError(f"model {name} needs a package that is not installed: {reason}") from error
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise RunError(f"model {name}: {found.folder} does not load as {family.architecture}: {reason}") from error
    if loaded.missing:  # the library would fill these in at random
        raise RunError(
            f"model {name}: {len(loaded.missing)} weights are missing from {found.folder}, the first is "
            f"{loaded.missing[0]}"
        )
    try:
        model = loaded.model.to(device).eval()
    except (RuntimeError, AssertionError) as error:  # torch built without it raises the latter
        raise InputError(f"device {device} is not available here: {str(error).splitlines()[0]}") from error
    encoder = Encoder(name, found.identity, model, loaded.tokenizer, loaded.processor, family=family)
    if name in models():
        _check(encoder, load_model_manifest(name))
    return encoder


def _check(encoder: Encoder, manifest: ModelManifest) -> None:
    """Raise InputError where the files of a model say something else than its manifest."""
    says: dict[str, tuple[Any, Any]] = {"projection": (manifest.projection, encoder.width)}
    for tower, activation in (manifest.activation or {}).items():
        says[f"activation.{tower}"] = (activation, encoder.activation.get(tower))
    for name, value in manifest.preprocessing.items():
        says[f"preprocessing.{name}"] = (value, getattr(encoder.processor, name, None))
    for name, (stated, found) in says.items():
        if stated is not None and stated != (list(found) if isinstance(found, tuple) else found):
            raise InputError(f"{manifest.name}.yaml, field {name}: it says {stated}, but the model's files say {found}")


def _out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` is a device's or the machine's allocator refusing memory."""
    signs = ("out of memory", "not enough memory", "can't allocate memory")
    return isinstance(error, MemoryError) or any(sign in str(error).lower() for sign in signs)
