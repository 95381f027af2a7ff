"""What the notebook tests share: the command line as a user calls it, and a file of one's own."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def run_study() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs a study into ``out`` with parameters as texts, in the folder that holds ``out``."""

    def run(study: str, out: Path, **parameters: str) -> subprocess.CompletedProcess[str]:
        given = [word for pair in parameters.items() for word in ("-p", *pair)]
        command = [sys.executable, "-m", "reprolib.cli", "run", study, *given, "--out", str(out)]
        return subprocess.run(command, capture_output=True, text=True, cwd=out.parent, check=False)

    return run


@pytest.fixture
def own_image(tmp_path: Path) -> np.ndarray:
    """Write ``own.npz``, 80 made-up pairs [80, 16] whose modalities lie apart; return the images."""
    rng = np.random.default_rng(0)
    image = rng.normal(size=(80, 16))
    np.savez(tmp_path / "own.npz", image=image, text=image + rng.normal(size=image.shape) + 0.5)
    return image
