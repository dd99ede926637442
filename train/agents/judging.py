"""Judging: an agent plays whole episodes, each begun by a seed of its own, so that agents meet the same ones.

Owns: the episodes and their order, and videos of some. Does not know who is compared with whom.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from envs.data.video import VideoTrack
from train.agents.agent import Player


@dataclass(frozen=True)
class Episodes:
    """What came of episodes, in the order of their seeds.

    Attributes:
        returns: sum of the rewards of each.
        lengths: steps of each.
    """

    returns: list[float]
    lengths: list[int]


def judge(
    player: Player,
    envs: Any,
    seeds: Sequence[int],
    *,
    greedy: bool,
    on_frames: Callable[[np.ndarray], object] = lambda frames: None,
) -> Episodes:
    """Let a player play one episode of each seed; none is left out for being long.

    Args:
        player: who.
        envs: a vector of Gymnasium, made with `autoreset_mode="DISABLED"`.
        seeds: of the episodes; also of the player's chance.
        greedy: take the likeliest actions.
        on_frames: told what is shown, uint8 (B, H, W, 3), after every reset and step.

    Returns:
        what came of them.
    """
    count, num_envs = len(seeds), envs.num_envs
    chance = torch.Generator().manual_seed(seeds[0])
    returns, lengths = np.zeros(count), np.zeros(count, np.int64)

    # Episodes that are played, by environment; those from `count` on only fill the vector.
    playing = np.arange(num_envs)
    num_begun = num_envs
    frames, _ = envs.reset(seed=[seeds[int(episode) % count] for episode in playing])
    on_frames(frames)
    while True:
        counts = playing < count
        frames, rewards, terminated, truncated, _ = envs.step(player.act(frames, chance, greedy=greedy))
        on_frames(frames)
        returns[playing[counts]] += rewards[counts]
        lengths[playing[counts]] += 1
        is_over = terminated | truncated
        if not is_over.any():
            continue

        for row in np.flatnonzero(is_over):
            playing[row], num_begun = num_begun, num_begun + 1
        if (playing >= count).all():
            return Episodes(returns.tolist(), lengths.tolist())
        begun = [seeds[int(episode) % count] for episode in playing]
        frames, _ = envs.reset(seed=begun, options={"reset_mask": is_over})
        on_frames(frames)


def record_video(player: Player, envs: Any, seeds: Sequence[int], path: Path) -> None:
    """Write a video of episodes, one after the other.

    Args:
        player: who plays; actions are drawn.
        envs: as `judge`, one of them.
        seeds: of the episodes.
        path: a `.mp4` file.

    Raises:
        StorageError: it cannot be written.
    """
    track, fps = VideoTrack(), float(envs.metadata.get("render_fps", 15.0))

    def add(frames: np.ndarray) -> None:
        if track.is_open:
            track.add(frames[0])
        else:
            track.start(path, fps, None, frames[0])

    judge(player, envs, seeds, greedy=False, on_frames=add)
    track.stop()
