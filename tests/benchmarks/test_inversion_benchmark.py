"""Inversion with a randomly initialised ViT-B/32-sized CLIP: the plain computation against the fast path.

At full size (``pytest --benchmark-only``) this writes ``docs/benchmarks_inversion.md``; in an ordinary test run each
benchmark runs once, tiny. Plain, fast and, for text, the plain computation with gradients of all weights (which the
released code computes too, as it does not freeze the model) take turns. What is measured is the processor time of one
thread: on a busy machine that is disturbed least. A second table follows the losses of both ways over all steps.
"""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from reprolib.methods import towers
from reprolib.methods.inversion import OTI, oti
from tests.benchmarks.table import machine, rows

TABLE = Path(__file__).resolve().parents[2] / "docs" / "benchmarks_inversion.md"
CASES = (("OTI", 64), ("OTI", 16), ("OVI", 16))
WORDS = {"a": 320, "photo": 1125, "of": 539, "£": 272}  # as CLIP's tokenizer numbers them
MARKS = (1, 2, 5, 10, 20, 50, 100, 150)  # steps that the table of losses shows


@dataclass
class Measured:
    """Seconds and operations per image-step by case and way, and losses [steps + 1, n] by way."""

    seconds: dict[tuple[str, int], dict[str, list[float]]] = field(default_factory=dict)
    operations: dict[tuple[str, int], dict[str, float]] = field(default_factory=dict)
    losses: dict[str, np.ndarray] = field(default_factory=dict)


@pytest.fixture(scope="module")
def model(full: bool) -> Any:
    from transformers import CLIPConfig, CLIPModel

    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = CLIPConfig() if full else CLIPConfig(text_config=small, vision_config=small | {"image_size": 64})
    return CLIPModel(config).eval()


@pytest.fixture(scope="module")
def measured(full: bool) -> Iterator[Measured]:
    """Collect what is measured, with one thread; after a complete full-size run, write the table."""
    found, threads = Measured(), torch.get_num_threads()
    torch.set_num_threads(1)
    yield found
    if full and set(found.seconds) == set(CASES) and found.losses:
        TABLE.write_text(markdown(found), encoding="utf-8")
    torch.set_num_threads(threads)


def ways(model: Any, direction: str) -> dict[str, Callable]:
    """Return the ways to compute a step, each as pseudo-tokens -> features."""
    if direction == "OVI":
        return {"plain": towers.plain_image(model, 1), "fast": towers.fast_image(model, 1)}
    config = model.config.text_config  # "a photo of" and one token, as CLIP's tokenizer has them
    ids = torch.full((config.max_position_embeddings,), config.eos_token_id)
    ids[:5] = torch.tensor([config.bos_token_id, *(WORDS[word] for word in ("a", "photo", "of", "£"))])
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
def test_step(direction: str, batch: int, benchmark, model: Any, full: bool, measured: Measured) -> None:
    case, batch = (direction, batch), batch if full else 3
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
        began = time.thread_time()
        for _ in range(steps):
            tokens.grad = None
            losses[name] = step(encode[name], tokens, goal)
        seconds[name].append((time.thread_time() - began) / batch / steps)
        gradients[name] = tokens.grad

    def others() -> None:
        for name in encode:
            if name != "fast":
                timed(name)

    benchmark.pedantic(timed, args=("fast",), setup=others, rounds=3 if full else 1)
    measured.seconds[case], measured.operations[case] = seconds, {}
    for name in encode:  # all of them solve the same problem
        model.requires_grad_(name == "weights too")
        with FlopCounterMode(display=False) as counter:
            step(encode[name], tokens[:1].detach().requires_grad_(), goal[:1])
        measured.operations[case][name] = counter.get_total_flops()
        torch.testing.assert_close(losses[name], losses["plain"], atol=1e-5, rtol=0)
        torch.testing.assert_close(gradients[name], gradients["plain"], atol=1e-5, rtol=1e-3)


class Tokenizer:
    """What CLIP's tokenizer makes of the template; any other word falls into two tokens."""

    def __init__(self, config: Any) -> None:
        self.config = config

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        ids = [WORDS[word] for word in text.split()] if set(text.split()) <= set(WORDS) else [1, 2]
        return {"input_ids": [self.config.bos_token_id, *ids, self.config.eos_token_id] if add_special_tokens else ids}

    def pad(self, ids: dict[str, list[int]], padding: str, max_length: int) -> dict[str, list[int]]:
        return {"input_ids": ids["input_ids"] + [self.config.eos_token_id] * (max_length - len(ids["input_ids"]))}


def test_trajectory(benchmark, model: Any, full: bool, measured: Measured) -> None:
    """All steps of OTI, in float32 by both ways and in float64 by the fast one."""
    config = model.config.text_config
    encoder = SimpleNamespace(model=model, tokenizer=Tokenizer(config), identity="random")
    n, settings = (2, replace(OTI, dtype="float32")) if full else (2, replace(OTI, steps=8, dtype="float32"))
    features = np.random.default_rng(0).standard_normal((n, model.config.projection_dim)).astype(np.float32)
    ways = {"fast": settings, "plain": replace(settings, path="plain"), "exact": replace(settings, dtype="float64")}

    def run() -> None:
        for name, given in ways.items():
            found = oti(encoder, features, ["one", "other"], given, progress=lambda *_: None)
            assert found.path == ("plain" if name == "plain" else "fast")
            measured.losses[name] = found.losses

    benchmark.pedantic(run, rounds=1)
    losses = measured.losses
    assert np.abs(losses["fast"] - losses["plain"]).max() <= 1e-5
    assert (losses["exact"][-1] < losses["exact"][0] - 0.05).all()


def markdown(found: Measured) -> str:
    lines = []
    for (direction, batch), seconds in found.seconds.items():
        counted = found.operations[direction, batch]
        for name, label in (("weights too", "whole context, weights too"), ("plain", "plain"), ("fast", "fast")):
            if name in seconds:
                faster = [a / b for a, b in zip(seconds[name], seconds["fast"], strict=True)]
                lines.append(
                    f"| {direction} | {batch} | {label} | {1e3 * median(seconds[name]):.2f} "
                    f"| {counted[name] / 1e9:.2f} | {counted[name] / 1e9 / median(seconds[name]):.0f} "
                    f"| {counted[name] / counted['fast']:.1f} x "
                    f"| {median(faster):.1f} x ({min(faster):.1f} to {max(faster):.1f}) |"
                )
    pairs = (("fast", "plain"), ("fast", "exact"), ("plain", "exact"))
    apart = [np.maximum.accumulate(np.abs(found.losses[one] - found.losses[other]).max(1)) for one, other in pairs]
    marks = [step for step in MARKS if step < len(apart[0])]
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
            "gradients of all weights, as a model that is not frozen does. Processor time of one thread; the ways take "
            "turns; medians of 3 rounds. Operations are those of matrix products as torch counts them, those inside "
            "fused attention left out (a few per cent of plain): fewer of them is what makes the fast path fast.",
            "",
            *rows(
                "| direction | batch | way | ms per image-step | GFLOP | GFLOP/s | operations | "
                "the fast path is faster by |",
                *lines,
            ),
            "## Both ways over all steps",
            "",
            f"The greatest difference in the loss up to a step, {len(found.losses['fast'][0])} items, OTI. Losses are "
            "kept in float32, whose numbers just below 1 lie 6.0e-08 apart. This tower is smooth and its weights are "
            "random; where a trained one has kinks, as `glyph-clip` has, float32 can drift (see "
            "`reprolib.methods.inversion`).",
            "",
            *rows(
                "| steps | fast and plain, float32 | fast in float32 and float64 | plain in float32, fast in float64 |",
                *(f"| {step} | {' | '.join(f'{values[step]:.1e}' for values in apart)} |" for step in marks),
            ),
        ]
    )


def test_the_table_holds_what_was_measured() -> None:
    seconds = {("OTI", 64): {"weights too": [0.3], "plain": [0.2], "fast": [0.004]}}
    operations = {("OTI", 64): {"weights too": 18e9, "plain": 12e9, "fast": 0.3e9}}
    losses = {
        name: np.array([[1.0], [value], [0.5]]) for name, value in (("fast", 0.7), ("plain", 0.6), ("exact", 0.7))
    }
    text = markdown(Measured(seconds, operations, losses))
    assert "| OTI | 64 | plain | 200.00 | 12.00 | 60 | 40.0 x | 50.0 x (50.0 to 50.0) |" in text
    assert "| OTI | 64 | whole context, weights too | 300.00 | 18.00 | 60 | 60.0 x | 75.0 x (75.0 to 75.0) |" in text
    assert "| 2 | 1.0e-01 | 0.0e+00 | 1.0e-01 |" in text  # the greatest so far
