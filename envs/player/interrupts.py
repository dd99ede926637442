"""Ctrl-C, TERM and HUP, taken so that what is open is finished first.

Owns: which signals are caught, what a second one does, and when one becomes an exception. Does not know what is to be
finished.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no HUP


class Interrupted(KeyboardInterrupt):
    """A signal asked the program to end.

    Args:
        number: of the signal.
        text: what is said of it.
    """

    def __init__(self, number: int, text: str = "") -> None:
        super().__init__(text or f"signal {number}")
        self.number = number

    @property
    def exit_status(self) -> int:
        """What a program exits with after the signal."""
        return 128 + self.number


class Wish:
    """Whether a signal asked the program to end, and which.

    Attributes:
        number: of the signal, 0 before.
        on_come: called once when it comes, in the main thread between two of its instructions; may raise.
    """

    def __init__(self) -> None:
        self.number = 0
        self.on_come: Callable[[], None] = lambda: None

    def take(self, number: int) -> None:
        """Note the first signal, and pass over later ones.

        Raises:
            Interrupted: a second Ctrl-C, which breaks off, whatever is lost.
        """
        if self.number:
            if number == signal.SIGINT:
                raise Interrupted(number)
            return
        self.number = number
        self.on_come()


class _State:
    """The wish that `raised` follows in this process, and in how many blocks of `held` it has to wait."""

    wish = Wish()
    num_held = 0


def is_heeded(number: int, handler: Any) -> bool:
    """Return whether a signal does something, by its handler: under nohup HUP does not, and that shall stay so."""
    return handler != signal.SIG_IGN


@contextlib.contextmanager
def caught(take: Callable[[int], None], is_ours: Callable[[int, Any], bool] = is_heeded) -> Iterator[None]:
    """Within it, signals call a function with their number. In another thread than the main one nothing changes.

    Args:
        take: is called in the main thread, between two of its instructions.
        is_ours: says for the number of a signal and its handler before whether it is caught.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        take(number)

    previous: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        numbers = [int(getattr(signal, name)) for name in NAMES if hasattr(signal, name)]
        for number in numbers:
            if is_ours(number, signal.getsignal(number)):
                previous[number] = signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def noted() -> Iterator[Wish]:
    """Within it, the first of the signals is noted in what is yielded; a second Ctrl-C raises `Interrupted`."""
    wish = Wish()
    with caught(wish.take):
        yield wish


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """Within it, the first of the signals raises `Interrupted`; later ones are ignored, but for a second Ctrl-C."""
    before = _State.wish
    with noted() as wish:

        def end() -> None:
            if not _State.num_held:
                raise Interrupted(wish.number)

        wish.on_come, _State.wish = end, wish
        try:
            yield
        finally:
            _State.wish = before


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Within it, what is begun is done whole: a signal that comes meanwhile raises `Interrupted` at the end.

    One that was raised before is not raised again.
    """
    wish = _State.wish
    came_before = wish.number
    _State.num_held += 1
    try:
        yield
    finally:
        _State.num_held -= 1
    if wish.number and not came_before and not _State.num_held:
        raise Interrupted(wish.number)
