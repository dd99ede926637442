"""Program: prepare a recording for training with a memory of pixels. `python -m train.warps --data DIR --out DIR ...`.

For every frame its latent is kept, where it was seen from, and what earlier frames of its episode show of it
(`train.data.remembered`). Other shards hold what `train.data.anchored` makes of their episodes: memories of memories,
as a dream's are, and, where a generator dreamt along, its latents.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from envs.data.episodes import ShardInfo, open_shards, read_episode
from train.core.options import parse_options, run_program
from train.data.prepared import write_prepared
from train.data.remembered import load_generator, prepare_anchored, prepare_episode
from worldmodel.checkpoint import load_codec, load_depth
from worldmodel.devices import pick_device
from worldmodel.errors import ConfigError, DataError, SeedError

READ_FIELDS = ("frames", "actions", "rewards", "terminated", "pose")


@dataclass(frozen=True)
class WarpOptions:
    """Prepare the shards of a recording; what is prepared already stays, so that the same command goes on."""

    data: Path
    """Folder of a recording with poses (train.record)."""
    out: Path
    """Folder of the prepared files, one a shard; made if missing."""
    checkpoint: str = "labmaze"
    """Bundle whose codec makes the latents."""
    depth: str | None = None
    """Bundle of the depth network (train.depth); default that of the checkpoint."""
    split: str = "train"
    """train or test."""
    shards: int | None = None
    """Prepare at most this many in all."""
    anchored: float = 0.5
    """Share of the shards that remember what they remembered, as dreams do (train.data.anchored)."""
    generator: str | None = None
    """Bundle of a denoiser and decoder that dream along in anchored shards (train.data.anchored); default: none,
    remembered pixels are seen as they are."""
    seed: int = 0
    """Seed of what is remembered when."""
    parts: int = 1
    """Programs that prepare one recording side by side, each every so many shards."""
    part: int = 0
    """Which of them this is, from 0."""
    follow_s: float = 0.0
    """Wait this long for further shards, of a recording that is being made."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""

    def __post_init__(self) -> None:
        if self.split not in ("train", "test"):
            raise ConfigError(f"split must be train or test; got {self.split!r}")
        if self.shards is not None and self.shards < 1:
            raise ConfigError(f"shards must be at least 1; got {self.shards}")
        if not 0 <= self.anchored <= 1:
            raise ConfigError(f"anchored must be from 0 to 1; got {self.anchored}")
        if self.seed < 0:
            raise SeedError(f"seed must be 0 or more; got {self.seed}")
        if not 0 <= self.part < self.parts or not self.follow_s >= 0:
            raise ConfigError(
                f"part must be from 0 to parts - 1, follow_s at least 0; got {self.part}, {self.parts}, {self.follow_s}"
            )


def list_unprepared(options: WarpOptions, image_size: int) -> Iterator[tuple[int, ShardInfo, Path]]:
    """Yield shards that are not prepared yet, as they appear: their numbers, and the files to write.

    Raises:
        DataError: no readable shard.
    """
    last_new = time.monotonic()
    while True:
        found = sorted(options.data.glob(f"{options.split}-*.h5"))[: options.shards]
        if found or not options.follow_s:
            shards = [s for s in open_shards(options.data, image_size=image_size) if s.split == options.split]
            if not shards and not options.follow_s:
                raise DataError(f"{options.data} has no {options.split!r} shards: choose another --split")
            for position, shard in enumerate(shards[: options.shards]):
                last = shard.path.stem.rpartition("-")[2]
                number = int(last) if last.isdecimal() else position
                path = options.out / f"{shard.path.stem}.safetensors"
                if number % options.parts == options.part and not path.is_file():
                    yield number, shard, path
                    last_new = time.monotonic()
        if time.monotonic() - last_new >= options.follow_s:
            return
        time.sleep(min(1.0, options.follow_s))


def prepare(options: WarpOptions) -> dict[str, Any]:
    """Prepare what is not prepared yet; return how many shards and frames this call made.

    Raises:
        DataError: no readable shard, or episodes without poses. CheckpointError: a bundle is missing.
    """
    device = pick_device(options.device)
    codec = load_codec(options.checkpoint).to(device)
    codec = codec.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in its stubs
    depth = load_depth(options.checkpoint if options.depth is None else options.depth).to(device)
    generator = None
    if options.generator is not None:
        generator = load_generator(options.generator, options.checkpoint, device)
    options.out.mkdir(parents=True, exist_ok=True)

    num_shards = num_frames = 0
    started = time.monotonic()
    waiting = list_unprepared(options, codec.config.image_size)
    for number, shard, path in tqdm(waiting, desc="warping", unit="shard", mininterval=5.0):
        episodes, where = read_shard(shard), f"an episode of {shard.path}"
        rng = np.random.default_rng([options.seed, number])
        # Spread evenly, and the first is not: a decoder needs one of the other kind.
        rolls_out = math.floor((number + 1) * options.anchored) > math.floor(number * options.anchored)
        if rolls_out:
            parts = prepare_anchored(codec, depth, episodes, rng, device, where, generator)
        else:
            parts = [prepare_episode(codec, depth, arrays, rng, device, where) for arrays in episodes]
        num_frames += write_prepared(path, parts, rolls_out)
        num_shards += 1

    seconds = time.monotonic() - started
    return {"shards": num_shards, "frames": num_frames, "frames_per_s": num_frames / max(seconds, 1e-9)}


def read_shard(shard: ShardInfo) -> list[dict[str, np.ndarray]]:
    """Return what is prepared of each episode of a shard.

    Raises:
        DataError: episodes without poses, or damaged ones.
    """
    episodes = []
    for episode in shard.episodes:
        if "pose" not in episode.fields:
            raise DataError(
                f"{shard.path} holds episodes without poses, and a memory of pixels needs them: record again, or "
                "train on summaries alone (train.denoiser without --warps)"
            )
        episodes.append(read_episode(episode, fields=READ_FIELDS))
    return episodes


def main() -> None:
    """Parse options, prepare, print what was made."""
    print(prepare(parse_options(WarpOptions, "python -m train.warps")))


if __name__ == "__main__":
    run_program(main)
