"""Memories made of the network's own tokens: summaries, or whole frames before the frame.

Owns: which blocks see them, and what a cache keeps. The tokens are made by the network as it reads a frame, so there is
nothing to read beforehand.
"""

from worldmodel.attention import FrameAttention
from worldmodel.config import DenoiserConfig
from worldmodel.memory.base import Memory, RingShape


class TokenMemory(Memory):
    """Odd blocks see the summary tokens, or the patch tokens, of the last `memory_frames` frames."""

    def __init__(self, config: DenoiserConfig) -> None:
        """Prepare for denoisers of a config."""
        super().__init__()
        self.config = config

    @classmethod
    def build(cls, config: DenoiserConfig) -> "TokenMemory | None":
        """Return one for the structures "summary" and "prepend"; compressed, frames are slots and not tokens."""
        return cls(config) if config.is_grid_memory and config.compression == "none" else None

    def cache_shapes(self, memory_frames: int) -> dict[str, RingShape]:
        """Return the shapes of keys and values."""
        config = self.config
        frames = min(memory_frames, config.memory_frames)
        shape = RingShape(
            config.num_memory_layers, config.heads, frames, config.num_memory_tokens, config.width // config.heads
        )
        return {"memory_k": shape, "memory_v": shape}

    def attention(self, index: int) -> FrameAttention | None:
        """Return the attention of odd blocks."""
        config = self.config
        if index % 2 == 0:
            return None
        return FrameAttention(
            config.width,
            config.heads,
            "memory" if config.memory == "summary" else "prepend",
            config.num_patches,
            config.num_summary,
            config.memory_frames,
            bool(config.displacements),
        )
