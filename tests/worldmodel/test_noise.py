"""The noise process: a level a frame, and steps land where they must."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from worldmodel.errors import ShapeError
from worldmodel.noise import add_noise, expand_levels, move_level

level = st.floats(0.02, 1.0)


def sample(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    clean, noise = (torch.randn(2, 3, 4, 5, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    return clean, noise


def levels_from(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).reshape(2, 3)


@given(values=st.lists(level, min_size=6, max_size=6), shares=st.lists(st.floats(0, 1), min_size=6, max_size=6))
def test_a_step_with_the_true_frame_is_exact_for_any_length(values: list[float], shares: list[float]) -> None:
    clean, noise = sample(0)
    before = levels_from(values)
    after = before * levels_from(shares)
    moved = move_level(add_noise(clean, noise, before), clean, before, after)
    torch.testing.assert_close(moved, add_noise(clean, noise, after))


def test_a_step_to_zero_is_the_prediction_and_a_clean_frame_stays() -> None:
    clean, noise = sample(1)
    before = levels_from([1.0, 0.5, 0.0, 0.3, 1.0, 0.0])
    noisy = add_noise(clean, noise, before)
    guess = clean + 1.0
    moved = move_level(noisy, guess, before, torch.zeros_like(before))
    assert torch.equal(moved[before > 0], guess[before > 0])
    torch.testing.assert_close(moved[before == 0], noisy[before == 0])
    assert torch.equal(noisy[before == 0], clean[before == 0])


def test_small_steps_follow_the_velocity() -> None:
    clean, noise = sample(2)
    before, after = levels_from([0.6] * 6), levels_from([0.55] * 6)
    noisy, guess = add_noise(clean, noise, before), clean + 0.3
    velocity = (noisy - guess) / before[..., None, None, None]  # d x_l / d l
    euler = noisy + (after - before)[..., None, None, None] * velocity
    torch.testing.assert_close(move_level(noisy, guess, before, after), euler)


def test_each_frame_has_its_own_level() -> None:
    clean, noise = sample(3)
    levels = levels_from([0.0, 0.5, 1.0, 1.0, 0.0, 0.25])
    noisy = add_noise(clean, noise, levels)
    for row, frame in ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)):
        share = levels[row, frame]
        torch.testing.assert_close(noisy[row, frame], (1 - share) * clean[row, frame] + share * noise[row, frame])


@pytest.mark.parametrize("shape", [(3, 2), (2, 4), (2, 3, 5), (2,), (2, 3)])
def test_levels_must_be_the_leading_axes(shape: tuple[int, ...]) -> None:
    clean, noise = sample(4)
    if shape in ((2,), (2, 3)):
        assert expand_levels(torch.zeros(shape), clean).ndim == 5
        return
    with pytest.raises(ShapeError, match=r"must equal the leading axes of \(2, 3, 4, 5, 5\)"):
        add_noise(clean, noise, torch.zeros(shape))
