"""Frame codec: pixels to latents and back, one frame at a time.

Owns the autoencoder (diffusers' `AutoencoderTiny` behind a 2x2 pixel shuffle) and the latent scale. Knows no time.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import nn

from worldmodel.errors import ConfigError, ShapeError


@dataclass(frozen=True)
class CodecConfig:
    """Shape of a codec.

    Attributes:
        image_size: height and width of a frame in pixels, a multiple of 8.
        width: channels of every hidden layer.
        latent_channels: channels of a latent; a latent is image_size / 8 squared.
        encoder_blocks: residual blocks at 1/2, 1/4 and 1/8 of the image size.
        decoder_blocks: residual blocks at 1/8, 1/4 and 1/2 of the image size.
    """

    image_size: int = 64
    width: int = 64
    latent_channels: int = 8
    encoder_blocks: tuple[int, int, int] = (1, 3, 3)
    decoder_blocks: tuple[int, int, int] = (3, 3, 1)

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
        self.register_buffer("latent_mean", torch.zeros(config.latent_channels))
        self.register_buffer("latent_std", torch.ones(config.latent_channels))

    def encode_raw(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encode without the latent scale; for training the codec itself. Shapes as in `encode`."""
        size = self.config.image_size
        if pixels.ndim != 4 or tuple(pixels.shape[1:]) != (3, size, size):
            raise ShapeError(f"codec takes pixels (B, 3, {size}, {size}); got {tuple(pixels.shape)}")
        shuffled = rearrange(pixels, "b c (h p) (w q) -> b (c p q) h w", p=2, q=2)
        return self.autoencoder.encode(shuffled.contiguous(memory_format=torch.channels_last)).latents

    def decode_raw(self, raw: torch.Tensor) -> torch.Tensor:
        """Decode without the latent scale; for training the codec itself. Shapes as in `decode`."""
        shuffled = self.autoencoder.decode(raw.contiguous(memory_format=torch.channels_last)).sample
        return rearrange(shuffled, "b (c p q) h w -> b c (h p) (w q)", p=2, q=2)

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

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode latents.

        Args:
            latents: float (B, C, H/8, W/8).

        Returns:
            float (B, 3, H, W), nominally in [-1, 1], not clamped.

        Raises:
            ShapeError: another latent size or channel count.
        """
        want = (self.config.latent_channels, self.config.latent_size, self.config.latent_size)
        if latents.ndim != 4 or tuple(latents.shape[1:]) != want:
            raise ShapeError(f"codec takes latents (B, {', '.join(map(str, want))}); got {tuple(latents.shape)}")
        return self.decode_raw(latents * self.latent_std[:, None, None] + self.latent_mean[:, None, None])
