"""The loss of a decoder that must draw what was never seen: pictures like real ones, by a discriminator of patches.

Owns: the discriminator, and the loss over a batch of real, predicted and dreamt latents. Knows no files, no loop and no
dream.

A decoder trained on squared error alone draws the mean of what might be there, which is mud. Where a frame is known,
from its latent or from remembered pixels, the mean is the truth, and the loss asks for that; where the latent is itself
a generator's guess, a discriminator asks for a picture like those of the recording.

How much of a remembered pixel is kept has a loss of its own: all of it, but where it is clearly farther from the truth
than what is drawn. What is mixed in one frame is remembered and mixed again in the next, so that a gate which made the
best of each frame would forget everything; and the discriminator would rather forget, too.

Source: patch discriminator and hinge loss as in Esser et al. 2021 (arXiv:2012.09841); the split by what is known is
ours.
"""

import copy
import dataclasses
from dataclasses import dataclass

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from train.losses.texture import local_gradient
from worldmodel.codec import SHARPEST_LOG2, Codec
from worldmodel.errors import ConfigError
from worldmodel.folded import FOLD, unfold

CLEARLY_WORSE = 0.15  # mean difference of colors in [-1, 1] by which memory is farther from the truth than the drawing
LOW_PASS = 8  # pixels: what is coarser than this stays what the latent says
TRUE, PREDICTED, DREAMT, ANCHORED = range(4)
"""Kinds of examples: latents of real frames; latents predicted for real frames; latents of a dream, without a truth;
latents of a dream whose truth is known where it remembers something (`train.data.anchored`)."""


@dataclass(frozen=True)
class AdversaryConfig:
    """Weights of the loss.

    Attributes:
        adversary_weight: of the discriminator, where nothing is known for sure.
        low_weight: of keeping coarse colors as the decoder drew them before, for dreamt latents.
        tint_weight: of keeping the tint of small squares as it was drawn before, for latents that are not true: texture
            is light and dark, not rainbow.
        texture_weight: of matching the local strength of gradients, where the truth is known.
        gate_weight: of the gate's own loss.
        drawn_weight: of what is drawn under remembered pixels, as if they were not there.
        width: channels of the discriminator's first layer.
    """

    adversary_weight: float = 0.03
    low_weight: float = 4.0
    tint_weight: float = 1.0
    texture_weight: float = 0.3
    gate_weight: float = 0.2
    drawn_weight: float = 0.5
    width: int = 48

    def __post_init__(self) -> None:
        for name in (field.name for field in dataclasses.fields(self) if field.name != "width"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} must be at least 0; got {getattr(self, name)}")


class PatchDiscriminator(nn.Module):
    """Says of each 8 x 8 square whether it looks recorded, from about 36 pixels around it."""

    def __init__(self, width: int) -> None:
        """Build one; half of the time it sees a low-passed picture beside, and judges what is finer."""
        super().__init__()

        def layer(inner: int, outer: int, kernel: int, stride: int) -> nn.Module:
            return spectral_norm(nn.Conv2d(inner, outer, kernel, stride, (kernel - 1) // 2))

        slope = 0.2
        self.layers = nn.Sequential(
            layer(6, width, 4, 2),
            nn.LeakyReLU(slope),
            layer(width, 2 * width, 4, 2),
            nn.LeakyReLU(slope),
            layer(2 * width, 2 * width, 3, 1),
            nn.LeakyReLU(slope),
            layer(2 * width, 3 * width, 4, 2),
            nn.LeakyReLU(slope),
            layer(3 * width, 1, 3, 1),
        )

    def forward(self, pictures: torch.Tensor, low: torch.Tensor) -> torch.Tensor:
        """Return logits (N, 1, about H/8, about W/8) of pictures (N, 3, H, W); low: low-passed pictures, or zeros."""
        given = torch.cat([pictures, low], 1).contiguous(memory_format=torch.channels_last)
        logits: torch.Tensor = self.layers(given)
        return logits


def low_pass(pictures: torch.Tensor) -> torch.Tensor:
    """Return the mean colors of `LOW_PASS` squares, (N, 3, H/8, W/8)."""
    return F.avg_pool2d(pictures, LOW_PASS)


def tint(pictures: torch.Tensor) -> torch.Tensor:
    """Return how far each color is from the gray of its square of 2 x 2 pixels, (N, 3, H/2, W/2)."""
    return F.avg_pool2d(pictures - pictures.mean(1, keepdim=True), 2)


def _edge_error(error: torch.Tensor) -> torch.Tensor:
    down, right = error[..., 1:, :] - error[..., :-1, :], error[..., 1:] - error[..., :-1]
    return F.pad(down.abs(), (0, 0, 0, 1)) + F.pad(right.abs(), (0, 1))


class DecoderLoss(nn.Module):
    """The loss of decoder and discriminator in one, so that one backward pass trains both."""

    def __init__(self, codec: Codec, config: AdversaryConfig) -> None:
        """Wrap the codec whose decoder is to be trained; its present decoder is kept to hold coarse colors by."""
        super().__init__()
        self.codec = codec
        self.config = config
        self.discriminator = PatchDiscriminator(config.width)
        self.before = copy.deepcopy(codec).eval().requires_grad_(False)
        for name, parameter in codec.named_parameters():
            parameter.requires_grad_("decoder" in name or name.startswith("keeper."))

    def forward(
        self,
        latents: torch.Tensor,
        truth: torch.Tensor,
        kinds: torch.Tensor,
        warped: torch.Tensor,
        real: torch.Tensor,
        is_coarse_shown: torch.Tensor,
        corner: torch.Tensor,
        jitter: torch.Tensor,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the loss and scalars.

        Args:
            latents: float (N, C, h, w).
            truth: float (N, 3, H, W) in [-1, 1], the frames they stand for; not used for dreamt ones.
            kinds: int64 (N,), `TRUE`, `PREDICTED`, `DREAMT` or `ANCHORED`.
            warped: float (N, `NUM_FOLDED`, h, w), what is remembered of each (`worldmodel.folded`).
            real: float (M, 3, H, W), other recorded frames for the discriminator.
            is_coarse_shown: bool (N + M,), whether the discriminator sees coarse colors beside.
            corner: int64 (2,), row and column of the piece it sees: it shall not know the border.
            jitter: standard normal, the shape of `latents`: the denoiser is not exact.
        """
        config, codec = self.config, self.codec
        pixels, mask, facts = unfold(warped)
        raw = latents * codec.latent_std[:, None, None] + codec.latent_mean[:, None, None]
        drawn, kept = codec.draw_raw(raw + 0.04 * codec.latent_std.mean() * jitter, warped)
        drawn, kept = drawn.float(), torch.zeros_like(mask) if kept is None else kept.float()
        given = kept.detach()  # the gate has a loss of its own
        made = drawn + given * (pixels - drawn)
        with torch.no_grad():
            old = self.before.draw_raw(raw, warped)[0].float()
            was = old + given * (pixels - old)

        def weigh(share: torch.Tensor) -> torch.Tensor:
            return share[:, None, None, None]

        is_true, is_dreamt, is_anchored = ((kinds == kind).float() for kind in (TRUE, DREAMT, ANCHORED))
        # a predicted latent has its truth beside it, but where that was never in sight it is one of many
        trust = weigh(is_true) + weigh((kinds == PREDICTED).float()) * (0.1 + 0.7 * mask) + weigh(is_anchored) * mask
        error, under = made - truth, drawn - truth
        known = self._difference(error, trust) + config.drawn_weight * self._difference(under, weigh(is_true))
        texture = (local_gradient(made) - local_gradient(truth)).abs() * weigh(is_true)
        held = weigh(1 - is_true) * (1 - weigh(is_anchored) * mask)  # to what was drawn before, as no truth is known
        coarse = F.smooth_l1_loss(low_pass(made), low_pass(was), reduction="none", beta=0.04) * low_pass(held)
        tinted = (tint(made) - tint(was)).abs() * F.avg_pool2d(held, 2)
        rebuilt = known + config.texture_weight * texture.mean() + config.low_weight * coarse.mean()
        rebuilt = rebuilt + config.tint_weight * tinted.mean()
        gated = judge_gate(kept, pixels, drawn.detach(), truth, mask * weigh(1 - is_dreamt), facts)

        adversary, judged = self._judge(made, torch.cat([was, real]), real, is_coarse_shown, corner, 1 - 0.5 * is_true)
        loss = rebuilt + config.gate_weight * gated + config.adversary_weight * adversary + judged
        with torch.no_grad():
            squared = (error.square().mean((1, 2, 3)) * is_true).sum() / is_true.sum().clamp_min(1)
            strength = local_gradient(made).mean((1, 2, 3)), local_gradient(was).mean((1, 2, 3))
            sharper = (strength[0] * is_dreamt).sum() / (strength[1] * is_dreamt).sum().clamp_min(1e-6)
        return loss, {
            "psnr": 10 * torch.log10(4.0 / squared),
            "rebuilt": rebuilt.detach(),
            "gate": gated.detach(),
            "adversary": adversary.detach(),
            "judged": judged.detach(),
            "sharper": sharper,
            "kept": (kept.sum() / mask.sum().clamp_min(1)).detach(),
        }

    @staticmethod
    def _difference(error: torch.Tensor, trust: torch.Tensor) -> torch.Tensor:
        return ((error.abs() + 2 * error.square() + 0.5 * _edge_error(error)) * trust).mean()

    def _judge(
        self,
        made: torch.Tensor,
        coarse: torch.Tensor,
        real: torch.Tensor,
        is_coarse_shown: torch.Tensor,
        corner: torch.Tensor,
        weight: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the decoder's loss by the discriminator, and the discriminator's own."""
        piece = made.shape[-1] * 3 // 4
        rows, columns = (start + torch.arange(piece, device=made.device) for start in corner)

        def cut(pictures: torch.Tensor) -> torch.Tensor:
            return pictures[:, :, rows][:, :, :, columns]

        low = F.interpolate(low_pass(coarse), scale_factor=LOW_PASS, mode="bilinear")
        low = cut(low) * is_coarse_shown[:, None, None, None]
        weight = (weight / weight.mean())[:, None, None, None]
        shown = cut(torch.cat([made, real]))
        logits = self.discriminator(shown.detach(), low)
        fake, true = logits[: len(made)], logits[len(made) :]
        judged = F.relu(1 - true).mean() + (weight * F.relu(1 + fake)).mean()
        frozen = {name: part.detach() for name, part in self.discriminator.named_parameters()}
        seen = functional_call(self.discriminator, frozen, (shown[: len(made)], low[: len(made)]))
        return -(weight * seen).mean(), judged


def judge_gate(
    kept: torch.Tensor,
    pixels: torch.Tensor,
    drawn: torch.Tensor,
    truth: torch.Tensor,
    counts: torch.Tensor,
    facts: torch.Tensor,
) -> torch.Tensor:
    """Return how far a gate is from keeping what is remembered but where it is clearly worse than what is drawn.

    Pixels that are seen much larger than they were remembered are left to the gate's own rule.

    Args:
        kept: float (N, 1, H, W) in [0, 1], how much of each remembered pixel is kept.
        pixels, drawn, truth: float (N, 3, H, W) in [-1, 1]: what is remembered, what is drawn, and what was there.
        counts: float (N, 1, H, W), weight of each pixel; 0 where nothing is remembered or the truth says nothing.
        facts: float (N, `NUM_FACTS`, H / 8, W / 8), of whole squares.
    """

    def around(picture: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d((picture - truth).abs().mean(1, keepdim=True), 3, 1, 1)

    worse = around(pixels) - around(drawn)
    is_sharp = F.interpolate(facts[:, :1], scale_factor=FOLD, mode="nearest") < SHARPEST_LOG2
    weight = counts * is_sharp * (worse.abs().clamp_max(0.5) + 0.02)
    wanted = (worse < CLEARLY_WORSE).to(kept.dtype)
    missed = F.binary_cross_entropy(kept.clamp(1e-4, 1 - 1e-4), wanted, reduction="none")
    return (missed * weight).sum() / weight.sum().clamp_min(1e-6)
