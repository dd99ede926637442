"""Program: train the frame codec. `python -m train.codec --data DIR --out DIR --preset P --minutes M`.

Owns the codec's loss and its options. The loop is `train.core.loop`'s.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from envs.data.episodes import open_shards
from train.core.loop import TrainOptions, train_model
from train.core.machine import Machine, start_machine
from train.core.options import options_to_json, parse_options, run_program, save_json
from train.data.clips import load_frames
from train.losses.texture import local_gradient
from worldmodel.checkpoint import load_codec, save_bundle
from worldmodel.codec import Codec
from worldmodel.errors import CheckpointError, ConfigError
from worldmodel.frames import to_pixels
from worldmodel.presets import get_preset


@dataclass(frozen=True)
class CodecOptions(TrainOptions):
    """Train the frame codec: frames to latents and back."""

    batch_size: int = 64
    learning_rate: float = 1.5e-3
    max_frames: int = 100_000
    """Frames held in memory to train on."""
    test_frames: int = 2_000
    """Held-out frames to measure on."""
    initial: str | None = None
    """A bundle to take the first weights from, instead of chance."""
    decoder_only: bool = False
    """Leave the encoder of --initial as it is: its latents, and denoisers of them, stay valid."""
    texture_weight: float = 0.0
    """Weight of matching the local strength of image gradients: crisper textures for a little PSNR."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decoder_only and self.initial is None:
            raise ConfigError("--decoder-only needs --initial, the bundle whose encoder is kept")
        if self.texture_weight < 0:
            raise ConfigError(f"texture_weight must be at least 0; got {self.texture_weight}")


class CodecLoss(nn.Module):
    """Reconstruction loss: squared error, absolute error, error and local strength of gradients; latents kept small."""

    def __init__(self, codec: Codec, decoder_only: bool = False, texture_weight: float = 0.0) -> None:
        """Wrap the codec to be trained; `decoder_only` and `texture_weight` as in `CodecOptions`."""
        super().__init__()
        self.codec = codec
        self.decoder_only = decoder_only
        self.texture_weight = texture_weight

    def forward(self, pixels: torch.Tensor, jitter: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the loss and scalars.

        Args:
            pixels: float (B, 3, H, W) in [-1, 1].
            jitter: standard normal (B, C, h, w); the decoder must stand a little noise, the denoiser is not exact.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.decoder_only):
            raw = self.codec.encode_raw(pixels)
        scale = raw.detach().float().std()
        decoded = self.codec.decode_raw(raw + 0.04 * scale * jitter.to(raw.dtype)).float()
        error = decoded - pixels
        squared = error.square().mean()
        edges = F.l1_loss(error[..., 1:, :], error[..., :-1, :]) + F.l1_loss(error[..., 1:], error[..., :-1])
        loss = squared + 0.05 * error.abs().mean() + 0.05 * edges + 1e-4 * raw.float().square().mean()
        if self.texture_weight > 0:
            loss = loss + self.texture_weight * F.l1_loss(local_gradient(decoded), local_gradient(pixels))
        return loss, {"psnr": 10 * torch.log10(4.0 / squared.detach()), "latent_scale": scale}


@torch.inference_mode()
def set_latent_scale(codec: Codec, frames: torch.Tensor, device: torch.device) -> None:
    """Measure mean and deviation of each latent channel on frames uint8 (N, H, W, 3) and store them in the codec."""
    raw = torch.cat([codec.encode_raw(to_pixels(part.to(device))).float().cpu() for part in frames.split(256)])
    codec.latent_mean.copy_(raw.mean((0, 2, 3)))
    codec.latent_std.copy_(raw.std((0, 2, 3)).clamp_min(1e-4))


@torch.inference_mode()
def measure_psnr(codec: Codec, frames: torch.Tensor, device: torch.device) -> float:
    """Return the mean over frames of the PSNR of encode and decode, dB; frames uint8 (N, H, W, 3)."""
    values = []
    for part in frames.split(256):
        pixels = to_pixels(part.to(device))
        decoded = codec.decode(codec.encode(pixels)).clamp(-1, 1)
        values.append(10 * torch.log10(4.0 / (decoded - pixels).square().mean((1, 2, 3)).clamp_min(1e-10)))
    return float(torch.cat(values).mean())


def train_codec(options: CodecOptions, machine: Machine) -> dict[str, Any]:
    """Train, measure and save a codec; return the summary.

    Raises:
        DataError: the recording cannot be used. CheckpointError: resume without a state. StorageError: a full disk.
    """
    config = get_preset(options.preset).codec
    shards = open_shards(options.data, image_size=config.image_size)
    split = {name: [s for s in shards if s.split == name] for name in ("train", "test")}
    frames = load_frames(split["train"] or shards, options.max_frames, options.seed)
    torch.manual_seed(options.seed)
    codec = Codec(config) if options.initial is None else load_codec(options.initial).train()
    if codec.config != config:
        raise CheckpointError(f"the codec of {options.initial} is {codec.config}; {options.preset!r} is {config}")
    codec = codec.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in its stubs
    loss = CodecLoss(codec, options.decoder_only, options.texture_weight)
    trained = codec.autoencoder.decoder if options.decoder_only else codec
    optimizer = torch.optim.AdamW(trained.parameters(), lr=options.learning_rate, betas=(0.9, 0.98), weight_decay=1e-4)
    if machine.device.type == "cuda":
        frames = frames.to(machine.device)

    def sample(generator: torch.Generator) -> dict[str, torch.Tensor]:
        index = torch.randint(len(frames), (options.batch_size,), generator=generator).to(frames.device)
        shape = (options.batch_size, config.latent_channels, config.latent_size, config.latent_size)
        return {"pixels": to_pixels(frames[index]), "jitter": torch.randn(shape, generator=generator)}

    averaged, summary = train_model(options, machine, loss, [optimizer], sample, options.batch_size)
    if machine.is_main:
        best = averaged.codec.eval()
        if not options.decoder_only:
            set_latent_scale(best, frames[torch.randperm(len(frames))[:4096].to(frames.device)], machine.device)
        held_out = load_frames(split["test"] or shards, options.test_frames, options.seed)
        # What ships is bfloat16: measure that, and let latents be made by exactly that.
        best.to(torch.bfloat16).to(torch.float32)
        summary["test_psnr"] = measure_psnr(best, held_out, machine.device)
        summary["test_frames"] = len(held_out)
        save_bundle(options.out, codec=best)
        save_json(options.out / "codec_training.json", {"options": options_to_json(options), "summary": summary})
    return summary


def main() -> None:
    """Parse options, train, print the summary."""
    options = parse_options(CodecOptions, "python -m train.codec")
    summary = train_codec(options, start_machine(options.device))
    print({k: round(v, 4) if isinstance(v, float) else v for k, v in summary.items()})


if __name__ == "__main__":
    run_program(main)
