"""What a batch of dreams is between two steps: tensors, and the chance of each dream.

Owns copying (a fork, a rewind) and putting some dreams into others' places. Knows no network and no schedule.
"""

from dataclasses import dataclass, fields
from typing import NamedTuple

import torch

from worldmodel.cache import MemoryCache
from worldmodel.errors import ShapeError


@dataclass
class DreamState:
    """Everything that a batch of dreams is, beside the weights.

    Attributes:
        cache: keys and values of committed frames.
        pending: float (B, P, C, h, w), the frames that left the window last, not in the cache yet, as shown to later
            frames; P is the stride, or fewer at the start of a short context.
        pending_actions: int64 (B, P), the actions into them.
        recent: float (B, K, C, h, w), the frames before `pending`, oldest first, as shown.
        recent_levels: float (B, K), the context level, or 1 where there is no frame.
        flight: float (B, W - S, C, h, w), the window between two steps: clean overlap first, then unfinished frames.
        flight_actions: int64 (B, W - S), the actions into them.
    """

    cache: MemoryCache
    pending: torch.Tensor
    pending_actions: torch.Tensor
    recent: torch.Tensor
    recent_levels: torch.Tensor
    flight: torch.Tensor
    flight_actions: torch.Tensor

    def clone(self) -> "DreamState":
        """Return an independent copy: a fork of the dreams."""
        return DreamState(**{f.name: getattr(self, f.name).clone() for f in fields(self)})

    def put(self, rows: torch.Tensor, other: "DreamState") -> None:
        """Replace the dreams of `rows` (int64 (n,)) by the n dreams of `other`, in place.

        Raises:
            ShapeError: the dreams of `other` walk another window, or their context was too short to fill `pending`.
        """
        for name in ("pending", "flight"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine.shape[1:] != theirs.shape[1:]:
                raise ShapeError(
                    f"dreams with {tuple(mine.shape[1:])} of {name} frames cannot take in some with "
                    f"{tuple(theirs.shape[1:])}: use one schedule, and a longer context"
                )
        for f in fields(self):
            mine, theirs = getattr(self, f.name), getattr(other, f.name)
            if isinstance(mine, MemoryCache):
                mine.put(rows, theirs)
            else:
                mine[rows] = theirs


class Step(NamedTuple):
    """What one step of a batch of dreams gives.

    Attributes:
        frames: uint8 (B, H, W, 3).
        rewards: float32 (B,).
        terminated: bool (B,).
    """

    frames: torch.Tensor
    rewards: torch.Tensor
    terminated: torch.Tensor


@dataclass
class WorldState:
    """A batch of dreams and their chance: clone it to fork, keep a clone to rewind.

    Attributes:
        dream: tensors.
        generators: one CPU generator a dream.
    """

    dream: DreamState
    generators: list[torch.Generator]

    def clone(self) -> "WorldState":
        """Return an independent copy that dreams on exactly as this one would."""
        return WorldState(self.dream.clone(), [g.clone_state() for g in self.generators])

    @property
    def num_dreams(self) -> int:
        """B."""
        return len(self.generators)
