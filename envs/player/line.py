"""The line of frames of a session that led to one of them.

Owns: the numbers of its frames across forks, its marks and revisits, and reading pictures in pieces.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np

from envs.data.episodes import read_episode
from envs.data.sessions import Place, Session
from worldmodel.errors import ConfigError, DataError

BLOCK_FRAMES = 64
NUM_BLOCKS = 8


def parse_place(text: str) -> Place:
    """Read EPISODE:FRAME.

    Raises:
        ConfigError: it is something else.
    """
    parts = text.split(":")
    if len(parts) != 2 or not all(part.isascii() and part.isdecimal() and len(part) < 10 for part in parts):
        raise ConfigError(f"--line {text!r} is not accepted: give EPISODE:FRAME, such as 0:120")
    return Place(int(parts[0]), int(parts[1]))


class Line:
    """What led to a frame of a session: its frames, by their numbers from the root on; pictures are read in pieces.

    Args:
        session: it is of.
        end: its last frame; None: the last one of the last episode.

    Attributes:
        stops: where it is in the file: the last frame of it in each episode on the way.
        actions: uint8 (n - 1,).
        rewards: float32 (n - 1,).
        endings: n words, "" or the first end of the episode that was reached, terminated or truncated.
        marks: pairs of a frame's number and the number of the mark there.
        revisits: pairs of the numbers of frames that were said to show the same.
        has_real: whether what the real world showed was recorded beside the dream, in the field "real_frames".

    Raises:
        DataError: there is no such frame, or the file is damaged.
    """

    def __init__(self, session: Session, end: Place | None = None) -> None:
        self.session = session
        self.stops = session.line(_find_end(session) if end is None else _check_end(session, end))
        self._firsts = np.cumsum([0, *(stop.frame for stop in self.stops)]).tolist()
        fields = session.read_line(self.stops[-1], ("actions", "rewards", "terminated", "truncated"))
        self.actions, self.rewards = fields["actions"], fields["rewards"]
        if len(self.actions) and int(self.actions.max()) >= len(session.info.action_names):
            raise DataError(f"{session.path} is damaged: there is no action {int(self.actions.max())}: record it again")
        self.endings = _find_endings(fields["terminated"], fields["truncated"])
        found = [(self.number(mark.place), mark.number) for mark in session.marks.values()]
        self.marks = sorted((number, mark) for number, mark in found if number is not None)
        pairs = [(self.number(revisit.first), self.number(revisit.second)) for revisit in session.revisits]
        self.revisits = [(first, second) for first, second in pairs if first is not None and second is not None]
        self.has_real = all("real_frames" in session.episodes[stop.episode].fields for stop in self.stops)
        self._blocks: OrderedDict[tuple[str, int, int], np.ndarray] = OrderedDict()

    def __len__(self) -> int:
        """Return the number of frames."""
        return int(self._firsts[-1]) + 1

    def place(self, number: int) -> Place:
        """Return where a frame is in the file."""
        part = next(i for i, first in enumerate(self._firsts[1:]) if number <= first)
        return Place(self.stops[part].episode, number - self._firsts[part])

    def number(self, place: Place) -> int | None:
        """Return the number of a frame of the file, or None where it is not on this line."""
        for first, stop in zip(self._firsts, self.stops, strict=False):
            if stop.episode == place.episode and place.frame <= stop.frame:
                return int(first) + place.frame
        return None

    def frame(self, number: int, field: str = "frames") -> np.ndarray:
        """Return a frame, uint8 (H, W, 3), or another field of it.

        Raises:
            DataError: the file is damaged.
        """
        episode, frame = self.place(number)
        key = (field, episode, frame // BLOCK_FRAMES)
        if key not in self._blocks:
            info, first = self.session.episodes[episode], key[2] * BLOCK_FRAMES
            stop = min(first + BLOCK_FRAMES, info.num_frames)
            self._blocks[key] = read_episode(info, first, stop, (field,))[field]
            if len(self._blocks) > NUM_BLOCKS:
                self._blocks.popitem(last=False)
        self._blocks.move_to_end(key)
        return self._blocks[key][frame % BLOCK_FRAMES]

    def root(self, names: tuple[str, ...]) -> dict[str, np.ndarray]:
        """Return those of the fields that the first episode has. Errors as `frame`."""
        info = self.session.episodes[self.stops[0].episode]
        return read_episode(info, 0, 1, [name for name in names if name in info.fields])

    @property
    def start(self) -> dict[str, Any]:
        """How the first episode began."""
        return dict(self.session.origins[self.stops[0].episode].start)


def _find_end(session: Session) -> Place:
    last = max(session.episodes)
    return Place(last, session.episodes[last].num_frames - 1)


def _check_end(session: Session, end: Place) -> Place:
    if end.episode in session.episodes and end.frame < session.episodes[end.episode].num_frames:
        return end
    lasts = [f"{number}:{info.num_frames - 1}" for number, info in sorted(session.episodes.items())]
    shown = ", ".join(lasts[:8]) + (f" and {len(lasts) - 8} more" if len(lasts) > 8 else "")
    raise DataError(f"{session.path} has no frame {end.episode}:{end.frame}; its episodes end at {shown}")


def _find_endings(terminated: np.ndarray, truncated: np.ndarray) -> list[str]:
    """Return for each frame the first end of the episode that was reached, or ""."""
    endings = [""]
    for is_terminated, is_truncated in zip(terminated, truncated, strict=True):
        here = "terminated" if is_terminated else "truncated" if is_truncated else ""
        endings.append(endings[-1] or here)
    return endings
