"""Running tests: replayed on checkpoints, scored beside a ceiling, floors and stand-ins, and reported.

Owns: the options and the order of the work. Does not know how a test is dreamt (`train.memory.replay`), scored
(`train.memory.scoreboard`) or drawn (`train.memory.report`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from envs.dreamer import find_world
from train.core.options import options_to_json, save_json
from train.memory.cases import LEAST_CONTEXT, MemoryTest, check_tests, load_tests
from train.memory.replay import (
    SHORT_MEMORY,
    count_frames,
    dream_short,
    dream_whole,
    replay,
    replay_frozen,
    replay_noise,
    replay_recorded,
)
from train.memory.report import write_report
from train.memory.scoreboard import Scoreboard
from train.memory.tables import METRICS
from train.memory.ways import WAYS
from worldmodel.errors import ConfigError, SeedError
from worldmodel.world import WorldModel

REPORT = "report.json"


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Replay tests of memory on checkpoints, and report what they show where they have been before."""

    tests: Path
    """Folder of sessions, or one: made by `make` or `import`, or recorded by play.py --record."""
    checkpoint: tuple[str, ...]
    """Names of shipped worlds, or folders of bundles."""
    out: Path
    """Folder of report.json, report.md and report.html; made if missing."""
    threshold: tuple[str, ...] = ()
    """METRIC=VALUE or WAY.METRIC=VALUE, such as psnr=20 loop.ssim=0.5; a wrong one lists those there are. With any, the
    exit status is 1 unless every checkpoint passes."""
    context: int = LEAST_CONTEXT
    """True frames given at least; up to the first mark that is come back to, where that is later."""
    floors: bool = True
    """Measure a memory cut short as well, which takes longer than the test itself."""
    features: bool = True
    """Measure perceptual distances, where the package of the metrics extra is installed."""
    teacher: Path | None = None
    """Recording of the world that teaches the place classifier; without it places are not named."""
    batch_size: int = 16
    """Dreams at once."""
    steps: int | None = None
    """Denoising steps a frame; default what each world says."""
    memory: int | None = None
    """Frames remembered; default what each world was trained with."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    seed: int = 0
    """Seed of the dreams."""

    def __post_init__(self) -> None:
        if not self.checkpoint:
            raise ConfigError("give at least one --checkpoint")
        for name in ("context", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1; got {getattr(self, name)}")
        if self.seed < 0:
            raise SeedError(f"seed must be 0 or more; got {self.seed}")
        read_thresholds(self.threshold)


def read_thresholds(texts: Sequence[str]) -> dict[str, float]:
    """Return thresholds from texts METRIC=VALUE or WAY.METRIC=VALUE.

    Raises:
        ConfigError: no such metric or way, or no number.
    """
    found = {}
    for text in texts:
        name, _, value = text.partition("=")
        way, _, metric = name.rpartition(".")
        is_known = metric in METRICS and (not way or (way in WAYS and metric != "action_accuracy"))
        try:
            found[name] = float(value)
        except ValueError:
            is_known = False
        if not is_known:
            raise ConfigError(
                f"--threshold {text!r} is not accepted; give METRIC=VALUE or WAY.METRIC=VALUE, metrics: "
                f"{', '.join(METRICS)}; ways: {', '.join(WAYS)}"
            )
    return found


def run_tests(options: RunOptions, command: str = "") -> dict[str, Any]:
    """Replay tests on checkpoints, score them, and write the report.

    Args:
        options: what to run.
        command: command line to keep in the report.

    Returns:
        the content of `report.json`; `passes` says whether every checkpoint passes.

    Raises:
        DataError: no test, a test of another world, or a damaged file. CheckpointError: no such bundle.
        ConfigError, DeviceError: a setting is not accepted. StorageError: the report cannot be written.
    """
    tests = load_tests(options.tests, options.context)
    models = _load_models(options, tests)
    world = find_world(next(iter(models.values())).info, options.checkpoint[0])
    board = Scoreboard(
        tests, world, out=options.out, features=options.features, teacher=options.teacher, seed=options.seed
    )

    board.add("real world", "ceiling", replay_recorded(tests, is_real=True))
    board.add("as played", "ceiling", replay_recorded(tests, is_real=False))
    total = count_frames(tests, options.batch_size) * len(models) * (2 if options.floors else 1)
    settings: dict[str, Any] = {"batch_size": options.batch_size, "seed": options.seed}
    with tqdm(total=total, unit="frame", mininterval=2.0) as progress:
        settings["on_frames"] = progress.update
        for name, model in models.items():
            progress.set_description(name)
            row = board.add(name, "checkpoint", replay(model, tests, dream_whole, **settings))
            assert row is not None
            board.add_shuffled(row)
            if options.floors:
                short = replay(model, tests, dream_short, **settings)
                board.add(f"{name}, memory of {SHORT_MEMORY} frames", "floor", short)
    board.add("a picture that stands still", "control", replay_frozen(tests))
    board.add("pictures of noise", "control", replay_noise(tests, options.seed))

    report = board.report(read_thresholds(options.threshold))
    report |= {"settings": options_to_json(options), "command": command}
    save_json(options.out / REPORT, report)
    write_report(options.out, report, board.rows, tests)
    return report


def _load_models(options: RunOptions, tests: Sequence[MemoryTest]) -> dict[str, WorldModel]:
    """Load the checkpoints, by names that differ, and check that the tests are theirs."""
    models: dict[str, WorldModel] = {}
    for place in dict.fromkeys(options.checkpoint):
        short = Path(place).name
        name = place if short in models or not short else short
        model = WorldModel.load(place, device=options.device, num_steps=options.steps, memory_frames=options.memory)
        world = find_world(model.info, place)
        names = (world.name, str(model.info["world"]))
        check_tests(tests, world, names, model.codec.config.image_size, place)
        models[name] = model
    return models
