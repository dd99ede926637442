"""What a frame of a recorded maze shows: rays cast from its pose through the known layout.

Owns: the wall block, its side and its distance in each of `NUM_COLUMNS` columns of a frame, the wall and floor texture
of its middle, and what an episode must have recorded for that. Does not know pixels, looks of textures or models.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from envs.data.episodes import EpisodeInfo, read_episode
from envs.worlds.base import Places
from envs.worlds.labmaze.constants import VIEW_DEG
from envs.worlds.labmaze.maze import NO_TEXTURE, Maze
from envs.worlds.labmaze.scene import EYE_HEIGHT
from worldmodel.errors import DataError

NUM_COLUMNS = 33  # odd: the ray of the middle column goes straight ahead
MIDDLE = NUM_COLUMNS // 2
SIGHT_FIELDS = ("pose", "layout", "wall_textures", "floor_textures")
HALF_WIDTH = 3  # columns to either side of the middle that a judged wall fills: a dream may be a little off
MAX_DISTANCE = 4.0  # a wall farther than this is not well seen
MARGIN_CELLS = 0.3  # what must be free beyond a walk
PLAIN: dict[str, Any] = {"half_width": 2, "nearest": 0.72, "farthest": 4.5}  # wider than what is judged
NEAREST, FARTHEST = 0.8, 3.2  # distance of a judged wall, cells; nearer the frame shows no floor
_TANGENT = float(np.tan(np.radians(VIEW_DEG / 2)))  # of the picture at distance 1
_NEAREST_FLOOR = EYE_HEIGHT / _TANGENT  # distance of the floor at the lower edge of the picture, cells
_TARGET_RADIUS = 0.2
_WEST, _EAST, _SOUTH, _NORTH = range(4)


@dataclass(frozen=True)
class Sight:
    """Which walls the frames of one maze show.

    Attributes:
        blocks: int64 (T, NUM_COLUMNS), row * columns + column of the wall block in each column, left to right.
        faces: int64 (T, NUM_COLUMNS), 4 * block + side.
        distances: float64 (T, NUM_COLUMNS), cells from the eye to the wall, measured along the heading.
    """

    blocks: np.ndarray
    faces: np.ndarray
    distances: np.ndarray


@dataclass(frozen=True)
class Middle:
    """What the middle of frames shows.

    Attributes:
        is_clear: bool (T,), whether the middle columns show one wall block and one floor texture and nothing else.
        walls: int64 (T,), texture index of the wall in the middle column.
        floors: int64 (T,), texture index of the floor before that wall; 255 where the frame does not show it.
    """

    is_clear: np.ndarray
    walls: np.ndarray
    floors: np.ndarray


def check_sight_fields(episode: EpisodeInfo) -> None:
    """Check that an episode tells where its frames were seen from.

    Raises:
        DataError: it was recorded without pose or layout.
    """
    missing = [name for name in SIGHT_FIELDS if name not in episode.fields]
    if missing:
        raise DataError(
            f"{episode.key} of {episode.path} has no {', '.join(missing)}; what a frame shows is found by pose and "
            "layout: record the world with `python -m train.record --world LabMaze`"
        )


def read_sight(episode: EpisodeInfo) -> dict[str, np.ndarray]:
    """Read `SIGHT_FIELDS` of an episode and, where recorded, `targets`.

    Raises:
        DataError: they were not recorded, or the file is damaged.
    """
    check_sight_fields(episode)
    extra = ("targets",) if "targets" in episode.fields else ()
    return read_episode(episode, fields=(*SIGHT_FIELDS, *extra))


def column_slopes(num_columns: int = NUM_COLUMNS) -> np.ndarray:
    """Return how far each column looks to the left of the heading at distance 1, float64 (num_columns,)."""
    return _TANGENT * (1.0 - (2.0 * np.arange(num_columns) + 1.0) / num_columns)


def _directions(pose: np.ndarray, left: np.ndarray) -> np.ndarray:
    """Return what each column adds to x and y for one cell along the heading, (2, T, columns)."""
    heading = np.radians(pose[:, 2].astype(np.float64))[:, None]
    return np.stack([np.cos(heading) - left * np.sin(heading), np.sin(heading) + left * np.cos(heading)])


def look(layout: np.ndarray, pose: np.ndarray, num_columns: int = NUM_COLUMNS) -> Sight:
    """Cast a ray for every column of every frame.

    Args:
        layout: uint8 (rows, columns), 1 wall, 0 floor, walls all around.
        pose: float (T, 3), x and y in cells, heading in degrees, on floor.
        num_columns: columns of a frame.

    Returns:
        what the middle of each column shows.
    """
    rows, columns = layout.shape
    way = _directions(pose, column_slopes(num_columns))
    with np.errstate(divide="ignore"):
        pace = np.abs(1.0 / way)  # distance between two grid lines

    start = np.broadcast_to(pose[:, :2].T.astype(np.float64)[..., None], way.shape)
    cell = np.floor(start).astype(np.int64)
    step = np.where(way > 0, 1, -1)
    with np.errstate(invalid="ignore"):
        reach = np.where(way > 0, cell + 1 - start, start - cell) * pace  # distance of the next grid line
    reach = np.nan_to_num(reach, nan=np.inf)

    distance, side = np.zeros(way.shape[1:]), np.zeros(way.shape[1:], np.int64)
    is_flying = np.ones(way.shape[1:], bool)

    for _ in range(2 * (rows + columns)):
        axis = (reach[1] < reach[0]).astype(np.int64)
        crossed = np.where(axis == 0, reach[0], reach[1])
        distance = np.where(is_flying, crossed, distance)
        entered = np.where(axis == 0, np.where(step[0] > 0, _WEST, _EAST), np.where(step[1] > 0, _SOUTH, _NORTH))
        side = np.where(is_flying, entered, side)

        for i in range(2):
            moves = is_flying & (axis == i)
            cell[i] += moves * step[i]
            reach[i] += np.where(moves, pace[i], 0.0)
        cell[0], cell[1] = cell[0].clip(0, columns - 1), cell[1].clip(0, rows - 1)

        is_flying = is_flying & (layout[rows - 1 - cell[1], cell[0]] == 0)
        if not is_flying.any():
            break

    blocks = (rows - 1 - cell[1]) * columns + cell[0]
    return Sight(blocks, 4 * blocks + side, distance)


def judge_middle(
    arrays: Mapping[str, np.ndarray], sight: Sight, *, half_width: int, nearest: float, farthest: float
) -> Middle:
    """Find the frames whose middle shows one wall block and one floor texture, and name the textures.

    A frame is not clear where a target stands, or stood, before the wall.

    Args:
        arrays: `SIGHT_FIELDS` of an episode and, where recorded, `targets`.
        sight: of the same frames.
        half_width: columns on either side of the middle one that must agree with it.
        nearest: least distance of the wall, cells; below 0.65 the frame shows no floor.
        farthest: largest distance of the wall, cells.
    """
    layout, pose = arrays["layout"], arrays["pose"].astype(np.float64)
    rows, columns = layout.shape
    middle = slice(MIDDLE - half_width, MIDDLE + half_width + 1)
    block, distance = sight.blocks[:, MIDDLE], sight.distances[:, MIDDLE]
    is_clear = (sight.blocks[:, middle] == block[:, None]).all(1) & (distance >= nearest) & (distance <= farthest)
    # The floor between the lower edge of the picture and the wall, along the middle and the outer rays.
    way = _directions(pose, column_slopes())[:, :, [MIDDLE - half_width, MIDDLE, MIDDLE + half_width], None]
    ends = sight.distances[:, [MIDDLE - half_width, MIDDLE, MIDDLE + half_width], None] - 0.03
    at = _NEAREST_FLOOR + np.linspace(0.0, 1.0, 6) * (ends - _NEAREST_FLOOR)
    x, y = (pose[:, i, None, None] + at * way[i] for i in range(2))
    row = (rows - 1 - np.floor(y).astype(np.int64)).clip(0, rows - 1)
    seen = arrays["floor_textures"][row, np.floor(x).astype(np.int64).clip(0, columns - 1)].reshape(len(pose), -1)
    floors = seen[:, seen.shape[1] // 2].astype(np.int64)
    is_clear &= (seen == floors[:, None]).all(1) & (floors != NO_TEXTURE)
    if "targets" in arrays:
        heading = np.radians(pose[:, 2, None])
        to_x, to_y = (arrays["targets"][None, :, i] - pose[:, i, None] for i in range(2))
        ahead = to_x * np.cos(heading) + to_y * np.sin(heading)
        aside = np.abs(to_y * np.cos(heading) - to_x * np.sin(heading))
        reach = ahead.clip(0.0) * _TANGENT * (2 * half_width + 1) / NUM_COLUMNS + _TARGET_RADIUS
        is_clear &= ~((ahead > 0.0) & (ahead < distance[:, None] + _TARGET_RADIUS) & (aside < reach)).any(1)
    return Middle(is_clear, arrays["wall_textures"].reshape(-1)[block].astype(np.int64), floors)


def join_blocks(wall_textures: np.ndarray) -> np.ndarray:
    """Return the place of each cell, int64 (rows, columns): equal for blocks of one texture joined side by side."""
    places = np.arange(wall_textures.size).reshape(wall_textures.shape)
    while True:
        joined = places.copy()
        for axis in range(2):
            first, second = np.moveaxis(joined, axis, 0)[:-1], np.moveaxis(joined, axis, 0)[1:]
            textures = np.moveaxis(wall_textures, axis, 0)
            lower = np.minimum(first, second)
            is_same = textures[:-1] == textures[1:]
            first[...] = np.where(is_same, lower, first)
            second[...] = np.where(is_same, np.minimum(lower, second), second)
        if np.array_equal(joined, places):
            return places
        places = joined


def find_places(episode: EpisodeInfo) -> Places:
    """Return the walls that each frame of an episode shows: blocks of one texture joined side by side are one place.

    Raises:
        DataError: recorded without pose or layout, or the file is damaged.
    """
    arrays = read_sight(episode)
    sight = look(arrays["layout"], arrays["pose"])
    judged = judge_middle(arrays, sight, half_width=HALF_WIDTH, nearest=NEAREST, farthest=FARTHEST)
    plain = judge_middle(arrays, sight, **PLAIN)
    return Places(
        ids=join_blocks(arrays["wall_textures"]).reshape(-1)[sight.blocks],
        looks=arrays["wall_textures"].reshape(-1).astype(np.int64)[sight.blocks],
        parts=sight.faces,
        regions=sight.blocks,
        is_near=sight.distances <= MAX_DISTANCE,
        is_clear=judged.is_clear,
        is_plain=plain.is_clear,
        labels=np.stack([plain.walls, plain.floors], 1),
    )


def is_way_free(episode: EpisodeInfo, frames: np.ndarray, distance: float) -> np.ndarray:
    """Return whether a walker gets straight on from recorded frames, bool (N,); True where pose or layout are missing.

    Args:
        episode: recorded.
        frames: int64 (N,).
        distance: cells along the heading, negative backwards; `MARGIN_CELLS` beyond must be free as well.
    """
    if not {"pose", "layout"} <= set(episode.fields) or not distance:
        return np.ones(len(frames), bool)
    arrays = read_episode(episode, fields=("pose", "layout"))
    beyond = distance + math.copysign(MARGIN_CELLS, distance)
    return np.array([gets_on(arrays["layout"], arrays["pose"][frame], beyond) for frame in frames], bool)


def gets_on(layout: np.ndarray, pose: np.ndarray, distance: float) -> bool:
    """Whether a walker of a layout (rows, columns) gets straight on from a pose (3,) by so many cells."""
    maze = Maze(layout, layout, layout, np.zeros((0, 2), np.float32), 0)
    angle = np.radians(float(pose[2]))
    for walked in np.linspace(0.0, distance, max(2, int(abs(distance) / 0.05))):
        x, y = float(pose[0] + walked * np.cos(angle)), float(pose[1] + walked * np.sin(angle))
        moved = np.subtract(maze.push_out(x, y), (x, y))
        if maze.is_wall(x, y) or np.abs(moved).max() > 1e-3:
            return False
    return True
