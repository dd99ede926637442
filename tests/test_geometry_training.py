"""Training the spatial memory: labels are right, it learns, and a denoiser takes it in."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from envs.actions import LABMAZE_ACTIONS
from envs.episodes import open_shards
from tests.painted_maze import ROOM, dress, turn_away, write_turns
from train.denoiser import DenoiserOptions, train_denoiser
from train.geometry import GeometryOptions, has_geometry, train_geometry, walk_shortfall
from train.loop import Machine
from train.sight import look
from worldmodel.checkpoint import load_denoiser, load_spatial, save_bundle
from worldmodel.codec import Codec
from worldmodel.errors import CheckpointError, DataError
from worldmodel.memory.views import ColumnViews
from worldmodel.odometry import ground_poses

MOTIONS = torch.tensor([*LABMAZE_ACTIONS.motions, (0.0, 0.0)]) * torch.tensor([math.pi / 180, 1.0])
CPU = Machine(torch.device("cpu"))


@pytest.fixture(scope="module")
def painted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rooms")
    rooms = [dress(ROOM, (0, 1, 2, 3)), dress(ROOM, (3, 2, 1, 0))]
    turns = [turn_away(30), turn_away(50)]
    write_turns(folder, turns, rooms, "train")
    return write_turns(folder, turns, rooms, "test")


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory, make_codec: Callable[..., Codec]) -> Path:
    folder = tmp_path_factory.mktemp("codec32")
    save_bundle(folder, codec=make_codec())
    return folder


def options(painted: Path, codec: Path, out: Path, steps: int = 3) -> GeometryOptions:
    settings = {"batch_size": 2, "clip_frames": 12, "device": "cpu", "compile": False, "points": 4}
    return GeometryOptions(data=painted, out=out, codec=codec, steps=steps, **settings)


def test_a_free_walk_lacks_nothing_and_a_stopped_one_all() -> None:
    heading = math.radians(90)
    places = torch.tensor([[[0.0, 0.0, heading], [0.0, 0.12, heading], [0.0, 0.12, heading], [-0.05, 0.12, heading]]])
    lacks = walk_shortfall(ground_poses(places), torch.tensor([[7, 1, 1, 1]]), MOTIONS)[0]
    torch.testing.assert_close(lacks, torch.tensor([[0.0, 0.0], [-0.12, 0.0], [-0.12, 0.05]]), atol=1e-6, rtol=0)


def test_columns_can_be_as_many_as_a_latent_has() -> None:
    pose = np.array([[2.5, 2.5, 0.0]], np.float32)
    fine, coarse = look(ROOM, pose), look(ROOM, pose, 3)
    assert coarse.distances.shape == (1, 3)
    np.testing.assert_allclose(coarse.distances[0], fine.distances[0, [5, 16, 27]], atol=1e-6)


def denoiser_options(data: Path, codec: Path, folder: Path, **changes: Any) -> DenoiserOptions:
    given: dict[str, Any] = {"batch_size": 2, "clip_frames": 8, "steps": 2, "device": "cpu", "compile": False}
    given |= {"odometry": True, "view_frames": 40} | changes
    return DenoiserOptions(data=data, out=folder / "denoiser", codec=codec, **given)


def test_it_learns_distances_and_a_denoiser_takes_it_in(painted: Path, codec: Path, tmp_path: Path) -> None:
    summary = train_geometry(options(painted, codec, tmp_path / "geometry", steps=120), CPU)
    spatial = load_spatial(tmp_path / "geometry")
    assert spatial.config.points == 4 and summary["steps"] == 120
    assert summary["depth_loss"] < 0.1  # one cell everywhere, as it starts, has .35
    assert summary["test_place_by_actions_median"] > 0  # the walker of this recording stays where it is
    training = denoiser_options(painted, codec, tmp_path, preset="study", spatial=tmp_path / "geometry")
    with pytest.raises(CheckpointError, match="takes 8 x 4"):
        train_denoiser(training, CPU)


def test_a_denoiser_keeps_the_spatial_memory_as_it_was(recording: Path, codec_folder: Path, tmp_path: Path) -> None:
    from worldmodel.geometry import SpatialConfig, SpatialMemory

    torch.manual_seed(3)
    spatial = SpatialMemory(SpatialConfig(4, 8, 7, 70.0, points=5))
    spatial.views.age.data.fill_(0.5)
    save_bundle(tmp_path / "spatial", spatial=spatial)
    training = denoiser_options(recording, codec_folder, tmp_path, preset="tiny", spatial=tmp_path / "spatial")
    train_denoiser(training, CPU)
    made = load_denoiser(tmp_path / "denoiser")
    columns = made.find(ColumnViews)
    assert made.config.view_points == 5 and made.config.view_reach == 40 and columns is not None
    kept = load_spatial(tmp_path / "spatial").state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in columns.spatial.state_dict().items())
    spatial.views.age.data.fill_(-0.5)
    save_bundle(tmp_path / "spatial", spatial=spatial)
    with pytest.raises(CheckpointError, match="prefers old views"):
        train_denoiser(training, CPU)


def test_a_recording_without_poses_is_told_apart(painted: Path, recording: Path, codec: Path, tmp_path: Path) -> None:
    assert has_geometry(open_shards(painted))
    assert not has_geometry(open_shards(recording))
    write_turns(tmp_path, [turn_away(9)], [dress(ROOM)], "train", drop=("pose",))
    write_turns(tmp_path, [turn_away(9)], [dress(ROOM)], "test")
    with pytest.raises(DataError, match="pose"):
        train_geometry(options(tmp_path, codec, tmp_path / "out"), CPU)
