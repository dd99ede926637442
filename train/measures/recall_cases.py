"""Cases of place recall in recorded play: places that come back into view after having been out of it.

Owns: what makes a case, finding cases by what a world says its frames show, and choosing them evenly. Reads no pixels
and knows no model.

A case: frame `frame` shows a place in its middle. The place is out of view in the last context frames, and so is every
other place that looks like it, so that nothing in sight gives it away. It was last well seen at frame `seen`. The
dream is `DREAMT` frames long and ends at `frame`; D = frame - 15 - seen. Glimpses of the place after `seen` may not
reach into a lower bin, so that a memory as short as that bin has nothing of the place.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from envs.data.episodes import EpisodeInfo
from envs.worlds.base import Places, World
from worldmodel.analysis.recall import BINS, find_bin
from worldmodel.errors import DataError

DREAMT = 16  # generated frames of a case; the last one is judged
MIN_COLUMNS = 4  # well seen: this many columns show the same part of the place, and it is near
MIN_ABSENT = 2  # context frames just before the dream that do not show it
MIN_APART = 8  # frames between the judged frames of two cases of one bin and episode
MARGIN = 8  # context frames before the place was seen
# A context is the shortest of these that holds that frame and the margin: few lengths make full batches.
CONTEXTS = (24, 40, 56, 88, 120, 168, 216, 264, 308)


@dataclass(frozen=True)
class RecallCase:
    """A place that comes back.

    Attributes:
        episode: where it was recorded.
        frame: the judged frame, whose middle shows the place.
        seen: the frame before the dream that last showed the place well.
        absent: frames just before the dream that show nothing of the place.
        context: real frames that hold `seen` and some before it.
        labels: what the middle of `frame` shows, a number for each of `World.place_labels`.
        columns: first and one past the last column of `frame` that shows the place, as shares of the width.
    """

    episode: EpisodeInfo
    frame: int
    seen: int
    absent: int
    context: int
    labels: tuple[int, ...]
    columns: tuple[float, float]

    @property
    def start(self) -> int:
        """The first dreamt frame."""
        return self.frame - DREAMT + 1

    @property
    def distance(self) -> int:
        """D: frames from `seen` to the first dreamt frame."""
        return self.start - self.seen


def _last_seen(is_shown: np.ndarray) -> np.ndarray:
    """Return for bool (T, N) the last frame up to and with t that shows n, int64 (T, N); -1 for none."""
    frames = np.where(is_shown, np.arange(len(is_shown))[:, None], -1)
    return np.maximum.accumulate(frames, 0)


def _count(things: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Return in how many columns each frame shows each thing, (T, number of things), of numbers (T, K)."""
    num_things = int(things.max()) + 1
    flat = (np.arange(len(things))[:, None] * num_things + things).ravel()
    counts = np.bincount(flat, None if weights is None else weights.ravel(), len(things) * num_things)
    return counts.reshape(len(things), num_things)


def _columns(regions: np.ndarray) -> tuple[float, float]:
    """Return where the region in the middle begins and ends, as shares of the width, of numbers (K,)."""
    columns = np.flatnonzero(regions == regions[len(regions) // 2])
    return int(columns[0]) / len(regions), (int(columns[-1]) + 1) / len(regions)


def cases_of_episode(episode: EpisodeInfo, places: Places, bins: Sequence[tuple[int, int]] = BINS) -> list[RecallCase]:
    """Return every case of an episode, in the order of its judged frames; neighbors overlap.

    Args:
        episode: recorded.
        places: what its frames show.
        bins: (low, high] of the distance, frames.
    """
    middle = places.ids.shape[1] // 2
    last_place = _last_seen(_count(places.ids) > 0)
    last_look = _last_seen(_count(places.looks) > 0)
    last_part = _last_seen(_count(places.parts, places.is_near.astype(float)) >= MIN_COLUMNS)
    cases = []
    first = DREAMT + MIN_ABSENT
    for frame in (first + np.flatnonzero(places.is_clear[first:])).tolist():
        given = frame - DREAMT  # the last context frame
        place, look, part = (of[frame, middle] for of in (places.ids, places.looks, places.parts))
        seen, glimpsed = int(last_part[given, part]), int(last_place[given, place])
        span = find_bin(given + 1 - seen, bins)
        context = next((size for size in CONTEXTS if size >= given + 1 - seen + MARGIN), None)
        is_hidden = max(glimpsed, int(last_look[given, look])) <= given - MIN_ABSENT
        is_fair = seen >= 0 and is_hidden and span is not None and given + 1 - glimpsed > span[0]
        if is_fair and context is not None and context <= given + 1:
            labels = tuple(int(label) for label in places.labels[frame])
            columns = _columns(places.regions[frame])
            cases.append(RecallCase(episode, frame, seen, given - glimpsed, context, labels, columns))
    return cases


def _in_turn(found: list[list[RecallCase]], rng: np.random.Generator) -> Iterator[RecallCase]:
    """Yield cases in rounds: each round one of every episode that has one left, `MIN_APART` from those yielded."""
    left = [[cases[i] for i in rng.permutation(len(cases))] for cases in found]
    while any(left):
        for index in rng.permutation(len(left)):
            if left[index]:
                chosen = left[index].pop()
                left[index] = [case for case in left[index] if abs(case.frame - chosen.frame) >= MIN_APART]
                yield chosen


def find_cases(
    world: World,
    episodes: Sequence[EpisodeInfo],
    bins: Sequence[tuple[int, int]] = BINS,
    cases_per_bin: int = 300,
    seed: int = 0,
    *,
    on_episode: Callable[[int], object] = lambda count: None,
) -> list[RecallCase]:
    """Choose cases, evenly over the episodes, bin by bin.

    Args:
        world: says what frames show.
        episodes: held-out ones.
        bins: (low, high] of the distance, frames.
        cases_per_bin: at most so many of each bin; fewer where the recording has fewer.
        seed: which ones.
        on_episode: told 1 for every episode searched.

    Returns:
        the cases, those of a bin together.

    Raises:
        DataError: no case at all, or the world cannot say what an episode shows.
    """
    found = []
    for episode in episodes:
        found.append(cases_of_episode(episode, world.places(episode), bins))
        on_episode(1)
    rng = np.random.default_rng([seed, 3])
    chosen: list[RecallCase] = []
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
