"""Program: measure the memory bottleneck. `python -m train.bottleneck --checkpoint NAME_OR_DIR --data DIR --out DIR`.

Owns: the options, the choice of held-out clips, the report and its plot: how many nats a frame a world gains from a
past of m frames, and how many it loses by not seeing more. Does not know how errors become information
(`worldmodel.analysis.bottleneck`).
"""

import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from envs.data.episodes import open_shards
from train.core.options import options_to_json, parse_options, run_program, save_json
from train.data.clips import list_episodes
from train.data.rollouts import in_batches, read_pieces, spread_over
from train.reports.plots import save_figure
from worldmodel.analysis.bottleneck import information_gap, level_path, memory_errors
from worldmodel.errors import ConfigError, DataError, SeedError
from worldmodel.windows import Window, next_frame_window, parse_schedule
from worldmodel.world import WorldModel

MEANING = (
    "Nats a frame, 95 % intervals over episodes. gained: I(Output; last m frames | Input), from the errors of this "
    "network with m frames of past and with none. lost: what the longest past measured still adds to the last m "
    "frames, the memory bottleneck of a memory of m frames. Information is counted on frames at the lowest level. A "
    "network's errors are above the smallest possible ones, so these are what this network gains and loses: excess "
    "error with less past raises a value, excess error with more past (such as more than in training) lowers it. Where "
    "error_per_dimension is above channel_error, the error of the noisy frame itself, the network is poor: end higher."
)


@dataclass(frozen=True, kw_only=True)
class BottleneckOptions:
    """Measure what a world's past tells it about the next frames."""

    checkpoint: str
    """Name of a shipped world, or folder of a bundle."""
    data: Path
    """Folder of a recording with held-out ("test") shards."""
    out: Path
    """Folder of report.json and bottleneck.png; made if missing."""
    memory: str = "1,2,4,8,16,48,112"
    """Past frames to give, with commas; none at all (0) is always measured."""
    cases: int = 64
    """Clips, spread evenly over held-out episodes."""
    schedule: str = "next"
    """next, outpaint:W:OVERLAP, fifo:W, rolling:W:SUBSTEPS, pyramid:W:DELTA or FILE.json."""
    num_levels: int = 16
    """Noise levels at which errors are measured."""
    lowest: float = 0.1
    """Level above 0 at which the integral ends; information on finer detail is not counted."""
    batch_size: int = 16
    """Clips at once."""
    seed: int = 0
    """Seed of the choice of clips and of all noise."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


def read_lengths(text: str) -> tuple[int, ...]:
    """Read memory lengths such as "1,2,4".

    Raises:
        ConfigError: not whole numbers with commas.
    """
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError as error:
        raise ConfigError(f"memory must be whole numbers with commas, such as 1,2,4,8; got {text!r}") from error


def measure_bottleneck(
    model: WorldModel,
    data: Path,
    *,
    memory: Sequence[int] = (1, 2, 4, 8, 16, 48, 112),
    cases: int = 64,
    window: Window | None = None,
    num_levels: int = 16,
    lowest: float = 0.1,
    batch_size: int = 16,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure the memory bottleneck of a world on the held-out clips of a recording.

    Args:
        model: the world. Its own bounds hold: what its denoiser cannot see does not help it.
        data: folder of a recording.
        memory: past frames to give; 0 is added.
        cases: clips; fewer where the recording has not that many.
        window: the schedule; default next-frame: the input is a frame of pure noise and the action into it. (With no
            past at all the action is left out, as in training: alone it says next to nothing of a frame.)
        num_levels, lowest: as `level_path`.
        batch_size: clips at once.
        seed: of the choice of clips and of all noise.

    Returns:
        ready for JSON; `memory` maps each length to `gained`, `lost`, their intervals, and `error_per_dimension`, the
        mean squared error of the latents at each of `levels`; `channel_error` is that of the noisy frame itself.

    Raises:
        ConfigError: a setting out of its range. SeedError: `seed` below 0.
        DataError: no held-out shard of the world's frame size and actions, or no episode as long as the longest memory.
    """
    window = next_frame_window() if window is None else window
    lengths = sorted({0, *memory})
    if not memory or min(memory) < 0 or len(set(memory)) != len(memory):
        raise ConfigError(f"memory takes different numbers of past frames, each 0 or more; got {list(memory)}")
    for name, value in (("cases", cases), ("batch_size", batch_size)):
        if value < 1:
            raise ConfigError(f"{name} must be at least 1; got {value}")
    if seed < 0:
        raise SeedError(f"seed must be 0 or more; got {seed}")
    started, levels = time.monotonic(), level_path(window, num_levels, lowest)
    episodes = list_episodes(open_shards(data, "test", model.codec.config.image_size, model.num_actions))
    longest, needed = max(episode.num_frames for episode in episodes), lengths[-1] + window.size + 1
    if longest < needed:
        raise DataError(
            f"the longest held-out episode has {longest} frames; a memory of {lengths[-1]} frames needs {needed} "
            f"(with {window.size} in flight and one to act from): take shorter lengths or record longer episodes"
        )
    pieces = spread_over(episodes, needed, cases, np.random.default_rng(seed))
    parts = []
    for index, batch in enumerate(tqdm(list(in_batches(pieces, batch_size)), desc="measuring", unit="batch")):
        content = read_pieces(batch)
        chance = torch.Generator().manual_seed(1_000_003 * seed + index)
        parts.append(
            memory_errors(
                model.denoiser,
                model.encode(content["frames"][:, 1:]),
                content["actions"].long(),
                levels,
                lengths,
                generator=chance,
                context_level=model.config.context_level,
                memory_frames=model.memory_frames,
                first_action=model.num_actions,  # as in training and in play: nobody knows what led to a first frame
            )
        )
    errors = torch.cat(parts, 1)
    config = model.denoiser.config
    dimensions = config.latent_channels * config.latent_size**2
    groups = [f"{piece.episode.path}/{piece.episode.key}" for piece in pieces]
    report: dict[str, Any] = {"meaning": MEANING, "cases": len(pieces), "episodes": len(set(groups))}
    report["levels"] = levels.tolist() if window.size > 1 else levels[:, 0].tolist()
    noisy = (levels / (1 - levels).clamp_min(1e-9)).square().mean(1)  # of x_l / (1 - l): no network need do worse
    report["channel_error"] = [round(float(e), 6) if e < 1e9 else None for e in noisy]
    report["memory"] = {}
    for m, length in enumerate(lengths):
        entry: dict[str, Any] = {}
        for name, without, with_past in (("gained", errors[0], errors[m]), ("lost", errors[m], errors[-1])):
            nats, error = (value / window.stride for value in information_gap(levels, without, with_past, groups))
            entry[name] = round(nats, 4)
            has_spread = error == error  # one episode tells nothing of the spread
            entry[f"{name}_interval"] = [round(nats + z * error, 4) for z in (-1.96, 1.96)] if has_spread else None
        entry["error_per_dimension"] = [round(e, 6) for e in (errors[m].mean((0, 2)) / dimensions).tolist()]
        report["memory"][str(length)] = entry
    report["settings"] = {
        "before": list(window.before),
        "after": list(window.after),
        "stride": window.stride,
        "lowest_level": lowest,
        "context_level": model.config.context_level,
        "memory_frames": model.memory_frames,
        "dimensions": dimensions,
        "seed": seed,
        "device": str(model.device),
        "torch": torch.__version__,
        "data": str(data),
    }
    report["seconds"] = round(time.monotonic() - started, 1)
    return report


def plot_bottleneck(path: Path, report: dict[str, Any]) -> None:
    """Plot nats a frame over memory length: gained by that much past, and lost by not having more.

    Raises:
        StorageError: the file cannot be written.
    """
    figure = Figure(figsize=(11, 4), layout="constrained")
    lengths, entries = [int(length) for length in report["memory"]], list(report["memory"].values())
    titles = {"gained": "gained by the last m frames", "lost": f"lost: what {lengths[-1]} frames would still add"}
    for axes, (name, title) in zip(figure.subplots(1, 2), titles.items(), strict=True):
        axes.plot(lengths, [entry[name] for entry in entries], "o-", color="tab:blue")
        if all(entry[f"{name}_interval"] for entry in entries):
            low, high = np.array([entry[f"{name}_interval"] for entry in entries]).T
            axes.fill_between(lengths, low, high, color="tab:blue", alpha=0.2, linewidth=0)
        axes.set_xscale("symlog", base=2, linthresh=1)
        axes.set_xticks(lengths, [str(length) for length in lengths])
        axes.minorticks_off()
        if name == "lost":  # from hundreds of nats to fractions of one
            axes.set_yscale("symlog", linthresh=1)
        axes.set(xlabel="m, past frames given", ylabel="nats a frame", title=title)
        axes.axhline(0, color="black", linewidth=0.8)
        axes.grid(alpha=0.3)
    figure.suptitle(f"Information in the past about the next frame, {report['cases']} held-out clips", fontsize=11)
    save_figure(path, figure)


def run_bottleneck(options: BottleneckOptions, command: str = "") -> dict[str, Any]:
    """Measure as the options say and write `report.json` and `bottleneck.png`.

    Raises:
        CheckpointError: no such world. WindowError: no such schedule. StorageError: a file cannot be written.
        ConfigError, SeedError, DataError: as `measure_bottleneck`.
    """
    memory, window = read_lengths(options.memory), parse_schedule(options.schedule).window
    model = WorldModel.load(options.checkpoint, device=options.device, dtype=torch.float32)
    report = measure_bottleneck(
        model,
        options.data,
        memory=memory,
        cases=options.cases,
        window=window,
        num_levels=options.num_levels,
        lowest=options.lowest,
        batch_size=options.batch_size,
        seed=options.seed,
    )
    report |= {"command": command, "options": options_to_json(options)}
    plot_bottleneck(options.out / "bottleneck.png", report)
    save_json(options.out / "report.json", report)
    return report


def main() -> None:
    """Parse options, measure, print the curve."""
    options = parse_options(BottleneckOptions, "python -m train.bottleneck")
    report = run_bottleneck(options, f"python -m train.bottleneck {shlex.join(sys.argv[1:])}")
    for length, entry in report["memory"].items():
        print(f"{length:>5} frames: " + ", ".join(f"{key} {entry[key]}" for key in list(entry)[:4]) + ", nats a frame")
    print(f"report: {options.out / 'report.json'}")


if __name__ == "__main__":
    run_program(main)
