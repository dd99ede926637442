"""Settings and fixtures that all tests share.

Owns: one thread, no network, repeatable random examples; tiny seeded models and a small recording. Programs that a test
starts inherit the environment.
"""

import dataclasses
import os
import sys

for _name, _value in {
    "OMP_NUM_THREADS": "1",  # two processes with two threads each stall one another
    "MPLBACKEND": "Agg",
    "HF_HUB_OFFLINE": "1",  # no test may load weights from anywhere but this checkout
    **({"MUJOCO_GL": "egl"} if sys.platform == "linux" else {}),
}.items():
    os.environ.setdefault(_name, _value)

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings

from envs.data.episodes import ShardWriter
from envs.worlds.labmaze.constants import ACTIONS as LABMAZE_ACTIONS
from envs.worlds.labmaze.spec import LabMaze
from worldmodel.checkpoint import save_bundle
from worldmodel.codec import Codec, CodecConfig
from worldmodel.config import DenoiserConfig
from worldmodel.denoiser import Denoiser
from worldmodel.folded import NUM_FOLDED
from worldmodel.inputs import FrameInputs
from worldmodel.memory.depth import DepthConfig, DepthNet
from worldmodel.presets import get_preset

torch.set_num_threads(1)
settings.register_profile("project", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("project")

TINY_DENOISER: dict[str, Any] = {
    "latent_channels": 4,
    "latent_size": 4,
    "patch": 2,
    "width": 32,
    "depth": 4,
    "heads": 2,
    "recent_frames": 3,
    "memory_frames": 6,
    "num_summary": 2,
    "mlp_ratio": 2,
}
TINY_DEPTH = DepthConfig(image_size=32, width=8, inner_width=8, inner_blocks=1, outer_blocks=1)
TINY_CODEC = CodecConfig(image_size=32, width=8, latent_channels=4, encoder_blocks=(1, 1, 1), decoder_blocks=(1, 1, 1))


def perturb(module: torch.nn.Module, seed: int, size: float = 0.15) -> None:
    """Move every weight by chance: an untrained network hides mistakes behind layers that start at zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(size * torch.randn(weight.shape, generator=generator))


@pytest.fixture(scope="session")
def make_denoiser() -> Callable[..., Denoiser]:
    """Build a seeded denoiser with no weight at rest: `make_denoiser(seed=0, **changes to TINY_DENOISER)`."""

    def make(seed: int = 0, **changes: Any) -> Denoiser:
        torch.manual_seed(seed)
        denoiser = Denoiser(DenoiserConfig(**{**TINY_DENOISER, **changes}))
        perturb(denoiser, seed)
        return denoiser.eval()

    return make


@pytest.fixture(scope="session")
def make_inputs() -> Callable[..., FrameInputs]:
    """Draw frames for a denoiser of a config: `make_inputs(config, batch, frames, seed=0)`."""

    def make(config: DenoiserConfig, batch: int, frames: int, seed: int = 0) -> FrameInputs:
        generator = torch.Generator().manual_seed(seed)
        latent = (config.latent_channels, config.latent_size, config.latent_size)
        past = (batch, frames, config.num_previous)
        given = FrameInputs(
            latents=torch.randn(batch, frames, *latent, generator=generator),
            levels=torch.rand(batch, frames, generator=generator),
            actions=torch.randint(config.num_actions + 1, (batch, frames), generator=generator),
            previous=torch.randn(*past, *latent, generator=generator),
            previous_levels=torch.rand(past, generator=generator),
        )
        if not config.warp_channels:
            return given
        warped = torch.randn(batch, frames, config.warp_channels, *latent[1:], generator=generator)
        return dataclasses.replace(given, warped=warped)

    return make


@pytest.fixture(scope="session")
def make_codec() -> Callable[..., Codec]:
    """Build a seeded codec for 32 x 32 frames whose latent scale is not at rest: `make_codec(seed=0, **changes)`."""

    def make(seed: int = 0, **changes: Any) -> Codec:
        torch.manual_seed(seed)
        codec = Codec(dataclasses.replace(TINY_CODEC, **changes))
        codec.latent_mean.copy_(0.1 * torch.randn(TINY_CODEC.latent_channels))
        codec.latent_std.copy_(0.5 + torch.rand(TINY_CODEC.latent_channels))
        return codec.eval()

    return make


@pytest.fixture(scope="session")
def make_depth() -> Callable[..., DepthNet]:
    """Build a seeded depth network: `make_depth(seed=0, **changes to TINY_DEPTH)`; all is about 2 units away."""

    def make(seed: int = 0, **changes: Any) -> DepthNet:
        torch.manual_seed(seed)
        return DepthNet(dataclasses.replace(TINY_DEPTH, **changes)).eval()

    return make


def moving_frames(num_frames: int, image_size: int, seed: int) -> np.ndarray:
    """Return uint8 (T, H, W, 3): soft colored stripes that move."""
    rng = np.random.default_rng(seed)
    x = np.linspace(0, 2 * np.pi, image_size)
    phase = rng.uniform(0, 6, 3) + np.arange(num_frames)[:, None] * rng.uniform(0.1, 0.4, 3)
    stripes = np.sin(x[None, None, :, None] * rng.integers(1, 4, 3) + phase[:, None, None])
    rows = 0.5 * np.cos(x)[None, :, None, None]
    return np.asarray((stripes + rows + 1.5) * 85, np.uint8)


@pytest.fixture(scope="session")
def openings() -> dict[str, torch.Tensor]:
    """Three openings of 32 x 32 pixels, as a bundle holds them."""
    frames = np.stack([moving_frames(8, TINY_CODEC.image_size, seed) for seed in range(3)])
    actions = np.random.default_rng(0).integers(0, 7, (3, 7)).astype(np.uint8)
    return {"frames": torch.from_numpy(frames), "actions": torch.from_numpy(actions)}


@pytest.fixture(scope="session")
def bundle(
    tmp_path_factory: pytest.TempPathFactory,
    make_denoiser: Callable[..., Denoiser],
    make_codec: Callable[..., Codec],
    openings: dict[str, torch.Tensor],
) -> Path:
    """The folder of a whole tiny bundle. Tests only read it."""
    folder = tmp_path_factory.mktemp("bundle") / "world"
    info = {"world": "LabMaze", "action_names": list(LABMAZE_ACTIONS.names), "fps": 15, "num_steps": 2}
    save_bundle(folder, codec=make_codec(), denoiser=make_denoiser(), openings=openings, info=info)
    return folder


@pytest.fixture(scope="session")
def pixel_bundle(
    tmp_path_factory: pytest.TempPathFactory,
    make_denoiser: Callable[..., Denoiser],
    make_codec: Callable[..., Codec],
    make_depth: Callable[..., DepthNet],
    openings: dict[str, torch.Tensor],
) -> Path:
    """The folder of a whole tiny bundle with a memory of pixels. Tests only read it."""
    folder = tmp_path_factory.mktemp("pixels") / "world"
    codec = make_codec(keeps_pixels=True)
    assert codec.keeper is not None
    perturb(codec.keeper, 1)
    parts = {
        "codec": codec,
        "denoiser": make_denoiser(warp_channels=NUM_FOLDED, displacements=LABMAZE_ACTIONS.displacements),
    }
    info = {"world": "LabMaze", "action_names": list(LABMAZE_ACTIONS.names), "fps": 15, "num_steps": 2}
    save_bundle(folder, **parts, depth=make_depth(), openings=openings, info=info)
    return folder


def write_shard(path: Path, lengths: list[int], split: str, image_size: int = 64, seed: int = 0) -> None:
    """Write a shard of episodes with the given numbers of steps; rewards and actions tell the step they belong to."""
    with ShardWriter(
        path,
        world="LabMaze",
        action_names=LABMAZE_ACTIONS.names,
        image_size=image_size,
        settings={},
        fields=LabMaze.fields,
        split=split,
    ) as shard:
        for episode, steps in enumerate(lengths):
            ends = np.zeros(steps, bool)
            ends[-1] = True
            arrays = {
                "frames": moving_frames(steps + 1, image_size, 100 * seed + episode),
                "actions": ((np.arange(steps) + episode) % 7).astype(np.uint8),
                "rewards": (np.arange(steps) % 5 == 4).astype(np.float32),
                "terminated": ends,
                "truncated": np.zeros(steps, bool),
            }
            shard.write(arrays, seed=seed, scene_seed=seed, policy="test")


@pytest.fixture(scope="session")
def shard_writer() -> Callable[..., None]:
    """Return `write_shard(path, lengths, split, image_size=64, seed=0)`."""
    return write_shard


@pytest.fixture(scope="session")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small recording: two training shards and one for testing. Tests only add latents to it."""
    folder = tmp_path_factory.mktemp("recording") / "world"
    write_shard(folder / "train-00000.h5", [24, 30], "train", seed=1)
    write_shard(folder / "train-00001.h5", [20], "train", seed=2)
    write_shard(folder / "test-00000.h5", [18], "test", seed=3)
    return folder


@pytest.fixture(scope="session")
def codec_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an untrained codec of preset tiny, as `train.codec` leaves it."""
    torch.manual_seed(7)
    folder = tmp_path_factory.mktemp("codec") / "codec"
    save_bundle(folder, codec=Codec(get_preset("tiny").codec).eval())
    return folder
