"""Encode pictures and texts with a CLIP model of the transformers library, our own or a public one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from reprolib.errors import InputError, RunError
from reprolib.models.registry import find_model

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

# Parameters below which one thread is used: threads wait for each other after every operation, which gains little
# where operations are small, and costs five times as much on a busy machine.
SMALL = 10_000_000


@dataclass(frozen=True)
class Encoder:
    """A dual encoder in evaluation mode. ``identity`` is the sha256 over all that decides its embeddings."""

    name: str
    identity: str
    model: Any
    tokenizer: Any
    processor: Any
    batch: int = 64  # larger ones leave the processor cache

    def encode_images(self, images: np.ndarray | Sequence[Image | np.ndarray]) -> np.ndarray:
        """Return float32 [n, d], not normalised.

        ``images`` are PIL images, or arrays uint8 [n, h, w] (grey) or [n, h, w, 3] (RGB). Raises InputError
        for other arrays.
        """
        return self._batched(images, self._image_batch)

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Return float32 [n, d], not normalised. Texts longer than the model reads are cut at its end."""
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))  # similar lengths together: less padding
        embedded = self._batched([texts[row] for row in order], self._text_batch)
        result = np.empty_like(embedded)
        result[order] = embedded
        return result

    def _batched(self, items: Any, encode: Callable[[Any], torch.Tensor]) -> np.ndarray:
        import torch

        parts = [np.empty((0, self.model.config.projection_dim), np.float32)]
        threads = torch.get_num_threads()
        if self.model.num_parameters() < SMALL:
            torch.set_num_threads(1)
        try:
            with torch.inference_mode():
                for start in range(0, len(items), self.batch):
                    parts.append(encode(items[start : start + self.batch]).float().cpu().numpy())
        finally:
            torch.set_num_threads(threads)
        return np.concatenate(parts)

    def _image_batch(self, images: Sequence[Image | np.ndarray]) -> torch.Tensor:
        pixels = self.processor([_picture(image) for image in images], return_tensors="pt")["pixel_values"]
        return self.model.get_image_features(pixel_values=pixels.to(self.model.device)).pooler_output

    def _text_batch(self, texts: list[str]) -> torch.Tensor:
        # attention is causal and the embedding is read at the end-of-text token: padding needs no mask
        tokens = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")["input_ids"]
        return self.model.get_text_features(input_ids=tokens.to(self.model.device)).pooler_output


def load_encoder(name: str, device: str = "cpu") -> Encoder:
    """Load a CLIP model: the name of a manifest, a folder, or a hub id.

    Raises InputError for an unknown name and for files that are not those of the manifest, DataUnavailable
    where the weights are not at hand, RunError where the files are not those of a CLIP model.
    """
    found = find_model(name)
    from safetensors import SafetensorError
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        local: dict[str, Any] = {"local_files_only": True}
        model, report = CLIPModel.from_pretrained(
            found.folder, use_safetensors=True, dtype="float32", output_loading_info=True, **local
        )
        tokenizer = AutoTokenizer.from_pretrained(found.folder, **local)
        # the PIL variant, also where torchvision is installed: the two differ in how they resize
        processor = AutoImageProcessor.from_pretrained(found.folder, backend="pil", **local)
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise RunError(f"model {name}: {found.folder} does not load as a CLIP model: {reason}") from error
    if report["missing_keys"]:  # the library would fill these in at random
        first, count = min(report["missing_keys"]), len(report["missing_keys"])
        raise RunError(f"model {name}: {count} weights are missing from {found.folder}, the first is {first}")
    limit = model.config.text_config.max_position_embeddings
    tokenizer.model_max_length = min(tokenizer.model_max_length, limit)
    try:
        model = model.to(device).eval()
    except (RuntimeError, AssertionError) as error:  # torch built without it raises the latter
        raise InputError(f"device {device} is not available here: {str(error).splitlines()[0]}") from error
    return Encoder(name, found.identity, model, tokenizer, processor)


def _picture(image: Image | np.ndarray) -> Image:
    from PIL import Image

    if not isinstance(image, np.ndarray):
        return image.convert("RGB")
    if image.dtype != np.uint8 or image.ndim not in (2, 3):
        raise InputError(
            f"an image has dtype {image.dtype} and shape {image.shape}: valid is uint8 [h, w] or [h, w, 3]"
        )
    return Image.fromarray(image).convert("RGB")
