"""Needles in recorded mazes: places that come back into view after having been out of it.

Owns: what makes a case, finding cases by pose and layout, and choosing them evenly. Reads no pixels and knows no model.

A case: frame `frame` shows a wall block (the needle) in its middle. The needle's place (the block and the blocks of the
same texture that it is joined to: the look of one tells that of the others) is out of view in the last context frames,
and so is every other wall of that texture, so that nothing in sight gives it away. The needle was last well seen at
frame `seen`. The dream is `DREAMT` frames long and ends at `frame`; D = frame - 15 - seen. Glimpses of the place after
`seen` may not reach into a lower bin, so that a memory as short as that bin has nothing of the needle.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from envs.data.episodes import EpisodeInfo
from envs.worlds.labmaze.sight import (
    FARTHEST,
    HALF_WIDTH,
    MIDDLE,
    NEAREST,
    NUM_COLUMNS,
    Sight,
    judge_middle,
    look,
    read_sight,
)
from worldmodel.analysis.needle import BINS, find_bin
from worldmodel.errors import DataError

DREAMT = 16  # generated frames of a case; the last one is judged
MIN_COLUMNS, MAX_DISTANCE = 4, 4.0  # well seen: this many columns show the needle's face, and it is not far
MIN_ABSENT = 2  # context frames just before the dream that do not show it
MIN_APART = 8  # frames between the judged frames of two cases of one bin and episode
MARGIN = 8  # context frames before the needle
# A context is the shortest of these that holds the needle and the margin: few lengths make full batches.
CONTEXTS = (24, 40, 56, 88, 120, 168, 216, 264, 308)


@dataclass(frozen=True)
class NeedleCase:
    """One needle.

    Attributes:
        episode: where it was recorded.
        frame: the judged frame, whose middle shows the needle.
        seen: the frame before the dream that last showed the needle well.
        absent: frames just before the dream that show nothing of the needle's place.
        context: real frames that hold the needle and some before it.
        wall: texture index of the needle.
        floor: texture index of the floor before it.
        columns: first and one past the last column of `frame` that shows the needle, as shares of the width.
    """

    episode: EpisodeInfo
    frame: int
    seen: int
    absent: int
    context: int
    wall: int
    floor: int
    columns: tuple[float, float]

    @property
    def start(self) -> int:
        """The first dreamt frame."""
        return self.frame - DREAMT + 1

    @property
    def distance(self) -> int:
        """D: frames from the needle to the first dreamt frame."""
        return self.start - self.seen


def join_blocks(wall_textures: np.ndarray) -> np.ndarray:
    """Return the place of each cell, int64 (rows, columns): equal for blocks of one texture joined side by side."""
    places = np.arange(wall_textures.size).reshape(wall_textures.shape)
    while True:
        joined = places.copy()
        for axis in range(2):
            first, second = np.moveaxis(joined, axis, 0)[:-1], np.moveaxis(joined, axis, 0)[1:]
            textures = np.moveaxis(wall_textures, axis, 0)
            lower = np.minimum(first, second)
            is_same = textures[:-1] == textures[1:]
            first[...] = np.where(is_same, lower, first)
            second[...] = np.where(is_same, np.minimum(lower, second), second)
        if np.array_equal(joined, places):
            return places
        places = joined


def _last_seen(is_shown: np.ndarray) -> np.ndarray:
    """Return for bool (T, N) the last frame up to and with t that shows n, int64 (T, N); -1 for none."""
    frames = np.where(is_shown, np.arange(len(is_shown))[:, None], -1)
    return np.maximum.accumulate(frames, 0)


def _count(things: np.ndarray, num_things: int, weights: np.ndarray | None = None) -> np.ndarray:
    """Return in how many columns each frame shows each thing, (T, num_things), of indices (T, NUM_COLUMNS)."""
    flat = (np.arange(len(things))[:, None] * num_things + things).ravel()
    counts = np.bincount(flat, None if weights is None else weights.ravel(), len(things) * num_things)
    return counts.reshape(len(things), num_things)


def _region(sight: Sight, frame: int) -> tuple[float, float]:
    columns = np.flatnonzero(sight.blocks[frame] == sight.blocks[frame, MIDDLE])
    return int(columns[0]) / NUM_COLUMNS, (int(columns[-1]) + 1) / NUM_COLUMNS


def cases_of_episode(episode: EpisodeInfo, bins: Sequence[tuple[int, int]] = BINS) -> list[NeedleCase]:
    """Return every case of an episode, in the order of its judged frames; neighbors overlap.

    Raises:
        DataError: the episode was recorded without pose or layout, or its file is damaged.
    """
    arrays = read_sight(episode)
    sight = look(arrays["layout"], arrays["pose"])
    middle = judge_middle(arrays, sight, half_width=HALF_WIDTH, nearest=NEAREST, farthest=FARTHEST)
    textures, num_blocks = arrays["wall_textures"].reshape(-1).astype(np.int64), arrays["layout"].size
    places = join_blocks(arrays["wall_textures"]).reshape(-1)
    last_place = _last_seen(_count(places[sight.blocks], num_blocks) > 0)
    last_texture = _last_seen(_count(textures[sight.blocks], 256) > 0)
    is_near = (sight.distances <= MAX_DISTANCE).astype(float)
    last_face = _last_seen(_count(sight.faces, 4 * num_blocks, is_near) >= MIN_COLUMNS)
    cases = []
    first = DREAMT + MIN_ABSENT
    for frame in (first + np.flatnonzero(middle.is_clear[first:])).tolist():
        given = frame - DREAMT  # the last context frame
        place, face = places[sight.blocks[frame, MIDDLE]], sight.faces[frame, MIDDLE]
        seen, glimpsed = int(last_face[given, face]), int(last_place[given, place])
        span = find_bin(given + 1 - seen, bins)
        context = next((size for size in CONTEXTS if size >= given + 1 - seen + MARGIN), None)
        is_hidden = max(glimpsed, int(last_texture[given, middle.walls[frame]])) <= given - MIN_ABSENT
        is_fair = seen >= 0 and is_hidden and span is not None and given + 1 - glimpsed > span[0]
        if is_fair and context is not None and context <= given + 1:
            wall, floor = int(middle.walls[frame]), int(middle.floors[frame])
            region = _region(sight, frame)
            cases.append(NeedleCase(episode, frame, seen, given - glimpsed, context, wall, floor, region))
    return cases


def _in_turn(found: list[list[NeedleCase]], rng: np.random.Generator) -> Iterator[NeedleCase]:
    """Yield cases in rounds: each round one of every episode that has one left, `MIN_APART` from those yielded."""
    left = [[cases[i] for i in rng.permutation(len(cases))] for cases in found]
    while any(left):
        for index in rng.permutation(len(left)):
            if left[index]:
                chosen = left[index].pop()
                left[index] = [case for case in left[index] if abs(case.frame - chosen.frame) >= MIN_APART]
                yield chosen


def find_cases(
    episodes: Sequence[EpisodeInfo],
    bins: Sequence[tuple[int, int]] = BINS,
    cases_per_bin: int = 300,
    seed: int = 0,
    *,
    on_episode: Callable[[int], object] = lambda count: None,
) -> list[NeedleCase]:
    """Choose cases, evenly over the episodes, bin by bin.

    Args:
        episodes: held-out episodes with pose and layout.
        bins: (low, high] of the distance, frames.
        cases_per_bin: at most so many of each bin; fewer where the recording has fewer.
        seed: which ones.
        on_episode: told 1 for every episode searched.

    Returns:
        the cases, those of a bin together.

    Raises:
        DataError: no case at all, or an episode without pose or layout.
    """
    found = []
    for episode in episodes:
        found.append(cases_of_episode(episode, bins))
        on_episode(1)
    rng = np.random.default_rng([seed, 3])
    chosen: list[NeedleCase] = []
    for span in bins:
        inside = [[case for case in cases if find_bin(case.distance, bins) == span] for cases in found]
        chosen += [case for _, case in zip(range(cases_per_bin), _in_turn(inside, rng), strict=False)]
    if not chosen:
        longest = max((episode.num_frames for episode in episodes), default=0)
        raise DataError(
            f"none of the {len(episodes)} held-out episodes (the longest has {longest} frames) comes back to a place "
            "that was out of view: record more or longer episodes with `python -m train.record`"
        )
    return chosen
