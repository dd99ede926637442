"""LabMaze as a world: its name, actions, rate, settings, what of it is recorded, and who plays it.

Owns: what the rest of the project knows of this world. Imports no engine: `make` does.
"""

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from envs.data.episodes import EpisodeInfo
from envs.fields import DEPTH, POSE, Field
from envs.worlds.base import Floor, Places, Policy, ReachStart, Revisit, Targets, World
from envs.worlds.labmaze.constants import ACTIONS, FPS, NUM_TARGETS, TARGET_REACH_CELLS, VIEW_DEG
from worldmodel.errors import ConfigError
from worldmodel.reward_rule import RewardRule

if TYPE_CHECKING:
    import gymnasium

COMMON_SETTINGS = ("image_size", "max_episode_steps", "render_mode")  # of every world
LICENCE = """\
Weights: MIT, as the code that made them. The opening frames, and what the model learned to draw, show textures of
DeepMind Lab, (c) Google LLC, licensed CC BY 4.0 (https://creativecommons.org/licenses/by/4.0/), taken through the
package labmaze (Apache-2.0) and rendered with MuJoCo (Apache-2.0)."""


@dataclass(frozen=True)
class Settings:
    """What can be chosen of a maze; None: what `LabMazeEnv` takes.

    Attributes:
        size: rows and columns, walls included; odd.
        palette: textures: classic, full or plain.
        num_targets: spheres to find.
        max_rooms: rooms at most.
        room_min_size: shortest side of a room, cells.
        room_max_size: longest side of a room, cells.
        extra_connection_probability: 0 to 1; higher gives more loops.
        max_wall_run: most blocks that one wall texture covers in a straight run.
    """

    size: int | None = None
    palette: str | None = None
    num_targets: int | None = None
    max_rooms: int | None = None
    room_min_size: int | None = None
    room_max_size: int | None = None
    extra_connection_probability: float | None = None
    max_wall_run: int | None = None


class LabMaze(World):
    """DeepMind Lab's random mazes with textured walls and spheres to collect."""

    name = "LabMaze"
    fps = FPS
    actions = ACTIONS
    max_episode_steps = 1800
    Settings = Settings
    view_deg = VIEW_DEG
    place_labels = ("wall", "floor")
    licence = LICENCE
    scene = "maze"
    fields: ClassVar[Mapping[str, Field]] = {
        "pose": POSE,
        "depth": DEPTH,
        "blocked": Field("bool", "step", 1),
        "layout": Field("uint8", "episode", 2),
        "wall_textures": Field("uint8", "episode", 2),
        "floor_textures": Field("uint8", "episode", 2),
        "targets": Field("float32", "episode", 2),
    }

    def make(self, **settings: Any) -> "gymnasium.Env[Any, Any]":
        """Make the maze world; arguments and errors as `LabMazeEnv`."""
        from envs.worlds.labmaze.env import LabMazeEnv  # the engine: only where it is needed

        accepted = [*(field.name for field in dataclasses.fields(Settings)), *COMMON_SETTINGS]
        if unknown := sorted({*settings} - {*accepted}):
            raise ConfigError(f"settings {unknown} of LabMaze are unknown; accepted: {', '.join(accepted)}")
        return LabMazeEnv(**settings)

    def reward_rule(self, settings: Mapping[str, Any]) -> RewardRule:
        """Return that a sphere, which is gone when it is reached, pays once, and that the last one ends it.

        Of 2,102 rewards recorded in 1,600 mazes two were nearer than a sphere's reach to an earlier one's place.
        """
        given = settings.get("num_targets")
        return RewardRule(TARGET_REACH_CELLS, NUM_TARGETS if given is None else int(given))

    def policy(self, rng: np.random.Generator) -> Policy:
        """Return an explorer of mazes."""
        from envs.worlds.labmaze.explorer import Explorer

        return Explorer(rng)

    def places(self, episode: EpisodeInfo) -> Places:
        """Return the walls that each frame shows; errors as `World.places`."""
        from envs.worlds.labmaze.sight import find_places

        return find_places(episode)

    def is_way_free(self, episode: EpisodeInfo, frames: np.ndarray, action: int, num_steps: int) -> np.ndarray:
        """Return where no wall is in the way; everywhere, where the recording does not tell."""
        from envs.worlds.labmaze.sight import is_way_free

        return is_way_free(episode, frames, ACTIONS.displacements[action][1] * num_steps)

    def floor(self, info: Mapping[str, Any]) -> Floor:
        """Return the cells of the maze without a sphere; errors as `World.floor`."""
        from envs.worlds.labmaze.floor import MazeFloor

        return MazeFloor(info)

    def revisit(self, episode: EpisodeInfo) -> Revisit:
        """Return the maze of an episode, made again; errors as `World.revisit`."""
        from envs.worlds.labmaze.revisit import RealMaze

        return RealMaze.of(episode)

    def targets(self, episode: EpisodeInfo, image_size: int) -> Targets:
        """Return the spheres of recorded mazes; errors as `World.targets`."""
        from envs.worlds.labmaze.targets import Spheres

        return Spheres(episode, image_size)

    def find_reach_start(
        self,
        env: "gymnasium.Env[Any, Any]",
        rng: np.random.Generator,
        split: str,
        sizes_px: tuple[float, float],
        num_actions: int,
    ) -> ReachStart:
        """Draw a maze and a pose with a sphere in view; errors as `World.find_reach_start`."""
        from envs.worlds.labmaze.reach import find_reach_start

        return find_reach_start(env, rng, split, sizes_px, num_actions)

    def find_seen_size(self, frame: np.ndarray) -> float:
        """Return the diameter of the largest sphere in a picture, of one of the first four by its color; 0 without."""
        from envs.worlds.labmaze.reach import find_seen_size

        return find_seen_size(frame)

    def observe(self, env: "gymnasium.Env[Any, Any]", info: dict[str, Any], wanted: Collection[str]) -> dict[str, Any]:
        """Return the present values of `wanted` fields."""
        unwrapped: Any = env.unwrapped
        others = {"blocked": lambda: info["is_blocked"], "depth": lambda: unwrapped.render_depth()}
        return {name: others[name]() if name in others else info[name] for name in wanted}
