"""Grid points that behave, and that do not, for the tests of sweeps."""

import os
import signal
import time
from typing import Any


def tiny(*, number: int = 0, kind: str = "well", seconds: float = 0.0) -> list[dict[str, Any]]:
    """Return one record, or go wrong in one of the ways that jobs go wrong."""
    if kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "endless":
        while True:
            pass
    if kind == "greedy":
        _held = [b"x" * 2**26 for _ in range(48)]
        time.sleep(600)
    if kind == "raising":
        raise ValueError("of no use")
    if kind == "full disk":
        with open("/dev/full", "w") as file:
            file.write("x")
    time.sleep(seconds)
    return [
        {"study": "tiny", "dataset": "none", "model": None, "direction": None, "method": None, "metric": "R@1",
         "parameters": {"number": number}, "value": number / 1000, "n": 1}
    ]  # fmt: skip
