"""Pixel-precise memory: identity, turns, occlusion, the last frame's veto, what is kept, and export."""

import copy
import math

import pytest
import torch
from torch import nn

from worldmodel.errors import ConfigError
from worldmodel.memory.camera import Camera, complete_poses, pixel_rays, pose_axes
from worldmodel.memory.reprojection.choice import choose
from worldmodel.memory.reprojection.costs import WarpRule, order_ranks
from worldmodel.memory.reprojection.keyframes import KeepRule, Keyframes, write
from worldmodel.memory.reprojection.sampling import fill_holes
from worldmodel.memory.reprojection.warp import Warped, warp

CAMERA = Camera(70.0)
SIZE = 64
NEAREST = WarpRule(sampling="nearest")


def draw_room(pose: torch.Tensor, ball: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what is seen in a box of 8 x 8 x 2 cells with soft colors: pixels uint8 (3, S, S) and depth (S, S).

    Args:
        pose: (5,), within the box, whose middle is the origin.
        ball: (3,), the middle of a white ball of radius 0.3, if there is one.
    """
    rays = pixel_rays(CAMERA, SIZE).T @ pose_axes(pose)
    walls = torch.tensor([4.0, 4.0, 1.0])
    reach = ((walls * rays.sign() - pose[:3]) / torch.where(rays.abs() < 1e-6, 1e-6, rays)).amin(1)
    points = pose[:3] + rays * reach[:, None]
    colors = 127 + 100 * torch.sin(points @ torch.tensor([[1.3, 0.2, 0.7], [0.4, 1.5, -0.6], [1.1, -0.9, 2.0]]))
    if ball is not None:
        square, to_ball = rays.square().sum(1), ball - pose[:3]
        along = rays @ to_ball
        inside = along.square() - square * (to_ball.square().sum() - 0.09)
        hit = (along - inside.clamp_min(0).sqrt()) / square
        is_hit = (inside > 0) & (hit > 0) & (hit < reach)
        reach = torch.where(is_hit, hit, reach)
        colors = torch.where(is_hit[:, None], 255.0, colors)
    return colors.T.reshape(3, SIZE, SIZE).to(torch.uint8), reach.view(SIZE, SIZE)


def pool_inverse_depth(depth: torch.Tensor, grid: int) -> torch.Tensor:
    """Return depth maps (..., S, S) as inverse depth (..., grid, grid).

    A cell that one surface fills gets the mean, which is exact for planes; one across an edge gets the pixel next to
    its middle, as a mean would be a surface that is nowhere.
    """
    inverse = depth.clamp_min(1e-3).reciprocal()
    factor = inverse.shape[-1] // grid
    if factor == 1:
        return inverse

    cells = inverse.unflatten(-1, (grid, factor)).unflatten(-3, (grid, factor))
    mean = cells.mean((-3, -1))
    is_edge = cells.amax((-3, -1)) - cells.amin((-3, -1)) > 0.1 * mean
    return torch.where(is_edge, cells[..., factor // 2, :, factor // 2], mean)


def remember(
    keyframes: Keyframes,
    poses: torch.Tensor,
    *,
    ball: torch.Tensor | None = None,
    is_true: bool = True,
    invented: int = 0,
    rule: KeepRule | None = None,
) -> None:
    """Write a frame of the room for each dream, seen from `poses` (B, 5)."""
    drawn = [draw_room(pose, ball) for pose in poses]
    grid = keyframes.inverse_depth.shape[-1]
    write(
        keyframes,
        CAMERA,
        torch.stack([pixels for pixels, _ in drawn]),
        pool_inverse_depth(torch.stack([depth for _, depth in drawn]), grid),
        torch.full((len(poses), grid, grid), invented, dtype=torch.uint8),
        poses,
        torch.full((len(poses),), is_true),
        rule,
    )


def at(x: float, y: float, heading_deg: float) -> torch.Tensor:
    return complete_poses(torch.tensor([[x, y, math.radians(heading_deg)]]))


def look(keyframes: Keyframes, pose: torch.Tensor, count: int = 4, rule: WarpRule | None = None) -> Warped:
    chosen = choose(keyframes, CAMERA, pose[:, None], count, rule)
    return warp(keyframes, CAMERA, pose[:, None], chosen, rule)


def shades(pixels: torch.Tensor) -> torch.Tensor:
    return pixels.float() / 127.5 - 1


@pytest.mark.parametrize("grid", [64, 32])
def test_the_same_pose_shows_the_same_picture(grid: int) -> None:
    keyframes = Keyframes.empty(1, 4, SIZE, grid)
    pose = torch.tensor([[0.5, -1.0, 0.2, 0.7, 0.3]])
    remember(keyframes, pose, invented=51)
    seen = look(keyframes, pose, rule=NEAREST)
    is_seen = seen.mask[0, 0, 0] > 0
    assert is_seen.float().mean() > 0.99
    assert torch.allclose(seen.pixels[0, 0, :, is_seen], shades(draw_room(pose[0])[0])[:, is_seen], atol=1e-6)
    assert (seen.log_depth[0, 0, 0].exp() / draw_room(pose[0])[1] - 1).abs().quantile(0.95) < 0.02
    assert seen.magnification.abs().max() < 0.01
    assert torch.allclose(seen.invented, 0.2 * seen.mask) and torch.allclose(seen.age, seen.mask / 8)


@pytest.mark.parametrize("sampling", ["nearest", "linear", "cubic"])
def test_a_walk_and_a_turn_show_what_is_there(sampling: str) -> None:
    keyframes = Keyframes.empty(1, 8, SIZE)
    for heading in (-40, 0, 40):
        remember(keyframes, at(-1.0, 0.3, heading))
    pose = torch.tensor([[-0.4, 0.1, 0.15, math.radians(15), -0.1]])
    seen = look(keyframes, pose, rule=WarpRule(sampling=sampling))
    pixels, depth = draw_room(pose[0])
    is_seen = seen.mask[0, 0, 0] > 0
    assert is_seen.float().mean() > 0.9
    assert (seen.pixels[0, 0] - shades(pixels)).abs()[:, is_seen].mean() < 0.03
    assert (seen.log_depth[0, 0, 0] - depth.log()).abs()[is_seen].median() < 5e-3
    closer = look(keyframes, at(1.5, 0.3, 0))  # half as far from the wall
    assert closer.magnification[0, 0, 0][28:36, 28:36].mean().item() == pytest.approx(1, abs=0.02)


def test_what_was_dreamt_is_taken_whole_and_true_pixels_are_mixed() -> None:
    poses = complete_poses(torch.tensor([[0.3, -0.2, 0.1], [0.5, -0.1, 0.25]]))
    seen = {}
    for invented, rule in ((0, WarpRule()), (255, WarpRule()), (255, NEAREST)):
        keyframes = Keyframes.empty(1, 2, SIZE)
        remember(keyframes, poses[:1], invented=invented)
        chosen = choose(keyframes, CAMERA, poses[None, 1:], 2, rule)
        seen[invented, rule.sampling] = warp(keyframes, CAMERA, poses[None, 1:], chosen, rule).pixels
    assert torch.equal(seen[255, "cubic"], seen[255, "nearest"])
    assert not torch.allclose(seen[0, "cubic"], seen[255, "cubic"], atol=1e-2)


def test_a_turn_that_comes_back_finds_what_it_left() -> None:
    keyframes = Keyframes.empty(1, 32, SIZE)
    for heading in range(0, 360, 30):
        remember(keyframes, at(0, 0, heading))
    seen = look(keyframes, at(0, 0, 15), rule=NEAREST)
    is_seen = seen.mask[0, 0, 0] > 0
    wanted = shades(draw_room(at(0, 0, 15)[0])[0])
    assert is_seen.float().mean() > 0.97
    assert (seen.pixels[0, 0] - wanted).abs()[:, is_seen].mean() < 0.05


def test_what_is_near_hides_what_is_far() -> None:
    ball = torch.tensor([1.0, 0.0, 0.0])
    keyframes = Keyframes.empty(1, 8, SIZE)
    remember(keyframes, at(-1.5, 0.0, 0), ball=ball)
    remember(keyframes, at(0.0, -2.0, 40))  # does not see where the ball is
    remember(keyframes, at(-0.5, 1.0, 0), ball=ball)
    pose = at(-0.5, 0.3, -8)
    seen = look(keyframes, pose)
    pixels, depth = draw_room(pose[0], ball)
    inner = torch.nn.functional.avg_pool2d((pixels == 255).all(0).float()[None], 5, 1, 2)[0] == 1
    assert inner.sum() > 20
    known = inner & (seen.mask[0, 0, 0] > 0)
    assert known.sum() > 0.8 * inner.sum()
    assert (seen.pixels[0, 0, :, known] > 0.9).float().mean() > 0.95
    assert (seen.log_depth[0, 0, 0] - depth.log()).abs()[known].median() < 0.1


def test_the_last_frame_sees_through_what_is_gone() -> None:
    ball = torch.tensor([1.0, 0.0, 0.0])
    keyframes = Keyframes.empty(1, 8, SIZE)
    remember(keyframes, at(-1.0, 0.0, 0), ball=ball)
    remember(keyframes, at(-0.9, 0.1, 0), ball=ball)
    pose = at(-0.7, 0.0, 0)
    before = look(keyframes, pose)
    remember(keyframes, at(-0.8, 0.0, 0))  # the ball was taken
    after = look(keyframes, pose)
    middle = (slice(30, 34), slice(30, 34))
    assert (before.pixels[0, 0][:, *middle] > 0.9).all()
    wanted = shades(draw_room(pose[0])[0])
    is_seen = after.mask[0, 0, 0] > 0
    assert is_seen.float().mean() > 0.95
    assert (after.pixels[0, 0] - wanted).abs()[:, is_seen].max() < 0.3


def test_nothing_is_known_without_frames() -> None:
    seen = look(Keyframes.empty(2, 4, SIZE), at(0, 0, 0).expand(2, -1))
    assert not seen.mask.any() and not seen.pixels.any()
    assert all(part.isfinite().all() for part in vars(seen).values())
    keyframes = Keyframes.empty(1, 4, SIZE)
    remember(keyframes, at(0, 0, 0))
    away = look(keyframes, at(0, 0, 180))
    assert not away.mask.any() and away.pixels.isfinite().all()


def test_views_and_dreams_of_a_batch_do_not_touch_each_other() -> None:
    poses = [torch.cat([at(0, 0, a), at(1, -1, a + 50)]) for a in (0, 20, 40, 60)]
    together = Keyframes.empty(2, 8, SIZE)
    apart = [Keyframes.empty(1, 8, SIZE) for _ in range(2)]
    for pose in poses:
        remember(together, pose)
        for i, keyframes in enumerate(apart):
            remember(keyframes, pose[i : i + 1])
    targets = torch.stack([poses[0], poses[2] + 0.1], 1)
    chosen = choose(together, CAMERA, targets, 4)
    seen = warp(together, CAMERA, targets, chosen)
    for b in range(2):
        for t in range(2):
            alone = look(apart[b], targets[b : b + 1, t])
            for name, part in vars(seen).items():
                assert torch.allclose(part[b, t], getattr(alone, name)[0, 0], atol=1e-4), name


def test_a_view_draws_only_on_allowed_frames() -> None:
    keyframes = Keyframes.empty(1, 8, SIZE)
    for heading in (0, 10, 20, 30):
        remember(keyframes, at(0, 0, heading))
    earlier = keyframes.order[:, None] < torch.tensor([1, 3])[None, :, None]
    allowed = earlier & (keyframes.order >= 0)[:, None]
    chosen = choose(keyframes, CAMERA, at(0, 0, 25)[:, None].expand(1, 2, 5), 4, allowed=allowed)
    orders = keyframes.order[0, chosen.clamp_min(0)].masked_fill(chosen < 0, -1)
    assert orders[0, 0].max() == 0 and orders[0, 1].max() == 2 == orders[0, 1, 0]


def test_the_last_frame_is_chosen_first_and_no_slot_twice() -> None:
    keyframes = Keyframes.empty(1, 16, SIZE)
    for heading in range(0, 360, 40):
        remember(keyframes, at(0, 0, heading))
    chosen = choose(keyframes, CAMERA, at(0, 0, 100)[:, None], 6)[0, 0]
    assert keyframes.order[0, chosen[0]] == 8
    used = chosen[chosen >= 0].tolist()
    assert len(set(used)) == len(used) < 6  # most look elsewhere
    assert {2, 3} <= set(keyframes.order[0, used].tolist())


def test_true_frames_rank_newest_first_and_dreamt_ones_first_first() -> None:
    keyframes = Keyframes.empty(1, 8, SIZE)
    for i in range(6):
        remember(keyframes, at(0.3 * i, 0, 0), is_true=i < 3)
    ranks = order_ranks(keyframes)[0, keyframes.order[0].argsort()[2:]]
    assert ranks.argsort().tolist() == [2, 1, 0, 3, 4, 5]
    assert ranks.min() == 0 and ranks.max() == 1


def test_keeping_covers_what_was_seen_and_never_exceeds_the_slots() -> None:
    keyframes = Keyframes.empty(1, 24, SIZE)
    first = at(0, 0, 0)
    remember(keyframes, first)
    for turn in range(40):  # far longer than there are slots, over the same twelve poses
        for heading in range(0, 360, 30):
            remember(keyframes, at(0.002 * turn, 0, heading + 0.1 * turn), is_true=False)
    held = keyframes.order[0]
    assert held.shape == (24,) and len(set(held.tolist())) == 24
    assert held.max() == 480 and (held == 480).any() and (held == 479).any()
    assert (held == 0).any() and keyframes.is_true.sum() == 1
    yaw = keyframes.poses[0, held >= 0, 3] % (2 * math.pi)
    for heading in range(0, 360, 30):
        away = (yaw - math.radians(heading) + math.pi) % (2 * math.pi) - math.pi
        assert away.abs().min() < math.radians(8)


def test_standing_still_fills_no_slots() -> None:
    keyframes = Keyframes.empty(1, 8, SIZE)
    for _ in range(7):
        remember(keyframes, at(0, 0, 0))
    assert (keyframes.order >= 0).sum() == 3  # the first and the two newest
    assert set(keyframes.order[0].tolist()) == {-1, 0, 5, 6}


def test_writing_keeps_the_tensors_where_they_are() -> None:
    keyframes = Keyframes.empty(2, 4, SIZE)
    places = {name: (part.data_ptr(), part.shape) for name, part in keyframes.tensors.items()}
    remember(keyframes, at(0, 0, 0).expand(2, -1))
    assert places == {name: (part.data_ptr(), part.shape) for name, part in keyframes.tensors.items()}
    assert (keyframes.order[:, 0] == 0).all() and (keyframes.order[:, 1:] == -1).all()


def test_five_megabytes_hold_320_frames() -> None:
    assert sum(part.nbytes for part in Keyframes.empty(1, 320, 64).tensors.values()) < 5.5e6


def test_sizes_that_do_not_divide_are_named() -> None:
    with pytest.raises(ConfigError, match="depth grid 12"):
        Keyframes.empty(1, 4, 64, 12)
    with pytest.raises(ConfigError, match="sampling 'cube'"):
        WarpRule(sampling="cube")


def test_holes_take_what_is_near_and_nothing_stays_nothing() -> None:
    values = torch.zeros(2, 1, 16, 16)
    mask = torch.zeros(2, 1, 16, 16)
    values[0, :, :, :4], values[0, :, :, 12:] = 1.0, 3.0
    mask[0, :, :, :4] = mask[0, :, :, 12:] = 1
    filled = fill_holes(values, mask)
    assert torch.equal(filled[0] * mask[0], values[0]) and not filled[1].any()
    across = filled[0, 0, 8]
    assert (across.diff() >= -1e-6).all() and across[4] < 1.7 and across[11] > 2.3


class Step(nn.Module):
    """Choice, warp and write in one module, as a step of a dream has them."""

    def forward(
        self, parts: dict[str, torch.Tensor], pose: torch.Tensor, pixels: torch.Tensor, depth: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        keyframes = Keyframes(**parts)
        chosen = choose(keyframes, CAMERA, pose[:, None], 4)
        seen = warp(keyframes, CAMERA, pose[:, None], chosen)
        invented = (1 - seen.mask[:, 0, 0, ::2, ::2]).mul(255).to(torch.uint8)
        is_true = torch.zeros(len(pose), dtype=torch.bool)
        write(keyframes, CAMERA, pixels, pool_inverse_depth(depth, 32), invented, pose, is_true)
        return seen.pixels, seen.mask


def test_a_step_exports_and_repeats_itself() -> None:
    start = Keyframes.empty(2, 8, SIZE)
    for heading in (0, 20, 40):
        remember(start, at(0, 0, heading).expand(2, -1))
    pose = at(0.1, 0, 30).expand(2, -1).contiguous()
    drawn = [draw_room(p) for p in pose]
    frame = (torch.stack([pixels for pixels, _ in drawn]), torch.stack([depth for _, depth in drawn]))
    exported = torch.export.export(Step(), (copy.deepcopy(start).tensors, pose, *frame), strict=False).module()
    ends = []
    for step in (Step(), Step(), exported):
        keyframes = copy.deepcopy(start)
        ends.append((step(keyframes.tensors, pose, *frame), keyframes))
    for (pixels, mask), keyframes in ends[1:]:
        assert torch.equal(pixels, ends[0][0][0]) and torch.equal(mask, ends[0][0][1])
        assert all(torch.equal(part, getattr(ends[0][1], name)) for name, part in keyframes.tensors.items())


def remember_with_depth(keyframes: Keyframes, pose: torch.Tensor, factor: float) -> None:
    """Write a dreamt frame of the room whose depth is wrong by a factor."""
    pixels, depth = draw_room(pose[0])
    inverse = pool_inverse_depth((depth * factor)[None], keyframes.inverse_depth.shape[-1])
    nothing = torch.zeros_like(inverse, dtype=torch.uint8)
    write(keyframes, CAMERA, pixels[None], inverse, nothing, pose, torch.tensor([False]))


@pytest.mark.parametrize("turned", [0.0, 12.0])
def test_what_was_seen_from_here_stays_whatever_depth_says_elsewhere(turned: float) -> None:
    """Without parallax no depth is needed; frames from elsewhere, with walls put too near, do not cover it."""
    keyframes = Keyframes.empty(1, 8, SIZE)
    remember_with_depth(keyframes, at(0.0, 0.0, 0.0), 1.3)
    for heading in (-8.0, 0.0, 8.0):
        remember_with_depth(keyframes, at(-0.6, 0.2, heading), 0.4)
    pose = at(0.0, 0.0, turned)
    true = shades(draw_room(pose[0])[0])
    columns = slice(16, None) if turned else slice(None)  # of a view turned left its right side was seen from here

    def error(rule: WarpRule) -> float:
        seen = look(keyframes, pose, rule=rule)
        off = (seen.pixels[0, 0] - true).abs() * seen.mask[0, 0]
        return float(off[..., columns].mean())

    assert error(WarpRule()) < 0.02
    assert error(WarpRule(same_place=0.0)) > 0.1


def test_what_was_seen_from_here_first_comes_first() -> None:
    """A dream that stands still or turns round comes back to its first picture, not to a copy of a copy."""
    keyframes = Keyframes.empty(1, 8, SIZE)
    pose = at(0.0, 0.0, 0.0)
    for shade in (50, 150, 250):
        pixels = torch.full((1, 3, SIZE, SIZE), shade, dtype=torch.uint8)
        inverse = torch.full((1, SIZE // 2, SIZE // 2), 0.5)
        write(keyframes, CAMERA, pixels, inverse, torch.zeros_like(inverse).byte(), pose, torch.tensor([False]))
    seen = look(keyframes, pose)
    assert torch.allclose(seen.pixels, torch.full_like(seen.pixels, 50 / 127.5 - 1), atol=1e-5)


def remember_recolored(keyframes: Keyframes, pose: torch.Tensor) -> None:
    """Write a true frame of the room in inverse colors, its depth right."""
    pixels, depth = draw_room(pose[0])
    inverse = pool_inverse_depth(depth[None], keyframes.inverse_depth.shape[-1])
    nothing = torch.zeros_like(inverse, dtype=torch.uint8)
    write(keyframes, CAMERA, 255 - pixels[None], inverse, nothing, pose, torch.tensor([True]))


@pytest.mark.parametrize("rule", [WarpRule(), WarpRule(same_place=0.0)], ids=["from here first", "by cost alone"])
def test_what_was_seen_from_here_goes_before_what_costs_less(rule: WarpRule) -> None:
    """A true frame from elsewhere has the lower rank, and shows the same surfaces."""
    keyframes = Keyframes.empty(1, 8, SIZE)
    remember_with_depth(keyframes, at(0.0, 0.0, 0.0), 1.0)
    remember_recolored(keyframes, at(-0.1, 0.0, 0.0))
    seen = look(keyframes, at(0.0, 0.0, 0.0), rule=rule)
    true = shades(draw_room(at(0.0, 0.0, 0.0)[0])[0])
    is_known = seen.mask[0, 0, 0] > 0
    off = (seen.pixels[0, 0] - true).abs()[:, is_known].mean()
    assert off < 0.05 if rule.same_place else off > 0.2


@pytest.mark.parametrize("factor", [1.0, 0.4], ids=["as far", "put too near, so that they hide it"])
def test_of_few_sources_one_that_saw_from_here_is_chosen(factor: float) -> None:
    keyframes = Keyframes.empty(1, 8, SIZE)
    remember_with_depth(keyframes, at(-0.3, 0.1, 0.0), factor)
    remember_with_depth(keyframes, at(-0.2, 0.1, 0.0), factor)
    remember_with_depth(keyframes, at(0.0, 0.0, 0.0), 1.0)
    remember_with_depth(keyframes, at(-0.1, 0.1, 0.0), factor)
    here = int(keyframes.order[0].tolist().index(2))
    pose = at(0.0, 0.0, 0.0)[:, None]
    assert choose(keyframes, CAMERA, pose, 2)[0, 0].tolist()[1] == here
    assert choose(keyframes, CAMERA, pose, 2, WarpRule(same_place=0.0))[0, 0].tolist()[1] != here
