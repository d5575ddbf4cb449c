"""A real browser for tests: Chromium through its debugging pipe, with nothing but Python's own modules."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
# The browser reads commands from descriptor 3 and answers on 4.
_LAUNCH = "import os, sys; os.dup2({0}, 3); os.dup2({1}, 4); os.execvp(sys.argv[1], sys.argv[1:])"


def find_browser() -> str | None:
    """The program, where there is one."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


def _move_up(descriptor: int) -> int:
    """A number beyond 4, so that moving one to 3 does not close another."""
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(descriptor)
    return moved


class Browser:
    """One window. What it logs and asks for is kept in `log` and `requests`."""

    def __init__(self, program: str, folder: Path) -> None:
        theirs_in, self._out = map(_move_up, os.pipe())
        self._in, theirs_out = map(_move_up, os.pipe())
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-c", _LAUNCH.format(theirs_in, theirs_out)),
                *(program, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
                *("--disable-dev-shm-usage", "--disable-background-networking"),
                *(f"--user-data-dir={folder}", "--remote-debugging-pipe", "about:blank"),
            ],
            pass_fds=(theirs_in, theirs_out),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._buffer, self._number, self._session = b"", 0, ""
        self.log: list[str] = []
        self.requests: list[str] = []
        self._events: list[str] = []
        targets = self._ask("Target.getTargets")["targetInfos"]
        page = next(target for target in targets if target["type"] == "page")
        attached = self._ask("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "Accessibility"):
            self._ask(f"{domain}.enable")

    def close(self) -> None:
        """End it; the program itself is told to, and waited for."""
        self._session = ""
        try:
            self._ask("Browser.close")
            self._process.wait(20)
        finally:
            self._process.kill()
            self._process.wait()
            os.close(self._in)
            os.close(self._out)

    def open(self, path: Path, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Show a file as a screen of that width does."""
        self.log.clear()
        self.requests.clear()
        self._events.clear()
        self._ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._ask("Emulation.setEmulatedMedia", media="", features=[scheme])
        self._ask("Page.navigate", url=path.as_uri())
        while "Page.loadEventFired" not in self._events:
            self._read(30)

    def run(self, script: str) -> Any:
        """The value of an expression in the page, whatever the page's policy is."""
        found = self._ask("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def press(self, key: str) -> None:
        """Press a key: Tab, Enter, ArrowRight."""
        code = {"Tab": 9, "Enter": 13, "ArrowRight": 39}[key]
        text = {"text": "\r"} if key == "Enter" else {}
        options = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self._ask("Input.dispatchKeyEvent", type="keyDown", **options, **text)
        self._ask("Input.dispatchKeyEvent", type="keyUp", **options)

    def screenshot(self, path: Path, *, whole: bool = True) -> None:
        """A PNG of the page."""
        found = self._ask("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found["data"]))

    def pdf(self) -> bytes:
        """The page as it is printed."""
        return base64.b64decode(self._ask("Page.printToPDF", printBackground=True)["data"])

    def print_media(self) -> None:
        """Show the page as on paper; whoever printed it prefers dark screens."""
        scheme = {"name": "prefers-color-scheme", "value": "dark"}
        self._ask("Emulation.setEmulatedMedia", media="print", features=[scheme])

    def accessibility(self) -> list[dict[str, Any]]:
        """What a screen reader is told, node by node."""
        return self._ask("Accessibility.getFullAXTree")["nodes"]

    def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._out, data) :]
        while True:
            answer = self._read(60)
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]

    def _read(self, seconds: float) -> dict[str, Any]:
        end = time.monotonic() + seconds
        waiting = select.poll()  # which, unlike select, takes descriptors from 1024 on
        waiting.register(self._in, select.POLLIN)
        while b"\0" not in self._buffer:
            ready = waiting.poll(max(0.0, 1000 * (end - time.monotonic())))
            assert ready, f"the browser said nothing for {seconds} s"
            data = os.read(self._in, 1 << 20)
            assert data, "the browser has ended"
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        self._note(message.get("method", ""), message.get("params", {}))
        return message

    def _note(self, method: str, about: dict[str, Any]) -> None:
        self._events.append(method)
        if method == "Log.entryAdded":
            self.log.append(about["entry"]["text"])
        elif method in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown"):
            self.log.append(json.dumps(about))
        elif method == "Network.requestWillBeSent":
            self.requests.append(about["request"]["url"])
