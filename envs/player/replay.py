"""A recorded session, shown again frame by frame; and its actions dreamt again, and compared.

Owns: which frame is shown, what is said of it, and the comparison. Does not know windows, keys or threads; of what
dreams it knows `envs.dream.DreamEnv` by what it can do.
"""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from envs.data.episodes import read_episode
from envs.data.sessions import Place, Session
from envs.data.video import VideoTrack
from envs.player.interrupts import held
from envs.player.session import Bar, View, psnr
from envs.player.side_by_side import compose
from worldmodel.errors import CheckpointError, ConfigError, DataError

if TYPE_CHECKING:
    from envs.dream import DreamEnv

BLOCK_FRAMES = 64
NUM_BLOCKS = 8
EVENT_S = 1.0
"""How long is said that there was a mark, seconds of play."""


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


class Redream:
    """The actions of a line, dreamt again from where it began, and compared with what was recorded.

    Begins from the context that was recorded, or from the packed dream; a line of a real world, or one that another
    dreamer began in the middle, begins from its own first frames.

    Args:
        line: of a session.
        env: what dreams; this object closes it.
        num_context: frames of a real world to begin from, at least 1, and fewer than there are; None: as many as the
            openings of the checkpoint have.
        seed: of the dream's chance, where none was recorded.

    Attributes:
        begun_from: "context", "state" or "frames".
        num_given: frames that were given and not dreamt.
        first_difference: number of the first frame that is not equal, or None.

    Raises:
        DataError: the session is of another world, action set or frame size, or too short.
        CheckpointError: the recorded dream is damaged.
    """

    def __init__(self, line: Line, env: DreamEnv, num_context: int | None = None, seed: int = 0) -> None:
        self.line, self.env = line, env
        self.first_difference: int | None = None
        self._others: dict[int, np.ndarray] = {}  # frames that are not equal, by number
        self._likeness: list[float] = []
        _check_dreamer(line.session, env)
        self.is_same_dreamer = is_same_dreamer(line.session, env)
        self.begun_from, self.num_given = self._begin(env.opening_frames if num_context is None else num_context, seed)
        self.num_known = self.num_given

    def _begin(self, num_context: int, seed: int) -> tuple[str, int]:
        """Begin the dream; return from what, and how many frames of the line are known by that."""
        found = self.line.root(("context_frames", "context_actions", "start_state"))
        chance = {"dream_seed": int(self.line.start.get("dream_seed", seed))}
        if "context_frames" in found and "context_actions" in found:
            given = {"frames": found["context_frames"], "actions": found["context_actions"]}
            self.env.reset(seed=0, options=given | chance)
            return "context", 1
        if "start_state" in found and self.is_same_dreamer:
            self.env.unpack_state(found["start_state"].tobytes(), self.line.frame(0))
            return "state", 1
        if len(self.line) <= num_context:
            raise DataError(
                f"{self.line.session.path}: this line has {len(self.line)} frames, and {num_context} of them are "
                f"given to the dream: choose a longer line, or --context {max(1, len(self.line) - 1)} or less"
            )
        frames = np.stack([self.line.frame(number) for number in range(num_context)])
        given = {"frames": frames, "actions": self.line.actions[: num_context - 1]}
        self.env.reset(seed=0, options=given | chance)
        return "frames", num_context

    def dream_on(self) -> None:
        """Dream the next frame and compare it."""
        number = self.num_known
        frame = self.env.step(int(self.line.actions[number - 1]))[0]
        recorded = self.line.frame(number)
        if not np.array_equal(frame, recorded):
            self._others[number] = frame
            if self.first_difference is None:
                self.first_difference = number
        self._likeness.append(psnr(recorded, frame))
        self.num_known += 1

    def frame(self, number: int) -> np.ndarray:
        """Return a frame that is known, uint8 (H, W, 3)."""
        return self._others[number] if number in self._others else self.line.frame(number)

    @property
    def verdict(self) -> str:
        """What the comparison says so far, in words."""
        if self.first_difference is not None:
            return f"dreamt again: differs from frame {self.first_difference} on"
        if self.num_known == self.num_given:
            return "dreamt again: nothing is compared yet"
        return f"dreamt again: equal up to frame {self.num_known - 1}"

    def report(self) -> dict[str, object]:
        """Return what the comparison found.

        Returns:
            checkpoint; is_same_dreamer, whether weights and settings are those of the recording; begun_from;
            frames_compared; first_difference, the number of a frame on the line, or None; first_difference_place,
            its episode and frame in the file; psnr_mean and psnr_last, dB, at most 60; engine and recorded_engine,
            how steps run: compiled ones differ from others in rounding.
        """
        first = self.first_difference
        return {
            "checkpoint": self.env.identity["checkpoint"],
            "is_same_dreamer": self.is_same_dreamer,
            "begun_from": self.begun_from,
            "frames_compared": self.num_known - self.num_given,
            "first_difference": first,
            "first_difference_place": None if first is None else list(self.line.place(first)),
            "psnr_mean": round(float(np.mean(self._likeness)), 2) if self._likeness else None,
            "psnr_last": round(self._likeness[-1], 2) if self._likeness else None,
            "engine": self.env.engine,
            "recorded_engine": self.line.start.get("engine"),
        }


def _check_dreamer(session: Session, env: DreamEnv) -> None:
    """Refuse a dreamer that cannot dream what a session shows."""
    info, name, size = session.info, env.identity["checkpoint"], env.frame_size
    for what, theirs, ours in (
        ("the world", info.world, env.world.name),
        ("the actions", ", ".join(info.action_names), ", ".join(env.action_set.names)),
        ("frames of a size of", info.image_size, size),
    ):
        if theirs != ours:
            raise DataError(
                f"{session.path} shows {what} {theirs}, and {name} dreams {ours}: give a checkpoint of its own world"
            )


def is_same_dreamer(session: Session, env: DreamEnv) -> bool:
    """Return whether an environment has the weights and the settings that a session was dreamt with."""
    mine, theirs = env.identity, session.info
    if mine["checkpoint_hash"] != theirs.checkpoint_hash:
        return False
    names = ("num_steps", "memory_frames", "schedule", "dtype")
    return all(mine["settings"][name] == theirs.settings.get(name) for name in names)


def find_dreamer(line: Line, checkpoint: str | None) -> dict[str, Any]:
    """Return what dreams a line again, as options of play.

    Args:
        line: of a session.
        checkpoint: name or folder; None: that of the session, by its name.

    Returns:
        checkpoint; and where it has the weights that the session was dreamt with also steps, memory, schedule, threads
        and compile as they were then.

    Raises:
        ConfigError: none is given, and the session shows a real world.
        CheckpointError: none is given, and that of the session is not found, or has other weights now.
    """
    from worldmodel.checkpoint import weights_hash

    info, path = line.session.info, line.session.path
    if checkpoint is None and info.source != "dream":
        raise ConfigError(f"{path} shows the real world, which no checkpoint dreamt: give --checkpoint")
    name = info.checkpoint if checkpoint is None else checkpoint
    try:
        found_hash = weights_hash(name)
    except CheckpointError as error:
        if checkpoint is not None:
            raise
        raise CheckpointError(f"{path} was dreamt by {name!r}, which is not found: give --checkpoint") from error
    if found_hash == info.checkpoint_hash:
        names = {"num_steps": "steps", "memory_frames": "memory", "schedule": "schedule", "threads": "threads"}
        found = {names[name]: value for name, value in info.settings.items() if name in names}
        is_compiled = line.start.get("engine") == "compiled"
        return {"checkpoint": name, "compile": "wait" if is_compiled else "off"} | found
    if checkpoint is None:
        raise CheckpointError(
            f"{path} was dreamt by {name!r} with the weights {info.checkpoint_hash}, and {name!r} has {found_hash} "
            "now: give --checkpoint to dream it with others"
        )
    return {"checkpoint": name}


class ReplaySession:
    """A line that is shown; beside it the dream, where it is dreamt again, or the real world, where that was recorded.

    Args:
        line: to show.
        redream: the dream of it, or None.
        fps: frames a second; None: those of the recording.
    """

    is_session_open = False

    def __init__(self, line: Line, redream: Redream | None = None, fps: float | None = None) -> None:
        self.line, self.redream = line, redream
        self.fps = line.session.info.fps if fps is None else fps
        self.number = 0
        self._video = VideoTrack()
        self.view = self.go_to(0)

    @property
    def num_frames(self) -> int:
        """Frames of the line."""
        return len(self.line)

    @property
    def device(self) -> str | None:
        """Where it is dreamt again, or None."""
        return None if self.redream is None else str(self.redream.env.device)

    @property
    def is_recording(self) -> bool:
        """A video is open and takes every frame that is shown."""
        return self._video.is_open

    @property
    def num_known(self) -> int:
        """Frames that can be shown now: all, or those dreamt so far."""
        return self.num_frames if self.redream is None else self.redream.num_known

    def dream_on(self) -> None:
        """Dream the next frame that is not known yet, where the line is dreamt again."""
        if self.redream is not None:
            self.redream.dream_on()

    def go_to(self, number: int) -> View:
        """Show a frame, the nearest there is; what is not dreamt yet is dreamt first.

        Raises:
            DataError: the file is damaged. StorageError: the video could not be written; it has stopped.
        """
        number = min(max(number, 0), self.num_frames - 1)
        start_s = time.perf_counter()
        while number >= self.num_known:
            self.dream_on()
        step_ms = (time.perf_counter() - start_s) * 1000.0
        self.number = number
        self.view = self._make_view(number, step_ms)
        self._video.add(self.view.frame)
        return self.view

    def _make_view(self, number: int, step_ms: float) -> View:
        line, frame = self.line, self.line.frame(number)
        caption = self._describe(number)
        if self.redream is not None:
            dreamt = self.redream.frame(number)
            likeness = psnr(frame, dreamt)
            frame = compose(frame, dreamt, likeness)
            caption += ["left recorded, right dreamt again", f"{likeness:.1f} dB alike", self.redream.verdict]
        elif line.has_real:
            real = line.frame(number, "real_frames")
            likeness = psnr(real, frame)
            frame = compose(real, frame, likeness)
            caption += ["left real, right dream", f"{likeness:.1f} dB alike"]
        last = max(1, self.num_frames - 1)
        return View(
            frame=frame,
            seed=int(line.start.get("seed", 0)),
            step=number,
            action_name=line.session.info.action_names[line.actions[number - 1]] if number else "",
            reward_total=float(line.rewards[:number].sum()),
            ending=line.endings[number],
            step_ms=step_ms,
            engine=None if self.redream is None else self.redream.env.engine,
            marks=tuple(mark for where, mark in line.marks if where <= number),
            caption=tuple(caption),
            bar=Bar(number / last, tuple(where / last for where, _ in line.marks)),
        )

    def _describe(self, number: int) -> list[str]:
        """Return where a frame is, and what there was in the second before."""
        line, since = self.line, number - EVENT_S * self.fps
        episode, frame = line.place(number)
        found = [f"replay {number} / {self.num_frames - 1}   episode {episode} frame {frame}"]
        found += [f"mark {mark} at frame {where}" for where, mark in line.marks if since < where <= number]
        for first, second in line.revisits:
            if since < second <= number:
                alike = psnr(line.frame(first), line.frame(second))
                found.append(f"frame {second} shows frame {first} again: {alike:.1f} dB")
        return found

    def start_video(self, path: str | os.PathLike[str], scale: int | None = None) -> None:
        """Record what is shown from the present frame on; arguments and errors as `VideoTrack.start`."""
        self._video.start(path, self.fps, scale, self.view.frame)

    def stop_video(self) -> Path | None:
        """Finish the open video; return its file, or None. Errors as `VideoTrack.stop`."""
        return self._video.stop()

    def close(self) -> list[Path]:
        """Finish the open video and close what dreams; return the files that were finished.

        Raises:
            StorageError: the video could not be finished.
        """
        try:
            made = self.stop_video()
        finally:
            if self.redream is not None:
                self.redream.env.close()
        return [] if made is None else [made]


def run_replay(session: ReplaySession, num_steps: int | None = None) -> dict[str, object]:
    """Show a line from its first frame on without a screen, as fast as it goes.

    Args:
        session: at its first frame.
        num_steps: steps to show; None: all.

    Returns:
        frames shown, fps (of the whole loop), world, source, line (the places where it ends in each episode), episodes
        of the file, marks and revisits on the line; and what `Redream.report` says.

    Raises:
        DataError: the file is damaged. StorageError: the open video cannot be written.
    """
    line = session.line
    count = min(session.num_frames - 1, session.num_frames if num_steps is None else num_steps)
    start_s = time.perf_counter()
    for number in tqdm(range(1, count + 1), unit="frame", disable=None):
        with held():
            session.go_to(number)
    elapsed_s = time.perf_counter() - start_s
    report: dict[str, object] = {
        "frames": count + 1,
        "fps": round(count / elapsed_s, 2),
        "world": line.session.info.world,
        "source": line.session.info.source,
        "line": [list(stop) for stop in line.stops],
        "episodes": len(line.session.episodes),
        "marks": len(line.marks),
        "revisits": len(line.revisits),
    }
    return report if session.redream is None else report | session.redream.report()
