"""What counts as equal: the frozen margins, apart from the verdicts so that a run can record their hash at no cost."""

from __future__ import annotations

import hashlib
import json

from pydantic import Field, FiniteFloat

from reprolib.errors import nearest
from reprolib.paths import manifests
from reprolib.study.ledger import Strict, read


class Margins(Strict):
    """What counts as equal, fixed before a run: ``data_manifests/margins.yaml``.

    ``floors`` maps a metric to its noise floor in the unit of the records: how far it moves although nothing that a
    paper reports has changed. ``level`` is that of the intervals in the records.
    """

    level: float = Field(gt=0, lt=1)
    measured: str
    floors: dict[str, FiniteFloat]

    def floor(self, metric: str) -> float:
        """Return the noise floor of a metric; a difference ("R@1 difference: ...") has that of what it compares.

        Raises InputError with the nearest metrics that have one.
        """
        name = metric.split(" difference", 1)[0]
        if name not in self.floors:
            raise nearest(name, self.floors, "metric (none of these has a noise floor)")
        return self.floors[name]


def margins() -> Margins:
    """Return the frozen margins; raises InputError naming the field if their file is not valid."""
    return read(manifests() / "margins.yaml", Margins)


def margins_hash() -> str:
    """Return the sha256 (hex) of what the margins say; comments and layout of their file do not count."""
    return hashlib.sha256(json.dumps(margins().model_dump(), sort_keys=True).encode()).hexdigest()
