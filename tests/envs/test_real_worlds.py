"""Real worlds at scale: in forked and spawned processes, with windows, as values."""

import contextlib
import copy
import json
import os
import pickle
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

pytest.importorskip("mujoco")
pytest.importorskip("labmaze")

from envs.player.view import find_scalars
from envs.worlds.labmaze.env import LabMazeEnv
from worldmodel.errors import ConfigError, SeedError, StateError

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 60
SMALL = {"size": 5, "num_targets": 1, "image_size": 16}
asks_proc = pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")


@pytest.fixture
def env() -> Iterator[LabMazeEnv]:
    env = LabMazeEnv(**SMALL)
    yield env
    env.close()


def run_program(text: str, *before: str) -> subprocess.CompletedProcess[str]:
    """Run a program from this checkout; one that hangs fails the test."""
    command = [*before, sys.executable, "-c", text]
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=TIMEOUT_S, capture_output=True, text=True
    )


VECTOR = """
import gymnasium, numpy as np
settings = dict(size=5, num_targets=1, image_size=16)
single = gymnasium.make("envs:Real/LabMaze-v0", **settings)
single.reset(seed=0)
many = gymnasium.make_vec("envs:Real/LabMaze-v0", num_envs=2, vectorization_mode="async", **settings)
frames, _ = many.reset(seed=[3, 4])
frames = [frames, many.step(np.array([3, 4]))[0]]
many.close()
for i, action in enumerate((3, 4)):
    assert np.array_equal(frames[0][i], single.reset(seed=3 + i)[0])
    assert np.array_equal(frames[1][i], single.step(action)[0])
print("equal", frames[0].std() > 10)
"""


@pytest.mark.slow
def test_processes_that_gymnasium_starts_draw_what_this_one_draws() -> None:
    done = run_program(VECTOR)
    assert done.stdout == "equal True\n", done.stderr


CHILDREN = """
import gymnasium, time
many = gymnasium.make_vec("envs:Real/LabMaze-v0", num_envs=2, {how}, size=5, num_targets=1, image_size=16)
many.reset(seed=0)
print("ready", flush=True)
time.sleep(600)
"""


def processes_with(mark: str) -> list[int]:
    """Return the processes that have a name in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes()  # empty for one that has ended
        except OSError:
            continue
        if mark.encode() in environment:
            found.append(int(folder.name))
    return found


@pytest.mark.slow
@asks_proc
@pytest.mark.parametrize("how", ["vectorization_mode='async'", "processes=True"])
def test_children_do_not_outlive_a_parent_that_is_killed(how: str) -> None:
    mark = f"WORLD_TEST_{os.getpid()}"
    command = [sys.executable, "-c", CHILDREN.format(how=how)]
    parent = subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {mark: "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert parent.stdout is not None
        assert select.select([parent.stdout], [], [], TIMEOUT_S)[0], "it does not get ready"
        assert parent.stdout.readline() == "ready\n"
        assert len(processes_with(mark)) >= 3
        parent.kill()
        parent.wait()

        deadline_s = time.monotonic() + 20
        while processes_with(mark) and time.monotonic() < deadline_s:
            time.sleep(0.2)
        assert processes_with(mark) == []
    finally:
        parent.kill()
        parent.wait()
        for process in processes_with(mark):  # a test that fails leaves none
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)


FORKED = """
import os, gymnasium
env = gymnasium.make("envs:Real/LabMaze-v0", size=5, num_targets=1, image_size=16)
env.reset(seed=0)
child = os.fork()
if not child:
    try:
        env.step(0)
    except Exception as error:
        print(type(error).__name__, error, flush=True)
    os._exit(0)
os.waitpid(child, 0)
print(env.step(0)[0].std() > 10)
"""


def test_an_environment_that_was_made_before_a_fork_says_so() -> None:
    done = run_program(FORKED)
    assert done.stdout.startswith("StateError this environment was made before its process was forked"), done.stderr
    assert done.stdout.endswith("True\n")


APART = """
import os, signal
from envs.worlds.labmaze import apart
from envs.worlds.labmaze.env import LabMazeEnv
apart.must_draw_elsewhere = lambda: True
env = LabMazeEnv(size=5, num_targets=1, image_size=16)
env.reset(seed=0)
signal.alarm(30)  # one that hangs is ended, and its child by the end of the pipe
is_told, tell = os.pipe()
until_end, end = os.pipe()
child = os.fork()
if not child:
    os.close(end)
    try:
        env.step(0)
    except Exception as error:
        print(type(error).__name__, error, flush=True)
    env.close()
    os.write(tell, b".")
    os.read(until_end, 1)
    os._exit(0)
os.read(is_told, 1)
print(env.step(0)[0].std() > 10, flush=True)
env.close()
print("closed", os.waitpid(child, os.WNOHANG) == (0, 0), flush=True)
"""


def test_what_draws_apart_is_its_makers_and_ends_while_a_forked_process_lives() -> None:
    done = run_program(APART)
    assert done.stdout.startswith("StateError this environment was made before its process was forked"), done.stderr
    assert done.stdout.endswith("True\nclosed True\n"), done.stderr


@asks_proc
def test_what_draws_apart_is_made_to_end_where_it_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("envs.worlds.labmaze.apart.must_draw_elsewhere", lambda: True)
    monkeypatch.setattr("envs.worlds.labmaze.apart.END_S", 0.1)
    mark = f"WORLD_TEST_APART_{os.getpid()}"
    monkeypatch.setenv(mark, "1")
    env = LabMazeEnv(**SMALL)
    (process,) = processes_with(mark)
    os.kill(process, signal.SIGSTOP)
    env.close()
    assert processes_with(mark) == []


WINDOW = """
import gymnasium, pygame
env = gymnasium.make("envs:Real/LabMaze-v0", render_mode="human", size=5, num_targets=1, image_size=64)
frame = env.reset(seed=0)[0]
env.step(3)
shown = pygame.surfarray.array3d(pygame.display.get_surface())
print(shown.shape == (64, 64, 3), shown.std() > 10)
env.close()
other = gymnasium.make("envs:Real/LabMaze-v0", size=5, num_targets=1, image_size=64)
print((other.reset(seed=0)[0] == frame).all())
"""
TAKEN = """
import gymnasium, pygame
pygame.display.init()
pygame.display.set_mode((64, 64), pygame.OPENGL)
gymnasium.make("envs:Real/LabMaze-v0", size=5, num_targets=1, image_size=64)
"""


@pytest.mark.slow
@pytest.mark.skipif(not any(Path(p, "xvfb-run").exists() for p in os.get_exec_path()), reason="needs a virtual screen")
def test_a_window_shows_the_real_world_and_leaves_it_its_pictures() -> None:
    done = run_program(WINDOW, "xvfb-run", "-a")
    assert done.stdout.splitlines()[-2:] == ["True True", "True"], done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not any(Path(p, "xvfb-run").exists() for p in os.get_exec_path()), reason="needs a virtual screen")
def test_opengl_that_another_library_took_is_told_from_opengl_that_is_missing() -> None:
    last = run_program(TAKEN, "xvfb-run", "-a").stderr.strip().splitlines()[-1]
    assert "StateError: another library holds OpenGL in this thread" in last and "apt-get" not in last


@pytest.mark.parametrize("processes", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_many_are_made_with_the_reset_that_is_asked_for(processes: bool) -> None:
    settings = SMALL | {"max_episode_steps": 2, "autoreset_mode": "SameStep"}
    many = gymnasium.make_vec("envs:Real/LabMaze-v0", num_envs=2, processes=processes, **settings)
    assert many.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert isinstance(many, SyncVectorEnv) != processes
    many.reset(seed=0)
    many.step(np.array([3, 3]))
    frames, _, _, truncated, info = many.step(np.array([3, 3]))
    assert truncated.all() and not np.array_equal(frames[0], info["final_obs"][0])
    many.close()


def test_many_refuse_what_they_do_not_know() -> None:
    for name, value in {"autoreset_mode": "now", "palette": "neon"}.items():
        with pytest.raises(ConfigError, match=f"{name} {value!r} is"):
            gymnasium.make_vec("envs:Real/LabMaze-v0", **{"num_envs": 1, **SMALL, name: value})
    for count in (0, 1.5, True):
        with pytest.raises(ConfigError, match=f"num_envs must be a whole number of at least 1; got {count!r}"):
            gymnasium.make_vec("envs:Real/LabMaze-v0", num_envs=count, **SMALL)


def test_how_many_may_be_a_number_of_numpy() -> None:
    many = gymnasium.make_vec("envs:Real/LabMaze-v0", num_envs=np.int64(2), **SMALL)
    assert many.reset(seed=0)[0].shape == (2, 16, 16, 3)
    many.close()


def play(env: LabMazeEnv, actions: list[int]) -> list[tuple[Any, ...]]:
    rows = []
    for action in actions:
        frame, reward, terminated, truncated, info = env.step(action)
        rows.append((frame.tobytes(), reward, terminated, truncated, *(value.tobytes() for value in info.values())))
    return [*rows, env.reset()[0].tobytes()]  # the stream of chance goes on


@pytest.mark.parametrize("how", ["restore", "across", "pickle", "copy"])
def test_play_goes_on_from_a_moment_as_it_did(env: LabMazeEnv, how: str) -> None:
    env.reset(seed=5)
    for action in (1, 5, 1, 1):
        env.step(action)
    x, y = map(float, env.step(0)[4]["targets"][0])
    env.set_pose(x, y, 12.0)
    env.step(0)  # takes the only target
    moment = pickle.loads(pickle.dumps(env.snapshot()))
    other = {"pickle": lambda: pickle.loads(pickle.dumps(env)), "copy": lambda: copy.deepcopy(env)}.get(
        how, lambda: env if how == "restore" else LabMazeEnv(**SMALL)
    )()
    frame = env.render()
    expected = play(env, [3, 1, 1, 2, 6])
    if how in ("restore", "across"):
        assert np.array_equal(other.restore(moment), frame)
    assert np.array_equal(other.render(), frame) and play(other, [3, 1, 1, 2, 6]) == expected
    other.restore(moment)
    assert play(other, [3, 1, 1, 2, 6]) == expected  # and the snapshot stays what it was
    assert other.np_random_seed == env.np_random_seed == 5
    other.close()


def test_steps_taken_count_on_after_a_restore() -> None:
    env = LabMazeEnv(**SMALL, max_episode_steps=3)
    env.reset(seed=0)
    env.step(0)
    moment = env.snapshot()
    assert [env.step(0)[3] for _ in range(2)] == [False, True]
    env.restore(moment)
    assert [env.step(0)[3] for _ in range(2)] == [False, True]
    env.close()


def test_an_environment_is_pickled_before_its_first_reset_and_after_its_close(env: LabMazeEnv) -> None:
    fresh = pickle.loads(pickle.dumps(LabMazeEnv(**SMALL)))
    with pytest.raises(StateError, match="before reset"):
        fresh.step(0)
    assert np.array_equal(fresh.reset(seed=4)[0], env.reset(seed=4)[0])
    fresh.close()
    with pytest.raises(StateError, match="closed"):
        pickle.loads(pickle.dumps(fresh)).reset()


def test_a_copy_of_what_gymnasium_made_is_whole() -> None:
    env = gymnasium.make("envs:Real/LabMaze-v0", max_episode_steps=3, **SMALL)
    env.reset(seed=4)
    env.action_space.seed(3)
    env.step(0)
    copied = copy.deepcopy(env)
    assert copied.unwrapped.spec.id == "Real/LabMaze-v0" and copied.action_space.sample() == env.action_space.sample()
    for one in (env, copied):
        assert [one.step(1)[3] for _ in range(2)] == [False, True]
    assert np.array_equal(env.render(), copied.render())
    for one in (env, copied):
        one.close()


def test_a_snapshot_of_other_settings_is_refused(env: LabMazeEnv) -> None:
    env.reset(seed=0)
    other = LabMazeEnv(**(SMALL | {"size": 7}))
    with pytest.raises(StateError, match="this snapshot is of size 5; this environment has size 7"):
        other.restore(env.snapshot())
    with pytest.raises(StateError, match="got dict"):
        other.restore({})  # type: ignore[arg-type]
    with pytest.raises(StateError, match="before reset"):
        other.snapshot()
    other.close()


def test_an_episode_starts_where_a_recorded_one_was(env: LabMazeEnv) -> None:
    _, info = env.reset(seed=8)
    for action in (3, 3, 1, 1, 5):
        frame, *_, info = env.step(action)
    start = {"scene_seed": info["scene_seed"], "pose": info["pose"], "targets_reached": [True]}
    env.reset(seed=1)
    _, again = env.reset(seed=2, options=start)
    assert np.array_equal(again["pose"], info["pose"]) and again["targets_reached"].all()
    env.set_targets_reached(np.array([False]))
    assert np.array_equal(env.render(), frame)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pose": (0.5, 0.5, 0.0)}, "not on free floor"),
        ({"pose": (1.5, 1.5)}, "pose .* give x and y in cells, the heading in degrees"),
        ({"pose": "north"}, "pose 'north' is not accepted"),
        ({"targets_reached": [True, False]}, r"targets_reached has shape \(2,\); give one value for each of 1"),
        ({"frames": 1, "actions": 2}, r"\['actions', 'frames'\] are unknown; LabMaze accepts scene_seed, pose, targ"),
    ],
)
def test_a_start_that_cannot_be_is_refused_and_the_episode_goes_on(
    env: LabMazeEnv, options: dict[str, Any], message: str
) -> None:
    frame, _ = env.reset(seed=3)
    with pytest.raises(ConfigError, match=message):
        env.reset(options={"scene_seed": 77} | options)
    assert np.array_equal(env.render(), frame) and np.array_equal(env.step(0)[0], frame)


def test_a_scene_seed_that_info_cannot_hold_is_refused(env: LabMazeEnv) -> None:
    assert env.reset(options={"scene_seed": 2**63 - 1})[1]["scene_seed"] == 2**63 - 1
    with pytest.raises(SeedError, match="scene_seed 9223372036854775808 is not accepted"):
        env.reset(options={"scene_seed": 2**63})


def test_info_holds_arrays_and_scalars_of_numpy_and_json_takes_its_numbers(env: LabMazeEnv) -> None:
    _, info = env.reset(seed=3)
    kinds = {name: type(value) for name, value in info.items()}
    assert kinds.pop("scene_seed") is np.int64 and (info["is_blocked"].dtype, info["is_blocked"].ndim) == (np.bool_, 0)
    assert set(kinds.values()) == {np.ndarray}
    assert json.loads(json.dumps(find_scalars(info))) == {"scene_seed": int(info["scene_seed"]), "is_blocked": False}


def test_each_call_after_close_is_refused() -> None:
    env = LabMazeEnv(**SMALL)
    _, info = env.reset(seed=0)
    moment, pose = env.snapshot(), tuple(map(float, info["pose"]))
    env.close()
    calls: list[Callable[[], Any]] = [
        env.reset,
        lambda: env.step(0),
        env.render,
        lambda: env.render_pose(*pose),
        env.render_depth,
        lambda: env.set_pose(*pose),
        lambda: env.set_targets_reached(np.array([True])),
        env.snapshot,
        lambda: env.restore(moment),
    ]
    for call in calls:
        with pytest.raises(StateError, match="closed"):
            call()
    env.close()
