"""Memory of pixels: a dream's finished frames with depth and pose, and what they show of the frames to come.

Owns: what a dream keeps for it, writing finished frames, where the next frames are seen from, and what is known of them
as one folded picture each. Knows no denoiser and no sampler: `worldmodel.world` hands finished frames in, and folded
pictures to denoiser and decoder.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from worldmodel.buffers import Float32Buffers
from worldmodel.errors import ConfigError
from worldmodel.folded import fold, unfold
from worldmodel.frames import to_pixels
from worldmodel.memory.camera import Camera
from worldmodel.memory.depth import DepthNet
from worldmodel.memory.pose import Body, Surroundings, advance, level_displacements, observe
from worldmodel.memory.reprojection.choice import choose
from worldmodel.memory.reprojection.costs import WarpRule
from worldmodel.memory.reprojection.keyframes import Keyframes, smooth_inverse_depth, write
from worldmodel.memory.reprojection.warp import warp

# Keyframes 3.3 MB, obstacles and places 41 KB: with 304 frames of the denoiser's own memory in 32 bits, 4.5 MB, a dream
# stays below 8 MB.
NUM_KEYFRAMES = 200
NUM_POINTS, NUM_PLACES = 2048, 2048
NUM_SOURCES = 6
INVENTED = 255


@dataclass(frozen=True)
class PixelConfig:
    """Shape of a memory of pixels.

    Attributes:
        keyframes: frames kept of a dream.
        sources: of those that are warped into a coming frame, the last frame among them; at most 8.
        sampling: how their pixels are read, see `WarpRule`.
    """

    keyframes: int = NUM_KEYFRAMES
    sources: int = NUM_SOURCES
    sampling: str = "cubic"

    def __post_init__(self) -> None:
        if not 2 <= self.sources <= 8 or self.keyframes < self.sources:
            raise ConfigError(
                f"a memory of pixels takes 2 to 8 sources and as many keyframes or more; got {self.sources} sources of "
                f"{self.keyframes} keyframes"
            )


@dataclass
class PixelState:
    """What B dreams keep for their memory of pixels; every tensor is changed in place, none replaced.

    Attributes:
        keyframes: frames with depth and pose.
        surroundings: what bounds the poses.
    """

    keyframes: Keyframes
    surroundings: Surroundings

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return all tensors by name, not copied."""
        named = {f"keyframes_{name}": part for name, part in self.keyframes.tensors.items()}
        return named | {f"surroundings_{name}": part for name, part in self.surroundings.tensors.items()}

    @staticmethod
    def from_tensors(named: dict[str, torch.Tensor]) -> "PixelState":
        """Return the state of which `tensors` made these."""

        def group(prefix: str) -> dict[str, torch.Tensor]:
            return {name.removeprefix(prefix): part for name, part in named.items() if name.startswith(prefix)}

        return PixelState(Keyframes(**group("keyframes_")), Surroundings(**group("surroundings_")))

    def clone(self) -> "PixelState":
        """Return an independent copy."""
        return PixelState.from_tensors({name: part.clone() for name, part in self.tensors().items()})

    def put(self, rows: torch.Tensor, other: "PixelState") -> None:
        """Replace the dreams of `rows`, int64 (n,), by the n dreams of `other`, in place."""
        theirs = other.tensors()
        for name, part in self.tensors().items():
            part[rows] = theirs[name]

    @property
    def num_bytes(self) -> int:
        """Memory held, in bytes; constant over a dream."""
        return sum(part.nbytes for part in self.tensors().values())


class PixelMemory(Float32Buffers):
    """Remembers the frames of dreams, and shows of coming frames what of them has been seen before."""

    displacements: torch.Tensor

    def __init__(
        self, depth: DepthNet, displacements: Sequence[tuple[float, float]], config: PixelConfig | None = None
    ) -> None:
        """Remember frames of the size that `depth` takes.

        Args:
            depth: trained; it says how wide the view is.
            displacements: for each action its turn in degrees, counter-clockwise, and its walk in cells.
            config: how much is kept and used.
        """
        super().__init__()
        self.config = config or PixelConfig()
        self.depth = depth.eval().requires_grad_(False)
        self.camera = Camera(depth.config.view_deg)
        self.rule = WarpRule(sampling=self.config.sampling)
        self.body = Body()
        self.register_buffer("displacements", level_displacements(displacements), persistent=False)

    @property
    def image_size(self) -> int:
        """Height and width of a frame in pixels."""
        return self.depth.config.image_size

    def empty(self, batch: int) -> PixelState:
        """Return the state of `batch` dreams that have seen nothing."""
        device = self.displacements.device
        return PixelState(
            Keyframes.empty(batch, self.config.keyframes, self.image_size, self.depth.config.grid_size, device),
            Surroundings.empty(batch, NUM_POINTS, NUM_PLACES, device),
        )

    def walk(self, state: PixelState, pose: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """Return where the next frames are seen from, float32 (B, T, 5), under actions int64 (B, T) from a pose (B, 5).

        Raises:
            IndexError: an action that has no motion; the last one, "none", stands still.
        """
        poses = []
        for action in actions.unbind(1):
            pose = advance(pose, action, self.displacements, state.surroundings, self.body)
            poses.append(pose)
        return torch.stack(poses, 1)

    def look(self, state: PixelState, poses: torch.Tensor) -> torch.Tensor:
        """Return what is known of frames seen from poses (B, T, 5): float32 (B, T, `NUM_FOLDED`, H / 8, W / 8)."""
        chosen = choose(state.keyframes, self.camera, poses, self.config.sources, self.rule)
        seen = warp(state.keyframes, self.camera, poses, chosen, self.rule)
        told = [part.flatten(0, 1) for part in (seen.magnification, seen.log_depth, seen.age, seen.invented)]
        folded = fold(seen.pixels.flatten(0, 1), seen.mask.flatten(0, 1), torch.cat(told, 1))
        return folded.unflatten(0, tuple(poses.shape[:2]))

    def remember(
        self,
        state: PixelState,
        frames: torch.Tensor,
        poses: torch.Tensor,
        warped: torch.Tensor | None = None,
    ) -> None:
        """Write one finished frame of each dream, in place.

        Args:
            state: the dreams.
            frames: uint8 (B, H, W, 3).
            poses: float32 (B, 5), where they are seen from.
            warped: float (B, `NUM_FOLDED`, h, w), what was known of them when they were dreamt; None: they are true.
        """
        dtype = next(self.depth.parameters()).dtype
        inverse = smooth_inverse_depth(self.depth(to_pixels(frames).to(dtype)).float().reciprocal())
        size = inverse.shape[-1]
        if warped is None:
            invented = torch.zeros_like(inverse, dtype=torch.uint8)
        else:
            picture = unfold(warped.float())
            fresh = 1 - nn.functional.avg_pool2d(picture.mask, self.image_size // size)[:, 0]
            handed_on = nn.functional.interpolate(picture.facts[:, 3:], size=size, mode="nearest")[:, 0]
            invented = (INVENTED * torch.maximum(fresh, handed_on.clamp(0, 1))).round().to(torch.uint8)
        is_true = torch.full_like(frames[:, 0, 0, 0], int(warped is None), dtype=torch.bool)
        pixels = frames.permute(0, 3, 1, 2)
        write(state.keyframes, self.camera, pixels, inverse, invented, poses, is_true)
        observe(state.surroundings, self.camera, poses, inverse, self.body)
