"""The one conversion between frames and pixels loses nothing."""

import pytest
import torch

from worldmodel.errors import ShapeError
from worldmodel.frames import to_frames, to_pixels


def every_level() -> torch.Tensor:
    frames = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).repeat(2, 1, 1, 3)
    frames[..., 1] = frames[..., 1].flip(1)
    return frames


def test_thirty_rounds_of_save_and_load_change_nothing() -> None:
    frames = every_level()
    again = frames
    for _ in range(30):
        again = to_frames(to_pixels(again))
    assert torch.equal(again, frames)
    assert again.dtype == torch.uint8


def test_range_and_axes() -> None:
    frames = every_level()
    pixels = to_pixels(frames)
    assert pixels.shape == (2, 3, 16, 16)
    assert pixels.dtype == torch.float32
    assert (pixels.min(), pixels.max()) == (-1, 1)
    assert pixels[1, 1, 2, 3] == frames[1, 2, 3, 1] / 127.5 - 1


def test_the_nearest_level_is_taken_and_the_rest_clamped() -> None:
    values = torch.tensor([0.4, 0.6, 254.4, 254.6, -40.0, 300.0]) / 127.5 - 1
    frames = to_frames(values.reshape(6, 1, 1, 1).repeat(1, 3, 1, 1))
    assert frames[:, 0, 0, 0].tolist() == [0, 1, 254, 255, 0, 255]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_float_formats_are_rounded_not_truncated(dtype: torch.dtype) -> None:
    frames = every_level()
    error = to_frames(to_pixels(frames).to(dtype)).int() - frames.int()
    assert error.abs().max() <= 1
    assert error.float().mean().abs() < 0.05


@pytest.mark.parametrize(
    "frames", [torch.zeros(4, 4, 3), torch.zeros(3, 4, 4, dtype=torch.uint8), torch.zeros(4, 3, dtype=torch.uint8)]
)
def test_what_is_not_a_frame_is_refused(frames: torch.Tensor) -> None:
    with pytest.raises(ShapeError, match=r"frames must be uint8 \(\.\.\., H, W, 3\); got torch\."):
        to_pixels(frames)


@pytest.mark.parametrize("pixels", [torch.zeros(3, 4, 4, dtype=torch.uint8), torch.zeros(4, 4, 3), torch.zeros(3, 4)])
def test_what_is_not_pixels_is_refused(pixels: torch.Tensor) -> None:
    with pytest.raises(ShapeError, match=r"pixels must be float \(\.\.\., 3, H, W\); got torch\."):
        to_frames(pixels)
