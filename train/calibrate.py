"""Program: mend probabilities of rewards and ends. `python -m train.calibrate --checkpoint A --data DIR --out B`.

Dreams along recorded play of the training scenes, fits a scale and a shift of the logits of both heads to what was
recorded (Platt), and writes the world with them; nothing else of it changes.
"""

import dataclasses
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from envs.data.episodes import open_shards
from train.core.options import parse_options, run_program
from train.data.clips import list_episodes
from train.measures.calibration import KINDS, CalibrationOptions, predict_events
from worldmodel.analysis.calibration import Predicted, fit_platt, log_loss
from worldmodel.checkpoint import load_info, resolve, save_bundle
from worldmodel.errors import ConfigError, DataError, StorageError
from worldmodel.reward_rule import HeadCalibration
from worldmodel.world import WorldModel


@dataclass(frozen=True, kw_only=True)
class CalibrateOptions:
    """Fit the reward and end heads of a world to what happens in its own dreams."""

    checkpoint: str
    """Bundle to take: a name in the package, or a folder."""
    data: Path
    """Folder of a recording (train.record); its training episodes are used."""
    out: Path
    """Folder of the bundle to write; must not be there."""
    dreams: CalibrationOptions = field(default_factory=lambda: CalibrationOptions(dreams=192))
    """The dreams along it."""
    batch_size: int = 24
    """Dreams at once."""
    seed: int = 0
    """Seed of the choice and of the dreams."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


def calibrate(options: CalibrateOptions) -> dict[str, Any]:
    """Fit, and write the bundle; return what was fitted and the log-losses before and after.

    Raises:
        ConfigError: `out` is there. CheckpointError, DataError, StorageError: a bundle or recording cannot be used, or
            a file cannot be written.
    """
    if options.out.exists():
        raise ConfigError(f"{options.out} is there already: give another --out")
    episodes = list_episodes([shard for shard in open_shards(options.data) if shard.split == "train"])
    if not episodes:
        raise DataError(f"{options.data} has no training episodes: record some (train.record)")
    model = WorldModel.load(options.checkpoint, device=options.device)
    found = predict_events(model, episodes, options.dreams, options.batch_size, options.seed)

    fits = {name: fit_platt(predicted) for name, predicted in found.items()}
    info = load_info(options.checkpoint)
    before = dataclasses.asdict(HeadCalibration.of(info))
    after = {name: _compose(before[name], fits[name]) for name in KINDS}

    temporary = options.out.with_name(f".{options.out.name}.{os.getpid()}.tmp")
    try:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(resolve(options.checkpoint), temporary)
        save_bundle(temporary, info=info | {"calibration": after})
        temporary.rename(options.out)
    except OSError as error:
        raise StorageError(
            f"{options.out} cannot be written ({error}): free some space, or give another --out"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return {name: _describe(found[name], *fits[name]) for name in KINDS}


def _compose(first: tuple[float, float], second: tuple[float, float]) -> tuple[float, float]:
    """Return the scale and shift that do what two do one after the other."""
    return second[0] * first[0], second[0] * first[1] + second[1]


def _describe(predicted: Predicted, scale: float, shift: float) -> dict[str, float]:
    after = log_loss(predicted, scale * predicted.logits + shift)
    return {
        "scale": round(scale, 4),
        "shift": round(shift, 4),
        "events": int(predicted.happened.sum()),
        "log_loss_before": round(log_loss(predicted), 5),
        "log_loss_after": round(after, 5),
    }


def main() -> None:
    """Parse options, calibrate, print what was fitted."""
    print(calibrate(parse_options(CalibrateOptions, "python -m train.calibrate")))


if __name__ == "__main__":
    run_program(main)
