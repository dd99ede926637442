"""Tests of memory in the layouts of MIND and Memory Maze: read as published, and there and back."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envs.actions import ActionSet
from envs.data.episodes import read_episode
from envs.data.formats import memory_maze, mind
from envs.data.formats.clip import find_actions
from envs.data.sessions import read_session, read_sessions
from envs.data.video import VideoWriter
from envs.worlds.registry import get_world
from tests.memory_sessions import SIZE, TURN_LEFT, see_room, spin_poses, write_session, write_spins
from train.memory.cases import load_tests
from train.memory.exchange import ExportOptions, ImportOptions, export_tests, import_tests
from train.memory.making import MakeOptions, make_tests
from worldmodel.analysis.metrics import psnr
from worldmodel.errors import ConfigError, DataError

ACTIONS = get_world("LabMaze").actions
NOOP, FORWARD, BACK, LEFT, RIGHT, FORWARD_LEFT, FORWARD_RIGHT = range(7)


def write_mind(
    folder: Path, name: str, rows: list[dict[str, Any]], mark: int, size: tuple[int, int] = (64, 64)
) -> Path:
    """Write a clip as MIND's README lays it out, in frames of one color each that are square in their middle."""
    place = folder / "1st_data" / "test" / "mem_test" / name
    with VideoWriter(place / "video.mp4", 24) as video:
        for number in range(len(rows)):
            frame = np.zeros((*size, 3), np.uint8)
            side, left = min(size), (size[1] - min(size)) // 2
            frame[:, left : left + side] = 8 * number % 256
            video.add(frame)
    said = {"mark_time": mark, "total_time": len(rows), "caption": "a street", "data": rows}
    (place / "action.json").write_text(json.dumps(said))
    return place


def mind_row(time: int, ws: int = 0, lr: int = 0, x: float = 0.0, yaw: float = 0.0, **more: Any) -> dict[str, Any]:
    place, turned = {"x": x, "y": 2.0, "z": 1.0}, {"x": 0.0, "y": 0.0, "z": yaw}
    return {"time": time, "ws": ws, "ad": 0, "ud": 0, "lr": lr, "actor_pos": place, "actor_rpy": turned} | more


def mind_walk() -> list[dict[str, Any]]:
    """Forward, a look to the left and back, and back to where it began; the last row's keys lead nowhere."""
    keys = [(1, 0)] * 10 + [(0, 1)] * 5 + [(0, 2)] * 5 + [(2, 0)] * 10 + [(1, 1)]
    rows, x, yaw = [], 0.0, 90.0
    for time, (ws, lr) in enumerate(keys):
        rows.append(mind_row(time, ws, lr, x, yaw))
        x += {0: 0.0, 1: 12.0, 2: -12.0}[ws]
        yaw += {0: 0.0, 1: -6.0, 2: 6.0}[lr]  # to the left is less: Unreal's yaw turns right
    return rows


def run_import(source: Path, out: Path, **options: Any) -> dict[str, Any]:
    return import_tests(ImportOptions(source=source, out=out, **{"world": "LabMaze", "image_size": SIZE, **options}))


def test_mind_is_read_as_published(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_mind(tmp_path / "MIND-Data", "data-26", mind_walk(), 15, size=(64, 96))
    found = run_import(tmp_path / "MIND-Data", tmp_path / "tests", format="mind")
    assert found["written"] == 1 and found["left_out"] == {} and found["pairs"] >= 5
    assert "mind cannot hold frames bit for bit" in capsys.readouterr().err

    session = read_session(tmp_path / "tests" / "data-26.h5")
    assert session.info.fps == 24 and session.info.settings == {"imported": "mind", "context": 15}
    arrays = read_episode(session.episodes[0], fields=("frames", "actions", "pose"))
    assert arrays["actions"].tolist() == [FORWARD] * 10 + [LEFT] * 5 + [RIGHT] * 5 + [BACK] * 10
    assert arrays["frames"].shape == (31, SIZE, SIZE, 3)
    for number in (0, 7, 30):
        assert np.abs(arrays["frames"][number].astype(int) - 8 * number).max() <= 6  # compressed, and no black sides
    assert arrays["pose"][0].tolist() == [0, -2, 270]
    assert arrays["pose"][15, 2] == 300  # a turn to the left adds

    (test,) = load_tests(tmp_path / "tests")
    assert test.context == 15 and all(pair.second >= 15 for pair in test.pairs)
    assert (test.pairs[-1].first, test.pairs[-1].second) == (0, 30)
    for pair in test.pairs:
        np.testing.assert_allclose(arrays["pose"][pair.first], arrays["pose"][pair.second], atol=1e-3)


def test_mind_there_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    poses = np.concatenate([spin_poses(0, 61), spin_poses(0, 61)[59::-1]])
    frames, actions = see_room(poses), [LEFT] * 60 + [RIGHT] * 60
    write_session(tmp_path / "ours" / "look.h5", frames, actions, [(40, 80)], kind="player", poses=poses)
    write_spins(tmp_path / "ours", 1, source="dream")
    found = export_tests(ExportOptions(tests=tmp_path / "ours", format="mind", out=tmp_path / "theirs"))
    assert found == {"written": 1, "left_out": {"spin-00000": "it is a dream, and would stand for the truth"}}
    said = capsys.readouterr().err
    assert said.count("mind cannot hold") == 1 and "1 left out, such as spin-00000" in said

    place = tmp_path / "theirs" / "1st_data" / "test" / "mem_test" / "look"
    assert sorted(path.name for path in place.iterdir()) == ["action.json", "video.mp4"]
    said_json = json.loads((place / "action.json").read_text())
    assert said_json["mark_time"] == 41 and said_json["total_time"] == 81 == len(said_json["data"])
    assert {row["lr"] for row in said_json["data"][:60]} == {1} and said_json["data"][80]["lr"] == 0
    assert set(said_json["data"][0]) == {"time", "ws", "ad", "ud", "lr", "actor_pos", "actor_rpy"}

    run_import(tmp_path / "theirs", tmp_path / "again", format="mind")
    (ours,) = [test for test in load_tests(tmp_path / "ours") if test.is_real]
    (again,) = load_tests(tmp_path / "again")
    given, found_again = ours.read(), again.read()
    assert again.context == ours.context and (40, 80) in {(p.first, p.second) for p in again.pairs}
    np.testing.assert_array_equal(found_again.actions, given.actions)
    pose = read_episode(again.session.episodes[0], fields=("pose",))["pose"]
    np.testing.assert_allclose(pose, poses[:81], atol=1e-3)
    import torch

    likeness = psnr(*(torch.from_numpy(part.frames.copy()) for part in (found_again, given)))
    assert float(likeness.min()) > 30


def test_memory_maze_is_read_as_published(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steps = [1, 1, 2, 3, 4, 5, 0] * 8
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (len(steps) + 1, SIZE, SIZE, 3), np.uint8)
    hot = np.zeros((len(steps) + 1, 6))
    hot[np.arange(1, len(steps) + 1), steps] = 1
    layout = np.zeros((9, 9), np.uint8)
    layout[0, :] = 1  # floor along the lower edge
    reward = np.zeros(len(steps) + 1)
    reward[4] = 1.0
    arrays = {"image": frames, "action": hot, "reward": reward, "maze_layout": np.repeat(layout[None], len(frames), 0)}
    there = np.concatenate([np.linspace(0.5, 4.5, 29), np.linspace(4.5, 0.5, 28)])
    arrays["agent_pos"] = np.stack([there, np.full(57, 0.5)], 1)
    arrays["agent_dir"] = np.repeat([[0.0, 1.0]], 57, 0)
    np.savez_compressed(tmp_path / "20220101T000000-r1-0056.npz", **arrays)

    found = run_import(tmp_path, tmp_path / "tests", format="memory_maze")
    assert found["written"] == 1 and found["pairs"] > 5
    assert capsys.readouterr().err.count("memory_maze cannot hold marks and revisits") == 1
    (session,) = read_sessions(tmp_path / "tests")
    kept = read_episode(session.episodes[0], fields=("frames", "actions", "rewards", "pose", "layout", "terminated"))
    np.testing.assert_array_equal(kept["frames"], frames)
    assert kept["actions"][:7].tolist() == [FORWARD, FORWARD, LEFT, RIGHT, FORWARD_LEFT, FORWARD_RIGHT, NOOP]
    assert np.flatnonzero(kept["rewards"]).tolist() == [3] and not kept["terminated"].any()
    np.testing.assert_allclose(kept["pose"][0], [1.5, 1.5, 90])
    assert kept["layout"].shape == (11, 11) and kept["layout"][9, 1:10].tolist() == [0] * 9
    assert kept["layout"].sum() == 121 - 9


def test_memory_maze_there_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "ours"
    make_tests(MakeOptions(out=out, world="tests.stub_maze:Stub", kinds=("aba", "mirror"), count=1, image_size=16))
    found = export_tests(ExportOptions(tests=out, format="memory_maze", out=tmp_path / "theirs"))
    assert found["written"] == 1
    assert "walks back, and no action of Memory Maze does" in found["left_out"]["mirror-00000"]
    with np.load(tmp_path / "theirs" / "aba-00000.npz", allow_pickle=False) as file:
        kept = {name: file[name] for name in file.files}
    num_frames = len(kept["image"])
    assert kept["action"].shape == (num_frames, 6) and kept["action"][0].sum() == 0
    assert (kept["action"][1:].sum(1) == 1).all() and kept["maze_layout"].shape == (num_frames, 7, 7)
    assert kept["reset"][0] and not kept["reset"][1:].any()

    world = {"world": "tests.stub_maze:Stub", "image_size": 16, "tolerance": 0.1}
    run_import(tmp_path / "theirs", tmp_path / "again", format="memory_maze", **world)
    ours, again = (read_session(folder / "aba-00000.h5") for folder in (out, tmp_path / "again"))
    for name in ("frames", "actions", "rewards", "terminated", "layout"):
        before, after = (read_episode(session.episodes[0], fields=(name,))[name] for session in (ours, again))
        np.testing.assert_array_equal(before, after)
    before, after = (read_episode(session.episodes[0], fields=("pose",))["pose"] for session in (ours, again))
    np.testing.assert_allclose(np.cos(np.radians(before[:, 2] - after[:, 2])), 1, atol=1e-6)
    np.testing.assert_allclose(before[:, :2], after[:, :2], atol=1e-5)
    assert {r.kind for r in again.revisits} == {"memory_maze"}
    assert again.revisits[-1].second.frame == ours.revisits[-1].second.frame


def test_what_cannot_be_read_is_left_out_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "MIND-Data"
    write_mind(data, "data-1", mind_walk(), 15)
    write_mind(data, "data-2", [mind_row(0), mind_row(1, ad=1), mind_row(2)], 1)
    write_mind(data, "data-3", [mind_row(0, ws=2, lr=1), mind_row(1), mind_row(2)], 1)
    write_mind(data, "data-4", [mind_row(0, ws=3), mind_row(1), mind_row(2)], 1)
    write_mind(data, "data-5", mind_walk(), 99)
    (write_mind(data, "data-6", mind_walk(), 15) / "action.json").write_text('{"mark_time": 3')
    (write_mind(data, "data-7", mind_walk(), 15) / "video.mp4").write_bytes(b"rubbish")
    found = run_import(data, tmp_path / "tests", format="mind")
    assert found["written"] == 1 and sorted(found["left_out"]) == [f"data-{number}" for number in range(2, 8)]
    for name, message in {
        "data-2": "step 1 goes sideways or looks up or down, and no action of LabMaze does",
        "data-3": "step 0 turns left and walks back, and no action of LabMaze does",
        "data-4": "ws, ad, ud and lr must be 0, 1 or 2; got [0, 3]",
        "data-5": "action.json has 31 frames and mark_time 99, video.mp4 has 31 frames",
        "data-6": "action.json is damaged, or no action.json of MIND",
        "data-7": "video.mp4 is missing or damaged",
    }.items():
        assert message in found["left_out"][name], name
    assert "6 left out, such as data-2" in capsys.readouterr().err

    with pytest.raises(DataError, match="holds sessions already: choose another --out"):
        run_import(data, tmp_path / "tests", format="mind")
    with pytest.raises(DataError, match="holds no clip of MIND: expected 1st_data/test/mem_test/NAME"):
        run_import(tmp_path / "none", tmp_path / "more", format="mind")
    with pytest.raises(DataError, match="holds no episode of Memory Maze"):
        run_import(data, tmp_path / "more", format="memory_maze")
    (tmp_path / "maze").mkdir()
    (tmp_path / "maze" / "a.npz").write_bytes(b"rubbish")
    with pytest.raises(DataError, match="nothing can be read as memory_maze: .*a.npz is damaged"):
        run_import(tmp_path / "maze", tmp_path / "more", format="memory_maze")
    image = np.zeros((3, 16, 16, 3), np.uint8)
    np.savez(tmp_path / "maze" / "a.npz", image=image, action=np.eye(3), reward=np.zeros(3))
    with pytest.raises(
        DataError, match=r"image is uint8 \(3, 16, 16, 3\); expected uint8 \(T, 32, 32, 3\): give its size"
    ):
        run_import(tmp_path / "maze", tmp_path / "more", format="memory_maze")
    with pytest.raises(DataError, match=r"action must be one-hot \(3, 6\); got \(3, 3\)"):
        run_import(tmp_path / "maze", tmp_path / "more", format="memory_maze", image_size=16)
    with pytest.raises(ConfigError, match="unknown world 'Atlantis'"):
        run_import(data, tmp_path / "more", format="mind", world="Atlantis")
    with pytest.raises(ConfigError, match="tolerance above 0"):
        run_import(data, tmp_path / "more", format="mind", tolerance=0)


def test_what_nothing_can_hold_is_one_error(tmp_path: Path) -> None:
    frames = see_room(spin_poses(0, 41))
    write_session(tmp_path / "a.h5", frames, [BACK] * 40, [(5, 40)])
    with pytest.raises(DataError, match="no test can be written as memory_maze: a: step 0 walks back"):
        export_tests(ExportOptions(tests=tmp_path, format="memory_maze", out=tmp_path / "out"))
    mute = ActionSet("Mute", ("stay", "go"), (), ((), ()))
    with pytest.raises(DataError, match=r"Mute declares no displacements \(ActionSet\): its actions cannot be told"):
        find_actions([(0, 0)], mute, "a")


def test_clips_without_poses_are_written_without(tmp_path: Path) -> None:
    write_session(tmp_path / "a.h5", see_room(spin_poses(0, 41)), [TURN_LEFT] * 40, [(5, 40)])
    export_tests(ExportOptions(tests=tmp_path, format="mind", out=tmp_path / "mind"))
    (place,) = mind.find_clips(tmp_path / "mind")
    clip = mind.read_clip(place, ACTIONS, SIZE)
    assert clip.poses is None and clip.context == 32
    export_tests(ExportOptions(tests=tmp_path / "a.h5", format="memory_maze", out=tmp_path / "maze"))
    (file,) = memory_maze.find_clips(tmp_path / "maze")
    assert memory_maze.read_clip(file, ACTIONS, SIZE).poses is None
    found = run_import(tmp_path / "maze", tmp_path / "again", format="memory_maze")
    assert found["pairs"] == 0 and found["without_pairs"] == ["a"]
