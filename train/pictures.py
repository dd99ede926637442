"""Program: draw schedules. `python -m train.pictures --out docs/windows`.

Owns: the picture of a Window over a few auto-regressive steps, made of its levels alone. Knows no network.
"""

from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from train.core.options import parse_options, run_program
from train.reports.plots import save_figure
from worldmodel.errors import ConfigError
from worldmodel.windows import Schedule, Window, parse_schedule

LEVELS = LinearSegmentedColormap.from_list("levels", ["#fffdf5", "#f2a65a", "#3b1f5b"])
MEMORY, IN, OUT = "#dfe8e3", "#3b1f5b", "#2a8a57"
ROW = 1.7  # height of an auto-regressive step, in frames
MAX_NUMBERED = 12  # windows up to this size have their levels written in


@dataclass(frozen=True, kw_only=True)
class PicturesOptions:
    """Draw what each schedule does to the frames in flight."""

    out: Path
    """Folder of the pictures, one a schedule; made if missing."""
    schedules: tuple[str, ...] = ("next", "outpaint:6:2", "fifo:5", "rolling:4:4", "pyramid:6:2")
    """Schedules as text: next, outpaint:W:OVERLAP, fifo:W, rolling:W:SUBSTEPS, pyramid:W:DELTA or FILE.json."""
    steps: int = 3
    """Auto-regressive steps shown."""


def _draw_frames(axes: Axes, first: int, levels: tuple[float, ...], bottom: float, height: float) -> None:
    for j, level in enumerate(levels):
        place = (first + j + 0.04, bottom)
        axes.add_patch(Rectangle(place, 0.92, height, facecolor=LEVELS(level), edgecolor="black", linewidth=0.7))
        if len(levels) <= MAX_NUMBERED:
            color = "white" if level > 0.6 else "black"
            text = f"{level:.2f}".rstrip("0").rstrip(".")
            axes.text(first + j + 0.5, bottom + height / 2, text, ha="center", va="center", fontsize=7, color=color)


def draw_window(window: Window, title: str, num_steps: int) -> Figure:
    """Draw auto-regressive steps of a window, one below the other, frames of the video from left to right.

    Args:
        window: the schedule.
        title: what to write above.
        num_steps: steps to draw, at least 1.

    Raises:
        ConfigError: `num_steps` is below 1.
    """
    if num_steps < 1:
        raise ConfigError(f"steps must be at least 1; got {num_steps}")
    known = 2
    width = known + (num_steps - 1) * window.stride + window.size
    figure = Figure(figsize=(2.3 + 0.62 * (width + 1), 1.5 + 0.62 * ROW * num_steps))
    axes = figure.add_subplot()

    finished = slice(window.num_clean, window.num_clean + window.stride)

    for step in range(num_steps):
        first, top = known + step * window.stride, -ROW * step
        for frame in range(first):
            place = (frame + 0.04, top - 1.0)
            axes.add_patch(Rectangle(place, 0.92, 1.0, facecolor=MEMORY, edgecolor="#9aa8a0", linewidth=0.7))

        _draw_frames(axes, first, window.before, top - 0.48, 0.48)
        _draw_frames(axes, first, window.after, top - 1.0, 0.48)

        for frame in range(first + window.size - window.stride, first + window.size):
            axes.annotate(
                "", (frame + 0.5, top), (frame + 0.5, top + 0.32), arrowprops={"arrowstyle": "-|>", "color": IN}
            )
        for frame in range(first + finished.start, first + finished.stop):
            axes.annotate(
                "", (frame + 0.5, top - 1.32), (frame + 0.5, top - 1.0), arrowprops={"arrowstyle": "-|>", "color": OUT}
            )

        axes.text(-0.25, top - 0.24, f"step {step + 1}: before", ha="right", va="center", fontsize=8)
        axes.text(-0.25, top - 0.74, "after", ha="right", va="center", fontsize=8)

    axes.set(xlim=(-2.2, width + 0.2), ylim=(-ROW * num_steps + 0.2, 0.5), aspect="equal")
    axes.set_xticks([frame + 0.5 for frame in range(width)], [str(frame + 1) for frame in range(width)], fontsize=8)
    axes.set_xlabel("frame of the video", fontsize=9)
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_title(title, fontsize=10)
    return figure


def _title(schedule: Schedule) -> str:
    window = schedule.window
    lag = window.input_lag
    return (
        f"{schedule.name}: {window.size} in flight, {window.stride} finished a step, input lag {lag}\n"
        "violet arrow: enters as noise; green arrow: finished; green cells: memory"
    )


def draw_pictures(options: PicturesOptions) -> list[Path]:
    """Draw every schedule of the options.

    Returns:
        the files, named after the schedules: `fifo:5` becomes `fifo_5.png`.

    Raises:
        WindowError: a schedule is not understood. ConfigError: no schedule or no step. StorageError: cannot write.
    """
    if not options.schedules:
        raise ConfigError("schedules must name at least one schedule, such as next or fifo:5; got none")
    drawn = []
    for text in options.schedules:
        schedule = parse_schedule(text)
        name = (Path(text).stem if text.endswith(".json") else text).replace(":", "_")
        drawn.append(options.out / f"{name}.png")
        save_figure(drawn[-1], draw_window(schedule.window, _title(schedule), options.steps), 80)
    return drawn


def main() -> None:
    """Parse options, draw, say where."""
    for path in draw_pictures(parse_options(PicturesOptions, "python -m train.pictures")):
        print(path)


if __name__ == "__main__":
    run_program(main)
