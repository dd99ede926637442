"""What a report looks like: plots, contact sheets of dreams, the summary in markdown.

Owns: pictures and text made of measured values. Does not know how they were measured.
"""

import io
from collections.abc import Sequence
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


def _number(value: float | None, digits: int = 2) -> str | None:
    return None if value is None else f"{value:.{digits}f}"


def _in_sight_lines(found: dict[str, Any], horizons: Sequence[str]) -> list[str]:
    lines = ["## Likeness in sight", ""]
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


def _sharpness_lines(found: dict[str, Any]) -> list[str]:
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


def write_summary(path: Path, report: dict[str, Any]) -> None:
    """Write the report as markdown.

    Raises:
        StorageError: the file cannot be written.
    """
    horizons = list(report["psnr"])
    lines = ["# Measured on held-out scenes", ""]
    settings = report["settings"]
    lines.append(
        f"{report['cases']} cases from {report['held_out']['scenes']} scenes, {settings['context']} real context "
        f"frames, then true actions; {settings['denoising_steps']} denoising steps, {settings['memory_frames']} frames "
        f"of memory, {settings['device']} ({settings['dtype']}), {report['seconds']} s."
    )
    lines += ["", markdown_row("frame", *horizons), markdown_row(*["---"] * (len(horizons) + 1))]
    for title, key, digits in (
        ("dream PSNR, dB", "psnr", 2),
        ("last context frame PSNR, dB", "copy_last", 2),
        ("codec alone PSNR, dB", "codec_ceiling", 2),
        ("margin over last frame, dB", "margin_over_copy_last", 2),
        ("dream SSIM", "ssim", 3),
        ("last context frame SSIM", "copy_last_ssim", 3),
        ("codec alone SSIM", "codec_ceiling_ssim", 3),
    ):
        lines.append(markdown_row(title, *(_number(report[key][h], digits) for h in horizons)))
    for title, key in (
        ("dream PSNR, 95% interval over episodes", "psnr_interval"),
        ("last context frame PSNR, 95% interval", "copy_last_interval"),
        ("margin, 95% interval over episodes", "margin_interval"),
    ):
        lines.append(markdown_row(title, *(f"{low:.1f} to {high:.1f}" for low, high in report[key].values())))
    lines += ["", report["psnr_means"] + ".", "", *_in_sight_lines(report["in_sight"], horizons)]
    lines += ["", "## Action accuracy", ""]
    names = ("turn", "walk", *report["action_response"]["counts"])
    lines += [markdown_row("share right", *names), markdown_row(*["---"] * (len(names) + 1))]
    for title, key in (("dream", "action_response"), ("real frames, same measure", "action_response_real")):
        found = report[key]
        counts = [found["counts"].get(name) for name in names]
        cells = (
            None if found[name] is None else f"{found[name]:.3f}" + (f" (n={count})" if count else "")
            for name, count in zip(names, counts, strict=True)
        )
        lines.append(markdown_row(title, *cells))
    lines += ["", report["action_response"]["rule"] + "."]
    if "drift" in report:
        (first, last), actions = report["sharpness_frames"], report["long_actions"]
        lines += ["", "## Long dreams", ""]
        lines.append(
            f"{report['long_dreams']} dreams, {actions} actions. Gradient energy over that of real play, "
            f"frames {first} to {last}: **{report['sharpness_ratio']:.2f}** (codec alone "
            f"{report['sharpness_ratio_codec']:.2f})."
        )
        lines += [
            "",
            markdown_row("frames", "sharpness ratio", "color distance, levels", "PSNR, dB"),
            markdown_row(*["---"] * 4),
        ]
        for part in report["drift"]:
            values = _number(part["sharpness_ratio"]), _number(part["color_distance"], 1), _number(part["psnr"])
            lines.append(markdown_row(f"{part['frames'][0]} to {part['frames'][1]}", *values))
        lines += ["", *_sharpness_lines(report["sharpness"])]
    lines += [
        "",
        "## Heads",
        "",
        markdown_row("head", "precision", "recall", "F1", "predicted", "true"),
        markdown_row(*["---"] * 6),
    ]
    for name in ("reward", "terminated"):
        scores = report[name]
        shares = (_number(scores[key]) for key in ("precision", "recall", "f1"))
        lines.append(markdown_row(name, *shares, scores["predicted"], scores["true"]))
    if report["command"]:
        lines += ["", f"`{report['command']}`"]
    write_file(path, ("\n".join(lines) + "\n").encode())
