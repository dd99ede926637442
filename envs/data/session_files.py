"""The files of sessions: what a journal holds that was written while playing, made into a shard of episodes.

Owns: the names and fields of such files, and making them, also of journals that were left behind by a process that was
killed. Does not know how a journal is written (`envs.data.session_writer`), or what its marks mean
(`envs.data.sessions`).
"""

import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from envs.data.episodes import shard_header
from envs.data.journal import is_being_written, read_journal
from envs.fields import CORE_FIELDS, Field
from worldmodel.errors import DataError
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


def tell_nobody(share: float) -> None:
    """Take a report of how far it is, and say nothing."""


def finish(journal: Path, report: Callable[[float], None] = tell_nobody) -> Path | None:
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
