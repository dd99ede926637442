"""What a body says of remembered walls: they stop it, known ways stay free, none stands where it has stood."""

import math
from collections.abc import Callable

import pytest
import torch

from worldmodel.denoiser import Denoiser
from worldmodel.geometry import WALK_SCALE, ReprojectedViews
from worldmodel.inputs import FrameInputs, Prefer
from worldmodel.memory.collision import BODY_RADIUS, WALKER_RADIUS, is_stood_on, locate_columns, push_out
from worldmodel.memory.views import ColumnViews
from worldmodel.odometry import POSE_SIZE, ground_poses
from worldmodel.sampler import Sampler, SamplerConfig
from worldmodel.state import DreamState
from worldmodel.windows import next_frame_window

MOTIONS = ((0.0, 0.0), (0.0, 0.12), (0.0, -0.12), (6.0, 0.0), (-6.0, 0.0), (6.0, 0.12), (-6.0, 0.12))
AHEAD, BACK, LEFT = 1, 2, 3
STEP = 0.12


def wall(x: float) -> torch.Tensor:
    """Points of a wall across the way east, float32 (1, N, 2)."""
    y = torch.linspace(-1, 1, 81)
    return torch.stack([torch.full_like(y, x), y], -1)[None]


def walk_east(
    points: torch.Tensor, steps: int, y: float = 0.0, heading: float = 0.0, share: float = 1.0
) -> torch.Tensor:
    """Walk from (0, y) among walls; return the places after each step, (steps, 2)."""
    pose, places = ground_poses(torch.tensor([[0.0, y, heading]])), []
    everywhere = torch.ones(points.shape[:2], dtype=torch.bool)
    for _ in range(steps):
        gone = STEP * torch.tensor([[math.cos(heading), math.sin(heading), 0.0, 0.0, 0.0]])
        longest, shares = torch.tensor([STEP]), torch.tensor([share])
        pose = push_out(pose, pose + gone, points, everywhere, longest, shares)
        places.append(pose[0, :2])
    return torch.stack(places)


def test_columns_stand_where_they_were_seen() -> None:
    """Heading north at (1, 2), a column half to the left at distance 3 stands at (-.5, 5)."""
    pose = ground_poses(torch.tensor([[1.0, 2.0, math.pi / 2]]))
    found = locate_columns(pose, torch.tensor([[3.0, 3.0]]), torch.tensor([0.5, 0.0]))
    torch.testing.assert_close(found, torch.tensor([[[-0.5, 5.0], [1.0, 5.0]]]))


def test_a_wall_stops_a_walker_at_its_radius() -> None:
    places = walk_east(wall(0.7), 20)
    assert places[:4, 0].tolist() == pytest.approx([0.12, 0.24, 0.36, 0.48], abs=0.01)
    assert places[-1, 0].item() == pytest.approx(0.7 - WALKER_RADIUS, abs=0.01)
    assert places[-1, 1].abs() < 0.01


def test_a_walker_slides_along_a_wall_and_stops_in_a_corner() -> None:
    slid = walk_east(wall(0.7), 8, y=-0.8, heading=math.pi / 4)
    assert slid[-1, 0].item() == pytest.approx(0.7 - WALKER_RADIUS, abs=0.02) and slid[-1, 1] > -0.3
    corner = torch.cat([wall(0.7), wall(0.7).flip(-1)], 1)
    stuck = walk_east(corner, 30, heading=math.pi / 4)[-1]
    assert (stuck - (0.7 - WALKER_RADIUS)).abs().max() < 0.05


def test_no_step_gets_farther_than_its_length_and_turns_are_not_pushed() -> None:
    near, everywhere = wall(0.19), torch.ones(1, 81, dtype=torch.bool)  # nearer than a body: one is in it
    pose = torch.zeros(1, POSE_SIZE)
    for longest in (0.0, 0.01, STEP):
        found = push_out(pose, pose, near, everywhere, torch.tensor([longest]), torch.ones(1))
        assert found[0, :2].norm() <= longest + 1e-6
    assert found[0, 0] < -0.02  # out of the wall


def test_known_ways_are_free_and_single_points_stop_nobody() -> None:
    assert walk_east(wall(0.7), 10, share=0.0)[-1, 0].item() == pytest.approx(1.2)
    two = torch.cat([wall(0.7)[:, 40:42], wall(9.0)], 1)
    assert walk_east(two, 10)[-1, 0].item() == pytest.approx(1.2)


def test_batches_do_not_mix() -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(5, 60, 2, generator=generator)
    before = torch.rand(5, 3, generator=generator)
    after = before + 0.05
    is_wall, longest = torch.rand(5, 60, generator=generator) < 0.7, torch.full((5,), 0.1)
    every = push_out(before, after, points, is_wall, longest, torch.ones(5))
    assert not torch.equal(every, after)
    for i in range(5):
        row = slice(i, i + 1)
        alone = push_out(before[row], after[row], points[row], is_wall[row], longest[row], torch.ones(1))
        torch.testing.assert_close(alone, every[row], rtol=0, atol=1e-6)


def test_points_near_known_places_are_stood_on() -> None:
    points = torch.tensor([[[[0.0, 0.0], [0.5, 0.0], [0.5 + 1.1 * BODY_RADIUS, 0.0]]] * 2])
    places = torch.tensor([[[[0.5, 0.9 * BODY_RADIUS], [0.0, 0.1]]] * 2])
    is_known = torch.tensor([[[True, False], [True, True]]])
    found = is_stood_on(points, places, is_known)
    assert found.tolist() == [[[False, True, False], [True, True, False]]]


def look_east(*, prefer: Prefer = "oldest", stood: float | None = None, now: float = 0.0) -> torch.Tensor:
    """Remember a wall .5 cells ahead of (0, 0); look east from (`now`, 0), once one has stood at (`stood`, 0).

    Returns:
        how sure each column is of what it shows, (w,).
    """
    size = 8
    views = ReprojectedViews(size, 60.0, points=4)
    places = ground_poses(torch.tensor([[[0.0, 0.0, 0.0], [9.0 if stood is None else stood, 0.0, math.pi]]]))
    depths = torch.tensor([0.5, 12.0]).log()[:, None].expand(1, 2, size)
    with torch.no_grad():
        laid = views(
            ground_poses(torch.tensor([[[now, 0.0, 0.0]]])),
            torch.ones(1, 2, size, size, 3),
            places,
            depths,
            torch.zeros(1, 2),
            torch.tensor([[[2, 1]]]),
            torch.ones(1, 1, 2, dtype=torch.bool),
            prefer,
        )
    return laid[0, 0, 3, 0]


def test_a_wall_where_one_has_stood_is_not_shown_in_dreams() -> None:
    assert (look_east() > 0.9).all()
    assert look_east(stood=0.5)[3:5].max() < 0.1  # what is straight ahead; the rest of the wall is still there
    assert look_east(stood=0.5)[[0, -1]].min() > 0.9
    assert torch.equal(look_east(stood=0.5, prefer="newest"), look_east(prefer="newest"))


def test_a_wall_within_the_body_is_not_shown_in_dreams() -> None:
    assert look_east(now=0.25)[3:5].min() > 0.9
    assert look_east(now=0.35)[3:5].max() < 0.1
    assert look_east(now=0.35, prefer="newest")[3:5].min() > 0.9


def set_geometry(denoiser: Denoiser, depth: float) -> None:
    """Let the geometry of a denoiser say, whatever it sees, that all is `depth` cells away and steps go in full."""
    columns = denoiser.find(ColumnViews)
    assert columns is not None
    heads = columns.spatial.geometry.to_walks, columns.spatial.geometry.to_depths
    for head, value in zip(heads, (0.0 / WALK_SCALE, math.log(depth)), strict=True):
        last = list(head)[-1]
        for weight in last.parameters():
            torch.nn.init.zeros_(weight)
        torch.nn.init.constant_(last.bias, value)


def begin(denoiser: Denoiser, actions: list[int], num_dreams: int = 1) -> tuple[Sampler, DreamState]:
    config = denoiser.config
    shape = (num_dreams, len(actions), config.latent_channels, config.latent_size, config.latent_size)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    sampler = Sampler(denoiser, next_frame_window(), SamplerConfig(num_steps=1))
    return sampler, sampler.begin(latents, torch.tensor([actions] * num_dreams), latents)


def test_a_dream_stops_where_it_remembers_a_wall_and_goes_back_freely(make_denoiser: Callable[..., Denoiser]) -> None:
    """A wall is seen .3 cells ahead of every frame: the first step brings one to the radius, the next ones nowhere."""
    denoiser = make_denoiser(motions=MOTIONS, width=64, heads=4, view_points=4, view_frames=20)
    set_geometry(denoiser, depth=0.3)
    sampler, state = begin(denoiser, [7, 0, 0, 0, AHEAD])
    _, coming = sampler.reckon(state, torch.tensor([[AHEAD]]))
    assert coming.item() < 0.03
    _, back = sampler.reckon(state, torch.tensor([[BACK]]))
    assert back.item() < -0.05
    set_geometry(denoiser, depth=3.0)
    sampler, state = begin(denoiser, [7, 0, 0, 0, AHEAD])
    _, coming = sampler.reckon(state, torch.tensor([[AHEAD]]))
    assert coming.item() == pytest.approx(STEP, abs=1e-5)


def test_frames_of_which_the_newest_win_know_no_collisions(make_denoiser: Callable[..., Denoiser]) -> None:
    denoiser = make_denoiser(motions=MOTIONS, width=64, heads=4, view_points=4, view_frames=20)
    set_geometry(denoiser, depth=0.3)
    latents = torch.randn(1, 6, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    frames = FrameInputs.stack(latents, torch.zeros(1, 6), torch.full((1, 6), AHEAD), 2)
    free = denoiser.read(frames, prefer="newest").estimate.poses[0, :, 0]
    stopped = denoiser.read(frames, prefer="oldest").estimate.poses[0, :, 0]
    torch.testing.assert_close(free, STEP * torch.arange(1, 7))
    assert stopped[-1] < 0.4


def test_clips_and_caches_stop_at_the_same_places(make_denoiser: Callable[..., Denoiser]) -> None:
    """Poses of one call of many frames are those of calls of one frame each."""
    denoiser = make_denoiser(motions=MOTIONS, width=64, heads=4, view_points=4, view_frames=20)
    generator = torch.Generator().manual_seed(1)
    actions = torch.tensor([[7, 1, 1, 3, 1, 5, 1, 2], [7, 3, 3, 1, 1, 1, 4, 6]])
    latents = torch.randn(2, 8, 4, 4, 4, generator=generator)
    frames = FrameInputs.stack(latents, torch.zeros(2, 8), actions, 2)
    clip = denoiser.read(frames, prefer="oldest").estimate
    cache, found = denoiser.new_cache(2), []
    for t in range(8):
        now = frames[t : t + 1]
        found.append(denoiser.read(now, cache, "oldest").estimate.poses)
        _, written = denoiser(now, cache=cache, prefer="oldest")
        cache.commit(*written, num_frames=1)
    torch.testing.assert_close(torch.cat(found, 1), clip.poses, rtol=1e-4, atol=1e-4)
