"""A headless Chromium for the tests of the page, if one is installed: on Debian, chromium and chromium-driver."""

from __future__ import annotations

import shutil
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

__all__ = ["BROWSER", "DRIVER", "MISSING", "browser", "use_scheme"]

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
MISSING = "needs Chromium and its driver: apt-get install chromium chromium-driver"


@contextmanager
def browser(width: int = 1280, height: int = 1400) -> Generator[Chrome]:
    """Run a browser with a window of this size."""
    from selenium.webdriver import Chrome, ChromeOptions, ChromeService

    assert BROWSER is not None
    assert DRIVER is not None, MISSING
    options = ChromeOptions()
    options.binary_location = BROWSER
    # No sandbox, because tests can run as root; no shared memory, because containers have little.
    flags = ["headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "hide-scrollbars"]
    for flag in [*flags, "disable-background-networking", "no-first-run", f"window-size={width},{height}"]:
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = Chrome(options=options, service=ChromeService(DRIVER))
    try:
        driver.set_page_load_timeout(60)
        driver.set_script_timeout(60)
        yield driver
    finally:
        driver.quit()


def use_scheme(driver: Chrome, scheme: str) -> None:
    """Have the page shown as a system with this scheme shows it: "light" or "dark"."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
