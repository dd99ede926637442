"""What a batch of dreams is between two steps: tensors, and the chance of each dream.

Owns copying (a fork, a rewind), selecting and joining dreams, and putting some into others' places. Knows no network
and no schedule.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from worldmodel.cache import MemoryCache
from worldmodel.chance import Chance, join_chances, read_chance
from worldmodel.counts import check_whole
from worldmodel.errors import CheckpointError, ShapeError
from worldmodel.memory.pixels import PixelState
from worldmodel.odometry import POSE_SIZE
from worldmodel.rewards import RewardLog

Layout = tuple[tuple[str, tuple[int, ...], torch.dtype], ...]
"""Name, shape and format of every tensor of a state."""


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
        pending_poses, flight_poses: float32 (B, P or W - S, 5), where they are seen from; zeros without `pixels`.
        pending_warped: float (B, P, R, h, w), what the memory of pixels knew of `pending`; R is 0 without one.
        pixels: what the memory of pixels keeps; None without one.
    """

    cache: MemoryCache
    pending: torch.Tensor
    pending_actions: torch.Tensor
    recent: torch.Tensor
    recent_levels: torch.Tensor
    flight: torch.Tensor
    flight_actions: torch.Tensor
    pending_poses: torch.Tensor
    pending_warped: torch.Tensor
    flight_poses: torch.Tensor
    pixels: PixelState | None = None

    def _pixel_shapes(self) -> dict[str, torch.Size]:
        """Return the shapes of what the memory of pixels keeps of one dream."""
        return {} if self.pixels is None else {name: part.shape[1:] for name, part in self.pixels.tensors().items()}

    @property
    def layout(self) -> Layout:
        """Name, shape and format of every tensor: what code compiled for one state can take of another."""
        return tuple((name, tuple(part.shape), part.dtype) for name, part in self.tensors().items())

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return all tensors by name, not copied."""
        named = {f"rings.{name}": ring for name, ring in sorted(self.cache.rings.items())}
        named |= {f"cache.{f.name}": getattr(self.cache, f.name) for f in fields(self.cache) if f.name != "rings"}
        if self.pixels is not None:
            named |= {f"pixels.{name}": part for name, part in self.pixels.tensors().items()}
        return named | {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("cache", "pixels")}

    @staticmethod
    def from_tensors(named: dict[str, torch.Tensor]) -> "DreamState":
        """Return the state of which `tensors` made these."""
        groups: dict[str, dict[str, torch.Tensor]] = {"rings": {}, "cache": {}, "pixels": {}, "": {}}
        for name, part in named.items():
            group, _, rest = name.rpartition(".")
            groups[group][rest] = part
        cache = MemoryCache(rings=groups["rings"], **groups["cache"])
        pixels = PixelState.from_tensors(groups["pixels"]) if groups["pixels"] else None
        return DreamState(cache=cache, pixels=pixels, **groups[""])

    @property
    def num_bytes(self) -> int:
        """Bytes of all memories, which do not grow: the cache and, where there is one, that of pixels."""
        return self.cache.num_bytes + (0 if self.pixels is None else self.pixels.num_bytes)

    def clone(self) -> "DreamState":
        """Return an independent copy: a fork of the dreams."""
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        copies: dict[str, Any] = {name: None if part is None else part.clone() for name, part in parts.items()}
        return DreamState(**copies)

    def select(self, rows: torch.Tensor) -> "DreamState":
        """Return a copy of the dreams of `rows`, int64 (n,), in that order."""
        return DreamState.from_tensors(
            {name: part.index_select(batch_axis(name), rows) for name, part in self.tensors().items()}
        )

    def put(self, rows: torch.Tensor, other: "DreamState") -> None:
        """Replace the dreams of `rows` (int64 (n,)) by the n dreams of `other`, in place.

        Raises:
            ShapeError: the dreams of `other` walk another window, their context was too short to fill `pending`, or
                they have no memory of pixels or one of another size.
        """
        if self._pixel_shapes() != other._pixel_shapes():
            raise ShapeError(
                "dreams cannot take in some whose memory of pixels has another size, or that have none: begin both "
                "with one world"
            )
        for name in ("pending", "flight"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine.shape[1:] != theirs.shape[1:]:
                raise ShapeError(
                    f"dreams with {tuple(mine.shape[1:])} of {name} frames cannot take in some with "
                    f"{tuple(theirs.shape[1:])}: use one schedule, and a longer context"
                )
        for f in fields(self):
            mine, theirs = getattr(self, f.name), getattr(other, f.name)
            if isinstance(mine, MemoryCache | PixelState):
                mine.put(rows, theirs)
            elif mine is not None:
                mine[rows] = theirs


class Step(NamedTuple):
    """What one step of a batch of dreams gives.

    Attributes:
        frames: uint8 (B, H, W, 3).
        rewards: float32 (B,), the likeliest.
        terminated: bool (B,), whether an end is likelier than none.
        reward_probability: float32 (B,), of any reward other than zero, calibrated where the bundle says how.
        end_probability: float32 (B,), that the episode ended, likewise.
    """

    frames: torch.Tensor
    rewards: torch.Tensor
    terminated: torch.Tensor
    reward_probability: torch.Tensor
    end_probability: torch.Tensor


@dataclass
class WorldState:
    """A batch of dreams and their chance: clone it to fork, keep a clone to rewind, `select` and `cat` as a tensor.

    Attributes:
        dream: tensors.
        chance: what each dream draws its noise from.
        rewards: what each has been paid.
    """

    dream: DreamState
    chance: Chance
    rewards: RewardLog

    def clone(self) -> "WorldState":
        """Return an independent copy that dreams on exactly as this one would."""
        return self.to(self.dream.pending.device)

    def to(self, device: torch.device | str) -> "WorldState":
        """Return an independent copy on a device."""
        moved = {name: part.to(device, copy=True) for name, part in self.dream.tensors().items()}
        return WorldState(DreamState.from_tensors(moved), self.chance.to(device), self.rewards.to(device))

    def select(self, rows: Sequence[int] | torch.Tensor) -> "WorldState":
        """Return a copy of some dreams, in the order given; one named twice is there twice, with equal chance.

        Args:
            rows: whole numbers from 0 to B - 1, or an int64 tensor of them, which is not checked.

        Raises:
            ShapeError: a row does not exist.
        """
        if not isinstance(rows, torch.Tensor):
            if not all(0 <= row < self.num_dreams for row in rows):
                raise ShapeError(f"select takes rows from 0 to {self.num_dreams - 1}; got {list(rows)}")
            rows = torch.tensor(list(rows), dtype=torch.int64, device=self.dream.pending.device)
        return WorldState(self.dream.select(rows), self.chance.select(rows), self.rewards.select(rows))

    def repeat(self, count: int) -> "WorldState":
        """Return `count` copies of every dream, those of one beside one another; equal actions dream them alike."""
        rows = torch.arange(self.num_dreams, device=self.dream.pending.device)
        return self.select(rows.repeat_interleave(check_whole("count", count, 1)))

    @staticmethod
    def cat(states: "Sequence[WorldState]") -> "WorldState":
        """Return copies of the dreams of several batches, one after another.

        Raises:
            ShapeError: no batch, or tensors or chance of other kinds: of another world, schedule or memory, or on
                other devices.
        """
        if not states:
            raise ShapeError("cat takes at least one state; got none")
        named = [state.dream.tensors() for state in states]
        layouts = {tuple((n, *_row_layout(n, part)) for n, part in parts.items()) for parts in named}
        if len(layouts) > 1 or len({type(state.chance) for state in states}) > 1:
            raise ShapeError(
                "dreams of different worlds, schedules, memories, devices or kinds of chance cannot be in one batch: "
                "begin all with one world"
            )
        joined = {name: torch.cat([parts[name] for parts in named], batch_axis(name)) for name in named[0]}
        logs = [state.rewards for state in states]
        log = RewardLog(*(torch.cat([getattr(one, name) for one in logs]) for name in logs[0].tensors()))
        return WorldState(DreamState.from_tensors(joined), join_chances([state.chance for state in states]), log)

    def put(self, rows: torch.Tensor, other: "WorldState") -> None:
        """Replace the dreams of `rows`, int64 (n,), by copies of the n dreams of `other`, in place.

        Raises:
            ShapeError: as `DreamState.put`; or their chance is of another kind.
        """
        if type(self.chance) is not type(other.chance):
            raise ShapeError("dreams with chance on the CPU and such with chance on the device cannot be in one batch")
        self.dream.put(rows, other.dream)
        self.chance.put(rows, other.chance)
        self.rewards = self.rewards.put(rows, other.rewards)

    def to_bytes(self) -> bytes:
        """Return everything as the bytes of a safetensors file, for another process or the disk."""
        named = {f"dream.{name}": part for name, part in self.dream.tensors().items()} | self.chance.tensors()
        named |= {f"rewards.{name}": part for name, part in self.rewards.tensors().items()}
        return save({name: part.detach().cpu().contiguous().clone() for name, part in named.items()})

    @staticmethod
    def from_bytes(content: bytes, device: str = "cpu") -> "WorldState":
        """Return the state of which `to_bytes` made these bytes, on a device.

        Raises:
            CheckpointError: they are damaged, of an older version, or something else.
        """
        try:
            named = load(content)
            parts = {n.removeprefix("dream."): part.to(device) for n, part in named.items() if n.startswith("dream.")}
            past = {n.removeprefix("rewards."): part for n, part in named.items() if n.startswith("rewards.")}
            log = RewardLog(**past).to(device) if past else None
            others = {n: part for n, part in named.items() if not n.startswith(("dream.", "rewards."))}
            chance = read_chance(others)
            dream = DreamState.from_tensors(parts)
        except (SafetensorError, KeyError, TypeError, RuntimeError) as error:
            raise CheckpointError(
                f"these bytes are not a dream ({error}); keep what WorldState.to_bytes made"
            ) from error
        if dream.cache.pose.shape[-1] != POSE_SIZE:
            raise CheckpointError(
                f"these bytes are a dream of an older version, with poses of {dream.cache.pose.shape[-1]} numbers "
                f"instead of {POSE_SIZE}: begin the dream again"
            )
        if log is None:  # bytes of an older version have none
            log = RewardLog.empty(chance.num_dreams, device)
        return WorldState(dream, chance.to(device), log)

    def __reduce__(self) -> tuple[Any, ...]:
        """Cross to another process as plain bytes: tensors by themselves would each hold an open file there."""
        return WorldState.from_bytes, (self.to_bytes(), str(self.dream.pending.device))

    @property
    def num_dreams(self) -> int:
        """B."""
        return self.chance.num_dreams


def batch_axis(name: str) -> int:
    """Return the axis of the dreams in the tensor of `DreamState.tensors` that has a name."""
    return 1 if name.startswith("rings.") else 0


def _row_layout(name: str, part: torch.Tensor) -> tuple[torch.Size, torch.dtype, torch.device]:
    """Return shape, format and device of one dream's part of a tensor of a state."""
    return part.select(batch_axis(name), 0).shape, part.dtype, part.device
