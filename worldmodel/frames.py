"""The only place where uint8 frames become float pixels and back.

Owns: the conversion and its rounding (thirty save/load rounds must not darken a frame). Knows nothing of models.
"""

import torch
from einops import rearrange

from worldmodel.errors import ShapeError


def to_pixels(frames: torch.Tensor) -> torch.Tensor:
    """Convert frames to pixels.

    Args:
        frames: uint8 (..., H, W, 3).

    Returns:
        float32 (..., 3, H, W) in [-1, 1].

    Raises:
        ShapeError: not uint8, or the last axis is not 3.
    """
    if frames.dtype != torch.uint8 or frames.ndim < 3 or frames.shape[-1] != 3:
        raise ShapeError(f"frames must be uint8 (..., H, W, 3); got {frames.dtype} {tuple(frames.shape)}")
    return rearrange(frames, "... h w c -> ... c h w").to(torch.float32) / 127.5 - 1.0


def to_frames(pixels: torch.Tensor) -> torch.Tensor:
    """Convert pixels to frames, rounding to the nearest level and clamping.

    Args:
        pixels: float (..., 3, H, W); values outside [-1, 1] are clamped.

    Returns:
        uint8 (..., H, W, 3).

    Raises:
        ShapeError: not a float tensor, or axis -3 is not 3.
    """
    if not pixels.is_floating_point() or pixels.ndim < 3 or pixels.shape[-3] != 3:
        raise ShapeError(f"pixels must be float (..., 3, H, W); got {pixels.dtype} {tuple(pixels.shape)}")
    scaled = ((pixels.to(torch.float32) + 1.0) * 127.5).round().clamp(0, 255)
    return rearrange(scaled.to(torch.uint8), "... c h w -> ... h w c")
