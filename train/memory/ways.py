"""How a walk comes back to a frame, told by its actions.

Owns: the ways there are, and the rule that tells them apart. Knows no scripted walks and no pictures.
"""

from collections.abc import Sequence

import numpy as np

REPLAY, LOOP, OPEN_RETURN, UNKNOWN = "replay", "loop", "open return", "unknown"
WAYS = {
    REPLAY: "the actions that led to the first visit, taken again",
    LOOP: "another way, without going back",
    OPEN_RETURN: "back over the way out",
    UNKNOWN: "what the actions do to a pose is not known",
}
LEAST_REPEATED = 8  # equal actions before both frames that make a replay
RETRACED_SHARE = 0.5
NEAR_STEPS = 2.0  # a place within so many steps of one passed before is passed again


def find_way(actions: np.ndarray, first: int, second: int, displacements: Sequence[tuple[float, float]]) -> str:
    """Return the way from one frame back to the same view, of `WAYS`.

    A replay: as many actions as lie between the frames, or as there are before the first, are the same before both. Of
    the others, an open return: the second half of the way stays near places of the first half; on the spot: it turns
    back. A loop: neither.

    Args:
        actions: int (T,), from the first frame on.
        first: number of a frame.
        second: number of a later frame.
        displacements: turn and walk of each action; empty: not known.
    """
    lap = min(first, second - first)
    if lap >= LEAST_REPEATED and np.array_equal(actions[first - lap : first], actions[second - lap : second]):
        return REPLAY
    if not displacements:
        return UNKNOWN
    turns, walks = np.array(displacements)[actions[first:second].astype(int)].T
    heading = np.radians(np.cumsum(turns))
    places = np.cumsum(np.stack([walks * np.cos(heading), walks * np.sin(heading)], 1), axis=0)
    if not walks.any():
        return OPEN_RETURN if abs(turns.sum()) <= np.abs(turns).max(initial=0.0) * LEAST_REPEATED else LOOP
    step = float(np.median(np.abs(walks[walks != 0])))
    gone = np.cumsum(np.abs(walks))
    half = int(np.searchsorted(gone, gone[-1] / 2, side="right"))
    apart = np.linalg.norm(places[half:, None] - places[None, :half], axis=2)
    is_retraced = apart.min(1, initial=np.inf) <= NEAR_STEPS * step
    return OPEN_RETURN if is_retraced[walks[half:] != 0].mean() >= RETRACED_SHARE else LOOP
