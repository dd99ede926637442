"""Frame codec: pixels to latents and back, one frame at a time.

Owns the autoencoder (diffusers' `AutoencoderTiny` behind a 2x2 pixel shuffle), the latent scale, and what lets the
decoder keep remembered pixels. Knows no time and no memory: a warped picture is handed to it.
"""

from dataclasses import dataclass
from typing import cast

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F

from worldmodel.errors import ConfigError, ShapeError
from worldmodel.folded import FOLD, NUM_FACTS, Unfolded, unfold


@dataclass(frozen=True)
class CodecConfig:
    """Shape of a codec.

    Attributes:
        image_size: height and width of a frame in pixels, a multiple of 8.
        width: channels of every hidden layer.
        latent_channels: channels of a latent; a latent is image_size / 8 squared.
        encoder_blocks: residual blocks at 1/2, 1/4 and 1/8 of the image size.
        decoder_blocks: residual blocks at 1/8, 1/4 and 1/2 of the image size.
        keeps_pixels: whether the decoder takes a picture warped from memory, and keeps its pixels where they are good.
    """

    image_size: int = 64
    width: int = 64
    latent_channels: int = 8
    encoder_blocks: tuple[int, int, int] = (1, 3, 3)
    decoder_blocks: tuple[int, int, int] = (3, 3, 1)
    keeps_pixels: bool = False

    def __post_init__(self) -> None:
        if self.image_size < 16 or self.image_size % 8:
            raise ConfigError(f"codec image_size must be a multiple of 8, at least 16; got {self.image_size}")
        for name in ("width", "latent_channels"):
            if getattr(self, name) < 1:
                raise ConfigError(f"codec {name} must be at least 1; got {getattr(self, name)}")
        for name in ("encoder_blocks", "decoder_blocks"):
            blocks = tuple(getattr(self, name))
            if len(blocks) != 3 or min(blocks) < 1:
                raise ConfigError(f"codec {name} must be three counts of at least 1; got {blocks}")
            object.__setattr__(self, name, blocks)

    @property
    def latent_size(self) -> int:
        """Height and width of a latent."""
        return self.image_size // 8


SHARPEST_LOG2 = 0.7  # pixels magnified by less than 1.6 are kept as they are: beyond that they are soft


class PixelKeeper(nn.Module):
    """Lets remembered pixels into the last stage of a decoder, and through it: a gate blends them with what it draws.

    At first, gate and features are those of a decoder that knows nothing of warped pictures but where they are sharp.
    """

    def __init__(self, width: int) -> None:
        """Build for a decoder of `width` channels at half the image size."""
        super().__init__()
        self.enter = nn.Conv2d(4 * 4 + NUM_FACTS, width, 3, padding=1)
        self.mix = nn.Conv2d(width, width, 3, padding=1)
        self.gate = nn.Conv2d(width, 4, 3, padding=1)
        for layer in (self.mix, self.gate):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(cast("torch.Tensor", layer.bias))

    def features(self, warped: Unfolded) -> torch.Tensor:
        """Return what is added to the decoder's features, (N, width, H/2, W/2)."""
        pixels = F.pixel_unshuffle(torch.cat([warped.pixels, warped.mask], 1), 2)
        facts = F.interpolate(warped.facts, scale_factor=FOLD // 2, mode="nearest")
        given = torch.cat([pixels, facts], 1).to(self.enter.weight.dtype)
        entered: torch.Tensor = self.mix(F.relu(self.enter(given.contiguous(memory_format=torch.channels_last))))
        return entered

    def share(self, features: torch.Tensor, warped: Unfolded) -> torch.Tensor:
        """Return how much of each pixel is kept, (N, 1, H, W) in [0, 1]; 0 where nothing is remembered."""
        learned = F.pixel_shuffle(self.gate(features), 2)
        magnified = F.interpolate(warped.facts[:, :1], scale_factor=FOLD, mode="bilinear")
        # fully kept up to the limit, half at a fifth larger
        sharp = (3.0 - 12.0 * (magnified - SHARPEST_LOG2).clamp_min(0)).to(learned.dtype)
        return torch.sigmoid(learned + sharp) * warped.mask.to(learned.dtype)


class Codec(nn.Module):
    """Autoencoder of single frames with unit-scale latents."""

    latent_mean: torch.Tensor
    latent_std: torch.Tensor

    def __init__(self, config: CodecConfig) -> None:
        """Build an untrained codec of the given shape."""
        super().__init__()
        from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny  # seconds to import

        self.config = config
        channels = (config.width,) * 3
        self.autoencoder = AutoencoderTiny(
            in_channels=12,
            out_channels=12,
            encoder_block_out_channels=channels,
            decoder_block_out_channels=channels,
            latent_channels=config.latent_channels,
            num_encoder_blocks=config.encoder_blocks,
            num_decoder_blocks=config.decoder_blocks,
        )
        self.keeper = PixelKeeper(config.width) if config.keeps_pixels else None
        self.register_buffer("latent_mean", torch.zeros(config.latent_channels))
        self.register_buffer("latent_std", torch.ones(config.latent_channels))

    def encode_raw(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encode without the latent scale; for training the codec itself. Shapes as in `encode`."""
        size = self.config.image_size
        if pixels.ndim != 4 or tuple(pixels.shape[1:]) != (3, size, size):
            raise ShapeError(f"codec takes pixels (B, 3, {size}, {size}); got {tuple(pixels.shape)}")
        shuffled = rearrange(pixels, "b c (h p) (w q) -> b (c p q) h w", p=2, q=2)
        return self.autoencoder.encode(shuffled.contiguous(memory_format=torch.channels_last)).latents

    def decode_raw(self, raw: torch.Tensor, warped: torch.Tensor | None = None) -> torch.Tensor:
        """Decode without the latent scale; for training the codec itself. Shapes as in `decode`."""
        drawn, kept = self.draw_raw(raw, warped)
        if warped is None or kept is None:
            return drawn
        drawn = drawn.float()  # remembered pixels keep their digits: they are remembered again
        return drawn + kept.float() * (unfold(warped).pixels.float() - drawn)

    def draw_raw(
        self, raw: torch.Tensor, warped: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return what the decoder draws, before remembered pixels go over it, and how much of those is kept."""
        raw = raw.contiguous(memory_format=torch.channels_last)
        if self.keeper is None or warped is None:
            shuffled, kept = self.autoencoder.decode(raw).sample, None
        else:
            # `AutoencoderTiny.decode`, opened before the last stage
            picture = unfold(warped)
            layers = self.autoencoder.decoder.layers
            features = torch.tanh(raw / 3) * 3
            for layer in layers[:-2]:
                features = layer(features)
            features = layers[-2](features + self.keeper.features(picture))
            shuffled, kept = layers[-1](features).mul(2).sub(1), self.keeper.share(features, picture)
        return rearrange(shuffled, "b (c p q) h w -> b c (h p) (w q)", p=2, q=2), kept

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encode pixels.

        Args:
            pixels: float (B, 3, H, W) in [-1, 1].

        Returns:
            float (B, C, H/8, W/8), about zero mean and unit variance per channel.

        Raises:
            ShapeError: another frame size or channel count.
        """
        raw = self.encode_raw(pixels)
        return (raw - self.latent_mean[:, None, None]) / self.latent_std[:, None, None]

    def decode(self, latents: torch.Tensor, warped: torch.Tensor | None = None) -> torch.Tensor:
        """Decode latents.

        Args:
            latents: float (B, C, H/8, W/8).
            warped: float (B, `NUM_FOLDED`, H/8, W/8), what is remembered of the frames (`worldmodel.folded`);
                None, or a codec that does not keep pixels: nothing.

        Returns:
            float (B, 3, H, W), nominally in [-1, 1], not clamped.

        Raises:
            ShapeError: another latent size or channel count.
        """
        want = (self.config.latent_channels, self.config.latent_size, self.config.latent_size)
        if latents.ndim != 4 or tuple(latents.shape[1:]) != want:
            raise ShapeError(f"codec takes latents (B, {', '.join(map(str, want))}); got {tuple(latents.shape)}")
        return self.decode_raw(latents * self.latent_std[:, None, None] + self.latent_mean[:, None, None], warped)
