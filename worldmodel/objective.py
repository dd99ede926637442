"""The training objective of the denoiser: which levels frames get, and the loss at those levels.

Owns: the distribution of levels and contexts, and the loss in clean space. No loops, no data files, no optimizer.

Levels are independent per frame (diffusion forcing, Chen et al. 2024), so one network serves every schedule. Most clips
lean towards what next-frame play needs: many frames nearly clean, as context, and the previous frames given on the
channels lightly noised, so that small errors of the model's own frames do not grow.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from worldmodel.denoiser import Denoiser, Prediction
from worldmodel.distortions import DISTORTIONS, LatentDistortions
from worldmodel.errors import ConfigError
from worldmodel.inputs import FrameInputs, stack_previous
from worldmodel.memory.base import Context
from worldmodel.noise import add_noise, expand_levels

SHARES = ("context_noise", "forcing_share", "pure_noise_share", "blackout_share", "distort_share", "own_share")


@dataclass(frozen=True)
class ObjectiveConfig:
    """Settings of the objective.

    Attributes:
        context_noise: highest level of a context frame, in attention and on the channels.
        forcing_share: share of clips with independent uniform levels and in-flight previous frames everywhere.
        pure_noise_share: share of the frames in flight that are pure noise, where every sampler starts.
        blackout_share: share of clips in which spans of frames are pure noise, on the channels too, and all others
            context: what a span shows follows from the memory and the actions alone.
        distort_share: share of clips whose context is blurred, and share whose context is brighter or darker, each from
            some frame on and by one strength a clip (`worldmodel.distortions`): what goes wrong in a dream is handed
            on, and only a network that has met it puts it right.
        own_share: share of frames whose context is the model's own prediction instead of the truth (0 skips that pass).
        head_weight: weight of the reward and termination losses.
        reward_weight: weight of a frame with a reward over that of one without, as rewards are rare.
        level_offset: a frame at level l weighs 1 / (l + level_offset).
    """

    context_noise: float = 0.25
    forcing_share: float = 0.2
    pure_noise_share: float = 0.3
    blackout_share: float = 0.0
    distort_share: float = 0.0
    own_share: float = 0.0
    head_weight: float = 0.02
    reward_weight: float = 1.0
    level_offset: float = 0.15

    def __post_init__(self) -> None:
        for name in SHARES:
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"objective {name} must be in [0, 1]; got {getattr(self, name)}")
        if not self.reward_weight > 0:
            raise ConfigError(f"objective reward_weight must be above 0; got {self.reward_weight}")


def sample_noise(config: ObjectiveConfig, shape: torch.Size, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Draw everything random that one training step needs, on the generator's device.

    Args:
        config: the objective.
        shape: of the latents, (B, T, C, h, w).
        generator: source of all chance.

    Returns:
        levels (B, T); noise and context_noise (B, T, C, h, w); context_levels (B, T), of the channels' copies;
        distortions (B, T, number of them), how strongly a context frame is distorted; is_forced (B,), clips whose
        channels hold the frames in flight; is_own (B, T), frames whose context copy is the model's own prediction.
    """
    batch, frames = shape[:2]
    device = generator.device

    def uniform(*size: int) -> torch.Tensor:
        return torch.rand(size, generator=generator, device=device)

    in_flight = torch.where(uniform(batch, frames) < config.pure_noise_share, 1.0, uniform(batch, frames))
    context = config.context_noise * uniform(batch, frames) * uniform(batch, 1)
    is_context = uniform(batch, frames) < 0.25 + 0.5 * uniform(batch, 1)
    is_forced = uniform(batch) < config.forcing_share
    levels = torch.where(is_context & ~is_forced[:, None], context, in_flight)
    if config.blackout_share > 0:
        is_black = uniform(batch) < config.blackout_share
        levels = torch.where(is_black[:, None], torch.where(draw_spans(uniform, batch, frames), 1.0, context), levels)
        is_forced = is_forced | is_black
    chance = {
        "levels": levels,
        "noise": torch.randn(shape, generator=generator, device=device),
        "context_noise": torch.randn(shape, generator=generator, device=device),
        "context_levels": config.context_noise * uniform(batch, frames) * uniform(batch, 1),
        "is_forced": is_forced,
        "is_own": (uniform(batch, frames) < config.own_share) & (uniform(batch, 1) < 0.75),
        "distortions": torch.zeros(batch, frames, len(DISTORTIONS), device=device),
    }
    if config.distort_share > 0:
        time = torch.arange(frames, device=device)
        for i, distortion in enumerate(DISTORTIONS):
            is_hit = (time >= frames * uniform(batch, 1)) & (uniform(batch, 1) < config.distort_share)
            strength = distortion.least + (distortion.most - distortion.least) * uniform(batch, 1)
            chance["distortions"][:, :, i] = torch.where(is_hit, strength, 0.0)
    return chance


def draw_spans(uniform: Callable[..., torch.Tensor], batch: int, frames: int) -> torch.Tensor:
    """Return which frames are blacked out, bool (B, T): two spans of 4 to 24 frames, none in the first eighth."""
    spans = []
    for _ in range(2):
        first, length = uniform(batch, 1), uniform(batch, 1)
        time = torch.arange(frames, device=first.device)
        start = frames * (0.125 + 0.875 * first)
        spans.append((time >= start) & (time < start + 4 + 20 * length))
    uniform(1)  # nothing comes of it: seeds stand for the same training as ever
    return spans[0] | spans[1]


class DenoiserLoss(nn.Module):
    """The loss of a denoiser over clips, as a module so that it compiles and parallelizes whole."""

    reward_values: torch.Tensor

    def __init__(
        self,
        denoiser: Denoiser,
        config: ObjectiveConfig,
        chunk: int | None = 8,
        distortions: LatentDistortions | None = None,
    ) -> None:
        """Wrap the denoiser to be trained.

        Args:
            denoiser: the denoiser.
            config: the objective.
            chunk: as in `Denoiser.forward`.
            distortions: of the latents; only `distort_share` needs them.

        Raises:
            ConfigError: they are needed and missing.
        """
        super().__init__()
        if config.distort_share > 0 and distortions is None:
            raise ConfigError(
                "an objective with a distort_share needs the distortions of the latents: see "
                "worldmodel.distortions.fit_distortions"
            )
        self.distort = distortions
        self.denoiser = denoiser
        self.config = config
        self.chunk = chunk
        self.register_buffer("reward_values", torch.tensor(denoiser.config.reward_values), persistent=False)

    def forward(
        self,
        latents: torch.Tensor,
        actions: torch.Tensor,
        rewards: torch.Tensor,
        terminated: torch.Tensor,
        levels: torch.Tensor,
        noise: torch.Tensor,
        context_noise: torch.Tensor,
        context_levels: torch.Tensor,
        is_forced: torch.Tensor,
        is_own: torch.Tensor,
        distortions: torch.Tensor,
        warped: torch.Tensor | None = None,
        poses: torch.Tensor | None = None,
        shown: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the loss and scalars to log.

        Args:
            latents: float (B, T, C, h, w), clean.
            actions: int64 (B, T), the action into each frame.
            rewards: float (B, T), of the step into each frame.
            terminated: bool (B, T), of the step into each frame.
            levels, noise, context_noise, context_levels, is_forced, is_own, distortions: from `sample_noise`.
            warped, poses: as in `FrameInputs`.
            shown: float (B, T, C, h, w), clean, what frames that are context look like; default `latents`.
        """
        config = self.config
        beside = warped, poses
        noisy = add_noise(latents, noise, levels)
        context = add_noise(latents, context_noise, context_levels)
        frames = self._stack(noisy, levels, actions, context, context_levels, is_forced, beside)

        is_context = levels <= config.context_noise
        given = latents if shown is None else shown  # as a frame is known once it is context
        is_distorted = self.distort is not None and config.distort_share > 0

        true: Context | None = None
        if config.own_share > 0 or is_distorted or shown is not None:
            # What memories tell of frames (poses, warped views) stays true: it is worth more than the frames before.
            true = self._read_true(frames)

        if self.distort is not None and is_distorted:
            given = self.distort(given, distortions)
        if is_distorted or shown is not None:
            noisy = torch.where(expand_levels(is_context, noisy), add_noise(given, noise, levels), noisy)
            context = add_noise(given, context_noise, context_levels)
            frames = self._stack(noisy, levels, actions, context, context_levels, is_forced, beside)

        if config.own_share > 0:
            with torch.no_grad():
                # The model's own frame is one it had to make from noise, so that it carries real errors.
                own_levels = torch.where(is_own, torch.ones_like(levels), levels)
                own_noisy = torch.where(expand_levels(is_own, noisy), add_noise(latents, noise, own_levels), noisy)
                own = self._stack(own_noisy, own_levels, actions, context, context_levels, is_forced, beside)
                first = self._predict(own, true)
                source = torch.where(expand_levels(is_own, latents), first.clean.to(latents.dtype), given)

                is_redone = is_own & is_context
                noisy = torch.where(expand_levels(is_redone, noisy), add_noise(source, noise, levels), noisy)
                context = add_noise(source, context_noise, context_levels)
                frames = self._stack(noisy, levels, actions, context, context_levels, is_forced, beside)

        return self._score(self._predict(frames, true), latents, levels, rewards, terminated)

    def _score(
        self,
        prediction: Prediction,
        latents: torch.Tensor,
        levels: torch.Tensor,
        rewards: torch.Tensor,
        terminated: torch.Tensor,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the loss of a prediction and scalars to log; arguments as `forward`."""
        error = (prediction.clean - latents).square().mean((2, 3, 4))
        loss = (error / (levels + self.config.level_offset)).mean()

        reward_index = (rewards[..., None] - self.reward_values).abs().argmin(-1)
        rarity = torch.where(self.reward_values == 0, 1.0, self.config.reward_weight)
        reward_loss = F.cross_entropy(prediction.reward_logits.flatten(0, 1), reward_index.flatten(), rarity)
        end_loss = F.binary_cross_entropy_with_logits(prediction.terminated_logit, terminated.float())

        is_first = levels > 0.98
        scalars = {
            "error_at_noise": (error * is_first).sum().detach() / is_first.sum().clamp_min(1),
            "reward_loss": reward_loss.detach(),
            "terminated_loss": end_loss.detach(),
        }
        return loss + self.config.head_weight * (reward_loss + end_loss), scalars

    def _stack(
        self,
        noisy: torch.Tensor,
        levels: torch.Tensor,
        actions: torch.Tensor,
        context: torch.Tensor,
        context_levels: torch.Tensor,
        is_forced: torch.Tensor,
        beside: tuple[torch.Tensor | None, torch.Tensor | None],
    ) -> FrameInputs:
        """Return noisy frames with those before each: from `context`, in forced clips from `noisy`.

        What is warped into them and where they are seen from, `beside`, stays as it is.
        """
        shown = torch.where(expand_levels(is_forced, noisy), noisy, context)
        shown_levels = torch.where(is_forced[:, None], levels, context_levels)
        past = stack_previous(shown, shown_levels, self.denoiser.config.num_previous)
        return FrameInputs(noisy, levels, actions, *past, *beside)

    def _read_true(self, frames: FrameInputs) -> Context:
        """Return what memories read of true frames, as far as it stays true whatever becomes of them."""
        memories = self.denoiser.named_memories().items()
        return self.denoiser.read(frames, names={name for name, memory in memories if memory.is_true_in_training})

    def _predict(self, frames: FrameInputs, context: Context | None) -> Prediction:
        prediction: Prediction = self.denoiser(frames, context=context, chunk=self.chunk)[0]
        return prediction
