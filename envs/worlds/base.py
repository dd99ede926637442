"""What a world is: everything that is true of one world only, behind one class.

Owns: the class that worlds derive from, and the player that a world without one of its own is recorded with. Knows no
world by name (`envs.worlds.registry`).
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

import gymnasium
import numpy as np

from envs.actions import ActionSet
from envs.data.episodes import EpisodeInfo
from envs.fields import Field
from worldmodel.errors import ConfigError, DataError
from worldmodel.reward_rule import RewardRule

MEAN_HELD_STEPS = 6.0
TEST_SCENE_DIVISOR = 16  # scene seeds that it divides are kept for testing, in every recording and every task
SPLITS_OF_SCENES = ("train", "test", "any")


def draw_scene_seed(rng: np.random.Generator, split: str) -> int:
    """Draw the seed of a scene below 2**31: one kept for testing, another one, or any.

    Raises:
        ConfigError: `split` is none of `SPLITS_OF_SCENES`.
    """
    if split not in SPLITS_OF_SCENES:
        raise ConfigError(f"split {split!r} is not accepted; use one of {', '.join(SPLITS_OF_SCENES)}")
    seed = int(rng.integers(2**31))
    if split == "any":
        return seed
    rest = 0 if split == "test" else int(rng.integers(1, TEST_SCENE_DIVISOR))
    return seed - seed % TEST_SCENE_DIVISOR + rest


class Policy(Protocol):
    """Who plays a recording: draws all its chance from the generator it was made with, and sees what `info` says."""

    name: str

    def act(self, info: dict[str, Any]) -> int:
        """Return the next action, after the `info` of the last reset or step."""


@dataclass(frozen=True)
class Places:
    """What the frames of an episode show of the places of its scene, in K columns from left to right.

    A place is what one remembers as one thing; what it looks like may be shared by others.

    Attributes:
        ids: int64 (T, K), the place in each column.
        looks: int64 (T, K), what it looks like, by number.
        parts: int64 (T, K), which part of the place it is; a place is well seen where the same part is.
        regions: int64 (T, K), what belongs together in the picture; the middle one's columns are compared.
        is_near: bool (T, K), whether it is near enough to be well seen.
        is_clear: bool (T,), whether the middle shows one place and nothing else, so that `labels` says what it shows.
        is_plain: bool (T,), the same, less strictly: what labels are learned from.
        labels: int64 (T, L), what the middle shows, a number for each of `World.place_labels`.
    """

    ids: np.ndarray
    looks: np.ndarray
    parts: np.ndarray
    regions: np.ndarray
    is_near: np.ndarray
    is_clear: np.ndarray
    is_plain: np.ndarray
    labels: np.ndarray


class Revisit(Protocol):
    """The real scene of recorded episodes, put into the state of any recorded frame. A context manager."""

    sky_depth: float
    view_deg: float

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def close(self) -> None:
        """Free it; calling it again does nothing."""
        ...

    def depth(self, episode: EpisodeInfo, frame: int) -> np.ndarray:
        """Return how far away what a recorded frame shows is, along the heading: float32 (H, W); the sky `sky_depth`.

        Raises:
            DataError: the scene made again is not the recorded one.
        """
        ...

    def play(self, episode: EpisodeInfo, frame: int, actions: np.ndarray) -> np.ndarray:
        """Step on from a recorded frame; return the N frames that follow, uint8 (N, H, W, 3). Errors as `depth`."""
        ...


class Walker(Protocol):
    """Steers to a target by frames alone."""

    def act(self, frame: np.ndarray) -> int:
        """Return the next action, after a frame uint8 (H, W, 3)."""
        ...


@dataclass(frozen=True)
class TargetView:
    """A target as a picture shows it, found by its looks alone.

    Attributes:
        kind: what it looks like, by number; the targets of one scene have different looks.
        size: its diameter in pixels, at 64 pixels a frame.
        column: of its middle, pixels.
        row: of its middle, pixels.
    """

    kind: int
    size: float
    column: float
    row: float


class TargetStart(Protocol):
    """A recorded frame with a target in view."""

    episode: EpisodeInfo
    frame: int
    target: int


class Targets(Protocol):
    """Things of a world that pay when they are reached, in recorded scenes made again. A context manager.

    Attributes:
        sizes: names of the sizes at which targets are seen, smallest first.
    """

    sizes: tuple[str, ...]

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def find(
        self, episodes: list[EpisodeInfo], known: int, ahead: int, count: int, rng: np.random.Generator
    ) -> list[Any]:
        """Return up to `count` `TargetStart`, about equally many of each size, at most one a target.

        Args:
            episodes: to choose from.
            known: frames of context that must lie before, the frame itself the last of them.
            ahead: frames after which the target must still be in view.
            count: how many.
            rng: chance.

        Raises:
            DataError: a scene made again is not the recorded one.
        """
        ...

    def size_of(self, start: Any) -> int:
        """Return the number of the size at which a start shows its target."""
        ...

    def is_shown(self, start: Any, frame: int, picture: np.ndarray) -> bool:
        """Return whether a picture uint8 (H, W, 3), put in place of a recorded frame, shows the target where it is."""
        ...

    def without(self, start: Any, frame: int) -> np.ndarray:
        """Return a recorded frame as it would be without the start's target: uint8 (H, W, 3)."""
        ...

    def walker(self, start: Any) -> Walker:
        """Return who walks to the start's target, the same in the real world and in dreams."""
        ...

    def views(self, picture: np.ndarray) -> list[TargetView]:
        """Return the targets that a picture uint8 (H, W, 3) shows, the largest first."""
        ...

    def seeker(self, rng: np.random.Generator) -> Walker:
        """Return who walks to any target it sees, one after another, and looks for one where it sees none."""
        ...

    def play(
        self, episode: EpisodeInfo, frame: int, walker: Walker, first: np.ndarray, num_steps: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Walk on in the real world from a recorded frame, which shows `first`, until it ends or `num_steps` are taken.

        Returns:
            frames uint8 (N, H, W, 3), rewards float32 (N,), and ends bool (N,).

        Raises:
            DataError: the scene made again is not the recorded one.
        """
        ...

    def reaches(self, start: Any, first: np.ndarray, num_steps: int) -> bool:
        """Return whether that walker is paid within `num_steps` in the real world, from the start's frame `first`."""
        ...


class Floor(Protocol):
    """Where a walker can go in a scene: places, and ways that lead from each to the next along one axis of poses.

    Attributes:
        places: float64 (N, 2), x and y.
        here: the number of the place where the walker is.
    """

    places: np.ndarray
    here: int

    def find_way(self, start: int, goal: int, avoid: Collection[int], rng: np.random.Generator) -> list[int]:
        """Return the places of a shortest way, both ends included; empty where there is none.

        Args:
            start: where it begins.
            goal: where it ends.
            avoid: places not to pass, other than the ends.
            rng: chooses among ways of equal length.
        """
        ...


@dataclass(frozen=True)
class ReachStart:
    """A state of a real world with something that pays in view, and the way that leads there.

    Attributes:
        options: of the real world's reset, for the state at the beginning of the way.
        actions: uint8 (n,), the way; its last frame is the start.
        size_px: how large what pays is seen, pixels of 64 a frame.
    """

    options: dict[str, Any]
    actions: np.ndarray
    size_px: float


class HeldActions:
    """Plays any world: draws an action, holds it for a while, and draws again."""

    name = "held actions"

    def __init__(self, num_actions: int, rng: np.random.Generator) -> None:
        """Draw from `num_actions` actions; each is held for `MEAN_HELD_STEPS` steps in the mean."""
        self._num_actions, self._rng = num_actions, rng
        self._action = self._left = 0

    def act(self, seen: Any) -> int:
        """Return the action that is held now; what is seen, `info` or a frame, is not looked at."""
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
        place_labels: names of what `places` says of the middle of a frame; empty where the world knows no places.
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
    place_labels: ClassVar[tuple[str, ...]] = ()
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

    def places(self, episode: EpisodeInfo) -> Places:
        """Return what each frame of a recorded episode shows of the places of its scene.

        Raises:
            DataError: the world knows none, or the recording lacks what it takes; says what.
        """
        raise DataError(f"the world {self.name} does not tell what places a frame shows (World.places)")

    def is_way_free(self, episode: EpisodeInfo, frames: np.ndarray, action: int, num_steps: int) -> np.ndarray:
        """Return whether nothing would stop an action held for `num_steps` steps from recorded frames: bool (N,).

        Args:
            episode: recorded.
            frames: int64 (N,).
            action: held.
            num_steps: for so long.
        """
        return np.ones(len(frames), bool)

    def reward_rule(self, settings: Mapping[str, Any]) -> RewardRule:
        """Return what is known of the rewards of this world, made with `settings`: what dreams of it keep to."""
        return RewardRule()

    def floor(self, info: Mapping[str, Any]) -> Floor:
        """Return where a walker can go without changing the scene, by the `info` of the last reset or step.

        Raises:
            DataError: the world does not tell.
        """
        raise DataError(f"the world {self.name} does not tell where a walker can go (World.floor)")

    def revisit(self, episode: EpisodeInfo) -> Revisit:
        """Return the real scene of a recorded episode, for all episodes recorded with its settings.

        Raises:
            DataError: the world has no such thing, or the recording lacks what it takes.
            MissingPackageError: a package of the world is not installed.
        """
        raise DataError(f"the world {self.name} cannot be put into the state of a recorded frame (World.revisit)")

    def targets(self, episode: EpisodeInfo, image_size: int) -> Targets:
        """Return what pays in the scenes of a recording, one episode of which is given.

        Raises:
            DataError: nothing is known of that, or the recording lacks what it takes.
            MissingPackageError: a package of the world is not installed.
        """
        raise DataError(f"the world {self.name} does not tell what pays in it (World.targets)")

    def find_reach_start(
        self,
        env: "gymnasium.Env[Any, Any]",
        rng: np.random.Generator,
        split: str,
        sizes_px: tuple[float, float],
        num_actions: int,
    ) -> ReachStart:
        """Draw a start of the Reach task (`envs.tasks.reach`): something that pays is in view, and none on the way.

        Args:
            env: the real world, which may be reset.
            rng: all chance comes from here.
            split: of the scenes, see `draw_scene_seed`.
            sizes_px: smallest size at which it is seen and the one that is too large, pixels of 64 a frame.
            num_actions: steps of the way.

        Raises:
            ConfigError: the sizes or the split are not accepted. DataError: the world does not tell what pays.
        """
        raise DataError(f"the world {self.name} does not tell from where what pays is in view (World.find_reach_start)")

    def find_seen_size(self, frame: np.ndarray) -> float:
        """Return how large the largest thing that pays is in a picture uint8 (H, W, 3), pixels of 64; 0 without one.

        Raises:
            DataError: the world does not tell.
        """
        raise DataError(f"the world {self.name} does not tell what pays in a picture (World.find_seen_size)")

    def observe(self, env: "gymnasium.Env[Any, Any]", info: dict[str, Any], wanted: Collection[str]) -> dict[str, Any]:
        """Return the present values of `wanted` fields: of this frame, of the step into it, or of the episode."""
        return {name: info[name] for name in wanted}
