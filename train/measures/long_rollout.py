"""Long rollouts: do frames of a long dream stay like those of real play? By FD-lite0 of its first and last hundred.

Owns: dreams under recorded actions for as long as asked, the sets that are compared, and the floor of the comparison.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from envs.data.episodes import EpisodeInfo, read_episode
from train.data.rollouts import in_batches, read_pieces, spread_over
from train.measures.base import Bench, Measure
from train.measures.features import FeatureExtractor, load_feature_extractor
from train.reports.plots import markdown_row, save_sheet
from worldmodel.analysis.distances import frechet_distance
from worldmodel.errors import ConfigError

MOST_LEFT_OUT = 16  # groups of dreams that are left out in turn for the interval of a distance
SHEET_DREAMS = 8


@dataclass(frozen=True)
class LongRolloutOptions:
    """Settings of the dreams.

    Attributes:
        dreams: how many.
        dream_frames: frames of each, at least 200.
        context: real frames before.
    """

    dreams: int = 32
    dream_frames: int = 1000
    context: int = 32

    def __post_init__(self) -> None:
        for name, least in (("dreams", 1), ("dream_frames", 200), ("context", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}; got {getattr(self, name)}")


class LongRollout(Measure):
    """Distance of long dreams from real play."""

    name = "long_rollout"
    Options = LongRolloutOptions
    needs = ("recording", "features")
    quick: ClassVar[dict[str, int]] = {"dreams": 2, "dream_frames": 200}

    def num_frames(self, bench: Bench, options: LongRolloutOptions) -> int:
        """Return the frames to dream."""
        return options.dreams * options.dream_frames

    def run(self, bench: Bench, options: LongRolloutOptions) -> dict[str, Any]:
        """Measure, and write `long_rollout.png`. Errors as `measure_long`."""
        found, rows = measure_long(bench, options)
        save_sheet(bench.out / "long_rollout.png", rows[:SHEET_DREAMS], [1, *range(100, options.dream_frames + 1, 100)])
        return found

    def lines(self, found: dict[str, Any]) -> list[str]:
        """Return a table of distances."""
        titles = {"fd_first_100": "first 100 frames", "fd_last_100": "last 100 frames", "fd_real_100": "real play"}
        rows = []
        for name, title in titles.items():
            span = found[f"{name}_interval"]
            within = "" if span is None else f" ({span[0]:.0f} to {span[1]:.0f})"
            rows.append(markdown_row(title, f"{found[name]:.0f}{within}"))
        return [
            markdown_row("", "FD-lite0"),
            markdown_row("---", "---"),
            *rows,
            "",
            f"{found['dreams']} dreams of {found['dream_frames']} frames. {found['means']}.",
        ]


def measure_long(bench: Bench, options: LongRolloutOptions) -> tuple[dict[str, Any], list[tuple[str, torch.Tensor]]]:
    """Dream on for long under recorded actions; compare the frames of the first and the last hundred with real play.

    The actions of an episode are followed by those of others until the dream is long enough.

    Returns:
        FD-lite0 of the first hundred frames, the last hundred, of as many real stretches of a hundred frames, and of
        real frames from all over in the same number, each against one set of real frames; and rows of pictures.

    Raises:
        MissingPackageError: the features are not installed. DataError: episodes are too short.
    """
    model, episodes = bench.model, bench.episodes
    extractor = load_feature_extractor(model.device)
    rng = np.random.default_rng([bench.seed, 10])
    pieces = spread_over(episodes, options.context, options.dreams, rng)
    steps = [read_episode(e, fields=("actions",))["actions"] for e in rng.permutation(np.array(episodes, object))]

    parts: dict[str, list[torch.Tensor]] = {"first": [], "last": []}  # each (dreams, 100, features)
    rows: list[tuple[str, torch.Tensor]] = []
    number = 0
    for batch in in_batches(pieces, bench.batch_size):
        given = read_pieces(batch)
        actions = lengthen_actions(given["actions"], steps, options, rng)
        seeds = [bench.seed + number + i for i in range(len(batch))]
        features, pictures = dream_for_long(bench, options, given["frames"], actions, seeds, extractor)
        for name, found in features.items():
            parts[name].append(found)
        rows += [("dream", row) for row in pictures]
        number += len(batch)

    count = 100 * len(pieces)
    real = [extractor(torch.cat(read_real(episodes, count, rng))).pooled.cpu() for _ in range(2)]
    stretch = min(100, max(episode.num_frames for episode in episodes))
    stretches = [read_pieces([p], ("frames",))["frames"][0] for p in spread_over(episodes, stretch, len(pieces), rng)]
    compared = {name: list(torch.cat(values)) for name, values in parts.items()}
    compared["real"] = [extractor(frames).pooled.cpu() for frames in stretches]
    return summarize(compared, real, stretch) | {
        "frames_a_set": count,
        "dreams": len(pieces),
        "dream_frames": options.dream_frames,
    }, rows


def lengthen_actions(
    known: torch.Tensor, steps: Sequence[np.ndarray], options: LongRolloutOptions, rng: np.random.Generator
) -> torch.Tensor:
    """Return the actions of dreams, int64 (B, context - 1 + dream_frames): the known ones, then those of others.

    Args:
        known: integer (B, at least context - 1), recorded before and after the context's frames.
        steps: the actions of whole episodes.
        options: of the dreams.
        rng: draws whose actions follow.
    """
    context, length = options.context - 1, options.dream_frames
    actions = np.empty((len(known), context + length), np.uint8)
    for row in range(len(known)):
        actions[row, :context] = known[row].numpy()
        follow = np.concatenate([steps[int(i)] for i in rng.permutation(len(steps))[: 2 + length // 100]])
        actions[row, context:] = np.resize(follow, length)
    return torch.from_numpy(actions).long()


def dream_for_long(
    bench: Bench,
    options: LongRolloutOptions,
    frames: torch.Tensor,
    actions: torch.Tensor,
    seeds: list[int],
    extractor: FeatureExtractor,
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Dream on from frames uint8 (B, context, H, W, 3) under `lengthen_actions`.

    Returns:
        features (B, 100, D) of the "first" and the "last" hundred frames; and of each dream the first frame and every
        hundredth, uint8 (B, K, H, W, 3).
    """
    known, length = options.context, options.dream_frames
    state = bench.model.reset(frames, actions[:, : known - 1], seeds)
    pictures: list[torch.Tensor] = []
    features: dict[str, list[torch.Tensor]] = {"first": [], "last": []}
    for t in range(1, length + 1):
        made = bench.model.step(state, actions[:, known - 2 + t]).frames.cpu()
        bench.on_frames(len(made))
        if t <= 100 or t > length - 100:
            features["first" if t <= 100 else "last"].append(extractor(made).pooled.cpu())
        if t == 1 or t % 100 == 0:
            pictures.append(made)
    return {name: torch.stack(found, 1) for name, found in features.items()}, torch.stack(pictures, 1)


def summarize(compared: dict[str, list[torch.Tensor]], real: list[torch.Tensor], stretch: int) -> dict[str, Any]:
    """Return the distances, their intervals, and what they mean.

    Args:
        compared: features (100, D) of each "first", "last" and "real" stretch.
        real: two of features (N, D) of real frames; all else is compared with the first.
        stretch: frames of a real stretch.
    """
    found = {name: frechet_with_interval(parts, real[0]) for name, parts in compared.items()}
    names = {"first": "fd_first_100", "last": "fd_last_100", "real": "fd_real_100"}
    distances: dict[str, Any] = {}
    for name, title in names.items():
        distances |= {title: found[name][0], f"{title}_interval": found[name][1]}
    return distances | {
        "ratio": round(found["last"][0] / found["first"][0], 3),
        "fd_real": round(frechet_distance(real[1], real[0]), 4),
        "means": (
            "FD-lite0 to one set of real frames; first, last: of each dream; real_100: as many real stretches of "
            f"{stretch} frames, the floor of either; real: real frames in runs of 8; intervals: 95%, jackknife"
        ),
    }


def frechet_with_interval(parts: Sequence[torch.Tensor], theirs: torch.Tensor) -> tuple[float, list[float] | None]:
    """Return the Frechet distance of stretches of frames to a set, and its 95% interval by leaving stretches out.

    Drawn again with replacement, frames would be there twice, which raises the distance by itself; hence the jackknife.

    Args:
        parts: float (n, D) each, features of one stretch.
        theirs: float (m, D).

    Returns:
        the distance; and [low, high], or None where there are fewer than two stretches.
    """
    value = frechet_distance(torch.cat(list(parts)), theirs)
    if len(parts) < 2:
        return round(value, 4), None
    count = min(len(parts), MOST_LEFT_OUT)
    groups = np.array_split(np.arange(len(parts)), count)
    without = [
        frechet_distance(torch.cat([parts[i] for i in range(len(parts)) if i not in group]), theirs) for group in groups
    ]
    half = 1.96 * float(np.sqrt((count - 1) * np.var(without)))
    return round(value, 4), [round(max(0.0, value - half), 4), round(value + half, 4)]


def read_real(episodes: Sequence[EpisodeInfo], count: int, rng: np.random.Generator) -> list[torch.Tensor]:
    """Read about `count` frames spread over episodes, in runs of 8."""
    found = []
    for _ in range(-(-count // 8)):
        episode = episodes[int(rng.integers(len(episodes)))]
        start = int(rng.integers(max(1, episode.num_frames - 8)))
        stop = min(start + 8, episode.num_frames)
        found.append(torch.from_numpy(read_episode(episode, start, stop, ("frames",))["frames"]))
    return found
