"""Spheres: found by pose and depth, told by color, walked to by a script; and what dreams without them score."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from envs.data.episodes import EpisodeInfo, read_episode
from envs.worlds.labmaze.constants import ACTIONS as LABMAZE_ACTIONS
from envs.worlds.labmaze.revisit import RealMaze
from envs.worlds.labmaze.targets import (
    FORWARD,
    LEFT,
    RIGHT,
    Disc,
    TargetWalker,
    disc_mask,
    find_bin,
    find_in_view,
    project,
    shows_target,
)
from envs.worlds.registry import get_world
from tests.painted_maze import episodes_of
from tests.train.test_in_sight import SETTINGS, SIZE, record_real
from train.data.recording import RecordOptions
from train.measures.base import Bench
from train.measures.targets import TargetsOptions, measure_targets, summarize_verdicts
from worldmodel.errors import ConfigError, DataError
from worldmodel.state import Step
from worldmodel.world import WorldModel

PINK = np.array([255.0, 0.0, 200.0])


class RealStandIn:
    """Has the face of a `WorldModel` and dreams the real maze itself, or fails it in a known way."""

    def __init__(self, episodes: list[EpisodeInfo], way: str = "real") -> None:
        self.way, self.num_actions = way, LABMAZE_ACTIONS.num_actions
        self.codec = SimpleNamespace(config=SimpleNamespace(image_size=SIZE))
        self.config = SimpleNamespace(num_steps=1)
        self.mazes = [RealMaze(episodes[0]) for _ in range(3)]
        self.places = {}
        for episode in episodes:
            for number, frame in enumerate(read_episode(episode, fields=("frames",))["frames"]):
                self.places[frame.tobytes()] = (episode, number)

    def reset(self, frames: torch.Tensor, actions: torch.Tensor, seeds: list[int]) -> list[np.ndarray]:
        for maze, frame in zip(self.mazes, frames[:, -1].numpy(), strict=False):
            episode, number = self.places[frame.tobytes()]
            maze.put(episode, number)
            if self.way == "without":
                maze.env.set_targets_reached(np.ones(len(maze.targets), bool))
        return list(frames[:, -1].numpy())

    def step(self, state: list[np.ndarray], actions: torch.Tensor) -> Step:
        frames, rewards = [], []
        for number, (maze, action) in enumerate(zip(self.mazes, actions.tolist(), strict=False)):
            frame, reward, *_ = maze.env.step(action)
            if self.way == "ghosts" and reward > 0:  # what is taken stays, and is taken again
                maze.env.set_targets_reached(np.zeros(len(maze.targets), bool))
                frame = maze.env.render()
            if self.way == "generous":
                reward = float(number == 0)
            if self.way == "noise":
                frame, reward = np.random.default_rng(number).integers(0, 256, frame.shape).astype(np.uint8), 0
            if self.way == "frozen":
                frame, reward = state[number], 0
            frames.append(torch.from_numpy(frame))
            rewards.append(float(reward))
        nothing = torch.zeros(len(rewards))
        return Step(torch.stack(frames), torch.tensor(rewards), nothing.bool(), nothing, nothing)

    def close(self) -> None:
        for maze in self.mazes:
            maze.close()


@pytest.fixture(scope="module")
def episodes(tmp_path_factory: pytest.TempPathFactory) -> list[EpisodeInfo]:
    """Turns in place in real mazes: every sphere in sight of the start comes into view, and goes."""
    return record_real(tmp_path_factory.mktemp("spheres"), [[LEFT] * 75 for _ in range(5)])


def bench(model: Any, episodes: list[EpisodeInfo], folder: Path) -> Bench:
    return Bench(model, get_world("LabMaze"), episodes, folder, folder, batch_size=3)


def measure(episodes: list[EpisodeInfo], way: str, tmp_path: Path, **changes: Any) -> dict[str, Any]:
    model: Any = RealStandIn(episodes, way)
    options = TargetsOptions(**({"cases": 6, "context": 4, "later": 3} | changes))
    try:
        found, _ = measure_targets(bench(model, episodes, tmp_path), options)
        return dict(found["targets"]["all"])
    finally:
        model.close()


def paint(disc: Disc, color: np.ndarray = PINK, back: int = 90) -> np.ndarray:
    frame = np.full((SIZE, SIZE, 3), back, np.uint8)
    frame[disc_mask(disc, SIZE)] = color
    return frame


def test_a_sphere_is_projected_to_where_the_renderer_draws_it(episodes: list[EpisodeInfo]) -> None:
    """Drawn less hidden is the sphere's own pixels: their middle and their number are the disc's."""
    seen = 0
    with RealMaze(episodes[0]) as maze:
        for episode in episodes:
            pose, reached = maze.open(episode)
            for frame in range(0, 60, 3):
                for target in range(len(maze.targets)):
                    disc = find_in_view(maze, episode, frame, target, SIZE)
                    if disc is None or disc.radius < 2:
                        continue
                    shown = reached[frame].copy()
                    maze.env.set_targets_reached(shown)
                    with_it = maze.env.render_pose(*map(float, pose[frame]))
                    shown[target] = True
                    maze.env.set_targets_reached(shown)
                    without = maze.env.render_pose(*map(float, pose[frame]))
                    rows, columns = np.nonzero((with_it != without).any(-1))
                    assert abs(columns.mean() - disc.column) < 1.5 and abs(rows.mean() - disc.row) < 1.5
                    seen += 1
    assert seen >= 3
    assert project(np.array([0.0, 0.0, 0.0]), np.array([-2.0, 0.0]), SIZE) is None  # behind


def test_sizes_fall_into_bins_scaled_to_64_pixels() -> None:
    assert [find_bin(Disc(0, 0, radius, 1.0), 64) for radius in (1.0, 2.0, 4.0, 7.9, 8.0, 30.0)] == [
        None,
        0,
        1,
        1,
        2,
        None,
    ]
    assert find_bin(Disc(0, 0, 8.0, 1.0), 128) == 1


@pytest.mark.parametrize("radius", [1.5, 4.0, 9.0])
def test_the_detector_wants_the_color_at_the_place_and_not_all_over(radius: float) -> None:
    disc = Disc(30.0, 34.0, radius, 2.0)
    assert shows_target(paint(disc), disc, PINK)
    assert shows_target(paint(Disc(31.5, 33.0, radius, 2.0)), disc, PINK)  # a little off
    assert not shows_target(paint(Disc(52.0, 34.0, radius, 2.0)), disc, PINK)  # elsewhere
    assert not shows_target(paint(disc, np.array([20.0, 160.0, 40.0])), disc, PINK)  # of another color
    assert not shows_target(np.broadcast_to(PINK.astype(np.uint8), (SIZE, SIZE, 3)).copy(), disc, PINK)  # all over
    noise = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3)).astype(np.uint8)
    assert not shows_target(noise, disc, PINK)


def test_the_walker_turns_to_the_color_and_walks() -> None:
    def act(column: float) -> str:
        disc = Disc(column, 36.0, 3.0, 2.0)
        return LABMAZE_ACTIONS.names[TargetWalker(PINK, column, 36.0).act(paint(disc))]

    assert [act(column) for column in (5.0, 26.0, 31.5, 37.0, 60.0)] == [
        "turn_left",
        "forward_left",
        "forward",
        "forward_right",
        "turn_right",
    ]
    lost = TargetWalker(PINK, 5.0, 36.0)
    grey = np.full((SIZE, SIZE, 3), 90, np.uint8)
    assert [lost.act(grey) for _ in range(9)][-1] == LEFT
    assert TargetWalker(PINK, 60.0, 36.0).act(grey) == RIGHT and TargetWalker(PINK, 31.0, 36.0).act(grey) == FORWARD


@pytest.mark.slow
def test_a_perfect_dream_keeps_spheres_and_pays_and_others_do_not(episodes: list[EpisodeInfo], tmp_path: Path) -> None:
    real = measure(episodes, "real", tmp_path)
    count = real["seen_real"]["of"]
    assert count >= 3
    for name in ("seen_real", "seen_dream", "collected_real"):
        assert real[name]["count"] == count, name
    assert real["collected_dream"] == real["collected_real"]
    assert real["seen_removed"]["count"] == 0 and real["paid_standing"]["count"] == 0
    for way in ("without", "noise", "frozen"):
        found = measure(episodes, way, tmp_path)
        assert found["collected_dream"]["count"] == 0 and found["collected_real"]["count"] == count, way
        assert found["seen_dream"]["count"] == 0, way  # frozen: three turns move a sphere by 16 pixels and more


def test_shares_have_wilson_intervals_and_dreams_are_held_to_what_the_real_maze_pays() -> None:
    names = ("seen_real", "seen_removed", "seen_dream", "collected_real", "collected_dream", "paid_standing")
    values = dict.fromkeys(names, np.zeros(4, bool))
    values["collected_real"], values["collected_dream"] = np.array([1, 1, 1, 0], bool), np.array([1, 0, 0, 1], bool)
    found = summarize_verdicts(values)
    where = found["collected_dream_where_real_is"]
    assert (where["count"], where["of"], where["share"]) == (1, 3, 0.3333)
    assert found["collected_dream"]["interval"] == pytest.approx([0.15, 0.85], abs=0.01)
    nothing = summarize_verdicts({name: np.zeros(0, bool) for name in names})
    assert nothing["seen_dream"] == {"count": 0, "of": 0, "share": None, "interval": [0.0, 1.0]}


def test_a_recording_without_poses_is_refused(tmp_path: Path) -> None:
    episodes = record_real(tmp_path, [[LEFT] * 20], drop=("pose",))
    model: Any = SimpleNamespace(codec=SimpleNamespace(config=SimpleNamespace(image_size=SIZE)))
    with pytest.raises(DataError, match="without pose"):
        measure_targets(bench(model, episodes, tmp_path), TargetsOptions())
    with pytest.raises(ConfigError, match="walk_frames"):
        TargetsOptions(walk_frames=0)


@pytest.mark.slow
def test_a_tiny_world_gives_a_whole_report(tmp_path: Path) -> None:
    from train.evaluate import evaluate_world
    from train.measures.drift import DriftOptions
    from train.measures.fidelity import FidelityOptions
    from worldmodel.codec import Codec
    from worldmodel.denoiser import Denoiser
    from worldmodel.presets import get_preset

    record_real(tmp_path / "data", [[LEFT] * 75 for _ in range(3)])
    torch.manual_seed(0)
    preset = get_preset("tiny")
    model = WorldModel(Codec(preset.codec), Denoiser(preset.denoiser), device="cpu", num_steps=1)
    options, out = TargetsOptions(cases=3, context=4, later=3, walk_frames=3), tmp_path / "out"
    report = evaluate_world(model, out, {"targets": options}, data=tmp_path / "data")
    assert json.loads((out / "report.json").read_text()) == report
    assert report["measures"]["targets"]["targets"]["all"]["seen_dream"]["count"] == 0  # untrained
    assert (out / "targets" / "targets.png").is_file()
    assert "| seen later, true frame (control) |" in (out / "report.md").read_text()
    # The same recording through the evaluation: pixels in sight, and real play under the dreams' own random actions.
    measures = {
        "fidelity": FidelityOptions(cases=2, context=8, horizon=8),
        "drift": DriftOptions(dreams=2, frames=60, context=8, actions="random"),
    }
    found = evaluate_world(model, tmp_path / "evaluated", measures, data=tmp_path / "data")["measures"]
    in_sight, drift = found["fidelity"]["in_sight"], found["drift"]
    assert in_sight["oracle"]["at"]["1"] > 20 > in_sight["dream"]["at"]["1"]
    assert drift["sharpness"]["reference"] == "the real scene under the same actions"
    assert drift["sharpness"]["controls"]["noise"]["ratio"] > 2 and drift["segments"][0]["psnr"] < 25
    text = (tmp_path / "evaluated" / "report.md").read_text()
    assert "| oracle PSNR, dB |" in text and "| control: noise |" in text


def test_what_a_shard_keeps_of_its_world_makes_that_world_again(episodes: list[EpisodeInfo], tmp_path: Path) -> None:
    """`train.record` writes the settings that `RealMaze` reads."""
    from train.record import record

    record(RecordOptions(out=tmp_path, episodes=2, length=12, workers=1, test_fraction=0.5, set=("palette=plain",)))
    (episode,) = [e for e in episodes_of(tmp_path) if e.scene_seed % 16 == 0]
    with RealMaze(episode) as maze:
        arrays = read_episode(episode)
        assert np.array_equal(maze.play(episode, 0, arrays["actions"]), arrays["frames"][1:])
    assert SETTINGS["palette"] != "plain"
