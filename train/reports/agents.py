"""The report of agents: what they earned where, how much of the gap is closed, and how they learned.

Owns: the tables, the plot, and reading what `train.rl` has kept of each agent. Does not know how anything was measured.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from train.agents.scores import ROLES, summarize
from train.core.options import save_json
from train.reports.plots import markdown_row, save_figure, show_number
from worldmodel.errors import DataError
from worldmodel.files import write_file

WINDOW = 100  # episodes that a point of a curve is the mean of
COLORS = {"trained": "tab:blue", "control": "tab:green"}


def read_json(path: Path) -> dict[str, Any]:
    """Return what a JSON file holds.

    Raises:
        DataError: it is damaged.
    """
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is damaged ({error}): remove it and run the same command again") from error


def read_judgements(folder: Path, place: str, roles: tuple[str, ...]) -> tuple[list[int], dict[str, Any]]:
    """Return the seeds of which all roles are judged in a place, and by role what was found of each seed.

    Raises:
        DataError: a file is damaged.
    """
    files = {role: {_find_seed(path): path for path in folder.glob(f"{role}-*-{place}.json")} for role in roles}
    seeds = sorted(set.intersection(*(set(found) for found in files.values())))
    return seeds, {role: [read_json(files[role][seed]) for seed in seeds] for role in roles}


def _find_seed(path: Path) -> int:
    return int(path.stem.split("-")[1])


def compare(found: dict[str, Any], mode: str) -> dict[str, Any]:
    """Return scores of agents by role, with mean lengths, of actions drawn or greedy; those by chance are as drawn."""
    rows = {role: [judged.get(mode, judged["drawn"]) for judged in seeds] for role, seeds in found.items()}
    scores = summarize({role: [each["returns"] for each in seeds] for role, seeds in rows.items()})
    for role, seeds in rows.items():
        scores["agents"][role]["length"] = round(float(np.mean([each["lengths"] for each in seeds])), 2)
    return scores


def summarize_folder(out: Path, agents: Path) -> dict[str, Any]:
    """Return what is known of the agents of a run.

    Args:
        out: its folder.
        agents: that of the agents, a folder each.

    Returns:
        ready for JSON: `seeds` (those done), `judge` (mode -> scores), `train` (scores in the world that was learned
        in, or None), `learning` (agent -> what its file says).
    """
    seeds, found = read_judgements(out / "judged", "judge", ROLES)
    report: dict[str, Any] = {"seeds": seeds, "judge": {}, "train": None, "learning": {}}
    if seeds:
        report["judge"] = {mode: compare(found, mode) for mode in ("drawn", "greedy")}
        report["episodes"] = len(found["trained"][0]["drawn"]["returns"])
    train_seeds, found = read_judgements(out / "judged", "train", ROLES)
    if train_seeds:
        report["train"] = compare(found, "drawn") | {"seeds": train_seeds}
        report["train_episodes"] = len(found["trained"][0]["drawn"]["returns"])
    for path in sorted(agents.glob("*/agent.json")):
        report["learning"][path.parent.name] = read_json(path)["about"]
    return report


def write_report(out: Path, agents: Path, about: dict[str, Any]) -> dict[str, Any]:
    """Write `report.md`, `report.json` and `curves.png`.

    Args:
        out: folder of the run.
        agents: that of the agents, a folder each.
        about: what to say of it: `judge_id`, `settings`, `command`.

    Returns:
        the content of `report.json`.

    Raises:
        StorageError: a file cannot be written. DataError: a result is damaged.
    """
    report = about | summarize_folder(out, agents)
    save_json(out / "report.json", report)
    write_file(out / "report.md", ("\n".join(report_lines(report)) + "\n").encode())
    plot_curves(out / "curves.png", agents)
    return report


def report_lines(report: dict[str, Any]) -> list[str]:
    """Return a report as lines of markdown."""
    names = {role: name_agent(report, role) for role in ROLES}
    lines = ["# Learned in one world, judged in another", ""]
    lines += [f"Judged in `{report['judge_id']}`; seeds {', '.join(map(str, report['seeds'])) or 'none yet'}."]
    for mode, scores in report["judge"].items():
        title = "actions drawn" if mode == "drawn" else "the likeliest actions"
        lines += ["", f"## Judged, {title}: {report['episodes']} episodes a seed", "", *score_table(scores, names)]
        lines += ["", describe_gap(scores["gap_closed"])]
    if report["train"] is not None:
        title = f"## In the world that was learned in: {report['train_episodes']} episodes a seed"
        lines += ["", title, "", *score_table(report["train"], names)]
    if report["learning"]:
        lines += ["", "## Learning", "", *learning_table(report["learning"])]
    lines += ["", "Intervals: 95%, seeds and the episodes of each drawn anew. ![curves](curves.png)"]
    return [*lines, "", f"`{report['command']}`"] if report["command"] else lines


def name_agent(report: dict[str, Any], role: str) -> str:
    """Return what a table calls the agents of a role: it, and where they learned."""
    worlds = {about["world"] for name, about in report["learning"].items() if name.split("-")[0] == role}
    return ", ".join([role, *(f"learned in `{world}`" for world in sorted(worlds))])


def score_table(scores: dict[str, Any], names: dict[str, str]) -> list[str]:
    """Return scores of agents as a table in markdown, given what it calls each role."""
    lines = [markdown_row("agent", "mean return", "95% interval", "steps", "by seed"), markdown_row(*["---"] * 5)]
    for role, found in scores["agents"].items():
        low, high = found["interval"]
        means = ", ".join(f"{mean:.2f}" for mean in found["seeds"])
        cells = show_number(found["mean"]), f"{low:.2f} to {high:.2f}", show_number(found["length"], 1), means
        lines.append(markdown_row(names[role], *cells))
    return lines


def describe_gap(gap: dict[str, Any] | None) -> str:
    """Return in words how much of the gap is closed."""
    if gap is None:
        return "Share of the gap closed: not known, as the control earns no more than chance."
    interval = "not known" if gap["interval"] is None else f"{gap['interval'][0]:.2f} to {gap['interval'][1]:.2f}"
    return f"Share of the gap from random to control that is closed: {gap['share']:.2f} (95% interval {interval})."


def learning_table(learning: dict[str, Any]) -> list[str]:
    """Return how agents learned as a table in markdown."""
    head = markdown_row("agent", "frames", "minutes", "processor minutes")
    rows = [
        markdown_row(
            name,
            about["frames"],
            show_number(about["seconds"] / 60, 1),
            show_number(about["processor_seconds"] / 60, 1),
        )
        for name, about in learning.items()
    ]
    return [head, markdown_row(*["---"] * 4), *rows]


def plot_curves(path: Path, agents: Path) -> None:
    """Plot what agents earned while learning, a line each: means of the last episodes.

    Raises:
        StorageError: the file cannot be written.
    """
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes, named = figure.add_subplot(), set()
    for file in sorted(agents.glob("*/curve.json")):
        curve, role = read_json(file), file.parent.name.split("-")[0]
        returns, size = np.array(curve["returns"]), min(WINDOW, len(curve["returns"]))
        if not size:
            continue
        means = np.convolve(returns, np.ones(size) / size, "valid")
        label = f"{role}, in {read_json(file.with_name('agent.json'))['about']['world']}"
        axes.plot(
            curve["frames"][size - 1 :], means, color=COLORS[role], alpha=0.8, label=None if role in named else label
        )
        named.add(role)
    axes.set(xlabel="frames", ylabel=f"mean return of the last {WINDOW} episodes", title="While learning")
    axes.grid(alpha=0.3)
    if named:
        axes.legend()
    save_figure(path, figure)
