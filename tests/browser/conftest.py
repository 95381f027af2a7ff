"""Jupyter on loopback with a token, and a browser that opens its notebooks.

Notebooks are copies, so that what the browser saves never reaches the checkout. Screenshots go to the folder that
``REPROLIB_SCREENSHOTS`` names, else to a temporary one.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from reprolib.paths import notebooks
from tests.browser.chromium import Page, installed, until

SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "notebook-extension/tracker": {"windowingMode": "none"},  # every cell is in the page, seen or not
}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "browser: takes minutes in a browser; runs with `-m browser` alone")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "browser" in config.getoption("markexpr"):
        return
    long = [item for item in items if item.get_closest_marker("browser")]
    config.hook.pytest_deselected(items=long)
    items[:] = [item for item in items if item not in long]


OPEN = """(async () => {
    await jupyterapp.restored
    window.opened = await jupyterapp.commands.execute('docmanager:open', {path: '%s', factory: 'Notebook'})
    await window.opened.context.ready
    await window.opened.sessionContext.ready
    jupyterapp.shell.activateById(window.opened.id)
})()"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    if installed() is None:
        pytest.skip("no Chromium is installed (Debian: chromium)")
    opened = Page(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@contextmanager
def served(folder: Path, module: str, application: str) -> Iterator[tuple[str, str]]:
    """Start a server of notebooks, copied to ``folder``, and yield its address and its token."""
    shutil.copytree(notebooks(), folder / "notebooks", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    for name, values in SETTINGS.items():
        path = folder / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token = secrets.token_hex()
    # A folder of its own for everything that Jupyter reads or writes; runs stay out of the checkout.
    # fmt: off
    own = {"JUPYTER_CONFIG_DIR": "config", "JUPYTERLAB_SETTINGS_DIR": "settings", "IPYTHONDIR": "ipython",
           "JUPYTERLAB_WORKSPACES_DIR": "workspaces", "JUPYTER_RUNTIME_DIR": "runtime",
           "REPROLIB_RUN_DIR": "run"}
    # fmt: on
    environment = os.environ | {name: str(folder / place) for name, place in own.items()} | {"JUPYTER_TOKEN": token}
    command = [sys.executable, "-m", module, "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}"]
    command += [
        f"--ServerApp.root_dir={folder}",
        "--ServerApp.port_retries=0",
        f"--{application}.expose_app_in_browser=True",
    ]
    log = (folder / "log").open("w")
    server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)

    def answers() -> bool:
        assert server.poll() is None, (folder / "log").read_text()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api?token={token}", timeout=5) as answer:
            return answer.status == 200

    try:
        until(answers, "Jupyter answers", 120)
        yield f"http://127.0.0.1:{port}", token
    finally:
        os.killpg(server.pid, signal.SIGTERM)  # the group of this server alone: its kernels are in it
        server.wait(60)
        log.close()


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start JupyterLab and return its address, token included."""
    with served(tmp_path_factory.mktemp("lab"), "jupyterlab", "LabApp") as (address, token):
        yield f"{address}/lab?reset&token={token}"


@pytest.fixture(scope="session")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    named = os.environ.get("REPROLIB_SCREENSHOTS")
    return Path(named) if named else tmp_path_factory.mktemp("screenshots")


@pytest.fixture
def run_all(page: Page, lab: str) -> Callable[..., None]:
    """Return a function that opens a notebook and runs all its cells."""

    def run(name: str, timeout: float = 600) -> None:
        page.send("Page.navigate", url=lab)
        page.wait("Boolean(window.jupyterapp)", "JupyterLab in the browser", 120)
        page.evaluate(OPEN % f"notebooks/{name}", 120)
        page.wait("window.opened.sessionContext.session?.kernel?.status === 'idle'", "a kernel", 120)
        page.evaluate("jupyterapp.commands.execute('notebook:run-all-cells')", timeout)

    return run
