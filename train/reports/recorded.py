"""A look at a recording: its totals, a contact sheet, a video.

Owns: what is shown of recorded episodes. Does not know how they were made.
"""

from pathlib import Path
from typing import Any

import numpy as np

from envs.data.episodes import ShardInfo, read_episode
from envs.data.video import VideoWriter
from envs.worlds.registry import get_world
from train.reports.sheets import caption_frame, save_picture, tile_frames


def summarize(shards: list[ShardInfo]) -> dict[str, Any]:
    """Return the totals of a recording: episodes, scenes, frames, rewards, endings, the share of each action."""
    counts = np.zeros(len(shards[0].action_names), np.int64)
    rewards, num_terminated = 0.0, 0
    episodes = [episode for shard in shards for episode in shard.episodes]
    for episode in episodes:
        arrays = read_episode(episode, fields=("actions", "rewards", "terminated"))
        counts += np.bincount(arrays["actions"], minlength=len(counts))
        rewards += float(arrays["rewards"].sum())
        num_terminated += int(arrays["terminated"].any())
    return {
        "shards": len(shards),
        "episodes": len(episodes),
        "test_episodes": sum(len(shard.episodes) for shard in shards if shard.split == "test"),
        "scenes": len({episode.scene_seed for episode in episodes}),
        "frames": sum(episode.num_frames for episode in episodes),
        "rewards": rewards,
        "terminated_episodes": num_terminated,
        "action_shares": dict(zip(shards[0].action_names, (counts / counts.sum()).round(4).tolist(), strict=True)),
    }


def show(shards: list[ShardInfo], path: Path) -> None:
    """Write a contact sheet (.png: a row is an episode) or a video (.mp4: four episodes side by side) of a recording.

    Raises:
        StorageError: the file cannot be written.
    """
    is_video = path.suffix.lower() == ".mp4"
    episodes = [episode for shard in shards for episode in shard.episodes]
    num_shown, num_frames, stride = (4, 450, 1) if is_video else (10, 168, 7)
    picks = sorted({int(i) for i in np.linspace(0, len(episodes) - 1, num_shown)})
    letters = ["".join(word[0] for word in name.split("_")) for name in shards[0].action_names]
    rows = []
    for pick in picks:
        stop = min(num_frames, episodes[pick].num_frames)
        arrays = read_episode(episodes[pick], 0, stop)
        held = [*(letters[action] for action in arrays["actions"]), "end"]
        shown = range(0, stop, stride)
        rows.append([caption_frame(arrays["frames"][t], f"{t} {held[t]}", 4 if is_video else 1) for t in shown])
    if not is_video:
        save_picture(path, tile_frames(rows))
        return
    with VideoWriter(path, get_world(shards[0].world).fps) as video:
        for t in range(max(len(row) for row in rows)):
            video.add(tile_frames([[row[min(t, len(row) - 1)] for row in rows]]))
