"""The judge of place recall: a small network that names what the middle of a frame shows.

Owns: its labeled real frames (labels by `World.places`), training it in a minute, its accuracy on held-out scenes, and
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
from envs.worlds.registry import get_world
from train.data.clips import list_episodes
from worldmodel.checkpoint import load_weights
from worldmodel.errors import CheckpointError, DataError
from worldmodel.files import write_file
from worldmodel.frames import to_pixels

LEAST_ACCURACY = 0.95  # below this a classifier judges nothing
_SIZE = 32  # larger frames are averaged down to this
_VERSION = "2"
_NOISE, _GAIN, _BLUR_SHARE = 0.08, 0.1, 0.4  # deviation of pixels in [-1, 1], change of contrast, share blurred


class Labeled(NamedTuple):
    """Frames uint8 (N, 32, 32, 3), and what their middles show, int64 (N, L)."""

    frames: torch.Tensor
    labels: torch.Tensor


class PlaceNet(nn.Module):
    """Frame in, scores of each label out."""

    def __init__(self, counts: Sequence[int], width: int = 16) -> None:
        """Build one for labels with so many values each."""
        super().__init__()
        widths = (3, width, 2 * width, 4 * width)
        layers: list[nn.Module] = []
        for narrow, wide in zip(widths, widths[1:], strict=False):
            layers += [nn.Conv2d(narrow, wide, 3, stride=2, padding=1), nn.SiLU()]
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(widths[-1] * (_SIZE // 8) ** 2, 128), nn.SiLU())
        self.heads = nn.ModuleList(nn.Linear(128, count) for count in counts)

    def forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """Score pixels float32 (N, 3, 32, 32): one (N, count) for each label."""
        found = self.body(pixels)
        return [head(found) for head in self.heads]


@dataclass
class PlaceClassifier:
    """A trained network and what is known of it; `facts` goes into reports.

    Attributes:
        net: the network.
        labels: names of what it tells.
        facts: of its training, and its accuracy.
    """

    net: PlaceNet
    labels: tuple[str, ...]
    facts: dict[str, Any] = field(default_factory=dict)

    @torch.inference_mode()
    def name(self, frames: torch.Tensor) -> torch.Tensor:
        """Return what the middle of frames uint8 (N, H, W, 3) shows: int64 (N, L)."""
        device = next(self.net.parameters()).device
        scores = [self.net(to_pixels(shrink(part).to(device))) for part in frames.split(512)]
        return torch.cat([torch.stack([score.argmax(-1) for score in part], 1) for part in scores]).cpu()


def shrink(frames: torch.Tensor) -> torch.Tensor:
    """Return frames uint8 (N, H, W, 3) averaged to (N, 32, 32, 3)."""
    if frames.shape[1:3] == (_SIZE, _SIZE):
        return frames
    small = F.adaptive_avg_pool2d(rearrange(frames, "n h w c -> n c h w").float(), _SIZE)
    return rearrange(small.round().to(torch.uint8), "n c h w -> n h w c")


def label_frames(shards: Sequence[ShardInfo], max_frames: int, seed: int, *, is_judged: bool) -> Labeled:
    """Read frames whose middle shows one place, spread over at most 240 episodes, with their labels.

    Args:
        shards: of a recording whose world knows places.
        max_frames: about the most frames to return.
        seed: which ones.
        is_judged: only frames of the kind that is judged; else also others that labels can be learned from.

    Raises:
        DataError: the world does not know what the frames show, or none is clear.
    """
    rng = np.random.default_rng([seed, 4])
    episodes, world = list_episodes(list(shards)), get_world(shards[0].world)
    picks = rng.permutation(len(episodes))[:240]
    parts: list[tuple[torch.Tensor, torch.Tensor]] = []
    for pick in tqdm(picks, desc="reading frames", unit="episode", mininterval=2.0):
        places = world.places(episodes[pick])
        clear = np.flatnonzero(places.is_clear if is_judged else places.is_plain)
        kept = np.sort(rng.permutation(clear)[: -(-max_frames // len(picks))])
        if len(kept):
            frames = torch.from_numpy(read_episode(episodes[pick], fields=("frames",))["frames"][kept])
            parts.append((shrink(frames), torch.from_numpy(places.labels[kept])))
    if not parts:
        raise DataError(
            f"no frame of {len(picks)} episodes shows one place clearly in its middle: record more episodes"
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


def train_classifier(
    data: Path, *, max_frames: int = 40000, num_steps: int = 800, batch_size: int = 128, seed: int = 0
) -> PlaceClassifier:
    """Train on real frames of the training scenes of a recording, on the CPU.

    Args:
        data: folder of the recording.
        max_frames: about the most frames to learn from.
        num_steps: steps of `batch_size` frames.
        batch_size: frames a step.
        seed: of weights, frames and order.

    Raises:
        DataError: no training shards, a world that does not know what they show, or no clear frame.
    """
    started = time.monotonic()
    shards = open_shards(data, "train")
    frames, labels = label_frames(shards, max_frames, seed, is_judged=False)
    counts = (labels.amax(0) + 1).tolist()
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = PlaceNet(counts)
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=num_steps)
    for _ in tqdm(range(num_steps), desc="place classifier", unit="step", mininterval=2.0):
        pick = torch.randint(len(frames), (batch_size,), generator=generator)
        scores = net(_disturb(to_pixels(frames[pick]), generator))
        terms = [F.cross_entropy(score, labels[pick, i]) for i, score in enumerate(scores)]
        loss = torch.stack(terms).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    names = get_world(shards[0].world).place_labels
    facts = {"labels": dict(zip(names, counts, strict=True)), "train_frames": len(frames), "steps": num_steps}
    return PlaceClassifier(net.eval(), names, facts | {"seconds": round(time.monotonic() - started, 1)})


def measure_accuracy(
    classifier: PlaceClassifier, shards: Sequence[ShardInfo], max_frames: int = 4000, seed: int = 0
) -> dict[str, Any]:
    """Return the accuracy on real frames of the kind that is judged: LABEL_accuracy of each, and `accuracy` of all.

    Raises:
        DataError: no clear frame, or something that the classifier was not taught.
    """
    frames, labels = label_frames(shards, max_frames, seed, is_judged=True)
    known = list(classifier.facts["labels"].values())
    if any(int(most) >= count for most, count in zip(labels.amax(0), known, strict=True)):
        found = ", ".join(f"{name} {int(most)}" for name, most in zip(classifier.labels, labels.amax(0), strict=True))
        taught = ", ".join(f"{name} 0 to {count - 1}" for name, count in classifier.facts["labels"].items())
        raise DataError(
            f"{shards[0].path.parent} shows {found}; the classifier knows {taught}: train on a recording alike"
        )
    is_right = classifier.name(frames) == labels
    accuracies = is_right.double().mean(0).tolist()
    return {
        **{f"{name}_accuracy": found for name, found in zip(classifier.labels, accuracies, strict=True)},
        "accuracy": float(is_right.all(1).double().mean()),
        "held_out_frames": len(frames),
    }


def _fingerprint(shards: Sequence[ShardInfo]) -> str:
    """Return a text that differs for recordings of other shards."""
    sizes = [(shard.path.name, shard.path.stat().st_size, shard.image_size) for shard in shards]
    return hashlib.sha256(json.dumps([_VERSION, sizes]).encode()).hexdigest()


def find_teacher(data: Path, train_data: str | None) -> Path:
    """Return the folder of the recording whose training scenes teach a classifier.

    Args:
        data: folder of the recording that is measured on.
        train_data: folder of another one; None: the same.

    Raises:
        DataError: it has no training scenes.
    """
    folder = data if train_data is None else Path(train_data)
    open_shards(folder, "train")
    return folder


def load_or_train(data: Path, file: Path, *, held_out: Path | None = None, **training: Any) -> PlaceClassifier:
    """Return the classifier of a recording from its file, or train it and write the file.

    Args:
        data: folder of the recording whose training scenes teach.
        file: a `.safetensors` file; one made from other shards is replaced.
        held_out: folder of the recording whose test scenes measure its accuracy; default `data`.
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


def _load(file: Path, fingerprint: str) -> PlaceClassifier | None:
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
        net = PlaceNet(list(facts["labels"].values()))
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise CheckpointError(f"{file} is damaged ({error}): delete it and run again") from error
    load_weights(net, tensors, str(file))
    return PlaceClassifier(net.eval(), tuple(facts["labels"]), facts)
