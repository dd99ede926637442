"""Fidelity: how near dreams under true actions come to the truth, frame by frame.

Owns: the comparison with the truth, with the last context frame and with the codec alone, over all pixels and (by
`train.measures.in_sight`) over those that the context showed; the rewards and endings of the same dreams; the tables.
Does not know long dreams (`train.measures.drift`) or what an action should bring (`train.measures.action_accuracy`).
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from envs.worlds.registry import try_revisit
from train.data.rollouts import Dream, dream_on, in_batches, read_pieces, spread_over
from train.measures.base import Bench, Measure
from train.measures.in_sight import compare_in_sight, find_sources_of_piece, in_sight_lines, summarize_in_sight
from train.reports.plots import events_table, markdown_row, plot_likeness, save_sheet, show_number
from worldmodel.analysis.bootstrap import draw_weights, find_interval
from worldmodel.analysis.events import score_events
from worldmodel.analysis.metrics import MAX_PSNR, squared_error, ssim, to_psnr
from worldmodel.errors import ConfigError
from worldmodel.world import WorldModel

HORIZONS = (1, 2, 4, 8, 16, 32, 64)
SHEET_CASES = 6
PSNR_MEANS = (
    "psnr, copy_last, codec_ceiling: PSNR of the squared error averaged over cases; psnr_of_each_case: PSNR of "
    f"each case, cut at {MAX_PSNR:g} dB, then averaged (a noop leaves equal frames, whose PSNR has no limit)"
)


@dataclass(frozen=True)
class FidelityOptions:
    """Settings of the dreams.

    Attributes:
        cases: dreams compared with the truth.
        context: real frames given before each.
        horizon: frames of each.
    """

    cases: int = 200
    context: int = 32
    horizon: int = 64

    def __post_init__(self) -> None:
        for name in ("cases", "context", "horizon"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1; got {getattr(self, name)}")


class Fidelity(Measure):
    """PSNR and SSIM by horizon, in sight and over all pixels, beside a copy of the last frame and the codec alone."""

    name = "fidelity"
    Options = FidelityOptions
    quick: ClassVar[dict[str, int]] = {"cases": 8, "horizon": 16}

    def num_frames(self, bench: Bench, options: FidelityOptions) -> int:
        """Return the frames to dream."""
        return options.cases * options.horizon

    def run(self, bench: Bench, options: FidelityOptions) -> dict[str, Any]:
        """Measure, and write `psnr.png` and `truth_and_dream.png`. Errors as `measure_fidelity`."""
        found = measure_fidelity(bench, options)
        plot_likeness(bench.out / "psnr.png", found)
        return found | {"context": options.context, "psnr_means": PSNR_MEANS}

    def lines(self, found: dict[str, Any]) -> list[str]:
        """Return the tables."""
        horizons = list(found["psnr"])
        return [
            f"{found['cases']} cases, {found['context']} real context frames, then true actions.",
            "",
            *_likeness_lines(found, horizons),
            "",
            *in_sight_lines(found["in_sight"], horizons),
            "",
            "### Rewards and endings in these dreams",
            "",
            *events_table({name: found[name] for name in ("reward", "terminated")}),
        ]


def _likeness_lines(found: dict[str, Any], horizons: Sequence[str]) -> list[str]:
    lines = [markdown_row("frame", *horizons), markdown_row(*["---"] * (len(horizons) + 1))]
    for title, key, digits in (
        ("dream PSNR, dB", "psnr", 2),
        ("last context frame PSNR, dB", "copy_last", 2),
        ("codec alone PSNR, dB", "codec_ceiling", 2),
        ("margin over last frame, dB", "margin_over_copy_last", 2),
        ("dream SSIM", "ssim", 3),
        ("last context frame SSIM", "copy_last_ssim", 3),
        ("codec alone SSIM", "codec_ceiling_ssim", 3),
    ):
        lines.append(markdown_row(title, *(show_number(found[key][h], digits) for h in horizons)))

    for title, key in (
        ("dream PSNR, 95% interval over episodes", "psnr_interval"),
        ("last context frame PSNR, 95% interval", "copy_last_interval"),
        ("margin, 95% interval over episodes", "margin_interval"),
    ):
        lines.append(markdown_row(title, *(f"{low:.1f} to {high:.1f}" for low, high in found[key].values())))
    return [*lines, "", found["psnr_means"] + "."]


def measure_fidelity(bench: Bench, options: FidelityOptions) -> dict[str, Any]:
    """Dream under true actions and compare with the truth, with the last context frame, and with the codec's own error.

    Raises:
        DataError: no episode is long enough, or a file is damaged. StorageError: the sheet cannot be written.
    """
    known, horizons = options.context, [h for h in HORIZONS if h <= options.horizon]
    rng = np.random.default_rng([bench.seed, 0])
    pieces = spread_over(bench.episodes, known + options.horizon, options.cases, rng)
    shown = {int(i) for i in np.linspace(0, len(pieces) - 1, min(SHEET_CASES, len(pieces)))}
    parts: dict[str, list[torch.Tensor]] = {}
    rows: list[tuple[str, torch.Tensor]] = []
    first = 0
    scene, left_out = try_revisit(pieces[0].episode)
    with scene or contextlib.nullcontext():
        for batch in in_batches(pieces, bench.batch_size):
            given = read_pieces(batch, ("frames", "actions", "rewards", "terminated"))
            context = given["frames"][:, :known]
            seeds = [bench.seed + first + i for i in range(len(batch))]
            dream = dream_on(bench.model, context, given["actions"], seeds, bench.on_frames)
            pictures = pick_pictures(bench.model, given["frames"], dream, known, horizons)
            found = compare_with_truth(given, dream, pictures, known)
            if scene is not None:
                sources = np.stack([find_sources_of_piece(scene, piece, known, horizons) for piece in batch])
                compared = {name: frames for name, frames in pictures.items() if name != "truth"}
                found |= compare_in_sight(torch.from_numpy(sources), context, pictures["truth"], compared)
            for name, values in found.items():
                parts.setdefault(name, []).append(values)

            for row in sorted(shown & {*range(first, first + len(batch))}):
                i = row - first
                rows += [(name, torch.cat([context[i, -1:], pictures[name][i]])) for name in ("truth", "dream")]
            first += len(batch)
    save_sheet(bench.out / "truth_and_dream.png", rows, [0, *horizons])

    all_of = {name: torch.cat(values) for name, values in parts.items()}
    groups = np.array([f"{p.episode.path}/{p.episode.key}" for p in pieces])
    report = {"horizons": horizons, **summarize_likeness(all_of, groups, horizons, bench.seed), "cases": len(pieces)}
    report["in_sight"] = {"left_out": left_out}
    if scene is not None:
        num_pixels = bench.model.codec.config.image_size**2
        report["in_sight"] = summarize_in_sight(all_of, groups, horizons, num_pixels, bench.seed)
    return report


def pick_pictures(
    model: WorldModel, frames: torch.Tensor, dream: Dream, known: int, horizons: list[int]
) -> dict[str, torch.Tensor]:
    """Return what is compared at the horizons, uint8 (B, len(horizons), H, W, 3) each.

    Args:
        model: whose codec encodes and decodes the truth.
        frames: uint8 (B, known + N, H, W, 3), recorded.
        dream: of the N frames after the first `known`.
        known: frames of the context.
        horizons: frames after the context, from 1.

    Returns:
        `truth`; `dream`; `copy`, the last context frame; `codec`, the truth encoded and decoded.
    """
    truth = frames[:, [known + h - 1 for h in horizons]]
    return {
        "truth": truth,
        "dream": dream.frames[:, [h - 1 for h in horizons]],
        "copy": frames[:, known - 1 : known].expand_as(truth),
        "codec": model.decode(model.encode(truth)).cpu(),
    }


def compare_with_truth(
    given: dict[str, torch.Tensor], dream: Dream, pictures: dict[str, torch.Tensor], known: int
) -> dict[str, torch.Tensor]:
    """Return squared errors, SSIM and events of a batch by name, a row a case.

    Args:
        given: recorded frames (B, known + N, ...), rewards and endings (B, known + N - 1).
        dream: of the last N frames.
        pictures: of `pick_pictures`.
        known: frames of the context.
    """
    truth, last = given["frames"][:, known:], given["frames"][:, known - 1 : known]
    return {
        "dream": squared_error(dream.frames, truth),
        "copy": squared_error(last.expand_as(truth), truth),
        "codec": squared_error(pictures["codec"], pictures["truth"]),
        **{f"{name}_ssim": ssim(pictures[name], pictures["truth"]) for name in ("dream", "copy", "codec")},
        "rewards": dream.rewards != 0,
        "true_rewards": given["rewards"][:, known - 1 :] != 0,
        "terminated": dream.terminated,
        "true_terminated": given["terminated"][:, known - 1 :],
    }


def by_horizon(values: torch.Tensor, horizons: list[int]) -> dict[str, float]:
    """Return values (N,) of frames 1 to N at the horizons, as JSON keeps them."""
    return {str(h): round(float(values[h - 1]), 4) for h in horizons}


def pooled_psnr(errors: torch.Tensor) -> torch.Tensor:
    """Return the PSNR of the mean squared error over cases: (cases, N) to (N,), dB."""
    return to_psnr(errors.mean(0))


def margin_interval(dream: torch.Tensor, copy: torch.Tensor, groups: np.ndarray, seed: int) -> torch.Tensor:
    """Return the 2.5 and 97.5 percentiles (2, N) of the margin over copy-last, by drawing episodes again 500 times.

    Args:
        dream: squared errors (cases, N) of the dreams.
        copy: the same for the last context frame.
        groups: (cases,) the episode of each case; cases of one episode are not independent.
        seed: chance.
    """
    weights = draw_weights(groups, np.random.default_rng([seed, 3]))
    return find_interval(to_psnr(weights @ dream) - to_psnr(weights @ copy))


def psnr_interval(errors: torch.Tensor, groups: np.ndarray, seed: int) -> torch.Tensor:
    """Return the 2.5 and 97.5 percentiles (2, N) of `pooled_psnr`, by drawing episodes again; the rest as above."""
    return find_interval(to_psnr(draw_weights(groups, np.random.default_rng([seed, 3])) @ errors))


def summarize_likeness(
    found: dict[str, torch.Tensor], groups: np.ndarray, horizons: list[int], seed: int
) -> dict[str, Any]:
    """Return the part of the report that compares with the truth; `found` holds a row a case."""
    picks = [h - 1 for h in horizons]
    dream, copy = pooled_psnr(found["dream"]), pooled_psnr(found["copy"])
    codec = dict(zip(map(str, horizons), pooled_psnr(found["codec"]).tolist(), strict=True))
    low, high = margin_interval(found["dream"][:, picks], found["copy"][:, picks], groups, seed).tolist()
    spans = {name: psnr_interval(found[name][:, picks], groups, seed).tolist() for name in ("dream", "copy")}
    mean_dream, mean_copy = to_psnr(found["dream"]).mean(0), to_psnr(found["copy"]).mean(0)

    def named(values: torch.Tensor) -> dict[str, float]:
        return {str(h): round(float(v), 4) for h, v in zip(horizons, values, strict=True)}

    def between(span: list[list[float]]) -> dict[str, list[float]]:
        return {str(h): [round(a, 4), round(b, 4)] for h, a, b in zip(horizons, *span, strict=True)}

    return {
        "psnr": by_horizon(dream, horizons),
        "psnr_interval": between(spans["dream"]),
        "copy_last_interval": between(spans["copy"]),
        "ssim": named(found["dream_ssim"].mean(0)),
        "copy_last": by_horizon(copy, horizons),
        "copy_last_ssim": named(found["copy_ssim"].mean(0)),
        "codec_ceiling": {h: round(v, 4) for h, v in codec.items()},
        "codec_ceiling_ssim": named(found["codec_ssim"].mean(0)),
        "margin_over_copy_last": by_horizon(dream - copy, horizons),
        "margin_interval": between([low, high]),
        "psnr_of_each_case": {
            "psnr": by_horizon(mean_dream, horizons),
            "copy_last": by_horizon(mean_copy, horizons),
            "codec_ceiling": named(to_psnr(found["codec"]).mean(0)),
            "margin_over_copy_last": by_horizon(mean_dream - mean_copy, horizons),
        },
        "curves": {"psnr": dream.tolist(), "copy_last": copy.tolist()},
        "reward": score_events(found["rewards"], found["true_rewards"]),
        "terminated": score_events(found["terminated"], found["true_terminated"]),
    }
