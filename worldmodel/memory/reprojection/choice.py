"""The choice of the few keyframes that show most of a coming view, judged on a coarse grid of cells."""

import torch

from worldmodel.memory.camera import Camera, view_change
from worldmodel.memory.reprojection.costs import WarpRule, order_ranks
from worldmodel.memory.reprojection.keyframes import COVER, Keyframes


def choose(
    keyframes: Keyframes,
    camera: Camera,
    poses: torch.Tensor,
    count: int = 6,
    rule: WarpRule | None = None,
    allowed: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the slots that together show most of coming views: the last frame, then greedily by coverage.

    Args:
        keyframes: B dreams.
        camera: what is seen with.
        poses: float32 (B, T, 5), of the coming views.
        count: slots to choose for each view, at most M.
        rule: what coverage costs.
        allowed: bool (B, T, M), slots that a view may draw on (in training: earlier frames only); None: all.

    Returns:
        int64 (B, T, count); -1 where no further slot adds anything.
    """
    rule = rule or WarpRule()
    batch, slots = keyframes.order.shape
    is_held = (keyframes.order >= 0)[:, None].expand(-1, poses.shape[1], -1)
    if allowed is not None:
        is_held = is_held & allowed
    cost = _coverage_cost(keyframes, camera, poses, is_held, rule)  # (B, T, M, cells)

    # The last frame comes first, whatever it shows.
    last = keyframes.order[:, None].expand_as(is_held).masked_fill(~is_held, -1)
    most, slot = last.max(-1)
    chosen = [torch.where(most >= 0, slot, -1)]

    best = torch.full((batch, poses.shape[1], 1, cost.shape[-1]), rule.hole + rule.elsewhere, device=cost.device)
    for _ in range(count - 1):
        taken = cost.gather(2, slot[..., None, None].expand(-1, -1, 1, cost.shape[-1]))
        best = torch.minimum(best, taken)
        gain, slot = (best - cost).clamp_min(0).sum(-1).max(-1)
        chosen.append(torch.where(gain > 0.5, slot, -1))
    return torch.stack(chosen, -1)


def _is_here(keyframes: Keyframes, poses: torch.Tensor, rule: WarpRule) -> torch.Tensor:
    """Return which slots were seen from the place of coming views, bool (B, T, M)."""
    apart = keyframes.poses[:, None, :, :3] - poses[:, :, None, :3]
    return apart.square().sum(-1) < rule.same_place**2


def _coverage_cost(
    keyframes: Keyframes, camera: Camera, poses: torch.Tensor, is_held: torch.Tensor, rule: WarpRule
) -> torch.Tensor:
    """Return what each slot costs in each cell of a coarse view, float32 (B, T, M, COVER ** 2); large: not shown."""
    batch, slots, num_points, _ = keyframes.points.shape
    length = poses.shape[1]
    turn, shift = view_change(torch.zeros_like(poses), poses)  # from the world
    points = keyframes.points.flatten(1, 2).transpose(1, 2)  # (B, 4, M * P)
    seen = turn @ points[:, None, :3] + shift[..., None]  # (B, T, 3, M * P)
    ahead, left, up = seen.unbind(2)

    distance = points[:, None, 3]
    away = (ahead.square() + left.square() + up.square()).sqrt().clamp_min(1e-3)
    inverse = ahead.clamp_min(1e-3).reciprocal()

    column = ((1 - left * inverse / camera.tangent) * (COVER / 2)).floor().clamp(-1, COVER) + 1
    row = ((1 - up * inverse / camera.tangent) * (COVER / 2)).floor().clamp(-1, COVER) + 1
    place = (row * (COVER + 2) + column).long().unflatten(-1, (slots, num_points))

    usable = (ahead > rule.near) & (away > rule.clearance) & (distance > 0)
    usable = usable.unflatten(-1, (slots, num_points)) & is_held[..., None]

    zoom = (distance / away).clamp(1e-3, 1e3).log2()
    is_here = _is_here(keyframes, poses, rule)[..., None]  # (B, T, M, 1)
    cost = (rule.zoom_cost(zoom).unflatten(-1, (slots, num_points)) + rule.elsewhere) * ~is_here
    cost = cost + rule.later * order_ranks(keyframes)[:, None, :, None]

    # Hidden behind what another slot shows in the same cell: not shown.
    inverse = inverse.unflatten(-1, (slots, num_points)) * usable
    cells = (COVER + 2) ** 2
    front = inverse.new_zeros(batch, length, cells).scatter_reduce(2, place.flatten(2), inverse.flatten(2), "amax")
    is_hidden = inverse < 0.8 * front.gather(2, place.flatten(2)).view_as(inverse) - 0.004

    cost = cost + 1e3 * ((is_hidden & ~is_here) | ~usable)
    grid = cost.new_full((batch, length, slots, cells), 1e3).scatter_reduce(3, place, cost, "amin")
    return grid.unflatten(-1, (COVER + 2, COVER + 2))[..., 1:-1, 1:-1].flatten(-2)
