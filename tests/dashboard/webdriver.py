"""A small client for chromedriver, by the W3C WebDriver protocol.

Selenium would bring trio into the environment of all tests, whose plugin for Hypothesis raises a warning at the start.
"""

from __future__ import annotations

import base64
import json
import re
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

__all__ = ["ENTER", "ESCAPE", "LEFT", "TAB", "Driver", "DriverError", "Element"]

ENTER, ESCAPE, LEFT, TAB = "\ue007", "\ue00c", "\ue012", "\ue004"
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
_PATIENCE = 60.0


class DriverError(Exception):
    """A command of the driver failed."""


class Driver:
    """A browser, with one window.

    Args:
        program: The path of chromedriver.
        browser: The path of the browser.
        flags: Arguments for the browser.
    """

    def __init__(self, program: str, browser: str, flags: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            [program, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        try:
            self._url = f"http://127.0.0.1:{self._port()}"
            wanted = {
                "goog:chromeOptions": {"binary": browser, "args": list(flags)},
                "goog:loggingPrefs": {"browser": "ALL"},
                "timeouts": {"script": 60_000, "pageLoad": 60_000},
            }
            session = self._send("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
            self._url += f"/session/{session['sessionId']}"
        except BaseException:
            self._stop()
            raise

    def _port(self) -> int:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if match := re.search(r"started successfully on port (\d+)", line):
                return int(match[1])
        raise DriverError("chromedriver did not start")

    def _stop(self) -> None:
        self._process.terminate()
        self._process.communicate()

    def quit(self) -> None:
        """Close the browser, and end its driver."""
        try:
            self._send("DELETE", "")
        finally:
            self._stop()

    def _send(self, method: str, path: str, body: Any = None) -> Any:
        data = None if method != "POST" else json.dumps(body or {}).encode()
        request = urllib.request.Request(self._url + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=2 * _PATIENCE) as response:
                return json.load(response)["value"]
        except urllib.error.HTTPError as error:
            with error:
                raise DriverError(json.load(error)["value"]["message"].partition("\n")[0]) from None

    # -- The page ------------------------------------------------------------------------------------------------------

    def get(self, url: str) -> None:
        """Open an address."""
        self._send("POST", "/url", {"url": url})

    def refresh(self) -> None:
        """Load the page again."""
        self._send("POST", "/refresh")

    @property
    def current_url(self) -> str:
        """The address of the page."""
        url: str = self._send("GET", "/url")
        return url

    @property
    def page_source(self) -> str:
        """The markup of the page."""
        source: str = self._send("GET", "/source")
        return source

    def find(self, selector: str) -> list[Element]:
        """Return the elements of a CSS selector."""
        found = self._send("POST", "/elements", {"using": "css selector", "value": selector})
        return [Element(self, one[_ELEMENT]) for one in found]

    def active(self) -> Element:
        """Return the element that has the focus."""
        return Element(self, self._send("GET", "/element/active")[_ELEMENT])

    def run(self, script: str, *arguments: Any) -> Any:
        """Run the body of a function, and return its value."""
        return self._send("POST", "/execute/sync", {"script": script, "args": [_plain(one) for one in arguments]})

    def run_async(self, script: str) -> Any:
        """Run the body of a function, and return what it passes to its argument."""
        return self._send("POST", "/execute/async", {"script": script, "args": []})

    def wait_until(self, condition: Callable[[], object]) -> None:
        """Wait until a condition is true."""
        end = time.monotonic() + _PATIENCE
        while not condition():
            if time.monotonic() > end:
                raise DriverError("the condition did not become true")
            time.sleep(0.05)

    def console(self) -> list[str]:
        """Return the messages in the console since the last call."""
        return [entry["message"] for entry in self._send("POST", "/se/log", {"type": "browser"})]

    def screenshot(self, path: Path) -> None:
        """Write a picture of the window to a file."""
        path.write_bytes(base64.b64decode(self._send("GET", "/screenshot")))

    def resize(self, width: int, height: int) -> None:
        """Show the page as a window of this size would, which can be smaller than the browser permits."""
        sizes = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        command = {"cmd": "Emulation.setDeviceMetricsOverride", "params": sizes}
        self._send("POST", "/goog/cdp/execute", command)

    def use_scheme(self, scheme: str) -> None:
        """Show the page as a system with this scheme shows it: "light", "dark", or "" for that of the browser."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        command = {"cmd": "Emulation.setEmulatedMedia", "params": {"features": features}}
        self._send("POST", "/goog/cdp/execute", command)

    def element(self, method: str, element: Element, what: str, body: Any = None) -> Any:
        """Send a command for an element."""
        return self._send(method, f"/element/{element.id}/{what}", body)


class Element:
    """An element of the page."""

    def __init__(self, driver: Driver, id: str) -> None:
        self._driver = driver
        self.id = id

    @property
    def text(self) -> str:
        """Its text, as it is shown."""
        text: str = self._driver.element("GET", self, "text")
        return text

    def is_displayed(self) -> bool:
        """Whether it is shown."""
        shown: bool = self._driver.element("GET", self, "displayed")
        return shown

    def attribute(self, name: str) -> str | None:
        """An attribute."""
        value: str | None = self._driver.element("GET", self, f"attribute/{name}")
        return value

    def click(self) -> None:
        """Click on it."""
        self._driver.element("POST", self, "click")

    def clear(self) -> None:
        """Empty an input."""
        self._driver.element("POST", self, "clear")

    def type(self, *keys: str) -> None:
        """Press keys."""
        self._driver.element("POST", self, "value", {"text": "".join(keys)})


def _plain(argument: Any) -> Any:
    return {_ELEMENT: argument.id} if isinstance(argument, Element) else argument
