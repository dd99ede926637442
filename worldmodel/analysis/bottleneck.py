"""The memory bottleneck I(Output; Past | Input): what is lost by not looking at the past, in nats.

Owns: the integral that turns denoising errors with and without the memory into mutual information, the errors of a
denoiser whose past is cut to a few frames. Knows no files and no rollouts; its tests have a process whose information
is known exactly.

The identity. A frame at level l is x_l = (1 - l) x0 + l noise; divided by l it is sqrt(snr) x0 + noise with
snr = ((1 - l) / l)^2. For that channel I(x0; x_l) = 1/2 int_0^snr mmse(s) ds, where mmse is the smallest expected
squared error of x0 given x_s, SUMMED over dimensions (I-MMSE, Guo, Shamai, Verdu 2005, arXiv:cs/0412108). The same
holds given Input and given Input and Past; the difference of the two, with x0 the clean Output, is

    I(Output at level l; Past | Input) = 1/2 int_0^snr(l) [mmse(s | Input) - mmse(s | Input, Past)] ds.

With levels of their own for several frames the integral runs along any path from the input levels to the output levels,
d I = 1/2 sum_j mmse_j d snr_j, and the noisy input frames are the start of the path.

Truncation. snr is infinite at level 0, so the path ends at a lowest level. That makes no error of its own: the result
is exactly the information on the Output AT that level, and grows to that on the clean Output as the level falls.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from worldmodel.denoiser import Denoiser
from worldmodel.errors import ConfigError, ShapeError
from worldmodel.inputs import FrameInputs
from worldmodel.noise import add_noise
from worldmodel.windows import Window


class Information(NamedTuple):
    """An estimate of information, in nats.

    Attributes:
        nats: the estimate.
        error: its standard error over cases; NaN where a single case (or group) tells nothing of the spread.
    """

    nats: float
    error: float


def level_path(window: Window, num_levels: int = 24, lowest: float = 0.05, highest: float = 0.97) -> torch.Tensor:
    """Return the levels at which to measure errors for a schedule, equally spaced in log snr for every frame.

    In log snr the integrand, snr * error, is smooth and about equally large everywhere, so that few levels are enough:
    24 come within 0.1 % of the exact value on Gaussian processes.

    Args:
        window: the schedule; its input levels start the path, its output levels end it.
        num_levels: S, at least 3.
        lowest: level above 0 at which frames that leave clean end.
        highest: level below 1 of the second point of frames that enter as noise.

    Returns:
        float64 (S, W), falling along S; a frame that is clean before the step stays at 0.

    Raises:
        ConfigError: a setting out of its range.
    """
    if num_levels < 3 or not 0 < lowest < highest < 1:
        raise ConfigError(
            f"level_path takes num_levels of at least 3 and 0 < lowest < highest < 1; got {num_levels}, {lowest}, "
            f"{highest}"
        )
    share = torch.linspace(0, 1, num_levels - 1, dtype=torch.float64)
    columns = []
    for before, after in zip(window.before, window.after, strict=True):
        if before == 0:
            columns.append(torch.zeros(num_levels, dtype=torch.float64))
            continue
        ends = torch.tensor([min(before, highest), after], dtype=torch.float64).clamp(min(before, lowest), highest)
        start, stop = (2 * ((1 - ends) / ends).log()).unbind()
        inner = 1 / (1 + ((start + share * (stop - start)) / 2).exp())
        columns.append(torch.cat([torch.tensor([before], dtype=torch.float64), inner]))
    return torch.stack(columns, 1)


def information_weights(levels: torch.Tensor) -> torch.Tensor:
    """Return the nats that each unit of squared error is worth: the quadrature of 1/2 int error d snr.

    Trapezoids in log snr, of snr * error; from level 1, where snr is 0, a trapezoid in snr itself.

    Args:
        levels: float (S,) or (S, W), falling along S, from 1 or below to above 0; a frame may also stay at 0.

    Returns:
        float64, the shape of `levels`.

    Raises:
        ConfigError: fewer than 2 levels, a level outside [0, 1], one that rises, or one that falls to 0.
    """
    levels = levels.double()
    is_clean = (levels == 0).all(0)
    if len(levels) < 2 or levels.max() > 1 or (levels.diff(dim=0) > 0).any() or ((levels <= 0) & ~is_clean).any():
        raise ConfigError(
            "levels must be two or more that fall from at most 1 to above 0 (snr is infinite at 0: end at a small "
            f"level such as 0.05); got {levels.tolist()}"
        )
    snr = ((1 - levels) / levels.clamp_min(1e-9)).square()
    before, after = snr[:-1], snr[1:]
    step = torch.where(before > 0, (after / before.clamp_min(1e-300)).log(), 0.0)
    lower = torch.where(before > 0, step * before, after) / 4
    upper = torch.where(before > 0, step * after, after) / 4
    weights = torch.zeros_like(snr)
    weights[:-1] += lower
    weights[1:] += upper
    return torch.where(is_clean, 0.0, weights)


def information_gap(
    levels: torch.Tensor,
    error_without: torch.Tensor,
    error_with: torch.Tensor,
    groups: Sequence[str | int] | None = None,
) -> Information:
    """Estimate I(Output; memory | Input) from the errors of denoising without and with the memory.

    With the errors of the best possible denoisers this is exact up to quadrature. With those of a network it is what
    that network gains from its memory ("usable" information): excess error without the memory raises it, excess error
    with the memory lowers it.

    Args:
        levels: float (S,) or (S, W), as `level_path` gives them.
        error_without: float (N, S) or (N, S, W), squared error of the clean prediction, summed over the dimensions of
            a frame, for each case; (S,) or (S, W) for one exact case.
        error_with: the same with the memory, on the same cases and noise.
        groups: N names; cases of one group (an episode) are not independent. Default each its own.

    Raises:
        ShapeError: shapes that do not agree. ConfigError: as `information_weights`.

    Source: module docstring; the quantity is arXiv:2503.10704, Sec. 4.
    """
    weights = information_weights(levels)
    without, with_memory = (
        e.double()[None] if e.ndim == levels.ndim else e.double() for e in (error_without, error_with)
    )
    if without.shape != with_memory.shape or without.shape[1:] != levels.shape or not len(without):
        raise ShapeError(
            f"errors must be (cases, {', '.join(map(str, levels.shape))}), like the levels; got "
            f"{tuple(error_without.shape)} without and {tuple(error_with.shape)} with the memory"
        )
    cases = ((without - with_memory) * weights.to(without.device)).flatten(1).sum(1).cpu()
    names = list(range(len(cases))) if groups is None else list(groups)
    if len(names) != len(cases):
        raise ShapeError(f"groups must name each of the {len(cases)} cases; got {len(names)} names")
    number = {name: index for index, name in enumerate(dict.fromkeys(names))}
    sums = torch.zeros(len(number), dtype=torch.float64)
    sums.index_add_(0, torch.tensor([number[name] for name in names]), cases - cases.mean())
    count = len(number)
    error = float("nan") if count < 2 else float((sums.square().sum() * count / (count - 1)).sqrt()) / len(cases)
    return Information(float(cases.mean()), error)


@torch.inference_mode()
def memory_errors(
    denoiser: Denoiser,
    latents: torch.Tensor,
    actions: torch.Tensor,
    levels: torch.Tensor,
    memory: Sequence[int],
    *,
    generator: torch.Generator,
    context_level: float = 0.05,
    memory_frames: int | None = None,
    first_action: int | None = None,
) -> torch.Tensor:
    """Return the denoising errors of the last frames of real clips when the past is cut to a few frames.

    The clip is restarted at the cut with an empty cache, so that nothing older reaches the network. All memory lengths
    get the same noise. The input is the W frames in flight at the levels and the actions into them, nothing else.

    Args:
        denoiser: trained, in evaluation mode.
        latents: float (B, T, C, h, w), clean.
        actions: int64 (B, T), the action into each frame.
        levels: float (S, W), as `level_path` gives them; W is the number of output frames.
        memory: past frames to keep, each from 0 to T - W.
        generator: chance, on the CPU.
        context_level: noise level at which the past is shown, as in sampling.
        memory_frames: as `Denoiser.new_cache`.
        first_action: action to claim into the first frame after the cut: `num_actions`, "none", where the denoiser
            learned from clips that start so. None: the true one.

    Returns:
        float64 (len(memory), B, S, W) on the CPU, squared errors summed over the dimensions of a frame.

    Raises:
        ConfigError: a memory length below 0 or longer than the clip. ShapeError: shapes that do not agree.
    """
    batch, total = latents.shape[:2]
    size, known, keep = levels.shape[1], latents.shape[1] - levels.shape[1], denoiser.config.num_previous
    if known < 0:
        raise ShapeError(f"a window of {size} frames takes clips of at least {size}; got {total}: give longer clips")
    for length in memory:
        if not 0 <= length <= known:
            raise ConfigError(
                f"a memory length must be from 0 to {known}, what a clip of {total} frames has before the {size} in "
                f"flight; got {length}: use longer clips or shorter lengths"
            )
    if tuple(actions.shape) != (batch, total):
        raise ShapeError(f"actions must be ({batch}, {total}), one into each frame; got {tuple(actions.shape)}")

    device = denoiser.to_clean.weight.device
    shape = (batch, total, *latents.shape[2:])
    shown_noise = torch.randn(shape, generator=generator)
    noise = torch.randn((len(levels), batch, size, *latents.shape[2:]), generator=generator).to(device)
    latents, actions = latents.float().to(device), actions.to(device)
    context_levels = latents.new_full((batch, total), context_level)
    shown = add_noise(latents, shown_noise.to(device), context_levels)

    chunk = denoiser.config.recent_frames
    errors = torch.zeros(len(memory), batch, len(levels), size, dtype=torch.float64)

    for m, length in enumerate(memory):
        cut = slice(known - length, known)
        past, past_levels, into = shown[:, cut], context_levels[:, cut], actions[:, known - length :].clone()
        if first_action is not None:
            into[:, 0] = first_action

        before = FrameInputs.stack(past, past_levels, into[:, :length], keep)
        cache = denoiser.new_cache(batch, memory_frames)
        for start in range(0, length, chunk):
            part = slice(start, min(start + chunk, length))
            _, written = denoiser(before[part], cache=cache)
            cache.commit(*written, num_frames=part.stop - part.start)

        for s, row in enumerate(levels.float().to(device)):
            now = row.expand(batch, -1)
            flight = add_noise(latents[:, known:], noise[s], now)
            shown_and_flight = torch.cat([past, flight], 1), torch.cat([past_levels, now], 1)
            frames = FrameInputs.stack(*shown_and_flight, into[:, length:], keep)
            prediction, _ = denoiser(frames, cache=cache)
            error = (prediction.clean.double() - latents[:, known:]).square().flatten(2).sum(2)
            errors[m, :, s] = error.cpu()
    return errors
