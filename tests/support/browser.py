"""A real browser, driven through chromedriver's own protocol: no test dependency but the two programs.

Source of the protocol: https://www.w3.org/TR/webdriver2
"""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars")
FLAGS += ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1150,1000")
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
KEYS = {"right": "\ue014", "down": "\ue015", "end": "\ue010", "escape": "\ue00c", "tab": "\ue004", "enter": "\ue007"}


def missing() -> str:
    """Say what is not here that a browser test needs, or ""."""
    chromes = ("chromium", "chromium-browser", "google-chrome")
    if not any(map(shutil.which, chromes)):
        return f"no browser: none of {', '.join(chromes)}"
    return "" if shutil.which("chromedriver") else "no chromedriver"


class Browser:
    """One page in one headless browser."""

    def __init__(self, address: str) -> None:
        self.address = address
        chrome = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
        self.profile = tempfile.mkdtemp()
        options = {"binary": chrome, "args": [*FLAGS, f"--user-data-dir={self.profile}"]}
        wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        self.session = ""
        self.session = self.ask("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Send one command and return its value."""
        whole = self.address + (f"/session/{self.session}{path}" if self.session else path)
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(whole, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=600) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            said = json.load(error)["value"]
            raise AssertionError(f"{path}: {said['error']}: {said['message'].splitlines()[0]}") from None

    def open(self, path: Path) -> None:
        """Go to a file."""
        self.ask("POST", "/url", {"url": path.resolve().as_uri()})

    def run(self, script: str, *arguments: Any) -> Any:
        """Run JavaScript in the page and return what it returns."""
        return self.ask("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def find(self, selector: str) -> str:
        """Return the id of the first element that a CSS selector names."""
        return str(self.ask("POST", "/element", {"using": "css selector", "value": selector})[ELEMENT])

    def click(self, selector: str) -> None:
        """Click an element as a person would: refused where something lies over it."""
        self.ask("POST", f"/element/{self.find(selector)}/click", {})

    def press(self, *names: str) -> None:
        """Press keys where the focus is."""
        pressed = [{"type": kind, "value": KEYS[name]} for name in names for kind in ("keyDown", "keyUp")]
        self.ask("POST", "/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": pressed}]})

    def prefer(self, scheme: str) -> None:
        """Let the system prefer light or dark."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.ask("POST", "/goog/cdp/execute", {"cmd": "Emulation.setEmulatedMedia", "params": {"features": features}})

    def messages(self) -> list[str]:
        """Return what the page wrote to the console since it was last asked: errors, refused loads."""
        return [entry["message"] for entry in self.ask("POST", "/se/log", {"type": "browser"})]

    def screenshot(self) -> bytes:
        """Return the visible part as a PNG."""
        return base64.b64decode(self.ask("GET", "/screenshot"))


@contextmanager
def browsing() -> Iterator[Browser]:
    """Start chromedriver and a browser, and end both."""
    with tempfile.TemporaryFile() as log:
        driver = subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE, stderr=log, text=True)
        browser = None
        try:
            assert driver.stdout is not None
            port = next(
                line.rsplit(" ", 1)[1].strip(" .\n") for line in driver.stdout if "started successfully" in line
            )
            browser = Browser(f"http://127.0.0.1:{port}")
            yield browser
        finally:
            if browser is not None:
                browser.ask("DELETE", "")
                shutil.rmtree(browser.profile, ignore_errors=True)
            driver.terminate()
            driver.wait(600)


def until(condition: Any, seconds: float = 600.0) -> bool:
    """Ask again until it holds, or the time is over."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False
