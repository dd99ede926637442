"""Which frames were seen from the same pose.

Owns: the scale of poses (how far one step goes and turns), the tolerance in steps, and the search for returns. Knows no
actions and no pictures.
"""

import numpy as np

TOLERANCE_STEPS = 0.1
"""Two poses are the same where they are nearer than a tenth of a step and of a turn.

Scripted walks come back exactly, but for rounding.
"""
LEAST_APART = 16  # frames between two visits that a search takes for two
MOST_RETURNS = 24
_STILL = 1e-6  # less than this is no move


class Poses:
    """Poses of a recording, with the length of its steps.

    Args:
        poses: float (T, 3), x, y and heading in degrees; or (T, 5), x, y, z, yaw and pitch in degrees.
    """

    def __init__(self, poses: np.ndarray) -> None:
        values = poses.astype(np.float64)
        num_places = 2 if values.shape[1] == 3 else 3
        self._places, self._angles = values[:, :num_places], values[:, num_places:]
        steps = self._apart(np.arange(1, len(values)), np.arange(len(values) - 1))
        self._step, self._turn = (_median_move(moves) for moves in steps)

    def is_same(self, first: np.ndarray, second: np.ndarray, tolerance: float = TOLERANCE_STEPS) -> np.ndarray:
        """Return whether frames were seen from the same pose, bool (N,).

        Args:
            first: int64 (N,), numbers of frames.
            second: int64 (N,).
            tolerance: in steps: the median move, and the median turn, of the recording.
        """
        far, turned = self._apart(first, second)
        return (far <= tolerance * self._step + _STILL) & (turned <= tolerance * self._turn + 1e3 * _STILL)

    def find_returns(self, start: int, tolerance: float) -> list[tuple[int, int]]:
        """Return pairs of frames with the same pose between which the walker was elsewhere, spread over the recording.

        Args:
            start: the first frame that may be the second of a pair.
            tolerance: as `is_same`.

        Returns:
            at most `MOST_RETURNS` pairs (first, second), the first the earliest visit, in the order of the second.
        """
        found: list[tuple[int, int]] = []
        for second in range(max(start, LEAST_APART), len(self._places)):
            before = np.arange(second - LEAST_APART + 1)
            is_here = self.is_same(before, np.full(len(before), second), tolerance)
            if not is_here.any():
                continue
            first = int(np.argmax(is_here))
            between = np.arange(first, second)
            if self.is_same(between, np.full(len(between), first), 4 * tolerance).all():
                continue  # it never went away
            found.append((first, second))
        picks = np.linspace(0, len(found) - 1, min(len(found), MOST_RETURNS)).astype(int)
        return [found[pick] for pick in picks]

    def _apart(self, first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return how far apart frames are in place, and in their larger angle, (N,) each."""
        far = np.linalg.norm(self._places[first] - self._places[second], axis=1)
        turned = np.abs((self._angles[first] - self._angles[second] + 180.0) % 360.0 - 180.0)
        return far, turned.max(1)


def _median_move(moves: np.ndarray) -> float:
    """Return the median of the moves that are any; 0 where nothing moved."""
    real = moves[moves > 1e-3]
    return float(np.median(real)) if len(real) else 0.0
