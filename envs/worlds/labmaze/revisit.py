"""The real maze of a recorded episode, made again and put into the state of any recorded frame.

Owns: making the world that a shard names with the settings that it keeps, which targets were gone at a frame, true
depths of recorded frames, and real play that goes on from one. Does not know models or what is measured.
"""

import inspect
from typing import Any

import numpy as np

from envs.data.episodes import EpisodeInfo, read_episode, read_shard
from envs.worlds.labmaze.constants import TARGET_REACH_CELLS, VIEW_DEG
from envs.worlds.labmaze.env import LabMazeEnv
from envs.worlds.labmaze.scene import SKY_DEPTH
from worldmodel.errors import DataError

NEEDED = ("pose", "layout", "targets")


def find_reached(pose: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return which targets are gone in each frame of an episode: bool (T, n).

    Args:
        pose: float (T, 3) of the whole episode; its first frame takes no target.
        targets: float (n, 2).
    """
    apart = np.hypot(*(pose[:, None, axis] - targets[None, :, axis] for axis in range(2)))
    is_near = apart <= TARGET_REACH_CELLS
    is_near[:1] = False
    return np.maximum.accumulate(is_near, axis=0)


def _maze_settings(episode: EpisodeInfo) -> dict[str, Any]:
    """Return the settings of the maze of an episode; a session also says where it comes from, which is no setting."""
    shard = read_shard(episode.path)
    if shard.settings.get("source", "real") != "real":
        raise DataError(f"{episode.path.name} shows a dream, of which there is no real maze: record one with --real")
    accepted = inspect.signature(LabMazeEnv).parameters
    found = {name: value for name, value in shard.settings.items() if name in accepted}
    return found | {"image_size": shard.image_size}


class RealMaze:
    """A real world that visits recorded frames. Use it as a context manager: it holds an OpenGL context.

    Args:
        episode: any episode of the recording; all others must have been recorded with its settings.

    Attributes:
        sky_depth: depth of the sky.
        view_deg: angle of view, degrees.

    Raises:
        DataError: recorded without poses, or a dream.
        MissingPackageError: a package of the world is not installed. ConfigError: it does not accept its settings.
    """

    sky_depth, view_deg = SKY_DEPTH, VIEW_DEG

    def __init__(self, episode: EpisodeInfo) -> None:
        absent = [name for name in NEEDED if name not in episode.fields]
        if absent:
            raise DataError(f"{episode.path.name} was recorded without {', '.join(absent)}")
        # Play that goes on from a recorded frame ends nowhere.
        self.env: Any = LabMazeEnv(**(_maze_settings(episode) | {"max_episode_steps": None}))
        self._episode: EpisodeInfo | None = None
        self._pose, self._reached, self.targets = np.zeros((0, 3)), np.zeros((0, 0), bool), np.zeros((0, 2))

    @staticmethod
    def of(episode: EpisodeInfo) -> "RealMaze":
        """Return the maze of an episode, which it is in already. Errors as the class and `open`."""
        maze = RealMaze(episode)
        try:
            maze.open(episode)
        except DataError:
            maze.close()
            raise
        return maze

    def __enter__(self) -> "RealMaze":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the world; calling it again does nothing."""
        self.env.close()

    def open(self, episode: EpisodeInfo) -> tuple[np.ndarray, np.ndarray]:
        """Go into the maze of an episode.

        Returns:
            its poses float64 (T, 3), and which targets are gone in each frame, bool (T, n).

        Raises:
            DataError: the maze made again is not the recorded one.
        """
        if episode != self._episode:
            arrays = read_episode(episode, fields=NEEDED)
            _, info = self.env.reset(seed=episode.seed, options={"scene_seed": episode.scene_seed})
            is_same = [np.array_equal(info[name], arrays[name]) for name in ("layout", "targets")]
            if not all(is_same):
                raise DataError(f"maze {episode.scene_seed} of {episode.path.name}, made again, is another maze")
            self._pose, self.targets = arrays["pose"].astype(np.float64), arrays["targets"]
            self._reached = find_reached(self._pose, self.targets)
            self._episode = episode
        return self._pose, self._reached

    def depth(self, episode: EpisodeInfo, frame: int) -> np.ndarray:
        """Return the true depth of a recorded frame, cells along the heading: float32 (H, W). Errors as `open`."""
        pose, reached = self.open(episode)
        self.env.set_targets_reached(reached[frame])
        depth: np.ndarray = self.env.render_depth(*map(float, pose[frame]))
        return depth

    def put(self, episode: EpisodeInfo, frame: int) -> None:
        """Stand where a recorded frame was seen, the same targets gone. Errors as `open`."""
        pose, reached = self.open(episode)
        self.env.set_targets_reached(reached[frame])
        self.env.set_pose(*map(float, pose[frame]))

    def play(self, episode: EpisodeInfo, frame: int, actions: np.ndarray) -> np.ndarray:
        """Step on from a recorded frame and return the N frames that follow, uint8 (N, H, W, 3). Errors as `open`."""
        self.put(episode, frame)
        return np.stack([self.env.step(int(action))[0] for action in actions])
