"""What dreams, for one dream or many: a bundle that was loaded, its openings, and what a reset may be asked for.

Owns: loading, the check that the world is the one that is known here, and the checks of seeds and options. Knows no
Gymnasium: `envs.dream` has one dream of it, `envs.vector` many.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from envs.worlds.base import World
from envs.worlds.registry import get_world
from worldmodel.counts import read_whole
from worldmodel.errors import CheckpointError, ConfigError, SeedError, ShapeError, StateError
from worldmodel.windows import parse_schedule

if TYPE_CHECKING:
    import torch

    from worldmodel.state import Step
    from worldmodel.world import WorldModel

SEED_LIMIT = 2**63


class DreamTask(Protocol):
    """What dreams are for: from where they begin, and whether the first reward ends them."""

    @property
    def ends_at_reward(self) -> bool:
        """Whether the first reward ends a dream."""
        ...

    def choose_openings(self, dreamer: "Dreamer") -> tuple[np.ndarray, np.ndarray]:
        """Return what dreams begin from: frames uint8 (K, T, H, W, 3), and actions between them uint8 (K, T - 1)."""
        ...


@dataclass(frozen=True)
class Dreamer:
    """A bundle, loaded.

    Attributes:
        model: dreams.
        world: what it dreams of.
        frames: uint8 (K, T, H, W, 3), openings.
        actions: uint8 (K, T - 1), between their frames.
        name: of the bundle.
        schedule: as it was given.
        identity: what a snapshot must agree with, by name: the hash of the weights, the memory, the schedule and the
            format of numbers.
        ends_at_reward: whether the first reward ends a dream.
    """

    model: "WorldModel"
    world: World
    frames: "torch.Tensor"
    actions: "torch.Tensor"
    name: str
    schedule: str
    identity: dict[str, str]
    ends_at_reward: bool = False

    def prepare(self, task: DreamTask | None) -> "Dreamer":
        """Return this, dreaming for a task; errors as the task's choice of openings."""
        if task is None:
            return self
        import torch

        frames, actions = (torch.from_numpy(part) for part in task.choose_openings(self))
        return replace(self, frames=frames, actions=actions, ends_at_reward=task.ends_at_reward)

    def judge(self, step: "Step") -> "Step":
        """Return a step with the ends that the task says."""
        return step._replace(terminated=step.terminated | (step.rewards > 0)) if self.ends_at_reward else step

    @property
    def num_openings(self) -> int:
        """Openings that a reset can draw from."""
        return int(self.frames.shape[0])

    @property
    def frame_size(self) -> int:
        """Height and width of a frame."""
        return self.model.codec.config.image_size

    def check_snapshot(self, of: dict[str, str]) -> None:
        """Check that a snapshot is of what dreams here.

        Raises:
            StateError: it is of another bundle, memory, schedule or format of numbers.
        """
        mine = self.identity
        if other := [name for name in mine if mine[name] != of.get(name)]:
            theirs, ours = (", ".join(f"{name} {found.get(name)}" for name in other) for found in (of, mine))
            raise StateError(f"this snapshot is of {theirs}; this environment has {ours}: make one like it to go there")

    def check_context(self, frames: Any, actions: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return frames to dream on from, uint8 (T, H, W, 3), and the actions between them, uint8 (T - 1,).

        Raises:
            ShapeError: frames or actions of another size. ActionError: an action that does not exist.
        """
        frames, actions = np.asarray(frames), np.asarray(() if actions is None else actions)
        size = (self.frame_size, self.frame_size, 3)
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1:] != size or not len(frames):
            raise ShapeError(
                f"option frames must be uint8 (T, {size[0]}, {size[1]}, 3); got {frames.dtype} {frames.shape}"
            )
        if actions.shape != (len(frames) - 1,):
            raise ShapeError(
                f"option actions must be ({len(frames) - 1},), those between the frames; got {actions.shape}"
            )
        checked = [self.world.actions.check(action) for action in actions]
        return frames, np.array(checked, np.uint8)


def load_dreamer(name: str, schedule: str, device: str, num_steps: int | None, memory_frames: int | None) -> Dreamer:
    """Load a bundle by name or folder, and check that its world is the one that is known here.

    Raises:
        CheckpointError, ConfigError, DeviceError, WindowError: as `envs.dream.DreamEnv` says.
    """
    from worldmodel.checkpoint import load_openings, weights_hash  # torch: seconds to import
    from worldmodel.world import WorldModel

    parsed = parse_schedule(schedule)
    model = WorldModel.load(
        name,
        device=device,
        num_steps=parsed.num_steps if num_steps is None else num_steps,
        memory_frames=memory_frames,
        window=parsed.window,
    )
    openings, world = load_openings(name), find_world(model.info, name)
    if model.num_actions != world.actions.num_actions:
        raise CheckpointError(f"{name} takes {model.num_actions} actions; {world.name} has {world.actions.num_actions}")
    identity = {
        "weights": weights_hash(name),
        "memory_frames": str(model.memory_frames),
        "schedule": str(model.window),
        "dtype": str(model.dtype),
    }
    return Dreamer(model, world, openings["frames"], openings["actions"], Path(name).name, schedule, identity)


def find_world(info: dict[str, Any], name: str) -> World:
    """Return the world that a bundle says it dreams of.

    Args:
        info: of the bundle.
        name: of the bundle, for messages.

    Raises:
        CheckpointError: it says none, or one that is not known here.
    """
    try:
        return get_world(str(info["world"]))
    except KeyError as error:
        raise CheckpointError(f"{name} does not say what world it dreams of: make it with train.bundle") from error
    except ConfigError as error:
        raise CheckpointError(f"{name} dreams of a world that is not known here: {error}") from error


def draw_opening(rng: np.random.Generator, num_openings: int) -> tuple[int, int]:
    """Draw the opening of a dream and the seed of its chance, as a reset does.

    Args:
        rng: of `gymnasium.utils.seeding.np_random`.
        num_openings: openings to draw from.
    """
    return int(rng.integers(num_openings)), int(rng.integers(2**62))


def check_seed(seed: Any) -> int | None:
    """Return the seed of a reset as an int, or None.

    Raises:
        SeedError: it is negative or not a whole number.
    """
    if seed is None:
        return None
    found = read_whole(seed)
    if found is None or found < 0:
        raise SeedError(f"seed must be a whole number of at least 0; got {seed!r}")
    return found


def check_option(name: str, value: Any, limit: int) -> int:
    """Return an option of reset as an int from 0 to below `limit`.

    Raises:
        ConfigError: it is not that.
    """
    found = read_whole(value)
    if found is None or not 0 <= found < limit:
        raise ConfigError(f"reset option {name} must be a whole number from 0 to {limit - 1}; got {value!r}")
    return found


def to_info_pose(poses: "torch.Tensor") -> "torch.Tensor":
    """Return poses of dreams, float32 (..., 5), as info has them: (..., 3), x and y in cells, heading in degrees."""
    import torch

    heading = poses[..., 3:4].rad2deg().remainder(360)
    heading = torch.where(heading < 360, heading, 0.0)  # the remainder of a little less than nothing is rounded up
    return torch.cat([poses[..., :2], heading], -1)


def refuse_unknown(options: Sequence[str], accepted: str) -> None:
    """Check that no option of reset is left.

    Raises:
        ConfigError: one is.
    """
    if options:
        raise ConfigError(f"reset accepts {accepted}; got {', '.join(sorted(options))}")
