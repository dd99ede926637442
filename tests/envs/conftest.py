"""The player's window, driven by a script."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from envs.player.session import PlayableEnv, PlaySession
from envs.player.worker import Report, WorldWorker
from tests.stub_play import StubEnv

Script = Callable[[Any, WorldWorker], Iterator[Callable[[], bool]]]


@pytest.fixture
def window(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """Return a function that plays a stub in an invisible window, step by step along a script.

    The script yields conditions; it goes on when the condition holds, once a turn of the window's loop at most. After
    its end the window is closed as by its user.
    """
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    from envs.player.window import Player, pygame

    def run(
        script: Script,
        env: PlayableEnv | None = None,
        make: Callable[[Report], PlaySession] | None = None,
        **settings: Any,
    ) -> WorldWorker:
        worker = WorldWorker(make or (lambda report: PlaySession(env or StubEnv())))
        player = Player(worker, "test", folder=tmp_path, **settings)
        steps = script(player, worker)
        state = {"condition": lambda: True}
        deadline_s = time.monotonic() + 10

        class ScriptedClock:
            """Takes the place of the clock that ends each turn of the window's loop, after drawing."""

            def tick(self, rate_hz: float) -> None:
                if time.monotonic() > deadline_s:
                    raise TimeoutError("the script waits for something that does not come")
                if state["condition"]():
                    condition = next(steps, None)
                    if condition is None:
                        pygame.event.post(pygame.event.Event(pygame.QUIT))
                    state["condition"] = condition or (lambda: False)
                time.sleep(1 / rate_hz)

        monkeypatch.setattr(pygame.time, "Clock", ScriptedClock)
        player.run()
        return worker

    return run
