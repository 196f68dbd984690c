"""A headless Chromium, driven by Selenium; installs Debian's packages if root on a disposable machine."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from typing import Any

_PACKAGES = ("chromium", "chromium-driver")
_PROGRAMS = ("chromium", "chromedriver")


@cache
def why_no_browser() -> str:
    """Reason why no browser can be driven on this machine, or empty. Installs the packages as root with apt-get."""
    if find_spec("selenium") is None:
        return "selenium is not installed: pip install selenium"
    if not _missing():
        return ""
    wanted = f"apt-get install --no-install-recommends {' '.join(_PACKAGES)}"
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        return f"no browser: {', '.join(_missing())} missing, and installing needs root and apt-get: {wanted}"
    said = _install()
    return f"apt-get could not install a browser ({', '.join(_missing())} missing): {said}" if _missing() else ""


@contextmanager
def open_browser(*, width: int = 1280, height: int = 900, dark: bool = False) -> Iterator[Any]:
    """A browser window of that size in CSS pixels. Yields Selenium's driver."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for flag in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu", "hide-scrollbars"):
        options.add_argument(f"--{flag}")
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        driver.set_script_timeout(120)
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        emulate_scheme(driver, dark=dark)
        yield driver
    finally:
        driver.quit()


def emulate_scheme(driver: Any, *, dark: bool) -> None:
    """Make the system prefer dark or light pages."""
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})


def console_errors(driver: Any) -> list[str]:
    """Warnings and errors on the browser's console since the last call."""
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] in ("WARNING", "SEVERE")]


def _missing() -> list[str]:
    return [program for program in _PROGRAMS if not shutil.which(program)]


def _install() -> str:
    """Last line of apt-get's output."""
    get = ["apt-get", "-qq", "-o", "DPkg::Lock::Timeout=120"]
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    said = ""
    for command in ([*get, "update"], [*get, "install", "--yes", "--no-install-recommends", *_PACKAGES]):
        try:
            done = subprocess.run(command, capture_output=True, text=True, env=quiet, timeout=400, check=False)
        except subprocess.TimeoutExpired:
            return f"{' '.join(command)}: not done after 400 s"
        said = next(iter(reversed(done.stderr.strip().splitlines())), said)
    return said
