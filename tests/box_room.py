"""Recordings for tests of depth: a walk through a room with patterned walls and floor under an open sky, ray by ray."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from envs.data.episodes import ShardWriter
from envs.worlds.labmaze.constants import ACTIONS as LABMAZE_ACTIONS
from envs.worlds.labmaze.spec import LabMaze
from train.losses.photometric import camera_axes, pixel_rays
from worldmodel.memory.camera import complete_poses

SIDE, WALL, EYE, SKY = 8.0, 1.5, 0.5, 200.0  # the room lies around the origin; eyes are at height 0 of poses
VIEW_DEG = 70.0


def see(poses: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return frames uint8 (N, size, size, 3) and depths float32 (N, size, size) from poses (N, 3 or 5), radians."""
    poses = complete_poses(poses.double())
    rays = torch.einsum("nij,jhw->nihw", camera_axes(poses), pixel_rays(size, VIEW_DEG, poses.device).double())
    start = poses[:, :3, None, None]
    walls = ((SIDE / 2 * rays[:, :2].sign() - start[:, :2]) / rays[:, :2]).nan_to_num(posinf=1e9, neginf=1e9).amin(1)
    floor = torch.where(rays[:, 2] < 0, (-EYE - start[:, 2]) / rays[:, 2], 1e9)
    depth = torch.minimum(walls, floor)
    points = start + depth[:, None] * rays
    is_sky = points[:, 2] > WALL - EYE
    tint = torch.tensor([0.0, 1.3, 2.6])[:, None, None]
    shade = sum((wave * points[:, i, None] + i + tint).sin() for i, wave in enumerate((3.1, 4.3, 5.2)))
    sky = (3 * (rays / rays.norm(dim=1, keepdim=True))).sum(1, keepdim=True).sin() + tint
    shade = torch.where(is_sky[:, None], sky, shade)
    frames = (127.5 + 42 * shade).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    return frames, torch.where(is_sky, SKY, depth).float()


def walk(num_steps: int, seed: int) -> tuple[np.ndarray, torch.Tensor]:
    """Return actions uint8 (T,) and the poses (T + 1, 3), radians, of a walk around the room that meets no wall."""
    rng = np.random.default_rng(seed)
    actions = np.where(rng.random(num_steps) < 0.5, 5, 1).astype(np.uint8)  # forward and left, or forward
    turn, step = torch.tensor(LABMAZE_ACTIONS.displacements)[actions.astype(np.int64)].double().unbind(1)
    yaw = math.radians(1) * turn.cumsum(0)
    places = [torch.cat([torch.zeros(1), (step * way).cumsum(0)]) for way in (yaw.cos(), yaw.sin())]
    return actions, torch.stack([*places, torch.cat([torch.zeros(1), yaw])], 1).float()


def write_walks(
    folder: Path, split: str, size: int = 32, num_steps: int = 40, drop: tuple[str, ...] = (), **changes: Any
) -> Path:
    """Record two walks with frames, poses in degrees and depths; `changes` replace fields of the first."""
    folder.mkdir(parents=True, exist_ok=True)
    header: dict[str, Any] = {"world": "LabMaze", "action_names": LABMAZE_ACTIONS.names, "settings": {}}
    header |= {"action_names": changes.pop("action_names")} if "action_names" in changes else {}

    with ShardWriter(
        folder / f"{split}-00000.h5", image_size=size, fields=LabMaze.fields, split=split, **header
    ) as shard:
        for seed in (0, 1):
            actions, poses = walk(num_steps, seed + (10 if split == "test" else 0))
            frames, _ = see(poses, size)
            arrays: dict[str, np.ndarray] = {
                "frames": frames.numpy(),
                "actions": actions,
                "rewards": np.zeros(num_steps, np.float32),
                "terminated": np.zeros(num_steps, bool),
                "truncated": np.zeros(num_steps, bool),
                "blocked": np.zeros(num_steps, bool),
                "pose": (poses * torch.tensor([1.0, 1.0, 180 / math.pi])).numpy(),
                "depth": see(poses, size // 2)[1].to(torch.float16).numpy(),
            }

            arrays |= changes if seed == 0 else {}
            kept = {name: value for name, value in arrays.items() if name not in drop}
            shard.write(kept, seed=seed, scene_seed=seed, policy="test")
    return folder
