"""The sampler: walks a Window over frames in flight, with the memory as context.

Owns one auto-regressive step: denoise, write what has become clean, shift. The schedule is an argument. Knows no
pixels.

The clean write of finished frames rides in the first network call of the step after them: `DreamState.pending` holds
finished frames that the cache does not know yet.
"""

from dataclasses import dataclass, fields

import torch
from torch.nn import functional as F

from worldmodel.cache import MemoryCache
from worldmodel.denoiser import Denoiser, Prediction
from worldmodel.errors import ConfigError, ShapeError, WindowError
from worldmodel.noise import add_noise, move_level
from worldmodel.objective import stack_previous
from worldmodel.windows import Window


@dataclass(frozen=True)
class SamplerConfig:
    """Settings of sampling.

    Attributes:
        num_steps: denoising steps in one auto-regressive step.
        context_level: noise level at which finished frames are shown to later ones; hides small errors of their own.
    """

    num_steps: int = 4
    context_level: float = 0.05

    def __post_init__(self) -> None:
        if not isinstance(self.num_steps, int) or not 1 <= self.num_steps <= 1000:
            raise ConfigError(f"num_steps must be a whole number from 1 to 1000; got {self.num_steps!r}")
        if not 0 <= self.context_level < 1:
            raise ConfigError(f"context_level must be in [0, 1); got {self.context_level}")


@dataclass
class DreamState:
    """Everything that a batch of dreams is, beside the weights.

    Attributes:
        cache: keys and values of committed frames.
        pending: float (B, S, C, h, w), the newest finished frames, not in the cache yet, as shown to later frames.
        pending_actions: int64 (B, S), the actions into them.
        recent: float (B, K, C, h, w), the frames before `pending`, oldest first, as shown.
        recent_levels: float (B, K), the context level, or 1 where there is no frame.
        flight: float (B, W - S, C, h, w), frames begun but not finished.
        flight_actions: int64 (B, W - S).
    """

    cache: MemoryCache
    pending: torch.Tensor
    pending_actions: torch.Tensor
    recent: torch.Tensor
    recent_levels: torch.Tensor
    flight: torch.Tensor
    flight_actions: torch.Tensor

    def clone(self) -> "DreamState":
        """Return an independent copy: a fork of the dreams."""
        return DreamState(**{f.name: getattr(self, f.name).clone() for f in fields(self)})

    def put(self, rows: torch.Tensor, other: "DreamState") -> None:
        """Replace the dreams of `rows` (int64 (n,)) by the n dreams of `other`, in place."""
        for f in fields(self):
            mine, theirs = getattr(self, f.name), getattr(other, f.name)
            if isinstance(mine, MemoryCache):
                mine.put(rows, theirs)
            else:
                mine[rows] = theirs


class Sampler:
    """Draws the next frames of dreams from a denoiser."""

    def __init__(
        self, denoiser: Denoiser, window: Window, config: SamplerConfig, memory_frames: int | None = None
    ) -> None:
        """Walk `window` with `denoiser`.

        Args:
            denoiser: trained, in evaluation mode.
            window: the schedule.
            config: settings.
            memory_frames: summaries a dream keeps; default what the denoiser was built for.

        Raises:
            ConfigError: `memory_frames` is below 1 or more than the denoiser can see.
        """
        self.denoiser = denoiser
        self.window = window
        self.config = config
        self.memory_frames = denoiser.check_memory_frames(memory_frames)
        self.grid = window.grid(config.num_steps).to(denoiser.to_clean.weight.device)

    def _show(self, clean: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        level = self.config.context_level
        return add_noise(clean, noise, clean.new_full(clean.shape[:2], level))

    @torch.inference_mode()
    def begin(self, latents: torch.Tensor, actions: torch.Tensor, noise: torch.Tensor) -> DreamState:
        """Return the dreams that follow the given frames.

        Args:
            latents: float32 (B, T, C, h, w), clean; T at least the window's stride.
            actions: int64 (B, T), the action into each frame; `num_actions` for none.
            noise: standard normal, the shape of `latents`.

        Raises:
            ShapeError: fewer frames than the stride, or shapes that do not agree.
            WindowError: the schedule keeps frames in flight; those start from `begin` plus an initialization stage.
        """
        config, window = self.denoiser.config, self.window
        if window.size != window.stride:
            raise WindowError(
                f"a window that leaves {window.size - window.stride} frames in flight has no start here; begin takes "
                f"windows whose stride is their size, as next_frame_window()"
            )
        batch, frames = latents.shape[:2]
        if frames < window.stride or actions.shape != (batch, frames) or noise.shape != latents.shape:
            raise ShapeError(
                f"begin takes at least {window.stride} frames with one action and noise each; got latents "
                f"{tuple(latents.shape)}, actions {tuple(actions.shape)}, noise {tuple(noise.shape)}"
            )
        shown = self._show(latents, noise)
        levels = shown.new_full((batch, frames), self.config.context_level)
        previous, previous_levels = stack_previous(shown, levels, config.num_previous)
        cache = self.denoiser.new_cache(batch, self.memory_frames)
        known = frames - window.stride
        for start in range(0, known, config.recent_frames):
            part = slice(start, min(start + config.recent_frames, known))
            _, written = self.denoiser.forward_cached(
                shown[:, part], levels[:, part], actions[:, part], previous[:, part], previous_levels[:, part], cache
            )
            cache.commit(*written, num_frames=part.stop - part.start)
        keep = config.num_previous
        recent = F.pad(shown[:, :known], (0, 0, 0, 0, 0, 0, keep, 0))[:, -keep:]
        recent_levels = F.pad(levels[:, :known], (keep, 0), value=1.0)[:, -keep:]
        return DreamState(
            cache=cache,
            pending=shown[:, known:].clone(),
            pending_actions=actions[:, known:].clone(),
            recent=recent.clone(),
            recent_levels=recent_levels.clone(),
            flight=shown[:, :0].clone(),
            flight_actions=actions[:, :0].clone(),
        )

    @torch.inference_mode()
    def step(
        self, state: DreamState, actions: torch.Tensor, noise: torch.Tensor, shown_noise: torch.Tensor
    ) -> tuple[torch.Tensor, Prediction]:
        """Take one auto-regressive step in place.

        Args:
            state: the dreams; changed.
            actions: int64 (B, S), the actions into the frames that enter.
            noise: standard normal (B, S, C, h, w), the frames that enter.
            shown_noise: standard normal (B, S, C, h, w), for showing the finished frames at the context level.

        Returns:
            the S finished frames, float32 (B, S, C, h, w), and the last prediction for them.

        Source: arXiv:2503.10704, Sec. 3, the auto-regressive stage.
        """
        stride, config = self.window.stride, self.denoiser.config
        batch = actions.shape[0]
        flight = torch.cat([state.flight, noise], 1)
        flight_actions = torch.cat([state.flight_actions, actions], 1)
        context = state.recent.new_full((batch, stride), self.config.context_level)
        for step in range(self.config.num_steps):
            before, after = (g.expand(batch, -1) for g in self.grid[step : step + 2])
            known = torch.cat([state.recent, state.pending, flight], 1)
            known_levels = torch.cat([state.recent_levels, context, before], 1)
            previous, previous_levels = stack_previous(known, known_levels, config.num_previous)
            first = config.num_previous + (0 if step == 0 else stride)  # the first call also writes the pending frames
            every_action = torch.cat([state.pending_actions, flight_actions], 1)[:, first - config.num_previous :]
            prediction, written = self.denoiser.forward_cached(
                known[:, first:],
                known_levels[:, first:],
                every_action,
                previous[:, first:],
                previous_levels[:, first:],
                state.cache,
            )
            if step == 0:
                state.cache.commit(*written, num_frames=stride)
                prediction = Prediction(*(part[:, stride:] for part in prediction))
            flight = move_level(flight, prediction.clean, before, after)
        done = flight[:, :stride]
        state.recent = torch.cat([state.recent, state.pending], 1)[:, -config.num_previous :]
        state.recent_levels = torch.cat([state.recent_levels, context], 1)[:, -config.num_previous :]
        state.pending = self._show(done, shown_noise)
        state.pending_actions = flight_actions[:, :stride]
        state.flight, state.flight_actions = flight[:, stride:], flight_actions[:, stride:]
        return done, Prediction(*(part[:, :stride] for part in prediction))
