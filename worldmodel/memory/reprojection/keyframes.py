"""Keyframes: what is kept of past frames, and which of them.

Owns: the slots, writing a finished frame to one of them, and what is derived from its depth. Knows nothing of what is
read from them later.

Depth is kept inverse, on a grid that may be coarser than the picture: on a plane inverse depth is linear in the
picture, so that a cell with its neighbors gives a plane.
"""

from dataclasses import dataclass, fields

import torch
from torch.nn import functional as F

from worldmodel.errors import ConfigError
from worldmodel.memory.camera import Camera, pixel_rays, view_change
from worldmodel.odometry import POSE_SIZE

COVER = 8  # cells on a side of the grid on which coverage is judged


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

    # True frames come before dreamt ones, else first seen first; an empty slot comes after all.
    is_empty = order < 0
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
