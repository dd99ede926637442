"""A maze world without pictures for tests: the kinematics of `Real/LabMaze-v0` on fixed layouts, in plain Python."""

import math
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from envs.worlds.labmaze.spec import LabMaze

MAZES = [
    "#########|#     ###|# ### ###|# ###   #|#     # #|### # # #|#   #   #|#   # ###|#########",
    "#########|###   ###|### # ###|#   #   #|#   #   #|#   #   #|### #   #|###     #|#########",
    "#########|#       #|#   ### #|#       #|# ###   #|#   #   #|#   #   #|#       #|#########",
]


class StubMazeEnv(gymnasium.Env[np.ndarray, int]):
    """Walks like the real world; a frame is a flat color made of the pose."""

    metadata: dict[str, Any] = {"render_modes": []}

    def __init__(
        self, *, size: int = 9, image_size: int = 64, palette: str = "classic", max_episode_steps: int = 1800
    ) -> None:
        self.image_size, self.max_episode_steps, self.num_targets = image_size, max_episode_steps, 4
        self.observation_space = spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        self.action_space = spaces.Discrete(7)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.scene_seed = int((options or {}).get("scene_seed", 0))
        rng = np.random.default_rng(self.scene_seed)
        rows = MAZES[self.scene_seed % len(MAZES)].split("|")
        self.layout = np.array([[character == "#" for character in row] for row in rows], np.uint8)
        floor = np.argwhere(self.layout == 0)
        picks = floor[rng.permutation(len(floor))[: self.num_targets + 1]]
        centers = np.stack([picks[:, 1] + 0.5, len(rows) - 1 - picks[:, 0] + 0.5], 1).astype(np.float32)
        self.targets, (self.x, self.y) = centers[1:], (float(v) for v in centers[0])
        self.heading_deg, self.num_steps, self.is_blocked = 6.0 * float(rng.integers(60)), 0, False
        self.is_reached = np.zeros(self.num_targets, bool)
        return self._frame(), self._info()

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.heading_deg = (self.heading_deg + 6.0 * ((action in (3, 5)) - (action in (4, 6)))) % 360.0
        distance = 0.12 * ((action in (1, 5, 6)) - (action == 2))
        angle = math.radians(self.heading_deg)
        x, y = self.x + distance * math.cos(angle), self.y + distance * math.sin(angle)
        self.is_blocked = False
        if self._is_free(x, self.y):
            self.x = x
        else:
            self.is_blocked = True
        if self._is_free(self.x, y):
            self.y = y
        else:
            self.is_blocked = True
        self.num_steps += 1
        near = np.hypot(self.targets[:, 0] - self.x, self.targets[:, 1] - self.y) < 0.45
        reward = float((near & ~self.is_reached).sum())
        self.is_reached = self.is_reached | near
        is_over = bool(self.is_reached.all())
        return self._frame(), reward, is_over, self.num_steps >= self.max_episode_steps, self._info()

    def _is_free(self, x: float, y: float) -> bool:
        corners = [(x + dx, y + dy) for dx in (-0.25, 0.25) for dy in (-0.25, 0.25)]
        return not any(self.layout[len(self.layout) - 1 - math.floor(b), math.floor(a)] for a, b in corners)

    def _frame(self) -> np.ndarray:
        color = (int(self.x * 25) % 256, int(self.y * 25) % 256, int(self.heading_deg / 2) % 256)
        return np.full((self.image_size, self.image_size, 3), color, np.uint8)

    def _info(self) -> dict[str, Any]:
        textures = np.where(self.layout == 1, 0, 255).astype(np.uint8)
        return {
            "pose": np.array([self.x, self.y, self.heading_deg], np.float32),
            "layout": self.layout.copy(),
            "wall_textures": textures,
            "floor_textures": np.where(self.layout == 0, 0, 255).astype(np.uint8),
            "targets": self.targets.copy(),
            "targets_reached": self.is_reached.copy(),
            "scene_seed": self.scene_seed,
            "is_blocked": self.is_blocked,
        }


class Stub(LabMaze):
    """The stub as a world."""

    name = "Stub"

    def make(self, **settings: Any) -> gymnasium.Env[Any, Any]:
        return StubMazeEnv(**settings)


if __name__ == "__main__":
    # `python tests/stub_maze.py --world stub_maze:Stub ...` is `python -m train.record` that can import this file.
    from train.core.options import run_program
    from train.record import main

    run_program(main)
