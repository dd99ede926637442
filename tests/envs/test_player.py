"""play.py and what it is made of: action texts, the session, the worker thread, the window (on SDL's dummy driver)."""

import itertools
import json
import os
import queue
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import play
from envs.data.video import VideoWriter
from envs.player.headless import parse_actions, run_headless
from envs.player.session import PlaySession
from envs.player.worker import Report, WorldWorker
from envs.worlds.labmaze.constants import ACTIONS as LABMAZE_ACTIONS
from tests.stub_play import NAMES, StubEnv, key
from worldmodel.errors import (
    ActionError,
    CheckpointError,
    ConfigError,
    DisplayError,
    MissingPackageError,
    SeedError,
    StorageError,
    WorldModelError,
)


class PlainEnv(StubEnv):
    """Stands for a real world: has nothing of a model, and its rate in the metadata."""

    fps = num_steps = memory_frames = device = None  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__()
        self.metadata = {"render_fps": 20}

    def __getattribute__(self, name: str) -> Any:
        if name in ("fps", "num_steps", "memory_frames", "memory_used", "device"):
            raise AttributeError(name)
        return super().__getattribute__(name)


def names(text: str, count: int, seed: int = 0) -> list[str]:
    return [NAMES[action] for action in itertools.islice(parse_actions(text, LABMAZE_ACTIONS, seed), count)]


# --- action texts ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("wwa", ["forward", "forward", "turn_left", "forward", "forward"]),
        ("w*2 .*1 d", ["forward", "forward", "noop", "turn_right", "forward"]),
        ("wd*2 s.", ["forward_right", "forward_right", "back", "noop", "forward_right"]),
        ("wd", ["forward", "turn_right", "forward", "turn_right", "forward"]),
        ("ws*1", ["noop"] * 5),
    ],
)
def test_action_text(text: str, expected: list[str]) -> None:
    assert names(text, 5) == expected


@pytest.mark.parametrize("text", ["", "  ", "q", "w*", "*3", "w*0", "w*-1", "w*1.5", "w.*2", "w*99999999", "w*²", "W"])
def test_bad_action_text(text: str) -> None:
    with pytest.raises(ActionError, match=r"use 'random', or letters of a d s w .*'w\*30 a\*15 wd\*10 \.\*5'"):
        parse_actions(text, LABMAZE_ACTIONS)


def test_random_actions_follow_the_seed_and_are_held() -> None:
    first = names("random", 400, seed=1)
    assert first == names("random", 400, seed=1)
    assert first != names("random", 400, seed=2)
    assert set(first) == set(NAMES)
    changes = sum(before != after for before, after in itertools.pairwise(first))
    assert 20 < changes < 100


# --- session ---


def test_session_keeps_account_past_the_end() -> None:
    session = PlaySession(StubEnv(), seed=3)
    assert (session.fps, session.view.seed, session.view.step, session.view.action_name) == (100, 3, 0, "")
    for _ in range(9):
        view = session.step(1)
    assert (view.step, view.reward_total, view.ending, view.action_name) == (9, 4.5, "terminated", "forward")
    assert (view.memory_used, view.memory_frames, view.num_steps) == (4, 4, 2)
    assert session.reset(4).ending == "" and session.view.reward_total == 0


def test_session_of_a_world_without_a_model() -> None:
    session = PlaySession(PlainEnv())
    view = session.step(0)
    assert (session.fps, session.device, view.memory_used, view.memory_frames, view.num_steps) == (20, *[None] * 4)


def test_session_refuses() -> None:
    with pytest.raises(SeedError, match="-1"):
        PlaySession(StubEnv(), seed=-1)
    with pytest.raises(ActionError, match="7"):
        PlaySession(StubEnv()).step(7)


def test_session_video_has_first_frame_and_every_step(tmp_path: Path) -> None:
    import av

    session = PlaySession(StubEnv(), fps=10)
    session.start_video(tmp_path / "a.mp4")
    for _ in range(4):
        session.step(0)
    session.reset(seed=7)  # what a new dream begins with was shown too
    session.step(0)
    session.close()
    assert not session.is_recording
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.frames, stream.width, stream.height) == (7, 256, 256) and stream.average_rate == 10


# --- without a window ---


def test_headless_report() -> None:
    env = StubEnv(step_s=0.01)
    report = run_headless(PlaySession(env, seed=2), parse_actions("wd*1 .", LABMAZE_ACTIONS), 6)
    assert env.actions == ["forward_right", "noop"] * 3
    assert 10 <= report["median_ms"] <= report["p95_ms"]  # type: ignore[operator]
    assert 0 < report["fps"] <= 100  # type: ignore[operator]
    expected = {"frames": 6, "denoising_steps": 2, "memory_frames": 4, "device": "cpu", "seed": 2, "reward": 3.0}
    assert expected.items() <= report.items()


def test_headless_refuses_no_frames() -> None:
    with pytest.raises(ConfigError, match="0"):
        run_headless(PlaySession(StubEnv()), itertools.repeat(0), 0)


def run_main(monkeypatch: pytest.MonkeyPatch, env: StubEnv, *arguments: str) -> int:
    monkeypatch.setattr(play, "make_real", lambda world, report: env)
    return play.main(["--real", *arguments])


def test_main_headless(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    env = StubEnv()
    arguments = ["--headless", "--frames", "7", "--seed", "5", "--actions", "ww.", "--video", str(tmp_path / "a.mp4")]
    assert run_main(monkeypatch, env, *arguments) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    wanted = {"frames", "fps", "median_ms", "p95_ms", "denoising_steps", "memory_frames", "device"}
    assert wanted <= report.keys() and report["frames"] == 7
    assert report["saved"] == [str(tmp_path / "a.mp4")]
    assert env.seeds == [5] and env.is_closed
    assert env.actions == ["forward", "forward", "noop", "forward", "forward", "noop", "forward"]
    assert (tmp_path / "a.mp4").stat().st_size > 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["--headless", "--actions", "x"],
        ["--headless", "--frames", "0"],
        ["--headless", "--video", "a.avi"],
        ["--headless", "--steps", "2"],
        ["--seed", "-3"],
        ["--frames", "3"],
        ["--actions", "w"],
        ["--scale", "0"],
        ["--fps", "nan"],
        ["--fps", "0.0004"],
        ["--memory", "0"],
        ["--headless", "--actions", ""],
        ["--headless", "--video", "a.mp4", "--scale", "65"],
    ],
    ids=" ".join,
)
def test_main_says_errors_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert run_main(monkeypatch, StubEnv(), *arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["--real"], ["--headless"]], ids=str)
def test_a_world_that_there_is_not(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert play.main(["--world", "foo", *arguments]) == 2
    assert "unknown world 'foo'; there are LabMaze, or give module:class" in capsys.readouterr().err


def test_threads_are_bounded(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2}, raising=False)
    play.check_options(play.Options(threads=12))
    assert play.main(["--threads", "13"]) == 2
    assert "--threads 13 is too many for 3 CPUs" in capsys.readouterr().err
    play.check_options(play.Options(scale=64))
    assert play.main(["--scale", "65"]) == 2
    assert "--scale 65 is too large for any screen or video: give at most 64" in capsys.readouterr().err


def test_main_hands_options_to_the_dream(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    given: dict[str, Any] = {}

    def make(**arguments: Any) -> StubEnv:
        given.update(arguments)
        return StubEnv()

    module = types.ModuleType("envs.dream")
    module.DreamEnv = make  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "envs.dream", module)
    arguments = "--headless --frames 1 --steps 3 --memory 50 --device cpu --checkpoint runs/x --world LabMaze"
    arguments += " --threads 1 --compile off"
    assert play.main(arguments.split()) == 0
    expected = {"world": "labmaze", "checkpoint": "runs/x", "device": "cpu", "num_steps": 3, "memory_frames": 50}
    assert given == expected
    monkeypatch.setitem(sys.modules, "torch", None)
    capsys.readouterr()
    assert play.main(arguments.split()) == 2
    assert "pip install torch" in capsys.readouterr().err


def run_python(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    hidden = ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER", "SDL_VIDEO_DRIVER")
    clean = {name: value for name, value in os.environ.items() if name not in hidden}
    program = "import sys; sys.path[:0] = ['tests']\n" + program
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=clean | environment,
        cwd=Path(__file__).parents[2],
    )


def test_headless_needs_no_pygame_and_the_window_no_torch() -> None:
    program = (
        "import play, stub_play\n"
        "play.make_real = lambda world, report: stub_play.StubEnv()\n"
        "assert play.main(['--real', '--headless', '--frames', '2']) == 0\n"
        "assert 'pygame' not in sys.modules\n"
        "import envs.player.window\n"
        "assert 'pygame' in sys.modules and 'torch' not in sys.modules\n"
    )
    done = run_python(program)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems always have a display")
@pytest.mark.parametrize("environment", [{}, {"DISPLAY": ":9876"}], ids=["none set", "none there"])
def test_no_display(environment: dict[str, str]) -> None:
    done = run_python("import play; sys.exit(play.main(['--real']))", **environment)
    assert done.returncode == 2
    # Libraries under SDL may complain first, each in its own words.
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ") and "--headless" in last and "xvfb-run" in last
    assert "Traceback" not in done.stderr


def test_without_pygame(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pygame", None)
    monkeypatch.delitem(sys.modules, "envs.player.window", raising=False)
    with pytest.raises(MissingPackageError, match="pip install pygame-ce"):
        import envs.player.window  # noqa: F401


# --- the window ---


def test_held_keys_combine(window: Callable[..., Any]) -> None:
    env = StubEnv()

    def script(player: Any, worker: WorldWorker) -> Iterator[Callable[[], bool]]:
        yield lambda: worker.view is not None
        key("w")
        yield lambda: env.actions[-1:] == ["forward"]
        key("right")
        yield lambda: env.actions[-1] == "forward_right"
        key("w", is_down=False)
        yield lambda: env.actions[-1] == "turn_right"
        key("right", is_down=False)
        yield lambda: env.actions[-1] == "noop"

    window(script, env)
    assert env.is_closed
    assert not {"back", "turn_left", "forward_left"} & set(env.actions)


def test_tap_shorter_than_a_step_counts_once(window: Callable[..., Any]) -> None:
    env = StubEnv(step_s=0.15)

    def script(player: Any, worker: WorldWorker) -> Iterator[Callable[[], bool]]:
        yield lambda: len(env.actions) == 1
        key("s")
        key("s", is_down=False)
        yield lambda: len(env.actions) == 5

    window(script, env)
    assert env.actions.count("back") == 1


def test_new_dream_takes_the_next_seed_also_when_paused(window: Callable[..., Any]) -> None:
    env = StubEnv()

    def script(player: Any, worker: WorldWorker) -> Iterator[Callable[[], bool]]:
        yield lambda: worker.view is not None and worker.view.step > 2
        key("r")
        yield lambda: worker.view is not None and worker.view.seed == 1
        key("p")
        yield lambda: worker.is_paused
        count = len(env.actions)
        until_s = time.monotonic() + 0.2
        yield lambda: time.monotonic() > until_s
        assert len(env.actions) == count
        assert "paused (P goes on)" in player.notes
        key("r")
        yield lambda: len(env.actions) > count

    window(script, env)
    assert env.seeds == [0, 1, 2]


def test_end_of_an_episode_is_told_and_play_goes_on(window: Callable[..., Any]) -> None:
    notes = []

    def script(player: Any, worker: WorldWorker) -> Iterator[Callable[[], bool]]:
        yield lambda: worker.view is not None and worker.view.step > 7
        notes.extend(player.notes)
        key("r")
        yield lambda: worker.view is not None and worker.view.seed == 1
        assert player.notes == []

    window(script)
    assert len(notes) == 1 and notes[0].startswith("terminated")


def test_picture_is_scaled_whole_and_resizable(window: Callable[..., Any]) -> None:
    import pygame

    def script(player: Any, worker: WorldWorker) -> Iterator[Callable[[], bool]]:
        player.is_hud_shown = False
        yield lambda: worker.view is not None and worker.view.step > 0
        yield lambda: pygame.display.get_surface().get_at((95, 100))[0] == 200  # drawn
        screen = pygame.display.get_surface()
        assert screen is not None and screen.get_size() == (192, 192)
        assert screen.get_at((96, 100))[0] == 0
        pygame.display.set_mode((400, 150), pygame.RESIZABLE)
        step = worker.view.step if worker.view else 0
        yield lambda: worker.view is not None and worker.view.step > step + 5
        screen = pygame.display.get_surface()
        assert screen is not None
        row = [screen.get_at((x, 75))[0] for x in range(400)]
        assert row == [0] * 136 + [200] * 64 + [0] * 200
        key("t")
        yield lambda: player.is_smooth
        step = worker.view.step if worker.view else 0
        yield lambda: worker.view is not None and worker.view.step > step + 5
        screen = pygame.display.get_surface()
        assert screen is not None and 0 < screen.get_at((200, 75))[0] < 200

    window(script, scale=3)


def test_screenshot_video_and_help(window: Callable[..., Any], tmp_path: Path) -> None:
    import cv2

    env = StubEnv()

    def script(player: Any, worker: WorldWorker) -> Iterator[Callable[[], bool]]:
        yield lambda: worker.view is not None
        key("v")
        yield lambda: worker.is_recording
        count = len(env.actions)
        key("f12")
        key("f1")
        yield lambda: player.is_help_shown and len(env.actions) > count + 5
        key("v")
        yield lambda: not worker.is_recording
        key("v")
        yield lambda: worker.is_recording
        key("escape")
        yield lambda: False

    window(script, env)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".mp4", ".mp4", ".png"]
    picture = cv2.imread(str(next(tmp_path.glob("*.png"))))
    assert picture is not None and picture.shape == (640, 640, 3)
    assert tuple(picture[500, 100])[2] == 200


def test_a_scale_that_does_not_fit_the_screen_is_told(window: Callable[..., Any]) -> None:
    import pygame

    def script(player: Any, worker: WorldWorker) -> Iterator[Callable[[], bool]]:
        yield lambda: "scale 60 does not fit the screen of" in worker.notice.text
        screen, (width, height) = pygame.display.get_surface(), pygame.display.get_desktop_sizes()[0]
        side = min(width, height) // 64 * 64
        assert screen is not None and screen.get_size() == (side, side)

    window(script, scale=60)


@pytest.mark.parametrize(
    ("name", "text"),
    [("f12", "no screenshot"), ("v", "recording stopped: cannot write"), ("b", "no session: cannot write")],
)
@pytest.mark.parametrize("is_file", [True, False], ids=["a file in the way", "a folder that takes nothing"])
def test_a_folder_that_cannot_be_written_is_told(
    window: Callable[..., Any], tmp_path: Path, name: str, text: str, is_file: bool
) -> None:
    if not is_file and not Path("/proc/self").is_dir():
        pytest.skip("no folder that even an administrator cannot write")
    env = StubEnv()

    def script(player: Any, worker: WorldWorker) -> Iterator[Callable[[], bool]]:
        (tmp_path / "file").touch()
        player.folder = tmp_path / "file" / "missing" if is_file else Path("/proc/self/missing")
        yield lambda: worker.view is not None
        for _ in range(2):
            worker.say("")
            key(name)
            key(name, is_down=False)
            yield lambda: worker.notice.text.startswith(text)
        assert not worker.is_recording and not worker.is_session_open
        count = len(env.actions)
        yield lambda: len(env.actions) > count + 2

    assert window(script, env).error is None


@pytest.mark.parametrize(("name", "text"), [("f12", "saved "), ("v", "video saved: "), ("b", "session saved: ")])
def test_the_folder_is_made_when_something_is_saved_and_is_named(
    window: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    monkeypatch.chdir(tmp_path)

    def script(player: Any, worker: WorldWorker) -> Iterator[Callable[[], bool]]:
        player.folder = Path("some") / "plays"
        yield lambda: worker.view is not None and worker.view.step > 2
        assert not Path("some").exists()
        key(name)
        if name != "f12":
            yield lambda: worker.is_recording or worker.is_session_open
            step = worker.view.step if worker.view else 0
            yield lambda: worker.view is not None and worker.view.step > step + 2
            key(name)
        yield lambda: worker.notice.text.startswith(text)
        (file,) = (tmp_path / "some" / "plays").iterdir()
        assert worker.notice.text == f"{text}{file}"

    window(script)


@pytest.mark.parametrize("is_new_dream", [False, True])
def test_full_disk_ends_the_recording_not_the_play(
    window: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, is_new_dream: bool
) -> None:
    """At a step, and at the first frame of a new dream."""
    env = StubEnv()
    add = VideoWriter.add

    def fill_up(writer: VideoWriter, frame: np.ndarray) -> None:
        if len(env.seeds) == 2 if is_new_dream else writer.num_frames == 3:
            raise StorageError("disk full")
        add(writer, frame)

    monkeypatch.setattr(VideoWriter, "add", fill_up)

    def script(player: Any, worker: WorldWorker) -> Iterator[Callable[[], bool]]:
        yield lambda: worker.view is not None
        key("v")
        if is_new_dream:
            yield lambda: worker.is_recording
            key("r")
        yield lambda: worker.notice.text.startswith("recording stopped: disk full")
        assert not worker.is_recording and worker.view is not None
        assert worker.view.seed == env.seeds[-1] == int(is_new_dream)
        count = len(env.actions)
        yield lambda: len(env.actions) > count + 5

    window(script, env)
    assert list(tmp_path.iterdir()) == []


def test_window_lives_while_loading_and_while_a_step_is_slow(window: Callable[..., Any]) -> None:
    turns = {"loading": 0, "stepping": 0}
    texts = set()

    def make(report: Report) -> PlaySession:
        report(0.3, "loading the model")
        time.sleep(0.8)
        return PlaySession(StubEnv(step_s=0.8))

    def script(player: Any, worker: WorldWorker) -> Iterator[Callable[[], bool]]:
        while worker.view is None:
            turns["loading"] += 1
            texts.add(worker.progress.text)
            yield lambda: True
        while worker.view.step < 1:
            turns["stepping"] += 1
            yield lambda: True

    window(script, make=make)
    # Blocked, it would be one or two; free, it is 48; a busy machine lies between.
    assert turns["loading"] >= 5 and turns["stepping"] >= 5
    assert "loading the model" in texts


def test_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a made-up clock: a period between steps; lateness of less than a period is made up for, more is forgotten."""
    now_s, starts_s, is_over = 0.0, [], WorldModelError("all steps are taken")
    durations_s = [0.01, 0.01, 0.05, 0.01, 0.01, 0.2, 0.01, 0.01, 0.01]

    class ClockedEnv(StubEnv):
        def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
            nonlocal now_s
            if len(starts_s) == len(durations_s):
                raise is_over
            starts_s.append(round(now_s, 3))
            now_s += durations_s[len(starts_s) - 1]
            return super().step(action)

    class ClockedQueue(queue.SimpleQueue[Any]):
        """Holds no orders: whoever waits for one waits by the made-up clock, in vain."""

        def get(self, block: bool = True, timeout: float | None = None) -> Any:
            nonlocal now_s
            assert timeout is not None
            now_s += timeout
            raise queue.Empty

    monkeypatch.setattr("envs.player.worker.time", types.SimpleNamespace(perf_counter=lambda: now_s))
    monkeypatch.setattr("envs.player.worker.queue", types.SimpleNamespace(SimpleQueue=ClockedQueue, Empty=queue.Empty))
    worker = WorldWorker(lambda report: PlaySession(ClockedEnv(), fps=25))
    worker.start()
    deadline_s = time.monotonic() + 5
    while worker.is_alive and time.monotonic() < deadline_s:
        time.sleep(0.001)
    assert worker.error is is_over
    assert starts_s == [0.0, 0.04, 0.08, 0.13, 0.16, 0.2, 0.4, 0.44, 0.48]


@pytest.mark.parametrize("error", [CheckpointError("no world there"), ZeroDivisionError("a bug")])
def test_failure_to_load_closes_the_window(window: Callable[..., Any], error: Exception) -> None:
    def make(report: Report) -> PlaySession:
        raise error

    with pytest.raises(type(error), match=str(error)):
        window(lambda player, worker: iter([lambda: False]), make=make)


def test_failure_of_a_step_closes_the_window(window: Callable[..., Any]) -> None:
    class BrokenEnv(StubEnv):
        def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
            raise WorldModelError("out of memory")

    env = BrokenEnv()
    with pytest.raises(WorldModelError, match="out of memory"):
        window(lambda player, worker: iter([lambda: False]), env)
    assert env.is_closed


def test_quit_while_loading_ends_at_the_next_stage() -> None:
    is_loading, is_loaded = threading.Event(), threading.Event()

    def make(report: Report) -> PlaySession:
        for stage in range(1000):
            report(stage / 1000, "another stage")
            is_loading.set()
            time.sleep(0.01)
        is_loaded.set()
        return PlaySession(StubEnv())

    worker = WorldWorker(make)
    worker.start()
    assert is_loading.wait(5)
    worker.stop()
    assert not worker.is_alive and not is_loaded.is_set() and worker.error is None


def test_fit() -> None:
    from envs.player.window import fit

    assert fit((64, 64), (640, 700), is_whole=True) == (640, 640)
    assert fit((64, 64), (700, 900), is_whole=True) == (640, 640)
    assert fit((64, 64), (700, 900), is_whole=False) == (700, 700)
    assert fit((64, 32), (32, 100), is_whole=True) == (32, 16)
    assert fit((64, 64), (1, 1), is_whole=True) == (1, 1)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems always have a display")
def test_check_display(monkeypatch: pytest.MonkeyPatch) -> None:
    from envs.player.window import check_display

    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER", "SDL_VIDEO_DRIVER"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(DisplayError, match="DISPLAY"):
        check_display()
    for name in ("WAYLAND_DISPLAY", "DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.setenv(name, "x")
        check_display()
        monkeypatch.delenv(name)


def test_notes_stay_inside_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    from envs.player.window import Hud, pygame

    pygame.font.init()
    screen = pygame.Surface((320, 320))
    screen.fill((200, 200, 200))
    Hud().draw_notes(screen, ["paused (P goes on)", f"saved /{'a-long-name/' * 8}worldmodel-20260101-000000-000.png"])
    is_drawn = (pygame.surfarray.array3d(screen) != 200).any((1, 2))
    assert not is_drawn[:4].any() and not is_drawn[-4:].any() and is_drawn.sum() > 200


def test_first_size_of_a_window() -> None:
    from envs.player.window import first_size

    assert first_size((64, 64), None, (1920, 1080)) == (640, 640)
    assert first_size((134, 64), None, (1280, 1024)) == (1206, 576)
    assert first_size((64, 64), 3, (1920, 1080)) == (192, 192)
    assert first_size((64, 64), 60, (1024, 768)) == (768, 768)
    assert first_size((2000, 2000), None, (1024, 768)) == (2000, 2000)
