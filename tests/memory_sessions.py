"""Sessions for tests of memory: a walker who turns on the spot in a patterned room, twice round."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from envs.data.session_writer import SessionWriter
from envs.data.sessions import SessionInfo
from envs.fields import POSE, Field
from envs.worlds.labmaze.spec import LabMaze
from tests.box_room import see

SIZE = 32
LAP = 60
TURN_LEFT = LabMaze.actions.names.index("turn_left")
PAIRS = tuple((first, first + LAP) for first in (0, 30, 60))


def spin_poses(seed: int, num_frames: int = 2 * LAP + 1) -> np.ndarray:
    """Return poses float64 (T, 3) of a walker who turns to the left somewhere in the room of `tests.box_room`."""
    x, y = np.random.default_rng(seed).uniform(-2.0, 2.0, 2)
    headings = 6.0 * np.arange(num_frames)
    return np.stack([np.full(num_frames, x), np.full(num_frames, y), headings % 360.0], 1)


def see_room(poses: np.ndarray) -> np.ndarray:
    """Return the frames uint8 (T, SIZE, SIZE, 3) from poses in degrees."""
    frames, _ = see(torch.from_numpy(poses * [1.0, 1.0, math.pi / 180]), SIZE)
    return frames.numpy()


def write_session(
    path: Path,
    frames: np.ndarray,
    actions: Sequence[int],
    pairs: Sequence[tuple[int, int]] = PAIRS,
    *,
    kind: str = "spin",
    poses: np.ndarray | None = None,
    context: tuple[np.ndarray, np.ndarray] | None = None,
    scene: dict[str, np.ndarray] | None = None,
    **changes: Any,
) -> Path:
    """Write a session of one episode; `scene` are fields of LabMaze of the episode, `changes` of its `SessionInfo`."""
    said: dict[str, Any] = {"world": "LabMaze", "action_names": LabMaze.actions.names, "image_size": frames.shape[1]}
    info = SessionInfo(**{**said, "fps": 15.0, "source": "real", **changes})
    fields: dict[str, Field] = {} if poses is None else {"pose": POSE}
    fields |= {name: LabMaze.fields[name] for name in scene or {}}
    writer = SessionWriter(path, info, fields, split="test")
    given = {} if context is None else dict(zip(("context_frames", "context_actions"), context, strict=True))
    partner = {second: first for first, second in pairs}
    marks = {}
    for number, frame in enumerate(frames):
        values = {} if poses is None else {"pose": poses[number]}
        if number == 0:
            writer.begin(frame, start={"seed": 0}, values=values | (scene or {}), **given)
        else:
            writer.add(int(actions[number - 1]), frame, 0.0, False, False, values)
        if number in partner.values():
            marks[number] = writer.mark()
        if number in partner:
            writer.revisit(marks[partner[number]], kind)
    made = writer.close()
    assert made is not None
    return made


def write_spins(folder: Path, count: int = 3, **changes: Any) -> Path:
    """Write spins from several places of the room."""
    for seed in range(count):
        poses = spin_poses(seed)
        frames, actions = see_room(poses), [TURN_LEFT] * (len(poses) - 1)
        write_session(folder / f"spin-{seed:05d}.h5", frames, actions, poses=poses, **changes)
    return folder
