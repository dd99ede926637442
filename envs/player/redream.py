"""The actions of a recorded session, dreamt again and compared with what was recorded.

Owns: from what the dream begins, what dreams it, and the comparison. Does not know windows, keys or threads; of
`envs.dream.DreamEnv` it knows what it can do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from envs.data.sessions import Session
from envs.player.line import Line
from envs.player.view import psnr
from worldmodel.errors import CheckpointError, ConfigError, DataError

if TYPE_CHECKING:
    from envs.dream import DreamEnv


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
