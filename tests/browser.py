"""Chromium without a window, driven by tests that look at pages as a reader does."""

import shutil
from collections.abc import Callable
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
DESK = {"width": 1280, "height": 900, "deviceScaleFactor": 1, "mobile": False}
WAIT = 60

try:
    from selenium import webdriver
except ImportError:
    webdriver = None  # the tests are then skipped

needs_chromium = pytest.mark.skipif(
    not (webdriver and CHROMIUM and DRIVER),
    reason="selenium, Chromium or chromedriver are not on this machine",
)


def open_browser(phone: bool = False) -> Any:
    """A browser whose view is a phone's, or 1280 by 900 pixels."""
    assert webdriver is not None
    assert CHROMIUM is not None
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE if phone else DESK)
    return browser


def scroll_width(browser: Any) -> int:
    """How many pixels wide the page is, with what sticks out of the view."""
    return browser.execute_script("return document.documentElement.scrollWidth")


def wait_until(browser: Any, true: Callable[[Any], Any], told: str = "it did not come about") -> Any:
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, WAIT, 0.05).until(true, told)


def find(browser: Any, selector: str) -> Any:
    """The first element of a selector, when it is there."""
    found = lambda b: next(iter(b.find_elements("css selector", selector)), None)  # noqa: E731
    return wait_until(browser, found, f"no {selector}")


def open_tab(browser: Any, name: str) -> None:
    """Open a tab, which on a phone may be in the menu of those that do not fit."""
    find(browser, "button[role=tab]")
    tabs = browser.find_elements("css selector", "button[role=tab], .overflow-dropdown button")
    tab = next(tab for tab in tabs if tab.get_attribute("textContent").strip() == name)
    browser.execute_script("arguments[0].click()", tab)
