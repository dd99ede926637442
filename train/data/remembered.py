"""What each frame of a recorded episode is given to remember of the frames before it.

Owns: spans of more and less memory, how faithfully it shows what was, and the warp of a whole episode. Knows the codec,
the depth network and the warp; knows no files and no loss.

A dream remembers now more and now less, so spans of an episode differ in which earlier frames count: all of them, only
old ones, only the last few, or a handful. Some episodes are remembered as the codec shows them, some blurred and too
bright or dark, as dreams get, and some from places that are a little off.
"""

import numpy as np
import torch
from torch.nn import functional as F

from train.data.anchored import DreamPainter, roll_out
from train.data.clips import encode_frames
from train.data.depth import read_poses
from train.data.prepared import DREAMT, PACKED, pack_folded
from worldmodel.checkpoint import codec_hash, load_codec, load_denoiser, load_info
from worldmodel.codec import Codec
from worldmodel.denoiser import Denoiser
from worldmodel.distortions import blur_pixels
from worldmodel.errors import CheckpointError
from worldmodel.folded import FOLD
from worldmodel.frames import to_frames, to_pixels
from worldmodel.memory.camera import Camera
from worldmodel.memory.depth import DepthNet
from worldmodel.memory.pixels import INVENTED, NUM_SOURCES, PixelMemory
from worldmodel.memory.reprojection.choice import choose
from worldmodel.memory.reprojection.keyframes import Keyframes, sample_points, smooth_inverse_depth
from worldmodel.memory.reprojection.warp import Warped, warp
from worldmodel.sampler import SamplerConfig
from worldmodel.world import DEFAULT_SHIFT, DEFAULT_STEPS

NUM_CANDIDATES = 96  # frames of an episode that may be sources beside the last: all cost more than they add
CHUNK, CHUNK_ON_GPU = 16, 256  # frames warped at once: what stays in a CPU's cache; what keeps a GPU busy
SHOWN_BY_CODEC, SHOWN_BLURRED, SHOWN_OFF = 0.25, 0.25, 0.3  # shares of episodes
LEAST_BLUR, MOST_BLUR, MOST_GAIN = 0.6, 2.2, 1.15  # pixels of a frame of 64, and factor of light
PLACE_OFF, YAW_OFF = 0.01, 0.005  # deviations, cells and radians


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
        sources = _choose_sources(candidates, picked, camera, poses[frames], allowed[frames])
        seen = warp(keyframes, camera, poses[None, frames], sources[None], now=frames[None])
        parts.append(_pack(seen))
    return {name: torch.cat([part[name] for part in parts]) for name in PACKED}


def _choose_sources(
    candidates: Keyframes, picked: torch.Tensor, camera: Camera, poses: torch.Tensor, may: torch.Tensor
) -> torch.Tensor:
    """Return the frames that show most of some views: the last that each may draw on, then the best of `picked`.

    Args:
        candidates: P frames of one episode of T.
        picked: int64 (P,), which they are.
        camera: of all.
        poses: float32 (N, 5), of the views.
        may: bool (N, T), what each may draw on.

    Returns:
        int64 (N, `NUM_SOURCES`); -1: none.
    """
    chosen = choose(candidates, camera, poses[None], NUM_SOURCES - 1, allowed=may[None][:, :, picked])[0]
    slots = picked[chosen.clamp_min(0)]

    number = torch.arange(may.shape[1], device=may.device)
    last = torch.where(may.any(1), (may * (number + 1)).amax(1) - 1, -1)[:, None]
    is_used = (chosen >= 0) & may.gather(1, slots) & (slots != last)
    return torch.cat([last, torch.where(is_used, slots, -1)], 1)


def _pack(seen: Warped) -> dict[str, torch.Tensor]:
    """Return `PACKED` of the warps of one episode, on the CPU."""
    mask = seen.mask[0]
    told = torch.cat([seen.magnification, seen.log_depth, seen.age, seen.invented], 2)[0] * mask
    share = F.avg_pool2d(mask, FOLD).clamp_min(1e-3)
    return {
        "pixels": to_frames(seen.pixels[0]).permute(0, 3, 1, 2).cpu(),
        "mask": torch.from_numpy(np.packbits(mask.bool().flatten(1).cpu().numpy(), 1)),
        "facts": (F.avg_pool2d(told, FOLD) / share).half().cpu(),
    }


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
