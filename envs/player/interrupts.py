"""Ctrl-C, TERM and HUP, taken so that what is open is finished first.

Owns: when such a signal becomes an exception. Does not know what is to be finished.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no HUP


class Interrupted(KeyboardInterrupt):
    """A signal asked the program to end.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"signal {number}")
        self.number = number


class _Interrupts:
    """What is known of signals in this process: whether one must wait now, and which came."""

    def __init__(self) -> None:
        self.num_held = 0
        self.came = 0

    def take(self, number: int, frame: FrameType | None) -> None:
        if self.came and number == signal.SIGINT:  # asked twice: break off, whatever is lost
            raise Interrupted(number)
        if self.came:
            return
        self.came = number
        if not self.num_held:
            raise Interrupted(number)


_interrupts = _Interrupts()


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """Within it, the first of the signals raises `Interrupted`; later ones are ignored, but for a second Ctrl-C.

    A signal that was ignored before, as HUP is under nohup, stays ignored. In another thread than the main one nothing
    changes.
    """
    previous = {}
    if threading.current_thread() is threading.main_thread():
        numbers = [int(getattr(signal, name)) for name in NAMES if hasattr(signal, name)]
        for number in numbers:
            if signal.getsignal(number) != signal.SIG_IGN:
                previous[number] = signal.signal(number, _interrupts.take)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        _interrupts.came = 0


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Within it, what is begun is done whole: a signal that comes meanwhile raises `Interrupted` at the end.

    One that was raised before is not raised again.
    """
    came_before = _interrupts.came
    _interrupts.num_held += 1
    try:
        yield
    finally:
        _interrupts.num_held -= 1
    if _interrupts.came and not came_before and not _interrupts.num_held:
        raise Interrupted(_interrupts.came)
