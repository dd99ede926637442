"""What a study looks like: a table beside the paper's, the recall-decay plot, and the text around them.

Owns: the files of the report, made from results alone. Does not know how they came about.
"""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from train.core.options import save_json
from train.reports.plots import save_figure
from worldmodel.analysis.recall import BINS, bin_name
from worldmodel.files import write_file

_PAPER_BINS = [bin_name(span) for span in BINS[:3]]
_ALL_BINS = [bin_name(span) for span in BINS]
_MARKS = {"summary": "*", "prepend": "o", "channel": "s", "cross": "X"}


def _rate(table: dict[str, Any], name: str) -> str:
    found = table[name]
    if found["rate"] is None:
        return "-"
    return f"{found['rate']:.2f} ({found['low']:.2f}-{found['high']:.2f})"


def _of_paper(structure: dict[str, Any]) -> str:
    return " / ".join(f"{rate:.2f}" for rate in structure["paper"]) if structure["paper"] else "-"


def recall(result: dict[str, Any], bins: list[str] | None = None) -> float:
    """Return the mean rate over bins with cases, default the paper's."""
    rates = [result["needle"]["bins"][name]["rate"] for name in bins or _PAPER_BINS]
    known = [rate for rate in rates if rate is not None]
    return float(np.mean(known)) if known else float("nan")


def margin(result: dict[str, Any], frame: int = 4) -> float:
    """Return the PSNR over copying the last frame, dB, at a frame."""
    return float(result["decay"]["curves"]["psnr"][frame - 1] - result["copy_last_psnr"][frame - 1])


def recall_table(results: list[dict[str, Any]]) -> list[str]:
    """Return the table of retrieval rates, ours beside the paper's, in markdown."""
    lines = [
        "| structure | " + " | ".join(f"D {name}" for name in _ALL_BINS) + " | paper, D 0-16 / 16-48 / 48-112 |",
        "|---" * (len(_ALL_BINS) + 2) + "|",
    ]
    for result in results:
        bins = result["needle"]["bins"]
        rates = " | ".join(_rate(bins, name) for name in _ALL_BINS)
        lines.append(f"| {result['structure']['name']} | {rates} | {_of_paper(result['structure'])} |")
    return lines


def control_table(results: list[dict[str, Any]]) -> list[str]:
    """Return the table of controls, in markdown: of every structure with a short and with a shuffled memory."""
    lines = ["| control | " + " | ".join(f"D {name}" for name in _ALL_BINS) + " |", "|---" * (len(_ALL_BINS) + 1) + "|"]
    shared = {"truth": "the truth", "codec": "the truth through the codec", "copy_last": "copy of the last frame"}
    first = results[0]["needle"]
    for name, title in shared.items():
        if name in first["controls"]:
            rates = " | ".join(_rate(first["controls"][name], span) for span in _ALL_BINS)
            lines.append(f"| {title} | {rates} |")
    constant = first["constant_guess"]
    rates = " | ".join("-" if constant[span] is None else f"{constant[span]:.2f}" for span in _ALL_BINS)
    lines.append(f"| always the most frequent answer | {rates} |")
    for result in results:
        for name, title in (("short_memory", "memory shorter than D"), ("shuffled_memory", "shuffled memory")):
            table = result["needle"]["controls"].get(name)
            if table:
                rates = " | ".join(_rate(table, span) for span in _ALL_BINS)
                lines.append(f"| {result['structure']['name']}, {title} | {rates} |")
    return lines


def decay_table(results: list[dict[str, Any]]) -> list[str]:
    """Return PSNR by segment, decay, margin and cost, in markdown."""
    lines = [
        "| structure | PSNR by 16 frames, dB | decay, dB | over copy at frame 4, dB | parameters | MFLOP a call | "
        "KiB a dream | trained, frames | minutes |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        segments = " / ".join(f"{row['psnr']:.1f}" for row in result["decay"]["segments"])
        cost, training = result["cost"], result["training"]
        lines.append(
            f"| {result['structure']['name']} | {segments} | {result['decay']['decay_db']:.1f} | "
            f"{margin(result):.1f} | "
            f"{cost['parameters'] / 1e6:.2f} M | {cost['flops_a_call'] / 1e6:.1f} | "
            f"{cost['bytes_a_dream'] / 1024:.0f} | {training['frames']:,} | "
            f"{training['minutes']:.1f} |"
        )
    return lines


def plot_pareto(path: Path, results: list[dict[str, Any]]) -> None:
    """Draw recall against decay, a mark a structure.

    Raises:
        StorageError: the file cannot be written.
    """
    figure = Figure(figsize=(7.5, 5.5), layout="constrained")
    axes = figure.subplots()
    for result in results:
        structure = result["structure"]
        x, y = result["decay"]["decay_db"], recall(result)
        mark = axes.scatter([x], [y], marker=_MARKS.get(structure["memory"], "o"), s=70)
        axes.annotate(
            structure["name"],
            (x, y),
            textcoords="offset points",
            xytext=(5, 4),
            fontsize=7,
            color=mark.get_facecolor()[0],
        )
    axes.set(
        xlabel="decay over 64 frames: PSNR of the first 16 minus the last 16, dB (left is better)",
        ylabel="recall: mean retrieval rate over D 0-16, 16-48, 48-112",
        title="Recall against decay",
    )
    axes.grid(alpha=0.3)
    save_figure(path, figure)


def write_report(out: Path, results: list[dict[str, Any]], settings: dict[str, Any]) -> None:
    """Write `results.json`, `tables.md` and `pareto.png`.

    Args:
        out: folder, made if missing.
        results: of `train.study.measure_structure`, in the order of the table.
        settings: what the study was.

    Raises:
        StorageError: a file cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    first = results[0]["needle"]
    counts = ", ".join(f"{name}: {first['bins'][name]['cases']}" for name in _ALL_BINS)

    text = [
        "# Memory structures: tables",
        "",
        "Made by `python -m train.study`; the text is in README.md. Rates have Wilson intervals of 95%.",
        "",
        f"Cases a bin: {counts}, of {first['scenes']} held-out scenes. Place classifier on real held-out frames: "
        f"{first['classifier']['accuracy']:.3f}. Each structure trained {settings['steps_of_each']:,} steps on the "
        "trunk.",
        "",
        "## Recall",
        "",
        *recall_table(results),
        "",
        "## Decay and cost",
        "",
        *decay_table(results),
        "",
        "## Controls",
        "",
        *control_table(results),
        "",
    ]

    write_file(out / "tables.md", "\n".join(text).encode())
    plot_pareto(out / "pareto.png", results)
    save_json(out / "results.json", {"settings": settings, "results": results})
