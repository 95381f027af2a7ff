"""Inversion with a randomly initialised ViT-B/32-sized CLIP: the plain computation against the fast path.

At full size (``pytest --benchmark-only``) this writes ``docs/benchmarks_inversion.md``; in an ordinary test run each
benchmark runs once, tiny. Plain, fast and, for text, the plain computation with gradients of all weights (which the
released code computes too, as it does not freeze the model) take turns, so that a busy machine slows all alike.
"""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from reprolib.methods import towers
from tests.benchmarks.table import machine, rows

TABLE = Path(__file__).resolve().parents[2] / "docs" / "benchmarks_inversion.md"
CASES = (("OTI", 64), ("OTI", 16), ("OVI", 16))
Ratios = dict[tuple[str, int], dict[str, list[float]]]


@pytest.fixture(scope="module")
def model(full: bool) -> Any:
    from transformers import CLIPConfig, CLIPModel

    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = CLIPConfig() if full else CLIPConfig(text_config=small, vision_config=small | {"image_size": 64})
    return CLIPModel(config).eval()


@pytest.fixture(scope="module")
def measured(full: bool) -> Any:
    """Collect seconds per image-step; after a complete full-size run, write the table."""
    found: Ratios = {}
    yield found
    if full and set(found) == set(CASES):
        TABLE.write_text(markdown(found), encoding="utf-8")


def ways(model: Any, direction: str) -> dict[str, Callable]:
    """Return the ways to compute a step, each as pseudo-tokens -> features."""
    if direction == "OVI":
        return {"plain": towers.plain_image(model, 1), "fast": towers.fast_image(model, 1)}
    config = model.config.text_config  # "a photo of" and one token, as CLIP's tokenizer has them
    ids = torch.full((config.max_position_embeddings,), config.eos_token_id)
    ids[:5] = torch.tensor([config.bos_token_id, 320, 1125, 539, 272])
    prompt = towers.Prompt(ids, 4, 5, towers.read_position(model.text_model, ids))
    return {
        "weights too": towers.plain_text(model, prompt),
        "plain": towers.plain_text(model, prompt),
        "fast": towers.fast_text(model, prompt),
    }


def step(encode: Callable, tokens: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
    """Return the loss of each item, after one step of gradients."""
    loss = 1 - F.cosine_similarity(encode(tokens), goal)
    loss.sum().backward()
    return loss.detach()


@pytest.mark.parametrize(("direction", "batch"), CASES)
def test_step(direction: str, batch: int, benchmark, model: Any, full: bool, measured: Ratios) -> None:
    batch = batch if full else 3
    config = model.config.text_config if direction == "OTI" else model.config.vision_config
    tokens = (0.02 * torch.randn(batch, 1, config.hidden_size)).requires_grad_()
    goal = torch.randn(batch, model.config.projection_dim)
    model.requires_grad_(False)
    encode = ways(model, direction)
    seconds: dict[str, list[float]] = {name: [] for name in encode}
    losses, gradients = {}, {}

    def timed(name: str) -> None:
        model.requires_grad_(name == "weights too")
        model.zero_grad()
        steps = 8 if full and name == "fast" and direction == "OTI" else 1  # one alone is too short on a busy machine
        began = time.perf_counter()
        for _ in range(steps):
            tokens.grad = None
            losses[name] = step(encode[name], tokens, goal)
        seconds[name].append((time.perf_counter() - began) / batch / steps)
        gradients[name] = tokens.grad

    def others() -> None:
        for name in encode:
            if name != "fast":
                timed(name)

    benchmark.pedantic(timed, args=("fast",), setup=others, rounds=3 if full else 1)
    measured[direction, batch] = seconds
    for name in encode:  # all of them solve the same problem
        torch.testing.assert_close(losses[name], losses["plain"], atol=1e-5, rtol=0)
        torch.testing.assert_close(gradients[name], gradients["plain"], atol=1e-5, rtol=1e-3)


def markdown(found: Ratios) -> str:
    lines = []
    for (direction, batch), seconds in found.items():
        for name, label in (("weights too", "whole context, weights too"), ("plain", "plain"), ("fast", "fast")):
            if name in seconds:
                faster = [a / b for a, b in zip(seconds[name], seconds["fast"], strict=True)]
                lines.append(
                    f"| {direction} | {batch} | {label} | {1e3 * median(seconds[name]):.2f} "
                    f"| {median(faster):.1f} x ({min(faster):.1f} to {max(faster):.1f}) |"
                )
    load = os.getloadavg()[1]
    return "\n".join(
        [
            "# Benchmarks of inversion",
            "",
            f"Written by `pytest tests/benchmarks/test_inversion_benchmark.py --benchmark-only` on "
            f"{datetime.date.today().isoformat()}: {machine()}; load average {load:.1f}.",
            "",
            "A step is the loss and its gradient for each item, with a randomly initialised CLIP of the size of "
            "ViT-B/32, float32; one pseudo-token, after four others (OTI), or one pseudo-patch (OVI). Plain is the "
            'model\'s own computation over its whole context with fixed weights; "weights too" also computes the '
            "gradients of all weights, as a model that is not frozen does. The ways take turns; medians of 3 rounds.",
            "",
            *rows("| direction | batch | way | ms per image-step | the fast path is faster by |", *lines),
        ]
    )


def test_the_table_holds_what_was_measured() -> None:
    text = markdown({("OTI", 64): {"weights too": [0.3], "plain": [0.2], "fast": [0.004]}})
    assert "| OTI | 64 | plain | 200.00 | 50.0 x (50.0 to 50.0) |" in text
    assert "| OTI | 64 | whole context, weights too | 300.00 | 75.0 x (75.0 to 75.0) |" in text
