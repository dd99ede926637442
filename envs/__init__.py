"""Gymnasium environments: real worlds to learn from and the dreams learned from them.

Owns: registration. `Dream/<World>-v0` and `Real/<World>-v0` have the same spaces, so one agent runs in both, and so do
their tasks (`envs.tasks`), `Dream/<World>Reach-v0` and `Real/<World>Reach-v0`.
`gymnasium.make("envs:Real/LabMaze-v0")` imports this module by itself. Imports no world and no model: an entry point
is a string that Gymnasium resolves when the environment is made.
"""

from gymnasium.envs.registration import register

from envs.worlds.registry import TASKS, WORLDS

for _name, _entry in WORLDS.items():
    # Gymnasium's TimeLimit truncates what `make` makes, so that `make(..., max_episode_steps=N)` means what it says.
    register(
        id=f"Real/{_name}-v0",
        entry_point="envs.worlds.registry:make_real",
        vector_entry_point="envs.worlds.vector:make_real_vector",
        max_episode_steps=_entry.max_episode_steps,
        kwargs={"world": _name},
    )
    register(
        id=f"Dream/{_name}-v0",
        entry_point="envs.dream:DreamEnv",
        vector_entry_point="envs.vector:DreamVectorEnv",
        max_episode_steps=_entry.max_episode_steps,
        kwargs={"world": _name},
    )
    for _task in _entry.tasks:
        for _kind in ("real", "dream"):
            _maker = f"envs.tasks.{_task.lower()}:make_{_kind}_{_task.lower()}"
            register(
                id=f"{_kind.title()}/{_name}{_task}-v0",
                entry_point=_maker,
                vector_entry_point=f"{_maker}_vector",
                max_episode_steps=TASKS[_task],
                kwargs={"world": _name},
            )
