"""Drift: what becomes of a long dream: sharpness, colors and likeness to the truth, segment by segment.

Owns: long rollouts, their summary and its tables. Under random actions the truth is the real scene stepped with the
same ones, where it can be made again; elsewhere it is what was recorded.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from envs.worlds.base import Revisit
from envs.worlds.registry import try_revisit
from train.data.rollouts import Piece, dream_on, in_batches, read_pieces, spread_over
from train.measures.base import Bench, Measure
from train.measures.sharpness import (
    CONTROL_EVERY,
    make_controls,
    measure_detail,
    sharpness_lines,
    summarize_sharpness,
)
from train.reports.plots import markdown_row, plot_drift, save_sheet, show_number
from worldmodel.analysis.metrics import color_statistics, gradient_energy, squared_error, to_psnr
from worldmodel.errors import ConfigError
from worldmodel.world import WorldModel

SEGMENT = 50  # frames of a long dream that are summed up in one row
SHEET_DREAMS = 8


@dataclass(frozen=True)
class DriftOptions:
    """Settings of the dreams.

    Attributes:
        dreams: how many.
        frames: of each; fewer where no held-out episode is that long.
        context: real frames given before each.
        actions: those of the recording, or random ones, each held for a while.
    """

    dreams: int = 16
    frames: int = 300
    context: int = 32
    actions: Literal["recorded", "random"] = "recorded"

    def __post_init__(self) -> None:
        for name in ("dreams", "frames", "context"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1; got {getattr(self, name)}")


class Drift(Measure):
    """Sharpness, colors and PSNR of long dreams beside real play."""

    name = "drift"
    Options = DriftOptions
    quick: ClassVar[dict[str, int]] = {"dreams": 2, "frames": 60}

    def num_frames(self, bench: Bench, options: DriftOptions) -> int:
        """Return the frames to dream."""
        return options.dreams * choose_length(bench, options)

    def run(self, bench: Bench, options: DriftOptions) -> dict[str, Any]:
        """Measure, and write `drift.png` and `long_dreams.png`. Errors as `measure_drift`."""
        found = measure_drift(bench, options)
        plot_drift(bench.out / "drift.png", found["segments"])
        return found

    def lines(self, found: dict[str, Any]) -> list[str]:
        """Return the tables."""
        first, last = found["sharpness_frames"]
        lines = [
            f"{found['dreams']} dreams, {found['actions']} actions. Gradient energy over that of real play, "
            f"frames {first} to {last}: **{found['sharpness_ratio']:.2f}** (codec alone "
            f"{found['sharpness_ratio_codec']:.2f}).",
            "",
            markdown_row("frames", "sharpness ratio", "color distance, levels", "PSNR, dB"),
            markdown_row(*["---"] * 4),
        ]
        for part in found["segments"]:
            values = (part["sharpness_ratio"], 2), (part["color_distance"], 1), (part["psnr"], 2)
            cells = (show_number(value, digits) for value, digits in values)
            lines.append(markdown_row(f"{part['frames'][0]} to {part['frames'][1]}", *cells))
        return [*lines, "", *sharpness_lines(found["sharpness"])]


def choose_length(bench: Bench, options: DriftOptions) -> int:
    """Return the frames of a dream: as many as asked for, or as the longest episode has after the context."""
    longest = max(episode.num_frames for episode in bench.episodes) - options.context
    return max(1, min(options.frames, longest))


def random_actions(shape: tuple[int, int], num_actions: int, rng: np.random.Generator) -> torch.Tensor:
    """Return random actions uint8 (B, N), each held for 1 to 20 steps."""
    rows = []
    for _ in range(shape[0]):
        holds = rng.integers(1, 21, shape[1])
        rows.append(np.repeat(rng.integers(0, num_actions, shape[1]), holds)[: shape[1]])
    return torch.from_numpy(np.stack(rows).astype(np.uint8))


def measure_drift(bench: Bench, options: DriftOptions) -> dict[str, Any]:
    """Dream long and follow sharpness, colors and likeness to the truth.

    Raises:
        DataError: no episode reaches beyond the context, or a file is damaged. StorageError: the sheet cannot be
            written.
    """
    known, num_frames, is_random = options.context, choose_length(bench, options), options.actions == "random"
    rng = np.random.default_rng([bench.seed, 4])
    pieces = spread_over(bench.episodes, known + num_frames, options.dreams, rng)
    shown_at = [1, *range(25, num_frames + 1, 25)]
    rows: list[tuple[str, torch.Tensor]] = []
    parts: dict[str, list[torch.Tensor]] = {}
    first = 0
    scene, left_out = try_revisit(pieces[0].episode) if is_random else (None, None)
    with scene or contextlib.nullcontext():
        for batch in in_batches(pieces, bench.batch_size):
            given = read_pieces(batch)
            actions, truth = given["actions"], given["frames"][:, known:]
            if is_random:
                actions[:, known - 1 :] = random_actions((len(batch), num_frames), bench.model.num_actions, rng)
            if scene is not None:
                truth = play_real(scene, batch, actions, known)

            seeds = [bench.seed + 10_000 + first + i for i in range(len(batch))]
            dream = dream_on(bench.model, given["frames"][:, :known], actions, seeds, bench.on_frames)
            for name, values in compare_with_real(bench.model, dream.frames, truth, bench.seed).items():
                parts.setdefault(name, []).append(values)
            rows += [("dream", frames[[t - 1 for t in shown_at]]) for frames in dream.frames]
            first += len(batch)
    save_sheet(bench.out / "long_dreams.png", rows[:SHEET_DREAMS], shown_at)

    all_of = {name: torch.cat(values) for name, values in parts.items()}
    reference = "the real scene under the same actions"
    if is_random and scene is None:
        reference = f"recorded play under other actions ({left_out})"
    report = summarize_drift(all_of, num_frames, has_truth=not is_random or scene is not None)
    sharpness = summarize_sharpness(all_of, reference, bench.seed)
    return {**report, "sharpness": sharpness, "actions": options.actions, "dreams": len(pieces)}


def play_real(scene: Revisit, pieces: Sequence[Piece], actions: torch.Tensor, known: int) -> torch.Tensor:
    """Return what real play shows after the first `known` frames of pieces, uint8 (B, N, H, W, 3).

    Args:
        scene: the real world of the recording.
        pieces: B pieces.
        actions: integer (B, known - 1 + N); the last N are taken.
        known: frames of the context.
    """
    played = [
        scene.play(piece.episode, piece.start + known - 1, row[known - 1 :].numpy())
        for piece, row in zip(pieces, actions, strict=True)
    ]
    return torch.from_numpy(np.stack(played))


def compare_with_real(
    model: WorldModel, frames: torch.Tensor, truth: torch.Tensor, seed: int
) -> dict[str, torch.Tensor]:
    """Return detail, colors and errors of dreams and of real play, by name, a row a dream.

    Args:
        model: whose codec the last third of real play is sent through.
        frames: uint8 (B, N, H, W, 3), dreamt.
        truth: uint8, the same shape, real play.
        seed: of the noise that is a control.
    """
    sample = truth[:, ::CONTROL_EVERY]
    last = truth[:, 2 * truth.shape[1] // 3 :: 10]
    found = {
        "energy": gradient_energy(frames),
        "true_energy": gradient_energy(truth),
        "detail": measure_detail(frames),
        "true_detail": measure_detail(truth),
        "control_detail": measure_detail(sample),
        "colors": color_statistics(frames),
        "true_colors": color_statistics(truth),
        "error": squared_error(frames, truth),
        "codec_energy": gradient_energy(model.decode(model.encode(last)).cpu()),
        "codec_true_energy": gradient_energy(last),
    }
    controls = make_controls(sample, seed)
    return found | {f"{name}_detail": measure_detail(control) for name, control in controls.items()}


def summarize_drift(found: dict[str, torch.Tensor], num_frames: int, has_truth: bool) -> dict[str, Any]:
    """Return the part of the report on all but detail; `found` holds (dreams, N, ...).

    The sharpness ratio is that of the last third (frames 201 to 300 of 300).
    """

    def ratio(part: slice) -> float:
        truth = float(found["true_energy"][:, part].mean())
        return round(float(found["energy"][:, part].mean()) / max(truth, 1e-12), 4)

    def summarize(part: slice, first: int, last: int) -> dict[str, Any]:
        apart = (found["colors"][:, part].mean((0, 1)) - found["true_colors"][:, part].mean((0, 1))).square().mean()
        psnr = round(float(to_psnr(found["error"][:, part].mean())), 4) if has_truth else None
        distance = round(float(apart.sqrt()), 3)
        return {"frames": [first, last], "sharpness_ratio": ratio(part), "color_distance": distance, "psnr": psnr}

    codec = float(found["codec_energy"].mean()) / max(float(found["codec_true_energy"].mean()), 1e-12)
    starts = range(0, num_frames, SEGMENT)
    return {
        "sharpness_ratio": ratio(slice(2 * num_frames // 3, None)),
        "sharpness_ratio_codec": round(codec, 4),
        "sharpness_frames": [2 * num_frames // 3 + 1, num_frames],
        "segments": [summarize(slice(s, s + SEGMENT), s + 1, min(s + SEGMENT, num_frames)) for s in starts],
    }
