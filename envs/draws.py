"""What each dream of a batch draws when it begins: an opening, and the seed of its chance.

Owns: two ways to draw. `HostDraws` has NumPy's generator for each dream, and draws what `envs.dream.DreamEnv.reset`
draws with the same seed. `DeviceDraws` counts on the device, so that a dream can begin anew without the CPU knowing.
"""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium.utils import seeding

from envs.dreamer import draw_opening
from worldmodel.chance import STEP, mix


class HostDraws:
    """A generator of NumPy for each dream."""

    def __init__(self, num_dreams: int, num_openings: int) -> None:
        """Begin with seeds of the operating system."""
        self._num_openings = num_openings
        found = [seeding.np_random() for _ in range(num_dreams)]
        self.generators, self.seeds = [each for each, _ in found], [seed for _, seed in found]

    def reseed(self, row: int, seed: int) -> None:
        """Begin the stream of a dream anew."""
        self.generators[row], self.seeds[row] = seeding.np_random(seed)

    def draw(self, rows: Sequence[int]) -> tuple[list[int], list[int]]:
        """Return the next openings and seeds of some dreams."""
        drawn = [draw_opening(self.generators[row], self._num_openings) for row in rows]
        return [opening for opening, _ in drawn], [seed for _, seed in drawn]

    def keep(self, rows: Sequence[int]) -> list[Any]:
        """Return what the streams of some dreams go on from."""
        return [copy.deepcopy(self.generators[row].bit_generator.state) for row in rows]

    def restore(self, rows: Sequence[int], kept: Sequence[Any]) -> None:
        """Let the streams of some dreams go on from what `keep` returned."""
        for row, state in zip(rows, kept, strict=True):
            self.generators[row].bit_generator.state = copy.deepcopy(state)


class DeviceDraws:
    """A seed and a counter of episodes for each dream, on the device."""

    def __init__(self, num_dreams: int, num_openings: int, device: torch.device) -> None:
        """Begin with seeds of the operating system."""
        self._num_openings = num_openings
        seeds = np.random.default_rng().integers(2**62, size=num_dreams)
        self._seeds = torch.from_numpy(seeds).to(device)
        self._episodes = torch.zeros_like(self._seeds)

    def reseed(self, row: int, seed: int) -> None:
        """Begin the stream of a dream anew; a seed counts by its last 63 bits."""
        self._seeds[row], self._episodes[row] = seed & (2**63 - 1), 0

    def draw_where(self, is_new: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return openings and seeds, int64 (B,), and move on the streams of the dreams where bool (B,) holds."""
        drawn = mix(mix(self._seeds) + self._episodes * STEP)
        self._episodes = self._episodes + is_new.long()
        return ((drawn >> 33) & (2**31 - 1)) % self._num_openings, mix(drawn) & (2**62 - 1)

    def draw(self, rows: Sequence[int]) -> tuple[list[int], list[int]]:
        """Return the next openings and seeds of some dreams."""
        is_new = torch.zeros(self._seeds.shape, dtype=torch.bool)
        is_new[list(rows)] = True
        openings, seeds = self.draw_where(is_new.to(self._seeds.device))
        return openings[list(rows)].tolist(), seeds[list(rows)].tolist()

    def keep(self, rows: Sequence[int]) -> list[Any]:
        """Return what the streams of some dreams go on from."""
        return [(int(self._seeds[row]), int(self._episodes[row])) for row in rows]

    def restore(self, rows: Sequence[int], kept: Sequence[Any]) -> None:
        """Let the streams of some dreams go on from what `keep` returned."""
        for row, (seed, episodes) in zip(rows, kept, strict=True):
            self._seeds[row], self._episodes[row] = seed, episodes
