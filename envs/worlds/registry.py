"""Which worlds there are, by name; each is imported when it is asked for.

Owns: the table, and how a world outside of this package is named. Imports no world.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import gymnasium

from envs.data.episodes import EpisodeInfo, read_shard
from envs.worlds.base import Revisit, World
from worldmodel.errors import ConfigError, DataError, MissingPackageError
from worldmodel.imports import import_class


class Entry(NamedTuple):
    """Where a world is: module:class; its `max_episode_steps` and tasks, for Gymnasium to know without importing it."""

    place: str
    max_episode_steps: int
    tasks: tuple[str, ...] = ()


WORLDS: dict[str, Entry] = {
    "LabMaze": Entry("envs.worlds.labmaze.spec:LabMaze", 1800, ("Reach",)),
}

TASKS: dict[str, int] = {"Reach": 100}
"""Tasks of `envs.tasks`, each a module of its name; and the steps after which Gymnasium truncates them."""


def find_name(name: str) -> str:
    """Return a world's name as the table has it, whatever its letters' case; "module:class" stays as it is.

    Raises:
        ConfigError: no such world; the message lists those there are.
    """
    if ":" in name:
        return name
    found = {known.lower(): known for known in WORLDS}
    if name.lower() not in found:
        raise ConfigError(
            f"unknown world {name!r}; there are {', '.join(WORLDS)}, or give module:class of a world of your own"
        )
    return found[name.lower()]


def get_world(name: str) -> World:
    """Return a world.

    Args:
        name: as in `WORLDS`, whatever its letters' case; or "module:class", to be found on the import path.

    Raises:
        ConfigError: no such world, or what is named is none.
    """
    return _load(find_name(name))


@functools.cache
def _load(name: str) -> World:
    place = WORLDS[name].place if name in WORLDS else name
    return import_class(place, World, f"world {name!r}")()


def find_displacements(world: str, action_names: Sequence[str]) -> tuple[tuple[float, float], ...]:
    """Return the displacements of a world's actions; empty where the world, or these actions of it, are not known."""
    try:
        actions = get_world(world).actions
    except ConfigError:
        return ()
    return actions.displacements if actions.names == tuple(action_names) else ()


def find_view_deg(world: str) -> float | None:
    """Return the angle of view of a world's camera in degrees; None where it, or the world, is not known."""
    try:
        return get_world(world).view_deg
    except ConfigError:
        return None


def world_of(episode: EpisodeInfo) -> World:
    """Return the world that an episode was recorded in.

    Raises:
        DataError: its file is damaged, or names a world that is not known here.
    """
    name = read_shard(episode.path).world
    try:
        return get_world(name)
    except ConfigError as error:
        raise DataError(f"{episode.path.name} shows a world that is not known here: {error}") from error


def try_revisit(episode: EpisodeInfo) -> tuple[Revisit | None, str | None]:
    """Return the real scene of an episode, for all recorded with its settings; or None, and why there is none."""
    try:
        return world_of(episode).revisit(episode), None
    except (ConfigError, DataError, MissingPackageError) as error:
        return None, str(error)


def make_real(world: str, max_episode_steps: int | None = None, **settings: Any) -> "gymnasium.Env[Any, Any]":
    """Make the real world of that name: the entry point of Real/NAME-v0. Arguments and errors as `World.make`."""
    return get_world(world).make(max_episode_steps=max_episode_steps, **settings)


# What `gymnasium.make` reads before it makes one: for render_mode="human" it shows frames in a window of its own.
make_real.metadata = {"render_modes": ["rgb_array"]}  # type: ignore[attr-defined]
