"""Anchored rollouts: memories of memories, whose truth is known."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import train.data.anchored
from envs.worlds.labmaze.constants import ACTIONS as LABMAZE_ACTIONS
from tests.box_room import see, walk
from train.data.anchored import LEAST_KNOWN, DreamPainter, roll_out, stray
from worldmodel.codec import Codec
from worldmodel.denoiser import Denoiser
from worldmodel.folded import NUM_FOLDED, share_known, unfold
from worldmodel.frames import to_pixels
from worldmodel.memory.camera import complete_poses
from worldmodel.memory.depth import DepthNet
from worldmodel.memory.pixels import PixelConfig, PixelMemory
from worldmodel.sampler import SamplerConfig, Sight

NUM_TRUE = 2


@pytest.fixture(scope="module")
def memory(make_depth: Callable[..., DepthNet]) -> PixelMemory:
    return PixelMemory(make_depth(), LABMAZE_ACTIONS.displacements, PixelConfig(keyframes=16, sources=4))


@pytest.fixture(autouse=True)
def _fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "LEAST_TRUE": NUM_TRUE,
        "MOST_TRUE": NUM_TRUE,
        "LEAST_KEPT": 1.0,
        "SHARE_STRAYING": 0.0,
    }.items():
        monkeypatch.setattr(train.data.anchored, name, value)


class LeastDraws(np.random.Generator):
    """Draws the least there is of every range."""

    def __init__(self) -> None:
        super().__init__(np.random.PCG64(0))

    def uniform(self, low: float = 0.0, high: float = 1.0, size: Any = None) -> Any:
        """Return `low`."""
        return low if size is None else np.full(size, low)


def standing(levels: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Frames uint8 (1, T, 32, 32, 3) of one color each, and poses (1, T, 5) of one place."""
    frames = torch.tensor(levels, dtype=torch.uint8)[None, :, None, None, None].expand(1, -1, 32, 32, 3)
    return frames, torch.zeros(1, len(levels), 5)


def test_what_is_remembered_is_remembered_on_and_the_truth_beside_it_is_not(memory: PixelMemory) -> None:
    frames, poses = standing([100, 100, 200, 200, 200])
    folded, reckoned = roll_out(memory, frames, poses, np.random.default_rng(0))
    assert folded.shape == (1, 5, NUM_FOLDED, 4, 4) and torch.equal(reckoned, poses)
    assert not folded[:, 0].any()
    shown = unfold(folded[0, 1:].float())
    known = shown.mask > 0
    assert float(known.float().mean()) > 0.9
    off = (shown.pixels - to_pixels(frames[0, :1])).abs() * known
    assert float(off.max()) < 0.02


@pytest.mark.parametrize("kept", [0.0, 0.5, 1.0])
def test_frames_are_remembered_as_far_as_they_are_kept(
    make_depth: Callable[..., DepthNet], monkeypatch: pytest.MonkeyPatch, kept: float
) -> None:
    written = []

    class Spied(PixelMemory):
        def remember(self, *args: torch.Tensor) -> None:  # type: ignore[override]
            written.append(args[1])
            super().remember(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(train.data.anchored, "LEAST_KEPT", kept)
    spied = Spied(make_depth(), LABMAZE_ACTIONS.displacements, PixelConfig(keyframes=16, sources=4))
    frames, poses = standing([100, 100, 200])
    roll_out(spied, frames, poses, LeastDraws())
    assert abs(float(written[-1].float().median()) - (200 - 100 * kept)) <= 1


def test_what_a_rollout_made_up_is_said_to_be_invented(memory: PixelMemory) -> None:
    _, places = walk(23, seed=1)
    frames, poses = see(places, 32)[0], complete_poses(places)
    folded, _ = roll_out(memory, frames[None], poses[None], np.random.default_rng(0))
    invented = unfold(folded[0].float()).facts[:, 3]
    assert not invented[: NUM_TRUE + 1].any()
    assert float(invented[-6:].max()) > 0.5


def test_truth_fills_what_is_not_known(memory: PixelMemory) -> None:
    # Behind one nothing is known: there the recorded frame is seen, and remembered.
    frames, poses = standing([100] * NUM_TRUE + [50, 50])
    poses[:, NUM_TRUE:, 3] = torch.pi
    folded, _ = roll_out(memory, frames, poses, np.random.default_rng(0))
    behind, again = (unfold(folded[:, NUM_TRUE + i].float()) for i in range(2))
    assert not behind.mask.any()
    off = (again.pixels - to_pixels(frames[0, -1:])).abs() * again.mask
    assert float(again.mask.mean()) > 0.9 and float(off.max()) < 0.02


def test_only_walkers_go_astray_and_none_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train.data.anchored, "SHARE_STRAYING", 1.0)
    poses = torch.zeros(1, 21, 5)
    poses[:, :11, 0] = torch.arange(11) * 0.12
    poses[:, 11:, 0] = poses[:, 10:11, 0]
    poses[..., 3] = torch.arange(21) * 0.1
    off = stray(poses, np.random.default_rng(0)) - poses
    assert off[..., :2].any() and not off[..., 2:].any()
    assert torch.equal(off[:, 11:], off[:, 10:11].expand(-1, 10, -1))
    assert not off[:, 0].any()
    monkeypatch.setattr(train.data.anchored, "SHARE_STRAYING", 0.0)
    assert torch.equal(stray(poses, np.random.default_rng(0)), poses)


def test_a_dream_is_told_of_what_is_seen_and_not_of_what_it_invented_beside(
    memory: PixelMemory, make_codec: Callable[..., Codec], make_denoiser: Callable[..., Denoiser]
) -> None:
    frames, poses = standing([100] * 12)
    poses[..., 3] = 0.4 * torch.arange(12)  # each turn brings a part that was not seen
    latents = torch.randn(1, 12, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    denoiser = make_denoiser(displacements=LABMAZE_ACTIONS.displacements, warp_channels=NUM_FOLDED).eval()
    told: list[tuple[torch.Tensor, torch.Tensor]] = []

    class Spied(DreamPainter):
        def paint(self, truth: torch.Tensor, sight: Sight) -> torch.Tensor:
            painted = super().paint(truth, sight)
            assert self.state is not None
            told.append((self.state.pending.clone(), sight.warped[:, -1].clone()))
            return painted

    config = SamplerConfig(num_steps=1, context_level=0.0)
    painter = Spied(make_codec(keeps_pixels=True), denoiser, config, latents, torch.zeros(1, 12).long(), LeastDraws())
    roll_out(memory, frames, poses, np.random.default_rng(0), painter)
    assert len(told) == 12 - NUM_TRUE and torch.equal(painter.dreamt[:, :NUM_TRUE], latents[:, :NUM_TRUE])
    mixed = 0
    for frame, (pending, warped) in enumerate(told, NUM_TRUE):
        is_known = (share_known(warped) >= LEAST_KNOWN).expand_as(latents[:, frame])
        expected = torch.where(is_known, painter.dreamt[:, frame], latents[:, frame])
        torch.testing.assert_close(pending[:, 0], expected)
        mixed += bool(is_known.any() and not is_known.all())
    assert mixed >= 3
