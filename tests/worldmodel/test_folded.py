"""Folded pictures: what is folded comes back, what is not remembered is zero, and makes no features."""

import torch

from worldmodel.folded import (
    FOLD,
    NUM_COLORS,
    NUM_FACTS,
    NUM_FOLDED,
    NUM_PIXELS,
    WarpEncoder,
    fold,
    share_known,
    unfold,
)


def picture(share: float = 0.5, size: int = 32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two pictures: pixels, mask, facts pixel by pixel."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(2, 3, size, size, generator=generator) * 2 - 1
    mask = (torch.rand(2, 1, size, size, generator=generator) < share).float()
    return pixels, mask, torch.randn(2, NUM_FACTS, size, size, generator=generator)


def test_what_is_folded_comes_back() -> None:
    pixels, mask, facts = picture()
    folded = fold(pixels, mask, facts)
    assert folded.shape == (2, NUM_FOLDED, 32 // FOLD, 32 // FOLD)
    found = unfold(folded)
    assert torch.equal(found.pixels, pixels * mask) and torch.equal(found.mask, mask)
    assert found.facts.shape == (2, NUM_FACTS, 4, 4)


def test_facts_are_means_over_remembered_pixels() -> None:
    pixels, mask, facts = picture()
    square, known = facts[0, :, :FOLD, 8:16], mask[0, :, :FOLD, 8:16]
    expected = (square * known).sum((1, 2)) / known.sum()
    torch.testing.assert_close(unfold(fold(pixels, mask, facts)).facts[0, :, 0, 1], expected)
    one = torch.zeros_like(mask)
    one[:, :, 3, 5] = 1.0  # a single pixel of a square counts in full
    torch.testing.assert_close(unfold(fold(pixels, one, facts)).facts[:, :, 0, 0], facts[:, :, 3, 5])


def test_nothing_remembered_is_all_zeros() -> None:
    pixels, mask, facts = picture()
    mask[0] = 0
    mask[1, :, :FOLD, :FOLD] = 0
    folded = fold(pixels, mask, facts)
    assert not folded[0].any() and not folded[1, :, 0, 0].any() and folded[1, :, 0, 1].any()


def test_channels_are_in_their_order_and_the_share_is_that_of_the_mask() -> None:
    pixels, mask, facts = picture(0.3)
    folded = fold(pixels, mask, facts)
    assert torch.equal(folded[:, NUM_COLORS:NUM_PIXELS].mean(1, keepdim=True), share_known(folded))
    torch.testing.assert_close(share_known(folded), torch.nn.functional.avg_pool2d(mask, FOLD))


def test_unknown_squares_have_no_features() -> None:
    pixels, mask, facts = picture()
    mask[:, :, FOLD : 2 * FOLD, :FOLD] = 0
    torch.manual_seed(0)
    encoder = WarpEncoder(latent_channels=4, width=16, extra=3)
    features = encoder(fold(pixels, mask, facts)).detach()
    assert features.shape == (2, encoder.num_features + WarpEncoder.NUM_TOLD, 4, 4) and encoder.num_features == 7
    assert not features[:, :, 1, 0].any()
    is_known = torch.ones(4, 4, dtype=torch.bool)
    is_known[1, 0] = False
    assert bool(features[:, :7].ne(0).any(1)[:, is_known].all())
    assert not encoder(torch.zeros(2, NUM_FOLDED, 4, 4)).any()
