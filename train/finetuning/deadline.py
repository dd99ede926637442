"""The time of `train.finetune`: when each part must end, and what ends a part that does not.

Owns: the shares of the time, SIGTERM, and a watchdog. Knows no part of the work.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from train.finetuning.options import FineTuneOptions


class Terminated(BaseException):
    """SIGTERM, raised where nothing needs to be finished first."""


def process_age() -> float:
    """Return how long this process has been running, seconds; 0 where the system does not tell."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
        return float(Path("/proc/uptime").read_text().split()[0]) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return 0.0


class Clock:
    """When each part of the work must end, in `time.monotonic()`, and what SIGTERM may interrupt."""

    def __init__(self, options: FineTuneOptions, started: float) -> None:
        """Share the time; `started` is the moment that the deadline counts from."""
        total = options.total_s
        margin = min(15.0, max(5.0, 0.03 * total))
        evaluate = min(options.evaluate_s, 0.1 * total)
        self.started, self.end = started, started + total
        self.hard_end = self.end - margin / 3
        self.evaluate_end = self.end - margin
        self.decoder_end = self.evaluate_end - evaluate
        is_recorded = options.warps is not None
        self.record_end = started + (0.0 if options.is_recorded else options.record_share * total)
        self.prepare_end = started + (0.0 if is_recorded else (options.record_share + 0.08) * total)
        self.train_end = self.decoder_end - options.decoder_share * (self.decoder_end - self.prepare_end)
        self.part = "start"
        self.is_terminated = False
        self.writing = threading.Lock()  # held while a bundle is replaced

    def end_well(self, number: int, frame: Any) -> None:
        """Handle SIGTERM: training ends after the step under way, with a bundle; a bundle that is written is finished.

        Raises:
            Terminated: anywhere else.
        """
        self.is_terminated = True
        if self.part != "training" and not self.writing.locked():
            raise Terminated

    def raise_if_terminated(self) -> None:
        """Raise what `end_well` put off.

        Raises:
            Terminated: it did.
        """
        if self.is_terminated and self.part != "training":
            raise Terminated

    @property
    def now(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    def until_training_ends(self) -> float:
        """Return when training must end; at once after SIGTERM."""
        return 0.0 if self.is_terminated else self.train_end


@contextmanager
def guarded(clock: Clock, note_deadline: Callable[[], object]) -> Iterator[None]:
    """End the process in time whatever hangs, and end well at SIGTERM; only the main thread may use it.

    Args:
        clock: of the work.
        note_deadline: called, on another thread, before the deadline ends the process.
    """

    def end_now() -> None:
        clock.writing.acquire(timeout=3.0)  # a bundle that is being written is finished first
        try:
            note_deadline()
        finally:
            os._exit(1)

    watchdog = threading.Timer(max(0.0, clock.hard_end - time.monotonic()), end_now)
    watchdog.daemon = True
    watchdog.start()
    before = signal.signal(signal.SIGTERM, clock.end_well)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        watchdog.cancel()
