"""The model card of a bundle: README.md with data, training, figures and licence, made from what the programs saved.

Owns: the words and tables of the card. Reads no weights and measures nothing.
"""

import dataclasses
import json
import os
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from envs.data.episodes import ShardInfo
from envs.worlds.registry import get_world
from train.codec import CodecOptions
from train.core.machine import describe_machine
from train.data.recording import RecordOptions
from train.denoiser import DenoiserOptions
from train.reports.recorded import summarize
from worldmodel.errors import CheckpointError
from worldmodel.files import write_file

DEFAULT_LICENCE = "Weights: MIT, as the code that made them; pictures: as those of the world that was recorded."


@dataclass(frozen=True)
class TrainingRecord:
    """What the training programs wrote beside the weights: options and summary of each; empty where not found."""

    codec: dict[str, Any] = field(default_factory=dict)
    denoiser: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def find(cls, folder: Path) -> "TrainingRecord":
        """Read the records of a denoiser's folder and of the codec that it names.

        Raises:
            CheckpointError: a record is there and damaged.
        """
        denoiser = _read_record(folder / "denoiser_training.json")
        named = denoiser.get("options", {}).get("codec")
        places = [folder] + ([Path(named)] if named else [])
        codecs = (_read_record(place / "codec_training.json") for place in places)
        return cls(next((record for record in codecs if record), {}), denoiser)


def _read_record(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged ({error}): train again, or delete it to bundle without it") from error


def command_line(program: str, kind: type, values: dict[str, Any]) -> str:
    """Return the command that gives these options, those at their defaults left out.

    Args:
        program: such as "train.codec".
        kind: the options' dataclass.
        values: as `options_to_json` saved them; paths of this machine are shortened to their last folder.
    """
    words = [f"python -m {program}"]
    for name, value, default in _changed(kind, values, ""):
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool) and default is not None:
            words.append(flag if value else "--no-" + name.replace("_", "-"))
        elif isinstance(value, list | tuple):
            words.append(" ".join([flag, *map(str, value)]))
        elif isinstance(value, float):
            words.append(f"{flag} {value:.4g}")
        else:
            words.append(f"{flag} {Path(value).name if os.path.isabs(str(value)) else value}")
    return " ".join(words)


def _changed(kind: type, values: dict[str, Any], prefix: str) -> list[tuple[str, Any, Any]]:
    changed = []
    for option in dataclasses.fields(kind):
        factory = option.default_factory
        default = option.default if factory is dataclasses.MISSING else factory()
        value = values.get(option.name)
        value = tuple(value) if isinstance(value, list) else value  # as JSON gives it back
        if option.name not in values or option.name in ("resume", "device"):
            continue
        if dataclasses.is_dataclass(default) and isinstance(value, dict):
            changed += _changed(type(default), value, f"{prefix}{option.name}.")
        elif value != (str(default) if isinstance(default, Path) else default):
            changed.append((prefix + option.name, value, default))
    return changed


def _table(head: list[str], rows: list[list[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _figures(report: dict[str, Any]) -> str:
    measures = report.get("measures", {})
    parts = [*_likeness(measures), *_scalars(measures)]
    return "\n\n".join(parts or ["Not measured yet: `python -m train.evaluate --checkpoint DIR --data DIR --out DIR`."])


def _likeness(measures: dict[str, Any]) -> list[str]:
    if "fidelity" not in measures:
        return []
    found = measures["fidelity"]
    columns = {"psnr": "PSNR", "copy_last": "copy last frame", "codec_ceiling": "codec ceiling", "ssim": "SSIM"}
    maps = {title: found[key] for key, title in columns.items() if key in found}
    in_sight = found.get("in_sight", {})
    for title, name in {"PSNR in sight": "dream", "oracle in sight": "oracle", "share in sight": "share"}.items():
        if name in in_sight:
            maps[title] = in_sight[name]["at"]

    horizons = sorted({int(h) for values in maps.values() for h in values})
    rows = [[h, *(_number(values.get(str(h))) for values in maps.values())] for h in horizons]
    cases = f"{found['cases']} cases in scenes never trained on, after real context frames, true actions; dB."
    return [cases, _table(["frame", *maps], rows)]


def _scalars(measures: dict[str, Any]) -> list[str]:
    lines = []
    if "action_accuracy" in measures:
        dream = measures["action_accuracy"]["dream"]
        shares = ", ".join(f"{name} {value:.3f}" for name, value in dream.items() if isinstance(value, float))
        lines.append(f"Action accuracy (share of openings where the picture moves as told): {shares}.")
    if "drift" in measures:
        ratio = measures["drift"]["sharpness_ratio"]
        lines.append(f"Sharpness late in long dreams (gradient energy over real play's): {ratio:.3f}.")
    return lines


def _number(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, int | float) else "-"


def _training(training: TrainingRecord, shards: list[ShardInfo], folder: str) -> str:
    recording = shards[0].path.parent / "recording.json"
    lines = []
    if recording.is_file():
        options = json.loads(recording.read_text()).get("options", {})
        lines.append(command_line("train.record", RecordOptions, options | {"out": folder}))
    kinds = (("train.codec", CodecOptions, training.codec), ("train.denoiser", DenoiserOptions, training.denoiser))
    lines += [command_line(name, kind, record["options"]) for name, kind, record in kinds if "options" in record]
    rows = []
    for name, record in (("codec", training.codec), ("denoiser", training.denoiser)):
        summary = record.get("summary", {})
        if summary:
            speed = f"{summary.get('frames_per_s', 0):,.0f} frames/s"
            speed += f", {summary['tflops']:.3g} TFLOP/s" if "tflops" in summary else ""
            rows.append(
                [name, f"{summary['minutes']:.1f}", f"{summary['steps']:,}", f"{summary['frames']:,}", speed]
                + [f"test PSNR {summary['test_psnr']:.2f} dB" if "test_psnr" in summary else ""]
            )
    head = ["", "minutes", "steps", "frames seen", "speed", "result"]
    return "```\n" + "\n".join(lines) + "\n```\n\n" + (_table(head, rows) if rows else "")


def write_card(
    out: Path,
    shards: list[ShardInfo],
    info: dict[str, Any],
    sizes: dict[str, Any],
    training: TrainingRecord,
    report: dict[str, Any],
    notes: str = "",
) -> None:
    """Write README.md into the folder of a bundle.

    Args:
        out: folder of the bundle.
        shards: the recording.
        info: what the bundle says of its world.
        sizes: the summary of `train.bundle.make_bundle`.
        training: what the training programs saved.
        report: of `train.evaluate`; empty if not measured.
        notes: what else to say of the training.

    Raises:
        StorageError: the file cannot be written.
    """
    totals, world = summarize(shards), get_world(info["world"])
    notes = f"\n{notes}\n" if notes else ""  # apart from the table before
    settings = ", ".join(f"{name} {value}" for name, value in info["settings"].items())
    shares = ", ".join(f"{name} {share:.1%}" for name, share in totals["action_shares"].items())
    size, frames = shards[0].image_size, f"{totals['frames']:,} frames"
    weights, today = f"{sizes['weights_megabytes']:.1f} MB", f"{datetime.now(UTC):%Y-%m-%d}"
    text = f"""# {info["world"]}, dreamt

A video-diffusion model of the world {info["world"]}: from the frames before and the player's action it makes the next.
Frames of {size} x {size} pixels, {info["fps"]:g} steps a second. Made {today} by `python -m train.bundle`.

    python play.py --checkpoint {out.name if out.is_absolute() else out}

- Codec {sizes["codec_parameters"]:,} and denoiser {sizes["denoiser_parameters"]:,} parameters, bfloat16, {weights}.
- {info["num_steps"]} denoising steps a frame (level shift {info["level_shift"]:g}) and context level
  {info["context_level"]}, unless told otherwise.
- {sizes["openings"]} real openings to start from, taken from {info["opening_split"]} {world.scene}s.

## Data
{frames} in {totals["episodes"]} episodes of {totals["scenes"]} {world.scene}s.
Test episodes: {totals["test_episodes"]}.

- World: {settings}.
- Actions: {shares}.

## Training
{_training(training, shards, shards[0].path.parent.name)}
{notes}
Machine: {describe_machine(torch.device("cuda") if torch.cuda.is_available() else None)}.

## Figures
{_figures(report)}

## Licence
{world.licence or DEFAULT_LICENCE}
"""
    write_file(out / "README.md", text.encode())
