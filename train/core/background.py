"""A program that runs beside its caller and never outlives it, however the caller ends.

Owns: the child process, its log, and its end. The child's standard input is a pipe that the caller alone holds open:
when the caller is gone, killed or not, the pipe closes and the child ends. Knows nothing of what the program does.
"""

import os
import runpy
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO

from worldmodel.errors import StorageError


class BackgroundProgram:
    """Context manager that runs `python -m MODULE ARGUMENTS` in the background; leaving the block ends it."""

    def __init__(self, module: str, arguments: Sequence[str], log: Path) -> None:
        """Describe the program.

        Args:
            module: a program of this project, such as "train.record".
            arguments: its words.
            log: file that gets what it prints.
        """
        self.command = [sys.executable, "-m", "train.core.background", module, *arguments]
        self.log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._log_file: IO[bytes] | None = None

    def __enter__(self) -> "BackgroundProgram":
        try:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            self._log_file = self.log.open("wb")
        except OSError as error:
            raise StorageError(f"cannot write {self.log}: {error.strerror}; choose another folder") from error
        self._process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=self._log_file, stderr=subprocess.STDOUT
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def exit_status(self) -> int | None:
        """Exit status; None while it runs or has not been started, negative after a signal."""
        return None if self._process is None else self._process.poll()

    @property
    def pid(self) -> int | None:
        """Number of its process; None before the block begins."""
        return None if self._process is None else self._process.pid

    @property
    def last_words(self) -> str:
        """The last line it printed."""
        lines = self.log.read_text(errors="replace").replace("\r", "\n").split("\n") if self.log.is_file() else []
        return next((line.strip() for line in reversed(lines) if line.strip()), "(it printed nothing)")

    def stop(self) -> None:
        """End it at once, if it still runs."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(10.0)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
        if self._log_file is not None:
            self._log_file.close()


def main() -> None:
    """Run the module named by the first word, in the caller's background."""

    def end_with_caller() -> None:
        os.read(0, 1)  # nothing ever comes: this returns when the caller's end of the pipe is closed
        os._exit(1)

    threading.Thread(target=end_with_caller, daemon=True).start()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
