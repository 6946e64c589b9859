"""Headless Chromium over its debugging pipe: opens a file as a reader does, runs scripts in it, tells what it said.

The pipe speaks the DevTools protocol, JSON messages that end with a zero byte, on the file descriptors 3 and 4; it
needs no package and no port.
"""

from __future__ import annotations

import base64
import fcntl
import io
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
KEYS = {"Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowRight": 39}
TIMEOUT = 120.0

_ABOVE = 10  # descriptors of ours stay clear of the two that the browser takes
_START = """import os, sys
for own, wanted in zip(sys.argv[1:3], (3, 4)):
    os.dup2(int(own), wanted)
os.execv(sys.argv[3], sys.argv[3:])"""


def chromium() -> str:
    """The browser; skips the test where there is none."""
    for found in filter(None, map(shutil.which, NAMES)):
        # Where a package manager only points to another one, the name is there and starts nothing.
        with suppress(OSError, subprocess.TimeoutExpired):
            if subprocess.run([found, "--version"], capture_output=True, timeout=TIMEOUT, check=False).returncode == 0:
                return found
    pytest.skip(f"no browser, none of {', '.join(NAMES)}: get one with `apt-get install chromium`")


class Tab:
    """A page that is open.

    Attributes:
        messages: of the console, by the page or the browser; exceptions too.
        requests: addresses that were asked for, the page's own and those inside of it ("data:") left out.
    """

    def __init__(self, browser: Browser, target: str, session: str) -> None:
        self.browser, self.target, self.session = browser, target, session
        self.messages: list[str] = []
        self.requests: list[str] = []
        self.loaded = False

    def run(self, script: str) -> Any:
        """What an async function with this body returns, as JSON values; its exceptions fail the test."""
        reply = self.browser.ask(
            "Runtime.evaluate",
            {"expression": f"(async () => {{{script}\n}})()", "awaitPromise": True, "returnByValue": True},
            self,
        )
        assert "exceptionDetails" not in reply, reply["exceptionDetails"].get("exception", {}).get("description")
        return reply["result"].get("value")

    def press(self, key: str) -> None:
        """A key of `KEYS`, as the keyboard sends it."""
        values = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key]}
        text = {"text": "\r"} if key == "Enter" else {}
        self.browser.ask("Input.dispatchKeyEvent", {"type": "keyDown", **values, **text}, self)
        self.browser.ask("Input.dispatchKeyEvent", {"type": "keyUp", **values}, self)

    def shot(self) -> Image.Image:
        """The window as a picture."""
        reply = self.browser.ask("Page.captureScreenshot", {"format": "png"}, self)
        return Image.open(io.BytesIO(base64.b64decode(reply["data"])))

    def close(self) -> None:
        """Closes the page."""
        self.browser.ask("Target.closeTarget", {"targetId": self.target})

    def heard(self, event: dict[str, Any]) -> None:
        """Keeps what an event says."""
        name, values = event["method"], event["params"]
        if name == "Page.loadEventFired":
            self.loaded = True
        elif name == "Runtime.consoleAPICalled":
            self.messages.append(" ".join(str(part.get("value", part.get("description"))) for part in values["args"]))
        elif name == "Runtime.exceptionThrown":
            self.messages.append(str(values["exceptionDetails"].get("exception", {}).get("description")))
        elif name == "Log.entryAdded":
            self.messages.append(values["entry"]["text"])
        elif name == "Network.requestWillBeSent":
            address = values["request"]["url"]
            if values["type"] != "Document" and not address.startswith("data:"):
                self.requests.append(address)


class Browser:
    """A running browser; see `browser`."""

    def __init__(self, send: int, receive: int) -> None:
        self.send, self.receive = send, receive
        self.rest = b""
        self.count = 0
        self.tabs: dict[str, Tab] = {}

    def open(self, place: Path, *, width: int = 1280, height: int = 900, dark: bool = False) -> Tab:
        """Opens a file in a window of this size, in pixels; returns when it has loaded."""
        target = self.ask("Target.createTarget", {"url": "about:blank"})["targetId"]
        session = self.ask("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        tab = self.tabs[session] = Tab(self, target, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable", {}, tab)
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.ask("Emulation.setDeviceMetricsOverride", size, tab)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", {"features": [scheme]}, tab)
        tab.loaded = False
        assert "errorText" not in self.ask("Page.navigate", {"url": place.resolve().as_uri()}, tab)
        deadline = time.monotonic() + TIMEOUT
        while not tab.loaded:
            self._hear(deadline)
        return tab

    def ask(self, method: str, values: dict[str, Any], tab: Tab | None = None) -> dict[str, Any]:
        """A command's reply; events that come before it go to their tabs."""
        self.count += 1
        message = {"id": self.count, "method": method, "params": values}
        if tab is not None:
            message["sessionId"] = tab.session
        content = json.dumps(message).encode() + b"\0"
        while content:
            content = content[os.write(self.send, content) :]
        deadline = time.monotonic() + TIMEOUT
        while True:
            reply = self._hear(deadline)
            if reply.get("id") == self.count:
                assert "error" not in reply, f"{method}: {reply}"
                return reply["result"]

    def _hear(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.receive], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"the browser has said nothing for {TIMEOUT:.0f} s"
            part = os.read(self.receive, 1 << 20)
            assert part, "the browser has ended"
            self.rest += part
        content, _, self.rest = self.rest.partition(b"\0")
        message: dict[str, Any] = json.loads(content)
        tab = self.tabs.get(message.get("sessionId", ""))
        if tab is not None and "method" in message:
            tab.heard(message)
        return message


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """A browser with a new profile in a folder, and without any network."""
    program = chromium()
    pipes = [os.pipe(), os.pipe()]
    moved = [[fcntl.fcntl(end, fcntl.F_DUPFD, _ABOVE) for end in pipe] for pipe in pipes]
    for end in (*pipes[0], *pipes[1]):
        os.close(end)
    (its_in, our_out), (our_in, its_out) = moved
    options = [
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars",
        "--disable-background-networking", "--disable-component-update", "--disable-extensions", "--disable-sync",
        "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={folder}", "--remote-debugging-pipe",
    ]  # fmt: skip
    with (folder / "said").open("wb") as said:
        # Its own group: helpers that outlive it go with it.
        process = subprocess.Popen(
            [sys.executable, "-S", "-c", _START, str(its_in), str(its_out), program, *options],
            pass_fds=(its_in, its_out), stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True,
        )  # fmt: skip
    os.close(its_in)
    os.close(its_out)
    try:
        yield Browser(our_out, our_in)
    finally:
        os.close(our_out)
        os.close(our_in)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
