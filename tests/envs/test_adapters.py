"""Other libraries on real worlds and dreams: stable-baselines3, TorchRL, skrl, videos of Gymnasium."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import TimeLimit

import envs  # noqa: F401  registers the worlds
from worldmodel.errors import ConfigError

IDS = ("Real", "Dream")


class CountEnv(gymnasium.Env[np.ndarray, np.int64]):
    """Shows its start, drawn by the seed, and counts up; ends at 3 steps under action 1, else goes on."""

    observation_space, action_space = spaces.Box(0, 255, (2,), np.uint8), spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, Any]:
        super().reset(seed=seed)
        self.first, self.count = int(self.np_random.integers(200)), (options or {}).get("count", 0)
        return self._see(), {"first": np.int64(self.first)}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, Any]:
        self.count += 1
        is_over = self.count == 3 and bool(action)
        return self._see(), 1.5, is_over, False, {"count": np.int64(self.count)}

    def _see(self) -> np.ndarray:
        return np.array([self.first, self.count], np.uint8)


@pytest.fixture
def settings(request: pytest.FixtureRequest, bundle: Path) -> dict[str, Any]:
    """What the tiny bundle or a small maze is made with; both show 32 x 32 pixels."""
    if request.param == "Real":
        pytest.importorskip("mujoco")
        pytest.importorskip("labmaze")
        return {"size": 5, "num_targets": 1, "image_size": 32}
    return {"checkpoint": str(bundle), "device": "cpu", "num_steps": 1}


@pytest.fixture
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


both = pytest.mark.parametrize(("kind", "settings"), [(kind, kind) for kind in IDS], indirect=True)


@pytest.fixture
def counted() -> Iterator[Any]:
    """Two counting environments, truncated after five steps, as stable-baselines3 takes them."""
    pytest.importorskip("stable_baselines3")
    from envs.adapters.sb3 import SB3VecEnv

    makers = [lambda: TimeLimit(CountEnv(), 5)] * 2
    env = SB3VecEnv(SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP))
    yield env
    env.close()


def test_sb3_is_told_of_ends_as_it_expects(counted: Any) -> None:
    counted.seed(7)
    firsts = counted.reset()[:, 0]
    assert [info["first"] for info in counted.reset_infos] == firsts.tolist()
    told = []
    for step in range(1, 6):
        frames, rewards, ends, infos = counted.step(np.array([1, 0]))
        assert rewards.dtype == np.float32 and (rewards == 1.5).all()
        told += [(step, row, info["TimeLimit.truncated"]) for row, info in enumerate(infos) if ends[row]]
        for row, info in enumerate(infos):
            assert ("terminal_observation" in info) == ends[row]
            if ends[row]:
                assert info["terminal_observation"].tolist() == [firsts[row], info["count"]]
                assert frames[row].tolist() == [counted.reset_infos[row]["first"], 0]
    assert told == [(3, 0, False), (5, 1, True)]


def test_sb3_seeds_and_options_hold_for_one_reset(counted: Any) -> None:
    counted.seed(7)
    first = counted.reset()
    again = [TimeLimit(CountEnv(), 5).reset(seed=seed)[0] for seed in (7, 8)]
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(counted.reset(), first)
    counted.set_options({"count": 2})
    assert counted.reset()[:, 1].tolist() == [2, 2] and counted.reset()[:, 1].tolist() == [0, 0]
    counted.set_options([{"count": 2}, {}])
    with pytest.raises(ConfigError, match="one dictionary for all"):
        counted.reset()


def test_sb3_refuses_vectors_that_reset_a_step_later(counted: Any) -> None:
    with pytest.raises(ConfigError, match="autoreset mode AutoresetMode.NEXT_STEP is not accepted"):
        type(counted)(SyncVectorEnv([CountEnv]))
    with pytest.raises(ConfigError, match="attribute 'first' of one"):
        counted.set_attr("first", 3)
    assert counted.get_attr("num_envs", [0]) == [2] and counted.env_is_wrapped(TimeLimit) == [False, False]


@both
def test_sb3_learns(kind: str, settings: dict[str, Any]) -> None:
    stable_baselines3 = pytest.importorskip("stable_baselines3")
    from stable_baselines3.common.vec_env import VecMonitor

    from envs.adapters.sb3 import SB3VecEnv

    same_step = {"autoreset_mode": AutoresetMode.SAME_STEP}
    many = gymnasium.make_vec(
        f"envs:{kind}/LabMaze-v0", 2, "sync", vector_kwargs=same_step, max_episode_steps=5, **settings
    )
    env = VecMonitor(SB3VecEnv(many))
    agent = stable_baselines3.A2C("MlpPolicy", env, n_steps=4, policy_kwargs={"net_arch": [8]}, device="cpu", seed=0)
    agent.learn(24)
    lengths = [row["l"] for row in agent.ep_info_buffer]
    assert len(lengths) >= 4 and max(lengths) <= 5
    env.close()


@both
def test_torchrl_steps_them(kind: str, settings: dict[str, Any]) -> None:
    pytest.importorskip("torchrl")
    from torchrl.envs import GymWrapper, check_env_specs

    env = GymWrapper(gymnasium.make(f"envs:{kind}/LabMaze-v0", max_episode_steps=5, **settings), device="cpu")
    check_env_specs(env)
    rollout = env.rollout(20, break_when_any_done=False)
    assert rollout["pixels"].shape == (20, 32, 32, 3) and rollout["next", "done"].sum() >= 4
    env.close()


@both
def test_torchrl_steps_many(kind: str, settings: dict[str, Any]) -> None:
    pytest.importorskip("torchrl")
    from torchrl.envs import GymWrapper

    same_step = {"autoreset_mode": AutoresetMode.SAME_STEP}
    many = gymnasium.make_vec(
        f"envs:{kind}/LabMaze-v0", 2, "sync", vector_kwargs=same_step, max_episode_steps=5, **settings
    )
    env = GymWrapper(many, device="cpu")
    rollout = env.rollout(12, break_when_any_done=False)
    assert rollout["observation"].shape == (2, 12, 32, 32, 3)
    done = rollout["next", "done"][..., 0]
    assert (done.sum(1) >= 2).all()
    # What an episode ends with is not what the next one begins with.
    row, step = done.nonzero()[0].tolist()
    assert not torch.equal(rollout["next", "observation"][row, step], rollout["observation"][row, step + 1])
    env.close()


@both
def test_skrl_steps_them(kind: str, settings: dict[str, Any]) -> None:
    pytest.importorskip("skrl")
    from skrl.envs.wrappers.torch import wrap_env

    env = wrap_env(gymnasium.make_vec(f"envs:{kind}/LabMaze-v0", num_envs=2, max_episode_steps=5, **settings))
    frames, _ = env.reset()
    assert frames.shape == (2, 32 * 32 * 3)
    for _ in range(5):
        frames, rewards, terminated, truncated, _ = env.step(torch.tensor([[3], [4]]))
    assert rewards.shape == (2, 1) and (terminated | truncated).all()
    env.close()


@both
def test_gymnasium_records_videos_of_them(kind: str, settings: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("moviepy")
    env = gymnasium.make(f"envs:{kind}/LabMaze-v0", max_episode_steps=6, **settings)
    env = gymnasium.wrappers.RecordVideo(env, str(tmp_path), disable_logger=True)
    env.reset(seed=0)
    num_frames = 1
    while not any(env.step(3)[2:4]):
        num_frames += 1
    env.close()
    [video] = tmp_path.glob("*.mp4")
    with av.open(str(video)) as file:
        [stream] = file.streams.video
        assert (stream.width, stream.height, stream.average_rate) == (32, 32, 15)
        assert abs(sum(1 for _ in file.decode(stream)) - num_frames) <= 1


@both
def test_gymnasium_gives_tensors_of_them(kind: str, settings: dict[str, Any]) -> None:
    pytest.importorskip("array_api_compat")
    from gymnasium.wrappers import NumpyToTorch

    env = NumpyToTorch(gymnasium.make(f"envs:{kind}/LabMaze-v0", **settings), device="cpu")
    frame, _ = env.reset(seed=0)
    after, reward, *_ = env.step(torch.tensor(3))
    assert frame.dtype == after.dtype == torch.uint8 and not torch.equal(frame, after) and float(reward) >= 0
    env.close()
