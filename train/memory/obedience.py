"""Action accuracy of a replay: does the picture move as its actions say?

Owns: which stretches of a test are judged, and the rule for worlds whose motions are not known. A picture that stands
still remembers perfectly; beside its likeness stands this.
"""

from collections.abc import Sequence

import numpy as np
import torch

from envs.actions import ActionSet
from train.measures.action_accuracy import find_moves, is_right
from train.memory.cases import Given, MemoryTest
from worldmodel.analysis.metrics import measure_motion, squared_error, to_psnr

HELD_STEPS = 4
MOST_STRETCHES = 16  # judged of a test
STILL_PSNR = 40.0  # dB; neighboring frames less alike than this have changed
RULE = (
    f"the share of stretches of {HELD_STEPS} steps under one action that turns or walks in which the picture moves as "
    "it says (train.measures.action_accuracy); only those of the dreamt part in which the recorded picture does so"
)
RULE_WITHOUT_MOTIONS = (
    f"the share of steps of the dreamt part in which the picture changes (neighbors below {STILL_PSNR:g} dB) or stays "
    "as the recorded one does, as much of either; what the actions do to a pose is not known"
)


class Judge:
    """Judges replays of tests; what is judged of a test is found once.

    Args:
        actions: of the world.
        tests: those that are replayed.
    """

    def __init__(self, actions: ActionSet, tests: Sequence[MemoryTest]) -> None:
        self._moves = {move.action: move for move in find_moves(actions).values()}
        self._tests = tests
        self._stretches: dict[int, list[int]] = {}

    @property
    def rule(self) -> str:
        """What is judged, in words."""
        return RULE if self._moves else RULE_WITHOUT_MOTIONS

    def share_right(self, index: int, given: Given, pictures: np.ndarray) -> float | None:
        """Return the share of a replay that moves as told; None where nothing can be judged.

        Args:
            index: number of the test.
            given: what it holds.
            pictures: uint8 (T, H, W, 3), what is shown.
        """
        start = self._tests[index].context - 1
        if not self._moves:
            return _share_changed(given.frames[start:], pictures[start:])
        if index not in self._stretches:
            found = self._find_stretches(given.actions, start)
            self._stretches[index] = [i for i in found if self._is_right(given.actions[i], given.frames, i)]
        stretches = self._stretches[index]
        if not stretches:
            return None
        return float(np.mean([self._is_right(given.actions[i], pictures, i) for i in stretches]))

    def _find_stretches(self, actions: np.ndarray, start: int) -> list[int]:
        """Return the first frames of stretches under one move, not overlapping, at most `MOST_STRETCHES`."""
        found = []
        first = start
        while first + HELD_STEPS <= len(actions):
            held = actions[first : first + HELD_STEPS]
            if int(held[0]) in self._moves and (held == held[0]).all():
                found.append(first)
                first += HELD_STEPS
            else:
                first += 1
        picks = np.linspace(0, len(found) - 1, min(len(found), MOST_STRETCHES)).astype(int)
        return [found[pick] for pick in picks]

    def _is_right(self, action: int, frames: np.ndarray, first: int) -> bool:
        clip = torch.from_numpy(frames[first : first + HELD_STEPS + 1].copy())
        return is_right(self._moves[int(action)], measure_motion(clip))


def _share_changed(recorded: np.ndarray, shown: np.ndarray) -> float | None:
    """Return how often a picture changes or stays as the recorded one does, changes and stays counting alike."""
    shares = []
    should, does = (_changes(frames) for frames in (recorded, shown))
    for wanted in (True, False):
        if (should == wanted).any():
            shares.append(float((does[should == wanted] == wanted).mean()))
    return float(np.mean(shares)) if shares else None


def _changes(frames: np.ndarray) -> np.ndarray:
    clip = torch.from_numpy(frames.copy())
    return (to_psnr(squared_error(clip[1:], clip[:-1])) < STILL_PSNR).numpy()
