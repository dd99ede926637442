"""What depth is worth without labels: does one frame, warped by it, look like another?

Owns: the warp of one frame into the view of another by depth, and the loss that follows from it. Knows no files, no
network and no world.

A pose is x, y, z, yaw and pitch: z up, yaw counter-clockwise from x, pitch up from the horizon, angles in radians.
Poses of three columns are x, y and yaw.

Source: Zhou et al. 2017 (depth from frames and poses by view synthesis); Godard et al. 2019 (least error of several
sources, automasking, SSIM with L1). Poses are known here, so depth has the unit of the poses.
"""

import math
from typing import NamedTuple

import torch
from einops import reduce, repeat
from torch.nn import functional as F

from worldmodel.memory.camera import complete_poses
from worldmodel.memory.depth import DepthConfig, double_inverse

_NEAREST = 0.05  # what lies nearer than this before a source is not seen by it, in the unit of poses
_UNSEEN = 1.5  # error of what a source does not see; more than any that is seen


class PosedFrames(NamedTuple):
    """Frames, and others that show the same places.

    Attributes:
        pixels: float (B, 3, H, W) in [-1, 1].
        poses: float (B, 3 or 5), where they were seen from.
        sources: float (B, K, 3, H, W), the others.
        source_poses: float (B, K, 3 or 5).
    """

    pixels: torch.Tensor
    poses: torch.Tensor
    sources: torch.Tensor
    source_poses: torch.Tensor


def camera_axes(poses: torch.Tensor) -> torch.Tensor:
    """Return the directions ahead, left and up of cameras, as columns: (..., 3, 3) of poses (..., 5)."""
    yaw, pitch = poses[..., 3], poses[..., 4]
    cos, sin, rise, flat = yaw.cos(), yaw.sin(), pitch.sin(), pitch.cos()
    ahead = torch.stack([cos * flat, sin * flat, rise], -1)
    left = torch.stack([-sin, cos, torch.zeros_like(cos)], -1)
    up = torch.stack([-cos * rise, -sin * rise, flat], -1)
    return torch.stack([ahead, left, up], -1)


def pixel_rays(size: int, view_deg: float, device: torch.device) -> torch.Tensor:
    """Return where pixels look, (3, size, size): 1 ahead, and how far left and up at distance 1."""
    slope = math.tan(math.radians(view_deg) / 2) * (1.0 - (2.0 * torch.arange(size, device=device) + 1.0) / size)
    left, up = slope.expand(size, size), slope[:, None].expand(size, size)
    return torch.stack([torch.ones_like(left), left, up])


def warp_frames(
    sources: torch.Tensor, source_poses: torch.Tensor, inverse: torch.Tensor, poses: torch.Tensor, view_deg: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what frames would look like if `sources` showed everything they show.

    Args:
        sources: float (B, 3, H, W), what is sampled.
        source_poses: float (B, 3 or 5), where the sources were seen from.
        inverse: float (B, H, W), inverse depth of the frames to be made.
        poses: float (B, 3 or 5), where these are seen from.
        view_deg: angle of view in degrees, across and upright.

    Returns:
        float (B, 3, H, W), and bool (B, H, W), whether the source sees the point. Differentiable in `inverse`.
    """
    poses, source_poses = complete_poses(poses), complete_poses(source_poses)
    to_source = camera_axes(source_poses).mT
    turn = to_source @ camera_axes(poses)
    shift = (to_source @ (poses - source_poses)[:, :3, None])[..., None]  # (B, 3, 1, 1)
    rays = pixel_rays(inverse.shape[-1], view_deg, inverse.device)
    points = torch.einsum("bij,jhw->bihw", turn, rays) + shift * inverse[:, None]  # divided by depth: the same picture
    ahead, left, up = points.unbind(1)
    is_seen = ahead > _NEAREST * inverse
    scale = -1.0 / math.tan(math.radians(view_deg) / 2)
    place = scale * torch.stack([left, up], -1) / ahead.clamp_min(1e-3)[..., None]
    is_seen = is_seen & (place.abs() <= 1).all(-1)
    made = F.grid_sample(sources, place, mode="bilinear", padding_mode="border", align_corners=False)
    return made, is_seen


def window_means(x: torch.Tensor) -> torch.Tensor:
    """Return the means of 3 x 3 windows, (..., H - 2, W - 2), by sums of slices: on a CPU far faster than pooling."""
    rows = x[..., :-2, :] + x[..., 1:-1, :] + x[..., 2:, :]
    return (rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]) / 9


def picture_error(made: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Return how different pictures are at each pixel: SSIM in 3 x 3 pixels, L1, and L1 of means of 4 x 4 pixels.

    The last one reaches farther: without it a depth that is far off finds no way back. SSIM leaves out the border.

    Args:
        made: float (..., 3, H, W), H and W multiples of 4.
        wanted: float (..., 3, H, W).

    Returns:
        float (..., H, W), 0 where they agree, about 1 where they have nothing in common.
    """
    mean, mean_made = window_means(wanted), window_means(made)
    covariance = window_means(made * wanted) - mean * mean_made
    squares, squares_made = mean.square(), mean_made.square()
    variances = window_means(wanted.square()) - squares + window_means(made.square()) - squares_made
    likeness = (2 * mean * mean_made + 0.01) * (2 * covariance + 0.03)
    likeness = likeness / ((squares + squares_made + 0.01) * (variances + 0.03))
    unlike = F.pad((1 - likeness).clamp(0, 2).mean(-3), (1, 1, 1, 1))
    difference = made - wanted
    coarse = reduce(difference, "... c (h p) (w q) -> ... c h w", "mean", p=4, q=4).abs().mean(-3)
    coarse = repeat(coarse, "... h w -> ... (h p) (w q)", p=4, q=4)
    return 0.3 * unlike + 0.4 * difference.abs().mean(-3) + 0.5 * coarse


def smoothness(values: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """Return how much `values` (B, h, w) change where the picture, float (B, 3, h, w), does not: a scalar.

    Source: Godard et al. 2017, edge-aware smoothness.
    """
    total = values.new_zeros(())
    for axis in (-1, -2):
        change, edge = values.diff(dim=axis).abs(), pixels.diff(dim=axis).abs().mean(1)
        total = total + (change * torch.exp(-8 * edge)).mean()
    return total


def photometric_loss(
    config: DepthConfig,
    codes: torch.Tensor,
    frames: PosedFrames,
    smooth_weight: float = 0.03,
    far_weight: float = 0.006,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return the loss of depths by what they predict of other frames, and scalars.

    At each pixel the source counts that fits best: the others may not see it. A pixel that fits an unwarped source at
    least as well tells nothing (a frame that stands still, something that moves along) and does not count.

    Args:
        config: the camera and the range of depths.
        codes: float (B, h, w), of depths (`DepthConfig.to_code`) at half the resolution of the frames.
        frames: those whose depths these are, and others of the same places.
        smooth_weight: weight of `smoothness` of the codes.
        far_weight: weight of the codes themselves. It is too small to move what has a texture; where any depth fits as
            well as any other, as in a clear sky, depth becomes far.
    """
    pixels, poses, sources, source_poses = frames
    inverse = double_inverse(config.to_inverse(codes))
    made, seen = [], []
    for k in range(sources.shape[1]):
        view, is_seen = warp_frames(sources[:, k], source_poses[:, k], inverse, poses, config.view_deg)
        made.append(view)
        seen.append(is_seen)
    errors = picture_error(torch.stack(made), pixels).where(torch.stack(seen), _UNSEEN).amin(0)
    with torch.no_grad():
        still = picture_error(sources.transpose(0, 1), pixels).amin(0)
        counts = (errors < still - 1e-4) & (errors < _UNSEEN)
    photo = (errors * counts).sum() / counts.sum().clamp_min(1)
    nearness = codes.clamp_min(float(config.to_code(torch.tensor(config.far)))).mean()
    loss = photo + smooth_weight * smoothness(codes, F.avg_pool2d(pixels, 2)) + far_weight * nearness
    scalars = {"photometric": photo.detach(), "copied": still.mean(), "counted": counts.float().mean()}
    return loss, scalars
