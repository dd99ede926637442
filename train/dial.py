"""Program: what each setting of a world costs and gives. `python -m train.dial --checkpoint NAME --data DIR --out DIR`.

Owns: the table of denoising steps and remembered frames: time and bytes of a dream on one side, likeness, sharpness and
recall on the other. Does not know how a measure is taken.
"""

import dataclasses
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from envs.data.episodes import open_shards
from envs.worlds.registry import world_of
from train.benchmark import start_dream
from train.core.machine import describe_machine
from train.core.options import parse_options, run_program, save_json
from train.core.stopwatch import time_in_turn
from train.data.clips import list_episodes
from train.data.rollouts import dream_on, read_pieces, spread_over
from train.measures.place_classifier import load_or_train
from train.measures.recall_cases import RecallCase, find_cases
from train.measures.recall_dreams import measure_recall
from train.reports.plots import save_figure
from worldmodel.analysis.accumulation import measure_decay
from worldmodel.analysis.metrics import gradient_energy
from worldmodel.errors import ConfigError
from worldmodel.files import write_file
from worldmodel.windows import parse_schedule
from worldmodel.world import WorldModel

TIMED_FRAMES = 30
HORIZON = 64
SHARP = slice(16, 32)  # dreamt frames 17 to 32


@dataclass(frozen=True, kw_only=True)
class DialOptions:
    """Measure every setting of denoising steps and memory."""

    checkpoint: str
    """Name of a shipped world, or folder of a bundle."""
    data: Path
    """Folder of a recording with held-out ("test") shards, poses and layouts."""
    out: Path
    """Folder of `report.json` and `dial.md`; made if missing."""
    steps: tuple[int, ...] = (1, 2, 4)
    """Denoising steps a frame."""
    memory: tuple[int, ...] = (16, 112, 304)
    """Frames remembered."""
    settings: tuple[str, ...] = ()
    """STEPS:MEMORY pairs such as 2:1024, instead of every combination."""
    cases: int = 48
    """Rollouts of 64 frames compared with the truth."""
    context: int = 128
    """Real frames before them."""
    needles: int = 40
    """Needles of each distance; 0: none."""
    train_data: Path | None = None
    """Recording whose training scenes teach the judge of needles; default `data`."""
    compile: bool = False
    """Time compiled steps."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    seed: int = 0
    """Seed of cases and dreams."""

    def __post_init__(self) -> None:
        if not self.steps or not self.memory or min(*self.steps, *self.memory) < 1:
            raise ConfigError(f"steps and memory need numbers of at least 1; got {self.steps} and {self.memory}")
        self.pairs()
        if self.cases < 1 or self.needles < 0:
            raise ConfigError(f"cases must be at least 1 and needles at least 0; got {self.cases}, {self.needles}")

    def pairs(self) -> list[tuple[int, int]]:
        """Return what is measured: denoising steps and memory.

        Raises:
            ConfigError: a setting cannot be read.
        """
        if not self.settings:
            return [(steps, memory) for memory in self.memory for steps in self.steps]
        try:
            found = [tuple(int(part) for part in setting.split(":")) for setting in self.settings]
            pairs = [(steps, memory) for steps, memory in found]
        except ValueError as error:
            raise ConfigError(f"settings are STEPS:MEMORY pairs such as 2:1024; got {self.settings}") from error
        if min(min(pair) for pair in pairs) < 1:
            raise ConfigError(f"settings need numbers of at least 1; got {self.settings}")
        return pairs


def measure_setting(model: WorldModel, options: DialOptions, judge: Any, cases: list[RecallCase]) -> dict[str, Any]:
    """Return a row: what the world costs and gives with its present setting."""
    episodes = list_episodes(open_shards(options.data, "test", model.codec.config.image_size, model.num_actions))
    rng = np.random.default_rng([options.seed, 11])
    given = read_pieces(spread_over(episodes, options.context + HORIZON, options.cases, rng))
    seeds = list(range(len(given["frames"])))
    next_frame = parse_schedule("next")
    actions = given["actions"].long()
    decay = measure_decay(model, given["frames"], actions, next_frame, context=options.context, seeds=seeds)
    few = slice(0, 16)
    dream = dream_on(
        model, given["frames"][few, : options.context], actions[few, : -HORIZON // 2], seeds[few], lambda count: None
    )
    truth = given["frames"][few, options.context :][:, SHARP]
    sharpness = float(gradient_energy(dream.frames[:, SHARP]).mean() / gradient_energy(truth).mean())
    recall: dict[str, float | None] = {}
    if cases:
        found = measure_recall(model, cases, judge, controls=(), seed=options.seed)
        recall = {name: row["rate"] for name, row in found["bins"].items()}
    state = start_dream(model, options.checkpoint, options.seed)
    action = torch.tensor([1])
    for _ in range(3):
        model.step(state, action)
    uncompiled = time_in_turn({"step": lambda: model.step(state, action).frames.cpu()}, TIMED_FRAMES, model.device)
    row: dict[str, Any] = {
        "steps": model.config.num_steps,
        "memory": model.memory_frames,
        "step_ms": uncompiled["step"],
    }
    if options.compile:
        model.compile()
        compiled = time_in_turn({"step": lambda: model.step(state, action).frames.cpu()}, TIMED_FRAMES, model.device)
        row["compiled_ms"] = compiled["step"]
        model.compiled = None
    row |= {"dream_bytes": state.dream.cache.num_bytes, "sharpness": round(sharpness, 3), "recall": recall}
    psnr = {str(h): round(float(decay["curves"]["psnr"][h - 1]), 2) for h in (1, 4, 16, 64)}
    return row | {"psnr": psnr, "decay_db": decay["decay_db"]}


def as_table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a markdown table."""
    bins = list(rows[0]["recall"])
    titles = ["steps", "memory", "frames/s", "KiB a dream", "PSNR at 1 / 4 / 16 / 64", "decay, dB", "sharpness"]
    titles += [f"recall D {name}" for name in bins]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for row in rows:
        speed = 1000 / row.get("compiled_ms", row["step_ms"])
        psnr = " / ".join(f"{value:.1f}" for value in row["psnr"].values())
        cells = [str(row["steps"]), str(row["memory"]), f"{speed:.0f}", f"{row['dream_bytes'] / 1024:.0f}", psnr]
        cells += [f"{row['decay_db']:.1f}", f"{row['sharpness']:.2f}"]
        cells += ["-" if row["recall"][name] is None else f"{row['recall'][name]:.2f}" for name in bins]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot_trade(path: Path, rows: list[dict[str, Any]]) -> None:
    """Draw recall against decay, a line of growing memory for each number of denoising steps.

    Raises:
        StorageError: the file cannot be written.
    """
    figure = Figure(figsize=(7.5, 5.5), layout="constrained")
    axes = figure.subplots()
    for steps in sorted({row["steps"] for row in rows}):
        own = sorted((row for row in rows if row["steps"] == steps), key=lambda row: int(row["memory"]))
        found = [[rate for rate in row["recall"].values() if rate is not None] for row in own]
        places = [(row["decay_db"], float(np.mean(rates))) for row, rates in zip(own, found, strict=True)]
        axes.plot(*zip(*places, strict=True), marker="o", label=f"{steps} denoising steps")
        for row, place in zip(own, places, strict=True):
            axes.annotate(f"{row['memory']} frames", place, textcoords="offset points", xytext=(6, 4), fontsize=8)
    axes.set(
        xlabel="decay over 64 frames: PSNR of the first 16 minus the last 16, dB (left is better)",
        ylabel="recall: mean retrieval rate over all distances",
        title="Recall against decay",
    )
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(path, figure)


def run_dial(options: DialOptions, command: str = "") -> dict[str, Any]:
    """Measure all settings and write the table; return the report.

    Raises:
        ConfigError: a world cannot remember so many frames. CheckpointError, DataError: as their readers.
    """
    cases: list[RecallCase] = []
    judge = None
    if options.needles:
        episodes = list_episodes(open_shards(options.data, "test"))
        cases = find_cases(world_of(episodes[0]), episodes, cases_per_bin=options.needles, seed=options.seed)
        judge = load_or_train(
            options.train_data or options.data, options.out / "places.safetensors", held_out=options.data
        )
    rows = []
    for steps, memory in tqdm(options.pairs(), desc="settings"):
        model = WorldModel.load(options.checkpoint, device=options.device, num_steps=steps, memory_frames=memory)
        rows.append(measure_setting(model, options, judge, cases))
    report = {
        "command": command,
        "rows": rows,
        "machine": describe_machine(model.device),
        "options": {k: str(v) for k, v in dataclasses.asdict(options).items()},
    }
    if options.needles:
        plot_trade(options.out / "recall_and_decay.png", rows)
    write_file(options.out / "dial.md", (as_table(rows) + "\n").encode())
    save_json(options.out / "report.json", report)
    return report


def main() -> None:
    """Parse options, measure, print the table."""
    options = parse_options(DialOptions, "python -m train.dial")
    report = run_dial(options, f"python -m train.dial {shlex.join(sys.argv[1:])}")
    print(as_table(report["rows"]))


if __name__ == "__main__":
    run_program(main)
