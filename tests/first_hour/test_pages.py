"""Pages as a reader meets them: live views that begin empty, and what fits on a phone and above the fold."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from browser import DESK, PHONE, find, needs_chromium, open_browser, open_tab, scroll_width, wait_until
from kilopix.stages import compare, inspect
from kilopix.stages import report as report_stage
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


@pytest.fixture(scope="module")
def report(tiny_demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with every section, of long prompts and of names that do not break."""
    from test_scores_shown import SCORES, card_folder

    folder = tmp_path_factory.mktemp("pages")
    scores = [card_folder(folder / f"{name or 'tasks'}-{'x' * 40}", name) for name in list(SCORES)[1:]]
    demo = tiny_demo
    report_stage.run(
        demo / "run",
        folder / "report.html",
        [demo / "scores", *scores],
        demo / "pictures",
        demo / "augmented" / "manifest.parquet",
        demo / "times.json",
        demo / "pictures_of_mini",
    )
    compare.run([scores[0], card_folder(folder / "other", "fidelity")], folder)
    inspect.run(demo / "shards", folder / "inspect.html", count=4, device="cpu")
    return folder


@pytest.mark.parametrize("page", ["report.html", "compare.html", "inspect.html"])
def test_no_file_is_wider_than_a_phone(report: Path, page: str):
    browser = open_browser(phone=True)
    try:
        browser.get((report / page).as_uri())
        browser.execute_script("document.querySelectorAll('details').forEach((one) => (one.open = true))")
        assert scroll_width(browser) <= PHONE["width"]
    finally:
        browser.quit()


def test_four_images_of_a_report_are_seen_at_once_in_hard_pixels(report: Path, desk: Any):
    desk.get((report / "report.html").as_uri())
    assert scroll_width(desk) <= DESK["width"]
    script = """return [...document.querySelectorAll('.four img')].slice(0, 4).map((one) =>
        [one.getBoundingClientRect().bottom, getComputedStyle(one).imageRendering, one.naturalWidth])"""
    for bottom, rendering, width in desk.execute_script(script):
        assert bottom <= DESK["height"]
        assert (rendering, width) == ("pixelated", 32)
    said = desk.find_element("css selector", "section .note").text
    assert "The small row: mini, the model that is installed with kilopix, which trained for four" in said
    assert len(desk.find_elements("css selector", ".wide img")) == 8, (
        "no section is left three quarters empty"
    )


def test_four_images_that_were_asked_for_are_seen_at_once(tiny_demo: Path, desk: Any):
    with live_server([tiny_demo / "run"]) as server:
        desk.get(server.url)
        find(desk, "#kp-prompt textarea").send_keys("a photo of a red car")
        find(desk, "#kp-go").click()
        find(desk, "#kp-result a[download]")
        script = """return [...document.querySelectorAll('#kp-result figure img')].map((one) =>
            [one.getBoundingClientRect().bottom, getComputedStyle(one).imageRendering])"""
        shown = desk.execute_script(script)
    assert len(shown) == 4
    assert max(bottom for bottom, _ in shown) <= DESK["height"]
    assert {rendering for _, rendering in shown} == {"pixelated"}
