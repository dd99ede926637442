"""Learning by PPO (arXiv:1707.06347) of stable-baselines3, in any vector environment.

Owns: the settings, sensible for some ten thousand frames, and the curve of what was earned. Does not know which world
it is, nor where results go.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium

from train.agents.agent import Agent, require_packages
from worldmodel.errors import ConfigError


@dataclass(frozen=True)
class PPOSettings:
    """How an agent learns; chosen in the real world alone, the same for every world."""

    num_envs: int = 16
    """Worlds at once."""
    horizon: int = 16
    """Steps of each between updates."""
    epochs: int = 8
    """How often an update goes through what was seen."""
    batch_size: int = 128
    """Frames of a step of the optimizer."""
    learning_rate: float = 7e-4
    """Of Adam."""
    discount: float = 0.97
    """Of a reward, for each step that it is away."""
    trace: float = 0.9
    """Lambda of generalized advantage estimation."""
    entropy: float = 0.01
    """Weight of the entropy of actions."""

    def __post_init__(self) -> None:
        for name in ("num_envs", "horizon", "epochs"):
            if getattr(self, name) < 1:
                raise ConfigError(f"ppo.{name} must be at least 1; got {getattr(self, name)}")
        if not 2 <= self.batch_size <= self.num_envs * self.horizon:
            raise ConfigError(
                f"ppo.batch_size must be from 2 to num_envs x horizon, {self.num_envs * self.horizon}; got "
                f"{self.batch_size}"
            )
        if not (self.learning_rate > 0 and 0 <= self.discount <= 1 and 0 <= self.trace <= 1 and self.entropy >= 0):
            raise ConfigError(
                "ppo.learning_rate must be above 0, discount and trace from 0 to 1, entropy at least 0; got "
                f"{self.learning_rate}, {self.discount}, {self.trace}, {self.entropy}"
            )


@dataclass(frozen=True)
class Curve:
    """What was earned while learning, an entry an episode that ended.

    Attributes:
        frames: frames seen by then.
        returns: sum of its rewards.
        lengths: its steps.
    """

    frames: list[int]
    returns: list[float]
    lengths: list[int]


def learn(
    envs: gymnasium.vector.VectorEnv[Any, Any, Any],
    num_frames: int,
    seed: int,
    settings: PPOSettings,
    *,
    device: str = "auto",
    log: Path | None = None,
    on_frames: Callable[[int], object] = lambda count: None,
) -> tuple[Agent, Curve]:
    """Let an agent learn.

    Args:
        envs: made with `autoreset_mode="SAME_STEP"`, `settings.num_envs` of them; closed by the caller.
        num_frames: frames to learn from, rounded up to whole updates.
        seed: of the weights, the actions and the episodes.
        settings: of PPO.
        device: of the agent.
        log: folder for TensorBoard; None: no log.
        on_frames: told how many frames came, at every step.

    Returns:
        the agent, and what it earned meanwhile.

    Raises:
        MissingPackageError: stable-baselines3 is not installed. ConfigError: another autoreset mode.
    """
    require_packages()
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.vec_env import VecMonitor

    from envs.adapters.sb3 import SB3VecEnv

    curve = Curve([], [], [])

    class KeepCurve(BaseCallback):
        def _on_step(self) -> bool:
            on_frames(envs.num_envs)
            for told in self.locals["infos"]:
                if "episode" in told:
                    curve.frames.append(self.num_timesteps)
                    curve.returns.append(float(told["episode"]["r"]))
                    curve.lengths.append(int(told["episode"]["l"]))
            return True

    learner = PPO(
        "CnnPolicy",
        VecMonitor(SB3VecEnv(envs)),
        n_steps=settings.horizon,
        n_epochs=settings.epochs,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        gamma=settings.discount,
        gae_lambda=settings.trace,
        ent_coef=settings.entropy,
        tensorboard_log=None if log is None else str(log.parent),
        device=device,
        seed=seed,
    )
    learner.learn(num_frames, KeepCurve(), tb_log_name="agent" if log is None else log.name)
    learner.policy.set_training_mode(False)
    about = {"frames": learner.num_timesteps, "seed": seed, "ppo": asdict(settings)}
    return Agent(learner.policy, about), curve
