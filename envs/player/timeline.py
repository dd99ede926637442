"""The last minute of play, to go back to.

Owns: the pictures that were shown and moments of the environment, one a second, within a bound of time. Knows of an
environment no more than `snapshot` and `restore`.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

Shown = TypeVar("Shown")
KEPT_S = 64.0
"""How much play is kept, seconds of steps."""


class Rewindable(Protocol):
    """What of an environment going back needs."""

    def snapshot(self) -> Any:
        """Return the present moment."""

    def restore(self, snapshot: Any) -> Any:
        """Go to a moment, which stays usable."""


class Moment(NamedTuple):
    """A moment to go back to: what was shown, and what the environment was."""

    shown: Any
    snapshot: Any


class Timeline(Generic[Shown]):
    """What was shown step by step, with a moment of the environment each second.

    Args:
        env: whose moments are kept.
        fps: steps a second.
    """

    def __init__(self, env: Rewindable, fps: float) -> None:
        self._env = env
        self._every = max(1, round(fps))
        self._most = max(1, round(KEPT_S * fps))
        self._shown: deque[Shown] = deque()
        self._moments: deque[tuple[int, Any]] = deque()  # number of a step, and the environment then
        self._first = 0  # number of the step that `_shown` begins with

    def __len__(self) -> int:
        """Return how many steps back there are to look at."""
        return max(0, len(self._shown) - 1)

    def clear(self) -> None:
        """Forget everything: a new dream begins."""
        self._shown.clear()
        self._moments.clear()
        self._first = 0

    def add(self, shown: Shown) -> None:
        """Take in what is shown now, of the environment as it is now."""
        number = self._first + len(self._shown)
        self._shown.append(shown)
        if not self._moments or number - self._moments[-1][0] >= self._every:
            self._moments.append((number, self._env.snapshot()))
        while len(self._shown) > self._most + 1:
            self._shown.popleft()
            self._first += 1
        # The oldest moment stays as long as something is shown that no later one can be reached for.
        while len(self._moments) > 1 and self._moments[1][0] <= self._first:
            self._moments.popleft()

    def look(self, steps: int) -> Shown:
        """Return what was shown so many steps ago, or the oldest there is; nothing changes."""
        return self._shown[max(0, len(self._shown) - 1 - steps)]

    def go_back(self, steps: int) -> Shown:
        """Put the environment where it was so many steps ago, or up to a second before; return what was shown there."""
        wanted = self._first + max(0, len(self._shown) - 1 - steps)
        reachable = [number for number, _ in self._moments if self._first <= number <= wanted]
        goal = reachable[-1] if reachable else next(n for n, _ in self._moments if n >= self._first)
        while self._moments[-1][0] > goal:
            self._moments.pop()
        while self._first + len(self._shown) - 1 > goal:
            self._shown.pop()
        self._env.restore(self._moments[-1][1])
        return self._shown[-1]
