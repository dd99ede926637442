"""The page in a real browser: Chromium without a screen."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver import ActionChains, Keys

from envs.data.sessions import read_session
from tests.chromium import WAIT_S, Game, needs_chromium, play_in_chromium

pytestmark = [pytest.mark.slow, needs_chromium]


@pytest.fixture
def game(tmp_path: Path) -> Iterator[Game]:
    """Serve a world whose right half shows the sum of the actions, and open its page."""
    code = (
        "import sys; sys.path[:0] = ['tests']\n"
        "import play, stub_play\n"
        "play.make_dream = lambda options, report: stub_play.RewindableEnv()\n"
        "sys.exit(play.main(sys.argv[1:]))\n"
    )
    with play_in_chromium(["-c", code, "--serve", "--port", "0", "--out", str(tmp_path / "plays")], tmp_path) as game:
        yield game


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

    assert game.text("download-session") == ""
    game.click("session")
    game.until(lambda: game.text("download-session") == "Download session" and game.text("recording") == "")
    game.click("download-session")
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


def test_a_video_is_recorded_and_downloaded(game: Game) -> None:
    """By the key, and by the button."""
    import av

    for number, stop in enumerate((lambda: game.key("v"), lambda: game.click("video"))):
        assert game.text("video").startswith("Video")
        game.key("v")
        game.until(lambda: game.text("recording") == "REC" and game.text("video").startswith("Stop video"))
        start = game.step()
        game.until(lambda start=start: game.step() > start + 10)
        stop()
        game.until(lambda: game.text("recording") == "" and "video saved: video-" in game.text("notes"))
        assert game.text("download-session") == "" and game.text("download-video") == "Download video"
        game.click("download-video")
        recorded = max((game.folder / "plays").glob("*.mp4"))
        downloaded = game.folder / "downloads" / recorded.name
        game.until(downloaded.exists)
        assert downloaded.read_bytes() == recorded.read_bytes()
        assert str(game.folder) not in game.text("notes")
        with av.open(str(downloaded)) as container:
            assert sum(1 for _ in container.decode(video=0)) > 10
        assert len(list((game.folder / "downloads").iterdir())) == number + 1
    game.driver.save_screenshot(str(game.folder / "page.png"))


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
