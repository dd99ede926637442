"""What a world is: everything that is true of one world only, behind one class.

Owns: the class that worlds derive from, and the player that a world without one of its own is recorded with. Knows no
world by name (`envs.worlds.registry`).
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import gymnasium
import numpy as np

from envs.actions import ActionSet
from envs.fields import Field

MEAN_HELD_STEPS = 6.0


class Policy(Protocol):
    """Who plays a recording: draws all its chance from the generator it was made with, and sees what `info` says."""

    name: str

    def act(self, info: dict[str, Any]) -> int:
        """Return the next action, after the `info` of the last reset or step."""


class HeldActions:
    """Plays any world: draws an action, holds it for a while, and draws again."""

    name = "held actions"

    def __init__(self, num_actions: int, rng: np.random.Generator) -> None:
        """Draw from `num_actions` actions; each is held for `MEAN_HELD_STEPS` steps in the mean."""
        self._num_actions, self._rng = num_actions, rng
        self._action = self._left = 0

    def act(self, info: dict[str, Any]) -> int:
        """Return the action that is held now."""
        if not self._left:
            self._action = int(self._rng.integers(self._num_actions))
            self._left = int(self._rng.geometric(1.0 / MEAN_HELD_STEPS))
        self._left -= 1
        return self._action


@dataclass(frozen=True)
class NoSettings:
    """Settings of a world that has none."""


class World:
    """A world to record, to learn from and to play; derive from it, and name it in `envs.worlds.registry`.

    A world that gives no more than the first four attributes and `make` records, trains and plays.

    Attributes:
        name: as in `--world NAME` and in the Gymnasium ids Real/NAME-v0 and Dream/NAME-v0.
        fps: steps a second.
        actions: what a player can do, and with which keys.
        max_episode_steps: where `gymnasium.make` truncates the real world.
        Settings: a dataclass of what can be chosen of a world (`train.record --set NAME=VALUE`); its fields with values
            other than None go to `make`.
        fields: what can be recorded beside frames, actions, rewards and ends: what `observe` returns. A field "depth"
            is recorded only where it is asked for, as it takes longer than all else.
        view_deg: angle of view of the camera, degrees, where poses are recorded; else None.
        licence: what a card says of pictures of this world.
        scene: what one of its places is called, in words.
    """

    name: ClassVar[str]
    fps: ClassVar[float]
    actions: ClassVar[ActionSet]
    max_episode_steps: ClassVar[int] = 1800
    Settings: ClassVar[type] = NoSettings
    fields: ClassVar[Mapping[str, Field]] = {}
    view_deg: ClassVar[float | None] = None
    licence: ClassVar[str] = ""
    scene: ClassVar[str] = "scene"

    def make(self, **settings: Any) -> "gymnasium.Env[Any, Any]":
        """Make the real world.

        Args:
            settings: `image_size` (pixels on a side), `max_episode_steps` (None: never truncate), and fields of
                `Settings`. `reset` takes `options={"scene_seed": int}`, which chooses the scene.

        Raises:
            ConfigError: a setting is not accepted. MissingPackageError: a package is not installed; it says which.
        """
        raise NotImplementedError

    def policy(self, rng: np.random.Generator) -> Policy:
        """Return who plays a recording; default: actions drawn and held."""
        return HeldActions(self.actions.num_actions, rng)

    def observe(self, env: "gymnasium.Env[Any, Any]", info: dict[str, Any], wanted: Collection[str]) -> dict[str, Any]:
        """Return the present values of `wanted` fields: of this frame, of the step into it, or of the episode."""
        return {name: info[name] for name in wanted}
