"""Remembered views: latents of old frames, laid over each frame to come by where both are seen from.

Owns: which old frames a frame may look back at, what a cache keeps of them, and how what is laid joins the tokens. Two
ways of laying: `worldmodel.geometry` (columns with distances, which also tells where walls stop a step) and
`worldmodel.views` (kernels over directions and places).
"""

from typing import cast

import torch
from einops import rearrange
from torch import nn

from worldmodel.cache import MemoryCache
from worldmodel.config import DenoiserConfig
from worldmodel.geometry import SpatialConfig, SpatialMemory, Survey
from worldmodel.inputs import FrameInputs, Prefer
from worldmodel.memory.base import Memory, PoseEstimate, Reading, RingShape, frame_positions, start_pose
from worldmodel.memory.collision import Walls
from worldmodel.memory.odometry import motion_table
from worldmodel.odometry import POSE_SIZE, step_known_ways, step_poses, walk_poses
from worldmodel.views import NUM_FACTS, RememberedViews


class ViewEmbedding(nn.Linear):
    """What is laid over a frame becomes patch tokens; at first as if nothing were."""

    def __init__(self, channels: int, patch: int, width: int) -> None:
        """Take patches of `channels` latent channels to `width`."""
        super().__init__(channels * patch**2, width, bias=False)
        self.patch = patch
        nn.init.zeros_(self.weight)

    def forward(self, laid: torch.Tensor) -> torch.Tensor:
        """Return (B, T, P, D) of (B, T, channels, h, w)."""
        patches = rearrange(laid, "b t c (h p) (w q) -> b t (h w) (c p q)", p=self.patch, q=self.patch)
        return super().forward(patches.to(self.weight.dtype))


class ViewMemory(Memory):
    """Looks back at the frames before; members lay them.

    Attributes:
        least_age: entries younger than this are left out; entry t holds frame t - 1.
    """

    is_true_in_training = True
    least_age: int
    num_facts: int

    def __init__(self, config: DenoiserConfig, channels: int) -> None:
        """Embed `channels` channels of what is laid."""
        super().__init__()
        self.config = config
        self.embed = ViewEmbedding(channels, config.patch, config.width)

    def cache_shapes(self, memory_frames: int) -> dict[str, RingShape]:
        """Return the shapes of views and of facts about them: pose, level and what else a member keeps."""
        config, size = self.config, self.config.latent_size
        frames = min(memory_frames, config.view_reach)
        return {
            "views": RingShape(1, 1, frames, size, size * config.latent_channels),
            "view_poses": RingShape(1, 1, frames, 1, POSE_SIZE + 1 + self.num_facts, is_exact=True),
        }

    def may_look_back(self, age: torch.Tensor, held: torch.Tensor, reach: int) -> torch.Tensor:
        """Return which entries a frame may look back at, bool (B, T, K).

        Args:
            age: integer (B, T, K), frames between.
            held: integer (B, K), the positions of the entries.
            reach: frames looked back at.
        """
        return (age >= self.least_age) & (age < reach) & (held >= 1)[:, None]

    def _look(
        self,
        frames: FrameInputs,
        past: MemoryCache | None,
        prefer: Prefer,
        estimate: PoseEstimate,
        more_facts: list[torch.Tensor],
    ) -> Reading:
        """Lay the views of the cache and of the frames before each frame over it.

        Args:
            frames, past, prefer, estimate: as `read`.
            more_facts: float32 (B, T, .), what is kept beside pose and level.
        """
        new = rearrange(frames.previous[:, :, 0], "b t c h w -> b t w (h c)")
        facts = torch.cat([estimate.before, frames.previous_levels[:, :, :1].float(), *more_facts], -1)
        positions, reach = frame_positions(frames, past), self.config.view_reach
        held, columns, known = positions, new, facts
        if past is not None:
            old = past.rings["views"][0, :, 0]  # (B, F, w, h C)
            reach = min(reach, old.shape[1])
            held = torch.cat([past.positions("views"), positions], 1)
            columns = torch.cat([old, new.to(old.dtype)], 1)
            known = torch.cat([past.rings["view_poses"][0, :, 0, :, 0], facts], 1)
        age = positions[:, :, None] - held[:, None]
        is_seen = self.may_look_back(age, held, reach)
        columns = columns.unflatten(-1, (self.config.latent_size, self.config.latent_channels))
        added = self.embed(self._lay(estimate.poses, columns, known, age, is_seen, prefer))
        written = {} if past is None else {"views": [new[:, :, None]], "view_poses": [facts[:, :, None, None]]}
        return Reading(estimate, added, written=written)

    def _lay(
        self,
        poses: torch.Tensor,
        columns: torch.Tensor,
        facts: torch.Tensor,
        age: torch.Tensor,
        is_seen: torch.Tensor,
        prefer: Prefer,
    ) -> torch.Tensor:
        """Lay old frames, (B, K, w, h, C), over the frames to come; return float32 (B, T, channels, h, w)."""
        raise NotImplementedError


class KernelViews(ViewMemory):
    """Views laid by direction and place alone; the newest frames are left to the channels."""

    num_facts = 0

    def __init__(self, config: DenoiserConfig) -> None:
        """Build the kernels of a config."""
        super().__init__(config, config.view_heads * (config.latent_channels + NUM_FACTS))
        self.views = RememberedViews(config.latent_size, config.view_deg, config.view_heads)
        self.least_age = config.num_previous

    @classmethod
    def build(cls, config: DenoiserConfig) -> "KernelViews | None":
        """Return one if the config has kernels."""
        return cls(config) if config.view_heads else None

    def read(self, frames: FrameInputs, past: MemoryCache | None, prefer: Prefer, estimate: PoseEstimate) -> Reading:
        """Lay remembered views over the frames."""
        return self._look(frames, past, prefer, estimate, [])

    def _lay(
        self,
        poses: torch.Tensor,
        columns: torch.Tensor,
        facts: torch.Tensor,
        age: torch.Tensor,
        is_seen: torch.Tensor,
        prefer: Prefer,
    ) -> torch.Tensor:
        levels = facts[..., POSE_SIZE]
        laid = self.views(poses, columns.permute(0, 1, 4, 3, 2), facts[..., :POSE_SIZE], levels, age, is_seen)
        return cast("torch.Tensor", laid)


class ColumnViews(ViewMemory):
    """Views laid column by column where their walls stand, and where frames are, as far as walls let them.

    The spatial memory is trained before, by `train.geometry`, and fixed.
    """

    motions: torch.Tensor
    least_age = 0

    def __init__(self, config: DenoiserConfig, spatial: SpatialConfig) -> None:
        """Build the spatial memory of a config."""
        own = SpatialMemory(spatial)
        super().__init__(config, own.num_channels)
        self.spatial = own.requires_grad_(False)
        self.num_facts = config.latent_size
        self.register_buffer("motions", motion_table(config), persistent=False)

    @classmethod
    def build(cls, config: DenoiserConfig) -> "ColumnViews | None":
        """Return one if the config has a spatial memory."""
        return None if config.spatial is None else cls(config, config.spatial)

    def read(self, frames: FrameInputs, past: MemoryCache | None, prefer: Prefer, estimate: PoseEstimate) -> Reading:
        """Tell where the frames are seen from, and lay remembered views over them."""
        with torch.no_grad():
            estimate, survey = self.locate(frames, past, prefer)
        return self._look(frames, past, prefer, estimate, [survey.depths])

    def locate(self, frames: FrameInputs, past: MemoryCache | None, prefer: Prefer) -> tuple[PoseEstimate, Survey]:
        """Return where the frames are seen from, and what those before them tell.

        Where the oldest frames win, as in dreams, no wall stops a step to where one has been: what is between was free
        then, whatever the last frames look like. Without it a way back ends short of where it began. Any other step
        ends at least a walker's radius away from remembered walls (`worldmodel.memory.collision`).

        Args: as `read`.
        """
        start = start_pose(frames, past)
        none = torch.full_like(frames.actions[:, 0], self.config.num_actions)
        last_action = none if past is None else past.last_action
        past_actions = torch.cat([last_action[:, None], frames.actions[:, :-1]], 1)
        pairs = frames.previous[:, :, :2], frames.previous_levels[:, :, :2]
        survey: Survey = self.spatial.geometry(*pairs, frames.actions, past_actions)
        if prefer == "newest":
            before = walk_poses(self.motions, past_actions, start, survey.past_walks)
            poses = step_poses(self.motions, frames.actions, before, survey.walks)
        else:
            before, poses = self._walk_where_one_has_been(survey, frames, past_actions, past)
        return PoseEstimate(poses, before, before), survey

    def _walk_where_one_has_been(
        self, survey: Survey, frames: FrameInputs, past_actions: torch.Tensor, past: MemoryCache | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the poses before and of each frame; walls stop only steps that leave what is remembered."""
        positions, reach = frame_positions(frames, past), self.config.view_reach
        slopes, depths = self.spatial.views.slopes(positions.device), survey.depths.exp()
        pose, before, poses = start_pose(frames, past), [], []
        if past is None:
            held = torch.zeros_like(positions[:, :1])
            facts = torch.cat([pose, pose.new_zeros(len(pose), 1 + self.num_facts)], -1)[:, None]
        else:
            ring = past.rings["view_poses"]
            held, facts, reach = past.positions("views"), ring[0, :, 0, :, 0], min(reach, ring.shape[3])
        old, _, distances = facts.split((POSE_SIZE, 1, self.num_facts), -1)
        been, walls = old[..., :2], Walls.of_frames(old, distances.exp(), slopes)
        for j in range(frames.num_frames):
            now, age = positions[:, j : j + 1], positions[:, j : j + 1] - held
            is_known = self.may_look_back(age[:, None], held, reach)[:, 0]
            action = past_actions[:, j]
            free, share = step_known_ways(self.motions, pose, action, survey.past_walks[:, j], been, is_known)
            pose = walls.push_out(pose, free, is_known, self.motions[action, 1].abs(), share)
            before.append(pose)
            been, held = torch.cat([been, pose[:, None, :2]], 1), torch.cat([held, now], 1)
            is_known = torch.cat([is_known, now >= 1], 1)
            walls = walls.and_those_of(Walls.of_frames(pose[:, None], depths[:, j, None], slopes))
            action = frames.actions[:, j]
            free, share = step_known_ways(self.motions, pose, action, survey.walks[:, j], been, is_known)
            poses.append(walls.push_out(pose, free, is_known, self.motions[action, 1].abs(), share))
        return torch.stack(before, 1), torch.stack(poses, 1)

    def _lay(
        self,
        poses: torch.Tensor,
        columns: torch.Tensor,
        facts: torch.Tensor,
        age: torch.Tensor,
        is_seen: torch.Tensor,
        prefer: Prefer,
    ) -> torch.Tensor:
        old, level, depths = facts.split((POSE_SIZE, 1, self.num_facts), -1)
        with torch.no_grad():
            laid = self.spatial.views(poses, columns, old, depths, level[..., 0], age.clamp_min(0), is_seen, prefer)
        return cast("torch.Tensor", laid)
