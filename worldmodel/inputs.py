"""What a denoiser is given of frames: tensors that travel together.

Owns: their names, shapes and slices, and which frames come before each. Knows no network and no memory.
"""

import dataclasses
from dataclasses import dataclass

import torch
from torch.nn import functional as F


@dataclass(frozen=True)
class FrameInputs:
    """Frames to denoise, with the action into each and the frames before it.

    Attributes:
        latents: float (B, T, C, h, w), frame t at level levels[:, t].
        levels: float (B, T) in [0, 1]; 0 clean, 1 noise.
        actions: int64 (B, T), the action that led to each frame, 0..num_actions (the last means none).
        previous: float (B, T, K, C, h, w), the K frames before each frame, nearest first.
        previous_levels: float (B, T, K), the levels of those; 1 where there is no frame.
        warped: float (B, T, R, h, w), what was warped into each frame from frames before it and facts about that
            (`worldmodel.folded`); None: nothing was, as if all were zero.
        poses: float32 (B, T, 5), where the frames are seen from, as whoever warped knows it; None: a memory of the
            denoiser finds that out.
    """

    latents: torch.Tensor
    levels: torch.Tensor
    actions: torch.Tensor
    previous: torch.Tensor
    previous_levels: torch.Tensor
    warped: torch.Tensor | None = None
    poses: torch.Tensor | None = None

    @staticmethod
    def stack(
        frames: torch.Tensor,
        levels: torch.Tensor,
        actions: torch.Tensor,
        num_previous: int,
        warped: torch.Tensor | None = None,
        poses: torch.Tensor | None = None,
    ) -> "FrameInputs":
        """Return the inputs of consecutive frames, each with those before it among them.

        Args:
            frames: float (B, T, C, h, w).
            levels: float (B, T).
            actions: int64 (B, A), A at most T, the actions into the last A frames; only these are in the result, the
                frames before them are there to come before.
            num_previous: K.
            warped: float (B, A, R, h, w) or None.
            poses: float32 (B, A, 5) or None.
        """
        past, past_levels = stack_previous(frames, levels, num_previous)
        part = slice(frames.shape[1] - actions.shape[1], None)
        last, last_levels = frames[:, part], levels[:, part]
        return FrameInputs(last, last_levels, actions, past[:, part], past_levels[:, part], warped, poses)

    @property
    def num_frames(self) -> int:
        """T."""
        return self.latents.shape[1]

    def __getitem__(self, frames: slice) -> "FrameInputs":
        """Return the inputs of some of the frames."""
        parts: dict[str, torch.Tensor | None] = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return dataclasses.replace(self, **{n: part[:, frames] for n, part in parts.items() if part is not None})


def stack_previous(frames: torch.Tensor, levels: torch.Tensor, num_previous: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return for each frame the frames before it, nearest first; zeros at level 1 before the first.

    Args:
        frames: (B, T, C, h, w).
        levels: (B, T).
        num_previous: K.

    Returns:
        (B, T, K, C, h, w) and (B, T, K).
    """
    padded = F.pad(frames, (0, 0, 0, 0, 0, 0, num_previous, 0))
    padded_levels = F.pad(levels, (num_previous, 0), value=1.0)
    length, ages = frames.shape[1], range(1, num_previous + 1)
    past = torch.stack([padded[:, num_previous - k : num_previous - k + length] for k in ages], 2)
    past_levels = torch.stack([padded_levels[:, num_previous - k : num_previous - k + length] for k in ages], 2)
    return past, past_levels
