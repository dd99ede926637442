"""How far compiling is, judged by how long it took the last time.

Owns: that duration, kept beside the compiled steps. Does not compile.
"""

import contextlib
import time
from pathlib import Path

from worldmodel.errors import StorageError
from worldmodel.files import write_file

USUAL_S = 120.0
"""How long compiling takes where nothing is known of this machine."""


class CompileClock:
    """A clock that starts now.

    Args:
        folder: of compiled steps.

    Attributes:
        usual_s: how long compiling took the last time, seconds.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / "compile_seconds.txt"
        self._start_s = time.monotonic()
        self.usual_s = self._read()

    def _read(self) -> float:
        try:
            seconds = float(self._file.read_text())
        except (OSError, ValueError):  # never compiled here, or somebody else's file: it is only an estimate
            return USUAL_S
        return seconds if 1 <= seconds <= 86400 else USUAL_S

    @property
    def elapsed_s(self) -> float:
        """Seconds since it started."""
        return time.monotonic() - self._start_s

    @property
    def share(self) -> float:
        """How far compiling should be, from 0 to nearly 1."""
        return min(self.elapsed_s / self.usual_s, 0.99)

    def describe(self) -> str:
        """Say how far it is."""
        return f"{self.elapsed_s:.0f} s of about {self.usual_s:.0f}"

    def finish(self) -> None:
        """Keep the duration for the next time, where the folder can be written."""
        with contextlib.suppress(StorageError):
            write_file(self._file, f"{self.elapsed_s:.1f}\n".encode())
