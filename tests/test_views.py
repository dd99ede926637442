"""Remembered views: what was seen in a direction comes back when looking there again, and nothing else does."""

import math
from collections.abc import Callable

import pytest
import torch

from worldmodel.denoiser import Denoiser, DenoiserConfig
from worldmodel.errors import ConfigError
from worldmodel.memory.views import KernelViews
from worldmodel.odometry import ground_poses
from worldmodel.views import NUM_FACTS, RememberedViews

COLUMNS, CHANNELS = 4, 3
MOTIONS = ((0.0, 0.0), (0.0, 0.12), (0.0, -0.12), (6.0, 0.0), (-6.0, 0.0), (6.0, 0.12), (-6.0, 0.12))


def look_back(
    headings_deg: list[float], heading_deg: float, place: tuple[float, float] = (0.0, 0.0), heads: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Look from `place` after looking along `headings_deg` from the origin; return what is laid, and the views."""
    views = torch.randn(1, len(headings_deg), CHANNELS, COLUMNS, COLUMNS, generator=torch.Generator().manual_seed(0))
    old = ground_poses(torch.tensor([[[0.0, 0.0, math.radians(h)] for h in headings_deg]]))
    now = ground_poses(torch.tensor([[[*place, math.radians(heading_deg)]]]))
    ages = torch.arange(len(headings_deg), 0, -1)[None, None]
    memory = RememberedViews(COLUMNS, 70.0, heads)
    with torch.no_grad():
        return memory(now, views, old, torch.zeros(1, len(headings_deg)), ages, torch.ones_like(ages).bool())[
            0, 0
        ], views[0]


def test_turning_back_shows_the_old_view() -> None:
    laid, views = look_back([0.0, 90.0, 180.0], 360.0)
    torch.testing.assert_close(laid[:CHANNELS], views[0], rtol=0.3, atol=0.2)
    assert (laid[CHANNELS] > 0.9).all()  # sure
    assert laid[CHANNELS + 1 :].abs().max() < 0.1  # and nothing is off
    assert (laid[:CHANNELS] - views[1]).abs().mean() > 0.5


def test_a_turn_by_a_column_shows_the_neighboring_column() -> None:
    """The middle columns of four in 70 degrees look 9.93 degrees to either side.

    Turned left by twice that, the right one looks where the left one looked.
    """
    turned = 2 * math.degrees(math.atan(0.25 * math.tan(math.radians(35))))
    laid, views = look_back([0.0], turned)
    torch.testing.assert_close(laid[:CHANNELS, :, 2], views[0, :, :, 1], rtol=0.2, atol=0.2)


def test_noise_is_not_remembered() -> None:
    memory = RememberedViews(COLUMNS, 70.0, 1)
    views, ages, seen = torch.randn(1, 1, CHANNELS, COLUMNS, COLUMNS), torch.ones(1, 1, 1), torch.ones(1, 1, 1).bool()
    with torch.no_grad():
        sure = [
            float(
                memory(torch.zeros(1, 1, 5), views, torch.zeros(1, 1, 5), torch.full((1, 1), level), ages, seen)[
                    0, 0, CHANNELS
                ].mean()
            )
            for level in (0.05, 1.0)
        ]
    assert sure[0] > 0.9 and sure[1] < 0.05


@pytest.mark.parametrize(("heading_deg", "place"), [(180.0, (0.0, 0.0)), (0.0, (0.0, 3.0)), (0.0, (-9.0, 0.0))])
def test_what_was_never_seen_is_not_remembered(heading_deg: float, place: tuple[float, float]) -> None:
    laid, _ = look_back([0.0], heading_deg, place)
    assert laid[CHANNELS].max() < 0.05
    assert laid.abs().max() < 0.3


def test_offsets_are_told_in_the_eyes_frame() -> None:
    """Old view from 0.4 ahead along the heading (north), and none to the side."""
    memory = RememberedViews(1, 70.0, 1)
    north = math.radians(90)
    views = torch.ones(1, 1, CHANNELS, 1, 1)
    with torch.no_grad():
        laid = memory(
            ground_poses(torch.tensor([[[0.0, 0.0, north]]])),
            views,
            ground_poses(torch.tensor([[[0.0, 0.4, north]]])),
            torch.zeros(1, 1),
            torch.ones(1, 1, 1),
            torch.ones(1, 1, 1, dtype=torch.bool),
        )[0, 0, :, 0, 0]
    sure, along, across, turn = laid[CHANNELS:].tolist()
    assert sure > 0.9 and along == pytest.approx(0.4 * sure, abs=1e-4)
    assert across == pytest.approx(0.0, abs=1e-4) and turn == pytest.approx(0.0, abs=1e-4)


def test_the_newest_frames_are_left_to_the_channels(
    make_denoiser: Callable[..., Denoiser],
) -> None:
    denoiser = make_denoiser(motions=MOTIONS, width=64, heads=4, view_heads=2, memory_frames=6)
    kernels = denoiser.find(KernelViews)
    assert kernels is not None and kernels.embed.in_features == 2 * (4 + NUM_FACTS) * 4
    positions = torch.arange(10)[None]
    age = positions[:, :, None] - positions[:, None]
    seen = kernels.may_look_back(age, positions, 6)[0]
    assert seen[9].nonzero().flatten().tolist() == [4, 5, 6, 7]  # entries of frames 3 to 6; 7 and 8 are on the channels
    assert not seen[:3].any()


def test_views_need_motions() -> None:
    with pytest.raises(ConfigError, match="0 without motions; got 2 and 0"):
        DenoiserConfig(view_heads=2)
