"""Ctrl-C and TERM in a training: the step under way is finished, the state saved, and the way on told.

Owns: which signals are put off and how a program ends after one. Knows no training; how signals are caught is
`envs.player.interrupts`'s.
"""

import contextlib
import shlex
import signal
import sys
from collections.abc import Iterator
from typing import Any

from envs.player.interrupts import Interrupted, Wish, caught

RESUMES_BY_ITSELF = ("train.recipe", "train.study")  # programs that go on by the same command
USUAL: dict[int, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
"""The signals that are put off, and what they do where nobody else handles them."""


class Stopped(Interrupted):
    """A training ended early because it was asked to, with its state saved; says how to go on."""


@contextlib.contextmanager
def put_off_signals() -> Iterator[Wish]:
    """Note a first Ctrl-C or TERM within the block in place of what it would do; a second one does that.

    A signal that somebody else handles already is left to them, and so are all in other threads than the main one.
    """
    wish = Wish()

    def note(number: int) -> None:
        wish.number = number
        signal.signal(number, USUAL[number])
        print("\nstopping after this step; once more ends it at once", file=sys.stderr, flush=True)

    with caught(note, lambda number, handler: number in USUAL and handler == USUAL[number]):
        yield wish


def command_to_go_on() -> str:
    """Return the command line that takes up the training of this process."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is None:
        return "the same command with --resume"
    words = ["python", "-m", spec.name, *sys.argv[1:]]
    if spec.name not in RESUMES_BY_ITSELF and "--resume" not in words:
        words.append("--resume")
    return shlex.join(words)
