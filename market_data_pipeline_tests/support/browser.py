"""A headless Chromium, driven over the DevTools protocol: pages are opened, awaited, asked and photographed."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

from websockets.sync.client import ClientConnection, connect

SECONDS = 120
"""Time in which a page must do what a test awaits. It is long, because machines can be full."""

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_OPTIONS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"),
    *("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-extensions"),
    *("--disable-sync", "--disable-background-timer-throttling", "--remote-debugging-port=0"),
)


def chromium_path() -> str | None:
    """The Chromium of this machine, None if there is none."""
    return next(filter(None, map(shutil.which, _NAMES)), None)


class Page:
    """A page in a browser, and everything that happened in it.

    Attributes:
        errors: Errors of the console, exceptions of scripts and refusals of the Content-Security-Policy.
        requests: Addresses to which the page sent requests.
    """

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._number = 0
        self.errors: list[str] = []
        self.requests: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command, and return its result. Events that arrive before it are noted."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(timeout=SECONDS))
            if message.get("id") == self._number:
                assert "error" not in message, message
                result: dict[str, Any] = message["result"]
                return result
            self._note(message.get("method", ""), message.get("params", {}))

    def _note(self, event: str, said: Mapping[str, Any]) -> None:
        match event:
            case "Network.requestWillBeSent":
                self.requests.append(said["request"]["url"])
            case "Runtime.exceptionThrown":
                self.errors.append(json.dumps(said["exceptionDetails"]))
            case "Runtime.consoleAPICalled" if said["type"] in ("error", "assert"):
                self.errors.append(json.dumps(said["args"]))
            case "Log.entryAdded" if said["entry"]["level"] == "error":
                self.errors.append(f"{said['entry']['text']} {said['entry'].get('url', '')}")

    def size(self, width: int, height: int, *, dark: bool = False, phone: bool = False) -> None:
        """Set the size of the view in CSS pixels, the colour scheme, and whether it is a phone."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=0, mobile=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        self.send("Emulation.setTouchEmulationEnabled", enabled=phone)

    def open(self, url: str) -> None:
        """Open an address."""
        self.send("Page.navigate", url=url)

    def value(self, expression: str) -> Any:
        """Evaluate JavaScript, await its promise, and return the value."""
        found = self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, condition: str) -> None:
        """Wait until an expression of JavaScript is true. It is looked at before each frame that the page draws."""
        end = time.monotonic() + SECONDS
        promise = (
            "new Promise(done => { const end = performance.now() + 5000; const look = () => { let found = false;"
            f" try {{ found = Boolean({condition}) }} catch {{}}"
            " if (found || performance.now() > end) done(found); else requestAnimationFrame(look) }; look() })"
        )
        while True:
            try:
                if self.value(promise):
                    return
            except AssertionError as error:
                if "context" not in str(error) and "navigat" not in str(error):  # the page is replaced meanwhile
                    raise
            assert time.monotonic() < end, f"{condition}: not within {SECONDS} s. Errors: {self.errors}"

    def press(self, key: str, *, shift: bool = False) -> None:
        """Press a key and let it go."""
        codes = {"Tab": 9, "Enter": 13, "End": 35, "Home": 36, "ArrowLeft": 37, "ArrowUp": 38}
        codes |= {"ArrowRight": 39, "ArrowDown": 40}
        text = {"text": "\r"} if key == "Enter" else {"text": key} if len(key) == 1 else {}
        shared = {"key": key, "windowsVirtualKeyCode": codes.get(key, 0), "modifiers": 8 if shift else 0}
        self.send("Input.dispatchKeyEvent", type="keyDown", **shared, **text)
        self.send("Input.dispatchKeyEvent", type="keyUp", **shared)

    def photograph(self, target: Path) -> None:
        """Write a picture of the view."""
        found = self.send("Page.captureScreenshot", format="png")
        target.write_bytes(base64.b64decode(found["data"]))

    def foreign_requests(self, url: str) -> list[str]:
        """The requests to other hosts than the one of an address."""
        own = urlsplit(url).netloc
        return [one for one in self.requests if urlsplit(one).scheme != "data" and urlsplit(one).netloc != own]


@contextmanager
def opened_page(profile: Path, scale: float = 1) -> Iterator[Page]:
    """An empty page in a browser of its own, which ends with the block.

    Args:
        profile: Folder for what the browser writes.
        scale: Pixels of the device for one CSS pixel.
    """
    path = chromium_path()
    assert path is not None
    with subprocess.Popen(
        [path, *_OPTIONS, f"--force-device-scale-factor={scale:g}", f"--user-data-dir={profile}", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stderr is not None
            lines = []
            for line in process.stderr:
                lines.append(line)
                if line.startswith("DevTools listening on "):
                    break
            else:
                raise AssertionError("".join(lines))
            port = urlsplit(line.rpartition(" ")[2].strip()).port
            with urlopen(f"http://127.0.0.1:{port}/json") as answer:
                [target] = [one for one in json.load(answer) if one["type"] == "page"]
            with connect(target["webSocketDebuggerUrl"], max_size=None, proxy=None) as socket:
                yield Page(socket)
        finally:
            process.terminate()
            process.communicate(timeout=SECONDS)
