"""Walks that a dream lets through: straight on until it shows an obstacle, then a turn.

Owns: the wanderer, which asks the dream before each step whether something is in the way, and the dreaming of its
walks. Such a walk can be undone step by step, which a recorded one cannot where the dream has put an obstacle of its
own.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from worldmodel.errors import ConfigError
from worldmodel.state import WorldState
from worldmodel.world import WorldModel

FREE, STOPPED = 0.97, 0.9  # shares of its way: a step is taken if it will get more, and was stopped if it got less


class Wanderer:
    """Chooses the steps of one walk: 8 to 40 ahead, 5 to 15 turns to a side; where it is stopped, turns until free."""

    def __init__(self, ahead: int, left: int, right: int, rng: np.random.Generator) -> None:
        """Walk with these actions."""
        self.ahead, self.sides, self._rng = ahead, (left, right), rng
        self._steps, self._turns = int(rng.integers(8, 41)), 0
        self._side = self.sides[int(rng.integers(2))]

    def next(self, free: float) -> int:
        """Return the next action, where a step ahead gets the share `free` of its way."""
        if self._turns > 0:
            self._turns -= 1
            return self._side
        if free < FREE:
            return self._side  # the same side until it is free: no dithering in a corner
        if self._steps == 0:
            self._side = self.sides[int(self._rng.integers(2))]
            self._steps, self._turns = int(self._rng.integers(8, 41)), int(self._rng.integers(5, 16)) - 1
            return self._side
        self._steps -= 1
        return self.ahead


def find_plain(displacements: Sequence[tuple[float, float]]) -> tuple[int, int, int]:
    """Return the actions that walk ahead, turn left and turn right, and do nothing else.

    Raises:
        ConfigError: there are none.
    """
    ahead = [i for i, (turn, walk) in enumerate(displacements) if turn == 0 and walk > 0]
    left = [i for i, (turn, walk) in enumerate(displacements) if turn > 0 and walk == 0]
    right = [i for i, (turn, walk) in enumerate(displacements) if turn < 0 and walk == 0]
    if not (ahead and left and right):
        raise ConfigError("a walk needs actions that walk ahead, turn left and turn right, each alone")
    return ahead[0], left[0], right[0]


def wander(
    model: WorldModel,
    state: WorldState,
    length: int,
    displacements: Sequence[tuple[float, float]],
    seeds: Sequence[int],
    on_frames: Callable[[int], object],
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Dream `length` steps, at least one, of a walk in each dream, in place.

    Returns:
        frames uint8 (B, length, H, W, 3), actions int64 (B, length), and the share of steps ahead that the dream's own
        reckoning took for stopped all the same.

    Raises:
        ConfigError: the world cannot tell obstacles (`WorldModel.can_reckon`), or actions are missing.
    """
    ahead, left, right = find_plain(displacements)
    walkers = [Wanderer(ahead, left, right, np.random.default_rng([seed, 11])) for seed in seeds]
    straight = torch.full((len(walkers),), ahead)
    frames: list[torch.Tensor] = []
    actions: list[torch.Tensor] = []
    stopped, walked = 0, 0
    for _ in range(length):
        before, free = model.reckon(state, straight)
        if actions:
            stopped += int(((actions[-1] == ahead) & (before < STOPPED)).sum())
        chosen = torch.tensor([walker.next(float(share)) for walker, share in zip(walkers, free, strict=True)])
        frames.append(model.step(state, chosen).frames.cpu())
        walked += int((chosen == ahead).sum())
        actions.append(chosen)
        on_frames(len(walkers))
    before, _ = model.reckon(state, straight)
    stopped += int(((actions[-1] == ahead) & (before < STOPPED)).sum())
    return torch.stack(frames, 1), torch.stack(actions, 1), stopped / max(1, walked)
