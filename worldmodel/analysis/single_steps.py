"""Single denoising steps on real clips: how far a network's step is from the truth at the levels a schedule visits.

Owns a real past to predict from, and the squared errors of single steps. Takes no second step from its own first one,
so nothing accumulates. Knows no schedule beyond its grid of levels.
"""

import torch

from worldmodel.denoiser import Denoiser, Prediction, Written
from worldmodel.inputs import FrameInputs
from worldmodel.noise import add_noise, move_level
from worldmodel.sampler import Sampler, SamplerConfig
from worldmodel.windows import next_frame_window


class RealPast:
    """A denoiser with real frames as its past, shown at the context level: predicts what follows, changes nothing."""

    def __init__(
        self,
        denoiser: Denoiser,
        config: SamplerConfig,
        latents: torch.Tensor,
        actions: torch.Tensor,
        noise: torch.Tensor,
        memory_frames: int | None = None,
    ) -> None:
        """Write real frames into a memory; arguments and errors as `Sampler.begin` and `Sampler`."""
        self.denoiser = denoiser
        self.level = config.context_level
        sampler = Sampler(denoiser, next_frame_window(), config, memory_frames)
        state = sampler.begin(latents, actions, noise)
        self.cache = state.cache
        self.recent, self.recent_levels = state.recent, state.recent_levels
        self._write(state.pending, state.pending_actions)

    def _write(self, shown: torch.Tensor, actions: torch.Tensor) -> None:
        levels = shown.new_full(shown.shape[:2], self.level)
        _, written = self._call(shown, levels, actions)
        self.cache.commit(*written, num_frames=shown.shape[1])
        keep = self.recent.shape[1]
        self.recent = torch.cat([self.recent, shown], 1)[:, -keep:]
        self.recent_levels = torch.cat([self.recent_levels, levels], 1)[:, -keep:]

    def append(self, latents: torch.Tensor, actions: torch.Tensor, noise: torch.Tensor) -> None:
        """Add real frames (B, J, C, h, w) with the actions (B, J) into them to the past."""
        self._write(add_noise(latents, noise, latents.new_full(latents.shape[:2], self.level)), actions)

    def _call(self, flight: torch.Tensor, levels: torch.Tensor, actions: torch.Tensor) -> tuple[Prediction, Written]:
        known = torch.cat([self.recent, flight], 1)
        known_levels = torch.cat([self.recent_levels, levels], 1)
        frames = FrameInputs.stack(known, known_levels, actions, self.recent.shape[1])
        found: tuple[Prediction, Written] = self.denoiser(frames, cache=self.cache)
        return found

    def predict(self, flight: torch.Tensor, levels: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """Return the predicted clean latents of frames in flight (B, W, C, h, w) at levels (W,)."""
        prediction, _ = self._call(flight, levels.expand(flight.shape[0], -1), actions)
        return prediction.clean


def _square(difference: torch.Tensor) -> torch.Tensor:
    return difference.square().mean((2, 3, 4))


def step_errors(
    past: RealPast, latents: torch.Tensor, noise: torch.Tensor, actions: torch.Tensor, grid: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Return what single denoising steps along a grid add to each frame of a window of real frames.

    Each step starts from the real frames noised to its own level, not from what the step before left. With v = noise -
    clean the velocity of the linear path, h the size of the step and the mean taken over the numbers of a latent:

    - `velocity`: sum of h |v_network - v|^2. On the linear path |v_network - v| = |clean_network - clean| / level. By
      Cauchy-Schwarz the sum bounds the squared distance from the truth at which the step ends, as far as single steps
      tell. It contains what no network could know.
    - `discretization`: sum of h |v_step - v_halves|^2, one step of size h against two of h / 2 from the same state.

    Args:
        past: what came before.
        latents: float (B, W, C, h, w), real.
        noise: standard normal, the same shape.
        actions: int64 (B, W).
        grid: (M + 1, W), levels from before to after.

    Returns:
        the two parts, float32 (B, W); frames that do not move have 0.
    """
    batch, size = latents.shape[:2]
    found = {name: latents.new_zeros(batch, size) for name in ("velocity", "discretization")}
    for before, after in zip(grid[:-1], grid[1:], strict=True):
        step = before - after
        is_moving = step > 0
        rows = [level.expand(batch, -1) for level in (before, (before + after) / 2, after)]
        noisy = add_noise(latents, noise, rows[0])
        clean = past.predict(noisy, before, actions)
        weight = torch.where(is_moving, step / before.clamp_min(1e-8).square(), 0.0)
        found["velocity"] += weight * _square(clean - latents)
        whole = move_level(noisy, clean, rows[0], rows[2])
        middle = move_level(noisy, clean, rows[0], rows[1])
        halves = move_level(middle, past.predict(middle, (before + after) / 2, actions), rows[1], rows[2])
        weight = torch.where(is_moving, 1 / step.clamp_min(1e-8), 0.0)
        found["discretization"] += weight * _square(whole - halves)
    return found


def irreducible_errors(
    past: RealPast, latents: torch.Tensor, noise: torch.Tensor, actions: torch.Tensor, grid: torch.Tensor
) -> torch.Tensor:
    """Return an estimate of the part of `velocity` that no network could avoid, float32 (B, W).

    It is the same sum for a network that sees every earlier frame of the window clean: the fullest context at hand, at
    the same levels and with the same noise. With the network of the schedule itself, what is left of the velocity error
    is what the schedule costs by hiding earlier frames in noise; the network's own misfit is in both and cancels, so
    that nothing is left for next-frame. `past` grows by the window.

    Args: as `step_errors`.
    """
    batch, size = latents.shape[:2]
    found = latents.new_zeros(batch, size)
    for j in range(size):
        one = slice(j, j + 1)
        for before, after in zip(grid[:-1, one], grid[1:, one], strict=True):
            if before > after:
                noisy = add_noise(latents[:, one], noise[:, one], before.expand(batch, -1))
                clean = past.predict(noisy, before, actions[:, one])
                found[:, one] += (before - after) / before.square() * _square(clean - latents[:, one])
        past.append(latents[:, one], actions[:, one], noise[:, one])
    return found
