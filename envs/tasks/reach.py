"""The Reach task: something that pays is in view at the start, and the first reward ends the episode.

Owns: where episodes start, when they end, and the entry points of Real/NAMEReach-v0 and Dream/NAMEReach-v0. Where
something that pays is in view is the world's (`World.find_reach_start`, `World.find_seen_size`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsFloat

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import VectorEnv

from envs.dreamer import Dreamer, check_seed
from envs.tasks.starts import Openings, read_starts
from envs.worlds.base import World
from envs.worlds.registry import get_world
from envs.worlds.vector import make_real_vector
from worldmodel.errors import ConfigError

if TYPE_CHECKING:
    from envs.dream import DreamEnv
    from envs.vector import DreamVectorEnv

CHANCE = 0x52454143  # set apart from what the world draws with the same seed
START_SIZES = {"near": (16.0, 48.0), "far": (8.0, 16.0), "any": (8.0, 48.0)}
"""By the argument `start`: smallest size of what pays and the one that is too large, pixels of 64 a frame."""

StartChooser = Callable[[gymnasium.Env[np.ndarray, np.int64], np.random.Generator], dict[str, Any]]
"""Draws where an episode of a world, which it may reset, starts: options of the environment's reset."""

_START_OPTIONS = ("scene_seed", "pose", "targets_reached", "opening", "frames", "actions")


class Reach(gymnasium.Wrapper[np.ndarray, np.int64, np.ndarray, np.int64]):
    """A world whose episodes start at a drawn start and end at the first reward.

    It keeps no chance of its own: a seed or the world's `np_random` draws a start, so a snapshot of the world is one of
    the task. It can be pickled and copied as far as the world and `choose_start` can.

    Args:
        env: the world.
        choose_start: draws a start in the world; all its chance comes from the generator that it is given.
    """

    def __init__(self, env: gymnasium.Env[np.ndarray, np.int64], choose_start: StartChooser) -> None:
        super().__init__(env)
        self._choose_start = choose_start

    @property
    def spec(self) -> EnvSpec | None:  # type: ignore[override]
        """As registered; this wrapper is part of it."""
        return self.env.spec

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start at a start drawn by the seed; or where `options` say, as the world's reset takes them.

        Without a seed, the start is drawn by what the world's `np_random` gives next.

        Raises:
            SeedError: the seed is negative or not an integer. Others as the world's reset and the choice of a start.
        """
        checked, options = check_seed(seed), options or {}
        if any(name in options for name in _START_OPTIONS):
            return self.env.reset(seed=seed, options=options)

        drawn = int(self.env.unwrapped.np_random.integers(2**63 - 1)) if checked is None else checked
        start = self._choose_start(self.env, np.random.default_rng([drawn, CHANCE]))
        return self.env.reset(seed=seed, options=start | options)

    def step(self, action: np.int64) -> tuple[np.ndarray, SupportsFloat, bool, bool, dict[str, Any]]:
        """Take a step of the world; a reward ends the episode."""
        frame, reward, terminated, truncated, info = self.env.step(action)
        return frame, reward, bool(terminated or float(reward) > 0), truncated, info


def find_sizes(start: str, min_size_px: float | None, max_size_px: float | None) -> tuple[float, float]:
    """Return the smallest size of what pays at a start, and the one that is too large.

    Args:
        start: a name of `START_SIZES`.
        min_size_px: in place of the former.
        max_size_px: in place of the latter.

    Raises:
        ConfigError: no such name, a size is no number, or the sizes leave nothing.
    """
    if start not in START_SIZES:
        raise ConfigError(f"start {start!r} is not accepted; use one of {', '.join(START_SIZES)}")
    low, high = START_SIZES[start]
    low, high = _read_size("min_size_px", min_size_px, low), _read_size("max_size_px", max_size_px, high)
    if not 0 < low < high:
        raise ConfigError(f"sizes from {low:g} to {high:g} pixels leave nothing; take min_size_px below max_size_px")
    return low, high


def _read_size(name: str, value: float | None, default: float) -> float:
    """Return a size as a float, and `default` for None; ConfigError where it is no number."""
    try:
        return default if value is None else float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"{name} {value!r} is not accepted; take pixels of 64, such as {default:g}") from error


@dataclass(frozen=True)
class RealStarts:
    """Draws starts in a real world: a `StartChooser` that can be pickled.

    Attributes:
        world: whose starts.
        split: of the scenes, as `World.find_reach_start`.
        sizes_px: smallest size of what pays and the one that is too large, pixels of 64 a frame.
    """

    world: World
    split: str
    sizes_px: tuple[float, float]

    def __call__(self, env: gymnasium.Env[np.ndarray, np.int64], rng: np.random.Generator) -> dict[str, Any]:
        """Draw a start; errors as `World.find_reach_start`."""
        return self.world.find_reach_start(env, rng, self.split, self.sizes_px, num_actions=0).options


def make_real_reach(
    world: str,
    split: str = "test",
    start: str = "any",
    min_size_px: float | None = None,
    max_size_px: float | None = None,
    **settings: Any,
) -> Reach:
    """Make the task in a real world: the entry point of Real/NAMEReach-v0.

    Args:
        world: name of a world.
        split: of the scenes: "test", those that no recording for training shows; "train", the others; "any".
        start: "near", "far" or "any", see `START_SIZES`.
        min_size_px: smallest size of what pays at a start, pixels of 64 a frame; None: by `start`.
        max_size_px: size that is too large; None: by `start`.
        settings: of the world, as `World.make`.

    Raises:
        ConfigError: a setting is not accepted. MissingPackageError: a package of the world is not installed.
    """
    choose_start = RealStarts(get_world(world), split, find_sizes(start, min_size_px, max_size_px))
    return Reach(choose_start.world.make(**({"max_episode_steps": None} | settings)), choose_start)


@dataclass(frozen=True)
class DreamReach:
    """The task in dreams, as `envs.dreamer.DreamTask`.

    Attributes:
        sizes_px: smallest size of what pays in the last frame of an opening, and the one too large, pixels of 64.
        starts: file of `envs.tasks.starts.record_starts`; None: the openings of the bundle.
    """

    sizes_px: tuple[float, float]
    starts: str | Path | None = None
    ends_at_reward: bool = True

    def choose_openings(self, dreamer: Dreamer) -> tuple[np.ndarray, np.ndarray]:
        """Return the openings of the sizes.

        Raises:
            ConfigError: none is of these sizes. Others as `read_starts` and `World.find_seen_size`.
        """
        world, (low, high) = dreamer.world, self.sizes_px
        if self.starts is None:
            frames, actions = dreamer.frames.numpy(), dreamer.actions.numpy()
            seen_px = [world.find_seen_size(picture) for picture in frames[:, -1]]
            found = Openings(frames, actions, np.array(seen_px, np.float32))
        else:
            found = read_starts(Path(self.starts), world.name, world.actions.names, dreamer.frame_size)

        fitting = found.of_sizes(low, high)
        if not len(fitting.frames):
            raise ConfigError(
                f"none of the {len(found.frames)} openings of {self.starts or dreamer.name} shows what pays at {low:g} "
                f"to {high:g} pixels: take other sizes, or record starts with train.starts and give starts=PATH"
            )
        return fitting.frames, fitting.actions


def make_dream_reach(
    starts: str | Path | None = None,
    start: str = "any",
    min_size_px: float | None = None,
    max_size_px: float | None = None,
    **settings: Any,
) -> "DreamEnv":
    """Make the task in a dream: the entry point of Dream/NAMEReach-v0.

    Args:
        starts: file of `envs.tasks.starts.record_starts`; None: those openings of the bundle that show what pays, which
            are too few to learn from.
        start: "near", "far" or "any", see `START_SIZES`.
        min_size_px: as `make_real_reach`.
        max_size_px: as `make_real_reach`.
        settings: of `DreamEnv`. Errors as there, and as `DreamReach.choose_openings`.
    """
    from envs.dream import DreamEnv

    return DreamEnv(task=DreamReach(find_sizes(start, min_size_px, max_size_px), starts), **settings)


def make_dream_reach_vector(
    num_envs: int,
    starts: str | Path | None = None,
    start: str = "any",
    min_size_px: float | None = None,
    max_size_px: float | None = None,
    **settings: Any,
) -> "DreamVectorEnv":
    """Make the task in many dreams: the vector entry point of Dream/NAMEReach-v0.

    Args:
        num_envs: how many.
        starts, start, min_size_px, max_size_px: as `make_dream_reach`.
        settings: of `DreamVectorEnv`. Errors as there.
    """
    from envs.vector import DreamVectorEnv  # torch: seconds to import

    return DreamVectorEnv(num_envs, task=DreamReach(find_sizes(start, min_size_px, max_size_px), starts), **settings)


def make_real_reach_vector(num_envs: int, world: str, **settings: Any) -> VectorEnv[Any, Any, Any]:
    """Make the task in many real worlds: the vector entry point of Real/NAMEReach-v0; as `make_real_vector`."""
    return make_real_vector(num_envs, world, id="Real/{world}Reach-v0", **settings)


# What `gymnasium.make` reads before it makes one: for render_mode="human" it shows frames in a window of its own.
make_real_reach.metadata = {"render_modes": ["rgb_array"]}  # type: ignore[attr-defined]
make_dream_reach.metadata = {"render_modes": ["rgb_array"]}  # type: ignore[attr-defined]
