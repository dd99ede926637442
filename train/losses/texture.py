"""How strong the texture of a picture is, place by place."""

import torch
from torch.nn import functional as F


def local_gradient(pixels: torch.Tensor) -> torch.Tensor:
    """Return the root mean square of image gradients in 8 x 8 squares, (B, 1, H/8, W/8), of pixels (B, 3, H, W)."""
    down = F.pad(pixels[..., 1:, :] - pixels[..., :-1, :], (0, 0, 0, 1))
    right = F.pad(pixels[..., 1:] - pixels[..., :-1], (0, 1))
    return (F.avg_pool2d((down.square() + right.square()).mean(1, keepdim=True), 8) + 1e-5).sqrt()
