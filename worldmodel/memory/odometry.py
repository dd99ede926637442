"""Odometry: where frames are seen from, by their actions alone, or as whoever fills in the poses knows better.

Owns: the displacements of actions as a buffer. What it tells goes into rotary positions, so that attention finds by
direction and place; it keeps nothing itself. Knows no obstacle.
"""

import math

import torch

from worldmodel.cache import MemoryCache
from worldmodel.config import DenoiserConfig
from worldmodel.inputs import FrameInputs
from worldmodel.memory.base import Memory, PoseEstimate, Reading, start_pose
from worldmodel.odometry import walk_poses


class Odometry(Memory):
    """Adds up the displacements of actions."""

    displacements: torch.Tensor
    is_true_in_training = True

    def __init__(self, config: DenoiserConfig) -> None:
        """Take the displacements of a config."""
        super().__init__()
        table = torch.tensor([*config.displacements, (0.0, 0.0)], dtype=torch.float32)
        self.register_buffer(
            "displacements", table * torch.tensor([math.pi / 180, 1.0], dtype=torch.float32), persistent=False
        )

    @classmethod
    def build(cls, config: DenoiserConfig) -> "Odometry | None":
        """Return one if actions have displacements."""
        return cls(config) if config.displacements else None

    def read(self, frames: FrameInputs, past: MemoryCache | None, estimate: PoseEstimate) -> Reading:
        """Tell where the frames are seen from: `FrameInputs.poses`, where they are given."""
        start = start_pose(frames, past)
        poses = walk_poses(self.displacements, frames.actions, start) if frames.poses is None else frames.poses
        return Reading(PoseEstimate(poses, torch.cat([start[:, None], poses[:, :-1]], 1)))
