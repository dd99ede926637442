"""Writing a session while it is played.

Owns: what goes to the journal, in which order and when. The file that is made of it is `envs.data.session_files`'s,
what it means `envs.data.sessions`'s. Does not know windows, worlds or models.
"""

import dataclasses
import time
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from envs.data.episodes import SPLITS
from envs.data.journal import Journal
from envs.data.session_files import JOURNAL_SUFFIX, POLICY, SUFFIX, finish, tell_nobody
from envs.data.sessions import Mark, Place, Revisit, SessionInfo
from envs.fields import Field
from worldmodel.errors import ConfigError, StorageError


class SessionWriter:
    """Writes a session while it is played; what was added survives the death of the process.

    Args:
        path: of the file to be, ending in .h5; the journal lies beside it until `close`.
        info: what is played.
        fields: what the world records beside `CORE_FIELDS`, of frames or steps in a few numbers, or of the episode.
        split: "train", or "test" for a scene that no training may see.
        policy: who plays.
        clock: seconds; only differences count.

    Raises:
        ConfigError: the name does not end in .h5, or the split is not accepted.
        StorageError: the folder cannot be written, or the file is there.
    """

    def __init__(
        self,
        path: Path,
        info: SessionInfo,
        fields: Mapping[str, Field] | None = None,
        *,
        split: str = "train",
        policy: str = POLICY,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if split not in SPLITS:
            raise ConfigError(f"split must be one of {SPLITS}; got {split!r}")
        if path.suffix.lower() != SUFFIX:
            raise ConfigError(f"session file {str(path)!r} must end in {SUFFIX}; give a name such as walk{SUFFIX}")
        if path.exists():
            raise StorageError(f"{path} is there already: give another name")
        self.path = path
        self.num_steps = 0
        self._journal = Journal(path.with_suffix(JOURNAL_SUFFIX))
        self._clock, self._start_s = clock, clock()
        self._episode = -1
        self._frame = 0
        self._next_mark = 1
        declared = {name: list(field) for name, field in (fields or {}).items()}
        said = {"info": dataclasses.asdict(info), "fields": declared, "split": split, "policy": policy}
        self._journal.append({"kind": "session"} | said)

    @property
    def place(self) -> Place:
        """The frame added last."""
        return Place(self._episode, self._frame)

    def begin(
        self,
        frame: np.ndarray,
        *,
        start: Mapping[str, Any],
        parent: Place | None = None,
        context_frames: np.ndarray | None = None,
        context_actions: np.ndarray | None = None,
        start_state: bytes | None = None,
        values: Mapping[str, Any] | None = None,
        pictures: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Begin an episode.

        Args:
            frame: uint8 (H, W, 3), its first.
            start: how it begins; "seed" and "scene_seed" where there are such.
            parent: what it is forked from.
            context_frames: uint8 (n, H, W, 3), what a dream was given, the last of them `frame`.
            context_actions: uint8 (n - 1,), the actions between them.
            start_state: the packed dream, where it begins in the middle.
            values: of fields of the world, of this frame and of the episode.
            pictures: by field, uint8 (H, W, 3), what is kept beside the frame; all frames of an episode have them.

        Raises:
            StorageError: the disk is full; the session ends here, and what was added before stays readable.
        """
        self._episode, self._frame = self._episode + 1, 0
        header = {"kind": "begin", "start": dict(start), "parent": parent, "time_s": self._now_s()}
        self._append(header | {"values": _plain(values)}, frame, pictures)
        if context_frames is not None and context_actions is not None:
            extra = {"kind": "context", "num_frames": len(context_frames), "actions": context_actions.tolist()}
            self._journal.append(extra, zlib.compress(context_frames.tobytes(), 1))
        if start_state is not None:
            self._journal.append({"kind": "state"}, zlib.compress(start_state, 1))

    def add(
        self,
        action: int,
        frame: np.ndarray,
        reward: float,
        terminated: bool,
        truncated: bool,
        values: Mapping[str, Any] | None = None,
        pictures: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Add a step and the frame that it led to. Errors as `begin`."""
        header = {"kind": "step", "action": int(action), "reward": float(reward), "time_s": self._now_s()}
        ends = {"terminated": bool(terminated), "truncated": bool(truncated), "values": _plain(values)}
        self._append(header | ends, frame, pictures)
        self._frame += 1
        self.num_steps += 1

    def _append(self, header: dict[str, Any], frame: np.ndarray, pictures: Mapping[str, np.ndarray] | None) -> None:
        """Add a record with a frame, and with the pictures beside it."""
        named = {"frames": frame} | dict(pictures or {})
        content = b"".join(picture.tobytes() for picture in named.values())
        self._journal.append(header | {"pictures": list(named)}, zlib.compress(content, 1))

    def mark(self) -> Mark:
        """Mark the frame added last, and return the mark. Errors as `begin`."""
        mark = Mark(self._next_mark, self.place)
        self._journal.append({"kind": "mark", "number": mark.number, "place": mark.place, "time_s": self._now_s()})
        self._next_mark += 1
        return mark

    def revisit(self, mark: Mark, kind: str = POLICY) -> Revisit:
        """Say that the frame added last shows what a mark showed. Errors as `begin`."""
        found = Revisit(mark.place, self.place, kind)
        self._journal.append({"kind": "revisit", "revisit": found, "time_s": self._now_s()})
        return found

    def note(self, text: str) -> None:
        """Keep a line of text with the time. Errors as `begin`."""
        self._journal.append({"kind": "note", "text": text, "time_s": self._now_s()})

    def close(self, report: Callable[[float], None] = tell_nobody) -> Path | None:
        """Make the file; return it, or None where nothing was played.

        Args:
            report: told now and then how far it is, from 0 to 1: a long session takes a while.

        Raises:
            StorageError: the file cannot be written; the journal stays, and `finish` can be tried again.
        """
        self._journal.close()
        return finish(self._journal.path, report)

    def _now_s(self) -> float:
        return round(self._clock() - self._start_s, 4)


def _plain(values: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: np.asarray(value).tolist() for name, value in (values or {}).items()}
