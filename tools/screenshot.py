"""The web page for README and docs/serve.md: the installed model, asked for a prompt, in Chromium.

    python tools/screenshot.py docs/serve.png "a photo of a penguin and a sunflower"

In: Chromium and chromedriver on the path. Out: a PNG. The seeds are the page's own, so that every picture of
it is another.
"""

import argparse
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.support.ui import WebDriverWait

SIZE = (1000, 1107)
SECONDS = 120


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def open_chromium() -> webdriver.Chrome:
    """A browser without a window, of the size of the picture."""
    options = webdriver.ChromeOptions()
    browser, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if not (browser and driver):
        sys.exit("Chromium and chromedriver are not on this machine.")
    options.binary_location = browser
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(flag)
    opened = webdriver.Chrome(options, webdriver.ChromeService(driver))
    opened.set_window_size(*SIZE)
    return opened


def shoot(url: str, prompt: str, out: Path) -> None:
    """Type the prompt, press the button, and take the picture when all images are there."""
    browser = open_chromium()
    try:

        def there(selector: str) -> Any:
            seen = lambda b: next(iter(b.find_elements("css selector", selector)), None)  # noqa: E731
            return WebDriverWait(browser, SECONDS, 0.2).until(seen, f"no {selector}")

        browser.get(url)
        there("#kp-prompt textarea").send_keys(prompt)
        there("#kp-go").click()
        there("#kp-result a[download]")
        time.sleep(2)  # what was typed settles, and the bar of progress goes
        browser.save_screenshot(str(out))
    finally:
        browser.quit()


def main() -> None:
    """Serve the installed model while the picture is taken."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("prompt")
    arguments = parser.parse_args()
    port = free_port()
    command = [str(Path(sys.executable).parent / "kilopix"), "serve", "mini", "--port", str(port)]
    server = subprocess.Popen(command)
    try:
        for _ in range(SECONDS):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(1)
        shoot(f"http://127.0.0.1:{port}", arguments.prompt, arguments.out)
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
