"""Synthetic artefacts of a hubness run, in the form in which the study stores them."""

import numpy as np
import pandas as pd
import pytest

DIRECTIONS = ("text->image", "image->text")
BASE = {"text->image": 0.597, "image->text": 0.636}
GAIN = {  # R@1 over none, skewness
    "none": (0.0, 2.36), "is": (0.051, 0.31), "dis": (0.050, 0.35), "dual-is": (0.0505, 0.36),
    "dual-dis": (0.049, 0.41), "csls": (0.031, 0.92), "gc": (0.022, 0.88), "dn": (0.012, 1.64),
    "nnn": (0.046, 0.62),
    "sinkhorn": (0.044, 0.21), "dual-bank-sinkhorn": (0.043, 0.26), "invgc": (0.018, 1.52),
    "invgc-localadj": (0.009, 1.71),
}  # fmt: skip
TUNED = {"is": {"beta": 30.0}, "dis": {"beta": 30.0}, "dual-is": {"query_beta": 30.0, "gallery_beta": 0.1}}
BETAS = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 50.0, 100.0, 200.0)


def record(direction, method, value, half, *, table="main", metric="R@1", parameters=None, **more):
    """Return one record of results.json."""
    return {
        "study": "hubness", "dataset": "glyphs", "model": "glyph-clip", "bank": "train, 20 %", "n": 1000,
        "direction": direction, "method": method, "parameters": parameters or {}, "metric": metric,
        "value": value, "ci_low": value - half, "ci_high": value + half, "table": table,
        "reference": None, "p_value": None, "p_holm": None, **more,
    }  # fmt: skip


def curve(direction, beta):
    """Return R@1 of inverted softmax: from none, to a peak at 30, and down again."""
    return BASE[direction] + 0.051 - 0.02 * np.log(beta / 30) ** 2 / (1 + 0.2 * np.log(beta / 30) ** 2)


@pytest.fixture(scope="session")
def records():
    """Records of every table, both directions."""
    rows = []
    for direction in DIRECTIONS:
        base = BASE[direction]
        for method, (gain, skewness) in GAIN.items():
            rows.append(record(direction, method, base + gain, 0.02, parameters=TUNED.get(method)))
            rows.append(record(direction, method, skewness, 0.2, metric="skewness"))
            for reference, offset in (("none", 0.0), ("is", 0.051)):
                if method not in ("none", reference):
                    difference, p = gain - offset, 0.002 if abs(gain - offset) > 0.02 else 0.4
                    more = {"metric": "R@1 difference", "reference": reference, "p_value": p, "p_holm": p}
                    rows.append(record(direction, method, difference, 0.012, table="difference", **more))
        for beta in BETAS:
            y = curve(direction, beta)
            rows.append(record(direction, "is", y, 0.02, table="temperature", parameters={"beta": beta}))
            rows.append(record(direction, "dis", y - 0.004, 0.02, table="temperature", parameters={"beta": beta}))
            for gallery in (0.1, 1.0, 10.0):
                both = {"query_beta": beta, "gallery_beta": gallery}
                lower = y - 0.004 * gallery
                rows.append(record(direction, "dual-is", lower, 0.02, table="temperature", parameters=both))
        for size in (50, 100, 200, 500, 1000, 2000, 5000):
            share = 1 - np.exp(-size / 400)
            for method in ("is", "dual-is", "nnn"):
                y = base + GAIN[method][0] * share - 0.01 * (method == "dual-is")
                rows.append(record(direction, method, y, 0.02, table="bank_size", parameters={"bank_size": size}))
        for size in (100, 200, 500, 1000):
            for method, (gain, _) in GAIN.items():
                y = base + gain + 0.1 * np.log10(1000 / size)
                rows.append(record(direction, method, y, 0.02, table="gallery_size", parameters={"gallery_size": size}))
        for k in (1, 2, 5, 10, 20, 50, 100):
            for method in ("csls", "nnn"):
                y = base + GAIN[method][0] - 0.002 * abs(np.log(k / 10))
                rows.append(record(direction, method, y, 0.02, table="k", parameters={"k": k}))
        for rate in (0.1, 0.5, 1.0, 2.0, 5.0):
            for pool in (0.01, 0.05, 0.1):
                grid = {"rate_gallery": rate, "rate_query": rate, "pool_rate": pool}
                y = base + 0.018 - 0.003 * np.log(rate) ** 2 + 0.05 * pool
                rows.append(record(direction, "invgc-localadj", y, 0.02, table="invgc", parameters=grid))
        sources = ("train, 20 %", "validation", "other dataset", "query only", "gallery only", "both")
        for place, bank in enumerate(sources):
            for method in ("is", "dual-is", "nnn"):
                y = base + GAIN[method][0] * (1 - 0.3 * place)
                rows.append(record(direction, method, y, 0.02, table="bank_source") | {"bank": bank})
    return pd.DataFrame(rows)


@pytest.fixture(scope="session")
def occurrences():
    """k-occurrences of 2,000 gallery items: heavy-tailed before, nearly Poisson after correction."""
    generator = np.random.default_rng(0)
    parts = []
    for direction in DIRECTIONS:
        for method, (_, skewness) in GAIN.items():
            rate = generator.lognormal(0, 0.35 * skewness + 0.1, 2000)
            n_k = generator.poisson(10 * rate / rate.mean())
            more = {"direction": direction, "method": method, "replicate": "official split"}
            parts.append(pd.DataFrame({"gallery_id": [f"i{i}" for i in range(2000)], "n_k": n_k, **more}))
    return pd.concat(parts, ignore_index=True)


@pytest.fixture(scope="session")
def hub_rows():
    """Return hubs.parquet of both directions; ids name entries of ``pictures`` and ``captions``."""
    rows = []
    for direction, gallery, query in (("text->image", "i", "t"), ("image->text", "t", "i")):
        for when, method, start in (("before", "none", 214), ("after", "is", 41)):
            for hub in range(1, 11):
                count = min(12, 14 - hub)
                rows.append(
                    {
                        "direction": direction,
                        "when": when,
                        "method": method,
                        "hub": hub,
                        "n_k": start // hub + 12,
                        "gallery_id": f"{gallery}{7 * hub % 40}",
                        "query_ids": [f"{query}{(3 * hub + j) % 40}" for j in range(count)],
                        "correct": [j % 5 == 1 for j in range(count)],
                    }
                )
    return pd.DataFrame(rows)


@pytest.fixture(scope="session")
def captions():
    """Return a text per text id: short, long, and with signs that matplotlib would read as a formula."""
    names = [
        "greek small letter alpha with psili and perispomeni and ypogegrammeni",
        "black chess knight",
        "$5 and $x_",
    ]
    return {f"t{i}": names[i % 3] if i % 3 != 1 else f"black chess knight {i}" for i in range(40)}


@pytest.fixture(scope="session")
def pictures():
    """Return 32 x 32 grey pictures, some of them flat, and one in colour."""
    y, x = np.mgrid[:32, :32]
    found = {f"i{i}": (255 * (np.hypot(x - 16, y - i % 32) > 6 + i % 7)).astype(np.uint8) for i in range(40)}
    return found | {"i3": np.stack([found["i3"]] * 3, axis=-1)}
