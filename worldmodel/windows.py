"""Schedules: which noise levels the frames in flight have before and after an auto-regressive step.

Owns `Window` and the three requirements of Meta-ARVDM. Knows no network and no frames.
"""

from dataclasses import dataclass

import torch

from worldmodel.errors import WindowError


@dataclass(frozen=True)
class Window:
    """One auto-regressive step as data: W frames in flight go from levels `before` to `after`; `stride` leave clean.

    Attributes:
        before: input levels, one a frame, 0 clean to 1 noise.
        after: output levels.
        stride: frames completed, and frames of noise entering, at every step.

    Raises:
        WindowError: one of the three requirements is broken; says which, at which frame.

    Source: arXiv:2503.10704, Sec. 3 (monotonicity, circularity, 0-T boundary).
    """

    before: tuple[float, ...]
    after: tuple[float, ...]
    stride: int = 1

    def __post_init__(self) -> None:
        before, after = tuple(map(float, self.before)), tuple(map(float, self.after))
        object.__setattr__(self, "before", before)
        object.__setattr__(self, "after", after)
        size = len(before)
        if size == 0 or len(after) != size:
            raise WindowError(f"before and after need one level a frame; got {len(before)} and {len(after)} levels")
        if not 1 <= self.stride <= size:
            raise WindowError(f"stride must be from 1 to the {size} frames in flight; got {self.stride}")
        for name, levels in (("before", before), ("after", after)):
            for j, level in enumerate(levels):
                if not 0.0 <= level <= 1.0:
                    raise WindowError(f"{name}[{j}] must be a level in [0, 1]; got {level}")
                if j and level < levels[j - 1]:
                    raise WindowError(f"monotonicity is broken: {name}[{j}] = {level} is below {levels[j - 1]}")
        for j in range(size - self.stride):
            if after[j + self.stride] != before[j]:
                raise WindowError(
                    f"circularity is broken: after[{j + self.stride}] = {after[j + self.stride]} must equal "
                    f"before[{j}] = {before[j]}"
                )
        for j in range(self.stride):
            if after[j] != 0.0:
                raise WindowError(f"the 0-T boundary is broken: after[{j}] must be 0 (clean); got {after[j]}")
            if before[size - 1 - j] != 1.0:
                raise WindowError(
                    f"the 0-T boundary is broken: before[{size - 1 - j}] must be 1 (noise); got {before[size - 1 - j]}"
                )
        for j in range(size):
            if after[j] > before[j]:
                raise WindowError(f"frame {j} would get noisier: before {before[j]}, after {after[j]}")

    @property
    def size(self) -> int:
        """Frames in flight."""
        return len(self.before)

    @property
    def input_lag(self) -> int:
        """Frames that are already in flight when an action arrives, and so do not know it."""
        return self.size - self.stride

    def grid(self, num_steps: int) -> torch.Tensor:
        """Return the levels visited, float32 (num_steps + 1, W), from `before` to `after` in equal steps.

        Raises:
            WindowError: num_steps is below 1.
        """
        if num_steps < 1:
            raise WindowError(f"num_steps must be at least 1; got {num_steps}")
        before, after = torch.tensor(self.before), torch.tensor(self.after)
        share = torch.linspace(0, 1, num_steps + 1)[:, None]
        levels = before + share * (after - before)
        levels[-1] = after
        return levels


def next_frame_window() -> Window:
    """Return the schedule of play: one frame in flight, from noise to clean; every past frame is memory.

    Source: arXiv:2503.10704, Sec. 3, next-frame prediction.
    """
    return Window((1.0,), (0.0,), 1)
