"""The sampler: walks a Window over frames in flight, with the memory as context.

Owns the two stages of Meta-ARVDM: initialization (fill the window, once a dream) and one auto-regressive step (denoise,
write what has left the window, shift). The schedule is an argument. Knows no pixels.

The clean write of frames that have left the window rides in the first network call of the step after them:
`DreamState.pending` holds frames that the cache does not know yet.
"""

import dataclasses
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from worldmodel.counts import check_whole
from worldmodel.denoiser import Denoiser, Prediction
from worldmodel.errors import ConfigError, ShapeError
from worldmodel.inputs import FrameInputs
from worldmodel.memory.base import Context
from worldmodel.noise import add_noise, move_level
from worldmodel.odometry import POSE_SIZE
from worldmodel.state import DreamState
from worldmodel.windows import Window, outpainting_window

CONTEXT_PART = 16  # given frames read in one network call: fewer calls, and attention of a call grows with its square


@dataclass(frozen=True)
class SamplerConfig:
    """Settings of sampling.

    Attributes:
        num_steps: denoising steps in one auto-regressive step.
        context_level: noise level at which finished frames are shown to later ones; hides small errors of their own.
        num_init_steps: denoising steps of the initialization stage, for windows that keep unfinished frames in flight.
            It runs once a dream, so it may take more than a step of FIFO, whose `num_steps` is 1.
        level_shift: above 1, denoising from noise to clean spends its steps at high levels (`Window.grid`).
    """

    num_steps: int = 4
    context_level: float = 0.05
    num_init_steps: int = 8
    level_shift: float = 1.0

    def __post_init__(self) -> None:
        for name in ("num_steps", "num_init_steps"):
            object.__setattr__(self, name, check_whole(name, getattr(self, name), 1, 1000))
        if not 0 <= self.context_level < 1:
            raise ConfigError(f"context_level must be in [0, 1); got {self.context_level}")
        if not 0 < self.level_shift < float("inf"):
            raise ConfigError(f"level_shift must be above 0; got {self.level_shift}")


@dataclass(frozen=True)
class Sight:
    """What a memory outside the denoiser tells of T frames.

    Attributes:
        poses: float32 (B, T, 5), where they are seen from.
        warped: float (B, T, R, h, w), what it knows of them (`FrameInputs.warped`).
    """

    poses: torch.Tensor
    warped: torch.Tensor

    def __getitem__(self, frames: slice) -> "Sight":
        """Return that of some of the frames."""
        return Sight(self.poses[:, frames], self.warped[:, frames])


class Sampler:
    """Draws the next frames of dreams from a denoiser."""

    def __init__(
        self,
        denoiser: Denoiser,
        window: Window,
        config: SamplerConfig,
        memory_frames: int | None = None,
    ) -> None:
        """Walk `window` with `denoiser`.

        Args:
            denoiser: trained.
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
        device = denoiser.to_clean.weight.device
        self.grid = window.grid(config.num_steps, config.level_shift).to(device)
        self.init_grid: torch.Tensor | None = None
        if window.input_lag:  # to fill the window is a step of outpainting: all unfinished frames at once
            filling = outpainting_window(window.size - window.stride, window.num_clean)
            self.init_grid = filling.grid(config.num_init_steps, config.level_shift).to(device)

    def _show(self, clean: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        level = self.config.context_level
        return add_noise(clean, noise, clean.new_full(clean.shape[:2], level))

    @torch.inference_mode()
    def begin(
        self,
        latents: torch.Tensor,
        actions: torch.Tensor,
        noise: torch.Tensor,
        flight_actions: torch.Tensor | None = None,
        flight_noise: torch.Tensor | None = None,
        sight: Sight | None = None,
    ) -> DreamState:
        """Return the dreams that follow the given frames: the initialization stage.

        The last `window.num_clean` frames become the clean overlap, those before them the memory. The
        L = `window.input_lag` frames that follow are denoised from noise together and then noised forward to
        `window.before`.

        Args:
            latents: float32 (B, T, C, h, w), clean; T at least 1 and at least the overlap.
            actions: int64 (B, T), the action into each frame; `num_actions` for none.
            noise: standard normal, the shape of `latents`.
            flight_actions: int64 (B, L), the actions into the frames in flight; None where L is 0.
            flight_noise: standard normal (B, 2 L, C, h, w): to start from, then to noise forward; None where L is 0.
            sight: of the T given frames and the L in flight; None without a memory of pixels.

        Raises:
            ShapeError: fewer frames than the overlap, or shapes that do not agree.

        Source: arXiv:2503.10704, Sec. 3, the initialization stage.
        """
        config, window = self.denoiser.config, self.window
        batch, frames = latents.shape[:2]
        least = max(1, window.num_clean)
        if frames < least or actions.shape != (batch, frames) or noise.shape != latents.shape:
            raise ShapeError(
                f"begin takes at least {least} frames with one action and noise each (this schedule takes its "
                f"{window.num_clean} clean frames from the context); got latents {tuple(latents.shape)}, actions "
                f"{tuple(actions.shape)}, noise {tuple(noise.shape)}: give a longer context or a smaller overlap"
            )

        past = frames - window.num_clean
        shown = self._show(latents[:, :past], noise[:, :past])
        levels = shown.new_full((batch, past), self.config.context_level)
        given = FrameInputs.stack(shown, levels, actions[:, :past], config.num_previous)
        if sight is not None:
            given = dataclasses.replace(given, warped=sight.warped[:, :past], poses=sight.poses[:, :past])

        cache = self.denoiser.new_cache(batch, self.memory_frames)
        known = max(0, past - window.stride)
        for start in range(0, known, CONTEXT_PART):
            part = slice(start, min(start + CONTEXT_PART, known))
            _, written = self.denoiser(given[part], cache=cache)
            cache.commit(*written, num_frames=part.stop - part.start)

        keep = config.num_previous
        recent = F.pad(shown[:, :known], (0, 0, 0, 0, 0, 0, keep, 0))[:, -keep:]
        recent_levels = F.pad(levels[:, :known], (keep, 0), value=1.0)[:, -keep:]

        state = DreamState(
            cache=cache,
            pending=shown[:, known:].clone(),
            pending_actions=actions[:, known:past].clone(),
            recent=recent.clone(),
            recent_levels=recent_levels.clone(),
            flight=latents[:, past:].clone(),
            flight_actions=actions[:, past:].clone(),
            pending_poses=shown.new_zeros(batch, past - known, POSE_SIZE),
            pending_warped=shown.new_zeros(batch, past - known, 0, *shown.shape[-2:]),
            flight_poses=shown.new_zeros(batch, window.size - window.stride, POSE_SIZE),
        )
        if sight is not None:
            state.pending_poses, state.pending_warped = (
                part[:, known:past].clone() for part in (sight.poses, sight.warped)
            )
            state.flight_poses = sight.poses[:, past:].clone()

        self._fill(state, flight_actions, flight_noise, None if sight is None else sight[past:])
        return state

    def _fill(
        self, state: DreamState, actions: torch.Tensor | None, noise: torch.Tensor | None, sight: Sight | None
    ) -> None:
        """Put unfinished frames in flight behind the clean overlap, in place; `sight` of both."""
        window, batch, lag = self.window, state.flight.shape[0], self.window.input_lag
        found = [None if part is None else tuple(part.shape[:2]) for part in (actions, noise)]
        if self.init_grid is None and not any(found):
            return
        if self.init_grid is None or actions is None or noise is None or found != [(batch, lag), (batch, 2 * lag)]:
            raise ShapeError(
                f"begin takes flight_actions ({batch}, {lag}) and flight_noise ({batch}, {2 * lag}, ...) for the "
                f"{lag} unfinished frames that this schedule keeps in flight; got {found[0]} and {found[1]}"
            )
        start, forward = noise.split(lag, 1)
        state.flight_actions = torch.cat([state.flight_actions, actions], 1)
        draft = state.clone()  # the denoising calls write pending frames; the state keeps them for its first step
        drawn = torch.cat([state.flight, start], 1)
        flight, _ = self._denoise(draft, drawn, state.flight_actions, self.init_grid, sight)
        levels = self.grid[0, window.num_clean : window.size - window.stride].expand(batch, -1)
        flight[:, window.num_clean :] = add_noise(flight[:, window.num_clean :], forward, levels)
        state.flight = flight

    def _denoise(
        self,
        state: DreamState,
        flight: torch.Tensor,
        flight_actions: torch.Tensor,
        grid: torch.Tensor,
        sight: Sight | None,
    ) -> tuple[torch.Tensor, Prediction]:
        """Take the frames in flight along `grid` (M + 1, W); the first call also commits the pending frames."""
        beside: tuple[torch.Tensor | None, torch.Tensor | None] = None, None
        batch, num_pending = flight.shape[0], state.pending.shape[1]
        num_clean = self.window.num_clean

        is_alone = flight.shape[1] == 1  # then no frame before it changes on the way
        context: Context | None = None
        shown = state.recent.new_full((batch, num_pending), self.config.context_level)

        for step in range(len(grid) - 1):
            before, after = (g.expand(batch, -1) for g in grid[step : step + 2])
            known = torch.cat([state.recent, state.pending, flight], 1)
            known_levels = torch.cat([state.recent_levels, shown, before], 1)
            actions = flight_actions if step else torch.cat([state.pending_actions, flight_actions], 1)
            if sight is not None:
                new = sight.warped, sight.poses
                pending = state.pending_warped, state.pending_poses
                beside = new if step else (torch.cat([pending[0], new[0]], 1), torch.cat([pending[1], new[1]], 1))

            frames = FrameInputs.stack(known, known_levels, actions, self.denoiser.config.num_previous, *beside)
            if context is None or not is_alone:
                context = self.denoiser.read(frames, state.cache)
            own = context.last(frames.num_frames)
            prediction, written = self.denoiser(frames, cache=state.cache, context=own)

            if step == 0:
                state.cache.commit(*written, num_frames=num_pending)
                prediction = Prediction(*(part[:, num_pending:] for part in prediction))
            moved = [part[:, num_clean:] for part in (flight, prediction.clean, before, after)]
            flight = torch.cat([flight[:, :num_clean], move_level(*moved)], 1)  # clean frames stay as they are, exactly
        return flight, prediction

    @torch.inference_mode()
    def step(
        self, state: DreamState, actions: torch.Tensor, noise: torch.Tensor, shown_noise: torch.Tensor
    ) -> tuple[torch.Tensor, Prediction]:
        """Take one auto-regressive step in place.

        Args:
            state: the dreams; changed.
            actions: int64 (B, S), the actions into the frames that enter.
            noise: standard normal (B, S, C, h, w), the frames that enter.
            shown_noise: standard normal (B, S, C, h, w), for showing the frames that leave at the context level.

        Returns:
            the S frames that this step finished, float32 (B, S, C, h, w), and the last prediction for them. They are
            those behind the clean overlap, `input_lag` frames older than those that enter.

        Source: arXiv:2503.10704, Sec. 3, the auto-regressive stage.
        """
        return self.advance(state, actions, noise, shown_noise)

    def advance(
        self,
        state: DreamState,
        actions: torch.Tensor,
        noise: torch.Tensor,
        shown_noise: torch.Tensor,
        sight: Sight | None = None,
    ) -> tuple[torch.Tensor, Prediction]:
        """Take the step of `step`, outside of inference mode; `sight` is that of all W frames in flight."""
        stride = self.window.stride
        flight = torch.cat([state.flight, noise], 1)
        flight_actions = torch.cat([state.flight_actions, actions], 1)
        flight, prediction = self._denoise(state, flight, flight_actions, self.grid, sight)
        self._shift(state, flight, flight_actions, shown_noise, sight)
        finished = slice(self.window.num_clean, self.window.num_clean + stride)
        return flight[:, finished], Prediction(*(part[:, finished] for part in prediction))

    def observe(
        self,
        state: DreamState,
        actions: torch.Tensor,
        latents: torch.Tensor,
        shown_noise: torch.Tensor,
        sight: Sight | None = None,
    ) -> None:
        """Take a step in place whose frames are given instead of denoised; the window must not look ahead.

        Args:
            state, actions, shown_noise, sight: as `advance`.
            latents: float32 (B, S, C, h, w), clean, of the frames that the step finishes.
        """
        batch, num_pending = state.pending.shape[:2]
        if num_pending:
            shown = state.recent.new_full((batch, num_pending), self.config.context_level)
            known = torch.cat([state.recent, state.pending], 1)
            levels = torch.cat([state.recent_levels, shown], 1)
            beside = (None, None) if sight is None else (state.pending_warped, state.pending_poses)
            count = self.denoiser.config.num_previous
            frames = FrameInputs.stack(known, levels, state.pending_actions, count, *beside)
            _, written = self.denoiser(frames, cache=state.cache)
            state.cache.commit(*written, num_frames=num_pending)

        flight, flight_actions = torch.cat([state.flight, latents], 1), torch.cat([state.flight_actions, actions], 1)
        self._shift(state, flight, flight_actions, shown_noise, sight)

    def _shift(
        self,
        state: DreamState,
        flight: torch.Tensor,
        flight_actions: torch.Tensor,
        shown_noise: torch.Tensor,
        sight: Sight | None,
    ) -> None:
        """Move on by a stride, in place: the oldest frames of `flight` leave the window, the others stay in flight."""
        stride, keep = self.window.stride, self.denoiser.config.num_previous
        context = state.recent_levels.new_full(state.pending.shape[:2], self.config.context_level)
        state.recent = torch.cat([state.recent, state.pending], 1)[:, -keep:]
        state.recent_levels = torch.cat([state.recent_levels, context], 1)[:, -keep:]
        state.pending, state.pending_actions = self._show(flight[:, :stride], shown_noise), flight_actions[:, :stride]
        state.flight, state.flight_actions = flight[:, stride:].clone(), flight_actions[:, stride:].clone()
        if sight is not None:
            state.pending_poses, state.pending_warped = sight.poses[:, :stride], sight.warped[:, :stride]
            state.flight_poses = sight.poses[:, stride:].clone()
