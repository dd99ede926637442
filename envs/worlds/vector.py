"""Many real worlds at once, in this process or in ones of their own: what `gymnasium.make_vec` makes of Real/NAME-v0.

Owns: how processes are started, so that OpenGL works in them. What a world is, is `World.make`'s.
"""

import functools
from typing import Any

import gymnasium
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from worldmodel.counts import check_whole
from worldmodel.errors import ConfigError


def make_real_vector(
    num_envs: int,
    world: str,
    max_episode_steps: int | None = None,
    autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
    processes: bool = False,
    id: str = "Real/{world}-v0",
    **settings: Any,
) -> VectorEnv[Any, Any, Any]:
    """Make many of a real world: the vector entry point of Real/NAME-v0.

    Args:
        num_envs: how many.
        world: name of the world.
        max_episode_steps: steps until truncation; None: as registered.
        autoreset_mode: when an environment that is over is reset: NEXT_STEP, SAME_STEP or DISABLED.
        processes: give each a process of its own. They are spawned, so a program must make them below
            `if __name__ == "__main__":`; they end with this process.
        id: of one of them, with the world's name in it.
        settings: of each, as `World.make`.

    Raises:
        ConfigError: a setting is not accepted. MissingPackageError: as `World.make`.
    """
    count = check_whole("num_envs", num_envs, 1)
    mode = read_mode(autoreset_mode)
    name = "envs:" + id.format(world=world)
    makers = [functools.partial(gymnasium.make, name, max_episode_steps=max_episode_steps, **settings)] * count
    if processes:
        # A forked process inherits an OpenGL that waits for threads which are not there.
        return AsyncVectorEnv(makers, context="spawn", autoreset_mode=mode)
    return SyncVectorEnv(makers, autoreset_mode=mode)


def read_mode(mode: AutoresetMode | str) -> AutoresetMode:
    """Return an autoreset mode by itself, its name or its value, such as "SAME_STEP" and "SameStep".

    Raises:
        ConfigError: there is no such mode.
    """
    for known in AutoresetMode:
        if mode in (known, known.name, known.value):
            return known
    names = ", ".join(known.name for known in AutoresetMode)
    raise ConfigError(f"autoreset_mode {mode!r} is not accepted; use one of {names}")
