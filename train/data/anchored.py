"""Anchored rollouts: what a dream would remember if all that it invents were true.

Owns: playing recorded episodes through a memory of pixels, with a generator in the loop or without. Knows no files and
no loss.

A dream remembers its own frames: its memory is warped from warps, with torn edges, pixels taken twice and depth read
off all that. A network that has only met memories of true frames copies such faults. Here each frame is what memory
shows of it, and where memory shows nothing it is the recorded one; that frame is remembered, and so on. So faults grow
as in a dream, and yet the truth of every frame is known.

With a generator in the loop, what memory shows goes through denoiser and decoder as in play, and frames that are shown
to the denoiser are its own.
"""

import math
from typing import Protocol

import numpy as np
import torch

from worldmodel.codec import Codec
from worldmodel.denoiser import Denoiser
from worldmodel.folded import NUM_FOLDED, share_known, unfold
from worldmodel.frames import to_frames, to_pixels
from worldmodel.memory.pixels import PixelMemory
from worldmodel.memory.pose import relative_poses
from worldmodel.noise import add_noise
from worldmodel.sampler import Sampler, SamplerConfig, Sight
from worldmodel.state import DreamState
from worldmodel.windows import next_frame_window

LEAST_TRUE, MOST_TRUE = 4, 64  # frames that are remembered as they are, before the rollout begins
LEAST_KEPT = 0.6  # of a remembered pixel in a frame; a decoder repairs some of it
SHARE_STRAYING, STRAY = 0.4, 0.003  # of rollouts whose place is reckoned wrong, by so many cells a step
LEAST_KNOWN = 0.5  # share of a square's pixels that memory shows, from which on its latent is the generator's


class Painter(Protocol):
    """Says what is seen where memory shows something."""

    def paint(self, truth: torch.Tensor, sight: Sight) -> torch.Tensor:
        """Return the next frame, float (B, 3, H, W) in [-1, 1].

        Args:
            truth: float (B, 3, H, W), the recorded frame.
            sight: of all frames up to this one.
        """
        ...


class MemoryPainter:
    """Shows remembered pixels themselves, each episode's as strongly as chance says."""

    def __init__(self, batch: int, rng: np.random.Generator) -> None:
        """Draw how strongly."""
        self._kept = torch.from_numpy(rng.uniform(LEAST_KEPT, 1, (batch, 1, 1, 1))).float()

    def paint(self, truth: torch.Tensor, sight: Sight) -> torch.Tensor:
        """Return truth and memory, mixed; as `Painter` says."""
        return truth + self._kept.to(truth.device) * (unfold(sight.warped[:, -1].float()).pixels - truth)


class DreamPainter:
    """Shows what a generator makes of what is remembered, and remembers its own latents as a dream does."""

    def __init__(
        self,
        codec: Codec,
        denoiser: Denoiser,
        config: SamplerConfig,
        latents: torch.Tensor,
        actions: torch.Tensor,
        rng: np.random.Generator,
    ) -> None:
        """Dream along recorded episodes.

        Args:
            codec: on the device of the dream.
            denoiser: there too; it takes what a memory of pixels shows.
            config: how it is sampled.
            latents: float (B, T, C, h, w), of the recorded frames, on the CPU.
            actions: int64 (B, T), the action into each frame.
            rng: seeds the dreams.
        """
        self._codec, self._denoiser, self._config = codec, denoiser, config
        self._sampler = Sampler(denoiser, next_frame_window(), config)
        self._latents, self._actions = latents, actions
        self._generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        self.state: DreamState | None = None
        """The dreams, after the last frame painted; None before the first."""
        self.dreamt = latents.float().clone()
        """What the generator made of each frame, float (B, T, C, h, w); as given where it made nothing."""

    def paint(self, truth: torch.Tensor, sight: Sight) -> torch.Tensor:
        """Return the picture of the next dreamt frame; as `Painter` says."""
        device, now = truth.device, sight.warped.shape[1] - 1
        sight = Sight(relative_poses(sight.poses), sight.warped)  # a dream counts from where it began
        if self.state is None:
            self.state = self._begin(sight[:now])
        true, known = self._latents[:, now : now + 1].float().to(device), sight.warped[:, now]
        action = self._actions[:, now : now + 1].to(device)
        noise, shown_noise = self._noise(true), self._noise(true)
        made, _ = self._sampler.advance(self.state, action, noise, shown_noise, sight[now:])

        # The next frames are told of what is seen, not of what was invented beside it.
        seen = mix_by_square(made[:, 0], true[:, 0], known)[:, None]
        levels = seen.new_full(seen.shape[:2], self._config.context_level)
        self.state.pending = add_noise(seen, shown_noise, levels)
        self.dreamt[:, now] = made[:, 0].cpu()
        return self._codec.decode(made[:, 0], known).float()

    def _begin(self, sight: Sight) -> DreamState:
        """Return the dreams that follow the recorded frames of a sight."""
        device, known = sight.warped.device, sight.warped.shape[1]
        latents = self._latents[:, :known].float().to(device)
        actions = self._actions[:, :known].to(device).clone()
        actions[:, 0] = self._denoiser.config.num_actions  # nobody knows what led to the first frame
        return self._sampler.begin(latents, actions, self._noise(latents), sight=sight)

    def _noise(self, like: torch.Tensor) -> torch.Tensor:
        return torch.randn(like.shape, generator=self._generator).to(like.device)


def mix_by_square(made: torch.Tensor, true: torch.Tensor, warped: torch.Tensor) -> torch.Tensor:
    """Return latents (..., C, h, w): made ones where memory shows most of a square, true ones elsewhere.

    Args:
        made, true: float (..., C, h, w).
        warped: float (..., `NUM_FOLDED`, h, w), what memory shows.
    """
    known = share_known(warped.flatten(0, -4)).reshape(*warped.shape[:-3], 1, *warped.shape[-2:])
    return torch.where(known >= LEAST_KNOWN, made, true)


def stray(poses: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Return poses (B, T, 5) as reckoned: those of some episodes go astray while they walk."""
    off = torch.from_numpy(rng.normal(0, STRAY, (*poses.shape[:2], 2))).float()
    walks = poses[..., :2].diff(dim=1, prepend=poses[:, :1, :2]).abs().sum(-1, keepdim=True) > 0
    strays = torch.from_numpy(rng.random((len(poses), 1, 1)) < SHARE_STRAYING)
    moved = poses.clone()
    moved[..., :2] += (off * walks * strays).cumsum(1)
    return moved


@torch.inference_mode()
def roll_out(
    memory: PixelMemory,
    frames: torch.Tensor,
    poses: torch.Tensor,
    rng: np.random.Generator,
    painter: Painter | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Play episodes of one length through memory.

    Args:
        memory: on the device of the result.
        frames: uint8 (B, T, H, W, 3), what is seen where memory shows nothing.
        poses: float32 (B, T, 5), of the frames.
        rng: draws how many frames are remembered as they are, how much of the others is remembered, and the poses.
        painter: what is seen where memory shows something; default the remembered pixels themselves.

    Returns:
        what memory shows of each frame, float16 (B, T, `NUM_FOLDED`, H / 8, W / 8), on the CPU, and the poses that it
        was reckoned from, float32 (B, T, 5).
    """
    batch, length, size = frames.shape[:3]
    device = memory.displacements.device
    num_true = math.ceil(math.exp(rng.uniform(math.log(LEAST_TRUE), math.log(MOST_TRUE))))
    painter = MemoryPainter(batch, rng) if painter is None else painter
    poses = stray(poses, rng)
    on_device = poses.to(device)
    state = memory.empty(batch)
    shown = torch.zeros(batch, length, NUM_FOLDED, size // 8, size // 8, device=device)

    for t, frame in enumerate(frames.unbind(1)):
        shown[:, t] = memory.look(state, on_device[:, t : t + 1])[:, 0]
        if t < num_true:
            memory.remember(state, frame.to(device), on_device[:, t])
            continue
        truth, folded = to_pixels(frame.to(device)), shown[:, t]
        painted = painter.paint(truth, Sight(on_device[:, : t + 1], shown[:, : t + 1]))
        seen = truth + unfold(folded).mask * (painted - truth)
        memory.remember(state, to_frames(seen), on_device[:, t], folded)
    return shown.half().cpu(), poses
