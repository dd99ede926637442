"""The denoiser: a frame-causal diffusion transformer with one noise level per frame.

Owns the network: noisy latents, levels, incoming actions and the previous frames in; clean latents, reward and
termination out. Reads a `MemoryCache`, never writes one. Knows no schedule, no sampler, no loss.
"""

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from einops import rearrange, repeat
from torch import nn
from torch.nn import functional as F

from worldmodel.attention import FrameAttention
from worldmodel.cache import MemoryCache, Rings
from worldmodel.config import DenoiserConfig
from worldmodel.errors import ActionError, ConfigError, ShapeError
from worldmodel.memory.slots import SlotAttention
from worldmodel.noise import clean_from_velocity, level_features
from worldmodel.recall import Recall, Remembered, Seen, see_slots


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
    """What new frames leave in a cache, for `MemoryCache.commit`: rings by name, poses (B, J, 3), actions (B, J)."""

    rings: Rings
    poses: torch.Tensor
    actions: torch.Tensor


class Block(nn.Module):
    """Attention and feed-forward, each scaled, shifted and gated by the frame's condition (AdaLN)."""

    def __init__(self, config: DenoiserConfig, index: int) -> None:
        """Build block number `index`."""
        super().__init__()
        setting, is_odd = config.setting, index % 2 == 1
        sees_slots = is_odd and setting.compression == "joint"
        is_recent = not (is_odd and config.is_grid_memory)
        self.attention: FrameAttention | SlotAttention = (
            SlotAttention(config.width, config.heads, setting.budget, True, bool(config.motions))
            if sees_slots
            else FrameAttention(
                config.width,
                config.heads,
                "recent" if is_recent else "memory" if setting.structure == "summary" else "prepend",
                config.num_patches,
                config.num_summary,
                config.recent_frames if is_recent else config.memory_frames,
                bool(config.motions) and not is_recent,
            )
        )
        self.cross: SlotAttention | None = None
        if is_odd and setting.structure == "cross":
            self.cross = SlotAttention(config.width, config.heads, setting.budget, False, bool(config.motions))
            nn.init.zeros_(self.cross.to_out.weight)  # at first as if it were not there
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
    def rest(x: torch.Tensor) -> torch.Tensor:
        """Layer norm alone."""
        return F.layer_norm(x, x.shape[-1:]).to(x.dtype)

    @staticmethod
    def normalize(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Layer norm without its own affine, then scale and shift, in the dtype of x."""
        return (F.layer_norm(x, x.shape[-1:]) * scale + shift).to(x.dtype)


class Denoiser(Recall):
    """Frame-causal diffusion transformer; see the module docstring."""

    def __init__(self, config: DenoiserConfig) -> None:
        """Build an untrained denoiser of the given shape."""
        super().__init__(config)
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
        most = self.config.most_memory_frames
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

        setting, head_width = config.setting, config.width // config.heads
        patches, slots = config.num_patches, min(memory_frames, setting.budget)
        shapes: dict[str, tuple[int, ...]] = {}  # layers, heads, frames, tokens, channels
        for pair in ("k", "v"):
            shapes[f"recent_{pair}"] = (
                config.num_recent_layers,
                config.heads,
                config.recent_frames,
                patches,
                head_width,
            )
            memory = (config.num_memory_layers, config.heads, slots, config.num_memory_tokens, head_width)
            shapes[f"memory_{pair}"] = memory
            if self.compressor is not None:
                length = min(memory_frames, setting.length)
                shapes[f"compressed_{pair}"] = (1, config.heads, length, patches, head_width)
        if self.channel is not None and self.entries is not None:
            shapes["entries"] = (1, 1, slots, patches, self.entries.width)
        if config.has_views:
            seen, size = min(memory_frames, config.view_reach), config.latent_size
            shapes["views"] = (1, 1, seen, size, size * config.latent_channels)
            shapes["view_poses"] = (1, 1, seen, 1, 4 + (size if self.spatial is not None else 0))
        rings = {  # poses keep their digits: in 16 bits a place would be off by steps
            name: torch.zeros(
                (layers, batch, *rest), dtype=torch.float32 if name == "view_poses" else dtype, device=weight.device
            )
            for name, (layers, *rest) in shapes.items()
        }
        count = torch.zeros(batch, dtype=torch.int64, device=weight.device)
        pose = torch.zeros(batch, 3, device=weight.device)
        return MemoryCache(rings, count, pose, torch.full_like(count, config.num_actions))

    def flops_per_frame(self, clip_frames: int) -> float:
        """Return the floating-point operations of one frame's forward pass inside clips; attention as far as seen."""
        config = self.config
        tokens = config.num_patches + config.num_summary
        matrices = sum(p.numel() for n, p in self.named_parameters() if p.ndim == 2 and n.startswith("blocks."))
        recent = tokens + min(config.recent_frames, clip_frames) * config.num_patches
        memory = tokens + min(config.setting.budget, clip_frames) * config.num_memory_tokens / 2
        pairs = tokens * (config.num_recent_layers * recent + config.num_memory_layers * memory)
        ends = self.embed.weight.numel() + self.to_clean.weight.numel()
        beside = sum(
            p.numel()
            for part in (self.entries, self.compressor, self.channel)
            if part is not None
            for p in part.parameters()
            if p.ndim == 2
        )
        return 2.0 * tokens * (matrices + ends) + 2.0 * config.num_patches * beside + 4.0 * pairs * config.width

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

    def _leave(
        self, tokens: torch.Tensor, condition: torch.Tensor, latents: torch.Tensor, levels: torch.Tensor
    ) -> Prediction:
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
        if config.prediction == "velocity":
            clean = clean_from_velocity(latents.float(), clean.float(), levels)
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
        seen: Seen | None = None,
    ) -> Prediction:
        """Predict the clean frames of clips; frame t sees frames up to t.

        Args:
            latents: float (B, T, C, h, w), frame t at level levels[:, t].
            levels: float (B, T) in [0, 1].
            actions: int64 (B, T), the action that led to each frame, 0..num_actions (the last means none).
            previous: float (B, T, K, C, h, w), the K frames before each frame, nearest first.
            previous_levels: float (B, T, K), the levels of those; 1 where there is no frame.
            chunk: frames a chunk of attention (faster, same result), a divisor of T; None for the dense reference.
            seen: from `look_back`, where poses and views are to follow other frames than `previous`; default those.

        Raises:
            ShapeError: shapes do not agree with one another or with the config.
            ActionError: actions are not integers.
        """
        self._check(latents, levels, actions, previous, previous_levels)
        tokens, condition = self._enter(latents, levels, actions, previous, previous_levels)
        positions = torch.arange(latents.shape[1], device=latents.device)[None]
        reckoning, views, _ = self.look_back(previous, previous_levels, actions) if seen is None else seen
        rotary = self.rotary(positions, reckoning.poses)
        if views is not None:
            tokens = self._lay_views(tokens, views)
        memory = None
        if self.entries is not None:
            entries = self._make_entries(previous, previous_levels, actions)
            slot_rotary = self._slot_rotary(positions, reckoning.before)
            if self.compressor is not None:
                entries = self.compressor(entries, slot_rotary)
            if self.channel is not None:
                tokens = self._join(tokens, self.channel(F.pad(entries, (0, 0, 0, 0, self.channel.length - 1, 0))))
            else:
                age = positions[:, :, None] - positions[:, None, :]
                memory = Remembered(entries, slot_rotary, (age >= 0) & (age < self.config.setting.budget))
        for block, modulation in zip(self.blocks, self._modulations(condition), strict=True):
            normal = block.normalize(tokens, *modulation[:2])
            if isinstance(block.attention, FrameAttention):
                attended = block.attention(normal, rotary, chunk)
            else:
                attended = self._see_slots(block.attention, normal, rotary, memory)
            if block.cross is not None:
                tokens = tokens + self._see_slots(block.cross, block.rest(tokens), rotary, memory)
            tokens = block.forward_rest(tokens, attended, modulation)
        return self._leave(tokens, condition, latents, levels)

    def forward_cached(
        self,
        latents: torch.Tensor,
        levels: torch.Tensor,
        actions: torch.Tensor,
        previous: torch.Tensor,
        previous_levels: torch.Tensor,
        cache: MemoryCache,
        seen: Seen | None = None,
    ) -> tuple[Prediction, Written]:
        """Predict J new frames that follow those in the cache, without changing the cache.

        Args: as `forward` with T = J, and the cache of the frames before. `seen` saves the work of `look_back`.

        Returns:
            the prediction, and the keys and values to hand to `cache.commit`.
        """
        self._check(latents, levels, actions, previous, previous_levels)
        tokens, condition = self._enter(latents, levels, actions, previous, previous_levels)
        positions = cache.count[:, None] + torch.arange(latents.shape[1], device=latents.device)
        seen = self.look_back(previous, previous_levels, actions, cache) if seen is None else seen
        reckoning, views, new_views = seen
        rotary = self.rotary(positions, reckoning.poses)
        written: Rings = {name: [] for name in cache.rings} | new_views
        if views is not None:
            tokens = self._lay_views(tokens, views)
        memory = None
        if self.entries is not None:
            slots, slot_rotary = self._remember(
                previous, previous_levels, actions, positions, reckoning.before, cache, written
            )
            if self.channel is not None:
                tokens = self._enter_channel(tokens, slots, positions, cache, written)
            else:
                memory = Remembered(
                    slots, slot_rotary, see_slots(positions, cache, "memory_k", self.config.setting.budget)
                )
        biases: dict[str, torch.Tensor] = {}
        for block, modulation in zip(self.blocks, self._modulations(condition), strict=True):
            normal = block.normalize(tokens, *modulation[:2])
            attention = block.attention
            if isinstance(attention, FrameAttention):
                ring = "recent" if attention.kind == "recent" else "memory"
                if ring not in biases:
                    held = cache.positions(f"{ring}_k")
                    biases[ring] = attention.cached_bias(positions, held).to(tokens.dtype)
                layer = len(written[f"{ring}_k"])
                cached_k, cached_v = (cache.rings[f"{ring}_{pair}"][layer].flatten(2, 3) for pair in ("k", "v"))
                attended, k, v = attention.forward_cached(normal, rotary, cached_k, cached_v, biases[ring])
                written[f"{ring}_k"].append(k)
                written[f"{ring}_v"].append(v)
            else:
                attended = self._look_back(attention, normal, rotary, memory, cache, written)
            if block.cross is not None:
                tokens = tokens + self._look_back(block.cross, block.rest(tokens), rotary, memory, cache, written)
            tokens = block.forward_rest(tokens, attended, modulation)
        return self._leave(tokens, condition, latents, levels), Written(written, reckoning.kept, actions)
