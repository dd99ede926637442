"""What a report looks like: plots, contact sheets of dreams, the summary in markdown.

Owns: pictures and text made of measured values. Does not know how they were measured.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from train.reports.sheets import caption_frame, save_picture, tile_frames
from worldmodel.files import write_file

SHEET_PIXELS = 128  # frames smaller than this are enlarged in sharp blocks


def save_sheet(path: Path, rows: Sequence[tuple[str, torch.Tensor]], labels: Sequence[int]) -> None:
    """Write a contact sheet with a clip on each row.

    Args:
        path: a `.png` file.
        rows: pairs (caption, frames uint8 (len(labels), H, W, 3)).
        labels: frame numbers, written beside the captions.

    Raises:
        StorageError: the file cannot be written.
    """
    scale = max(1, SHEET_PIXELS // rows[0][1].shape[2])
    pictures = [
        [caption_frame(frame, f"{caption} {label}", scale) for frame, label in zip(clip.numpy(), labels, strict=True)]
        for caption, clip in rows
    ]
    save_picture(path, tile_frames(pictures))


def save_figure(path: Path, figure: Figure, dpi: int = 110) -> None:
    """Write a figure as PNG, whole or not at all.

    Raises:
        StorageError: the file cannot be written.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, bbox_inches="tight")
    write_file(path, buffer.getvalue())


def plot_likeness(path: Path, report: dict[str, Any]) -> None:
    """Plot PSNR over frames: dream, last context frame, codec.

    Raises:
        StorageError: the file cannot be written.
    """
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    steps = range(1, len(report["curves"]["psnr"]) + 1)
    axes.plot([int(h) for h in report["codec_ceiling"]], report["codec_ceiling"].values(), "k--", label="codec alone")
    axes.plot(steps, report["curves"]["psnr"], color="tab:blue", label="dream")
    axes.plot(steps, report["curves"]["copy_last"], color="tab:orange", label="last context frame")
    axes.plot([int(h) for h in report["psnr"]], report["psnr"].values(), "o", color="tab:blue")
    axes.set_xscale("log", base=2)
    axes.set_xticks([int(h) for h in report["psnr"]], list(report["psnr"]))
    axes.set(
        xlabel="frames dreamt", ylabel="PSNR, dB", title=f"Likeness to the truth, {report['cases']} held-out cases"
    )
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(path, figure)


def plot_drift(path: Path, drift: Sequence[dict[str, Any]]) -> None:
    """Plot sharpness, color and PSNR of long dreams, segment by segment.

    Raises:
        StorageError: the file cannot be written.
    """
    figure = Figure(figsize=(11, 3.5), layout="constrained")
    at = [segment["frames"][1] for segment in drift]
    titles = {
        "sharpness_ratio": "gradient energy, dream / truth",
        "color_distance": "distance of mean and deviation\nof colors, levels",
        "psnr": "PSNR against the truth, dB",
    }
    shown = [name for name in titles if drift[0][name] is not None]
    for axes, name in zip(figure.subplots(1, len(shown)), shown, strict=True):
        axes.plot(at, [segment[name] for segment in drift], "o-", color="tab:blue")
        axes.set(xlabel="frames dreamt (end of segment)", title=titles[name])
        axes.grid(alpha=0.3)
        if name == "sharpness_ratio":
            axes.axhline(1.0, color="black", linestyle="--", linewidth=1)
            axes.set_ylim(bottom=0)
    save_figure(path, figure)


def markdown_row(*cells: object) -> str:
    """Return a row of a table in markdown; None is a dash."""
    return "| " + " | ".join("-" if cell is None else str(cell) for cell in cells) + " |"


def show_number(value: float | None, digits: int = 2) -> str | None:
    """Return a number as a cell of a table has it; None stays None."""
    return None if value is None else f"{value:.{digits}f}"


def events_table(scores: Mapping[str, dict[str, Any]]) -> list[str]:
    """Return a table in markdown of scores by `worldmodel.analysis.events.score_events`, a row a head."""
    lines = [markdown_row("head", "precision", "recall", "F1", "predicted", "true"), markdown_row(*["---"] * 6)]
    for name, found in scores.items():
        shares = (show_number(found[key]) for key in ("precision", "recall", "f1"))
        lines.append(markdown_row(name, *shares, found["predicted"], found["true"]))
    return lines
