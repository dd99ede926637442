"""Ctrl-C and TERM in a training: the step under way is finished, the state saved, and the way on told.

Owns: which signals are put off and how a program ends after one. Knows no training.
"""

import contextlib
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

RESUMES_BY_ITSELF = ("train.recipe", "train.study")  # programs that go on by the same command


class Stopped(KeyboardInterrupt):
    """A training ended early because it was asked to, with its state saved; says how to go on."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number

    @property
    def exit_status(self) -> int:
        """What a program exits with after the signal."""
        return 128 + self.number


class Wish:
    """Whether a signal came, and which: `number` is None before."""

    number: int | None = None


@contextlib.contextmanager
def put_off_signals() -> Iterator[Wish]:
    """Note a first Ctrl-C or TERM within the block in place of what it would do; a second one does that.

    A signal that somebody else handles already is left to them, and so are all in other threads than the main one.
    """
    wish = Wish()
    before: dict[int, Any] = {}
    ours: dict[int, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}

    def note(number: int, frame: Any) -> None:
        wish.number = number
        signal.signal(number, before[number])
        print("\nstopping after this step; once more ends it at once", file=sys.stderr, flush=True)

    if threading.current_thread() is threading.main_thread():
        for wanted, usual in ours.items():
            if signal.getsignal(wanted) == usual:
                before[wanted] = signal.signal(wanted, note)
    try:
        yield wish
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def command_to_go_on() -> str:
    """Return the command line that takes up the training of this process."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is None:
        return "the same command with --resume"
    words = ["python", "-m", spec.name, *sys.argv[1:]]
    if spec.name not in RESUMES_BY_ITSELF and "--resume" not in words:
        words.append("--resume")
    return shlex.join(words)
