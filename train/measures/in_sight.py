"""Likeness where it can be known: only pixels of the truth that the context frames showed, by true pose and true depth.

Owns: which pixels of a true frame were in sight, and from where; the errors of a dream there, beside those of a copy of
the last context frame, of the codec and of an oracle; and their summary. Does not dream.

The oracle knows pose and depth: it colors each pixel as the newest context frame that shows the same point, from the
nearest pixel. What was not in sight nobody can know, so a dream is not blamed for it here.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from envs.data.episodes import read_episode
from envs.worlds.base import Revisit
from train.data.rollouts import Piece
from train.reports.plots import markdown_row
from worldmodel.analysis.bootstrap import draw_weights, find_interval
from worldmodel.analysis.metrics import to_psnr
from worldmodel.errors import DataError

RELATIVE_SLACK, SLACK_CELLS = 0.05, 0.03  # by which depths of one point may differ between two frames
NEAREST = 0.05  # cells; what is nearer to the eye is not drawn
OFFSETS = ((0, 0), (0, 1), (1, 0), (0, -1), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1))
COMPARED = ("dream", "copy", "oracle", "codec")
MEANS = (
    "pixels of the true frame whose point a context frame showed, by true pose and depth (what a target hid that was "
    "taken meanwhile was not shown); PSNR of the squared error averaged over those pixels of all cases; oracle: each "
    "of them from the newest context frame that shows it; intervals: 95%, episodes drawn again"
)


def find_sources(
    depth: np.ndarray,
    pose: np.ndarray,
    context_depths: np.ndarray,
    context_poses: np.ndarray,
    view_deg: float,
    sky_depth: float,
) -> np.ndarray:
    """Find where each pixel of a frame was to be seen before.

    Args:
        depth: float (H, W), of the frame, cells along its heading.
        pose: (3,) x and y in cells, heading in degrees; all frames look level from one height.
        context_depths: float (C, H, W), oldest first.
        context_poses: (C, 3).
        view_deg: angle of view, both across and down.
        sky_depth: depth of the sky; it is the same in each direction, wherever one stands.

    Returns:
        int64 (H, W): index into the pixels of all context frames, in order, of the pixel of the newest frame that shows
        the same point; -1 where none does.
    """
    height, width = depth.shape
    is_sky = depth >= sky_depth
    ahead, rows, columns = _project(depth, pose.astype(np.float64), context_poses.astype(np.float64), view_deg, is_sky)
    is_inside = (ahead > NEAREST) & (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    wanted = np.where(is_sky, sky_depth, ahead)
    slack = np.where(is_sky, 1e-3, RELATIVE_SLACK * ahead + SLACK_CELLS)

    first = (np.arange(len(context_poses)) * height * width)[:, None, None]
    found = np.full(wanted.shape, -1, np.int64)
    for down, right in OFFSETS:  # the pixel itself before its neighbors, which count at edges
        beside = first + (rows + down).clip(0, height - 1) * width + (columns + right).clip(0, width - 1)
        agrees = np.abs(context_depths.reshape(-1)[beside] - wanted) <= slack
        found = np.where((found < 0) & is_inside & agrees, beside, found)
    newest = len(context_poses) - 1 - np.argmax(found[::-1] >= 0, axis=0)
    return np.take_along_axis(found, newest[None], 0)[0]


def _project(
    depth: np.ndarray, pose: np.ndarray, context_poses: np.ndarray, view_deg: float, is_sky: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return where each context frame would show the points of a frame, (C, H, W) each.

    The arguments are those of `find_sources`, and bool (H, W) of the pixels that show the sky.

    Returns:
        how far ahead a point is, float in cells; its row and its column, int64, beyond the picture where not in view.
    """
    height, width = depth.shape
    tangent = np.tan(np.radians(view_deg / 2))
    left = tangent * (1 - (2 * np.arange(width) + 1) / width)[None, :]
    up = tangent * (1 - (2 * np.arange(height) + 1) / height)[:, None]
    distance = np.where(is_sky, 1.0, depth.astype(np.float64))
    heading, headings = np.radians(pose[2]), np.radians(context_poses[:, 2])[:, None, None]

    # From the frame's own axes to the world's, then to those of each context frame.
    east = distance * (np.cos(heading) - left * np.sin(heading))
    north = distance * (np.sin(heading) + left * np.cos(heading))
    moved = (pose[:2] - context_poses[:, :2])[:, :, None, None] * ~is_sky
    east, north = east[None] + moved[:, 0], north[None] + moved[:, 1]
    ahead = np.cos(headings) * east + np.sin(headings) * north
    aside = np.cos(headings) * north - np.sin(headings) * east

    safe = np.where(ahead > NEAREST, ahead, 1.0)
    columns = np.floor((1 - aside / (safe * tangent)) * width / 2).clip(-2, width + 1).astype(np.int64)
    rows = np.floor((1 - (distance * up)[None] / (safe * tangent)) * height / 2).clip(-2, height + 1).astype(np.int64)
    return ahead, rows, columns


def find_sources_of_piece(scene: Revisit, piece: Piece, known: int, horizons: list[int]) -> np.ndarray:
    """Return `find_sources` of the true frames at the horizons, int64 (len(horizons), H, W); errors as `Revisit.depth`.

    Args:
        scene: the real world of the recording.
        piece: of an episode; its first `known` frames are the context.
        known: frames of the context.
        horizons: frames after the context, from 1.
    """
    poses = read_episode(piece.episode, fields=("pose",))["pose"].astype(np.float64)
    if poses.shape[1] != 3:
        raise DataError(f"{piece.episode.path.name}: what is in sight is found for level poses of 3 columns alone")
    context = range(piece.start, piece.start + known)
    depths = np.stack([scene.depth(piece.episode, frame) for frame in context])
    frames = [piece.start + known + horizon - 1 for horizon in horizons]
    there = depths, poses[list(context)], scene.view_deg, scene.sky_depth
    return np.stack([find_sources(scene.depth(piece.episode, frame), poses[frame], *there) for frame in frames])


def compare_in_sight(
    sources: torch.Tensor, context: torch.Tensor, truth: torch.Tensor, frames: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Add up squared errors over the pixels in sight.

    Args:
        sources: int64 (B, N, H, W) of `find_sources`.
        context: uint8 (B, C, H, W, 3).
        truth: uint8 (B, N, H, W, 3).
        frames: uint8 (B, N, H, W, 3) each, by name; the oracle is added.

    Returns:
        float32 (B, N) each: `sight_pixels`, the number of pixels in sight, and `sight_NAME`, the sum over them of the
        squared error, for brightness from 0 to 1.
    """
    is_seen = sources >= 0
    flat = context.flatten(1, 3)
    index = sources.clamp_min(0).flatten(1)[..., None].expand(-1, -1, 3)
    oracle = flat.gather(1, index).reshape(truth.shape)
    found = {"sight_pixels": is_seen.float().sum((-2, -1))}
    for name, pictures in (frames | {"oracle": oracle}).items():
        error = ((pictures.float() - truth.float()) / 255.0).square().mean(-1)
        found[f"sight_{name}"] = (error * is_seen).sum((-2, -1))
    return found


def summarize_in_sight(
    found: dict[str, torch.Tensor], groups: np.ndarray, horizons: list[int], num_pixels: int, seed: int
) -> dict[str, Any]:
    """Return the part of the report on pixels in sight.

    Args:
        found: `compare_in_sight` of all cases, at the horizons.
        groups: (cases,) the episode of each case.
        horizons: frames after the context.
        num_pixels: pixels of a frame.
        seed: chance of the intervals.
    """
    weights = draw_weights(groups, np.random.default_rng([seed, 3]))
    pixels = found["sight_pixels"]

    def named(values: torch.Tensor, interval: torch.Tensor) -> dict[str, dict[str, Any]]:
        return {
            "at": {str(h): round(float(v), 4) for h, v in zip(horizons, values, strict=True)},
            "interval": {
                str(h): [round(float(low), 4), round(float(high), 4)]
                for h, low, high in zip(horizons, *interval, strict=True)
            },
        }

    report = {"share": named(pixels.mean(0) / num_pixels, find_interval(weights @ pixels / num_pixels))}
    for name in COMPARED:
        errors = found[f"sight_{name}"]
        pooled = to_psnr(errors.sum(0) / pixels.sum(0).clamp_min(1))
        drawn = to_psnr((weights @ errors) / (weights @ pixels).clamp_min(1e-6))
        report[name] = named(pooled, find_interval(drawn))
    return report | {"means": MEANS}


def in_sight_lines(found: dict[str, Any], horizons: Sequence[str]) -> list[str]:
    """Return what `summarize_in_sight` found as lines of markdown, or why it was left out."""
    lines = ["### Likeness in sight", ""]
    if "left_out" in found:
        return [*lines, f"Left out: {found['left_out']}."]

    lines += [markdown_row("frame", *horizons), markdown_row(*["---"] * (len(horizons) + 1))]
    titles = {
        "share": "share of pixels in sight",
        "dream": "dream PSNR, dB",
        "copy": "last context frame PSNR, dB",
        "oracle": "oracle PSNR, dB",
        "codec": "codec alone PSNR, dB",
    }
    for name, title in titles.items():
        digits = 2 if name == "share" else 1
        cells = [
            f"{found[name]['at'][h]:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
            for h, (low, high) in ((h, found[name]["interval"][h]) for h in horizons)
        ]
        lines.append(markdown_row(title, *cells))
    return [*lines, "", f"In sight: {found['means']}."]
