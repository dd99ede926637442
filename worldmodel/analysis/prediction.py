"""Rollout-free prediction of error accumulation: what one auto-regressive step of a schedule adds, from real clips.

Owns the parts of the per-step error (score, discretization, noise initialization, initialization stage) and their
cumulative sum. Rolls nothing out: each number comes from single denoising steps on real frames with a real past. Knows
no files, and not what rollouts show.
"""

from typing import Any

import torch

from worldmodel.analysis.single_steps import RealPast, irreducible_errors, step_errors
from worldmodel.denoiser import Denoiser
from worldmodel.errors import ConfigError, ShapeError
from worldmodel.windows import Schedule, Window, outpainting_window
from worldmodel.world import WorldModel

PARTS = ("velocity", "irreducible", "discretization")


def noise_initialization(latents: torch.Tensor, window: Window) -> float:
    """Return KL(noised latents || N(0, 1)) at the window's highest level, nats a number, from moments of each channel.

    0 exactly where the window starts from pure noise, as the 0-T boundary demands: the linear path has no signal left
    at level 1.
    """
    level = max(window.before)
    channels = latents.double().transpose(0, 2).flatten(1)
    mean = (1 - level) * channels.mean(1)
    variance = (1 - level) ** 2 * channels.var(1, correction=0) + level**2
    return float((0.5 * (mean.square() + variance - 1 - variance.log())).mean())


def _check_clips(latents: torch.Tensor, actions: torch.Tensor, schedule: Schedule, context: int) -> None:
    window = schedule.window
    if latents.ndim != 5 or actions.shape != latents.shape[:2]:
        raise ShapeError(
            f"clips must be latents (B, T, C, h, w) with the action into each frame (B, T); got {tuple(latents.shape)} "
            f"and {tuple(actions.shape)}"
        )
    if context <= window.num_clean:
        raise ConfigError(
            f"schedule {schedule.name} takes {window.num_clean} clean frames from the context, and one more must be "
            f"before them; got a context of {context}: give at least {window.num_clean + 1}"
        )
    needed = context + window.size - window.num_clean
    if latents.shape[1] < needed:
        raise ShapeError(
            f"schedule {schedule.name} with {context} frames of context needs clips of {needed} frames; got clips of "
            f"{latents.shape[1]}: give longer clips, a shorter context or a smaller window"
        )


@torch.inference_mode()
def predict_decay(
    model: WorldModel,
    latents: torch.Tensor,
    actions: torch.Tensor,
    schedule: Schedule,
    *,
    context: int,
    seed: int = 0,
    batch_size: int = 16,
    reference: Denoiser | None = None,
) -> dict[str, Any]:
    """Predict from real clips how fast rollouts with a schedule decay, without rolling out.

    Each frame of a clip gets one noise, the same for every schedule and level, and frames from `context` on are in
    flight in every schedule: schedules are compared on the same frames.

    Args:
        model: the world; its context level, memory and default number of steps are used.
        latents: float32 (B, T, C, h, w), real clips.
        actions: int64 (B, T), the action into each frame; `num_actions` for none.
        schedule: the schedule.
        context: real frames before the first that is in flight.
        seed: chance.
        batch_size: clips at once.
        reference: the network that says what is irreducible; default the world's own with full context.

    Returns:
        ready for JSON; squared errors a latent number, summed over the frames of the window, times h and divided by the
        stride: added for each frame completed. `velocity`, `irreducible`, `score` (their difference), `discretization`,
        `noise_initialization`; `initialization`, the parts of the initialization stage, once a dream, each frame by the
        share of it that is kept when it is noised forward; `distance_rate` (velocity) and `divergence_rate` (score +
        discretization + noise initialization); `cases`: both, a value a clip.

    Raises:
        ShapeError: clips shorter than context and window, or shapes that do not agree. ConfigError: a context that does
            not cover the clean overlap.

    Source: arXiv:2503.10704, Sec. 4: NIE + SEE + DE of initialization, and NIE_AR + SEE_AR + DE_AR of every step.
    """
    _check_clips(latents, actions, schedule, context)
    window, config = schedule.window, model.config
    num_steps = config.num_steps if schedule.num_steps is None else schedule.num_steps
    grids = [window.grid(num_steps, config.level_shift)]
    if window.input_lag:
        filling = outpainting_window(window.size - window.stride, window.num_clean)
        grids.append(filling.grid(config.num_init_steps, config.level_shift))

    start = context - window.num_clean
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(latents.shape, generator=generator)

    parts: list[list[dict[str, torch.Tensor]]] = [[] for _ in grids]
    for first in range(0, latents.shape[0], batch_size):
        rows = slice(first, first + batch_size)
        clip, chance, into = (x[rows].to(model.device) for x in (latents.float(), noise, actions.long()))
        given = (config, clip[:, :start], into[:, :start], chance[:, :start], model.memory_frames)
        past = RealPast(model.denoiser, *given)

        for found, grid in zip(parts, grids, strict=True):
            real, mixed, led = (x[:, start : start + grid.shape[1]] for x in (clip, chance, into))
            levels = grid.to(model.device)
            errors = step_errors(past, real, mixed, led, levels)
            fullest = RealPast(reference or model.denoiser, *given)
            errors["irreducible"] = irreducible_errors(fullest, real, mixed, led, levels)
            found.append({name: value.cpu() for name, value in errors.items()})

    every = [{name: torch.cat([part[name] for part in found]) for name in PARTS} for found in parts]
    step = {name: every[0][name].sum(1) / window.stride for name in PARTS}
    nie = noise_initialization(latents, window) * sum(level == 1 for level in window.before) / window.stride

    cases = {
        "distance": step["velocity"],
        "divergence": step["velocity"] - step["irreducible"] + step["discretization"] + nie,
    }

    result: dict[str, Any] = {name: float(value.mean()) for name, value in step.items()}
    result["score"] = result["velocity"] - result["irreducible"]
    result["noise_initialization"] = nie
    result["initialization"] = dict.fromkeys(("velocity", "score", "discretization"), 0.0)

    if len(every) > 1:
        kept = (1 - torch.tensor(window.before[: grids[1].shape[1]])).square()
        init = {name: float((every[1][name] * kept).sum(1).mean()) for name in PARTS}
        init["score"] = init["velocity"] - init["irreducible"]
        result["initialization"] = {name: init[name] for name in result["initialization"]}

    result |= {f"{name}_rate": float(value.mean()) for name, value in cases.items()}
    return result | {"num_clips": latents.shape[0], "cases": {name: value.tolist() for name, value in cases.items()}}


def unrelated_distance(latents: torch.Tensor) -> float:
    """Return the mean squared distance, a latent number, between frames of different clips: where decay ends.

    Args:
        latents: float (B, T, C, h, w), B at least 2.

    Raises:
        ShapeError: fewer than two clips.
    """
    if latents.ndim != 5 or len(latents) < 2:
        raise ShapeError(f"unrelated frames come from at least two clips (B, T, C, h, w); got {tuple(latents.shape)}")
    return float((latents - latents.roll(1, 0)).square().mean())


def predicted_curve(prediction: dict[str, Any], num_frames: int, saturation: float | None = None) -> torch.Tensor:
    """Return the predicted distance from the truth at frames 1 to N of a rollout, of each clip, float64 (B, N).

    The cumulative sum of arXiv:2503.10704, D_n = initialization + n * distance_rate, has no end; a real distance does:
    with `saturation` s it is s (1 - exp(-D_n / s)), which grows as D_n at first and ends at s. Our own; s keeps the
    order of schedules at every frame but decides about differences between frames, such as the decay in dB.

    Args:
        prediction: from `predict_decay`.
        num_frames: N.
        saturation: from `unrelated_distance`; None for the plain sum.
    """
    rate = torch.tensor(prediction["cases"]["distance"], dtype=torch.float64)
    total = prediction["initialization"]["velocity"] + rate[:, None] * torch.arange(1, num_frames + 1)
    return total if saturation is None else saturation * (1 - torch.exp(-total / saturation))
