"""One auto-regressive step of dreams, pixels included: what the world runs, and what is compiled.

Owns: the order of things. Where the frames in flight are seen from, what memory knows of them, denoising, the picture,
and what memory keeps of it. Knows no chance, no checks and no files.
"""

import torch
from torch import nn

from worldmodel.codec import Codec
from worldmodel.denoiser import Prediction
from worldmodel.frames import to_frames
from worldmodel.memory.pixels import PixelMemory
from worldmodel.sampler import Sampler, Sight
from worldmodel.state import DreamState


class Stepper(nn.Module):
    """Codec, sampler and, where a world has one, memory of pixels."""

    def __init__(self, codec: Codec, sampler: Sampler, pixels: PixelMemory | None, dtype: torch.dtype) -> None:
        """Put a step together; `dtype` is the number format of the networks."""
        super().__init__()
        self.codec, self.denoiser, self.pixels = codec, sampler.denoiser, pixels
        self._sampler = [sampler]  # in a list: it is no module
        self.dtype = dtype

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.denoiser.to_clean.weight.device

    @property
    def sampler(self) -> Sampler:
        """What walks the schedule."""
        return self._sampler[0]

    def forward(
        self, state: DreamState, actions: torch.Tensor, noise: torch.Tensor, shown_noise: torch.Tensor
    ) -> tuple[torch.Tensor, Prediction]:
        """Take one step in place.

        Args:
            state, actions, noise, shown_noise: as `Sampler.step`.

        Returns:
            the S frames that this step finished, uint8 (B, S, H, W, 3), and the last prediction for them.
        """
        window = self.sampler.window
        finished = slice(window.num_clean, window.num_clean + window.stride)
        sight = self._look(state, actions)
        latents, prediction = self.sampler.advance(state, actions, noise, shown_noise, sight)
        known = None if sight is None else sight.warped[:, finished].flatten(0, 1)
        pixels = self.codec.decode(latents.flatten(0, 1).to(self.dtype), known).float()
        frames = to_frames(pixels).unflatten(0, tuple(latents.shape[:2]))
        if sight is not None:
            self._remember(state, frames, sight[finished])
        return frames, prediction

    def observe(
        self,
        state: DreamState,
        actions: torch.Tensor,
        frames: torch.Tensor,
        latents: torch.Tensor,
        shown_noise: torch.Tensor,
    ) -> None:
        """Take one step in place whose frames are given; under a window that does not look ahead.

        Args:
            state, actions, shown_noise: as `Sampler.step`.
            frames: uint8 (B, S, H, W, 3), what the step leads to.
            latents: float32 (B, S, C, h, w), of these frames.
        """
        window = self.sampler.window
        finished = slice(window.num_clean, window.num_clean + window.stride)
        sight = self._look(state, actions)
        self.sampler.observe(state, actions, latents, shown_noise, sight)
        if sight is None or self.pixels is None or state.pixels is None:
            return
        for frame, pose in zip(frames.unbind(1), sight.poses[:, finished].unbind(1), strict=True):
            self.pixels.remember(state.pixels, frame, pose)

    def _look(self, state: DreamState, actions: torch.Tensor) -> Sight | None:
        """Return where the frames in flight are seen from, the entering ones among them, and what is known of them."""
        if self.pixels is None or state.pixels is None:
            return None
        newest = torch.cat([state.pending_poses, state.flight_poses], 1)[:, -1]
        poses = torch.cat([state.flight_poses, self.pixels.walk(state.pixels, newest, actions)], 1)
        return Sight(poses, self.pixels.look(state.pixels, poses))

    def _remember(self, state: DreamState, frames: torch.Tensor, sight: Sight) -> None:
        if self.pixels is None or state.pixels is None:
            return
        for frame, pose, warped in zip(frames.unbind(1), sight.poses.unbind(1), sight.warped.unbind(1), strict=True):
            self.pixels.remember(state.pixels, frame, pose, warped)
