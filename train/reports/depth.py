"""How good depths are: against recorded ones, by how frames predict each other, and how long they take.

Owns: the measures of `train.depth`, its report and its sheet.
"""

import statistics
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from train.core.options import save_json
from train.data.depth import DepthData
from train.losses.photometric import PosedFrames, photometric_loss
from train.reports.sheets import caption_frame, save_picture, tile_frames
from worldmodel.files import write_file
from worldmodel.frames import to_pixels
from worldmodel.memory.depth import DepthConfig, DepthNet

_ROWS = 10  # of the sheet
_MEANINGS = {
    "test_log_error_median": "median error of log depth against recorded depth, sky left out",
    "test_log_error_90": "90th percentile of it",
    "test_log_error_mean": "mean of it",
    "test_sky_share": "share of sky in recorded depth",
    "test_sky_found": "share of sky that is predicted as sky",
    "test_sky_false": "share of the rest that is predicted as sky",
    "test_photometric": "how little warped frames resemble each other, where they tell something",
    "test_copied": "how little frames resemble each other unwarped",
    "frame_ms": "time of a frame on one thread, ms",
    "frames_per_s_of_32": "frames a second on one thread, 32 at a time",
}


@torch.inference_mode()
def predict(net: DepthNet, frames: torch.Tensor) -> torch.Tensor:
    """Return depths float32 (N, H / 2, W / 2) of frames uint8 (N, H, W, 3)."""
    return torch.cat([net(to_pixels(part)) for part in frames.split(64)])


@torch.inference_mode()
def measure_depth(net: DepthNet, data: DepthData) -> dict[str, float]:
    """Return the measures that the data allows: `_MEANINGS` without "test_"."""
    found: dict[str, float] = {}
    config = net.config
    if data.depths is not None:
        predicted, true = predict(net, data.frames), data.depths.float().clamp(config.near, config.far)
        is_sky = true > config.horizon
        errors = (predicted.log() - true.log()).abs()[~is_sky].numpy()
        if errors.size:
            found["log_error_median"], found["log_error_90"] = map(float, np.percentile(errors, (50, 90)))
            found["log_error_mean"] = float(errors.mean())
            found["sky_false"] = float((predicted > config.horizon)[~is_sky].float().mean())
        found["sky_share"] = float(is_sky.float().mean())
        if is_sky.any():
            found["sky_found"] = float((predicted > config.horizon)[is_sky].float().mean())
    if len(data.centers):
        generator = torch.Generator().manual_seed(0)
        totals: dict[str, list[float]] = {}
        for _ in range(8):
            batch = data.sample(32, generator)
            _, scalars = photometric_loss(config, net.codes(batch["pixels"]), PosedFrames(**batch))
            for name in ("photometric", "copied"):
                totals.setdefault(name, []).append(float(scalars[name]))
        found |= {name: statistics.fmean(values) for name, values in totals.items()}
    return found


@torch.inference_mode()
def measure_speed(net: DepthNet) -> dict[str, float]:
    """Return the time of a frame alone, ms, and the rate of 32 at once, both on one CPU thread, medians."""
    threads, size, times = torch.get_num_threads(), net.config.image_size, []
    torch.set_num_threads(1)
    try:
        for count, rounds in ((1, 100), (32, 10)):
            pixels, taken = torch.zeros(count, 3, size, size), []
            for _ in range(rounds + 5):
                start = time.perf_counter()
                net(pixels)
                taken.append(time.perf_counter() - start)
            times.append(statistics.median(taken[5:]))
    finally:
        torch.set_num_threads(threads)
    return {"frame_ms": 1e3 * times[0], "frames_per_s_of_32": 32 / times[1]}


def paint_depth(depth: torch.Tensor, config: DepthConfig, size: int) -> np.ndarray:
    """Return a depth (h, w) in colors, near ones bright, uint8 (size, size, 3)."""
    code = config.to_code(depth.float())
    low, high = (float(config.to_code(torch.tensor(value))) for value in (config.far, 0.25))
    gray = ((code - low) / (high - low)).clamp(0, 1).mul(255).to(torch.uint8).numpy()
    large = cv2.resize(gray, (size, size), interpolation=cv2.INTER_NEAREST)
    return cv2.cvtColor(cv2.applyColorMap(large, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)


def draw_sheet(net: DepthNet, data: DepthData) -> np.ndarray:
    """Return frames beside their predicted depths and, where recorded, true ones; two of these to a row."""
    at = torch.linspace(0, len(data.frames) - 1, 2 * _ROWS).long()
    scale = max(1, 128 // net.config.image_size)
    rows: list[list[np.ndarray]] = []
    for place, (index, depth) in enumerate(zip(at.tolist(), predict(net, data.frames[at]), strict=True)):
        frame = data.frames[index].numpy()
        pictures = [caption_frame(frame, f"frame {index}", scale)]
        pictures += [caption_frame(paint_depth(depth, net.config, len(frame)), "depth", scale)]
        if data.depths is not None:
            pictures += [caption_frame(paint_depth(data.depths[index], net.config, len(frame)), "true depth", scale)]
        if place % 2 == 0:
            rows.append([])
        rows[-1] += pictures
    return tile_frames(rows)


def write_report(out: Path, content: dict[str, Any], net: DepthNet, data: DepthData) -> None:
    """Write report.json, report.md and depth.png.

    Raises:
        StorageError: a file cannot be written.
    """
    save_picture(out / "depth.png", draw_sheet(net, data))
    summary = content["summary"]
    lines = ["# Depth", "", "| measure | value |", "|---|---|"]
    lines += [f"| {text} | {summary[name]:.4g} |" for name, text in _MEANINGS.items() if name in summary]
    lines += [
        "",
        f"{summary['steps']} steps of {summary['minutes']:.1f} minutes, learned from: {summary['supervision']}.",
    ]
    lines += ["", "![frames, predicted depth, true depth](depth.png)", ""]
    write_file(out / "report.md", "\n".join(lines).encode())
    save_json(out / "report.json", content)
