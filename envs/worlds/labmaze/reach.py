"""Starts of the Reach task in mazes: poses with a sphere in view, and a short walk that leads there.

Owns: drawing them, certain of what is in view by projection and true depth; and how large a sphere a picture shows, by
its color alone. Does not know who is to reach it.
"""

import math
from typing import Any, NamedTuple

import cv2
import numpy as np

from envs.worlds.base import ReachStart, draw_scene_seed
from envs.worlds.labmaze.constants import ACTIONS, TARGET_REACH_CELLS, VIEW_DEG
from envs.worlds.labmaze.env import TURN_DEG, LabMazeEnv
from envs.worlds.labmaze.maze import Maze
from envs.worlds.labmaze.scene import TARGET_RADIUS
from envs.worlds.labmaze.targets import SAME_COLOR, disc_is_in_sight, project
from worldmodel.errors import ConfigError, DataError

SIZE_PIXELS = 64  # the frame whose pixels sizes are told in
MIN_SIZE_PX, MAX_SIZE_PX = 3.0, 48.0
MAX_MAZES, TRIES_A_MAZE, TRIES_A_WALK = 200, 40, 20
MEAN_HELD_STEPS = 3.0
_TANGENT = math.tan(math.radians(VIEW_DEG / 2))
_NEAREST = TARGET_REACH_CELLS + 0.01
# Who looks for a sphere mostly goes forward, and looks round.
_LEAD = {"noop": 1, "forward": 4, "turn_left": 2, "turn_right": 2, "forward_left": 2, "forward_right": 2}
_LEAD_ACTIONS = [ACTIONS.names.index(name) for name in _LEAD]
_LEAD_SHARES = np.array([*_LEAD.values()]) / sum(_LEAD.values())
# How the colors of the first four spheres are seen under the lights of a maze: medians of 44 to 55 views each, levels.
_SEEN_COLORS = np.array([(255, 0, 229), (0, 255, 255), (255, 255, 0), (0, 255, 48)], np.float64)
_MIN_FILLED = 0.55  # of the square about a blob that is a sphere; a disc fills 0.79 of it

Pose = tuple[float, float, float]


def find_reach_start(
    env: Any, rng: np.random.Generator, split: str, sizes_px: tuple[float, float], num_actions: int
) -> ReachStart:
    """Draw a start; as `envs.worlds.base.World.find_reach_start`."""
    real: LabMazeEnv = env.unwrapped
    low, high = sizes_px
    if not MIN_SIZE_PX <= low < high <= MAX_SIZE_PX:
        raise ConfigError(
            f"sizes from {low} to {high} pixels are not accepted; take a smaller and a larger one from {MIN_SIZE_PX:g} "
            f"to {MAX_SIZE_PX:g}"
        )
    for _ in range(MAX_MAZES):
        _, info = real.reset(options={"scene_seed": draw_scene_seed(rng, split)})
        names = ("layout", "wall_textures", "floor_textures", "targets")
        maze = Maze(**{name: info[name] for name in names}, seed=int(info["scene_seed"]))
        if not len(maze.targets):
            raise ConfigError("num_targets 0 leaves nothing to reach; take 1 or more")
        for _ in range(TRIES_A_MAZE):
            view = _draw_view(maze, rng, sizes_px)
            walk = None if view is None else _draw_walk(maze, view.pose, num_actions, rng)
            if view is None or walk is None:
                continue
            depth = real.render_depth(*view.pose)
            disc = project(np.array(view.pose), view.target, len(depth))
            if disc is not None and disc_is_in_sight(depth, disc):
                first, actions = walk
                return ReachStart({"scene_seed": maze.seed, "pose": first}, actions, view.size_px)
    raise DataError(
        f"no start with a sphere of {low:g} to {high:g} pixels in view in {MAX_MAZES} mazes: take other sizes"
    )


class _View(NamedTuple):
    """A pose, the sphere (2,) that is whole in its view were no wall before it, and how large."""

    pose: Pose
    target: np.ndarray
    size_px: float


def _draw_view(maze: Maze, rng: np.random.Generator, sizes_px: tuple[float, float]) -> _View | None:
    """Draw a place on the floor about a sphere and a heading; None where a wall is there, or the size is another."""
    low, high = (SIZE_PIXELS * TARGET_RADIUS / (size * _TANGENT) for size in reversed(sizes_px))
    target = maze.targets[int(rng.integers(len(maze.targets)))]
    margin = 1.0 / math.cos(math.radians(VIEW_DEG / 2))
    apart = math.sqrt(rng.uniform(max(low, _NEAREST) ** 2, max(high * margin, _NEAREST) ** 2))  # even over the floor
    bearing = rng.uniform(0, 2 * math.pi)
    x, y = float(target[0] + apart * math.cos(bearing)), float(target[1] + apart * math.sin(bearing))
    ahead_deg = math.degrees(bearing) + 180 + rng.uniform(-VIEW_DEG / 2, VIEW_DEG / 2)
    pose = (x, y, TURN_DEG * round(ahead_deg / TURN_DEG) % 360.0)
    if not _is_free(maze, x, y):
        return None

    disc = project(np.array(pose), target, SIZE_PIXELS)
    if disc is None or not sizes_px[0] <= 2 * disc.radius < sizes_px[1]:
        return None
    is_whole = disc.radius <= disc.column <= SIZE_PIXELS - 1 - disc.radius
    return _View(pose, target, 2 * disc.radius) if is_whole else None


def _is_free(maze: Maze, x: float, y: float) -> bool:
    """Whether a walker stands there free of walls and reaches no sphere."""
    is_on_floor = not maze.is_wall(x, y) and maze.push_out(x, y) == (x, y)
    return is_on_floor and bool((np.hypot(*(maze.targets - (x, y)).T) > _NEAREST).all())


def _draw_walk(maze: Maze, end: Pose, num_actions: int, rng: np.random.Generator) -> tuple[Pose, np.ndarray] | None:
    """Draw held actions that lead to a pose, past no wall and no sphere: the first pose, and uint8 (num_actions,)."""
    for _ in range(TRIES_A_WALK):
        actions: list[int] = []
        while len(actions) < num_actions:
            held = int(rng.geometric(1 / MEAN_HELD_STEPS))
            actions += [int(rng.choice(_LEAD_ACTIONS, p=_LEAD_SHARES))] * held
        actions = actions[:num_actions]

        x, y, heading_deg = end
        is_free = True
        for action in reversed(actions):
            turn_deg, walk = ACTIONS.displacements[action]
            heading = math.radians(heading_deg)
            x, y = x - walk * math.cos(heading), y - walk * math.sin(heading)
            heading_deg = (heading_deg - turn_deg) % 360.0
            is_free = is_free and _is_free(maze, x, y)
        if is_free:
            return (x, y, heading_deg), np.array(actions, np.uint8)
    return None


def find_seen_size(frame: np.ndarray) -> float:
    """Return how large the largest sphere of a default maze is in a picture; as `World.find_seen_size`."""
    largest = 0.0
    for color in _SEEN_COLORS:
        is_colored = (np.linalg.norm(frame.astype(np.float64) - color, axis=-1) < SAME_COLOR).astype(np.uint8)
        number, _, stats, _ = cv2.connectedComponentsWithStats(is_colored, connectivity=4)
        for blob in stats[1:number]:
            side = max(blob[cv2.CC_STAT_WIDTH], blob[cv2.CC_STAT_HEIGHT])
            if blob[cv2.CC_STAT_AREA] >= _MIN_FILLED * side**2:
                largest = max(largest, float(side))
    return largest * SIZE_PIXELS / len(frame)
