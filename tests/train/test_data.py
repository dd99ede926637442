"""From episodes to clips: actions lead into the frame they stand beside, and no clip crosses an episode."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load, save_file

from envs.data.episodes import open_shards, read_episode
from train.data.clips import LatentData, encode_frames, encode_recording, list_episodes, load_frames
from worldmodel.checkpoint import codec_hash, load_codec
from worldmodel.codec import Codec
from worldmodel.errors import DataError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def codec(codec_folder: Path) -> Codec:
    return load_codec(codec_folder)


@pytest.fixture(scope="module")
def identity(codec_folder: Path) -> str:
    return codec_hash(codec_folder)


@pytest.fixture(scope="module")
def latents(recording: Path, codec: Codec, identity: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the latents of the small recording. Tests only read it."""
    out = tmp_path_factory.mktemp("latents") / "made"
    assert encode_recording(codec, recording, out, CPU, identity) == 25 + 31 + 21 + 19
    return out


def test_frames_and_the_steps_into_them_stand_side_by_side(
    recording: Path, latents: Path, codec: Codec, identity: str
) -> None:
    data = LatentData.load(latents, "train", identity)
    episodes = list_episodes(open_shards(recording, "train"))
    assert data.lengths.tolist() == [25, 31, 21] == [e.num_frames for e in episodes]
    assert data.starts.tolist() == [0, 25, 56]
    assert len(data.latents) == len(data.actions) == len(data.rewards) == len(data.terminated) == 77
    for start, episode in zip(data.starts.tolist(), episodes, strict=True):
        arrays = read_episode(episode, fields=("frames", "actions", "rewards", "terminated"))
        stop = start + episode.num_frames
        for name in ("actions", "rewards", "terminated"):
            found = getattr(data, name)[start:stop]
            assert found[0] == 0
            assert found[1:].tolist() == arrays[name].tolist(), name
        with torch.inference_mode():
            expected = encode_frames(codec, torch.from_numpy(arrays["frames"]), CPU)
        torch.testing.assert_close(data.latents[start:stop], expected, rtol=0.03, atol=0.03)
    assert data.terminated.nonzero().flatten().tolist() == [24, 55, 76]
    assert LatentData.load(latents, "test", identity).lengths.tolist() == [19]


def test_encoding_is_done_once_per_shard_and_codec(
    recording: Path, codec: Codec, tmp_path: Path, shard_writer: Callable[..., None]
) -> None:
    data, out = tmp_path / "data", tmp_path / "latents"
    data.mkdir()
    shutil.copy(recording / "test-00000.h5", data)
    assert encode_recording(codec, data, out, CPU, "a" * 64) == 19
    assert encode_recording(codec, data, out, CPU, "a" * 64) == 0
    shard_writer(data / "train-00000.h5", [4], "train")
    assert encode_recording(codec, data, out, CPU, "a" * 64) == 5
    assert encode_recording(codec, data, out, CPU, "b" * 64) == 24
    assert len(list(out.iterdir())) == 4
    with pytest.raises(DataError, match="no latents of split 'train' for this codec"):
        LatentData.load(out, "train", "c" * 64)


def test_a_damaged_shard_is_named_and_left_out(recording: Path, codec: Codec, identity: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(recording, data)
    path = data / "train-00001.h5"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.warns(UserWarning, match=r"skipped: .*train-00001\.h5 is damaged"):
        encode_recording(codec, data, tmp_path / "latents", CPU, identity)
    assert LatentData.load(tmp_path / "latents", "train", identity).lengths.tolist() == [25, 31]


def test_what_cannot_be_encoded_is_named(
    codec: Codec, identity: str, tmp_path: Path, shard_writer: Callable[..., None]
) -> None:
    with pytest.raises(DataError, match="is not a folder"):
        encode_recording(codec, tmp_path / "nowhere", tmp_path / "latents", CPU, identity)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no episode shards"):
        encode_recording(codec, tmp_path / "empty", tmp_path / "latents", CPU, identity)
    shard_writer(tmp_path / "large" / "train-00000.h5", [3], "train", image_size=128)
    with pytest.raises(DataError, match=r"train-00000\.h5 has frames of 128 x 128; expected 64 x 64"):
        encode_recording(codec, tmp_path / "large", tmp_path / "latents", CPU, identity)


def test_a_damaged_latent_file_is_named(latents: Path, identity: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(latents, tmp_path / "copy"))
    path = next(folder.glob("train-00001.*"))
    whole = path.read_bytes()
    tensors = load(whole)
    for content in (whole[:100], whole[: len(whole) - 10], b"", b"x" * 1000):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"train-00001\..*safetensors is damaged .*: delete it and run again"):
            LatentData.load(folder, "train", identity)
    for broken in (
        {name: value for name, value in tensors.items() if name != "rewards"},
        {**tensors, "actions": tensors["actions"][:-1].contiguous()},
        {**tensors, "lengths": tensors["lengths"] + 1},
        {name: value for name, value in tensors.items() if name != "lengths"},
    ):
        save_file(broken, path)
        with pytest.raises(DataError, match=r"train-00001\..*safetensors is damaged"):
            LatentData.load(folder, "train", identity)


def numbered(lengths: list[int]) -> LatentData:
    """Latents that tell their episode and their frame."""
    episode = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    frame = torch.cat([torch.arange(n) for n in lengths])
    count = torch.tensor(lengths)
    values = torch.stack([episode, frame], 1).to(torch.float16).reshape(-1, 2, 1, 1)
    return LatentData(
        values, (frame % 7).to(torch.uint8), frame.float(), frame % 2 == 0, count.cumsum(0) - count, count
    )


def test_clips_never_cross_episodes_and_every_start_is_equally_likely() -> None:
    lengths = [5, 12, 3, 8, 9]
    data = numbered(lengths)
    clips = data.sample_clips(8_000, 5, torch.Generator().manual_seed(0))
    episode, frame = clips["latents"][:, :, 0, 0, 0].long(), clips["latents"][:, :, 1, 0, 0].long()
    assert (episode == episode[:, :1]).all()
    assert (frame == frame[:, :1] + torch.arange(5)).all()
    assert torch.equal(clips["actions"], frame % 7)
    assert torch.equal(clips["rewards"], frame.float())
    assert torch.equal(clips["terminated"], frame % 2 == 0)
    starts = {(e, f): 0 for e, n in enumerate(lengths) for f in range(n - 4)}
    for key in zip(episode[:, 0].tolist(), frame[:, 0].tolist(), strict=True):
        starts[key] += 1
    assert len(starts) == 1 + 8 + 0 + 4 + 5
    counts = np.array(list(starts.values()))
    assert abs(counts - 8_000 / 18).max() < 5 * np.sqrt(8_000 / 18)
    assert clips["latents"].dtype == torch.float32
    assert clips["actions"].dtype == torch.int64


def test_clips_come_from_the_generator_alone() -> None:
    data = numbered([30, 40])
    first, again, other = (data.sample_clips(16, 8, torch.Generator().manual_seed(s)) for s in (3, 3, 4))
    for name, value in first.items():
        assert torch.equal(value, again[name])
    assert not torch.equal(first["latents"], other["latents"])


def test_clips_longer_than_every_episode_are_refused() -> None:
    data = numbered([5, 12, 3])
    assert data.sample_clips(2, 12, torch.Generator())["latents"].shape == (2, 12, 2, 1, 1)
    with pytest.raises(DataError, match="clips of 13 frames asked for; the longest episode has 12"):
        data.sample_clips(2, 13, torch.Generator())


def test_frames_for_the_codec_are_spread_over_episodes(recording: Path) -> None:
    shards = open_shards(recording, "train")
    frames = load_frames(shards, 48, seed=0)
    assert frames.dtype == torch.uint8
    assert tuple(frames.shape[1:]) == (64, 64, 3)
    assert 3 * 8 <= len(frames) <= 48
    assert torch.equal(frames, load_frames(shards, 48, seed=0))
    everything = load_frames(shards, 10_000, seed=0)
    assert len(everything) == 77
    assert len({f.numpy().tobytes() for f in everything}) > 60
