"""The denoiser: a frame-causal diffusion transformer with one noise level per frame.

Owns the network: frames to denoise with what came before them in; clean latents, reward and termination out. Holds
memories, and reads a `MemoryCache`, never writes one. Knows no schedule, no sampler, no loss, and no single memory.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, cast

import torch
from einops import rearrange, repeat
from torch import nn
from torch.nn import functional as F

from worldmodel.attention import BlockAttention, FrameAttention, LayerInputs, Past, RotaryPosition
from worldmodel.cache import MemoryCache, Rings
from worldmodel.config import DenoiserConfig
from worldmodel.counts import read_whole
from worldmodel.errors import ActionError, ConfigError, ShapeError
from worldmodel.inputs import FrameInputs
from worldmodel.memory.base import Context, Memory, PoseEstimate, Reading, RingShape, frame_positions
from worldmodel.memory.registry import build_memories
from worldmodel.noise import level_features
from worldmodel.odometry import POSE_SIZE


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
    """What new frames leave in a cache, for `MemoryCache.commit`: rings by name, and poses (B, J, 5)."""

    rings: Rings
    poses: torch.Tensor


class Block(nn.Module):
    """Attention and feed-forward, each scaled, shifted and gated by the frame's condition (AdaLN)."""

    def __init__(self, config: DenoiserConfig, index: int, memories: Iterable[Memory]) -> None:
        """Build block number `index`, with the attention that memories give it; without, it sees recent frames."""
        super().__init__()
        memories = list(memories)
        self.attention: BlockAttention = _first(memory.attention(index) for memory in memories) or FrameAttention(
            config.width, config.heads, "recent", config.num_patches, config.num_summary, config.recent_frames
        )
        self.cross: BlockAttention | None = _first(memory.cross_attention(index) for memory in memories)
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
    def layer_norm(x: torch.Tensor) -> torch.Tensor:
        """Layer norm alone."""
        return F.layer_norm(x, x.shape[-1:]).to(x.dtype)

    @staticmethod
    def normalize(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Layer norm without its own affine, then scale and shift, in the dtype of x."""
        return (F.layer_norm(x, x.shape[-1:]) * scale + shift).to(x.dtype)


def _first(layers: Iterable[BlockAttention | None]) -> BlockAttention | None:
    return next((layer for layer in layers if layer is not None), None)


class LayerCache:
    """One call's way through a cache: hands each layer its past, and collects what new frames leave."""

    def __init__(self, cache: MemoryCache | None, positions: torch.Tensor, dtype: torch.dtype) -> None:
        """Begin before the first layer.

        Args:
            cache: of earlier frames; None for clips, which leave nothing.
            positions: int64 (B, T) of the frames.
            dtype: of tokens.
        """
        self.cache, self.positions, self.dtype = cache, positions, dtype
        self.written: Rings = {}
        self._biases: dict[str, torch.Tensor] = {}

    def attend(self, layer: BlockAttention, tokens: torch.Tensor, given: LayerInputs) -> torch.Tensor:
        """Run the next layer of a ring."""
        if self.cache is None:
            attended, _, _ = layer(tokens, given)
            return cast("torch.Tensor", attended)
        names = f"{layer.ring}_k", f"{layer.ring}_v"
        if layer.ring not in self._biases:  # all layers of a ring see the same frames
            bias = layer.bias(self.positions, self.cache.positions(names[0]))
            self._biases[layer.ring] = bias.to(self.dtype)
        number = len(self.written.setdefault(names[0], []))
        past_k, past_v = (self.cache.rings[name][number].flatten(2, 3) for name in names)
        attended, *new = layer(tokens, given, Past(past_k, past_v, self._biases[layer.ring]))
        for name, part in zip(names, new, strict=True):
            self.written.setdefault(name, []).append(part)
        return cast("torch.Tensor", attended)


class Denoiser(nn.Module):
    """Frame-causal diffusion transformer; see the module docstring."""

    def __init__(self, config: DenoiserConfig, memories: Mapping[str, Memory] | None = None) -> None:
        """Build an untrained denoiser.

        Args:
            config: its shape.
            memories: by name, in the order in which they are read; default those that the config asks for.
        """
        super().__init__()
        self.config = config
        self.rotary = RotaryPosition.build(config)
        self.memories = nn.ModuleDict(build_memories(config) if memories is None else memories)

        width, patch_area = config.width, config.patch**2
        self.embed = nn.Linear(config.latent_channels * (1 + config.num_previous) * patch_area, width)
        self.patch_position = nn.Parameter(0.02 * torch.randn(config.num_patches, width))
        self.summary = nn.Parameter(0.02 * torch.randn(config.num_summary, width))

        self.embed_action = nn.Embedding(config.num_actions + 1, width)
        self.embed_level = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.embed_previous_level = nn.Linear(width * config.num_previous, width)
        self.to_condition = nn.Linear(width, 6 * width)

        blocks = nn.ModuleList([Block(config, index, self.named_memories().values()) for index in range(config.depth)])
        self.blocks = cast("Sequence[Block]", blocks)  # ModuleList does not tell the type of its members

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

    def named_memories(self) -> dict[str, Memory]:
        """Return the memories by name: `ModuleDict` does not tell the type of its members."""
        return cast("dict[str, Memory]", dict(self.memories.items()))

    def check_memory_frames(self, memory_frames: int | None) -> int:
        """Return how many summaries a dream keeps when `memory_frames` are asked for; None: the configured number.

        Raises:
            ConfigError: below 1, or more than the denoiser can see.
        """
        most = self.config.memory_frames
        if memory_frames is None:
            return most
        found = read_whole(memory_frames)
        if found is None or not 1 <= found <= most:
            raise ConfigError(
                f"memory_frames must be from 1 to {most}, all that this denoiser can see; got {memory_frames}"
            )
        return found

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

        shape = RingShape(
            config.num_recent_layers,
            config.heads,
            config.recent_frames,
            config.num_patches,
            config.width // config.heads,
        )
        shapes = {"recent_k": shape, "recent_v": shape}
        for memory in self.named_memories().values():
            shapes |= memory.cache_shapes(memory_frames)
        rings = {
            name: torch.zeros((layers, batch, *rest), dtype=dtype, device=weight.device)
            for name, (layers, *rest) in shapes.items()
        }
        count = torch.zeros(batch, dtype=torch.int64, device=weight.device)
        pose = torch.zeros(batch, POSE_SIZE, dtype=torch.float32, device=weight.device)
        return MemoryCache(rings, count, pose)

    def flops_per_frame(self, clip_frames: int) -> float:
        """Return the floating-point operations of one frame's forward pass inside clips; attention as far as seen."""
        config = self.config
        tokens = config.num_patches + config.num_summary
        matrices = sum(p.numel() for n, p in self.named_parameters() if p.ndim == 2 and n.startswith("blocks."))
        recent = tokens + min(config.recent_frames, clip_frames) * config.num_patches
        memory = tokens + min(config.setting.budget, clip_frames) * config.num_memory_tokens / 2
        pairs = tokens * (config.num_recent_layers * recent + config.num_memory_layers * memory)
        ends = self.embed.weight.numel() + self.to_clean.weight.numel()
        beside = sum(memory.flops_per_frame() for memory in self.named_memories().values())
        return 2.0 * tokens * (matrices + ends) + beside + 4.0 * pairs * config.width

    def _check(self, frames: FrameInputs) -> None:
        config, latents = self.config, frames.latents
        want = (config.latent_channels, config.latent_size, config.latent_size)
        if latents.ndim != 5 or tuple(latents.shape[2:]) != want:
            raise ShapeError(f"latents must be (B, T, {', '.join(map(str, want))}); got {tuple(latents.shape)}")
        shape = tuple(latents.shape[:2])
        wanted = {
            "levels": shape,
            "actions": shape,
            "previous": (*shape, config.num_previous, *want),
            "previous_levels": (*shape, config.num_previous),
        }
        if frames.warped is not None:
            wanted["warped"] = (*shape, config.warp_channels, *want[1:])
        if frames.poses is not None:
            wanted["poses"] = (*shape, POSE_SIZE)
        for name, size in wanted.items():
            if tuple(getattr(frames, name).shape) != size:
                raise ShapeError(f"{name} must be {size}; got {tuple(getattr(frames, name).shape)}")
        if frames.actions.is_floating_point():
            raise ActionError(f"actions must be integers in 0..{config.num_actions}; got {frames.actions.dtype}")

    def _embed(self, frames: FrameInputs) -> tuple[torch.Tensor, torch.Tensor]:
        """Return tokens (B, T, N, D) and condition (B, T, D)."""
        config = self.config
        previous = rearrange(frames.previous, "b t k c h w -> b t (k c) h w")
        channels = torch.cat([frames.latents, previous], 2)
        patches = rearrange(channels, "b t c (h p) (w q) -> b t (h w) (c p q)", p=config.patch, q=config.patch)
        tokens = self.embed(patches.to(self.embed.weight.dtype)) + self.patch_position
        summary = repeat(self.summary, "s d -> b t s d", b=tokens.shape[0], t=tokens.shape[1])
        tokens = torch.cat([tokens, summary.to(tokens.dtype)], 2)
        dtype = self.embed.weight.dtype
        past = rearrange(level_features(frames.previous_levels, config.width), "b t k d -> b t (k d)").to(dtype)
        condition = self.embed_level(level_features(frames.levels, config.width).to(dtype))
        condition = condition + self.embed_action(frames.actions) + self.embed_previous_level(past)
        return tokens, F.silu(condition)

    def _modulations(self, condition: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
        """Return for each block shift, scale and gate of attention and of feed-forward, each (B, T, 1, D)."""
        shared = rearrange(self.to_condition(condition), "b t (s d) -> b t 1 s 1 d", s=6)
        own = torch.stack([block.modulation for block in self.blocks])[:, :, None]
        is_scale = torch.arange(6, device=own.device) % 3 == 1  # made there: a list would be waited for
        at_rest = is_scale.to(own.dtype)[:, None, None]
        return [block.unbind(2) for block in (shared + (own + at_rest)).unbind(2)]

    def _unembed(self, tokens: torch.Tensor, condition: torch.Tensor, frames: FrameInputs) -> Prediction:
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

    def read(
        self,
        frames: FrameInputs,
        cache: MemoryCache | None = None,
        known: Context | None = None,
        names: set[str] | None = None,
    ) -> Context:
        """Return what frames look back at: where they are seen from, and what each memory has for them.

        Every denoising step of a frame may share it, as long as the frames before that frame stay as they are.

        Args:
            frames: as `forward`; their own latents and levels do not matter.
            cache: of the frames before the first; None for clips.
            known: readings to take over; only memories without one there are read.
            names: of the memories to read; default all.
        """
        readings: dict[str, Reading] = {} if known is None else dict(known.readings)
        estimate = PoseEstimate.standing(frames, cache) if known is None else known.estimate
        for name, memory in self.named_memories().items():
            if name not in readings and (names is None or name in names):
                readings[name] = memory.read(frames, cache, estimate)
            found = readings.get(name)
            if found is not None and found.estimate is not None:
                estimate = found.estimate
        return Context(estimate, readings)

    def forward(
        self,
        frames: FrameInputs,
        *,
        cache: MemoryCache | None = None,
        context: Context | None = None,
        chunk: int | None = None,
    ) -> tuple[Prediction, Written]:
        """Predict clean frames; frame t sees frames up to t, and those in the cache, which is not changed.

        Args:
            frames: T frames of clips, or T new ones that follow those in the cache.
            cache: of the frames before; None for clips.
            context: from `read`, to save that work, or where memories are to follow other frames than those before;
                memories without a reading in it are read.
            chunk: frames a chunk of attention in clips (faster, same result), a divisor of T; None for the dense
                reference.

        Returns:
            the prediction, and what to hand to `cache.commit`; of clips it is empty.

        Raises:
            ShapeError: shapes do not agree with one another or with the config.
            ActionError: actions are not integers.
            ConfigError: the chunk does not divide T.
        """
        self._check(frames)
        tokens, condition = self._embed(frames)
        context = self.read(frames, cache, context)
        for added in context.added:
            tokens = tokens + F.pad(added, (0, 0, 0, self.config.num_summary))
        positions = frame_positions(frames, cache)
        given = LayerInputs(self.rotary(positions, context.estimate.poses), context.slots, chunk)
        layers = LayerCache(cache, positions, tokens.dtype)
        for block, modulation in zip(self.blocks, self._modulations(condition), strict=True):
            attended = layers.attend(block.attention, block.normalize(tokens, *modulation[:2]), given)
            if block.cross is not None:
                tokens = tokens + layers.attend(block.cross, block.layer_norm(tokens), given)
            tokens = block.forward_rest(tokens, attended, modulation)
        prediction = self._unembed(tokens, condition, frames)
        return prediction, Written(layers.written | context.written, context.estimate.poses)
