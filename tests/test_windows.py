"""Schedules: the three requirements of Meta-ARVDM hold, or the error says which one breaks, and where."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from worldmodel.errors import WindowError
from worldmodel.windows import Window, next_frame_window

ROLLING = Window((0.25, 0.25, 0.75, 0.75, 1.0, 1.0), (0.0, 0.0, 0.25, 0.25, 0.75, 0.75), 2)


def test_next_frame_is_one_frame_from_noise_to_clean() -> None:
    window = next_frame_window()
    assert (window.before, window.after, window.stride) == ((1.0,), (0.0,), 1)
    assert (window.size, window.input_lag) == (1, 0)


def test_windows_of_the_paper_are_accepted() -> None:
    assert Window((0.5, 1.0), (0.0, 0.5)).input_lag == 1  # FIFO
    assert Window((1.0, 1.0, 1.0), (0.0, 0.0, 0.0), 3).input_lag == 0  # outpainting
    assert (ROLLING.size, ROLLING.input_lag) == (6, 4)


@pytest.mark.parametrize(
    ("before", "after", "stride", "message"),
    [
        ((), (), 1, "one level a frame; got 0 and 0 levels"),
        ((1.0,), (0.0, 0.0), 1, "one level a frame; got 1 and 2 levels"),
        ((1.0,), (0.0,), 0, "stride must be from 1 to the 1 frames in flight; got 0"),
        ((1.0,), (0.0,), 2, "stride must be from 1 to the 1 frames in flight; got 2"),
        ((1.5,), (0.0,), 1, r"before\[0\] must be a level in \[0, 1\]; got 1.5"),
        ((1.0,), (-0.1,), 1, r"after\[0\] must be a level in \[0, 1\]; got -0.1"),
        ((float("nan"),), (0.0,), 1, r"before\[0\] must be a level in \[0, 1\]; got nan"),
        ((0.5, 0.4, 1.0), (0.0, 0.5, 0.4), 1, r"monotonicity is broken: before\[1\] = 0.4 is below 0.5"),
        ((0.5, 1.0, 1.0), (0.0, 0.5, 0.4), 1, r"monotonicity is broken: after\[2\] = 0.4 is below 0.5"),
        ((0.5, 1.0), (0.0, 0.4), 1, r"circularity is broken: after\[1\] = 0.4 must equal before\[0\] = 0.5"),
        ((0.2, 0.5, 1.0), (0.0, 0.2, 0.6), 1, r"circularity is broken: after\[2\] = 0.6 must equal before\[1\] = 0.5"),
        ((0.5, 1.0), (0.1, 0.5), 1, r"0-T boundary is broken: after\[0\] must be 0 \(clean\); got 0.1"),
        ((0.5, 0.9), (0.0, 0.5), 1, r"0-T boundary is broken: before\[1\] must be 1 \(noise\); got 0.9"),
        ((0.9, 1.0), (0.0, 0.0), 2, r"0-T boundary is broken: before\[0\] must be 1 \(noise\); got 0.9"),
        ((1.0, 1.0), (0.0, 0.2), 2, r"0-T boundary is broken: after\[1\] must be 0 \(clean\); got 0.2"),
    ],
)
def test_what_is_broken_and_where(
    before: tuple[float, ...], after: tuple[float, ...], stride: int, message: str
) -> None:
    with pytest.raises(WindowError, match=message):
        Window(before, after, stride)


@given(num_steps=st.integers(1, 12))
def test_the_grid_goes_from_before_to_after_and_never_up(num_steps: int) -> None:
    grid = ROLLING.grid(num_steps)
    assert grid.shape == (num_steps + 1, 6)
    assert tuple(grid[0].tolist()) == ROLLING.before
    assert tuple(grid[-1].tolist()) == ROLLING.after
    assert (grid[1:] <= grid[:-1]).all()
    steps = grid[1:] - grid[:-1]
    torch.testing.assert_close(steps, steps[:1].expand_as(steps))


def test_a_grid_needs_a_step() -> None:
    with pytest.raises(WindowError, match="num_steps must be at least 1; got 0"):
        next_frame_window().grid(0)
