"""The chance of dreams: standard normal noise, each dream's own, the same for the same seed whoever sits beside it.

Owns: two ways to draw it. `HostChance` has one generator of PyTorch a dream, on the CPU: what all dreams have by
default. `DeviceChance` counts: the noise is a function of a seed and of how often it was drawn, worked out where the
network computes, so that nothing waits for the CPU. Equal seeds of the two kinds give different dreams.
"""

import math
from collections.abc import Sequence

import torch

STEP = -7046029254386353131  # 2 ** 64 / golden ratio, odd, as a signed number
MIX = (-4658895280553007687, -7723592293110705685)


class HostChance:
    """One generator on the CPU for each dream."""

    def __init__(self, generators: list[torch.Generator]) -> None:
        """Take generators."""
        self.generators = generators

    @classmethod
    def of_seeds(cls, seeds: Sequence[int]) -> "HostChance":
        """Return that of dreams with given seeds."""
        return cls([torch.Generator().manual_seed(int(seed)) for seed in seeds])

    @property
    def num_dreams(self) -> int:
        """B."""
        return len(self.generators)

    def draw(self, shape: Sequence[int], device: torch.device) -> torch.Tensor:
        """Return standard normal noise, float32 (B, *shape) on a device."""
        drawn = [torch.randn(tuple(shape), generator=each, dtype=torch.float32) for each in self.generators]
        return torch.stack(drawn).to(device)

    def clone(self) -> "HostChance":
        """Return an independent copy that draws on as this one would."""
        return HostChance([each.clone_state() for each in self.generators])

    def to(self, device: torch.device | str) -> "HostChance":
        """Return an independent copy: it stays on the CPU."""
        return self.clone()

    def select(self, rows: torch.Tensor) -> "HostChance":
        """Return a copy of that of some dreams, int64 (n,)."""
        return HostChance([self.generators[row].clone_state() for row in rows.tolist()])

    def put(self, rows: torch.Tensor, other: "Chance") -> None:
        """Replace that of `rows`, int64 (n,), by a copy of another of the same kind, in place."""
        assert isinstance(other, HostChance)
        for row, generator in zip(rows.tolist(), other.generators, strict=True):
            self.generators[row] = generator.clone_state()

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the states of the generators by name."""
        return {f"generator.{number}": each.get_state() for number, each in enumerate(self.generators)}


class DeviceChance:
    """A seed and a counter for each dream, on the device; the same numbers on every device, up to rounding."""

    def __init__(self, seeds: torch.Tensor, counts: torch.Tensor) -> None:
        """Take int64 (B,) seeds and how often each dream has drawn; both on one device, `counts` is changed."""
        self.seeds, self.counts = seeds, counts

    @classmethod
    def of_seeds(cls, seeds: Sequence[int] | torch.Tensor, device: torch.device) -> "DeviceChance":
        """Return that of dreams with given seeds, on a device."""
        found = torch.as_tensor(seeds, dtype=torch.int64, device=device).clone()
        return cls(found, torch.zeros_like(found))

    @property
    def num_dreams(self) -> int:
        """B."""
        return len(self.seeds)

    def draw(self, shape: Sequence[int], device: torch.device) -> torch.Tensor:
        """Return standard normal noise, float32 (B, *shape) on a device.

        Source: Box and Muller, A note on the generation of random normal deviates, 1958.
        """
        size = math.prod(shape)
        number = torch.arange(size, dtype=torch.int64, device=self.seeds.device)
        stream = mix(mix(self.seeds) + self.counts * STEP)
        self.counts = self.counts + 1

        # The upper and the lower 24 bits are two even numbers in (0, 1].
        bits = mix(stream[:, None] + number * STEP)
        high, low = (((part & 0xFFFFFF).float() + 0.5) / 2**24 for part in (bits >> 40, bits))
        noise = (-2 * high.log()).sqrt() * (2 * math.pi * low).cos()
        return noise.view(-1, *shape).to(device)

    def clone(self) -> "DeviceChance":
        """Return an independent copy that draws on as this one would."""
        return DeviceChance(self.seeds.clone(), self.counts.clone())

    def to(self, device: torch.device | str) -> "DeviceChance":
        """Return an independent copy on a device."""
        return DeviceChance(self.seeds.to(device, copy=True), self.counts.to(device, copy=True))

    def select(self, rows: torch.Tensor) -> "DeviceChance":
        """Return a copy of that of some dreams, int64 (n,)."""
        return DeviceChance(self.seeds[rows], self.counts[rows])

    def put(self, rows: torch.Tensor, other: "Chance") -> None:
        """Replace that of `rows`, int64 (n,), by a copy of another of the same kind, in place."""
        assert isinstance(other, DeviceChance)
        self.seeds[rows], self.counts[rows] = other.seeds, other.counts

    def renew(self, is_new: torch.Tensor, seeds: torch.Tensor) -> None:
        """Begin that of some dreams anew, bool (B,), with their seeds among int64 (B,)."""
        self.seeds = torch.where(is_new, seeds, self.seeds)
        self.counts = self.counts.masked_fill(is_new, 0)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return seeds and counters by name."""
        return {"chance.seeds": self.seeds, "chance.counts": self.counts}


Chance = HostChance | DeviceChance


def mix(bits: torch.Tensor) -> torch.Tensor:
    """Return well-mixed bits, int64 of any shape: a function of the bits given, and one to one.

    Source: SplitMix64 (Steele, Lea and Flood, Fast splittable pseudorandom number generators, 2014).
    """
    bits = bits + STEP
    bits = (bits ^ _shift(bits, 30)) * MIX[0]
    bits = (bits ^ _shift(bits, 27)) * MIX[1]
    return bits ^ _shift(bits, 31)


def _shift(bits: torch.Tensor, places: int) -> torch.Tensor:
    """Shift to the right, zeros from the left."""
    return (bits >> places) & (2 ** (64 - places) - 1)


def read_chance(named: dict[str, torch.Tensor]) -> Chance:
    """Return the chance of which `tensors` made these, by name.

    Raises:
        KeyError, RuntimeError: they are not that.
    """
    if "chance.seeds" in named:
        return DeviceChance(named["chance.seeds"], named["chance.counts"])
    generators = [torch.Generator() for _ in named]
    for number, generator in enumerate(generators):
        generator.set_state(named[f"generator.{number}"])
    return HostChance(generators)


def join_chances(parts: Sequence[Chance]) -> Chance:
    """Return copies of the chance of several batches, one after another.

    Raises:
        TypeError: they are of different kinds.
    """
    hosts = [part for part in parts if isinstance(part, HostChance)]
    devices = [part for part in parts if isinstance(part, DeviceChance)]
    if len(hosts) == len(parts):
        return HostChance([each.clone_state() for part in hosts for each in part.generators])
    if len(devices) != len(parts):
        raise TypeError("chance on the CPU and chance on the device cannot be in one batch")
    return DeviceChance(torch.cat([part.seeds for part in devices]), torch.cat([part.counts for part in devices]))
