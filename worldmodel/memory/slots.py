"""Slots: entries of past frames, compressed or not, which layers attend to.

Owns: entries (what is kept of a past frame), compressors, attention to slots, and the memories that hold those. The
setting is `worldmodel.config.MemorySetting`:

    summary   a few learned tokens a frame, made by the network as it reads the frame: ours (`worldmodel.memory.tokens`)
    prepend   the patch tokens of past frames before the frame's own (`worldmodel.memory.tokens`), or, compressed, a
              budget of frame slots
    channel   past entries side by side on the channels, through one linear layer (`worldmodel.memory.channel`)
    cross     attention to past entries after each memory block's self-attention
    none      nothing beyond the recent frames

Entry t holds frame t - 1 as it was shown, and the action taken after it; frame t sees entries up to t. A compressor
turns the last `length` entries into a slot at each step; only the last `budget` slots are kept.

Source: arXiv:2503.10704, Sec. 5 (prepending, channel concatenation, cross attention; joint and modulated compression),
on a frame-causal transformer instead of a 3D UNet.
"""

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F

from worldmodel.attention import (
    BlockAttention,
    LayerInputs,
    Past,
    PoseBias,
    Rotary,
    RotaryPosition,
    Slots,
    attend,
    rotate,
    to_bias,
)
from worldmodel.cache import MemoryCache, Rings
from worldmodel.config import DenoiserConfig
from worldmodel.errors import ConfigError
from worldmodel.inputs import FrameInputs
from worldmodel.memory.base import Memory, PoseEstimate, Reading, RingShape, frame_positions
from worldmodel.noise import level_features


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

    def forward(
        self, entries: torch.Tensor, rotary: Rotary, positions: torch.Tensor, past: MemoryCache | None = None
    ) -> tuple[torch.Tensor, Rings]:
        """Compress.

        Args:
            entries: (B, T, P, D).
            rotary: of the entries.
            positions: integer (B or 1, T) of the frames.
            past: cache of the frames before; None for clips.

        Returns:
            the slots (B, T, P, D), and what they leave in a cache.
        """
        x, q, k, v = self.prepare(entries, rotary)
        if past is None:
            return self.finish(x, q, k, v, to_bias(slots_seen(positions, None, self.length))[:, None, None]), {}
        old_k, old_v = (rearrange(past.rings[f"compressed_{pair}"][0], "b h f p d -> b f h p d") for pair in ("k", "v"))
        bias = to_bias(slots_seen(positions, past.positions("compressed_k"), self.length))[:, None, None]
        every_k, every_v = torch.cat([old_k.to(k.dtype), k], 1), torch.cat([old_v.to(v.dtype), v], 1)
        return self.finish(x, q, every_k, every_v, bias), {"compressed_k": [k], "compressed_v": [v]}


class SlotAttention(BlockAttention):
    """Attention from the tokens of a frame to the slots of past frames, and to its own tokens or not."""

    def __init__(
        self,
        width: int,
        heads: int,
        reach: int,
        num_patches: int,
        num_summary: int,
        has_own: bool,
        has_odometry: bool = False,
    ) -> None:
        """Build a layer.

        Args:
            width: channels of a token, a multiple of heads.
            heads: attention heads.
            reach: how many of the last slots are seen.
            num_patches: patch tokens a frame, and tokens a slot.
            num_summary: summary tokens a frame.
            has_own: whether the frame's own tokens are seen too, in one softmax (prepending).
            has_odometry: whether heads look for slots of the same direction and place, see `PoseBias`.
        """
        super().__init__()
        if width % heads:
            raise ConfigError(f"width {width} must be a multiple of heads {heads}")
        self.heads, self.reach, self.has_own, self.ring = heads, reach, has_own, "memory"
        self.num_patches, self.num_tokens = num_patches, num_patches + num_summary
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

    def project_slots(self, slots: Slots) -> tuple[torch.Tensor, torch.Tensor]:
        """Return rotated keys and values (B, T, H, P, d) of slots."""
        normal = F.layer_norm(slots.tokens, slots.tokens.shape[-1:]).to(slots.tokens.dtype)
        k, v = rearrange(self.to_slot_kv(normal), "b t n (s h d) -> s b t h n d", s=2, h=self.heads)
        return self._scale(k, 1, slots.rotary, v.dtype), v

    def forward(
        self, x: torch.Tensor, given: LayerInputs, past: Past | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Attend to earlier slots, those of the frames and, with `has_own`, own tokens; see `BlockAttention`.

        Raises:
            ConfigError: no memory gave slots.
        """
        if given.slots is None:
            raise ConfigError("attention to slots needs a memory that makes them; this denoiser has none")
        frames = x.shape[1]
        parts = rearrange(self.to_qkv(x), "b t n (s h d) -> s b t h n d", h=self.heads, d=self.q_scale.shape[0])
        q = self._scale(parts[0], 0, given.rotary, parts.dtype)
        slot_k, slot_v = self.project_slots(given.slots)
        keys, values = [slot_k], [slot_v]
        if self.has_own:
            keys.append(self._scale(parts[1], 1, given.rotary, parts.dtype))
            values.append(parts[2])
        q, *pairs = (rearrange(y, "b t h n d -> b h (t n) d").to(q.dtype) for y in (q, *keys, *values))
        keys, values = pairs[: len(keys)], pairs[len(keys) :]
        if past is None:
            bias = self.bias(torch.arange(frames, device=x.device)[None], None)
        else:
            keys, values, bias = [past.k.to(q.dtype), *keys], [past.v.to(q.dtype), *values], past.bias
        out = attend(q, torch.cat(keys, 2), torch.cat(values, 2), bias)
        merged = self.to_out(rearrange(out, "b h (t n) d -> b t n (h d)", t=frames))
        return merged, slot_k, slot_v

    def bias(self, positions: torch.Tensor, held: torch.Tensor | None) -> torch.Tensor:
        """Return the bias; see `BlockAttention`."""
        is_seen = slots_seen(positions, held, self.reach)
        is_seen = is_seen.repeat_interleave(self.num_tokens, 1).repeat_interleave(self.num_patches, 2)
        if self.has_own:
            frame = positions.repeat_interleave(self.num_tokens, 1)
            is_seen = torch.cat([is_seen, frame[:, :, None] == frame[:, None]], 2)
        return to_bias(is_seen)[:, None]


def slots_seen(positions: torch.Tensor, held: torch.Tensor | None, reach: int) -> torch.Tensor:
    """Return which slots each frame sees, bool (B, T, F + T): those of a cache, then those of the frames.

    Args:
        positions: integer (B, T) of the frames.
        held: integer (B, F) of the slots in a cache, negative where empty; None for clips. A ring shorter than the
            reach shortens the reach, so that frames of one call see no further than single ones.
        reach: how many of the last slots are seen.
    """
    every = positions
    if held is not None:
        reach, every = min(reach, held.shape[1]), torch.cat([held, positions], 1)
    age = positions[:, :, None] - every[:, None]
    return (age >= 0) & (age < reach) & (every >= 0)[:, None]


class EntryMemory(Memory):
    """A memory of entries; members bring them into the network."""

    def __init__(self, config: DenoiserConfig, entry_width: int) -> None:
        """Build what makes entries of `entry_width` channels, and compresses them if the setting says so."""
        super().__init__()
        setting = config.setting
        self.config = config
        self.rotary = RotaryPosition.build(config)
        self.entries = Entries(
            config.latent_channels * config.patch**2,
            config.num_patches,
            config.num_actions,
            entry_width,
            setting.compression == "modulated",
        )
        self.compressor: Compressor | None = None
        if setting.compression != "none":
            self.compressor = Compressor(config.width, config.heads, setting.length)

    def cache_shapes(self, memory_frames: int) -> dict[str, RingShape]:
        """Return the shapes of what the compressor keeps."""
        config = self.config
        if self.compressor is None:
            return {}
        frames = min(memory_frames, config.setting.length)
        shape = RingShape(1, config.heads, frames, config.num_patches, config.width // config.heads)
        return {"compressed_k": shape, "compressed_v": shape}

    def make_slots(self, frames: FrameInputs, past: MemoryCache | None, estimate: PoseEstimate) -> tuple[Slots, Rings]:
        """Return the slots of the frames, and what they leave in a cache."""
        p, positions = self.config.patch, frame_positions(frames, past)
        patches = rearrange(frames.previous[:, :, 0], "b t c (h p) (w q) -> b t (h w) (c p q)", p=p, q=p)
        shown = patches.to(self.entries.embed.weight.dtype)
        slots = self.entries(shown, frames.previous_levels[:, :, 0], frames.actions)
        cos, sin = self.rotary(positions - 1, estimate.before)
        rotary = cos[..., : self.config.num_patches, :], sin[..., : self.config.num_patches, :]
        written: Rings = {}
        if self.compressor is not None:
            slots, written = self.compressor(slots, rotary, positions, past)
        return Slots(slots, rotary), written

    def flops_per_frame(self) -> float:
        """Return the operations of the layers on the patches of a frame."""
        return 2.0 * self.config.num_patches * sum(p.numel() for p in self.parameters() if p.ndim == 2)


class SlotMemory(EntryMemory):
    """Odd blocks attend to slots: beside their own tokens (joint), or after them (cross)."""

    def __init__(self, config: DenoiserConfig) -> None:
        """Build the memory of a config."""
        super().__init__(config, config.width)

    @classmethod
    def build(cls, config: DenoiserConfig) -> "SlotMemory | None":
        """Return one for the structures "prepend", compressed, and "cross"."""
        return cls(config) if config.compression == "joint" or config.memory == "cross" else None

    def cache_shapes(self, memory_frames: int) -> dict[str, RingShape]:
        """Return the shapes of keys and values of slots, and of what the compressor keeps."""
        config = self.config
        frames, head_width = min(memory_frames, config.setting.budget), config.width // config.heads
        shape = RingShape(config.num_memory_layers, config.heads, frames, config.num_patches, head_width)
        return super().cache_shapes(memory_frames) | {"memory_k": shape, "memory_v": shape}

    def attention(self, index: int) -> SlotAttention | None:
        """Return the attention of odd blocks to slots and own tokens."""
        return self._attention(has_own=True) if index % 2 and self.config.memory != "cross" else None

    def cross_attention(self, index: int) -> SlotAttention | None:
        """Return the attention of odd blocks to slots alone; at first as if it were not there."""
        if index % 2 == 0 or self.config.memory != "cross":
            return None
        layer = self._attention(has_own=False)
        nn.init.zeros_(layer.to_out.weight)
        return layer

    def _attention(self, has_own: bool) -> SlotAttention:
        config = self.config
        shape = config.width, config.heads, config.setting.budget, config.num_patches, config.num_summary
        return SlotAttention(*shape, has_own, bool(config.displacements))

    def read(self, frames: FrameInputs, past: MemoryCache | None, estimate: PoseEstimate) -> Reading:
        """Make the slots of the frames before the frames."""
        slots, written = self.make_slots(frames, past, estimate)
        return Reading(slots=slots, written=written)
