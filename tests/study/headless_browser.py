"""Headless Chromium, driven by the DevTools protocol over a pair of pipes: what a page looks like to a reader."""

import base64
import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")


def find_browser() -> str | None:
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Page:
    """A tab of the browser.

    Messages are JSON with a zero byte at the end (`--remote-debugging-pipe`): the browser reads its file descriptor 3
    and writes its 4.
    """

    def __init__(self, send: int, receive: int):
        self._send, self._receive, self._rest, self._number = send, receive, b"", 0
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    _session: str | None = None

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._send, json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != self._number:
            pass  # events
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            part = os.read(self._receive, 1 << 20)
            if not part:
                raise RuntimeError("the browser has gone")
            self._rest += part
        line, _, self._rest = self._rest.partition(b"\0")
        return json.loads(line)

    def open(self, file: Path, width: int, height: int = 900, *, script: bool = True) -> None:
        """Load a file at a width in CSS pixels; `script` says whether its scripts run."""
        phone = width < 700
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        self._call("Emulation.setScriptExecutionDisabled", value=not script)
        self._call("Page.navigate", url=file.resolve().as_uri())
        address = json.dumps(file.resolve().as_uri())
        while not self.evaluate(f"document.readyState === 'complete' && location.href === {address}"):
            pass
        self.evaluate("Promise.all([...document.images].map(image => image.decode()))")

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression; a promise is waited for."""
        answer = self._call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(json.dumps(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def media(self, media: str = "", features: list[dict[str, str]] | None = None) -> None:
        """Show pages as in print, or to a reader with such preferences; without arguments as they are otherwise."""
        self._call("Emulation.setEmulatedMedia", media=media, features=features or [])

    def watch(self) -> None:
        """Keep what the next pages log as an error, and what their policies refuse, in `seen`."""
        source = """var seen = []; const tell = console.error;
        console.error = (...all) => { seen.push(all.join(" ")); tell(...all); };
        addEventListener("error", event => seen.push(event.message));
        addEventListener("securitypolicyviolation", e => seen.push(e.effectiveDirective + " " + e.blockedURI));"""
        self._call("Page.enable")
        self._call("Page.addScriptToEvaluateOnNewDocument", source=source)

    def screenshot(self, file: Path) -> None:
        """Write the whole page as PNG."""
        image = self._call("Page.captureScreenshot", format="png", captureBeyondViewport=True)["data"]
        file.write_bytes(base64.b64decode(image))


@contextlib.contextmanager
def browse(browser: str, profile: Path) -> Iterator[Page]:
    """Start a browser with a fresh profile folder, and end it."""
    to_browser, from_us = os.pipe()
    to_us, from_browser = os.pipe()

    def pipes() -> None:  # high numbers first, so that neither is overwritten before it is copied
        read, write = os.dup(to_browser), os.dup(from_browser)
        os.dup2(read, 3)
        os.dup2(write, 4)

    arguments = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    command = [browser, *arguments, "--remote-debugging-pipe", f"--user-data-dir={profile}"]
    process = subprocess.Popen(
        command, close_fds=False, preexec_fn=pipes, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    os.close(to_browser)
    os.close(from_browser)
    try:
        yield Page(from_us, to_us)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(from_us)
        os.close(to_us)
