"""Dead reckoning: where a dreamer would stand if nothing had stopped it, from actions alone.

Owns: how motions of actions add up to poses, and which directions the tokens of a frame look in. Knows no network, no
maze and no wall: unless it is told better, a walk that ended at a wall is counted in full, so positions drift and
headings do not. No correction counts for a step to where one has been (`step_known_ways`).

A pose is float32 (x, y, z, yaw, pitch): cells; radians, yaw counter-clockwise from x and pitch upwards. Motions of
actions leave z and pitch as they are.
"""

import math

import torch

POSE_SIZE, YAW = 5, 3  # numbers of a pose, and which of them is the yaw

# Steps from the nearest known place: below the first a place is free, from the second on nothing is known of it. Places
# of one walk are a step apart, so on a known way none is farther than half a step from the nearest.
NEAR_STEPS, FAR_STEPS = 0.55, 0.85


def walk_poses(
    motions: torch.Tensor, actions: torch.Tensor, start: torch.Tensor, corrections: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the pose after each action.

    Args:
        motions: float32 (A + 1, 2), turn in radians (counter-clockwise) and walk in cells of each action; the last row,
            "none", is zero. A step turns first, then walks along the new heading.
        actions: int64 (B, T), 0..A.
        start: float32 (B, 5), the pose before the first action.
        corrections: float32 (B, T, 2), what each walk gets on top, cells along the new heading and to its left
            (`worldmodel.geometry`); None: nothing.

    Returns:
        float32 (B, T, 5); yaw in [0, 2 pi).
    """
    turn, walk = motions[actions].unbind(-1)
    yaw = start[:, None, YAW] + turn.cumsum(1)
    x, y = (start[:, None, i] + part.cumsum(1) for i, part in enumerate(_walk(walk, yaw, corrections)))
    return _move(start[:, None], x, y, yaw)


def step_poses(
    motions: torch.Tensor, actions: torch.Tensor, poses: torch.Tensor, corrections: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the poses, float32 (B, T, 5), one action after each of `poses` (B, T, 5); the rest as `walk_poses`."""
    turn, walk = motions[actions].unbind(-1)
    yaw = poses[..., YAW] + turn
    x, y = (poses[..., i] + part for i, part in enumerate(_walk(walk, yaw, corrections)))
    return _move(poses, x, y, yaw)


def step_known_ways(
    motions: torch.Tensor,
    pose: torch.Tensor,
    action: torch.Tensor,
    correction: torch.Tensor,
    been: torch.Tensor,
    is_known: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the pose a step after `pose`, which nothing stops where it leads to a place one has been at.

    Returned beside it is how far the step leads away from such places, float32 (B,): 0 on known ways, 1 where all is
    new.

    Args:
        motions: as `walk_poses`.
        pose: float32 (B, 5).
        action: int64 (B,).
        correction: float32 (B, 2), as `walk_poses`, of this step; it counts in full away from known places.
        been: float32 (B, K, 2), places.
        is_known: bool (B, K), which of them count.
    """
    wanted = step_poses(motions, action[:, None], pose[:, None])[:, :, :2]
    away = (been - wanted).square().sum(-1).masked_fill(~is_known, torch.inf).amin(1).sqrt()
    step = motions[:, 1].abs().max().clamp_min(1e-6)
    share = ((away / step - NEAR_STEPS) / (FAR_STEPS - NEAR_STEPS)).clamp(0, 1)
    pose = step_poses(motions, action[:, None], pose[:, None], (share[:, None] * correction)[:, None])[:, 0]
    return pose, share


def ground_poses(places: torch.Tensor) -> torch.Tensor:
    """Return poses, float32 (..., 5), on the ground and looking level, of places (..., 3): x, y and yaw in radians."""
    x, y, yaw = places.float().unbind(-1)
    level = torch.zeros_like(x)
    return torch.stack([x, y, level, yaw, level], -1)


def _move(poses: torch.Tensor, x: torch.Tensor, y: torch.Tensor, yaw: torch.Tensor) -> torch.Tensor:
    """Return poses (B, T, 5) at other places (B, T), as high and pitched as before; `poses` (B, T or 1, 5)."""
    z, pitch = (poses[..., i].expand_as(x) for i in (2, 4))
    return torch.stack([x, y, z, torch.remainder(yaw, 2 * math.pi), pitch], -1)


def _walk(
    walk: torch.Tensor, heading: torch.Tensor, corrections: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    cos, sin = heading.cos(), heading.sin()
    if corrections is None:
        return walk * cos, walk * sin
    ahead, left = corrections.unbind(-1)
    return (walk + ahead) * cos - left * sin, (walk + ahead) * sin + left * cos


def look_angles(num_columns: int, view_deg: float) -> torch.Tensor:
    """Return where the middles of `num_columns` columns of a picture look, radians to the left of its center.

    Args:
        num_columns: columns of equal width.
        view_deg: horizontal angle of view, above 0 and below 180.
    """
    middles = (torch.arange(num_columns) + 0.5) / num_columns * 2 - 1
    return -torch.atan(middles * math.tan(math.radians(view_deg) / 2))
