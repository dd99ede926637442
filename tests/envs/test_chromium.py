"""The page in a real browser: Chromium without a screen."""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver import ActionChains, Keys

from envs.data.sessions import read_session

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
WAIT_S = 60

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM or not DRIVER, reason="no Chromium: apt-get install chromium chromium-driver"),
]


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


@pytest.fixture
def game(tmp_path: Path) -> Iterator[Game]:
    """Serve a world whose right half shows the sum of the actions, open its page, wait for the first picture."""
    code = (
        "import sys; sys.path[:0] = ['tests']\n"
        "import play, stub_play\n"
        "play.make_dream = lambda options, report: stub_play.RewindableEnv()\n"
        "sys.exit(play.main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", code, "--serve", "--port", "0", "--out", str(tmp_path / "plays")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    driver = None
    try:
        assert process.stdout is not None
        address = process.stdout.readline().split()[1]
        driver = open_chromium(tmp_path)
        driver.get(address)
        opened = Game(driver, process, tmp_path)
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


def test_a_game_in_chromium(game: Game) -> None:
    """Walking, marks, going back, and a session that is recorded and downloaded."""
    # Without a key the left half goes on, which shows the step, and the right half rests.
    left, right = game.pixel(10, 30), game.pixel(50, 30)
    game.until(lambda: game.pixel(10, 30) != left)
    assert game.pixel(50, 30) == right
    game.key("b")
    game.until(lambda: game.text("recording") == "SESSION")
    game.key("m")
    game.until(lambda: "marks 1" in game.text("hud"))

    game.key("w", True)
    game.until(lambda: game.pixel(50, 30) != right)
    game.until(lambda: "action forward" in game.text("hud"))
    game.key("w", False)
    game.until(lambda: "action noop" in game.text("hud"))
    game.key("n")
    game.until(lambda: "back at mark 1" in game.text("notes"))

    start = game.step()
    game.until(lambda: game.step() > start + 15)
    start = game.step()
    game.key(Keys.BACKSPACE, True)
    game.until(lambda: game.step() < start - 5)
    game.key(Keys.BACKSPACE, False)
    game.until(lambda: "on from step" in game.text("notes"))

    assert game.text("download") == ""
    game.click("session")
    game.until(lambda: game.text("download") == "Download session" and game.text("recording") == "")
    game.click("download")
    (recorded,) = (game.folder / "plays").glob("*.h5")
    downloaded = game.folder / "downloads" / recorded.name
    game.until(downloaded.exists)
    assert downloaded.read_bytes() == recorded.read_bytes()
    session = read_session(downloaded)
    assert len(session.revisits) == 1 and len(session.episodes) == 2

    assert [line for line in game.driver.get_log("browser") if line["level"] == "SEVERE"] == []
    game.process.send_signal(signal.SIGTERM)
    game.until(lambda: game.text("loading-text") == "the game was ended")
    assert game.process.wait(WAIT_S) == 0


def test_the_page_runs_no_script_but_its_own(game: Game) -> None:
    insert = "const s = document.createElement('script'); s.text = 'window.isForeign = true'; document.body.append(s);"
    assert game.driver.execute_script(insert + "return window.isForeign === undefined")
    assert any("Content Security Policy" in line["message"] for line in game.driver.get_log("browser"))


def test_keys_that_are_held_when_the_page_loses_the_focus_are_released(game: Game) -> None:
    game.key("d", True)
    game.until(lambda: "action turn_right" in game.text("hud"))
    game.driver.execute_script("window.dispatchEvent(new Event('blur'))")
    game.until(lambda: "action noop" in game.text("hud"))
    game.key("d", False)
    for held, action in (("up", "forward"), ("left", "turn_left")):
        button = game.driver.find_element("css selector", f"#pad .{held}")
        game.driver.execute_script("document.getElementById('pad').style.display = 'block'")
        ActionChains(game.driver).click_and_hold(button).perform()
        game.until(lambda action=action: f"action {action}" in game.text("hud"))
        ActionChains(game.driver).release().perform()
        game.until(lambda: "action noop" in game.text("hud"))


def test_a_gamepad_plays(game: Game) -> None:
    """A made-up one: Chromium without a screen sees no other."""
    game.driver.execute_script(
        "window.pad = {index: 0, connected: true, axes: [0, 0, 0, 0], buttons: Array(17).fill({pressed: false})};"
        "navigator.getGamepads = () => [null, window.pad];"
        "window.dispatchEvent(new Event('gamepadconnected'))"
    )
    for axes, action in (
        ([0, -1, 0, 0], "forward"),
        ([0.9, -0.8, 0, 0], "forward_right"),
        ([0, 0, -1, 0], "turn_left"),
    ):
        game.driver.execute_script("window.pad.axes = arguments[0]", axes)
        game.until(lambda action=action: f"action {action} " in game.text("hud"))
    game.driver.execute_script("window.pad.axes = [-0.3, 0.2, 0, 0]")
    game.until(lambda: "action noop" in game.text("hud"))
    game.driver.execute_script("window.pad.buttons = window.pad.buttons.with(0, {pressed: true})")
    game.until(lambda: "marks 1" in game.text("hud"))
    game.driver.execute_script("window.pad.buttons = window.pad.buttons.with(12, {pressed: true})")
    game.until(lambda: "action forward" in game.text("hud"))
    assert "marks 1 2" not in game.text("hud")
    game.driver.execute_script(
        "navigator.getGamepads = () => [];"
        "window.dispatchEvent(Object.assign(new Event('gamepaddisconnected'), {gamepad: window.pad}))"
    )
    game.until(lambda: "action noop" in game.text("hud"))


def test_a_second_page_watches_and_takes_over_when_the_first_goes(game: Game) -> None:
    driver, address = game.driver, game.driver.current_url
    assert game.text("orders") != "" or driver.find_element("id", "pause").is_displayed()
    first = driver.current_window_handle
    driver.switch_to.new_window("window")
    second = driver.current_window_handle
    driver.get(address)
    game.until(lambda: "someone else plays" in game.text("role"))
    assert not driver.find_element("id", "play").is_displayed()
    assert not driver.find_element("id", "pause").is_displayed()
    game.key("w", True)
    step = game.step()
    game.until(lambda: game.step() > step + 5)
    assert "action noop" in game.text("hud")
    game.key("w", False)

    driver.switch_to.window(first)
    driver.close()
    driver.switch_to.window(second)
    game.until(lambda: driver.find_element("id", "play").is_displayed())
    game.click("play")
    game.until(lambda: driver.find_element("id", "pause").is_displayed())
    game.key("p")
    game.until(lambda: "paused (P goes on)" in game.text("notes"))
