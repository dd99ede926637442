"""`Real/LabMaze-v0`: DeepMind Lab's random mazes as a Gymnasium environment.

Owns: the rules (moves, targets, reward, ends of an episode) and the Gymnasium face. Mazes and collision are in
`maze`, pictures in `scene`. Does not know models, recordings or screens.
"""

import copy
import math
from dataclasses import dataclass
from typing import Any, SupportsFloat

import gymnasium
import numpy as np
from gymnasium import spaces

from envs.worlds.labmaze.apart import make_renderer
from envs.worlds.labmaze.constants import ACTIONS, FPS, NUM_TARGETS, TARGET_REACH_CELLS
from envs.worlds.labmaze.maze import WALKER_RADIUS, Maze, make_maze
from envs.worlds.labmaze.scene import find_palette
from worldmodel.errors import ConfigError, SeedError, StateError

# A step turns first, then walks along the new heading.
_MOVES = dict(zip(ACTIONS.names, ACTIONS.displacements, strict=True))
TURN_DEG, WALK_CELLS = _MOVES["turn_left"][0], _MOVES["forward"][1]
MAX_SEED = 2**63 - 1  # what an int64 of `info` holds


@dataclass(frozen=True, eq=False)
class MazeSnapshot:
    """A moment of a maze, which can be pickled: from `LabMazeEnv.snapshot`, for `LabMazeEnv.restore`.

    Attributes:
        scene_seed: of the maze.
        pose: x, y in cells and heading in degrees.
        targets_reached: bool (num_targets,).
        is_blocked: what `info` said.
        steps: steps since the reset.
        random_state: of `np_random`, from which the next mazes are drawn.
        random_seed: what `np_random` was made from.
        of: the settings that mazes and frames depend on, by name.
    """

    scene_seed: int
    pose: tuple[float, float, float]
    targets_reached: np.ndarray
    is_blocked: bool
    steps: int
    random_state: dict[str, Any]
    random_seed: int
    of: dict[str, Any]


class LabMazeEnv(gymnasium.Env[np.ndarray, np.int64]):
    """First-person walk through a random maze with textured walls, collecting targets; 15 steps are one second.

    | space       | type                                | meaning                                                   |
    |-------------|-------------------------------------|-----------------------------------------------------------|
    | observation | Box(0, 255, (H, W, 3), uint8)       | the frame, H = W = image_size, 70 degrees of view         |
    | action      | Discrete(7)                         | noop, forward, back, turn left, turn right, forward+left, |
    |             |                                     | forward+right; a turn is 6 degrees, a walk 0.12 cells     |
    | reward      | number of targets first reached     | within 0.45 cells; a reached target disappears            |
    | terminated  | all targets reached                 | never when num_targets is 0                               |
    | truncated   | max_episode_steps steps taken       |                                                           |

    `info` of reset and step (arrays are copies):

    | key             | type                        | meaning                                                       |
    |-----------------|-----------------------------|---------------------------------------------------------------|
    | pose            | float32 (3,)                | x, y in cells, heading in degrees in [0, 360): 0 east, 90 north |
    | layout          | uint8 (rows, columns)       | 1 wall, 0 floor; row 0 is north; a cell is 1 unit wide        |
    | wall_textures   | uint8 (rows, columns)       | palette index of each wall block, 255 for floor               |
    | floor_textures  | uint8 (rows, columns)       | palette index of each floor cell, 255 for wall                |
    | targets         | float32 (num_targets, 2)    | x, y                                                          |
    | targets_reached | bool (num_targets,)         |                                                               |
    | scene_seed      | int64                       | the maze is a function of it and of the constructor arguments |
    | is_blocked      | bool ()                     | a wall stopped, shortened or turned aside the last move       |

    It can be pickled and copied, at any moment; a copy goes on as this one would. In a process that was forked from one
    that used OpenGL, it draws in a process of its own (`envs.worlds.labmaze.apart`).

    Args:
        size: rows and columns of the maze, odd, at least 5.
        image_size: height and width of a frame in pixels, 16 to 1024.
        palette: "classic" (8 walls, 3 floors), "full" (everything of labmaze) or "plain" (flat colors).
        num_targets: spheres to find, 0 or more.
        max_episode_steps: steps until truncation, at least 1; None: never. `gymnasium.make` leaves it to `TimeLimit`.
        max_rooms: rooms of a maze at most, at least 1.
        room_min_size: shortest side of a room in cells, at least 1.
        room_max_size: longest side of a room in cells; cut to size - 2.
        extra_connection_probability: 0 to 1; higher gives more loops.
        max_wall_run: a wall texture covers straight runs of one to this many blocks, at least 1; longer is plainer.
        render_mode: None or "rgb_array".

    Raises:
        ConfigError: an argument is not accepted.
        MissingPackageError: mujoco, labmaze or OpenGL is not installed.
        StateError: another library holds OpenGL in this thread.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": FPS}

    def __init__(
        self,
        *,
        size: int = 9,
        image_size: int = 64,
        palette: str = "classic",
        num_targets: int = NUM_TARGETS,
        max_episode_steps: int | None = 1800,
        max_rooms: int = 4,
        room_min_size: int = 3,
        room_max_size: int = 5,
        extra_connection_probability: float = 0.3,
        max_wall_run: int = 3,
        render_mode: str | None = "rgb_array",
    ) -> None:
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ConfigError(f"render_mode {render_mode!r} is not accepted; use None or 'rgb_array'")
        _check_count("image_size", image_size, 16, 1024)
        if max_episode_steps is not None:
            _check_count("max_episode_steps", max_episode_steps, 1, None)

        maze_settings: dict[str, Any] = {
            "size": size,
            "max_rooms": max_rooms,
            "room_min_size": room_min_size,
            "room_max_size": room_max_size,
            "extra_connection_probability": extra_connection_probability,
            "max_wall_run": max_wall_run,
            "num_targets": num_targets,
        }
        _check_maze(**maze_settings)

        colors = find_palette(palette)
        textures = {"num_wall_textures": len(colors.walls), "num_floor_textures": len(colors.floors)}
        self._maze_settings = maze_settings | textures
        self._of = maze_settings | {"palette": palette, "image_size": image_size}
        self._renderer = make_renderer(size, num_targets, palette, image_size)
        self._is_closed = False

        self.action_set = ACTIONS
        self.action_space = self.action_set.space
        self.observation_space = spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        self.render_mode = render_mode
        self._max_episode_steps = max_episode_steps

        self._maze: Maze | None = None
        self._x = self._y = self._heading_deg = 0.0
        self._is_reached = np.zeros(num_targets, bool)
        self._num_steps = 0
        self._is_blocked = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode in a new maze, on a random floor cell, at a heading that is a multiple of 6 degrees.

        Args:
            seed: non-negative; equal seeds (and options) give equal episodes. None goes on with the random stream.
            options: {"scene_seed": int} chooses the maze, the start pose still comes from the seed; {"pose": (x, y,
                heading_deg)} chooses that too, and {"targets_reached": bool (num_targets,)} which targets are gone: so
                an episode starts where a recorded one was.

        Returns:
            Frame uint8 (H, W, 3) and info.

        Raises:
            SeedError: seed or scene_seed is negative, too large or not an integer.
            ConfigError: an option is unknown, the pose is not on free floor, there is not one value for each target, or
                no such maze has room for the targets. In the former cases the episode before goes on.
            StateError: the environment is closed.
        """
        self._require_open("reset")
        super().reset(seed=None if seed is None else _check_seed("seed", seed))
        drawn_seed = int(self.np_random.integers(2**31 - 1))
        given = dict(options or {})
        scene_seed = _check_seed("scene_seed", given.pop("scene_seed", drawn_seed))
        pose, reached = given.pop("pose", None), given.pop("targets_reached", None)
        if given:
            raise ConfigError(
                f"reset options {sorted(given)} are unknown; LabMaze accepts scene_seed, pose, targets_reached"
            )

        is_same = self._maze is not None and self._maze.seed == scene_seed
        maze = self._maze if self._maze is not None and is_same else make_maze(scene_seed, **self._maze_settings)
        drawn_pose = self._draw_pose(maze)
        start = drawn_pose if pose is None else _check_pose(maze, pose)
        is_reached = _check_reached(maze, np.zeros(len(maze.targets), bool) if reached is None else reached)
        self._place(maze, start, is_reached)
        return self._frame(), self._info()

    def _draw_pose(self, maze: Maze) -> tuple[float, float, float]:
        """Draw a start: the center of a cell without a target, a heading that is a number of turns."""
        is_free = [not _is_near(maze, *maze.center(*cell)).any() for cell in maze.floor_cells]
        cells = maze.floor_cells[is_free]
        x, y = maze.center(*cells[int(self.np_random.integers(len(cells)))])
        return x, y, TURN_DEG * int(self.np_random.integers(round(360 / TURN_DEG)))

    def _place(self, maze: Maze, pose: tuple[float, float, float], is_reached: np.ndarray) -> None:
        """Begin an episode there."""
        self._maze = maze
        self._renderer.dress(maze)
        self._is_reached = is_reached
        if is_reached.any():
            self._renderer.show_targets(~is_reached)
        self._x, self._y, self._heading_deg = pose
        self._num_steps = 0
        self._is_blocked = False

    def step(self, action: Any) -> tuple[np.ndarray, SupportsFloat, bool, bool, dict[str, Any]]:
        """Take one step of 1/15 s.

        Args:
            action: index into `action_set.names`.

        Returns:
            Frame uint8 (H, W, 3), reward, terminated, truncated, info.

        Raises:
            StateError: reset was not called, or the environment is closed.
            ActionError: not an integer, or out of range.
        """
        maze = self._require_maze("step")
        turn_deg, walk = _MOVES[self.action_set.names[self.action_set.check(action)]]
        self._heading_deg = (self._heading_deg + turn_deg) % 360.0
        self._is_blocked = False
        if walk:
            heading = math.radians(self._heading_deg)
            wanted = (self._x + walk * math.cos(heading), self._y + walk * math.sin(heading))
            self._x, self._y = maze.push_out(*wanted)
            self._is_blocked = math.dist(wanted, (self._x, self._y)) > 1e-6
        self._num_steps += 1
        is_new = _is_near(maze, self._x, self._y) & ~self._is_reached
        if is_new.any():
            self._is_reached |= is_new
            self._renderer.show_targets(~self._is_reached)
        terminated = len(self._is_reached) > 0 and bool(self._is_reached.all())
        truncated = self._max_episode_steps is not None and self._num_steps >= self._max_episode_steps
        return self._frame(), float(is_new.sum()), terminated, truncated, self._info()

    def render(self) -> np.ndarray | None:
        """Return the present frame, uint8 (H, W, 3), or None when render_mode is None.

        Raises:
            StateError: reset was not called, or the environment is closed.
        """
        self._require_maze("render")
        return None if self.render_mode is None else self._frame()

    def render_pose(self, x: float, y: float, heading_deg: float) -> np.ndarray:
        """Return what would be seen from a pose, without moving: uint8 (H, W, 3).

        Args:
            x: cells from the west edge.
            y: cells from the south edge.
            heading_deg: 0 looks east, 90 north.

        Raises:
            StateError: reset was not called, or the environment is closed.
            ConfigError: the pose is not on free floor.
        """
        x, y, heading_deg = _check_pose(self._require_maze("render_pose"), (x, y, heading_deg))
        return self._renderer.render(x, y, heading_deg)

    def render_depth(
        self, x: float | None = None, y: float | None = None, heading_deg: float | None = None
    ) -> np.ndarray:
        """Return how far away is what `render_pose` shows, cells along the heading: float32 (H, W).

        Without arguments: how far away is what the present frame shows. The sky is
        `envs.worlds.labmaze.scene.SKY_DEPTH` away. Arguments and errors as `render_pose`.
        """
        maze = self._require_maze("render_depth")
        here = (self._x, self._y, self._heading_deg)
        asked = [own if given is None else given for given, own in zip((x, y, heading_deg), here, strict=True)]
        return self._renderer.render_depth(*_check_pose(maze, asked))

    def set_pose(self, x: float, y: float, heading_deg: float) -> None:
        """Put the walker somewhere; no step is counted and no target reached. Arguments and errors as `render_pose`."""
        self._x, self._y, self._heading_deg = _check_pose(self._require_maze("set_pose"), (x, y, heading_deg))
        self._is_blocked = False

    def set_targets_reached(self, is_reached: np.ndarray) -> None:
        """Hide the targets where bool (num_targets,) `is_reached` holds and show the others; no reward is given.

        Raises:
            StateError: reset was not called, or the environment is closed.
            ConfigError: not one value for each target.
        """
        self._is_reached = _check_reached(self._require_maze("set_targets_reached"), is_reached)
        self._renderer.show_targets(~self._is_reached)

    def snapshot(self) -> MazeSnapshot:
        """Return the state of the episode and of `np_random`, for `restore`.

        Raises:
            StateError: reset was not called, or the environment is closed.
        """
        maze = self._require_maze("snapshot")
        return MazeSnapshot(
            scene_seed=maze.seed,
            pose=(self._x, self._y, self._heading_deg),
            targets_reached=self._is_reached.copy(),
            is_blocked=self._is_blocked,
            steps=self._num_steps,
            random_state=copy.deepcopy(dict(self.np_random.bit_generator.state)),
            random_seed=self.np_random_seed,
            of=dict(self._of),
        )

    def restore(self, snapshot: MazeSnapshot) -> np.ndarray:
        """Go back to a snapshot, or across to that of an environment alike; return its frame uint8 (H, W, 3).

        The snapshot stays usable. `max_episode_steps` and `render_mode` may differ.

        Raises:
            StateError: it is no snapshot, or of other settings; or the environment is closed.
        """
        self._require_open("restore")
        if not isinstance(snapshot, MazeSnapshot):
            raise StateError(f"restore takes what snapshot returned; got {type(snapshot).__name__}")
        if other := [name for name in self._of if self._of[name] != snapshot.of.get(name)]:
            theirs, ours = (", ".join(f"{name} {of.get(name)}" for name in other) for of in (snapshot.of, self._of))
            raise StateError(f"this snapshot is of {theirs}; this environment has {ours}: make one like it to go there")

        maze = make_maze(snapshot.scene_seed, **self._maze_settings)
        self._place(maze, snapshot.pose, snapshot.targets_reached.copy())
        self._num_steps, self._is_blocked = snapshot.steps, snapshot.is_blocked
        self.np_random.bit_generator.state = copy.deepcopy(snapshot.random_state)
        self._np_random_seed = snapshot.random_seed
        return self._frame()

    def __reduce__(self) -> tuple[Any, ...]:
        settings = self._of | {"max_episode_steps": self._max_episode_steps, "render_mode": self.render_mode}
        is_random = self._np_random is not None
        chance = (self.np_random.bit_generator.state, self.np_random_seed) if is_random else None
        moment = None if self._is_closed or self._maze is None else self.snapshot()
        rest = {"spec": self.spec, "action_space": self.action_space, "observation_space": self.observation_space}
        return _make_again, (type(self), settings, self._is_closed, chance, moment), rest

    def get_keys_to_action(self) -> dict[tuple[str, ...], int]:
        """Key bindings for `gymnasium.utils.play`."""
        return self.action_set.keys_to_action

    def close(self) -> None:
        """Free the renderer; calling it again does nothing.

        Raises:
            StateError: called from another thread than made it.
        """
        self._renderer.close()
        self._is_closed = True

    def _require_open(self, call: str) -> None:
        if self._is_closed:
            raise StateError(f"{call} was called after close: the environment is closed; make a new one")

    def _require_maze(self, call: str) -> Maze:
        self._require_open(call)
        if self._maze is None:
            raise StateError(f"{call} was called before reset; call reset() first")
        return self._maze

    def _frame(self) -> np.ndarray:
        return self._renderer.render(self._x, self._y, self._heading_deg)

    def _info(self) -> dict[str, Any]:
        maze = self._require_maze("info")
        return {
            "pose": np.array([self._x, self._y, self._heading_deg], np.float32),
            "layout": maze.layout.copy(),
            "wall_textures": maze.wall_textures.copy(),
            "floor_textures": maze.floor_textures.copy(),
            "targets": maze.targets.copy(),
            "targets_reached": self._is_reached.copy(),
            "scene_seed": np.int64(maze.seed),
            "is_blocked": np.array(self._is_blocked),  # a scalar of bool is nothing that Gymnasium's converters take
        }


def _make_again(
    kind: type[LabMazeEnv],
    settings: dict[str, Any],
    is_closed: bool,
    chance: tuple[dict[str, Any], int] | None,
    moment: MazeSnapshot | None,
) -> LabMazeEnv:
    """Make an environment as one that was pickled."""
    env = kind(**settings)
    if chance is not None:
        env.np_random.bit_generator.state, env._np_random_seed = chance
    if moment is not None:
        env.restore(moment)
    if is_closed:
        env.close()
    return env


def _is_near(maze: Maze, x: float, y: float) -> np.ndarray:
    """Return which targets are reached from a place: bool (num_targets,)."""
    is_near: np.ndarray = np.hypot(maze.targets[:, 0] - x, maze.targets[:, 1] - y) <= TARGET_REACH_CELLS
    return is_near


def _check_pose(maze: Maze, pose: Any) -> tuple[float, float, float]:
    """Return a pose x, y, heading_deg with its heading in [0, 360).

    Raises:
        ConfigError: it is not on free floor, or no pose.
    """
    try:
        x, y, heading_deg = (float(value) for value in pose)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"pose {pose!r} is not accepted; give x and y in cells, the heading in degrees") from error
    is_finite = all(math.isfinite(value) for value in (x, y, heading_deg))
    if not is_finite or maze.is_wall(x, y) or math.dist((x, y), maze.push_out(x, y)) > 1e-3:
        raise ConfigError(
            f"pose ({x}, {y}, {heading_deg}) is not on free floor; stay {WALKER_RADIUS} cells from walls, see info"
        )
    return x, y, heading_deg % 360.0


def _check_reached(maze: Maze, is_reached: Any) -> np.ndarray:
    """Return which targets are gone: a new bool (num_targets,).

    Raises:
        ConfigError: not one value for each target.
    """
    chosen = np.array(is_reached, bool)
    if chosen.shape != (len(maze.targets),):
        raise ConfigError(f"targets_reached has shape {chosen.shape}; give one value for each of {len(maze.targets)}")
    return chosen


def _check_maze(
    size: int,
    max_rooms: int,
    room_min_size: int,
    room_max_size: int,
    extra_connection_probability: float,
    max_wall_run: int,
    num_targets: int,
) -> None:
    """Check the settings of a maze.

    Raises:
        ConfigError: one is not accepted.
    """
    _check_count("size", size, 5, 99)
    if size % 2 == 0:
        raise ConfigError(f"size {size} is not accepted; take an odd number from 5 up, such as 9")
    _check_count("num_targets", num_targets, 0, (size - 2) ** 2 - 1)
    _check_count("max_rooms", max_rooms, 1, None)
    _check_count("room_max_size", room_max_size, 1, None)
    _check_count("max_wall_run", max_wall_run, 1, None)
    _check_count("room_min_size", room_min_size, 1, min(room_max_size, size - 2))
    if not 0 <= extra_connection_probability <= 1:
        raise ConfigError(
            f"extra_connection_probability {extra_connection_probability} is not accepted; take one from 0 to 1"
        )


def _check_count(name: str, value: Any, low: int, high: int | None) -> None:
    is_integer = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not is_integer or value < low or (high is not None and value > high):
        accepted = f"from {low} up" if high is None else f"from {low} to {high}"
        raise ConfigError(f"{name} {value!r} is not accepted; take an integer {accepted}")


def _check_seed(name: str, seed: Any) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed <= MAX_SEED:
        raise SeedError(f"{name} {seed!r} is not accepted; take an integer from 0 to {MAX_SEED}")
    return int(seed)
