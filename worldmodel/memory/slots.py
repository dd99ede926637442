"""Memory structures: how past frames reach the frame being denoised, beside the few that are seen in full.

Owns: the setting of a structure, entries (what is kept of a past frame), compressors, and two ways into the network:
attention to slots and channel concatenation. Knows no blocks and no cache.

    summary   a few learned tokens a frame, made by the network as it reads the frame: ours
    prepend   the patch tokens of past frames before the frame's own, or, compressed, a budget of frame slots
    channel   past entries side by side on the channels, through one linear layer
    cross     attention to past entries after each memory block's self-attention
    none      nothing beyond the recent frames

Entry t holds frame t - 1 as it was shown, and the action taken after it; frame t sees entries up to t. A compressor
turns the last `length` entries into a slot at each step; only the last `budget` slots are kept.

Source: arXiv:2503.10704, Sec. 5 (prepending, channel concatenation, cross attention; joint and modulated compression),
on a frame-causal transformer instead of a 3D UNet.
"""

from dataclasses import dataclass
from typing import cast

import torch
from einops import rearrange, repeat
from torch import nn
from torch.nn import functional as F

from worldmodel.attention import PoseBias, Rotary, attend, rotate, to_bias
from worldmodel.errors import ConfigError
from worldmodel.noise import level_features

STRUCTURES = ("summary", "prepend", "channel", "cross", "none")
COMPRESSIONS = {"summary": ("none",), "prepend": ("none", "joint"), "channel": ("none", "modulated")}


@dataclass(frozen=True)
class MemorySetting:
    """One memory structure.

    Attributes:
        structure: one of `STRUCTURES`.
        length: past frames that the memory draws on.
        compression: "none"; "joint" with prepend; "modulated" with channel.
        budget: frame slots kept after compression, at most `length`; without compression it is `length`.
    """

    structure: str = "summary"
    length: int = 128
    compression: str = "none"
    budget: int = 128

    def __post_init__(self) -> None:
        if self.structure not in STRUCTURES:
            raise ConfigError(f"unknown memory structure {self.structure!r}; accepted: {', '.join(STRUCTURES)}")
        accepted = COMPRESSIONS.get(self.structure, ("none",))
        if self.compression not in accepted:
            raise ConfigError(
                f"memory structure {self.structure!r} takes compression {' or '.join(accepted)}; got "
                f"{self.compression!r}"
            )
        if self.length < 1 or not 1 <= self.budget <= self.length:
            raise ConfigError(
                f"a memory of {self.length} frames takes a budget from 1 to {self.length} frame slots; got "
                f"{self.budget}"
            )
        if self.compression == "none" and self.budget != self.length:
            raise ConfigError(
                f"without compression a memory of {self.length} frames fills {self.length} slots; got a budget of "
                f"{self.budget}: name a compression, or leave the budget out"
            )

    @property
    def is_entry_based(self) -> bool:
        """Whether the memory is made of entries, not of tokens of the network itself."""
        return self.structure in ("channel", "cross") or self.compression != "none"


class Entries(nn.Module):
    """Embeds the frame before each frame, as shown, with the action that followed it."""

    def __init__(self, patch_channels: int, num_patches: int, num_actions: int, width: int, modulated: bool) -> None:
        """Prepare entries of `width` channels; with `modulated` the actions do not join, they modulate."""
        super().__init__()
        self.embed = nn.Linear(patch_channels, width)
        self.position = nn.Parameter(0.02 * torch.randn(num_patches, width))
        self.embed_level = nn.Linear(width, width)
        self.embed_action = nn.Embedding(num_actions + 1, 2 * width if modulated else width)
        self.is_modulated = modulated
        self.width = width

    def forward(self, patches: torch.Tensor, levels: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """Return entries (B, T, P, D).

        Args:
            patches: (B, T, P, c), of the frame before each frame.
            levels: float (B, T), its level; 1 where there is no frame.
            actions: int64 (B, T), the action from that frame into the next.
        """
        level = self.embed_level(level_features(levels, self.width).to(patches.dtype))[:, :, None]
        entry = self.embed(patches) + self.position.to(patches.dtype) + level
        action = self.embed_action(actions)[:, :, None].to(patches.dtype)
        if not self.is_modulated:
            return entry + action
        shift, scale = action.chunk(2, -1)
        return F.layer_norm(entry, entry.shape[-1:]) * (1 + scale) + shift


class Compressor(nn.Module):
    """Feed-forward, spatial and temporal attention over the last entries; what it gives at each step is a slot."""

    def __init__(self, width: int, heads: int, length: int) -> None:
        """Compress the last `length` entries of `width` channels."""
        super().__init__()
        self.heads, self.length = heads, length
        self.feed_forward = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU("tanh"), nn.Linear(2 * width, width))
        self.spatial_qkv = nn.Linear(width, 3 * width, bias=False)
        self.spatial_out = nn.Linear(width, width, bias=False)
        self.temporal_qkv = nn.Linear(width, 3 * width, bias=False)
        self.temporal_out = nn.Linear(width, width, bias=False)

    def _split(self, x: torch.Tensor, layer: nn.Linear) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        normal = F.layer_norm(x, x.shape[-1:]).to(x.dtype)
        q, k, v = rearrange(layer(normal), "b t p (s h d) -> s b t h p d", s=3, h=self.heads)
        return F.rms_norm(q, q.shape[-1:]), F.rms_norm(k, k.shape[-1:]), v

    def prepare(self, entries: torch.Tensor, rotary: Rotary) -> tuple[torch.Tensor, ...]:
        """Return what does not depend on other frames.

        That is: entries after feed-forward and spatial attention (B, T, P, D), and rotated queries, rotated keys and
        values of the temporal attention, each (B, T, H, P, d).
        """
        x = entries + self.feed_forward(F.layer_norm(entries, entries.shape[-1:]).to(entries.dtype))
        q, k, v = self._split(x, self.spatial_qkv)
        x = x + self.spatial_out(rearrange(attend(q, k, v, None), "b t h p d -> b t p (h d)"))
        q, k, v = self._split(x, self.temporal_qkv)
        return x, rotate(q, rotary), rotate(k, rotary), v

    def finish(
        self, x: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor
    ) -> torch.Tensor:
        """Attend over time, each place of the grid to itself.

        Args:
            x: (B, T, P, D) of `prepare`.
            q: (B, T, H, P, d).
            k: (B, K, H, P, d), of all frames that may be seen.
            v: as k.
            bias: float, broadcastable to (B, 1, 1, T, K).

        Returns:
            slots (B, T, P, D).
        """
        q, k, v = (rearrange(y, "b t h p d -> b h p t d") for y in (q, k, v))
        return x + self.temporal_out(rearrange(attend(q, k, v, bias), "b h p t d -> b t p (h d)"))

    def forward(self, entries: torch.Tensor, rotary: Rotary) -> torch.Tensor:
        """Return the slots (B, T, P, D) of a clip's entries (B, T, P, D)."""
        x, q, k, v = self.prepare(entries, rotary)
        time = torch.arange(x.shape[1], device=x.device)
        age = time[:, None] - time
        return self.finish(x, q, k, v, to_bias((age >= 0) & (age < self.length)))


class ChannelMemory(nn.Module):
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


class SlotAttention(nn.Module):
    """Attention from the tokens of a frame to the slots of past frames, and to its own tokens or not."""

    def __init__(self, width: int, heads: int, reach: int, has_own: bool, has_odometry: bool = False) -> None:
        """See the last `reach` slots; with `has_own` also the frame's own tokens, in one softmax (prepending).

        With `has_odometry` heads look for slots of the same direction and place, see `PoseBias`.
        """
        super().__init__()
        if width % heads:
            raise ConfigError(f"width {width} must be a multiple of heads {heads}")
        self.heads, self.reach, self.has_own = heads, reach, has_own
        self.to_qkv = nn.Linear(width, (3 if has_own else 1) * width, bias=False)
        self.to_slot_kv = nn.Linear(width, 2 * width, bias=False)
        self.to_out = nn.Linear(width, width, bias=False)
        self.q_scale = nn.Parameter(torch.ones(width // heads))
        self.k_scale = nn.Parameter(torch.ones(width // heads))
        self.pose_bias = PoseBias(heads, width // heads) if has_odometry else None

    def _scale(self, x: torch.Tensor, which: int, rotary: Rotary, dtype: torch.dtype) -> torch.Tensor:
        """Return queries (which = 0) or keys (1) as they are compared: of one length, scaled and rotated."""
        scaled = F.rms_norm(x.float(), x.shape[-1:]) * (self.q_scale, self.k_scale)[which].float()
        if self.pose_bias is not None:
            scaled = scaled + self.pose_bias(which).float()
        return rotate(scaled, rotary).to(dtype)

    def project_slots(self, slots: torch.Tensor, rotary: Rotary) -> tuple[torch.Tensor, torch.Tensor]:
        """Return rotated keys and values (B, T, H, P, d) of slots (B, T, P, D); slot t holds frame t - 1."""
        normal = F.layer_norm(slots, slots.shape[-1:]).to(slots.dtype)
        k, v = rearrange(self.to_slot_kv(normal), "b t n (s h d) -> s b t h n d", s=2, h=self.heads)
        return self._scale(k, 1, rotary, v.dtype), v

    def forward(
        self, x: torch.Tensor, rotary: Rotary, slot_k: torch.Tensor, slot_v: torch.Tensor, is_seen: torch.Tensor
    ) -> torch.Tensor:
        """Attend.

        Args:
            x: (B, T, N, D), the frames' tokens.
            rotary: at the frames' positions.
            slot_k: (B, K, H, P, d) of `project_slots`.
            slot_v: as slot_k.
            is_seen: bool (B or 1, T, K), which slots each frame sees.

        Returns:
            (B, T, N, D).
        """
        frames, tokens = x.shape[1:3]
        parts = rearrange(self.to_qkv(x), "b t n (s h d) -> s b t h n d", h=self.heads, d=self.q_scale.shape[0])
        q = self._scale(parts[0], 0, rotary, parts.dtype)
        seen = is_seen.repeat_interleave(tokens, 1).repeat_interleave(slot_k.shape[3], 2)
        k, v = (rearrange(y, "b t h n d -> b h (t n) d").to(q.dtype) for y in (slot_k, slot_v))
        if self.has_own:
            own = self._scale(parts[1], 1, rotary, parts.dtype), parts[2]
            k, v = (
                torch.cat([past, rearrange(new, "b t h n d -> b h (t n) d")], 2)
                for past, new in zip((k, v), own, strict=True)
            )
            frame = torch.arange(frames, device=x.device).repeat_interleave(tokens)
            seen = torch.cat([seen, repeat(frame[:, None] == frame, "q k -> b q k", b=seen.shape[0])], 2)
        out = attend(rearrange(q, "b t h n d -> b h (t n) d"), k, v, to_bias(seen)[:, None])
        return cast("torch.Tensor", self.to_out(rearrange(out, "b h (t n) d -> b t n (h d)", t=frames)))
