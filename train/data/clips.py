"""From episodes on disk to what training reads.

Owns: a sample of frames for the codec, latents of a recording encoded once per shard, and clips cut from them. Knows
the episode files and the codec; knows no loss.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from tqdm import tqdm

from envs.data.episodes import EpisodeInfo, ShardInfo, open_shards, read_episode
from train.core.machine import send
from worldmodel.codec import Codec
from worldmodel.devices import has_fast_bfloat16
from worldmodel.errors import DataError
from worldmodel.files import write_file
from worldmodel.frames import to_pixels

LATENT_FIELDS = ("latents", "actions", "rewards", "terminated")


def list_episodes(shards: list[ShardInfo]) -> list[EpisodeInfo]:
    """Return all episodes of the shards, in file order."""
    return [episode for shard in shards for episode in shard.episodes]


def load_frames(shards: list[ShardInfo], max_frames: int, seed: int) -> torch.Tensor:
    """Read frames spread over all episodes.

    Args:
        shards: from `open_shards`.
        max_frames: about how many frames to hold in memory.
        seed: which runs of 8 frames (a chunk on disk) are taken.

    Returns:
        uint8 (N, H, W, 3), N at most about `max_frames`.
    """
    episodes = list_episodes(shards)
    rng = np.random.default_rng(seed)
    runs = max(1, max_frames // (8 * len(episodes)))
    parts = []
    for episode in tqdm(episodes, desc="reading frames", unit="episode", mininterval=2.0):
        chunks = -(-episode.num_frames // 8)
        starts = 8 * rng.choice(chunks, min(runs, chunks), replace=False)
        for start in starts:
            stop = min(int(start) + 8, episode.num_frames)
            parts.append(read_episode(episode, int(start), stop, ("frames",))["frames"])
    return torch.from_numpy(np.concatenate(parts))


@torch.inference_mode()
def encode_frames(codec: Codec, frames: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Encode frames uint8 (N, H, W, 3) to latents float16 (N, C, h, w) on the CPU."""
    parts = []
    for part in frames.split(64 if device.type == "cpu" else 512):  # what stays in a CPU's cache is 1.6 times faster
        with torch.autocast(device.type, torch.bfloat16, enabled=has_fast_bfloat16(device)):
            latents = codec.encode(to_pixels(part.to(device)))
        parts.append(latents.to(torch.float16).cpu())
    return torch.cat(parts)


def encode_recording(codec: Codec, data: Path, out: Path, device: torch.device, codec_hash: str) -> int:
    """Encode every shard of a recording that is not encoded yet.

    Args:
        codec: the codec, on `device`.
        data: folder of the recording.
        out: folder of the latent files, one a shard; made if missing.
        device: where to encode.
        codec_hash: identity of the codec; latents of another codec are made again.

    Returns:
        frames encoded by this call.

    Raises:
        DataError: no readable shard, or frames of another size than the codec's.
        StorageError: a latent file cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    encoded = 0
    shards = open_shards(data, image_size=codec.config.image_size)
    for shard in tqdm(shards, desc="encoding", unit="shard", mininterval=2.0):
        path = out / f"{shard.path.stem}.{codec_hash[:12]}.safetensors"
        if path.is_file():
            continue
        content: dict[str, list[torch.Tensor]] = {name: [] for name in LATENT_FIELDS}
        lengths = []
        for episode in shard.episodes:
            try:
                arrays = read_episode(episode, fields=("frames", "actions", "rewards", "terminated"))
            except DataError as error:
                print(f"skipped: {error}")
                continue
            content["latents"].append(encode_frames(codec, torch.from_numpy(arrays["frames"]), device))
            for name in ("actions", "rewards", "terminated"):
                values = torch.from_numpy(arrays[name])
                content[name].append(torch.cat([values.new_zeros(1), values]))  # index t: the step INTO frame t
            lengths.append(episode.num_frames)
        if lengths:
            tensors = {name: torch.cat(parts).contiguous() for name, parts in content.items()}
            write_file(path, save(tensors | {"lengths": torch.tensor(lengths)}))
            encoded += sum(lengths)
    return encoded


def draw_clips(lengths: torch.Tensor, num_clips: int, num_frames: int, generator: torch.Generator) -> torch.Tensor:
    """Draw where clips lie, every frame of episodes that lie one behind another equally likely to start one.

    Args:
        lengths: int64 (E,), frames of each episode.
        num_clips: B.
        num_frames: T.
        generator: on the CPU.

    Returns:
        int64 (B, T), indices of frames.

    Raises:
        DataError: no episode is as long as a clip.
    """
    room = (lengths - num_frames + 1).clamp_min(0)
    total = int(room.sum())
    if total == 0:
        longest = int(lengths.max())
        raise DataError(f"clips of {num_frames} frames asked for; the longest episode has {longest}: record longer")
    pick = torch.randint(total, (num_clips,), generator=generator)
    ends, starts = room.cumsum(0), lengths.cumsum(0) - lengths
    episode = torch.searchsorted(ends, pick, right=True)
    first = starts[episode] + pick - (ends - room)[episode]
    return first[:, None] + torch.arange(num_frames)


@dataclass
class LatentData:
    """All latents of one split, end to end, and where episodes begin.

    Attributes:
        latents: float16 (N, C, h, w).
        actions: uint8 (N,), the action INTO each frame.
        rewards: float32 (N,), of the step into each frame.
        terminated: bool (N,), of the step into each frame.
        starts: int64 (E,), index of the first frame of each episode.
        lengths: int64 (E,), frames of each episode.
    """

    latents: torch.Tensor
    actions: torch.Tensor
    rewards: torch.Tensor
    terminated: torch.Tensor
    starts: torch.Tensor
    lengths: torch.Tensor

    @classmethod
    def load(cls, folder: Path, split: str, codec_hash: str) -> "LatentData":
        """Read the latent files of a split.

        Raises:
            DataError: there is none, or one is damaged (named).
        """
        paths = sorted(folder.glob(f"{split}-*.{codec_hash[:12]}.safetensors"))
        if not paths:
            raise DataError(f"{folder} has no latents of split {split!r} for this codec; encode the recording first")
        parts = []
        for path in paths:
            try:
                part = load_file(path)
            except (SafetensorError, OSError) as error:
                raise DataError(f"{path} is damaged ({error}): delete it and run again") from error
            sizes = {name: len(value) for name, value in part.items() if name != "lengths"}
            if part.keys() != {*LATENT_FIELDS, "lengths"} or {*sizes.values()} != {int(part["lengths"].sum())}:
                raise DataError(f"{path} is damaged (it holds {sizes}): delete it and run again")
            parts.append(part)
        joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        lengths = joined.pop("lengths")
        return cls(**joined, starts=lengths.cumsum(0) - lengths, lengths=lengths)

    @property
    def num_frames(self) -> int:
        """Frames there are."""
        return len(self.latents)

    @property
    def num_episodes(self) -> int:
        """Episodes there are."""
        return len(self.starts)

    def some_latents(self) -> torch.Tensor:
        """Return latents from all over, float16 (N, C, h, w)."""
        return self.latents

    def all_rewards(self) -> torch.Tensor:
        """Return all rewards, float32 (N,)."""
        return self.rewards

    def to(self, device: torch.device) -> "LatentData":
        """Return the data on a device; starts and lengths, which clips are drawn by, stay."""
        here = ("starts", "lengths")
        return LatentData(**{name: v if name in here else v.to(device) for name, v in vars(self).items()})

    def sample_clips(self, num_clips: int, num_frames: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Cut random clips, every frame equally likely to start one.

        Args:
            num_clips: B.
            num_frames: T.
            generator: on the CPU.

        Returns:
            latents float32 (B, T, C, h, w), actions int64 (B, T), rewards float32 (B, T), terminated bool (B, T).

        Raises:
            DataError: no episode is as long as a clip.
        """
        index = send(draw_clips(self.lengths, num_clips, num_frames, generator), self.latents.device)
        return {
            "latents": self.latents[index].float(),
            "actions": self.actions[index].long(),
            "rewards": self.rewards[index],
            "terminated": self.terminated[index],
        }
