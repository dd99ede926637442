"""Measures of pictures, on pictures whose measure is known."""

import cv2
import numpy as np
import pytest
import torch

from worldmodel.analysis.metrics import (
    MAX_PSNR,
    color_statistics,
    gradient_energy,
    measure_motion,
    psnr,
    squared_error,
    ssim,
)
from worldmodel.errors import ShapeError


def picture(height: int = 64, width: int = 64, seed: int = 0, blur: float = 3.0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(height, width, 3))
    smooth = cv2.GaussianBlur(noise, (0, 0), blur)
    return (128 + 45 * (smooth - smooth.mean()) / smooth.std()).clip(0, 255).astype(np.uint8)


def clip(step: float = 0.0, growth: float = 0.0, size: int = 64, num_frames: int = 5) -> torch.Tensor:
    """A window on a large picture that slides by `step` pixels and grows by `growth` a frame."""
    wide = picture(4 * size, 4 * size)
    frames = []
    for t in range(num_frames):
        zoom, center = (1 + growth) ** t, (size - 1) / 2
        matrix = np.array([[zoom, 0, center + step * t - zoom * 2 * size], [0, zoom, center - zoom * 2 * size]])
        frames.append(cv2.warpAffine(wide, matrix, (size, size), flags=cv2.INTER_CUBIC))
    return torch.from_numpy(np.stack(frames))


def test_psnr_of_a_known_error() -> None:
    dark = torch.full((2, 3, 8, 8, 3), 100, dtype=torch.uint8)
    light = torch.full_like(dark, 151)
    assert psnr(dark, light).shape == (2, 3)
    assert torch.allclose(squared_error(dark, light), torch.tensor(0.04))
    assert torch.allclose(psnr(dark, light), torch.tensor(13.9794), atol=1e-3)
    assert psnr(dark, dark).max() == psnr(dark, dark).min() == MAX_PSNR


def test_psnr_does_not_wrap_around() -> None:
    black, white = torch.zeros(1, 8, 8, 3, dtype=torch.uint8), torch.full((1, 8, 8, 3), 255, dtype=torch.uint8)
    assert float(squared_error(black, white)) == pytest.approx(1.0)
    assert float(squared_error(white, black)) == pytest.approx(1.0)


def test_ssim_is_one_for_equal_frames_falls_with_noise_and_keeps_the_leading_axes() -> None:
    frames = torch.from_numpy(np.stack([picture(seed=s) for s in range(6)])).reshape(2, 3, 64, 64, 3)
    noise = torch.from_numpy(np.random.default_rng(1).integers(-40, 41, frames.shape))
    noisy = (frames.long() + noise).clamp(0, 255).to(torch.uint8)
    assert ssim(frames, frames).shape == (2, 3)
    assert torch.allclose(ssim(frames, frames), torch.ones(2, 3))
    assert float(ssim(frames, noisy).max()) < 0.9
    mixed = torch.cat([frames[:, :1], noisy[:, 1:]], 1)
    assert torch.allclose(ssim(mixed, frames)[:, 0], torch.ones(2))


def test_gradient_energy_of_known_pictures() -> None:
    flat = torch.full((1, 8, 8, 3), 77, dtype=torch.uint8)
    stripes = flat.clone()
    stripes[:, :, ::2] = 77 + 51  # every step across is 0.2 of the range
    assert float(gradient_energy(flat)) == 0
    assert float(gradient_energy(stripes)) == pytest.approx(0.04, rel=1e-3)


def test_blur_lowers_the_gradient_energy() -> None:
    sharp = picture(blur=0.7)
    mud = cv2.GaussianBlur(sharp, (0, 0), 2.0)
    ratio = gradient_energy(torch.from_numpy(mud)) / gradient_energy(torch.from_numpy(sharp))
    assert float(ratio) < 0.3


def test_color_statistics_are_means_and_deviations_in_levels() -> None:
    frame = torch.zeros(4, 4, 3, dtype=torch.uint8)
    frame[..., 0], frame[:2, :, 1] = 200, 100
    assert torch.allclose(color_statistics(frame), torch.tensor([200.0, 50, 0, 0, 50, 0]), atol=1e-2)


@pytest.mark.parametrize("step", [-5.0, -2.0, 2.0, 5.0])
def test_shift_has_the_sign_and_size_of_a_sliding_picture(step: float) -> None:
    motion = measure_motion(clip(step=step))
    assert motion.shift == pytest.approx(step / 64, rel=0.15)
    assert abs(motion.expansion) < 0.02


@pytest.mark.parametrize("growth", [-0.06, 0.06])
def test_expansion_has_the_sign_and_size_of_a_growing_picture(growth: float) -> None:
    motion = measure_motion(clip(growth=growth))
    assert motion.expansion == pytest.approx(growth, rel=0.25)
    assert abs(motion.shift) < 0.01


def test_motion_does_not_depend_on_the_frame_size() -> None:
    large, small = measure_motion(clip(step=6.0, size=128)), measure_motion(clip(step=3.0))
    assert large.shift == pytest.approx(small.shift, rel=0.2)


def test_a_still_and_an_empty_picture_do_not_move() -> None:
    for frames in (clip(), torch.full((3, 64, 64, 3), 90, dtype=torch.uint8)):
        motion = measure_motion(frames)
        assert abs(motion.shift) < 1e-3 and abs(motion.expansion) < 1e-3


def test_wrong_shapes_are_refused() -> None:
    frames = torch.zeros(2, 64, 64, 3, dtype=torch.uint8)
    with pytest.raises(ShapeError, match="one shape"):
        squared_error(frames, frames[:1])
    with pytest.raises(ShapeError, match="11 x 11"):
        ssim(frames[:, :8], frames[:, :8])
    with pytest.raises(ShapeError, match="uint8"):
        gradient_energy(frames.float())
    with pytest.raises(ShapeError, match="T at least 2"):
        measure_motion(frames[:1])
