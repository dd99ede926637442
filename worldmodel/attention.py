"""Frame-causal attention over a clip, and over a clip plus cached memory.

Owns rotary positions, the two visibility rules and the ways to compute the same attention: dense (the reference), with
or without the keys of earlier frames from a cache (play), and chunked (training). Knows no noise, no actions, no cache.

Each frame has P patch tokens and S summary tokens, in this order. Within a frame every token sees every token.
Across frames a `recent` layer sees the patch tokens of the last `reach` frames, and so does a `prepend` layer, which
reaches further; a `memory` layer sees the summary tokens of the last `reach` frames. So with `memory` layers older
frames survive only in their summaries: learned, bounded compression.
"""

import math
from typing import Literal, NamedTuple

import torch
from einops import rearrange, repeat
from torch import nn
from torch.nn import functional as F

from worldmodel.buffers import Float32Buffers
from worldmodel.config import DenoiserConfig
from worldmodel.errors import ConfigError
from worldmodel.odometry import YAW, look_angles

Kind = Literal["recent", "memory", "prepend"]
Rotary = tuple[torch.Tensor, torch.Tensor]


class Slots(NamedTuple):
    """What a memory made of the frames before each frame, for layers that attend to it; slot t holds frame t - 1.

    Attributes:
        tokens: (B, T, P, D).
        rotary: of the tokens.
    """

    tokens: torch.Tensor
    rotary: Rotary


class LayerInputs(NamedTuple):
    """What all attention layers of one call share beside the tokens.

    Attributes:
        rotary: at the frames' positions, (B, T) or (1, T).
        slots: for layers that attend to slots.
        chunk: frames a chunk of a clip (faster, same result), a divisor of T; None: all pairs of frames.
    """

    rotary: Rotary
    slots: Slots | None = None
    chunk: int | None = None


class Past(NamedTuple):
    """What one layer sees of earlier frames, from a cache.

    Attributes:
        k: (B, H, K, d), rotated keys.
        v: (B, H, K, d).
        bias: float (B, 1, Q, K + own keys) of `BlockAttention.bias`, which knows the earlier frames.
    """

    k: torch.Tensor
    v: torch.Tensor
    bias: torch.Tensor


class BlockAttention(nn.Module):
    """A layer that a block attends with: in clips, or with keys and values of earlier frames.

    Called with tokens (B, T, N, D), `LayerInputs` and a `Past` (None in clips), it returns tokens (B, T, N, D) and what
    later frames see of these frames: rotated keys and values, each (B, T, H, S, d).

    Attributes:
        ring: name of what a cache keeps for such layers.
    """

    ring: str

    def bias(self, positions: torch.Tensor, held: torch.Tensor | None) -> torch.Tensor:
        """Return the additive bias of all frames of a call, float32 (B, 1, T N, past + own keys).

        Args:
            positions: integer (B, T) of the frames.
            held: integer (B, F), positions of earlier frames in the cache, negative where empty; None for clips. A ring
                of fewer frames than the layer's reach shortens the reach, so that frames of one call see no further
                than single ones.
        """
        raise NotImplementedError


class RotaryPosition(Float32Buffers):
    """Rotary angles of tokens: over time (half of the pairs) and the patch grid (a quarter each).

    With odometry, time and grid keep half of the pairs; a quarter turns with the direction a token looks in, so that a
    token finds what was seen in that direction before, and a quarter with the place (an eighth each for x and y).

    Source: RoFormer (Su et al. 2021), split over axes; directions and places from actions are our own.
    """

    time: torch.Tensor
    space: torch.Tensor
    look: torch.Tensor
    direction: torch.Tensor
    place: torch.Tensor

    def __init__(self, head_width: int, grid: int, num_summary: int, view_deg: float | None = None) -> None:
        """Prepare frequencies.

        Args:
            head_width: channels of an attention head, a multiple of 8; of 16 with odometry.
            grid: the patch grid is `grid` x `grid`.
            num_summary: summary tokens; they lie at no place of the grid.
            view_deg: horizontal angle of view in degrees switches odometry on; None: off.
        """
        super().__init__()
        unit = 8 if view_deg is None else 16
        if head_width % unit:
            raise ConfigError(f"the width of an attention head must be a multiple of {unit}; got {head_width}")
        pairs = head_width // 2
        kept = pairs if view_deg is None else pairs // 2
        num_time, num_space = kept // 2, kept // 4
        time = torch.logspace(0, -3.3, num_time, dtype=torch.float32)  # 1 rad a frame down to 1 rad in 2,000 frames
        space = torch.logspace(0.2, -1.0, num_space, dtype=torch.float32)
        row, column = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
        patches = torch.cat([row.reshape(-1, 1) * space, column.reshape(-1, 1) * space], -1)
        summaries = torch.zeros(num_summary, 2 * num_space, dtype=torch.float32)
        self.has_odometry = view_deg is not None
        num_direction, num_place = (pairs // 4, pairs // 8) if self.has_odometry else (0, 0)
        looks = [look_angles(grid, view_deg or 90.0).repeat(grid), look_angles(num_summary, view_deg or 90.0)]
        self.register_buffer("time", time, persistent=False)
        self.register_buffer("space", torch.cat([patches, summaries]).float(), persistent=False)
        self.register_buffer("look", torch.cat(looks), persistent=False)
        # Whole numbers: a full turn is the same direction. 1 to 16 turns a turn tell directions 6 degrees apart.
        self.register_buffer(
            "direction", torch.logspace(0, 1.204, num_direction, dtype=torch.float32).round(), persistent=False
        )
        self.register_buffer(
            "place", 2 * math.pi / torch.logspace(0.18, 1.38, num_place, dtype=torch.float32), persistent=False
        )

    @classmethod
    def build(cls, config: DenoiserConfig) -> "RotaryPosition":
        """Return that of a denoiser."""
        view_deg = config.view_deg if config.displacements else None
        return cls(config.width // config.heads, config.latent_size // config.patch, config.num_summary, view_deg)

    def forward(self, positions: torch.Tensor, poses: torch.Tensor | None = None) -> Rotary:
        """Return cosines and sines.

        Args:
            positions: integer (B, T) frame positions; B may be 1 to share them.
            poses: float32 (B, T, 5) as `worldmodel.odometry` has them; needed with odometry only.

        Returns:
            two float32 (B, T, 1, N, head_width / 2).
        """
        # float32 loses phase after 10,000 frames: multiply in float64, and keep only the turn. MPS has no float64.
        exact_on = torch.device("cpu") if positions.device.type == "mps" else positions.device
        angles = positions.to(exact_on)[..., None].double() * self.time.to(exact_on).double()
        angles = torch.remainder(angles, 2 * math.pi).float().to(positions.device)
        tokens = self.space.shape[0]
        parts = [
            repeat(angles, "b t f -> b t n f", n=tokens),
            repeat(self.space, "n f -> b t n f", b=positions.shape[0], t=positions.shape[1]),
        ]
        if self.has_odometry and poses is not None:
            batch = poses.shape[0]
            parts = [part.expand(batch, -1, -1, -1) for part in parts]
            parts.append((poses[..., YAW, None] + self.look)[..., None] * self.direction)
            places = (poses[..., :2, None] * self.place).flatten(2)
            parts.append(repeat(places, "b t f -> b t n f", n=tokens))
        both = torch.cat(parts, -1)[:, :, None]
        return both.cos(), both.sin()


def rotate(x: torch.Tensor, rotary: Rotary) -> torch.Tensor:
    """Rotate the two halves of the last axis of x (B, T, H, N, d) by the angles (B, T, 1, N, d / 2)."""
    cos, sin = rotary
    first, second = x.float().chunk(2, -1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], -1).to(x.dtype)


class PoseBias(nn.Module):
    """What every query and key says beside its content: a head that attends where direction and place agree.

    Added before rotation, equal constants c on a pair of channels give the score c^2 cos(f (a - b)) for angles a of the
    query and b of the key: summed over frequencies f, a peak where a = b. Half of the heads begin with it, the others
    at zero; all are learned.
    """

    def __init__(self, heads: int, head_width: int, strength: float = 1.8) -> None:
        """Bias `heads` heads of `head_width` channels; the first half of the heads starts at `strength`."""
        super().__init__()
        start = torch.zeros(2, heads, 1, head_width)
        pairs = head_width // 2
        start[:, : (heads + 1) // 2, :, pairs // 2 : pairs] = strength  # the pairs of direction and place
        self.bias = nn.Parameter(start)

    def forward(self, which: int | None = None) -> torch.Tensor:
        """Return the bias of queries (0) or keys (1), (H, 1, d), or of both, (2, H, 1, d)."""
        return self.bias if which is None else self.bias[which]


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Softmax attention with an additive bias; for CPU training written out: the kernel is slow backward.

    Args:
        q: (..., Q, d).
        k: (..., K, d).
        v: (..., K, d).
        bias: float, broadcastable to (..., Q, K); -inf hides a key.
    """
    if q.is_cuda or not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(q, k, v, attn_mask=None if bias is None else bias.to(q.dtype))
    scores = torch.matmul(q, k.transpose(-1, -2)).float() * q.shape[-1] ** -0.5
    if bias is not None:
        scores = scores + bias
    return torch.matmul(scores.softmax(-1).to(v.dtype), v)


def attend_joined(
    q: torch.Tensor, past_k: torch.Tensor, k: torch.Tensor, past_v: torch.Tensor, v: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """Attend as `attend` to what was kept of frames before, (B, H, K, d), and then to new ones."""
    return attend(q, torch.cat([past_k, k], 2), torch.cat([past_v, v], 2), bias)


def visible(query: torch.Tensor, key: torch.Tensor, is_shared: torch.Tensor, reach: int) -> torch.Tensor:
    """Return which keys a query frame sees: all of its own, and the shared tokens of the `reach` frames before it.

    Args:
        query: integer (..., Q) frame position of each query token.
        key: integer (..., K) frame position of each key token.
        is_shared: bool (K,), whether other frames may see the key (patch or summary, by the kind of layer).
        reach: frames.
    """
    age = query[..., :, None] - key[..., None, :]
    return (age == 0) | ((age > 0) & (age <= reach) & is_shared)


def to_bias(is_visible: torch.Tensor) -> torch.Tensor:
    """Return the additive bias: 0 where visible, -inf elsewhere."""
    return torch.zeros(is_visible.shape, dtype=torch.float32, device=is_visible.device).masked_fill_(
        ~is_visible, float("-inf")
    )


class FrameAttention(BlockAttention):
    """Multi-head attention between the tokens of frames, of kind `recent`, `prepend` or `memory`."""

    def __init__(
        self,
        width: int,
        heads: int,
        kind: Kind,
        num_patches: int,
        num_summary: int,
        reach: int,
        has_odometry: bool = False,
    ) -> None:
        """Build a layer.

        Args:
            width: channels of a token, a multiple of heads.
            heads: attention heads.
            kind: whose tokens other frames see: patches (recent, prepend) or summaries (memory).
            num_patches: patch tokens a frame.
            num_summary: summary tokens a frame.
            reach: how many past frames are seen.
            has_odometry: whether heads look for frames of the same direction and place, see `PoseBias`.
        """
        super().__init__()
        if width % heads:
            raise ConfigError(f"width {width} must be a multiple of heads {heads}")
        self.heads = heads
        self.kind: Kind = kind
        self.ring = "recent" if kind == "recent" else "memory"
        self.num_patches = num_patches
        self.num_summary = num_summary
        self.reach = reach
        self.to_qkv = nn.Linear(width, 3 * width, bias=False)
        self.to_out = nn.Linear(width, width, bias=False)
        self.q_scale = nn.Parameter(torch.ones(width // heads))
        self.k_scale = nn.Parameter(torch.ones(width // heads))
        self.pose_bias = PoseBias(heads, width // heads) if has_odometry else None

    @property
    def shared(self) -> slice:
        """The tokens of a frame that other frames see."""
        return slice(self.num_patches, None) if self.kind == "memory" else slice(0, self.num_patches)

    def project(self, x: torch.Tensor, rotary: Rotary) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return rotated queries, rotated keys and values, each (B, T, H, N, d), of tokens x (B, T, N, D)."""
        qk, v = rearrange(self.to_qkv(x), "b t n (s h d) -> s b t h n d", s=3, h=self.heads).split((2, 1))
        scale = torch.stack([self.q_scale, self.k_scale])[:, None, None, None, None]
        qk = (
            F.rms_norm(qk.float(), qk.shape[-1:]) * scale.float()
        )  # both at once: in play, calls cost more than arithmetic
        if self.pose_bias is not None:
            qk = qk + self.pose_bias()[:, None, None].float()
        q, k = rotate(qk, rotary).to(v.dtype)
        return q, k, v[0]

    def merge(self, out: torch.Tensor) -> torch.Tensor:
        """Join heads (B, T, H, N, d) and project to (B, T, N, D)."""
        return self.to_out(rearrange(out, "b t h n d -> b t n (h d)"))

    def forward(
        self, x: torch.Tensor, given: LayerInputs, past: Past | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Attend; see `BlockAttention`."""
        q, k, v = self.project(x, given.rotary)
        if past is None and given.chunk is not None and given.chunk < x.shape[1]:
            out = self._chunked(q, k, v, given.chunk)
        else:
            out = self._dense(q, k, v, past)
        return self.merge(out), k[..., self.shared, :], v[..., self.shared, :]

    def _dense(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, past: Past | None) -> torch.Tensor:
        """Queries of all frames against all frames of the call, and earlier ones: every pair."""
        frames, tokens = q.shape[1], q.shape[3]
        q, k, v = (rearrange(y, "b t h n d -> b h (t n) d") for y in (q, k, v))
        if past is None:
            out = attend(q, k, v, self.bias(torch.arange(frames, device=q.device)[None], None))
        elif q.device.type == "cpu":
            # One dream at a time: what is joined and attended to stays in the cache, and is the same.
            bias = past.bias.expand(len(q), -1, -1, -1)
            every = ([part[i : i + 1] for part in (q, past.k, k, past.v, v, bias)] for i in range(len(q)))
            out = torch.cat([attend_joined(*parts) for parts in every])
        else:
            out = attend_joined(q, past.k, k, past.v, v, past.bias)
        return rearrange(out, "b h (t n) d -> b t h n d", n=tokens)

    def bias(self, positions: torch.Tensor, held: torch.Tensor | None) -> torch.Tensor:
        """Return the bias; see `BlockAttention`."""
        tokens, reach = self.num_patches + self.num_summary, self.reach
        is_shared = torch.zeros(tokens, dtype=torch.bool, device=positions.device)
        is_shared[self.shared] = True
        query = positions.repeat_interleave(tokens, 1)
        parts = []
        if held is not None:
            reach = min(reach, held.shape[1])
            age = query[:, :, None] - held[:, None, :]
            is_past = (age > 0) & (age <= reach) & (held >= 0)[:, None, :]
            parts.append(is_past.repeat_interleave(self.num_summary if self.kind == "memory" else self.num_patches, 2))
        parts.append(visible(query, query, is_shared.repeat(positions.shape[1]), reach))
        return to_bias(torch.cat(parts, -1))[:, None]

    def _chunked(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, chunk: int) -> torch.Tensor:
        """Queries of a chunk of frames against their own chunk and the shared tokens of earlier frames in reach."""
        frames, tokens, device = q.shape[1], q.shape[3], q.device
        if frames % chunk:
            raise ConfigError(f"chunk {chunk} must divide the {frames} frames of a clip")
        chunks = frames // chunk
        own_q, own_k, own_v = (rearrange(y, "b (c t) h n d -> (b c) h (t n) d", c=chunks) for y in (q, k, v))

        shared_k, shared_v = k[..., self.shared, :], v[..., self.shared, :]
        num_shared = shared_k.shape[3]
        past_frames = min(-(-self.reach // chunk) * chunk, frames - chunk)
        if past_frames == frames - chunk:  # every earlier frame: one copy for all chunks
            past_k, past_v = (
                repeat(y[:, :past_frames], "b t h n d -> (b c) h (t n) d", c=chunks) for y in (shared_k, shared_v)
            )
            past = torch.arange(past_frames, device=device).expand(chunks, -1)
        else:
            past_k, past_v = (self._unfold(y, chunk, chunks, past_frames) for y in (shared_k, shared_v))
            past = torch.arange(-past_frames, 0, device=device) + chunk * torch.arange(chunks, device=device)[:, None]

        query = torch.arange(frames, device=device).view(chunks, chunk).repeat_interleave(tokens, 1)
        past = past.repeat_interleave(num_shared, 1)
        age = query[:, :, None] - past[:, None, :]
        is_past = (age > 0) & (age <= self.reach) & (past >= 0)[:, None, :]

        # A chunk's own keys: the frame itself, and shared tokens of its earlier frames that the past does not repeat.
        is_past &= past[:, None, :] < (chunk * torch.arange(chunks, device=device))[:, None, None]
        is_shared = torch.zeros(tokens, dtype=torch.bool, device=device)
        is_shared[self.shared] = True
        is_own = visible(query, query, is_shared.repeat(chunk), self.reach)

        bias = to_bias(torch.cat([is_past, is_own], -1))  # (chunks, Q, K)
        bias = repeat(bias, "c q k -> (b c) 1 q k", b=q.shape[0])
        out = attend(own_q, torch.cat([past_k, own_k], 2), torch.cat([past_v, own_v], 2), bias)
        return rearrange(out, "(b c) h (t n) d -> b (c t) h n d", c=chunks, n=tokens)

    @staticmethod
    def _unfold(y: torch.Tensor, chunk: int, chunks: int, past_frames: int) -> torch.Tensor:
        """Return for each chunk the `past_frames` frames before it: (B, T, H, S, d) -> (B c, H, past S, d)."""
        padded = F.pad(y, (0, 0, 0, 0, 0, 0, past_frames, 0))
        parts = [padded[:, c * chunk : c * chunk + past_frames] for c in range(chunks)]
        return rearrange(torch.stack(parts, 1), "b c t h n d -> (b c) h (t n) d")
