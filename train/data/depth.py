"""What depth is trained on: frames, where each was seen from, and, where a recording has it, how far away it all is.

Owns: reading poses (recorded or reckoned from actions) and depths, with their checks; which frames make a pair; and
distortions of what the network is shown. Knows no loss.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from envs.data.episodes import EpisodeInfo, ShardInfo, read_episode
from envs.worlds.registry import find_displacements
from train.data.clips import list_episodes
from train.losses.photometric import window_means
from worldmodel.errors import DataError
from worldmodel.frames import to_pixels
from worldmodel.memory.camera import complete_poses
from worldmodel.memory.depth import halve_depth
from worldmodel.odometry import POSE_SIZE, walk_poses

SHARE_TORN, TORN = 0.25, 1.0  # of frames; deviation in pixels
REACHES = (1, 2, 3, 4, 5)  # steps between the frames of a pair: few for what is near, many for what is far


def read_poses(pose: np.ndarray, where: str) -> torch.Tensor:
    """Return recorded poses as float32 (T, 5): x, y, z, yaw, pitch, angles in radians.

    Args:
        pose: float (T, 3), x, y, heading in degrees; or (T, 5), x, y, z, yaw and pitch in degrees.
        where: the episode, for the message.

    Raises:
        DataError: another number of columns, or not finite.
    """
    if pose.shape[-1] not in (3, 5) or not np.isfinite(pose).all():
        found = f"{pose.shape[-1]} columns" if pose.shape[-1] not in (3, 5) else "values that are not finite"
        raise DataError(f"{where}: pose must be finite, with 3 or 5 columns; it has {found}: record it again")
    poses = torch.from_numpy(pose.astype(np.float32))
    is_angle = torch.arange(poses.shape[1]) >= (2 if poses.shape[1] == 3 else 3)
    return complete_poses(torch.where(is_angle, poses * (math.pi / 180), poses))


def reckon_poses(actions: np.ndarray, world: str, action_names: tuple[str, ...]) -> torch.Tensor:
    """Return poses float32 (T + 1, 5) that follow from actions (T,) of a world, from the origin.

    Raises:
        DataError: the displacements of these actions are not known.
    """
    displacements = find_displacements(world, action_names)
    if not displacements:
        raise DataError(
            f"depth is learned from frames and the poses they were seen from; the recording has no pose, and what its "
            f"actions {list(action_names)} do to one is not known: record the field pose, or give the world's actions "
            "their displacements (ActionSet.displacements)"
        )
    table = torch.tensor([*displacements, (0.0, 0.0)]) * torch.tensor([math.pi / 180, 1.0])
    taken = torch.from_numpy(actions.astype(np.int64))[None]
    start = torch.zeros(1, POSE_SIZE)
    return torch.cat([start[:, None], walk_poses(table, taken, start)], 1)[0]


def read_depth(depth: np.ndarray, image_size: int, where: str) -> torch.Tensor:
    """Return recorded depths, float (T, H, W) or (T, H / 2, W / 2), as float16 (T, H / 2, W / 2).

    Raises:
        DataError: another size, NaN, or not above 0. Infinity is sky.
    """
    if depth.shape[1:] not in ((image_size, image_size), (image_size // 2, image_size // 2)):
        raise DataError(
            f"{where}: depth is {depth.shape[1:]}; {image_size} x {image_size} or half of it is accepted: record again"
        )
    if not (depth > 0).all():  # so NaN is refused as well
        raise DataError(f"{where}: depth must be above 0 everywhere and not NaN: record it again")
    found = torch.from_numpy(depth)
    return (halve_depth(found) if depth.shape[1] == image_size else found).to(torch.float16)


@dataclass
class DepthData:
    """Frames end to end, where they were seen from, and which of them make pairs.

    Attributes:
        frames: uint8 (N, H, W, 3).
        poses: float32 (N, 5), angles in radians.
        depths: float16 (N, H / 2, W / 2), or None where an episode has none.
        centers: int64 (P,), frames that have one before and one after to be compared with.
        reaches: int64 (P,), how many steps before and after.
    """

    frames: torch.Tensor
    poses: torch.Tensor
    depths: torch.Tensor | None
    centers: torch.Tensor
    reaches: torch.Tensor

    @classmethod
    def load(cls, shards: list[ShardInfo], max_frames: int, min_walk: float) -> "DepthData":
        """Read whole episodes, up to about `max_frames` frames.

        Args:
            shards: from `envs.data.episodes.open_shards`, of one frame size and action set.
            max_frames: episodes are left out beyond it; the first is always read.
            min_walk: least distance between a frame and one of the two it is compared with, in the unit of poses.

        Raises:
            DataError: no poses and no displacements; a pose or depth not accepted; no pair with enough of a walk.
        """
        episodes = _choose(list_episodes(shards), max_frames)
        size, total = shards[0].image_size, sum(episode.num_frames for episode in episodes)
        has_depth = all("depth" in episode.fields for episode in episodes)
        frames = torch.empty(total, size, size, 3, dtype=torch.uint8)
        depths = torch.empty(total, size // 2, size // 2, dtype=torch.float16) if has_depth else None

        poses, pairs, start = [], [], 0
        for episode in tqdm(episodes, desc="reading frames", unit="episode", mininterval=2.0):
            names = [name for name in ("pose", "blocked") if name in episode.fields]
            arrays = read_episode(episode, fields=("frames", "actions", *names, *(["depth"] if has_depth else [])))
            where, stop = f"{episode.key} of {episode.path}", start + episode.num_frames
            frames[start:stop] = torch.from_numpy(arrays["frames"])
            if depths is not None:
                depths[start:stop] = read_depth(arrays["depth"], size, where)

            is_stopped = torch.zeros(episode.num_steps, dtype=torch.bool)
            if "pose" in arrays:
                found = read_poses(arrays["pose"], where)
            else:
                found = reckon_poses(arrays["actions"], shards[0].world, shards[0].action_names)
                if "blocked" in arrays:
                    is_stopped = torch.from_numpy(arrays["blocked"])
            poses.append(found)
            pairs += [(start + centers, reach) for reach, centers in _find_pairs(found, is_stopped, min_walk)]
            start = stop

        centers = torch.cat([part for part, _ in pairs]) if pairs else torch.zeros(0, dtype=torch.int64)
        if not has_depth and not len(centers):
            raise DataError(
                f"no {2 * REACHES[0] + 1} frames in a row of the recording lie {min_walk} or more apart: record longer "
                "episodes with more walking, or lower --min-walk"
            )

        reaches = torch.cat([torch.full_like(part, reach) for part, reach in pairs]) if pairs else centers
        return cls(frames, torch.cat(poses), depths, centers, reaches)

    def sample(self, count: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Draw frames for a photometric loss.

        Returns:
            pixels float32 (B, 3, H, W), poses (B, 5), sources (B, 2, 3, H, W) and source_poses (B, 2, 5).
        """
        pick = torch.randint(len(self.centers), (count,), generator=generator)
        at, reach = self.centers[pick], self.reaches[pick]
        others = torch.stack([at - reach, at + reach], 1)
        found = {"pixels": to_pixels(self.frames[at]), "sources": to_pixels(self.frames[others])}
        return found | {"poses": self.poses[at], "source_poses": self.poses[others]}

    def sample_labeled(self, count: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Draw frames with their depths: pixels float32 (B, 3, H, W) and depths float32 (B, H / 2, W / 2).

        Raises:
            DataError: the recording has no depth.
        """
        if self.depths is None:
            raise DataError("the recording has no field depth in every episode: record it with --depth")
        at = torch.randint(len(self.frames), (count,), generator=generator)
        return {"pixels": to_pixels(self.frames[at]), "depths": self.depths[at].float()}


def _choose(episodes: list[EpisodeInfo], max_frames: int) -> list[EpisodeInfo]:
    chosen: list[EpisodeInfo] = []
    total = 0
    for episode in episodes:
        total += episode.num_frames
        if chosen and total > max_frames:
            break
        chosen.append(episode)
    return chosen


def _find_pairs(poses: torch.Tensor, is_stopped: torch.Tensor, min_walk: float) -> list[tuple[int, torch.Tensor]]:
    """Return for each reach the frames with a walk to one of the two frames that far away, and no stopped step."""
    stops, found = F.pad(is_stopped.long().cumsum(0), (1, 0)), []
    for reach in REACHES:
        middle = torch.arange(reach, len(poses) - reach)
        before, after = middle - reach, middle + reach
        walks = torch.stack([(poses[middle] - poses[other])[:, :3].norm(dim=1) for other in (before, after)])
        is_fine = (walks.amax(0) >= min_walk) & (stops[after] == stops[before]) if len(middle) else middle.bool()
        found.append((reach, middle[is_fine]))
    return found


def tear(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return pixels (B, 3, H, W) each taken whole from a little beside its place, as a memory of dreams shows them.

    How far beside changes from square to square of 8 pixels, and a little from pixel to pixel.
    """
    batch, _, height, width = pixels.shape
    squares = torch.randn(batch, 2, max(1, height // 8), max(1, width // 8), generator=generator)
    shift = TORN * F.interpolate(squares, (height, width), mode="nearest")
    shift = shift + torch.randn(batch, 2, height, width, generator=generator) * 0.3 * TORN
    rows = (torch.arange(height)[:, None] + shift[:, 0]).round().long().clamp(0, height - 1)
    columns = (torch.arange(width) + shift[:, 1]).round().long().clamp(0, width - 1)
    place = (rows * width + columns).flatten(1)[:, None].expand(-1, pixels.shape[1], -1).to(pixels.device)
    return pixels.flatten(2).gather(2, place).view_as(pixels)


def distort(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return pixels (B, 3, H, W) as a dream might have them: a little noisy, soft, torn, or of another brightness."""
    size = (len(pixels), 1, 1, 1)
    soft = F.pad(window_means(pixels), (1, 1, 1, 1), mode="replicate")
    share, level, gain, is_soft, is_torn = (torch.rand(size, generator=generator) for _ in range(5))
    pixels = torch.where(is_torn < SHARE_TORN, tear(pixels, generator), pixels)
    pixels = torch.lerp(pixels, soft, share * (is_soft < 0.3))
    level = 0.12 * (level - 0.5).clamp_min(0)
    pixels = pixels + level * torch.randn(pixels.shape, generator=generator)
    return (pixels + 1) * (1 + 0.3 * (gain - 0.5)) - 1
