"""What a frame tells of the space around it: how far the walls are, and how far a walk gets before one stops it.

Owns: a small network on latents, trained once on recorded poses (`train.geometry`) and fixed while the denoiser learns.
Knows no tokens, no memory and no maze: a world whose recordings have no poses does without it.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from worldmodel.errors import ConfigError
from worldmodel.inputs import Prefer
from worldmodel.memory.collision import BODY_RADIUS, is_stood_on, locate_columns
from worldmodel.odometry import YAW

NEAREST, FARTHEST = 0.1, 12.0  # cells; what lies beyond is taken to lie there
# In dreams what was seen first counts most. Among true frames the newest are the best guide; that is what training
# learns, and what the denoiser must learn from, or it trusts itself more than the memory. But a dream that looks at its
# own last frames first repeats whatever they got wrong.
DREAM_AGE = -0.5
# Of this many times the pieces that a column blends, those that stand where one has stood are left out in dreams.
CANDIDATES = 3
WALK_SCALE = 0.1  # cells; brings what the network says of walks to about one


class Survey(NamedTuple):
    """What frames tell of the space around them.

    Attributes:
        depths: float32 (B, T, w), log of the distance of what each column shows, in cells along the heading.
        walks: float32 (B, T, 2), what the walk of the action to come gets on top of what it gets in the open (less,
            where a wall is near): cells along the new heading and to its left. Zero for the action "none".
        past_walks: float32 (B, T, 2), the same of the step that led to the frame, as seen from what changed.
    """

    depths: torch.Tensor
    walks: torch.Tensor
    past_walks: torch.Tensor


class Geometry(nn.Module):
    """Latents in, distances of their columns and corrections of walks out."""

    def __init__(self, latent_channels: int, latent_size: int, num_actions: int, width: int = 48) -> None:
        """Build an untrained one.

        Args:
            latent_channels: channels of a latent.
            latent_size: height and width of a latent.
            num_actions: size of the action set; "none" comes on top.
            width: channels of the hidden layers.
        """
        super().__init__()
        self.num_actions = num_actions
        layers: list[nn.Module] = []
        for channels in (2 * latent_channels + 2, width, width):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.SiLU()]
        self.body = nn.Sequential(*layers)
        column = width * latent_size
        self.to_depths = nn.Sequential(
            nn.Conv1d(column, 2 * width, 3, padding=1), nn.SiLU(), nn.Conv1d(2 * width, 1, 3, padding=1)
        )
        walks = 2 * 2 * (num_actions + 1)  # the walk to come and the one before, ahead and left, for every action
        self.to_walks = nn.Sequential(
            nn.Linear(column * latent_size, 2 * width), nn.SiLU(), nn.Linear(2 * width, walks)
        )
        for last in (list(self.to_depths)[-1], list(self.to_walks)[-1]):
            for weight in last.parameters():  # at first everything is one cell away, and walks go as they should
                nn.init.zeros_(weight)

    def forward(
        self,
        previous: torch.Tensor,
        previous_levels: torch.Tensor,
        actions: torch.Tensor,
        past_actions: torch.Tensor,
    ) -> Survey:
        """Say what frames show, how walking on from them goes, and how far the step that led to them got.

        Args:
            previous: float (B, T, 2, C, h, w), frames at `previous_levels`, each with the one before it.
            previous_levels: float (B, T, 2); 1 where there is no frame.
            actions: int64 (B, T), 0..num_actions, the action taken at each frame.
            past_actions: int64 (B, T), the action that led to it.
        """
        batch, frames = actions.shape
        dtype = next(self.to_walks.parameters()).dtype
        noise = previous_levels[..., None, None].expand(-1, -1, -1, *previous.shape[4:]).to(previous.dtype)
        seen = torch.cat([previous.flatten(2, 3), noise], 2).flatten(0, 1).to(dtype)
        seen = self.body(seen)
        depths = self.to_depths(seen.flatten(1, 2)).float().clamp(math.log(NEAREST), math.log(FARTHEST))
        walks = self.to_walks(seen.flatten(1)).float().unflatten(1, (2, -1, 2)) * WALK_SCALE
        rows = torch.arange(len(walks), device=walks.device)
        parts = []
        for which, taken in enumerate((actions.flatten(), past_actions.flatten())):
            part = walks[rows, which, taken] * (taken < self.num_actions)[:, None]
            parts.append(part.unflatten(0, (batch, frames)))
        return Survey(depths[:, 0].unflatten(0, (batch, frames)), *parts)


class ReprojectedViews(nn.Module):
    """Old frames as seen from where the coming frame will be: every column is a piece of wall with a place.

    Each column of each old frame is put where its distance says, and projected into the coming frame. For each column
    there, the pieces that land nearest to it are blended: nearer walls hide farther ones, less noisy frames count more,
    and a null piece stands for "never seen". Rows are stretched as the change of distance asks. A few numbers are
    learned, with the geometry; where no wall is vertical, this is not the memory to use.

    Of equal pieces the newer ones count more, as was learned from true frames, or in dreams the older ones (`prefer`).
    In dreams no piece counts within a body's radius of the coming place or of one that one has stood at
    (`worldmodel.memory.collision`).

    Source: splatting with a soft depth test (Niklaus & Liu 2020), in latents and by columns; our own.
    """

    NUM_FACTS = 6  # sureness, log distance, log magnification, offset of the column, age, level

    def __init__(self, latent_size: int, view_deg: float, points: int, heads: int = 2) -> None:
        """Blend `points` old columns into each new one, in `heads` degrees of sharpness.

        Args:
            latent_size: rows and columns of a latent.
            view_deg: angle of view in degrees, across and upright.
            points: pieces that are blended.
            heads: blends; each next one is sharper.
        """
        super().__init__()
        self.tangent = math.tan(math.radians(view_deg) / 2)
        self.size, self.points, self.heads = latent_size, points, heads
        self.log_width = nn.Parameter(torch.tensor(math.log(0.5)))  # columns
        self.nearness = nn.Parameter(torch.tensor(5.0))
        self.zoom = nn.Parameter(torch.tensor([0.5, 0.25]))  # cost of magnifying, of shrinking
        self.age = nn.Parameter(torch.tensor(0.3))
        self.noise = nn.Parameter(torch.tensor(6.0))
        self.null = nn.Parameter(torch.tensor(-8.0))

    def slopes(self, device: torch.device) -> torch.Tensor:
        """Return how far the middle of each column looks to the left at distance 1, float32 (w,)."""
        return self.tangent * (1.0 - (2.0 * torch.arange(self.size, device=device) + 1.0) / self.size)

    def forward(
        self,
        poses: torch.Tensor,
        columns: torch.Tensor,
        view_poses: torch.Tensor,
        depths: torch.Tensor,
        levels: torch.Tensor,
        ages: torch.Tensor,
        is_seen: torch.Tensor,
        prefer: Prefer = "newest",
    ) -> torch.Tensor:
        """Look back.

        Args:
            poses: float32 (B, T, 5) of the coming frames, as `worldmodel.odometry` has them.
            columns: float (B, K, w, h, C), latents of old frames, column by column.
            view_poses: float32 (B, K, 5), where they were seen from.
            depths: float32 (B, K, w), log distances of their columns.
            levels: float (B, K), how noisy the views are.
            ages: integer (B or 1, T, K), frames between.
            is_seen: bool (B or 1, T, K), which old frames each coming frame may use.
            prefer: which frames count more where several show the same; where the oldest do, as in dreams, walls that a
                body contradicts do not count.

        Returns:
            float32 (B, T, heads * (C + NUM_FACTS), h, w): for each head the remembered latents, then facts, zero where
            nothing was seen.
        """
        batch, frames, size = poses.shape[0], poses.shape[1], self.size
        slope = self.slopes(poses.device)
        x, y = locate_columns(view_poses, depths.float().exp(), slope).unbind(-1)  # (B, K, w)
        cos, sin = poses[..., YAW].cos()[..., None], poses[..., YAW].sin()[..., None]
        to_x = x.flatten(1)[:, None] - poses[..., 0, None]  # (B, T, K w)
        to_y = y.flatten(1)[:, None] - poses[..., 1, None]
        ahead, left = to_x * cos + to_y * sin, to_y * cos - to_x * sin
        is_ahead = ahead > 0.99 * NEAREST  # what is nearest counts when one comes back to the same place
        if prefer == "oldest":
            is_ahead = is_ahead & (to_x.square() + to_y.square() > BODY_RADIUS**2)
        far = ahead.clamp_min(NEAREST).log()
        zoom = depths.float().flatten(1)[:, None] - far  # log magnification: seen from farther than it will be
        place = (1.0 - left / ahead.clamp_min(NEAREST) / self.tangent) * (0.5 * size) - 0.5  # in columns
        old = (1.0 + ages.float()).log()
        cost = (self.age if prefer == "newest" else DREAM_AGE) * old + (self.noise * levels.float())[:, None]
        cost = cost.masked_fill(~is_seen, 1e4).expand(batch, -1, -1).repeat_interleave(size, 2)
        cost = cost + self.nearness * far + self.zoom[0] * zoom.clamp_min(0) + self.zoom[1] * (-zoom).clamp_min(0)
        cost = torch.where(is_ahead & (place > -2.0) & (place < size + 1.0), cost, 1e4)
        narrow = torch.exp(-2.0 * (self.log_width + zoom.clamp_min(0)))
        target = torch.arange(size, device=poses.device, dtype=torch.float32)[:, None]
        scores = -cost[:, :, None] - 0.5 * narrow[:, :, None] * (place[:, :, None] - target).square()
        candidates = self.points * (CANDIDATES if prefer == "oldest" else 1)
        best, index = scores.topk(min(candidates, scores.shape[-1]), -1)  # (B, T, w, P)
        if prefer == "oldest":
            flat = index.flatten(2)
            points = torch.stack([part.gather(2, flat) for part in (to_x, to_y)], -1)
            places = view_poses[:, None, :, :2] - poses[:, :, None, :2]
            is_free = is_stood_on(points, places, is_seen).unflatten(2, index.shape[2:])
            best, order = best.masked_fill(is_free, -1e4).topk(min(self.points, best.shape[-1]), -1)
            index = index.gather(-1, order)
        flat = index.flatten(2)

        def pick(values: torch.Tensor) -> torch.Tensor:
            return values.expand(batch, frames, -1).gather(2, flat).unflatten(2, index.shape[2:])

        far, zoom, shift = pick(far), pick(zoom), pick(place) - target
        aged = pick(old.expand(batch, -1, -1).repeat_interleave(size, 2))
        noisy = pick(levels.float().repeat_interleave(size, 1)[:, None])
        row = torch.arange(size, device=poses.device, dtype=torch.float32)
        upright = (2.0 * row + 1.0) / size - 1.0
        source = (upright * (-zoom).exp()[..., None] + 1.0) * (0.5 * size) - 0.5
        hats = (1.0 - (source.clamp(0, size - 1)[..., None] - row).abs()).clamp_min(0)  # (B, T, w, P, h, h')
        rows = torch.arange(batch, device=poses.device)[:, None]
        pieces = columns.flatten(1, 2)[rows, flat.flatten(1)].float()
        pieces = pieces.unflatten(1, (frames, *index.shape[2:]))  # (B, T, w, P, h', C)
        parts = []
        for head in range(self.heads):
            sharpness = 3.0**head
            null = self.null.expand(*best.shape[:3], 1)
            weights = torch.cat([best, null], -1).mul(sharpness).softmax(-1)[..., :-1]
            blend = (weights[..., None, None] * hats).transpose(3, 4).flatten(4) @ pieces.flatten(3, 4)  # (.., h, C)
            facts = [weights.sum(-1)]
            facts += [(weights * fact).sum(-1) for fact in (far, zoom, shift, 0.2 * aged, noisy)]
            told = torch.stack(facts, -1)[..., None, :].expand(-1, -1, -1, size, -1)
            parts.append(torch.cat([blend, told], -1))
        return torch.cat(parts, -1).permute(0, 1, 4, 3, 2)  # (B, T, w, h, .) -> (B, T, ., h, w)


@dataclass(frozen=True)
class SpatialConfig:
    """Shape of a spatial memory.

    Attributes:
        latent_channels: channels of a latent.
        latent_size: height and width of a latent.
        num_actions: size of the action set; "none" comes on top.
        view_deg: angle of view in degrees, across and upright.
        points: pieces of old frames that are blended into each column of the coming frame.
        heads: blends, each next one sharper.
        width: channels of the hidden layers of `Geometry`.
    """

    latent_channels: int
    latent_size: int
    num_actions: int
    view_deg: float
    points: int = 12
    heads: int = 2
    width: int = 48

    def __post_init__(self) -> None:
        for name in ("latent_channels", "latent_size", "num_actions", "points", "heads", "width"):
            if getattr(self, name) < 1:
                raise ConfigError(f"spatial memory: {name} must be at least 1; got {getattr(self, name)}")
        if not 0 < self.view_deg < 180:
            raise ConfigError(f"spatial memory: view_deg must be above 0 and below 180; got {self.view_deg}")


class SpatialMemory(nn.Module):
    """Geometry and reprojected views: trained together by `train.geometry`, then a fixed part of a denoiser."""

    def __init__(self, config: SpatialConfig) -> None:
        """Build an untrained one."""
        super().__init__()
        self.config = config
        self.geometry = Geometry(config.latent_channels, config.latent_size, config.num_actions, config.width)
        self.views = ReprojectedViews(config.latent_size, config.view_deg, config.points, config.heads)

    @property
    def num_channels(self) -> int:
        """Channels that the views give for each latent pixel."""
        return self.config.heads * (self.config.latent_channels + ReprojectedViews.NUM_FACTS)
