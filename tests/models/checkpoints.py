"""Tiny random checkpoints of every family, each in the format in which the public ones are stored."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from tests.models.conftest import NAMES

TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
PICTURE = TOWER | {"image_size": 32, "patch_size": 8}
TEXTS = [*NAMES, "hello world, this is a longer text about letters"]


def _random(model: Any) -> Any:
    """Give every weight a random value: fresh biases and norms hide what is left out."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.is_floating_point() and weight.ndim:
                weight.normal_(0, 0.4 if weight.ndim == 4 else 0.1).add_(
                    1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0
                )
    return model.eval()


def _word_pieces(folder: Path) -> Any:
    from transformers import BertTokenizer

    words = sorted({word for text in TEXTS for word in text.replace(",", " ,").split()})
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters), *words]
    (folder / "vocab.txt").write_text("\n".join(dict.fromkeys(entries)) + "\n")
    tokenizer = BertTokenizer.from_pretrained(folder, model_max_length=512)
    tokenizer.save_pretrained(folder)
    return tokenizer


def _unigram(folder: Path, special: list[str], end: str, start: str | None = None, **settings: Any) -> Any:
    """Write a sentencepiece-like tokenizer as tokenizer.json, which ends (and starts) every text as told."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.Unigram())
    core.normalizer = normalizers.NFKC()
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.train_from_iterator(
        TEXTS, trainers.UnigramTrainer(vocab_size=120, special_tokens=special, unk_token="<unk>", show_progress=False)
    )
    parts = [*([start] if start else []), "$A", end]
    ids = [(token, core.token_to_id(token)) for token in special]
    core.post_processor = processors.TemplateProcessing(single=" ".join(parts), special_tokens=ids)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", **settings)
    tokenizer.save_pretrained(folder)
    return tokenizer


def _bytes(folder: Path) -> Any:
    """Write a byte-level BPE tokenizer as RoBERTa's: vocab.json, merges.txt, tokenizer.json."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import RobertaTokenizer

    core = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    core.train_from_iterator(TEXTS, vocab_size=400, special_tokens=special, show_progress=False)
    core.save_model(str(folder))
    tokenizer = RobertaTokenizer.from_pretrained(folder, model_max_length=512)
    tokenizer.save_pretrained(folder)
    return tokenizer


def clip(folder: Path) -> None:
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

    from reprolib.models.training import build_tokenizer

    tokenizer = build_tokenizer(NAMES, 700)
    text = TOWER | {"vocab_size": len(tokenizer), "eos_token_id": 2, "max_position_embeddings": 12}
    _random(CLIPModel(CLIPConfig(text_config=text, vision_config=PICTURE, projection_dim=16))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)


def _siglip_tokenizer(folder: Path) -> Any:
    return _unigram(
        folder, ["</s>", "<unk>"], "</s>", pad_token="</s>", eos_token="</s>", model_input_names=["input_ids"]
    )


def siglip(folder: Path) -> None:
    from transformers import SiglipConfig, SiglipImageProcessorPil, SiglipModel

    tokenizer = _siglip_tokenizer(folder)
    text = TOWER | {"vocab_size": len(tokenizer), "max_position_embeddings": 24, "projection_size": 32}
    _random(SiglipModel(SiglipConfig(text_config=text, vision_config=PICTURE))).save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)


def siglip2(folder: Path) -> None:
    from transformers import Siglip2Config, Siglip2ImageProcessorPil, Siglip2Model

    tokenizer = _siglip_tokenizer(folder)
    text = TOWER | {"vocab_size": len(tokenizer), "max_position_embeddings": 24, "projection_size": 32}
    vision = TOWER | {"patch_size": 8, "num_patches": 16}
    _random(Siglip2Model(Siglip2Config(text_config=text, vision_config=vision))).save_pretrained(folder)
    Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16).save_pretrained(folder)


def altclip(folder: Path) -> None:
    from transformers import AltCLIPConfig, AltCLIPModel, CLIPImageProcessorPil

    special = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer = _unigram(
        folder, special, "</s>", "<s>", bos_token="<s>", eos_token="</s>", pad_token="<pad>", cls_token="<s>"
    )
    text = TOWER | {"vocab_size": len(tokenizer), "max_position_embeddings": 40, "project_dim": 16, "pad_token_id": 1}
    config = AltCLIPConfig(text_config=text, vision_config=PICTURE, projection_dim=16)
    _random(AltCLIPModel(config)).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)


def align(folder: Path) -> None:
    from transformers import AlignConfig, AlignModel, EfficientNetImageProcessorPil

    text = TOWER | {"vocab_size": len(_word_pieces(folder)), "max_position_embeddings": 80}
    vision = {
        "image_size": 32,
        "width_coefficient": 1.0,
        "depth_coefficient": 1.0,
        "in_channels": [32, 16],
        "out_channels": [16, 16],
        "kernel_sizes": [3, 3],
        "strides": [1, 2],
        "num_block_repeats": [1, 1],
        "expand_ratios": [1, 6],
        "hidden_dim": 16,
        "depthwise_padding": [],
    }
    _random(AlignModel(AlignConfig(text_config=text, vision_config=vision, projection_dim=16))).save_pretrained(folder)
    EfficientNetImageProcessorPil(size={"height": 32, "width": 32}, do_center_crop=False).save_pretrained(folder)


def blip(folder: Path) -> None:
    from transformers import BlipConfig, BlipForImageTextRetrieval, BlipImageProcessorPil

    text = TOWER | {"vocab_size": len(_word_pieces(folder)), "max_position_embeddings": 64, "encoder_hidden_size": 32}
    config = BlipConfig(text_config=text, vision_config=PICTURE, image_text_hidden_size=16, projection_dim=24)
    _random(BlipForImageTextRetrieval(config)).save_pretrained(folder)
    BlipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)


def clap(folder: Path, *, fusion: bool = False) -> None:
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel

    text = TOWER | {"vocab_size": len(_bytes(folder)), "max_position_embeddings": 40}
    audio = {
        "spec_size": 32,
        "num_mel_bins": 8,
        "window_size": 4,
        "patch_size": 2,
        "patch_stride": [2, 2],
        "hidden_size": 32,
        "patch_embeds_hidden_size": 16,
        "depths": [1, 1],
        "num_hidden_layers": 2,
        "num_attention_heads": [2, 2],
        "enable_fusion": fusion,
        "fusion_type": "aff_2d" if fusion else None,
    }
    _random(ClapModel(ClapConfig(text_config=text, audio_config=audio, projection_dim=16))).save_pretrained(folder)
    ClapFeatureExtractor(
        feature_size=8,
        sampling_rate=1000,
        hop_length=32,
        max_length_s=2,
        fft_window_size=64,
        frequency_max=500,
        truncation="fusion" if fusion else "rand_trunc",
    ).save_pretrained(folder)


def sentences(folder: Path, pooling: str = "mean", *, normalise: bool = True) -> None:
    """Write what sentence-transformers writes: modules.json, 1_Pooling/config.json, sentence_bert_config.json."""
    from transformers import BertConfig, BertModel

    text = TOWER | {"vocab_size": len(_word_pieces(folder)), "max_position_embeddings": 64}
    _random(BertModel(BertConfig(**text))).save_pretrained(folder)
    modules = [("0", "", "Transformer"), ("1", "1_Pooling", "Pooling")]
    modules += [("2", "2_Normalize", "Normalize")] if normalise else []
    described = [
        {"idx": int(name), "name": name, "path": path, "type": f"sentence_transformers.models.{kind}"}
        for name, path, kind in modules
    ]
    (folder / "modules.json").write_text(json.dumps(described))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 8, "do_lower_case": false}')
    (folder / "1_Pooling").mkdir()
    names = {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens"}
    modes = {f"pooling_mode_{name}": key == pooling for key, name in names.items()}
    modes["pooling_mode_mean_sqrt_len_tokens"] = False
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32} | modes))


BUILDERS: dict[str, Callable[[Path], None]] = {
    "clip": clip,
    "siglip": siglip,
    "siglip2": siglip2,
    "altclip": altclip,
    "align": align,
    "blip": blip,
    "clap": clap,
    "sentences": sentences,
}


def build(root: Path, names: Iterable[str] = BUILDERS) -> dict[str, Path]:
    """Write the checkpoints of these families under ``root``, and return their folders."""
    for name in names:
        (root / name).mkdir(parents=True)
        BUILDERS[name](root / name)
    return {name: root / name for name in names}
