"""Action accuracy: the same action held for a few frames, and the motion of the picture that it brings.

Owns: the openings, the rule of what counts as right, the same measure on real frames, and the table. Does not know
what share is good enough.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from envs.actions import ActionSet
from envs.data.episodes import EpisodeInfo, read_episode
from envs.worlds.base import World
from train.data.rollouts import dream_on, in_batches, read_pieces, spread
from train.measures.base import Bench, Measure
from train.reports.plots import markdown_row
from worldmodel.analysis.metrics import Motion, measure_motion
from worldmodel.errors import ConfigError
from worldmodel.world import WorldModel

MIN_SHIFT, MIN_EXPANSION = 0.004, 0.004  # a twentieth of what real moves bring: a still picture obeys nothing
RULE = (
    "right = over the dreamt frames under one held action, the mean over frame pairs of the median horizontal flow is "
    f"above {MIN_SHIFT} frame widths a step (turn left) or below minus that (turn right); the fitted expansion is "
    f"above {MIN_EXPANSION} a step (forward) or below minus that (back). Walks start only where the world says that "
    "nothing is in the way"
)


@dataclass(frozen=True)
class ActionAccuracyOptions:
    """Settings of the dreams.

    Attributes:
        openings: for each action that turns or walks and does nothing else.
        context: real frames given before each dream.
        held_frames: dreamt frames for which the action is held, at least 2.
    """

    openings: int = 200
    context: int = 32
    held_frames: int = 6

    def __post_init__(self) -> None:
        for name, least in (("openings", 1), ("context", 1), ("held_frames", 2)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}; got {getattr(self, name)}")


class ActionAccuracy(Measure):
    """How often the picture moves as the action demands, in dreams and in real play."""

    name = "action_accuracy"
    Options = ActionAccuracyOptions
    needs = ("recording", "displacements")
    quick: ClassVar[dict[str, int]] = {"openings": 8}

    def num_frames(self, bench: Bench, options: ActionAccuracyOptions) -> int:
        """Return the most frames to dream."""
        return len(find_moves(bench.world.actions)) * options.openings * options.held_frames

    def run(self, bench: Bench, options: ActionAccuracyOptions) -> dict[str, Any]:
        """Measure: `dream` and `real`, each of `summarize_response`, and `means`, the rule.

        Raises:
            DataError: a file is damaged or gone.
        """
        held = {"held": options.held_frames, "seed": bench.seed}
        real = measure_real(bench.episodes, bench.world.actions, count=options.openings, **held)
        dream = measure_dreams(
            bench.model,
            bench.episodes,
            bench.world,
            openings=options.openings,
            context=options.context,
            batch_size=bench.batch_size,
            on_frames=bench.on_frames,
            **held,
        )
        return {"dream": dream, "real": real, "means": RULE}

    def lines(self, found: dict[str, Any]) -> list[str]:
        """Return a table of shares."""
        names = ("turn", "walk", *found["dream"]["counts"])
        lines = [markdown_row("share right", *names), markdown_row(*["---"] * (len(names) + 1))]
        for title, key in (("dream", "dream"), ("real frames, same measure", "real")):
            response = found[key]
            counts = [response["counts"].get(name) for name in names]
            cells = (
                None if response[name] is None else f"{response[name]:.3f}" + (f" (n={count})" if count else "")
                for name, count in zip(names, counts, strict=True)
            )
            lines.append(markdown_row(title, *cells))
        return [*lines, "", found["means"] + "."]


@dataclass(frozen=True)
class Move:
    """An action that turns or walks and does nothing else.

    Attributes:
        action: its index.
        is_turn: it turns; else it walks.
        sign: of the shift of the picture (1 to the right, as in a turn to the left), or of its expansion.
    """

    action: int
    is_turn: bool
    sign: float


def find_moves(actions: ActionSet) -> dict[str, Move]:
    """Return the moves of an action set by name: turns first; empty where motions are not known."""
    turns, walks = {}, {}
    for index, (name, (turn, walk)) in enumerate(zip(actions.names, actions.displacements, strict=False)):
        if turn and not walk:
            turns[name] = Move(index, True, math.copysign(1.0, turn))
        elif walk and not turn:
            walks[name] = Move(index, False, math.copysign(1.0, walk))
    return turns | walks


def opening_starts(world: World, episode: EpisodeInfo, move: Move, context: int, held: int) -> np.ndarray:
    """Return the first frames of `context` frames after which holding a move for `held` steps can be judged."""
    starts = np.arange(max(0, episode.num_frames - context + 1))
    if move.is_turn:
        return starts
    starts = starts[::4]  # neighbors are alike, and looking takes time
    return starts[world.is_way_free(episode, starts + context - 1, move.action, held)]


def held_starts(episode: EpisodeInfo, action: int, held: int) -> np.ndarray:
    """Return the frames that follow the first step of `held` equal, unblocked steps in a row."""
    has_blocked = "blocked" in episode.fields
    arrays = read_episode(episode, fields=("actions", "blocked") if has_blocked else ("actions",))
    is_held = arrays["actions"] == action
    if has_blocked:
        is_held &= ~arrays["blocked"]
    if len(is_held) < held:
        return np.zeros(0, np.int64)
    return np.flatnonzero(np.lib.stride_tricks.sliding_window_view(is_held, held).all(1)) + 1


def is_right(move: Move, motion: Motion) -> bool:
    """Whether the picture moved as the move demands; see `RULE`."""
    if move.is_turn:
        return move.sign * motion.shift > MIN_SHIFT
    return move.sign * motion.expansion > MIN_EXPANSION


def summarize_response(moves: dict[str, Move], motions: dict[str, list[Motion]]) -> dict[str, Any]:
    """Return the shares right, the counts and the median motion of each action; None where nothing was measured.

    `turn` and `walk` are shares over both actions of their kind; `motion` is the median shift in frame widths a step of
    a turn, the median expansion a step of a walk.
    """

    def share(names: Sequence[str]) -> float | None:
        found = [is_right(moves[name], motion) for name in names for motion in motions.get(name, [])]
        return float(np.mean(found)) if found else None

    medians = {
        name: float(np.median([m.shift if move.is_turn else m.expansion for m in motions[name]]))
        for name, move in moves.items()
        if motions.get(name)
    }
    return {
        "turn": share([name for name, move in moves.items() if move.is_turn]),
        "walk": share([name for name, move in moves.items() if not move.is_turn]),
        **{name: share([name]) for name in moves},
        "counts": {name: len(motions.get(name, [])) for name in moves},
        "motion": medians,
    }


def measure_dreams(
    model: WorldModel,
    episodes: Sequence[EpisodeInfo],
    world: World,
    *,
    openings: int,
    context: int,
    held: int,
    batch_size: int,
    seed: int,
    on_frames: Callable[[int], object],
) -> dict[str, Any]:
    """Hold each turn and walk for `held` dreamt frames after real openings and judge the motion.

    Args:
        model: the world.
        episodes: held-out episodes.
        world: whose.
        openings: openings for each action.
        context: real frames before the dream.
        held: dreamt frames, at least 2.
        batch_size: dreams at once.
        seed: which openings, and the dreams' chance.
        on_frames: told the number of frames dreamt after every step.

    Returns:
        see `summarize_response`.
    """
    moves = find_moves(world.actions)
    motions: dict[str, list[Motion]] = {}
    for name, move in moves.items():
        rng = np.random.default_rng([seed, 1])
        starts = [opening_starts(world, episode, move, context, held) for episode in episodes]
        motions[name] = []
        for batch in in_batches(spread(episodes, starts, context, openings, rng), batch_size):
            given = read_pieces(batch)
            held_on = torch.full((len(batch), held), move.action, dtype=torch.uint8)
            taken = torch.cat([given["actions"], held_on], 1)
            seeds = [seed + len(motions[name]) + i for i in range(len(batch))]
            dream = dream_on(model, given["frames"], taken, seeds, on_frames)
            motions[name] += [measure_motion(frames) for frames in dream.frames]
    return summarize_response(moves, motions)


def measure_real(
    episodes: Sequence[EpisodeInfo], actions: ActionSet, *, count: int, held: int, seed: int
) -> dict[str, Any]:
    """Judge real frames under held, unblocked actions by the same rule: what the measure itself can reach.

    Args:
        episodes: held-out episodes.
        actions: of the world.
        count: pieces for each action; fewer where the recording has fewer.
        held: frames of a piece, at least 2.
        seed: which pieces.
    """
    moves = find_moves(actions)
    motions: dict[str, list[Motion]] = {}
    for name, move in moves.items():
        starts = [held_starts(episode, move.action, held) for episode in episodes]
        pieces = spread(episodes, starts, held, count, np.random.default_rng([seed, 2]))
        motions[name] = [measure_motion(read_pieces([piece], ("frames",))["frames"][0]) for piece in pieces]
    return summarize_response(moves, motions)
