"""The plain moves of an action set, and what undoes a walk.

Owns: turning by an angle, and the inverse of an action, by displacements or by opposite controls.
"""

from typing import NamedTuple

from envs.actions import ActionSet
from train.measures.revisit import undo
from train.measures.wander import find_plain
from worldmodel.errors import ConfigError


class Motions(NamedTuple):
    """The plain moves of an action set.

    Attributes:
        ahead, left, right: actions that walk, or turn, and do nothing else.
        step: length of a step ahead.
        turn_deg: degrees of a turn to the left or right.
    """

    ahead: int
    left: int
    right: int
    step: float
    turn_deg: float

    def can_turn(self, angle_deg: float) -> bool:
        """Return whether a number of turns makes an angle."""
        count = angle_deg / self.turn_deg
        return abs(count - round(count)) < 1e-3

    def turn(self, angle_deg: float) -> list[int]:
        """Return the turns by an angle that turns make, positive to the left."""
        return [self.left if angle_deg > 0 else self.right] * abs(round(angle_deg / self.turn_deg))


def find_motions(actions: ActionSet) -> Motions:
    """Return the plain moves of an action set.

    Raises:
        ConfigError: it has none, or its turns to the left and right differ.
    """
    ahead, left, right = find_plain(actions.displacements)
    turn_deg = actions.displacements[left][0]
    if actions.displacements[right][0] != -turn_deg:
        raise ConfigError(f"turns to the left and right of {actions.name} differ")
    return Motions(ahead, left, right, actions.displacements[ahead][1], turn_deg)


def invert(actions: ActionSet, walk: list[int]) -> tuple[list[int], list[int]]:
    """Return the actions that undo a walk, last step first, and how many steps of it are left after each.

    By displacements where they are declared (`train.measures.revisit.undo`), else by opposite controls.

    Raises:
        ConfigError: an action has no inverse.
    """
    if actions.displacements:
        return undo(walk, actions.displacements)
    opposite = {one: other for pair in actions.opposites for one, other in (pair, pair[::-1])}
    back = []
    for action in reversed(walk):
        chord = {opposite.get(control, control) for control in actions.chords[action]}
        found = [i for i, other in enumerate(actions.chords) if set(other) == chord]
        is_still = not actions.chords[action]
        if not found or (found[0] == action and not is_still):
            raise ConfigError(f"no action of {actions.name} is the opposite of {actions.names[action]}")
        back.append(found[0])
    return back, list(range(len(walk) - 1, -1, -1))


def find_invertible(actions: ActionSet) -> list[int]:
    """Return the actions that do something and can be undone."""
    found = []
    for action in range(actions.num_actions):
        does_nothing = not any(actions.displacements[action]) if actions.displacements else not actions.chords[action]
        try:
            invert(actions, [action])
        except ConfigError:
            continue
        if not does_nothing:
            found.append(action)
    return found
