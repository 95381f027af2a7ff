"""A page in headless Chromium, driven over the DevTools protocol."""

from __future__ import annotations

import base64
import itertools
import json
import os
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

import websocket

NAMES = ("chromium", "chromium-browser", "google-chrome")


def installed() -> str | None:
    """Return the path of a Chromium, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """One page of a Chromium of its own, whose profile is in ``folder``."""

    def __init__(self, folder: Path, width: int = 1500, height: int = 1100) -> None:
        options = ["--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-port=0"]
        options += ["--no-first-run", f"--user-data-dir={folder}", f"--window-size={width},{height}"]
        options += ["--no-sandbox"] * (os.geteuid() == 0)  # Chromium refuses its sandbox to root
        self._process = subprocess.Popen(
            [installed(), *options, "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        port = until(lambda: (folder / "DevToolsActivePort").read_text().split()[0], "Chromium starts")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=10) as answer:
            target = next(each for each in json.load(answer) if each["type"] == "page")
        self._socket = websocket.create_connection(target["webSocketDebuggerUrl"], suppress_origin=True, timeout=10)
        self._numbers = itertools.count(1)
        self.errors: list[str] = []
        for domain in ("Page", "Runtime"):
            self.send(f"{domain}.enable")
        self.send("Emulation.setFocusEmulationEnabled", enabled=True)

    def close(self) -> None:
        self._socket.close()
        self._process.terminate()
        self._process.wait(30)

    def send(self, method: str, timeout: float = 60, **parameters: Any) -> dict[str, Any]:
        """Send a command of the protocol and return its result."""
        number = next(self._numbers)
        self._socket.settimeout(timeout)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv())
            if message.get("method") == "Runtime.exceptionThrown":
                details = message["params"]["exceptionDetails"]
                self.errors.append(details.get("exception", {}).get("description", details["text"]))
            if message.get("method") == "Page.javascriptDialogOpening":  # a notebook is left with changes unsaved
                leave = {"method": "Page.handleJavaScriptDialog", "params": {"accept": True}}
                self._socket.send(json.dumps({"id": next(self._numbers)} | leave))
            if message.get("id") == number:
                assert "error" not in message, message["error"]
                return message["result"]

    def evaluate(self, script: str, timeout: float = 60) -> Any:
        """Return the value of a JavaScript expression, awaited if it is a promise."""
        found = self.send(
            "Runtime.evaluate", timeout, expression=script, awaitPromise=True, returnByValue=True, userGesture=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, script: str, what: str, timeout: float = 60) -> Any:
        """Return the value of a JavaScript expression as soon as it is true."""
        return until(lambda: self.evaluate(script), what, timeout)

    def press(self, key: str) -> None:
        """Press a key, such as ArrowRight, on what has the focus."""
        codes = {"ArrowRight": 39, "ArrowLeft": 37, "ArrowDown": 40, "Tab": 9, "Enter": 13}
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=codes[key])

    def click(self, x: float, y: float) -> None:
        """Press and release the left button of the mouse at a place of the window, in CSS pixels."""
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def screenshot(self, path: Path, element: str | None = None, scale: float = 1) -> None:
        """Save what is seen as PNG, or all of one element (a JavaScript expression), ``scale`` times as large."""
        given: dict[str, Any] = {}
        if element is not None:
            box = self.evaluate(
                f"(e => {{ const b = e.getBoundingClientRect(); return [b.x, b.y, b.width, b.height] }})({element})"
            )
            given["clip"] = dict(zip(("x", "y", "width", "height"), box, strict=True)) | {"scale": scale}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png", **given)["data"]))

    def resize(self, width: int, height: int) -> None:
        """Give the page another size; 0 x 0 is that of the window."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=0, mobile=False)


def until(look: Any, what: str, timeout: float = 60) -> Any:
    """Return what ``look`` gives as soon as it is true; an error means not yet."""
    end, last = time.monotonic() + timeout, None
    while time.monotonic() < end:
        try:
            if found := look():
                return found
        except (OSError, AssertionError) as error:
            last = error
        time.sleep(0.1)
    raise AssertionError(f"not within {timeout} s: {what} ({last})")
