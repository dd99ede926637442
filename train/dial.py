"""Program: what each setting of a world costs and gives. `python -m train.dial --checkpoint NAME --data DIR --out DIR`.

Owns: the table of denoising steps and remembered frames: time and bytes of a dream on one side, likeness, sharpness and
recall on the other. Does not know how a measure is taken.
"""

import dataclasses
import shlex
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from envs.episodes import open_shards
from train.benchmark import start_dream
from train.card import describe_machine
from train.data import list_episodes
from train.likeness import measure_likeness
from train.needle_cases import NeedleCase, find_cases
from train.needle_dreams import measure_needle
from train.options import parse_options, run_program, save_json
from train.rollouts import EvaluationPlan, dream_on, read_pieces, spread_over
from train.stopwatch import time_in_turn
from train.textures import load_or_train
from worldmodel.analysis.metrics import gradient_energy
from worldmodel.errors import ConfigError
from worldmodel.files import write_file
from worldmodel.world import WorldModel

TIMED_FRAMES = 30
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
    cases: int = 48
    """Rollouts of 32 frames compared with the truth."""
    needles: int = 40
    """Needles of each distance; 0: none."""
    train_data: Path | None = None
    """Recording whose training mazes teach the judge of needles; default `data`."""
    compile: bool = False
    """Time compiled steps."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    seed: int = 0
    """Seed of cases and dreams."""

    def __post_init__(self) -> None:
        if not self.steps or not self.memory or min(*self.steps, *self.memory) < 1:
            raise ConfigError(f"steps and memory need numbers of at least 1; got {self.steps} and {self.memory}")
        if self.cases < 1 or self.needles < 0:
            raise ConfigError(f"cases must be at least 1 and needles at least 0; got {self.cases}, {self.needles}")


def measure_setting(model: WorldModel, options: DialOptions, judge: Any, cases: list[NeedleCase]) -> dict[str, Any]:
    """Return a row: what the world costs and gives with its present setting."""
    episodes = list_episodes(open_shards(options.data, "test", model.codec.config.image_size, model.num_actions))
    plan = EvaluationPlan(cases=options.cases, horizon=32, seed=options.seed)
    with tempfile.TemporaryDirectory() as folder:
        likeness = measure_likeness(model, episodes, plan, Path(folder), lambda count: None)
    pieces = spread_over(
        episodes, plan.context + SHARP.stop, min(16, options.cases), np.random.default_rng([options.seed, 11])
    )
    given = read_pieces(pieces)
    dream = dream_on(
        model, given["frames"][:, : plan.context], given["actions"], list(range(len(pieces))), lambda count: None
    )
    truth = given["frames"][:, plan.context :][:, SHARP]
    sharpness = float(gradient_energy(dream.frames[:, SHARP]).mean() / gradient_energy(truth).mean())
    recall: dict[str, float | None] = {}
    if cases:
        found = measure_needle(model, cases, judge, controls=(), seed=options.seed)
        recall = {name: row["rate"] for name, row in found["bins"].items()}
    state = start_dream(model, options.checkpoint, options.seed)
    action = torch.tensor([1])
    for _ in range(3):
        model.step(state, action)
    uncompiled = time_in_turn({"step": lambda: model.step(state, action).frames.cpu()}, TIMED_FRAMES, model.device)
    row = {"steps": model.config.num_steps, "memory": model.memory_frames, "step_ms": uncompiled["step"]}
    if options.compile:
        model.compile()
        compiled = time_in_turn({"step": lambda: model.step(state, action).frames.cpu()}, TIMED_FRAMES, model.device)
        row["compiled_ms"] = compiled["step"]
        model.compiled = None
    row |= {"dream_bytes": state.dream.cache.num_bytes, "sharpness": round(sharpness, 3), "recall": recall}
    return row | {"psnr": {h: likeness["psnr"][h] for h in ("1", "4", "16", "32")}}


def as_table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a markdown table."""
    bins = list(rows[0]["recall"])
    titles = ["steps", "memory", "frames/s", "KiB a dream", "PSNR at 1 / 4 / 16 / 32", "sharpness"]
    titles += [f"recall D {name}" for name in bins]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for row in rows:
        speed = 1000 / row.get("compiled_ms", row["step_ms"])
        psnr = " / ".join(f"{value:.1f}" for value in row["psnr"].values())
        cells = [str(row["steps"]), str(row["memory"]), f"{speed:.0f}", f"{row['dream_bytes'] / 1024:.0f}", psnr]
        cells += [f"{row['sharpness']:.2f}"]
        cells += ["-" if row["recall"][name] is None else f"{row['recall'][name]:.2f}" for name in bins]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def run_dial(options: DialOptions, command: str = "") -> dict[str, Any]:
    """Measure all settings and write the table; return the report.

    Raises:
        ConfigError: a world cannot remember so many frames. CheckpointError, DataError: as their readers.
    """
    cases: list[NeedleCase] = []
    judge = None
    if options.needles:
        episodes = list_episodes(open_shards(options.data, "test"))
        cases = find_cases(episodes, cases_per_bin=options.needles, seed=options.seed)
        judge = load_or_train(
            options.train_data or options.data, options.out / "textures.safetensors", held_out=options.data
        )
    rows = []
    settings = [(steps, memory) for memory in options.memory for steps in options.steps]
    for steps, memory in tqdm(settings, desc="settings"):
        model = WorldModel.load(options.checkpoint, device=options.device, num_steps=steps, memory_frames=memory)
        rows.append(measure_setting(model, options, judge, cases))
    report = {
        "command": command,
        "rows": rows,
        "machine": describe_machine(model.device),
        "options": {k: str(v) for k, v in dataclasses.asdict(options).items()},
    }
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
