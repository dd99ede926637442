"""Remembered views: what was seen in each direction before, laid over the frame to come.

Owns: looking back by direction and place. For each column of the coming frame, old frames are searched for columns
that looked the same way from nearby; what they showed is averaged and given to the network on its channels, with how
sure the match is and how far off. Nothing is compared but poses, so it works from the first step of training on; a few
widths are learned. Knows no tokens, no noise and no cache.

The memory is latents: at 64 px and 8 x 8 x 8 latents 1 KiB a frame in 16 bits. Depth is unknown here, so what is near
comes back shifted; the network is told by how much the places differ and learns the rest.
"""

import math

import torch
from einops import rearrange
from torch import nn

from worldmodel.exact import ExactBuffers
from worldmodel.odometry import YAW, look_angles

NUM_FACTS = 4  # beside the latents: sureness, offset along the ray, offset across it, offset in direction


class RememberedViews(ExactBuffers):
    """Attention over poses: a softmax of Gaussian closeness in direction and place, and a null for "never seen"."""

    look: torch.Tensor

    def __init__(self, num_columns: int, view_deg: float, heads: int) -> None:
        """Look back with `heads` kernels of different widths.

        Args:
            num_columns: latent columns of a frame.
            view_deg: horizontal angle of view in degrees.
            heads: kernels, at least 1; the first is narrow, each next one wider.
        """
        super().__init__()
        widen = 2.0 ** torch.arange(heads)
        narrow = torch.tensor([math.radians(0.5 * view_deg / num_columns), 0.8, 0.3])  # direction, along, across
        self.log_width = nn.Parameter((narrow * widen[:, None] ** torch.tensor([0.4, 1.0, 1.0])).log())
        self.null = nn.Parameter(torch.full((heads,), -4.0))
        self.noise = nn.Parameter(torch.full((heads,), 10.0))  # what is nearly all noise says nothing
        self.age = nn.Parameter(torch.full((heads,), 0.003))  # of two equal matches the newer one counts more
        self.register_buffer("look", look_angles(num_columns, view_deg), persistent=False)

    @property
    def heads(self) -> int:
        """Kernels."""
        return len(self.null)

    def forward(
        self,
        poses: torch.Tensor,
        views: torch.Tensor,
        view_poses: torch.Tensor,
        levels: torch.Tensor,
        ages: torch.Tensor,
        is_seen: torch.Tensor,
    ) -> torch.Tensor:
        """Look back.

        Args:
            poses: float32 (B, T, 5) of the coming frames, as `worldmodel.odometry` has them.
            views: float (B, K, C, h, w), latents of old frames.
            view_poses: float32 (B, K, 5), where they were seen from.
            levels: float (B, K), how noisy the views are.
            ages: float or integer (B or 1, T, K), frames between.
            is_seen: bool (B or 1, T, K), which old frames each coming frame may use.

        Returns:
            float32 (B, T, heads * (C + 4), h, w): for each head the remembered latents, then how sure (0 to 1), and the
            mean offsets along the ray and across it (cells) and in direction (radians), zero where nothing was seen.
        """
        rays = poses[..., YAW, None] + self.look  # (B, T, w)
        old_rays = view_poses[..., YAW, None] + self.look  # (B, K, w)
        turn = rays[:, :, :, None, None] - old_rays[:, None, None]  # (B, T, w, K, w')
        offset = view_poses[:, None, :, :2] - poses[:, :, None, :2]  # (B, T, K, 2)
        x, y = (part[:, :, None] for part in offset.unbind(-1))
        cos, sin = rays.cos()[..., None], rays.sin()[..., None]
        along, across = x * cos + y * sin, y * cos - x * sin  # (B, T, w, K)
        parts = []
        hidden = torch.zeros_like(is_seen, dtype=torch.float32).masked_fill(~is_seen, float("-inf"))
        for head in range(self.heads):
            wide_turn, wide_along, wide_across = self.log_width[head].float().exp()
            place = (along / wide_along).square() + (across / wide_across).square()
            worth = hidden - self.age[head].float() * ages - (self.noise[head].float() * levels)[:, None]
            place = worth[:, :, None] - 0.5 * place
            scores = place[..., None] + (turn.cos() - 1) / wide_turn.square()
            null = self.null[head].float().expand(*scores.shape[:3], 1)
            weights = torch.cat([scores.flatten(3), null], -1).softmax(-1)[..., :-1].unflatten(-1, turn.shape[-2:])
            seen = torch.einsum("btwkv,bkchv->btchw", weights, views.float())
            of_frame = weights.sum(-1)  # (B, T, w, K)
            facts = [of_frame.sum(-1), (of_frame * along).sum(-1), (of_frame * across).sum(-1)]
            facts.append((weights * turn.sin()).sum((-1, -2)))
            told = torch.stack(facts, 2)[:, :, :, None].expand(-1, -1, -1, views.shape[3], -1)
            parts.append(torch.cat([seen, told], 2))
        return rearrange(torch.stack(parts, 2), "b t n c h w -> b t (n c) h w")
