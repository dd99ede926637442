"""Program: are targets kept, and can they be collected? `python -m train.spheres --checkpoint NAME_OR_DIR --data DIR`.

Owns: the options, the dreams that start with a target in view, the same walks in the real maze, and the report. Does
not know how targets are found in a picture or walked to (`envs.worlds.labmaze.targets`).
"""

import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from envs.data.episodes import EpisodeInfo, open_shards
from envs.worlds.labmaze.revisit import RealMaze
from envs.worlds.labmaze.targets import BINS, Start, TargetWalker, find_bin, find_starts, project, shows_target
from train.core.options import parse_options, run_program, save_json
from train.data.clips import list_episodes
from train.data.rollouts import Piece, dream_on, read_pieces
from train.reports.plots import markdown_row, save_sheet
from worldmodel.analysis.recall import wilson_interval
from worldmodel.errors import ConfigError, DataError, SeedError
from worldmodel.files import write_file
from worldmodel.world import WorldModel

SHOWN = 8
VERDICTS = {
    "seen_real": "seen later, true frame (control)",
    "seen_removed": "seen later, true frame without it (control)",
    "seen_dream": "seen later, dream",
    "collected_real": "collected, real maze",
    "collected_dream": "collected, dream",
    "paid_standing": "paid for standing still, dream (control)",
}
MEANS = (
    "starts: held-out frames with a sphere in view by true pose and depth; seen later: its color at its true place "
    "after recorded steps that keep it in view; collected: a reward within the steps of a walker that steers by the "
    "sphere's color and sees frames only, the same in both worlds; intervals: Wilson's, 95%"
)


@dataclass(frozen=True, kw_only=True)
class SpheresOptions:
    """Start dreams with a sphere in view: is it still there, and does walking to it pay?"""

    checkpoint: str
    """Name of a shipped world, or folder of a bundle."""
    data: Path
    """Folder of a recording with held-out ("test") shards."""
    out: Path
    """Folder of the report; made if missing."""
    cases: int = 40
    """Starts, about equally many of each size of the sphere."""
    context: int = 32
    """Real frames before every dream."""
    later: int = 8
    """Dreamt frames after which the sphere must still be seen."""
    walk_frames: int = 60
    """Steps that the walker has."""
    batch_size: int = 20
    """Dreams at once."""
    steps: int | None = None
    """Denoising steps a frame; default what the world says."""
    memory: int | None = None
    """Frames remembered; default what the world was trained with."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    seed: int = 0
    """Seed of the choice of cases and of the dreams."""

    def __post_init__(self) -> None:
        for name in ("cases", "context", "later", "walk_frames", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1; got {getattr(self, name)}")
        if self.seed < 0:
            raise SeedError(f"seed must be 0 or more; got {self.seed}")


def make_walker(start: Start) -> TargetWalker:
    """Return the walker of a start: it is told the color of the sphere and where it is in the first frame."""
    return TargetWalker(start.color, start.disc.column, start.disc.row)


def walk_real(maze: RealMaze, start: Start, first: np.ndarray, num_steps: int) -> bool:
    """Walk to the sphere in the real maze; return whether a reward came within `num_steps`.

    Args:
        maze: the real world.
        start: where to start.
        first: uint8 (H, W, 3), the frame of the start.
        num_steps: steps at most.
    """
    maze.put(start.episode, start.frame)
    walker, frame = make_walker(start), first
    for _ in range(num_steps):
        frame, reward, *_ = maze.env.step(walker.act(frame))
        if reward > 0:
            return True
    return False


def walk_dreams(
    model: WorldModel,
    given: dict[str, torch.Tensor],
    walkers: Sequence[TargetWalker] | None,
    num_steps: int,
    seeds: list[int],
    on_frames: Callable[[int], object],
) -> tuple[np.ndarray, torch.Tensor]:
    """Walk to the spheres in dreams, or stand still.

    Args:
        model: the world.
        given: `frames` uint8 (B, C, H, W, 3) and `actions` (B, C - 1) of the context.
        walkers: one a dream; None stands still.
        num_steps: steps at most; a dream that has paid stands still.
        seeds: B seeds.
        on_frames: told the number of frames dreamt after each step.

    Returns:
        bool (B,), whether a reward came; and the last frames before it, uint8 (B, H, W, 3).
    """
    state = model.reset(given["frames"], given["actions"].long(), seeds)
    frames = last = given["frames"][:, -1]
    has_paid = np.zeros(len(seeds), bool)
    for _ in range(num_steps):
        actions = [0] * len(seeds)
        if walkers is not None:
            actions = [0 if p else w.act(f) for w, f, p in zip(walkers, frames.numpy(), has_paid, strict=True)]
        last = torch.where(torch.from_numpy(has_paid)[:, None, None, None], last, frames)
        step = model.step(state, torch.tensor(actions))
        frames = step.frames.cpu()
        has_paid |= (step.rewards > 0).cpu().numpy()
        on_frames(len(seeds))
        if has_paid.all():
            break
    return has_paid, last


def judge_starts(
    model: WorldModel, maze: RealMaze, starts: list[Start], options: SpheresOptions, on_frames: Callable[[int], object]
) -> tuple[dict[str, np.ndarray], list[tuple[str, torch.Tensor]]]:
    """Return `VERDICTS` of one batch of starts, bool (B,) each, and a row of pictures for each start.

    A row shows the start; then the true frame, that frame without the sphere, and the dream; then the last frame the
    walker saw in its dream.
    """
    known, later = options.context, options.later
    pieces = [Piece(start.episode, start.frame - known + 1, known + later) for start in starts]
    given = read_pieces(pieces)
    seeds = [options.seed + start.frame + 1000 * start.target for start in starts]
    dream = dream_on(model, given["frames"][:, :known], given["actions"], seeds, on_frames).frames[:, -1]
    truth = given["frames"][:, -1]
    size = truth.shape[1]
    found: dict[str, list[bool]] = {name: [] for name in ("seen_real", "seen_removed", "seen_dream", "collected_real")}
    removed = []
    for number, start in enumerate(starts):
        pose, reached = maze.open(start.episode)
        then = start.frame + later
        disc = project(pose[then], maze.targets[start.target], size)
        if disc is None:
            raise DataError(f"sphere {start.target} is not ahead in frame {then} of {start.episode.key}")
        gone = reached[then].copy()
        gone[start.target] = True
        maze.env.set_targets_reached(gone)
        without = maze.env.render_pose(*map(float, pose[then]))
        removed.append(torch.from_numpy(without))
        pictures = {"seen_real": truth[number].numpy(), "seen_removed": without, "seen_dream": dream[number].numpy()}
        for name, picture in pictures.items():
            found[name].append(shows_target(picture, disc, start.color))
        first = given["frames"][number, known - 1].numpy()
        found["collected_real"].append(walk_real(maze, start, first, options.walk_frames))
    context = {"frames": given["frames"][:, :known], "actions": given["actions"][:, : known - 1]}
    walkers = [make_walker(start) for start in starts]
    collected, last = walk_dreams(model, context, walkers, options.walk_frames, seeds, on_frames)
    standing, _ = walk_dreams(model, context, None, options.walk_frames, seeds, on_frames)
    verdicts = {name: np.array(values, bool) for name, values in found.items()}
    verdicts |= {"collected_dream": collected, "paid_standing": standing}
    columns = torch.stack([given["frames"][:, known - 1], truth, torch.stack(removed), dream, last], 1)
    return verdicts, [("frame", row) for row in columns]


def measure_spheres(
    model: WorldModel, episodes: list[EpisodeInfo], options: SpheresOptions, on_frames: Callable[[int], object]
) -> tuple[dict[str, Any], list[tuple[str, torch.Tensor]]]:
    """Return the shares with their intervals, by size of the sphere and in all, and rows of pictures.

    Raises:
        DataError: the recording has no poses, its world no depth, or no frame has a sphere in view.
        MissingPackageError: a package of the world is not installed.
    """
    size, rng = model.codec.config.image_size, np.random.default_rng([options.seed, 14])
    rows: list[tuple[str, torch.Tensor]] = []
    parts: list[dict[str, np.ndarray]] = []
    with RealMaze(episodes[0]) as maze:
        starts = find_starts(maze, episodes, options.context, options.later, options.cases, rng, size)
        if not starts:
            raise DataError("no held-out frame has a sphere in view that later frames show again: record more episodes")
        for first in range(0, len(starts), options.batch_size):
            batch = starts[first : first + options.batch_size]
            verdicts, shown = judge_starts(model, maze, batch, options, on_frames)
            parts.append(verdicts)
            rows += shown
    found = {name: np.concatenate([part[name] for part in parts]) for name in VERDICTS}
    bins = np.array([find_bin(start.disc, size) for start in starts])
    table = {"all": summarize_verdicts(found)}
    for number, (low, high) in enumerate(BINS):
        table[f"{low:g} to {high:g} pixels"] = summarize_verdicts(
            {name: values[bins == number] for name, values in found.items()}
        )
    picks = [int(i) for i in np.linspace(0, len(rows) - 1, min(SHOWN, len(rows)))]
    return {"spheres": table, "cases": len(starts), "means": MEANS}, [rows[i] for i in picks]


def summarize_verdicts(found: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return count, share and Wilson interval of each verdict, and of dreams among those that the real maze pays."""
    named = found | {"collected_dream_where_real_is": found["collected_dream"][found["collected_real"]]}
    return {name: _share(values) for name, values in named.items()}


def _share(values: np.ndarray) -> dict[str, Any]:
    count, of = int(values.sum()), len(values)
    low, high = wilson_interval(count, of)
    share = round(count / of, 4) if of else None
    return {"count": count, "of": of, "share": share, "interval": [round(low, 4), round(high, 4)]}


def write_report(path: Path, report: dict[str, Any]) -> None:
    """Write the report as markdown.

    Raises:
        StorageError: the file cannot be written.
    """
    table = report["spheres"]
    lines = ["# Spheres", "", markdown_row("", *table), markdown_row(*["---"] * (len(table) + 1))]
    titles = VERDICTS | {"collected_dream_where_real_is": "collected, dream, where the walker gets it in the real maze"}
    for name, title in titles.items():
        cells = []
        for part in table.values():
            (low, high), value = part[name]["interval"], part[name]
            cells.append(f"{value['count']} of {value['of']} ({low:.2f} to {high:.2f})" if value["of"] else None)
        lines.append(markdown_row(title, *cells))
    lines += ["", f"{report['means']}.", "", f"`{report['command']}`"]
    write_file(path, ("\n".join(lines) + "\n").encode())


def run_spheres(model: WorldModel, options: SpheresOptions, command: str = "") -> dict[str, Any]:
    """Measure and write `report.json`, `report.md` and `spheres.png`; return the report.

    Raises:
        DataError: as `measure_spheres`. StorageError: a result cannot be written.
    """
    started = time.monotonic()
    shards = open_shards(options.data, "test", model.codec.config.image_size, model.num_actions)
    with tqdm(desc="dreaming", unit="frame", mininterval=2.0) as progress:
        found, rows = measure_spheres(model, list_episodes(shards), options, progress.update)
    settings = {"context": options.context, "later": options.later, "walk_frames": options.walk_frames}
    report = {**found, "settings": settings, "command": command, "denoising_steps": model.config.num_steps}
    report["seconds"] = round(time.monotonic() - started, 1)
    save_sheet(options.out / "spheres.png", rows, [0, options.later, options.later, options.later, options.walk_frames])
    write_report(options.out / "report.md", report)
    save_json(options.out / "report.json", report)
    return report


def main() -> None:
    """Parse options, measure, print the shares."""
    options = parse_options(SpheresOptions, "python -m train.spheres")
    model = WorldModel.load(
        options.checkpoint, device=options.device, num_steps=options.steps, memory_frames=options.memory
    )
    report = run_spheres(model, options, f"python -m train.spheres {shlex.join(sys.argv[1:])}")
    print(report["spheres"])


if __name__ == "__main__":
    run_program(main)
