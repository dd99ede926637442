"""Where the rays of a coming view end: the surfaces that chosen keyframes show of it.

On a plane inverse depth is linear in the picture, so where a ray meets the plane of a cell is found exactly. The cells
of all sources are splatted into a coarse depth buffer of the coming view, each cell of the buffer is looked up in each
source, its ray meets the plane found there, and that is repeated once for every pixel. Of the sources that agree with
the nearest surface the one of least cost (magnified, squeezed, later, beside an edge) is taken.
"""

import math
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from worldmodel.memory.camera import Camera, pixel_rays, view_change
from worldmodel.memory.reprojection.costs import WarpRule, order_ranks
from worldmodel.memory.reprojection.keyframes import Keyframes


@dataclass
class Sources:
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
class Surfaces:
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


def gather_sources(keyframes: Keyframes, poses: torch.Tensor, chosen: torch.Tensor, rule: WarpRule) -> Sources:
    """Return chosen keyframes, slots int64 (B, T, K) or -1, as they lie to views from poses (B, T, 5)."""
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
    return Sources(rows, inverse * is_used[..., None, None], turn, shift, origin, rank, is_here)


def find_surfaces(sources: Sources, camera: Camera, rule: WarpRule, size: int) -> tuple[Surfaces, torch.Tensor]:
    """Return what the likeliest sources show of each pixel, (N, C, size * size), and which they are, n * K + k."""
    inverse = sources.inverse.flatten(2)  # (N, K, g * g)
    cell_rays = pixel_rays(camera, sources.inverse.shape[-1], inverse.device)
    seen = sources.turn @ cell_rays + sources.shift[..., None] * inverse[:, :, None]

    # What the last frame sees through is gone. No plane, no surface: all zero is found nowhere.
    stays = 1 - _is_seen_through(sources, seen, inverse, camera, rule)
    inverse = inverse * stays
    planes = [part.flatten(2) * stays for part in _planes(sources.inverse, camera)]

    # First every source for the cells of the buffer, then the best of them for the pixels.
    buffer = _splat(sources, planes, seen, inverse, camera, rule)  # (N, 1, g * g)
    table = [part.flatten() for part in planes]
    coarse = _meet_cells(table, sources, buffer, camera, rule)
    return _meet_pixels(table, sources, coarse, camera, rule, size)


def _meet_cells(
    table: list[torch.Tensor], sources: Sources, buffer: torch.Tensor, camera: Camera, rule: WarpRule
) -> Surfaces:
    """Return what every source shows of each cell of the coming view, (N, K, g * g).

    Args:
        table: planes, as `_meet` takes them.
        sources: the chosen keyframes.
        buffer: (N, 1, g * g), inverse depths that the cells are guessed to have.
        camera: of all.
        rule: what costs what.
    """
    grid = sources.inverse.shape[-1]
    views, count = sources.rows.shape
    number = torch.arange(views * count, device=buffer.device).view(views, count, 1)

    turned = sources.turn.transpose(-1, -2) @ pixel_rays(camera, grid, buffer.device)
    ahead, left, up = turned.unbind(2)
    x, y, z = sources.origin[..., None].unbind(2)
    rank, is_here = sources.rank[..., None], sources.is_here[..., None]
    rays = _Rays(ahead, left, up, (x, y, z), number * grid**2, rank, is_here)
    return _meet(table, rays, buffer, camera, grid, rule, reach=rule.coarse_reach)


def _meet_pixels(
    table: list[torch.Tensor], sources: Sources, coarse: Surfaces, camera: Camera, rule: WarpRule, size: int
) -> tuple[Surfaces, torch.Tensor]:
    """Return as `find_surfaces`, given what the sources show of the cells that pixels lie in."""
    grid = sources.inverse.shape[-1]
    views, count = sources.rows.shape
    factor = size // grid

    def enlarge(part: torch.Tensor) -> torch.Tensor:
        cells = part.unflatten(-1, (grid, 1, grid, 1))
        return cells.expand(-1, -1, -1, factor, -1, factor).flatten(2)

    best = cheapest_sources(coarse, rule, rule.candidates)  # (N, C, g * g)
    guess = enlarge(coarse.guess.gather(1, best)).clamp(1e-3, 1 / rule.near)
    which = enlarge(best + torch.arange(views, device=best.device)[:, None, None] * count)

    # The ray of each pixel as its own source has it: rows of flat tables.
    flat = which.flatten()
    pixels = torch.arange(size**2, device=best.device)
    turned = (sources.turn.transpose(-1, -2) @ pixel_rays(camera, size, guess.device)).flatten()
    at = (which * (3 * size**2) + pixels).flatten()
    ahead, left, up = (turned.index_select(0, at + i * size**2).view_as(guess) for i in range(3))
    x, y, z = (sources.origin[..., i].flatten().index_select(0, flat).view_as(guess) for i in range(3))
    rank, is_here = (part.flatten().index_select(0, flat).view_as(guess) for part in (sources.rank, sources.is_here))

    rays = _Rays(ahead, left, up, (x, y, z), which * grid**2, rank, is_here)
    return _meet(table, rays, guess, camera, grid, rule, reach=rule.reach), which


def _splat(
    sources: Sources,
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
    sources: Sources, seen: torch.Tensor, inverse: torch.Tensor, camera: Camera, rule: WarpRule
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
    farther = rule.seen_through + (rule.seen_through_here - rule.seen_through) * sources.is_here[..., None]
    deeper = expected - nearest * (farther + 0.05 * expected)
    margin = torch.minimum(torch.minimum(inside, deeper), torch.minimum(20 - expected, nearest))
    return _is_positive(margin)


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


def _meet(
    table: list[torch.Tensor],
    rays: _Rays,
    guess: torch.Tensor,
    camera: Camera,
    grid: int,
    rule: WarpRule,
    reach: float,
) -> Surfaces:
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
    cost = (rule.zoom_cost(zoom) + rule.edge * edge + rule.elsewhere) * (1 - rays.is_here) + rule.later * rays.rank
    is_here = rays.is_here.expand_as(inverse)
    return Surfaces(inverse * _is_positive(margin), inverse, column, row, zoom, cost, is_here)


def cheapest_sources(found: Surfaces, rule: WarpRule, number: int) -> torch.Tensor:
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


def _is_positive(values: torch.Tensor) -> torch.Tensor:
    """Return 1.0 where values are above 0, else 0.0: on a CPU far cheaper than a comparison."""
    return (values * 1e12).clamp(0, 1).ceil()
