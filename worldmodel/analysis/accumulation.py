"""Error accumulation: how dreams move away from the truth, frame by frame and segment by segment.

Owns the comparison of rollouts with the truth (PSNR, SSIM, a perceptual and a Frechet distance, by segment) and the
measured decay. Knows no episodes on disk and no network for perceptual features: those come as a function.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from worldmodel.analysis.distances import Ruler, frechet_distance, perceptual_distance, random_projection
from worldmodel.analysis.metrics import squared_error, ssim, to_psnr
from worldmodel.errors import ConfigError, ShapeError
from worldmodel.windows import Schedule
from worldmodel.world import WorldModel

SEGMENT = 16
"""Frames of a segment, as in arXiv:2503.10704."""


def segments(num_frames: int, size: int = SEGMENT) -> list[tuple[int, int]]:
    """Return (start, stop) of the segments that cover `num_frames` frames; the last may be shorter."""
    return [(start, min(start + size, num_frames)) for start in range(0, num_frames, size)]


def _rounded(value: float) -> float:
    return round(float(value), 6)


def _distances(
    frames: torch.Tensor, truth: torch.Tensor, extractor: Ruler, every: int, dims: int, size: int
) -> tuple[list[dict[str, Any]], torch.Tensor]:
    """Return each segment's distances by features with their sample sizes, and the perceptual one (B, segments)."""
    spans = segments(frames.shape[1], size)
    picked = [range(start, stop, every) for start, stop in spans]  # every segment has at least its first frame
    index = [t for part in picked for t in part]

    apart, ours, theirs = [], [], []
    for mine, true in zip(frames[:, index], truth[:, index], strict=True):
        found, real = extractor(mine), extractor(true)
        apart.append(perceptual_distance(found.stages, real.stages))
        ours.append(found.pooled)
        theirs.append(real.pooled)

    mine_pooled, true_pooled = torch.stack(ours).double(), torch.stack(theirs).double()
    project = random_projection(true_pooled.shape[-1], min(dims, true_pooled.shape[-1]))
    lengths = [len(part) for part in picked]

    rows, distances = [], []
    parts = (x.split(lengths, 1) for x in (torch.stack(apart), mine_pooled @ project, true_pooled @ project))
    for distance, mine, true in zip(*parts, strict=True):
        halves = [true[half::2].flatten(0, 1) for half in (0, 1)]
        distances.append(distance.mean(1))
        rows.append(
            {
                "perceptual": _rounded(float(distance.mean())),
                "fd_lite0": _rounded(frechet_distance(mine.flatten(0, 1), true.flatten(0, 1))),
                "fd_lite0_of_truth": _rounded(frechet_distance(*halves)) if min(map(len, halves)) > 1 else None,
                "fd_frames": mine.shape[0] * mine.shape[1],
                "fd_dims": project.shape[1],
            }
        )
    return rows, torch.stack(distances, 1)


def compare_frames(
    frames: torch.Tensor,
    truth: torch.Tensor,
    *,
    extractor: Ruler | None = None,
    feature_every: int = 2,
    feature_dims: int = 32,
    size: int = SEGMENT,
) -> dict[str, Any]:
    """Compare rollouts with the truth.

    Args:
        frames: uint8 (B, N, H, W, 3), dreamt.
        truth: uint8, the same shape.
        extractor: features of frames; None leaves the perceptual and the Frechet distance out.
        feature_every: features of every so-manyth frame of a segment.
        feature_dims: dimensions that features are projected to, so that a segment has many more frames than dimensions.
        size: frames of a segment.

    Returns:
        ready for JSON. `segments`: frames [first, last], mse (brightness 0 to 1), psnr (dB, of the error averaged over
        cases and frames), ssim, and with an extractor perceptual, fd_lite0 and, as its floor, fd_lite0_of_truth between
        the truth of even and of odd cases (half the sample, so larger than the floor at full size). `curves`: psnr and
        ssim of every frame. `decay_db`: PSNR of the first segment minus that of the last whole one. `cases`: mse and
        perceptual, a row a case with a value a segment.

    Raises:
        ShapeError: shapes differ. ConfigError: `feature_every`, `feature_dims` or `size` is below 1, or `feature_every`
            above `size`.
    """
    if not 1 <= feature_every <= size or feature_dims < 1:
        raise ConfigError(
            f"feature_every must be from 1 to the {size} frames of a segment and feature_dims at least 1; got "
            f"{feature_every} and {feature_dims}"
        )

    error = squared_error(frames, truth)
    alike = torch.stack([ssim(a, b) for a, b in zip(frames, truth, strict=True)])
    spans = segments(frames.shape[1], size)
    errors = [error[:, start:stop] for start, stop in spans]

    rows: list[dict[str, Any]] = [
        {
            "frames": [start + 1, stop],
            "mse": float(part.mean()),
            "psnr": _rounded(float(to_psnr(part.mean()))),
            "ssim": _rounded(float(alike[:, start:stop].mean())),
        }
        for (start, stop), part in zip(spans, errors, strict=True)
    ]

    cases = {"mse": torch.stack([part.mean(1) for part in errors], 1).tolist()}
    if extractor is not None:
        measured, distance = _distances(frames, truth, extractor, feature_every, feature_dims, size)
        rows = [row | more for row, more in zip(rows, measured, strict=True)]
        cases["perceptual"] = distance.tolist()

    whole = max(1, frames.shape[1] // size)
    return {
        "segments": rows,
        "curves": {"psnr": [_rounded(v) for v in to_psnr(error.mean(0))], "ssim": [_rounded(v) for v in alike.mean(0)]},
        "decay_db": _rounded(rows[0]["psnr"] - rows[whole - 1]["psnr"]),
        "cases": cases,
        "num_cases": frames.shape[0],
    }


def measure_decay(
    model: WorldModel,
    frames: torch.Tensor,
    actions: torch.Tensor,
    schedule: Schedule,
    *,
    context: int,
    seeds: Sequence[int],
    batch_size: int = 16,
    on_frames: Callable[[int], object] | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Dream from real frames under true actions with a schedule and compare with what really followed.

    Args:
        model: the world; its own window is not used.
        frames: uint8 (B, C + N, H, W, 3), real.
        actions: integer (B, C + N - 1), between them.
        schedule: how to dream.
        context: C, the frames given.
        seeds: B seeds of the dreams' chance.
        batch_size: dreams at once.
        on_frames: told the number of frames dreamt.
        settings: of `compare_frames`.

    Returns:
        as `compare_frames`.

    Raises:
        ShapeError: shapes do not agree, or nothing follows the context. WindowError: as `WorldModel.rollout`.
    """
    if not 1 <= context < frames.shape[1] or actions.shape != (frames.shape[0], frames.shape[1] - 1):
        raise ShapeError(
            f"decay is measured on frames (B, C + N, H, W, 3) with {context} given frames, N at least 1, and actions "
            f"(B, C + N - 1); got frames {tuple(frames.shape)} and actions {tuple(actions.shape)}"
        )
    dreams = []
    for start in range(0, frames.shape[0], batch_size):
        part = slice(start, start + batch_size)
        dreams.append(
            model.rollout(
                frames[part, :context],
                actions[part].long(),
                list(seeds[part]),
                window=schedule.window,
                num_steps=schedule.num_steps,
                on_frames=on_frames,
            ).cpu()
        )
    return compare_frames(torch.cat(dreams), frames[:, context:].cpu(), **settings)
