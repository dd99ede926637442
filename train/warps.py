"""Program: prepare a recording for training with a memory of pixels. `python -m train.warps --data DIR --out DIR ...`.

Owns: what each frame of a recording is given to remember, the files that hold it, and clips cut from them. Knows the
codec, the depth network and the warp; knows no loss.

For every frame its latent is kept, where it was seen from, and what earlier frames of its episode show of it. A dream
remembers now more and now less, so spans of an episode differ in which earlier frames count: all of them, only old
ones, only the last few, or a handful. Some episodes are remembered as the codec shows them, some blurred and too bright
or dark, as dreams get, and some from places that are a little off.

Other shards hold what `train.data.anchored` makes of their episodes: memories of memories, as a dream's are, and, where
a generator dreamt along, its latents.
"""

import functools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from tqdm import tqdm

from envs.data.episodes import ShardInfo, open_shards, read_episode
from train.core.loop import send
from train.core.options import parse_options, run_program
from train.data.anchored import DreamPainter, mix_by_square, roll_out
from train.data.clips import draw_clips, encode_frames
from train.data.depth import read_poses
from worldmodel.checkpoint import codec_hash, load_codec, load_denoiser, load_depth, load_info
from worldmodel.codec import Codec
from worldmodel.denoiser import Denoiser
from worldmodel.devices import pick_device
from worldmodel.distortions import blur_pixels
from worldmodel.errors import CheckpointError, ConfigError, DataError, SeedError
from worldmodel.files import write_file
from worldmodel.folded import FOLD, NUM_FACTS, unfold
from worldmodel.frames import to_frames, to_pixels
from worldmodel.memory.camera import Camera
from worldmodel.memory.depth import DepthNet
from worldmodel.memory.pixels import INVENTED, NUM_SOURCES, PixelMemory
from worldmodel.memory.pose import relative_poses
from worldmodel.memory.reprojection.choice import choose
from worldmodel.memory.reprojection.keyframes import Keyframes, sample_points, smooth_inverse_depth
from worldmodel.memory.reprojection.warp import warp
from worldmodel.sampler import SamplerConfig
from worldmodel.world import DEFAULT_SHIFT, DEFAULT_STEPS

FIELDS = ("latents", "actions", "rewards", "terminated", "poses", "pixels", "mask", "facts")
READ_FIELDS = ("frames", "actions", "rewards", "terminated", "pose")
NUM_CANDIDATES = 96  # frames of an episode that may be sources beside the last: all cost more than they add
DREAMT = "dreamt"  # a further field, of anchored shards with a generator in the loop: its latents
ANCHORED = "anchored"  # entry of a prepared file's metadata: "1" where its memories are of memories
CHUNK, CHUNK_ON_GPU = 16, 256  # frames warped at once: what stays in a CPU's cache; what keeps a GPU busy
SHOWN_BY_CODEC, SHOWN_BLURRED, SHOWN_OFF = 0.25, 0.25, 0.3  # shares of episodes
LEAST_BLUR, MOST_BLUR, MOST_GAIN = 0.6, 2.2, 1.15  # pixels of a frame of 64, and factor of light
PLACE_OFF, YAW_OFF = 0.01, 0.005  # deviations, cells and radians


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


def draw_remembered(num_frames: int, rng: np.random.Generator) -> torch.Tensor:
    """Return which earlier frames each frame of an episode may draw on, bool (T, T)."""
    time_ = np.arange(num_frames)
    allowed = time_[None] < time_[:, None]
    start = 0
    while start < num_frames:
        stop = min(num_frames, start + int(rng.integers(24, 96)))
        span = slice(start, stop)
        age = time_[span, None] - time_[None]
        kind = rng.random()
        if kind < 0.3:  # what came last is not remembered: the frames before are on the channels
            allowed[span] &= age > np.exp(rng.uniform(0, np.log(96)))
        elif kind < 0.45:  # only what came last is
            allowed[span] &= age <= np.exp(rng.uniform(0, np.log(48)))
        elif kind < 0.55:
            allowed[span] &= (rng.random(num_frames) < 0.15)[None]
        start = stop
    return torch.from_numpy(allowed)


@torch.inference_mode()
def warp_episode(
    pixels: torch.Tensor,
    inverse_depth: torch.Tensor,
    poses: torch.Tensor,
    allowed: torch.Tensor,
    camera: Camera,
    rng: np.random.Generator,
    remembered_poses: torch.Tensor | None = None,
    invented: int = 0,
) -> dict[str, torch.Tensor]:
    """Warp earlier frames of an episode into each of its frames.

    Args:
        pixels: uint8 (T, 3, H, W), as they are remembered.
        inverse_depth: float (T, g, g).
        poses: float32 (T, 5).
        allowed: bool (T, T), which frames each may draw on.
        camera: what they are seen with.
        rng: draws the candidates.
        remembered_poses: float32 (T, 5), where they are remembered to be seen from; default `poses`.
        invented: 0 to `INVENTED`, how much of them a generator is said to have made up.

    Returns:
        pixels uint8 (T, 3, H, W), mask uint8 (T, H * W / 8), bits, facts float16 (T, `NUM_FACTS`, H / 8, W / 8).
    """
    num_frames = len(pixels)
    known = poses if remembered_poses is None else remembered_poses
    keyframes = Keyframes(
        pixels=pixels[None],
        inverse_depth=inverse_depth[None].half(),
        invented=torch.full_like(inverse_depth[None], invented, dtype=torch.uint8),
        poses=known[None],
        points=sample_points(inverse_depth, known, camera)[None],
        is_true=torch.ones(1, num_frames, dtype=torch.bool, device=pixels.device),
        order=torch.arange(num_frames, device=pixels.device)[None],
    )
    picked = torch.from_numpy(np.sort(rng.permutation(num_frames)[:NUM_CANDIDATES])).to(pixels.device)
    candidates = Keyframes(**{name: part[:, picked] for name, part in keyframes.tensors.items()})
    number = torch.arange(num_frames, device=pixels.device)
    parts = []
    for frames in number.split(CHUNK_ON_GPU if pixels.is_cuda else CHUNK):
        may = allowed[frames]
        chosen = choose(candidates, camera, poses[None, frames], NUM_SOURCES - 1, allowed=may[None][:, :, picked])[0]
        slots = picked[chosen.clamp_min(0)]
        last = torch.where(may.any(1), (may * (number + 1)).amax(1) - 1, -1)[:, None]
        is_used = (chosen >= 0) & may.gather(1, slots) & (slots != last)
        sources = torch.cat([last, torch.where(is_used, slots, -1)], 1)
        seen = warp(keyframes, camera, poses[None, frames], sources[None], now=frames[None])
        mask = seen.mask[0]
        told = torch.cat([seen.magnification, seen.log_depth, seen.age, seen.invented], 2)[0] * mask
        share = torch.nn.functional.avg_pool2d(mask, FOLD).clamp_min(1e-3)
        bits = np.packbits(mask.bool().flatten(1).cpu().numpy(), 1)
        parts.append(
            {
                "pixels": to_frames(seen.pixels[0]).permute(0, 3, 1, 2).cpu(),
                "mask": torch.from_numpy(bits),
                "facts": (torch.nn.functional.avg_pool2d(told, FOLD) / share).half().cpu(),
            }
        )
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def blur_and_light(pixels: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Return pixels (N, 3, H, W) in [-1, 1] as a tired dream shows them: blurred, and brighter or darker."""
    sigma = float(rng.uniform(LEAST_BLUR, MOST_BLUR)) * pixels.shape[-1] / 64
    gain = MOST_GAIN ** float(rng.uniform(-1, 1))
    return (blur_pixels(pixels, sigma) + 1) * gain - 1


def _frames_at_once(device: torch.device) -> int:
    """Return how many frames a network is given at once."""
    return 32 if device.type == "cpu" else 512


def read_steps(arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Return actions, rewards and ends of an episode; those at t belong to the step into frame t."""
    steps = {name: torch.from_numpy(arrays[name]) for name in ("actions", "rewards", "terminated")}
    return {name: torch.cat([part.new_zeros(1), part]) for name, part in steps.items()}


def show_by_codec(
    codec: Codec, frames: torch.Tensor, latents: torch.Tensor, rng: np.random.Generator, device: torch.device
) -> tuple[torch.Tensor, bool]:
    """Return frames uint8 (T, H, W, 3) as some episodes are remembered: as they are, decoded, or decoded and tired.

    Returns:
        the frames, and whether they were decoded.
    """
    kind = rng.random()
    if kind >= SHOWN_BY_CODEC + SHOWN_BLURRED:
        return frames, False
    decoded = [codec.decode(part.float().to(device)).float() for part in latents.split(_frames_at_once(device))]
    if kind < SHOWN_BLURRED:
        decoded = [blur_and_light(part, rng) for part in decoded]
    return torch.cat([to_frames(part).cpu() for part in decoded]), True


@torch.inference_mode()
def prepare_episode(
    codec: Codec,
    depth: DepthNet,
    arrays: dict[str, np.ndarray],
    rng: np.random.Generator,
    device: torch.device,
    where: str = "the episode",
) -> dict[str, torch.Tensor]:
    """Return the `FIELDS` of one episode, float16 or integers, on the CPU.

    Raises:
        DataError: poses that are not finite, or of another number of columns; `where` names the episode.
    """
    frames = torch.from_numpy(arrays["frames"])
    latents = encode_frames(codec, frames, device)
    shown, is_dreamlike = show_by_codec(codec, frames, latents, rng, device)
    poses = read_poses(arrays["pose"], where)
    inverse = torch.cat(
        [depth(to_pixels(part.to(device))).reciprocal() for part in shown.split(_frames_at_once(device))]
    )
    remembered = poses
    if rng.random() < SHOWN_OFF:
        off = torch.zeros_like(poses)
        off[:, :2] = torch.from_numpy(rng.normal(0, PLACE_OFF, (len(poses), 2)))
        off[:, 3] = torch.from_numpy(rng.normal(0, YAW_OFF, len(poses)))
        remembered = poses + off
    warped = warp_episode(
        shown.permute(0, 3, 1, 2).contiguous().to(device),
        smooth_inverse_depth(inverse),
        poses.to(device),
        draw_remembered(len(frames), rng).to(device),
        Camera(depth.config.view_deg),
        rng,
        remembered.to(device),
        INVENTED * int(is_dreamlike),
    )
    return {"latents": latents, "poses": poses} | read_steps(arrays) | warped


WorldParts = tuple[Codec, Denoiser, SamplerConfig]


def load_generator(name_or_folder: str, checkpoint: str, device: torch.device) -> WorldParts:
    """Load what dreams along.

    Raises:
        CheckpointError: it takes no pictures from a memory, or its latents are not those of `checkpoint`.
    """
    denoiser = load_denoiser(name_or_folder)
    if not denoiser.config.warp_channels:
        raise CheckpointError(f"the denoiser of {name_or_folder} has no memory of pixels: give another --generator")
    if codec_hash(name_or_folder) != codec_hash(checkpoint):
        raise CheckpointError(
            f"the latents of {name_or_folder} are not those of {checkpoint}: give --checkpoint {name_or_folder}"
        )
    codec = load_codec(name_or_folder).to(device)
    codec = codec.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in its stubs
    info = load_info(name_or_folder)
    config = SamplerConfig(
        num_steps=info.get("num_steps", DEFAULT_STEPS), level_shift=info.get("level_shift", DEFAULT_SHIFT)
    )
    return codec.eval(), denoiser.to(device).eval(), config


@torch.inference_mode()
def prepare_anchored(
    codec: Codec,
    depth: DepthNet,
    episodes: list[dict[str, np.ndarray]],
    rng: np.random.Generator,
    device: torch.device,
    where: str = "an episode",
    generator: WorldParts | None = None,
) -> list[dict[str, torch.Tensor]]:
    """Return the `FIELDS` of each of some episodes, rolled out side by side, and `DREAMT` if a generator dreams along.

    Errors as `prepare_episode`.
    """
    longest = max(len(arrays["frames"]) for arrays in episodes)
    latents = [encode_frames(codec, torch.from_numpy(arrays["frames"]), device) for arrays in episodes]
    steps = [read_steps(arrays) for arrays in episodes]
    shown, poses, last = [], [], []
    for arrays, coded in zip(episodes, latents, strict=True):
        frames = show_by_codec(codec, torch.from_numpy(arrays["frames"]), coded, rng, device)[0]
        # One that has ended stands still until all have.
        index = torch.arange(longest).clamp_max(len(frames) - 1)
        shown.append(frames[index])
        poses.append(read_poses(arrays["pose"], where)[index])
        last.append(index)

    painter: DreamPainter | None = None
    if generator is not None:
        coded = torch.stack([part[index] for part, index in zip(latents, last, strict=True)])
        actions = torch.stack([step["actions"][index].long() for step, index in zip(steps, last, strict=True)])
        painter = DreamPainter(*generator, coded, actions, rng)
    memory = PixelMemory(depth, ()).to(device)
    folded, reckoned = roll_out(memory, torch.stack(shown), torch.stack(poses), rng, painter)

    prepared = []
    for row, coded in enumerate(latents):
        pixels, mask, facts = pack_folded(folded[row, : len(coded)].float())
        warped = {"pixels": pixels.contiguous(), "mask": mask, "facts": facts}
        if painter is not None:
            warped[DREAMT] = painter.dreamt[row, : len(coded)].half()
        prepared.append({"latents": coded, "poses": reckoned[row, : len(coded)]} | steps[row] | warped)
    return prepared


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
        rng = np.random.default_rng([options.seed, number])
        episodes = []
        for episode in shard.episodes:
            if "pose" not in episode.fields:
                raise DataError(
                    f"{shard.path} holds episodes without poses, and a memory of pixels needs them: record again, or "
                    "train on summaries alone (train.denoiser without --warps)"
                )
            episodes.append(read_episode(episode, fields=READ_FIELDS))
        where = f"an episode of {shard.path}"
        # Spread evenly, and the first is not: a decoder needs one of the other kind.
        rolls_out = math.floor((number + 1) * options.anchored) > math.floor(number * options.anchored)
        if rolls_out:
            parts = prepare_anchored(codec, depth, episodes, rng, device, where, generator)
        else:
            parts = [prepare_episode(codec, depth, arrays, rng, device, where) for arrays in episodes]
        lengths = [len(part["latents"]) for part in parts]
        content = {name: torch.cat([part[name] for part in parts]).contiguous() for name in parts[0]}
        write_file(path, save(content | {"lengths": torch.tensor(lengths)}, {ANCHORED: str(int(rolls_out))}))
        num_shards, num_frames = num_shards + 1, num_frames + sum(lengths)
    seconds = time.monotonic() - started
    return {"shards": num_shards, "frames": num_frames, "frames_per_s": num_frames / max(seconds, 1e-9)}


@functools.cache
def _bits(device: torch.device) -> torch.Tensor:
    """Return the bits of each byte, float32 (256, 8)."""
    return torch.from_numpy(np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)).float().to(device)


def unpack_folded(pixels: torch.Tensor, mask: torch.Tensor, facts: torch.Tensor) -> torch.Tensor:
    """Return folded pictures, float32 (N, `NUM_FOLDED`, h, w), of what `warp_episode` gives for N frames."""
    size = pixels.shape[-1]
    known = _bits(mask.device)[mask.long()].reshape(-1, 1, size, size)
    colors = (pixels.float() / 127.5 - 1) * known
    folded = torch.nn.functional.pixel_unshuffle(torch.cat([colors, known], 1), FOLD)
    return torch.cat([folded, facts.float()], 1)


def pack_folded(folded: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return pixels, mask and facts, as `warp_episode` gives them, of folded pictures (N, `NUM_FOLDED`, h, w)."""
    picture = unfold(folded)
    bits = np.packbits(picture.mask.bool().flatten(1).cpu().numpy(), 1)
    return to_frames(picture.pixels).permute(0, 3, 1, 2), torch.from_numpy(bits), picture.facts.half()


class PreparedData:
    """Clips of prepared shards; files that appear while a training runs are taken up.

    On a GPU all that clips are cut from lies there, end to end, and `shards` keeps the lengths alone.
    """

    REFRESH_S = 240.0

    def __init__(
        self, folder: Path, split: str = "train", device: torch.device | None = None, refresh_s: float | None = None
    ) -> None:
        """Read what is there.

        Args:
            folder: of prepared shards.
            split: train or test.
            device: where clips are cut; default the CPU.
            refresh_s: seconds between looks for new files.

        Raises:
            DataError: nothing is there, or a file is damaged (named).
        """
        self._folder, self._split = folder, split
        self._device = torch.device("cpu") if device is None else device
        self._refresh_s = self.REFRESH_S if refresh_s is None else refresh_s
        self._joined: dict[str, torch.Tensor] = {}
        self.names: list[str] = []
        self.shards: list[dict[str, torch.Tensor]] = []
        self._looked = 0.0
        self.refresh()
        if not self.shards:
            raise DataError(f"{folder} has no prepared shards of split {split!r}; run python -m train.warps first")

    @property
    def num_frames(self) -> int:
        """Frames there are now."""
        return sum(int(shard["lengths"].sum()) for shard in self.shards)

    @property
    def num_episodes(self) -> int:
        """Episodes there are now."""
        return sum(len(shard["lengths"]) for shard in self.shards)

    def some_latents(self, every: int = 16, most_shards: int = 64) -> torch.Tensor:
        """Return every so many latents of the first shards, float16 (N, C, h, w)."""
        if self.is_joined:
            num_frames = sum(int(shard["lengths"].sum()) for shard in self.shards[:most_shards])
            return self._joined["latents"][:num_frames:every]
        return torch.cat([shard["latents"][::every] for shard in self.shards[:most_shards]])

    def rewards(self) -> torch.Tensor:
        """Return all rewards, float32 (N,)."""
        return self._joined["rewards"] if self.is_joined else torch.cat([shard["rewards"] for shard in self.shards])

    def refresh(self) -> None:
        """Take up new files."""
        self._looked = time.monotonic()
        fresh: list[dict[str, torch.Tensor]] = [self._joined] if self._joined else []
        for path in sorted(self._folder.glob(f"{self._split}-*.safetensors")):
            if path.stem not in self.names:
                shard = _read_prepared(path)
                self.names.append(path.stem)
                self.shards.append({"lengths": shard["lengths"]} if self.is_joined else shard)
                names = (*FIELDS, DREAMT)
                fresh.append({name: shard[name].to(self._device) for name in names} if self.is_joined else {})
        if self.is_joined and fresh:
            self._joined = {name: torch.cat([part[name] for part in fresh]) for name in (*FIELDS, DREAMT)}

    @property
    def is_joined(self) -> bool:
        """Whether all shards lie end to end on a device."""
        return self._device.type != "cpu"

    def sample_clips(self, num_clips: int, num_frames: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Cut random clips.

        Args:
            num_clips: B.
            num_frames: T.
            generator: on the CPU.

        Returns:
            latents float32 (B, T, C, h, w); shown, the same, as a dream would have shown them: where a generator
            dreamt along, its own, elsewhere the latents; actions int64 (B, T), rewards float32 (B, T), terminated bool
            (B, T), poses float32 (B, T, 5) relative to the first, warped float32 (B, T, `NUM_FOLDED`, h, w).

        Raises:
            DataError: no episode is as long as a clip.
        """
        if time.monotonic() - self._looked > self._refresh_s:
            self.refresh()
        room = torch.stack([(shard["lengths"] - num_frames + 1).clamp_min(0).sum() for shard in self.shards]).double()
        if not room.any():
            longest = max(int(shard["lengths"].max()) for shard in self.shards)
            raise DataError(f"clips of {num_frames} frames asked for; the longest episode has {longest}: record longer")
        picked = torch.multinomial(room, num_clips, replacement=True, generator=generator)
        places = [draw_clips(self.shards[i]["lengths"], 1, num_frames, generator)[0] for i in picked.tolist()]
        if self.is_joined:
            sizes = torch.stack([shard["lengths"].sum() for shard in self.shards])
            starts = sizes.cumsum(0) - sizes
            return self._cut(self._joined, send(torch.stack(places) + starts[picked, None], self._device))
        clips = [self._cut(self.shards[i], index) for i, index in zip(picked.tolist(), places, strict=True)]
        return {name: torch.stack([clip[name] for clip in clips]) for name in clips[0]}

    @staticmethod
    def _cut(shard: dict[str, torch.Tensor], index: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return what lies at an index (..., T) of frames that follow one another."""
        folded = unpack_folded(*(shard[name][index.flatten()] for name in ("pixels", "mask", "facts")))
        folded = folded.unflatten(0, index.shape)
        latents = shard["latents"][index].float()
        return {
            "latents": latents,
            "shown": mix_by_square(shard[DREAMT][index].float(), latents, folded),
            "actions": shard["actions"][index].long(),
            "rewards": shard["rewards"][index],
            "terminated": shard["terminated"][index],
            "poses": relative_poses(shard["poses"][index]),
            "warped": folded,
        }


def _read_prepared(path: Path) -> dict[str, torch.Tensor]:
    try:
        shard = load_file(path)
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} is damaged ({error}): delete it and run train.warps again") from error
    sizes = {name: len(part) for name, part in shard.items() if name != "lengths"}
    if shard.keys() - {DREAMT} != {*FIELDS, "lengths"} or {*sizes.values()} != {int(shard["lengths"].sum())}:
        raise DataError(f"{path} is damaged (it holds {sizes}): delete it and run train.warps again")
    if shard["facts"].shape[1] != NUM_FACTS:
        raise DataError(f"{path} is of another version: delete it and run train.warps again")
    shard.setdefault(DREAMT, shard["latents"])  # nobody dreamt along
    return shard


def is_anchored(path: Path) -> bool:
    """Whether a prepared file holds anchored rollouts (`train.data.anchored`).

    Raises:
        DataError: it is damaged (named).
    """
    return _read_header(path)[0].get(ANCHORED) == "1"


def is_dreamt(path: Path) -> bool:
    """Whether a prepared file holds anchored rollouts with a generator in the loop. Errors as `is_anchored`."""
    return DREAMT in _read_header(path)[1]


def _read_header(path: Path) -> tuple[dict[str, str], list[str]]:
    """Return metadata and names of the fields."""
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}, list(file.keys())
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} is damaged ({error}): delete it and run train.warps again") from error


def drop_memory(warped: torch.Tensor, share: float, generator: torch.Generator) -> torch.Tensor:
    """Return folded pictures of which some clips, and spans of others, remember nothing: so that it also invents.

    Args:
        warped: float (B, T, `NUM_FOLDED`, h, w).
        share: of clips that remember nothing at all; twice that share has a span of 4 to 44 frames that does not.
        generator: on the CPU.
    """
    batch, length = warped.shape[:2]

    def uniform() -> torch.Tensor:
        return torch.rand(batch, 1, generator=generator)

    number = torch.arange(length)
    start, size = length * uniform(), 4 + 40 * uniform()
    is_span = (uniform() < 2 * share) & (number >= start) & (number < start + size)
    is_dropped = (uniform() < share) | is_span
    return warped * send(~is_dropped, warped.device)[:, :, None, None, None]


def main() -> None:
    """Parse options, prepare, print what was made."""
    print(prepare(parse_options(WarpOptions, "python -m train.warps")))


if __name__ == "__main__":
    run_program(main)
