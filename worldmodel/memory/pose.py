"""Where a dreamer stands: actions, what it remembers to stand in the way, and where it has been.

Owns: one estimate of the pose for everything that needs one, and the remembered points of obstacles and places that
bound it. Knows no network, no pictures and no world: a world says what its actions do to a pose, and how wide the body
is that moves.

A body cannot be where an obstacle is: the wanted place is pushed out of remembered points. What one saw may have been
wrong: points that lie where the body has stood, or that something behind them is seen through, are forgotten, and on a
known way nothing stops one, as it has been walked before.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch

from worldmodel.memory.camera import Camera, pixel_rays, pose_axes
from worldmodel.odometry import POSE_SIZE

_FAR = 1e4  # where empty slots are, cells
_NEAREST = 64  # points that a push looks at
_TURNS = 5  # rounds of pushing
_VOTES = 3  # points that push together: one alone may be a speck


@dataclass(frozen=True)
class Body:
    """How a body bounds its poses; all but the shares in cells.

    Attributes:
        radius: nearest an obstacle can be to the middle of the body.
        carve: remembered points nearer than this to a place where one has stood are not there.
        rows: shares of the picture's height, from above, of the rows whose depth shows obstacles: these are upright,
            so all of these rows show the same, and their median is what counts.
        nearest: least depth of a point that is remembered.
        farthest: largest depth.
        clearance: share of the depth seen by which a remembered point must lie before it to be seen through.
        spacing: points nearer than this to a remembered one are not remembered too.
        near_steps: steps from the nearest place one has been at, below which nothing stops a step.
        far_steps: from which on obstacles count in full.
    """

    radius: float = 0.25
    carve: float = 0.18
    rows: tuple[float, float] = (0.2, 0.42)
    nearest: float = 0.05
    farthest: float = 1.1
    clearance: float = 0.06
    spacing: float = 0.015
    near_steps: float = 0.55
    far_steps: float = 0.85


@dataclass
class Surroundings:
    """What bounds the poses of B dreams: rings of points, whose oldest are overwritten.

    Attributes:
        points: float32 (B, P, 2), x, y of obstacles; far away where empty.
        places: float32 (B, Q, 2), x, y where one has stood; far away where empty.
        num_points: int64 (B,), points written so far.
        num_places: int64 (B,), places written so far.
    """

    points: torch.Tensor
    places: torch.Tensor
    num_points: torch.Tensor
    num_places: torch.Tensor

    @staticmethod
    def empty(
        batch: int, points: int = 4096, places: int = 2048, device: torch.device | str | None = None
    ) -> "Surroundings":
        """Return surroundings of `batch` dreams of which nothing is known; rings of `points`, 64 or more, `places`."""
        return Surroundings(
            torch.full((batch, points, 2), _FAR, dtype=torch.float32, device=device),
            torch.full((batch, places, 2), _FAR, dtype=torch.float32, device=device),
            torch.zeros(batch, dtype=torch.int64, device=device),
            torch.zeros(batch, dtype=torch.int64, device=device),
        )

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The parts by name."""
        return {part.name: getattr(self, part.name) for part in fields(self)}


def level_displacements(displacements: Sequence[tuple[float, float]]) -> torch.Tensor:
    """Return what actions do to a pose, where all they do is turn and walk.

    Args:
        displacements: for each action its turn in degrees, counter-clockwise, and its walk in cells along the new
            heading.

    Returns:
        float32 (A + 1, 5): cells ahead, to the left and up, radians of yaw and of pitch; the last row, "none", is zero.
    """
    rows = [(walk, 0.0, 0.0, math.radians(turn), 0.0) for turn, walk in displacements]
    return torch.tensor([*rows, (0.0,) * POSE_SIZE], dtype=torch.float32)


def move(displacements: torch.Tensor, actions: torch.Tensor, poses: torch.Tensor) -> torch.Tensor:
    """Return the poses an action later if nothing is in the way: a step turns first, then walks level.

    Args:
        displacements: float32 (A + 1, 5), as `level_displacements` returns.
        actions: int64 (...), 0..A.
        poses: float32 (..., 5).

    Returns:
        float32 (..., 5); yaw in [0, 2 pi), pitch kept from -pi / 2 to pi / 2.
    """
    ahead, left, up, turn, tilt = displacements[actions].unbind(-1)
    x, y, z, yaw, pitch = poses.unbind(-1)
    yaw = torch.remainder(yaw + turn, 2 * math.pi)
    pitch = (pitch + tilt).clamp(-math.pi / 2, math.pi / 2)
    cos, sin = yaw.cos(), yaw.sin()
    return torch.stack([x + ahead * cos - left * sin, y + ahead * sin + left * cos, z + up, yaw, pitch], -1)


def advance(
    poses: torch.Tensor,
    actions: torch.Tensor,
    displacements: torch.Tensor,
    surroundings: Surroundings,
    body: Body | None = None,
) -> torch.Tensor:
    """Return the poses after one action, float32 (B, 5), kept out of remembered obstacles.

    Args:
        poses: float32 (B, 5).
        actions: int64 (B,), 0..A.
        displacements: float32 (A + 1, 5), as `level_displacements` returns.
        surroundings: of the same dreams; not changed.
        body: what moves.
    """
    body = body or Body()
    wanted = move(displacements, actions, poses)
    start, aim = poses[:, :2], wanted[:, :2]
    walk = (aim - start).square().sum(-1, keepdim=True).sqrt()
    pushed = _push_out(aim, surroundings.points, body)
    # Nothing stops a step to where one has been.
    step = displacements[:, :2].square().sum(-1).amax().sqrt().clamp_min(1e-6)
    away = (surroundings.places - aim[:, None]).square().sum(-1).amin(1).sqrt() / step
    share = ((away - body.near_steps) / (body.far_steps - body.near_steps)).clamp(0, 1)
    place = aim + share[:, None] * (pushed - aim)
    # Obstacles shorten a step or turn it aside; they never carry one further, nor move one who does not walk.
    way = place - start
    length = way.square().sum(-1, keepdim=True).sqrt().clamp_min(1e-6)
    place = start + way * torch.minimum(walk / length, torch.ones_like(length))
    return torch.cat([place, wanted[:, 2:]], -1)


def observe(
    surroundings: Surroundings,
    camera: Camera,
    poses: torch.Tensor,
    inverse_depth: torch.Tensor,
    body: Body | None = None,
) -> None:
    """Remember where one stands and which obstacles a frame shows; the tensors of `surroundings` change in place.

    Args:
        surroundings: B dreams.
        camera: what the frames are seen with.
        poses: float32 (B, 5), of the frames.
        inverse_depth: float (B, g, g), 1 / cells along the optical axis, 0 where unknown.
        body: what moves.
    """
    body = body or Body()
    here = poses[:, None, :2]
    # The place first: what is remembered where one stands is not there.
    is_known = (surroundings.places - here).square().sum(-1).amin(1, keepdim=True) < body.spacing**2
    _append(surroundings.places, surroundings.num_places, here, ~is_known)
    is_free = (surroundings.points - here).square().sum(-1) < body.carve**2
    depth = _column_depths(inverse_depth, body)
    is_free = is_free | _is_seen_through(surroundings.points, camera, poses, depth, body)
    surroundings.points.masked_fill_(is_free[..., None], _FAR)
    points, is_good = _obstacles(camera, poses, depth, body)
    # The first of those that share a small square stands for all, unless something close to it is remembered.
    square = ((points - here) / body.spacing).floor()
    is_same = (square[:, :, None] == square[:, None]).all(-1) & is_good[:, None]
    is_good = is_good & ~is_same.tril(-1).any(2)
    is_good = is_good & (_square_distance(points, surroundings.points, here) > body.spacing**2)
    is_good = is_good & (_square_distance(points, surroundings.places, here) > body.carve**2)
    _append(surroundings.points, surroundings.num_points, points, is_good)


def _square_distance(points: torch.Tensor, others: torch.Tensor, here: torch.Tensor) -> torch.Tensor:
    """Return the squared distance of each of (B, n, 2) from the nearest of (B, m, 2): float32 (B, n).

    Args:
        points: within some cells of `here`.
        others: anywhere; from 100 cells on only far.
        here: (B, 1, 2).
    """
    near, far = points - here, (others - here).clamp(-100, 100)
    lengths = far.square().sum(-1)[:, None]
    between = torch.baddbmm(lengths, near, far.transpose(1, 2), alpha=-2).amin(2)
    return between + near.square().sum(-1)


def _column_depths(inverse_depth: torch.Tensor, body: Body) -> torch.Tensor:
    """Return how far away what is upright in each column is, float32 (B, g), from inverse depths (B, g, g)."""
    first, last = (int(share * inverse_depth.shape[-1]) for share in body.rows)
    inverse = inverse_depth[:, first : max(last, first + 1)].float().median(1).values
    return inverse.clamp_min(1e-3).reciprocal()


def _is_seen_through(
    points: torch.Tensor, camera: Camera, poses: torch.Tensor, depth: torch.Tensor, body: Body
) -> torch.Tensor:
    """Return which points (B, P, 2) are not there, bool (B, P), as their column shows something behind them.

    The nearest of three columns must lie behind a point: an edge takes nothing away.
    """
    size = depth.shape[-1]
    east, north = (points - poses[:, None, :2]).unbind(-1)
    cos, sin = poses[:, 3:4].cos(), poses[:, 3:4].sin()
    ahead, left = east * cos + north * sin, north * cos - east * sin
    across = left / (ahead.clamp_min(1e-3) * math.tan(math.radians(camera.view_deg / 2)))
    column = ((1 - across) * (size / 2)).floor()
    is_in_view = (ahead > body.nearest) & (ahead < body.farthest) & (column >= 1) & (column < size - 1)
    nearest = -torch.nn.functional.max_pool1d(-depth[:, None], 3, 1, 1)[:, 0]
    behind = nearest.gather(1, column.clamp(0, size - 1).long())
    return is_in_view & (ahead < behind * (1 - body.clearance))


def _obstacles(
    camera: Camera, poses: torch.Tensor, depth: torch.Tensor, body: Body
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return points float32 (B, g, 2) as `Surroundings.points`, and which count, bool (B, g); `depth` is (B, g)."""
    size = depth.shape[-1]
    row = min(int(body.rows[0] * size), size - 1)
    rays = pixel_rays(camera, size, depth.device)[:, row * size : (row + 1) * size]
    points = (rays * depth[:, None]).transpose(1, 2) @ pose_axes(poses)
    # Beside an edge depth is a surface that is nowhere.
    jump = depth.log().diff(dim=-1).abs() > 0.2
    is_edge = torch.cat([jump, jump[:, -1:]], -1) | torch.cat([jump[:, :1], jump], -1)
    is_good = (depth > body.nearest) & (depth < body.farthest) & ~is_edge
    return points[..., :2] + poses[:, None, :2], is_good


def _append(ring: torch.Tensor, count: torch.Tensor, rows: torch.Tensor, is_new: torch.Tensor) -> None:
    """Write those of `rows` (B, n, d) that are new, bool (B, n), to `ring` (B, R, d), R >= n, in place; count them."""
    number, size = rows.shape[1], ring.shape[1]
    place = is_new.long().cumsum(1)
    # Those that are not new are written where the ring goes on, as what is there already: no two writes meet, as the
    # new ones take the first slots and the others the last of n.
    rest = number - (~is_new).long().cumsum(1)
    offset = torch.where(is_new, place - 1, rest)
    slot = torch.remainder(count[:, None] + offset, size)[..., None].expand_as(rows)
    ring.scatter_(1, slot, torch.where(is_new[..., None], rows, ring.gather(1, slot)))
    count.add_(place[:, -1])


def _push_out(aim: torch.Tensor, points: torch.Tensor, body: Body) -> torch.Tensor:
    """Return the places `aim` (B, 2) moved out of `points` (B, P, 2), deepest overlap first."""
    away = (points - aim[:, None]).square().sum(-1)
    nearest = away.topk(_NEAREST, largest=False, sorted=False).indices
    points = points.gather(1, nearest[..., None].expand(-1, -1, 2))
    place = aim
    for _ in range(_TURNS):
        gap = (points - place[:, None]).square().sum(-1).sqrt()
        least, which = gap.topk(_VOTES, largest=False)
        touched = points.gather(1, which[..., None].expand(-1, -1, 2)).mean(1)
        out = place - touched
        length = out.square().sum(-1, keepdim=True).sqrt().clamp_min(1e-3)
        place = place + out / length * (body.radius - least.mean(1, keepdim=True)).clamp_min(0)
    return place


def relative_poses(poses: torch.Tensor) -> torch.Tensor:
    """Return level poses (..., T, 5) as seen from the first, as a dream counts them: from 0, looking along x."""
    moved = poses - poses[..., :1, :]
    cos, sin = poses[..., :1, 3].cos(), -poses[..., :1, 3].sin()
    x, y, z, turned, _ = moved.unbind(-1)
    yaw = torch.remainder(turned, 2 * torch.pi)
    return torch.stack([x * cos - y * sin, x * sin + y * cos, z, yaw, poses[..., 4]], -1)
