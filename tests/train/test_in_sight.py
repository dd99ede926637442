"""Pixels in sight: a turn in place, a wall in between, and what copies, noise and the oracle score there."""

import functools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from envs.data.episodes import EpisodeInfo, ShardWriter, read_episode
from envs.worlds.labmaze.constants import ACTIONS as LABMAZE_ACTIONS
from envs.worlds.labmaze.constants import VIEW_DEG
from envs.worlds.labmaze.env import LabMazeEnv
from envs.worlds.labmaze.revisit import RealMaze, find_reached
from envs.worlds.labmaze.scene import SKY_DEPTH
from envs.worlds.labmaze.spec import LabMaze
from envs.worlds.registry import try_revisit
from tests.painted_maze import episodes_of
from train.data.rollouts import Piece
from train.measures import in_sight
from train.measures.in_sight import compare_in_sight, find_sources_of_piece, summarize_in_sight
from worldmodel.errors import DataError

SIZE = 64
NOOP, FORWARD, BACK, LEFT, RIGHT = range(5)
find_sources = functools.partial(in_sight.find_sources, view_deg=VIEW_DEG, sky_depth=SKY_DEPTH)
SETTINGS: dict[str, Any] = {"size": 9, "image_size": SIZE, "palette": "classic", "max_episode_steps": 400}


def record_real(folder: Path, walks: list[list[int]], drop: tuple[str, ...] = (), **changes: Any) -> list[EpisodeInfo]:
    """Record walks in real mazes, each in one of its own; `changes` go into the shard's header."""
    folder.mkdir(parents=True, exist_ok=True)
    env = LabMazeEnv(**SETTINGS)
    header: dict[str, Any] = {"world": "LabMaze", "settings": SETTINGS} | changes

    with ShardWriter(
        folder / "test-00000.h5",
        action_names=LABMAZE_ACTIONS.names,
        image_size=SIZE,
        fields=LabMaze.fields,
        split="test",
        **header,
    ) as shard:
        for seed, actions in enumerate(walks):
            frame, info = env.reset(seed=seed, options={"scene_seed": 16 * seed})
            arrays = {name: info[name] for name in ("layout", "wall_textures", "floor_textures", "targets")}
            frames, poses, rewards = [frame], [info["pose"]], []

            for action in actions:
                frame, reward, _, _, info = env.step(action)
                frames.append(frame)
                poses.append(info["pose"])
                rewards.append(reward)

            ends = np.zeros(len(actions), bool)
            arrays |= {"frames": np.stack(frames), "pose": np.stack(poses).astype(np.float32)}
            arrays |= {"actions": np.array(actions, np.uint8), "rewards": np.array(rewards, np.float32)}
            arrays |= {"terminated": ends, "truncated": ends, "blocked": ends}
            kept = {name: values for name, values in arrays.items() if name not in drop}
            shard.write(kept, seed=seed, scene_seed=16 * seed, policy="test")
    env.close()
    return episodes_of(folder)


def flat_wall(distance: float) -> np.ndarray:
    return np.full((SIZE, SIZE), distance)


def share(sources: np.ndarray) -> float:
    return float((sources >= 0).mean())


def test_the_same_frame_is_wholly_in_sight_and_each_pixel_comes_from_itself() -> None:
    depth, pose = flat_wall(2.0), np.array([4.0, 4.0, 30.0])
    found = find_sources(depth, pose, depth[None], pose[None])
    assert np.array_equal(found.ravel(), np.arange(SIZE * SIZE))
    newest = find_sources(depth, pose, np.stack([depth] * 3), np.stack([pose] * 3))
    assert np.array_equal(newest.ravel(), 2 * SIZE * SIZE + np.arange(SIZE * SIZE))


@pytest.mark.parametrize("angle", [0.0, 12.0, 30.0, 60.0, -60.0, 72.0, 180.0])
def test_a_turn_in_place_keeps_the_share_that_geometry_says(angle: float) -> None:
    """The middle row of the sky: a column that looks at slope s was in sight where its angle was within the view."""
    sky = flat_wall(200.0)
    found = find_sources(sky, np.array([4.0, 4.0, angle]), sky[None], np.array([[4.0, 4.0, 0.0]]))
    slopes = math.tan(math.radians(35)) * (1 - (2 * np.arange(SIZE) + 1) / SIZE)
    wanted = np.abs(np.degrees(np.arctan(slopes)) + angle) < 35
    assert abs(int((found[SIZE // 2] >= 0).sum()) - int(wanted.sum())) <= 1
    assert share(found) == 0 if abs(angle) > 70 else share(found) > 0


def test_the_sky_stays_where_it_is_when_one_walks() -> None:
    sky, pose = flat_wall(200.0), np.array([2.0, 4.0, 0.0])
    found = find_sources(sky, pose + np.array([3.0, 0.0, 0.0]), sky[None], pose[None])
    assert np.array_equal(found.ravel(), np.arange(SIZE * SIZE))
    assert share(find_sources(sky, pose, flat_wall(5.0)[None], pose[None])) == 0  # a wall was before it


def test_what_a_wall_hid_was_not_in_sight() -> None:
    """A step back from a near wall shows it; what is far behind where it stood is another thing."""
    pose = np.array([2.0, 4.0, 0.0])
    far, near = flat_wall(4.0), flat_wall(1.0)
    assert share(find_sources(far, pose, near[None], pose[None])) == 0
    half = near.copy()
    half[:, SIZE // 2 :] = 4.0
    found = find_sources(far, pose, half[None], pose[None])
    assert 0.49 < share(found) < 0.53 and (found[:, : SIZE // 2 - 1] == -1).all()
    assert (
        share(find_sources(far, pose, np.stack([far, near]), np.stack([pose, pose]))) == 1
    )  # an older frame showed it


def test_a_step_ahead_sees_the_middle_of_what_was_seen() -> None:
    pose, ahead = np.array([2.0, 4.0, 90.0]), np.array([2.0, 5.0, 90.0])
    assert share(find_sources(flat_wall(1.0), ahead, flat_wall(2.0)[None], pose[None])) == 1
    back = find_sources(flat_wall(2.0), pose, flat_wall(1.0)[None], ahead[None])
    assert share(back) == pytest.approx(0.25, abs=0.02)


def test_in_a_real_maze_the_oracle_is_like_the_truth_where_it_was_in_sight(tmp_path: Path) -> None:
    episodes = record_real(tmp_path, [[LEFT] * 5 + [RIGHT] * 5 + [LEFT] * 30, [FORWARD] * 6 + [BACK] * 6 + [LEFT] * 28])
    horizons, known = [1, 6, 12], 12
    parts: dict[str, list[torch.Tensor]] = {}
    with RealMaze(episodes[0]) as maze:
        for episode in episodes:
            piece = Piece(episode, 0, known + 12)
            sources = torch.from_numpy(find_sources_of_piece(maze, piece, known, horizons))[None]
            frames = torch.from_numpy(maze.play(episode, 0, _actions(episode)))[None]
            recorded = torch.from_numpy(_frames(episode))[None]
            assert torch.equal(frames, recorded[:, 1:])  # the maze made again is the recorded one

            truth = recorded[:, [known + h - 1 for h in horizons]]
            copy = recorded[:, known - 1 : known].expand_as(truth)
            noise = torch.randint(256, truth.shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8)
            named = {"dream": noise, "copy": copy, "codec": truth}
            for name, values in compare_in_sight(sources, recorded[:, :known], truth, named).items():
                parts.setdefault(name, []).append(values)

    found = {name: torch.cat(values) for name, values in parts.items()}
    report = summarize_in_sight(found, np.arange(2), horizons, SIZE * SIZE, 0)
    assert report["share"]["at"]["1"] > 0.9 > 0.6 > report["share"]["at"]["12"]
    assert report["codec"]["at"]["12"] == 50  # the truth itself
    for horizon in map(str, horizons):
        assert report["oracle"]["at"][horizon] > report["copy"]["at"][horizon] + 5
        assert report["dream"]["at"][horizon] < 10  # noise
        low, high = report["oracle"]["interval"][horizon]
        assert low <= report["oracle"]["at"][horizon] <= high


def test_targets_are_gone_from_the_frame_on_that_takes_them() -> None:
    pose = np.array([[1.0, 1.0, 0.0], [1.3, 1.0, 0.0], [3.0, 1.0, 0.0], [5.0, 1.0, 0.0]])
    targets = np.array([[1.4, 1.0], [5.0, 1.2], [9.0, 9.0]])
    wanted = [[False, False, False], [True, False, False], [True, False, False], [True, True, False]]
    assert find_reached(pose, targets).tolist() == wanted  # the first frame stands near one, and takes none


def test_a_recording_that_cannot_be_made_again_says_why(tmp_path: Path) -> None:
    for name, changes, reason in (
        ("blind", {"drop": ("pose",)}, "without pose"),
        ("unknown", {"world": "Nowhere"}, "a world that is not known here: unknown world 'Nowhere'"),
        ("other", {"settings": SETTINGS | {"max_rooms": 1}}, "another maze"),
        ("wrong", {"settings": SETTINGS | {"size": 8}}, "odd number"),
    ):
        episodes = record_real(tmp_path / name, [[LEFT] * 4], **changes)
        maze, why = try_revisit(episodes[0])
        assert maze is None and why is not None and reason in why
    with pytest.raises(DataError, match="without targets"):
        RealMaze(record_real(tmp_path / "bare", [[LEFT] * 4], drop=("targets",))[0])


def _actions(episode: EpisodeInfo) -> np.ndarray:
    return read_episode(episode, fields=("actions",))["actions"]


def _frames(episode: EpisodeInfo) -> np.ndarray:
    return read_episode(episode, fields=("frames",))["frames"]
