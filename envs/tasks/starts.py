"""Files of starts: a few real frames that lead to something that pays, to begin dreams from.

Owns: recording starts, the file, and reading it. Which starts there are is the world's (`World.find_reach_start`).

A file is HDF5. Attributes: `format`, `version`, `world`, `action_names` (JSON), `split`, `seed`. Datasets, N rows each:
`frames` uint8 (N, T, H, W, 3), `actions` uint8 (N, T - 1) between them, `sizes_px` float32, `scene_seeds` int64.
"""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from envs.worlds.base import World
from worldmodel.errors import ConfigError, DataError, SeedError
from worldmodel.files import write_file

FORMAT, VERSION = "worldmodel-starts", 1
NUM_FRAMES = 8
_DTYPES = {"frames": "uint8", "actions": "uint8", "sizes_px": "float32", "scene_seeds": "int64"}


class Openings(NamedTuple):
    """What dreams of a task begin from.

    Attributes:
        frames: uint8 (N, T, H, W, 3), the last of each is the first observation of a dream.
        actions: uint8 (N, T - 1), between them.
        sizes_px: float32 (N,), how large what pays is in the last frame, pixels of 64.
    """

    frames: np.ndarray
    actions: np.ndarray
    sizes_px: np.ndarray

    def of_sizes(self, low: float, high: float) -> "Openings":
        """Return those whose size is at least `low` and below `high`."""
        is_fitting = (self.sizes_px >= low) & (self.sizes_px < high)
        return Openings(*(part[is_fitting] for part in self))


def record_starts(
    world: World,
    count: int,
    path: Path,
    *,
    seed: int = 0,
    split: str = "train",
    sizes_px: tuple[float, float] = (8.0, 48.0),
    num_frames: int = NUM_FRAMES,
    **settings: Any,
) -> None:
    """Record starts of the Reach task in the real world.

    Start number i depends on the seed and i alone, so a longer file begins with the shorter one's starts.

    Args:
        world: to record.
        count: N.
        path: of the file, written whole or not at all.
        seed: of all chance.
        split: of the scenes: "train", "test" or "any". Judge what was learned from starts of one in the other.
        sizes_px: smallest size of what pays and the one that is too large, pixels of 64 a frame.
        num_frames: T.
        settings: of the world, as `World.make`.

    Raises:
        ConfigError: a setting is not accepted. SeedError: the seed is negative. DataError: the world has no such
            starts. MissingPackageError: a package of the world is missing. StorageError: the file cannot be written.
    """
    if count < 1 or num_frames < 1:
        raise ConfigError(f"count and num_frames must be at least 1; got {count} and {num_frames}")
    if seed < 0:
        raise SeedError(f"seed must be 0 or more; got {seed}")
    rows: dict[str, list[Any]] = {"frames": [], "actions": [], "sizes_px": [], "scene_seeds": []}
    env = world.make(max_episode_steps=None, **settings)
    try:
        for number in range(count):
            rng = np.random.default_rng([seed, number])
            start = world.find_reach_start(env, rng, split, sizes_px, num_frames - 1)
            frame, info = env.reset(seed=int(rng.integers(2**31)), options=start.options)
            frames = [frame, *(env.step(action)[0] for action in start.actions)]

            row = {"frames": np.stack(frames), "actions": start.actions, "sizes_px": start.size_px}
            for name, value in (row | {"scene_seeds": info.get("scene_seed", -1)}).items():
                rows[name].append(value)
    finally:
        env.close()
    write_file(path, _to_bytes(world, rows, {"split": split, "seed": seed}))


def _to_bytes(world: World, rows: dict[str, list[Any]], said: dict[str, Any]) -> bytes:
    """Return the content of a file."""
    header = {"format": FORMAT, "version": VERSION, "world": world.name}
    header |= {"action_names": json.dumps(list(world.actions.names))} | said
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        file.attrs.update(header)
        for name, values in rows.items():
            packed = {"compression": "gzip", "compression_opts": 1} if name == "frames" else {}
            file.create_dataset(name, data=np.asarray(values, _DTYPES[name]), **packed)
    return content.getvalue()


def read_starts(path: Path, world: str, action_names: Sequence[str], image_size: int) -> Openings:
    """Read a file of starts, for dreams of a world to begin from.

    Args:
        path: of the file.
        world: whose dreams.
        action_names: of its actions.
        image_size: of the dreams' frames.

    Raises:
        DataError: no such file, or it is damaged or of another format.
        ConfigError: its starts are of another world, with other actions or in frames of another size.
    """
    try:
        with h5py.File(path) as file:
            if (file.attrs.get("format"), file.attrs.get("version")) != (FORMAT, VERSION):
                raise DataError(f"{path} is no file of starts of version {VERSION}: record one with train.starts")
            openings = Openings(*(file[name][:] for name in Openings._fields))
            names, found_world = tuple(json.loads(file.attrs["action_names"])), str(file.attrs["world"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a file of starts ({error}): record one with train.starts") from error

    _check_arrays(path, openings)
    mine = (world, tuple(action_names), image_size)
    theirs = (found_world, names, openings.frames.shape[2])
    for what, wanted, found in zip(("of", "with actions", "in frames of size"), mine, theirs, strict=True):
        if wanted != found:
            raise ConfigError(f"{path} holds starts {what} {found}; this dream is {what} {wanted}: record others")
    return openings


def _check_arrays(path: Path, openings: Openings) -> None:
    """Check the shapes and dtypes of what a file holds.

    Raises:
        DataError: they are not those of a file of starts, or do not fit each other.
    """
    for name, part in openings._asdict().items():
        if part.dtype != _DTYPES[name]:
            raise DataError(
                f"{path} is damaged: its {name} are {part.dtype}, not {_DTYPES[name]}; record it with train.starts"
            )

    shape = openings.frames.shape
    if len(shape) != 5 or shape[2] != shape[3] or shape[4] != 3:
        raise DataError(
            f"{path} is damaged: its frames have shape {shape}, not (N, T, H, H, 3); record it with train.starts"
        )
    count, num_frames, *_ = shape
    if openings.actions.shape != (count, num_frames - 1) or openings.sizes_px.shape != (count,):
        raise DataError(f"{path} is damaged: its frames, actions and sizes do not fit; record it with train.starts")
