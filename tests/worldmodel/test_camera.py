"""The camera: rays, poses and points seen from elsewhere."""

import math

import pytest
import torch

from worldmodel.errors import ConfigError
from worldmodel.memory.camera import Camera, complete_poses, pixel_rays, pose_axes, project, view_change

CAMERA = Camera(70.0)


def draw_poses(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    places = torch.randn(*shape, 3, generator=generator)
    angles = torch.rand(*shape, 2, generator=generator) - 0.5
    return torch.cat([places, angles * torch.tensor([6.0, 2.5])], -1)


def unproject(depth: torch.Tensor, poses: torch.Tensor) -> torch.Tensor:
    """Return where in the world the pixels of depth maps (..., S, S) are, (..., S * S, 3)."""
    rays = pixel_rays(CAMERA, depth.shape[-1])
    points = (rays * depth.flatten(-2)[..., None, :]).transpose(-1, -2)
    return points @ pose_axes(poses) + poses[..., None, :3]


@pytest.mark.parametrize("view_deg", [0.0, -1.0, 180.0, math.nan])
def test_an_angle_of_view_must_be_one(view_deg: float) -> None:
    with pytest.raises(ConfigError, match="view"):
        Camera(view_deg)


def test_rays_look_where_pixels_are() -> None:
    ahead, left, up = pixel_rays(CAMERA, 64).unflatten(1, (64, 64))
    assert (ahead == 1).all()
    assert left[10, 3].item() == pytest.approx(CAMERA.tangent * (1 - 7 / 64))
    assert up[10, 3].item() == pytest.approx(CAMERA.tangent * (1 - 21 / 64))


def test_axes_are_a_rotation_and_point_where_the_pose_says() -> None:
    axes = pose_axes(draw_poses(20))
    assert torch.allclose(axes @ axes.transpose(-1, -2), torch.eye(3).expand(20, 3, 3), atol=1e-6)
    assert torch.allclose(torch.linalg.det(axes), torch.ones(20), atol=1e-5)
    north = pose_axes(complete_poses(torch.tensor([1.0, 2.0, math.pi / 2])))
    assert torch.allclose(north, torch.tensor([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]]), atol=1e-6)
    risen = pose_axes(torch.tensor([0.0, 0, 0, 0, math.pi / 4]))
    assert risen[0, 2] > 0.7 and risen[2, 0] < -0.7


def test_points_come_back_to_their_pixels() -> None:
    poses = draw_poses(3, 2)
    depth = torch.rand(3, 2, 16, 16, generator=torch.Generator().manual_seed(1)) * 5 + 0.1
    seen = project(unproject(depth, poses), poses, CAMERA, 16)
    columns = torch.arange(16.0).expand(3, 2, 16, 16).flatten(2)
    rows = torch.arange(16.0)[:, None].expand(3, 2, 16, 16).flatten(2)
    assert torch.allclose(seen, torch.stack([columns, rows, depth.flatten(2)], -1), atol=1e-3)


def test_a_change_of_view_is_the_way_through_the_world() -> None:
    source, target = draw_poses(5, seed=2), draw_poses(5, seed=3)
    turn, shift = view_change(source, target)
    points = torch.randn(5, 7, 3, generator=torch.Generator().manual_seed(4))
    world = points @ pose_axes(source) + source[:, None, :3]
    wanted = (world - target[:, None, :3]) @ pose_axes(target).transpose(-1, -2)
    assert torch.allclose(points @ turn.transpose(-1, -2) + shift[:, None], wanted, atol=1e-5)


def test_a_point_behind_has_no_depth_and_nothing_is_infinite() -> None:
    pose = complete_poses(torch.zeros(1, 3))
    seen = project(torch.tensor([[[-1.0, 0.3, 0.2], [0.0, 1.0, 0.0]]]), pose, CAMERA, 64)
    assert (seen[..., 2] <= 0).all() and seen.isfinite().all()
