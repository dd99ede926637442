"""Random mazes of DeepMind Lab's generator and walking in them; no pictures.

Owns: the maze (layout, which texture index each block wears, targets) as a function of its seed, and collision.
Coordinates: cell units, x east, y north, row 0 of the layout at the top, so that cell (row, column) has its center at
x = column + 0.5, y = (num_rows - 1 - row) + 0.5. Does not know textures, rendering or Gymnasium.
"""

import math
from dataclasses import dataclass

import numpy as np

from worldmodel.errors import ConfigError, MissingPackageError

NO_TEXTURE = 255
WALKER_RADIUS = 0.25
_MAX_TRIES = 200
_MIN_FLOOR_SHARE, _MIN_FLOOR_CELLS = 0.4, 20


@dataclass(frozen=True)
class Maze:
    """One maze; equal seeds and arguments give equal mazes.

    Attributes:
        layout: uint8 (rows, columns), 1 wall, 0 floor; the border is wall and all floor is connected.
        wall_textures: uint8 (rows, columns), texture index of each wall block, 255 for floor.
        floor_textures: uint8 (rows, columns), texture index of each floor cell, 255 for wall.
        targets: float32 (num_targets, 2), x and y in cell units, at centers of distinct floor cells.
        seed: the seed it was made from.
    """

    layout: np.ndarray
    wall_textures: np.ndarray
    floor_textures: np.ndarray
    targets: np.ndarray
    seed: int

    @property
    def floor_cells(self) -> np.ndarray:
        """int64 (num_floor_cells, 2): row and column of each floor cell, row by row."""
        return np.argwhere(self.layout == 0)

    def center(self, row: int, column: int) -> tuple[float, float]:
        """Return x, y of the center of a cell."""
        return column + 0.5, self.layout.shape[0] - 1 - row + 0.5

    def is_wall(self, x: float, y: float) -> bool:
        """Whether the point lies in a wall block or outside the maze."""
        row, column = self.layout.shape[0] - 1 - math.floor(y), math.floor(x)
        if not (0 <= row < self.layout.shape[0] and 0 <= column < self.layout.shape[1]):
            return True
        return bool(self.layout[row, column])

    def push_out(self, x: float, y: float) -> tuple[float, float]:
        """Return the nearest place where a walker whose center is on floor touches no wall.

        The deepest overlap is undone first, so a seam between two blocks does not catch a walker sliding along them.
        """
        for _ in range(8):
            deepest = self._nearest_wall(x, y)
            if deepest is None:
                break
            distance, wall_x, wall_y = deepest
            scale = WALKER_RADIUS / distance
            x, y = wall_x + (x - wall_x) * scale, wall_y + (y - wall_y) * scale
        return x, y

    def _nearest_wall(self, x: float, y: float) -> tuple[float, float, float] | None:
        """Distance and point of the nearest wall that overlaps a walker at x, y; None when it stands free."""
        best: tuple[float, float, float] | None = None
        for cell_x in range(math.floor(x) - 1, math.floor(x) + 2):
            for cell_y in range(math.floor(y) - 1, math.floor(y) + 2):
                if self.is_wall(cell_x + 0.5, cell_y + 0.5):
                    wall_x = min(max(x, cell_x), cell_x + 1.0)
                    wall_y = min(max(y, cell_y), cell_y + 1.0)
                    distance = math.hypot(x - wall_x, y - wall_y)
                    is_overlap = 0.0 < distance < WALKER_RADIUS - 1e-9
                    if is_overlap and (best is None or distance < best[0]):
                        best = (distance, wall_x, wall_y)
        return best


def make_maze(
    seed: int,
    *,
    size: int,
    max_rooms: int,
    room_min_size: int,
    room_max_size: int,
    extra_connection_probability: float,
    num_targets: int,
    num_wall_textures: int,
    num_floor_textures: int,
    max_wall_run: int = 3,
) -> Maze:
    """Draw a maze.

    Args:
        seed: non-negative; the maze depends on it and on the other arguments only.
        size: rows and columns, odd, at least 5.
        max_rooms: at most this many rooms, at least 1.
        room_min_size: shortest side of a room in cells.
        room_max_size: longest side of a room in cells; cut to size - 2, as labmaze breaks the border for larger ones.
        extra_connection_probability: chance of a further door between regions already joined: loops to walk.
        num_targets: how many targets to place.
        num_wall_textures: wall texture indices are drawn from [0, num_wall_textures).
        num_floor_textures: floor texture indices are drawn from [0, num_floor_textures).
        max_wall_run: a texture covers straight runs of one to this many wall blocks.

    Raises:
        ConfigError: labmaze rejects the sizes, or no maze of this size has room for the targets.
        MissingPackageError: labmaze is not installed.
    """
    try:
        import labmaze
    except ImportError as error:
        raise MissingPackageError(f"{error}; the LabMaze world needs: pip install mujoco labmaze") from error

    rng = np.random.default_rng(seed)
    min_floor = max(num_targets + 1, min(_MIN_FLOOR_SHARE * (size - 2) ** 2, _MIN_FLOOR_CELLS))

    # The generator now and then leaves a single small room, or none; those draws are passed over.
    for _ in range(_MAX_TRIES):
        try:
            drawn = labmaze.RandomMaze(
                height=size,
                width=size,
                max_rooms=max_rooms,
                room_min_size=room_min_size,
                room_max_size=min(room_max_size, size - 2),
                extra_connection_probability=extra_connection_probability,
                random_seed=int(rng.integers(2**31 - 1)),
            )
        except (ValueError, RuntimeError) as error:
            raise ConfigError(f"labmaze accepts no such maze: {error}; change size, max_rooms or room sizes") from error

        layout = (np.asarray(drawn.entity_layer) == "*").astype(np.uint8)
        if (layout == 0).sum() >= min_floor:
            break
    else:
        raise ConfigError(
            f"no maze of size {size} with {num_targets} targets in {_MAX_TRIES} draws; "
            "take a larger size or max_rooms, or fewer num_targets"
        )

    cells = np.argwhere(layout == 0)
    chosen = cells[rng.choice(len(cells), size=num_targets, replace=False)]
    targets = np.stack([chosen[:, 1] + 0.5, size - 1 - chosen[:, 0] + 0.5], axis=1).astype(np.float32)

    return Maze(
        layout=layout,
        wall_textures=_dress_walls(layout, num_wall_textures, max_wall_run, rng),
        floor_textures=_dress_floors(layout, np.asarray(drawn.variations_layer), num_floor_textures, rng),
        targets=targets,
        seed=seed,
    )


def _dress_walls(layout: np.ndarray, num_textures: int, max_run: int, rng: np.random.Generator) -> np.ndarray:
    """Give wall blocks texture indices in straight runs of one to `max_run` blocks; uint8, 255 on floor."""
    textures = np.full(layout.shape, NO_TEXTURE, np.uint8)
    walls = np.argwhere(layout == 1)
    for row, column in rng.permutation(walls):
        texture = int(rng.integers(num_textures))
        row_step, column_step = ((0, 1), (1, 0))[int(rng.integers(2))]
        for offset in range(int(rng.integers(1, max_run + 1))):
            place = (row + offset * row_step, column + offset * column_step)
            is_inside = place[0] < layout.shape[0] and place[1] < layout.shape[1]
            if not is_inside or layout[place] == 0 or textures[place] != NO_TEXTURE:
                break
            textures[place] = texture
    return textures


def _dress_floors(
    layout: np.ndarray, variations: np.ndarray, num_textures: int, rng: np.random.Generator
) -> np.ndarray:
    """Give each room of the generator, and the corridors, one floor texture; uint8, 255 on walls."""
    textures = np.full(layout.shape, NO_TEXTURE, np.uint8)
    first = int(rng.integers(num_textures))
    # Neighboring letters get different textures: counting on from a random start, not drawing each anew.
    for order, letter in enumerate(sorted(set(variations[layout == 0].tolist()))):
        textures[(layout == 0) & (variations == letter)] = (first + order) % num_textures
    return textures
