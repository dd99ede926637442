"""The memory of a dream: rings of keys and values, allocated once.

Owns where a committed frame is written and which frame each slot holds. Only `commit` writes. Knows no network.
"""

from dataclasses import dataclass, fields

import torch


@dataclass
class MemoryCache:
    """Keys and values of past frames for a batch of dreams, each at its own age.

    Attributes:
        recent_k, recent_v: (L, B, H, R, P, d), patch tokens of the last R frames, one entry a `recent` layer.
        memory_k, memory_v: (M, B, H, F, S, d), summary tokens of the last F frames, one entry a `memory` layer.
        count: int64 (B,), frames committed so far.
    """

    recent_k: torch.Tensor
    recent_v: torch.Tensor
    memory_k: torch.Tensor
    memory_v: torch.Tensor
    count: torch.Tensor

    @staticmethod
    def slot_positions(count: torch.Tensor, size: int) -> torch.Tensor:
        """Return the frame position that each slot of a ring holds, int64 (B, size); negative where empty."""
        slots = torch.arange(size, device=count.device)
        newest = count[:, None] - 1
        return newest - torch.remainder(newest - slots, size)

    @property
    def recent_positions(self) -> torch.Tensor:
        """Positions of the frames in the recent ring, int64 (B, R)."""
        return self.slot_positions(self.count, self.recent_k.shape[3])

    @property
    def memory_positions(self) -> torch.Tensor:
        """Positions of the frames in the memory ring, int64 (B, F)."""
        return self.slot_positions(self.count, self.memory_k.shape[3])

    def commit(
        self,
        recent: list[tuple[torch.Tensor, torch.Tensor]],
        memory: list[tuple[torch.Tensor, torch.Tensor]],
        num_frames: int,
    ) -> None:
        """Write the first `num_frames` of the new frames and advance the count.

        Args:
            recent: keys and values (B, J, H, P, d) of each recent layer, J at least `num_frames`.
            memory: keys and values (B, J, H, S, d) of each memory layer.
            num_frames: frames to keep.
        """
        rows = torch.arange(self.count.shape[0], device=self.count.device)
        rings = ((self.recent_k, self.recent_v, recent), (self.memory_k, self.memory_v, memory))
        for j in range(num_frames):
            for ring_k, ring_v, new in rings:
                slot = torch.remainder(self.count, ring_k.shape[3])
                for layer, (k, v) in enumerate(new):
                    ring_k[layer, rows, :, slot] = k[:, j].to(ring_k.dtype)
                    ring_v[layer, rows, :, slot] = v[:, j].to(ring_v.dtype)
            self.count += 1

    def put(self, rows: torch.Tensor, other: "MemoryCache") -> None:
        """Replace the memory of the dreams of `rows`, int64 (n,), by the n memories of `other`."""
        for f in fields(self):
            mine, theirs = getattr(self, f.name), getattr(other, f.name)
            if mine.ndim == 1:
                mine[rows] = theirs
            else:
                mine[:, rows] = theirs

    def clone(self) -> "MemoryCache":
        """Return an independent copy."""
        return MemoryCache(**{f.name: getattr(self, f.name).clone() for f in fields(self)})

    @property
    def num_bytes(self) -> int:
        """Memory held, in bytes; constant over a dream."""
        return sum(getattr(self, f.name).nbytes for f in fields(self))
