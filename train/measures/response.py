"""Does the dream obey? The same action held for a few frames, and the motion of the picture that it brings.

Owns: the openings, the free way ahead of a walk, the rule of what counts as right, and the same measure on real frames.
Does not know files of results or what share is good enough.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from envs.data.episodes import EpisodeInfo, read_episode
from envs.worlds.labmaze.env import WALK_CELLS
from envs.worlds.labmaze.maze import Maze
from train.data.rollouts import dream_on, in_batches, read_pieces, spread
from worldmodel.analysis.metrics import Motion, measure_motion
from worldmodel.world import WorldModel

TURNS = {"turn_left": 1.0, "turn_right": -1.0}  # sign of the shift of the picture
WALKS = {"forward": 1.0, "back": -1.0}  # sign of its expansion
MIN_SHIFT, MIN_EXPANSION = 0.004, 0.004  # a twentieth of what real moves bring: a still picture obeys nothing
MARGIN_CELLS = 0.3
RULE = (
    "right = over the dreamt frames under one held action, the mean over frame pairs of the median horizontal flow is "
    f"above {MIN_SHIFT} frame widths a step (turn left) or below minus that (turn right); the fitted expansion is "
    f"above {MIN_EXPANSION} a step (forward) or below minus that (back). Walks start only where the recorded pose and "
    f"layout leave the walker's way free for the walked distance and {MARGIN_CELLS} cells"
)


def is_way_free(layout: np.ndarray, pose: np.ndarray, distance: float) -> bool:
    """Whether a walker can go straight on from a pose without touching a wall.

    Args:
        layout: uint8 (rows, columns), 1 wall, 0 floor.
        pose: x, y in cells, heading in degrees.
        distance: cells; negative: backwards.
    """
    maze = Maze(layout, layout, layout, np.zeros((0, 2), np.float32), 0)
    angle = np.radians(float(pose[2]))
    for walked in np.linspace(0.0, distance, max(2, int(abs(distance) / 0.05))):
        x, y = float(pose[0] + walked * np.cos(angle)), float(pose[1] + walked * np.sin(angle))
        moved = np.subtract(maze.push_out(x, y), (x, y))
        if maze.is_wall(x, y) or np.abs(moved).max() > 1e-3:
            return False
    return True


def opening_starts(episode: EpisodeInfo, action: str, context: int, held: int) -> np.ndarray:
    """Return the first frames of `context` frames after which holding `action` for `held` steps can be judged.

    A walk in a recording without pose and layout can start anywhere.
    """
    starts = np.arange(max(0, episode.num_frames - context + 1))
    if action in TURNS or not {"pose", "layout"} <= set(episode.fields):
        return starts
    starts = starts[::4]  # neighbors are alike, and looking takes time
    arrays = read_episode(episode, fields=("pose", "layout"))
    distance = WALKS[action] * (WALK_CELLS * held + MARGIN_CELLS)
    is_free = [is_way_free(arrays["layout"], arrays["pose"][start + context - 1], distance) for start in starts]
    return starts[np.array(is_free, bool)]


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


def is_right(action: str, motion: Motion) -> bool:
    """Whether the picture moved as the action demands; see `RULE`."""
    if action in TURNS:
        return TURNS[action] * motion.shift > MIN_SHIFT
    return WALKS[action] * motion.expansion > MIN_EXPANSION


def summarize_response(motions: dict[str, list[Motion]]) -> dict[str, Any]:
    """Return the shares right, the counts and the median motion of each action; None where nothing was measured.

    `turn` and `walk` are shares over both actions of their kind; `motion` is the median shift in frame widths a step of
    a turn, the median expansion a step of a walk.
    """

    def share(actions: Sequence[str]) -> float | None:
        found = [is_right(action, motion) for action in actions for motion in motions.get(action, [])]
        return float(np.mean(found)) if found else None

    names = (*TURNS, *WALKS)
    medians = {
        name: float(np.median([m.shift if name in TURNS else m.expansion for m in motions[name]]))
        for name in names
        if motions.get(name)
    }
    return {
        "turn": share(list(TURNS)),
        "walk": share(list(WALKS)),
        **{name: share([name]) for name in names},
        "counts": {name: len(motions.get(name, [])) for name in names},
        "motion": medians,
    }


def measure_dreams(
    model: WorldModel,
    episodes: Sequence[EpisodeInfo],
    action_names: Sequence[str],
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
        action_names: in the order of their indices.
        openings: openings for each action.
        context: real frames before the dream.
        held: dreamt frames, at least 2.
        batch_size: dreams at once.
        seed: which openings, and the dreams' chance.
        on_frames: told the number of frames dreamt after every step.

    Returns:
        see `summarize_response`.
    """
    motions: dict[str, list[Motion]] = {}
    for name in (*TURNS, *WALKS):
        if name not in action_names:
            continue
        action, rng = list(action_names).index(name), np.random.default_rng([seed, 1])
        starts = [opening_starts(episode, name, context, held) for episode in episodes]
        motions[name] = []
        for batch in in_batches(spread(episodes, starts, context, openings, rng), batch_size):
            given = read_pieces(batch)
            actions = torch.cat([given["actions"], torch.full((len(batch), held), action, dtype=torch.uint8)], 1)
            seeds = [seed + len(motions[name]) + i for i in range(len(batch))]
            dream = dream_on(model, given["frames"], actions, seeds, on_frames)
            motions[name] += [measure_motion(frames) for frames in dream.frames]
    return summarize_response(motions)


def measure_real(
    episodes: Sequence[EpisodeInfo], action_names: Sequence[str], *, count: int, held: int, seed: int
) -> dict[str, Any]:
    """Judge real frames under held, unblocked actions by the same rule: what the measure itself can reach.

    Args:
        episodes: held-out episodes.
        action_names: in the order of their indices.
        count: pieces for each action; fewer where the recording has fewer.
        held: frames of a piece, at least 2.
        seed: which pieces.
    """
    motions: dict[str, list[Motion]] = {}
    for name in (*TURNS, *WALKS):
        if name in action_names:
            starts = [held_starts(episode, list(action_names).index(name), held) for episode in episodes]
            pieces = spread(episodes, starts, held, count, np.random.default_rng([seed, 2]))
            motions[name] = [measure_motion(read_pieces([piece], ("frames",))["frames"][0]) for piece in pieces]
    return summarize_response(motions)
