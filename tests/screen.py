"""A window of the player on a real X server without a screen (Xvfb), with keys pressed by xdotool."""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WAIT_S = 120

needs_screen = pytest.mark.skipif(
    not shutil.which("Xvfb") or not shutil.which("xdotool"), reason="no X server: apt-get install xvfb xdotool"
)


class Window:
    """A program with a window, and what a user does there."""

    def __init__(self, process: subprocess.Popen[str], environment: dict[str, str]) -> None:
        self.process = process
        self._environment = environment

    def until(self, is_so: Callable[[], object], what: str = "") -> None:
        """Wait for a condition, while the program runs."""
        end_s = time.monotonic() + WAIT_S
        while not is_so():
            assert self.process.poll() is None, f"the program ended with {self.process.returncode}: {what}"
            assert time.monotonic() < end_s, what
            time.sleep(0.02)

    def tap(self, key: str) -> None:
        """Press and release a key, by its X name."""
        self._xdotool("key", key)

    def press(self, key: str) -> None:
        """Press a key and keep it down."""
        self._xdotool("keydown", key)

    def release(self, key: str) -> None:
        """Release a key."""
        self._xdotool("keyup", key)

    def has_keyboard(self) -> bool:
        """Return whether keys go to this window, which takes them when it opens: there is no window manager."""
        command = ["xdotool", "getwindowfocus", "getwindowpid"]
        found = subprocess.run(command, env=self._environment, capture_output=True, text=True, timeout=WAIT_S)
        return found.stdout.strip() == str(self.process.pid)

    def close(self) -> int:
        """Quit by key; return the exit status."""
        self.tap("Escape")
        return self.process.wait(WAIT_S)

    def _xdotool(self, *words: str) -> None:
        subprocess.run(
            ["xdotool", *words], env=self._environment, check=True, timeout=WAIT_S, stdout=subprocess.DEVNULL
        )


@contextlib.contextmanager
def virtual_screen() -> Iterator[dict[str, str]]:
    """Start an X server; yield the environment of programs that show themselves there."""
    reading, writing = os.pipe()
    command = ["Xvfb", "-displayfd", str(writing), "-screen", "0", "800x800x24", "-nolisten", "tcp"]
    server = subprocess.Popen(command, pass_fds=[writing], stderr=subprocess.DEVNULL)
    os.close(writing)
    try:
        with open(reading, encoding="ascii") as told:
            number = told.readline().strip()
        hidden = ("WAYLAND_DISPLAY", "SDL_VIDEODRIVER", "SDL_VIDEO_DRIVER")
        yield {name: value for name, value in os.environ.items() if name not in hidden} | {"DISPLAY": f":{number}"}
    finally:
        server.terminate()
        server.wait()


@contextlib.contextmanager
def open_window(arguments: Sequence[str], environment: dict[str, str]) -> Iterator[Window]:
    """Start play.py, and wait for its window.

    Args:
        arguments: of play.py.
        environment: of `virtual_screen`.
    """
    command = [sys.executable, "play.py", *arguments]
    process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    window = Window(process, environment)
    try:
        window.until(window.has_keyboard, "a window that has the keyboard")
        yield window
    finally:
        process.kill()
        process.communicate()
