"""Signals that ask a program to end, taken so that its files are finished first.

Owns: Ctrl-C, TERM and HUP. Does not know what is to be finished.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType
from typing import Any


class StopSignals:
    """Turns Ctrl-C, TERM and HUP into a wish to stop, so that files are finished; a second Ctrl-C breaks off.

    A signal that was ignored before, as HUP under nohup, stays ignored.
    """

    def __init__(self) -> None:
        self.is_wanted = False
        self.on_wanted: Callable[[], None] = lambda: None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # Windows has no HUP
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) != signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._take)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self.is_wanted and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.is_wanted = True
        self.on_wanted()
