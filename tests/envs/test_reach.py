"""The Reach task: what is in view at its starts, when it ends, files of starts, and dreams begun from them."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env

pytest.importorskip("mujoco")
pytest.importorskip("labmaze")

from envs.actions import ActionSet
from envs.tasks.reach import Reach, find_sizes
from envs.tasks.starts import read_starts, record_starts
from envs.worlds.base import TEST_SCENE_DIVISOR, ReachStart, World, draw_scene_seed
from envs.worlds.labmaze.constants import ACTIONS
from envs.worlds.labmaze.env import LabMazeEnv
from envs.worlds.labmaze.targets import TargetWalker, find_color, project
from envs.worlds.registry import get_world
from train.starts import StartsOptions
from train.starts import main as record_program
from worldmodel.errors import ConfigError, DataError, SeedError

LABMAZE = get_world("LabMaze")


def find_true_disc(env: Any, info: dict[str, Any]) -> Any:
    """Return the largest target that is really in the picture: it looks different without it."""
    best, real = None, env.unwrapped
    frame, num_targets = real.render(), len(info["targets"])
    for target, place in enumerate(info["targets"]):
        disc = project(info["pose"], place, 64)
        if disc is None or not 0 <= disc.column < 64 or (best is not None and disc.radius <= best.radius):
            continue
        real.set_targets_reached(np.arange(num_targets) == target)
        middle = round(disc.row), round(disc.column)
        best = disc if not np.array_equal(real.render()[middle], frame[middle]) else best
    real.set_targets_reached(np.zeros(num_targets, bool))
    return best


@pytest.mark.parametrize(("start", "low", "high"), [("near", 16, 48), ("far", 8, 16)])
def test_a_sphere_of_the_size_is_in_view_and_who_walks_to_it_is_paid_once(start: str, low: int, high: int) -> None:
    env = gymnasium.make("envs:Real/LabMazeReach-v0", start=start)
    lengths = []
    for seed in range(12):
        frame, info = env.reset(seed=seed)
        assert info["scene_seed"] % TEST_SCENE_DIVISOR == 0 and not info["targets_reached"].any()
        disc = find_true_disc(env, info)
        assert disc is not None and 2 * disc.radius >= low - 1e-3
        assert abs(LABMAZE.find_seen_size(frame) - 2 * disc.radius) < 4
        walker, rewards, terminated = TargetWalker(find_color(frame, disc), disc.column, disc.row), [], False
        while not terminated and len(rewards) < 30:
            frame, reward, terminated, truncated, _ = env.step(walker.act(frame))
            rewards.append(reward)
        lengths.append(len(rewards))
        assert terminated and rewards == [0.0] * (len(rewards) - 1) + [1.0] and not truncated
    assert max(lengths) <= (8 if start == "near" else 25)
    env.close()


def test_equal_seeds_give_equal_starts_and_the_next_is_another() -> None:
    first, second = (gymnasium.make("envs:Real/LabMazeReach-v0", split="train", image_size=32) for _ in range(2))
    second.reset(seed=8)
    rows = [[env.reset(seed=7), env.reset()] for env in (first, second)]
    for one, other in zip(*rows, strict=True):
        assert np.array_equal(one[0], other[0]) and one[1]["scene_seed"] == other[1]["scene_seed"]
        assert one[1]["scene_seed"] % TEST_SCENE_DIVISOR
    assert rows[0][0][1]["scene_seed"] != rows[0][1][1]["scene_seed"]
    for seed in (-1, 1.5, True):
        with pytest.raises(SeedError, match=f"seed .*{seed}"):
            first.reset(seed=seed)
    for env in (first, second):
        env.close()


@pytest.mark.parametrize("how", ["pickle", "copy"])
def test_a_copy_goes_on_as_the_task_does_and_leaves_it_alone(how: str) -> None:
    env = gymnasium.make("envs:Real/LabMazeReach-v0", image_size=16)
    env.reset(seed=3)
    other = pickle.loads(pickle.dumps(env)) if how == "pickle" else copy.deepcopy(env)
    frame = env.render()
    begun = [other.reset() for _ in range(2)]
    assert np.array_equal(env.render(), frame)
    for theirs, info in begun:
        mine, own = env.reset()
        assert np.array_equal(mine, theirs) and own["scene_seed"] == info["scene_seed"]
    for one in (env, other):
        one.close()


def test_starts_drawn_after_a_restore_are_those_drawn_before_it() -> None:
    env = gymnasium.make("envs:Real/LabMazeReach-v0", image_size=16)
    env.reset(seed=3)
    moment = env.unwrapped.snapshot()
    begun = [env.reset() for _ in range(2)]
    env.unwrapped.restore(moment)
    again = [env.reset() for _ in range(2)]
    for (frame, info), (other, told) in zip(begun, again, strict=True):
        assert np.array_equal(frame, other) and info["scene_seed"] == told["scene_seed"]
    assert begun[0][1]["scene_seed"] != begun[1][1]["scene_seed"]
    env.close()


def test_gymnasium_accepts_it_and_truncates_it_after_a_hundred_steps() -> None:
    env = gymnasium.make("envs:Real/LabMazeReach-v0", image_size=16)
    check_env(env.env.env, skip_render_check=True)
    env.reset(seed=0)
    assert [step for step in range(1, 101) if env.step(3)[3]] == [100]
    env.close()


def test_a_start_that_is_given_is_taken() -> None:
    env = gymnasium.make("envs:Real/LabMazeReach-v0", image_size=16)
    _, info = env.reset(seed=1)
    given = {name: info[name] for name in ("scene_seed", "pose")}
    assert np.array_equal(env.reset(seed=5, options=given)[1]["pose"], info["pose"])
    env.close()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"start": "here"}, "start 'here' is not accepted; use one of near, far, any"),
        ({"min_size_px": 20, "max_size_px": 9}, "sizes from 20 to 9 pixels leave nothing"),
        ({"min_size_px": "a"}, "min_size_px 'a' is not accepted; take pixels of 64, such as 8"),
        ({"max_size_px": [9, 10]}, r"max_size_px \[9, 10\] is not accepted; take pixels of 64, such as 48"),
        ({"min_size_px": 1}, "sizes from 1.0 to 48.0 pixels are not accepted; take .* from 3 to 48"),
        ({"split": "new"}, "split 'new' is not accepted; use one of train, test, any"),
        ({"num_targets": 0}, "num_targets 0 leaves nothing to reach"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        gymnasium.make("envs:Real/LabMazeReach-v0", image_size=16, **settings).reset(seed=0)


def test_scene_seeds_are_of_the_split_and_sizes_are_those_named() -> None:
    rng = np.random.default_rng(0)
    assert all(draw_scene_seed(rng, "test") % TEST_SCENE_DIVISOR == 0 for _ in range(50))
    rest = {draw_scene_seed(rng, "train") % TEST_SCENE_DIVISOR for _ in range(500)}
    assert rest == set(range(1, TEST_SCENE_DIVISOR))
    assert find_sizes("near", None, None) == (16, 48) and find_sizes("any", 10, None) == (10, 48)


def test_pictures_without_a_sphere_show_none() -> None:
    env = LabMazeEnv()
    sizes = []
    for seed in range(100):
        env.reset(seed=seed)
        env.set_targets_reached(np.ones(4, bool))
        sizes.append(LABMAZE.find_seen_size(env.render()))
    assert np.mean(np.array(sizes) >= 8) <= 0.03
    env.close()


class PaidEnv(gymnasium.Env[np.ndarray, np.int64]):
    """A row to walk along; the last place pays, and goes on paying."""

    observation_space, action_space = spaces.Box(0, 255, (8, 8, 3), np.uint8), spaces.Discrete(2)

    def __init__(self, **settings: Any) -> None:
        self.place = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, Any]:
        super().reset(seed=seed)
        self.place = (options or {}).get("place", 0)
        return np.full((8, 8, 3), self.place, np.uint8), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, Any]:
        self.place += int(action)
        return np.full((8, 8, 3), self.place, np.uint8), float(self.place >= 9), False, False, {}


class Row(World):
    """A world of one's own with starts."""

    name, fps, actions = "Row", 1.0, ActionSet("Row", ("stay", "on"), (("w", "on"),), ((), ("on",)))

    def make(self, **settings: Any) -> gymnasium.Env[Any, Any]:
        return PaidEnv()

    def find_reach_start(self, env: Any, rng: Any, split: Any, sizes_px: Any, num_actions: int) -> ReachStart:
        return ReachStart({"place": int(rng.integers(5))}, np.ones(num_actions, np.uint8), 9.0)


def test_a_world_of_ones_own_has_the_task_by_telling_starts(tmp_path: Path) -> None:
    env = Reach(PaidEnv(), lambda env, rng: Row().find_reach_start(env, rng, "any", (8, 9), 0).options)
    place = int(env.reset(seed=3)[0][0, 0, 0])
    assert [env.step(1)[1:3] for _ in range(9 - place)] == [(0.0, False)] * (8 - place) + [(1.0, True)]
    record_starts(Row(), 3, tmp_path / "row.h5", num_frames=4, image_size=8)
    openings = read_starts(tmp_path / "row.h5", "Row", ("stay", "on"), 8)
    places = openings.frames[:, :, 0, 0, 0].astype(int)
    assert (np.diff(places, axis=1) == 1).all() and openings.actions.shape == (3, 3)
    with pytest.raises(DataError, match=r"the world Counter does not .* \(World.find_reach_start\)"):
        type("Counter", (World,), {"name": "Counter"})().find_reach_start(env, None, "any", (8, 9), 0)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def starts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of six starts for the tiny bundle."""
    path = tmp_path_factory.mktemp("starts") / "starts.h5"
    record_starts(LABMAZE, 6, path, image_size=32)
    return path


def read_file(path: Path) -> dict[str, np.ndarray]:
    with h5py.File(path) as file:
        return {name: file[name][:] for name in file}


def test_starts_show_the_walk_to_a_sphere_in_mazes_that_are_not_for_judging(starts: Path, tmp_path: Path) -> None:
    found = read_file(starts)
    assert found["frames"].shape == (6, 8, 32, 32, 3) and found["actions"].shape == (6, 7)
    assert (found["scene_seeds"] % TEST_SCENE_DIVISOR > 0).all()
    assert ((found["sizes_px"] >= 8) & (found["sizes_px"] < 48)).all()
    seen = np.array([LABMAZE.find_seen_size(frames[-1]) for frames in found["frames"]])
    assert (np.abs(seen - found["sizes_px"]) <= 5).all()  # a pixel here is two of 64
    moved = [len({frame.tobytes() for frame in frames}) for frames in found["frames"]]
    assert min(moved) > 2

    record_starts(LABMAZE, 3, tmp_path / "fewer.h5", image_size=32)
    for name, values in read_file(tmp_path / "fewer.h5").items():
        np.testing.assert_array_equal(values, found[name][:3])


def test_the_walk_of_a_start_is_free_and_ends_with_the_sphere_in_view() -> None:
    env = LabMazeEnv()
    for seed in range(12):
        start = LABMAZE.find_reach_start(env, np.random.default_rng(seed), "any", (8.0, 48.0), 7)
        _, info = env.reset(seed=0, options=start.options)
        for action in start.actions:
            _, reward, *_, info = env.step(action)
            assert reward == 0 and not info["is_blocked"]
        assert 2 * find_true_disc(env, info).radius >= start.size_px - 1e-3
    env.close()


def test_a_dream_begins_at_a_start_of_the_file_and_ends_at_a_reward(starts: Path, bundle: Path) -> None:
    found = read_file(starts)
    settings = {"checkpoint": str(bundle), "device": "cpu", "num_steps": 1, "starts": str(starts)}
    env = gymnasium.make("envs:Dream/LabMazeReach-v0", **settings)
    lasts = [frames[-1].tobytes() for frames in found["frames"]]
    begun = [lasts.index(env.reset(seed=seed)[0].tobytes()) for seed in range(12)]
    assert len(set(begun)) > 2
    assert [lasts.index(env.reset(seed=seed)[0].tobytes()) for seed in range(12)] == begun
    for _ in range(100):
        _, reward, terminated, truncated, _ = env.step(1)
        assert terminated or not reward
        if terminated or truncated:
            break
    assert terminated or truncated
    env.close()


def test_only_starts_of_the_size_are_taken_and_none_is_refused(starts: Path, bundle: Path) -> None:
    settings = {"checkpoint": str(bundle), "device": "cpu", "starts": starts}
    sizes = read_file(starts)["sizes_px"]
    low = float(np.sort(sizes)[-1])
    env = gymnasium.make("envs:Dream/LabMazeReach-v0", min_size_px=low, **settings)
    for seed in range(4):
        assert np.array_equal(env.reset(seed=seed)[0], read_file(starts)["frames"][np.argmax(sizes), -1])
    with pytest.raises(ConfigError, match=r"none of the 6 openings of .*starts.h5 shows what pays at 47 to 48 pixels"):
        gymnasium.make("envs:Dream/LabMazeReach-v0", min_size_px=47, **settings)
    with pytest.raises(ConfigError, match="none of the 3 openings of .*world shows what pays"):
        gymnasium.make("envs:Dream/LabMazeReach-v0", **{**settings, "starts": None})


def test_the_shipped_world_has_openings_with_a_sphere_in_view() -> None:
    env = gymnasium.make("envs:Dream/LabMazeReach-v0", device="cpu", num_steps=1)
    frames = [env.reset(seed=seed)[0] for seed in range(3)]
    assert min(LABMAZE.find_seen_size(frame) for frame in frames) >= 8
    env.close()


def put(file: Any, name: str, values: np.ndarray) -> None:
    """Put other values in the place of those of a file."""
    del file[name]
    file[name] = values


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.attrs.update(format="other"), "is no file of starts of version 1"),
        (lambda file: file.attrs.update(world="Row"), "holds starts of Row; this dream is of LabMaze"),
        (lambda file: file.__delitem__("actions"), "cannot be read as a file of starts"),
        (lambda file: put(file, "sizes_px", np.ones(1, np.float32)), "is damaged: its frames, actions and sizes do"),
        (lambda file: put(file, "frames", np.zeros((6, 8), np.uint8)), r"is damaged: its frames have shape \(6, 8\)"),
        (
            lambda file: put(file, "frames", file["frames"][..., :1]),
            r"shape \(6, 8, 32, 32, 1\), not \(N, T, H",
        ),
        (lambda file: put(file, "frames", file["frames"][:] / 255), "its frames are float64, not uint8; record it"),
        (lambda file: put(file, "actions", file["actions"][:] + 0.0), "its actions are float.*, not uint8; record it"),
        (lambda file: file.attrs.update(action_names=3), "cannot be read as a file of starts"),
    ],
)
def test_a_file_that_is_no_file_of_starts_is_refused(
    starts: Path, tmp_path: Path, change: Callable[[Any], Any], message: str
) -> None:
    changed = tmp_path / "changed.h5"
    changed.write_bytes(starts.read_bytes())
    with h5py.File(changed, "r+") as file:
        change(file)
    with pytest.raises((ConfigError, DataError), match=message):
        read_starts(changed, "LabMaze", ACTIONS.names, 32)


def test_starts_of_another_size_and_a_file_that_is_not_there_are_refused(starts: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="in frames of size 32; this dream is in frames of size 64"):
        read_starts(starts, "LabMaze", ACTIONS.names, 64)
    with pytest.raises(DataError, match="nowhere.h5 cannot be read as a file of starts"):
        read_starts(tmp_path / "nowhere.h5", "LabMaze", ACTIONS.names, 64)
    with pytest.raises(ConfigError, match="count and num_frames must be at least 1; got 0 and 8"):
        record_starts(LABMAZE, 0, tmp_path / "none.h5")


@pytest.mark.parametrize("kind", ["Real", "Dream"])
def test_many_at_once(kind: str, starts: Path, bundle: Path) -> None:
    settings: dict[str, Any] = {"Real": {"image_size": 32}, "Dream": {"checkpoint": str(bundle), "device": "cpu"}}[kind]
    settings |= {"starts": starts, "num_steps": 1} if kind == "Dream" else {}
    many = gymnasium.make_vec(f"envs:{kind}/LabMazeReach-v0", num_envs=2, autoreset_mode="SameStep", **settings)
    single = gymnasium.make(f"envs:{kind}/LabMazeReach-v0", **settings)
    frames, _ = many.reset(seed=[4, 5])
    for row, seed in enumerate((4, 5)):
        assert np.array_equal(frames[row], single.reset(seed=seed)[0])
    done = [many.step(np.array([3, 3]))[2:4] for _ in range(100)]
    assert any(terminated.any() or truncated.any() for terminated, truncated in done)
    for one in (many, single):
        one.close()


def test_a_program_records_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (
        f"--out {tmp_path / 's.h5'} --count 2 --start near --image-size 16 --split test --set num_targets=2 --frames 3"
    )
    monkeypatch.setattr("sys.argv", ["train.starts", *words.split()])
    record_program()
    assert capsys.readouterr().out == f"2 starts in {tmp_path / 's.h5'}\n"
    found = read_file(tmp_path / "s.h5")
    assert found["frames"].shape == (2, 3, 16, 16, 3) and (found["sizes_px"] >= 16).all()
    assert (found["scene_seeds"] % TEST_SCENE_DIVISOR == 0).all()
    assert StartsOptions(out=tmp_path).world == "LabMaze"


@pytest.mark.parametrize("chance", ["host", "device"])
def test_many_dreams_end_at_rewards_and_begin_anew_from_starts(chance: str, starts: Path, bundle: Path) -> None:
    settings: dict[str, Any] = {"checkpoint": str(bundle), "device": "cpu", "num_steps": 1, "starts": starts}
    settings |= {"output": "torch", "chance": chance, "autoreset_mode": "SAME_STEP"}
    many = gymnasium.make_vec("envs:Dream/LabMazeReach-v0", num_envs=3, **settings)
    frames, _ = many.reset(seed=0)
    lasts = {part[-1].tobytes() for part in read_file(starts)["frames"]}
    assert {frame.numpy().tobytes() for frame in frames} <= lasts
    is_paid = 0
    for step in range(12):
        frames, rewards, terminated, _, _ = many.step(torch.full((3,), step % 7))
        assert terminated[rewards > 0].all()
        is_paid += int((rewards > 0).sum())
        assert all(frame.numpy().tobytes() in lasts for frame in frames[terminated])
    assert is_paid
    many.close()
