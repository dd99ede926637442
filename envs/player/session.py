"""One play of one environment: its frames, its counters, its recordings, its marks, and the way back.

Owns: what is true between a reset and the last step (step count, reward total, whether the episode ended, the open
video, the open session file, marks). Works for dreams and for real worlds; what an environment does not have (memory,
denoising steps, snapshots) is None. Does not know windows, keys or threads, and takes no time from the wall but the
duration of a step.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, SupportsFloat

import numpy as np
from tqdm import tqdm

from envs.actions import ActionSet
from envs.data.video import VideoTrack
from envs.fields import POSE, Field
from envs.player.timeline import Timeline
from worldmodel.errors import SeedError, StateError, WorldModelError

if TYPE_CHECKING:
    from envs.data.sessions import Place, SessionWriter
    from envs.worlds.base import World

DEFAULT_FPS = 15.0


class PlayableEnv(Protocol):
    """What of `gymnasium.Env` play needs, and the action set that most of our environments have."""

    action_set: ActionSet
    metadata: dict[str, Any]

    def reset(self, *, seed: int | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """As `gymnasium.Env.reset`."""

    def step(self, action: int) -> tuple[np.ndarray, SupportsFloat, bool, bool, dict[str, Any]]:
        """As `gymnasium.Env.step`, and going on after the end of an episode."""

    def close(self) -> None:
        """As `gymnasium.Env.close`."""


class Bar(NamedTuple):
    """A bar under the picture.

    Attributes:
        share: how much of it is full, from 0 to 1.
        ticks: places on it, from 0 to 1.
    """

    share: float
    ticks: tuple[float, ...] = ()


@dataclass(frozen=True, eq=False)
class View:
    """What there is to see after a reset or a step; never changed once made, so threads may share it.

    Attributes:
        frame: uint8 (H, W, 3) RGB.
        seed: seed of the dream.
        step: steps taken since the reset.
        action_name: name of the action that led here, "" after a reset.
        reward_total: sum of rewards since the reset.
        ending: "" while the episode goes on, else "terminated" or "truncated"; it stays set while play continues.
        step_ms: milliseconds that the environment took for this step; 0 after a reset.
        memory_used: frames remembered now, or None.
        memory_frames: frames that can be remembered, or None.
        num_steps: denoising steps a frame, or None.
        engine: how the steps run, such as "compiled", or None.
        compile_progress: how far compiling is, in words, or None.
        marks: numbers of the marks that lie behind, oldest first.
        chosen_mark: number of the mark that the player wants to come back to, or None.
        likeness: PSNR in dB of the frame to that of the chosen mark, or None.
        caption: further lines to show, of what is particular to what is played.
        bar: to draw under the picture, or None.
    """

    frame: np.ndarray
    seed: int
    step: int = 0
    action_name: str = ""
    reward_total: float = 0.0
    ending: str = ""
    step_ms: float = 0.0
    memory_used: int | None = None
    memory_frames: int | None = None
    num_steps: int | None = None
    engine: str | None = None
    compile_progress: str | None = None
    marks: tuple[int, ...] = ()
    chosen_mark: int | None = None
    likeness: float | None = None
    caption: tuple[str, ...] = ()
    bar: Bar | None = None


class Marked(NamedTuple):
    """A frame that the player will come back to.

    Attributes:
        number: of the mark, from 1.
        step: at which it was made.
        frame: uint8 (H, W, 3), what it showed.
        recorded: the session file that was open, and the mark there; or None.
    """

    number: int
    step: int
    frame: np.ndarray
    recorded: Any


class _Kept(NamedTuple):
    """A moment to go back to: the view, where it is in the session file, and the marks there were."""

    view: View
    observed: np.ndarray
    place: Place | None
    marks: tuple[Marked, ...]


class PlaySession:
    """Steps an environment and keeps the account; the environment keeps going after its episode has ended.

    Args:
        env: an unwrapped environment with uint8 (H, W, 3) observations. Where it has them, there are used `fps`,
            `memory_used`, `memory_frames`, `num_steps`, `engine`, `compile_progress`, `device`, `identity`, `context`,
            `pack_state`, `snapshot`, `restore`, `picture` (what there is to see, where that is more than what is
            observed), `caption` and `recorded_pictures`.
        seed: seed of the first dream, at least 0.
        fps: steps a second of play and of videos; None takes the environment's own.
        actions: what the environment takes; None takes its own `action_set`.
        world: the real world that is played, for what it records beside frames; None for a dream.
        keeps_way_back: keep the last minute to rewind to, half a gigabyte for a dream; False where nobody will.

    Raises:
        SeedError: the seed is negative.
    """

    def __init__(
        self,
        env: PlayableEnv,
        seed: int = 0,
        fps: float | None = None,
        actions: ActionSet | None = None,
        world: World | None = None,
        keeps_way_back: bool = True,
    ) -> None:
        self.env = env
        own_fps = getattr(env, "fps", None) or env.metadata.get("render_fps") or DEFAULT_FPS
        self.fps = float(own_fps if fps is None else fps)
        self.action_set = env.action_set if actions is None else actions
        self.chosen_mark: int | None = None
        self._world = world
        self._video = VideoTrack()
        self._writer: SessionWriter | None = None
        self._marks: list[Marked] = []
        self._info: dict[str, Any] = {}
        self._is_at_start = False
        self._recorded_engine = ""
        self._kept: tuple[Any, _Kept] | None = None
        can_rewind = keeps_way_back and hasattr(env, "snapshot") and hasattr(env, "restore")
        self._timeline: Timeline[_Kept] | None = Timeline(env, self.fps) if can_rewind else None  # type: ignore[arg-type]
        self.view = self.reset(seed)

    @property
    def device(self) -> str | None:
        """Where frames are made ("cpu", "cuda:0"), or None for a world without a model."""
        device = getattr(self.env, "device", None)
        return None if device is None else str(device)

    @property
    def faults(self) -> tuple[str, ...]:
        """What is known against the world that is played, a sentence each."""
        return tuple(getattr(self.env, "faults", ()))

    @property
    def is_recording(self) -> bool:
        """A video is open and takes every further frame."""
        return self._video.is_open

    @property
    def is_session_open(self) -> bool:
        """A session file is open and takes every further step."""
        return self._writer is not None

    @property
    def marks(self) -> list[Marked]:
        """The marks that lie behind, oldest first."""
        return list(self._marks)

    def reset(self, seed: int) -> View:
        """Begin the dream of this seed; open recordings go on with its first frame.

        Raises:
            SeedError: the seed is negative.
            StorageError: a recording could not be written; it has stopped, the dream has begun.
        """
        if seed < 0:
            raise SeedError(f"seed {seed} is negative; use a whole number of at least 0")
        self._observed, self._info = self.env.reset(seed=seed)
        self._is_at_start = True
        self._marks.clear()
        self.view = View(frame=self._picture, seed=seed, **self._model_facts())
        self._record(lambda writer: self._begin_episode(writer, None))
        return self.view

    def step(self, action: int) -> View:
        """Take one action; open recordings take the new frame.

        Raises:
            ActionError: the action is not in the action set.
            StorageError: a recording could not be written; it has stopped, the step has been taken.
        """
        action = self.action_set.check(action)
        start_s = time.perf_counter()
        frame, reward, terminated, truncated, info = self.env.step(action)
        step_ms = (time.perf_counter() - start_s) * 1000.0
        self._observed, self._info, self._is_at_start = frame, info, False
        ending = "terminated" if terminated else "truncated" if truncated else ""
        self.view = View(
            frame=self._picture,
            seed=self.view.seed,
            step=self.view.step + 1,
            action_name=self.action_set.names[action],
            reward_total=self.view.reward_total + float(reward),
            ending=self.view.ending or ending,
            step_ms=step_ms,
            **self._model_facts(),
        )
        self._show_marks()
        values = self._world_values("frame", "step")
        self._record(lambda writer: self._add_step(writer, action, float(reward), terminated, truncated, values))
        return self.view

    def _add_step(
        self,
        writer: SessionWriter,
        action: int,
        reward: float,
        terminated: bool,
        truncated: bool,
        values: Mapping[str, Any],
    ) -> None:
        writer.add(action, self._observed, reward, terminated, truncated, values, self._further_pictures)
        # Compiled frames differ from others in rounding: who dreams this again wants to know.
        if self._engine != self._recorded_engine:
            self._recorded_engine = self._engine
            writer.note(f"{self._engine} from step {self.view.step} on")

    def mark(self) -> Marked:
        """Remember this frame, to come back to.

        Raises:
            StorageError: the session file could not be written; it is closed, the mark is made.
        """
        number = self._marks[-1].number + 1 if self._marks else 1
        error: WorldModelError | None = None
        recorded = None
        if self._writer is not None:
            try:
                recorded = self._writer, self._writer.mark()
            except WorldModelError as failure:
                self._writer, error = None, failure
        self._marks.append(Marked(number, self.view.step, self._observed, recorded))
        self.chosen_mark = number
        self._show_marks()
        if error is not None:
            raise error
        return self._marks[-1]

    def choose_mark(self, number: int) -> Marked:
        """Choose the mark that likeness is shown to and `come_back` means.

        Raises:
            StateError: there is none of this number.
        """
        found = {mark.number: mark for mark in self._marks}
        if number not in found:
            raise StateError(
                f"there is no mark {number}; there are {', '.join(map(str, found)) or 'none: M makes one'}"
            )
        self.chosen_mark = number
        self._show_marks()
        return found[number]

    def come_back(self) -> tuple[Marked, float]:
        """Say that this frame shows what the chosen mark showed; return the mark, and how alike they are, PSNR in dB.

        Raises:
            StateError: there is no mark, or this frame is the mark itself.
            StorageError: the session file could not be written; it is closed.
        """
        mark = self.choose_mark(self.chosen_mark or 0)
        if mark.step == self.view.step:
            raise StateError(f"this is mark {mark.number} itself: walk on, and come back")
        if self._writer is not None and mark.recorded is not None and mark.recorded[0] is self._writer:
            try:
                self._writer.revisit(mark.recorded[1])
            except WorldModelError:
                self._writer = None
                raise
        return mark, psnr(mark.frame, self._observed)

    def start_session(self, path: str | os.PathLike[str]) -> None:
        """Record everything from here on to a session file; an open one is finished first.

        Args:
            path: a file name ending in `.h5`.

        Raises:
            ConfigError: the name is not accepted.
            StorageError: the file cannot be written.
        """
        from envs.data.sessions import SessionInfo, SessionWriter  # h5py: only who records needs it

        self.stop_session()
        identity = getattr(self.env, "identity", {})
        world = self._world or getattr(self.env, "world", None)
        info = SessionInfo(
            world="" if world is None else world.name,
            action_names=self.action_set.names,
            image_size=self._observed.shape[0],
            fps=self.fps,
            source="dream" if identity else "real",
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            **identity,
        )
        fields = {name: self._fields[name] for name in self._field_names("frame", "step", "episode")}
        self._writer = SessionWriter(Path(path), info, fields)
        try:
            self._begin_episode(self._writer, None)
        except WorldModelError:
            self._writer = None
            raise

        # Of moments before, the file knows nothing.
        if self._kept is not None:
            self._kept = self._kept[0], self._kept[1]._replace(place=None)
        if self._timeline is not None:
            self._timeline.clear()
            self._timeline.add(self._now())

    def stop_session(self, report: Callable[[float], None] = lambda share: None) -> Path | None:
        """Finish the open session file; return it, or None where none is open or nothing was played.

        Args:
            report: told now and then how far it is, from 0 to 1.

        Raises:
            StorageError: the file could not be made; what was recorded is kept beside it.
        """
        writer, self._writer = self._writer, None
        return None if writer is None else writer.close(report)

    @property
    def can_rewind(self) -> bool:
        """Whether there is a way back: the environment has snapshots."""
        return self._timeline is not None

    def look_back(self, steps: int) -> View:
        """Return what was shown so many steps ago, or the oldest there is; play stays where it is.

        Raises:
            StateError: the environment has no snapshots.
        """
        return self._way_back().look(steps).view

    @property
    def steps_back(self) -> int:
        """How many steps `look_back` reaches."""
        return 0 if self._timeline is None else len(self._timeline)

    def rewind(self, steps: int) -> View:
        """Go back so many steps, or up to a second more; an open session file goes on with a fork.

        Raises:
            StateError: the environment has no snapshots.
            StorageError: a recording could not be written; it has stopped, play is where it was asked to be.
        """
        kept = self._way_back().go_back(steps)
        return self._go_on_from(kept)

    def keep(self) -> View:
        """Keep this moment for `return_to_kept`.

        Raises:
            StateError: the environment has no snapshots.
        """
        self._way_back()
        self._kept = self.env.snapshot(), self._now()  # type: ignore[attr-defined]
        return self.view

    def return_to_kept(self) -> View:
        """Go to the moment that was kept last. Errors as `rewind`; StateError also where none was kept."""
        self._way_back()
        if self._kept is None:
            raise StateError("no moment was kept: F5 keeps one")
        snapshot, kept = self._kept
        self.env.restore(snapshot)  # type: ignore[attr-defined]
        self._way_back().clear()
        return self._go_on_from(kept)

    def _way_back(self) -> Timeline[_Kept]:
        if self._timeline is None:
            raise StateError("this world cannot go back: it has no snapshots")
        return self._timeline

    def _go_on_from(self, kept: _Kept) -> View:
        """Play goes on from a moment in which the environment is already."""
        self._is_at_start = False
        self._observed = kept.observed
        self.view = dataclasses.replace(kept.view, **self._model_facts())
        self._marks = list(kept.marks)
        if self.chosen_mark not in [mark.number for mark in self._marks]:
            self.chosen_mark = self._marks[-1].number if self._marks else None
        self._show_marks()
        # Of what lies before an open session file, and of other dreams, nothing is known there.
        self._record(lambda writer: self._begin_episode(writer, kept.place), is_jump=True)
        return self.view

    def _begin_episode(self, writer: SessionWriter, parent: Place | None) -> None:
        """Tell the session file that an episode begins with the present frame."""
        given: dict[str, Any] = {}
        told = {k: int(v) if isinstance(v, np.integer) else v for k, v in self._info.items()}
        start = {"seed": self.view.seed} | {k: v for k, v in told.items() if isinstance(v, int | float | str)}
        if self._engine:
            self._recorded_engine = start["engine"] = self._engine
        # A moment that was kept is no start, whatever its step: the context is that of the last reset.
        if parent is None and self._is_at_start and hasattr(self.env, "context"):
            given = dict(zip(("context_frames", "context_actions"), self.env.context, strict=True))
        elif parent is None and hasattr(self.env, "pack_state"):
            given = {"start_state": self.env.pack_state()}
        values = self._world_values("frame", "episode")
        start |= {"step": self.view.step}
        pictures = self._further_pictures
        writer.begin(self._observed, start=start, parent=parent, values=values, pictures=pictures, **given)

    def _field_names(self, *axes: str) -> list[str]:
        """Return the fields of the world that a session holds; depth costs more than all else."""
        return [name for name, field in self._fields.items() if field.axis in axes and name != "depth"]

    @property
    def _fields(self) -> Mapping[str, Field]:
        """What can be recorded beside frames: of the real world what it declares, of a dream its own pose."""
        if self._world is not None:
            return self._world.fields
        return {} if getattr(self.env, "pose", None) is None else {"pose": POSE}

    def _world_values(self, *axes: str) -> Mapping[str, Any]:
        if self._writer is None:
            return {}
        wanted: Collection[str] = self._field_names(*axes)
        if self._world is None:
            return {name: getattr(self.env, name) for name in wanted}
        return self._world.observe(self.env, self._info, wanted)  # type: ignore[arg-type]

    def _show_marks(self) -> None:
        """Put the marks, and how alike the frame is to the chosen one, into the view."""
        chosen = [mark.frame for mark in self._marks if mark.number == self.chosen_mark]
        likeness = psnr(chosen[0], self._observed) if chosen else None
        numbers = tuple(mark.number for mark in self._marks)
        chosen_mark = self.chosen_mark if chosen else None
        self.view = dataclasses.replace(self.view, marks=numbers, chosen_mark=chosen_mark, likeness=likeness)

    def _now(self) -> _Kept:
        place = None if self._writer is None else self._writer.place
        return _Kept(self.view, self._observed, place, tuple(self._marks))

    def _record(self, write: Any, is_jump: bool = False) -> None:
        """Hand the present frame to all recordings; where one fails it stops, and the others go on."""
        failed: WorldModelError | None = None
        if self._writer is not None:
            try:
                write(self._writer)
            except WorldModelError as error:
                self._writer, failed = None, error  # what was written is kept beside it
        try:
            self._video.add(self.view.frame)
        except WorldModelError as error:
            failed = failed or error
        if self._timeline is not None:
            if self.view.step == 0 and not is_jump:
                self._timeline.clear()
            if not is_jump or not len(self._timeline):
                self._timeline.add(self._now())
        if failed is not None:
            raise failed

    def start_video(self, path: str | os.PathLike[str], scale: int | None = None) -> None:
        """Record from the present frame on; an open video is finished first.

        Args:
            path: a file name ending in `.mp4`.
            scale: video pixels per frame pixel; None takes the smallest that makes at least 256 rows.

        Raises:
            ConfigError: the name or the scale is not accepted.
            StorageError: the file cannot be written.
        """
        self._video.start(path, self.fps, scale, self.view.frame)

    def stop_video(self) -> Path | None:
        """Finish the open video; return its file, or None where none is open.

        Raises:
            StorageError: the file could not be finished; recording has stopped.
        """
        return self._video.stop()

    def close(self) -> list[Path]:
        """Finish the open recordings and close the environment; return the files that were finished.

        Raises:
            StorageError: a recording could not be finished; the environment is closed all the same.
        """
        made: list[Path | None] = []
        try:
            made.append(self.stop_video())
        finally:
            try:
                # For people at a terminal: an hour of play takes a minute.
                with tqdm(total=1.0, desc="saving the session", disable=None if self.is_session_open else True) as bar:
                    made.append(self.stop_session(lambda share: _move(bar, share)))
            finally:
                self.env.close()
        return [path for path in made if path is not None]

    @property
    def _engine(self) -> str:
        """How steps run, in a word: compiled, uncompiled, or "" for a world without a model."""
        return (self.view.engine or "").partition(":")[0].partition(",")[0]

    def _model_facts(self) -> dict[str, Any]:
        names = ("memory_used", "memory_frames", "num_steps", "engine", "compile_progress")
        facts = {name: getattr(self.env, name, None) for name in names}
        return facts | {"caption": getattr(self.env, "caption", ())}

    @property
    def _picture(self) -> np.ndarray:
        """What there is to see: what is observed, unless the environment shows more."""
        picture: np.ndarray = getattr(self.env, "picture", self._observed)
        return picture

    @property
    def _further_pictures(self) -> dict[str, np.ndarray]:
        """What is recorded beside the frames that are observed."""
        return dict(getattr(self.env, "recorded_pictures", {}))


def _move(bar: Any, share: float) -> None:
    bar.update(share - bar.n)


def psnr(first: np.ndarray, second: np.ndarray) -> float:
    """Return how alike two frames uint8 (H, W, 3) are, PSNR in dB, at most 60."""
    error = float(np.mean((first.astype(np.float32) - second.astype(np.float32)) ** 2)) / 255.0**2
    return float(-10 * np.log10(max(error, 1e-6)))
