"""The spatial memory: what was seen comes back where it stands, at its size, behind nothing nearer."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from worldmodel.codec import Codec
from worldmodel.denoiser import Denoiser, DenoiserConfig
from worldmodel.errors import ActionError, ConfigError, ShapeError
from worldmodel.geometry import WALK_SCALE, ReprojectedViews, SpatialConfig, SpatialMemory
from worldmodel.inputs import Prefer
from worldmodel.memory.base import Context, Reading
from worldmodel.memory.views import ColumnViews
from worldmodel.odometry import ground_poses, walk_poses
from worldmodel.sampler import Sampler, SamplerConfig
from worldmodel.windows import next_frame_window
from worldmodel.world import WorldModel

SIZE, CHANNELS, VIEW_DEG = 8, 3, 60.0
MOTIONS = ((0.0, 0.0), (0.0, 0.12), (0.0, -0.12), (6.0, 0.0), (-6.0, 0.0), (6.0, 0.12), (-6.0, 0.12))
NORTH = math.pi / 2


def paint(x: float, y: float, heading: float, wall: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Look at an endless wall at y = `wall`, whose color says where along it one looks, and how high.

    Returns:
        a latent (w, h, C) of channels x, height, 1, and the log distances (w,). Heading within 30 degrees of north.
    """
    middles = 1.0 - (2.0 * torch.arange(SIZE) + 1.0) / SIZE
    slope = math.tan(math.radians(VIEW_DEG) / 2) * middles
    to_x = math.cos(heading) - slope * math.sin(heading)
    to_y = math.sin(heading) + slope * math.cos(heading)
    distance = (wall - y) / to_y
    place = (x + distance * to_x)[:, None].expand(-1, SIZE)
    height = distance[:, None] * -slope.flip(0)[None]
    return torch.stack([place, height, torch.ones_like(place)], -1), distance.log()


def look_back(
    seen: list[tuple[float, float, float, float]],
    now: tuple[float, float, float],
    *,
    prefer: Prefer = "oldest",
    **changes: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Look from `now` after having seen walls from places: x, y, heading, wall. Return latents and facts, (., h, w)."""
    pictures, depths = zip(*(paint(*place) for place in seen), strict=True)
    memory = ReprojectedViews(SIZE, VIEW_DEG, points=8)
    for name, value in changes.items():
        getattr(memory, name).data.fill_(value)
    ages = torch.arange(len(seen), 0, -1)[None, None]
    with torch.no_grad():
        laid = memory(
            ground_poses(torch.tensor([[now]])),
            torch.stack(pictures)[None],
            ground_poses(torch.tensor([[place[:3] for place in seen]])),
            torch.stack(depths)[None],
            torch.zeros(1, len(seen)),
            ages,
            torch.ones_like(ages).bool(),
            prefer,
        )[0, 0]
    return laid[:CHANNELS], laid[CHANNELS : CHANNELS + ReprojectedViews.NUM_FACTS]


def test_the_same_place_shows_the_same() -> None:
    laid, facts = look_back([(0.0, 0.0, NORTH, 2.0)], (0.0, 0.0, NORTH), log_width=-1.5)
    picture, depths = paint(0.0, 0.0, NORTH, 2.0)
    torch.testing.assert_close(laid, picture.permute(2, 1, 0), rtol=0.02, atol=0.02)
    torch.testing.assert_close(facts[1], depths.expand(SIZE, -1), rtol=0.02, atol=0.02)
    assert (facts[0] > 0.95).all() and facts[2:4].abs().max() < 0.05


@pytest.mark.parametrize("now", [(0.3, 0.0, NORTH), (0.0, 0.8, NORTH), (0.1, 0.2, NORTH + 0.1), (-0.2, -0.5, NORTH)])
def test_a_wall_stays_where_it_is(now: tuple[float, float, float]) -> None:
    """Places on the wall are where the new eye would see them; shifted columns are blended, so not to the digit."""
    seen = [(x, 0.0, NORTH, 2.0) for x in (-0.7, -0.3, 0.0, 0.2, 0.6)]
    laid, facts = look_back(seen, now, log_width=-1.0)
    picture, depths = paint(*now, 2.0)
    expected = picture.permute(2, 1, 0)
    inner = slice(1, SIZE - 1)
    torch.testing.assert_close(laid[0, :, inner], expected[0, :, inner], rtol=0.0, atol=0.12)
    rows = slice(2, SIZE - 2)  # nothing is known above and below what was seen from nearby
    torch.testing.assert_close(laid[1, rows, inner], expected[1, rows, inner], rtol=0.1, atol=0.1)
    torch.testing.assert_close(facts[1, 0, inner], depths[inner], rtol=0.0, atol=0.05)


def test_a_near_wall_hides_a_far_one() -> None:
    far, near = (0.0, 0.0, NORTH, 4.0), (0.0, 0.0, NORTH, 1.5)
    for seen in ([far, near], [near, far]):
        _, facts = look_back(seen, (0.0, 0.0, NORTH))
        assert facts[1].exp().max() < 2.2


def test_what_was_seen_first_or_last_wins_as_preferred() -> None:
    """Frames from one place disagree about the distance by little; trained in the order of dreams, recall suffers."""
    seen = [(0.0, 0.0, NORTH, 2.0), *[(0.0, 0.0, NORTH, 2.05)] * 20]
    _, facts = look_back(seen, (0.0, 0.0, NORTH))
    assert facts[4].mean() > 0.2 * math.log(16)  # the age of what is shown
    _, facts = look_back(seen, (0.0, 0.0, NORTH), prefer="newest", age=1.6)
    assert facts[4].mean() < 0.2 * math.log(6)


def test_what_is_behind_was_not_seen() -> None:
    laid, facts = look_back([(0.0, 0.0, NORTH, 2.0)], (0.0, 0.0, -NORTH))
    assert facts[0].max() < 0.05 and laid.abs().max() < 0.2


def test_walks_are_corrected_in_the_walkers_frame() -> None:
    motions = torch.tensor([[0.0, 0.12], [NORTH, 0.0]])
    actions = torch.tensor([[0, 1, 0, 0]])
    corrections = torch.tensor([[[-0.02, 0.0], [0.0, 0.0], [-0.12, 0.0], [0.0, 0.05]]])
    poses = walk_poses(motions, actions, torch.zeros(1, 5), corrections)[0]
    expected = torch.tensor([[0.1, 0.0], [0.1, 0.0], [0.1, 0.0], [0.05, 0.12]])
    torch.testing.assert_close(poses[:, :2], expected)


def test_no_action_is_never_corrected_and_says_distances_of_every_column() -> None:
    torch.manual_seed(0)
    memory = SpatialMemory(SpatialConfig(4, 4, 7, 70.0))
    for weight in memory.parameters():
        weight.data.add_(0.3 * torch.randn_like(weight))
    actions, past = torch.tensor([[1, 7, 2]]), torch.tensor([[7, 1, 0]])
    survey = memory.geometry(torch.randn(1, 3, 2, 4, 4, 4), torch.zeros(1, 3, 2), actions, past)
    assert survey.depths.shape == (1, 3, 4) and survey.walks.shape == survey.past_walks.shape == (1, 3, 2)
    assert (survey.walks[0, 1] == 0).all() and (survey.walks[0, [0, 2]] != 0).all()
    assert (survey.past_walks[0, 0] == 0).all() and (survey.past_walks[0, 1:] != 0).all()


def test_a_spatial_memory_stays_as_it_was_trained(make_denoiser: Callable[..., Denoiser]) -> None:
    denoiser = make_denoiser(motions=MOTIONS, width=64, heads=4, view_points=4)
    columns = denoiser.find(ColumnViews)
    assert columns is not None
    assert not any(weight.requires_grad for weight in columns.spatial.parameters())
    assert columns.embed.weight.requires_grad


def test_views_reach_further_than_summaries(make_denoiser: Callable[..., Denoiser]) -> None:
    denoiser = make_denoiser(motions=MOTIONS, width=64, heads=4, view_points=4, memory_frames=6, view_frames=20)
    rings = denoiser.new_cache(2).rings
    assert rings["views"].shape[3] == 20 and rings["memory_k"].shape[3] == 6
    assert denoiser.new_cache(2, 9).rings["views"].shape[3] == 9
    with pytest.raises(ConfigError, match="from 1 to 20"):
        denoiser.new_cache(2, 21)


@pytest.mark.parametrize(
    "changes", [{"view_points": 4}, {"view_points": -1}, {"view_points": 4, "motions": MOTIONS, "view_heads": 1}]
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="view_points"):
        DenoiserConfig(**changes)


@pytest.mark.parametrize("num_steps", [1, 3])
def test_looking_back_once_a_step_is_enough(
    make_denoiser: Callable[..., Denoiser], monkeypatch: pytest.MonkeyPatch, num_steps: int
) -> None:
    """The frames are those of a sampler whose every network call looks back by itself."""
    denoiser = make_denoiser(motions=MOTIONS, width=64, heads=4, view_points=4, view_frames=20)
    latents, noise, actions = draw_dream(denoiser, 6)
    plain, calls, found = ColumnViews.read, [], []

    def counted(*given: Any) -> Reading:
        calls.append(1)
        return plain(*given)

    monkeypatch.setattr(ColumnViews, "read", counted)
    for _ in range(2):
        sampler = Sampler(denoiser, next_frame_window(), SamplerConfig(num_steps=num_steps))
        state = sampler.begin(latents, actions, noise)
        calls.clear()
        for t in range(4):
            now = slice(t, t + 1)
            found.append(sampler.step(state, actions[:, now], noise[:, now], latents[:, now])[0])
        assert len(calls) == (4 if len(found) == 4 else 4 * (1 + num_steps))
        monkeypatch.setattr(Context, "last", lambda context, num_frames: None)
    for once, again in zip(found[:4], found[4:], strict=True):
        torch.testing.assert_close(once, again, rtol=1e-4, atol=1e-4)


def test_a_step_is_reckoned_before_and_after_it_is_taken(make_denoiser: Callable[..., Denoiser]) -> None:
    """What the next step will get follows what the geometry says; turning gets nothing."""
    denoiser = make_denoiser(motions=MOTIONS, width=64, heads=4, view_points=4)
    latents, noise, actions = draw_dream(denoiser, 6)
    sampler = Sampler(denoiser, next_frame_window(), SamplerConfig(num_steps=1))
    set_walks(denoiser, coming=-0.05, past=-0.02)
    state = sampler.begin(latents, torch.full_like(actions, 1), noise)
    last, coming = sampler.reckon(state, torch.tensor([[1], [2]]))
    # Ahead is new; back is where one has been, and nothing stops it.
    torch.testing.assert_close(coming, torch.tensor([0.12 - 0.05, -0.12]))
    torch.testing.assert_close(last, torch.tensor([0.12 - 0.02, 0.12 - 0.02]))
    _, turned = sampler.reckon(state, torch.tensor([[0], [0]]))
    torch.testing.assert_close(turned, torch.tensor([0.0, 0.0]))
    with pytest.raises(ConfigError, match="spatial memory"):
        plain = Sampler(make_denoiser(), next_frame_window(), SamplerConfig(num_steps=1))
        plain.reckon(plain.begin(latents, actions, noise), actions[:, :1])


def test_a_world_tells_shares_of_steps(
    make_denoiser: Callable[..., Denoiser], make_codec: Callable[..., Codec]
) -> None:
    """Ahead and back are shares of their own walks; a turn gets all of its nothing; wrong actions are refused."""
    denoiser = make_denoiser(motions=MOTIONS, width=64, heads=4, view_points=4)
    set_walks(denoiser, coming=-0.06, past=-0.03)
    world = WorldModel(make_codec(), denoiser, device="cpu", dtype=torch.float32)
    assert world.can_reckon and not WorldModel(make_codec(), make_denoiser(), device="cpu").can_reckon
    frames = torch.randint(256, (3, 4, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    state = world.reset(frames, torch.tensor([[1, 1, 1], [0, 0, 2], [5, 5, 3]]), [0, 1, 2])
    before, coming = world.reckon(state, torch.tensor([1, 2, 3]))
    torch.testing.assert_close(before, torch.tensor([0.75, 1.25, 1.0]))
    torch.testing.assert_close(coming, torch.tensor([0.5, 1.5, 1.0]))
    with pytest.raises(ShapeError, match="one action a dream"):
        world.reckon(state, torch.tensor([1]))
    with pytest.raises(ActionError):
        world.reckon(state, torch.tensor([1, 2, 9]))


def set_walks(denoiser: Denoiser, coming: float, past: float) -> None:
    """Let the geometry of a denoiser say, whatever it sees, that steps get these cells on top, ahead; walls are far."""
    columns = denoiser.find(ColumnViews)
    assert columns is not None
    far = list(columns.spatial.geometry.to_depths)[-1]
    for weight in far.parameters():
        torch.nn.init.zeros_(weight)
    torch.nn.init.constant_(far.bias, math.log(5.0))
    head = list(columns.spatial.geometry.to_walks)[-1]
    for weight in head.parameters():
        torch.nn.init.zeros_(weight)
    ahead = torch.tensor([coming, past]) / WALK_SCALE
    with torch.no_grad():
        head.bias.copy_(torch.stack([ahead, torch.zeros(2)], -1)[:, None].expand(2, 8, 2).flatten())


def draw_dream(denoiser: Denoiser, frames: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return latents, noise and actions of two dreams."""
    generator = torch.Generator().manual_seed(0)
    size, channels = denoiser.config.latent_size, denoiser.config.latent_channels
    latents, noise = torch.randn(2, 2, frames, channels, size, size, generator=generator)
    return latents, noise, torch.randint(7, (2, frames), generator=generator)
