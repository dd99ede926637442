"""Program: measure a world. `python -m train.evaluate --checkpoint NAME --data DIR --out DIR --measures fidelity ...`.

Owns: the options, which of the measures asked for can be taken, their order, the progress bar and the report. Does not
know what a measure asks (`train.measures`).
"""

import dataclasses
import shlex
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from envs.data.episodes import open_shards
from envs.dreamer import find_world
from train.core.options import parse_options, read_assignments, run_program, save_json
from train.data.clips import list_episodes
from train.measures.base import Bench, Measure, why_not
from train.measures.registry import MEASURES, get_measure
from worldmodel.errors import ConfigError, DataError, SeedError, StorageError, WorldModelError
from worldmodel.files import write_file
from worldmodel.world import WorldModel


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Measure a world; a measure that cannot be taken is left out, and the report says why."""

    checkpoint: str
    """Name of a shipped world, or folder of a bundle."""
    out: Path
    """Folder of the report; made if missing. Pictures of a measure lie in a folder of its name."""
    data: Path | None = None
    """Folder of a recording with held-out ("test") shards; a few measures do without."""
    measures: tuple[str, ...] = ("fidelity", "action_accuracy", "drift", "heads")
    """What to measure; a wrong name lists those there are, "all" takes them all, module:class one of your own."""
    set: tuple[str, ...] = ()
    """Settings, such as fidelity.cases=100 revisit.walks=16; a wrong one lists those there are."""
    batch_size: int = 25
    """Dreams at once."""
    steps: int | None = None
    """Denoising steps a frame; default what the world says."""
    memory: int | None = None
    """Frames remembered; default what the world was trained with."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    seed: int = 0
    """Seed of the choice of cases and of the dreams."""
    quick: bool = False
    """A rehearsal: a little of each measure."""

    def __post_init__(self) -> None:
        if not self.measures or self.batch_size < 1:
            raise ConfigError(f"give at least one measure and a batch_size of at least 1; got {self.batch_size}")
        if self.seed < 0:
            raise SeedError(f"seed must be 0 or more; got {self.seed}")


def read_measures(names: tuple[str, ...], texts: tuple[str, ...], *, quick: bool = False) -> dict[str, Any]:
    """Return the settings of each measure, by name.

    Args:
        names: of measures; "all" for those of the registry.
        texts: NAME.FIELD=VALUE.
        quick: make each a rehearsal.

    Raises:
        ConfigError: no such measure or setting, or a value that is not accepted.
    """
    names = tuple(dict.fromkeys(each for name in names for each in (MEASURES if name == "all" else (name,))))
    given: dict[str, list[str]] = {name: [] for name in names}
    for text in texts:
        place, equals, value = text.partition("=")
        name, _, field = place.rpartition(".")  # "module:class" may have dots of its own
        if name not in given:
            raise ConfigError(f"--set {text!r} names no measure asked for; give NAME.FIELD=VALUE of {', '.join(names)}")
        given[name].append(field + equals + value)
    chosen = {}
    for name, assignments in given.items():
        measure = get_measure(name)
        values = read_assignments(measure.Options, assignments, f"the measure {name}")
        options = measure.Options(**values)
        chosen[name] = dataclasses.replace(options, **_shorten(options, values, measure.quick)) if quick else options
    return chosen


def _shorten(options: Any, given: Mapping[str, Any], quick: Mapping[str, int | str]) -> dict[str, Any]:
    """Return the settings of a rehearsal: numbers no larger than `quick` has them, its texts where none was given."""
    changes: dict[str, Any] = {}
    for field, value in quick.items():
        if not isinstance(value, str):
            changes[field] = min(getattr(options, field), value)
        elif field not in given:
            changes[field] = value
    return changes


def evaluate_world(
    model: WorldModel,
    out: Path,
    measures: Mapping[str, Any],
    *,
    data: Path | None = None,
    batch_size: int = 25,
    seed: int = 0,
    command: str = "",
) -> dict[str, Any]:
    """Take measures of a world, and write pictures, and after each measure `report.md` and `report.json`.

    Args:
        model: the world, with the denoising steps and the memory to measure.
        out: folder of the report.
        measures: settings of each, by name.
        data: folder of a recording.
        batch_size: dreams at once.
        seed: of the choice of cases and of the dreams.
        command: command line to keep in the report.

    Returns:
        the content of `report.json`: `measures` (name -> what it found), `skipped` (name -> why it was not taken, or
        failed), `held_out`, `settings`, `command`, `seconds`.

    Raises:
        DataError: no held-out shard of the world's frame size and actions; no measure can be taken, or
            all failed.
        WorldModelError: what the only measure raises.
        StorageError: a result cannot be written.
    """
    started = time.monotonic()
    bench = open_bench(model, out, data, batch_size, seed)
    taken, skipped = choose_measures(bench, measures)
    report: dict[str, Any] = {"measures": {}, "skipped": skipped}
    report["held_out"] = {
        "episodes": len(bench.episodes),
        "scenes": len({episode.scene_seed for episode in bench.episodes}),
    }
    report["settings"] = describe_settings(bench, {name: measures[name] for name in taken})
    report["command"] = command

    total = sum(measure.num_frames(bench, measures[name]) for name, measure in taken.items())
    with tqdm(total=total, unit="frame", mininterval=2.0) as progress:
        for name, measure in taken.items():
            progress.set_description(name)
            place = dataclasses.replace(bench, out=out / name.replace(":", "_"), on_frames=progress.update)
            try:
                report["measures"][name] = measure.run(place, measures[name])
            except StorageError:
                raise  # what is measured next could not be kept either
            except WorldModelError as error:
                if len(taken) == 1:
                    raise
                skipped[name] = f"it failed: {error}"
                print(f"{name} {skipped[name]}", file=sys.stderr)

            # What has been measured is kept, whatever becomes of the rest.
            report["seconds"] = round(time.monotonic() - started, 1)
            write_file(out / "report.md", ("\n".join(report_lines(report, taken)) + "\n").encode())
            save_json(out / "report.json", report)
    if not report["measures"]:
        raise DataError("nothing was measured: " + "; ".join(f"{name}: {reason}" for name, reason in skipped.items()))
    return report


def open_bench(model: WorldModel, out: Path, data: Path | None, batch_size: int, seed: int) -> Bench:
    """Return what measures work with; arguments as `evaluate_world`.

    Raises:
        DataError: no held-out shard of the world's frame size and actions. CheckpointError: no such world is known.
    """
    shards = [] if data is None else open_shards(data, "test", model.codec.config.image_size, model.num_actions)
    info = {"world": shards[0].world} | model.info if shards else model.info
    return Bench(model, find_world(info, "the world"), list_episodes(shards), data, out, batch_size, seed)


def choose_measures(bench: Bench, measures: Mapping[str, Any]) -> tuple[dict[str, Measure], dict[str, str]]:
    """Return the measures that can be taken, by name, and why others cannot, before anything slow begins.

    Args:
        bench: what they work with.
        measures: settings of each, by name.

    Raises:
        DataError: none can be taken. ConfigError: no such measure.
    """
    chosen = {name: get_measure(name) for name in measures}
    reasons = {name: why_not(measure, bench, measures[name]) for name, measure in chosen.items()}
    skipped = {name: reason for name, reason in reasons.items() if reason is not None}
    for name, reason in skipped.items():
        print(f"{name} is left out: {reason}", file=sys.stderr)

    taken = {name: measure for name, measure in chosen.items() if name not in skipped}
    if not taken:
        raise DataError("nothing to measure: " + "; ".join(f"{name}: {reason}" for name, reason in skipped.items()))
    return taken, skipped


def describe_settings(bench: Bench, measures: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a report says of how it was measured; `measures` are the settings of each."""
    model = bench.model
    return {
        "measures": {name: dataclasses.asdict(options) for name, options in measures.items()},
        "batch_size": bench.batch_size,
        "seed": bench.seed,
        "denoising_steps": model.config.num_steps,
        "level_shift": model.config.level_shift,
        "context_level": model.config.context_level,
        "memory_frames": model.memory_frames,
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "data": None if bench.data is None else str(bench.data),
    }


def report_lines(report: dict[str, Any], measures: Mapping[str, Measure]) -> list[str]:
    """Return a report as lines of markdown."""
    settings, held_out = report["settings"], report["held_out"]
    recorded = f"{held_out['episodes']} held-out episodes of {held_out['scenes']} scenes; "
    lines = [
        "# Measured",
        "",
        f"{recorded if held_out['episodes'] else ''}{settings['denoising_steps']} "
        f"denoising steps, {settings['memory_frames']} frames of memory, {settings['device']} ({settings['dtype']}), "
        f"{report['seconds']} s.",
    ]
    for name, found in report["measures"].items():
        lines += ["", f"## {name}", "", *measures[name].lines(found)]
    for name, reason in report["skipped"].items():
        lines += ["", f"## {name}", "", f"Left out: {reason}."]
    return [*lines, "", f"`{report['command']}`"] if report["command"] else lines


def main() -> None:
    """Parse options, measure, print the report."""
    options = parse_options(EvaluateOptions, "python -m train.evaluate")
    measures = read_measures(options.measures, options.set, quick=options.quick)
    model = WorldModel.load(
        options.checkpoint, device=options.device, num_steps=options.steps, memory_frames=options.memory
    )
    evaluate_world(
        model,
        options.out,
        measures,
        data=options.data,
        batch_size=options.batch_size,
        seed=options.seed,
        command=f"python -m train.evaluate {shlex.join(sys.argv[1:])}",
    )
    print((options.out / "report.md").read_text())
    print(f"report: {options.out / 'report.md'}")


if __name__ == "__main__":
    run_program(main)
