"""Poses by actions, remembered obstacles and known ways."""

import copy
import math

import pytest
import torch
from torch import nn

from worldmodel.memory.camera import Camera, complete_poses, pixel_rays, pose_axes
from worldmodel.memory.pose import Body, Surroundings, advance, level_displacements, move, observe

CAMERA = Camera(70.0)
MOTIONS = level_displacements([(0, 0), (0, 0.12), (0, -0.12), (6, 0), (-6, 0), (6, 0.12), (-6, 0.12)])
NOOP, FORWARD, BACK, LEFT, _, FORWARD_LEFT, _ = range(7)
BODY = Body()


def at(x: float, y: float, heading_deg: float) -> torch.Tensor:
    return complete_poses(torch.tensor([[x, y, math.radians(heading_deg)]]))


def inverse_depth(pose: torch.Tensor, wall: float = 1.0, grid: int = 32) -> torch.Tensor:
    """Return the inverse depth (1, g, g) of an endless wall at x = `wall`, seen from `pose` (1, 5)."""
    rays = pixel_rays(CAMERA, grid).T @ pose_axes(pose[0])
    return (rays[:, 0] / (wall - pose[0, 0])).clamp_min(0).view(1, grid, grid)


def step(pose: torch.Tensor, action: int, known: Surroundings, look: bool = True) -> torch.Tensor:
    pose = advance(pose, torch.full((len(pose),), action), MOTIONS, known)
    if look:
        observe(known, CAMERA, pose, torch.cat([inverse_depth(p[None]) for p in pose]))
    return pose


def test_a_step_turns_first_and_walks_along_the_new_heading() -> None:
    pose = move(MOTIONS, torch.tensor([FORWARD_LEFT]), at(1, 2, 84))
    assert pose[0].tolist() == pytest.approx([1, 2.12, 0, math.pi / 2, 0], abs=1e-6)
    assert move(MOTIONS, torch.tensor([LEFT]), at(0, 0, 357))[0, 3].item() == pytest.approx(math.radians(3), abs=1e-5)
    assert torch.equal(move(MOTIONS, torch.tensor([7]), at(1, 2, 84)), at(1, 2, 84))


def test_motions_may_rise_strafe_and_look_up() -> None:
    displacements = torch.tensor([[0.0, 0.5, 0.25, 0.0, 1.0], [0, 0, 0, 0, 0]])
    pose = move(displacements, torch.tensor([0]), at(0, 0, 90))
    assert pose[0].tolist() == pytest.approx([-0.5, 0, 0.25, math.pi / 2, 1.0], abs=1e-6)
    assert move(displacements, torch.tensor([0]), pose)[0, 4].item() == pytest.approx(math.pi / 2)


def test_nothing_known_is_nothing_in_the_way() -> None:
    known = Surroundings.empty(3)
    pose = at(0, 0, 30).expand(3, -1)
    for action in range(8):
        actions = torch.full((3,), action)
        assert torch.allclose(advance(pose, actions, MOTIONS, known), move(MOTIONS, actions, pose), atol=1e-6)


def test_a_remembered_wall_stops_a_walk_at_the_radius() -> None:
    known = Surroundings.empty(1)
    pose = at(0, 0, 0)
    observe(known, CAMERA, pose, inverse_depth(pose))
    for _ in range(20):
        pose = step(pose, FORWARD, known)
    assert pose[0, 0].item() == pytest.approx(1 - BODY.radius, abs=0.03)
    assert pose[0, 1].item() == pytest.approx(0, abs=0.03)


def test_a_walk_slides_along_a_wall_and_no_step_is_longer_than_it_says() -> None:
    known = Surroundings.empty(1)
    pose = at(0, 0, 40)
    observe(known, CAMERA, pose, inverse_depth(pose))
    for _ in range(20):
        before, pose = pose, step(pose, FORWARD, known)
        assert (pose - before)[0, :2].norm() <= 0.12 + 1e-5
    assert pose[0, 0] < 1 - BODY.radius + 0.03 and pose[0, 1] > 1.2


def test_one_who_does_not_walk_is_not_moved() -> None:
    known = Surroundings.empty(1)
    known.points[:, :100] = torch.tensor([0.05, 0.0])
    for action in (NOOP, LEFT):
        assert torch.equal(advance(at(0, 0, 0), torch.tensor([action]), MOTIONS, known)[:, :2], torch.zeros(1, 2))


def test_points_where_one_has_stood_are_forgotten_and_not_learned_again() -> None:
    known = Surroundings.empty(1)
    known.points[:, :3] = torch.tensor([[0.1, 0.0], [0.0, 0.1], [0.0, 0.4]])
    pose = at(0, 0, 0)
    observe(known, CAMERA, pose, torch.zeros(1, 32, 32))
    assert (known.points[0, :2] > 100).all() and known.points[0, 2, 1].item() == pytest.approx(0.4)
    back = at(-0.5, 0, 0)  # a wall is seen where one stood before
    observe(known, CAMERA, back, inverse_depth(back, wall=0.05))
    seen = known.points[0, : int(known.num_points)]
    assert (seen.square().sum(1).sqrt() >= BODY.carve).all()


def test_points_that_are_seen_through_are_forgotten() -> None:
    known = Surroundings.empty(1)
    # Before the wall that is seen; beside the view; on the wall; behind it; behind the eye.
    known.points[0, :5] = torch.tensor(
        [[0.5, 0.0], [0.3, 0.8], [0.8 * (1 - BODY.clearance / 2), 0.1], [0.9, 0.0], [-0.5, 0.0]]
    )
    known.num_points += 5
    pose = at(0, 0, 0)
    observe(known, CAMERA, pose, inverse_depth(pose, wall=0.8))
    kept = {tuple(round(x, 3) for x in point) for point in known.points[0].tolist()}
    assert (0.5, 0.0) not in kept
    assert {(0.3, 0.8), (0.9, 0.0), (-0.5, 0.0)} <= kept


def test_an_edge_takes_no_point_away() -> None:
    """Beside a near wall's edge the picture shows what lies behind it, and the wall's own points are still there."""
    known, columns = Surroundings.empty(1), 32
    depth = torch.full((1, columns, columns), 1.0)
    depth[:, :, : columns // 2] = 0.5
    known.num_points += 2
    half = math.tan(math.radians(35)) * 2 / columns
    known.points[0, :2] = torch.tensor(
        [[0.55, -0.5 * half * 0.55], [0.55, -6.5 * half * 0.55]]
    )  # at the edge; far from it
    observe(known, CAMERA, at(0, 0, 0), depth.reciprocal())
    assert (known.points[0, :2, 0] > 100).tolist() == [False, True]


def test_one_wrong_row_of_depth_makes_no_obstacle() -> None:
    pose = at(0, 0, 0)
    first, last = (int(share * 32) for share in BODY.rows)
    for row in range(first, last):
        known, wrong = Surroundings.empty(1), inverse_depth(pose)
        wrong[:, row] = 1 / 0.3
        observe(known, CAMERA, pose, wrong)
        seen = known.points[0, : int(known.num_points)]
        assert len(seen) and seen[:, 0].min() > 0.9


def test_nothing_stops_a_step_to_where_one_has_been() -> None:
    known = Surroundings.empty(1)
    pose = at(0, 0, 0)
    for _ in range(4):
        observe(known, CAMERA, pose, torch.zeros(1, 32, 32))
        pose = step(pose, FORWARD, known, look=False)
    wall = torch.stack([torch.full((50,), 0.45), torch.linspace(-0.5, 0.5, 50)], 1)
    known.points[0, :50] = wall
    assert advance(at(0.12, 0, 0), torch.tensor([FORWARD]), MOTIONS, known)[0, 0].item() == pytest.approx(0.24)
    aside = advance(at(0.12, 0.3, 0), torch.tensor([FORWARD]), MOTIONS, known)  # not a known way
    assert aside[0, 0].item() < 0.235


def test_rings_hold_no_more_than_they_have_room_for() -> None:
    known = Surroundings.empty(1, points=64, places=16)
    pose = at(0, -4, 50)
    shapes = {name: part.shape for name, part in known.tensors.items()}
    for _ in range(60):
        pose = step(pose, FORWARD, known)
    assert {name: part.shape for name, part in known.tensors.items()} == shapes
    assert int(known.num_places) > 16 and known.places.abs().max() < 100
    assert (known.places - pose[:, None, :2]).square().sum(-1).amin() < 1e-6  # the newest are held


def test_dreams_of_a_batch_do_not_touch_each_other() -> None:
    starts = torch.cat([at(0, 0, 10), at(0.5, -1, 300), at(0.3, 3, 60)])
    together, poses = Surroundings.empty(3), starts
    for action in (FORWARD, FORWARD_LEFT, FORWARD, BACK, FORWARD, FORWARD, FORWARD, FORWARD):
        poses = step(poses, action, together)
    for i in range(3):
        alone, pose = Surroundings.empty(1), starts[i : i + 1]
        for action in (FORWARD, FORWARD_LEFT, FORWARD, BACK, FORWARD, FORWARD, FORWARD, FORWARD):
            pose = step(pose, action, alone)
        assert torch.allclose(pose, poses[i : i + 1], atol=1e-5)
        assert torch.allclose(alone.points, together.points[i : i + 1], atol=1e-4)


class Step(nn.Module):
    """An advance and an observation in one module, as a step of a dream has them."""

    def forward(
        self, parts: dict[str, torch.Tensor], pose: torch.Tensor, action: torch.Tensor, inverse: torch.Tensor
    ) -> torch.Tensor:
        known = Surroundings(**parts)
        pose = advance(pose, action, MOTIONS, known)
        observe(known, CAMERA, pose, inverse)
        return pose


def test_a_step_exports() -> None:
    pose = at(0.4, 0, 10)
    known = Surroundings.empty(1)
    observe(known, CAMERA, pose, inverse_depth(pose))
    inputs = (pose, torch.tensor([FORWARD]), inverse_depth(pose))
    exported = torch.export.export(Step(), (copy.deepcopy(known).tensors, *inputs), strict=False).module()
    plain, compiled = copy.deepcopy(known), copy.deepcopy(known)
    assert torch.equal(Step()(plain.tensors, *inputs), exported(compiled.tensors, *inputs))
    assert all(torch.equal(part, getattr(compiled, name)) for name, part in plain.tensors.items())
