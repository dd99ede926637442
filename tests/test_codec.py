"""The codec: latents of unit scale, shapes as promised, and what ships is what was measured."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from train.codec import CodecLoss, measure_psnr, set_latent_scale
from worldmodel.checkpoint import load_codec, save_bundle
from worldmodel.codec import Codec, CodecConfig
from worldmodel.errors import ConfigError, ShapeError
from worldmodel.frames import to_pixels

CPU = torch.device("cpu")


def pixels(batch: int = 3, size: int = 32) -> torch.Tensor:
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


@torch.inference_mode()
def test_shapes_and_one_frame_at_a_time(make_codec: Callable[..., Codec]) -> None:
    codec = make_codec()
    latents = codec.encode(pixels())
    assert latents.shape == (3, 4, 4, 4)
    decoded = codec.decode(latents)
    assert decoded.shape == (3, 3, 32, 32)
    torch.testing.assert_close(codec.encode(pixels()[1:2]), latents[1:2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(codec.decode(latents[2:]), decoded[2:], rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_the_latent_scale_is_undone_before_decoding(make_codec: Callable[..., Codec]) -> None:
    codec = make_codec()
    raw = codec.encode_raw(pixels())
    mean, std = (x[:, None, None] for x in (codec.latent_mean, codec.latent_std))
    torch.testing.assert_close(codec.encode(pixels()) * std + mean, raw)
    torch.testing.assert_close(codec.decode(codec.encode(pixels())), codec.decode_raw(raw), rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_a_measured_scale_gives_unit_latents(
    make_codec: Callable[..., Codec], openings: dict[str, torch.Tensor]
) -> None:
    codec, frames = make_codec(), openings["frames"].flatten(0, 1)
    set_latent_scale(codec, frames, CPU)
    latents = codec.encode(to_pixels(frames))
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(4), atol=1e-2, rtol=0)


@torch.inference_mode()
def test_what_ships_in_bfloat16_is_what_was_measured(make_codec: Callable[..., Codec], tmp_path: Path) -> None:
    """`train.codec` rounds the weights before it measures; saving and loading must then change nothing at all."""
    rounded = make_codec().to(torch.bfloat16).to(torch.float32)
    save_bundle(tmp_path, codec=rounded)
    loaded = load_codec(tmp_path)
    assert torch.equal(loaded.encode(pixels()), rounded.encode(pixels()))
    assert torch.equal(loaded.decode(rounded.encode(pixels())), rounded.decode(rounded.encode(pixels())))
    exact = make_codec().encode(pixels())
    error = (loaded.encode(pixels()) - exact).square().mean() / exact.var()
    assert 0 < error < 1e-3


@pytest.mark.parametrize("shape", [(1, 3, 64, 64), (1, 1, 32, 32), (3, 32, 32), (1, 2, 3, 32, 32)])
def test_pixels_of_another_shape_are_refused(shape: tuple[int, ...], make_codec: Callable[..., Codec]) -> None:
    with pytest.raises(ShapeError, match=r"codec takes pixels \(B, 3, 32, 32\); got"):
        make_codec().encode(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(1, 4, 8, 8), (1, 8, 4, 4), (4, 4, 4)])
def test_latents_of_another_shape_are_refused(shape: tuple[int, ...], make_codec: Callable[..., Codec]) -> None:
    with pytest.raises(ShapeError, match=r"codec takes latents \(B, 4, 4, 4\); got"):
        make_codec().decode(torch.zeros(shape))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 60}, "image_size must be a multiple of 8, at least 16; got 60"),
        ({"image_size": 8}, "got 8"),
        ({"width": 0}, "width must be at least 1; got 0"),
        ({"latent_channels": -1}, "latent_channels must be at least 1; got -1"),
        ({"encoder_blocks": (1, 2)}, r"encoder_blocks must be three counts of at least 1; got \(1, 2\)"),
        ({"decoder_blocks": (1, 0, 1)}, r"decoder_blocks must be three counts .* got \(1, 0, 1\)"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CodecConfig(**settings)


def test_psnr_is_the_mean_over_frames_in_decibels(make_codec: Callable[..., Codec]) -> None:
    codec = make_codec()
    codec.encode = lambda x: x  # type: ignore[method-assign]
    offset = torch.tensor([0.1, 0.01])[:, None, None, None]
    codec.decode = lambda x: x + offset  # type: ignore[method-assign]
    frames = torch.full((2, 32, 32, 3), 100, dtype=torch.uint8)
    expected = (10 * math.log10(4 / 0.01) + 10 * math.log10(4 / 0.0001)) / 2
    assert measure_psnr(codec, frames, CPU) == pytest.approx(expected, rel=1e-3)


def test_training_lowers_the_error(make_codec: Callable[..., Codec], openings: dict[str, torch.Tensor]) -> None:
    loss = CodecLoss(make_codec().train())
    optimizer = torch.optim.AdamW(loss.parameters(), lr=3e-3)
    batch, values = to_pixels(openings["frames"].flatten(0, 1)[:8]), []
    for _ in range(25):
        value, scalars = loss(batch, torch.randn(8, 4, 4, 4))
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        values.append((float(value), float(scalars["psnr"])))
    assert values[-1][0] < 0.5 * values[0][0]
    assert values[-1][1] > values[0][1] + 3
