"""What passes between our sessions and other formats: a stretch of play in plain arrays.

Owns: the clip, and how actions of one set are found in another: by what they do to a pose, not by name.
"""

from dataclasses import dataclass

import numpy as np

from envs.actions import ActionSet
from worldmodel.errors import DataError

Signs = tuple[int, int]
"""Signs of the turn (1: to the left) and of the walk (1: ahead) of an action."""


@dataclass(frozen=True)
class Clip:
    """A stretch of play.

    Attributes:
        name: of the file or folder.
        frames: uint8 (T, H, W, 3).
        actions: int64 (T - 1,), of the action set that it is read or written with.
        fps: steps a second.
        context: true frames before what is to be predicted; None: not said.
        poses: float64 (T, 3), x, y and heading in degrees, or (T, 5), x, y, z, yaw and pitch; None: not known.
        layout: uint8 (rows, columns), 1 wall, row 0 at the largest y; None: not known.
        rewards: float32 (T - 1,).
        terminated: bool (T - 1,).
    """

    name: str
    frames: np.ndarray
    actions: np.ndarray
    fps: float
    context: int | None
    poses: np.ndarray | None
    layout: np.ndarray | None
    rewards: np.ndarray
    terminated: np.ndarray


def signs_of(actions: ActionSet) -> list[Signs]:
    """Return what each action of a set does.

    Raises:
        DataError: the set does not declare it.
    """
    if not actions.displacements:
        raise DataError(
            f"{actions.name} declares no displacements (ActionSet): its actions cannot be told from those of another "
            "format"
        )
    return [(int(np.sign(turn)), int(np.sign(walk))) for turn, walk in actions.displacements]


def find_actions(signs: list[Signs], actions: ActionSet, source: str) -> np.ndarray:
    """Return the actions of a set that do what each step of another format does, int64 (N,).

    Args:
        signs: of each step.
        actions: the set.
        source: what is read, for messages.

    Raises:
        DataError: a step does what no action of the set does.
    """
    known = {does: action for action, does in reversed(list(enumerate(signs_of(actions))))}
    for step, does in enumerate(signs):
        if does not in known:
            raise DataError(f"{source}: step {step} {describe(does)}, and no action of {actions.name} does")
    return np.array([known[does] for does in signs], np.int64)


def describe(signs: Signs) -> str:
    """Return what signs mean, in words."""
    turn, walk = signs
    words = [{1: "turns left", -1: "turns right"}.get(turn, ""), {1: "walks ahead", -1: "walks back"}.get(walk, "")]
    return " and ".join(word for word in words if word) or "does nothing"
