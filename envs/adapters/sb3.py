"""A vector environment of Gymnasium as stable-baselines3 takes it.

Owns: the words of stable-baselines3 for ends, last observations, seeds and options. Knows no world.
"""

from collections.abc import Iterable
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode

from worldmodel.errors import ConfigError, MissingPackageError

try:
    from stable_baselines3.common.vec_env import VecEnv
except ImportError as error:
    raise MissingPackageError(f"{error}; install it: pip install stable-baselines3") from error


class SB3VecEnv(VecEnv):
    """Many environments that reset themselves within the step that ends them; observations are arrays of NumPy.

    Where one ends, its info is that of its last step, with `terminal_observation` and `TimeLimit.truncated`; what its
    new beginning says is in `reset_infos`.

    Args:
        envs: made with `autoreset_mode="SameStep"`; closed with this.

    Raises:
        ConfigError: made with another autoreset mode.
    """

    def __init__(self, envs: gymnasium.vector.VectorEnv[Any, Any, Any]) -> None:
        mode = envs.metadata.get("autoreset_mode")
        if mode is not AutoresetMode.SAME_STEP:
            raise ConfigError(f'autoreset mode {mode} is not accepted; make them with autoreset_mode="SameStep"')
        self.envs: Any = envs
        self._actions: np.ndarray | None = None
        super().__init__(envs.num_envs, envs.single_observation_space, envs.single_action_space)

    def reset(self) -> np.ndarray:
        """Start all, with the seeds and options that were set; return observations (B, ...).

        Raises:
            ConfigError: options that differ from one environment to another.
        """
        if any(options != self._options[0] for options in self._options):
            raise ConfigError("set_options takes one dictionary for all environments; got different ones")
        seeds = None if all(seed is None for seed in self._seeds) else self._seeds
        frames, info = self.envs.reset(seed=seeds, options=self._options[0] or None)
        self.reset_infos = [find_row(info, row) for row in range(self.num_envs)]
        self._reset_seeds()
        self._reset_options()
        return to_numpy(frames)

    def step_async(self, actions: np.ndarray) -> None:
        """Keep the actions for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Take the step; return observations, rewards float32 (B,), ends bool (B,) and an info for each."""
        frames, rewards, *ends, info = self.envs.step(self._actions)
        terminated, truncated = map(to_numpy, ends)
        is_over, infos = terminated | truncated, []
        for row in range(self.num_envs):
            told = find_row(info, row)
            if is_over[row]:
                last, final = told.pop("final_info", {}), to_numpy(told.pop("final_obs"))
                self.reset_infos[row] = told
                told = last | {"terminal_observation": final}
            told["TimeLimit.truncated"] = bool(truncated[row] and not terminated[row])
            infos.append(told)
        return to_numpy(frames), to_numpy(rewards).astype(np.float32), is_over, infos

    def close(self) -> None:
        """Close the environments."""
        self.envs.close()

    def get_images(self) -> list[np.ndarray | None]:
        """Return what each shows."""
        shown: list[np.ndarray | None] = list(self.envs.render() or [None] * self.num_envs)
        return shown

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """Return an attribute of the vector, once for each environment asked for."""
        return [getattr(self.envs, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Refuse: what an environment is made of is said when it is made.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(f"attribute {attr_name!r} of one environment cannot be set; make them with other settings")

    def env_method(self, method_name: str, *arguments: Any, indices: Any = None, **named: Any) -> list[Any]:
        """Call a method of the vector, once, for all; return its result for each environment asked for."""
        result = getattr(self.envs, method_name)(*arguments, **named)
        return [result for _ in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """Return False for each environment asked for: wrappers of stable-baselines3 go around all of them."""
        return [False for _ in self._get_indices(indices)]

    def _get_indices(self, indices: None | int | Iterable[int]) -> Iterable[int]:
        return super()._get_indices(indices)


def find_row(info: dict[str, Any], row: int) -> dict[str, Any]:
    """Return what the info of a vector says of one environment."""
    found = {}
    for name, value in info.items():
        is_there = info.get(f"_{name}")
        if name.startswith("_") or (is_there is not None and not is_there[row]):
            continue
        found[name] = find_row(value, row) if isinstance(value, dict) else value[row]
    return found


def to_numpy(value: Any) -> np.ndarray:
    """Return an array or a tensor as an array."""
    return np.asarray(value.cpu() if hasattr(value, "cpu") else value)
