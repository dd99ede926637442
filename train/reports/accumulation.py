"""What the report on error accumulation shows: correlations of predicted with measured decay, plots, a table.

Owns: which predicted value is held against which measured one, and the pictures. Measures nothing itself.
"""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from train.reports.plots import markdown_row, save_figure
from worldmodel.analysis.correlation import LEAST, rank_correlation
from worldmodel.analysis.prediction import predicted_curve

UNRELATED = "frames of another case"
REFERENCES = ("codec alone", "last frame held", UNRELATED)
SATURATED = 0.5
"""A segment is saturated where the mean error of all schedules exceeds this share of that of unrelated frames."""
NOTES = (
    "PSNR is that of the squared error averaged over cases and frames. Perceptual: LPIPS-like distance of unit-length "
    "EfficientNet-Lite0 features, no fitted weights; it is not LPIPS. FD-lite0: Frechet distance of the network's "
    "pooled features under a fixed random projection; frames and dimensions stand beside it. It is biased upwards for "
    "few frames, and neighboring frames are alike: compare schedules with one another and with the row of the truth "
    "against itself (half the frames, so above the floor), not with figures from elsewhere. It is no FID. The frames "
    "of another case are the same set in another order: their FD-lite0 is 0 by construction.",
    "Predicted from single denoising steps on other real clips, without a rollout, per completed frame, squared errors "
    "a latent number. distance: velocity error over the levels visited, a bound on the squared distance from the truth "
    "(it contains what no network could know). irreducible: the same with all earlier frames clean, for the same "
    "network; score = distance - irreducible, 0 for next-frame by this choice. discretization: one step against two "
    "halves. divergence: score + discretization + noise initialization (0: every window starts from pure noise).",
    "Distance is meant for measures against the truth (PSNR, SSIM, perceptual), divergence for those of whole sets "
    "(FD-lite0); the headline adds the initialization stage to the distance. Where the error of a segment exceeds "
    f"{SATURATED:.0%} of that of unrelated frames it is called "
    "saturated: dreams are lost there, and what still differs is how blurred they are, which the per-step error does "
    "not rank. The headline is the last segment that is not saturated, or the first where all are. decay_db: PSNR of "
    "the first minus that of the last whole segment; its prediction lets the cumulative sum end at the distance of "
    "unrelated latents. A schedule that is far off within the first segment has little left to lose: more error a step "
    "then means less decay.",
)


def _columns(report: dict[str, Any]) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
    """Return predicted and measured values of the schedules, a row a schedule, by name."""
    names, measured, saturation = list(report["predicted"]), report["measured"], report["unrelated_distance"]
    spans = [row["frames"] for row in measured[names[0]]["segments"]]
    sums, curves = (
        {name: predicted_curve(report["predicted"][name], spans[-1][1], end) for name in names}
        for end in (None, saturation)
    )
    whole = max(1, sum(stop - start == spans[0][1] - spans[0][0] for start, stop in spans))
    predicted: dict[str, list[Any]] = {"decay_db": []}
    ours: dict[str, list[Any]] = {"decay_db": []}
    for name in names:
        parts = [sums[name][:, start - 1 : stop].mean(1).numpy() for start, stop in spans]
        first, last = (curves[name][:, spans[i][0] - 1 : spans[i][1]].mean(1).numpy() for i in (0, whole - 1))
        errors = np.maximum(np.array(measured[name]["cases"]["mse"]), 1e-5)
        predicted["decay_db"].append(10 * np.log10(last / first))
        ours["decay_db"].append(10 * np.log10(errors[:, whole - 1] / errors[:, 0]))
        for kind in ("distance", "divergence"):
            predicted.setdefault(kind, []).append(report["predicted"][name]["cases"][kind])
        for part in ("score", "discretization"):
            predicted.setdefault(part, []).append([report["predicted"][name][part]])
        for i, (start, stop) in enumerate(spans):
            label = f"{start}-{stop}"
            predicted.setdefault(f"distance at {label}", []).append(parts[i])
            ours.setdefault(f"mse {label}", []).append(errors[:, i])
            row = measured[name]["segments"][i]
            ours.setdefault(f"1 - ssim {label}", []).append([1 - row["ssim"]])
            if "perceptual" in row:
                ours.setdefault(f"perceptual {label}", []).append(np.array(measured[name]["cases"]["perceptual"])[:, i])
                ours.setdefault(f"fd_lite0 {label}", []).append([row["fd_lite0"]])
    return predicted, ours


def correlate(report: dict[str, Any], seed: int) -> dict[str, Any]:
    """Return the rank correlations of predicted with measured decay over schedules.

    Args:
        report: with `predicted`, `measured` and `unrelated_distance`.
        seed: of the bootstrap.

    Returns:
        `headline` (predicted distance against the squared error of the last segment that is not saturated), `decay_db`
        (both sides in dB), both with 95% intervals; `saturated`, a claim a segment; `parts`: rho of every part with
        every measure. Empty values for fewer than 3 schedules.
    """
    names, measured = list(report["predicted"]), report["measured"]
    spans = [row["frames"] for row in measured[names[0]]["segments"]]
    means = [np.mean([measured[name]["segments"][i]["mse"] for name in names]) for i in range(len(spans))]
    unrelated = [row["mse"] for row in measured[UNRELATED]["segments"]]
    saturated = [bool(mean > SATURATED * far) for mean, far in zip(means, unrelated, strict=True)]
    if len(names) < LEAST:
        return {"headline": None, "decay_db": None, "saturated": saturated, "parts": {}}
    chosen = max((i for i, is_lost in enumerate(saturated) if not is_lost), default=0)
    label = "{}-{}".format(*spans[chosen])
    predicted, ours = _columns(report)
    headline = rank_correlation(predicted[f"distance at {label}"], ours[f"mse {label}"], seed=seed)
    decay = rank_correlation(predicted["decay_db"], ours["decay_db"], seed=seed)
    kinds = ("distance", "divergence", "score", "discretization", "decay_db")
    parts = {
        kind: {
            name: rank_correlation(predicted[kind], values, draws=1, seed=seed)["rho"] for name, values in ours.items()
        }
        for kind in kinds
    }
    return {"headline": headline | {"frames": spans[chosen]}, "decay_db": decay, "saturated": saturated, "parts": parts}


def plot_segments(path: Path, report: dict[str, Any]) -> None:
    """Plot every measure by segment, a line a schedule; the long rollouts below.

    Raises:
        StorageError: the file cannot be written.
    """
    names = list(report["predicted"])
    runs = [run for run in ("measured", "measured_long") if run in report]
    titles = {"psnr": "PSNR, dB", "ssim": "SSIM", "perceptual": "perceptual (LPIPS-like)", "fd_lite0": "FD-lite0"}
    shown = [key for key in titles if key in report["measured"][names[0]]["segments"][0]]
    figure = Figure(figsize=(4.2 * len(shown), 3.6 * len(runs)), layout="constrained")
    grid = figure.subplots(len(runs), len(shown), squeeze=False)
    for axes_row, run in zip(grid, runs, strict=True):
        for axes, key in zip(axes_row, shown, strict=True):
            for index, name in enumerate([*names, *REFERENCES[:2]]):
                rows = report[run][name]["segments"]
                style = {"color": f"C{index % 10}", "linestyle": "-" if index < 10 else "-."}
                if name in REFERENCES:
                    style = {"color": "black", "linestyle": ":" if name == REFERENCES[0] else "--"}
                axes.plot(
                    [row["frames"][1] for row in rows], [row[key] for row in rows], marker=".", label=name, **style
                )
            axes.set(xlabel="frames dreamt (end of segment)", title=titles[key])
            axes.grid(alpha=0.3)
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    save_figure(path, figure)


def plot_correlation(path: Path, report: dict[str, Any]) -> None:
    """Plot predicted against measured values: the headline segment and the decay in dB, a point a schedule.

    Raises:
        StorageError: the file cannot be written.
    """
    names = list(report["predicted"])
    predicted, ours = _columns(report)
    headline = report["correlation"]["headline"]
    label = "{}-{}".format(*(headline or {"frames": report["measured"][names[0]]["segments"][0]["frames"]})["frames"])
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    pairs = (
        (f"distance at {label}", f"mse {label}", f"frames {label}", headline),
        ("decay_db", "decay_db", "decay, first to last segment, dB", report["correlation"]["decay_db"]),
    )
    for axes, (theirs, mine, title, found) in zip(figure.subplots(1, 2), pairs, strict=True):
        for index, name in enumerate(names):
            x, y = float(np.mean(predicted[theirs][index])), float(np.mean(ours[mine][index]))
            axes.plot(x, y, "o", color=f"C{index % 10}")
            axes.annotate(name, (x, y), textcoords="offset points", xytext=(5, 3), fontsize=8)
        if found and found["rho"] is not None:
            title += f"\nrank correlation {found['rho']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"
        axes.set(xlabel=f"predicted without a rollout: {theirs}", ylabel=f"measured: {mine}", title=title)
        axes.grid(alpha=0.3)
    save_figure(path, figure)


def _row(*cells: object) -> str:
    return markdown_row(*(f"{cell:.4g}" if isinstance(cell, float) else cell for cell in cells))


def accumulation_lines(report: dict[str, Any]) -> list[str]:
    """Return the report as lines of markdown: rollouts, prediction, and how well the one ranks the other."""
    runs = [run for run in ("measured", "measured_long") if run in report]
    lines = [line for run in runs for line in _rollout_lines(report[run], list(report["predicted"]))]
    lines += [*_prediction_lines(report["predicted"]), "", *_correlation_lines(report["correlation"])]
    for note in NOTES:
        lines += ["", note]
    return lines


def _rollout_lines(run: dict[str, Any], names: list[str]) -> list[str]:
    """Return a table for each measure of the rollouts of one length."""
    first = run[names[0]]
    spans = ["{}-{}".format(*row["frames"]) for row in first["segments"]]
    lines = [f"### {first['num_cases']} rollouts of {first['segments'][-1]['frames'][1]} frames", ""]
    for key in ("psnr", "ssim", "perceptual", "fd_lite0"):
        if key not in first["segments"][0]:
            continue

        size = ", {fd_frames} frames in {fd_dims} dimensions" if key == "fd_lite0" else ""
        lines += [f"{key}{size}".format(**first["segments"][0]), "", _row("schedule", *spans, "first - last")]
        lines.append(_row(*["---"] * (len(spans) + 2)))
        for name in [*names, *REFERENCES]:
            values = [row[key] for row in run[name]["segments"]]
            lines.append(_row(name, *values, values[0] - values[-1]))

        if key == "fd_lite0":
            floor = [row["fd_lite0_of_truth"] for row in first["segments"]]
            lines.append(_row("truth, half against half", *floor, ""))
        lines.append("")
    return lines


def _prediction_lines(predicted: dict[str, Any]) -> list[str]:
    """Return a table of the parts of the error of one step, a row a schedule."""
    parts = ("distance_rate", "irreducible", "score", "discretization", "noise_initialization", "divergence_rate")
    lines = ["### Predicted without a rollout, per completed frame", "", _row("schedule", *parts, "initialization")]
    lines.append(_row(*["---"] * (len(parts) + 2)))
    for name, found in predicted.items():
        lines.append(_row(name, *(found[part] for part in parts), found["initialization"]["velocity"]))
    return lines


def _correlation_lines(correlation: dict[str, Any]) -> list[str]:
    """Return the rank correlations: those with intervals as a list, those of every part as a table."""
    lines = ["### Rank correlation", ""]
    for title in ("headline", "decay_db"):
        rho = correlation[title]
        if rho and rho["rho"] is not None:
            interval = f"{rho['rho']:.2f}, 95% interval {rho['low']:.2f} to {rho['high']:.2f}"
            at = ", distance against mse of frames {} to {}".format(*rho["frames"]) if "frames" in rho else ""
            lines.append(f"- {title}{at}: {interval}, {rho['schedules']} schedules")
    lost = [str(i + 1) for i, is_lost in enumerate(correlation["saturated"]) if is_lost]
    lines.append(f"- saturated segments: {', '.join(lost) or 'none'}")

    if correlation["parts"]:
        kinds = list(correlation["parts"])
        lines += ["", _row("measured", *kinds), _row(*["---"] * (len(kinds) + 1))]
        for name in correlation["parts"][kinds[0]]:
            found = [correlation["parts"][kind][name] for kind in kinds]
            lines.append(_row(name, *(None if value is None else f"{value:.2f}" for value in found)))
    return lines
