"""Bundles: openings cut rightly and from unseen mazes, a bundle that plays, a card with the figures, and refusals."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from envs.data.episodes import ShardWriter, open_shards
from envs.dream import DreamEnv
from envs.worlds.labmaze.constants import ACTIONS as LABMAZE_ACTIONS
from envs.worlds.labmaze.spec import LabMaze
from train.bundle import BundleOptions, choose_openings, make_bundle
from train.data.recording import RecordOptions
from train.decoder import keep_pixels
from train.denoiser import DenoiserOptions
from train.reports.card import command_line
from worldmodel.checkpoint import load_codec, load_info, load_openings, save_bundle, save_depth
from worldmodel.codec import Codec
from worldmodel.denoiser import Denoiser
from worldmodel.errors import CheckpointError, ConfigError, DataError
from worldmodel.folded import NUM_FOLDED
from worldmodel.memory.depth import DepthConfig, DepthNet
from worldmodel.presets import get_preset
from worldmodel.world import WorldModel

NAMES = ("noop", "forward", "back", "turn_left", "turn_right", "forward_left", "forward_right")


def write_shard(folder: Path, split: str, scene_seed: int, num_steps: int) -> None:
    """Write one episode whose frame t of maze m is filled with (t, m, 0), and whose action t is t modulo 7."""
    frames = np.zeros((num_steps + 1, 64, 64, 3), np.uint8)
    frames[..., 0] = np.arange(num_steps + 1)[:, None, None]
    frames[..., 1] = scene_seed
    arrays = {
        "frames": frames,
        "actions": (np.arange(num_steps) % 7).astype(np.uint8),
        "rewards": np.zeros(num_steps, np.float32),
        "terminated": np.arange(num_steps) == num_steps - 1,
        "truncated": np.zeros(num_steps, np.bool_),
    }
    path = folder / f"{split}-{scene_seed:05d}.h5"
    settings = {"size": 9, "palette": "plain"}
    with ShardWriter(
        path, world="LabMaze", action_names=NAMES, image_size=64, settings=settings, fields=LabMaze.fields, split=split
    ) as file:
        file.write(arrays, seed=0, scene_seed=scene_seed, policy="test")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for scene_seed in range(1, 4):
        write_shard(folder, "train", scene_seed, 40)
    for scene_seed, num_steps in ((16, 40), (32, 30), (48, 9)):
        write_shard(folder, "test", scene_seed, num_steps)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    torch.manual_seed(0)
    preset = get_preset("tiny")
    save_bundle(folder, codec=Codec(preset.codec), denoiser=Denoiser(preset.denoiser))
    options = {"data": "/home/me/maze", "codec": "runs/codec", "out": "runs/d", "minutes": 30.0, "compile": False}
    summary = {"minutes": 30.0, "steps": 1234, "frames": 99999, "frames_per_s": 180.0}
    (folder / "denoiser_training.json").write_text(json.dumps({"options": options, "summary": summary}))
    return folder


def bundle(trained: Path, data: Path, out: Path, **changes: Any) -> dict[str, Any]:
    return make_bundle(BundleOptions(**{"denoiser": trained, "data": data, "out": out, "openings": 4, **changes}))


def test_openings_keep_frames_and_actions_together_and_leave_the_last_frame(data: Path) -> None:
    openings = choose_openings(open_shards(data, "test"), openings=50, opening_frames=25, seed=0)
    frames, actions, mazes = openings["frames"], openings["actions"], openings["scene_seeds"]
    assert frames.shape == (50, 25, 64, 64, 3) and actions.shape == (50, 24)
    times = frames[:, :, 0, 0, 0].int()
    assert torch.equal(times[:, 1:] - times[:, :-1], torch.ones(50, 24, dtype=torch.int32))
    assert torch.equal(actions.int(), times[:, :-1] % 7)
    last = {16: 39, 32: 29}
    assert all(int(t) <= last[int(m)] for t, m in zip(times[:, -1], mazes, strict=True))
    assert {int(m): int(times[mazes == m, -1].max()) for m in mazes.unique()} == last  # every start can be drawn
    assert torch.equal(frames[:, 0, 0, 0, 1].int(), mazes.int())


def test_openings_use_every_episode_before_one_again_and_follow_the_seed(data: Path) -> None:
    shards = open_shards(data, "test")
    first, again, other = (choose_openings(shards, 2, 8, seed) for seed in (1, 1, 2))
    assert sorted(choose_openings(shards, 3, 8, 0)["scene_seeds"].tolist()) == [16, 32, 48]
    assert torch.equal(first["frames"], again["frames"])
    assert not torch.equal(first["frames"], other["frames"])


def test_a_bundle_plays_and_says_what_it_is(trained: Path, data: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    measures = {
        "fidelity": {"psnr": {"1": 26.71, "16": 15.5}, "copy_last": {"1": 20.9}, "cases": 123},
        "action_accuracy": {"dream": {"turn": 0.875, "walk": None, "counts": {"left": 4}}},
        "drift": {"sharpness_ratio": 0.754},
    }
    report.write_text(json.dumps({"measures": measures}))
    settings = {"opening_frames": 8, "num_steps": 2, "level_shift": 3.0, "notes": "Grown in two parts."}
    summary = bundle(trained, data, tmp_path / "world", report=report, **settings)
    assert summary["openings"] == 4 and summary["weights_megabytes"] < 1

    env = DreamEnv(checkpoint=str(tmp_path / "world"))
    env.reset(seed=0)
    frame, *_ = env.step(1)
    assert frame.shape == (64, 64, 3) and env.num_steps == 2 and env.fps == 15
    assert WorldModel.load(tmp_path / "world", device="cpu").sampler.grid.flatten().tolist() == [1.0, 0.75, 0.0]

    info = load_info(tmp_path / "world")
    assert info["world"] == "LabMaze" and info["action_names"] == list(NAMES) and info["settings"]["palette"] == "plain"
    assert set(info["opening_scene_seeds"]) <= {16, 32, 48}
    assert set(load_openings(tmp_path / "world")["frames"][:, 0, 0, 0, 1].tolist()) <= {16, 32, 48}

    card = (tmp_path / "world" / "README.md").read_text()
    told = (
        "26.71",
        "20.90",
        "123 cases",
        "moves as told): turn 0.875.",
        "over real play's): 0.754.",
        "1,234",
        "6 mazes",
        "CC BY 4.0",
        "MIT",
        "--minutes 30 --no-compile",
        "Grown in two parts.",
    )
    assert [text for text in told if text not in card] == []
    assert "/home/me" not in card and str(tmp_path) not in card


def test_a_bundle_with_a_memory_of_pixels(trained: Path, data: Path, tmp_path: Path) -> None:
    """The codec of train.decoder and the network of train.depth go in; without them there is one error."""
    torch.manual_seed(0)
    preset = get_preset("tiny")
    config = dataclasses.replace(preset.denoiser, displacements=LABMAZE_ACTIONS.displacements, warp_channels=NUM_FOLDED)
    codec = load_codec(trained)
    save_bundle(tmp_path / "denoiser", codec=codec, denoiser=Denoiser(config))
    save_bundle(tmp_path / "decoder", codec=keep_pixels(codec))
    save_bundle(tmp_path / "foreign", codec=Codec(preset.codec))
    save_depth(tmp_path / "depth", DepthNet(DepthConfig(width=8, inner_width=8, inner_blocks=1, outer_blocks=1)))
    parts = {"codec": tmp_path / "decoder", "depth": tmp_path / "depth", "opening_frames": 3, "openings": 2}
    out = tmp_path / "world"
    with pytest.raises(CheckpointError, match=r"needs a depth network: give the folder of train\.depth with --depth"):
        bundle(tmp_path / "denoiser", data, out, **{**parts, "depth": None})
    with pytest.raises(CheckpointError, match="the encoder of .* is not the one"):
        bundle(tmp_path / "denoiser", data, out, **{**parts, "codec": tmp_path / "foreign"})
    with pytest.raises(ConfigError, match="has no memory of pixels: leave --depth out"):
        bundle(trained, data, out, **{**parts, "codec": None})
    assert not out.exists()
    summary = bundle(tmp_path / "denoiser", data, out, **parts)
    assert summary["depth_parameters"] > 0
    world = WorldModel.load(out, device="cpu")
    assert world.pixels is not None and world.codec.config.keeps_pixels
    opening = load_openings(out)
    state = world.reset(opening["frames"][:1], opening["actions"][:1], [1])
    assert world.step(state, torch.tensor([1])).frames.shape == (1, 64, 64, 3)


def test_command_line_shows_what_differs_from_the_defaults() -> None:
    values = {"data": "maze", "out": "d", "batch_size": 8, "ema": 0.9, "objective": {"own_share": 0.5}, "resume": True}
    expected = "python -m train.denoiser --data maze --out d --ema 0.9 --objective.own-share 0.5"
    assert command_line("train.denoiser", DenoiserOptions, values) == expected
    recorded = {"out": "d", "set": [], "seed": 0}  # as JSON gives a tuple back
    assert command_line("train.record", RecordOptions, recorded) == "python -m train.record --out d"
    recorded["set"] = ["size=9", "palette=plain"]
    assert command_line("train.record", RecordOptions, recorded).endswith("--set size=9 palette=plain")


def test_refusals(trained: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "world"
    with pytest.raises(CheckpointError, match=r"take 0\.4 MB; a bundle may have 0\.1 MB"):
        bundle(trained, data, out, max_megabytes=0.1)
    with pytest.raises(DataError, match="openings of 300 frames.*the longest of 3 episodes has 40"):
        bundle(trained, data, out, opening_frames=300)
    with pytest.raises(DataError, match=r"none\.json"):
        bundle(trained, data, out, report=tmp_path / "none.json")
    (tmp_path / "flat.json").write_text('{"psnr": {"1": 26.71}}')
    with pytest.raises(DataError, match=r"flat\.json does not hold measures by name: run train\.evaluate again"):
        bundle(trained, data, out, report=tmp_path / "flat.json")
    with pytest.raises(DataError, match="no 'valid' shards"):
        bundle(trained, data, out, split="valid")
    with pytest.raises(CheckpointError, match="no checkpoint"):
        bundle(tmp_path / "nowhere", data, out)
    with pytest.raises(ConfigError, match="openings must be at least 1.*got 0"):
        bundle(trained, data, out, openings=0)
    assert not out.exists()
