"""A dream and the real world that it was learned from, walked side by side by the same actions.

Owns: that both begin alike, and what is said of how far they come apart. Knows worlds and dreams by what every one has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, SupportsFloat

import numpy as np

from envs.player.session import psnr
from envs.player.side_by_side import compose

if TYPE_CHECKING:
    import gymnasium

    from envs.dream import DreamEnv
    from envs.worlds.base import World


OF_THE_DREAM = (
    *("fps", "memory_used", "memory_frames", "num_steps", "engine", "compile_progress", "device"),
    *("identity", "context", "pack_state"),
)
"""What of a dream holds for both; there is no way back, as the real world has none."""


class BesideEnv:
    """A dream, with the real world beside it; what is observed, rewarded and recorded is the dream.

    A reset begins the real world by the seed and walks it by its policy; those frames are what the dream begins from.
    Equal seeds and actions give equal frames.

    Args:
        dream: what dreams; this object closes it.
        real: the real world, with frames of the same size; this object closes it.
        num_context: frames to walk before the dream begins, at least 1; None: as many as openings have.

    Attributes:
        picture: uint8 (H, 2 W + gutter, 3), what there is to see: left the real world, right the dream.
        likeness: PSNR in dB of the two.
    """

    def __init__(
        self, dream: DreamEnv, real: gymnasium.Env[np.ndarray, np.int64], num_context: int | None = None
    ) -> None:
        self.dream, self.real = dream, real
        self.world: World = dream.world
        self.action_set, self.metadata = dream.action_set, dream.metadata
        self.picture = np.zeros((0, 0, 3), np.uint8)
        self.likeness = 0.0
        self._num_context = dream.opening_frames if num_context is None else num_context
        self._real_frame = self.picture
        self._real_reward = 0.0
        self._real_ending = ""
        self._likenesses: list[float] = []

    def __getattr__(self, name: str) -> Any:
        """Return what the dream says of itself."""
        if name in OF_THE_DREAM:
            return getattr(self.dream, name)
        raise AttributeError(name)

    def reset(self, *, seed: int | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin both; errors as `DreamEnv.reset` and the real world's.

        Returns:
            the frame uint8 (H, W, 3) that both begin with, and info: whole numbers that the real world and the dream
            say of their beginning.
        """
        frame, info = self.real.reset(seed=seed)
        policy = self.world.policy(np.random.default_rng(seed))
        frames, actions = [frame], []
        while len(frames) < self._num_context:
            actions.append(policy.act(info))
            frame, _, _, _, info = self.real.step(np.int64(actions[-1]))
            frames.append(frame)
        given = {"frames": np.stack(frames), "actions": np.array(actions, np.uint8)}
        dreamt, said = self.dream.reset(seed=seed, options=given)
        self._real_reward, self._real_ending = 0.0, ""
        self._likenesses.clear()
        self._take(frame, dreamt)
        return dreamt, {name: value for name, value in info.items() if isinstance(value, int | np.integer)} | said

    def step(self, action: int) -> tuple[np.ndarray, SupportsFloat, bool, bool, dict[str, Any]]:
        """Take an action in both; return what the dream does, as `DreamEnv.step`."""
        frame, reward, terminated, truncated, _ = self.real.step(np.int64(action))
        self._real_reward += float(reward)
        ending = "terminated" if terminated else "truncated" if truncated else ""
        self._real_ending = self._real_ending or ending
        result = self.dream.step(action)
        self._take(frame, result[0])
        self._likenesses.append(self.likeness)
        return result

    def _take(self, real: np.ndarray, dreamt: np.ndarray) -> None:
        self._real_frame = real
        self.likeness = psnr(real, dreamt)
        self.picture = compose(real, dreamt, self.likeness)

    @property
    def caption(self) -> tuple[str, ...]:
        """Lines for the player."""
        ending = f", {self._real_ending}" if self._real_ending else ""
        reward = f"real reward {self._real_reward:g}{ending}"
        return "left real, right dream", f"{self.likeness:.1f} dB alike", reward

    @property
    def recorded_pictures(self) -> dict[str, np.ndarray]:
        """Pictures to record beside the dream's."""
        return {"real_frames": self._real_frame}

    @property
    def findings(self) -> dict[str, object]:
        """What was found since the reset: psnr_mean and psnr_last, dB, at most 60, and real_reward."""
        found = self._likenesses
        return {
            "psnr_mean": round(float(np.mean(found)), 2) if found else None,
            "psnr_last": round(found[-1], 2) if found else None,
            "real_reward": self._real_reward,
        }

    def close(self) -> None:
        """Close both."""
        try:
            self.real.close()
        finally:
            self.dream.close()
