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


class RendererApart:
    """A `MazeRenderer` in another process; arguments, methods and errors are those of `MazeRenderer`.

    The process ends when this is closed, dropped, or when its own process ends, however it does.
    """

    def __init__(self, num_cells: int, num_targets: int, palette: str, image_size: int) -> None:
        self._pipe: Connection | None
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
        """End the process; calling it again does nothing."""
        self._end()

    def __del__(self) -> None:
        if hasattr(self, "_process"):
            self._end()

    def _ask(self, call: str, *arguments: Any) -> Any:
        """Have the process do a call. Raises as `_receive`."""
        if self._pipe is None:
            raise StateError("the environment is closed; make a new one")
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
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None
            self._process.wait()


def serve(handle: int) -> None:
    """Answer the calls of a `RendererApart` until its end of the pipe closes.

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
            try:
                result = getattr(renderer, call)(*arguments)
            except WorldModelError as error:
                result = error
            pipe.send(result)


def make_renderer(num_cells: int, num_targets: int, palette: str, image_size: int) -> MazeRenderer | RendererApart:
    """Return what draws: in this process, or apart where OpenGL cannot be used here. Errors as `MazeRenderer`."""
    kind = RendererApart if must_draw_elsewhere() else MazeRenderer
    return kind(num_cells, num_targets, palette, image_size)
