"""Anchored rollouts: what a dream would remember if all that it invents were true.

Owns: playing recorded episodes through a memory of pixels without a generator. Knows no files, no codec and no loss.

A dream remembers its own frames: its memory is warped from warps, with torn edges, pixels taken twice and depth read
off all that. A network that has only met memories of true frames copies such faults. Here each frame is what memory
shows of it, and where memory shows nothing it is the recorded one; that frame is remembered, and so on. So faults grow
as in a dream, and yet the truth of every frame is known.
"""

import math

import numpy as np
import torch

from worldmodel.frames import to_frames, to_pixels
from worldmodel.memory.folded import unfold
from worldmodel.memory.pixels import PixelMemory

LEAST_TRUE, MOST_TRUE = 4, 64  # frames that are remembered as they are, before the rollout begins
LEAST_KEPT = 0.6  # of a remembered pixel in a frame; a decoder repairs some of it
SHARE_STRAYING, STRAY = 0.4, 0.003  # of rollouts whose place is reckoned wrong, by so many cells a step


def stray(poses: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Return poses (B, T, 5) as reckoned: those of some episodes go astray while they walk."""
    off = torch.from_numpy(rng.normal(0, STRAY, (*poses.shape[:2], 2))).float()
    walks = poses[..., :2].diff(dim=1, prepend=poses[:, :1, :2]).abs().sum(-1, keepdim=True) > 0
    strays = torch.from_numpy(rng.random((len(poses), 1, 1)) < SHARE_STRAYING)
    moved = poses.clone()
    moved[..., :2] += (off * walks * strays).cumsum(1)
    return moved


@torch.inference_mode()
def roll_out(
    memory: PixelMemory, frames: torch.Tensor, poses: torch.Tensor, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Play episodes of one length through memory.

    Args:
        memory: on the device of the result.
        frames: uint8 (B, T, H, W, 3), what is seen where memory shows nothing.
        poses: float32 (B, T, 5), of the frames.
        rng: draws how many frames are remembered as they are, how much of the others is remembered, and the poses.

    Returns:
        what memory shows of each frame, float16 (B, T, `NUM_FOLDED`, H / 8, W / 8), on the CPU, and the poses that it
        was reckoned from, float32 (B, T, 5).
    """
    device = memory.motions.device
    num_true = math.ceil(math.exp(rng.uniform(math.log(LEAST_TRUE), math.log(MOST_TRUE))))
    kept = torch.from_numpy(rng.uniform(LEAST_KEPT, 1, (len(frames), 1, 1, 1))).float().to(device)
    poses = stray(poses, rng)
    state, shown = memory.empty(len(frames)), []
    for t, (frame, pose) in enumerate(zip(frames.unbind(1), poses.to(device).unbind(1), strict=True)):
        folded = memory.look(state, pose[:, None])[:, 0]
        shown.append(folded.half().cpu())
        if t < num_true:
            memory.remember(state, frame.to(device), pose)
            continue
        picture = unfold(folded)
        truth = to_pixels(frame.to(device))
        seen = truth + kept * picture.mask * (picture.pixels - truth)
        memory.remember(state, to_frames(seen), pose, folded)
    return torch.stack(shown, 1), poses
