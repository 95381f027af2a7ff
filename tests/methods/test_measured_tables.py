"""Values measured on the 500 real CLIP pairs come out again, within twice their standard error.

Protocol: 250 pairs are tested, the 250 others are the bank, averaged over seeded splits. Every printed value has a
standard error of its own (over its number of splits); both are combined. Without the real features the same protocol
runs on made-up pairs, where only what holds for any features is asserted.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from reprolib.methods import Bank, fit
from reprolib.metrics import hubness_of_counts, k_occurrence
from reprolib.ranking import rank

SPLITS = 40
TEXT, IMAGE = "text->image", "image->text"
# (direction, method, parameters): R@1 in per cent over 200 splits, and their number
IS_TABLE = {
    (TEXT, "none", ()): 59.74,
    (TEXT, "is", (("beta", 20),)): 64.49,
    (TEXT, "is", (("beta", 30),)): 64.80,
    (TEXT, "is", (("beta", 50),)): 64.43,
    (TEXT, "dual-is", (("query_beta", 30), ("gallery_beta", 0.1))): 64.78,
    (TEXT, "dual-is", (("query_beta", 30), ("gallery_beta", 1))): 64.56,
    (TEXT, "dual-is", (("query_beta", 30), ("gallery_beta", 3))): 63.82,
    (TEXT, "dual-is", (("query_beta", 30), ("gallery_beta", 10))): 59.98,
    (TEXT, "dual-is", (("query_beta", 20), ("gallery_beta", 10))): 57.12,
    (IMAGE, "none", ()): 63.62,
    (IMAGE, "is", (("beta", 20),)): 62.95,
    (IMAGE, "is", (("beta", 30),)): 64.13,
    (IMAGE, "is", (("beta", 50),)): 64.09,
    (IMAGE, "dual-is", (("query_beta", 30), ("gallery_beta", 0.1))): 64.09,
    (IMAGE, "dual-is", (("query_beta", 30), ("gallery_beta", 1))): 63.43,
    (IMAGE, "dual-is", (("query_beta", 30), ("gallery_beta", 3))): 61.65,
    (IMAGE, "dual-is", (("query_beta", 30), ("gallery_beta", 10))): 53.90,
    (IMAGE, "dual-is", (("query_beta", 20), ("gallery_beta", 10))): 48.72,
}


def both(rate: float) -> tuple:
    return (("rate_gallery", rate), ("rate_query", rate))


INVGC_TABLE = {
    (TEXT, "none", ()): 59.4,
    (TEXT, "invgc", both(0.5)): 60.5,
    (TEXT, "invgc", both(1)): 61.2,
    (TEXT, "invgc", both(5)): 60.0,
    (TEXT, "invgc-localadj", (*both(0.5), ("pool_rate", 0.05))): 61.0,
    (TEXT, "invgc-localadj", (*both(1), ("pool_rate", 0.1))): 60.9,
    (TEXT, "invgc-localadj", (*both(0.1), ("pool_rate", 0.01))): 59.2,
    (TEXT, "is", (("beta", 20),)): 64.2,
    # printed without its parameters; the advised k = 128 would average half of this bank, and gives 63.0
    (TEXT, "nnn", (("alpha", 0.75), ("k", 16))): 64.8,
}
LEAK_BANK = {20: 66.1, 30: 68.0, 50: 71.4, 100: 72.6}
HONEST_BANK = {20: 64.4, 30: 64.9, 50: 64.5, 100: 62.3}
SKEW = {
    (TEXT, "none", ()): 1.72,
    (TEXT, "is", (("beta", 20),)): 0.27,
    (TEXT, "dual-is", (("query_beta", 20), ("gallery_beta", 20))): 5.75,
}


class Protocol:
    """R@1 in per cent and skewness (k = 10) over the splits; each setting is measured once."""

    def __init__(self, features, splits: int = SPLITS) -> None:
        self.real, n = features.real, len(features.image)
        self.parts = []
        for split in range(splits):
            order = np.random.default_rng(split).permutation(n)
            test, bank = order[: n // 2], order[n // 2 :]
            sides = {}
            for direction, (query, gallery) in {
                TEXT: (features.text, features.image),
                IMAGE: (features.image, features.text),
            }.items():
                sides[direction] = (
                    query[test],
                    gallery[test],
                    {
                        "query_bank": Bank(query[bank], "query_bank"),
                        "gallery_bank": Bank(gallery[bank], "gallery_bank"),
                    },
                )
            self.parts.append(sides)
        self.known: dict = {}

    def measure(self, key: tuple, transductive: bool = False) -> dict[str, np.ndarray]:
        if (key, transductive) not in self.known:
            direction, method, parameters = key
            parameters = dict(parameters)
            if method == "invgc-localadj" and not self.real:
                parameters["pool_rate"] = 0.1
            found: dict[str, list] = {"R@1": [], "skewness": []}
            for sides in self.parts:
                queries, gallery, banks = sides[direction]
                if transductive:
                    banks = banks | {"query_bank": Bank(queries, "query_bank")}
                scorer = fit(method, queries, gallery, **banks, normalize=False, **parameters)
                result = rank(scorer, np.arange(len(queries))[:, None].tolist(), 10)
                found["R@1"].append(100 * (result.rank == 1).mean())
                found["skewness"].append(hubness_of_counts(k_occurrence(result.topk, len(gallery)))["skewness"])
            self.known[key, transductive] = {name: np.array(values) for name, values in found.items()}
        return self.known[key, transductive]

    def deviation(self, values: np.ndarray, printed: float, their_splits: int) -> float:
        """Distance of our mean from the printed value, in combined standard errors."""
        error = values.std(ddof=1) * np.sqrt(1 / len(values) + 1 / their_splits)
        return float(abs(values.mean() - printed) / error)


@pytest.fixture(scope="module")
def protocol(features) -> Protocol:
    return Protocol(features, SPLITS if features.real else 5)


def check(protocol: Protocol, values: np.ndarray, printed: float, their_splits: int) -> None:
    assert np.isfinite(values).all()
    if protocol.real:
        assert protocol.deviation(values, printed, their_splits) <= 2, f"{values.mean():.2f}, printed {printed}"
    else:
        assert 0 <= abs(values).max() <= 100


@pytest.mark.parametrize("key", IS_TABLE, ids=str)
def test_table_a(key, protocol):
    check(protocol, protocol.measure(key)["R@1"], IS_TABLE[key], 200)


@pytest.mark.parametrize("key", INVGC_TABLE, ids=str)
def test_table_b(key, protocol):
    check(protocol, protocol.measure(key)["R@1"], INVGC_TABLE[key], 40)


@pytest.mark.parametrize("key", SKEW, ids=str)
def test_skewness(key, protocol):
    check(protocol, protocol.measure(key)["skewness"], SKEW[key], 40)


def test_invgc_lowers_the_skewness_a_little(protocol):
    found = [protocol.measure(key)["skewness"].mean() for key in INVGC_TABLE if key[1].startswith("invgc")]
    assert np.isfinite(found).all()
    if protocol.real:  # printed: 1.33 to 1.69, two decimals and the noise of 40 splits
        error = protocol.measure((TEXT, "none", ()))["skewness"].std() * np.sqrt(1 / SPLITS + 1 / 40)
        assert 1.33 - 2 * error <= min(found) and max(found) <= 1.69 + 2 * error, found


@pytest.mark.parametrize("beta", LEAK_BANK)
@pytest.mark.parametrize("transductive", [True, False])
def test_the_transductive_leak(beta, transductive, protocol):
    printed = (LEAK_BANK if transductive else HONEST_BANK)[beta]
    check(protocol, protocol.measure((TEXT, "is", (("beta", beta),)), transductive)["R@1"], printed, 100)


def test_the_leak_exceeds_the_honest_gain(protocol):
    raw = protocol.measure((TEXT, "none", ()))["R@1"]
    honest, leaked = (protocol.measure((TEXT, "is", (("beta", 50),)), t)["R@1"] for t in (False, True))
    assert (leaked - honest).mean() > 0
    if protocol.real:
        assert (leaked - raw).mean() > 2 * (honest - raw).mean()


def test_splits_are_disjoint_and_seeded(features, protocol: Protocol):
    again = Protocol(features, 2)
    for one, other in zip(protocol.parts, again.parts, strict=False):
        assert torch.equal(one[TEXT][1], other[TEXT][1])
        parts = torch.cat([one[TEXT][0], one[TEXT][2]["query_bank"].embeddings])
        assert sorted(map(bytes, parts.numpy())) == sorted(map(bytes, features.text.numpy()))  # each row once
