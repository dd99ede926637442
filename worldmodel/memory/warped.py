"""Warped views: what a memory outside the denoiser has warped into each frame joins its patch tokens.

Owns: the layers that read it. What was warped, and how, is the business of whoever fills `FrameInputs.warped`.
"""

import torch
from einops import rearrange
from torch import nn

from worldmodel.cache import MemoryCache
from worldmodel.config import DenoiserConfig
from worldmodel.folded import WarpEncoder
from worldmodel.inputs import FrameInputs
from worldmodel.memory.base import Memory, PoseEstimate, Reading


class ViewEmbedding(nn.Linear):
    """What is laid over a frame becomes patch tokens; at first as if nothing were."""

    def __init__(self, channels: int, patch: int, width: int) -> None:
        """Take patches of `channels` latent channels to `width`."""
        super().__init__(channels * patch**2, width, bias=False)
        self.patch = patch
        nn.init.zeros_(self.weight)

    def forward(self, laid: torch.Tensor) -> torch.Tensor:
        """Return (B, T, P, D) of (B, T, channels, h, w)."""
        patches = rearrange(laid, "b t c (h p) (w q) -> b t (h w) (c p q)", p=self.patch, q=self.patch)
        return super().forward(patches.to(self.weight.dtype))


class WarpedView(Memory):
    """Makes features of `FrameInputs.warped` and embeds patches of them."""

    is_true_in_training = True

    def __init__(self, config: DenoiserConfig) -> None:
        """Take folded pictures."""
        super().__init__()
        self.num_patches = config.num_patches
        self.encoder = WarpEncoder(config.latent_channels)
        self.num_places = config.latent_size**2
        self.embed = ViewEmbedding(self.encoder.num_features + WarpEncoder.NUM_TOLD, config.patch, config.width)

    @classmethod
    def build(cls, config: DenoiserConfig) -> "WarpedView | None":
        """Return one if the config has warped channels."""
        return cls(config) if config.warp_channels else None

    def read(self, frames: FrameInputs, past: MemoryCache | None, estimate: PoseEstimate) -> Reading:
        """Embed what was warped; nothing warped is all zeros."""
        if frames.warped is None:
            return Reading()
        features: torch.Tensor = self.encoder(frames.warped.flatten(0, 1))
        return Reading(added=self.embed(features.unflatten(0, frames.warped.shape[:2])))

    def flops_per_frame(self) -> float:
        """Return the operations of the layers."""
        convolutions = sum(p.numel() for p in self.encoder.parameters() if p.ndim == 4)
        return 2.0 * (self.num_patches * self.embed.weight.numel() + self.num_places * convolutions)
