"""Rollouts under a policy: what is kept of dreams that a policy plays, all steps of it as tensors.

Owns: the loop of policy and steps, and what it gives. Knows no world: a step is handed in.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch

from worldmodel.errors import ShapeError

Policy = Callable[[torch.Tensor], torch.Tensor]
"""Frames uint8 (B, H, W, 3), or latents float32 (B, C, h, w), to integer actions (B,)."""


@dataclass(frozen=True)
class Imagined:
    """B dreams of T steps; entry t is what action t led to.

    Attributes:
        frames: uint8 (B, T, H, W, 3); None where only latents were dreamt.
        latents: float32 (B, T, C, h, w); None where frames were drawn.
        actions: int64 (B, T).
        rewards: float32 (B, T), the likeliest.
        terminated: bool (B, T), whether an end is likelier than none; the dream goes on behind it.
        reward_probability: float32 (B, T), of any reward other than zero.
        end_probability: float32 (B, T), that the episode ended.
    """

    frames: torch.Tensor | None
    latents: torch.Tensor | None
    actions: torch.Tensor
    rewards: torch.Tensor
    terminated: torch.Tensor
    reward_probability: torch.Tensor
    end_probability: torch.Tensor


@dataclass(frozen=True)
class Shown:
    """One step of `Imagined`, its parts without the axis of time; `picture` stands for frames or latents."""

    picture: torch.Tensor
    rewards: torch.Tensor
    terminated: torch.Tensor
    reward_probability: torch.Tensor
    end_probability: torch.Tensor


def play(
    policy: Policy, first: torch.Tensor, horizon: int, step: Callable[[int, torch.Tensor], Shown]
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Let a policy act `horizon` times.

    Args:
        policy: acts.
        first: the picture that it acts on first.
        horizon: steps, at least 1.
        step: given the number of the step and what the policy said, takes it.

    Returns:
        pictures (B, T, ...), actions as the policy gave them (B, T), and the other parts of `Shown` by name, (B, T).

    Raises:
        ShapeError: the policy gave something other than one integer for each dream.
    """
    picture, actions, steps = first, [], list[Shown]()
    for number in range(horizon):
        action = policy(picture)
        if not isinstance(action, torch.Tensor) or tuple(action.shape) != (len(first),):
            found = tuple(action.shape) if isinstance(action, torch.Tensor) else type(action).__name__
            raise ShapeError(f"a policy gives one action a dream, a tensor ({len(first)},); got {found}")
        actions.append(action)
        steps.append(step(number, action))
        picture = steps[-1].picture
    names = [field.name for field in dataclasses.fields(Shown)]
    parts = {name: torch.stack([getattr(each, name) for each in steps], 1) for name in names}
    return parts.pop("picture"), torch.stack(actions, 1), parts
