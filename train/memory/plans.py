"""Plans of walks that come back: their actions from a start, and which of their frames show the same view.

Owns: the plans, made before the walk; who plays one checks what became of it. Knows no files and no pictures.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from envs.worlds.base import Floor, World
from train.memory.moves import Motions, find_invertible, find_motions, invert

NUM_VIEWS = 10  # pairs of a full turn
LEAST_APART = 8  # frames between the two of a pair
MEAN_HELD_STEPS = 5.0


class Plan(NamedTuple):
    """A walk to be played.

    Attributes:
        actions: from the first frame on.
        pairs: numbers of frames (first, second) that show the same view, where nothing stops the walk.
    """

    actions: list[int]
    pairs: list[tuple[int, int]]


@dataclass(frozen=True)
class Start:
    """Where a walk is planned from.

    Attributes:
        world: where.
        info: of the reset.
        rng: chance.
        size: 0 to 1, how long the walk shall be.
        longest: most steps.
    """

    world: World
    info: Mapping[str, Any]
    rng: np.random.Generator
    size: float
    longest: int


def plan_spin(start: Start) -> Plan | None:
    """Return two full turns on the spot, to one side."""
    motions = find_motions(start.world.actions)
    around = motions.turn(360.0 if start.rng.random() < 0.5 else -360.0)
    return Plan(2 * around, [(view, view + len(around)) for view in _views(len(around))])


def _views(around: int) -> list[int]:
    """Return about `NUM_VIEWS` frames of a full turn of so many steps, both ends among them."""
    return sorted({round(view) for view in np.linspace(0, around, NUM_VIEWS + 1)})


def plan_mirror(start: Start) -> Plan | None:
    """Return held actions, then what undoes them, last first."""
    choices = find_invertible(start.world.actions)
    length = _between_sizes(start, 12, max(12, start.longest // 3))
    out: list[int] = []
    while len(out) < length:
        out += [int(start.rng.choice(choices))] * int(start.rng.geometric(1 / MEAN_HELD_STEPS))
    back, left = invert(start.world.actions, out[:length])
    pairs = [(steps, length + i + 1) for i, steps in enumerate(left) if steps >= 0]
    pairs = [pair for pair in pairs if pair[1] - pair[0] >= LEAST_APART]
    return Plan(out[:length] + back, pairs[:: -max(1, len(pairs) // NUM_VIEWS)][::-1])


def plan_loop(start: Start) -> Plan | None:
    """Return a way once round a triangle, square or hexagon, and on along its first side."""
    motions = find_motions(start.world.actions)
    num_sides = int(start.rng.choice([number for number in (3, 4, 6) if motions.can_turn(360 / number)]))
    sign = float(start.rng.choice([-1.0, 1.0]))
    side = [motions.ahead] * _between_sizes(start, 3, 12)
    lap = num_sides * (side + motions.turn(sign * 360 / num_sides))
    aside = _turn_aside(start, motions)
    pairs = [(len(aside) + step, len(aside) + len(lap) + step) for step in range(0, len(side) + 1, 2)]
    return Plan(aside + lap + side, pairs)


def plan_out_and_back(start: Start) -> Plan | None:
    """Return a way straight on, about turn, back, about turn, and out again."""
    motions = find_motions(start.world.actions)
    about = motions.turn(180.0 if start.rng.random() < 0.5 else -180.0)
    out = [motions.ahead] * _between_sizes(start, 6, 40)
    trip = out + about + out + about
    again = out[: len(out) // 2 + 1]
    aside = _turn_aside(start, motions)
    pairs = [(len(aside) + step, len(aside) + len(trip) + step) for step in range(0, len(again) + 1, 2)]
    return Plan(aside + trip + again, pairs)


def _turn_aside(start: Start, motions: Motions) -> list[int]:
    """Return turns to any heading."""
    count = int(start.rng.integers(-round(180 / motions.turn_deg), round(180 / motions.turn_deg) + 1))
    return motions.turn(count * motions.turn_deg)


def plan_aba(start: Start) -> Plan | None:
    """Return a look round, a shortest way from A to some B and back, and a look round; None where there is none."""
    floor = start.world.floor(start.info)
    for goal in start.rng.permutation(len(floor.places)).tolist():
        way = floor.find_way(floor.here, goal, (), start.rng)
        if len(way) < 3:
            continue
        plan = _plan_tour(start, floor, way + way[-2::-1])
        if plan is not None and len(plan.actions) <= start.longest:
            return plan
    return None


def plan_abca(start: Start) -> Plan | None:
    """Return a look round, a way from A over B, home over other places, and a look round; None where there is none."""
    floor = start.world.floor(start.info)
    for goal in start.rng.permutation(len(floor.places)).tolist():
        way = floor.find_way(floor.here, goal, (), start.rng)
        if len(way) < 4:
            continue
        home = floor.find_way(goal, floor.here, way[1:-1], start.rng)
        # A way home over other places: C is the middle of it.
        if len(home) < 4 or set(home[1:-1]) & set(way):
            continue
        plan = _plan_tour(start, floor, way + home[1:])
        if plan is not None and len(plan.actions) <= start.longest:
            return plan
    return None


def _plan_tour(start: Start, floor: Floor, way: list[int]) -> Plan | None:
    """Look all the way round, walk over places back to the first of them, look round again.

    Places are rounded to whole steps from the first one, so that the walk ends exactly where it began.
    """
    motions = find_motions(start.world.actions)
    pose = np.asarray(start.info["pose"])
    heading = begun = float(pose[2] if len(pose) == 3 else pose[3])
    stops = np.round((floor.places[way] - floor.places[way[0]]) / motions.step).astype(int)
    around = motions.turn(360.0)
    actions = list(around)
    if not motions.can_turn(begun):
        return None  # no number of turns looks along an axis
    for move in np.diff(stops, axis=0):
        if np.count_nonzero(move) != 1:
            return None
        bearing = {(1, 0): 0.0, (0, 1): 90.0, (-1, 0): 180.0, (0, -1): 270.0}[tuple(np.sign(move).tolist())]
        actions += motions.turn(_between(heading, bearing)) + [motions.ahead] * int(np.abs(move).max())
        heading = bearing
    actions += motions.turn(_between(heading, begun))
    back = len(actions)
    return Plan(actions + around, [(view, back + view) for view in _views(len(around))])


def _between_sizes(start: Start, least: int, most: int) -> int:
    return least + round(start.size * (most - least))


def _between(heading_deg: float, bearing_deg: float) -> float:
    return (bearing_deg - heading_deg + 180.0) % 360.0 - 180.0
