"""The page in headless Chromium: a prompt typed, a button pressed, a picture seen; two browsers at once."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from browser import PHONE, find, needs_chromium, open_browser, open_tab, scroll_width, wait_until
from kilopix.generator import Generator
from kilopix.web.requests import Limits, Order
from live_server import Live, hold, live_server, lively_run

pytestmark = needs_chromium
TABS = {
    "Make": "#kp-result",
    "Compare": "#kp-compared",
    "Data": "#kp-data .kp-noise img",
    "Training": "#kp-facts dd",
    "API": "#kp-api pre",
}
"""The tabs, and what is seen in each when it has been drawn."""


@pytest.fixture(scope="module")
def model(tiny_demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lively_run(tiny_demo / "run", tmp_path_factory.mktemp("lively") / "run")


@pytest.fixture(scope="module")
def live(model: Path, tiny_demo: Path) -> Iterator[Live]:
    limits = Limits(images=4, steps=20)
    with live_server([model, tiny_demo / "run"], limits, tiny_demo / "shards") as server:
        yield server


@pytest.fixture
def browsers(live: Live) -> Iterator[list[Any]]:
    """Two browsers that share nothing, on the page."""
    opened = []
    try:
        for _ in range(2):
            opened.append(open_browser())
            opened[-1].get(live.url)
            find(opened[-1], "#kp-prompt textarea")
        yield opened
    finally:
        for browser in opened:
            browser.quit()


def shown_pictures(browser: Any, within: str) -> list[np.ndarray]:
    images = browser.find_elements("css selector", f"{within} figure img")
    data = [image.get_attribute("src").split(",", 1)[1] for image in images]
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(one)))).astype(int) for one in data]


def test_two_browsers_at_once_each_see_their_pictures(browsers: list[Any], model: Path):
    prompts = ["a photo of a red car", "two cats on a blue ground"]
    for browser, prompt in zip(browsers, prompts, strict=True):
        find(browser, "#kp-prompt textarea").send_keys(prompt)
    for browser in browsers:
        find(browser, "#kp-go").click()
    generator = Generator.from_pretrained(model, "cpu")
    for browser, prompt in zip(browsers, prompts, strict=True):
        find(browser, "#kp-result a[download]")
        pictures = shown_pictures(browser, "#kp-result")
        captions = browser.find_elements("css selector", "#kp-result figcaption span")
        seeds = [int(caption.text.removeprefix("seed ")) for caption in captions]
        assert len(pictures) == len(seeds) == 4
        for picture, direct in zip(pictures, generator(prompt, seeds=seeds), strict=True):
            assert np.abs(picture - np.asarray(direct).astype(int)).max() <= 1
        remembered = find(browser, "#kp-history button")
        assert prompt in remembered.text
        assert len(browser.find_elements("css selector", "#kp-history button")) == 1


def test_the_page_loads_nothing_from_elsewhere_and_breaks_nowhere(browsers: list[Any], live: Live):
    browser = browsers[0]
    find(browser, "#kp-prompt textarea").send_keys("a cat")
    find(browser, "#kp-go").click()
    find(browser, "#kp-result a[download]")
    for name, seen in list(TABS.items())[2:]:
        open_tab(browser, name)
        find(browser, seen)
    names = "return performance.getEntriesByType('resource').map((entry) => entry.name)"
    loaded = [name for name in browser.execute_script(names) if not name.startswith("data:")]
    assert len(loaded) > 10
    assert [name for name in loaded if not name.startswith(live.url)] == []
    assert [line["message"] for line in browser.get_log("browser") if line["level"] == "SEVERE"] == []


def test_a_mistake_is_told_and_what_was_made_comes_back(browsers: list[Any]):
    browser = browsers[0]
    find(browser, "#kp-go").click()
    wait_until(browser, lambda b: "prompt: is empty" in find(b, ".toast-body").text)
    box = find(browser, "#kp-prompt textarea")
    box.send_keys("a green bird")
    find(browser, "#kp-go").click()
    find(browser, "#kp-history button")
    box.clear()
    box.send_keys("something else")
    browser.refresh()  # it is kept by the browser
    browser.execute_script("arguments[0].click()", find(browser, "#kp-history button"))
    wait_until(browser, lambda b: find(b, "#kp-prompt textarea").get_attribute("value") == "a green bird")


def test_who_stops_or_leaves_is_dropped(browsers: list[Any], live: Live):
    def waiting() -> int:
        return sum(isinstance(ticket.work, Order) and not ticket.dropped for ticket in live.worker._waiting)

    go = hold(live.worker)
    try:
        for browser in browsers:
            find(browser, "#kp-prompt textarea").send_keys("never mind")
            find(browser, "#kp-go").click()
        wait_until(browsers[0], lambda _: waiting() == 2)
        wait_until(browsers[0], lambda b: "before yours" in find(b, "#kp-result").text)
        find(browsers[0], "#kp-stop").click()
        wait_until(browsers[0], lambda _: waiting() == 1)
        browsers[1].get("about:blank")
        wait_until(browsers[0], lambda _: waiting() == 0)
    finally:
        go.set()


def test_no_tab_is_wider_than_a_phone(live: Live):
    browser = open_browser(phone=True)
    try:
        browser.get(live.url)
        find(browser, "#kp-prompt textarea")  # before it is there, a tab that is opened can miss its event
        for name, selector in TABS.items():
            open_tab(browser, name)
            find(browser, selector)
            assert scroll_width(browser) <= PHONE["width"], selector
    finally:
        browser.quit()
