"""The benchmark table as Markdown: every number in it was measured in the run that wrote it."""

from __future__ import annotations

import datetime
import os
import platform
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np
import torch

from reprolib.ranking import BLOCK_BYTES
from tests.benchmarks.naive import CORRECTIONS
from tests.benchmarks.workload import CAPTIONS, Size

MIB = 2**20


@dataclass
class Results:
    """Seconds of each round, and peaks in bytes.

    ``metrics``: product and complete metrics in turn; ``corrections``: by method; ``peaks``: (method, bank, block).
    """

    metrics: dict[str, list[float]] = field(default_factory=dict)
    naive_metrics: dict[str, float] = field(default_factory=dict)
    corrections: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    peaks: dict[tuple[str, int, int], float] = field(default_factory=dict)

    def complete(self) -> bool:
        return bool(self.metrics and self.naive_metrics and self.peaks) and set(self.corrections) == set(CORRECTIONS)


def machine() -> str:
    """Return cores, vector instructions and versions, on one line."""
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    vectors = next((name for flag, name in (("avx512f", "AVX-512"), ("avx2", "AVX2")) if flag in flags), "")
    return (
        f"{len(os.sched_getaffinity(0))} cores {platform.machine()} {vectors}, {torch.get_num_threads()} threads; "
        f"Python {platform.python_version()}, torch {torch.__version__.split('+')[0]}, NumPy {np.__version__}"
    )


def rows(header: str, *lines: str) -> list[str]:
    return [header, "|" + " --- |" * (header.count("|") - 1), *lines, ""]


def markdown(found: Results, size: Size) -> str:
    captions = size.images * CAPTIONS
    unit, ours = found.metrics["product"], found.metrics["metrics"]
    ratios = [a / b for a, b in zip(ours, unit, strict=True)]
    load = os.getloadavg()[1]
    missing = [name for name in CORRECTIONS if name not in found.corrections]
    lines = [
        "# Benchmarks",
        "",
        "Written by `pytest tests/benchmarks/test_benchmarks.py --benchmark-only` on "
        f"{datetime.date.today().isoformat()}: {machine()}; load average {load:.1f}.",
        "",
        f"{size.images:,} images, {captions:,} captions, {size.width} dimensions; query bank {size.query_bank:,} "
        f"captions, gallery bank {size.gallery_bank:,} images; synthetic, with a modality gap and hubs. The "
        "comparison builds every matrix whole in float32 with NumPy and sorts it (stable argsort); it finds the same "
        "metrics. Medians of our rounds; the bare product and the metrics alternate.",
        "",
        "## Complete metrics and k-occurrence of both directions",
        "",
        *rows(
            "| | seconds | x product | peak memory, MiB |",
            f"| one bare float32 product (torch) | {median(unit):.2f} | 1 | |",
            f"| `rank_both`, metrics, k-occurrence | {median(ours):.2f} | {median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f}, {len(ratios)} rounds) "
            f"| {found.naive_metrics['ours peak'] / MIB:.0f} |",
            f"| NumPy | {found.naive_metrics['seconds']:.1f} | {found.naive_metrics['seconds'] / median(unit):.1f} "
            f"| {found.naive_metrics['peak'] / MIB:.0f} |",
        ),
        "## Corrections: fit, then metrics and k-occurrence of caption to image",
        "",
        f"NumPy: one run each. The bank x gallery matrix alone takes {4 * size.query_bank * size.images / MIB:.0f} "
        "MiB.",
        "",
        *rows(
            "| method | NumPy, s | here, s | faster | NumPy peak, MiB | here, MiB |",
            *(
                f"| {name} | {r['naive'][0]:.1f} | {median(r['ours']):.1f} | {r['naive'][0] / median(r['ours']):.1f} x "
                f"| {r['naive peak'][0] / MIB:.0f} | {r['peak'][0] / MIB:.0f} |"
                for name, r in found.corrections.items()
            ),
        ),
        *([f"Not measured in this run: {', '.join(missing)}.", ""] if missing else []),
        "## Peak memory is set by the block, not by the bank",
        "",
        f"Peak above the embeddings at hand, MiB; default block {BLOCK_BYTES // MIB} MiB.",
        "",
        *rows(
            "| method | bank | block, MiB | peak, MiB |",
            *(
                f"| {name} | {bank:,} | {block / MIB:g} | {peak / MIB:.0f} |"
                for (name, bank, block), peak in found.peaks.items()
            ),
        ),
    ]
    return "\n".join(lines)
