"""Drawing in a process of its own, for a process that may not use OpenGL: one forked from a process that did.

Owns: starting that process, the calls that go to it and back, and its end with its user's. What is drawn is `scene`'s.
"""

import contextlib
import os
import subprocess
import sys
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from envs.worlds.labmaze.maze import Maze
from envs.worlds.labmaze.scene import MazeRenderer, must_draw_elsewhere
from worldmodel.errors import StateError, WorldModelError

END_S = 5.0  # a process that is asked to end has so long before it is made to
_CLOSE = "close"


class RendererApart:
    """A `MazeRenderer` in another process; arguments, methods and errors are those of `MazeRenderer`.

    The process ends when this is closed, dropped, or when its own process ends, however it does; in the last case, not
    before the processes forked from that one. In those, all calls but `close` are refused.
    """

    def __init__(self, num_cells: int, num_targets: int, palette: str, image_size: int) -> None:
        self._pipe: Connection | None
        self._owner = os.getpid()
        self._pipe, theirs = Pipe()
        command = [sys.executable, "-c", f"from {__name__} import serve; serve({theirs.fileno()})"]
        # A new process, not a fork: nothing of this one's OpenGL gets into it.
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            start_new_session=True,  # an interrupt at the terminal is for its user, with whom it ends
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
        )
        theirs.close()
        try:
            self._pipe.send((num_cells, num_targets, palette, image_size))
            self._receive(self._pipe)
        except BaseException:
            self._end()
            raise

    def dress(self, maze: Maze) -> None:
        """Show `maze`, with every target present."""
        self._ask("dress", maze)

    def show_targets(self, is_shown: np.ndarray) -> None:
        """Show the targets where bool (num_targets,) `is_shown` holds and hide the others."""
        self._ask("show_targets", is_shown)

    def render(self, x: float, y: float, heading_deg: float) -> np.ndarray:
        """Return the frame seen from a pose: uint8 (H, W, 3). Errors as `MazeRenderer.render`."""
        return np.asarray(self._ask("render", x, y, heading_deg))

    def render_depth(self, x: float, y: float, heading_deg: float) -> np.ndarray:
        """Return how far away is what `render` shows: float32 (H, W). Errors as `MazeRenderer.render`."""
        return np.asarray(self._ask("render_depth", x, y, heading_deg))

    def close(self) -> None:
        """End the process; calling it again does nothing. In a forked process: leave it to the one that made it."""
        self._end()

    def __del__(self) -> None:
        if hasattr(self, "_process"):
            self._end()

    def _ask(self, call: str, *arguments: Any) -> Any:
        """Have the process do a call.

        Raises:
            StateError: this is closed, or was made by another process. Others as `_receive`.
        """
        if self._pipe is None:
            raise StateError("the environment is closed; make a new one")
        if os.getpid() != self._owner:
            raise StateError(
                "this environment was made before its process was forked, and answers to one process only: make it in "
                "the process that steps it"
            )
        with contextlib.suppress(OSError):  # that it has ended is told below
            self._pipe.send((call, arguments))
        return self._receive(self._pipe)

    @staticmethod
    def _receive(pipe: Connection) -> Any:
        """Return what the process answers.

        Raises:
            StateError: the process has ended. WorldModelError: as the call.
        """
        try:
            result = pipe.recv()
        except (EOFError, OSError) as error:
            raise StateError("the process that draws this environment has ended; make a new one") from error
        if isinstance(result, WorldModelError):
            raise result
        return result

    def _end(self) -> None:
        """End the process, also where processes that were forked from this one still hold the pipe."""
        if self._pipe is None:
            return
        is_owner = os.getpid() == self._owner
        if is_owner:
            with contextlib.suppress(OSError):  # it has ended
                self._pipe.send((_CLOSE, ()))
        self._pipe.close()
        self._pipe = None
        if not is_owner:
            return

        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def serve(handle: int) -> None:
    """Answer the calls of a `RendererApart` until it says so, or its end of the pipe closes.

    Args:
        handle: of this process' end of the pipe, a file descriptor.
    """
    pipe = Connection(handle)
    try:
        renderer = MazeRenderer(*pipe.recv())
    except WorldModelError as error:
        pipe.send(error)
        return
    pipe.send(None)

    with contextlib.suppress(EOFError, OSError):
        while True:
            call, arguments = pipe.recv()
            if call == _CLOSE:
                break
            try:
                result = getattr(renderer, call)(*arguments)
            except WorldModelError as error:
                result = error
            pipe.send(result)


def make_renderer(num_cells: int, num_targets: int, palette: str, image_size: int) -> MazeRenderer | RendererApart:
    """Return what draws: in this process, or apart where OpenGL cannot be used here. Errors as `MazeRenderer`."""
    kind = RendererApart if must_draw_elsewhere() else MazeRenderer
    return kind(num_cells, num_targets, palette, image_size)
