"""The warp: what chosen keyframes show from a coming pose, pixel by pixel."""

from dataclasses import dataclass, fields

import torch

from worldmodel.memory.camera import Camera
from worldmodel.memory.reprojection.costs import WarpRule
from worldmodel.memory.reprojection.keyframes import Keyframes
from worldmodel.memory.reprojection.sampling import fill_holes, sample_pixels
from worldmodel.memory.reprojection.surfaces import (
    Sources,
    Surfaces,
    cheapest_sources,
    find_surfaces,
    gather_sources,
)

_CPU_VIEWS = 4  # views warped at once on a CPU: what is worked on stays in its cache


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

    sources, times = gather_sources(keyframes, poses, chosen, rule), now.flatten()
    views = batch * length
    step = _CPU_VIEWS if poses.device.type == "cpu" else views

    shown = []
    for start in range(0, views, step):
        part = Sources(*(getattr(sources, field.name)[start : start + step] for field in fields(sources)))
        found, which = find_surfaces(part, camera, rule, keyframes.pixels.shape[-1])
        shown.append(_compose(keyframes, part, found, which, rule, times[start : start + step]))

    together = torch.cat(shown).unflatten(0, (batch, length))
    pixels, *others = together.split([3, 1, 1, 1, 1, 1], 2)
    return Warped(pixels, *others)


def _compose(
    keyframes: Keyframes,
    sources: Sources,
    found: Surfaces,
    which: torch.Tensor,
    rule: WarpRule,
    now: torch.Tensor,
) -> torch.Tensor:
    """Return the parts of `Warped` in their order on the channels, float32 (N, 8, H, W)."""
    views, _, pixels = found.inverse.shape
    size, grid = keyframes.pixels.shape[-1], sources.inverse.shape[-1]
    best = cheapest_sources(found, rule, 1)

    def pick(part: torch.Tensor) -> torch.Tensor:
        return part.gather(1, best)[:, 0]

    inverse, column, row, zoom = (pick(part) for part in (found.inverse, found.column, found.row, found.zoom))
    mask = inverse.sign()
    held = sources.rows.flatten().index_select(0, pick(which).flatten()).view(views, pixels)

    cell = (row * grid).long().clamp(0, grid - 1) * grid + (column * grid).long().clamp(0, grid - 1)
    invented = (
        keyframes.invented.flatten().index_select(0, (held * grid**2 + cell).flatten()).view_as(mask).float() / 255
    )

    is_whole = (invented >= rule.whole).float()
    column, row = (torch.lerp(part, ((part * size).floor() + 0.5) / size, is_whole) for part in (column, row))
    colors = sample_pixels(keyframes.pixels, held, column, row, rule.sampling)  # (N, 3, P)

    order = keyframes.order.flatten().index_select(0, held.flatten()).view_as(mask)
    age = (now[:, None] - order).clamp_min(0).float().add(1).log2() / 8

    known = torch.cat([colors / 127.5 - 1, -inverse.clamp_min(1e-3).log()[:, None]], 1).unflatten(-1, (size, size))
    flags = (torch.stack([torch.ones_like(zoom), zoom, age, invented], 1) * mask[:, None]).unflatten(-1, (size, size))

    filled = fill_holes(known, flags[:, :1])
    return torch.cat([filled[:, :3], flags[:, :2], filled[:, 3:], flags[:, 2:]], 1)
