"""Targets: what pays in a world, is it kept in dreams, and can it be collected?

Owns: the dreams that start with a target in view, the same walks in the real world, and the table. Does not know how
targets are found in a picture or walked to (`World.targets`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from envs.worlds.base import Targets, TargetStart, Walker
from train.data.rollouts import Piece, dream_on, in_batches, read_pieces
from train.measures.base import Bench, Measure
from train.reports.plots import markdown_row, save_sheet
from worldmodel.analysis.recall import wilson_interval
from worldmodel.errors import ConfigError, DataError
from worldmodel.world import WorldModel

SHOWN = 8
VERDICTS = {
    "seen_real": "seen later, true frame (control)",
    "seen_removed": "seen later, true frame without it (control)",
    "seen_dream": "seen later, dream",
    "collected_real": "collected, real world",
    "collected_dream": "collected, dream",
    "paid_standing": "paid for standing still, dream (control)",
}
MEANS = (
    "starts: held-out frames with a target in view, by the truth; seen later: at its true place after recorded steps "
    "that keep it in view; collected: a reward within the steps of a walker that sees frames only, the same in both "
    "worlds; intervals: Wilson's, 95%"
)


@dataclass(frozen=True)
class TargetsOptions:
    """Settings of the dreams.

    Attributes:
        cases: starts, about equally many of each size of the target.
        context: real frames before every dream.
        later: dreamt frames after which the target must still be seen.
        walk_frames: steps that the walker has.
    """

    cases: int = 40
    context: int = 32
    later: int = 8
    walk_frames: int = 60

    def __post_init__(self) -> None:
        for name in ("cases", "context", "later", "walk_frames"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1; got {getattr(self, name)}")


class TargetsMeasure(Measure):
    """Whether dreams keep what pays, and pay for it."""

    name = "targets"
    Options = TargetsOptions
    needs = ("recording", "targets")
    quick: ClassVar[dict[str, int]] = {"cases": 3, "walk_frames": 20}

    def num_frames(self, bench: Bench, options: TargetsOptions) -> int:
        """Return the most frames to dream."""
        return options.cases * (options.later + 2 * options.walk_frames)

    def run(self, bench: Bench, options: TargetsOptions) -> dict[str, Any]:
        """Measure, and write `targets.png`. Errors as `measure_targets`."""
        found, rows = measure_targets(bench, options)
        later, steps = options.later, options.walk_frames
        save_sheet(bench.out / "targets.png", rows, [0, later, later, later, steps])
        return found

    def lines(self, found: dict[str, Any]) -> list[str]:
        """Return a table by size."""
        table = found["targets"]
        lines = [markdown_row("", *table), markdown_row(*["---"] * (len(table) + 1))]
        titles = VERDICTS | {
            "collected_dream_where_real_is": "collected, dream, where the walker gets it in the real world"
        }
        for name, title in titles.items():
            cells = []
            for part in table.values():
                (low, high), value = part[name]["interval"], part[name]
                cells.append(f"{value['count']} of {value['of']} ({low:.2f} to {high:.2f})" if value["of"] else None)
            lines.append(markdown_row(title, *cells))
        return [*lines, "", f"{found['means']}."]


def walk_dreams(
    model: WorldModel,
    given: dict[str, torch.Tensor],
    walkers: Sequence[Walker] | None,
    num_steps: int,
    seeds: list[int],
    on_frames: Callable[[int], object],
) -> tuple[np.ndarray, torch.Tensor]:
    """Walk to the targets in dreams, or stand still.

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
    bench: Bench, targets: Targets, starts: Sequence[TargetStart], options: TargetsOptions
) -> tuple[dict[str, np.ndarray], list[tuple[str, torch.Tensor]]]:
    """Return `VERDICTS` of one batch of starts, bool (B,) each, and a row of pictures for each start.

    A row shows the start; then the true frame, that frame without the target, and the dream; then the last frame the
    walker saw in its dream.
    """
    known, later = options.context, options.later
    pieces = [Piece(start.episode, start.frame - known + 1, known + later) for start in starts]
    given = read_pieces(pieces)
    seeds = [bench.seed + start.frame + 1000 * start.target for start in starts]
    dream = dream_on(bench.model, given["frames"][:, :known], given["actions"], seeds, bench.on_frames).frames[:, -1]
    truth = given["frames"][:, -1]
    found: dict[str, list[bool]] = {name: [] for name in ("seen_real", "seen_removed", "seen_dream", "collected_real")}
    removed = []
    for number, start in enumerate(starts):
        then = start.frame + later
        without = targets.without(start, then)
        removed.append(torch.from_numpy(without))
        pictures = {"seen_real": truth[number].numpy(), "seen_removed": without, "seen_dream": dream[number].numpy()}
        for name, picture in pictures.items():
            found[name].append(targets.is_shown(start, then, picture))
        first = given["frames"][number, known - 1].numpy()
        found["collected_real"].append(targets.reaches(start, first, options.walk_frames))

    context = {"frames": given["frames"][:, :known], "actions": given["actions"][:, : known - 1]}
    walkers = [targets.walker(start) for start in starts]
    steps = options.walk_frames
    collected, last = walk_dreams(bench.model, context, walkers, steps, seeds, bench.on_frames)
    standing, _ = walk_dreams(bench.model, context, None, steps, seeds, bench.on_frames)
    verdicts = {name: np.array(values, bool) for name, values in found.items()}
    verdicts |= {"collected_dream": collected, "paid_standing": standing}
    columns = torch.stack([given["frames"][:, known - 1], truth, torch.stack(removed), dream, last], 1)
    return verdicts, [("frame", row) for row in columns]


def measure_targets(bench: Bench, options: TargetsOptions) -> tuple[dict[str, Any], list[tuple[str, torch.Tensor]]]:
    """Return the shares with their intervals, by size of the target and in all, and rows of pictures.

    Raises:
        DataError: the world does not tell what pays in it, or no frame has a target in view.
        MissingPackageError: a package of the world is not installed.
    """
    rng = np.random.default_rng([bench.seed, 14])
    rows: list[tuple[str, torch.Tensor]] = []
    parts: list[dict[str, np.ndarray]] = []
    with bench.world.targets(bench.episodes[0], bench.model.codec.config.image_size) as targets:
        starts = targets.find(bench.episodes, options.context, options.later, options.cases, rng)
        if not starts:
            raise DataError("no held-out frame has a target in view that later frames show again: record more episodes")
        for batch in in_batches(starts, bench.batch_size):
            verdicts, shown = judge_starts(bench, targets, batch, options)
            parts.append(verdicts)
            rows += shown
        sizes, names = np.array([targets.size_of(start) for start in starts]), targets.sizes
    found = {name: np.concatenate([part[name] for part in parts]) for name in VERDICTS}
    table = {"all": summarize_verdicts(found)}
    for number, name in enumerate(names):
        table[name] = summarize_verdicts({verdict: values[sizes == number] for verdict, values in found.items()})
    picks = [int(i) for i in np.linspace(0, len(rows) - 1, min(SHOWN, len(rows)))]
    return {"targets": table, "cases": len(starts), "means": MEANS}, [rows[i] for i in picks]


def summarize_verdicts(found: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return count, share and Wilson interval of each verdict, and of dreams among those that the real world pays."""
    named = found | {"collected_dream_where_real_is": found["collected_dream"][found["collected_real"]]}
    return {name: count_share(values) for name, values in named.items()}


def count_share(values: np.ndarray) -> dict[str, Any]:
    """Return how many of bool (N,) hold, of how many, as a share, and its Wilson interval."""
    count, of = int(values.sum()), len(values)
    low, high = wilson_interval(count, of)
    share = round(count / of, 4) if of else None
    return {"count": count, "of": of, "share": share, "interval": [round(low, 4), round(high, 4)]}
