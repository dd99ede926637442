"""Distances of frames by the features of a pretrained network: perceptual, frame by frame, and Frechet, set by set.

Owns the two distances. Knows no network: features come from outside.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch.nn import functional as F

from worldmodel.errors import ShapeError


class FrameFeatures(NamedTuple):
    """What a pretrained network says of n frames.

    Attributes:
        stages: float32 (n, C_i, h_i, w_i) each, intermediate maps for the perceptual distance.
        pooled: float32 (n, D), one vector a frame for the Frechet distance.
    """

    stages: list[torch.Tensor]
    pooled: torch.Tensor


Ruler = Callable[[torch.Tensor], FrameFeatures]
"""Frames uint8 (n, H, W, 3) to their features."""


def perceptual_distance(ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return how far apart frames are to the eye of a network, float32 (n,); 0 for equal frames, at most 4.

    Channels are scaled to unit length at each place; the squared distance is averaged over places and then over stages.
    This is LPIPS-like and is not LPIPS: no weight was fitted to people's judgments, so compare its values with one
    another only.

    Args:
        ours: maps float (n, C_i, h_i, w_i), one a stage.
        theirs: the same for the other frames.

    Source: the unweighted form of Zhang et al. 2018 (arXiv:1801.03924), eq. 1.
    """
    apart = [
        (F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(1).mean((1, 2))
        for a, b in zip(ours, theirs, strict=True)
    ]
    return torch.stack(apart).mean(0)


def random_projection(features: int, dims: int, seed: int = 0) -> torch.Tensor:
    """Return a fixed random projection float64 (features, dims): orthogonal, scaled so that it keeps the mean square.

    Not the principal components of real frames: those would be blind to what a decaying dream adds to them.
    """
    generator = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(features, dims, generator=generator, dtype=torch.float64))
    return basis * (features / dims) ** 0.5


def _root(matrix: torch.Tensor) -> torch.Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T


def gaussian_distance(
    mean_a: torch.Tensor, covariance_a: torch.Tensor, mean_b: torch.Tensor, covariance_b: torch.Tensor
) -> float:
    """Return the squared Frechet (2-Wasserstein) distance of two Gaussians: means (D,), covariances (D, D), float64.

    Source: Dowson and Landau 1982: |m_a - m_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2).
    """
    root = _root(covariance_a)
    cross = torch.linalg.eigvalsh(root @ covariance_b @ root).clamp_min(0).sqrt().sum()
    apart = (mean_a - mean_b).square().sum()
    return max(0.0, float(apart + covariance_a.trace() + covariance_b.trace() - 2 * cross))


def frechet_distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Return the squared Frechet distance between Gaussians fitted to two samples.

    It is biased upwards for small samples, roughly in proportion to dimension over sample size: state both, and compare
    equal sizes only.

    Args:
        ours: float (n, D), n at least 2.
        theirs: float (m, D), m at least 2.

    Raises:
        ShapeError: fewer than two vectors, or another dimension.
    """
    if ours.ndim != 2 or theirs.ndim != 2 or ours.shape[1] != theirs.shape[1] or min(len(ours), len(theirs)) < 2:
        raise ShapeError(
            f"a Frechet distance takes two samples (n, D) of at least two vectors; got {tuple(ours.shape)} and "
            f"{tuple(theirs.shape)}"
        )
    a, b = ours.double(), theirs.double()
    return gaussian_distance(a.mean(0), a.T.cov(), b.mean(0), b.T.cov())
