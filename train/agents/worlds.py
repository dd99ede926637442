"""Worlds that agents learn and are judged in: made by id and settings, with one clear error for what cannot be.

Owns: reading settings from texts, Gymnasium's words in ours, and that one agent fits two worlds. Knows no world.
"""

import ast
from collections.abc import Sequence
from typing import Any

import gymnasium

from train.agents.agent import Agent, Player
from worldmodel.errors import ConfigError, MissingPackageError, WorldModelError


def read_settings(texts: Sequence[str]) -> dict[str, Any]:
    """Return settings of an environment from texts NAME=VALUE: numbers, true, false, none, and else text.

    Raises:
        ConfigError: a text without a name or "=".
    """
    settings: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise ConfigError(f"setting {text!r} is not accepted; give NAME=VALUE, such as start=far")
        settings[name] = _read_value(value)
    return settings


def _read_value(text: str) -> Any:
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return value if isinstance(value, int | float) else text


def make_worlds(
    id: str, num_envs: int, autoreset_mode: str, settings: dict[str, Any]
) -> gymnasium.vector.VectorEnv[Any, Any, Any]:
    """Make many environments of an id.

    Args:
        id: as `gymnasium.make_vec` takes it.
        num_envs: how many.
        autoreset_mode: SAME_STEP or DISABLED.
        settings: of the environment.

    Raises:
        ConfigError: there is no such id, or a setting is not accepted. MissingPackageError: a package of the world is
            missing. Others as the environment's own.
    """
    try:
        return gymnasium.make_vec(id, num_envs=num_envs, autoreset_mode=autoreset_mode, **settings)
    except WorldModelError:
        raise
    except TypeError as error:
        names = ", ".join(f"{name}={value}" for name, value in settings.items()) or "none"
        raise ConfigError(f"settings of {id} are not accepted: {error}; got {names}") from error
    except ModuleNotFoundError as error:
        raise MissingPackageError(f"{id} cannot be made: {error}; install it, or give another id") from error
    except gymnasium.error.Error as error:
        known = ", ".join(f"envs:{name}" for name in gymnasium.registry if name.startswith(("Real/", "Dream/")))
        raise ConfigError(f"there is no environment {id!r} ({error}); there are {known}") from error


LEAST_PIXELS = 36  # of a side, for the convolutions of the policy


def check_alike(envs: Sequence[tuple[str, gymnasium.vector.VectorEnv[Any, Any, Any]]]) -> None:
    """Check that one agent can act in all of some worlds, each given with its id.

    Raises:
        ConfigError: their spaces differ, or frames are too small for the policy.
    """
    (first, one), *others = envs
    shape = one.single_observation_space.shape or ()
    if len(shape) != 3 or shape[2] != 3 or shape[0] != shape[1] or shape[0] < LEAST_PIXELS:
        raise ConfigError(
            f"agents take square frames (H, W, 3) of at least {LEAST_PIXELS} pixels a side; {first} shows "
            f"{one.single_observation_space}"
        )
    for second, other in others:
        for name in ("single_observation_space", "single_action_space"):
            mine, theirs = getattr(one, name), getattr(other, name)
            if mine != theirs:
                raise ConfigError(
                    f"one agent cannot act in both: {first} has {mine}, {second} has {theirs}; give settings that make "
                    "them alike, such as image_size=64"
                )


def check_player(player: Player, id: str, envs: Any) -> None:
    """Check that an agent, which may have learned elsewhere, takes the frames of a world and has its actions.

    Raises:
        ConfigError: it does not.
    """
    if not isinstance(player, Agent):
        return
    size, count = envs.single_observation_space.shape, int(envs.single_action_space.n)
    if (player.image_size, player.num_actions) != (size[0], count):
        raise ConfigError(
            f"this agent takes frames of {player.image_size} pixels and has {player.num_actions} actions; {id} has "
            f"{size[0]} and {count}: judge it in a world like the one it learned in"
        )
