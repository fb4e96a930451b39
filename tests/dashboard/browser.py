"""A headless Chromium for the tests of the page, if one is installed: on Debian, chromium and chromium-driver."""

from __future__ import annotations

import shutil
from collections.abc import Generator
from contextlib import contextmanager

from tests.dashboard.webdriver import Driver

__all__ = ["BROWSER", "DRIVER", "MISSING", "browser"]

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
MISSING = "needs Chromium and its driver: apt-get install chromium chromium-driver"


@contextmanager
def browser(width: int = 1280, height: int = 1400) -> Generator[Driver]:
    """Run a browser with a window of this size."""
    assert BROWSER is not None, MISSING
    assert DRIVER is not None, MISSING
    # No sandbox, because tests can run as root; no shared memory, because containers have little.
    flags = ["headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "hide-scrollbars"]
    flags += ["disable-background-networking", "no-first-run", f"window-size={width},{height}"]
    driver = Driver(DRIVER, BROWSER, flags)
    try:
        yield driver
    finally:
        driver.quit()
