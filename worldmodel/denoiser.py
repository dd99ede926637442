"""The denoiser: a frame-causal diffusion transformer with one noise level per frame.

Owns the network: noisy latents, levels, incoming actions and the previous frames in; clean latents, reward and
termination out. Reads a `MemoryCache`, never writes one. Knows no schedule, no sampler, no loss.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from einops import rearrange, repeat
from torch import nn
from torch.nn import functional as F

from worldmodel.attention import FrameAttention, Kind, RotaryPosition
from worldmodel.cache import MemoryCache
from worldmodel.errors import ActionError, ConfigError, ShapeError


@dataclass(frozen=True)
class DenoiserConfig:
    """Shape of a denoiser.

    Attributes:
        latent_channels: channels of a latent.
        latent_size: height and width of a latent.
        patch: height and width of the square of latent pixels that makes one token.
        width: channels of a token.
        depth: transformer blocks; even ones see recent frames, odd ones the compressed memory.
        heads: attention heads.
        num_actions: size of the discrete action set. Action `num_actions` means "none" (first frame of an episode).
        num_previous: past frames given on the channels of every frame, beside attention.
        recent_frames: past frames seen in full.
        memory_frames: past frames seen through summary tokens.
        num_summary: summary tokens a frame.
        mlp_ratio: hidden width of a feed-forward layer over `width`.
        reward_values: the rewards the reward head tells apart.
    """

    latent_channels: int = 8
    latent_size: int = 8
    patch: int = 2
    width: int = 256
    depth: int = 6
    heads: int = 4
    num_actions: int = 7
    num_previous: int = 2
    recent_frames: int = 8
    memory_frames: int = 128
    num_summary: int = 2
    mlp_ratio: int = 4
    reward_values: tuple[float, ...] = (0.0, 1.0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "reward_values", tuple(float(v) for v in self.reward_values))
        for name in ("latent_channels", "latent_size", "patch", "width", "heads", "num_actions", "recent_frames"):
            if getattr(self, name) < 1:
                raise ConfigError(f"denoiser {name} must be at least 1; got {getattr(self, name)}")
        for name in ("memory_frames", "num_summary", "num_previous", "depth"):
            if getattr(self, name) < 1:
                raise ConfigError(f"denoiser {name} must be at least 1; got {getattr(self, name)}")
        if self.latent_size % self.patch:
            raise ConfigError(f"patch {self.patch} must divide latent_size {self.latent_size}")
        if len(self.reward_values) < 2:
            raise ConfigError(f"reward_values needs at least two rewards; got {self.reward_values}")

    @property
    def num_patches(self) -> int:
        """Patch tokens a frame."""
        return (self.latent_size // self.patch) ** 2

    @property
    def num_recent_layers(self) -> int:
        """Blocks that see recent frames in full."""
        return (self.depth + 1) // 2

    @property
    def num_memory_layers(self) -> int:
        """Blocks that see the compressed memory."""
        return self.depth // 2


class Prediction(NamedTuple):
    """What the denoiser says of each frame.

    Attributes:
        clean: float32 (B, T, C, h, w), the predicted clean latents.
        reward_logits: float32 (B, T, R), over `reward_values`, of the step that led to the frame.
        terminated_logit: float32 (B, T), whether that step ended the episode.
    """

    clean: torch.Tensor
    reward_logits: torch.Tensor
    terminated_logit: torch.Tensor


class Written(NamedTuple):
    """Shared keys and values of new frames, for `MemoryCache.commit`: a pair for each layer of a kind."""

    recent: list[tuple[torch.Tensor, torch.Tensor]]
    memory: list[tuple[torch.Tensor, torch.Tensor]]


def level_features(levels: torch.Tensor, width: int) -> torch.Tensor:
    """Return sinusoidal features of levels (...) in [0, 1], float32 (..., width)."""
    frequencies = torch.exp(torch.linspace(0, math.log(200.0), width // 2, device=levels.device))
    angles = levels[..., None].float() * frequencies * math.pi
    return torch.cat([angles.cos(), angles.sin()], -1)


class Block(nn.Module):
    """Attention and feed-forward, each scaled, shifted and gated by the frame's condition (AdaLN)."""

    def __init__(self, config: DenoiserConfig, index: int) -> None:
        """Build block number `index`."""
        super().__init__()
        is_recent = index % 2 == 0
        self.attention = FrameAttention(
            config.width,
            config.heads,
            "recent" if is_recent else "memory",
            config.num_patches,
            config.num_summary,
            config.recent_frames if is_recent else config.memory_frames,
        )
        hidden = config.mlp_ratio * config.width
        self.feed_forward = nn.Sequential(
            nn.Linear(config.width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, config.width)
        )
        self.modulation = nn.Parameter(torch.zeros(6, config.width))

    def forward_rest(
        self, tokens: torch.Tensor, attended: torch.Tensor, modulation: tuple[torch.Tensor, ...]
    ) -> torch.Tensor:
        """Return the tokens (B, T, N, D) after the attention's output has been added and the feed-forward has run."""
        gate_a, shift_f, scale_f, gate_f = (part.to(tokens.dtype) for part in modulation[2:])
        tokens = tokens + gate_a * attended
        hidden = self.feed_forward(self.normalize(tokens, shift_f, scale_f))
        return tokens + gate_f * hidden

    @staticmethod
    def normalize(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Layer norm without its own affine, then scale and shift, in the dtype of x."""
        return (F.layer_norm(x, x.shape[-1:]) * scale + shift).to(x.dtype)


class Denoiser(nn.Module):
    """Frame-causal diffusion transformer; see the module docstring."""

    def __init__(self, config: DenoiserConfig) -> None:
        """Build an untrained denoiser of the given shape."""
        super().__init__()
        self.config = config
        width, patch_area = config.width, config.patch**2
        self.embed = nn.Linear(config.latent_channels * (1 + config.num_previous) * patch_area, width)
        self.patch_position = nn.Parameter(0.02 * torch.randn(config.num_patches, width))
        self.summary = nn.Parameter(0.02 * torch.randn(config.num_summary, width))
        self.embed_action = nn.Embedding(config.num_actions + 1, width)
        self.embed_level = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.embed_previous_level = nn.Linear(width * config.num_previous, width)
        self.to_condition = nn.Linear(width, 6 * width)
        blocks = nn.ModuleList([Block(config, index) for index in range(config.depth)])
        self.blocks = cast("Sequence[Block]", blocks)  # ModuleList does not tell the type of its members
        self.rotary = RotaryPosition(width // config.heads, config.latent_size // config.patch, config.num_summary)
        self.final_modulation = nn.Linear(width, 2 * width)
        self.to_clean = nn.Linear(width, config.latent_channels * patch_area)
        self.reward_head = nn.Linear(width, len(config.reward_values))
        self.terminated_head = nn.Linear(width, 1)
        nn.init.normal_(self.embed_action.weight, std=0.5)
        for layer in (self.to_condition, self.final_modulation, self.to_clean, self.reward_head, self.terminated_head):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        for block in self.blocks:  # gates start open enough to pass gradients, shifts and scales at rest
            with torch.no_grad():
                block.modulation[2].fill_(0.3)
                block.modulation[5].fill_(0.3)

    def check_memory_frames(self, memory_frames: int | None) -> int:
        """Return how many summaries a dream keeps when `memory_frames` are asked for; None: the configured number.

        Raises:
            ConfigError: below 1, or more than the denoiser can see.
        """
        most = self.config.memory_frames
        if memory_frames is None:
            return most
        if isinstance(memory_frames, bool) or not isinstance(memory_frames, int) or not 1 <= memory_frames <= most:
            raise ConfigError(
                f"memory_frames must be from 1 to {most}, all that this denoiser can see; got {memory_frames}"
            )
        return memory_frames

    def new_cache(self, batch: int, memory_frames: int | None = None, dtype: torch.dtype | None = None) -> MemoryCache:
        """Return an empty cache for `batch` dreams on the denoiser's device.

        Args:
            batch: dreams.
            memory_frames: summaries to keep; default the configured number. Fewer forget sooner.
            dtype: of keys and values; default the parameters' dtype.

        Raises:
            ConfigError: as `check_memory_frames`.
        """
        config = self.config
        memory_frames = self.check_memory_frames(memory_frames)
        weight = self.to_clean.weight
        dtype = weight.dtype if dtype is None else dtype

        def ring(layers: int, frames: int, tokens: int) -> torch.Tensor:
            shape = (layers, batch, config.heads, frames, tokens, config.width // config.heads)
            return torch.zeros(shape, dtype=dtype, device=weight.device)

        return MemoryCache(
            recent_k=ring(config.num_recent_layers, config.recent_frames, config.num_patches),
            recent_v=ring(config.num_recent_layers, config.recent_frames, config.num_patches),
            memory_k=ring(config.num_memory_layers, memory_frames, config.num_summary),
            memory_v=ring(config.num_memory_layers, memory_frames, config.num_summary),
            count=torch.zeros(batch, dtype=torch.int64, device=weight.device),
        )

    def flops_per_frame(self, clip_frames: int) -> float:
        """Return the floating-point operations of one frame's forward pass inside clips; attention as far as seen."""
        config = self.config
        tokens = config.num_patches + config.num_summary
        matrices = sum(p.numel() for b in self.blocks for n, p in b.named_parameters() if n.endswith("weight"))
        recent = tokens + min(config.recent_frames, clip_frames) * config.num_patches
        memory = tokens + min(config.memory_frames, clip_frames) * config.num_summary / 2
        pairs = tokens * (config.num_recent_layers * recent + config.num_memory_layers * memory)
        ends = self.embed.weight.numel() + self.to_clean.weight.numel()
        return 2.0 * tokens * (matrices + ends) + 4.0 * pairs * config.width

    def _check(
        self,
        latents: torch.Tensor,
        levels: torch.Tensor,
        actions: torch.Tensor,
        previous: torch.Tensor,
        previous_levels: torch.Tensor,
    ) -> None:
        config = self.config
        want = (config.latent_channels, config.latent_size, config.latent_size)
        if latents.ndim != 5 or tuple(latents.shape[2:]) != want:
            raise ShapeError(f"latents must be (B, T, {', '.join(map(str, want))}); got {tuple(latents.shape)}")
        frames = tuple(latents.shape[:2])
        for name, tensor, shape in (
            ("levels", levels, frames),
            ("actions", actions, frames),
            ("previous", previous, (*frames, config.num_previous, *want)),
            ("previous_levels", previous_levels, (*frames, config.num_previous)),
        ):
            if tuple(tensor.shape) != shape:
                raise ShapeError(f"{name} must be {shape}; got {tuple(tensor.shape)}")
        if actions.is_floating_point():
            raise ActionError(f"actions must be integers in 0..{config.num_actions}; got {actions.dtype}")

    def _enter(
        self,
        latents: torch.Tensor,
        levels: torch.Tensor,
        actions: torch.Tensor,
        previous: torch.Tensor,
        previous_levels: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return tokens (B, T, N, D) and condition (B, T, D)."""
        config = self.config
        channels = torch.cat([latents, rearrange(previous, "b t k c h w -> b t (k c) h w")], 2)
        patches = rearrange(channels, "b t c (h p) (w q) -> b t (h w) (c p q)", p=config.patch, q=config.patch)
        tokens = self.embed(patches.to(self.embed.weight.dtype)) + self.patch_position
        summary = repeat(self.summary, "s d -> b t s d", b=latents.shape[0], t=latents.shape[1])
        tokens = torch.cat([tokens, summary.to(tokens.dtype)], 2)
        dtype = self.embed.weight.dtype
        past = rearrange(level_features(previous_levels, config.width), "b t k d -> b t (k d)").to(dtype)
        condition = self.embed_level(level_features(levels, config.width).to(dtype))
        condition = condition + self.embed_action(actions) + self.embed_previous_level(past)
        return tokens, F.silu(condition)

    def _modulations(self, condition: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
        """Return for each block shift, scale and gate of attention and of feed-forward, each (B, T, 1, D)."""
        shared = rearrange(self.to_condition(condition), "b t (s d) -> b t 1 s 1 d", s=6)
        own = torch.stack([block.modulation for block in self.blocks])[:, :, None]
        at_rest = own.new_tensor([0.0, 1.0, 0.0, 0.0, 1.0, 0.0])[:, None, None]
        return [block.unbind(2) for block in (shared + (own + at_rest)).unbind(2)]

    def _leave(self, tokens: torch.Tensor, condition: torch.Tensor) -> Prediction:
        config = self.config
        shift, scale = self.final_modulation(condition)[:, :, None].chunk(2, -1)
        tokens = Block.normalize(tokens, shift, 1 + scale).to(self.to_clean.weight.dtype)
        clean = rearrange(
            self.to_clean(tokens[:, :, : config.num_patches]),
            "b t (h w) (c p q) -> b t c (h p) (w q)",
            h=config.latent_size // config.patch,
            p=config.patch,
            q=config.patch,
        )
        pooled = tokens[:, :, config.num_patches :].mean(2)
        reward, terminated = self.reward_head(pooled), self.terminated_head(pooled)[..., 0]
        return Prediction(clean.float(), reward.float(), terminated.float())

    def forward(
        self,
        latents: torch.Tensor,
        levels: torch.Tensor,
        actions: torch.Tensor,
        previous: torch.Tensor,
        previous_levels: torch.Tensor,
        chunk: int | None = None,
    ) -> Prediction:
        """Predict the clean frames of clips; frame t sees frames up to t.

        Args:
            latents: float (B, T, C, h, w), frame t at level levels[:, t].
            levels: float (B, T) in [0, 1].
            actions: int64 (B, T), the action that led to each frame, 0..num_actions (the last means none).
            previous: float (B, T, K, C, h, w), the K frames before each frame, nearest first.
            previous_levels: float (B, T, K), the levels of those; 1 where there is no frame.
            chunk: frames a chunk of attention (faster, same result), a divisor of T; None for the dense reference.

        Raises:
            ShapeError: shapes do not agree with one another or with the config.
            ActionError: actions are not integers.
        """
        self._check(latents, levels, actions, previous, previous_levels)
        tokens, condition = self._enter(latents, levels, actions, previous, previous_levels)
        rotary = self.rotary(torch.arange(latents.shape[1], device=latents.device)[None])
        for block, modulation in zip(self.blocks, self._modulations(condition), strict=True):
            attended = block.attention(block.normalize(tokens, *modulation[:2]), rotary, chunk)
            tokens = block.forward_rest(tokens, attended, modulation)
        return self._leave(tokens, condition)

    def forward_cached(
        self,
        latents: torch.Tensor,
        levels: torch.Tensor,
        actions: torch.Tensor,
        previous: torch.Tensor,
        previous_levels: torch.Tensor,
        cache: MemoryCache,
    ) -> tuple[Prediction, Written]:
        """Predict J new frames that follow those in the cache, without changing the cache.

        Args: as `forward` with T = J, and the cache of the frames before.

        Returns:
            the prediction, and the keys and values to hand to `cache.commit`.
        """
        self._check(latents, levels, actions, previous, previous_levels)
        tokens, condition = self._enter(latents, levels, actions, previous, previous_levels)
        positions = cache.count[:, None] + torch.arange(latents.shape[1], device=latents.device)
        rotary = self.rotary(positions)
        written = Written([], [])
        held = {"recent": cache.recent_positions, "memory": cache.memory_positions}
        biases: dict[str, torch.Tensor] = {}
        for block, modulation in zip(self.blocks, self._modulations(condition), strict=True):
            attention = block.attention
            kind: Kind = attention.kind
            rings = (cache.recent_k, cache.recent_v) if kind == "recent" else (cache.memory_k, cache.memory_v)
            kept = written.recent if kind == "recent" else written.memory
            if kind not in biases:
                biases[kind] = attention.cached_bias(positions, held[kind]).to(tokens.dtype)
            cached_k, cached_v = (ring[len(kept)].flatten(2, 3) for ring in rings)
            normal = block.normalize(tokens, *modulation[:2])
            attended, k, v = attention.forward_cached(normal, rotary, cached_k, cached_v, biases[kind])
            kept.append((k, v))
            tokens = block.forward_rest(tokens, attended, modulation)
        return self._leave(tokens, condition), written
