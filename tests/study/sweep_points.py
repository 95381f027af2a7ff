"""Grid points that behave, and that do not, for the tests of sweeps."""

import os
import signal
import subprocess
import sys
import time
from typing import Any

_left: list[bytes] = []  # memory that outlives its job


def tiny(*, number: int = 0, kind: str = "well", seconds: float = 0.0) -> list[dict[str, Any]]:
    """Return one record, or go wrong in one of the ways that jobs go wrong."""
    if kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "endless":
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
        while True:
            time.sleep(0.001)
    if kind == "greedy":
        held = []
        while True:
            held.append(b"x" * 2**24)
            time.sleep(0.02)
    if kind == "leaving":
        _left.append(b"x" * (200 * 2**20))
    if kind == "large":
        held = b"x" * (250 * 2**20)
        time.sleep(1)
        del held
    if kind == "child":
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)  # left by a job"], start_new_session=True)
        time.sleep(2.5)  # so that it is seen
    if kind == "raising":
        raise ValueError("of no use")
    if kind == "full disk":
        with open("/dev/full", "w") as file:
            file.write("x")
    if kind == "empty":
        return []
    time.sleep(seconds)
    return [
        {"study": "tiny", "dataset": "none", "model": None, "direction": None, "method": None, "metric": "R@1",
         "parameters": {"number": number, **({"mirror": os.environ["REPROLIB_MIRROR"]} if kind == "mirror" else {})},
         "value": number / 1000, "n": 1}
    ]  # fmt: skip
