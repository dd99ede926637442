"""Shards of episodes: what is written is what is read, a file is whole or absent, damage is named."""

import errno
import os
import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from envs.data.episodes import ALIGNMENT, ShardWriter, open_shards, read_episode, read_shard
from envs.fields import CORE_FIELDS, Field
from envs.worlds.labmaze.constants import ACTIONS as LABMAZE_ACTIONS
from envs.worlds.labmaze.spec import LabMaze
from worldmodel.errors import ConfigError, DataError, ShapeError, StateError, StorageError


def make_arrays(num_steps: int = 20, image_size: int = 16, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "frames": rng.integers(0, 256, (num_steps + 1, image_size, image_size, 3), dtype=np.uint8),
        "actions": rng.integers(0, 7, num_steps).astype(np.uint8),
        "rewards": rng.normal(size=num_steps).astype(np.float32),
        "terminated": np.zeros(num_steps, bool),
        "truncated": np.arange(num_steps) == num_steps - 1,
        "blocked": rng.random(num_steps) < 0.5,
        "pose": rng.normal(size=(num_steps + 1, 3)).astype(np.float32),
        "layout": rng.integers(0, 2, (9, 9), dtype=np.uint8),
        "wall_textures": rng.integers(0, 8, (9, 9), dtype=np.uint8),
        "floor_textures": rng.integers(0, 3, (9, 9), dtype=np.uint8),
        "targets": rng.random((4, 2)).astype(np.float32),
    }


def open_writer(
    path: Path, image_size: int = 16, names: Any = LABMAZE_ACTIONS.names, split: str = "train"
) -> ShardWriter:
    return ShardWriter(
        path,
        world="LabMaze",
        action_names=names,
        image_size=image_size,
        settings={"size": 9},
        fields=LabMaze.fields,
        split=split,
    )


def write_shard(
    path: Path, num_episodes: int = 2, image_size: int = 16, names: Any = LABMAZE_ACTIONS.names, split: str = "train"
) -> list[dict[str, np.ndarray]]:
    written = [make_arrays(20 + i, image_size, i) for i in range(num_episodes)]
    with open_writer(path, image_size, names, split) as writer:
        for i, arrays in enumerate(written):
            writer.write(arrays, seed=i, scene_seed=100 + i, policy="test")
    return written


def test_round_trip_of_every_field(tmp_path: Path) -> None:
    written = write_shard(tmp_path / "train-00000.h5")
    (shard,) = open_shards(tmp_path, "train", image_size=16, num_actions=7)
    assert (shard.world, shard.split, shard.image_size, shard.settings) == ("LabMaze", "train", 16, {"size": 9})
    assert shard.action_names == LABMAZE_ACTIONS.names
    for arrays, info in zip(written, shard.episodes, strict=True):
        found = read_episode(info, fields=tuple(arrays))
        assert info.num_frames == len(arrays["frames"]) == info.num_steps + 1
        for name, array in arrays.items():
            assert found[name].dtype == array.dtype, name
            np.testing.assert_array_equal(found[name], array, err_msg=name)
    assert [(e.seed, e.scene_seed, e.policy) for e in shard.episodes] == [(0, 100, "test"), (1, 101, "test")]


def test_window_keeps_actions_between_its_frames(tmp_path: Path) -> None:
    (arrays,) = write_shard(tmp_path / "a.h5", 1)
    info = read_shard(tmp_path / "a.h5").episodes[0]
    window = read_episode(info, 5, 9, ("frames", "actions", "pose", "rewards", "layout"))
    np.testing.assert_array_equal(window["frames"], arrays["frames"][5:9])
    np.testing.assert_array_equal(window["actions"], arrays["actions"][5:8])
    np.testing.assert_array_equal(window["rewards"], arrays["rewards"][5:8])
    assert window["pose"].shape == (4, 3) and window["layout"].shape == (9, 9)


@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (4, 4), (0, 22), (21, None)])
def test_window_outside_episode_is_refused(tmp_path: Path, start: int, stop: int | None) -> None:
    write_shard(tmp_path / "a.h5", 1)
    with pytest.raises(ConfigError, match="0:21"):
        read_episode(read_shard(tmp_path / "a.h5").episodes[0], start, stop)


def test_field_not_recorded_is_refused(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.h5", 1)
    with pytest.raises(ConfigError, match="depth"):
        read_episode(read_shard(tmp_path / "a.h5").episodes[0], fields=("depth",))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("frames", np.zeros((20, 16, 16, 3), np.uint8), "frames must be uint8"),
        ("frames", np.zeros((21, 16, 8, 3), np.uint8), "16 x 16"),
        ("actions", np.full(20, 7, np.uint8), "below 7"),
        ("actions", np.zeros(0, np.uint8), "at least one"),
        ("rewards", np.zeros(20, np.float64), "rewards must be float32"),
        ("pose", np.zeros((20, 3), np.float32), "pose"),
        ("depth", np.zeros(20, np.float32), "depth"),
    ],
)
def test_writer_refuses_arrays_that_do_not_fit(tmp_path: Path, name: str, value: np.ndarray, message: str) -> None:
    with (
        pytest.raises(ShapeError, match=message),
        open_writer(tmp_path / "a.h5") as writer,
    ):
        writer.write({**make_arrays(), name: value}, seed=0, scene_seed=0, policy="test")
    assert not list(tmp_path.iterdir())


def test_missing_frames_are_refused(tmp_path: Path) -> None:
    arrays = make_arrays()
    del arrays["frames"]
    with (
        pytest.raises(ShapeError, match="frames"),
        open_writer(tmp_path / "a.h5") as writer,
    ):
        writer.write(arrays, seed=0, scene_seed=0, policy="test")


def test_writer_refuses_unknown_split_and_empty_shard(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="validation"):
        write_shard(tmp_path / "a.h5", split="validation")
    with pytest.raises(StateError, match="no episode"):
        write_shard(tmp_path / "a.h5", 0)
    assert not list(tmp_path.iterdir())


def test_error_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.h5", 1)
    before = (tmp_path / "a.h5").read_bytes()
    with (
        pytest.raises(KeyboardInterrupt),
        open_writer(tmp_path / "a.h5") as writer,
    ):
        writer.write(make_arrays(), seed=0, scene_seed=0, policy="test")
        raise KeyboardInterrupt
    assert (tmp_path / "a.h5").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.h5"]


@pytest.mark.parametrize(
    ("code", "message"), [(errno.ENOSPC, "disk full.*free some space"), (errno.EACCES, "cannot write")]
)
def test_storage_failure_is_named_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, message: str
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match=message):
        write_shard(tmp_path / "a.h5")
    assert not list(tmp_path.iterdir())


def test_truncated_shard_is_named_and_skipped(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.h5")
    write_shard(tmp_path / "b.h5")
    content = (tmp_path / "a.h5").read_bytes()
    (tmp_path / "a.h5").write_bytes(content[: len(content) // 2])
    with pytest.warns(UserWarning, match=r"a\.h5 is damaged or truncated"):
        shards = open_shards(tmp_path)
    assert [shard.path.name for shard in shards] == ["b.h5"]
    with pytest.raises(DataError, match=r"a\.h5"):
        open_shards(tmp_path, strict=True)
    (tmp_path / "b.h5").write_bytes(b"not an HDF5 file")
    with pytest.warns(UserWarning), pytest.raises(DataError, match="none of the 2 shards"):
        open_shards(tmp_path)


def test_flipped_bytes_in_frames_are_found_on_reading(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.h5", 1)
    with h5py.File(tmp_path / "a.h5") as file:
        offset = file["episode_00000/frames"].id.get_chunk_info(0).byte_offset
    content = bytearray((tmp_path / "a.h5").read_bytes())
    content[offset + 200] ^= 0xFF
    (tmp_path / "a.h5").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.h5, episode_00000"):
        read_episode(read_shard(tmp_path / "a.h5").episodes[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.attrs.update(version=3), "version 3"),
        (lambda file: file.attrs.__delitem__("fields"), "fields"),
        (lambda file: file.attrs.update(fields="{"), "damaged"),
        (lambda file: file.attrs.update(alignment="action[t] leads to frame[t]"), re.escape(ALIGNMENT)),
        (lambda file: file["episode_00000"].__delitem__("actions"), "missing: .'actions'"),
        (lambda file: file["episode_00000"].attrs.__delitem__("scene_seed"), "scene_seed"),
        (lambda file: file.__delitem__("episode_00000"), "no episode"),
    ],
)
def test_wrong_contents_are_named(tmp_path: Path, change: Any, message: str) -> None:
    write_shard(tmp_path / "a.h5", 1)
    with h5py.File(tmp_path / "a.h5", "a") as file:
        change(file)
    with pytest.raises(DataError, match=message):
        read_shard(tmp_path / "a.h5")


def make_v1(path: Path) -> None:
    """Turn a shard into one of the first version: it declares no fields, and calls the scene's seed by another name."""
    with h5py.File(path, "a") as file:
        file.attrs["version"] = 1
        del file.attrs["fields"]
        for group in file.values():
            group.attrs["maze_seed"] = group.attrs["scene_seed"]
            del group.attrs["scene_seed"]


def test_shards_of_the_first_version_are_read(tmp_path: Path) -> None:
    written = write_shard(tmp_path / "a.h5", 1)
    make_v1(tmp_path / "a.h5")
    (info,) = read_shard(tmp_path / "a.h5").episodes
    assert (info.seed, info.scene_seed) == (0, 100)
    found = read_episode(info, 2, 5, fields=("frames", "pose", "blocked", "layout"))
    np.testing.assert_array_equal(found["pose"], written[0]["pose"][2:5])
    np.testing.assert_array_equal(found["blocked"], written[0]["blocked"][2:4])
    np.testing.assert_array_equal(found["layout"], written[0]["layout"])


def test_a_shard_holds_what_its_world_declares_and_nothing_else(tmp_path: Path) -> None:
    fields = {
        "speed": Field("float32", "frame", 2),
        "gear": Field("uint8", "step", 1),
        "map": Field("int16", "episode", 3),
    }
    core = {name: make_arrays()[name] for name in CORE_FIELDS}
    steps = len(core["actions"])
    extra = {
        "speed": np.arange(2 * steps + 2, dtype=np.float32).reshape(-1, 2),
        "gear": np.arange(steps).astype(np.uint8),
        "map": np.ones((2, 3, 4), np.int16),
    }

    given: dict[str, Any] = {"world": "Cars", "image_size": 16, "settings": {}, "split": "train", "fields": fields}
    with ShardWriter(tmp_path / "a.h5", action_names=["go"] * 300, action_dtype="uint16", **given) as writer:
        with pytest.raises(ShapeError, match="actions must be uint16"):
            writer.write(core, seed=0, scene_seed=5, policy="test")
        core["actions"] = np.full(steps, 299, np.uint16)
        with pytest.raises(ShapeError, match=r"unknown: \['pose'\]"):
            writer.write(core | {"pose": make_arrays()["pose"]}, seed=0, scene_seed=5, policy="test")
        writer.write(core | extra, seed=0, scene_seed=5, policy="test")

    shard = read_shard(tmp_path / "a.h5")
    assert shard.fields == CORE_FIELDS | fields | {"actions": Field("uint16", "step", 1, True)}
    found = read_episode(shard.episodes[0], 1, 4, fields=("actions", *extra))
    assert found["actions"].dtype == np.uint16
    np.testing.assert_array_equal(found["speed"], extra["speed"][1:4])
    np.testing.assert_array_equal(found["gear"], extra["gear"][1:3])
    np.testing.assert_array_equal(found["map"], extra["map"])

    for dtype in ("int8", "float32"):
        with pytest.raises(ConfigError, match="unsigned"):
            ShardWriter(tmp_path / "b.h5", action_names=["go"], action_dtype=dtype, **given)


def test_empty_or_missing_folder_names_the_record_command(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="python -m train.record"):
        open_shards(tmp_path)
    with pytest.raises(DataError, match="is not a folder"):
        open_shards(tmp_path / "nowhere")


def test_other_frame_size_or_action_set_names_the_file(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.h5")
    with pytest.raises(DataError, match=r"a\.h5 has frames of 16 x 16; expected 64 x 64"):
        open_shards(tmp_path, image_size=64)
    with pytest.raises(DataError, match=r"a\.h5 has 7 actions .* expected 9"):
        open_shards(tmp_path, num_actions=9)
    write_shard(tmp_path / "b.h5", image_size=32)
    with pytest.raises(DataError, match=r"b\.h5 has frames of 32 x 32; expected 16 x 16"):
        open_shards(tmp_path)
    write_shard(tmp_path / "b.h5", names=[*LABMAZE_ACTIONS.names[:6], "jump"])
    with pytest.raises(DataError, match=r"b\.h5 .*jump"):
        open_shards(tmp_path)


def test_splits_are_told_apart(tmp_path: Path) -> None:
    write_shard(tmp_path / "x.h5", split="train")
    with pytest.raises(DataError, match="no 'test' shards"):
        open_shards(tmp_path, "test")
    write_shard(tmp_path / "y.h5", split="test")
    assert [shard.path.name for shard in open_shards(tmp_path, "test")] == ["y.h5"]
    assert [shard.path.name for shard in open_shards(tmp_path)] == ["x.h5", "y.h5"]
    with pytest.raises(ConfigError, match="valid"):
        open_shards(tmp_path, "valid")
