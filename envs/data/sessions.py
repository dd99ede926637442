"""Sessions on disk: what was played, with its marks, revisits and forks; an episodes shard, so that training reads it.

Owns: writing a session while it is played (to a journal), making the shard of it, and reading it back. Does not know
windows, worlds or models.

A session is a file of `envs.data.episodes` with more in it. Its attribute `session` is JSON: `info` (what was played:
`SessionInfo`), `marks`, `revisits`, `notes`. Each episode is a stretch between two jumps (a reset, a rewind, a restored
snapshot) and has an attribute `origin`: JSON with the `parent` place that it was forked from, if any, and how it
started. Further fields of an episode: `time_s`, when each frame was there, seconds since the session began;
`context_frames` and `context_actions`, what a dream was given before its first frame; `start_state`, the packed dream,
where it was begun in the middle; `real_frames`, what the real world showed that was walked beside the dream.

While it is played a session is NAME.journal; `finish` makes NAME.h5 of it, also of one that was left behind by a
process that was killed.
"""

import dataclasses
import json
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from envs.data.episodes import SPLITS, EpisodeInfo, read_episode, read_shard, shard_header
from envs.data.journal import Journal, is_being_written, read_journal
from envs.fields import CORE_FIELDS, Field
from worldmodel.errors import ConfigError, DataError, StorageError
from worldmodel.files import write_file

SUFFIX, JOURNAL_SUFFIX = ".h5", ".journal"
POLICY = "player"
CHUNK_FRAMES = 8
SESSION_FIELDS: dict[str, Field] = {
    "time_s": Field("float64", "frame", 1),
    "context_frames": Field("uint8", "episode", 4),
    "context_actions": Field("uint8", "episode", 1),
    "start_state": Field("uint8", "episode", 1),
    "real_frames": Field("uint8", "frame", 4),
}
"""What episodes of a session hold beside those of the world."""


REPORT_EVERY = 64
"""Records between two reports of how far a file is."""


def _tell_nobody(share: float) -> None:
    pass


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

    def close(self, report: Callable[[float], None] = _tell_nobody) -> Path | None:
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


def finish(journal: Path, report: Callable[[float], None] = _tell_nobody) -> Path | None:
    """Make the file of a journal that nobody writes any more, and remove the journal.

    Args:
        journal: of a session.
        report: told now and then how far it is, from 0 to 1.

    Returns:
        the file, or None where nothing was played.

    Raises:
        DataError: it is being written, or is no journal. StorageError: the file cannot be written.
    """
    if is_being_written(journal):
        raise DataError(f"{journal} is being written: close the player first")
    path = journal.with_suffix(SUFFIX)
    content = _convert(journal, report)
    if content is not None:
        write_file(path, content)
    journal.unlink()
    return None if content is None else path


def recover(folder: Path) -> list[Path]:
    """Make files of all journals in a folder that were left behind; return those files.

    Raises:
        StorageError: a file cannot be written. DataError: a journal is none.
    """
    found = [finish(journal) for journal in sorted(folder.glob(f"*{JOURNAL_SUFFIX}")) if not is_being_written(journal)]
    return [path for path in found if path is not None]


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


class _Stretch:
    """An episode of a journal on its way to a file; frames go there in chunks."""

    def __init__(self, group: h5py.Group, fields: Mapping[str, Field], size: int) -> None:
        self.group, self.fields, self.size = group, fields, size
        self.columns: dict[str, list[Any]] = {}
        self.num_steps = 0
        self._waiting: dict[str, list[np.ndarray]] = {}

    def keep(self, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            if self.fields[name].axis == "episode":
                self.group.create_dataset(name, data=np.asarray(value, self.fields[name].dtype))
            else:
                self.columns.setdefault(name, []).append(value)

    def add_frame(self, payload: bytes, names: Sequence[str]) -> None:
        pictures = np.frombuffer(zlib.decompress(payload), np.uint8).reshape(len(names), self.size, self.size, 3)
        for name, picture in zip(names, pictures, strict=True):
            waiting = self._waiting.setdefault(name, [])
            waiting.append(picture)
            if len(waiting) == CHUNK_FRAMES:
                self._flush(name)

    def _flush(self, name: str) -> None:
        rows = np.stack(self._waiting.pop(name))
        shape = rows.shape[1:]
        if name not in self.group:
            self.group.create_dataset(
                name,
                shape=(0, *shape),
                maxshape=(None, *shape),
                chunks=(CHUNK_FRAMES, *shape),
                dtype=np.uint8,
                compression="gzip",
                compression_opts=1,
                fletcher32=True,
            )
        dataset = self.group[name]
        dataset.resize(len(dataset) + len(rows), 0)
        dataset[-len(rows) :] = rows

    def close(self) -> bool:
        """Write what is left; return whether it has a step."""
        for name in list(self._waiting):
            self._flush(name)
        if not self.num_steps:
            return False
        for name, rows in self.columns.items():
            self.group.create_dataset(name, data=np.asarray(rows).astype(self.fields[name].dtype))
        return True


def _reported(journal: Path, report: Callable[[float], None]) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Yield the records of a journal, telling how far it is."""
    num_bytes, total = 0, max(1, journal.stat().st_size)
    for number, (record, payload) in enumerate(read_journal(journal)):
        num_bytes += len(payload)
        if number % REPORT_EVERY == 0:
            report(num_bytes / total)
        yield record, payload
    report(1.0)


def _convert(journal: Path, report: Callable[[float], None]) -> bytes | None:
    """Return the file of a journal; None where nothing was played."""
    records = _reported(journal, report)
    first = next(records, ({}, b""))[0]
    if first.get("kind") != "session":
        return None
    info, declared = first["info"], {name: Field(*row) for name, row in first["fields"].items()}
    policy = first.get("policy", POLICY)
    fields = CORE_FIELDS | declared | SESSION_FIELDS
    said: dict[str, Any] = {"info": info, "marks": [], "revisits": [], "notes": []}
    num_kept, dropped = 0, set()
    # Built in memory: HDF5 leaves unreadable files behind when a disk runs full under it.
    with h5py.File(journal.name, "w", driver="core", backing_store=False) as file:
        names = info["action_names"]
        settings = {"source": info["source"]} | info["settings"]
        split = first.get("split", "train")
        file.attrs.update(shard_header(info["world"], names, info["image_size"], settings, split, fields))
        for number, stretch in enumerate(_stretches(records, file, fields, info["image_size"], said)):
            stretch.group.attrs["policy"] = policy
            if stretch.close():
                num_kept += 1
            else:
                dropped.add(number)
                del file[stretch.group.name]
        # What points into a stretch without a step points nowhere now.
        said["marks"] = [mark for mark in said["marks"] if mark[1][0] not in dropped]
        said["revisits"] = [r for r in said["revisits"] if dropped.isdisjoint((r[0][0], r[1][0]))]
        file.attrs["session"] = json.dumps(said)
        file.flush()
        return file.id.get_file_image() if num_kept else None


def _stretches(
    records: Iterator[tuple[dict[str, Any], bytes]],
    file: h5py.File,
    fields: Mapping[str, Field],
    size: int,
    said: dict[str, Any],
) -> Iterator[_Stretch]:
    """Yield the episodes of a journal, each complete but for its end; marks and the like go into `said`."""
    stretch: _Stretch | None = None
    number = 0
    for record, payload in records:
        kind = record["kind"]
        if kind == "begin":
            if stretch is not None:
                yield stretch
            group = file.create_group(f"episode_{number:05d}")
            start = record["start"]
            group.attrs.update({name: int(start.get(name, 0)) for name in ("seed", "scene_seed")})
            group.attrs["origin"] = json.dumps({"parent": record["parent"], "start": start})
            stretch, number = _Stretch(group, fields, size), number + 1
            stretch.add_frame(payload, record["pictures"])
            stretch.keep({"time_s": record["time_s"]} | record["values"])
        elif kind in ("mark", "revisit", "note"):
            added = {
                "mark": lambda r: [r["number"], r["place"]],
                "revisit": lambda r: r["revisit"],
                "note": lambda r: [r["time_s"], r["text"]],
            }[kind](record)
            said[f"{kind}s"].append(added)
        elif stretch is not None:
            _take(stretch, record, payload)
    if stretch is not None:
        yield stretch


def _take(stretch: _Stretch, record: dict[str, Any], payload: bytes) -> None:
    """Add a step, a context or a state to the episode that is open."""
    if record["kind"] == "step":
        names = {"actions": "action", "rewards": "reward", "terminated": "terminated", "truncated": "truncated"}
        stretch.keep({ours: record[theirs] for ours, theirs in names.items()})
        stretch.keep({"time_s": record["time_s"]} | record["values"])
        stretch.add_frame(payload, record["pictures"])
        stretch.num_steps += 1
    elif record["kind"] == "context":
        frames = np.frombuffer(zlib.decompress(payload), np.uint8)
        shape = (record["num_frames"], stretch.size, stretch.size, 3)
        stretch.group.create_dataset("context_frames", data=frames.reshape(shape), compression="gzip")
        stretch.keep({"context_actions": record["actions"]})
    elif record["kind"] == "state":
        state = np.frombuffer(zlib.decompress(payload), np.uint8)
        stretch.group.create_dataset("start_state", data=state, compression="gzip", chunks=True)
