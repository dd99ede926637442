"""Prepared shards: latents of a recording with what each frame remembers of those before it, and clips cut from them.

Owns: the files, how remembered pictures are packed into them, and the clips. Does not know how they came about
(`train.warps` makes them), and knows no loss.
"""

import functools
import time
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch.nn import functional as F

from train.core.machine import send
from train.data.anchored import mix_by_square
from train.data.clips import draw_clips
from worldmodel.errors import DataError
from worldmodel.files import write_file
from worldmodel.folded import FOLD, NUM_FACTS, unfold
from worldmodel.frames import to_frames
from worldmodel.memory.pose import relative_poses

FIELDS = ("latents", "actions", "rewards", "terminated", "poses", "pixels", "mask", "facts")
PACKED = ("pixels", "mask", "facts")  # a remembered picture
DREAMT = "dreamt"  # a further field, of anchored shards with a generator in the loop: its latents
ANCHORED = "anchored"  # entry of a file's metadata: "1" where its memories are of memories


@functools.cache
def _bits(device: torch.device) -> torch.Tensor:
    """Return the bits of each byte, float32 (256, 8)."""
    return torch.from_numpy(np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)).float().to(device)


def unpack_folded(pixels: torch.Tensor, mask: torch.Tensor, facts: torch.Tensor) -> torch.Tensor:
    """Return folded pictures, float32 (N, `NUM_FOLDED`, h, w), of what `warp_episode` gives for N frames."""
    size = pixels.shape[-1]
    known = _bits(mask.device)[mask.long()].reshape(-1, 1, size, size)
    colors = (pixels.float() / 127.5 - 1) * known
    folded = F.pixel_unshuffle(torch.cat([colors, known], 1), FOLD)
    return torch.cat([folded, facts.float()], 1)


def pack_folded(folded: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return pixels, mask and facts, as `warp_episode` gives them, of folded pictures (N, `NUM_FOLDED`, h, w)."""
    picture = unfold(folded)
    bits = np.packbits(picture.mask.bool().flatten(1).cpu().numpy(), 1)
    return to_frames(picture.pixels).permute(0, 3, 1, 2), torch.from_numpy(bits), picture.facts.half()


def write_prepared(path: Path, episodes: list[dict[str, torch.Tensor]], is_anchored: bool = False) -> int:
    """Write a shard, whole or not at all; return its frames.

    Args:
        path: the file.
        episodes: `FIELDS` of each, and perhaps `DREAMT`.
        is_anchored: whether its memories are of memories (`train.data.anchored`).

    Raises:
        StorageError: it cannot be written.
    """
    lengths = [len(episode["latents"]) for episode in episodes]
    content = {name: torch.cat([episode[name] for episode in episodes]).contiguous() for name in episodes[0]}
    write_file(path, save(content | {"lengths": torch.tensor(lengths)}, {ANCHORED: str(int(is_anchored))}))
    return sum(lengths)


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

    def all_rewards(self) -> torch.Tensor:
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
        folded = unpack_folded(*(shard[name][index.flatten()] for name in PACKED))
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
