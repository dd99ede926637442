"""What a recording is: its options, which episode goes into which shard with which seeds, and how one is played.

Owns: the plan and the making of one shard. Does not know how a shard is laid out (`envs.data.episodes`), how the world
works (a Gymnasium id), how the player moves (`envs.worlds.labmaze.explorer`), or who runs the plan (`train.record`).

An episode follows from the seed and its own number alone, so a recording is the same for any number of workers. A maze
seed that 16 divides is a test maze, in this and every other recording: no training set holds it.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import load_env_creator

import envs  # noqa: F401  registers the worlds
from envs.actions import LABMAZE_ACTIONS
from envs.data.episodes import SPLITS, ShardWriter
from envs.worlds.labmaze.explorer import Explorer
from worldmodel.errors import ConfigError, SeedError

TEST_MAZE_DIVISOR = 16


@dataclass(frozen=True)
class RecordOptions:
    """Record a real world into HDF5 shards; run again with the same options it goes on where it stopped."""

    out: Path
    """Folder of the shards; made if missing."""
    world: str = "LabMaze"
    """World to record, as in the Gymnasium id Real/<world>-v0."""
    episodes: int = 100
    """How many episodes; each has a maze of its own. 0 records nothing and only shows (--view) what is there."""
    length: int = 480
    """Most steps of an episode (15 a second)."""
    workers: int = field(default_factory=lambda: os.cpu_count() or 1)
    """Processes that record side by side; 1 records in this process. The recording does not depend on it."""
    seed: int = 0
    """Seed of the recording."""
    palette: str = "classic"
    """Textures of the world: classic, full or plain."""
    image_size: int = 64
    """Height and width of a frame in pixels."""
    size: int = 9
    """Cells of the maze on a side, walls included."""
    max_wall_run: int | None = None
    """Most blocks that one wall texture covers in a straight run; default what the world takes."""
    num_targets: int | None = None
    """Targets of a maze; default what the world takes."""
    depth: bool = False
    """Record how far away what each frame shows is as well; for worlds that can tell."""
    test_fraction: float = 0.05
    """Share of the episodes recorded in test mazes."""
    episodes_per_shard: int = 8
    """Episodes in one file."""
    view: Path | None = None
    """Write a contact sheet (.png) or a video (.mp4) of the recording."""

    def __post_init__(self) -> None:
        least = {"episodes": 0, "length": 1, "workers": 1, "episodes_per_shard": 1, "image_size": 8}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ConfigError(f"{name} must be at least {low}; got {getattr(self, name)}")
        if self.seed < 0:
            raise SeedError(f"seed must be 0 or more; got {self.seed}")
        if not 0.0 <= self.test_fraction < 1.0:
            raise ConfigError(f"test fraction must be at least 0 and below 1; got {self.test_fraction}")
        if self.view is not None and self.view.suffix.lower() not in (".png", ".mp4"):
            raise ConfigError(f"view must name a .png or .mp4 file; got {str(self.view)!r}")


@dataclass(frozen=True)
class ShardJob:
    """One file to record: its name and the numbers of its episodes."""

    name: str
    split: str
    episodes: tuple[int, ...]


def is_test_maze(maze_seed: int) -> bool:
    """Return whether a maze is kept for testing, in every recording."""
    return maze_seed % TEST_MAZE_DIVISOR == 0


def episode_seeds(seed: int, episode: int, split: str) -> tuple[int, int, int]:
    """Return (environment seed, maze seed, player seed) of an episode, each below 2**31."""
    state = np.random.SeedSequence([seed, episode]).generate_state(4)
    env_seed, block, rest, player_seed = (int(value) % 2**31 for value in state)
    offset = 0 if split == "test" else 1 + rest % (TEST_MAZE_DIVISOR - 1)
    return env_seed, block // TEST_MAZE_DIVISOR * TEST_MAZE_DIVISOR + offset, player_seed


def plan_shards(options: RecordOptions) -> list[ShardJob]:
    """Return the shards of a recording; test shards lie evenly among the others, so that either can be used early."""
    num_test = round(options.episodes * options.test_fraction)
    if options.test_fraction > 0 and options.episodes > 1:
        num_test = max(num_test, 1)
    numbers = {"test": range(num_test), "train": range(num_test, options.episodes)}
    placed = []
    for split in SPLITS:
        of_split, per_shard = numbers[split], options.episodes_per_shard
        starts = range(0, len(of_split), per_shard)
        for index, start in enumerate(starts):
            job = ShardJob(f"{split}-{index:05d}.h5", split, tuple(of_split[start : start + per_shard]))
            placed.append(((index + 0.5) / len(starts), job))
    return [job for _, job in sorted(placed, key=lambda item: item[0])]


def make_world(options: RecordOptions) -> gymnasium.Env[Any, Any]:
    """Make the real world; not through `gymnasium.make`, whose wrappers would cut episodes at a length of their own.

    Raises:
        ConfigError: no such world, or the world does not accept an option.
        MissingPackageError: a package of the world is not installed.
    """
    worlds = [name.removeprefix("Real/").removesuffix("-v0") for name in gymnasium.registry if name.startswith("Real/")]
    if options.world not in worlds:
        raise ConfigError(f"unknown world {options.world!r}; use one of {worlds}")
    spec = gymnasium.spec(f"Real/{options.world}-v0")
    creator: Any = load_env_creator(spec.entry_point) if isinstance(spec.entry_point, str) else spec.entry_point
    env: gymnasium.Env[Any, Any] = creator(**world_settings(options))
    return env


def world_settings(options: RecordOptions) -> dict[str, Any]:
    """Return the arguments that the world is made with."""
    chosen = {"max_wall_run": options.max_wall_run, "num_targets": options.num_targets}
    return {
        "size": options.size,
        "image_size": options.image_size,
        "palette": options.palette,
        "max_episode_steps": options.length,
        **{name: value for name, value in chosen.items() if value is not None},
    }


def record_episode(
    env: gymnasium.Env[Any, Any],
    seeds: tuple[int, int, int],
    report: Callable[[int], None],
    with_depth: bool = False,
) -> dict[str, np.ndarray]:
    """Play one episode to its end and return its arrays, as `envs.data.episodes.FIELDS` has them.

    Args:
        env: a world that truncates its episodes.
        seeds: of the environment, the maze and the player.
        report: called with the number of frames made since the last call.
        with_depth: record depth as well, by the world's `render_depth`.

    Raises:
        ConfigError: depth is asked for and the world has no `render_depth`.
    """
    render_depth = getattr(env.unwrapped, "render_depth", None) if with_depth else None
    if with_depth and render_depth is None:
        raise ConfigError(f"{type(env.unwrapped).__name__} cannot tell depth: record without --depth")
    env_seed, maze_seed, player_seed = seeds
    frame, info = env.reset(seed=env_seed, options={"maze_seed": maze_seed})
    player = Explorer(np.random.default_rng(player_seed))
    episode = {name: np.asarray(info[name]) for name in ("layout", "wall_textures", "floor_textures", "targets")}
    report(1)
    frames, poses = [frame], [info["pose"]]
    depths = [] if render_depth is None else [render_depth()]
    steps: dict[str, list[Any]] = {name: [] for name in ("actions", "rewards", "terminated", "truncated", "blocked")}
    is_over = False
    while not is_over:
        action = player.act(info)
        frame, reward, is_terminated, is_truncated, info = env.step(action)
        frames.append(frame)
        poses.append(info["pose"])
        if render_depth is not None:
            depths.append(render_depth())
        values = (action, reward, is_terminated, is_truncated, info["is_blocked"])
        for name, value in zip(steps, values, strict=True):
            steps[name].append(value)
        is_over = is_terminated or is_truncated
        report(1)
    kinds = {"actions": np.uint8, "rewards": np.float32}
    episode |= {name: np.array(values, kinds.get(name, np.bool_)) for name, values in steps.items()}
    episode["frames"] = np.stack(frames)
    episode["pose"] = np.stack(poses).astype(np.float32)
    if depths:
        episode["depth"] = np.stack(depths).astype(np.float16)
    return episode


def record_shard(
    env: gymnasium.Env[Any, Any], job: ShardJob, options: RecordOptions, report: Callable[[int], None]
) -> None:
    """Record one shard; it appears under its name when it is whole.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    with ShardWriter(
        options.out / job.name,
        world=options.world,
        action_names=LABMAZE_ACTIONS.names,
        image_size=options.image_size,
        settings=world_settings(options),
        split=job.split,
    ) as writer:
        for episode in job.episodes:
            seeds = episode_seeds(options.seed, episode, job.split)
            arrays = record_episode(env, seeds, report, options.depth)
            writer.write(arrays, seed=seeds[0], maze_seed=seeds[1], policy=Explorer.name)
