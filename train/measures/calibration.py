"""Calibration: can the probabilities of rewards and ends in dreams be believed?

Owns: the dreams along recorded play, of which what is to happen is known, their weights, and the table. The scores are
`worldmodel.analysis.calibration`'s.

Rewards are rare: half of the dreams have one ahead in the recording, and each dream counts for as many as there are of
its kind.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from envs.data.episodes import EpisodeInfo, read_episode
from train.data.rollouts import Piece, dream_on, in_batches, read_pieces
from train.measures.base import Bench, Measure
from train.reports.plots import markdown_row, show_number
from worldmodel.analysis.calibration import Predicted, score_probabilities
from worldmodel.errors import ConfigError, DataError
from worldmodel.reward_rule import RewardRule
from worldmodel.world import WorldModel

KINDS = {"reward": "rewards", "terminated": "terminated"}


@dataclass(frozen=True)
class CalibrationOptions:
    """Settings of the dreams.

    Attributes:
        dreams: how many.
        context: real frames before each.
        horizon: frames of each, under the recorded actions.
    """

    dreams: int = 96
    context: int = 32
    horizon: int = 32

    def __post_init__(self) -> None:
        for name, least in (("dreams", 2), ("context", 1), ("horizon", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}; got {getattr(self, name)}")


class Calibration(Measure):
    """Log-loss and reliability of the reward and end heads in dreams along recorded play."""

    name = "calibration"
    Options = CalibrationOptions
    quick: ClassVar[dict[str, int]] = {"dreams": 4, "horizon": 8}

    def num_frames(self, bench: Bench, options: CalibrationOptions) -> int:
        """Return the frames to dream."""
        return options.dreams * options.horizon

    def run(self, bench: Bench, options: CalibrationOptions) -> dict[str, Any]:
        """Measure. Errors as `predict_events`."""
        found = predict_events(
            bench.model, bench.episodes, options, bench.batch_size, bench.seed, on_frames=bench.on_frames
        )
        return {name: score_probabilities(predicted) for name, predicted in found.items()}

    def lines(self, found: dict[str, Any]) -> list[str]:
        """Return a table of losses and one of reliability."""
        lines = [
            markdown_row("", "log-loss, nats", "of always predicting the rate", "rate", "events"),
            "|---|---|---|---|---|",
        ]
        for name in KINDS:
            part = found[name]
            losses = (show_number(part[key], 4) for key in ("log_loss", "log_loss_of_rate", "rate"))
            lines.append(markdown_row(name, *losses, part["count"]))
        lines += [
            "",
            markdown_row("", "predicted from", "to", "mean predicted", "happened", "frames"),
            "|---|---|---|---|---|---|",
        ]
        for name in KINDS:
            for part in found[name]["bins"]:
                means = (show_number(part[key], 4) for key in ("predicted", "happened"))
                lines.append(markdown_row(name, part["low"], part["high"], *means, part["count"]))
        return lines


def choose_pieces(
    episodes: Sequence[EpisodeInfo], options: CalibrationOptions, rng: np.random.Generator
) -> tuple[list[Piece], list[float]]:
    """Return pieces, half of them with a reward or an end ahead where there are as many, and the weight of each.

    Raises:
        DataError: no episode is long enough.
    """
    length = options.context + options.horizon
    found: dict[bool, list[Piece]] = {True: [], False: []}
    for episode in episodes:
        if episode.num_frames < length:
            continue
        events = read_episode(episode, fields=("rewards", "terminated"))
        happens = (events["rewards"] != 0) | events["terminated"]
        last = episode.num_frames - length
        for start in sorted({*range(0, last + 1, options.horizon), last}):
            ahead = slice(start + options.context - 1, start + length - 1)
            found[bool(happens[ahead].any())].append(Piece(episode, start, length))
    if not found[True] and not found[False]:
        raise DataError(f"no episode has {length} frames: lower calibration.context or calibration.horizon")

    counts = {True: min(options.dreams // 2, len(found[True]))}
    counts[False] = min(options.dreams - counts[True], len(found[False]))
    pieces: list[Piece] = []
    weights: list[float] = []
    for kind, count in counts.items():
        if not count:
            continue
        pieces += [found[kind][int(i)] for i in rng.permutation(len(found[kind]))[:count]]
        weights += [len(found[kind]) / count] * count
    return pieces, weights


def predict_events(
    model: WorldModel,
    episodes: Sequence[EpisodeInfo],
    options: CalibrationOptions,
    batch_size: int,
    seed: int,
    on_frames: Callable[[int], object] = lambda count: None,
) -> dict[str, Predicted]:
    """Dream along recorded play; return what the heads say of every step, and what was recorded, by `KINDS`.

    The rule of the world is left out: it bounds what the heads say, whatever that is.

    Raises:
        DataError: as `choose_pieces`, or a file is damaged or gone.
    """
    model = model.with_settings()
    model.reward_rule = RewardRule()
    pieces, weights = choose_pieces(episodes, options, np.random.default_rng([seed, 16]))
    known = options.context - 1
    parts: dict[str, list[torch.Tensor]] = {}
    for number, batch in enumerate(in_batches(pieces, batch_size)):
        first = number * batch_size
        given = read_pieces(batch, ("frames", "actions", "rewards", "terminated"))
        seeds = [seed + first + number for number in range(len(batch))]
        found = dream_on(model, given["frames"][:, : known + 1], given["actions"], seeds, on_frames)
        values = {
            "reward": found.reward_probability,
            "true_reward": given["rewards"][:, known:] != 0,
            "terminated": found.end_probability,
            "true_terminated": given["terminated"][:, known:],
            "weight": torch.tensor(weights[first : first + len(batch)])[:, None].expand(-1, options.horizon),
        }
        for name, value in values.items():
            parts.setdefault(name, []).append(value.flatten())
    all_of = {name: torch.cat(part) for name, part in parts.items()}
    return {name: Predicted(all_of[name], all_of[f"true_{name}"].bool(), all_of["weight"]) for name in KINDS}
