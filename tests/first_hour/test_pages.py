"""Pages as a reader meets them: live views that begin empty, and what fits on a phone and above the fold."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from browser import find, needs_chromium, open_browser, open_tab, wait_until
from kilopix.web import training_tab
from live_server import hold, live_server

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def desk() -> Iterator[Any]:
    browser = open_browser()
    yield browser
    browser.quit()


def texts(browser: Any, selector: str) -> list[str]:
    """The texts of all elements of a selector, read in one go: they may be drawn anew meanwhile."""
    script = "return [...document.querySelectorAll(arguments[0])].map((one) => one.textContent)"
    return browser.execute_script(script, selector)


def reads(browser: Any, selector: str) -> Callable[[str], Any]:
    """What waits until words stand in the first element of a selector."""
    return lambda words: wait_until(browser, lambda b: words in "".join(texts(b, selector)), words)


def width_of(browser: Any, selector: str) -> float:
    """How wide an element is drawn; 0 where there is none."""
    script = "return document.querySelector(arguments[0])?.getBoundingClientRect().width ?? 0"
    return browser.execute_script(script, selector)


def test_a_run_that_begins_while_the_page_is_open_is_seen_to_grow(
    tiny_demo: Path, tmp_path: Path, desk: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(training_tab, "_EVERY", 0.5)
    made, run = tiny_demo / "run", tmp_path / "run"
    rows = (made / "log.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    facts, curve = reads(desk, "#kp-facts"), "#kp-curve path.kp-mean"
    with live_server([made / "model.safetensors"], run_folder=run) as server:
        desk.get(server.url)
        find(desk, "#kp-prompt textarea")
        open_tab(desk, "Training")
        facts("No run in")
        run.mkdir()
        shutil.copy(made / "recipe.json", run)
        facts("no line of its log is written yet")
        reads(desk, "#kp-curve")("begins with the first line")
        assert "after the first checkpoint" in find(desk, "#kp-milestones").text
        drawn = []
        for count, row in enumerate(rows[:3], 1):
            with open(run / "log.jsonl", "a", encoding="utf-8") as log:
                log.write(row)
            seen = json.loads(row)["images"]
            facts(f"{seen:,} of 96")
            wait_until(desk, lambda b, n=seen: find(b, "#kp-curve title").get_attribute("textContent"))
            reads(desk, "#kp-curve title")(f"after {seen:,} images")
            drawn.append(find(desk, curve).get_attribute("d"))
            assert drawn[-1].count("L") == count - 1
        assert width_of(desk, curve) > 500
        for axis in ("i", "b"):
            numbers = [float(text.replace(",", "")) for text in texts(desk, f"#kp-curve {axis} span")]
            assert 2 < len(numbers) < 9
            assert numbers == sorted(numbers)
        shutil.copytree(made / "checkpoints", run / "checkpoints")
        wait_until(desk, lambda b: width_of(b, "#kp-milestones figure img") > 50, "no images")


def test_the_data_tab_is_empty_until_its_first_picture_is_decoded(tiny_demo: Path, desk: Any):
    with live_server([tiny_demo / "run"], shards=tiny_demo / "shards") as server:
        desk.get(server.url)
        find(desk, "#kp-prompt textarea")
        go = hold(server.worker)
        try:
            open_tab(desk, "Data")
            reads(desk, "#kp-data")("A picture of the data appears here.")
        finally:
            go.set()
        wait_until(desk, lambda b: width_of(b, "#kp-data .kp-noise img") > 50, "no picture")
