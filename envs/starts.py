"""Openings begun once: what a dream is after its opening, kept small, to be copied into a batch as often as one likes.

Owns: beginning openings with noise of their own, so that one start serves dreams of any seed; what of it is kept; and
both ways to copy it, row by row or by a mask that stays on the device. Knows no Gymnasium.

A start is kept without the slots of memories that it left empty: the last slots of a tensor that are all alike are kept
once. Two megabytes instead of eight, without knowing what a memory keeps.
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch

from envs.dreamer import Dreamer
from worldmodel.chance import DeviceChance
from worldmodel.errors import StateError
from worldmodel.rewards import RewardLog
from worldmodel.state import WorldState, batch_axis

CONTEXT_SEED = 0  # of the noise on an opening's frames, the same for all dreams of it
MOST_STARTS = 256  # kept at once, the last ones used
AT_ONCE = 32  # openings begun in one batch: a dream takes 8 MB before it is trimmed


class Starts:
    """The openings of a bundle, begun when they are first asked for."""

    def __init__(self, dreamer: Dreamer, on_device: bool) -> None:
        """Begin nothing yet; `on_device` as `WorldModel.reset`."""
        self._dreamer, self._on_device = dreamer, on_device
        self._kept: OrderedDict[int, dict[str, torch.Tensor]] = OrderedDict()
        self._table: dict[str, torch.Tensor] | None = None  # of all openings

    @property
    def num_bytes(self) -> int:
        """Memory held."""
        parts = [part for start in self._kept.values() for part in start.values()]
        return sum(part.nbytes for part in [*parts, *(self._table or {}).values()])

    @property
    def num_kept(self) -> int:
        """Openings begun and kept."""
        return len(self._kept)

    def begin(self, openings: Sequence[int], seeds: Sequence[int]) -> WorldState:
        """Return new dreams of openings, with chance of given seeds; a start as `put` copies it."""
        model, rows = self._dreamer.model, [int(opening) for opening in openings]
        frames, actions = self._dreamer.frames[rows], self._dreamer.actions[rows].long()
        apart = [CONTEXT_SEED] * len(rows)
        begun = model.reset(frames, actions, list(seeds), context_seeds=apart, on_device=self._on_device)
        if len(rows) == 1:
            self._keep(rows[0], begun)
        return begun

    @torch.inference_mode()
    def _keep(self, opening: int, begun: WorldState) -> None:
        self._kept[opening] = {name: _trim(name, part) for name, part in begun.dream.tensors().items()}
        if len(self._kept) > MOST_STARTS:
            self._kept.popitem(last=False)

    @torch.inference_mode()
    def put(self, state: WorldState, rows: Sequence[int], openings: Sequence[int], seeds: Sequence[int]) -> None:
        """Replace dreams by new ones, in place.

        Args:
            state: of dreams begun by the same world.
            rows: which are replaced.
            openings: of the new ones.
            seeds: of their chance.
        """
        named = state.dream.tensors()
        for row, opening in zip(rows, openings, strict=True):
            for name, part in self._find(opening).items():
                place = named[name].select(batch_axis(name), row)
                _spread(place, part.select(batch_axis(name), 0), _slot_axis(name, part) - 1)
        places = torch.tensor(list(rows), dtype=torch.int64, device=state.dream.pending.device)
        state.chance.put(places, self._dreamer.model.make_chance(list(seeds), self._on_device))
        state.rewards = state.rewards.put(places, RewardLog.empty(len(places), places.device))

    @torch.inference_mode()
    def renew(self, state: WorldState, is_new: torch.Tensor, openings: torch.Tensor, seeds: torch.Tensor) -> None:
        """Replace dreams by new ones, in place, without waiting for the device after the first time.

        Args:
            state: of dreams begun with chance on the device.
            is_new: bool (B,), which are replaced.
            openings: int64 (B,), of the new ones.
            seeds: int64 (B,), of their chance.

        Raises:
            StateError: their chance is on the CPU.
        """
        if not isinstance(state.chance, DeviceChance):
            raise StateError("dreams are renewed on the device where their chance is there: begin them with on_device")
        if self._table is None:
            self._table = self._begin_all()
        for name, part in state.dream.tensors().items():
            found = self._table[name].index_select(batch_axis(name), openings)
            shape = [1] * part.ndim
            shape[batch_axis(name)] = -1
            _spread(part, found, _slot_axis(name, part), is_new.view(shape))
        state.chance.renew(is_new, seeds)
        state.rewards = state.rewards.renew(is_new)

    def _begin_all(self) -> dict[str, torch.Tensor]:
        """Return what dreams are after each opening, begun some at a time, without the slots that all left empty."""
        parts: dict[str, list[torch.Tensor]] = {}
        for first in range(0, self._dreamer.num_openings, AT_ONCE):
            openings = range(first, min(first + AT_ONCE, self._dreamer.num_openings))
            for name, part in self.begin(openings, [0] * len(openings)).dream.tensors().items():
                parts.setdefault(name, []).append(_trim(name, part))
        return {name: _join(name, part) for name, part in parts.items()}

    def _find(self, opening: int) -> dict[str, torch.Tensor]:
        """Return a start; each is begun alone, so that it does not depend on which others were."""
        if opening not in self._kept:
            self.begin([opening], [0])
        self._kept.move_to_end(opening)
        return self._kept[opening]


def _slot_axis(name: str, part: torch.Tensor) -> int:
    """Return the axis along which a tensor of a state has slots, or what comes next; its last one if there is none."""
    return min(3 if name.startswith("rings.") else 1, part.ndim - 1)


def _trim(name: str, part: torch.Tensor) -> torch.Tensor:
    """Return a copy of a tensor without the last slots, as far as they are like one another in all dreams."""
    axis = _slot_axis(name, part)
    if axis == batch_axis(name) or not part.shape[axis]:
        return part.clone()
    rest = [other for other in range(part.ndim) if other != axis]
    apart = (part != part.narrow(axis, part.shape[axis] - 1, 1)).permute(axis, *rest).flatten(1).any(1)
    differing = apart.nonzero().flatten().tolist()
    return part.narrow(axis, 0, 2 + differing[-1] if differing else 1).clone()


def _join(name: str, parts: list[torch.Tensor]) -> torch.Tensor:
    """Return tensors that `_trim` left of several batches as one: the shorter ones end in copies of their last slot."""
    axis = _slot_axis(name, parts[0])
    if axis == batch_axis(name):
        return torch.cat(parts)
    longest = max(part.shape[axis] for part in parts)
    padded = []
    for part in parts:
        last = part.narrow(axis, part.shape[axis] - 1, 1) if part.shape[axis] else part
        missing = longest - part.shape[axis]
        padded.append(torch.cat([part, last.expand(*_sized(part, axis, missing))], axis) if missing else part)
    return torch.cat(padded, batch_axis(name))


def _sized(part: torch.Tensor, axis: int, size: int) -> list[int]:
    """Return the shape of a tensor with another size along an axis."""
    return [size if number == axis else length for number, length in enumerate(part.shape)]


def _spread(place: torch.Tensor, part: torch.Tensor, axis: int, is_new: torch.Tensor | None = None) -> None:
    """Write what `_trim` left of a tensor to one of the whole size, in place.

    Args:
        place: of the whole size.
        part: shorter along `axis`; what is missing is like its last slot.
        axis: of the slots; -1: there are none.
        is_new: bool that broadcasts to `place`, where it is written; None: all of it.
    """
    pieces = [(place, part)]
    if axis >= 0 and part.shape[axis] < place.shape[axis]:
        used = part.shape[axis]
        head, tail = place.narrow(axis, 0, used), place.narrow(axis, used, place.shape[axis] - used)
        pieces = [(head, part), (tail, part.narrow(axis, used - 1, 1))]
    for where, what in pieces:
        where.copy_(what if is_new is None else torch.where(is_new, what, where))
