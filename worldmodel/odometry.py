"""Dead reckoning: where a dreamer would stand if nothing had stopped it, from actions alone.

Owns: how displacements of actions add up to poses, and which directions the tokens of a frame look in. Knows no
network, no scene and no obstacle: a walk that was stopped is counted in full, so positions drift and headings do not.

A pose is float32 (x, y, z, yaw, pitch): cells; radians, yaw counter-clockwise from x and pitch upwards. Motions of
actions leave z and pitch as they are.
"""

import math

import torch

POSE_SIZE, YAW = 5, 3  # numbers of a pose, and which of them is the yaw


def walk_poses(displacements: torch.Tensor, actions: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """Return the pose after each action.

    Args:
        displacements: float32 (A + 1, 2), turn in radians (counter-clockwise) and walk in cells of each action; the
            last row, "none", is zero. A step turns first, then walks along the new heading.
        actions: int64 (B, T), 0..A.
        start: float32 (B, 5), the pose before the first action.

    Returns:
        float32 (B, T, 5); yaw in [0, 2 pi).
    """
    turn, walk = displacements[actions].unbind(-1)
    x, y, z, yaw, pitch = start[:, None].unbind(-1)

    yaw = yaw + turn.cumsum(1)
    x, y = x + (walk * yaw.cos()).cumsum(1), y + (walk * yaw.sin()).cumsum(1)
    return torch.stack([x, y, z.expand_as(x), torch.remainder(yaw, 2 * math.pi), pitch.expand_as(x)], -1)


def look_angles(num_columns: int, view_deg: float) -> torch.Tensor:
    """Return where the middles of `num_columns` columns of a picture look, radians to the left of its center.

    Args:
        num_columns: columns of equal width.
        view_deg: horizontal angle of view, above 0 and below 180.
    """
    middles = (torch.arange(num_columns, dtype=torch.float32) + 0.5) / num_columns * 2 - 1
    return -torch.atan(middles * math.tan(math.radians(view_deg) / 2))
