"""Pinhole camera: what a pixel of a square picture looks at from a pose.

Owns: poses as axes, rays of pixels, and how points move from one pose's view into another's. Knows no pictures, no
depth files and no world: a world says how wide its view is.

A pose is float32 (..., 5): x, y, z in cells, yaw in radians counter-clockwise, pitch in radians upward; there is no
roll. A point in the view of a pose is (ahead, left, up) in cells; depth is `ahead`, the distance along the optical
axis. The center of the pixel in row r and column c of S x S looks along (1, left, up) with left = T (1 - (2 c + 1) / S)
and up = T (1 - (2 r + 1) / S), T the tangent of half the angle of view.
"""

import math
from dataclasses import dataclass

import torch

from worldmodel.errors import ConfigError, ShapeError


@dataclass(frozen=True)
class Camera:
    """A pinhole camera with a square picture.

    Attributes:
        view_deg: angle of view, horizontal and vertical, above 0 and below 180 degrees.
    """

    view_deg: float

    def __post_init__(self) -> None:
        if not 0 < self.view_deg < 180:
            raise ConfigError(f"angle of view {self.view_deg} is not accepted; take degrees above 0 and below 180")

    @property
    def tangent(self) -> float:
        """Half the picture's width at distance 1."""
        return math.tan(math.radians(self.view_deg) / 2)


def complete_poses(poses: torch.Tensor) -> torch.Tensor:
    """Return poses (..., 5) of poses (..., 3) or (..., 5); height and pitch are 0 where they are not given.

    Raises:
        ShapeError: another number of columns.
    """
    if poses.shape[-1] == 5:
        return poses
    if poses.shape[-1] != 3:
        raise ShapeError(f"a pose is x, y, yaw or x, y, z, yaw, pitch; got {poses.shape[-1]} numbers")
    x, y, yaw = poses.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([x, y, zero, yaw, zero], -1)


def pose_axes(poses: torch.Tensor) -> torch.Tensor:
    """Return the directions ahead, left and up of poses (..., 5) as rows, float32 (..., 3, 3)."""
    yaw, pitch = poses[..., 3], poses[..., 4]
    cos, sin, level, rise = yaw.cos(), yaw.sin(), pitch.cos(), pitch.sin()
    zero = torch.zeros_like(cos)
    rows = [level * cos, level * sin, rise, -sin, cos, zero, -rise * cos, -rise * sin, level]
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


def pixel_rays(camera: Camera, size: int, device: torch.device | None = None) -> torch.Tensor:
    """Return where the pixel centers of a size x size picture look: float32 (3, size * size), rows 1, left, up."""
    slopes = camera.tangent * (1 - (2 * torch.arange(size, dtype=torch.float32, device=device) + 1) / size)
    left, up = slopes.expand(size, size), slopes[:, None].expand(size, size)
    return torch.stack([torch.ones_like(left), left, up]).flatten(1)


def view_change(source: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return how a point in the view of `source` is seen from `target`: turn @ point + shift.

    Args:
        source: poses (..., 5).
        target: poses (..., 5), of a shape that broadcasts with `source`.

    Returns:
        turn, float32 (..., 3, 3), and shift, float32 (..., 3).
    """
    axes = pose_axes(target)
    turn = axes @ pose_axes(source).transpose(-1, -2)
    shift = (axes @ (source[..., :3] - target[..., :3])[..., None])[..., 0]
    return turn, shift


def project(points: torch.Tensor, poses: torch.Tensor, camera: Camera, size: int) -> torch.Tensor:
    """Return where points of the world are seen.

    Args:
        points: float32 (..., N, 3).
        poses: (..., 5).
        camera: what they are seen with.
        size: height and width of the picture in pixels.

    Returns:
        float32 (..., N, 3): column, row (0 is the center of the first pixel) and depth. Where depth is not above 0 the
        point is behind the camera, and its column and row mean nothing.
    """
    seen = (points - poses[..., None, :3]) @ pose_axes(poses).transpose(-1, -2)
    depth = seen[..., :1]
    # Behind the camera the sign is kept off the division, so that nothing is infinite.
    places = (1 - seen[..., 1:] / (depth.clamp_min(1e-6) * camera.tangent)) * (size / 2) - 0.5
    return torch.cat([places, depth], -1)
