"""The codec: latents of unit scale, shapes as promised, and what ships is what was measured."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from train.codec import CodecLoss, measure_psnr, set_latent_scale
from train.decoder import keep_pixels
from worldmodel.checkpoint import codec_hash, load_codec, save_bundle
from worldmodel.codec import Codec, CodecConfig
from worldmodel.errors import ConfigError, ShapeError
from worldmodel.folded import NUM_FACTS, NUM_FOLDED, fold
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


def folded(share: float = 0.5, magnification: float = 0.0) -> torch.Tensor:
    """Folded pictures of three frames whose right part is remembered."""
    mask = torch.zeros(3, 1, 32, 32)
    mask[..., int(32 * (1 - share)) :] = 1.0
    facts = torch.zeros(3, NUM_FACTS, 32, 32)
    facts[:, 0] = magnification
    return fold(pixels(), mask, facts)


@torch.inference_mode()
def test_a_decoder_that_keeps_pixels_begins_as_the_plain_one(make_codec: Callable[..., Codec]) -> None:
    plain = make_codec()
    keeping = keep_pixels(plain)
    assert keeping.config == dataclasses.replace(plain.config, keeps_pixels=True) and keep_pixels(keeping) is keeping
    latents = plain.encode(pixels())
    expected = plain.decode(latents)
    torch.testing.assert_close(keeping.decode(latents), expected)
    torch.testing.assert_close(keeping.decode(latents, torch.zeros(3, NUM_FOLDED, 4, 4)), expected)
    found = keeping.decode(latents, folded())
    torch.testing.assert_close(found[..., :16], expected[..., :16])
    assert torch.equal(plain.decode(latents, folded()), expected), "a plain decoder takes none"


@torch.inference_mode()
def test_sharp_pixels_come_through_and_soft_ones_less(make_codec: Callable[..., Codec]) -> None:
    codec = keep_pixels(make_codec())
    latents = codec.encode(pixels())
    drawn = codec.decode(latents)[..., 16:]
    shares = []
    for magnification in (0.0, 0.5, 0.95, 2.0):
        found = codec.decode(latents, folded(0.5, magnification))[..., 16:]
        away, way = (found - drawn).flatten(), (pixels()[..., 16:] - drawn).flatten()
        shares.append(float((away * way).sum() / way.square().sum()))  # 0: drawn, 1: kept
    assert shares[0] > 0.9 and shares[0] == pytest.approx(shares[1], abs=0.01)
    assert shares[1] > shares[2] > shares[3] and shares[2] == pytest.approx(0.5, abs=0.15)
    assert shares[3] < 0.05


def test_a_keeper_and_a_plain_decoder_have_the_same_latents(make_codec: Callable[..., Codec], tmp_path: Path) -> None:
    codec = make_codec()
    save_bundle(tmp_path / "plain", codec=codec)
    save_bundle(tmp_path / "keeping", codec=keep_pixels(codec))
    assert codec_hash(tmp_path / "plain") == codec_hash(tmp_path / "keeping")
    assert load_codec(tmp_path / "keeping").config.keeps_pixels
