"""Episodes on disk: HDF5 shards, each a file of a few whole episodes.

Owns: the layout of a shard, writing one (all or nothing), checking and reading it, and the alignment of actions and
frames. Does not know how episodes come about, which policy played them, or what a model does with them.

Layout: group `episode_00000` and on, with a dataset for each recorded field; the file carries `format`, `version`,
`world`, `action_names`, `fields` (name -> dtype, axis, number of axes), `image_size`, `alignment`, `settings` and
`split`, an episode `seed`, `scene_seed` and `policy`. Version 1 declared no fields and said `maze_seed`; it is read.
"""

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

import h5py
import numpy as np

from envs.fields import CORE_FIELDS, DEPTH, POSE, Field
from worldmodel.errors import ConfigError, DataError, ShapeError, StateError
from worldmodel.files import write_file

FORMAT = "worldmodel-episodes"
VERSION, OLD_VERSION = 2, 1
ALIGNMENT = "action[t] leads from frame[t] to frame[t+1]"
SPLITS = ("train", "test")
RECORD_COMMAND = "python -m train.record --world NAME --episodes 100 --length 480 --out DIR"


V1_FIELDS: dict[str, Field] = CORE_FIELDS | {
    "pose": POSE,
    "depth": DEPTH,
    "blocked": Field("bool", "step", 1),
    "layout": Field("uint8", "episode", 2),
    "wall_textures": Field("uint8", "episode", 2),
    "floor_textures": Field("uint8", "episode", 2),
    "targets": Field("float32", "episode", 2),
}
"""What shards of version 1 may hold, as they do not say; a world may declare other fields since."""


@dataclass(frozen=True)
class EpisodeInfo:
    """Where one episode lies and how long it is; frames number 0 to `num_frames` - 1, steps one fewer."""

    path: Path
    key: str
    num_frames: int
    seed: int
    scene_seed: int
    policy: str
    fields: tuple[str, ...]

    @property
    def num_steps(self) -> int:
        """Number of actions: one fewer than frames."""
        return self.num_frames - 1


@dataclass(frozen=True)
class ShardInfo:
    """The header of one readable shard and its episodes, in the order they were written."""

    path: Path
    world: str
    split: str
    image_size: int
    action_names: tuple[str, ...]
    settings: dict[str, Any]
    episodes: tuple[EpisodeInfo, ...]
    fields: dict[str, Field]


def check_arrays(arrays: dict[str, Any], image_size: int, num_actions: int, fields: Mapping[str, Field]) -> int:
    """Check the arrays (or HDF5 datasets) of one episode against the fields declared for them and each other.

    Args:
        arrays: field name -> array with `dtype` and `shape`.
        image_size: height and width that frames must have, pixels.
        num_actions: actions must be below this (checked for in-memory arrays only).
        fields: what may be there.

    Returns:
        The number of steps T, at least 1.

    Raises:
        ShapeError: a field is missing, unknown, or of another dtype or shape than the rest implies.
    """
    missing = [name for name, field in fields.items() if field.is_required and name not in arrays]
    unknown = [name for name in arrays if name not in fields]
    if missing or unknown:
        raise ShapeError(f"episode fields missing: {missing}, unknown: {unknown}; accepted: {sorted(fields)}")
    num_steps = int(arrays["actions"].shape[0]) if arrays["actions"].ndim else 0
    if num_steps < 1:
        raise ShapeError(f"an episode needs at least one action; got actions of shape {arrays['actions'].shape}")
    for name, array in arrays.items():
        field = fields[name]
        rows = {"frame": num_steps + 1, "step": num_steps}.get(field.axis)
        if array.dtype != np.dtype(field.dtype) or array.ndim != field.ndim or (rows and array.shape[0] != rows):
            raise ShapeError(
                f"{name} must be {field.dtype} with {field.ndim} axes and {rows or 'any number of'} rows for "
                f"{num_steps} steps; got {array.dtype} {tuple(array.shape)}"
            )
    if tuple(arrays["frames"].shape[1:]) != (image_size, image_size, 3):
        raise ShapeError(f"frames must be {image_size} x {image_size} x 3; got {tuple(arrays['frames'].shape[1:])}")
    if "depth" in arrays:  # of every pixel, or of every 2 x 2
        size = tuple(arrays["depth"].shape[1:])
        if size not in ((image_size, image_size), (image_size // 2, image_size // 2)):
            accepted = f"{image_size} x {image_size} or {image_size // 2} x {image_size // 2}"
            raise ShapeError(f"depth must be {accepted} for frames of {image_size} pixels; got {size}")
    if isinstance(arrays["actions"], np.ndarray) and int(arrays["actions"].max()) >= num_actions:
        raise ShapeError(f"actions must be below {num_actions}; got {int(arrays['actions'].max())}")
    return num_steps


def shard_header(
    world: str,
    action_names: Sequence[str],
    image_size: int,
    settings: Mapping[str, Any],
    split: str,
    fields: Mapping[str, Field],
) -> dict[str, Any]:
    """Return the attributes of a shard's file.

    Args:
        world: its name.
        action_names: the action set.
        image_size: height and width of a frame, pixels.
        settings: JSON values.
        split: one of `SPLITS`.
        fields: all that episodes may hold.
    """
    header = {"format": FORMAT, "version": VERSION, "world": world, "action_names": json.dumps(list(action_names))}
    header |= {"image_size": image_size, "alignment": ALIGNMENT, "settings": json.dumps(dict(settings)), "split": split}
    return header | {"fields": json.dumps({name: list(field) for name, field in fields.items()})}


class ShardWriter:
    """Context manager that writes one shard: built in memory, put on disk whole when the block ends without error.

    Built in memory because HDF5 leaves unreadable files and open handles behind when a disk runs full under it.

    Raises (on entering `__exit__`): StorageError when the file cannot be written, StateError when it has no episode.
    """

    def __init__(
        self,
        path: Path,
        *,
        world: str,
        action_names: Sequence[str],
        image_size: int,
        settings: dict[str, Any],
        split: str,
        fields: Mapping[str, Field] = MappingProxyType({}),
        action_dtype: str = "uint8",
    ) -> None:
        """Begin a shard.

        Args:
            path: the file.
            world: name of the world, as `envs.worlds.registry` has it.
            action_names: of its actions.
            image_size: height and width of frames, pixels.
            settings: what the world was made with.
            split: "train" or "test".
            fields: what may be recorded beside `CORE_FIELDS`.
            action_dtype: type of actions, an unsigned integer type of NumPy.

        Raises:
            ConfigError: the split or the type is not accepted.
        """
        if split not in SPLITS:
            raise ConfigError(f"split must be one of {SPLITS}; got {split!r}")
        if np.dtype(action_dtype).kind != "u":
            raise ConfigError(f"action_dtype must be an unsigned integer type; got {action_dtype!r}")
        self.path, self.image_size, self.num_actions, self.world = path, image_size, len(action_names), world
        actions = CORE_FIELDS["actions"]._replace(dtype=action_dtype)
        self.fields = CORE_FIELDS | dict(fields) | {"actions": actions}
        self._num_episodes = 0
        self._file = h5py.File(path.name, "w", driver="core", backing_store=False)
        header = shard_header(world, action_names, image_size, settings, split, self.fields)
        self._file.attrs.update(header)

    def write(self, arrays: dict[str, np.ndarray], *, seed: int, scene_seed: int, policy: str) -> None:
        """Add one episode.

        Args:
            arrays: `CORE_FIELDS` and any of the declared ones, with T steps and T + 1 frames.
            seed: the seed given to the environment's reset.
            scene_seed: the seed of its scene.
            policy: who played.

        Raises:
            ShapeError: an array is missing or does not fit the others or the shard.
        """
        check_arrays(arrays, self.image_size, self.num_actions, self.fields)
        group = self._file.create_group(f"episode_{self._num_episodes:05d}")
        group.attrs.update({"seed": seed, "scene_seed": scene_seed, "policy": policy})
        for name, array in arrays.items():
            if self.fields[name].axis == "frame" and array.ndim > 2:
                chunks = (min(8, len(array)), *array.shape[1:])
                group.create_dataset(
                    name, data=array, chunks=chunks, compression="gzip", compression_opts=1, fletcher32=True
                )
            else:
                group.create_dataset(name, data=array)
        self._num_episodes += 1

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is not None:
                return
            if not self._num_episodes:
                raise StateError(f"{self.path} has no episode; write at least one before closing it")
            self._file.flush()
            write_file(self.path, self._file.id.get_file_image())
        finally:
            self._file.close()


def declared_fields(file: h5py.File) -> dict[str, Field]:
    """Return what an open shard may hold, by its own declaration."""
    if int(file.attrs["version"]) == OLD_VERSION:
        return V1_FIELDS
    return {name: Field(*row) for name, row in json.loads(file.attrs["fields"]).items()}


def read_shard(path: Path) -> ShardInfo:
    """Read and check the header and the dataset shapes of one shard.

    Raises:
        DataError: the file is not a whole, valid shard; the message names it and says why.
    """
    try:
        with h5py.File(path, "r") as file:
            version = int(file.attrs.get("version", 0))
            if file.attrs.get("format") != FORMAT or version not in (VERSION, OLD_VERSION):
                found = f"{file.attrs.get('format')!r} version {file.attrs.get('version')}"
                raise DataError(f"{path} is {found}; expected {FORMAT!r} version {VERSION}: record it again")
            if file.attrs["alignment"] != ALIGNMENT:
                raise DataError(f"{path} has alignment {file.attrs['alignment']!r}; expected {ALIGNMENT!r}: convert it")
            image_size, names = int(file.attrs["image_size"]), tuple(json.loads(file.attrs["action_names"]))
            fields, seed_name = declared_fields(file), "scene_seed" if version == VERSION else "maze_seed"
            episodes = []
            for key in sorted(file):
                group = file[key]
                num_steps = check_arrays(dict(group.items()), image_size, len(names), fields)
                seeds = int(group.attrs["seed"]), int(group.attrs[seed_name])
                policy = str(group.attrs["policy"])
                episodes.append(EpisodeInfo(path, key, num_steps + 1, *seeds, policy, tuple(group)))
            if not episodes:
                raise DataError(f"{path} holds no episode: delete it and record again")
            world, split = str(file.attrs["world"]), str(file.attrs["split"])
            settings = json.loads(file.attrs["settings"])
            return ShardInfo(path, world, split, image_size, names, settings, tuple(episodes), fields)
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path} is damaged or truncated ({reason}): delete it and record again") from error


def open_shards(
    folder: Path | str,
    split: str | None = None,
    image_size: int | None = None,
    num_actions: int | None = None,
    strict: bool = False,
) -> list[ShardInfo]:
    """List the shards of a folder, each checked.

    Args:
        folder: where the `.h5` files lie.
        split: "train", "test" or None for both.
        image_size: frame height and width every shard must have, pixels; None: all must agree.
        num_actions: number of actions every shard must have; None: all must agree.
        strict: raise on a damaged shard instead of skipping it with a warning that names it.

    Returns:
        At least one shard, sorted by file name.

    Raises:
        ConfigError: `split` is not one of `SPLITS`.
        DataError: no folder, no shard, none readable, or a shard of another frame size or action set.
    """
    if split not in (None, *SPLITS):
        raise ConfigError(f"split must be one of {SPLITS} or None; got {split!r}")
    folder = Path(folder)
    paths = sorted(folder.glob("*.h5")) if folder.is_dir() else []
    if not paths:
        state = "holds no episode shards (*.h5)" if folder.is_dir() else "is not a folder"
        raise DataError(f"{folder} {state}; record some first: {RECORD_COMMAND.replace('DIR', str(folder))}")

    shards = []
    for path in paths:
        try:
            shards.append(read_shard(path))
        except DataError as error:
            if strict:
                raise
            warnings.warn(f"skipped: {error}", stacklevel=2)

    if not shards:
        raise DataError(f"none of the {len(paths)} shards in {folder} can be read; first {paths[0]}: record again")

    image_size = image_size or shards[0].image_size
    num_actions = num_actions or len(shards[0].action_names)
    for shard in shards:
        if shard.image_size != image_size:
            raise DataError(
                f"{shard.path} has frames of {shard.image_size} x {shard.image_size}; expected {image_size} x "
                f"{image_size}: record again with --image-size {image_size} or point to another folder"
            )
        if len(shard.action_names) != num_actions or shard.action_names != shards[0].action_names:
            raise DataError(
                f"{shard.path} has {len(shard.action_names)} actions {list(shard.action_names)}; expected {num_actions}"
                f" like {list(shards[0].action_names)}: keep recordings of different action sets in different folders"
            )

    chosen = [shard for shard in shards if split in (None, shard.split)]
    if not chosen:
        raise DataError(f"{folder} has no {split!r} shards among {len(shards)}: record with another --test-fraction")
    return chosen


def read_episode(
    info: EpisodeInfo, start: int = 0, stop: int | None = None, fields: Sequence[str] = ("frames", "actions")
) -> dict[str, np.ndarray]:
    """Read frames `start` to `stop` of one episode and the steps between them.

    Args:
        info: the episode.
        start: first frame.
        stop: one past the last frame; None: to the end.
        fields: names of fields.

    Returns:
        Per-frame fields with stop - start rows (frames: uint8 (n, H, W, 3)), per-step fields with one row fewer
        (actions: uint8 (n - 1,)), and whole per-episode fields.

    Raises:
        ConfigError: the window is empty or leaves the episode, or a field is unknown or not recorded.
        DataError: the file is damaged or gone.
    """
    stop = info.num_frames if stop is None else stop
    if not 0 <= start < stop <= info.num_frames:
        raise ConfigError(f"frames {start}:{stop} leave {info.key} of {info.path}, which has 0:{info.num_frames}")
    absent = [name for name in fields if name not in info.fields]
    if absent:
        raise ConfigError(f"fields {absent} are not in {info.key} of {info.path}; it has {list(info.fields)}")
    windows = {"frame": slice(start, stop), "step": slice(start, stop - 1), "episode": slice(None)}
    try:
        with h5py.File(info.path, "r") as file:
            declared = declared_fields(file)
            return {name: file[info.key][name][windows[declared[name].axis]] for name in fields}
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{info.path}, {info.key}: cannot read ({reason}): delete it and record again") from error
