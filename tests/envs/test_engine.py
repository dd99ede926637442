"""How steps run: what the player is told of compiling, of how far it is, and of why it failed."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import play
import worldmodel.compiled
from envs.compile_clock import USUAL_S, CompileClock
from envs.dream import DreamEnv
from envs.player.session import PlaySession
from envs.player.view import View
from tests.stub_play import StubEnv
from worldmodel.errors import CompileError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WORLDMODEL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking for a compiler takes a while, and finds none."""

    def look() -> bool:
        time.sleep(1.0)
        return False

    monkeypatch.setattr(worldmodel.compiled, "has_compiler", look)


def test_the_clock_knows_the_last_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr("envs.compile_clock.time.monotonic", lambda: now_s)
    clock = CompileClock(tmp_path / "cache")
    assert clock.usual_s == USUAL_S and clock.share == 0
    now_s += 40
    assert clock.describe() == f"40 s of about {USUAL_S:.0f}"
    clock.finish()
    clock = CompileClock(tmp_path / "cache")
    assert clock.usual_s == 40
    now_s += 10
    assert clock.share == 0.25
    now_s += 1000
    assert 0.9 < clock.share < 1  # late, but not over
    for text in ("", "soon", "-3", "nan", "1e9"):
        (tmp_path / "cache" / "compile_seconds.txt").write_text(text)
        assert CompileClock(tmp_path / "cache").usual_s == USUAL_S
    (tmp_path / "file").touch()
    CompileClock(tmp_path / "file").finish()  # cannot be written: it is only an estimate


def test_waiting_for_a_compiled_step_tells_how_far_it_is(bundle: Path, no_compiler: None) -> None:
    env = DreamEnv(checkpoint=str(bundle), device="cpu", num_steps=1)
    shares = []
    with pytest.raises(CompileError, match="no C"):
        env.compile(wait=True, on_wait=lambda clock: shares.append(clock.share))
    assert len(shares) > 2 and shares == sorted(set(shares))


def test_what_comes_while_waiting_ends_it(bundle: Path, no_compiler: None) -> None:
    class Stopped(Exception):
        pass

    def stop(clock: CompileClock) -> None:
        raise Stopped

    env = DreamEnv(checkpoint=str(bundle), device="cpu", num_steps=1)
    start_s = time.monotonic()
    with pytest.raises(Stopped):
        env.compile(wait=True, on_wait=stop)
    assert time.monotonic() - start_s < 0.9


def test_loading_shows_compiling(
    bundle: Path, no_compiler: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = []
    options = play.Options(checkpoint=str(bundle), device="cpu", threads=1, compile="wait")
    with pytest.raises(CompileError):
        play.make_dream(options, lambda share, text: told.append((share, text)))
    shares = [share for share, _ in told]
    assert shares == sorted(shares) and shares[-1] < 0.85
    assert sum("compiling" in text and f"s of about {USUAL_S:.0f}" in text for _, text in told) > 2


def test_a_compile_that_fails_in_the_background_is_told_once(
    bundle: Path, no_compiler: None, window: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    from envs.player.hud import list_counters

    shown: list[str] = []

    def make(report: Any) -> PlaySession:
        return PlaySession(DreamEnv(checkpoint=str(bundle), device="cpu", num_steps=1, compile="background"), fps=100)

    def script(player: Any, worker: Any) -> Any:
        def is_shown(text: str) -> Callable[[], bool]:
            def check() -> bool:
                shown[:] = [] if worker.view is None else list_counters(worker.view, 1.0, "cpu")
                return any(text in line for line in shown)

            return check

        yield is_shown("uncompiled, compiling: 0 s of about 120")
        yield is_shown("uncompiled: no C++ compiler was found")
        step = worker.view.step
        yield lambda: worker.view.step > step + 20

    window(script, make=make)
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("steps run")]
    assert told[0] == "steps run uncompiled, compiling"
    assert len(told) == 2 and told[1].startswith("steps run uncompiled: no C++ compiler was found")


def test_a_long_reason_stays_in_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    from envs.player.hud import Hud
    from envs.player.window import pygame

    pygame.font.init()
    view = View(np.zeros((8, 8, 3), np.uint8), 0, engine="uncompiled: " + "a reason of many words " * 12)
    short, heights = dataclasses.replace(view, engine="compiled"), []
    for shown in (short, view):
        screen = pygame.Surface((400, 400))
        screen.fill((255, 255, 255))
        Hud().draw_counters(screen, shown, 1.0, "cpu")
        pixels = pygame.surfarray.array3d(screen)
        assert (pixels[-4:] == 255).all()
        heights.append(int((pixels != 255).any((0, 2)).sum()))
    assert heights[1] > heights[0] + 3 * 14


class Compiler:
    """Stands for the background compiler: compiles for a while, or has what it needs at once."""

    duration_s = 1.2

    def __init__(self, *_: Any) -> None:
        self.note, self._is_stopped = "", False

    def start(self, **_: Any) -> None:
        self._end_s = time.monotonic() + self.duration_s

    @property
    def is_over(self) -> bool:
        return time.monotonic() >= self._end_s

    def wait(self, seconds: float | None = None) -> bool:
        left_s = max(0.0, self._end_s - time.monotonic())
        time.sleep(left_s if seconds is None else min(seconds, left_s))
        return self.is_over

    def stop(self) -> None:
        pass


@pytest.mark.parametrize("wait", [True, False])
def test_how_long_compiling_took_is_kept(
    bundle: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, wait: bool
) -> None:
    monkeypatch.setattr("worldmodel.world.BackgroundCompiler", Compiler)
    env = DreamEnv(checkpoint=str(bundle), device="cpu", num_steps=1)
    env.compile(wait=wait)
    assert wait or env.compile_progress == "0 s of about 120"
    deadline_s = time.monotonic() + 10
    while CompileClock(cache).usual_s == USUAL_S and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert Compiler.duration_s <= CompileClock(cache).usual_s < 10
    assert env.compile_progress is None

    # One that was compiled before tells nothing new.
    kept_s = CompileClock(cache).usual_s
    monkeypatch.setattr(Compiler, "duration_s", 0.0)
    env.compile(wait=wait)
    time.sleep(0.05)
    assert CompileClock(cache).usual_s == kept_s


def test_a_stub_without_an_engine_tells_nothing(window: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    def script(player: Any, worker: Any) -> Any:
        yield lambda: worker.view is not None and worker.view.step > 3

    window(script, StubEnv())
    assert "steps run" not in capsys.readouterr().out
