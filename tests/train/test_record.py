"""Recording: the mix of the player, the plan, and that an interrupted recording is whole and goes on."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import stub_maze

from envs.data.episodes import open_shards, read_episode
from envs.worlds.base import TEST_SCENE_DIVISOR
from envs.worlds.labmaze.explorer import Explorer, find_path, turn_between
from train.core.options import parse_options
from train.data.recording import RecordOptions, episode_seeds, plan_shards, world_settings
from train.record import GONE, record
from worldmodel.errors import ConfigError, DataError, SeedError, StateError, StorageError

TINY: dict[str, Any] = {
    "world": "stub_maze:Stub",
    "length": 40,
    "image_size": 16,
    "workers": 1,
    "episodes_per_shard": 3,
}


def tiny(out: Path, **changes: Any) -> RecordOptions:
    return RecordOptions(out=out, **{**TINY, "episodes": 7, **changes})


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# The player ---------------------------------------------------------------------------------------------------


def play(seed: int, num_steps: int = 480) -> dict[str, np.ndarray]:
    env = stub_maze.StubMazeEnv(image_size=1, max_episode_steps=num_steps)
    _, info = env.reset(options={"scene_seed": seed})
    player = Explorer(np.random.default_rng(seed))
    poses, actions, rewards = [info["pose"]], [], []
    is_over = is_terminated = False
    while not is_over:
        actions.append(player.act(info))
        _, reward, is_terminated, is_truncated, info = env.step(actions[-1])
        poses.append(info["pose"])
        rewards.append(reward)
        is_over = is_terminated or is_truncated
    return {
        "pose": np.array(poses),
        "actions": np.array(actions),
        "rewards": np.array(rewards),
        "terminated": np.array(is_terminated),
    }


@pytest.fixture(scope="module")
def played() -> list[dict[str, np.ndarray]]:
    return [play(seed) for seed in range(60)]


def test_shares_of_walking_pausing_and_backing(played: list[dict[str, np.ndarray]]) -> None:
    counts = np.bincount(np.concatenate([episode["actions"] for episode in played]), minlength=7)
    noop, forward, back, left, right, forward_left, forward_right = counts / counts.sum()
    assert 0.50 <= forward + back + forward_left + forward_right <= 0.70
    assert 0.05 <= noop <= 0.10
    assert 0.04 <= back <= 0.10
    assert min(left, right, forward_left, forward_right) >= 0.06


def test_every_action_is_held_short_and_long(played: list[dict[str, np.ndarray]]) -> None:
    holds: dict[int, list[int]] = {action: [] for action in range(7)}
    for episode in played:
        actions = episode["actions"]
        edges = np.flatnonzero(np.r_[True, actions[1:] != actions[:-1], True])
        for start, stop in zip(edges[:-1], edges[1:], strict=True):
            holds[int(actions[start])].append(int(stop - start))
    for action, lengths in holds.items():
        assert min(lengths) == 1 and max(lengths) >= 15, f"action {action}: {min(lengths)} to {max(lengths)}"


def test_views_are_seen_again_after_every_gap(played: list[dict[str, np.ndarray]]) -> None:
    """A return: cell and heading (within 30 degrees) seen before, not in the step before; its gap is the time since."""
    gaps = []
    for episode in played:
        cells, headings = np.floor(episode["pose"][:, :2]), episode["pose"][:, 2]
        turns = np.abs((headings[:, None] - headings[None] + 180.0) % 360.0 - 180.0)
        is_same = (cells[:, None] == cells[None]).all(-1) & (turns <= 30.0)
        for t in range(1, len(cells)):
            seen = np.flatnonzero(is_same[t, :t])
            if len(seen) and seen[-1] != t - 1:
                gaps.append(t - int(seen[-1]))
    num_steps = sum(len(episode["actions"]) for episode in played)
    for low, high in [(5, 10), (10, 20), (20, 40), (40, 80), (80, 150), (150, 301)]:
        rate = 1000 * sum(low <= gap < high for gap in gaps) / num_steps
        assert rate >= 0.5, f"only {rate:.2f} returns per 1000 steps after {low} to {high} steps"


def test_targets_are_taken_and_some_episodes_end(played: list[dict[str, np.ndarray]]) -> None:
    num_steps = sum(len(episode["actions"]) for episode in played)
    assert 120 <= num_steps / sum(episode["rewards"].sum() for episode in played) <= 350
    assert 0.02 <= np.mean([episode["terminated"] for episode in played]) <= 0.25


def test_player_repeats_itself_and_differs_between_seeds() -> None:
    np.testing.assert_array_equal(play(3, 200)["actions"], play(3, 200)["actions"])
    assert (play(3, 200)["actions"] != play(6, 200)["actions"]).any()


def test_player_in_a_single_cell_keeps_acting() -> None:
    info = {"pose": np.array([1.5, 1.5, 0.0], np.float32), "layout": np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]])}
    player = Explorer(np.random.default_rng(0))
    assert len({player.act({**info, "is_blocked": True}) for _ in range(500)}) == 7


def test_player_says_what_it_needs() -> None:
    with pytest.raises(StateError, match="'pose' and 'layout'"):
        Explorer(np.random.default_rng(0)).act({"score": 1})


def test_paths_are_shortest_and_round_what_to_avoid() -> None:
    layout = np.array([[1] * 5, [1, 0, 0, 0, 1], [1, 0, 1, 0, 1], [1, 0, 0, 0, 1], [1] * 5])
    rng = np.random.default_rng(0)
    assert find_path(layout, (1, 1), (1, 3), set(), rng) == [(1, 2), (1, 3)]
    assert len(find_path(layout, (1, 1), (1, 3), {(1, 2)}, rng)) == 6
    assert find_path(layout, (1, 1), (1, 3), {(1, 2), (3, 2)}, rng) == []
    assert turn_between(350.0, 10.0) == 20.0 and turn_between(10.0, 350.0) == -20.0


# The plan -----------------------------------------------------------------------------------------------------


def test_every_episode_is_planned_once_and_splits_share_no_maze() -> None:
    options = RecordOptions(out=Path("x"), episodes=203, test_fraction=0.1)
    jobs = plan_shards(options)
    assert sorted(number for job in jobs for number in job.episodes) == list(range(203))
    assert sum(len(job.episodes) for job in jobs if job.split == "test") == 20
    assert len({job.name for job in jobs}) == len(jobs)
    assert "test" in {job.split for job in jobs[: len(jobs) // 2]}
    seeds = {(job.split, episode_seeds(0, number, job.split)[1]) for job in jobs for number in job.episodes}
    assert len(seeds) == 203
    assert all((scene_seed % TEST_SCENE_DIVISOR == 0) == (split == "test") for split, scene_seed in seeds)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"seed": -1}, SeedError),
        ({"episodes": -1}, ConfigError),
        ({"length": 0}, ConfigError),
        ({"workers": 0}, ConfigError),
        ({"test_fraction": 1.0}, ConfigError),
        ({"view": Path("a.gif")}, ConfigError),
    ],
)
def test_bad_options_are_refused(change: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=str(next(iter(change.values())))):
        RecordOptions(out=Path("x"), **change)


def test_options_from_the_command_line() -> None:
    words = "--world LabMaze --episodes 5 --length 9 --out d --workers 2 --seed 3 --set palette=plain size=7"
    words += " --image-size 32 --test-fraction 0.2 --view a.mp4 --episodes-per-shard 2"
    options = parse_options(RecordOptions, "record", words.split())
    assert (options.out, options.set, options.image_size) == (Path("d"), ("palette=plain", "size=7"), 32)
    settings = {"palette": "plain", "size": 7, "image_size": 32, "max_episode_steps": 9}
    assert world_settings(options) == settings and options.view == Path("a.mp4")
    with pytest.raises(SystemExit):
        parse_options(RecordOptions, "record", ["--out", "d", "--episodes", "many"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("color=red", "'color=red'.*settings of LabMaze .*: size, palette"),
        ("size", "'size' is not accepted"),
        ("size=big", "invalid literal.*'big'"),
    ],
)
def test_settings_that_a_world_does_not_have_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        world_settings(RecordOptions(out=Path("x"), set=(text,)))


def test_options_that_are_gone_say_what_took_their_place() -> None:
    for word in ("--palette", "--size=9", "--num-targets"):
        with pytest.raises(ConfigError, match=f"{word.partition('=')[0]} is gone: give --set .*=VALUE"):
            parse_options(RecordOptions, "record", ["--out", "d", word, "1"], gone=GONE)


def test_unknown_world_lists_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Atlantis.*LabMaze"):
        record(tiny(tmp_path, world="Atlantis"))


# The recording ------------------------------------------------------------------------------------------------


def test_recording_holds_what_was_played(tmp_path: Path) -> None:
    totals = record(tiny(tmp_path))
    assert (totals["episodes"], totals["frames"], totals["test_episodes"]) == (7, 7 * 41, 1)
    description = json.loads((tmp_path / "recording.json").read_text())
    assert description["totals"] == totals and description["is_complete"] and description["options"]["length"] == 40
    assert sorted(contents(tmp_path)) == ["recording.json", "test-00000.h5", "train-00000.h5", "train-00001.h5"]
    (test_shard,) = open_shards(tmp_path, "test")
    info = test_shard.episodes[0]
    found = read_episode(info, fields=info.fields)
    assert found["truncated"].tolist() == [False] * 39 + [True] and not found["terminated"].any()
    # Played again from its seeds and its actions, the world gives the same frames: action t leads to frame t + 1.
    env = stub_maze.StubMazeEnv(image_size=16, max_episode_steps=40)
    frame, world_info = env.reset(seed=info.seed, options={"scene_seed": info.scene_seed})
    np.testing.assert_array_equal(found["layout"], world_info["layout"])
    np.testing.assert_array_equal(found["frames"][0], frame)
    for t, action in enumerate(found["actions"]):
        frame, reward, *_, world_info = env.step(int(action))
        np.testing.assert_array_equal(found["frames"][t + 1], frame)
        np.testing.assert_array_equal(found["pose"][t + 1], world_info["pose"])
        assert (found["rewards"][t], found["blocked"][t]) == (reward, world_info["is_blocked"])


def test_goes_on_where_it_stopped(tmp_path: Path) -> None:
    record(tiny(tmp_path / "whole"))
    record(tiny(tmp_path / "broken"))
    kept = (tmp_path / "broken" / "train-00000.h5").stat().st_mtime_ns
    (tmp_path / "broken" / "train-00001.h5").unlink()
    (tmp_path / "broken" / "test-00000.h5").write_bytes(b"damaged")
    (tmp_path / "broken" / ".train-00001.h5.123.tmp").write_bytes(b"stale")
    with pytest.warns(UserWarning, match=r"recording it again: .*test-00000\.h5"):
        record(tiny(tmp_path / "broken"))
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")
    assert (tmp_path / "broken" / "train-00000.h5").stat().st_mtime_ns == kept


def test_other_options_in_a_used_folder_are_refused(tmp_path: Path) -> None:
    record(tiny(tmp_path, episodes=2))
    before = contents(tmp_path)
    with pytest.raises(DataError, match="seed=0, set=\\[\\]"):
        record(tiny(tmp_path, episodes=2, seed=1, set=("palette=plain",)))
    assert contents(tmp_path) == before
    (tmp_path / "recording.json").write_text("{")
    with pytest.raises(DataError, match="damaged"):
        record(tiny(tmp_path, episodes=2))
    (tmp_path / "recording.json").unlink()
    with pytest.raises(DataError, match=r"no recording\.json"):
        record(tiny(tmp_path, episodes=2))


def test_a_recording_of_before_worlds_had_settings_goes_on(tmp_path: Path) -> None:
    record(tiny(tmp_path, episodes=2))
    description = json.loads((tmp_path / "recording.json").read_text())
    old = {"palette": "classic", "size": 9, "num_targets": None, "max_wall_run": None}
    for changes, is_same in ((old, True), (old | {"palette": "plain"}, False)):
        options = {k: v for k, v in description["options"].items() if k not in ("set", "depth")} | changes
        (tmp_path / "recording.json").write_text(json.dumps({"options": options}))
        if is_same:
            assert record(tiny(tmp_path, episodes=2))["episodes"] == 2
        else:
            with pytest.raises(DataError, match="palette=plain"):
                record(tiny(tmp_path, episodes=2))


def test_disk_full_keeps_whole_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sync = os.fsync
    num_left = 3  # recording.json and two shards fit

    def fill(descriptor: int) -> None:
        nonlocal num_left
        if num_left == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        num_left -= 1
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fill)
    with pytest.raises(StorageError, match="disk full.*run the same command again"):
        record(tiny(tmp_path))
    assert len(open_shards(tmp_path, strict=True)) == 2 and not list(tmp_path.glob(".*"))
    monkeypatch.undo()
    assert record(tiny(tmp_path))["episodes"] == 7


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="choose another --out"):
        record(tiny(tmp_path / "file" / "folder"))


def test_view_of_a_finished_recording(tmp_path: Path) -> None:
    out = tmp_path / "out"
    record(tiny(out))
    before = contents(out)
    record(tiny(out, view=tmp_path / "sheet.png"))
    record(tiny(out, episodes=0, view=tmp_path / "video.mp4"))
    assert contents(out) == before
    sheet = cv2.imread(str(tmp_path / "sheet.png"))
    assert sheet is not None and sheet.shape == (7 * (16 + 14 + 2), 6 * (16 + 2), 3)
    first = read_episode(open_shards(out)[0].episodes[0])["frames"][0]
    np.testing.assert_array_equal(sheet[:16, :16, ::-1], first)
    video = cv2.VideoCapture(str(tmp_path / "video.mp4"))
    assert int(video.get(cv2.CAP_PROP_FRAME_COUNT)) == 41


def start_program(out: Path, num_episodes: int, length: int) -> subprocess.Popen[bytes]:
    root = Path(__file__).parents[2]
    options = {**TINY, "episodes": num_episodes, "length": length, "workers": 2, "out": out}
    words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    return subprocess.Popen(
        [sys.executable, str(root / "tests" / "stub_maze.py"), *words],
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def test_killed_recording_is_whole_and_equals_an_unbroken_one(tmp_path: Path) -> None:
    """Two workers, kill -9 of the parent alone: its workers end by themselves; the same command finishes the work."""
    out = tmp_path / "killed"
    program = start_program(out, 120, 150)
    deadline = time.monotonic() + 25
    while len(list(out.glob("*.h5"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.005)
    program.send_signal(signal.SIGKILL)
    program.communicate()
    time.sleep(0.5)
    names = sorted(path.name for path in out.glob("*.h5"))
    num_whole = len(open_shards(out, strict=True))
    assert 3 <= num_whole < 41, "the recording was over before it was killed"
    assert sorted(path.name for path in out.glob("*.h5")) == names, "a worker outlived its parent"
    (out / ".train-00039.h5.1.tmp").write_bytes(b"half")
    finished = start_program(out, 120, 150)
    output, errors = finished.communicate(timeout=60)
    assert finished.returncode == 0, errors.decode()
    assert json.loads(output)["episodes"] == 120
    record(tiny(tmp_path / "unbroken", episodes=120, length=150))
    assert contents(out) == contents(tmp_path / "unbroken")


def test_program_ends_with_a_plain_message(tmp_path: Path) -> None:
    (tmp_path / "train-00000.h5").write_bytes(b"of another recording")
    for num_episodes, status, message in [
        (2, 1, "error: .* has shards but no recording.json"),
        (-1, 2, "at least 0; got -1"),
    ]:
        program = start_program(tmp_path, num_episodes, 10)
        _, errors = program.communicate(timeout=60)
        assert program.returncode == status
        assert re.search(message, errors.decode()) and "Traceback" not in errors.decode()
