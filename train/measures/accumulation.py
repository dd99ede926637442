"""Error accumulation: how dreams decay under each schedule, and how well that is predicted without rolling out.

Owns: the choice of held-out cases, and what is measured for each schedule: rollouts against the truth, and the
prediction from single denoising steps on other clips. Does not know how either is computed (`worldmodel.analysis`) or
drawn (`train.reports.accumulation`).
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch

from envs.data.episodes import EpisodeInfo
from train.data.rollouts import read_pieces, spread_over
from train.measures.base import Bench, Measure
from train.measures.features import MIN_SIZE, find_weights, load_feature_extractor
from train.reports.accumulation import accumulation_lines, correlate, plot_correlation, plot_segments
from worldmodel.analysis.accumulation import SEGMENT, compare_frames, measure_decay
from worldmodel.analysis.distances import Ruler
from worldmodel.analysis.prediction import predict_decay, unrelated_distance
from worldmodel.errors import ConfigError, WindowError
from worldmodel.windows import Schedule, parse_schedule

SCHEDULES = "next@1,next@2,next@4,next@8,fifo:4,fifo:8,rolling:4:2,rolling:8:2,pyramid:8:4,outpaint:8:4,outpaint:16:8"
CLIPS, SHORT, LONG = 7, 8, 9  # streams of chance for the choice of pieces


@dataclass(frozen=True)
class AccumulationOptions:
    """Settings of rollouts and prediction.

    Attributes:
        schedules: with commas: next, outpaint:W:OVERLAP, fifo:W, rolling:W:SUBSTEPS, pyramid:W:DELTA or FILE.json; @N
            behind one: N denoising steps in an auto-regressive step.
        cases: rollouts compared with the truth, for each schedule.
        context: real frames before every dream.
        frames: frames of those rollouts.
        long_cases: long rollouts for each schedule; 0: none.
        long_frames: frames of a long rollout; fewer where no held-out episode is that long.
        clips: that the prediction is made from, drawn apart from the cases.
        features: measure perceptual distance and FD-lite0 too; they need the features of the `metrics` extra.
        feature_size: height and width that frames are brought to before their features are taken.
        feature_every: features of every so-manyth frame.
        feature_dims: dimensions of the Frechet distance; keep the frames of a segment (in the report) well above.
    """

    schedules: str = SCHEDULES
    cases: int = 32
    context: int = 32
    frames: int = 64
    long_cases: int = 8
    long_frames: int = 300
    clips: int = 32
    features: bool = True
    feature_size: int = 64
    feature_every: int = 2
    feature_dims: int = 32

    def __post_init__(self) -> None:
        least_rollouts = {"cases": 2, "context": 2, "frames": 1, "long_cases": 0, "long_frames": 1, "clips": 2}
        least_features = {"feature_size": MIN_SIZE, "feature_every": 1, "feature_dims": 1}
        for name, least in (least_rollouts | least_features).items():
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}; got {getattr(self, name)}")
        if self.long_cases == 1:
            raise ConfigError("long_cases must be 0 or at least 2; got 1")
        if self.feature_every > SEGMENT:
            raise ConfigError(
                f"feature_every must be at most the {SEGMENT} frames of a segment; got {self.feature_every}"
            )
        names = [schedule.name for schedule in self.read_schedules()]
        if len({*names}) != len(names):
            raise ConfigError(f"schedules must be different ones; got {', '.join(names)}")

    def read_schedules(self) -> list[Schedule]:
        """Return the schedules.

        Raises:
            WindowError: one is not understood.
        """
        return [read_schedule(text.strip()) for text in self.schedules.split(",")]


def read_schedule(text: str) -> Schedule:
    """Read a schedule with an optional number of denoising steps behind it, as `next@4`.

    Raises:
        WindowError: as `parse_schedule`, or the number is not a whole one from 1 to 1000.
    """
    name, mark, number = text.partition("@")
    schedule = parse_schedule(name)
    if not mark:
        return schedule
    if not (number.isascii() and number.isdecimal() and 1 <= int(number[:9]) <= 1000):
        raise WindowError(
            f"schedule {text!r}: behind @ stands the number of denoising steps, 1 to 1000; got {number!r}"
        )
    return dataclasses.replace(schedule, name=text, num_steps=int(number))


class Rollouts(NamedTuple):
    """Rollouts of one length: how many, the frames of each, and the stream of chance of their choice."""

    cases: int
    frames: int
    stream: int


class Accumulation(Measure):
    """Decay of dreams by schedule, measured and predicted."""

    name = "accumulation"
    Options = AccumulationOptions
    quick: ClassVar[dict[str, int | str]] = {
        "schedules": "next@1,fifo:4,outpaint:8:4",
        "cases": 2,
        "frames": 16,
        "long_cases": 0,
        "clips": 2,
    }

    def num_frames(self, bench: Bench, options: AccumulationOptions) -> int:
        """Return the frames to dream; a clip that the prediction is made from counts as one."""
        dreamt = sum(plan.cases * plan.frames for plan in plan_rollouts(bench, options).values())
        return len(options.read_schedules()) * (options.clips + dreamt)

    def check(self, bench: Bench, options: AccumulationOptions) -> None:
        """Raise what does not fit: schedules and frames asked for, frames asked for and recorded, missing features.

        Raises:
            ConfigError: a schedule dreams more frames at once than are asked for, or takes more context than is given.
            DataError: no episode is long enough. MissingPackageError: features are asked for and not installed.
        """
        schedules = options.read_schedules()
        for schedule in schedules:
            ahead, overlap = schedule.window.input_lag + schedule.window.stride, schedule.window.num_clean
            if ahead > options.frames:
                raise ConfigError(
                    f"schedule {schedule.name} dreams {ahead} frames at once; got frames {options.frames}: ask for more"
                )
            if overlap >= options.context:
                raise ConfigError(
                    f"schedule {schedule.name} takes {overlap} clean frames from the context, and one more must be "
                    f"before them; got context {options.context}: give at least {overlap + 1}"
                )
        longest = max(options.frames, _most_in_flight(schedules))
        spread_over(bench.episodes, options.context + longest, 1, np.random.default_rng(0))
        if options.features:
            find_weights()

    def run(self, bench: Bench, options: AccumulationOptions) -> dict[str, Any]:
        """Measure, and write `segments.png` and `prediction.png`. Errors as `measure_accumulation`."""
        extractor = load_feature_extractor(bench.model.device, options.feature_size) if options.features else None
        return measure_accumulation(bench, options, extractor)

    def lines(self, found: dict[str, Any]) -> list[str]:
        """Return tables by segment, what was predicted, and how well it ranks the schedules."""
        return accumulation_lines(found)


def _most_in_flight(schedules: list[Schedule]) -> int:
    """Return the most frames that a schedule has in flight and unfinished."""
    return max(schedule.window.size - schedule.window.num_clean for schedule in schedules)


def plan_rollouts(bench: Bench, options: AccumulationOptions) -> dict[str, Rollouts]:
    """Return what is rolled out for each schedule, by its name in the report."""
    plans = {"measured": Rollouts(options.cases, options.frames, SHORT)}
    longest = max(episode.num_frames for episode in bench.episodes) - options.context
    long_frames = min(options.long_frames, longest)
    if options.long_cases and long_frames > options.frames:
        plans["measured_long"] = Rollouts(options.long_cases, long_frames, LONG)
    return plans


@dataclass(frozen=True)
class Cases:
    """Real pieces to dream from: frames uint8 (B, C + N, H, W, 3), actions int64 (B, C + N - 1)."""

    frames: torch.Tensor
    actions: torch.Tensor

    @classmethod
    def draw(cls, episodes: list[EpisodeInfo], num_frames: int, count: int, seed: tuple[int, int]) -> "Cases":
        """Read `count` pieces of `num_frames`, spread over episodes.

        Raises:
            DataError: no episode is long enough, or a file is damaged.
        """
        given = read_pieces(spread_over(episodes, num_frames, count, np.random.default_rng(seed)))
        return cls(given["frames"], given["actions"].long())


def predict_schedules(bench: Bench, options: AccumulationOptions, schedules: list[Schedule]) -> dict[str, Any]:
    """Predict the decay of every schedule from single denoising steps on real clips.

    Returns:
        `predicted`: what `predict_decay` says of each, by name; `unrelated_distance`: where decay ends.

    Raises:
        ConfigError: a schedule does not fit the context. DataError: episodes too short.
    """
    model, seed = bench.model, bench.seed
    needed = options.context + _most_in_flight(schedules)
    clips = Cases.draw(bench.episodes, needed, options.clips, (seed, CLIPS))
    latents = torch.cat([model.encode(part) for part in clips.frames.split(8)]).cpu()
    into = torch.nn.functional.pad(clips.actions, (1, 0), value=model.num_actions)
    given: dict[str, Any] = {"context": options.context, "seed": seed, "batch_size": bench.batch_size}

    predicted = {}
    for schedule in schedules:
        predicted[schedule.name] = predict_decay(model, latents, into, schedule, **given)
        bench.on_frames(len(latents))
    return {"predicted": predicted, "unrelated_distance": unrelated_distance(latents)}


def roll_out(
    bench: Bench,
    options: AccumulationOptions,
    schedules: list[Schedule],
    plan: Rollouts,
    extractor: Ruler | None,
) -> dict[str, Any]:
    """Return what `measure_decay` says of each schedule, and the same of frames that no schedule dreamt, by name.

    Raises:
        DataError: episodes too short. ShapeError: a schedule does not fit context or frames.
    """
    model, context = bench.model, options.context
    cases = Cases.draw(bench.episodes, context + plan.frames, plan.cases, (bench.seed, plan.stream))
    settings: dict[str, Any] = {"extractor": extractor}
    settings |= {"feature_every": options.feature_every, "feature_dims": options.feature_dims}

    truth = cases.frames[:, context:]
    held = cases.frames[:, context - 1 : context].expand_as(truth)
    coded = torch.cat([model.decode(model.encode(part)).cpu() for part in truth.split(4)])
    references = {"last frame held": held, "codec alone": coded, "frames of another case": truth.roll(1, 0)}
    found = {name: compare_frames(frames, truth, **settings) for name, frames in references.items()}

    seeds = [bench.seed + 1000 * plan.stream + i for i in range(len(truth))]
    settings |= {"batch_size": bench.batch_size, "on_frames": bench.on_frames}
    for schedule in schedules:
        found[schedule.name] = measure_decay(
            model, cases.frames, cases.actions, schedule, context=context, seeds=seeds, **settings
        )
    return found


def measure_accumulation(bench: Bench, options: AccumulationOptions, extractor: Ruler | None = None) -> dict[str, Any]:
    """Measure and predict every schedule, and draw both.

    Args:
        bench: where to measure.
        options: what to measure; `features` is not looked at.
        extractor: features of frames; None leaves their columns out.

    Returns:
        `predicted` and `unrelated_distance` as `predict_schedules`; `measured` and, where there are long rollouts,
        `measured_long` as `roll_out`; `correlation` as `train.reports.accumulation.correlate`.

    Raises:
        ShapeError, ConfigError: a schedule does not fit context or frames. DataError: episodes too short.
        StorageError: a picture cannot be written.
    """
    schedules = options.read_schedules()
    found = predict_schedules(bench, options, schedules)
    for name, plan in plan_rollouts(bench, options).items():
        found[name] = roll_out(bench, options, schedules, plan, extractor)

    found["correlation"] = correlate(found, bench.seed)
    plot_segments(bench.out / "segments.png", found)
    plot_correlation(bench.out / "prediction.png", found)
    return found
