"""Named sizes of codec and denoiser.

`tiny` for tests, `study` for comparisons at 32 px, `small` for a laptop's CPU (shipped), `base` for one GPU at 128 px.

Owns the numbers. Knows no weights and no training.
"""

from dataclasses import dataclass

from worldmodel.codec import CodecConfig
from worldmodel.config import DenoiserConfig
from worldmodel.errors import ConfigError


@dataclass(frozen=True)
class Preset:
    """A codec and a denoiser that fit together."""

    codec: CodecConfig
    denoiser: DenoiserConfig


PRESETS: dict[str, Preset] = {
    "tiny": Preset(
        CodecConfig(image_size=64, width=16, latent_channels=4, encoder_blocks=(1, 1, 1), decoder_blocks=(1, 1, 1)),
        DenoiserConfig(
            latent_channels=4, latent_size=8, patch=4, width=64, depth=2, heads=2, recent_frames=4, memory_frames=104
        ),
    ),
    "study": Preset(
        CodecConfig(image_size=32, width=40, latent_channels=8, encoder_blocks=(1, 2, 2), decoder_blocks=(2, 2, 1)),
        DenoiserConfig(latent_size=4, width=128, depth=4, heads=2, recent_frames=4, memory_frames=112),
    ),
    "small": Preset(CodecConfig(), DenoiserConfig(memory_frames=304)),
    "base": Preset(
        CodecConfig(image_size=128, width=96),
        DenoiserConfig(latent_size=16, width=512, depth=12, heads=8, memory_frames=304, num_summary=4),
    ),
}


def get_preset(name: str) -> Preset:
    """Return a preset by name.

    Raises:
        ConfigError: no preset has this name.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}; accepted: {', '.join(PRESETS)}")
    return PRESETS[name]
