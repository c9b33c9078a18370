"""A headless Chromium, driven through its DevTools protocol on a pair of pipes."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Page:
    """One tab.

    Attributes:
        asked: addresses of everything that it has asked for.
        complaints: what its scripts have thrown or logged as an error.
    """

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._out, self._in = os.fdopen(to_browser, "wb", buffering=0), os.fdopen(from_browser, "rb")
        self._count, self._session = 0, ""
        self._unread = b""
        self.asked: list[str] = []
        self.complaints: list[str] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Network", "Page", "Runtime", "Log"):
            self._call(f"{domain}.enable")

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._out.write(json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._count:
            self._notice(answer)
        assert "error" not in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._unread:
            chunk = os.read(self._in.fileno(), 1 << 16)
            assert chunk, "the browser has ended"
            self._unread += chunk
        message, _, self._unread = self._unread.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found

    def _notice(self, event: dict[str, Any]) -> None:
        parameters = event.get("params", {})
        if event.get("method") == "Network.requestWillBeSent":
            self.asked.append(parameters["request"]["url"])
        elif event.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(str(parameters["exceptionDetails"]))
        elif event.get("method") == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.complaints.append(parameters["entry"]["text"])
        elif event.get("method") == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "assert"):
            self.complaints.append(str(parameters["args"]))

    def resize(self, width: int, height: int) -> None:
        """Give the page the size of another screen (pixels)."""
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def open(self, url: str) -> None:
        """Go to an address."""
        self._call("Page.navigate", url=url)

    def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression, or of what it promises, as if a user had just clicked."""
        options = {"returnByValue": True, "awaitPromise": True, "userGesture": True}
        return self._call("Runtime.evaluate", expression=script, **options)["result"].get("value")

    def wait_for(self, script: str, *, patience_s: float = 60) -> Any:
        """The value of an expression, once it is neither false nor missing."""
        end = time.monotonic() + patience_s
        while not (value := self.evaluate(script)):
            assert time.monotonic() < end, f"never came true: {script}; {self.complaints}"
            time.sleep(0.05)
        return value

    def type(self, text: str) -> None:
        """Type letters into what has the focus."""
        for letter in text:
            self._call("Input.dispatchKeyEvent", type="char", text=letter)

    def press(self, key: str, *, modifiers: int = 0) -> None:
        """Press a key that is no letter, such as "Tab"; 8 is the modifier of Shift."""
        code = {"Tab": 9, "Escape": 27, "Enter": 13, "ArrowRight": 39}[key]
        named = {"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        text = {"text": "\r"} if key == "Enter" else {}
        self._call("Input.dispatchKeyEvent", type="keyDown", **named, **text)
        self._call("Input.dispatchKeyEvent", type="keyUp", **named)

    def prefer(self, scheme: str) -> None:
        """Have the system say that it is "light" or "dark"."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self._call("Emulation.setEmulatedMedia", features=features)

    def screenshot(self) -> bytes:
        """The whole page, however long, as PNG."""
        shot = self._call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        return base64.b64decode(shot["data"])

    def close(self) -> None:
        self._out.close()
        self._in.close()


@contextmanager
def browsing(profile: Path, *more: str) -> Iterator[Page]:
    """A new browser with a profile of its own, which knows no host but this machine.

    Args:
        profile: an empty folder.
        more: options of the command line.
    """
    assert CHROMIUM
    read_by_browser, to_browser = os.pipe()
    from_browser, written_by_browser = os.pipe()
    moved = f"exec 3<&{read_by_browser} 4>&{written_by_browser}"  # the protocol's pipes have these numbers
    options = [
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe",
        f"--user-data-dir={profile}", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", *more,
    ]  # fmt: skip
    browser = subprocess.Popen(
        ["bash", "-c", f'{moved}; exec "$0" "$@"', CHROMIUM, *options],
        pass_fds=(read_by_browser, written_by_browser),
        stderr=subprocess.DEVNULL,
    )
    os.close(read_by_browser)
    os.close(written_by_browser)
    page = None
    try:
        page = Page(to_browser, from_browser)
        yield page
    finally:
        if page:
            page.close()  # the browser ends when its pipe does
        browser.terminate()
        browser.wait(20)
