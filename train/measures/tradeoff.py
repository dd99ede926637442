"""Trade-off of cost and quality: what each setting of denoising steps and memory costs and gives.

Owns: the settings that are compared, and their table: time and bytes of a dream on one side, likeness, sharpness and
place recall on the other. Does not know how a cost or a quality is measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from matplotlib.figure import Figure

from train.core.machine import describe_machine
from train.data.rollouts import dream_on, read_pieces, spread_over
from train.measures.base import NEEDS, Bench, Measure, read_numbers
from train.measures.place_classifier import PlaceClassifier, find_teacher, load_or_train
from train.measures.recall_cases import DREAMT, RecallCase, find_cases
from train.measures.recall_dreams import measure_recall
from train.measures.speed import check_compile, start_dream, time_steps
from train.measures.step_parts import WARM_UP
from train.reports.plots import markdown_row, save_figure
from worldmodel.analysis.accumulation import measure_decay
from worldmodel.analysis.metrics import gradient_energy
from worldmodel.analysis.recall import BINS
from worldmodel.errors import ConfigError, DataError
from worldmodel.windows import parse_schedule
from worldmodel.world import WorldModel

HORIZON = 64  # dreamt frames of a rollout
SHOWN = (1, 4, 16, 64)  # frames of which the PSNR is reported
SHARP_CASES, SHARP = 16, slice(16, 32)  # dreams whose sharpness is measured, in dreamt frames 17 to 32


@dataclass(frozen=True)
class TradeoffOptions:
    """Settings that are compared, and how much of each is measured.

    Attributes:
        steps: denoising steps a frame, with commas.
        memory: frames remembered, with commas.
        settings: STEPS:MEMORY pairs with commas, such as 2:1024,2:64, instead of every combination.
        cases: rollouts of 64 frames compared with the truth.
        context: real frames before them.
        recall_cases: cases of place recall of each bin; 0: none.
        train_data: recording whose training scenes teach the judge of place recall; None: the one that is measured on.
        compile: time compiled steps too.
        timed_frames: steps that are timed.
    """

    steps: str = "1,2,4"
    memory: str = "16,112,304"
    settings: str = ""
    cases: int = 48
    context: int = 128
    recall_cases: int = 40
    train_data: str | None = None
    compile: bool = False
    timed_frames: int = 30

    def __post_init__(self) -> None:
        for name, least in (("cases", 1), ("context", 1), ("recall_cases", 0), ("timed_frames", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}; got {getattr(self, name)}")
        self.pairs()

    def pairs(self) -> list[tuple[int, int]]:
        """Return what is measured: denoising steps and memory.

        Raises:
            ConfigError: a setting cannot be read.
        """
        if not self.settings:
            steps, memory = read_numbers("steps", self.steps), read_numbers("memory", self.memory)
            return [(count, frames) for frames in memory for count in steps]
        try:
            found = [tuple(int(part) for part in setting.split(":")) for setting in self.settings.split(",")]
            pairs = [(steps, frames) for steps, frames in found]
        except ValueError as error:
            raise ConfigError(
                f"settings are STEPS:MEMORY pairs with commas, such as 2:1024,2:64; got {self.settings!r}"
            ) from error
        if min(min(pair) for pair in pairs) < 1:
            raise ConfigError(f"settings need numbers of at least 1; got {self.settings!r}")
        return pairs


class Tradeoff(Measure):
    """Time and bytes of a dream against likeness, sharpness and recall, by denoising steps and memory."""

    name = "tradeoff"
    Options = TradeoffOptions
    quick: ClassVar[dict[str, int | str]] = {
        "cases": 2,
        "context": 16,
        "recall_cases": 2,
        "timed_frames": 5,
        "steps": "1,2",
        "memory": "16",
    }

    def num_frames(self, bench: Bench, options: TradeoffOptions) -> int:
        """Return the most frames to dream."""
        alike = options.cases * HORIZON + min(options.cases, SHARP_CASES) * SHARP.stop
        recalled = options.recall_cases * len(BINS) * DREAMT
        timed = (options.timed_frames + WARM_UP) * (2 if options.compile else 1)
        return len(options.pairs()) * (alike + recalled + timed)

    def check(self, bench: Bench, options: TradeoffOptions) -> None:
        """Raise what would be missed only after an hour: what the world cannot do, and what the recording lacks.

        Raises:
            ConfigError: the world cannot remember so many frames, or takes no so many steps. CompileError: compiled
                steps are asked for and there is no bundle. DataError: no episode is long enough; place recall is asked
                for, and no frame tells of places, or there is no training scene to teach its judge.
        """
        for steps, memory in options.pairs():
            try:
                bench.model.with_settings(num_steps=steps, memory_frames=memory)
            except ConfigError as error:
                raise ConfigError(f"{error}: change tradeoff.steps, tradeoff.memory or tradeoff.settings") from error
        check_compile(bench.model, options.compile)
        spread_over(bench.episodes, options.context + HORIZON, 1, np.random.default_rng(0))
        if options.recall_cases:
            if (reason := NEEDS["places"](bench)) is not None:
                raise DataError(f"{reason}: leave place recall out with tradeoff.recall_cases=0")
            assert bench.data is not None  # `needs` says so
            find_teacher(bench.data, options.train_data)

    def run(self, bench: Bench, options: TradeoffOptions) -> dict[str, Any]:
        """Measure every setting, and write `recall_and_decay.png` where recall was measured.

        Returns:
            `rows`: see `measure_setting`; `machine`.

        Raises:
            ConfigError: the world cannot remember so many frames. CompileError: the step cannot be compiled here.
            DataError: episodes too short, or no case of place recall. StorageError: a file cannot be written.
        """
        recall = find_recall(bench, options) if options.recall_cases else None
        rng = np.random.default_rng([bench.seed, 11])
        given = read_pieces(spread_over(bench.episodes, options.context + HORIZON, options.cases, rng))
        rows = []
        for steps, memory in options.pairs():
            model = bench.model.with_settings(num_steps=steps, memory_frames=memory)
            rows.append(measure_setting(bench, model, options, given, recall))
        if recall is not None:
            plot_tradeoff(bench.out / "recall_and_decay.png", rows)
        return {"rows": rows, "machine": describe_machine(bench.model.device)}

    def lines(self, found: dict[str, Any]) -> list[str]:
        """Return a table, a row for each setting."""
        rows = found["rows"]
        bins = list(rows[0]["recall"])
        titles = ["steps", "memory", "frames/s", "KiB a dream", f"PSNR at {' / '.join(map(str, SHOWN))}", "decay, dB"]
        titles += ["sharpness", *(f"recall D {name}" for name in bins)]
        lines = [markdown_row(*titles), markdown_row(*["---"] * len(titles))]
        for row in rows:
            speed, size = 1000 / row.get("compiled_ms", row["step_ms"]), row["dream_bytes"] / 1024
            psnr = " / ".join(f"{value:.1f}" for value in row["psnr"].values())
            cells = [row["steps"], row["memory"], f"{speed:.0f}", f"{size:.0f}", psnr, f"{row['decay_db']:.1f}"]
            rates = [None if row["recall"][name] is None else f"{row['recall'][name]:.2f}" for name in bins]
            lines.append(markdown_row(*cells, f"{row['sharpness']:.2f}", *rates))
        return [*lines, "", f"Decay: PSNR of the first 16 of {HORIZON} frames less the last 16. {found['machine']}."]


@dataclass(frozen=True)
class Recall:
    """Cases of place recall, and their judge."""

    cases: list[RecallCase]
    judge: PlaceClassifier


def find_recall(bench: Bench, options: TradeoffOptions) -> Recall:
    """Find cases of place recall, and teach their judge.

    Raises:
        DataError: no case, or no training scene that teaches.
    """
    assert bench.data is not None  # `needs` says so
    cases = find_cases(bench.world, bench.episodes, cases_per_bin=options.recall_cases, seed=bench.seed)
    teacher = find_teacher(bench.data, options.train_data)
    return Recall(cases, load_or_train(teacher, bench.out / "places.safetensors", held_out=bench.data))


def time_dream(bench: Bench, model: WorldModel, options: TradeoffOptions) -> dict[str, Any]:
    """Return `step_ms` of one dream, `compiled_ms` where that is asked for, and `dream_bytes`.

    Raises:
        CompileError: the step cannot be compiled here.
    """
    dreams = {"step": start_dream(model, bench.seed)}
    row = {"step_ms": time_steps(model, dreams, options.timed_frames, bench.on_frames)["step"]}
    if options.compile:
        model.compile()
        row["compiled_ms"] = time_steps(model, dreams, options.timed_frames, bench.on_frames)["step"]
        model.compiled = None  # what follows is dreamt uncompiled, whatever is timed
    return row | {"dream_bytes": dreams["step"].dream.num_bytes}


def measure_setting(
    bench: Bench,
    model: WorldModel,
    options: TradeoffOptions,
    given: dict[str, torch.Tensor],
    recall: Recall | None,
) -> dict[str, Any]:
    """Return a row: what a setting costs and gives.

    Args:
        bench: where to measure.
        model: the world with that setting.
        options: how much to measure.
        given: real `frames` uint8 (B, C + HORIZON, H, W, 3) and `actions` (B, C + HORIZON - 1).
        recall: None leaves it out.

    Returns:
        `steps`, `memory`; what `time_dream` says; `sharpness`, over that of real play; `recall`: bin -> rate; `psnr`:
        frame -> dB; `decay_db`.
    """
    row: dict[str, Any] = {"steps": model.config.num_steps, "memory": model.memory_frames}
    row |= time_dream(bench, model, options)  # first: what cannot be compiled is known before what takes long

    frames, actions, context = given["frames"], given["actions"].long(), options.context
    seeds = list(range(len(frames)))
    dreaming: dict[str, Any] = {"batch_size": bench.batch_size, "on_frames": bench.on_frames}
    decay = measure_decay(model, frames, actions, parse_schedule("next"), context=context, seeds=seeds, **dreaming)

    few, known = slice(SHARP_CASES), context - 1 + SHARP.stop
    dream = dream_on(model, frames[few, :context], actions[few, :known], seeds[few], bench.on_frames)
    true_energy = gradient_energy(frames[few, context:][:, SHARP]).mean()
    row["sharpness"] = round(float(gradient_energy(dream.frames[:, SHARP]).mean() / true_energy), 3)

    row["recall"] = {}
    if recall is not None:
        found = measure_recall(model, recall.cases, recall.judge, controls=(), seed=bench.seed, **dreaming)
        row["recall"] = {name: entry["rate"] for name, entry in found["bins"].items()}
    row["psnr"] = {str(frame): round(float(decay["curves"]["psnr"][frame - 1]), 2) for frame in SHOWN}
    return row | {"decay_db": decay["decay_db"]}


def plot_tradeoff(path: Path, rows: Sequence[dict[str, Any]]) -> None:
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
