"""Depth: the network's shapes and files, what frames say of depths, and training with and without labels."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from envs.data.episodes import open_shards
from envs.fields import POSE
from envs.worlds.labmaze.constants import ACTIONS as LABMAZE_ACTIONS
from envs.worlds.labmaze.spec import LabMaze
from tests.box_room import SKY, VIEW_DEG, see, walk, write_walks
from train.core.machine import Machine
from train.data.depth import DepthData, read_poses, reckon_poses, tear
from train.data.recording import record_episode
from train.depth import DepthOptions, train_depth
from train.losses.photometric import PosedFrames, photometric_loss, picture_error, warp_frames
from worldmodel.checkpoint import load_depth, save_depth
from worldmodel.codec import Codec
from worldmodel.errors import CheckpointError, ConfigError, DataError, ShapeError, WorldModelError
from worldmodel.frames import to_pixels
from worldmodel.memory.camera import complete_poses
from worldmodel.memory.depth import DepthConfig, DepthNet, double_inverse, halve_depth

CONFIG = DepthConfig(image_size=32, view_deg=VIEW_DEG, width=8, inner_width=8, inner_blocks=1, outer_blocks=1)
CPU = Machine(torch.device("cpu"))


@pytest.fixture(scope="module")
def net() -> DepthNet:
    torch.manual_seed(0)
    return DepthNet(CONFIG).eval()


def options(data: Path, out: Path, **changes: Any) -> DepthOptions:
    given: dict[str, Any] = {"steps": 3, "batch_size": 4, "device": "cpu", "test_frames": 60} | changes
    return DepthOptions(data=data, out=out, **given)


def posed_frames(size: int = 64) -> tuple[PosedFrames, torch.Tensor]:
    """Frames of a walk with those three steps before and after, and true depths (B, size / 2, size / 2)."""
    _, poses = walk(40, 3)
    at = torch.arange(4, 36, 6)
    others = torch.stack([at - 3, at + 3], 1)
    pixels = to_pixels(see(poses, size)[0])
    return PosedFrames(pixels[at], poses[at], pixels[others], poses[others]), see(poses[at], size // 2)[1]


def test_depths_have_half_the_size_and_stay_in_range(net: DepthNet) -> None:
    for pixels in (torch.randn(3, 3, 32, 32), 50 * torch.randn(1, 3, 32, 32)):
        depth = net(pixels)
        assert depth.shape == (len(pixels), 16, 16) and depth.dtype == torch.float32
        is_sky = depth == CONFIG.far
        assert bool(((depth >= CONFIG.near * 0.999) & (is_sky | (depth <= CONFIG.horizon))).all())


def test_an_untrained_net_starts_about_two_units_away(net: DepthNet) -> None:
    depth = net(torch.rand(4, 3, 32, 32) * 2 - 1).detach()
    assert float(depth.min()) > 1.0 and float(depth.max()) < 4.0


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 3, 64, 64), (1, 4, 32, 32)])
def test_frames_of_another_shape_are_refused(net: DepthNet, shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="32"):
        net(torch.zeros(shape))
    with pytest.raises(ShapeError, match="uint8"):
        net(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


@pytest.mark.parametrize(
    "change",
    [{"image_size": 20}, {"width": 0}, {"view_deg": 180.0}, {"near": 0.0}, {"far": math.inf}, {"horizon": 500.0}],
)
def test_a_config_that_makes_no_sense_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        DepthConfig(**change)


def test_codes_tell_depths_and_sky() -> None:
    depth = torch.tensor([0.05, 0.3, 5.0, 200.0, math.inf])
    inverse = CONFIG.to_inverse(CONFIG.to_code(depth))
    torch.testing.assert_close(inverse, depth.clamp(max=200.0).reciprocal(), rtol=1e-3, atol=1e-5)


def test_planes_survive_halving_and_doubling_and_edges_stay_sharp() -> None:
    row, column = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    plane = (0.2 + 0.03 * row + 0.01 * column)[None]
    halved = halve_depth(1 / plane).reciprocal()
    torch.testing.assert_close(halved, F.avg_pool2d(plane, 2))
    torch.testing.assert_close(double_inverse(halved), plane)
    edge = torch.where(column < 7, 1.0, 0.2)[None]
    assert set(halve_depth(1 / edge).unique().tolist()) == {1.0, 5.0}
    assert double_inverse(edge).unique().numel() == 2


def test_a_round_trip_of_files(net: DepthNet, tmp_path: Path) -> None:
    save_depth(tmp_path, net)
    found = load_depth(tmp_path)
    assert found.config == CONFIG and not found.training
    pixels = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(found(pixels), net(pixels), rtol=0.05, atol=0)
    save_depth(tmp_path / "again", found)
    assert (tmp_path / "again/depth.safetensors").read_bytes() == (tmp_path / "depth.safetensors").read_bytes()


def test_damaged_and_foreign_files_are_refused(net: DepthNet, tmp_path: Path, codec_folder: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint"):
        load_depth(tmp_path)
    with pytest.raises(CheckpointError, match="holds no depth"):
        load_depth(codec_folder)
    save_depth(tmp_path, net)
    config = json.loads((tmp_path / "config.json").read_text())
    for change, match in (({"width": 9}, "expected"), ({"width": -1}, "width"), ({"breadth": 1}, "breadth")):
        (tmp_path / "config.json").write_text(json.dumps(config | {"depth": config["depth"] | change}))
        with pytest.raises(CheckpointError, match=match):
            load_depth(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    content = (tmp_path / "depth.safetensors").read_bytes()
    (tmp_path / "depth.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="damaged"):
        load_depth(tmp_path)


def test_poses_of_three_and_of_five_numbers_agree() -> None:
    frames, depth = posed_frames(32)
    five = frames._replace(poses=complete_poses(frames.poses), source_poses=complete_poses(frames.source_poses))
    assert five.poses.shape[-1] == 5
    losses = [photometric_loss(CONFIG, CONFIG.to_code(depth), given)[0] for given in (frames, five)]
    torch.testing.assert_close(*losses, rtol=0, atol=0)
    flat = np.array([[1.0, 2.0, 90.0]], np.float32)
    full = np.array([[1.0, 2.0, 0.0, 90.0, 0.0]], np.float32)
    torch.testing.assert_close(read_poses(flat, "here"), read_poses(full, "here"))
    assert float(read_poses(flat, "here")[0, 3]) == pytest.approx(math.pi / 2)
    with pytest.raises(ShapeError, match="4 numbers"):
        complete_poses(torch.zeros(2, 4))


def test_true_depth_makes_one_view_of_another_also_from_above_and_with_pitch() -> None:
    poses = torch.tensor([[0.1, 0.2, 0.1, 0.5, 0.2], [0.4, 0.3, 0.3, 0.65, -0.1]])
    frames, depth = see(poses, 64)
    pixels = to_pixels(frames)
    made, is_seen = warp_frames(pixels[1:], poses[1:], 1 / depth[:1], poses[:1], VIEW_DEG)
    error = (made - pixels[:1]).abs().mean(1)[is_seen]
    assert float(is_seen.float().mean()) > 0.6
    assert float(error.median()) < 0.02
    assert float((pixels[1] - pixels[0]).abs().mean()) > 0.1


def test_the_true_depth_has_the_least_photometric_loss() -> None:
    frames, depth = posed_frames()
    found = {}
    for scale in (1 / 1.3, 0.9, 1.0, 1.1, 1.3):
        scaled = torch.where(depth < SKY, depth * scale, depth)
        _, scalars = photometric_loss(CONFIG, CONFIG.to_code(scaled), frames)
        found[scale] = float(scalars["photometric"])
    assert found[1.0] == min(found.values())
    assert found[1.3] > 1.2 * found[1.0] and found[1 / 1.3] > 1.2 * found[1.0]
    assert found[1.0] < 0.5 * float(scalars["copied"])


def test_the_photometric_loss_leads_to_the_true_depth() -> None:
    frames, depth = posed_frames()
    is_near = depth < SKY
    codes = CONFIG.to_code(torch.where(is_near, depth * 1.3, depth)).requires_grad_()
    optimizer = torch.optim.Adam([codes], lr=0.01)
    for _ in range(60):
        loss, _ = photometric_loss(CONFIG, codes, frames)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    error = (CONFIG.to_inverse(codes.detach()).log() + depth.log()).abs()[is_near]
    assert float(error.median()) < 0.1  # log 1.3 is 0.26


def test_frames_that_stand_still_tell_nothing() -> None:
    frames, depth = posed_frames(32)
    still = frames._replace(sources=frames.pixels[:, None], source_poses=frames.poses[:, None])
    _, scalars = photometric_loss(CONFIG, CONFIG.to_code(depth), still)
    assert float(scalars["counted"]) < 0.01 and float(scalars["photometric"]) < 1e-4


def test_equal_pictures_have_no_error() -> None:
    pixels = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(picture_error(pixels, pixels), torch.zeros(2, 16, 16), atol=1e-5, rtol=0)
    assert float(picture_error(pixels, -pixels).mean()) > 0.3


def test_reckoned_poses_are_the_recorded_ones_where_nothing_stops_the_walk() -> None:
    actions, poses = walk(30, 0)
    found = reckon_poses(actions, "LabMaze", LABMAZE_ACTIONS.names)
    torch.testing.assert_close(found[:, :2], poses[:, :2], atol=1e-5, rtol=0)
    torch.testing.assert_close(found[:, 3].sin(), poses[:, 2].sin(), atol=1e-5, rtol=0)
    with pytest.raises(DataError, match="record the field pose"):
        reckon_poses(actions, "LabMaze", ("stay", "jump"))


def test_pairs_walk_and_meet_no_wall(tmp_path: Path) -> None:
    blocked = np.zeros(40, bool)
    blocked[10] = True
    write_walks(tmp_path, "train", drop=("pose", "depth"), blocked=blocked)
    data = DepthData.load(open_shards(tmp_path), 41, 0.3)
    assert data.depths is None and len(data.frames) == 41
    assert bool(((data.centers + data.reaches <= 10) | (data.centers - data.reaches >= 11)).all())
    assert int(data.reaches.min()) == 3  # two steps are .24
    with pytest.raises(DataError, match="no field depth"):
        data.sample_labeled(1, torch.Generator())
    write_walks(tmp_path / "more", "train", drop=("depth",), blocked=blocked)
    recorded = DepthData.load(open_shards(tmp_path / "more"), 41, 0.3)
    assert len(recorded.centers) > len(data.centers)  # recorded poses know of walls


def test_frames_too_close_together_are_refused(tmp_path: Path) -> None:
    write_walks(tmp_path, "train", drop=("depth",))
    with pytest.raises(DataError, match="--min-walk"):
        DepthData.load(open_shards(tmp_path), 100, 5.0)


NAN_POSE = np.full((41, 3), np.nan, np.float32)
NAN_DEPTH = np.full((41, 16, 16), np.nan, np.float16)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"pose": NAN_POSE}, "pose must be finite"),
        ({"pose": np.zeros((41, 4), np.float32)}, "4 columns"),
        ({"depth": NAN_DEPTH}, "not NaN"),
        ({"depth": np.zeros((41, 16, 16), np.float16)}, "above 0"),
    ],
)
def test_bad_poses_and_depths_are_refused(tmp_path: Path, change: dict[str, np.ndarray], match: str) -> None:
    write_walks(tmp_path, "train", **change)
    with pytest.raises(DataError, match=match) as caught:
        train_depth(options(tmp_path, tmp_path / "out"), CPU)
    assert "episode_00000" in str(caught.value)


def test_a_recording_without_poses_and_motions_is_refused(tmp_path: Path) -> None:
    write_walks(tmp_path, "train", drop=("pose",), action_names=tuple("abcdefg"))
    with pytest.raises(DataError, match="record the field pose"):
        train_depth(options(tmp_path, tmp_path / "out"), CPU)


def test_depth_that_is_asked_for_and_absent_is_an_error(tmp_path: Path) -> None:
    write_walks(tmp_path, "train", drop=("depth",))
    with pytest.raises(DataError, match="--depth"):
        train_depth(options(tmp_path, tmp_path / "out", supervision="depth"), CPU)


def test_a_world_whose_camera_is_unknown_needs_an_angle(tmp_path: Path) -> None:
    from train.depth import find_view_deg

    shard = open_shards(write_walks(tmp_path, "train"))[0]
    assert find_view_deg(options(tmp_path, tmp_path), shard) == 70.0
    other = type(shard)(**{**vars(shard), "world": "Elsewhere"})
    with pytest.raises(ConfigError, match="--view-deg"):
        find_view_deg(options(tmp_path, tmp_path), other)
    assert find_view_deg(options(tmp_path, tmp_path, view_deg=60.0), other) == 60.0


def test_labels_lower_the_error(tmp_path: Path) -> None:
    write_walks(tmp_path / "data", "train")
    write_walks(tmp_path / "data", "test")
    errors = []
    for steps in (1, 80):
        folder = tmp_path / f"run{steps}"
        summary = train_depth(options(tmp_path / "data", folder, steps=steps, batch_size=16, ema=0.9), CPU)
        assert summary["supervision"] == "depth"
        errors.append(summary["test_log_error_median"])
    assert errors[1] < 0.5 * errors[0]
    report = json.loads((folder / "report.json").read_text())
    assert report["summary"]["test_log_error_median"] == errors[1] and report["summary"]["frame_ms"] > 0
    assert "median error" in (folder / "report.md").read_text() and (folder / "depth.png").is_file()
    assert load_depth(folder).config.image_size == 32


@pytest.mark.parametrize("drop", [("depth",), ("depth", "pose")])
def test_training_without_labels(tmp_path: Path, drop: tuple[str, ...]) -> None:
    write_walks(tmp_path / "data", "train", drop=drop)
    summary = train_depth(options(tmp_path / "data", tmp_path / "run", steps=4), CPU)
    assert summary["supervision"] == "photometric" and math.isfinite(summary["test_photometric"])
    assert "test_log_error_median" not in summary
    with pytest.raises(WorldModelError, match="--resume"):
        train_depth(options(tmp_path / "data", tmp_path / "run", steps=4), CPU)


def test_photometric_training_is_measured_on_recorded_depth(tmp_path: Path) -> None:
    write_walks(tmp_path / "data", "train", drop=("pose",))
    summary = train_depth(options(tmp_path / "data", tmp_path / "run", supervision="photometric"), CPU)
    assert summary["supervision"] == "photometric" and summary["test_log_error_median"] > 0
    assert 0 <= summary["test_sky_found"] <= 1


def test_depth_in_full_size_is_halved(tmp_path: Path) -> None:
    _, poses = walk(40, 0)
    full = see(poses, 32)[1].to(torch.float16).numpy()
    write_walks(tmp_path, "train", depth=full)
    data = DepthData.load(open_shards(tmp_path), 41, 0.15)
    assert data.depths is not None and data.depths.shape == (41, 16, 16)
    wanted = see(poses, 16)[1]
    assert float((data.depths.float().log() - wanted.log()).abs().median()) < 0.01


def test_depth_of_another_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match="depth must be 32 x 32 or 16 x 16"):
        write_walks(tmp_path, "train", depth=np.ones((41, 8, 8), np.float16))
    import h5py

    write_walks(tmp_path, "train")
    with h5py.File(tmp_path / "train-00000.h5", "r+") as file:
        del file["episode_00000/depth"]
        file["episode_00000/depth"] = np.ones((41, 8, 8), np.float16)
    with pytest.warns(UserWarning, match="depth must be"), pytest.raises(DataError):
        open_shards(tmp_path)


def test_a_world_that_cannot_tell_depth_is_not_recorded_with_it() -> None:
    import gymnasium

    class Blind(LabMaze):
        name = "Blind"
        fields = {"pose": POSE}

    with pytest.raises(ConfigError, match="Blind cannot tell depth: record without --depth"):
        record_episode(Blind(), gymnasium.Env(), (0, 0, 0), lambda count: None, with_depth=True)


def test_the_bundle_of_a_codec_takes_a_depth_network(net: DepthNet, tmp_path: Path, make_codec: Any) -> None:
    from worldmodel.checkpoint import load_codec, save_bundle

    codec: Codec = make_codec()
    save_bundle(tmp_path, codec=codec)
    save_depth(tmp_path, net)
    assert load_codec(tmp_path).config == codec.config and load_depth(tmp_path).config == CONFIG


def test_a_torn_picture_is_made_of_pixels_close_by() -> None:
    size = 32
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    places = torch.stack([rows, columns, rows * 0]).float()[None].repeat(8, 1, 1, 1)
    torn = tear(places, torch.Generator().manual_seed(0))
    off = (torn - places)[:, :2]
    assert float(off.abs().max()) < 6 and float((off != 0).float().mean()) > 0.4
    assert torch.equal(torn, torn.round()), "taken whole"
    assert float(off.mean((0, 2, 3)).abs().max()) < 0.15, "to all sides alike"
