"""Rewards and ends in closed loop: does a dream pay for what is there, once, and does it end?

Owns: play by one who seeks what pays and by one who presses keys at random, in dreams and in the real world from the
same starts; the judgement of every reward by the pictures before and after it; the table. Does not know what targets
look like (`World.targets`).

A reward is true where a target was seen near in the pictures before it, of a kind that had not paid yet. The same
judgement of real play is the control: there all rewards are true.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from envs.worlds.base import HeldActions, Targets, Walker
from train.data.rollouts import Piece, in_batches, read_pieces, spread_over
from train.measures.base import Bench, Measure
from train.measures.targets import count_share
from train.reports.plots import markdown_row, show_number
from worldmodel.errors import ConfigError, DataError

NEAR_SIZE = 12.0  # pixels at 64 a frame: a target that is reached by walking to it is larger before
BEFORE, AFTER = 6, 8  # frames in which it must have been seen, and must not be seen any more
GONE_SIZE = 8.0


@dataclass(frozen=True)
class RewardsOptions:
    """Settings of the play.

    Attributes:
        cases: dreams of each of the two players; the one who seeks starts with a target in view.
        context: real frames before every dream.
        frames: steps of each.
    """

    cases: int = 16
    context: int = 32
    frames: int = 320

    def __post_init__(self) -> None:
        for name in ("cases", "context", "frames"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1; got {getattr(self, name)}")


@dataclass(frozen=True)
class Play:
    """What one play gave.

    Attributes:
        frames: uint8 (N, H, W, 3).
        rewards: float32 (N,).
        ends: bool (N,), what the end head says of each step; real play is over with the first.
    """

    frames: np.ndarray
    rewards: np.ndarray
    ends: np.ndarray


class Rewards(Measure):
    """Whether rewards in dreams are true, and whether dreams end."""

    name = "rewards"
    Options = RewardsOptions
    needs = ("recording", "targets")
    quick: ClassVar[dict[str, int]] = {"cases": 2, "frames": 24}

    def num_frames(self, bench: Bench, options: RewardsOptions) -> int:
        """Return the frames to dream."""
        return 2 * options.cases * options.frames

    def run(self, bench: Bench, options: RewardsOptions) -> dict[str, Any]:
        """Measure. Errors as `measure_rewards`."""
        return measure_rewards(bench, options)

    def lines(self, found: dict[str, Any]) -> list[str]:
        """Return the table."""
        names = [f"{where}, {who}" for who in ("seeking", "random keys") for where in ("dream", "real")]
        parts = [found[who][where] for who in ("seeker", "random") for where in ("dream", "real")]
        lines = [markdown_row("", *names), markdown_row(*["---"] * (len(names) + 1))]
        for key, title, digits in (
            ("steps", "steps", 0),
            ("rewards_per_1000", "rewards per 1,000 steps", 2),
            ("false_per_1000", "false ones per 1,000 steps", 2),
            ("most_in_one", "most in one play", 0),
        ):
            lines.append(markdown_row(title, *(show_number(part[key], digits) for part in parts)))
        for key, title in (("gone", "target gone after a true reward"), ("ended", "plays that ended")):
            cells = [part[key] for part in parts]
            lines.append(markdown_row(title, *(f"{c['count']} of {c['of']}" for c in cells)))
        return [
            *lines,
            "",
            f"True: one of the {BEFORE} frames before showed a target of {NEAR_SIZE:g} pixels or more, of a kind that",
            "had not paid.",
        ]


def judge(targets: Targets, first: np.ndarray, play: Play) -> dict[str, list[bool]]:
    """Return of each reward whether it is true, and of each true one whether the target is gone afterwards."""
    frames = np.concatenate([first[None], play.frames])
    found: dict[str, list[bool]] = {"true": [], "gone": []}
    paid: set[int] = set()
    for step in np.flatnonzero(play.rewards > 0):
        before = [view for frame in frames[max(0, step + 1 - BEFORE) : step + 1] for view in targets.views(frame)]
        near = [view for view in before if view.size >= NEAR_SIZE and view.kind not in paid]
        found["true"].append(bool(near))
        if near:
            kind = max(near, key=lambda view: view.size).kind
            paid.add(kind)
            after = [view for frame in play.frames[step + 1 : step + 1 + AFTER] for view in targets.views(frame)]
            found["gone"].append(not any(view.kind == kind and view.size >= GONE_SIZE for view in after))
    return found


def dream(bench: Bench, pieces: Sequence[Piece], walkers: Sequence[Walker], num_frames: int, first: int) -> list[Play]:
    """Let players walk in dreams that start with the pieces; a dream goes on after it said that it ended.

    Args:
        bench: with the model.
        pieces: real frames before each dream.
        walkers: one a dream.
        num_frames: steps.
        first: number of the first of these dreams, for their seeds.
    """
    given = read_pieces(pieces)
    seeds = [bench.seed + 7919 * (first + number) for number in range(len(pieces))]
    state = bench.model.reset(given["frames"], given["actions"].long(), seeds)
    frames = given["frames"][:, -1]
    steps = []
    for _ in range(num_frames):
        actions = [walker.act(frame) for walker, frame in zip(walkers, frames.numpy(), strict=True)]
        step = bench.model.step(state, torch.tensor(actions))
        frames = step.frames.cpu()
        steps.append((frames, step.rewards.cpu(), step.terminated.cpu()))
        bench.on_frames(len(pieces))
    parts = [torch.stack(part, 1).numpy() for part in zip(*steps, strict=True)]
    return [Play(*(part[number] for part in parts)) for number in range(len(pieces))]


def summarize(targets: Targets, firsts: Sequence[np.ndarray], plays: Sequence[Play]) -> dict[str, Any]:
    """Return rates and counts of one player in one world."""
    judged = [judge(targets, first, play) for first, play in zip(firsts, plays, strict=True)]
    counts = [int((play.rewards > 0).sum()) for play in plays]
    true = [is_true for one in judged for is_true in one["true"]]
    steps = sum(len(play.rewards) for play in plays)
    return {
        "steps": steps,
        "rewards": sum(counts),
        "rewards_per_1000": 1000 * sum(counts) / steps,
        "false": true.count(False),
        "false_per_1000": 1000 * true.count(False) / steps,
        "most_in_one": max(counts),
        "gone": count_share(np.array([is_gone for one in judged for is_gone in one["gone"]], bool)),
        "ended": count_share(np.array([play.ends.any() for play in plays])),
    }


def measure_rewards(bench: Bench, options: RewardsOptions) -> dict[str, Any]:
    """Play in dreams and in the real world from the same starts, and judge the rewards.

    Raises:
        DataError: no episode is long enough, or the world does not tell what pays in it.
        MissingPackageError: a package of the world is not installed.
    """
    rng = np.random.default_rng([bench.seed, 15])
    found: dict[str, Any] = {}
    with bench.world.targets(bench.episodes[0], bench.model.codec.config.image_size) as targets:
        starts = targets.find(bench.episodes, options.context, 4, options.cases, rng)
        if not starts:
            raise DataError("no held-out frame has a target in view that later frames show again: record more episodes")
        in_view = [Piece(start.episode, start.frame - options.context + 1, options.context) for start in starts]
        anywhere = spread_over(bench.episodes, options.context, options.cases, rng)

        def walkers(who: str, count: int, first: int) -> list[Walker]:
            chances = [np.random.default_rng([bench.seed, first + number]) for number in range(count)]
            if who == "seeker":
                return [targets.seeker(chance) for chance in chances]
            return [HeldActions(bench.model.num_actions, chance) for chance in chances]

        for who, pieces in (("seeker", in_view), ("random", anywhere)):
            dreams: list[Play] = []
            real: list[Play] = []
            firsts = [read_pieces([piece], ("frames",))["frames"][0, -1].numpy() for piece in pieces]
            for batch in in_batches(pieces, bench.batch_size):
                dreams += dream(bench, batch, walkers(who, len(batch), len(dreams)), options.frames, len(dreams))
            for number, (piece, first) in enumerate(zip(pieces, firsts, strict=True)):
                (walker,) = walkers(who, 1, number)
                last = piece.start + piece.num_frames - 1
                real.append(Play(*targets.play(piece.episode, last, walker, first, options.frames)))
            found[who] = {
                "cases": len(pieces),
                "dream": summarize(targets, firsts, dreams),
                "real": summarize(targets, firsts, real),
            }
    return found
