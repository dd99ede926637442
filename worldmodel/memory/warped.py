"""Warped views: what a memory outside the denoiser has warped into each frame joins its patch tokens.

Owns: one layer. What was warped, and how, is the business of whoever fills `FrameInputs.warped`.
"""

from worldmodel.cache import MemoryCache
from worldmodel.config import DenoiserConfig
from worldmodel.inputs import FrameInputs, Prefer
from worldmodel.memory.base import Memory, PoseEstimate, Reading
from worldmodel.memory.views import ViewEmbedding


class WarpedView(Memory):
    """Embeds patches of `FrameInputs.warped`."""

    is_true_in_training = True

    def __init__(self, config: DenoiserConfig) -> None:
        """Take `config.warp_channels` channels."""
        super().__init__()
        self.channels, self.num_patches = config.warp_channels, config.num_patches
        self.embed = ViewEmbedding(config.warp_channels, config.patch, config.width)

    @classmethod
    def build(cls, config: DenoiserConfig) -> "WarpedView | None":
        """Return one if the config has warped channels."""
        return cls(config) if config.warp_channels else None

    def read(self, frames: FrameInputs, past: MemoryCache | None, prefer: Prefer, estimate: PoseEstimate) -> Reading:
        """Embed what was warped; nothing warped is all zeros."""
        warped = frames.warped
        if warped is None:
            shape = (*frames.actions.shape, self.channels, *frames.previous.shape[-2:])
            warped = self.embed.weight.new_zeros(shape)
        return Reading(added=self.embed(warped))

    def flops_per_frame(self) -> float:
        """Return the operations of the layer."""
        return 2.0 * self.num_patches * self.embed.weight.numel()
