"""Gymnasium environments: real worlds to learn from and the dreams learned from them.

Owns: registration. `Dream/<World>-v0` and `Real/<World>-v0` have the same spaces, so one agent runs in both, and
`gymnasium.make("envs:Real/LabMaze-v0")` imports this module by itself. Imports no world and no model: an entry point
is a string that Gymnasium resolves when the environment is made.
"""

from gymnasium.envs.registration import register

from envs.worlds.registry import WORLDS

for _name, _entry in WORLDS.items():
    # Gymnasium's TimeLimit truncates what `make` makes, so that `make(..., max_episode_steps=N)` means what it says.
    register(
        id=f"Real/{_name}-v0",
        entry_point="envs.worlds.registry:make_real",
        max_episode_steps=_entry.max_episode_steps,
        kwargs={"world": _name, "max_episode_steps": None},
    )
    register(
        id=f"Dream/{_name}-v0",
        entry_point="envs.dream:DreamEnv",
        vector_entry_point="envs.vector:DreamVectorEnv",
        max_episode_steps=_entry.max_episode_steps,
        kwargs={"world": _name},
    )
