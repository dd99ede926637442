"""The window in which a recorded session is shown again.

Owns: its keys. The rest is `envs.player.window`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pygame  # noqa: TID253

from envs.player.replay_worker import ReplayWorker
from envs.player.window import Window  # checks that pygame is there

HELP = (
    ("P / Space", "pause, play"),
    ("Left / Right", "one frame back or on"),
    ("PageUp / PageDown", "5 s back or on"),
    ("Home / End", "to the start or the end"),
    ("[ / ]", "to the mark before or after"),
    ("- / =", "slower or faster"),
    ("T", "sharp or smooth picture"),
    ("V", "record an MP4"),
    ("F11 / F12", "full screen / screenshot"),
    ("H", "hide or show the counters"),
    ("F1", "this help"),
    ("Esc", "quit"),
)
REPEATED = (pygame.K_LEFT, pygame.K_RIGHT, pygame.K_PAGEUP, pygame.K_PAGEDOWN)
"""Keys that go on while they are held."""

REPEAT_AFTER_MS, REPEAT_EVERY_MS = 400, 60


class ReplayPlayer(Window[ReplayWorker]):
    """The window over a `ReplayWorker`; arguments as `Window`."""

    help: ClassVar[tuple[tuple[str, str], ...]] = HELP

    def __init__(self, worker: ReplayWorker, title: str, scale: int | None = None, folder: Path = Path(".")) -> None:
        super().__init__(worker, title, scale, folder)
        self._down: set[int] = set()

    def _open(self) -> None:
        super()._open()
        pygame.key.set_repeat(REPEAT_AFTER_MS, REPEAT_EVERY_MS)

    def _handle_key(self, event: pygame.event.Event) -> bool:
        is_repeat = event.key in self._down
        self._down.add(event.key)
        return super()._handle_key(event) if event.key in REPEATED or not is_repeat else True

    def _release(self, event: pygame.event.Event) -> None:
        self._down.discard(event.key)

    def _lose_focus(self) -> None:
        self._down.clear()

    def _make_orders(self) -> dict[int, Callable[[], object]]:
        worker = self.worker
        return super()._make_orders() | {
            pygame.K_SPACE: worker.toggle_pause,
            pygame.K_LEFT: lambda: worker.step(-1),
            pygame.K_RIGHT: lambda: worker.step(1),
            pygame.K_PAGEUP: lambda: worker.jump(-1),
            pygame.K_PAGEDOWN: lambda: worker.jump(1),
            pygame.K_HOME: worker.go_to_start,
            pygame.K_END: worker.go_to_end,
            pygame.K_LEFTBRACKET: lambda: worker.jump_to_mark(-1),
            pygame.K_RIGHTBRACKET: lambda: worker.jump_to_mark(1),
        }
