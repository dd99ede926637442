"""What a walker's body says of remembered walls: they stop it, and none stands where it has stood.

Owns: where remembered columns stand, pushing an estimated place out of them, and which of them a body contradicts. For
dreams only: true frames contradict no walk. Knows no network, no cache and no maze.

A dream needs both. Its estimate of a place creeps through the walls that it remembers, walls that are too near to be
there are remembered all round, and a dream that follows them shows nothing else: the player is caught for good.

Tensors of fixed shapes and loops of fixed length alone, as the step of a world is compiled.

Source: our own; pushing a body out of what it touches is position-based dynamics (Mueller et al. 2007, Sec. 3.3).
"""

from typing import NamedTuple

import torch

from worldmodel.odometry import YAW

WALKER_RADIUS = 0.22  # cells; nearer to a wall no walk of the recordings brings one
# Cells; a little less, as a wall that one is pushed away from to the radius must not count as walked through.
BODY_RADIUS = 0.2
# Cells; a point nearer than this before the step does not stop it: one is inside of it already, and must get out.
INSIDE_RADIUS = 0.18
REACH = 1.1  # cells; columns seen from farther away are not placed well enough to be walked into
NUM_NEAREST = 3  # points that one is pushed away from at a time, by their mean: one alone may be wrong
NUM_TOUCHED = 16  # nearest points of a step that may be touched at all
NUM_PUSHES = 4  # a flat wall takes one, a corner two or three
NOWHERE = 1e3  # cells; a distance or a place too far away to count


def locate_columns(poses: torch.Tensor, depths: torch.Tensor, slopes: torch.Tensor) -> torch.Tensor:
    """Return where the columns of frames stand.

    Args:
        poses: float32 (..., 5) as `worldmodel.odometry` has them, where the frames were seen from.
        depths: float32 (..., w), cells along the heading.
        slopes: float32 (w,), how far each column looks to the left at distance 1.

    Returns:
        float32 (..., w, 2), x and y in cells.
    """
    cos, sin = poses[..., YAW].cos()[..., None], poses[..., YAW].sin()[..., None]
    x = poses[..., 0, None] + depths * (cos - slopes * sin)
    y = poses[..., 1, None] + depths * (sin + slopes * cos)
    return torch.stack([x, y], -1)


class Walls(NamedTuple):
    """Walls that frames show.

    Attributes:
        points: float32 (B, K, w, 2), in cells, where their columns stand.
        is_near: bool (B, K, w), which are near enough to the frame that shows them to be walked into.
    """

    points: torch.Tensor
    is_near: torch.Tensor

    @staticmethod
    def of_frames(poses: torch.Tensor, depths: torch.Tensor, slopes: torch.Tensor) -> "Walls":
        """Return what K frames show: poses (B, K, 5), depths (B, K, w), slopes (w,), as `locate_columns`."""
        return Walls(locate_columns(poses, depths, slopes), depths < REACH)

    def and_those_of(self, other: "Walls") -> "Walls":
        """Return these and then those of other frames."""
        return Walls(*(torch.cat(pair, 1) for pair in zip(self, other, strict=True)))

    def push_out(
        self,
        before: torch.Tensor,
        after: torch.Tensor,
        is_known: torch.Tensor,
        longest: torch.Tensor,
        share: torch.Tensor,
    ) -> torch.Tensor:
        """Return `push_out` of the walls of the frames that `is_known`, bool (B, K), counts."""
        is_wall = (self.is_near & is_known[..., None]).flatten(1)
        return push_out(before, after, self.points.flatten(1, 2), is_wall, longest, share)


def push_out(
    before: torch.Tensor,
    after: torch.Tensor,
    points: torch.Tensor,
    is_wall: torch.Tensor,
    longest: torch.Tensor,
    share: torch.Tensor,
) -> torch.Tensor:
    """Return the poses after a step, pushed out of walls to a walker's radius.

    Args:
        before: float32 (B, 5), the poses before the step, as `worldmodel.odometry` has them.
        after: float32 (B, 5), the poses after it if there were no walls.
        points: float32 (B, N, 2), cells, of walls.
        is_wall: bool (B, N), which of them count.
        longest: float32 (B,), cells, how far a push can bring one from where the step began; 0 for a step that does not
            walk: it is not pushed.
        share: float32 (B,), from 0 to 1, how much of the push counts.

    Returns:
        float32 (B, 5); all but x and y as they were.
    """
    start, goal = before[:, :2], after[:, :2]
    is_wall = is_wall & (_square_distances(points, start) > INSIDE_RADIUS**2)
    squared = _square_distances(points, goal).masked_fill(~is_wall, NOWHERE**2)
    squared, index = squared.topk(min(NUM_TOUCHED, squared.shape[1]), largest=False)
    touched = points.gather(1, index[..., None].expand(-1, -1, 2))
    is_real = squared < NOWHERE**2

    place, num_nearest = goal, min(NUM_NEAREST, touched.shape[1])
    for _ in range(NUM_PUSHES):
        distance = _square_distances(touched, place).sqrt().masked_fill(~is_real, NOWHERE)
        nearest, index = distance.topk(num_nearest, largest=False)
        away = place - touched.gather(1, index[..., None].expand(-1, -1, 2)).mean(1)
        push = (WALKER_RADIUS - nearest.mean(1)).clamp_min(0)
        place = place + away * (push / away.square().sum(-1).sqrt().clamp_min(1e-3))[:, None]

    gone = place - start
    length, most = gone.norm(dim=-1), torch.maximum(longest, (goal - start).norm(dim=-1))
    place = start + gone * (most / torch.maximum(length, most).clamp_min(1e-6))[:, None]
    place = goal + (share * (longest > 0))[:, None] * (place - goal)
    return torch.cat([place, after[:, 2:]], 1)


def _square_distances(points: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """Return (B, N) of points (B, N, 2) and places (B, 2); sums and differences along an axis of two are slow."""
    x, y = (points[..., i] - place[:, i, None] for i in range(2))
    return x * x + y * y


def is_stood_on(points: torch.Tensor, places: torch.Tensor, is_known: torch.Tensor) -> torch.Tensor:
    """Return which points no wall can have: those within a body's radius of a place one has stood at.

    Args:
        points: float32 (B, T, N, 2), in cells from an origin of their own for each (B, T), not far away: a distance is
            the difference of squares.
        places: float32 (B, T, K, 2), likewise.
        is_known: bool (B or 1, T, K), which places count.

    Returns:
        bool (B, T, N).
    """
    places = torch.where(is_known[..., None], places, NOWHERE)
    row = torch.cat([-2.0 * places, places.square().sum(-1, keepdim=True)], -1)  # (B, T, K, 3)
    column = torch.cat([points, torch.ones_like(points[..., :1])], -1)
    found = []
    for t in range(points.shape[1]):  # one frame at a time: all of a clip at once take gigabytes
        nearest = (column[:, t] @ row[:, t].transpose(1, 2)).amin(-1)
        found.append(nearest + points[:, t].square().sum(-1) < BODY_RADIUS**2)
    return torch.stack(found, 1)
