"""Revisit by open return: a dream walks out, looks all the way round, and undoes every step: the same places again.

Owns: the walks, their undoing, and the comparison of each place with its first dream.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch

from envs.data.episodes import EpisodeInfo, read_episode
from train.data.rollouts import in_batches, read_pieces, spread, spread_over, step_on
from train.measures.base import Bench, Measure
from train.measures.wander import find_plain, wander
from train.reports.plots import markdown_row, save_sheet
from worldmodel.analysis.bootstrap import mean_interval
from worldmodel.analysis.metrics import squared_error, to_psnr
from worldmodel.errors import ConfigError, DataError
from worldmodel.state import WorldState

SHEET_PLACES = 10


@dataclass(frozen=True)
class RevisitOptions:
    """Settings of the walks.

    Attributes:
        walks: dreams that go out and come back.
        walk_frames: steps out.
        context: real frames before.
    """

    walks: int = 32
    walk_frames: int = 200
    context: int = 32

    def __post_init__(self) -> None:
        for name in ("walks", "walk_frames", "context"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1; got {getattr(self, name)}")


class Revisit(Measure):
    """Likeness of places to their first dream, on the way back."""

    name = "revisit"
    Options = RevisitOptions
    needs = ("recording", "displacements")
    quick: ClassVar[dict[str, int]] = {"walks": 2, "walk_frames": 20}

    def num_frames(self, bench: Bench, options: RevisitOptions) -> int:
        """Return about the frames to dream; a step that turns and walks is undone in two."""
        return options.walks * (2 * options.walk_frames + options.walk_frames // 4 + 60)

    def run(self, bench: Bench, options: RevisitOptions) -> dict[str, Any]:
        """Measure, and write `revisit.png`. Errors as `measure_revisit`."""
        found, rows = measure_revisit(bench, options)
        save_sheet(bench.out / "revisit.png", rows, list(range(SHEET_PLACES, 0, -1)))
        return found

    def lines(self, found: dict[str, Any]) -> list[str]:
        """Return a table by how long ago a place was seen first."""
        low, high = found["interval_of_each_walk"]
        spans = found["psnr_by_age"]
        return [
            markdown_row("frames ago", *spans, "all", "other places"),
            markdown_row(*["---"] * (len(spans) + 3)),
            markdown_row("PSNR, dB", *spans.values(), found["psnr"], found["psnr_of_other_places"]),
            "",
            f"{found['walks']} walks of {found['steps_out']} steps, {found['walks_are']}; mean over walks "
            f"{found['psnr_of_each_walk']:.1f} dB ({low:.1f} to {high:.1f}, 95%).",
        ]


def undo(actions: Sequence[int], displacements: Sequence[tuple[float, float]]) -> tuple[list[int], list[int]]:
    """Return the actions that undo a walk, last step first, and which step is undone after each of them.

    A step turns, then walks; it is undone by walking back, then turning back.

    Args:
        actions: the walk.
        displacements: turn and walk of each action.

    Returns:
        actions, and for each the number of steps of the walk that are left when it is done; -1 where it stops between
        two places of the walk.

    Raises:
        ConfigError: no action walks or turns the other way.
    """
    plain = {(turn, walk): i for i, (turn, walk) in reversed(list(enumerate(displacements)))}
    found: list[int] = []
    left: list[int] = []
    for number in range(len(actions) - 1, -1, -1):
        turn, walk = displacements[actions[number]]
        steps = [(0.0, -walk)] * (walk != 0) + [(-turn, 0.0)] * (turn != 0) or [(0.0, 0.0)]
        for step in steps:
            if step not in plain:
                raise ConfigError(f"no action undoes {step[0]} degrees and {step[1]} cells")
            found.append(plain[step])
            left.append(-1)
        left[-1] = number
    return found, left


def open_stretches(episode: EpisodeInfo, length: int, displacements: np.ndarray) -> np.ndarray:
    """Return where an episode walks `length` steps without being stopped: the numbers of their first frames.

    Raises:
        DataError: recorded without poses.
    """
    if "pose" not in episode.fields:
        raise DataError(f"{episode.key} of {episode.path} has no pose: record it with `python -m train.record`")
    arrays = read_episode(episode, fields=("pose", "actions"))
    pose = arrays["pose"].astype(np.float64)
    gone = np.hypot(*np.diff(pose[:, :2], axis=0).T)
    is_stopped = np.abs(gone - np.abs(displacements[arrays["actions"].astype(np.int64), 1])) > 1e-3
    stops = np.concatenate([[0], np.cumsum(is_stopped)])
    starts = np.arange(max(0, len(stops) - length))
    return starts[stops[starts + length] == stops[starts]]


def walk_out(
    bench: Bench, options: RevisitOptions
) -> Iterator[tuple[WorldState, torch.Tensor, torch.Tensor, float | None]]:
    """Dream walks out, a batch at a time.

    With a memory of pixels the walks go where the dream itself shows no obstacle (`train.measures.wander`). Without one
    they are recorded walks that nothing stopped in the real world; the dream may have put one elsewhere, and that
    counts against it.

    Yields:
        the dreams, their frames uint8 (B, N, H, W, 3), their actions (B, N), and the share of walking steps that were
        stopped all the same (None: not known).

    Raises:
        DataError: too few such walks.
    """
    model, displacements = bench.model, bench.world.actions.displacements
    length, known = options.walk_frames, options.context
    rng = np.random.default_rng([bench.seed, 9])
    if model.can_reckon:
        pieces = spread_over(bench.episodes, known, options.walks, rng)
    else:
        starts = [open_stretches(e, length, np.array(displacements)) for e in bench.episodes]
        starts = [s[s >= known - 1] - (known - 1) for s in starts]
        pieces = spread(bench.episodes, starts, known + length, options.walks, rng)
    if not pieces:
        raise DataError(f"no held-out episode walks {length} steps without being stopped: lower revisit.walk_frames")

    number = 0
    for batch in in_batches(pieces, bench.batch_size):
        given = read_pieces(batch)
        seeds = [bench.seed + number + i for i in range(len(batch))]
        actions = given["actions"].long()
        state = model.reset(given["frames"][:, :known], actions[:, : known - 1], seeds)
        if model.can_reckon:
            yield state, *wander(model, state, length, displacements, seeds, bench.on_frames)
        else:
            walked = actions[:, known - 1 :]
            yield state, step_on(model, state, walked, bench.on_frames).frames, walked, None
        number += len(batch)


@dataclass
class Returns:
    """What was seen on the ways back.

    Attributes:
        errors: of each walk, squared errors (N,) of each place against its first dream.
        others: the same against other places of the dream.
        ages: of each walk, how many frames ago each place was first seen (N,).
        stopped: of each walk, the share of walking steps that were stopped all the same, where that is known.
        walking: of each step out, whether it walks.
        rows: pictures of the first walks: places first, and again.
    """

    errors: list[np.ndarray] = field(default_factory=list)
    others: list[np.ndarray] = field(default_factory=list)
    ages: list[np.ndarray] = field(default_factory=list)
    stopped: list[float] = field(default_factory=list)
    walking: list[bool] = field(default_factory=list)
    rows: list[tuple[str, torch.Tensor]] = field(default_factory=list)

    def add(self, first: torch.Tensor, again: torch.Tensor, left: list[int], before: int) -> None:
        """Compare the frames of a way back with those of the walk out.

        Args:
            first: uint8 (N, H, W, 3), of the walk.
            again: uint8 (M, H, W, 3), of the way back.
            left: from `undo`.
            before: steps from the beginning of the walk to that of the way back.
        """
        arrived = [(j, steps - 1) for j, steps in enumerate(left) if steps >= 1]
        then = torch.tensor([step for _, step in arrived])
        now = torch.tensor([j for j, _ in arrived])
        self.errors.append(squared_error(again[now], first[then]).numpy())
        self.others.append(squared_error(again[now], first[then.flip(0)]).numpy())
        self.ages.append((before + now - then).numpy())
        if len(self.rows) < 8:
            picks = torch.linspace(0, len(arrived) - 1, SHEET_PLACES).long()
            self.rows += [("first", first[then[picks]]), ("again", again[now[picks]])]


def measure_revisit(bench: Bench, options: RevisitOptions) -> tuple[dict[str, Any], list[tuple[str, torch.Tensor]]]:
    """Dream a walk, look all the way round, and undo every step; compare each place with its first dream.

    Returns:
        PSNR between the frames first dreamt and those dreamt on the way back, of all and by how long ago; for
        comparison that of frames of other places of the same dream. And rows of pictures.

    Raises:
        DataError: too few walks. ConfigError: no action undoes another.
    """
    displacements = bench.world.actions.displacements
    _, left_turn, _ = find_plain(displacements)
    num_turns = round(360 / abs(displacements[left_turn][0]))  # to look all the way round
    found = Returns()
    for state, first_frames, walked, share in walk_out(bench, options):
        found.stopped += [] if share is None else [share] * len(walked)
        found.walking += [displacements[action][1] != 0 for action in walked.flatten().tolist()]

        ways = [undo(row.tolist(), displacements) for row in walked]
        longest = max(len(back) for back, _ in ways)
        rest = [[left_turn] * num_turns + back + [0] * (longest - len(back)) for back, _ in ways]  # 0 stays there
        dream = step_on(bench.model, state, torch.tensor(rest), bench.on_frames)
        for first, again, (_, left) in zip(first_frames, dream.frames[:, num_turns:], ways, strict=True):
            found.add(first, again, left, options.walk_frames + num_turns)
    return summarize(found, options, bench.seed), found.rows


def summarize(found: Returns, options: RevisitOptions, seed: int) -> dict[str, Any]:
    """Return PSNR of all places, of each walk, and by age; `seed` is of the interval."""
    error, other, age = (np.concatenate(parts) for parts in (found.errors, found.others, found.ages))
    each = torch.tensor([float(to_psnr(torch.tensor(part.mean()))) for part in found.errors])
    spans = {(a, b): (age > a) & (age <= b) for a, b in ((0, 100), (100, 200), (200, 300), (300, 1000))}
    return {
        "psnr": round(float(to_psnr(torch.tensor(error.mean()))), 3),
        "psnr_of_each_walk": round(float(each.mean()), 3),
        "interval_of_each_walk": mean_interval(each, seed),
        "psnr_of_each_frame": round(float(to_psnr(torch.from_numpy(error)).mean()), 3),
        "psnr_by_age": {
            f"{a}-{b}": round(float(to_psnr(torch.tensor(error[among].mean()))), 2)
            for (a, b), among in spans.items()
            if among.any()
        },
        "psnr_of_other_places": round(float(to_psnr(torch.tensor(other.mean()))), 3),
        "walks": len(found.errors),
        "steps_out": options.walk_frames,
        "walks_are": "where the dream shows no obstacle" if found.stopped else "recorded, where nothing stopped them",
        "share_of_steps_that_walk": round(float(np.mean(found.walking)), 4),
        "share_stopped": round(float(np.mean(found.stopped)), 4) if found.stopped else None,
    }
