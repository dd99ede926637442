"""Program: make a world that can be played. `python -m train.bundle --denoiser DIR --data DIR --out DIR`.

Owns: the choice of openings, what a bundle says of its world, and the limit on its size. Knows no training; the model
card is `train.reports.card`'s, the file format `worldmodel.checkpoint`'s.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from envs.data.episodes import ShardInfo, open_shards, read_episode
from envs.worlds.registry import get_world
from train.core.options import parse_options, run_program
from train.reports.card import TrainingRecord, write_card
from train.reports.verdict import find_faults
from worldmodel.checkpoint import codec_hash, has_part, load_codec, load_denoiser, load_depth, save_bundle
from worldmodel.codec import Codec
from worldmodel.denoiser import Denoiser
from worldmodel.errors import CheckpointError, ConfigError, DataError, SeedError
from worldmodel.memory.depth import DepthNet
from worldmodel.sampler import SamplerConfig
from worldmodel.world import DEFAULT_SHIFT, DEFAULT_STEPS

MEGABYTE = 1e6


@dataclass(frozen=True)
class BundleOptions:
    """Put trained networks, real openings and a model card into one folder that play.py loads."""

    denoiser: Path
    """Folder of the trained denoiser (train.denoiser); it holds a codec too."""
    data: Path
    """Folder of the recording that the openings are taken from."""
    out: Path
    """Folder of the bundle; made if missing."""
    codec: Path | None = None
    """Folder of the codec (train.decoder); default that of --denoiser."""
    depth: Path | None = None
    """Folder of the depth network (train.depth), for a denoiser with a memory of pixels; default that of --denoiser."""
    report: Path | None = None
    """report.json of train.evaluate, for the figures of the model card."""
    notes: str = ""
    """What else the model card should say of the training."""
    split: str = "test"
    """Scenes that openings are taken from: test, so that nobody plays on in what was trained on, or train."""
    openings: int = 48
    """How many openings."""
    opening_frames: int = 48
    """Frames of an opening."""
    num_steps: int = DEFAULT_STEPS
    """Denoising steps a frame, unless the player says otherwise."""
    context_level: float = 0.05
    """Noise at which remembered frames are shown to the denoiser."""
    level_shift: float = DEFAULT_SHIFT
    """Above 1, denoising spends its steps at high noise levels; 1: equal steps."""
    max_megabytes: float = 25.0
    """Largest size of the weights together, in millions of bytes."""
    seed: int = 0
    """Which openings."""

    def __post_init__(self) -> None:
        if self.openings < 1 or self.opening_frames < 2:
            raise ConfigError(
                f"openings must be at least 1 and opening_frames at least 2; got {self.openings}, {self.opening_frames}"
            )
        SamplerConfig(num_steps=self.num_steps, context_level=self.context_level, level_shift=self.level_shift)
        if self.seed < 0:
            raise SeedError(f"seed must be 0 or more; got {self.seed}")


def choose_openings(shards: list[ShardInfo], openings: int, opening_frames: int, seed: int) -> dict[str, torch.Tensor]:
    """Cut openings from episodes, spread evenly: no episode serves twice before every other has served once.

    The last frame of an episode is left out: where it ended at a goal there is nothing to go on from.

    Args:
        shards: of one world.
        openings: K.
        opening_frames: T.
        seed: which episodes, and where in them.

    Returns:
        `frames` uint8 (K, T, H, W, 3), `actions` uint8 (K, T - 1), `scene_seeds` int64 (K,).

    Raises:
        DataError: no episode is long enough, or a shard is damaged.
    """
    episodes = [episode for shard in shards for episode in shard.episodes]
    fitting = [episode for episode in episodes if episode.num_steps >= opening_frames]
    if not fitting:
        longest = max(episode.num_steps for episode in episodes)
        raise DataError(
            f"openings of {opening_frames} frames asked for; the longest of {len(episodes)} episodes has {longest} "
            "before its last: ask for shorter openings (--opening-frames) or record longer episodes"
        )
    rng = np.random.default_rng(seed)
    rounds = -(-openings // len(fitting))
    order = np.concatenate([rng.permutation(len(fitting)) for _ in range(rounds)])[:openings]
    frames, actions = [], []
    for index in order:
        start = int(rng.integers(fitting[index].num_steps - opening_frames + 1))
        arrays = read_episode(fitting[index], start, start + opening_frames)
        frames.append(arrays["frames"])
        actions.append(arrays["actions"])
    return {
        "frames": torch.from_numpy(np.stack(frames)),
        "actions": torch.from_numpy(np.stack(actions)),
        "scene_seeds": torch.tensor([fitting[index].scene_seed for index in order]),
    }


def make_bundle(options: BundleOptions) -> dict[str, Any]:
    """Write the bundle and its card; return its sizes.

    Returns:
        `weights_megabytes`, `openings_megabytes`, `codec_parameters`, `denoiser_parameters`, `openings`, `out`, and
        `depth_parameters` where there is a depth network, `faults` where the report has something against the world.

    Raises:
        CheckpointError: the trained model is missing or damaged, too large, or its parts do not belong together.
        DataError: the recording cannot be used, or the report is no JSON object.
        StorageError: a file cannot be written.
    """
    codec, denoiser = find_codec(options), load_denoiser(options.denoiser)
    depth = find_depth(options, denoiser)
    parts = [codec, denoiser] + ([] if depth is None else [depth])
    numbers = sum(value.numel() for module in parts for value in module.state_dict().values())
    weights_megabytes = 2 * numbers / MEGABYTE  # a bundle keeps bfloat16
    if weights_megabytes > options.max_megabytes:
        raise CheckpointError(
            f"the weights in {options.denoiser} take {weights_megabytes:.1f} MB; a bundle may have "
            f"{options.max_megabytes:g} MB: train a smaller preset or raise --max-megabytes"
        )

    report = {} if options.report is None else _read_report(options.report)
    training = TrainingRecord.find(options.denoiser)

    shards = open_shards(options.data, image_size=codec.config.image_size, num_actions=denoiser.config.num_actions)
    chosen = [shard for shard in shards if shard.split == options.split]
    if not chosen:
        raise DataError(f"{options.data} has no {options.split!r} shards among {len(shards)}: choose another --split")

    openings = choose_openings(chosen, options.openings, options.opening_frames, options.seed)
    scene_seeds = openings.pop("scene_seeds").tolist()

    info = {
        "world": chosen[0].world,
        "action_names": list(chosen[0].action_names),
        "fps": get_world(chosen[0].world).fps,
        "num_steps": options.num_steps,
        "context_level": options.context_level,
        "level_shift": options.level_shift,
        "settings": chosen[0].settings,
        "reward_rule": dataclasses.asdict(get_world(chosen[0].world).reward_rule(chosen[0].settings)),
        "opening_split": options.split,
        "opening_scene_seeds": scene_seeds,
    }
    faults = find_faults(report)
    if faults:
        info["faults"] = faults
    save_bundle(options.out, codec=codec, denoiser=denoiser, depth=depth, openings=openings, info=info)

    summary = {
        "weights_megabytes": weights_megabytes,
        "openings_megabytes": sum(value.nbytes for value in openings.values()) / MEGABYTE,
        "openings": len(scene_seeds),
        "out": str(options.out),
        **_count_parameters(codec=codec, denoiser=denoiser, depth=depth),
    }
    if faults:
        summary["faults"] = faults
    write_card(options.out, shards, info, summary, training, report, options.notes)
    return summary


def _count_parameters(**parts: nn.Module | None) -> dict[str, int]:
    """Return `NAME_parameters` of each part that there is."""
    return {
        f"{name}_parameters": sum(weight.numel() for weight in part.parameters())
        for name, part in parts.items()
        if part is not None
    }


def find_codec(options: BundleOptions) -> Codec:
    """Return the codec that goes with the denoiser.

    Raises:
        CheckpointError: missing, damaged, or its latents are not those that the denoiser learned from.
    """
    if options.codec is not None and codec_hash(options.codec) != codec_hash(options.denoiser):
        raise CheckpointError(
            f"the encoder of {options.codec} is not the one that {options.denoiser} was trained with: give the codec "
            "that train.decoder made from it"
        )
    return load_codec(options.denoiser if options.codec is None else options.codec)


def find_depth(options: BundleOptions, denoiser: Denoiser) -> DepthNet | None:
    """Return the depth network that the denoiser needs, if it needs one.

    Raises:
        CheckpointError: it needs one and there is none, or it is damaged.
        ConfigError: it needs none and one is given.
    """
    if not denoiser.config.warp_channels:
        if options.depth is not None:
            raise ConfigError(f"the denoiser of {options.denoiser} has no memory of pixels: leave --depth out")
        return None
    if options.depth is None and not has_part(options.denoiser, "depth"):
        raise CheckpointError(
            f"the denoiser of {options.denoiser} has a memory of pixels, which needs a depth network: give the folder "
            "of train.depth with --depth"
        )
    return load_depth(options.denoiser if options.depth is None else options.depth)


def _read_report(path: Path) -> dict[str, Any]:
    try:
        report = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(
            f"report {path} cannot be read ({error}): run train.evaluate again or leave --report out"
        ) from error
    if not isinstance(report, dict) or not isinstance(report.get("measures"), dict):
        raise DataError(f"report {path} does not hold measures by name: run train.evaluate again or leave --report out")
    return report


def main() -> None:
    """Read the options, make the bundle, print its sizes as JSON."""
    print(json.dumps(make_bundle(parse_options(BundleOptions, "python -m train.bundle"))))


if __name__ == "__main__":
    run_program(main)
