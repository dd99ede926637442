"""The memory of a dream: rings of keys, values and entries, allocated once.

Owns where a committed frame is written and which frame each slot holds. Only `commit` writes. Knows no network.
"""

import math
from dataclasses import dataclass

import torch

from worldmodel.odometry import YAW

Rings = dict[str, list[torch.Tensor]]


@dataclass
class MemoryCache:
    """What is kept of past frames for a batch of dreams, each at its own age.

    Attributes:
        rings: name -> (L, B, H, F, S, d), L layers, the last F frames, S tokens a frame. `recent_k`, `recent_v`: patch
            tokens of layers that see recent frames; `memory_k`, `memory_v`: what the memory layers share; others as the
            memory structure needs.
        count: int64 (B,), frames committed so far.
        pose: float32 (B, 5), x, y, z in cells, yaw and pitch in radians, of the last frame.
    """

    rings: dict[str, torch.Tensor]
    count: torch.Tensor
    pose: torch.Tensor

    @staticmethod
    def slot_positions(count: torch.Tensor, size: int) -> torch.Tensor:
        """Return the frame position that each slot of a ring holds, int64 (B, size); negative where empty."""
        slots = torch.arange(size, device=count.device)
        newest = count[:, None] - 1
        return newest - torch.remainder(newest - slots, size)

    def positions(self, ring: str) -> torch.Tensor:
        """Return the positions of the frames in a ring, int64 (B, F); negative where empty."""
        return self.slot_positions(self.count, self.rings[ring].shape[3])

    def commit(self, rings: Rings, poses: torch.Tensor, *, num_frames: int) -> None:
        """Write the first `num_frames` of the new frames and advance the count.

        Args:
            rings: for each ring the new frames of each layer, (B, J, H, S, d), J at least `num_frames`.
            poses: float32 (B, J, 5), where they are seen from.
            num_frames: frames to keep.
        """
        rows = torch.arange(self.count.shape[0], device=self.count.device)
        for j in range(num_frames):
            for name, layers in rings.items():
                ring = self.rings[name]
                slot = torch.remainder(self.count, ring.shape[3])
                for layer, new in enumerate(layers):
                    ring[layer, rows, :, slot] = new[:, j].to(ring.dtype)
            self.count += 1
        if num_frames:
            self.pose.copy_(poses[:, num_frames - 1])
            self.pose[:, YAW].remainder_(2 * math.pi)

    def put(self, rows: torch.Tensor, other: "MemoryCache") -> None:
        """Replace the memory of the dreams of `rows`, int64 (n,), by the n memories of `other`."""
        for name, ring in self.rings.items():
            ring[:, rows] = other.rings[name]
        self.count[rows], self.pose[rows] = other.count, other.pose

    def clone(self) -> "MemoryCache":
        """Return an independent copy."""
        rings = {name: ring.clone() for name, ring in self.rings.items()}
        return MemoryCache(rings, self.count.clone(), self.pose.clone())

    @property
    def num_bytes(self) -> int:
        """Memory held, in bytes; constant over a dream."""
        return sum(part.nbytes for part in (*self.rings.values(), self.count, self.pose))
