"""What an agent or a player can do: a named, ordered set of actions and the keys that select them.

Owns: action names and their order, key bindings as data, the check of an action that came from outside.
Does not know worlds, screens or models.
"""

import operator
from dataclasses import dataclass
from typing import Any

from gymnasium import spaces

from worldmodel.errors import ActionError


@dataclass(frozen=True)
class ActionSet:
    """An ordered set of actions; the index of a name is the action.

    A held key stands for a control ("w" -> "forward"); a chord of controls selects an action. The table is all there
    is: another world brings other rows, not other code.

    Attributes:
        name: what the set is called, in messages and files.
        names: action names; index 0 is what happens when nothing is held.
        keys: pairs (key, control); key names are "a".."z", "up", "down", "left", "right".
        chords: for each action the controls that select it together. Of the chords held the longest wins, then the
            one with the higher index (so turning beats walking back, which cannot be combined).
        opposites: pairs of controls that cancel each other when both are held.
        displacements: for each action its turn in degrees (counter-clockwise) and its walk in cells along the new
            heading, when no wall is in the way; empty where actions do not move a walker.
    """

    name: str
    names: tuple[str, ...]
    keys: tuple[tuple[str, str], ...]
    chords: tuple[tuple[str, ...], ...]
    opposites: tuple[tuple[str, str], ...] = ()
    displacements: tuple[tuple[float, float], ...] = ()

    @property
    def num_actions(self) -> int:
        """How many actions there are."""
        return len(self.names)

    @property
    def space(self) -> spaces.Discrete:
        """A new `Discrete(num_actions)`."""
        return spaces.Discrete(self.num_actions)

    def from_keys(self, held: set[str]) -> int:
        """Return the action that the held keys select.

        Args:
            held: key names; keys without a binding are ignored.

        Returns:
            Index of an action; 0 when nothing applies or everything cancels.
        """
        controls = {control for key, control in self.keys if key in held}
        for pair in self.opposites:
            if controls.issuperset(pair):
                controls.difference_update(pair)
        matching = [index for index, chord in enumerate(self.chords) if controls.issuperset(chord)]
        return max(matching, key=lambda index: (len(self.chords[index]), index), default=0)

    @property
    def keys_to_action(self) -> dict[tuple[str, ...], int]:
        """Bindings in the form of `gymnasium.utils.play`: {("w",): 1, ("a", "w"): 5, ...}, one-letter keys only."""
        letters = {control: key for key, control in reversed(self.keys) if len(key) == 1}
        return {
            tuple(sorted(letters[control] for control in chord)): index
            for index, chord in enumerate(self.chords)
            if chord and all(control in letters for control in chord)
        }

    def index(self, name: str) -> int:
        """Return the action called `name`.

        Raises:
            ActionError: no action has this name.
        """
        if name not in self.names:
            raise ActionError(f"unknown action {name!r} for {self.name}; use one of {', '.join(self.names)}")
        return self.names.index(name)

    def check(self, action: Any) -> int:
        """Return `action` as a Python int.

        Args:
            action: an int, a NumPy integer, or a zero-dimensional integer array or tensor.

        Raises:
            ActionError: not an integer (NaN and floats included), or outside [0, num_actions).
        """
        accepted = f"{self.name} takes an integer from 0 to {self.num_actions - 1} ({', '.join(self.names)})"
        try:
            index = operator.index(action)
        except (TypeError, ValueError) as error:
            raise ActionError(f"action {action!r} is not an integer; {accepted}") from error
        if not 0 <= index < self.num_actions:
            raise ActionError(f"action {index} is out of range; {accepted}")
        return index
