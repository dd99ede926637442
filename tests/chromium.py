"""A page of the player in a real browser, Chromium without a screen, and the program that serves it."""

import contextlib
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver import ActionChains

ROOT = Path(__file__).parents[1]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
WAIT_S = 120

needs_chromium = pytest.mark.skipif(
    not CHROMIUM or not DRIVER, reason="no Chromium: apt-get install chromium chromium-driver"
)


class Game:
    """A page that is open in Chromium, and the program that serves it."""

    def __init__(self, driver: webdriver.Chrome, process: subprocess.Popen[str], folder: Path) -> None:
        self.driver = driver
        self.process = process
        self.folder = folder

    def text(self, name: str) -> str:
        """Return what an element of the page says, "" where it is hidden."""
        found: str = self.driver.execute_script(
            "const e = document.getElementById(arguments[0]); return e.checkVisibility() ? e.innerText : ''", name
        )
        return found

    def pixel(self, x: int, y: int) -> list[int]:
        """Return red, green and blue of a pixel of the canvas."""
        script = "return [...pen.getImageData(arguments[0], arguments[1], 1, 1).data].slice(0, 3)"
        found: list[int] = self.driver.execute_script(script, x, y)
        return found

    def until(self, is_so: Callable[[], object]) -> None:
        """Wait for a condition."""
        end_s = time.monotonic() + WAIT_S
        while not is_so():
            assert time.monotonic() < end_s, f"hud: {self.text('hud')!r}, notes: {self.text('notes')!r}"
            time.sleep(0.02)

    def key(self, key: str, is_down: bool | None = None) -> None:
        """Press or release a key; None does both."""
        actions: Any = ActionChains(self.driver, duration=0)
        if is_down in (True, None):
            actions = actions.key_down(key)
        if is_down in (False, None):
            actions = actions.key_up(key)
        actions.perform()

    def click(self, name: str) -> None:
        """Click an element."""
        self.driver.find_element("id", name).click()

    def step(self) -> int:
        """Return the number of the step that the page shows."""
        return int(self.text("hud").partition("step ")[2].split()[0])


@contextlib.contextmanager
def play_in_chromium(program: Sequence[str], folder: Path) -> Iterator[Game]:
    """Start a program that serves the player, open its page, and wait for the first picture.

    Args:
        program: words after `python`; serves at the address that its first line says, and saves to `folder` / plays.
        folder: for what the browser keeps and downloads.
    """
    process = subprocess.Popen([sys.executable, *program], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    driver = None
    try:
        assert process.stdout is not None
        address = process.stdout.readline().split()[1]
        driver = open_chromium(folder)
        driver.get(address)
        opened = Game(driver, process, folder)
        opened.until(lambda: "step" in opened.text("hud"))
        yield opened
    finally:
        if driver is not None:
            driver.quit()
        process.kill()
        process.communicate()


def open_chromium(folder: Path) -> webdriver.Chrome:
    """Start Chromium; what it downloads goes to `folder` / downloads."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for name in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--disable-dev-shm-usage",
        "--window-size=1000,800",
        f"--user-data-dir={folder / 'profile'}",
    ):
        options.add_argument(name)
    options.add_experimental_option("prefs", {"download.default_directory": str(folder / "downloads")})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
