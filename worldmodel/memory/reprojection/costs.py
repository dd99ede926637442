"""What it costs to take a pixel from a source: the rule by which sources are weighed, and their ranks."""

from dataclasses import dataclass

import torch

from worldmodel.errors import ConfigError
from worldmodel.memory.reprojection.keyframes import Keyframes

SAMPLINGS = ("nearest", "linear", "cubic")
NEWEST_RANK = 0.6  # cost rank of the oldest true frame; dreamt ones follow up to 1


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
        seen_through_here: the same of sources of the same place, which do not need their depth for anything else.
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

    def zoom_cost(self, zoom: torch.Tensor) -> torch.Tensor:
        """Return what a magnification costs, given as its log2."""
        return self.magnified * (zoom - 0.2).clamp_min(0) + self.squeezed * (-zoom).clamp_min(0)


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
