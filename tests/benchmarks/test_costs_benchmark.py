"""How time and memory grow with queries, gallery, bank and dimensions, and what ten times and more would take.

At full size (``pytest --benchmark-only``) every measurement is a process of its own, and a complete run writes
``docs/costs.md`` and its figure. In an ordinary test run each is done once, tiny; nothing is asserted of time.
"""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest

from reprolib.figures import style
from tests.benchmarks import costs
from tests.benchmarks.costs import FULL, HELD, OPERATIONS, SMALL, Model, Plan, Point
from tests.benchmarks.scale import matrix_rate
from tests.benchmarks.table import MIB, machine, rows

ROOT = Path(__file__).resolve().parents[2]
PAGE, FIGURE = ROOT / "docs" / "costs.md", "costs"
NAMES = {
    "metrics": "`rank_both`, metrics, k-occurrence",
    "is": "`is`, metrics of one direction",
    "nnn": "`nnn`, metrics of one direction",
    "sinkhorn": "`sinkhorn`, metrics of one direction",
}
AXES = {
    "queries": "queries",
    "gallery": "gallery items",
    "bank": "bank items",
    "width": "dimensions",
    "relevant": "relevant items",
}
LARGE = tuple(Point(10_000, size, 100_000, 512) for size in (10**7, 10**8))
AT_ONCE = 64  # queries in a block of a large gallery
LINKS = 2 * 32  # of every node of an HNSW graph on its lowest level


@dataclass
class Measured:
    """Of each operation: median seconds and peak by point, and the matrix rate measured beside them."""

    plan: Plan
    seconds: dict[str, dict[Point, float]] = field(default_factory=dict)
    peaks: dict[str, dict[Point, float]] = field(default_factory=dict)
    rates: dict[str, float] = field(default_factory=dict)

    def models(self, operation: str) -> tuple[Model, Model]:
        """Return the models of seconds and of peak bytes; the unseen point is left out."""
        points = self.plan.points(operation)
        seconds = costs.model([costs.terms(operation, p) for p in points], [self.seconds[operation][p] for p in points])
        peaks = [self.peaks[operation][p] for p in points]
        return seconds, costs.model([costs.memory_terms(operation, p) for p in points], peaks)


@pytest.fixture(scope="module")
def found(full: bool) -> Iterator[Measured]:
    """Collect what is measured; after a complete full-size run, write the page and its figure."""
    measured = Measured(FULL if full else SMALL)
    yield measured
    if full and set(measured.rates) == set(OPERATIONS):
        write(measured, PAGE.parent)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_operation(operation: str, benchmark: Any, full: bool, found: Measured) -> None:
    plan = found.plan

    def once(p: Point) -> dict[str, list[float]]:
        if not full:
            return costs.once(operation, p, plan.rounds)
        command = [sys.executable, "-m", costs.__name__, operation, str(plan.rounds), *map(str, astuple(p))]
        return json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)

    def every() -> None:
        rate = matrix_rate(plan.base.width, "cpu", 4096) if full else 1e9
        points = {p: once(p) for p in (*plan.points(operation), plan.unseen)}
        found.seconds[operation] = {p: median(one["seconds"]) for p, one in points.items()}
        found.peaks[operation] = {p: one["peak"][0] for p, one in points.items()}
        found.rates[operation] = median([rate, matrix_rate(plan.base.width, "cpu", 4096)]) if full else rate

    benchmark.pedantic(every, rounds=1)


@style.styled
def figure(found: Measured) -> style.Drawing:
    """Draw seconds against each number: points as measured, lines as fitted."""
    looks = {name: style.METHODS[name if name != "metrics" else "none"] for name in OPERATIONS}
    looks["metrics"] = looks["metrics"]._replace(label="metrics, both directions")
    drawn, (axes,) = style.panels(len(AXES), height=2.4, sharey=True)
    plan, told = found.plan, []
    every = [found.seconds[name][p] for name in OPERATIONS for p in plan.points(name)]
    for ax, (axis, words) in zip(axes, AXES.items(), strict=True):
        values = plan.axes[axis]
        for name in OPERATIONS:
            points = [replace(plan.base, **{axis: value}) for value in values]
            if points[-1] not in found.seconds[name]:
                continue
            seconds, fitted = [found.seconds[name][p] for p in points], found.models(name)[0]
            dense = np.geomspace(values[0], values[-1], 40)
            line = [fitted.predict(costs.terms(name, replace(plan.base, **{axis: v})))[0] for v in dense]
            look = looks[name]
            ax.plot(values, seconds, **look.line(linestyle="none", label=None))
            ax.plot(dense, line, **look.line(marker="none", label=None))
            ax.plot([], [], **look.line())
            told.append(
                f"{look.label}, {words} {values[0]:,} to {values[-1]:,}: {seconds[0]:.2f} to {seconds[-1]:.2f} s"
            )
        ax.set_xscale("log")
        ax.set_xticks(values, [f"{v / 1000:g}k" if v > 1024 else f"{v}" for v in values])
        ax.set_xticks([], minor=True)
        ax.set_xlabel(words)
    style.log_axis(axes[0], "y", min(every), max(every), 1.6)
    axes[0].set_ylabel("seconds")
    style.legend_below(drawn, axes)
    alt = f"Seconds against four sizes, both on logarithmic axes. {'; '.join(told)}."
    return style.Drawing(drawn, alt, "Points are measured, lines fitted; the other numbers are those of the base.")


def amount(of: Model, terms: list[float], unit: str) -> str:
    value, low, high = (seconds / {"s": 1, "h": 3600}[unit] for seconds in of.predict(terms))
    return f"{value:,.1f} {unit} ({low:,.1f} to {high:,.1f})"


def write(found: Measured, folder: Path) -> None:
    """Write the page and its figure into ``folder``."""
    drawing = figure(found)
    for suffix, path in drawing.save(folder, FIGURE).items():
        if suffix != "svg":
            path.unlink()
    (folder / PAGE.name).write_text(markdown(found, drawing), encoding="utf-8")


def markdown(found: Measured, drawing: style.Drawing) -> str:
    plan, gib = found.plan, 2**30
    base = plan.base
    measured, fitted, memory, unseen, large = [], [], [], [], []
    for name in OPERATIONS:
        time_model, memory_model = found.models(name)
        share = costs.flops(name, base) / found.seconds[name][base] / found.rates[name]
        for axis, words in AXES.items():
            points = [replace(base, **{axis: value}) for value in plan.axes[axis]]
            if points[-1] in found.seconds[name]:
                cells = " | ".join(
                    f"{getattr(p, axis):,}: {found.seconds[name][p]:.2f} s, {found.peaks[name][p] / MIB:.0f} MiB"
                    for p in points
                )
                measured.append(f"| {NAMES[name]} | {words} | {cells} |")
        product, *entries, fixed = time_model.weights
        each = [f"{1e9 * weight:.2f}" if weight else "-" for weight in [*entries, 0, 0][:4]]
        rate = f"{1e-9 / product:.0f}" if product else "-"
        fitted.append(
            f"| {NAMES[name]} | {rate} | {' | '.join(each)} | {fixed:.2f} "
            f"| {time_model.spread:.1%} | {time_model.worst:.1%} | {share:.0%} |"
        )
        *items, fixed = memory_model.weights
        each = [f"{weight:.0f}" if weight >= 0.5 else "-" for weight in [*items[:3], 0][:3]]
        each.append(f"{items[3]:.1f}" if items[3:] else "-")
        memory.append(
            f"| {NAMES[name]} | {fixed / MIB:.0f} | {' | '.join(each)} "
            f"| {memory_model.spread:.0%} | {memory_model.worst:.0%} |"
        )
        measured += [
            f"| {NAMES[name]} | kernel not held | {p.gallery:,} gallery items, a bank of {p.bank:,}, {p.width} "
            f"dimensions: {found.seconds[name][p]:.2f} s, {found.peaks[name][p] / MIB:.0f} MiB | | | |"
            for p in plan.points(name)
            if p in plan.anew
        ]
        terms = costs.terms(name, plan.unseen)
        new, (value, low, high) = found.seconds[name][plan.unseen], time_model.predict(terms)
        unseen.append(
            f"| {NAMES[name]} | {amount(time_model, terms, 's')} | {new:.1f} s | {new / value:.2f} "
            f"| {'yes' if low <= new <= high else 'no'} |"
        )
        large += [
            f"| {NAMES[name]} | {p.gallery:,} | {amount(time_model, costs.terms(name, p, further=0), 'h')} "
            f"| {costs.flops(name, p) / found.rates[name] / 3600:,.1f} h |"
            for p in LARGE
        ]
    held = []
    for p in LARGE:
        lists = round(p.gallery**0.5)
        embeddings = 4 * p.width * p.gallery
        row = 4 * (p.width + 1) * p.gallery
        sizes = (embeddings, 4 * AT_ONCE * p.gallery, row, row + 8 * p.gallery + 4 * lists * (p.width + 1),
                 row + (4 * LINKS + 12) * p.gallery)  # fmt: skip
        held.append(f"| {p.gallery:,} | {' | '.join(f'{size / gib:,.0f}' for size in sizes)} |")
    stretch = [p.gallery / max(plan.axes["gallery"]) for p in LARGE]
    rates = [rate / 1e9 for rate in found.rates.values()]
    return "\n".join(
        [
            "# Costs",
            "",
            "Written by `pytest tests/benchmarks/test_costs_benchmark.py --benchmark-only` on "
            f"{datetime.date.today().isoformat()}: {machine()}; load average {os.getloadavg()[1]:.1f}. Matrix rate "
            f"measured before and after each operation: {min(rates):.0f} to {max(rates):.0f} GFLOP/s, float32.",
            "",
            f"Base: {base.queries:,} queries, {base.gallery:,} gallery items, a bank of {base.bank:,}, {base.width} "
            "dimensions; one number varies at a time. Every measurement is a process of its own; seconds are medians "
            f"of {plan.rounds} rounds, memory is the peak above the embeddings. A correction is fitted anew each time, "
            "and its time includes complete metrics and k-occurrence of one direction. Where the relevant items vary, "
            "each query has so many, and each item so many queries; elsewhere the longer side shows everything as "
            "often as it is longer.",
            "",
            f"![{drawing.alt}](costs.svg)",
            "",
            drawing.caption,
            "",
            *rows(
                f"| operation | what varies | smallest |{' |' * (len(plan.axes['gallery']) - 2)} largest |", *measured
            ),
            "## The model of time",
            "",
            "seconds = operations / rate + a x E + r x E x (further relevant items) + b x B + h x H + c, where "
            "operations = 2 x dimensions x gallery x (queries + bank), E = queries x gallery, B = bank x gallery, and "
            "H = B for Sinkhorn as long as it holds its kernel. Further relevant items are those of a query beyond its "
            "first and, with both directions, the queries of an item beyond its first: whoever stands above it is "
            f"counted once more. A kernel of more than {HELD:,} entries is not held: each of {costs.ITERATIONS} "
            "iterations computes it anew, so that the products and B count as often. Fitted by least squares of "
            'relative residuals, nothing below 0; "-" where a term found no weight. The last column is the share of '
            "the matrix rate at the base, with everything that is not a product counted as lost.",
            "",
            *rows(
                "| operation | rate, GFLOP/s | a, ns | r, ns | b, ns | h, ns | c, s | residual, standard deviation "
                "| largest | of the matrix rate |",
                *fitted,
            ),
            f"A point that no model has seen: {plan.unseen.queries:,} queries, {plan.unseen.gallery:,} gallery items "
            f"({plan.unseen.gallery / plan.unseen.shown:.1f} relevant ones for a query), a bank of "
            f"{plan.unseen.bank:,}, {plan.unseen.width} dimensions. Sinkhorn's kernel does not fit there.",
            "",
            *rows("| operation | predicted (95 %) | measured | measured / predicted | in the interval |", *unseen),
            "## The model of memory",
            "",
            "peak above the embeddings = blocks + bytes for each query, gallery and bank item, and for each entry of "
            "the kernel that Sinkhorn holds.",
            "",
            *rows(
                "| operation | blocks, MiB | bytes per query | per gallery item | per bank item | per kernel entry "
                "| residual, standard deviation | largest |",
                *memory,
            ),
            "## Ten million and a hundred million items",
            "",
            f"{LARGE[0].queries:,} queries with one relevant item each, a bank of {LARGE[0].bank:,}, {LARGE[0].width} "
            "dimensions, exact search, on a machine like this one with enough memory. The interval is that of the fit "
            "and says nothing of what has not been measured: in the gallery it is an extrapolation by a factor of "
            f"{stretch[0]:,.0f} and "
            f"{stretch[1]:,.0f}. The bound is the time of the products alone at the measured matrix rate.",
            "",
            *rows("| operation | gallery | predicted (95 %) | bound |", *large),
            f"Memory in GiB. A block has to hold a few queries against the whole gallery, here {AT_ONCE} "
            "(`block_bytes`); with fewer the product runs at the speed of memory. IVF adds an identifier per item and "
            f"the centroids; HNSW adds {LINKS} links of 4 bytes, a level and an offset. What recall they reach: "
            "[benchmarks_million.md](benchmarks_million.md).",
            "",
            *rows("| gallery | embeddings | block | flat index | IVF | HNSW |", *held),
        ]
    )


# --- the models ---------------------------------------------------------------------------------------------


SECONDS = {
    "metrics": [1e-11, 2e-9, 1e-9, 0.05],
    "is": [1e-11, 2e-9, 1e-9, 5e-9, 0.05],
    "nnn": [1e-11, 2e-9, 1e-9, 5e-9, 0.05],
    "sinkhorn": [1e-11, 2e-9, 1e-9, 5e-9, 3e-9, 0.05],
}
BYTES = {
    "metrics": [100.0, 50.0, 2.0**26],
    "is": [100.0, 50.0, 3.0, 2.0**26],
    "nnn": [100.0, 50.0, 3.0, 2.0**26],
    "sinkhorn": [100.0, 50.0, 3.0, 4.5, 2.0**26],
}


def synthetic(plan: Plan, noise: float = 0.0) -> Measured:
    """Return times and peaks that follow the models, with relative noise."""
    rng, found = np.random.default_rng(0), Measured(plan)
    for name in OPERATIONS:
        points = (*plan.points(name), plan.unseen)
        factor = {p: 1 + noise * rng.standard_normal() for p in points}
        for law, terms, to in (
            (SECONDS, costs.terms, found.seconds),
            (BYTES, costs.memory_terms, found.peaks),
        ):
            to[name] = {p: factor[p] * float(np.dot(law[name], terms(name, p))) for p in points}
        found.rates[name] = 2e11
    return found


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_fit_finds_the_law_that_made_the_numbers(operation: str) -> None:
    exact = synthetic(FULL)
    seconds, memory = exact.models(operation)
    for p in (FULL.unseen, *LARGE):
        wanted = float(np.dot(SECONDS[operation], costs.terms(operation, p)))
        assert seconds.predict(costs.terms(operation, p)) == pytest.approx((wanted,) * 3, rel=1e-6)
    assert memory.weights == pytest.approx(BYTES[operation])
    noisy = synthetic(FULL, 0.05).models(operation)[0]
    assert 0.01 < noisy.spread < 0.1 and noisy.spread <= noisy.worst
    value, low, high = noisy.predict(costs.terms(operation, LARGE[0]))
    wanted = seconds.predict(costs.terms(operation, LARGE[0]))[0]
    assert low < value < high and low < wanted < high


def test_intervals_cover_a_new_measurement_as_often_as_they_say() -> None:
    rng, x = np.random.default_rng(1), np.column_stack([np.linspace(1, 5, 12), np.ones(12)])
    inside = 0
    for _ in range(400):
        fitted = costs.model(x, (x @ [2.0, 1.0]) * (1 + 0.05 * rng.standard_normal(12)))
        _, low, high = fitted.predict([8.0, 1.0])
        inside += low <= 17 * (1 + 0.05 * rng.standard_normal()) <= high
    assert 0.91 < inside / 400 < 0.99


def test_operations_are_counted_by_hand() -> None:
    p = Point(3, 5, 7, 2)
    assert costs.flops("metrics", p) == 2 * 2 * 5 * 3
    assert costs.flops("is", p) == costs.flops("sinkhorn", p) == 2 * 2 * 5 * (3 + 7)
    many = replace(p, bank=HELD)
    assert costs.flops("sinkhorn", many) == 2 * 2 * 5 * (3 + 10 * HELD) and costs.kernel_entries("sinkhorn", many) == 0
    assert costs.kernel_entries("sinkhorn", p) == 5 * 7 and costs.kernel_entries("is", p) == 0


def test_further_relevant_items_are_counted_by_hand() -> None:
    p = Point(queries=12, gallery=8, bank=7, width=96, relevant=2)  # 4 things: 3 queries and 2 items show each
    assert (costs.make(p).relevance.sum(1) == 2).all() and (costs.make(p).relevance.sum(0) == 3).all()
    assert costs.terms("is", p)[2] == (2 - 1) * 12 * 8
    assert costs.terms("metrics", p)[2] == (2 - 1 + 3 - 1) * 12 * 8
    assert costs.terms("metrics", replace(p, queries=8, relevant=1))[2] == 0


def test_the_page_holds_what_was_measured(tmp_path: Path) -> None:
    found = synthetic(FULL, 0.02)
    write(found, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["costs.md", "costs.svg"]
    text = (tmp_path / "costs.md").read_text()
    name, p = "nnn", replace(FULL.base, gallery=16_000)
    assert f"16,000: {found.seconds[name][p]:.2f} s, {found.peaks[name][p] / MIB:.0f} MiB" in text
    measured = found.seconds["sinkhorn"][FULL.unseen]
    assert f"| {measured:.1f} s | " in text and "| yes |" in text
    found.seconds["sinkhorn"][FULL.unseen] *= 10
    write(found, tmp_path)
    assert "| no |" in (tmp_path / "costs.md").read_text()
    assert "| 100,000,000 | 191 | 24 | 191 | 192 | 216 |" in text
    assert text.count("to ") > 20 and "nan" not in text


def test_each_size_is_a_function_of_one_number() -> None:
    for plan in (FULL, SMALL):
        for axis, values in plan.axes.items():
            assert getattr(plan.base, axis) in values, axis
        assert len(plan.points("is")) == 1 + sum(len(values) - 1 for values in plan.axes.values())
