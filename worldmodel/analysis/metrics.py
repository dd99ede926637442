"""Measures of pictures: likeness to the truth, sharpness, color, motion.

Owns: pure functions of uint8 frames. Does not know models, episodes, actions or which value is good.
"""

from typing import NamedTuple

import numpy as np
import torch

from worldmodel.errors import ShapeError
from worldmodel.frames import to_pixels

MAX_PSNR = 50.0
_FLOW_SIZE = 128  # optical flow is measured on pictures of about this many pixels a side


class Motion(NamedTuple):
    """How a picture moves from one frame to the next, averaged over the frames of a clip.

    Attributes:
        shift: median horizontal flow, in frame widths a step; positive: the picture moves to the right.
        expansion: relative growth a step (0.07: seven per cent); positive: what is seen comes nearer.
    """

    shift: float
    expansion: float


def squared_error(frames: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Return the mean squared error of each frame, for brightness from 0 to 1.

    Args:
        frames: uint8 (..., H, W, 3).
        truth: uint8, the same shape.

    Returns:
        float32 (...).

    Raises:
        ShapeError: not uint8 frames, or shapes differ.
    """
    if frames.shape != truth.shape:
        raise ShapeError(f"frames and truth must have one shape; got {tuple(frames.shape)} and {tuple(truth.shape)}")
    return (to_pixels(frames) - to_pixels(truth)).square().mean((-3, -2, -1)) / 4.0


def to_psnr(error: torch.Tensor) -> torch.Tensor:
    """Return the PSNR of errors from `squared_error`, dB, at most `MAX_PSNR` (that of equal frames has no limit)."""
    return (-10.0 * torch.log10(error.clamp_min(10.0 ** (-MAX_PSNR / 10.0)))).clamp_max(MAX_PSNR)


def psnr(frames: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Return the PSNR of each frame, dB, at most `MAX_PSNR`; arguments, shapes and errors as `squared_error`."""
    return to_psnr(squared_error(frames, truth))


def ssim(frames: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Return the structural similarity of each frame (11 x 11 Gaussian window, deviation 1.5), 1 for equal frames.

    Args:
        frames: uint8 (..., H, W, 3), H and W at least 11.
        truth: uint8, the same shape.

    Returns:
        float32 (...).

    Raises:
        ShapeError: not uint8 frames, or shapes differ, or frames are smaller than the window.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure  # takes a second to import

    if frames.shape != truth.shape or min(frames.shape[-3:-1]) < 11:
        raise ShapeError(
            f"frames and truth must have one shape of at least 11 x 11 pixels; got {tuple(frames.shape)} and "
            f"{tuple(truth.shape)}"
        )
    ours, theirs = (to_pixels(x.reshape(-1, *x.shape[-3:])) / 2.0 + 0.5 for x in (frames, truth))
    values = structural_similarity_index_measure(ours, theirs, sigma=1.5, reduction="none", data_range=1.0)
    return torch.as_tensor(values).reshape(frames.shape[:-3])


def gradient_energy(frames: torch.Tensor) -> torch.Tensor:
    """Return how sharp each frame is: the mean squared difference of neighboring pixels, for brightness from 0 to 1.

    Args:
        frames: uint8 (..., H, W, 3).

    Returns:
        float32 (...); 0 for a frame of one color.
    """
    pixels = to_pixels(frames) / 2.0
    across, down = pixels.diff(dim=-1), pixels.diff(dim=-2)
    return across.square().mean((-3, -2, -1)) + down.square().mean((-3, -2, -1))


def color_statistics(frames: torch.Tensor) -> torch.Tensor:
    """Return mean and deviation of red, green and blue of each frame, in levels of 0 to 255.

    Args:
        frames: uint8 (..., H, W, 3).

    Returns:
        float32 (..., 6), the three means first.
    """
    levels = (to_pixels(frames) + 1.0) * 127.5
    return torch.cat([levels.mean((-2, -1)), levels.std((-2, -1), correction=0)], -1)


def measure_motion(frames: torch.Tensor) -> Motion:
    """Measure how the picture moves in a clip, by dense optical flow (DIS) from each frame to the next.

    The shift is the median of the horizontal flow. The expansion is e of the least-squares fit
    flow(p) = shift + e * p over all pixels p, weighted by how much texture is near: plain sky and surfaces of one color
    have no flow to measure.

    Args:
        frames: uint8 (T, H, W, 3), T at least 2.

    Raises:
        ShapeError: not a clip of uint8 frames.
    """
    import cv2

    if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or len(frames) < 2:
        raise ShapeError(
            f"a clip must be uint8 (T, H, W, 3) with T at least 2; got {frames.dtype} {tuple(frames.shape)}"
        )

    height, width = frames.shape[1:3]
    scale = max(1, round(_FLOW_SIZE / width))
    size = (width * scale, height * scale)
    grays = [
        cv2.resize(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), size, interpolation=cv2.INTER_CUBIC)
        for frame in frames.cpu().numpy()
    ]

    rows, columns = np.mgrid[: size[1], : size[0]].astype(np.float32)
    estimator = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)

    shifts, expansions = [], []
    for before, after in zip(grays[:-1], grays[1:], strict=True):
        flow = estimator.calc(before, after, np.zeros((*before.shape, 2), np.float32))
        across = cv2.Sobel(before, cv2.CV_32F, 1, 0) / scale
        down = cv2.Sobel(before, cv2.CV_32F, 0, 1) / scale

        weight = np.sqrt(cv2.GaussianBlur(across * across + down * down, (0, 0), 2.0 * scale)) + 1e-3
        weight /= weight.sum()
        x, y = columns - (weight * columns).sum(), rows - (weight * rows).sum()
        shifts.append(float(np.median(flow[..., 0])) / size[0])
        expansions.append(
            float((weight * (x * flow[..., 0] + y * flow[..., 1])).sum() / (weight * (x * x + y * y)).sum())
        )
    return Motion(float(np.mean(shifts)), float(np.mean(expansions)))


def band_energies(frames: torch.Tensor, num_bands: int = 3) -> torch.Tensor:
    """Return how much detail of each size frames have: the mean square of what halving a frame takes from it.

    Args:
        frames: uint8 (..., H, W, 3), H and W divisible by 2 ** num_bands.
        num_bands: the first holds what is lost when a frame is halved, the next what is lost when that is, and so on.

    Returns:
        float32 (..., num_bands), for brightness from 0 to 1; white noise has its most in the first band.

    Raises:
        ShapeError: sides that cannot be halved that often.
    """
    if any(side % 2**num_bands for side in frames.shape[-3:-1]):
        raise ShapeError(f"sides must be divisible by {2**num_bands}; got frames of shape {tuple(frames.shape)}")
    pixels = to_pixels(frames.reshape(-1, *frames.shape[-3:])) / 2.0
    energies = []
    for _ in range(num_bands):
        half = torch.nn.functional.avg_pool2d(pixels, 2)
        energies.append((pixels - torch.nn.functional.interpolate(half, scale_factor=2.0)).square().mean((1, 2, 3)))
        pixels = half
    return torch.stack(energies, -1).reshape(*frames.shape[:-3], num_bands)
