"""Sessions on disk: what was played, with its marks, revisits and forks; an episodes shard, so that training reads it.

Owns: what a session is, and reading it. How it is written while it is played is `envs.data.session_writer`'s. Does not
know windows, worlds or models.

A session is a file of `envs.data.episodes` with more in it. Its attribute `session` is JSON: `info` (what was played:
`SessionInfo`), `marks`, `revisits`, `notes`. Each episode is a stretch between two jumps (a reset, a rewind, a restored
snapshot) and has an attribute `origin`: JSON with the `parent` place that it was forked from, if any, and how it
started. Further fields of an episode: `time_s`, when each frame was there, seconds since the session began;
`context_frames` and `context_actions`, what a dream was given before its first frame; `start_state`, the packed dream,
where it was begun in the middle; `real_frames`, what the real world showed that was walked beside the dream.

While it is played a session is NAME.journal; `envs.data.session_files` makes NAME.h5 of it, also of one that was left
behind by a process that was killed.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from envs.data.episodes import EpisodeInfo, read_episode, read_shard
from envs.data.session_files import JOURNAL_SUFFIX, POLICY, SESSION_FIELDS, SUFFIX, finish, recover
from envs.fields import CORE_FIELDS, Field
from worldmodel.errors import ConfigError, DataError


class Place(NamedTuple):
    """A frame of a session: the number of its episode, and its number there."""

    episode: int
    frame: int


class Mark(NamedTuple):
    """A frame to come back to."""

    number: int
    place: Place


class Revisit(NamedTuple):
    """A claim: what `second` shows is what `first` showed.

    Attributes:
        first, second: the frames.
        kind: how the second was reached: "player", or the name of a scripted walk.
    """

    first: Place
    second: Place
    kind: str = POLICY


@dataclass(frozen=True)
class SessionInfo:
    """What was played.

    Attributes:
        world: its name.
        action_names: the action set.
        image_size: height and width of a frame, pixels.
        fps: steps a second.
        source: "dream" or "real".
        checkpoint: name of the bundle that dreamt, "" for the real world.
        checkpoint_hash: of its weights, "" for the real world.
        settings: of the dreamer or of the world.
        started: when, UTC, ISO 8601.
    """

    world: str
    action_names: tuple[str, ...]
    image_size: int
    fps: float
    source: str
    checkpoint: str = ""
    checkpoint_hash: str = ""
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    started: str = ""

    def __post_init__(self) -> None:
        if self.source not in ("dream", "real"):
            raise ConfigError(f"source must be dream or real; got {self.source!r}")


@dataclass(frozen=True)
class Origin:
    """Where an episode of a session begins.

    Attributes:
        parent: the frame that it was forked from, which is its first one; None: it begins by itself.
        start: how it began: "seed" and "opening", or whatever else a world says.
    """

    parent: Place | None
    start: Mapping[str, Any]


@dataclass(frozen=True)
class Session:
    """A session that was read; frames stay on disk.

    Attributes:
        path: of the file.
        info: what was played.
        episodes: by number.
        origins: by number of the episode.
        marks: by number.
        revisits: in the order in which they were made.
        notes: what else happened: time in seconds, and a text.
    """

    path: Path
    info: SessionInfo
    episodes: dict[int, EpisodeInfo]
    origins: dict[int, Origin]
    marks: dict[int, Mark]
    revisits: tuple[Revisit, ...]
    notes: tuple[tuple[float, str], ...]

    def line(self, place: Place) -> list[Place]:
        """Return where to read what led to a frame: the last frame in each episode on the way, from the root on.

        Raises:
            DataError: the place, or a parent on the way, is not in the session.
        """
        found = [self.check(place)]
        while (parent := self.origins[found[0].episode].parent) is not None:
            if parent.episode >= found[0].episode:
                raise DataError(f"{self.path}: episode {found[0].episode} comes from {tuple(parent)}, which is later")
            found.insert(0, self.check(parent))
        return found

    def check(self, place: Place) -> Place:
        """Return a place that exists.

        Raises:
            DataError: it does not.
        """
        if place.episode not in self.episodes or not 0 <= place.frame < self.episodes[place.episode].num_frames:
            raise DataError(f"{self.path} has no frame {place.frame} in an episode {place.episode}: record it again")
        return place

    def depth(self, place: Place) -> int:
        """Return how many steps lie between the root and a frame. Errors as `line`."""
        return sum(stop.frame for stop in self.line(place))

    def is_before(self, first: Place, second: Place) -> bool:
        """Return whether one frame lies on the way to another. Errors as `line`."""
        return any(stop.episode == first.episode and first.frame <= stop.frame for stop in self.line(second))

    def read_line(self, place: Place, fields: Sequence[str] = ("frames", "actions")) -> dict[str, np.ndarray]:
        """Return what led to a frame, from the root on, as one episode: n + 1 rows a frame, n a step.

        Raises:
            DataError: as `line`, or a file is damaged. ConfigError: a field was not recorded.
        """
        declared = CORE_FIELDS | SESSION_FIELDS
        parts: dict[str, list[np.ndarray]] = {name: [] for name in fields}
        for number, stop in enumerate(self.line(place)):
            found = read_episode(self.episodes[stop.episode], 0, stop.frame + 1, fields)
            for name, rows in found.items():
                is_repeated = number and declared.get(name, Field("", "frame", 1)).axis == "frame"
                parts[name].append(rows[1:] if is_repeated else rows)
        return {name: np.concatenate(rows) for name, rows in parts.items()}


def read_session(path: Path) -> Session:
    """Read a session; of one whose player was killed, make the file first.

    Raises:
        DataError: no such file, a damaged one, a recording that is no session, or marks that point outside.
    """
    if path.suffix == JOURNAL_SUFFIX:
        made = finish(path)
        if made is None:
            raise DataError(f"{path} holds no step: nothing was played")
        path = made
    if not path.is_file():
        raise DataError(f"no session {path}: play with --record first")
    shard = read_shard(path)
    try:
        with h5py.File(path, "r") as file:
            if "session" not in file.attrs:
                raise DataError(f"{path} is a recording and no session: it has no marks or revisits")
            said = json.loads(file.attrs["session"])
            origins = {key: json.loads(file[key].attrs["origin"]) for key in (e.key for e in shard.episodes)}
        info = SessionInfo(**{**said["info"], "action_names": tuple(said["info"]["action_names"])})
        session = Session(
            path,
            info,
            {_number(episode): episode for episode in shard.episodes},
            {int(k.rpartition("_")[2]): Origin(_place(o["parent"]), o["start"]) for k, o in origins.items()},
            {number: Mark(number, Place(*place)) for number, place in said["marks"]},
            tuple(Revisit(Place(*first), Place(*second), kind) for first, second, kind in said["revisits"]),
            tuple((time_s, text) for time_s, text in said["notes"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is damaged ({error}): record it again") from error
    for revisit in session.revisits:
        session.check(revisit.first)
        session.check(revisit.second)
        if not session.is_before(revisit.first, revisit.second):
            raise DataError(f"{path}: {tuple(revisit.first)} does not lie on the way to {tuple(revisit.second)}")
    return session


def read_sessions(folder: Path) -> list[Session]:
    """Read all sessions of a folder, those left behind included; recordings that are none are passed over.

    Raises:
        DataError: there is none, or one is damaged.
    """
    if folder.is_file():
        return [read_session(folder)]
    if not folder.is_dir():
        raise DataError(f"no folder {folder}: play with --record {folder}, or make tests with train.memory_tests")
    recover(folder)
    paths = [path for path in sorted(folder.glob(f"*{SUFFIX}")) if is_session(path)]
    if not paths:
        raise DataError(
            f"{folder} holds no session: play with --record {folder}, or make tests with train.memory_tests"
        )
    return [read_session(path) for path in paths]


def is_session(path: Path) -> bool:
    """Return whether a file is a session.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with h5py.File(path, "r") as file:
            return "session" in file.attrs
    except OSError as error:
        raise DataError(f"{path} is damaged or truncated: delete it") from error


def _number(episode: EpisodeInfo) -> int:
    return int(episode.key.rpartition("_")[2])


def _place(value: Sequence[int] | None) -> Place | None:
    return None if value is None else Place(*value)
