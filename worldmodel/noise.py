"""The noise process: how a level mixes data and noise, and how predictions convert.

Owns x_l = (1 - l) x0 + l noise (linear flow interpolation) with one level per frame. Knows no network and no schedule.
"""

import math

import torch

from worldmodel.errors import ShapeError


def level_features(levels: torch.Tensor, width: int) -> torch.Tensor:
    """Return sinusoidal features of levels (...) in [0, 1], float32 (..., width)."""
    frequencies = torch.exp(torch.linspace(0, math.log(200.0), width // 2, dtype=torch.float32, device=levels.device))
    angles = levels[..., None].float() * frequencies * math.pi
    return torch.cat([angles.cos(), angles.sin()], -1)


def expand_levels(levels: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Append axes of size one so that `levels` broadcasts against `like`.

    Args:
        levels: float (B, T) or any prefix of the axes of `like`.
        like: tensor whose leading axes equal those of `levels`.

    Raises:
        ShapeError: the leading axes differ.
    """
    if like.shape[: levels.ndim] != levels.shape:
        raise ShapeError(f"levels {tuple(levels.shape)} must equal the leading axes of {tuple(like.shape)}")
    return levels.reshape(*levels.shape, *([1] * (like.ndim - levels.ndim)))


def add_noise(clean: torch.Tensor, noise: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """Return `clean` at the given noise levels: (1 - l) clean + l noise.

    Args:
        clean: float (B, T, ...).
        noise: float, the shape of `clean`.
        levels: float (B, T) in [0, 1]; 0 is clean, 1 is pure noise.

    Source: Lipman et al. 2023 (flow matching), the linear path.
    """
    scale = expand_levels(levels, clean)
    return clean + scale * (noise - clean)


def move_level(noisy: torch.Tensor, clean: torch.Tensor, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """Take one deterministic (Euler / DDIM) step from level `before` to level `after` towards a clean prediction.

    On the linear path x_after = clean + (after / before) (x_before - clean), exact when the prediction is. A frame
    whose `before` is 0 stays as it is.

    Args:
        noisy: float (B, T, ...), the frames at `before`.
        clean: float, same shape, the prediction of the clean frames.
        before: float (B, T).
        after: float (B, T), at most `before`.

    Source: DDIM (Song et al. 2021) on the linear path; per-frame levels as in arXiv:2503.10704, Sec. 3.
    """
    ratio = torch.where(before > 0, after / before.clamp_min(1e-8), torch.ones_like(before))
    return clean + expand_levels(ratio, noisy) * (noisy - clean)
