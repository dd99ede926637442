"""The session file that play goes to: what of a moment is recorded, and what happens where it cannot be.

Owns: which fields of a world a session holds, how its episodes begin, and that a file that cannot be written is closed.
Does not know the way back, videos or keys.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from envs.actions import ActionSet
from envs.fields import POSE, Field
from envs.player.view import View, find_scalars
from worldmodel.errors import WorldModelError

if TYPE_CHECKING:
    from envs.data.session_writer import SessionWriter
    from envs.data.sessions import Mark, Place
    from envs.worlds.base import World


class Present(NamedTuple):
    """What a recorder is told of a moment.

    Attributes:
        view: what there is to see.
        observed: uint8 (H, W, 3), what the environment returned.
        info: what it said beside.
        is_at_start: nothing happened since the last reset.
    """

    view: View
    observed: np.ndarray
    info: Mapping[str, Any]
    is_at_start: bool

    @property
    def engine(self) -> str:
        """How steps run, in a word: compiled, uncompiled, or "" for a world without a model."""
        return (self.view.engine or "").partition(":")[0].partition(",")[0]


class RecordedMark(NamedTuple):
    """A mark, and the session file that it is in."""

    writer: SessionWriter
    mark: Mark


class SessionRecorder:
    """The session file that play goes to: open or not, one after the other. One that cannot be written is closed.

    Args:
        env: that is played; of what it may have, `identity`, `world`, `context`, `pack_state`, `pose` and
            `recorded_pictures` are used.
        action_set: of what is played.
        fps: steps a second.
        world: the real world that is played, for what it records beside frames; None for a dream.
    """

    def __init__(self, env: Any, action_set: ActionSet, fps: float, world: World | None) -> None:
        self._env, self._action_set, self._fps, self._world = env, action_set, fps, world
        self._writer: SessionWriter | None = None
        self._engine = ""  # that was recorded last

    @property
    def is_open(self) -> bool:
        """A session file is open and takes every further step."""
        return self._writer is not None

    @property
    def place(self) -> Place | None:
        """The frame that was recorded last, or None where no file is open."""
        return None if self._writer is None else self._writer.place

    def start(self, path: str | os.PathLike[str], present: Present) -> None:
        """Record everything from a moment on; an open file is finished first.

        Args:
            path: a file name ending in `.h5`.
            present: the moment.

        Raises:
            ConfigError: the name is not accepted.
            StorageError: the file cannot be written.
        """
        from envs.data.session_writer import SessionWriter  # h5py: only who records needs it
        from envs.data.sessions import SessionInfo

        self.stop()
        identity = getattr(self._env, "identity", {})
        world = self._world or getattr(self._env, "world", None)
        info = SessionInfo(
            world="" if world is None else world.name,
            action_names=self._action_set.names,
            image_size=present.observed.shape[0],
            fps=self._fps,
            source="dream" if identity else "real",
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            **identity,
        )
        fields = {name: self._fields[name] for name in self._field_names("frame", "step", "episode")}
        self._writer = SessionWriter(Path(path), info, fields)
        self.begin(present, None)

    def stop(self, report: Callable[[float], None] = lambda share: None) -> Path | None:
        """Finish the open file; return it, or None where none is open or nothing was played.

        Args:
            report: told now and then how far it is, from 0 to 1.

        Raises:
            StorageError: the file could not be made; what was recorded is kept beside it.
        """
        writer, self._writer = self._writer, None
        return None if writer is None else writer.close(report)

    def begin(self, present: Present, parent: Place | None) -> None:
        """Tell an open file that an episode begins at a moment.

        Args:
            present: the moment.
            parent: the recorded frame that it is forked from, or None.

        Raises:
            StorageError: it could not be written.
        """
        if self._writer is None:
            return
        given: dict[str, Any] = {}
        start = {"seed": present.view.seed} | find_scalars(present.info)
        if present.engine:
            self._engine = start["engine"] = present.engine
        start |= {"step": present.view.step}
        with self._closed_on_failure():
            # A moment that was kept is no start, whatever its step: the context is that of the last reset.
            if parent is None and present.is_at_start and hasattr(self._env, "context"):
                given = dict(zip(("context_frames", "context_actions"), self._env.context, strict=True))
            elif parent is None and hasattr(self._env, "pack_state"):
                given = {"start_state": self._env.pack_state()}
            given["values"] = self._values(present, "frame", "episode")
            self._writer.begin(present.observed, start=start, parent=parent, pictures=self._pictures, **given)

    def add(self, present: Present, action: int, reward: float, terminated: bool, truncated: bool) -> None:
        """Give an open file a step, and the moment that it led to.

        Raises:
            StorageError: it could not be written.
        """
        if self._writer is None:
            return
        values = self._values(present, "frame", "step")
        with self._closed_on_failure():
            self._writer.add(action, present.observed, reward, terminated, truncated, values, self._pictures)
            # Compiled frames differ from others in rounding: who dreams this again wants to know.
            if present.engine != self._engine:
                self._engine = present.engine
                self._writer.note(f"{self._engine} from step {present.view.step} on")

    def mark(self) -> RecordedMark | None:
        """Mark the frame that was recorded last; return the mark, or None where no file is open.

        Raises:
            StorageError: it could not be written.
        """
        if self._writer is None:
            return None
        with self._closed_on_failure():
            return RecordedMark(self._writer, self._writer.mark())

    def revisit(self, recorded: RecordedMark | None) -> None:
        """Say that the frame that was recorded last shows what a mark showed, where that is in the file that is open.

        Raises:
            StorageError: it could not be written.
        """
        if self._writer is not None and recorded is not None and recorded.writer is self._writer:
            with self._closed_on_failure():
                self._writer.revisit(recorded.mark)

    @contextlib.contextmanager
    def _closed_on_failure(self) -> Iterator[None]:
        """Let go of the file where something cannot be written; what was written is kept beside it."""
        try:
            yield
        except WorldModelError:
            self._writer = None
            raise

    def _field_names(self, *axes: str) -> list[str]:
        """Return the fields of the world that a session holds; depth costs more than all else."""
        return [name for name, field in self._fields.items() if field.axis in axes and name != "depth"]

    @property
    def _fields(self) -> Mapping[str, Field]:
        """What can be recorded beside frames: of the real world what it declares, of a dream its own pose."""
        if self._world is not None:
            return self._world.fields
        return {} if getattr(self._env, "pose", None) is None else {"pose": POSE}

    def _values(self, present: Present, *axes: str) -> Mapping[str, Any]:
        wanted: Collection[str] = self._field_names(*axes)
        if self._world is None:
            return {name: getattr(self._env, name) for name in wanted}
        return self._world.observe(self._env, dict(present.info), wanted)

    @property
    def _pictures(self) -> dict[str, np.ndarray]:
        """What is recorded beside the frames that are observed."""
        return dict(getattr(self._env, "recorded_pictures", {}))
