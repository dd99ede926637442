"""How sharp long dreams are beside real play, segment by segment, with what must not pass: blurred real play and noise.

Owns: the ratio of gradient energies, the match of detail of three sizes, the share of flat frames, their intervals over
dreams, the controls, and the table. Does not dream.

The ratio alone can be met by noise: white noise has many times the gradient energy of real play. So beside it stands
the match, the mean over bands of detail (`band_energies`) of the smaller energy over the larger: 1 only where detail of
each size is as strong as in real play; too much counts as much as too little.
"""

from typing import Any

import cv2
import numpy as np
import torch

from train.reports.plots import markdown_row
from worldmodel.analysis.bootstrap import draw_weights, find_interval
from worldmodel.analysis.metrics import band_energies, gradient_energy

SPANS = ((0, 50), (50, 100), (100, 200), (200, 300))
FLAT = 0.1  # of the mean gradient energy of real play: a frame with less is flat
BLUR_PIXELS = 1.5  # deviation of the blur of the control
CONTROL_EVERY = 10  # the controls are made of every so-manyth frame
NAMES = ("ratio", "match", "flat_share", "flat_share_real")
MEANS = (
    "ratio: gradient energy over that of real play; match: over three bands of detail, the smaller energy over the "
    f"larger, averaged (1: as real play; noise and blur both score low); flat: frames with less than {FLAT:g} of the "
    "mean gradient energy of real play; intervals: 95%, dreams drawn again. A ratio above 1 is no merit: read the match"
)


def measure_detail(frames: torch.Tensor) -> torch.Tensor:
    """Return gradient energy and band energies of frames uint8 (..., H, W, 3): float32 (..., 4)."""
    return torch.cat([gradient_energy(frames)[..., None], band_energies(frames)], -1)


def make_controls(truth: torch.Tensor, seed: int) -> dict[str, torch.Tensor]:
    """Return what must not pass for real play: it blurred, and white noise of its brightness and contrast.

    Args:
        truth: uint8 (B, N, H, W, 3), real play.
        seed: of the noise.

    Returns:
        uint8 frames of the same shape, by name.
    """
    clips = truth.flatten(0, 1).numpy()
    blurred = np.stack([cv2.GaussianBlur(frame, (0, 0), BLUR_PIXELS) for frame in clips])
    mean, spread = clips.mean(), clips.std()
    noise = np.random.default_rng([seed, 12]).normal(mean, spread, clips.shape).clip(0, 255).astype(np.uint8)
    return {"blurred": torch.from_numpy(blurred).view_as(truth), "noise": torch.from_numpy(noise).view_as(truth)}


def compare_detail(detail: torch.Tensor, real: torch.Tensor, weights: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return `NAMES` for each weighting of dreams.

    Args:
        detail: float32 (dreams, N, 4) of `measure_detail`.
        real: the same of real play.
        weights: float32 (draws, dreams), rows that sum to 1.

    Returns:
        float32 (draws,) each.
    """
    ours, theirs = (weights @ part.mean(1) for part in (detail, real))
    share = ours / theirs.clamp_min(1e-12)
    match = torch.minimum(share, 1 / share.clamp_min(1e-12))[:, 1:].mean(1)
    level = FLAT * theirs[:, :1]
    flat = [(weights[:, :, None] * (part[None, ..., 0] < level[..., None])).sum(1).mean(1) for part in (detail, real)]
    return dict(zip(NAMES, (share[:, 0], match, *flat), strict=True))


def summarize_sharpness(found: dict[str, torch.Tensor], reference: str, seed: int) -> dict[str, Any]:
    """Return the part of the report on sharpness.

    Args:
        found: `detail` and `true_detail` (dreams, N, 4), and `NAME_detail` and `control_detail` (dreams, n, 4): of each
            control and of the real play that it was made from.
        reference: what real play is, in words.
        seed: chance of the intervals.
    """
    count, num_frames = found["detail"].shape[:2]
    once = torch.full((1, count), 1 / count)
    weights = draw_weights(np.arange(count), np.random.default_rng([seed, 13]))

    def summed(detail: torch.Tensor, real: torch.Tensor) -> dict[str, Any]:
        values, drawn = compare_detail(detail, real, once), compare_detail(detail, real, weights)
        row: dict[str, Any] = {}
        for name in NAMES:
            low, high = find_interval(drawn[name]).tolist()
            row |= {name: round(float(values[name]), 4), f"{name}_interval": [round(low, 4), round(high, 4)]}
        return row

    parts = [(start, min(stop, num_frames)) for start, stop in SPANS if start < num_frames]
    segments = [
        {"frames": [start + 1, stop]} | summed(found["detail"][:, start:stop], found["true_detail"][:, start:stop])
        for start, stop in parts
    ]
    controls = {name: summed(found[f"{name}_detail"], found["control_detail"]) for name in ("blurred", "noise")}
    return {"segments": segments, "controls": controls, "reference": reference, "dreams": count, "means": MEANS}


def sharpness_lines(found: dict[str, Any]) -> list[str]:
    """Return what `summarize_sharpness` found as lines of markdown."""
    names = {
        "ratio": "gradient energy ratio",
        "match": "match of detail",
        "flat_share": "flat frames",
        "flat_share_real": "flat frames of real play",
    }
    lines = [
        f"Sharpness; real play: {found['reference']}.",
        "",
        markdown_row("frames", *names.values()),
        markdown_row(*["---"] * 5),
    ]
    rows = [(f"{part['frames'][0]} to {part['frames'][1]}", part) for part in found["segments"]]
    rows += [(f"control: {name}", part) for name, part in found["controls"].items()]
    for title, part in rows:
        spans = [(part[name], *part[f"{name}_interval"]) for name in names]
        lines.append(markdown_row(title, *(f"{value:.2f} ({low:.2f} to {high:.2f})" for value, low, high in spans)))
    return [*lines, "", f"{found['means']}."]
