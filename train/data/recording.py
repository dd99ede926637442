"""What a recording is: its options, which episode goes into which shard with which seeds, and how one is played.

Owns: the plan and the making of one shard. Does not know how a shard is laid out (`envs.data.episodes`), how the world
works, what of it is recorded and who plays it (`envs.worlds`), or who runs the plan (`train.record`).

An episode follows from the seed and its own number alone, so a recording is the same for any number of workers. A scene
seed that 16 divides is a test scene, in this and every other recording: no training set holds it.
"""

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from envs.data.episodes import SPLITS, ShardWriter
from envs.fields import AXES, CORE_FIELDS
from envs.worlds.base import TEST_SCENE_DIVISOR, World
from envs.worlds.registry import get_world
from train.core.options import read_assignments
from worldmodel.errors import ConfigError, SeedError


@dataclass(frozen=True)
class RecordOptions:
    """Record a real world into HDF5 shards; run again with the same options it goes on where it stopped."""

    out: Path
    """Folder of the shards; made if missing."""
    world: str = "LabMaze"
    """World to record: a name (a wrong one lists those there are), or module:class of your own."""
    episodes: int = 100
    """How many episodes; each has a scene of its own. 0 records nothing and only shows (--view) what is there."""
    length: int = 480
    """Most steps of an episode."""
    workers: int = field(default_factory=lambda: os.cpu_count() or 1)
    """Processes that record side by side; 1 records in this process. The recording does not depend on it."""
    seed: int = 0
    """Seed of the recording."""
    image_size: int = 64
    """Height and width of a frame in pixels."""
    set: tuple[str, ...] = ()
    """Settings of the world, such as size=9 num_targets=8; a wrong one lists those there are."""
    depth: bool = False
    """Record how far away what each frame shows is as well; for worlds that can tell."""
    test_fraction: float = 0.05
    """Share of the episodes recorded in test scenes."""
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


def episode_seeds(seed: int, episode: int, split: str) -> tuple[int, int, int]:
    """Return (environment seed, scene seed, player seed) of an episode, each below 2**31."""
    state = np.random.SeedSequence([seed, episode]).generate_state(4)
    env_seed, block, rest, player_seed = (int(value) % 2**31 for value in state)
    offset = 0 if split == "test" else 1 + rest % (TEST_SCENE_DIVISOR - 1)
    return env_seed, block // TEST_SCENE_DIVISOR * TEST_SCENE_DIVISOR + offset, player_seed


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


def world_settings(options: RecordOptions) -> dict[str, Any]:
    """Return the arguments that the world is made with. Errors as `read_assignments`."""
    fixed = {"image_size": options.image_size, "max_episode_steps": options.length}
    world = get_world(options.world)
    made = world.Settings(**read_assignments(world.Settings, options.set, world.name))
    return fixed | {name: value for name, value in dataclasses.asdict(made).items() if value is not None}


def make_world(options: RecordOptions) -> gymnasium.Env[Any, Any]:
    """Make the real world; not through `gymnasium.make`, whose wrappers would cut episodes at a length of their own.

    Raises:
        ConfigError: the world does not accept a setting.
        MissingPackageError: a package of the world is not installed.
    """
    return get_world(options.world).make(**world_settings(options))


def record_episode(
    world: World,
    env: gymnasium.Env[Any, Any],
    seeds: tuple[int, int, int],
    report: Callable[[int], None],
    with_depth: bool = False,
) -> tuple[dict[str, np.ndarray], str]:
    """Play one episode to its end.

    Args:
        world: of the environment.
        env: truncates its episodes.
        seeds: of the environment, the scene and the player.
        report: called with the number of frames made since the last call.
        with_depth: record the field "depth" as well.

    Returns:
        the arrays, `envs.fields.CORE_FIELDS` and those of the world, and the name of who played.

    Raises:
        ConfigError: depth is asked for and the world has none.
    """
    if with_depth and "depth" not in world.fields:
        raise ConfigError(f"{world.name} cannot tell depth: record without --depth")
    fields = {name: field for name, field in world.fields.items() if with_depth or name != "depth"}
    names = {axis: [name for name, field in fields.items() if field.axis == axis] for axis in AXES}
    env_seed, scene_seed, player_seed = seeds
    player = world.policy(np.random.default_rng(player_seed))

    frame, info = env.reset(seed=env_seed, options={"scene_seed": scene_seed})
    whole = world.observe(env, info, names["episode"])
    columns: dict[str, list[Any]] = {name: [] for name in (*CORE_FIELDS, *names["frame"], *names["step"])}

    def keep(values: dict[str, Any]) -> None:
        for name, value in values.items():
            columns[name].append(value)

    keep({"frames": frame} | world.observe(env, info, names["frame"]))
    report(1)
    is_over = False
    while not is_over:
        action = player.act(info)
        frame, reward, is_terminated, is_truncated, info = env.step(action)
        keep({"actions": action, "rewards": reward, "terminated": is_terminated, "truncated": is_truncated})
        keep({"frames": frame} | world.observe(env, info, [*names["frame"], *names["step"]]))
        is_over = is_terminated or is_truncated
        report(1)
    columns |= whole
    kinds = CORE_FIELDS | fields
    return {name: np.asarray(values).astype(kinds[name].dtype) for name, values in columns.items()}, player.name


def record_shard(
    env: gymnasium.Env[Any, Any], job: ShardJob, options: RecordOptions, report: Callable[[int], None]
) -> None:
    """Record one shard; it appears under its name when it is whole.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    world = get_world(options.world)
    with ShardWriter(
        options.out / job.name,
        world=options.world,
        action_names=world.actions.names,
        image_size=options.image_size,
        settings=world_settings(options),
        split=job.split,
        fields=world.fields,
    ) as writer:
        for episode in job.episodes:
            seeds = episode_seeds(options.seed, episode, job.split)
            arrays, player = record_episode(world, env, seeds, report, options.depth)
            writer.write(arrays, seed=seeds[0], scene_seed=seeds[1], policy=player)
