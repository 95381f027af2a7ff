"""The towers of a CLIP-family model (transformers) as functions of pseudo-tokens.

``plain_*`` is the model's own computation with the pseudo-tokens put in place of what it embeds. ``fast_*`` gives the
same features and gradients, and computes only what can change or is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Encode = Callable[[Tensor], Tensor]  # pseudo-tokens [n, tokens, width] -> features [n, d]
Heads = tuple[Tensor, Tensor]  # keys and values, [n, heads, positions, width of a head]

FAST_TEXT = ("clip_text_model",)  # causal attention; a bidirectional tower reads every position, padding too
FAST_IMAGE = ("clip_vision_model", "siglip_vision_model")


@dataclass(frozen=True)
class Prompt:
    """A template as token ids, padded to the context of the model; the pseudo-tokens stand in one row."""

    ids: Tensor  # int64 [context]
    first: int  # where the pseudo-tokens begin
    stop: int  # where they have ended
    end: int  # the position at which a causal tower is read


def read_position(tower: Any, ids: Tensor) -> int:
    """Return the position [context] -> int at which a CLIP text tower is read: as ``CLIPTextModel.forward`` finds it.

    Configurations from before 2023 say 2 for the end-of-text id; there, it is the largest id.
    """
    end = tower.config.eos_token_id
    return int((ids if end == 2 else (ids == end).int()).argmax())


def plain_text(model: Any, prompt: Prompt) -> Encode:
    """Return the model's own text features over its whole context."""

    def encode(tokens: Tensor) -> Tensor:
        def put(module: Any, inputs: Any, embedded: Tensor) -> Tensor:
            return torch.cat([embedded[:, : prompt.first], tokens, embedded[:, prompt.stop :]], dim=1)

        with _hooked(model.text_model.embeddings.token_embedding, put):
            return model.get_text_features(input_ids=prompt.ids.expand(len(tokens), -1)).pooler_output

    return encode


def fast_text(model: Any, prompt: Prompt) -> Encode:
    """Return the features of a causal text tower from the pseudo-tokens on, up to where it is read.

    Nothing behind that position is seen by it; the positions in front of the pseudo-tokens do not see them, so
    their keys and values are computed once; and of the last layer one position is read.
    """
    tower, first = model.text_model, prompt.first
    with torch.no_grad():
        fixed = tower.embeddings(input_ids=prompt.ids[None, : prompt.end + 1])
        before, behind = fixed[:, :first], fixed[:, prompt.stop :]
        positions = tower.embeddings.position_embedding.weight[first : prompt.stop]
        *layers, last = tower.encoder.layers
        past = []
        for layer in layers:
            before, seen = _layer(layer, before, _causal(0, before))
            past.append(seen)
        mask = _causal(first, fixed[:, first:])

    def encode(tokens: Tensor) -> Tensor:
        x = torch.cat([tokens + positions, behind.expand(len(tokens), -1, -1)], dim=1)
        for layer, seen in zip(layers, past, strict=True):
            x, _ = _layer(layer, x, mask, seen)
        x = torch.cat([before.expand(len(tokens), -1, -1), x], dim=1)
        return model.text_projection(tower.final_layer_norm(_last(last, x, -1)))

    return encode


def plain_image(model: Any, patches: int) -> Encode:
    """Return the model's own image features, ``patches`` pseudo-patches in place of the embedded ones."""
    config = model.config.vision_config
    grid = config.image_size // config.patch_size

    def encode(tokens: Tensor) -> Tensor:
        def put(module: Any, inputs: Any, embedded: Tensor) -> Tensor:
            return F.interpolate(tokens.transpose(1, 2), size=grid**2).unflatten(2, (grid, grid))

        blank = tokens.new_zeros(len(tokens), config.num_channels, config.image_size, config.image_size)
        with _hooked(model.vision_model.embeddings.patch_embedding, put):
            return model.get_image_features(pixel_values=blank).pooler_output

    return encode


def fast_image(model: Any, patches: int) -> Encode:
    """Return the features of an image tower without embedding an image, and of its last step what is read.

    CLIP reads the CLS token alone, SigLIP a learned query over all positions.
    """
    tower, embeddings = model.vision_model, model.vision_model.embeddings
    positions = embeddings.position_embedding.weight
    layers, is_clip = tower.encoder.layers, hasattr(embeddings, "class_embedding")
    with torch.no_grad():
        count = embeddings.num_patches
        shown = (
            F.interpolate(torch.arange(patches).float()[None, None], size=count).long().flatten().to(positions.device)
        )
        if is_clip:
            cls, positions = tower.pre_layrnorm(embeddings.class_embedding + positions[0]), positions[1:]

    def encode(tokens: Tensor) -> Tensor:
        x = tokens[:, shown] + positions
        if not is_clip:
            for layer in layers:
                x, _ = _layer(layer, x)
            return _pooled(tower.head, tower.post_layernorm(x))
        x = torch.cat([cls.expand(len(x), 1, -1), tower.pre_layrnorm(x)], dim=1)
        for layer in layers[:-1]:
            x, _ = _layer(layer, x)
        return model.visual_projection(tower.post_layernorm(_last(layers[-1], x, 0)))

    return encode


def _layer(layer: Any, x: Tensor, mask: Tensor | None = None, past: Heads | None = None) -> tuple[Tensor, Heads]:
    """Return a layer's output for the positions ``x`` [n, p, width], and their keys and values.

    They see the positions of ``past`` and one another, as far as ``mask`` [p, all] (0 or -inf) lets them.
    """
    attention, h = layer.self_attn, layer.layer_norm1(x)
    q, k, v = (
        project(h).unflatten(2, (attention.num_heads, -1)).transpose(1, 2)
        for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    own = (k, v)
    if past is not None:
        k, v = (torch.cat([seen.expand(len(x), -1, -1, -1), new], dim=2) for seen, new in zip(past, own, strict=True))
    if mask is None:
        mixed = F.scaled_dot_product_attention(q, k, v, scale=attention.scale)
    else:  # a handful of positions: plain products are faster than the fused kernel
        mixed = ((q * attention.scale) @ k.transpose(2, 3) + mask).softmax(-1) @ v
    x = x + attention.out_proj(mixed.transpose(1, 2).flatten(2))
    return x + layer.mlp(layer.layer_norm2(x)), own


def _last(layer: Any, x: Tensor, at: int) -> Tensor:
    """Return the output [n, width] of a layer at the one position ``at`` of ``x`` [n, p, width], which sees all."""
    attention, h = layer.self_attn, layer.layer_norm1(x)
    q = attention.q_proj(h[:, at]).unflatten(1, (attention.num_heads, -1))
    keys, values = attention.k_proj, attention.v_proj
    x = x[:, at] + attention.out_proj(_read(q, h, keys.weight, values.weight, values.bias))
    return x + layer.mlp(layer.layer_norm2(x))


def _pooled(head: Any, x: Tensor) -> Tensor:
    """Return SigLIP's attention pooling [n, width] of ``x`` [n, p, width]."""
    attention = head.attention
    queries, keys, values = attention.in_proj_weight.chunk(3)
    q_bias, _, v_bias = attention.in_proj_bias.chunk(3)
    q = F.linear(head.probe[0], queries, q_bias).unflatten(1, (attention.num_heads, -1))
    x = attention.out_proj(_read(q, x, keys, values, v_bias))
    return x + head.mlp(head.layernorm(x))


def _read(q: Tensor, x: Tensor, keys: Tensor, values: Tensor, v_bias: Tensor) -> Tensor:
    """Return attention [n, width] of one query ``q`` [n or 1, heads, c] over all positions ``x`` [n, p, width].

    q . (K x) = (K' q) . x and sum a (V x) = V (sum a x): no position needs a key or a value of its own. The bias of
    the keys adds the same to every score of a query, which softmax ignores.
    """
    keys, values = (weight.unflatten(0, (q.shape[1], -1)) for weight in (keys, values))
    seen = torch.einsum("nhc,hcd->nhd", q * q.shape[2] ** -0.5, keys)
    mixed = (seen @ x.transpose(1, 2)).softmax(-1) @ x
    return torch.einsum("nhd,hcd->nhc", mixed, values).flatten(1) + v_bias


def _causal(seen: int, x: Tensor) -> Tensor:
    """Return the mask [p, seen + p] of the positions ``x`` [n, p, width] behind ``seen`` others."""
    p = x.shape[1]
    return torch.full((p, seen + p), -torch.inf, device=x.device, dtype=x.dtype).triu(seen + 1)


@contextmanager
def _hooked(module: Any, hook: Callable) -> Iterator[None]:
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
