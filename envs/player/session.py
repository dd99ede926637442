"""One play of one environment: its frames, its counters, its recording.

Owns: what is true between a reset and the last step (step count, reward total, whether the episode ended, the open
video). Works for dreams and for real worlds; what an environment does not have (memory, denoising steps) is None.
Does not know windows, keys or threads, and takes no time from the wall but the duration of a step.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any, Protocol, SupportsFloat

import numpy as np

from envs.actions import ActionSet
from envs.player.video import VideoWriter
from worldmodel.errors import SeedError, WorldModelError

DEFAULT_FPS = 15.0
DEFAULT_VIDEO_SIDE = 256


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


class PlaySession:
    """Steps an environment and keeps the account; the environment keeps going after its episode has ended.

    Args:
        env: an unwrapped environment with uint8 (H, W, 3) observations. `fps`, `memory_used`, `memory_frames`,
            `num_steps`, `engine` and `device` are read from it where it has them.
        seed: seed of the first dream, at least 0.
        fps: steps a second of play and of videos; None takes the environment's own.
        actions: what the environment takes; None takes its own `action_set`.

    Raises:
        SeedError: the seed is negative.
    """

    def __init__(
        self, env: PlayableEnv, seed: int = 0, fps: float | None = None, actions: ActionSet | None = None
    ) -> None:
        self.env = env
        own_fps = getattr(env, "fps", None) or env.metadata.get("render_fps") or DEFAULT_FPS
        self.fps = float(own_fps if fps is None else fps)
        self.action_set = env.action_set if actions is None else actions
        self._video: VideoWriter | None = None
        self.view = self.reset(seed)

    @property
    def device(self) -> str | None:
        """Where frames are made ("cpu", "cuda:0"), or None for a world without a model."""
        device = getattr(self.env, "device", None)
        return None if device is None else str(device)

    @property
    def is_recording(self) -> bool:
        """A video is open and takes every further frame."""
        return self._video is not None

    def reset(self, seed: int) -> View:
        """Begin the dream of this seed; an open video goes on with its first frame.

        Raises:
            SeedError: the seed is negative.
            StorageError: the video could not be written; recording has stopped, the dream has begun.
        """
        if seed < 0:
            raise SeedError(f"seed {seed} is negative; use a whole number of at least 0")
        frame, _ = self.env.reset(seed=seed)
        self.view = View(frame=frame, seed=seed, **self._model_facts())
        self._add_to_video(frame)
        return self.view

    def step(self, action: int) -> View:
        """Take one action, add the new frame to the open video.

        Raises:
            ActionError: the action is not in the action set.
            StorageError: the video could not be written; recording has stopped, the step has been taken.
        """
        action = self.action_set.check(action)
        start_s = time.perf_counter()
        frame, reward, terminated, truncated, _ = self.env.step(action)
        step_ms = (time.perf_counter() - start_s) * 1000.0
        ending = "terminated" if terminated else "truncated" if truncated else ""
        self.view = View(
            frame=frame,
            seed=self.view.seed,
            step=self.view.step + 1,
            action_name=self.action_set.names[action],
            reward_total=self.view.reward_total + float(reward),
            ending=self.view.ending or ending,
            step_ms=step_ms,
            **self._model_facts(),
        )
        self._add_to_video(frame)
        return self.view

    def start_video(self, path: str | os.PathLike[str], scale: int | None = None) -> None:
        """Record from the present frame on; an open video is finished first.

        Args:
            path: a file name ending in `.mp4`.
            scale: video pixels per frame pixel; None takes the smallest that makes at least 256 rows.

        Raises:
            ConfigError: the name or the scale is not accepted.
            StorageError: the file cannot be written.
        """
        self.stop_video()
        frame = self.view.frame
        if scale is None:
            scale = max(1, -(-DEFAULT_VIDEO_SIDE // frame.shape[0]))
        self._video = VideoWriter(path, self.fps, scale)
        self._add_to_video(frame)

    def stop_video(self) -> None:
        """Finish the open video, if there is one.

        Raises:
            StorageError: the file could not be finished; recording has stopped.
        """
        video, self._video = self._video, None
        if video is not None:
            video.close()

    def close(self) -> None:
        """Finish the open video and close the environment.

        Raises:
            StorageError: the video could not be finished; the environment is closed all the same.
        """
        try:
            self.stop_video()
        finally:
            self.env.close()

    def _add_to_video(self, frame: np.ndarray) -> None:
        if self._video is None:
            return
        try:
            self._video.add(frame)
        except WorldModelError:
            self._video.discard()
            self._video = None
            raise

    def _model_facts(self) -> dict[str, Any]:
        names = ("memory_used", "memory_frames", "num_steps", "engine")
        return {name: getattr(self.env, name, None) for name in names}
