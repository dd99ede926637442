"""Program: train the spatial memory. `python -m train.geometry --data DIR --codec DIR --out DIR`.

Owns: labels of what frames show (distances by ray casting, walks by recorded poses), the loss of distances, walks and
reprojected views, and how good they are on held-out mazes. The loop is `train.loop`'s.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from envs.actions import find_motions
from envs.episodes import ShardInfo, open_shards, read_episode
from envs.sources.labmaze_scene import FOV_DEG
from train.data import draw_clips, encode_recording
from train.loop import Machine, TrainOptions, start_machine, train_model
from train.options import options_to_json, parse_options, run_program, save_json
from train.sight import SIGHT_FIELDS, check_sight_fields, look
from worldmodel.checkpoint import codec_hash, load_codec, save_bundle
from worldmodel.errors import ConfigError, DataError
from worldmodel.geometry import FARTHEST, NEAREST, WALK_SCALE, SpatialConfig, SpatialMemory, Survey
from worldmodel.noise import add_noise
from worldmodel.odometry import YAW, ground_poses, walk_poses


@dataclass(frozen=True)
class GeometryOptions(TrainOptions):
    """Train what tells how far walls are and how far walks get, on recorded poses."""

    codec: Path = field(default_factory=lambda: Path("runs/codec"))
    """Folder of the trained codec (train.codec)."""
    minutes: float = 8.0
    """Training time."""
    batch_size: int = 6
    """Clips a step and process."""
    clip_frames: int = 64
    """Frames of a clip."""
    learning_rate: float = 2e-3
    """Peak learning rate."""
    max_episodes: int = 400
    """Episodes read; poses and latents of a few hundred mazes are enough."""
    points: int = 12
    """Pieces of old frames that are blended into each column of the coming frame."""


@dataclass
class PosedData:
    """Latents with the poses they were seen from.

    Attributes:
        latents: float16 (N, C, h, w).
        actions: uint8 (N,), the action into each frame.
        poses: float32 (N, 5), as `worldmodel.odometry` has them.
        depths: float32 (N, w), log distance of each column, cells along the heading.
        lengths: int64 (E,), frames of each episode.
    """

    latents: torch.Tensor
    actions: torch.Tensor
    poses: torch.Tensor
    depths: torch.Tensor
    lengths: torch.Tensor

    @classmethod
    def load(cls, shards: list[ShardInfo], folder: Path, identity: str, max_episodes: int) -> "PosedData":
        """Read the latents of up to `max_episodes` episodes, with poses and distances.

        Raises:
            DataError: recorded without pose or layout, or not encoded.
        """
        parts: list[tuple[torch.Tensor, ...]] = []
        lengths: list[int] = []
        for shard in tqdm(shards, desc="casting rays", unit="shard", mininterval=2.0):
            if len(lengths) >= max_episodes:
                break
            path = folder / f"{shard.path.stem}.{identity[:12]}.safetensors"
            latents = load_file(path)
            if latents["lengths"].tolist() != [episode.num_frames for episode in shard.episodes]:
                raise DataError(f"{path} does not hold the episodes of {shard.path}: delete it and run again")
            size = latents["latents"].shape[-1]
            for episode in shard.episodes:
                check_sight_fields(episode)
                arrays = read_episode(episode, fields=SIGHT_FIELDS)
                distances = look(arrays["layout"], arrays["pose"], size).distances.clip(NEAREST, FARTHEST)
                pose = torch.from_numpy(arrays["pose"].astype(np.float32))
                pose[:, 2] = pose[:, 2] * (math.pi / 180)
                parts.append((ground_poses(pose), torch.from_numpy(np.log(distances).astype(np.float32))))
                lengths.append(episode.num_frames)
            parts[-1] = (*parts[-1], latents["latents"], latents["actions"])
        poses, depths = (torch.cat([part[i] for part in parts]) for i in range(2))
        encoded, actions = (torch.cat([part[i] for part in parts if len(part) == 4]) for i in (2, 3))
        return cls(encoded, actions, poses, depths, torch.tensor(lengths))

    def sample_clips(self, num_clips: int, num_frames: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Cut random clips: latents float32 (B, T, C, h, w), actions int64, poses and depths float32."""
        index = draw_clips(self.lengths, num_clips, num_frames, generator)
        found = {"latents": self.latents[index].float(), "actions": self.actions[index].long()}
        return found | {"poses": self.poses[index], "depths": self.depths[index]}


class GeometryLoss(nn.Module):
    """The loss of a spatial memory over clips with known poses."""

    motions: torch.Tensor

    def __init__(self, spatial: SpatialMemory, motions: torch.Tensor) -> None:
        """Train `spatial`; `motions` as `worldmodel.odometry.walk_poses` takes them."""
        super().__init__()
        self.spatial = spatial
        self.register_buffer("motions", motions, persistent=False)

    def forward(
        self,
        latents: torch.Tensor,
        actions: torch.Tensor,
        poses: torch.Tensor,
        depths: torch.Tensor,
        noise: torch.Tensor,
        levels: torch.Tensor,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the loss and scalars to log.

        Args:
            latents: float (B, T, C, h, w), clean.
            actions: int64 (B, T), the action into each frame.
            poses, depths: of each frame.
            noise: standard normal, the shape of `latents`.
            levels: float (B, T), of the frames shown.
        """
        shown = add_noise(latents, noise, levels)
        found = survey_clip(self.spatial, shown, levels, actions)
        past, past_levels = shown[:, :-1], levels[:, :-1]
        depth_error = F.smooth_l1_loss(found.depths, depths[:, :-1], beta=0.1, reduction="none").mean(-1)
        wanted = walk_shortfall(poses, actions, self.motions) / WALK_SCALE
        walk_error = F.smooth_l1_loss(found.walks / WALK_SCALE, wanted, beta=0.1)
        past_error = F.smooth_l1_loss(found.past_walks[:, 1:] / WALK_SCALE, wanted[:, :-1], beta=0.1)
        ages = torch.arange(past.shape[1], device=latents.device)
        ages = (ages[:, None] - ages)[None]
        laid = self.spatial.views(
            poses[:, 1:],
            past.permute(0, 1, 4, 3, 2),
            poses[:, :-1],
            found.depths.detach(),
            past_levels,
            ages.clamp_min(0),
            ages >= 0,
        )
        heads, channels = self.spatial.config.heads, latents.shape[2]
        blends = laid.unflatten(2, (heads, -1))[:, :, :, :channels]
        view_error = (blends - latents[:, 1:, None]).square().mean((0, 1, 3, 4, 5))
        scalars = {
            "depth_loss": depth_error.mean().detach(),
            "walk_loss": walk_error.detach(),
            "past_walk_loss": past_error.detach(),
            "view_error": view_error[0].detach(),
            "sharp_view_error": view_error[-1].detach(),
            "copy_error": (latents[:, 1:] - past).square().mean().detach(),
        }
        return depth_error.mean() + walk_error + past_error + 0.3 * view_error.sum(), scalars


def survey_clip(spatial: SpatialMemory, shown: torch.Tensor, levels: torch.Tensor, actions: torch.Tensor) -> Survey:
    """Survey all frames of clips but the last.

    Args:
        spatial: what surveys.
        shown: float (B, T, C, h, w), frames at `levels`.
        levels: float (B, T).
        actions: int64 (B, T), the action into each frame.

    Returns:
        for T - 1 frames; the walks to come are those of `actions[:, 1:]`.
    """
    before, before_levels = F.pad(shown[:, :-2], (0, 0, 0, 0, 0, 0, 1, 0)), F.pad(levels[:, :-2], (1, 0), value=1.0)
    pairs = torch.stack([shown[:, :-1], before], 2), torch.stack([levels[:, :-1], before_levels], 2)
    found: Survey = spatial.geometry(*pairs, actions[:, 1:], actions[:, :-1])
    return found


def walk_shortfall(poses: torch.Tensor, actions: torch.Tensor, motions: torch.Tensor) -> torch.Tensor:
    """Return how recorded steps differ from what the actions do in the open: what `Geometry` says of walks.

    Args:
        poses: float32 (B, T, 5).
        actions: int64 (B, T), the action into each frame.
        motions: as `walk_poses`.

    Returns:
        float32 (B, T - 1, 2), cells along the new heading and to its left.
    """
    step = poses[:, 1:, :2] - poses[:, :-1, :2]
    cos, sin = poses[:, 1:, YAW].cos(), poses[:, 1:, YAW].sin()
    ahead, left = step[..., 0] * cos + step[..., 1] * sin, step[..., 1] * cos - step[..., 0] * sin
    return torch.stack([ahead - motions[actions[:, 1:], 1], left], -1)


def has_geometry(shards: list[ShardInfo]) -> bool:
    """Whether a recording tells what a spatial memory learns from: poses, layouts and motions of the actions."""
    fields = {name for shard in shards for episode in shard.episodes for name in SIGHT_FIELDS if name in episode.fields}
    return bool(find_motions(shards[0].action_names)) and fields == set(SIGHT_FIELDS)


def motions_of(names: tuple[str, ...]) -> tuple[tuple[float, float], ...]:
    """Return the motions of an action set.

    Raises:
        ConfigError: they are not known.
    """
    motions = find_motions(names)
    if not motions:
        raise ConfigError(f"a spatial memory needs actions with known motions; of {list(names)} none are known")
    return motions


@torch.inference_mode()
def measure(loss: GeometryLoss, data: PosedData, num_clips: int, num_frames: int, seed: int) -> dict[str, float]:
    """Measure on clips of held-out mazes, at the level of play.

    Returns:
        relative error of distances (median), error of the place after `num_frames` frames by the corrected walks and by
        actions alone (median and 90th percentile, cells), and the error of views beside that of copying.
    """
    generator = torch.Generator().manual_seed(seed)
    totals: dict[str, list[torch.Tensor]] = {}
    for _ in range(max(1, num_clips // 8)):
        clips = data.sample_clips(8, num_frames, generator)
        levels = torch.full(clips["actions"].shape, 0.05)
        noise = torch.randn(clips["latents"].shape, generator=generator)
        _, scalars = loss(**clips, noise=noise, levels=levels)
        shown = add_noise(clips["latents"], noise, levels)
        survey = survey_clip(loss.spatial, shown, levels, clips["actions"])
        found: dict[str, torch.Tensor] = {name: scalars[name][None] for name in scalars if name.endswith("error")}
        found["distance"] = (survey.depths - clips["depths"][:, :-1]).abs().flatten()
        ways = (
            ("place", survey.past_walks[:, 1:]),
            ("place_foreseen", survey.walks[:, :-1]),
            ("place_by_actions", None),
        )
        for name, corrections in ways:
            reached = walk_poses(loss.motions, clips["actions"][:, 1:-1], clips["poses"][:, 0], corrections)
            found[name] = (reached[:, -1, :2] - clips["poses"][:, -2, :2]).norm(dim=-1)
        for name, values in found.items():
            totals.setdefault(name, []).append(values)
    report = {}
    for name, parts in totals.items():
        values = torch.cat(parts)
        report[f"{name}_median"] = float(values.median())
        if not name.endswith("error"):
            report[f"{name}_90"] = float(values.quantile(0.9)) if len(values) < 1e6 else float("nan")
    return report


def train_geometry(options: GeometryOptions, machine: Machine) -> dict[str, Any]:
    """Encode the recording if needed, train a spatial memory, measure and save it; return the summary.

    Raises:
        DataError: the recording cannot be used. CheckpointError: no codec. ConfigError: motions are not known.
    """
    codec, identity = load_codec(options.codec), codec_hash(options.codec)
    folder = options.data / "latents"
    encode_recording(codec.to(machine.device), options.data, folder, machine.device, identity)
    shards = open_shards(options.data)
    split = {name: [shard for shard in shards if shard.split == name] for name in ("train", "test")}
    train = PosedData.load(split["train"] or shards, folder, identity, options.max_episodes)
    test = PosedData.load(split["test"] or shards, folder, identity, max(1, options.max_episodes // 8))
    own = motions_of(shards[0].action_names)
    motions = torch.tensor([*own, (0.0, 0.0)]) * torch.tensor([math.pi / 180, 1.0])
    torch.manual_seed(options.seed)
    config = SpatialConfig(codec.config.latent_channels, codec.config.latent_size, len(own), FOV_DEG, options.points)
    spatial = SpatialMemory(config)
    loss = GeometryLoss(spatial, motions)
    optimizer = torch.optim.AdamW(spatial.parameters(), lr=options.learning_rate, betas=(0.9, 0.98), weight_decay=1e-3)

    def sample(generator: torch.Generator) -> dict[str, torch.Tensor]:
        clips = train.sample_clips(options.batch_size, options.clip_frames, generator)
        shape = clips["actions"].shape
        levels = 0.3 * torch.rand(shape, generator=generator) * torch.rand((shape[0], 1), generator=generator)
        is_wild = torch.rand(shape, generator=generator) < 0.1
        levels = torch.where(is_wild, torch.rand(shape, generator=generator), levels)
        return clips | {"levels": levels, "noise": torch.randn(clips["latents"].shape, generator=generator)}

    frames = options.batch_size * options.clip_frames
    averaged, summary = train_model(options, machine, loss, [optimizer], sample, frames)
    if machine.is_main:
        best = averaged.cpu().eval()
        num_frames = min(int(test.lengths.max()), 128)
        summary |= {f"test_{k}": v for k, v in measure(best, test, 64, num_frames, options.seed).items()}
        save_bundle(options.out, spatial=best.spatial)
        save_json(options.out / "geometry_training.json", {"options": options_to_json(options), "summary": summary})
    return summary


def main() -> None:
    """Parse options, train, print the summary."""
    options = parse_options(GeometryOptions, "python -m train.geometry")
    summary = train_geometry(options, start_machine(options.device))
    print({k: round(v, 4) if isinstance(v, float) else v for k, v in summary.items()})


if __name__ == "__main__":
    run_program(main)
