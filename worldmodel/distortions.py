"""Distortions in latent space: what latents become when their frames are blurred or brightened, without decoding them.

Owns: the linear maps that do it, how they are fitted to a codec, and how strongly each is met in training. Knows no
training step and no data files.

A dream hands on what goes wrong in it: frames made from frames that lost detail lose more of it, and bright ones get
brighter. A denoiser that has met distorted context in training puts it right (`ObjectiveConfig.distort_share`).
"""

from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F

KERNEL = 5  # latent pixels: wider ones explain hardly more
RIDGE = 1e-4
BLUR_SHARE = 0.04  # width of the Gaussian as a share of the frame's
GAIN = 1.3


class Distortion(NamedTuple):
    """One way to distort.

    Attributes:
        name: what to call it.
        distort: pixels float (N, C, H, W) in [-1, 1] to distorted ones.
        least, most: the strengths that training draws from; 1 is `distort`, 0 no change, -1 the opposite change.
    """

    name: str
    distort: Callable[[torch.Tensor], torch.Tensor]
    least: float
    most: float


def blur_pixels(pixels: torch.Tensor, sigma: float | None = None) -> torch.Tensor:
    """Blur pixels (N, C, H, W) by a Gaussian of `sigma` pixels, by default `BLUR_SHARE` of the width."""
    sigma = BLUR_SHARE * pixels.shape[-1] if sigma is None else sigma
    radius = int(3 * sigma) + 1
    steps = torch.arange(-radius, radius + 1, dtype=pixels.dtype, device=pixels.device)
    kernel = torch.exp(-steps.square() / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(pixels.shape[1], 1, 1, -1)
    for pad, part in (((radius, radius, 0, 0), kernel), ((0, 0, radius, radius), kernel.mT)):
        pixels = F.conv2d(F.pad(pixels, pad, mode="replicate"), part, groups=pixels.shape[1])
    return pixels


def brighten_pixels(pixels: torch.Tensor) -> torch.Tensor:
    """Make pixels in [-1, 1] brighter: light times `GAIN`, not clamped."""
    return (pixels + 1) * GAIN - 1


DISTORTIONS = (
    Distortion("blur", blur_pixels, 0.0, 1.25),
    Distortion("gain", brighten_pixels, -1.0, 1.0),
)


class LatentMap(nn.Module):
    """A convolution of latents that stands for a distortion of their frames."""

    def __init__(self, channels: int) -> None:
        """Build the identity; `fit` makes it something else."""
        super().__init__()
        self.convolution = nn.Conv2d(channels, channels, KERNEL, padding=KERNEL // 2, padding_mode="replicate")
        self.requires_grad_(False)
        nn.init.dirac_(self.convolution.weight)
        cast("torch.Tensor", self.convolution.bias).zero_()

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Return the latents (..., C, h, w) of the distorted frames."""
        distorted: torch.Tensor = self.convolution(latents.flatten(0, -4)).reshape(latents.shape)
        return distorted

    @torch.no_grad()
    def fit(self, latents: torch.Tensor, distorted: torch.Tensor) -> float:
        """Set the convolution by least squares.

        Args:
            latents: float (N, C, h, w).
            distorted: float (N, C, h, w), those of the distorted frames.

        Returns:
            the share of the change that it does not explain, on every fourth latent, which the fit does not see.
        """
        radius = KERNEL // 2
        padded = F.pad(latents.double(), (radius,) * 4, mode="replicate")
        columns = rearrange(F.unfold(padded, KERNEL), "n k p -> n p k")
        columns = torch.cat([columns, torch.ones_like(columns[..., :1])], -1)
        wanted = rearrange(distorted.double(), "n c h w -> n (h w) c")
        is_held = torch.arange(len(latents)) % 4 == 3
        x, y = columns[~is_held].flatten(0, 1), wanted[~is_held].flatten(0, 1)
        gram = x.T @ x
        gram += RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        weights = torch.linalg.solve(gram, x.T @ y)
        self.convolution.weight.copy_(weights[:-1].T.reshape(self.convolution.weight.shape))
        cast("torch.Tensor", self.convolution.bias).copy_(weights[-1])
        left = columns[is_held] @ weights - wanted[is_held]
        change = wanted[is_held] - rearrange(latents[is_held].double(), "n c h w -> n (h w) c")
        return float(left.square().mean() / change.square().mean())


class LatentDistortions(nn.Module):
    """All `DISTORTIONS` of the latents of one codec."""

    def __init__(self, channels: int) -> None:
        """Build maps that change nothing; `fit_distortions` gives fitted ones."""
        super().__init__()
        self.maps = nn.ModuleList(LatentMap(channels) for _ in DISTORTIONS)

    def forward(self, latents: torch.Tensor, strengths: torch.Tensor) -> torch.Tensor:
        """Return distorted latents.

        Args:
            latents: float (B, T, C, h, w).
            strengths: float (B, T, number of distortions); 0 is no change.
        """
        changes = [distort(latents).to(latents.dtype) - latents for distort in self.maps]
        factors = strengths.to(latents.dtype)[..., None, None, None].unbind(2)
        return latents + sum(factor * change for factor, change in zip(factors, changes, strict=True))


@torch.no_grad()
def fit_distortions(
    encode: Callable[[torch.Tensor], torch.Tensor],
    decode: Callable[[torch.Tensor], torch.Tensor],
    latents: torch.Tensor,
) -> tuple[LatentDistortions, dict[str, float]]:
    """Fit the distortions of a codec to its latents.

    Args:
        encode, decode: of the codec.
        latents: float (N, C, h, w), a few thousand.

    Returns:
        the distortions, and by name the share of the change that each does not explain.
    """
    made = LatentDistortions(latents.shape[1]).to(latents.device)
    parts: dict[str, list[torch.Tensor]] = {d.name: [] for d in DISTORTIONS}
    for part in latents.split(64):
        pixels = decode(part).float()
        for d in DISTORTIONS:
            parts[d.name].append(encode(d.distort(pixels)).float())
    return made, {
        d.name: cast("LatentMap", fitted).fit(latents, torch.cat(parts[d.name]))
        for d, fitted in zip(DISTORTIONS, made.maps, strict=True)
    }
