"""An agent: from frames to actions. What it is made of, and how it is kept without pickle.

Owns: the file of weights (safetensors) and the JSON beside it. Does not know how an agent learns.
"""

import importlib
import json
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from gymnasium import spaces
from safetensors.torch import load, save

from worldmodel.errors import CheckpointError, MissingPackageError, ShapeError, WorldModelError
from worldmodel.files import write_files

FORMAT, VERSION = "worldmodel-agent", 1
WEIGHTS_FILE, ABOUT_FILE = "policy.safetensors", "agent.json"


class Player(Protocol):
    """Whoever chooses actions by what is shown."""

    def act(self, frames: np.ndarray, chance: torch.Generator, *, greedy: bool = False) -> np.ndarray:
        """Return actions int64 (B,) after frames uint8 (B, H, W, 3); `greedy`: the likeliest ones, without chance."""
        ...


class RandomAgent:
    """Every action is as likely as another."""

    def __init__(self, num_actions: int) -> None:
        self._num_actions = num_actions

    def act(self, frames: np.ndarray, chance: torch.Generator, *, greedy: bool = False) -> np.ndarray:
        """Return actions int64 (B,), whatever is shown."""
        return torch.randint(self._num_actions, (len(frames),), generator=chance).numpy()


class Agent:
    """A policy of stable-baselines3 for frames of one size.

    Attributes:
        policy: its `ActorCriticCnnPolicy`.
        about: how it came to be, ready for JSON.
    """

    def __init__(self, policy: Any, about: dict[str, Any]) -> None:
        self.policy, self.about = policy, about

    @property
    def image_size(self) -> int:
        """Height and width of the frames that it takes."""
        return int(self.policy.observation_space.shape[-1])

    @property
    def num_actions(self) -> int:
        """Actions that it chooses among."""
        return int(self.policy.action_space.n)

    @torch.no_grad()
    def act(self, frames: np.ndarray, chance: torch.Generator, *, greedy: bool = False) -> np.ndarray:
        """Return actions, drawn by their probabilities or the likeliest.

        Args:
            frames: uint8 (B, H, W, 3).
            chance: of the draw, on the CPU.
            greedy: take the likeliest action.

        Returns:
            int64 (B,).

        Raises:
            ShapeError: frames of another size.
        """
        size = self.image_size
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1:] != (size, size, 3):
            raise ShapeError(f"this agent takes frames uint8 (B, {size}, {size}, 3); got {frames.dtype} {frames.shape}")
        pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).to(self.policy.device)
        logits = self.policy.get_distribution(pixels).distribution.logits.cpu()
        chosen = logits.argmax(1) if greedy else torch.multinomial(logits.softmax(1), 1, generator=chance)[:, 0]
        return chosen.numpy()

    def save(self, folder: Path) -> None:
        """Write weights and what is known of the agent, both or none.

        Raises:
            StorageError: they cannot be written.
        """
        about = {"format": FORMAT, "version": VERSION, "image_size": self.image_size, "num_actions": self.num_actions}
        # The policy names some weights more than once; among its parameters each has one name.
        weights = {name: part.detach().cpu().contiguous() for name, part in self.policy.named_parameters()}
        content = (json.dumps(about | {"about": self.about}, indent=2) + "\n").encode()
        write_files({folder / WEIGHTS_FILE: save(weights), folder / ABOUT_FILE: content})


def build_policy(image_size: int, num_actions: int) -> Any:
    """Return an untrained policy of stable-baselines3, as its PPO makes it for such frames.

    Raises:
        MissingPackageError: stable-baselines3 is not installed.
    """
    require_packages()
    from stable_baselines3.common.policies import ActorCriticCnnPolicy

    pictures = spaces.Box(0, 255, (3, image_size, image_size), np.uint8)
    return ActorCriticCnnPolicy(pictures, spaces.Discrete(num_actions), lambda _: 0.0)


def load_agent(folder: Path, device: str = "cpu") -> Agent:
    """Return an agent that `Agent.save` has kept.

    Raises:
        CheckpointError: there is none, it is damaged, or of another version. MissingPackageError: as `build_policy`.
    """
    try:
        kept = json.loads((folder / ABOUT_FILE).read_text())
        weights = load((folder / WEIGHTS_FILE).read_bytes())
        if (kept["format"], kept["version"]) != (FORMAT, VERSION):
            raise CheckpointError(f"{folder} is no agent of version {VERSION}: let one learn with train.rl")
        policy = build_policy(int(kept["image_size"]), int(kept["num_actions"]))
        if set(weights) != {name for name, _ in policy.named_parameters()}:
            raise CheckpointError(f"{folder / WEIGHTS_FILE} holds other weights than such a policy has")
        policy.load_state_dict(weights, strict=False)
    except WorldModelError:
        raise
    except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{folder} holds no whole agent ({error}): let one learn with train.rl") from error
    except Exception as error:
        if type(error).__name__ != "SafetensorError":
            raise
        raise CheckpointError(f"{folder / WEIGHTS_FILE} is damaged ({error}): let it learn anew") from error
    policy.set_training_mode(False)
    return Agent(policy.to(device), kept["about"])


def require_packages(*names: str) -> None:
    """Check that packages of the extra `rl` are installed: stable_baselines3, and those named beside.

    Raises:
        MissingPackageError: one is not.
    """
    for name in ("stable_baselines3", *names):
        try:
            importlib.import_module(name)
        except ImportError as error:
            shown = name.replace("_", "-")
            raise MissingPackageError(f'agents need {shown} ({error}); run: pip install -e ".[rl]"') from error
