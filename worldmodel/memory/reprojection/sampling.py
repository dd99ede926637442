"""Colors between pixels, and pictures without holes."""

import torch
from torch.nn import functional as F


def sample_pixels(
    pixels: torch.Tensor, held: torch.Tensor, column: torch.Tensor, row: torch.Tensor, sampling: str
) -> torch.Tensor:
    """Return colors 0..255, float32 (N, 3, P).

    Args:
        pixels: uint8 (B, M, 3, H, W).
        held: int64 (N, P), b * M + slot.
        column: float32 (N, P), share of the width.
        row: share of the height.
        sampling: one of `SAMPLINGS`.
    """
    size = pixels.shape[-1]
    flat = pixels.flatten()
    channels = torch.arange(3, device=pixels.device)[:, None] * size**2
    base = held[:, None] * (3 * size**2) + channels  # (N, 3, P)

    if sampling == "nearest":
        place = (row * size).long().clamp(0, size - 1) * size + (column * size).long().clamp(0, size - 1)
        index = base + place[:, None]
        return flat.index_select(0, index.flatten()).view(index.shape).float()

    x, y = (column * size - 0.5).clamp(0, size - 1), (row * size - 0.5).clamp(0, size - 1)
    c, r = x.floor(), y.floor()
    x, y = x - c, y - r
    reach = torch.arange(2, device=x.device) if sampling == "linear" else torch.arange(-1, 3, device=x.device)

    columns = (c.long()[:, None] + reach[:, None]).clamp(0, size - 1)  # (N, 2 or 4, P)
    rows = (r.long()[:, None] + reach[:, None]).clamp(0, size - 1) * size
    place = (rows[:, :, None] + columns[:, None]).flatten(1, 2)  # (N, taps, P)
    index = base[:, :, None] + place[:, None]
    taps = flat.index_select(0, index.flatten()).view(index.shape).float()  # (N, 3, taps, P)

    weigh = _linear_weights if sampling == "linear" else _cubic_weights
    weights = (weigh(y)[:, :, None] * weigh(x)[:, None]).flatten(1, 2)
    total = (taps * weights[:, None]).sum(2)
    if sampling == "linear":
        return total

    # Cubic weights overshoot: kept between the four nearest pixels, which are in the middle of the sixteen.
    near = taps.unflatten(2, (4, 4))[:, :, 1:3, 1:3].flatten(2, 3)
    return torch.maximum(torch.minimum(total, near.amax(2)), near.amin(2))


def _linear_weights(x: torch.Tensor) -> torch.Tensor:
    """Return the weights of the two pixels about a place `x` (N, P) behind the first, (N, 2, P)."""
    return torch.stack([1 - x, x], 1)


def _cubic_weights(x: torch.Tensor) -> torch.Tensor:
    """Return the weights of the four pixels about a place `x` (N, P) behind the second, (N, 4, P) (Catmull-Rom)."""
    return torch.stack(
        [
            ((-0.5 * x + 1) * x - 0.5) * x,
            (1.5 * x - 2.5) * x * x + 1,
            ((-1.5 * x + 2) * x + 0.5) * x,
            (0.5 * x - 0.5) * x * x,
        ],
        1,
    )


def fill_holes(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return maps with holes filled: near ones from close by, wide ones with what is known further away.

    Averages of what is known are formed on ever coarser grids, and holes take those of the finest grid that knows one.

    Args:
        values: float32 (N, C, S, S), S a power of two.
        mask: float32 (N, 1, S, S), 1 where known, 0 in holes.

    Returns:
        float32 (N, C, S, S); 0 where nothing at all is known.
    """
    levels = [torch.cat([values * mask, mask], 1)]
    while levels[-1].shape[-1] > 1:
        levels.append(F.avg_pool2d(levels[-1], 2))

    filled = levels[-1][:, :-1] / levels[-1][:, -1:].clamp_min(1e-6)
    for level in reversed(levels[:-1]):
        share = level[:, -1:]
        known = level[:, :-1] / share.clamp_min(1e-6)
        coarse = F.interpolate(filled, scale_factor=2.0, mode="bilinear" if filled.shape[-1] > 1 else "nearest")
        filled = coarse + share.sign() * (known - coarse)
    return filled
