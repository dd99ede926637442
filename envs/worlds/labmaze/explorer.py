"""The player of recordings: a mix of behaviors that explores a maze, looks around, and comes back the way it came.

Owns: which behaviors there are, how often each is drawn, and how keys are held and released. Knows pose, walls and
targets from an environment's `info`; never looks at pixels and knows no files.

A behavior is a generator of actions. Between two of its actions `Explorer.act` refreshes what it senses, so each reads
as a person would tell it: turn until, walk until, go back.
"""

import math
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np

from envs.worlds.labmaze.constants import ACTIONS
from worldmodel.errors import StateError

NOOP, FORWARD, BACK, LEFT, RIGHT, FORWARD_LEFT, FORWARD_RIGHT = range(ACTIONS.num_actions)
Cell = tuple[int, int]

# Weight of each behavior; an episode varies them, so that some are restless and others stand and stare.
BEHAVIORS = {
    "tour": 3.0,
    "out_and_back": 3.0,
    "loop": 3.0,
    "shuttle": 3.0,
    "look_around": 1.2,
    "random_keys": 2.0,
    "lean_on_wall": 0.7,
    "back_up": 3.0,
    "seek_target": 4.5,
    "bold_walk": 4.0,
    "spin_at_wall": 2.0,
    "corner": 1.5,
    "eye_target": 3.0,
}
PAUSE_RATE = 0.0065  # pauses begun per step
FIDGET_RATE = 0.012  # stray key presses begun per step
FINISHER_SHARE = 0.4  # episodes that may take the last target and so end early


def turn_between(heading_deg: float, bearing_deg: float) -> float:
    """Return the signed turn from a heading to a bearing, degrees in [-180, 180), positive to the left."""
    return (bearing_deg - heading_deg + 180.0) % 360.0 - 180.0


def find_path(layout: np.ndarray, start: Cell, goal: Cell, avoid: set[Cell], rng: np.random.Generator) -> list[Cell]:
    """Return a shortest path over floor cells by breadth-first search, ties broken at random.

    Args:
        layout: uint8 (rows, cols), 1 wall, 0 floor.
        start: (row, column) to leave from.
        goal: (row, column) to reach.
        avoid: cells not to step on, other than start and goal.
        rng: breaks ties.

    Returns:
        Cells from the one after `start` to `goal`; empty when there is no way.
    """
    parents: dict[Cell, Cell] = {start: start}
    queue = deque([start])
    steps = [(0, 1), (1, 0), (0, -1), (-1, 0)]
    while queue and goal not in parents:
        cell = queue.popleft()
        for index in rng.permutation(4):
            row, column = cell[0] + steps[index][0], cell[1] + steps[index][1]
            inside = 0 <= row < layout.shape[0] and 0 <= column < layout.shape[1]
            new = (row, column)
            if inside and not layout[new] and new not in parents and (new == goal or new not in avoid):
                parents[new] = cell
                queue.append(new)
    path: list[Cell] = []
    cell = goal
    while goal in parents and cell != start:
        path.append(cell)
        cell = parents[cell]
    return path[::-1]


class Explorer:
    """Plays one episode; equal generators and equal worlds give equal actions.

    Args:
        rng: all its chance; not shared with anybody else.
    """

    name = "explorer"

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        weights = np.array(list(BEHAVIORS.values())) * np.exp(rng.normal(0.0, 0.6, len(BEHAVIORS)))
        self._weights = weights / weights.sum()
        self._pause_rate = PAUSE_RATE * rng.uniform(0.5, 1.5)
        self._fidget_rate = FIDGET_RATE * rng.uniform(0.3, 1.7)
        self._is_finisher = bool(rng.random() < FINISHER_SHARE)
        self._info: dict[str, Any] | None = None
        self._actions = self._play()

    def act(self, info: dict[str, Any]) -> int:
        """Return the next action.

        Args:
            info: of the last reset or step: "pose" (3,), "layout" (rows, cols), and where the world has them
                "is_blocked", "targets" (n, 2), "targets_reached" (n,).

        Raises:
            StateError: `info` lacks a pose or a layout.
        """
        if "pose" not in info or "layout" not in info:
            raise StateError(f"the explorer needs info with 'pose' and 'layout'; got {sorted(info)}")
        self._info = info
        return next(self._actions)

    # What it senses ------------------------------------------------------------------------------------------

    @property
    def _sensed(self) -> dict[str, Any]:
        if self._info is None:
            raise StateError("the explorer has sensed nothing yet; call act(info) with the info of a reset first")
        return self._info

    @property
    def _layout(self) -> np.ndarray:
        return self._sensed["layout"]

    @property
    def _pose(self) -> tuple[float, float, float]:
        x, y, heading_deg = (float(value) for value in self._sensed["pose"])
        return x, y, heading_deg

    @property
    def _is_blocked(self) -> bool:
        return bool(self._sensed.get("is_blocked", False))

    def _cell_at(self, x: float, y: float) -> Cell:
        rows, columns = self._layout.shape
        return min(max(rows - 1 - math.floor(y), 0), rows - 1), min(max(math.floor(x), 0), columns - 1)

    def _center(self, cell: Cell) -> tuple[float, float]:
        return cell[1] + 0.5, self._layout.shape[0] - 1 - cell[0] + 0.5

    def _here(self) -> Cell:
        return self._cell_at(*self._pose[:2])

    def _targets_left(self) -> list[tuple[float, float]]:
        targets = np.asarray(self._sensed.get("targets", np.zeros((0, 2))))
        is_reached = np.asarray(self._sensed.get("targets_reached", np.zeros(len(targets), bool)))
        return [(float(x), float(y)) for (x, y), is_gone in zip(targets, is_reached, strict=True) if not is_gone]

    def _path_to(self, goal: Cell, avoid: set[Cell]) -> list[Cell]:
        """Return a way to a cell round `avoid` and round targets not meant to be taken; through them if need be."""
        targets = {self._cell_at(*target) for target in self._targets_left()}
        for closed in (avoid | targets, avoid):
            path = find_path(self._layout, self._here(), goal, closed, self._rng)
            if path:
                return path
        return []

    def _random_path(self) -> list[Cell]:
        rows, columns = np.nonzero(self._layout == 0)
        for _ in range(8):
            pick = int(self._rng.integers(len(rows)))
            path = self._path_to((int(rows[pick]), int(columns[pick])), set())
            if path:
                return path
        return []

    def _num_held(self, mean: float) -> int:
        return int(self._rng.geometric(1.0 / mean))

    # The mix -------------------------------------------------------------------------------------------------

    def _play(self) -> Iterator[int]:
        names = list(BEHAVIORS)
        while True:
            name = names[int(self._rng.choice(len(names), p=self._weights))]
            is_played = False
            for action in getattr(self, f"_{name}")():
                is_played = True
                yield from self._stray()
                yield action
            if not is_played:  # Nothing to do here, such as no loop in this maze: never spin without an action.
                yield from self._turn(float(self._rng.uniform(-90.0, 90.0)))
                yield from self._hold(FORWARD, self._num_held(6.0))

    def _stray(self) -> Iterator[int]:
        """Now and then stand still, or press a key that nobody needs: held and released in many ways."""
        chance = self._rng.random()
        if chance < self._pause_rate:
            yield from self._hold(NOOP, int(self._rng.integers(1, 21)))
        elif chance < self._pause_rate + self._fidget_rate:
            yield from self._hold(int(self._rng.integers(1, ACTIONS.num_actions)), self._num_held(2.0))

    def _hold(self, action: int, num_steps: int) -> Iterator[int]:
        for _ in range(num_steps):
            yield action

    def _turn(self, angle_deg: float, tolerance_deg: float = 3.5) -> Iterator[int]:
        """Turn by an angle (positive left), counting what was really turned, so that a stray key does not matter."""
        last = self._pose[2]
        for _ in range(90):
            if abs(angle_deg) <= tolerance_deg:
                return
            yield LEFT if angle_deg > 0 else RIGHT
            angle_deg -= turn_between(last, self._pose[2])
            last = self._pose[2]

    def _walk_to(self, x: float, y: float, reach: float, pivot_deg: float) -> Iterator[int]:
        """Walk to a point: turn on the spot when far off, curve when nearly aligned, else straight on."""
        slack_deg = float(self._rng.uniform(8.0, 22.0))
        is_turning = is_curving = False
        for _ in range(70):
            own_x, own_y, heading_deg = self._pose
            if math.hypot(x - own_x, y - own_y) < reach:
                return
            error_deg = turn_between(heading_deg, math.degrees(math.atan2(y - own_y, x - own_x)))
            is_left = error_deg > 0
            # A turn or curve once begun goes on until it points there, about: keys are held, not tapped.
            is_turning = abs(error_deg) > (pivot_deg / 2 if is_turning else pivot_deg)
            is_curving = abs(error_deg) > (3.0 if is_curving else slack_deg)
            if is_turning:
                yield LEFT if is_left else RIGHT
            elif is_curving:
                yield FORWARD_LEFT if is_left else FORWARD_RIGHT
            else:
                yield FORWARD

    def _walk(self, path: list[Cell]) -> Iterator[int]:
        """Walk through cells, a little off their centers, cutting corners more or less."""
        pivot_deg = float(self._rng.uniform(35.0, 80.0))
        reach = float(self._rng.uniform(0.3, 0.6))
        for index, cell in enumerate(path):
            x, y = self._center(cell)
            dx, dy = self._rng.uniform(-0.15, 0.15, 2)
            is_last = index == len(path) - 1
            yield from self._walk_to(x + dx, y + dy, 0.25 if is_last else reach, pivot_deg)

    # The behaviors -------------------------------------------------------------------------------------------

    def _tour(self) -> Iterator[int]:
        """Go to some cell of the maze."""
        yield from self._walk(self._random_path())

    def _out_and_back(self) -> Iterator[int]:
        """Go some way, turn about, come back the same way, and perhaps go once more."""
        path = self._random_path()
        path = path[: int(self._rng.integers(1, len(path) + 1))] if path else []
        ways = [path, [*path[-2::-1], self._here()]]
        for way in range(int(self._rng.integers(2, 5)) if path else 0):
            yield from self._walk(ways[way % 2])
            if self._rng.random() < 0.5:
                yield from self._turn(float(self._rng.choice([-180.0, 180.0])))

    def _loop(self) -> Iterator[int]:
        """Walk round a block: out one way, home another, once or more, in one direction."""
        start = self._here()
        for _ in range(8):
            out = self._random_path()
            home = find_path(self._layout, out[-1], start, set(out[:-1]), self._rng) if len(out) >= 2 else []
            if len(home) >= 2 and len(out) + len(home) >= 6:
                for _ in range(int(self._rng.integers(1, 4))):
                    yield from self._walk(out + home)
                return

    def _shuttle(self) -> Iterator[int]:
        """Walk straight on and back the same way without turning: the same views again, in reverse."""
        for _ in range(int(self._rng.integers(1, 3))):
            num_steps = 0
            for _ in range(self._num_held(22.0)):
                yield FORWARD
                num_steps += 1
                if self._is_blocked and self._rng.random() < 0.4:
                    break
            yield from self._hold(NOOP, int(self._rng.integers(0, 5)))
            yield from self._hold(BACK, int(num_steps * self._rng.uniform(0.5, 1.0)))

    def _look_around(self) -> Iterator[int]:
        """Pan to one side, often back again, sometimes all the way round."""
        side = float(self._rng.choice([-1.0, 1.0]))
        angle_deg = float(self._rng.choice([360.0, self._rng.uniform(12.0, 120.0), self._rng.uniform(90.0, 300.0)]))
        yield from self._turn(side * angle_deg)
        yield from self._hold(NOOP, int(self._rng.integers(0, 8)))
        if self._rng.random() < 0.6:
            yield from self._turn(-side * angle_deg * float(self._rng.choice([1.0, 1.0, 0.5])))

    def _random_keys(self) -> Iterator[int]:
        """Hold keys for geometric times, whatever is in the way."""
        mean = float(self._rng.uniform(2.0, 12.0))
        for _ in range(int(self._rng.integers(4, 14))):
            action = int(self._rng.choice(7, p=[0.06, 0.3, 0.1, 0.1, 0.1, 0.17, 0.17]))
            yield from self._hold(action, self._num_held(mean))

    def _lean_on_wall(self) -> Iterator[int]:
        """Walk on until a wall stops it, press on for a while, perhaps slide along, back off."""
        for _ in range(60):
            yield FORWARD
            if self._is_blocked:
                break
        lean = int(self._rng.choice([FORWARD, FORWARD, FORWARD_LEFT, FORWARD_RIGHT]))
        yield from self._hold(lean, self._num_held(6.0))
        yield from self._hold(BACK, int(self._rng.integers(0, 12)))

    def _bold_walk(self) -> Iterator[int]:
        """Walk on, whatever comes; where a wall stops the way, turn by some angle and walk on."""
        for _ in range(int(self._rng.integers(2, 6))):
            for _ in range(int(self._rng.integers(5, 40))):
                yield FORWARD
                if self._is_blocked:
                    break
            yield from self._hold(FORWARD, int(self._rng.integers(0, 5)))
            yield from self._turn(float(self._rng.choice([-1.0, 1.0]) * self._rng.uniform(42.0, 132.0)))

    def _walk_to_wall(self, most_steps: int = 60) -> Iterator[int]:
        for _ in range(most_steps):
            yield FORWARD
            if self._is_blocked:
                return

    def _spin_at_wall(self) -> Iterator[int]:
        """Walk up to a wall and turn all the way round there, once or twice, one way or both."""
        yield from self._walk_to_wall()
        side = float(self._rng.choice([-1.0, 1.0]))
        for _ in range(int(self._rng.integers(1, 3))):
            yield from self._turn(side * 360.0, tolerance_deg=0.5)
            side *= float(self._rng.choice([-1.0, 1.0]))

    def _corner(self) -> Iterator[int]:
        """Walk into a corner: up to a wall, then along it to the next one; look about there, and leave."""
        side = float(self._rng.choice([-1.0, 1.0]))
        yield from self._walk_to_wall()
        yield from self._turn(side * float(self._rng.uniform(30.0, 60.0)))
        yield from self._walk_to_wall(30)
        yield from self._turn(-side * float(self._rng.uniform(30.0, 120.0)))
        yield from self._turn(side * float(self._rng.uniform(60.0, 240.0)))

    def _eye_target(self) -> Iterator[int]:
        """Walk towards a target, stop short of it, look away and back; perhaps walk round it or take a last look."""
        targets = self._targets_left()
        if not targets:
            return
        x, y = targets[int(self._rng.integers(len(targets)))]
        path = self._path_to(self._cell_at(x, y), set())
        yield from self._walk(path[:-1])
        for _ in range(int(self._rng.integers(1, 4))):
            own_x, own_y, heading_deg = self._pose
            yield from self._turn(turn_between(heading_deg, math.degrees(math.atan2(y - own_y, x - own_x))))
            own_x, own_y, _ = self._pose
            if math.hypot(x - own_x, y - own_y) > 1.1:  # near, and not so near that it is taken
                yield from self._hold(FORWARD, int(self._rng.integers(1, 4)))
            yield from self._hold(NOOP, int(self._rng.integers(0, 4)))
            away_deg = float(self._rng.choice([-1.0, 1.0]) * self._rng.uniform(15.0, 110.0))
            yield from self._turn(away_deg)
            yield from self._turn(-away_deg)
            if self._rng.random() < 0.5:
                yield from self._hold(BACK, int(self._rng.integers(1, 10)))

    def _back_up(self) -> Iterator[int]:
        """Walk backward for a while, perhaps with a turn in between."""
        yield from self._hold(BACK, self._num_held(20.0))
        if self._rng.random() < 0.5:
            yield from self._turn(float(self._rng.uniform(-60.0, 60.0)))
            yield from self._hold(BACK, self._num_held(6.0))

    def _seek_target(self) -> Iterator[int]:
        """Go and take a target; only a finisher takes the last one, which ends the episode."""
        targets = self._targets_left()
        if not targets or (len(targets) == 1 and not self._is_finisher):
            return
        x, y = targets[int(self._rng.integers(len(targets)))]
        path = self._path_to(self._cell_at(x, y), set())
        yield from self._walk(path[:-1])
        yield from self._walk_to(x, y, 0.1, 50.0)
