"""The whole way of a player: play the shipped world, come back, show the session again, and test memory with it."""

import base64
import json
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from envs.data.journal import read_journal
from envs.data.sessions import Place, Session, read_session
from envs.worlds.labmaze.constants import ACTIONS as LABMAZE_ACTIONS
from tests.chromium import WAIT_S, Game, needs_chromium, play_in_chromium
from tests.screen import Window, needs_screen, open_window, virtual_screen

ROOT = Path(__file__).parents[1]
CHEAPEST = ["--device", "cpu", "--steps", "1", "--threads", "1", "--compile", "off"]
LEFT, RIGHT = (f"action {LABMAZE_ACTIONS.index(name)}" for name in ("turn_left", "turn_right"))
TURNS = 8
"""To one side, and as many back."""

NUM_STEPS = 36
"""Before the player is back: of a session from the middle of play, a test gives the dream the first 32 frames."""

pytestmark = pytest.mark.slow


def run(*words: str) -> str:
    """Run a program to its end, which must be a good one; return what it printed."""
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=5 * WAIT_S)
    assert done.returncode == 0, done.stderr
    return done.stdout


def revisit_frames(session: Session) -> tuple[np.ndarray, np.ndarray]:
    """Return the two frames of the one pair of a session."""
    (revisit,) = session.revisits
    found = [session.read_line(place)["frames"][-1] for place in (revisit.first, revisit.second)]
    return found[0], found[1]


def check_session(path: Path) -> None:
    """Check that there is one mark, and a pair with it between which the player turned."""
    session = read_session(path)
    (revisit,) = session.revisits
    assert revisit.first == session.marks[1].place and len(session.episodes) == 1
    names = session.info.action_names
    actions = Counter(names[action] for action in session.read_line(revisit.second)["actions"])
    assert actions["turn_left"] >= TURNS and actions["turn_right"] >= TURNS


def check_replay(path: Path) -> None:
    """Check that a session is shown again whole, with the frames that it holds when it is dreamt again."""
    report: dict[str, Any] = json.loads(
        run("play.py", "--headless", "--redream", "--replay", str(path)).splitlines()[-1]
    )
    (episode,) = read_session(path).episodes.values()
    assert report["frames"] == episode.num_frames and report["frames_compared"] == episode.num_steps
    assert report["is_same_dreamer"] and report["first_difference"] is None
    assert (report["marks"], report["revisits"]) == (1, 1)


def check_report(path: Path, out: Path) -> None:
    """Run a session as a test of memory; check that its pair is in the report, in figures and in pictures."""
    words = ["--tests", str(path), "--checkpoint", "labmaze", "--out", str(out), "--device", "cpu", "--steps", "1"]
    run("-m", "train.memory_tests", "run", *words, "--no-floors", "--no-features")
    report = json.loads((out / "report.json").read_text())
    assert (report["tests"], report["pairs"], report["real_tests"]) == (1, 1, 0)
    for name in ("as played", "labmaze"):
        (cell,) = report["rows"][name]["by_kind"]["player"].values()
        assert cell["pairs"] == 1 and 0 < cell["psnr"]["mean"] <= 60
    first, second = revisit_frames(read_session(path))
    error = np.square(first.astype(float) - second).mean() / 255**2
    played = report["rows"]["as played"]["overall"]["psnr"]["mean"]
    assert played == pytest.approx(min(50, -10 * np.log10(max(error, 1e-12))), abs=0.1)

    page = (out / "report.html").read_text()
    figure = re.search(r"<figure>((?:(?!</figure>).)*)<figcaption>as played<br>", page)
    assert figure is not None
    sources = re.findall(r'src="data:image/png;base64,([^"]*)"', figure.group(1))
    pictures = [cv2.imdecode(np.frombuffer(base64.b64decode(source), np.uint8), 1)[..., ::-1] for source in sources]
    assert np.array_equal(pictures[0], first) and np.array_equal(pictures[1], second)


def count_records(folder: Path) -> Counter[str]:
    """Return how many steps of each action, marks and revisits there are in the session that is being played."""
    found: Counter[str] = Counter()
    for journal in folder.glob("*.journal"):
        for record, _ in read_journal(journal):
            found[f"action {record['action']}" if record["kind"] == "step" else record["kind"]] += 1
            found["steps"] += record["kind"] == "step"
    return found


def picture_of(screenshot: Path, size: int) -> np.ndarray:
    """Return the frame uint8 (size, size, 3) that a screenshot of the window shows enlarged."""
    shown = cv2.imread(str(screenshot))
    assert shown is not None
    scale = shown.shape[0] // size
    return shown[scale // 2 :: scale, scale // 2 :: scale, ::-1]


def walk_in_window(window: Window, folder: Path) -> None:
    """Mark a view, turn away and back, and say so."""
    window.until(lambda: count_records(folder)["steps"] > 2, "the first steps")
    window.tap("m")
    window.until(lambda: count_records(folder)["mark"] == 1, "a mark")
    for key, action in (("a", LEFT), ("d", RIGHT)):
        window.press(key)
        window.until(lambda action=action: count_records(folder)[action] >= TURNS, action)
        window.release(key)
    window.until(lambda: count_records(folder)["steps"] >= NUM_STEPS, "steps")
    window.tap("n")
    window.until(lambda: count_records(folder)["revisit"] == 1, "a revisit")


def check_replay_window(path: Path, environment: dict[str, str], shots: Path) -> None:
    """Show a session in a window, go to its end, and check that the picture there is its last frame."""
    session = read_session(path)
    (episode,) = session.episodes.values()
    last = session.read_line(Place(0, episode.num_frames - 1))["frames"][-1]
    with open_window(["--replay", str(path), "--out", str(shots)], environment) as window:
        taken: list[Path] = []

        def shoot() -> bool:
            """Take a picture of the window; return whether there is one: while it loads there is none."""
            before = len(taken)
            window.tap("F12")
            time.sleep(0.2)
            taken[:] = sorted(shots.glob("*.png"))
            return len(taken) > before

        def is_last_shown() -> bool:
            # Below the middle there are notes, and the bar of the replay.
            return shoot() and np.array_equal(picture_of(taken[-1], len(last))[:40], last[:40])

        window.until(shoot, "a screenshot")
        window.tap("h")
        window.tap("End")
        window.until(is_last_shown, "the last frame")
        assert window.close() == 0


@needs_screen
def test_from_play_in_a_window_to_a_report(tmp_path: Path) -> None:
    recorded, shots = tmp_path / "plays" / "walk.h5", tmp_path / "shots"
    with virtual_screen() as environment:
        arguments = [*CHEAPEST, "--record", str(recorded), "--out", str(shots)]
        with open_window(arguments, environment) as window:
            walk_in_window(window, recorded.parent)
            assert window.close() == 0
        check_session(recorded)
        check_replay_window(recorded, environment, shots)
    check_replay(recorded)
    check_report(recorded, tmp_path / "report")


@needs_chromium
def test_from_play_in_a_browser_to_a_report(tmp_path: Path) -> None:
    program = ["play.py", "--serve", "--port", "0", "--out", str(tmp_path / "plays"), *CHEAPEST]
    with play_in_chromium(program, tmp_path) as game:
        walk_in_browser(game)
        game.process.send_signal(signal.SIGTERM)
        assert game.process.wait(WAIT_S) == 0
    (recorded,) = (tmp_path / "plays").iterdir()
    (downloaded,) = (tmp_path / "downloads").iterdir()
    assert downloaded.read_bytes() == recorded.read_bytes()
    check_session(downloaded)
    check_replay(downloaded)
    check_report(downloaded, tmp_path / "report")


def walk_in_browser(game: Game) -> None:
    """Record a session, mark a view, turn away and back, say so, and download the session."""
    game.key("b")
    game.until(lambda: game.text("recording") == "SESSION")
    start = game.step()
    game.key("m")
    game.until(lambda: "marks 1" in game.text("hud"))
    for key, action in (("a", "turn_left"), ("d", "turn_right")):
        game.key(key, True)
        game.until(lambda action=action: f"action {action}" in game.text("hud"))
        first = game.step()
        game.until(lambda first=first: game.step() >= first + TURNS)
        game.key(key, False)
    game.until(lambda: game.step() >= start + NUM_STEPS)
    game.key("n")
    game.until(lambda: "back at mark 1" in game.text("notes"))
    game.driver.save_screenshot(str(game.folder / "page.png"))
    game.key("b")
    game.until(lambda: game.text("download-session") == "Download session")
    game.click("download-session")
    game.until(lambda: list((game.folder / "downloads").glob("*.h5")))
