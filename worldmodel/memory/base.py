"""What a memory is, and what it gives the network: `Memory`, `Reading`, `Context`.

Owns: the face that the denoiser knows, and how readings of several memories become one. Knows no structure: each has
its own module beside this one, and a line in `worldmodel.memory.registry`.

A memory may tell where frames are seen from, add to their patch tokens, hand slots to attention, give blocks their
attention, and keep things in a cache. It reads before the blocks run, from the frames before each frame and from a
cache, never from the frame itself; so what it read holds for every denoising step of that frame.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from worldmodel.attention import BlockAttention, Slots
from worldmodel.buffers import Float32Buffers
from worldmodel.cache import MemoryCache, Rings
from worldmodel.inputs import FrameInputs
from worldmodel.odometry import POSE_SIZE


class RingShape(NamedTuple):
    """Shape of what a cache keeps of each dream under one name.

    Attributes:
        layers: layers that each keep their own.
        heads: attention heads; 1 for what is no key or value.
        frames: frames kept, the last ones.
        tokens: tokens a frame.
        channels: numbers a token.
    """

    layers: int
    heads: int
    frames: int
    tokens: int
    channels: int


@dataclass(frozen=True)
class PoseEstimate:
    """Where frames are seen from; poses as `worldmodel.odometry` has them.

    Attributes:
        poses: float32 (B, T, 5) of the frames.
        before: float32 (B, T, 5) of the frame before each.
    """

    poses: torch.Tensor
    before: torch.Tensor

    @staticmethod
    def standing(frames: FrameInputs, past: MemoryCache | None) -> "PoseEstimate":
        """Return that of a dreamer who never moves."""
        poses = start_pose(frames, past)[:, None].expand(-1, frames.num_frames, -1)
        return PoseEstimate(poses, poses)

    def last(self, num_frames: int) -> "PoseEstimate":
        """Return that of the last frames alone."""
        return PoseEstimate(self.poses[:, -num_frames:], self.before[:, -num_frames:])


@dataclass(frozen=True)
class Reading:
    """What one memory read for frames; whatever it does not have is None.

    Attributes:
        estimate: where they are seen from.
        added: float (B, T, P, D), what is added to their patch tokens.
        slots: what layers of `SlotAttention` see.
        written: what the frames leave in a cache; empty for clips.
    """

    estimate: PoseEstimate | None = None
    added: torch.Tensor | None = None
    slots: Slots | None = None
    written: Rings = field(default_factory=dict)

    def last(self, num_frames: int) -> "Reading":
        """Return that of the last frames alone."""
        part = slice(-num_frames, None)
        slots = self.slots
        if slots is not None:
            cos, sin = slots.rotary
            slots = Slots(slots.tokens[:, part], (cos[:, part], sin[:, part]))
        return Reading(
            None if self.estimate is None else self.estimate.last(num_frames),
            None if self.added is None else self.added[:, part],
            slots,
            {name: [layer[:, part] for layer in layers] for name, layers in self.written.items()},
        )


@dataclass(frozen=True)
class Context:
    """What frames look back at before the blocks run: it depends on what came before them, not on what they show.

    Attributes:
        estimate: where they are seen from.
        readings: by the name of the memory.
    """

    estimate: PoseEstimate
    readings: dict[str, Reading]

    @property
    def added(self) -> list[torch.Tensor]:
        """What is added to the patch tokens, each float (B, T, P, D)."""
        return [reading.added for reading in self.readings.values() if reading.added is not None]

    @property
    def slots(self) -> Slots | None:
        """What layers of `SlotAttention` see."""
        return next((reading.slots for reading in self.readings.values() if reading.slots is not None), None)

    @property
    def written(self) -> Rings:
        """What the frames leave in a cache, beside keys and values of blocks."""
        return {name: layers for reading in self.readings.values() for name, layers in reading.written.items()}

    def last(self, num_frames: int) -> "Context":
        """Return the same of the last frames alone."""
        readings = {name: reading.last(num_frames) for name, reading in self.readings.items()}
        return Context(self.estimate.last(num_frames), readings)


class Memory(Float32Buffers):
    """A memory; this one remembers nothing, and its members say otherwise.

    Attributes:
        is_true_in_training: whether what was read stays as it is where training distorts the frames before a frame or
            puts the model's own in their place, so that the memory is worth more than those frames.
    """

    is_true_in_training = False

    def cache_shapes(self, memory_frames: int) -> dict[str, RingShape]:
        """Return what a cache has to keep, by name, for dreams that remember `memory_frames` frames."""
        return {}

    def attention(self, index: int) -> BlockAttention | None:
        """Return a new attention for block `index` in place of that to recent frames; None: leave it."""
        return None

    def cross_attention(self, index: int) -> BlockAttention | None:
        """Return a new attention for block `index` beside its own; None: nothing."""
        return None

    def read(self, frames: FrameInputs, past: MemoryCache | None, estimate: PoseEstimate) -> Reading:
        """Look back, without changing the cache.

        Args:
            frames: those to come; of their own latents and levels nothing may be used.
            past: cache of the frames before the first; None for clips, which begin with it.
            estimate: where the frames are seen from, as far as the memories before this one tell.
        """
        return Reading()

    def flops_per_frame(self) -> float:
        """Return the floating-point operations of what a frame is given, beside those of blocks."""
        return 0.0


def start_pose(frames: FrameInputs, past: MemoryCache | None) -> torch.Tensor:
    """Return the pose kept of the frame before the first, float32 (B, 5)."""
    if past is not None:
        return past.pose
    return torch.zeros(frames.actions.shape[0], POSE_SIZE, dtype=torch.float32, device=frames.actions.device)


def frame_positions(frames: FrameInputs, past: MemoryCache | None) -> torch.Tensor:
    """Return the positions of frames, int64 (B, T), in clips (1, T)."""
    positions = torch.arange(frames.num_frames, device=frames.actions.device)[None]
    return positions if past is None else past.count[:, None] + positions
