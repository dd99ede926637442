"""The layout of Memory Maze's offline data (arXiv:2210.13383): an .npz file for each episode.

Owns: that layout, as its README, its wrappers and its recorder have it. Arrays have a row for each frame: `image` uint8
(T, H, W, 3), `action` (T, 6) one-hot, the action that led to the frame (none at the first): noop, forward, left, right,
forward and left, forward and right; `reward` (T,) of that step; `terminal` and `reset` bool (T,), which not all files
have; `maze_layout` (T, n, n), 1 floor, without the outer walls, row 0 at the smallest y; `agent_pos` (T, 2) in cells
from the corner inside the outer walls, `agent_dir` (T, 2), where a step ahead leads. Targets are not read or written.
"""

import io
import zipfile
from pathlib import Path

import numpy as np

from envs.actions import ActionSet
from envs.data.formats.clip import Clip, Signs, describe, find_actions, signs_of
from worldmodel.errors import DataError
from worldmodel.files import write_file

FPS = 4.0  # the environment's own
ACTIONS: tuple[Signs, ...] = ((0, 0), (0, 1), (1, 0), (-1, 0), (1, 1), (-1, 1))
CANNOT_HOLD = (
    "marks and revisits, how many frames are given, frames a second, truncation, and what a world records beside poses "
    "and a layout"
)


def write_clip(folder: Path, clip: Clip, actions: ActionSet) -> Path:
    """Write a clip into a folder; return its file.

    Raises:
        DataError: it takes an action that this format does not have. StorageError: the file cannot be written.
    """
    signs = signs_of(actions)
    for step, action in enumerate(clip.actions.tolist()):
        if signs[action] not in ACTIONS:
            raise DataError(f"{clip.name}: step {step} {describe(signs[action])}, and no action of Memory Maze does")
    num_frames = len(clip.frames)
    hot = np.zeros((num_frames, len(ACTIONS)), np.float32)
    hot[np.arange(1, num_frames), [ACTIONS.index(signs[action]) for action in clip.actions.tolist()]] = 1.0
    arrays = {
        "image": clip.frames,
        "action": hot,
        "reward": np.concatenate([[0.0], clip.rewards]).astype(np.float32),
        "terminal": np.concatenate([[False], clip.terminated]),
        "reset": np.arange(num_frames) == 0,
    }
    if clip.poses is not None and clip.poses.shape[1] == 3:
        heading = np.radians(clip.poses[:, 2])
        arrays["agent_dir"] = np.stack([np.cos(heading), np.sin(heading)], 1)
        arrays["agent_pos"] = clip.poses[:, :2] - 1.0
    if clip.layout is not None:
        inner = np.flip(1 - clip.layout[1:-1, 1:-1], 0)
        arrays["maze_layout"] = np.repeat(inner[None], num_frames, axis=0)
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, **arrays)
    path = folder / f"{clip.name}.npz"
    write_file(path, content.getvalue())
    return path


def find_clips(folder: Path) -> list[Path]:
    """Return the files of episodes in a folder and those below, or the one that is named.

    Raises:
        DataError: there is none.
    """
    found = [folder] if folder.is_file() else sorted(folder.rglob("*.npz"))
    if not found:
        raise DataError(f"{folder} holds no episode of Memory Maze (*.npz)")
    return found


def read_clip(path: Path, actions: ActionSet, image_size: int) -> Clip:
    """Read an episode.

    Args:
        path: its file.
        actions: the set that its actions are told in.
        image_size: height and width that its frames must have, pixels.

    Raises:
        DataError: the file is damaged, lacks an array, or has another size, or an action has no counterpart.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        frames, hot, rewards = arrays["image"], arrays["action"], arrays["reward"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is damaged, or no episode of Memory Maze ({error})") from error
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1:] != (image_size, image_size, 3):
        raise DataError(
            f"{path}: image is {frames.dtype} {frames.shape}; expected uint8 (T, {image_size}, {image_size}, 3): give "
            "its size as --image-size"
        )
    if hot.shape != (len(frames), len(ACTIONS)) or not (hot[1:].sum(1) == 1).all():
        raise DataError(f"{path}: action must be one-hot ({len(frames)}, {len(ACTIONS)}); got {hot.shape}")

    chosen = find_actions([ACTIONS[action] for action in hot[1:].argmax(1).tolist()], actions, str(path))
    ends = arrays.get("terminal", np.zeros(len(frames), bool))
    poses = layout = None
    if {"agent_pos", "agent_dir"} <= arrays.keys():
        heading = np.degrees(np.arctan2(arrays["agent_dir"][:, 1], arrays["agent_dir"][:, 0])) % 360.0
        poses = np.concatenate([arrays["agent_pos"] + 1.0, heading[:, None]], 1).astype(np.float64)
    if "maze_layout" in arrays:
        inner = 1 - np.flip(arrays["maze_layout"][0].astype(np.uint8), 0)
        layout = np.pad(inner, 1, constant_values=1)
    reward, is_over = rewards[1:].astype(np.float32), ends[1:].astype(bool)
    return Clip(path.stem, frames, chosen, FPS, None, poses, layout, reward, is_over)
