"""Where a walker can go in a maze: the cells of its floor that hold no sphere to take.

Owns: the numbers of cells and their centers. Does not know how a walker gets from one to the next.
"""

import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from envs.worlds.labmaze.explorer import Cell, find_path
from worldmodel.errors import DataError

NEEDED = ("pose", "layout")


class MazeFloor:
    """The cells of a maze as places; a place is row * columns + column of its cell.

    Args:
        info: of a reset or a step: "pose" (3,), "layout" (rows, columns), and where there are spheres "targets" (n, 2)
            and "targets_reached" (n,).

    Attributes:
        places: float64 (N, 2), centers of all cells, walls too.
        here: the place where the walker is.

    Raises:
        DataError: pose or layout is missing.
    """

    def __init__(self, info: Mapping[str, Any]) -> None:
        if missing := [name for name in NEEDED if name not in info]:
            raise DataError(f"where a walker can go is found by {', '.join(NEEDED)}; info has no {', '.join(missing)}")
        layout = np.asarray(info["layout"])
        self._rows, self._columns = layout.shape
        row, column = np.divmod(np.arange(layout.size), self._columns)
        self.places = np.stack([column + 0.5, self._rows - row - 0.5], 1)
        self.here = self._number(*map(float, info["pose"][:2]))

        # A sphere that is taken on the way is gone afterwards, and the place looks different.
        self._closed = layout.astype(np.uint8).copy()
        targets = np.asarray(info.get("targets", np.zeros((0, 2))))
        is_reached = np.asarray(info.get("targets_reached", np.zeros(len(targets), bool)))
        for x, y in targets[~is_reached]:
            self._closed.reshape(-1)[self._number(float(x), float(y))] = 1

    def find_way(self, start: int, goal: int, avoid: Collection[int], rng: np.random.Generator) -> list[int]:
        """Return the places of a shortest way over free cells; as `envs.worlds.base.Floor.find_way`."""
        if start == goal or self._closed.reshape(-1)[goal]:
            return []
        cells = {self._cell(place) for place in avoid}
        path = find_path(self._closed, self._cell(start), self._cell(goal), cells, rng)
        return [start, *(row * self._columns + column for row, column in path)] if path else []

    def _cell(self, place: int) -> Cell:
        return divmod(place, self._columns)

    def _number(self, x: float, y: float) -> int:
        row, column = self._rows - 1 - math.floor(y), math.floor(x)
        return row * self._columns + column
