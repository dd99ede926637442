"""Rollouts to measure: pieces of recorded episodes, spread evenly, and the dreams that start from them.

Owns: the choice of pieces, reading them, and dreaming in batches through `WorldModel.reset` and `step`, the code of
play. Does not know what is measured.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from envs.data.episodes import EpisodeInfo, read_episode
from worldmodel.errors import DataError
from worldmodel.state import WorldState
from worldmodel.world import WorldModel

Case = TypeVar("Case")


@dataclass(frozen=True)
class Piece:
    """A stretch of an episode: `num_frames` frames from `start`."""

    episode: EpisodeInfo
    start: int
    num_frames: int


@dataclass(frozen=True)
class Dream:
    """What a batch of dreams gave, on the CPU.

    Attributes:
        frames: uint8 (B, N, H, W, 3), the dreamt frames only.
        rewards: float32 (B, N).
        terminated: bool (B, N).
        reward_probability: float32 (B, N).
        end_probability: float32 (B, N).
    """

    frames: torch.Tensor
    rewards: torch.Tensor
    terminated: torch.Tensor
    reward_probability: torch.Tensor
    end_probability: torch.Tensor


def spread(
    episodes: Sequence[EpisodeInfo],
    starts: Sequence[np.ndarray],
    num_frames: int,
    count: int,
    rng: np.random.Generator,
) -> list[Piece]:
    """Choose pieces evenly: the same number from each episode as far as it has them, and evenly within an episode.

    Args:
        episodes: to choose from.
        starts: for each episode the first frames that a piece may have, in order.
        num_frames: frames of a piece.
        count: pieces wanted; fewer if there are not that many starts.
        rng: chance.
    """
    room = np.array([len(s) for s in starts])
    quota = np.zeros(len(episodes), np.int64)
    order = rng.permutation(len(episodes))
    wanted = min(count, int(room.sum()))
    while quota.sum() < wanted:
        open_to_more = [i for i in order if quota[i] < room[i]]
        quota[open_to_more[: wanted - int(quota.sum())]] += 1
    pieces = []
    for episode, allowed, share in zip(episodes, starts, quota, strict=True):
        for part in np.array_split(allowed, share) if share else []:
            pieces.append(Piece(episode, int(rng.choice(part)), num_frames))
    return pieces


def spread_over(episodes: Sequence[EpisodeInfo], num_frames: int, count: int, rng: np.random.Generator) -> list[Piece]:
    """Choose pieces of `num_frames` frames evenly from all episodes that are long enough.

    Raises:
        DataError: no episode is long enough.
    """
    longest = max(episode.num_frames for episode in episodes)
    if longest < num_frames:
        raise DataError(
            f"the longest held-out episode has {longest} frames and {num_frames} are needed (context and horizon "
            "together): ask for fewer, or record longer episodes"
        )
    return spread(episodes, [np.arange(e.num_frames - num_frames + 1) for e in episodes], num_frames, count, rng)


def read_pieces(pieces: Sequence[Piece], fields: Sequence[str] = ("frames", "actions")) -> dict[str, torch.Tensor]:
    """Read pieces of one length, stacked: per-frame fields (B, num_frames, ...), per-step fields with one step fewer.

    Raises:
        DataError: a file is damaged or gone.
    """
    parts = [read_episode(p.episode, p.start, p.start + p.num_frames, fields) for p in pieces]
    return {name: torch.from_numpy(np.stack([part[name] for part in parts])) for name in fields}


def in_batches(pieces: list[Case], batch_size: int) -> Iterator[list[Case]]:
    """Yield the pieces in order, at most `batch_size` at a time."""
    for start in range(0, len(pieces), batch_size):
        yield pieces[start : start + batch_size]


def dream_on(
    model: WorldModel,
    frames: torch.Tensor,
    actions: torch.Tensor,
    seeds: list[int],
    on_frames: Callable[[int], object],
) -> Dream:
    """Dream from real context frames under given actions.

    Args:
        model: the world.
        frames: uint8 (B, C, H, W, 3), the context.
        actions: integer (B, C - 1 + N): those between the context frames, then those to dream under.
        seeds: B seeds of the dreams' chance.
        on_frames: told the number of frames dreamt after every step.

    Returns:
        N dreamt frames a dream.
    """
    known = frames.shape[1] - 1
    actions = actions.long()
    state = model.reset(frames, actions[:, :known], seeds)
    return step_on(model, state, actions[:, known:], on_frames)


def step_on(model: WorldModel, state: WorldState, actions: torch.Tensor, on_frames: Callable[[int], object]) -> Dream:
    """Dream on from `state`, in place, under actions, integer (B, N); the rest as `dream_on`."""
    steps = []
    for column in actions.long().unbind(1):
        steps.append(model.step(state, column))
        on_frames(len(column))
    return Dream(*(torch.stack(part, 1).cpu() for part in zip(*steps, strict=True)))
