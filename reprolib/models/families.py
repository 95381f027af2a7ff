"""The families of encoders: what is particular to an architecture, and nothing else.

``family_of`` is the one place that decides which family a model belongs to, from the files in its folder. To add a
family of the transformers library: an entry in ``FAMILIES`` under its ``model_type``, and its test. torch and
transformers are imported where a model is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from reprolib.errors import InputError, RunError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from reprolib.models.encoder import Encoder

_LOCAL = {"local_files_only": True}
# these count positions from the padding's id + 1: two fewer than their embeddings are for tokens
_OFFSET = ("altclip", "clap", "roberta", "xlm-roberta", "camembert", "mpnet")


@dataclass(frozen=True)
class Loaded:
    """A model with what prepares its inputs; ``missing`` are the names of weights that its files lack."""

    model: Any
    tokenizer: Any
    processor: Any
    missing: Sequence[str] = ()


def _image_features(model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    return model.get_image_features(**inputs).pooler_output


def _text_features(model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    return model.get_text_features(**inputs).pooler_output


@dataclass(frozen=True)
class Family:
    """A dual encoder of the transformers library, of the class ``architecture``.

    ``width`` and ``activations`` say where its configuration keeps the width of the common space and the activations
    of the image and text tower. ``padding`` is to the longest text of a batch, or to the model's full context;
    ``mask`` says if the text tower is told what is padding, ``lower`` if it was trained on lower case alone,
    ``context`` how many tokens it was trained on, where that is fewer than it has positions.
    """

    architecture: str
    width: str = "projection_dim"
    activations: tuple[tuple[str, str], ...] = (
        ("image", "vision_config.hidden_act"),
        ("text", "text_config.hidden_act"),
    )
    image: Callable[[Any, Mapping[str, Tensor]], Tensor] = _image_features
    text: Callable[[Any, Mapping[str, Tensor]], Tensor] = _text_features
    padding: bool | str = True
    mask: bool = True
    lower: bool = False
    context: int | None = None

    def load(self, folder: Path) -> Loaded:
        """Load the model of ``folder`` in float32; raises what the library raises."""
        import transformers

        model, report = getattr(transformers, self.architecture).from_pretrained(
            folder, use_safetensors=True, dtype="float32", output_loading_info=True, **_LOCAL
        )
        tokenizer = _tokenizer(folder, model.config.text_config, model.config.model_type, self.context)
        return Loaded(model, tokenizer, self.processor(folder), sorted(report["missing_keys"]))

    def processor(self, folder: Path) -> Any:
        """Return what makes the image tower's inputs."""
        from transformers import AutoImageProcessor

        # the PIL variant, also where torchvision is installed: the two differ in how they resize
        return AutoImageProcessor.from_pretrained(folder, backend="pil", **_LOCAL)

    def images(self, encoder: Encoder, images: Sequence[Any]) -> Tensor:
        """Return the features [n, d] of a batch of images."""
        inputs = encoder.processor([picture(image) for image in images], return_tensors="pt")
        return self.image(encoder.model, inputs.to(encoder.device))

    def texts(self, encoder: Encoder, texts: Sequence[str]) -> Tensor:
        """Return the features [n, d] of a batch of texts; what is too long is cut at its end."""
        texts = [text.lower() for text in texts] if self.lower else list(texts)
        tokens = encoder.tokenizer(texts, padding=self.padding, truncation=True, return_tensors="pt")
        names = ("input_ids", "attention_mask") if self.mask else ("input_ids",)
        return self.text(encoder.model, {name: tokens[name].to(encoder.device) for name in names})

    def width_of(self, model: Any) -> int:
        """Return the width d of the features."""
        return _field(model.config, self.width)

    def activation_of(self, model: Any) -> dict[str, str]:
        """Return the activation of each tower, as the library names them: "quick_gelu", "gelu", and so on."""
        return {tower: str(_field(model.config, path)) for tower, path in self.activations}


@dataclass(frozen=True)
class _Clap(Family):
    """CLAP: sound takes the place of images. Waveforms are float, mono, at the sampling rate of the model's processor.

    The library would cut a random part out of a long waveform, and mark a random short one as long; here a waveform
    is cut at its end, and none is long.
    """

    def processor(self, folder: Path) -> Any:
        from transformers import AutoFeatureExtractor

        return AutoFeatureExtractor.from_pretrained(folder, **_LOCAL)

    def images(self, encoder: Encoder, images: Sequence[Any]) -> Tensor:
        extractor = encoder.processor
        waves = [_waveform(wave)[: extractor.nb_max_samples] for wave in images]
        inputs = extractor(waves, sampling_rate=extractor.sampling_rate, return_tensors="pt").to(encoder.device)
        return self.image(encoder.model, {**inputs, "is_longer": inputs["is_longer"].zero_()})


@dataclass(frozen=True)
class _Sentences(Family):
    """A sentence encoder in the on-disk format of sentence-transformers: a text tower, pooled over its tokens."""

    def load(self, folder: Path) -> Loaded:
        from transformers import AutoModel

        model, report = AutoModel.from_pretrained(
            folder, use_safetensors=True, dtype="float32", output_loading_info=True, **_LOCAL
        )
        settings = (
            _json(folder / "sentence_bert_config.json") if (folder / "sentence_bert_config.json").is_file() else {}
        )
        if settings.get("do_lower_case"):
            raise InputError(
                f"{folder}: sentence_bert_config.json asks for lower case, which only the tokenizer may do"
            )
        tokenizer = _tokenizer(folder, model.config, model.config.model_type, settings.get("max_seq_length"))
        # a pooler may be missing: it is not used
        missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
        return Loaded(model, tokenizer, _pooling(folder), missing)

    def images(self, encoder: Encoder, images: Sequence[Any]) -> Tensor:
        raise InputError(f"model {encoder.name} encodes texts alone: a sentence encoder has no image tower")

    def texts(self, encoder: Encoder, texts: Sequence[str]) -> Tensor:
        tokens = encoder.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt").to(encoder.device)
        states, mask = encoder.model(**tokens).last_hidden_state, tokens["attention_mask"][:, :, None]
        pooling, normalise = encoder.processor
        if pooling == "cls":
            pooled = states[:, 0]
        elif pooling == "max":
            pooled = states.masked_fill(mask == 0, float("-inf")).amax(dim=1)
        else:
            pooled = (states * mask).sum(dim=1) / mask.sum(dim=1)
        return pooled / pooled.norm(dim=1, keepdim=True) if normalise else pooled


@dataclass(frozen=True)
class _OpenClip(Family):
    """A model of open_clip, in a folder with open_clip_config.json; the package is needed to load it."""

    def load(self, folder: Path) -> Loaded:
        try:
            open_clip = import_module("open_clip")  # by choice: no dependency of this package
        except ImportError as error:
            raise RunError(
                f"{folder} holds a model of open_clip, which is not installed: 'pip install open_clip_torch' adds it"
            ) from error
        model, transform = open_clip.create_model_from_pretrained(f"local-dir:{folder}")  # checks that no weight lacks
        return Loaded(model, open_clip.get_tokenizer(f"local-dir:{folder}"), transform)

    def images(self, encoder: Encoder, images: Sequence[Any]) -> Tensor:
        import torch

        pixels = torch.stack([encoder.processor(picture(image)) for image in images])
        return encoder.model.encode_image(pixels.to(encoder.device))

    def texts(self, encoder: Encoder, texts: Sequence[str]) -> Tensor:
        return encoder.model.encode_text(encoder.tokenizer(list(texts)).to(encoder.device))

    def width_of(self, model: Any) -> int:
        return model.visual.output_dim

    def activation_of(self, model: Any) -> dict[str, str]:
        quick = any(type(module).__name__ == "QuickGELU" for module in model.modules())
        return dict.fromkeys(("image", "text"), "quick_gelu" if quick else "gelu")


def _blip_image(model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    return model.vision_proj(model.vision_model(**inputs).last_hidden_state[:, 0])


def _blip_text(model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    return model.text_proj(model.text_encoder(**inputs).last_hidden_state[:, 0])


def _sound_features(model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    return model.get_audio_features(**inputs).pooler_output


# trained without a mask and with padding to the full context; the texts of both were lower case, which the tokenizers
# of SigLIP 2 on the hub leave to the caller (huggingface.co/google/siglip2-base-patch16-224/discussions/22)
_SIGLIP = {"width": "vision_config.hidden_size", "padding": "max_length", "mask": False, "lower": True}

FAMILIES: dict[str, Family] = {
    # attention is causal and the embedding is read at the end-of-text token: padding needs no mask
    "clip": Family("CLIPModel", mask=False),
    "siglip": Family("SiglipModel", **_SIGLIP),  # SigLIP 2 of a fixed resolution too
    "siglip2": Family("Siglip2Model", **_SIGLIP),  # of any resolution (NaFlex)
    "altclip": Family("AltCLIPModel"),
    "align": Family("AlignModel", context=64),  # as AlignProcessor of transformers cuts
    # the branch that retrieves (``use_itm_head=False``), before its normalisation
    "blip": Family("BlipForImageTextRetrieval", "image_text_hidden_size", image=_blip_image, text=_blip_text),
    "clap": _Clap(
        "ClapModel",
        activations=(("image", "audio_config.hidden_act"), ("text", "text_config.hidden_act")),
        image=_sound_features,
    ),
}
SENTENCES = _Sentences("AutoModel", "hidden_size", activations=(("text", "hidden_act"),))
OPEN_CLIP = _OpenClip("open_clip")


def family_of(folder: Path) -> Family:
    """Return the family of the model in ``folder``; RunError, naming the families, where it is of none."""
    config = _json(folder / "config.json") if (folder / "config.json").is_file() else {}
    model_type = config.get("model_type")
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    if (folder / "modules.json").is_file():
        return SENTENCES
    if (folder / "open_clip_config.json").is_file():
        return OPEN_CLIP
    raise RunError(
        f"{folder} does not load as an encoder: its model_type is {model_type!r}; valid are {', '.join(FAMILIES)}, "
        "sentence encoders with a modules.json, and models of open_clip with an open_clip_config.json"
    )


def picture(image: Image | np.ndarray) -> Image:
    """Return an image as PIL, RGB; InputError unless it is PIL's or uint8 [h, w] or [h, w, 3]."""
    from PIL import Image

    if not isinstance(image, np.ndarray):
        return image.convert("RGB")
    if image.dtype != np.uint8 or image.ndim not in (2, 3):
        raise InputError(
            f"an image has dtype {image.dtype} and shape {image.shape}: valid is uint8 [h, w] or [h, w, 3]"
        )
    return Image.fromarray(image).convert("RGB")


def _waveform(wave: Any) -> np.ndarray:
    wave = np.asarray(wave)
    if wave.dtype.kind != "f" or wave.ndim != 1 or not len(wave):
        raise InputError(f"a sound has dtype {wave.dtype} and shape {wave.shape}: valid is floating-point [samples]")
    return wave


def _tokenizer(folder: Path, config: Any, model_type: str, context: int | None) -> Any:
    """Return the tokenizer of ``folder``, cutting texts at what the text tower of ``config`` reads."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, **_LOCAL)
    positions = config.max_position_embeddings - (2 if model_type in _OFFSET else 0)
    tokenizer.model_max_length = min(tokenizer.model_max_length, positions, context or positions)
    return tokenizer


def _pooling(folder: Path) -> tuple[str, bool]:
    """Return how a sentence encoder pools, and if it normalises; RunError for what this package does not do."""
    kinds = [module["type"].rsplit(".", 1)[-1] for module in _json(folder / "modules.json")]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise RunError(f"{folder} chains {', '.join(kinds)}: valid is Transformer, Pooling and, if wanted, Normalize")
    place = folder / next(
        module["path"] for module in _json(folder / "modules.json") if module["type"].endswith("Pooling")
    )
    config = _json(place / "config.json")
    flags = {"cls_token": "cls", "mean_tokens": "mean", "max_tokens": "max"}
    chosen = [
        name.removeprefix("pooling_mode_") for name, on in config.items() if name.startswith("pooling_mode_") and on
    ]
    mode = config.get("pooling_mode") or " and ".join(flags.get(name, name) for name in chosen) or "mean"
    if mode not in flags.values():
        raise RunError(f"{place / 'config.json'}: pooling {mode} is not valid; valid are {', '.join(flags.values())}")
    return mode, "Normalize" in kinds


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path} is not valid JSON: {str(error).splitlines()[0]}") from error


def _field(config: Any, path: str) -> Any:
    return reduce(getattr, path.split("."), config)
