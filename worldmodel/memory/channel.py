"""Channel memory: past entries side by side on the channels, through one linear layer.

Owns: the layer, and the entries that a cache keeps for it.

Source: arXiv:2503.10704, Sec. 5 (channel concatenation, with modulated compression or none).
"""

from typing import cast

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F

from worldmodel.cache import MemoryCache, Rings
from worldmodel.config import DenoiserConfig
from worldmodel.inputs import FrameInputs
from worldmodel.memory.base import PoseEstimate, Reading, RingShape
from worldmodel.memory.slots import EntryMemory


class ChannelProjection(nn.Module):
    """Concatenates the last `length` entries on the channels, and projects."""

    def __init__(self, entry_width: int, length: int, width: int) -> None:
        """Take `length` entries of `entry_width` channels to `width` channels."""
        super().__init__()
        self.length = length
        self.project = nn.Linear(entry_width * length, width)
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    def forward(self, entries: torch.Tensor) -> torch.Tensor:
        """Return what is added to the patch tokens, (B, T, P, D).

        Args:
            entries: (B, length - 1 + T, P, E); zeros where there is no frame.
        """
        stacked = entries.unfold(1, self.length, 1)  # (B, T, P, E, length), oldest first
        return cast("torch.Tensor", self.project(rearrange(stacked, "b t p e k -> b t p (k e)")))


class ChannelMemory(EntryMemory):
    """Adds a projection of the last entries, or slots, to the patch tokens."""

    def __init__(self, config: DenoiserConfig) -> None:
        """Build the memory of a config."""
        raw = config.latent_channels * config.patch**2
        entry_width = raw if config.compression == "none" else config.width
        super().__init__(config, entry_width)
        self.channel = ChannelProjection(entry_width, config.setting.budget, config.width)

    @classmethod
    def build(cls, config: DenoiserConfig) -> "ChannelMemory | None":
        """Return one for the structure "channel"."""
        return cls(config) if config.memory == "channel" else None

    def cache_shapes(self, memory_frames: int) -> dict[str, RingShape]:
        """Return the shapes of entries, and of what the compressor keeps."""
        frames = min(memory_frames, self.config.setting.budget)
        shape = RingShape(1, 1, frames, self.config.num_patches, self.entries.width)
        return super().cache_shapes(memory_frames) | {"entries": shape}

    def read(self, frames: FrameInputs, past: MemoryCache | None, estimate: PoseEstimate) -> Reading:
        """Project what the last frames before each frame left."""
        slots, written = self.make_slots(frames, past, estimate)
        entries = slots.tokens
        if past is None:
            return Reading(added=self.channel(F.pad(entries, (0, 0, 0, 0, self.channel.length - 1, 0))))
        kept: Rings = {"entries": [entries[:, :, None]]}
        return Reading(added=self._project_with(entries, past), written=written | kept)

    def _project_with(self, entries: torch.Tensor, past: MemoryCache) -> torch.Tensor:
        """Project new entries (B, T, P, E) behind those of a cache."""
        length = self.channel.length
        ring = past.rings["entries"][0, :, 0]  # (B, F, P, E)
        size = ring.shape[1]
        ages = torch.arange(length - 1, 0, -1, device=entries.device)
        wanted = past.count[:, None] - ages
        rows = torch.arange(len(wanted), device=entries.device)[:, None]
        is_known = (wanted >= 0) & (ages <= size)
        old = ring[rows, torch.remainder(wanted, size)] * is_known[..., None, None]
        every = torch.cat([old.to(entries.dtype), entries], 1)
        if size >= length:
            return cast("torch.Tensor", self.channel(every))
        parts = []  # a shorter memory: every new frame forgets what is older than the ring
        for j in range(entries.shape[1]):
            part = every[:, j : j + length].clone()
            part[:, : length - size] = 0
            parts.append(self.channel(part))
        return torch.cat(parts, 1)
