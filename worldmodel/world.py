"""The world: reset and step a batch of dreams, frames out.

Owns the one entry that the single env, the vector env and the player share, and the explicit `WorldState`. Knows no
game and no screen.
"""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from einops import rearrange

from worldmodel.checkpoint import load_codec, load_denoiser, load_info
from worldmodel.codec import Codec
from worldmodel.denoiser import Denoiser
from worldmodel.devices import has_fast_bfloat16, pick_device
from worldmodel.errors import ActionError, ShapeError, WindowError
from worldmodel.frames import to_frames, to_pixels
from worldmodel.sampler import DreamState, Sampler, SamplerConfig
from worldmodel.windows import Window, next_frame_window

DEFAULT_STEPS = 4


class Step(NamedTuple):
    """What one step of a batch of dreams gives.

    Attributes:
        frames: uint8 (B, H, W, 3).
        rewards: float32 (B,).
        terminated: bool (B,).
    """

    frames: torch.Tensor
    rewards: torch.Tensor
    terminated: torch.Tensor


@dataclass
class WorldState:
    """A batch of dreams and their chance: clone it to fork, keep a clone to rewind.

    Attributes:
        dream: tensors.
        generators: one CPU generator a dream.
    """

    dream: DreamState
    generators: list[torch.Generator]

    def clone(self) -> "WorldState":
        """Return an independent copy that dreams on exactly as this one would."""
        return WorldState(self.dream.clone(), [g.clone_state() for g in self.generators])

    @property
    def num_dreams(self) -> int:
        """B."""
        return len(self.generators)


class WorldModel:
    """Codec, denoiser and sampler together: actions in, frames out."""

    def __init__(
        self,
        codec: Codec,
        denoiser: Denoiser,
        *,
        device: str | torch.device = "auto",
        num_steps: int | None = None,
        memory_frames: int | None = None,
        context_level: float | None = None,
        window: Window | None = None,
        info: dict[str, Any] | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Put a world together.

        Args:
            codec: trained codec.
            denoiser: trained denoiser of the codec's latents.
            device: where to compute.
            num_steps: denoising steps a frame; default what `info` says, else 4.
            memory_frames: frames remembered through their summaries; default what the denoiser was trained with.
            context_level: noise on remembered frames; default what `info` says, else 0.05.
            window: schedule; default next-frame. A step makes one frame, so the stride must be 1.
            info: what the bundle says of its world.
            dtype: number format of the networks; default bfloat16 where the device is fast at it, else float32.

        Raises:
            ShapeError: codec and denoiser do not fit. DeviceError: no such device. ConfigError: a bad setting.
            WindowError: the window completes more than one frame a step.
        """
        if (codec.config.latent_channels, codec.config.latent_size) != (
            denoiser.config.latent_channels,
            denoiser.config.latent_size,
        ):
            raise ShapeError(f"codec {codec.config} and denoiser {denoiser.config} disagree on latents")
        self.info = dict(info or {})
        self.device = pick_device(device) if isinstance(device, str) else device
        if dtype is None:
            dtype = torch.bfloat16 if has_fast_bfloat16(self.device) else torch.float32
        self.dtype = dtype
        own = copy.deepcopy(codec).to(self.device, dtype)
        self.codec = own.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]  # not in its stubs
        self.denoiser = copy.deepcopy(denoiser).to(self.device, dtype).eval()
        self.config = SamplerConfig(
            num_steps=self.info.get("num_steps", DEFAULT_STEPS) if num_steps is None else num_steps,
            context_level=self.info.get("context_level", 0.05) if context_level is None else context_level,
        )
        self.window = next_frame_window() if window is None else window
        if self.window.stride != 1:
            raise WindowError(
                f"a world makes one frame a step; got a window of stride {self.window.stride}: use stride 1"
            )
        self.sampler = Sampler(self.denoiser, self.window, self.config, memory_frames)
        self.memory_frames = self.sampler.memory_frames

    @classmethod
    def load(cls, name_or_folder: str | Path, **settings: Any) -> "WorldModel":
        """Load a bundle by name or folder; settings as in the constructor.

        Raises:
            CheckpointError: the bundle is missing, damaged or does not fit.
        """
        codec, denoiser = load_codec(name_or_folder), load_denoiser(name_or_folder)
        return cls(codec, denoiser, info=load_info(name_or_folder), **settings)

    @property
    def num_actions(self) -> int:
        """Size of the action set."""
        return self.denoiser.config.num_actions

    def memory_used(self, state: WorldState) -> list[int]:
        """Return the frames that each dream remembers now."""
        return [min(int(count) + self.window.stride, self.memory_frames) for count in state.dream.cache.count]

    def _noise(self, generators: list[torch.Generator], frames: int) -> torch.Tensor:
        config = self.denoiser.config
        shape = (frames, config.latent_channels, config.latent_size, config.latent_size)
        return torch.stack([torch.randn(shape, generator=g) for g in generators]).to(self.device)

    def _check_actions(self, actions: torch.Tensor) -> torch.Tensor:
        if actions.is_floating_point() or actions.dtype == torch.bool:
            raise ActionError(f"actions must be integers from 0 to {self.num_actions - 1}; got {actions.dtype}")
        if actions.numel() and (int(actions.min()) < 0 or int(actions.max()) >= self.num_actions):
            raise ActionError(f"actions must be from 0 to {self.num_actions - 1}; got {actions.flatten().tolist()}")
        return actions.to(self.device, torch.int64)

    @torch.inference_mode()
    def encode(self, frames: torch.Tensor) -> torch.Tensor:
        """Encode frames uint8 (..., H, W, 3) to latents float32 (..., C, h, w) on the device."""
        flat = to_pixels(frames.reshape(-1, *frames.shape[-3:]).to(self.device)).to(self.dtype)
        latents = torch.cat([self.codec.encode(part) for part in flat.split(256)]).float()
        return latents.reshape(*frames.shape[:-3], *latents.shape[1:]).contiguous()

    @torch.inference_mode()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode latents float (..., C, h, w) to frames uint8 (..., H, W, 3) on the device."""
        flat = latents.reshape(-1, *latents.shape[-3:]).to(self.dtype)
        frames = to_frames(torch.cat([self.codec.decode(part) for part in flat.split(256)]).float())
        return frames.reshape(*latents.shape[:-3], *frames.shape[1:])

    @torch.inference_mode()
    def reset(self, frames: torch.Tensor, actions: torch.Tensor, seeds: list[int]) -> WorldState:
        """Start dreams from real frames.

        Args:
            frames: uint8 (B, T, H, W, 3), T at least 1.
            actions: integer (B, T - 1), the actions between the frames.
            seeds: B seeds of the dreams' chance.

        Raises:
            ShapeError: shapes that do not agree. ActionError: an action that does not exist.
        """
        if frames.ndim != 5 or tuple(actions.shape) != (frames.shape[0], frames.shape[1] - 1):
            raise ShapeError(
                f"reset takes frames (B, T, H, W, 3) and actions (B, T - 1); got {tuple(frames.shape)} and "
                f"{tuple(actions.shape)}"
            )
        if len(seeds) != frames.shape[0]:
            raise ShapeError(f"reset takes one seed a dream; got {len(seeds)} seeds for {frames.shape[0]} dreams")
        into = torch.cat(
            [
                torch.full((frames.shape[0], 1), self.num_actions, device=self.device, dtype=torch.int64),
                self._check_actions(actions),
            ],
            1,
        )
        generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        noise = self._noise(generators, frames.shape[1])
        return WorldState(self.sampler.begin(self.encode(frames), into, noise), generators)

    @torch.inference_mode()
    def step(self, state: WorldState, actions: torch.Tensor) -> Step:
        """Dream the next frame of every dream, in place.

        Args:
            state: from `reset`; changed.
            actions: integer (B,).

        Raises:
            ActionError: not integers, or outside the action set. ShapeError: not one action a dream.
        """
        if tuple(actions.shape) != (state.num_dreams,):
            raise ShapeError(f"step takes one action a dream, ({state.num_dreams},); got {tuple(actions.shape)}")
        chosen = self._check_actions(actions)[:, None]
        noise, shown_noise = self._noise(state.generators, 2).split(1, 1)
        latents, prediction = self.sampler.step(state.dream, chosen, noise, shown_noise)
        values = torch.tensor(self.denoiser.config.reward_values, device=self.device)
        rewards = values[prediction.reward_logits[:, -1].argmax(-1)]
        terminated = prediction.terminated_logit[:, -1] > 0
        return Step(rearrange(self.decode(latents), "b 1 h w c -> b h w c"), rewards, terminated)

    @torch.inference_mode()
    def put(self, state: WorldState, rows: list[int], other: WorldState) -> None:
        """Replace the dreams of `rows` in `state` by copies of those of `other`, in place; one new dream a row.

        Raises:
            ShapeError: a row does not exist or is named twice, or `other` has not one dream a row.
        """
        is_known = all(0 <= row < state.num_dreams for row in rows) and len(set(rows)) == len(rows)
        if not is_known or len(rows) != other.num_dreams:
            raise ShapeError(
                f"put takes different rows from 0 to {state.num_dreams - 1}, one for each of the {other.num_dreams} "
                f"new dreams; got {rows}"
            )
        state.dream.put(torch.tensor(rows, device=self.device), other.dream)
        for row, generator in zip(rows, other.generators, strict=True):
            state.generators[row] = generator.clone_state()
