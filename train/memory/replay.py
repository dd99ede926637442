"""Replays: the pictures that a world shows in a test, and those of the stand-ins that it is compared with.

Owns: dreaming tests in batches, a memory cut short, a picture that stands still, and noise. Does not know scores.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from train.data.rollouts import dream_on, step_on
from train.memory.cases import Given, MemoryTest
from worldmodel.world import WorldModel

SHORT_MEMORY = 16  # frames
MOST_LONGER = 1.5  # the longest test of a batch beside the shortest


class Replay(NamedTuple):
    """What is shown in a test.

    Attributes:
        number: of the test.
        given: what the test holds.
        pictures: uint8 (T, H, W, 3), the context and what is shown after it.
    """

    number: int
    given: Given
    pictures: np.ndarray


Dream = Callable[[WorldModel, torch.Tensor, torch.Tensor, list[int], Callable[[int], object]], torch.Tensor]
"""Model, context uint8 (B, C, H, W, 3), actions (B, C - 1 + N), seeds, told of frames; to uint8 (B, N, H, W, 3)."""


def dream_whole(
    model: WorldModel,
    frames: torch.Tensor,
    actions: torch.Tensor,
    seeds: list[int],
    on_frames: Callable[[int], object],
) -> torch.Tensor:
    """Dream on with all the memory that the world has; shapes as `Dream`."""
    return dream_on(model, frames, actions, seeds, on_frames).frames


def dream_short(
    model: WorldModel,
    frames: torch.Tensor,
    actions: torch.Tensor,
    seeds: list[int],
    on_frames: Callable[[int], object],
) -> torch.Tensor:
    """Dream on with a memory of at most `SHORT_MEMORY` frames, whatever the world remembers by; shapes as `Dream`.

    The dream is begun again from half as many of its own last frames after every so many steps.
    """
    half = SHORT_MEMORY // 2
    shown, known = frames, frames.shape[1]
    num_frames = actions.shape[1] + 1
    for number, start in enumerate(range(known, num_frames, half)):
        kept = min(half, start)
        before = actions[:, start - kept : start - 1].long()
        state = model.reset(shown[:, start - kept : start], before, [seed + 7919 * number for seed in seeds])
        dream = step_on(model, state, actions[:, start - 1 : min(start + half, num_frames) - 1], on_frames)
        shown = torch.cat([shown, dream.frames], 1)
    return shown[:, known:]


def replay(
    model: WorldModel,
    tests: Sequence[MemoryTest],
    dream: Dream,
    *,
    batch_size: int,
    seed: int,
    on_frames: Callable[[int], object] = lambda count: None,
) -> Iterator[Replay]:
    """Dream each test on from its context under its actions; yield what is shown, in no order.

    Args:
        model: the world.
        tests: to dream.
        dream: with which memory.
        batch_size: dreams at once; those of one context length go together.
        seed: of the dreams' chance: that of test i is seed + i.
        on_frames: told the number of frames dreamt after every step.

    Raises:
        DataError: a file is damaged or gone.
    """
    for batch in _batches(tests, batch_size):
        given, length = [tests[i].read() for i in batch], tests[batch[0]].context
        longest = max(len(each.actions) for each in given)
        actions = np.stack([np.pad(each.actions, (0, longest - len(each.actions))) for each in given])
        context = torch.from_numpy(np.stack([each.frames[:length] for each in given]))
        taken = torch.from_numpy(actions).long()
        frames = dream(model, context, taken, [seed + i for i in batch], on_frames).numpy()
        for i, each, shown in zip(batch, given, frames, strict=True):
            dreamt = shown[: len(each.frames) - length]
            yield Replay(i, each, np.concatenate([each.frames[:length], dreamt]))


def _batches(tests: Sequence[MemoryTest], batch_size: int) -> list[list[int]]:
    """Return the numbers of tests that are dreamt together: those of one context, and of about one length.

    The shorter ones of a batch go on to the end of the longest for nothing.
    """
    found: list[list[int]] = []
    for i in sorted(range(len(tests)), key=lambda i: (tests[i].context, tests[i].num_frames)):
        first = tests[found[-1][0]] if found else None
        fits = first is not None and len(found[-1]) < batch_size and first.context == tests[i].context
        if first is not None and fits and tests[i].num_frames <= MOST_LONGER * first.num_frames:
            found[-1].append(i)
        else:
            found.append([i])
    return found


def count_frames(tests: Sequence[MemoryTest], batch_size: int) -> int:
    """Return how many frames `replay` dreams with `dream_whole` or `dream_short`."""
    batches = _batches(tests, batch_size)
    longest = [max(tests[i].num_frames for i in batch) - tests[batch[0]].context for batch in batches]
    return sum(len(batch) * frames for batch, frames in zip(batches, longest, strict=True))


def replay_recorded(tests: Sequence[MemoryTest], is_real: bool) -> Iterator[Replay]:
    """Yield what was recorded, of the real tests or of the dreamt ones. Errors as `replay`."""
    for i, test in enumerate(tests):
        if test.is_real == is_real:
            given = test.read()
            yield Replay(i, given, given.frames)


def replay_frozen(tests: Sequence[MemoryTest]) -> Iterator[Replay]:
    """Yield a picture that stands still: the last context frame. Errors as `replay`."""
    for i, test in enumerate(tests):
        given = test.read()
        held = np.repeat(given.frames[test.context - 1 : test.context], len(given.frames) - test.context, axis=0)
        yield Replay(i, given, np.concatenate([given.frames[: test.context], held]))


def replay_noise(tests: Sequence[MemoryTest], seed: int) -> Iterator[Replay]:
    """Yield noise after the context. Errors as `replay`."""
    for i, test in enumerate(tests):
        given = test.read()
        rng = np.random.default_rng([seed, 13, i])
        noise = rng.integers(0, 256, given.frames[test.context :].shape, np.uint8)
        yield Replay(i, given, np.concatenate([given.frames[: test.context], noise]))
