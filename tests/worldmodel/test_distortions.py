"""Distortions in latent space: the fit finds the map that is there, and says how much it leaves."""

import cv2
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from worldmodel.distortions import (
    DISTORTIONS,
    GAIN,
    LatentDistortions,
    LatentMap,
    blur_pixels,
    brighten_pixels,
    fit_distortions,
)


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_unfitted_they_change_nothing() -> None:
    latents, strengths = draw(2, 3, 4, 8, 8), torch.ones(2, 3, len(DISTORTIONS))
    torch.testing.assert_close(LatentDistortions(4)(latents, strengths), latents)


def test_a_convolution_is_found_whole() -> None:
    latents, kernel, bias = draw(40, 3, 6, 6), draw(3, 3, 5, 5), draw(3)
    wanted = F.conv2d(F.pad(latents, (2, 2, 2, 2), mode="replicate"), kernel, bias)
    found = LatentMap(3)
    assert found.fit(latents, wanted) < 1e-4
    torch.testing.assert_close(found(latents), wanted, rtol=0, atol=0.02)
    assert not any(weight.requires_grad for weight in found.parameters())


def test_what_no_convolution_explains_is_said() -> None:
    latents, noise = draw(2, 400, 3, 6, 6)
    assert LatentMap(3).fit(latents, latents + noise) == pytest.approx(1, abs=0.1)


def test_pixels_are_blurred_as_opencv_does() -> None:
    pixels = torch.rand(2, 3, 16, 20, generator=torch.Generator().manual_seed(0))
    for sigma in (0.6, 2.5):
        size = 2 * (int(3 * sigma) + 1) + 1
        for found, given in zip(blur_pixels(pixels, sigma), pixels, strict=True):
            image = np.ascontiguousarray(given.permute(1, 2, 0).numpy())
            expected = cv2.GaussianBlur(image, (size, size), sigma, borderType=cv2.BORDER_REPLICATE)
            np.testing.assert_allclose(found.permute(1, 2, 0).numpy(), expected, atol=1e-5)
    torch.testing.assert_close(blur_pixels(pixels), blur_pixels(pixels, 0.8))  # a share of the width


def test_light_is_multiplied_from_black() -> None:
    assert brighten_pixels(torch.tensor([-1.0, 0.0, 1.0])).tolist() == pytest.approx([-1, GAIN - 1, 2 * GAIN - 1])


def test_the_distortions_of_a_codec_are_those_of_its_frames() -> None:
    """A codec that only scales: what happens to latents is what happens to pixels, as far as the kernel reaches."""
    latents = torch.rand(100, 3, 20, 20, generator=torch.Generator().manual_seed(0))  # the blur: 0.8 pixels
    made, unexplained = fit_distortions(lambda pixels: 2 * pixels, lambda latents: latents / 2, latents)
    assert list(unexplained) == ["blur", "gain"]
    assert unexplained["blur"] < 0.01 and unexplained["gain"] < 1e-4
    clip = latents[:12].unflatten(0, (3, 4))
    strengths = torch.zeros(3, 4, 2)
    strengths[1, 2:, 0], strengths[2, :, 1] = 0.5, -1.0
    found = made(clip, strengths)
    torch.testing.assert_close(found[0], clip[0])
    torch.testing.assert_close(found[1, :2], clip[1, :2])
    half = (clip[1, 2:] + blur_pixels(clip[1, 2:])) / 2
    torch.testing.assert_close(found[1, 2:], half, rtol=0, atol=0.05)
    darker = clip[2] - (2 * brighten_pixels(clip[2] / 2) - clip[2])
    torch.testing.assert_close(found[2], darker, rtol=0, atol=0.01)
