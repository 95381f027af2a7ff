"""What in this environment would prevent or weaken a reproduction."""

from __future__ import annotations

import importlib.metadata
import math
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

from reprolib import paths
from reprolib.errors import ReprolibError
from reprolib.loaders import datasets, load_manifest, status
from reprolib.models.registry import find_model, load_model_manifest, models
from reprolib.study import provenance
from reprolib.study.runner import THREAD_VARIABLES

State = Literal["ok", "weak", "broken"]
_NEEDED, _ROOMY = 200 * 2**20, 2 * 2**30  # bytes: a run with its caches, and several of them


@dataclass(frozen=True)
class Check:
    """One finding: "weak" means that results may differ or that something is not told, "broken" that runs fail."""

    name: str
    state: State
    sentence: str


def examine(folder: Path = Path()) -> list[Check]:
    """Return the findings on this interpreter, machine and checkout; runs would be written into ``folder``."""
    return [*kernel(), *threads(), *blas(), *versions(), *data(), *weights(), *code(), *disk(folder)]


def kernel() -> Iterator[Check]:
    """Whether notebooks opened in JupyterLab use this interpreter, as `reprolib run` always does."""
    try:
        program = KernelSpecManager().get_kernel_spec("python3").argv[0]
    except NoSuchKernel:
        yield Check("kernel", "weak", "no kernel python3 is installed, so JupyterLab cannot open the notebooks")
        return
    own = Path(sys.executable)
    # Jupyter starts its own interpreter for a bare "python". Links are not followed: environments share their targets.
    if re.fullmatch(r"python[\d.]*", program) or Path(shutil.which(program) or program).parent == own.parent:
        yield Check("kernel", "ok", f"the kernel python3 is this interpreter, {own}")
    else:
        yield Check("kernel", "weak", f"the kernel python3 of JupyterLab is {program}, not this interpreter, {own}")


def threads() -> Iterator[Check]:
    """Whether the variables that set the number of threads agree, and with the cores of the machine."""
    given = {name: os.environ[name] for name in THREAD_VARIABLES if os.environ.get(name)}
    cores, said = os.cpu_count() or 1, ", ".join(f"{name}={value}" for name, value in given.items())
    if not all(value.isdigit() and int(value) for value in given.values()):
        yield Check("threads", "broken", f"{said}: the number of threads must be a whole number from 1")
    elif len(set(given.values())) > 1:
        yield Check("threads", "weak", f"{said} disagree; a run takes OMP_NUM_THREADS for all")
    elif given and int(next(iter(given.values()))) > cores:
        yield Check("threads", "weak", f"{said}, more than the {cores} cores of this machine: timings will mislead")
    else:
        yield Check("threads", "ok", said or f"no number of threads is set: a run uses every core ({cores})")


def blas() -> Iterator[Check]:
    """Which library multiplies matrices; ranks do not depend on it, scores do in their last digits."""
    facts = np.show_config(mode="dicts").get("Build Dependencies", {}).get("blas", {})
    if facts.get("found"):
        name = " ".join(filter(None, (facts.get("name"), facts.get("version"))))
        yield Check("blas", "ok", f"NumPy multiplies with {name}; scores of another library differ in the last digits")
    else:
        yield Check("blas", "weak", "NumPy was built without BLAS: runs are slow and scores differ in the last digits")


def versions() -> Iterator[Check]:
    """Whether the installed packages are those of ``requirements.lock``."""
    installed = {
        _plain(d.metadata["Name"]): d.version for d in importlib.metadata.distributions() if d.metadata["Name"]
    }
    missing = [name for name in _needed() if name not in installed]
    if missing:
        yield Check("packages", "broken", f"not installed: {_named(missing)}; install the project again")
    lock = paths.root() / "requirements.lock"
    if not lock.is_file():
        yield Check("packages", "weak", "there is no requirements.lock here, so versions cannot be compared")
        return
    pins = [line.split("==") for line in lock.read_text(encoding="utf-8").splitlines() if "==" in line]
    apart = [
        f"{name} {installed.get(_plain(name), 'missing')} instead of {version}"
        for name, version in pins
        if installed.get(_plain(name), "missing").partition("+")[0] != version and _plain(name) not in missing
    ]
    if apart:
        yield Check("packages", "weak", f"{len(apart)} of {len(pins)} are not as locked: {_named(apart)}")
    elif not missing:
        yield Check("packages", "ok", f"all {len(pins)} are as locked")


def _needed() -> list[str]:
    """Return what reprolib cannot do without, by its own metadata; empty where it is not installed."""
    try:
        required = importlib.metadata.requires("reprolib") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    return [_plain(re.split(r"[^\w.-]", text, maxsplit=1)[0]) for text in required if "extra ==" not in text]


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def data() -> Iterator[Check]:
    """Whether every dataset with a reader is at hand; nothing is fetched or hashed."""
    if not datasets():
        yield Check("data", "broken", f"there are no dataset manifests in {paths.manifests() / 'datasets'}")
        return
    absent: dict[str, float] = {}  # with its size: the small ones are named first
    for name in datasets():
        try:
            if load_manifest(name).reader and not (found := status(name)).present:
                absent[f"{name} ({found.where})"] = found.size or math.inf
        except ReprolibError as error:
            yield Check("data", "broken", str(error))
            return
    if absent:
        named = _named(sorted(absent, key=absent.get))
        yield Check("data", "weak", f"not at hand: {named}; studies of these fetch them or are skipped")
    else:
        yield Check("data", "ok", "every dataset that can be read is at hand")


def weights() -> Iterator[Check]:
    """Whether the models that ship with the project are here and are the files that their manifests name."""
    shipped = []
    for name in models():
        try:
            if load_model_manifest(name).source == "project":
                find_model(name)
                shipped.append(name)
        except ReprolibError as error:
            yield Check("models", "broken", str(error))
    if shipped:
        yield Check("models", "ok", f"{_named(shipped)}: the files are those of the manifest")


def code() -> Iterator[Check]:
    """Whether a run's record would lead back to the code."""
    found = provenance.code()
    if not found["commit"]:
        yield Check("code", "weak", f"no git checkout: a run records version {found['version']} and no commit")
    elif found["dirty"]:
        yield Check("code", "weak", f"commit {found['commit'][:12]} with local edits: nobody else has this code")
    else:
        yield Check("code", "ok", f"commit {found['commit'][:12]} without local edits")


def disk(folder: Path) -> Iterator[Check]:
    """Whether there is room for a run in ``folder``."""
    free = shutil.disk_usage(folder).free
    state: State = "broken" if free < _NEEDED else "weak" if free < _ROOMY else "ok"
    yield Check("disk", state, f"{free / 2**30:.1f} GiB are free for runs in {folder.resolve()}")


def _named(names: Iterable[str], limit: int = 5) -> str:
    every = list(names)
    rest = f" and {len(every) - limit} more" if len(every) > limit else ""
    return ", ".join(every[:limit]) + rest
