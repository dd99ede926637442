"""Pixel-precise memory: past frames with depth and pose, warped into the view of a coming frame.

Owns: keyframes (what is kept of past frames, and which), the choice of the few that show most of a coming view, and
the warp itself. Knows no network and no world.

Depth is kept inverse, on a grid that may be coarser than the picture: on a plane inverse depth is linear in the
picture, so that a cell with its neighbors gives a plane, and where a ray meets a plane is found exactly. A warp splats
the cells of all sources into a coarse depth buffer of the coming view, looks each buffer cell up in each source, meets
the ray with the plane found there, and repeats that once for every pixel. Of the sources that agree with the nearest
surface the one of least cost (magnified, squeezed, later, beside an edge) is sampled.

What was seen from the very place of the coming view goes before all of that: between such views there is no parallax,
so that they need no depth to be turned into one another, and nothing can stand before what they show.
"""

import math
from dataclasses import dataclass, fields

import torch
from torch.nn import functional as F

from worldmodel.errors import ConfigError
from worldmodel.memory.camera import POSE_SIZE, Camera, pixel_rays, view_change

SAMPLINGS = ("nearest", "linear", "cubic")
COVER = 8  # cells on a side of the grid on which coverage is judged
NEWEST_RANK = 0.6  # cost rank of the oldest true frame; dreamt ones follow up to 1
_CPU_VIEWS = 4  # views warped at once on a CPU: what is worked on stays in its cache


@dataclass
class Keyframes:
    """What is remembered of past frames, a batch of dreams with `M` slots each.

    Attributes:
        pixels: uint8 (B, M, 3, H, W), H = W.
        inverse_depth: float16 (B, M, g, g), 1 / cells along the optical axis; 0 where nothing is known.
        invented: uint8 (B, M, g, g), 0 what was truly seen or copied from it, 255 what a generator made up.
        poses: float32 (B, M, 5).
        points: float32 (B, M, COVER ** 2, 4), a sparse sample of what a frame shows: x, y, z in cells, and its distance
            from the frame's pose (0 where nothing is known).
        is_true: bool (B, M), whether it is of the world itself, not of a dream.
        order: int64 (B, M), the number of the frame; -1 where the slot is empty.
    """

    pixels: torch.Tensor
    inverse_depth: torch.Tensor
    invented: torch.Tensor
    poses: torch.Tensor
    points: torch.Tensor
    is_true: torch.Tensor
    order: torch.Tensor

    @staticmethod
    def empty(
        batch: int, slots: int, size: int, grid: int | None = None, device: torch.device | str | None = None
    ) -> "Keyframes":
        """Return keyframes of which no slot is filled.

        Args:
            batch: dreams.
            slots: frames held of each dream.
            size: height and width of a picture in pixels, a multiple of `grid`.
            grid: cells on a side of the depth grid, a multiple of `COVER`; default half of `size`.
            device: where to make them.

        Raises:
            ConfigError: sizes that do not divide.
        """
        grid = size // 2 if grid is None else grid
        if grid < COVER or grid % COVER or size % grid:
            raise ConfigError(f"depth grid {grid} is not accepted; take a multiple of {COVER} that divides {size}")

        def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.zeros(batch, slots, *shape, dtype=dtype, device=device)

        return Keyframes(
            pixels=zeros(3, size, size, dtype=torch.uint8),
            inverse_depth=zeros(grid, grid, dtype=torch.float16),
            invented=zeros(grid, grid, dtype=torch.uint8),
            poses=zeros(POSE_SIZE),
            points=zeros(COVER**2, 4),
            is_true=zeros(dtype=torch.bool),
            order=zeros(dtype=torch.int64) - 1,
        )

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The parts by name."""
        return {part.name: getattr(self, part.name) for part in fields(self)}

    @property
    def num_bytes(self) -> int:
        """Memory held, in bytes; constant over a dream."""
        return sum(part.nbytes for part in self.tensors.values())

    def clone(self) -> "Keyframes":
        """Return an independent copy."""
        return Keyframes(**{name: part.clone() for name, part in self.tensors.items()})


@dataclass(frozen=True)
class KeepRule:
    """Which frames stay when all slots are full: those that are far in pose from what was seen before them.

    Attributes:
        recent: newest frames that always stay, the one being written among them.
        step: cells that count as much as one `turn`.
        turn: radians that count as much as one `step`.
        same: frames closer than this, in steps, give way even while there are empty slots.
        true_weight: how much more a true frame counts than a dreamt one.
    """

    recent: int = 2
    step: float = 0.25
    turn: float = 0.2
    same: float = 0.02
    true_weight: float = 4.0


@dataclass(frozen=True)
class WarpRule:
    """How sources are weighed and sampled.

    Attributes:
        sampling: "nearest" keeps texture sharp, "linear" and "cubic" (kept between the nearest four pixels) come
            closer in mean.
        whole: share invented from which pixels are taken whole, as with "nearest": what was dreamt is warped from dream
            to dream, and each time it was mixed it would be blurred further.
        later: cost of the latest rank against the first.
        magnified: cost of each doubling of magnification above 0.2.
        squeezed: cost of each doubling of minification.
        edge: cost of a pixel whose neighbor is clearly nearer: its color may be mixed.
        tolerance: share by which inverse depths of one surface may differ.
        near: nearest depth that is seen, cells.
        clearance: what is remembered nearer than this to the coming pose does not count, cells.
        reach: how far from the looked-up cell, in cells of the depth grid, its plane is trusted.
        hole: cost of a pixel that no source shows.
        coarse_reach: the same where the cells of the view are met, before the pixels.
        candidates: sources that are met at every pixel; the rest is met at cells alone.
        same_place: sources seen from within this distance of the coming pose, in cells, go before all others.
        elsewhere: what all others cost more.
        seen_through: how many times as far the last frame must see where a source shows something, for that to be gone.
        seen_through_here: the same of sources of the same place, of which depth says less.
    """

    sampling: str = "cubic"
    whole: float = 0.5
    later: float = 0.6
    magnified: float = 1.5
    squeezed: float = 0.25
    edge: float = 3.0
    tolerance: float = 0.2
    near: float = 0.05
    clearance: float = 0.2
    reach: float = 0.6
    hole: float = 4.0
    coarse_reach: float = 1.5
    candidates: int = 2
    same_place: float = 0.01
    elsewhere: float = 3.0
    seen_through: float = 1.2
    seen_through_here: float = 2.0

    def __post_init__(self) -> None:
        if self.sampling not in SAMPLINGS:
            raise ConfigError(f"unknown sampling {self.sampling!r}; accepted: {', '.join(SAMPLINGS)}")


@dataclass
class Warped:
    """What memory shows of coming frames; every part is float32.

    Attributes:
        pixels: (B, T, 3, H, W) in [-1, 1]; holes are filled smoothly from what is known around them.
        mask: (B, T, 1, H, W), 1 where memory shows something, else 0.
        magnification: (B, T, 1, H, W), log2 of how much larger than in its source a pixel is seen; 0 in holes.
        log_depth: (B, T, 1, H, W), natural logarithm of cells along the optical axis; filled in holes.
        age: (B, T, 1, H, W), log2(1 + frames since the source) / 8; 0 in holes.
        invented: (B, T, 1, H, W) in [0, 1], the share that a generator made up; 0 in holes.
    """

    pixels: torch.Tensor
    mask: torch.Tensor
    magnification: torch.Tensor
    log_depth: torch.Tensor
    age: torch.Tensor
    invented: torch.Tensor


def pool_inverse_depth(depth: torch.Tensor, grid: int) -> torch.Tensor:
    """Return depth maps as inverse depth on a coarser grid.

    A cell that one surface fills gets the mean, which is exact for planes; one across an edge gets the pixel next to
    its middle, as a mean would be a surface that is nowhere.

    Args:
        depth: float (..., S, S), cells; `grid` divides S.
        grid: cells on a side.

    Returns:
        float32 (..., grid, grid).
    """
    inverse = depth.float().clamp_min(1e-3).reciprocal()
    factor = inverse.shape[-1] // grid
    if factor == 1:
        return inverse
    cells = inverse.unflatten(-1, (grid, factor)).unflatten(-3, (grid, factor))
    mean = cells.mean((-3, -1))
    is_edge = cells.amax((-3, -1)) - cells.amin((-3, -1)) > 0.1 * mean
    return torch.where(is_edge, cells[..., factor // 2, :, factor // 2], mean)


def smooth_inverse_depth(inverse: torch.Tensor) -> torch.Tensor:
    """Return the median of each 3 x 3 neighborhood of (..., g, g): specks go, edges stay."""
    padded = F.pad(inverse.flatten(0, -3)[:, None], (1, 1, 1, 1), mode="replicate")
    size = inverse.shape[-1]
    shifted = [padded[:, 0, r : r + size, c : c + size] for r in range(3) for c in range(3)]
    return torch.stack(shifted).median(0).values.view_as(inverse)


def write(
    keyframes: Keyframes,
    camera: Camera,
    pixels: torch.Tensor,
    inverse_depth: torch.Tensor,
    invented: torch.Tensor,
    poses: torch.Tensor,
    is_true: torch.Tensor,
    rule: KeepRule | None = None,
) -> None:
    """Put a finished frame of each dream into `keyframes`, whose tensors are changed in place.

    The frame takes the slot of the frame that adds least: each frame's worth is its distance in pose from the nearest
    one that comes before it (true ones before dreamt ones, else first seen first). The newest frames stay whatever they
    add. The cost does not depend on how many frames have been written.

    Args:
        keyframes: B dreams.
        camera: what the frames are seen with.
        pixels: uint8 (B, 3, H, W).
        inverse_depth: float (B, g, g), 0 where unknown.
        invented: uint8 (B, g, g).
        poses: float32 (B, 5).
        is_true: bool (B,).
        rule: which frames stay.
    """
    rule = rule or KeepRule()
    batch, slots = keyframes.order.shape
    newest = keyframes.order.amax(1)
    slot = _least_useful(keyframes, newest, rule)
    rows = torch.arange(batch, device=slot.device) * slots + slot
    new = {
        "pixels": pixels,
        "inverse_depth": inverse_depth,
        "invented": invented,
        "poses": poses,
        "points": sample_points(inverse_depth, poses, camera),
        "is_true": is_true,
        "order": newest + 1,
    }
    for name, part in keyframes.tensors.items():
        part.flatten(0, 1).index_copy_(0, rows, new[name].to(part.dtype))


def _least_useful(keyframes: Keyframes, newest: torch.Tensor, rule: KeepRule) -> torch.Tensor:
    """Return the slot to write to, int64 (B,)."""
    poses, order = keyframes.poses, keyframes.order
    yaw, pitch = poses[..., 3:4], poses[..., 4:5]
    ahead = torch.cat([pitch.cos() * yaw.cos(), pitch.cos() * yaw.sin(), pitch.sin()], -1)
    features = torch.cat([poses[..., :3] / rule.step, ahead / rule.turn], -1)
    distance = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")  # (B, M, M)
    is_empty = order < 0
    # True frames come before dreamt ones, else first seen first; an empty slot comes after all.
    last = torch.iinfo(torch.int64).max
    rank = (order + (~keyframes.is_true).long() * 2**40).masked_fill(is_empty, last)
    is_before = rank[:, None, :] < rank[:, :, None]
    worth = distance.masked_fill(~is_before, 1e3).amin(2)
    worth = worth * (1 + (rule.true_weight - 1) * keyframes.is_true)
    is_recent = ~is_empty & (order > newest[:, None] + 1 - rule.recent)  # beside the one that comes
    worth = worth.masked_fill(is_empty, rule.same).masked_fill(is_recent, 1e6)
    return worth.argmin(1)


def sample_points(inverse_depth: torch.Tensor, poses: torch.Tensor, camera: Camera) -> torch.Tensor:
    """Return `Keyframes.points`, float32 (B, COVER ** 2, 4), of frames."""
    step = inverse_depth.shape[-1] // COVER
    # A pixel of each block, not its mean, which may be a surface that is nowhere.
    inverse = inverse_depth.float()[..., step // 2 :: step, step // 2 :: step].flatten(-2)
    rays = pixel_rays(camera, inverse_depth.shape[-1], inverse.device).unflatten(-1, inverse_depth.shape[-2:])
    rays = rays[:, step // 2 :: step, step // 2 :: step].flatten(1)
    turn, _ = view_change(poses, torch.zeros_like(poses))
    ahead = (turn @ rays).transpose(-1, -2) / inverse.clamp_min(1e-3)[..., None]
    distance = ahead.square().sum(-1, keepdim=True).sqrt() * (inverse[..., None] > 0)
    return torch.cat([ahead + poses[:, None, :3], distance], -1)


def order_ranks(keyframes: Keyframes) -> torch.Tensor:
    """Return the cost rank of each slot in [0, 1], float32 (B, M).

    The newest true frame has 0, the oldest `NEWEST_RANK`; dreamt frames follow, the first dreamt first, as each dreamt
    after another is a copy of a copy.
    """
    order = keyframes.order.float()
    is_held = keyframes.order >= 0
    is_true = is_held & keyframes.is_true
    newest_true = order.masked_fill(~is_true, -1).amax(1, keepdim=True)
    newest = order.amax(1, keepdim=True)
    of_true = (newest_true - order) / (newest_true + 1).clamp_min(1) * NEWEST_RANK
    of_dreamt = NEWEST_RANK + (1 - NEWEST_RANK) * (order - newest_true) / (newest - newest_true).clamp_min(1)
    return torch.where(is_true, of_true, of_dreamt).clamp(0, 1)


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
    cost = rule.magnified * (zoom - 0.2).clamp_min(0) + rule.squeezed * (-zoom).clamp_min(0)
    is_here = _is_here(keyframes, poses, rule)[..., None]  # (B, T, M, 1)
    cost = (cost.unflatten(-1, (slots, num_points)) + rule.elsewhere) * ~is_here
    cost = cost + rule.later * order_ranks(keyframes)[:, None, :, None]
    # Hidden behind what another slot shows in the same cell: not shown.
    inverse = inverse.unflatten(-1, (slots, num_points)) * usable
    cells = (COVER + 2) ** 2
    front = inverse.new_zeros(batch, length, cells).scatter_reduce(2, place.flatten(2), inverse.flatten(2), "amax")
    is_hidden = inverse < 0.8 * front.gather(2, place.flatten(2)).view_as(inverse) - 0.004
    cost = cost + 1e3 * ((is_hidden & ~is_here) | ~usable)
    grid = cost.new_full((batch, length, slots, cells), 1e3).scatter_reduce(3, place, cost, "amin")
    return grid.unflatten(-1, (COVER + 2, COVER + 2))[..., 1:-1, 1:-1].flatten(-2)


def _is_here(keyframes: Keyframes, poses: torch.Tensor, rule: WarpRule) -> torch.Tensor:
    """Return which slots were seen from the place of coming views, bool (B, T, M)."""
    apart = keyframes.poses[:, None, :, :3] - poses[:, :, None, :3]
    return apart.square().sum(-1) < rule.same_place**2


def warp(
    keyframes: Keyframes,
    camera: Camera,
    poses: torch.Tensor,
    chosen: torch.Tensor,
    rule: WarpRule | None = None,
    now: torch.Tensor | None = None,
) -> Warped:
    """Return what chosen keyframes show from coming poses.

    Args:
        keyframes: B dreams.
        camera: what is seen with.
        poses: float32 (B, T, 5).
        chosen: int64 (B, T, K), slots, the last frame first; -1: none. K at most 8.
        rule: how sources are weighed and sampled.
        now: int64 (B, T), numbers of the coming frames, for `Warped.age`; None: all come after the newest one.

    Returns:
        the warp.
    """
    rule = rule or WarpRule()
    batch, length, _ = chosen.shape
    if now is None:
        now = (keyframes.order.amax(1) + 1)[:, None].expand(batch, length)
    sources, times = _gather_sources(keyframes, poses, chosen, rule), now.flatten()
    views = batch * length
    step = _CPU_VIEWS if poses.device.type == "cpu" else views
    shown = []
    for start in range(0, views, step):
        part = _Sources(*(getattr(sources, field.name)[start : start + step] for field in fields(sources)))
        found, which = _find_surfaces(part, camera, rule, keyframes.pixels.shape[-1])
        shown.append(_compose(keyframes, part, found, which, rule, times[start : start + step]))
    together = torch.cat(shown).unflatten(0, (batch, length))
    pixels, *others = together.split([3, 1, 1, 1, 1, 1], 2)
    return Warped(pixels, *others)


@dataclass
class _Sources:
    """Chosen keyframes, N = B * T views with K sources each.

    Attributes:
        rows: int64 (N, K), b * M + slot.
        inverse: float32 (N, K, g, g); 0 where there is no source.
        turn: (N, K, 3, 3) and `shift` (N, K, 3): from source to target.
        origin: (N, K, 3): where the target is seen from the source.
        rank: (N, K), cost rank.
        is_here: (N, K), 1 where it was seen from the place of the target, else 0.
    """

    rows: torch.Tensor
    inverse: torch.Tensor
    turn: torch.Tensor
    shift: torch.Tensor
    origin: torch.Tensor
    rank: torch.Tensor
    is_here: torch.Tensor


@dataclass
class _Rays:
    """Rays of target pixels in the views of sources; parts of any shapes that broadcast.

    Attributes:
        ahead: of the ray, as `left` and `up`.
        origin: ahead, left, up: where the target is.
        base: int64, first row of the source in a table of all cells of all sources.
        rank: cost rank of the source.
        is_here: 1 where the source was seen from the place of the target, else 0.
    """

    ahead: torch.Tensor
    left: torch.Tensor
    up: torch.Tensor
    origin: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    base: torch.Tensor
    rank: torch.Tensor
    is_here: torch.Tensor


@dataclass
class _Surfaces:
    """What a source shows along a ray.

    Attributes:
        inverse: inverse depth from the target; 0 where the source shows nothing.
        guess: the same without that test.
        column: in the source's picture as a share of its width.
        row: of its height.
        zoom: log2 of the magnification.
        cost: of using the source.
        is_here: 1 where the source was seen from the place of the target, else 0.
    """

    inverse: torch.Tensor
    guess: torch.Tensor
    column: torch.Tensor
    row: torch.Tensor
    zoom: torch.Tensor
    cost: torch.Tensor
    is_here: torch.Tensor


def _gather_sources(keyframes: Keyframes, poses: torch.Tensor, chosen: torch.Tensor, rule: WarpRule) -> _Sources:
    batch, slots = keyframes.order.shape
    start = torch.arange(batch, device=chosen.device)[:, None, None] * slots
    rows = (start + chosen.clamp_min(0)).flatten(0, 1)
    flat = rows.flatten()
    is_used = (chosen >= 0).flatten(0, 1)
    inverse = keyframes.inverse_depth.flatten(0, 1).index_select(0, flat).float().unflatten(0, rows.shape)
    source = keyframes.poses.flatten(0, 1).index_select(0, flat).unflatten(0, rows.shape)
    turn, shift = view_change(source, poses.flatten(0, 1)[:, None])
    origin = -(turn.transpose(-1, -2) @ shift[..., None])[..., 0]
    rank = order_ranks(keyframes).flatten().index_select(0, flat).unflatten(0, rows.shape)
    is_here = _is_positive(rule.same_place**2 - origin.square().sum(-1))
    return _Sources(rows, inverse * is_used[..., None, None], turn, shift, origin, rank, is_here)


def _is_positive(values: torch.Tensor) -> torch.Tensor:
    """Return 1.0 where values are above 0, else 0.0: on a CPU far cheaper than a comparison."""
    return (values * 1e12).clamp(0, 1).ceil()


def _planes(inverse: torch.Tensor, camera: Camera) -> list[torch.Tensor]:
    """Return the plane of each cell of depth grids, four of float32 (N, K, g, g).

    The first three are n with n . point = 1 on the plane; the last is 1 on the far side of an edge, else 0.
    """
    size = inverse.shape[-1]
    slopes = camera.tangent * (1 - (2 * torch.arange(size, dtype=torch.float32, device=inverse.device) + 1) / size)
    across, down = inverse.diff(dim=-1), inverse.diff(dim=-2)
    before, after = torch.cat([across[..., :1], across], -1), torch.cat([across, across[..., -1:]], -1)
    above, below = torch.cat([down[..., :1, :], down], -2), torch.cat([down, down[..., -1:, :]], -2)
    # Of the two neighbors in a direction the one on the same surface is the one that differs less.
    per_slope = -size / (2 * camera.tangent)
    to_left = per_slope * (after + _is_positive(after.abs() - before.abs()) * (before - after))
    to_up = per_slope * (below + _is_positive(below.abs() - above.abs()) * (above - below))
    ahead = inverse - to_left * slopes - to_up * slopes[:, None]
    rise = torch.maximum(torch.maximum(after, -before), torch.maximum(below, -above))
    return [ahead, to_left, to_up, _is_positive(rise - 0.1)]


def _find_surfaces(sources: _Sources, camera: Camera, rule: WarpRule, size: int) -> tuple[_Surfaces, torch.Tensor]:
    """Return what the likeliest sources show of each pixel, (N, C, size * size), and which they are, n * K + k."""
    grid = sources.inverse.shape[-1]
    views, count = sources.rows.shape
    planes = _planes(sources.inverse, camera)
    inverse = sources.inverse.flatten(2)  # (N, K, g * g)
    cell_rays = pixel_rays(camera, grid, inverse.device)
    seen = sources.turn @ cell_rays + sources.shift[..., None] * inverse[:, :, None]
    # What the last frame sees through is gone. No plane, no surface: all zero is found nowhere.
    stays = 1 - _is_seen_through(sources, seen, inverse, camera, rule)
    inverse = inverse * stays
    planes = [part.flatten(2) * stays for part in planes]
    buffer = _splat(sources, planes, seen, inverse, camera, rule)  # (N, 1, g * g)
    table = [part.flatten() for part in planes]
    # First every source for the cells of the buffer, then the best of them for the pixels.
    back = sources.turn.transpose(-1, -2)
    number = torch.arange(views * count, device=inverse.device).view(views, count, 1)
    ahead, left, up = (back @ cell_rays).unbind(2)
    x, y, z = sources.origin[..., None].unbind(2)
    rays = _Rays(ahead, left, up, (x, y, z), number * grid**2, sources.rank[..., None], sources.is_here[..., None])
    coarse = _meet(table, rays, buffer, camera, grid, rule, reach=rule.coarse_reach)
    best = _cheapest(coarse, rule, rule.candidates)  # (N, C, g * g)
    factor = size // grid

    def enlarge(part: torch.Tensor) -> torch.Tensor:
        cells = part.unflatten(-1, (grid, 1, grid, 1))
        return cells.expand(-1, -1, -1, factor, -1, factor).flatten(2)

    guess = enlarge(coarse.guess.gather(1, best)).clamp(1e-3, 1 / rule.near)
    which = enlarge(best + torch.arange(views, device=best.device)[:, None, None] * count)
    flat = which.flatten()
    pixels = torch.arange(size**2, device=best.device)
    turned = (back @ pixel_rays(camera, size, inverse.device)).flatten()
    at = (which * (3 * size**2) + pixels).flatten()
    ahead, left, up = (turned.index_select(0, at + i * size**2).view_as(guess) for i in range(3))
    x, y, z = (sources.origin[..., i].flatten().index_select(0, flat).view_as(guess) for i in range(3))
    rank, is_here = (part.flatten().index_select(0, flat).view_as(guess) for part in (sources.rank, sources.is_here))
    rays = _Rays(ahead, left, up, (x, y, z), which * grid**2, rank, is_here)
    return _meet(table, rays, guess, camera, grid, rule, reach=rule.reach), which


def _cheapest(found: _Surfaces, rule: WarpRule, number: int) -> torch.Tensor:
    """Return the `number` sources of least cost among those at the front, int64 (N, number, P), of (N, K, P)."""
    count = found.inverse.shape[1]
    front = found.inverse.amax(1, keepdim=True)
    is_behind = _is_positive((front * (1 - rule.tolerance) - 0.004).clamp_min(1e-6) - found.inverse)
    # Nothing stands before what was seen from here; but where it shows nothing, others do.
    is_hidden = torch.minimum(is_behind, (1 - found.is_here) + (1 - _is_positive(found.inverse)))
    # Cost and source in one number, as a minimum is much cheaper than where it is.
    numbers = torch.arange(count, device=front.device, dtype=torch.float32)[:, None]
    key = (found.cost.clamp(0, 1e3) * 256).floor() * 8 + numbers + is_hidden * 2.0**20
    chosen = []
    for _ in range(number):
        least = key.amin(1, keepdim=True)
        chosen.append(torch.remainder(least, 8))
        key = key + (1 + least - key).clamp_min(0) * 2.0**21
    return torch.cat(chosen, 1).long()


def _splat(
    sources: _Sources,
    planes: list[torch.Tensor],
    seen: torch.Tensor,
    inverse: torch.Tensor,
    camera: Camera,
    rule: WarpRule,
) -> torch.Tensor:
    """Return the largest inverse depth of each cell of the coming view, float32 (N, 1, g * g); 0: nothing known."""
    size = sources.inverse.shape[-1]
    ahead = seen[:, :, 0].clamp_min(1e-6)
    found = inverse / ahead
    x, y, z = sources.origin[..., None].unbind(2)
    facing = 1 - (planes[0] * x + planes[1] * y + planes[2] * z)
    margin = torch.minimum(
        torch.minimum(facing - 1e-3, seen[:, :, 0] - 1e-6), 1 / max(rule.near, 0.7 * rule.clearance) - found
    )
    places = ((1 - seen[:, :, 1:] / (ahead[:, :, None] * camera.tangent)) * (size / 2) - 0.5).floor()
    places = places.clamp(-2, size) + 2
    width = size + 4  # two cells on each side take what falls beside the view
    place = (places[:, :, 1] * width + places[:, :, 0]).long().flatten(1)
    place = torch.cat([place, place + 1, place + width, place + width + 1], 1)
    value = (found * _is_positive(margin)).flatten(1).repeat(1, 4)
    buffer = value.new_zeros(len(value), width * width).scatter_reduce(1, place, value, "amax")
    buffer = buffer.view(-1, 1, width, width)[..., 2:-2, 2:-2]
    # Between the splats of a magnified surface what is behind it shows through: close such gaps.
    buffer = -F.max_pool2d(-F.max_pool2d(buffer, 5, 1, 2), 5, 1, 2)
    return buffer.flatten(2)


def _is_seen_through(
    sources: _Sources, seen: torch.Tensor, inverse: torch.Tensor, camera: Camera, rule: WarpRule
) -> torch.Tensor:
    """Return where the last frame, the first source, sees through what the others show: it is not there any more.

    Args:
        sources: the chosen keyframes.
        seen: (N, K, 3, g * g), points of cells in the target's view, times inverse depth.
        inverse: (N, K, g * g).
        camera: of all.
        rule: how much farther it must see.

    Returns:
        float32 (N, K, g * g), 1 or 0.
    """
    size = sources.inverse.shape[-1]
    back = sources.turn[:, :1].transpose(-1, -2)
    points = back @ seen + sources.origin[:, :1, :, None] * inverse[:, :, None]
    ahead = points[:, :, 0].clamp_min(1e-4)
    per = -0.5 * size / camera.tangent / ahead
    column, row = points[:, :, 1] * per + size / 2, points[:, :, 2] * per + size / 2
    expected = inverse / ahead
    # The nearest of what it sees about there, as edges may be a little off.
    nearest = F.max_pool2d(sources.inverse[:, :1], 3, 1, 1).flatten(1)
    cell = (row.floor().clamp(0, size - 1) * size + column.floor().clamp(0, size - 1)).long()
    nearest = nearest.gather(1, cell.flatten(1)).view_as(expected)
    inside = torch.minimum(torch.minimum(column, size - column), torch.minimum(row, size - row)) - 1
    farther = torch.lerp(
        torch.full_like(sources.is_here, rule.seen_through),
        torch.full_like(sources.is_here, rule.seen_through_here),
        sources.is_here,
    )
    deeper = expected - nearest * (farther[..., None] + 0.05 * expected)
    margin = torch.minimum(torch.minimum(inside, deeper), torch.minimum(20 - expected, nearest))
    return _is_positive(margin)


def _meet(
    table: list[torch.Tensor],
    rays: _Rays,
    guess: torch.Tensor,
    camera: Camera,
    grid: int,
    rule: WarpRule,
    reach: float,
) -> _Surfaces:
    """Meet rays with the planes that sources show where the rays are guessed to end.

    Args:
        table: planes, four of (N * K * grid * grid,).
        rays: of the target in the views of sources.
        guess: inverse depths from the target.
        camera: of both.
        grid: cells on a side of a depth grid.
        rule: what costs what.
        reach: as `WarpRule.reach`.
    """
    x, y, z = rays.origin

    def place(inverse: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        ahead = rays.ahead + x * inverse
        per = -0.5 / camera.tangent / ahead.clamp_min(1e-4)
        return (rays.left + y * inverse) * per + 0.5, (rays.up + z * inverse) * per + 0.5, ahead

    column, row, _ = place(guess)
    cell_column, cell_row = ((part * grid).floor().clamp(0, grid - 1) for part in (column, row))
    cell = (cell_row * grid + cell_column).long() + rays.base
    # A plane is n with n . point = 1.
    flat = cell.flatten()
    ahead, left, up, edge = (part.index_select(0, flat).view_as(cell) for part in table)
    facing = 1 - (ahead * x + left * y + up * z)
    inverse = (ahead * rays.ahead + left * rays.left + up * rays.up) / facing.clamp_min(1e-4)
    column, row, scale = place(inverse)
    off = torch.maximum((column * grid - 0.5 - cell_column).abs(), (row * grid - 0.5 - cell_row).abs())
    square = rays.ahead.square() + rays.left.square() + rays.up.square()
    # Shown where all of these are above 0.
    centered = 0.5 - torch.maximum((column - 0.5).abs(), (row - 0.5).abs())
    forward = torch.minimum(torch.minimum(facing, scale), inverse) - 1e-3
    clear = square - inverse.square() * max(rule.clearance, rule.near) ** 2
    margin = torch.minimum(torch.minimum(reach - off, centered), torch.minimum(forward, clear))
    wide, area = scale.clamp_min(1e-3).log2(), facing.clamp_min(1e-3).log2()
    zoom = torch.minimum(torch.maximum(wide, area + 2 * wide), 0.5 * area + 1.5 * wide + math.log2(2.5))
    cost = rule.magnified * (zoom - 0.2).clamp_min(0) + rule.squeezed * (-zoom).clamp_min(0) + rule.edge * edge
    cost = (cost + rule.elsewhere) * (1 - rays.is_here) + rule.later * rays.rank
    is_here = rays.is_here.expand_as(inverse)
    return _Surfaces(inverse * _is_positive(margin), inverse, column, row, zoom, cost, is_here)


def _compose(
    keyframes: Keyframes,
    sources: _Sources,
    found: _Surfaces,
    which: torch.Tensor,
    rule: WarpRule,
    now: torch.Tensor,
) -> torch.Tensor:
    """Return the parts of `Warped` in their order on the channels, float32 (N, 8, H, W)."""
    views, _, pixels = found.inverse.shape
    size, grid = keyframes.pixels.shape[-1], sources.inverse.shape[-1]
    best = _cheapest(found, rule, 1)

    def pick(part: torch.Tensor) -> torch.Tensor:
        return part.gather(1, best)[:, 0]

    inverse, column, row, zoom = (pick(part) for part in (found.inverse, found.column, found.row, found.zoom))
    mask = inverse.sign()
    held = sources.rows.flatten().index_select(0, pick(which).flatten()).view(views, pixels)
    cell = (row * grid).long().clamp(0, grid - 1) * grid + (column * grid).long().clamp(0, grid - 1)
    invented = keyframes.invented.flatten().index_select(0, (held * grid**2 + cell).flatten()).view_as(mask) / 255
    is_whole = (invented >= rule.whole).float()
    column, row = (torch.lerp(part, ((part * size).floor() + 0.5) / size, is_whole) for part in (column, row))
    colors = _sample(keyframes.pixels, held, column, row, rule.sampling)  # (N, 3, P)
    order = keyframes.order.flatten().index_select(0, held.flatten()).view_as(mask)
    age = (now[:, None] - order).clamp_min(0).float().add(1).log2() / 8
    known = torch.cat([colors / 127.5 - 1, -inverse.clamp_min(1e-3).log()[:, None]], 1).unflatten(-1, (size, size))
    flags = (torch.stack([torch.ones_like(zoom), zoom, age, invented], 1) * mask[:, None]).unflatten(-1, (size, size))
    filled = fill_holes(known, flags[:, :1])
    return torch.cat([filled[:, :3], flags[:, :2], filled[:, 3:], flags[:, 2:]], 1)


def _sample(
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
