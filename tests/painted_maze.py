"""Recordings for tests of needles: a walker who turns on the spot in a small room, in frames painted by ray casting."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from envs.data.episodes import EpisodeInfo, ShardWriter, open_shards
from envs.worlds.labmaze.constants import ACTIONS as LABMAZE_ACTIONS
from envs.worlds.labmaze.sight import NUM_COLUMNS, look
from envs.worlds.labmaze.spec import LabMaze
from train.data.clips import list_episodes

SIZE = 32
ROOM = np.ones((5, 5), np.uint8)
ROOM[1:-1, 1:-1] = 0
WALL_STEP, FLOOR_STEP = 15, 100  # brightness of red for a wall texture, of green for a floor texture
SKY = 255


def dress(layout: np.ndarray, textures: Sequence[int] = (0, 0, 0, 0), floor: int = 2) -> dict[str, np.ndarray]:
    """A maze whose walls to the north, south, west and east each wear one texture."""
    walls = np.full(layout.shape, 255, np.uint8)
    walls[0, :], walls[-1, :], walls[1:-1, 0], walls[1:-1, -1] = textures
    inner = layout[1:-1, 1:-1] == 1
    walls[1:-1, 1:-1][inner] = textures[0]
    return {
        "layout": layout,
        "wall_textures": walls,
        "floor_textures": np.where(layout == 0, floor, 255).astype(np.uint8),
    }


def turn_away(rest: int) -> np.ndarray:
    """Headings: look east, turn to the west, stay there for `rest` frames, turn back to the east, and stay."""
    away = np.arange(0, 181, 12.0)
    return np.concatenate([np.zeros(40), away, np.full(rest, 180.0), away[::-1], np.zeros(12)])


def paint(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Frames: sky above, red tells the wall of each column, green the floor, blue the number of the frame."""
    pose = arrays["pose"]
    column = ((np.arange(SIZE) + 0.5) / SIZE * NUM_COLUMNS).astype(int)
    walls = arrays["wall_textures"].reshape(-1)[look(arrays["layout"], pose).blocks][:, column]
    floor = int(arrays["floor_textures"][arrays["layout"] == 0][0])
    frames = np.zeros((len(pose), SIZE, SIZE, 3), np.uint8)
    frames[..., 2] = np.arange(len(pose))[:, None, None] % 256
    frames[:, :6, :, 0] = SKY
    frames[:, 6:24, :, 0] = WALL_STEP * walls[:, None]
    frames[:, 24:, :, 1] = FLOOR_STEP * floor
    return frames


def write_turns(
    folder: Path,
    turns: Sequence[np.ndarray],
    rooms: Sequence[dict[str, np.ndarray]],
    split: str = "test",
    drop: Sequence[str] = (),
) -> Path:
    """Record a walker in the middle of each of `rooms` (from `dress`) that looks along the headings of `turns`.

    The action of step t is t modulo 7, whatever the walker does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    header: dict[str, Any] = {"world": "LabMaze", "action_names": LABMAZE_ACTIONS.names, "settings": {}}
    with ShardWriter(
        folder / f"{split}-00000.h5", image_size=SIZE, fields=LabMaze.fields, split=split, **header
    ) as shard:
        for number, (headings, room) in enumerate(zip(turns, rooms, strict=True)):
            steps, middle = len(headings) - 1, len(room["layout"]) / 2
            places = np.stack([np.full(steps + 1, middle), np.full(steps + 1, middle), headings], 1)
            arrays = {**room, "pose": places.astype(np.float32)}
            arrays |= {
                "frames": paint(arrays),
                "actions": (np.arange(steps) % LABMAZE_ACTIONS.num_actions).astype(np.uint8),
                "rewards": np.zeros(steps, np.float32),
                "terminated": np.zeros(steps, bool),
                "truncated": np.zeros(steps, bool),
            }
            kept = {name: value for name, value in arrays.items() if name not in drop}
            shard.write(kept, seed=number, scene_seed=number, policy="test")
    return folder


def episodes_of(folder: Path) -> list[EpisodeInfo]:
    """The held-out episodes of a recording."""
    return list_episodes(open_shards(folder, "test"))
