"""The judge of needles: a small network that names the wall and the floor in the middle of a frame.

Owns: its labeled real frames (labels by ray casting), training it in a minute, its accuracy on held-out mazes, and
the file it is kept in. Does not know dreams or where its answers are used.
"""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn
from tqdm import tqdm

from envs.data.episodes import ShardInfo, open_shards, read_episode
from envs.worlds.labmaze.maze import NO_TEXTURE
from envs.worlds.labmaze.sight import FARTHEST, HALF_WIDTH, NEAREST, check_sight_fields, judge_middle, look, read_sight
from train.data.clips import list_episodes
from worldmodel.checkpoint import load_weights
from worldmodel.errors import CheckpointError, DataError
from worldmodel.files import write_file
from worldmodel.frames import to_pixels

LEAST_ACCURACY = 0.95  # below this a classifier judges nothing
_SIZE = 32  # larger frames are averaged down to this
_VERSION = "1"
_TRAIN = {"half_width": 2, "nearest": 0.72, "farthest": 4.5}  # wider than what is judged: a dream may be a little off
_JUDGED = {"half_width": HALF_WIDTH, "nearest": NEAREST, "farthest": FARTHEST}
_NOISE, _GAIN, _BLUR_SHARE = 0.08, 0.1, 0.4  # deviation of pixels in [-1, 1], change of contrast, share blurred


class Labeled(NamedTuple):
    """Frames uint8 (N, 32, 32, 3) and the texture indices of their middles, int64 (N,)."""

    frames: torch.Tensor
    walls: torch.Tensor
    floors: torch.Tensor


class TextureNet(nn.Module):
    """Frame in, scores of wall and floor textures out."""

    def __init__(self, num_walls: int, num_floors: int, width: int = 16) -> None:
        super().__init__()
        widths = (3, width, 2 * width, 4 * width)
        layers: list[nn.Module] = []
        for narrow, wide in zip(widths, widths[1:], strict=False):
            layers += [nn.Conv2d(narrow, wide, 3, stride=2, padding=1), nn.SiLU()]
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(widths[-1] * (_SIZE // 8) ** 2, 128), nn.SiLU())
        self.walls, self.floors = nn.Linear(128, num_walls), nn.Linear(128, num_floors)

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Score pixels float32 (N, 3, 32, 32): wall scores (N, num_walls), floor scores (N, num_floors)."""
        found = self.body(pixels)
        return self.walls(found), self.floors(found)


@dataclass
class TextureClassifier:
    """A trained network and what is known of it; `facts` goes into reports."""

    net: TextureNet
    facts: dict[str, Any] = field(default_factory=dict)

    @torch.inference_mode()
    def name(self, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the texture index of wall and floor in the middle of frames uint8 (N, H, W, 3): int64 (N,) each."""
        device = self.net.walls.weight.device
        scores = [self.net(to_pixels(shrink(part).to(device))) for part in frames.split(512)]
        walls, floors = (torch.cat([part[i].argmax(-1) for part in scores]).cpu() for i in range(2))
        return walls, floors


def shrink(frames: torch.Tensor) -> torch.Tensor:
    """Return frames uint8 (N, H, W, 3) averaged to (N, 32, 32, 3)."""
    if frames.shape[1:3] == (_SIZE, _SIZE):
        return frames
    small = F.adaptive_avg_pool2d(rearrange(frames, "n h w c -> n c h w").float(), _SIZE)
    return rearrange(small.round().to(torch.uint8), "n c h w -> n h w c")


def label_frames(shards: Sequence[ShardInfo], max_frames: int, seed: int, **clearness: Any) -> Labeled:
    """Read frames with a clear middle, spread over at most 240 episodes, with their labels.

    Args:
        shards: of a recording with pose and layout.
        max_frames: about the most frames to return.
        seed: which ones.
        clearness: keywords of `envs.worlds.labmaze.sight.judge_middle`.

    Raises:
        DataError: an episode has no pose or layout, or no frame is clear.
    """
    rng = np.random.default_rng([seed, 4])
    episodes = list_episodes(list(shards))
    picks = rng.permutation(len(episodes))[:240]
    parts: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    for pick in tqdm(picks, desc="reading frames", unit="episode", mininterval=2.0):
        arrays = read_sight(episodes[pick])
        middle = judge_middle(arrays, look(arrays["layout"], arrays["pose"]), **clearness)
        clear = np.flatnonzero(middle.is_clear)
        kept = np.sort(rng.permutation(clear)[: -(-max_frames // len(picks))])
        if len(kept):
            frames = torch.from_numpy(read_episode(episodes[pick], fields=("frames",))["frames"][kept])
            parts.append((shrink(frames), torch.from_numpy(middle.walls[kept]), torch.from_numpy(middle.floors[kept])))
    if not parts:
        raise DataError(
            f"no frame of {len(picks)} episodes faces a wall that it can be judged by: record more episodes"
        )
    return Labeled(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _disturb(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Make real pixels a little like dreamt ones: blurred, noisy, of another contrast."""
    shape = (len(pixels), 1, 1, 1)
    is_blurred = torch.rand(shape, generator=generator) < _BLUR_SHARE
    blurred = F.avg_pool2d(F.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    gain = 1.0 + _GAIN * (2.0 * torch.rand(shape, generator=generator) - 1.0)
    noise = _NOISE * torch.rand(shape, generator=generator) * torch.randn(pixels.shape, generator=generator)
    return torch.where(is_blurred, blurred, pixels) * gain + noise


def _most_textures(shards: Sequence[ShardInfo]) -> tuple[int, int]:
    """Return how many wall and floor textures the mazes wear, by the largest index."""
    largest = [0, 0]
    for episode in list_episodes(list(shards)):
        check_sight_fields(episode)
        arrays = read_episode(episode, fields=("wall_textures", "floor_textures"))
        for i, name in enumerate(("wall_textures", "floor_textures")):
            worn = arrays[name][arrays[name] != NO_TEXTURE]
            largest[i] = max(largest[i], int(worn.max(initial=0)))
    return largest[0] + 1, largest[1] + 1


def train_classifier(
    data: Path, *, max_frames: int = 40000, num_steps: int = 800, batch_size: int = 128, seed: int = 0
) -> TextureClassifier:
    """Train on real frames of the training mazes of a recording, on the CPU.

    Args:
        data: folder of the recording.
        max_frames: about the most frames to learn from.
        num_steps: steps of `batch_size` frames.
        batch_size: frames a step.
        seed: of weights, frames and order.

    Raises:
        DataError: no training shards, no pose or layout, or no clear frame.
    """
    started = time.monotonic()
    num_walls, num_floors = _most_textures(shards := open_shards(data, "train"))
    frames, walls, floors = label_frames(shards, max_frames, seed, **_TRAIN)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = TextureNet(num_walls, num_floors)
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=num_steps)
    for _ in tqdm(range(num_steps), desc="texture classifier", unit="step", mininterval=2.0):
        pick = torch.randint(len(frames), (batch_size,), generator=generator)
        wall_scores, floor_scores = net(_disturb(to_pixels(frames[pick]), generator))
        loss = F.cross_entropy(wall_scores, walls[pick]) + F.cross_entropy(floor_scores, floors[pick])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    facts = {"num_walls": num_walls, "num_floors": num_floors, "train_frames": len(frames), "steps": num_steps}
    return TextureClassifier(net.eval(), facts | {"seconds": round(time.monotonic() - started, 1)})


def measure_accuracy(
    classifier: TextureClassifier, shards: Sequence[ShardInfo], max_frames: int = 4000, seed: int = 0
) -> dict[str, Any]:
    """Return the accuracy on real frames of the kind that is judged: `wall_accuracy`, `floor_accuracy`, `accuracy`.

    Raises:
        DataError: no clear frame, or a texture that the classifier was not taught.
    """
    frames, walls, floors = label_frames(shards, max_frames, seed, **_JUDGED)
    known = classifier.net.walls.out_features, classifier.net.floors.out_features
    if int(walls.max()) >= known[0] or int(floors.max()) >= known[1]:
        raise DataError(
            f"{shards[0].path.parent} has wall texture {int(walls.max())} and floor texture {int(floors.max())}; the "
            f"classifier knows walls 0 to {known[0] - 1}, floors 0 to {known[1] - 1}: train on the same palette"
        )
    named = classifier.name(frames)
    is_right = named[0] == walls, named[1] == floors
    return {
        "wall_accuracy": float(is_right[0].double().mean()),
        "floor_accuracy": float(is_right[1].double().mean()),
        "accuracy": float((is_right[0] & is_right[1]).double().mean()),
        "held_out_frames": len(frames),
    }


def _fingerprint(shards: Sequence[ShardInfo]) -> str:
    """Return a text that differs for recordings of other shards."""
    sizes = [(shard.path.name, shard.path.stat().st_size, shard.image_size) for shard in shards]
    return hashlib.sha256(json.dumps([_VERSION, sizes]).encode()).hexdigest()


def load_or_train(data: Path, file: Path, *, held_out: Path | None = None, **training: Any) -> TextureClassifier:
    """Return the classifier of a recording from its file, or train it and write the file.

    Args:
        data: folder of the recording whose training mazes teach.
        file: a `.safetensors` file; one made from other shards is replaced.
        held_out: folder of the recording whose test mazes measure its accuracy; default `data`.
        training: keywords of `train_classifier`.

    Raises:
        DataError: see `train_classifier` and `measure_accuracy`. CheckpointError: the file is damaged.
        StorageError: the file cannot be written.
    """
    fingerprint = _fingerprint(open_shards(data, "train"))
    classifier = _load(file, fingerprint)
    if classifier is None:
        classifier = train_classifier(data, **training)
        facts = {"recording": fingerprint, "facts": json.dumps(classifier.facts)}
        write_file(file, save(classifier.net.state_dict(), metadata=facts))
    classifier.facts |= measure_accuracy(classifier, open_shards(held_out or data, "test"))
    return classifier


def _load(file: Path, fingerprint: str) -> TextureClassifier | None:
    """Return the classifier in a file; None where there is none, or it was made from other shards."""
    if not file.is_file():
        return None
    try:
        with safe_open(file, framework="pt") as content:
            known = content.metadata() or {}
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118  # no mapping
        if known.get("recording") != fingerprint:
            return None
        facts = json.loads(known["facts"])
        net = TextureNet(facts["num_walls"], facts["num_floors"])
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise CheckpointError(f"{file} is damaged ({error}): delete it and run again") from error
    load_weights(net, tensors, str(file))
    return TextureClassifier(net.eval(), facts)
