"""How far away is what a frame shows: a small network, pixels in, depth out.

Owns: the network, its number format of depth (a code that gives sky a finite value), and how a grid of depths is made
from a finer one and made finer. Knows no poses and no training (`train.depth`), and no world: what it measures in is
the unit of the poses it was trained on.

Depth is the distance along the optical axis, not along the ray.
"""

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from torch.nn import functional as F

from worldmodel.errors import ConfigError, ShapeError

_PATCH = 4  # pixels on a side of a patch; one patch is one pixel of the network
_GRID = 2  # pixels on a side of what has one depth


@dataclass(frozen=True)
class DepthConfig:
    """Shape of a depth network, and the camera and range it is for.

    Attributes:
        image_size: height and width of a frame in pixels, a multiple of 8.
        view_deg: angle of view in degrees, across and upright.
        width: channels at 1/4 of the image size.
        inner_width: channels at 1/8 of the image size.
        inner_blocks: residual convolutions at 1/8.
        outer_blocks: residual convolutions at 1/4, after those at 1/8.
        near: least depth.
        horizon: depth beyond which distances are not told apart: what is farther lies at `far`.
        far: depth of sky.
    """

    image_size: int = 64
    view_deg: float = 70.0
    width: int = 48
    inner_width: int = 96
    inner_blocks: int = 3
    outer_blocks: int = 3
    near: float = 0.05
    horizon: float = 20.0
    far: float = 200.0

    def __post_init__(self) -> None:
        if self.image_size < 16 or self.image_size % 8:
            raise ConfigError(f"depth: image_size must be a multiple of 8, at least 16; got {self.image_size}")
        for name in ("width", "inner_width", "inner_blocks", "outer_blocks"):
            if getattr(self, name) < 1:
                raise ConfigError(f"depth: {name} must be at least 1; got {getattr(self, name)}")
        if not 0 < self.view_deg < 180:
            raise ConfigError(f"depth: view_deg must be above 0 and below 180; got {self.view_deg}")
        if not 0 < self.near < self.horizon < self.far < math.inf:
            raise ConfigError(f"depth: 0 < near < horizon < far must hold; got {self.near}, {self.horizon}, {self.far}")

    @property
    def grid_size(self) -> int:
        """Rows and columns of depths: half the image size."""
        return self.image_size // _GRID

    def to_code(self, depth: torch.Tensor) -> torch.Tensor:
        """Return what the network predicts for a depth: log(1 / depth + 1 / horizon). Any shape; infinity is sky."""
        return (1.0 / depth.clamp(self.near, self.far) + 1.0 / self.horizon).log()

    def to_inverse(self, code: torch.Tensor) -> torch.Tensor:
        """Return the inverse depth of a code, in [1 / far, 1 / near]. Any shape."""
        return (code.exp() - 1.0 / self.horizon).clamp(1.0 / self.far, 1.0 / self.near)


class _Residual(nn.Conv2d):
    """x + relu(conv(x)), 3 x 3."""

    def __init__(self, channels: int, dilation: int = 1) -> None:
        super().__init__(channels, channels, 3, padding=dilation, dilation=dilation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + F.relu_(super().forward(x))


class DepthNet(nn.Module):
    """Depth of single frames.

    Patches of 4 x 4 pixels become pixels of a U-shaped network of two levels, which learns where in the picture it is
    (the rows of a floor have their depths); each of its pixels predicts 2 x 2 depths. Few operations, because on a
    frame of 64 pixels each costs more to start than to compute.
    """

    def __init__(self, config: DepthConfig) -> None:
        """Build an untrained network; at first all is 2 units away, with some noise."""
        super().__init__()
        self.config = config
        width, inner, size = config.width, config.inner_width, config.image_size // _PATCH
        self.patches = nn.Conv2d(3 * _PATCH**2, width, 3, padding=1)
        self.position = nn.Parameter(torch.zeros(1, width, size, size))
        self.down = nn.Conv2d(width, inner, 3, stride=2, padding=1)
        self.inner = nn.Sequential(*(_Residual(inner, 1 + i % 2) for i in range(config.inner_blocks)))
        self.up = nn.Conv2d(inner, 4 * width, 1)
        self.outer = nn.Sequential(*(_Residual(width) for _ in range(config.outer_blocks)))
        self.head = nn.Conv2d(width, (_PATCH // _GRID) ** 2, 1)
        for layer in (self.patches, self.down):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        with torch.no_grad():
            self.head.weight.mul_(0.3)
            nn.init.constant_(
                cast(torch.Tensor, self.head.bias), float(config.to_code(torch.tensor(2.0, dtype=torch.float32)))
            )
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in its stubs

    def codes(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the codes of depths (`DepthConfig.to_code`), float32 (N, H / 2, W / 2); arguments as `forward`."""
        size = self.config.image_size
        if pixels.ndim != 4 or tuple(pixels.shape[1:]) != (3, size, size) or not pixels.is_floating_point():
            raise ShapeError(
                f"depth takes pixels float (N, 3, {size}, {size}); got {pixels.dtype} {tuple(pixels.shape)}"
            )
        x = F.pixel_unshuffle(pixels, _PATCH).contiguous(memory_format=torch.channels_last)
        x = F.relu_(self.patches(x) + self.position)
        x = x + F.pixel_shuffle(self.up(self.inner(F.relu_(self.down(x)))), 2)
        return F.pixel_shuffle(self.head(self.outer(x)), _PATCH // _GRID)[:, 0].float()

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Predict depths.

        Args:
            pixels: float (N, 3, H, W) in [-1, 1].

        Returns:
            float32 (N, H / 2, W / 2), distances along the optical axis of 2 x 2 pixels, in [near, horizon], or far.

        Raises:
            ShapeError: another frame size or channel count, or not float.
        """
        inverse = self.config.to_inverse(self.codes(pixels))
        depth = inverse.reciprocal()
        return depth.masked_fill(depth > self.config.horizon, self.config.far)


def halve_depth(depth: torch.Tensor) -> torch.Tensor:
    """Return one depth for every 2 x 2 depths: that of their middle on a plane, that of the nearer side at an edge.

    Planes are linear in inverse depth, so the mean of the two middle ones of the four is right on a plane; where these
    two differ by more than three tenths there is an edge between them, and nothing lies at their mean.

    Args:
        depth: float (N, H, W), H and W even, above 0; infinity is allowed.

    Returns:
        float32 (N, H / 2, W / 2).
    """
    inverse = F.pixel_unshuffle(depth.float().reciprocal()[:, None], 2).sort(1).values
    farther, nearer = inverse[:, 1], inverse[:, 2]
    return torch.where(nearer > 1.3 * farther, nearer, 0.5 * (nearer + farther)).reciprocal()


def double_inverse(inverse: torch.Tensor) -> torch.Tensor:
    """Return inverse depths of twice the resolution: exact on planes, and without values between those of an edge.

    Each value becomes a small plane whose slopes are the lesser of those to its two neighbors, zero where they differ
    in sign. Differentiable.

    Args:
        inverse: float (N, h, w).

    Returns:
        float (N, 2 h, 2 w).

    Source: the minmod limiter of finite-volume methods (van Leer 1979).
    """

    def slope(values: torch.Tensor) -> torch.Tensor:  # along the last axis
        step = values[..., 1:] - values[..., :-1]
        before, after = F.pad(step, (1, 0)), F.pad(step, (0, 1))
        before[..., 0], after[..., -1] = step[..., 0], step[..., -1]
        least = torch.where(before.abs() < after.abs(), before, after)
        return torch.where(before * after > 0, least, 0.0)

    right, down = 0.25 * slope(inverse), 0.25 * slope(inverse.mT).mT
    parts = [inverse - down - right, inverse - down + right, inverse + down - right, inverse + down + right]
    return F.pixel_shuffle(torch.stack(parts, 1), 2)[:, 0]
