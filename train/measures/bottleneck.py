"""Memory bottleneck: how many nats a frame a world gains from a past of m frames, and loses by not seeing more.

Owns: the choice of held-out clips, the table and the plot. Does not know how errors become information
(`worldmodel.analysis.bottleneck`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from matplotlib.figure import Figure

from train.data.rollouts import Piece, in_batches, read_pieces, spread_over
from train.measures.base import Bench, Measure, read_numbers
from train.reports.plots import markdown_row, save_figure
from worldmodel.analysis.bottleneck import information_gap, level_path, memory_errors
from worldmodel.errors import ConfigError, DataError
from worldmodel.windows import Window, parse_schedule

MEANING = (
    "Nats a frame, 95 % intervals over episodes. gained: I(Output; last m frames | Input), from the errors of this "
    "network with m frames of past and with none. lost: what the longest past measured still adds to the last m "
    "frames, the memory bottleneck of a memory of m frames. Information is counted on frames at the lowest level. A "
    "network's errors are above the smallest possible ones, so these are what this network gains and loses: excess "
    "error with less past raises a value, excess error with more past (such as more than in training) lowers it. Where "
    "error_per_dimension is above channel_error, the error of the noisy frame itself, the network is poor: end higher."
)


@dataclass(frozen=True)
class BottleneckOptions:
    """Settings of the clips and of the levels.

    Attributes:
        memory: past frames to give, with commas; none at all (0) is always measured.
        cases: clips, spread evenly over held-out episodes; fewer where the recording has not that many.
        schedule: next, outpaint:W:OVERLAP, fifo:W, rolling:W:SUBSTEPS, pyramid:W:DELTA or FILE.json.
        num_levels: noise levels at which errors are measured.
        lowest: level above 0 at which the integral ends; information on finer detail is not counted.
    """

    memory: str = "1,2,4,8,16,48,112"
    cases: int = 64
    schedule: str = "next"
    num_levels: int = 16
    lowest: float = 0.1

    def __post_init__(self) -> None:
        if self.cases < 1:
            raise ConfigError(f"cases must be at least 1; got {self.cases}")
        self.levels()
        self.lengths()

    def window(self) -> Window:
        """Return the schedule.

        Raises:
            WindowError: it is not understood.
        """
        return parse_schedule(self.schedule).window

    def levels(self) -> torch.Tensor:
        """Return the levels at which errors are measured, as `level_path`.

        Raises:
            ConfigError: `num_levels` or `lowest` is out of its range. WindowError: no such schedule.
        """
        return level_path(self.window(), self.num_levels, self.lowest)

    def lengths(self) -> list[int]:
        """Return the past frames to give, rising from 0.

        Raises:
            ConfigError: `memory` cannot be read.
        """
        return sorted({0, *read_numbers("memory", self.memory, least=0)})

    def clip_frames(self) -> int:
        """Return the frames of a clip: the longest past, those in flight, and one to act from."""
        return self.lengths()[-1] + self.window().size + 1


class Bottleneck(Measure):
    """I(Output; Past | Input) by the length of the past."""

    name = "bottleneck"
    Options = BottleneckOptions
    quick: ClassVar[dict[str, int | str]] = {"cases": 4, "num_levels": 4, "memory": "1,4,16"}

    def num_frames(self, bench: Bench, options: BottleneckOptions) -> int:
        """Return the frames to denoise: none is dreamt."""
        return options.cases * len(options.lengths()) * options.num_levels

    def check(self, bench: Bench, options: BottleneckOptions) -> None:
        """Raise `DataError` where no episode is as long as the longest past needs."""
        longest, needed = max(episode.num_frames for episode in bench.episodes), options.clip_frames()
        if longest < needed:
            raise DataError(
                f"the longest held-out episode has {longest} frames; a memory of {options.lengths()[-1]} frames needs "
                f"{needed} (with {options.window().size} in flight and one to act from): take shorter lengths "
                "(bottleneck.memory) or record longer episodes"
            )

    def run(self, bench: Bench, options: BottleneckOptions) -> dict[str, Any]:
        """Measure, and write `bottleneck.png`.

        Returns:
            `memory` maps each length to `gained`, `lost`, their intervals, and `error_per_dimension`, the mean squared
            error of the latents at each of `levels`; `channel_error` is that of the noisy frame itself.

        Raises:
            DataError: no episode as long as the longest past. StorageError: the plot cannot be written.
        """
        found = measure_bottleneck(bench, options)
        plot_bottleneck(bench.out / "bottleneck.png", found)
        return found

    def lines(self, found: dict[str, Any]) -> list[str]:
        """Return a table by length of the past."""
        lines = [markdown_row("past frames", "gained, nats a frame", "lost, nats a frame"), markdown_row(*["---"] * 3)]
        for length, entry in found["memory"].items():
            cells = [_with_interval(entry[name], entry[f"{name}_interval"]) for name in ("gained", "lost")]
            lines.append(markdown_row(length, *cells))
        return [*lines, "", f"{found['cases']} clips of {found['episodes']} episodes. {found['meaning']}"]


def _with_interval(value: float, interval: list[float] | None) -> str:
    within = "" if interval is None else f" ({interval[0]:.1f} to {interval[1]:.1f})"
    return f"{value:.1f}{within}"


def measure_errors(bench: Bench, options: BottleneckOptions, pieces: list[Piece]) -> torch.Tensor:
    """Return squared errors of the frames in flight, as `memory_errors`, for each past, clip and level.

    The world's own bounds hold: what its denoiser cannot see does not help it. (With no past at all the action is left
    out, as in training: alone it says next to nothing of a frame.)
    """
    model = bench.model.with_settings(dtype=torch.float32)  # what counts is small differences of the errors
    levels, lengths = options.levels(), options.lengths()
    parts = []
    for index, batch in enumerate(in_batches(pieces, bench.batch_size)):
        content = read_pieces(batch)
        chance = torch.Generator().manual_seed(1_000_003 * bench.seed + index)
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
        bench.on_frames(len(batch) * len(lengths) * len(levels))
    return torch.cat(parts, 1)


def measure_bottleneck(bench: Bench, options: BottleneckOptions) -> dict[str, Any]:
    """Return what `Bottleneck.run` does."""
    rng = np.random.default_rng(bench.seed)
    pieces = spread_over(bench.episodes, options.clip_frames(), options.cases, rng)
    errors = measure_errors(bench, options, pieces)

    window, levels = options.window(), options.levels()
    config = bench.model.denoiser.config
    dimensions = config.latent_channels * config.latent_size**2
    groups = [f"{piece.episode.path}/{piece.episode.key}" for piece in pieces]
    noisy = (levels / (1 - levels).clamp_min(1e-9)).square().mean(1)  # of x_l / (1 - l): no network need do worse
    memory = {}
    for length, own in zip(options.lengths(), errors, strict=True):
        entry: dict[str, Any] = {}
        for name, without, with_past in (("gained", errors[0], own), ("lost", own, errors[-1])):
            entry |= _read_gap(name, levels, without, with_past, groups, window.stride)
        entry["error_per_dimension"] = [round(e, 6) for e in (own.mean((0, 2)) / dimensions).tolist()]
        memory[str(length)] = entry

    return {
        "meaning": MEANING,
        "cases": len(pieces),
        "episodes": len(set(groups)),
        "levels": levels.tolist() if window.size > 1 else levels[:, 0].tolist(),
        "channel_error": [round(float(e), 6) if e < 1e9 else None for e in noisy],
        "memory": memory,
        "window": {"before": list(window.before), "after": list(window.after), "stride": window.stride},
        "dimensions": dimensions,
        "dtype": "float32",
    }


def _read_gap(
    name: str,
    levels: torch.Tensor,
    without: torch.Tensor,
    with_past: torch.Tensor,
    groups: Sequence[str],
    stride: int,
) -> dict[str, Any]:
    """Return the nats a frame that the errors differ by, and their interval; None where nothing tells of the spread."""
    nats, error = (value / stride for value in information_gap(levels, without, with_past, groups))
    has_spread = error == error  # one episode tells nothing of it
    interval = [round(nats + z * error, 4) for z in (-1.96, 1.96)] if has_spread else None
    return {name: round(nats, 4), f"{name}_interval": interval}


def plot_bottleneck(path: Path, found: dict[str, Any]) -> None:
    """Plot nats a frame over memory length: gained by that much past, and lost by not having more.

    Raises:
        StorageError: the file cannot be written.
    """
    figure = Figure(figsize=(11, 4), layout="constrained")
    lengths, entries = [int(length) for length in found["memory"]], list(found["memory"].values())
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
    figure.suptitle(f"Information in the past about the next frame, {found['cases']} held-out clips", fontsize=11)
    save_figure(path, figure)
