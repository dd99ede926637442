"""A picture warped from memory as one tensor on the grid of the latents: what a denoiser and a decoder are told of it.

Owns: the channels and their order, and the small network that makes features of them. Knows no denoiser, no codec and
no keyframes.

A square of 8 x 8 pixels is one place of the grid. Its channels are its pixels' colors (zero where nothing is
remembered) and mask, and of the square as a whole how much its remembered pixels are magnified (log2), how far away
they are (log), how old their sources are, and how much of them a generator once made up. All zeros: nothing remembered.
"""

from typing import NamedTuple, cast

import torch
from torch import nn
from torch.nn import functional as F

FOLD = 8  # pixels on a side of a square
NUM_COLORS = 3 * FOLD**2
NUM_PIXELS = 4 * FOLD**2  # colors and mask
NUM_FACTS = 4  # magnification, depth, age, share invented
NUM_FOLDED = NUM_PIXELS + NUM_FACTS


class Unfolded(NamedTuple):
    """A folded picture, pixel by pixel.

    Attributes:
        pixels: (N, 3, H, W) in [-1, 1], 0 where nothing is remembered.
        mask: (N, 1, H, W), 1 where something is remembered, else 0.
        facts: (N, `NUM_FACTS`, H / 8, W / 8), of whole squares.
    """

    pixels: torch.Tensor
    mask: torch.Tensor
    facts: torch.Tensor


def fold(pixels: torch.Tensor, mask: torch.Tensor, facts: torch.Tensor) -> torch.Tensor:
    """Return a folded picture, float (N, `NUM_FOLDED`, H / 8, W / 8).

    Args:
        pixels: float (N, 3, H, W) in [-1, 1]; what lies in holes does not count.
        mask: float (N, 1, H, W), 1 or 0.
        facts: float (N, `NUM_FACTS`, H, W), pixel by pixel; the mean over the remembered pixels of a square is kept.
    """
    share = F.avg_pool2d(mask, FOLD).clamp_min(1e-3)
    squares = F.avg_pool2d(facts * mask, FOLD) / share
    return torch.cat([F.pixel_unshuffle(torch.cat([pixels * mask, mask], 1), FOLD), squares], 1)


def unfold(folded: torch.Tensor) -> Unfolded:
    """Return the picture of which `fold` made (N, `NUM_FOLDED`, h, w)."""
    pixels = F.pixel_shuffle(folded[:, :NUM_PIXELS], FOLD)
    return Unfolded(pixels[:, :3], pixels[:, 3:], folded[:, NUM_PIXELS:])


def share_known(folded: torch.Tensor) -> torch.Tensor:
    """Return which share of each square is remembered, (N, 1, h, w), of (N, `NUM_FOLDED`, h, w)."""
    return folded[:, NUM_COLORS:NUM_PIXELS].mean(1, keepdim=True)


class WarpEncoder(nn.Module):
    """Folded pictures in, features on the grid of the latents out; a fraction of the cost of a codec's encoder.

    The first `latent_channels` features stand for the latents of the picture: they are fitted to those of a codec
    before a denoiser learns with them.
    """

    NUM_TOLD = 1 + NUM_FACTS  # the share that is remembered, and the facts, go on beside the features

    def __init__(self, latent_channels: int, width: int = 128, extra: int = 24) -> None:
        """Build an untrained one.

        Args:
            latent_channels: channels of a latent.
            width: channels of the hidden layers.
            extra: features beside those that stand for latents.
        """
        super().__init__()
        self.num_features = latent_channels + extra
        self.fold = nn.Conv2d(NUM_FOLDED, width, 1)
        self.near = nn.Conv2d(width, width, 3, padding=1)
        self.out = nn.Conv2d(width, self.num_features, 3, padding=1)

    def forward(self, folded: torch.Tensor) -> torch.Tensor:
        """Return features (N, num_features + `NUM_TOLD`, h, w), zeros where nothing is remembered.

        Args:
            folded: float (N, `NUM_FOLDED`, h, w).
        """
        folded = folded.to(self.out.weight.dtype)
        hidden = F.gelu(self.fold(folded), approximate="tanh")
        hidden = hidden + F.gelu(self.near(hidden), approximate="tanh")
        share = share_known(folded)
        features = cast("torch.Tensor", self.out(hidden)) * (share > 0).to(folded.dtype)
        return torch.cat([features, share, folded[:, NUM_PIXELS:]], 1)
