"""Agents that learn in one world and are judged in another: scores, judging, files of agents, and the whole program."""

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from envs.tasks.starts import record_starts
from envs.worlds.labmaze.constants import ACTIONS
from envs.worlds.registry import get_world
from tests.conftest import moving_frames
from train.agents.agent import Agent, RandomAgent, build_policy, load_agent
from train.agents.judging import judge
from train.agents.ppo import PPOSettings
from train.agents.scores import summarize
from train.agents.worlds import check_alike, check_player, make_worlds, read_settings
from train.rl import RLOptions, main, run
from worldmodel.checkpoint import save_bundle
from worldmodel.errors import CheckpointError, ConfigError, DataError, MissingPackageError, ShapeError

QUICK_PPO = PPOSettings(num_envs=4, horizon=8, epochs=1, batch_size=16)
REAL = "envs:Real/LabMazeReach-v0"


def test_the_share_of_the_gap_is_that_of_the_means_and_lies_in_its_interval() -> None:
    rng = np.random.default_rng(0)
    chances = {"trained": 0.8, "control": 0.9, "random": 0.3}
    returns = {role: (rng.random((3, 200)) < chance).astype(float).tolist() for role, chance in chances.items()}
    found = summarize(returns)
    means = {role: np.mean(values) for role, values in returns.items()}
    share = (means["trained"] - means["random"]) / (means["control"] - means["random"])
    assert found["gap_closed"]["share"] == pytest.approx(share, abs=1e-3)
    for figure, (low, high) in [
        (found["gap_closed"]["share"], found["gap_closed"]["interval"]),
        *((agent["mean"], agent["interval"]) for agent in found["agents"].values()),
    ]:
        assert low < figure < high and high - low < 0.25
    assert found["agents"]["control"]["seeds"] == pytest.approx([np.mean(row) for row in returns["control"]], abs=1e-4)


def test_intervals_are_over_seeds_as_well_as_episodes() -> None:
    alike, apart = [[0.0, 1.0] * 50] * 3, [[0.0] * 100, [1.0] * 100, [0.0, 1.0] * 50]
    widths = [np.diff(summarize({"trained": rows})["agents"]["trained"]["interval"])[0] for rows in (alike, apart)]
    assert widths[0] < 0.2 < 0.5 < widths[1]


def test_agents_share_the_draws_so_that_equal_ones_close_the_gap_exactly() -> None:
    rows = (np.random.default_rng(1).random((2, 100)) < 0.8).astype(float).tolist()
    found = summarize({"trained": rows, "control": rows, "random": [[0.0] * 100] * 2})
    assert found["gap_closed"] == {"share": 1.0, "interval": [1.0, 1.0]}


def test_there_is_no_share_without_a_gap() -> None:
    rows = [[0.0, 1.0]] * 2
    assert summarize({"trained": rows, "control": rows, "random": rows})["gap_closed"] is None
    assert summarize({"trained": rows, "random": [[0.0, 0.0]] * 2})["gap_closed"] is None
    assert summarize({"trained": rows, "control": rows, "random": [[0.0, 0.0]] * 2})["gap_closed"]["interval"] is None


class LengthEnv(gymnasium.Env[np.ndarray, np.int64]):
    """Goes on for as many steps as its seed says, and pays for action 1."""

    observation_space, action_space = spaces.Box(0, 255, (2, 2, 3), np.uint8), spaces.Discrete(2)
    begun: list[int] = []

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        assert seed is not None
        self.begun.append(seed)
        self.left = 1 + seed % 7
        return np.full((2, 2, 3), seed % 256, np.uint8), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.left -= 1
        return np.zeros((2, 2, 3), np.uint8), float(action), self.left == 0, False, {}


class Ones:
    """Always takes action 1."""

    def act(self, frames: np.ndarray, chance: torch.Generator, *, greedy: bool = False) -> np.ndarray:
        return np.ones(len(frames), np.int64)


@pytest.mark.parametrize(("num_envs", "count"), [(3, 20), (1, 4), (5, 2)])
def test_every_episode_is_played_to_its_end_however_long(num_envs: int, count: int) -> None:
    LengthEnv.begun.clear()
    envs = SyncVectorEnv([LengthEnv] * num_envs, autoreset_mode=AutoresetMode.DISABLED)
    found = judge(Ones(), envs, range(40, 40 + count), greedy=True)
    lengths = [1 + seed % 7 for seed in range(40, 40 + count)]
    assert found.lengths == lengths and found.returns == lengths
    assert set(LengthEnv.begun) == set(range(40, 40 + count))


def test_chance_of_a_player_is_of_the_seeds() -> None:
    envs = SyncVectorEnv([LengthEnv] * 2, autoreset_mode=AutoresetMode.DISABLED)
    player = RandomAgent(2)
    first, again, other = (judge(player, envs, range(low, low + 30), greedy=False) for low in (7, 7, 14))
    assert first == again and first.lengths == other.lengths and first.returns != other.returns


def test_settings_are_read_by_what_they_look_like() -> None:
    texts = ("start=far", "num_steps=1", "min_size_px=9.5", "processes=true", "schedule=none", "starts=a=b.h5")
    assert list(read_settings(texts).values()) == ["far", 1, 9.5, True, None, "a=b.h5"]
    with pytest.raises(ConfigError, match="setting 'far' is not accepted; give NAME=VALUE"):
        read_settings(["far"])


@pytest.fixture
def agent() -> Agent:
    """An untrained agent for frames of 36 pixels."""
    pytest.importorskip("stable_baselines3")
    torch.manual_seed(3)
    return Agent(build_policy(36, 7), {"seed": 3})


def test_an_agent_acts_as_it_did_after_it_was_kept(agent: Agent, tmp_path: Path) -> None:
    agent.save(tmp_path)
    again = load_agent(tmp_path)
    frames = moving_frames(64, 36, seed=0)
    for greedy in (True, False):
        acts = [each.act(frames, torch.Generator().manual_seed(1), greedy=greedy) for each in (agent, again)]
        np.testing.assert_array_equal(*acts)
        assert acts[0].shape == (64,) and 0 <= acts[0].min() <= acts[0].max() < 7
    assert len(set(acts[0].tolist())) == 7 and again.about == {"seed": 3}
    assert {path.name for path in tmp_path.iterdir()} == {"policy.safetensors", "agent.json"}
    with pytest.raises(ShapeError, match=r"takes frames uint8 \(B, 36, 36, 3\); got uint8 \(64, 32, 32, 3\)"):
        agent.act(moving_frames(64, 32, seed=0), torch.Generator())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "policy.safetensors").unlink(), "holds no whole agent"),
        (lambda folder: (folder / "policy.safetensors").write_bytes(b"12345678901"), "is damaged"),
        (lambda folder: (folder / "agent.json").write_text("{"), "holds no whole agent"),
        (lambda folder: (folder / "agent.json").write_text('{"format": "x", "version": 1}'), "no agent of version 1"),
    ],
)
def test_a_damaged_agent_is_refused(agent: Agent, tmp_path: Path, damage: Callable[[Path], Any], message: str) -> None:
    agent.save(tmp_path)
    damage(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        load_agent(tmp_path)


def test_an_agent_that_learned_in_another_world_is_refused(agent: Agent) -> None:
    check_player(agent, "a", SyncVectorEnv([lambda: FrameEnv(36)]))
    for size, count in ((64, 7), (36, 3)):
        envs = SyncVectorEnv([lambda size=size, count=count: FrameEnv(size, count)])
        with pytest.raises(ConfigError, match=f"takes frames of 36 pixels and has 7 actions; a has {size} and {count}"):
            check_player(agent, "a", envs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": 0}, "seeds must be at least 1; got 0"),
        ({"frames": 0}, "frames must be at least 1"),
        ({"episodes": 1}, "episodes must be at least 2"),
        ({"only": (5,)}, r"--only \[5\] are not among the seeds from 0 to 4"),
    ],
)
def test_a_comparison_that_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RLOptions(out=Path("nowhere"), **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"horizon": 0}, "ppo.horizon must be at least 1; got 0"),
        ({"batch_size": 1000}, "ppo.batch_size must be from 2 to num_envs x horizon, 256; got 1000"),
        ({"learning_rate": 0.0}, "ppo.learning_rate must be above 0"),
        ({"discount": 1.5}, "discount and trace from 0 to 1"),
    ],
)
def test_a_way_to_learn_that_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PPOSettings(**changes)


@pytest.mark.parametrize(
    ("id", "settings", "message"),
    [
        ("envs:Real/Nowhere-v0", {}, "there is no environment 'envs:Real/Nowhere-v0'.*envs:Real/LabMazeReach-v0"),
        ("no_such_module:Real/LabMaze-v0", {}, "no_such_module"),
        ("envs:Dream/LabMaze-v0", {"colour": 3}, "settings of envs:Dream/LabMaze-v0 are not accepted: .*colour"),
    ],
)
def test_worlds_that_cannot_be_made_are_named(id: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, MissingPackageError), match=message):
        make_worlds(id, 1, "DISABLED", settings)


def test_a_real_world_with_a_wrong_setting_or_without_its_package_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("labmaze")
    pytest.importorskip("mujoco")
    with pytest.raises(ConfigError, match="colour"):
        make_worlds(REAL, 1, "DISABLED", {"colour": 3})
    monkeypatch.setitem(sys.modules, "mujoco", None)
    with pytest.raises(MissingPackageError, match="mujoco"):
        make_worlds(REAL, 1, "DISABLED", {}).reset(seed=0)


@pytest.mark.parametrize("name", ["stable_baselines3", "tensorboard"])
def test_without_a_package_one_line_says_what_to_install(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingPackageError, match=r'pip install -e "\.\[rl\]"') as caught:
        run(RLOptions(out=tmp_path))
    assert "\n" not in str(caught.value) and not any(tmp_path.iterdir())


class FrameEnv(gymnasium.Env[np.ndarray, np.int64]):
    """Shows nothing; frames of a size, and so many actions."""

    def __init__(self, size: int, num_actions: int = 7) -> None:
        self.observation_space = spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.action_space = spaces.Discrete(num_actions)


def test_one_agent_needs_equal_spaces_and_frames_that_are_large_enough() -> None:
    large, other, small, fewer = (
        SyncVectorEnv([lambda size=size, count=count: FrameEnv(size, count)])
        for size, count in ((64, 7), (48, 7), (32, 7), (64, 3))
    )
    check_alike([("a", large), ("b", large)])
    with pytest.raises(ConfigError, match=r"cannot act in both: a has Box.*64.*, b has Box.*48"):
        check_alike([("a", large), ("b", other)])
    with pytest.raises(ConfigError, match=r"a has Discrete\(7\), b has Discrete\(3\)"):
        check_alike([("a", large), ("b", fewer)])
    with pytest.raises(ConfigError, match="at least 36 pixels a side; a shows Box.*32"):
        check_alike([("a", small)])


@pytest.fixture(scope="module")
def dream_settings(
    tmp_path_factory: pytest.TempPathFactory, make_denoiser: Callable[..., Any], make_codec: Callable[..., Any]
) -> tuple[str, ...]:
    """Settings of the task in a tiny dream of 64 x 64 pixels."""
    for package in ("mujoco", "labmaze", "stable_baselines3"):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("dream")
    record_starts(get_world("LabMaze"), 4, folder / "starts.h5", sizes_px=(16.0, 48.0), num_frames=3)
    frames = torch.from_numpy(np.stack([moving_frames(4, 64, 0)]))
    save_bundle(
        folder / "world",
        codec=make_codec(image_size=64),
        denoiser=make_denoiser(latent_size=8),
        openings={"frames": frames, "actions": torch.zeros(1, 3, dtype=torch.uint8)},
        info={"world": "LabMaze", "action_names": list(ACTIONS.names), "fps": 15, "num_steps": 1},
    )
    return (f"checkpoint={folder / 'world'}", f"starts={folder / 'starts.h5'}", "device=cpu", "max_episode_steps=6")


@pytest.fixture(scope="module")
def comparison(dream_settings: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> RLOptions:
    """A comparison that has been run: one seed, a few frames."""
    options = RLOptions(
        out=tmp_path_factory.mktemp("rl") / "run",
        train_settings=dream_settings,
        judge_settings=("start=near", "max_episode_steps=6", "size=5"),
        seeds=1,
        frames=64,
        episodes=6,
        train_episodes=4,
        video_episodes=1,
        device="cpu",
        ppo=QUICK_PPO,
    )
    run(options, "the command")
    return options


def read_all(folder: Path) -> dict[str, bytes]:
    """Return agents and judgements of a run, by name; without what says how long it took."""
    files = [*folder.glob("agents/*/policy.safetensors"), *folder.glob("judged/*.json")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.slow
def test_the_report_has_all_agents_in_both_worlds(comparison: RLOptions) -> None:
    report = json.loads((comparison.out / "report.json").read_text())
    assert report["seeds"] == [0] and report["episodes"] == 6 and report["train_episodes"] == 4
    for mode in ("drawn", "greedy"):
        assert set(report["judge"][mode]["agents"]) == {"trained", "control", "random"}
        for found in report["judge"][mode]["agents"].values():
            assert 0 <= found["interval"][0] <= found["mean"] <= found["interval"][1] <= 1
            assert 1 <= found["length"] <= 6
    assert set(report["train"]["agents"]) == {"trained", "control", "random"}
    assert {about["frames"] for about in report["learning"].values()} == {64}

    text = (comparison.out / "report.md").read_text()
    assert "Share of the gap" in text and "`the command`" in text and text.count("| random |") == 3
    assert (comparison.out / "curves.png").stat().st_size > 5000
    assert len(list((comparison.out / "tensorboard").glob("*/events*"))) == 2
    for place in ("judge", "train"):
        with av.open(str(comparison.out / "videos" / f"{place}.mp4")) as file:
            assert 2 <= sum(1 for _ in file.decode(video=0)) <= 8


@pytest.mark.slow
def test_it_goes_on_where_it_stopped_and_comes_to_the_same(comparison: RLOptions, tmp_path: Path) -> None:
    before = read_all(comparison.out)
    copy = tmp_path / "run"
    shutil.copytree(comparison.out, copy)
    (copy / "agents" / "trained-0" / "curve.json").unlink()  # as if stopped while it learned
    for path in (copy / "judged").glob("trained-0-*"):
        path.unlink()
    kept = copy / "agents" / "control-0" / "policy.safetensors"
    written = kept.stat().st_mtime_ns
    run(dataclasses.replace(comparison, out=copy))
    assert read_all(copy) == before and kept.stat().st_mtime_ns == written

    with pytest.raises(ConfigError, match=r"holds results of other settings \(frames 64, now 32\)"):
        run(dataclasses.replace(comparison, out=copy, frames=32))
    (copy / "settings.json").write_text("{")
    with pytest.raises(DataError, match=r"settings.json is damaged"):
        run(dataclasses.replace(comparison, out=copy))


@pytest.mark.slow
def test_agents_of_a_run_are_judged_elsewhere_without_learning(
    comparison: RLOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = f"--agents {comparison.out} --out {tmp_path / 'again'} --seeds 1 --episodes 6 --video-episodes 0"
    words += " --judge-settings start=near max_episode_steps=6 size=5 --train envs:Dream/Gone-v0"
    monkeypatch.setattr("sys.argv", ["train.rl", *words.split()])
    main()
    assert "Share of the gap" in capsys.readouterr().out
    for role in ("trained", "control", "random"):
        files = [folder / "judged" / f"{role}-0-judge.json" for folder in (comparison.out, tmp_path / "again")]
        assert files[0].read_bytes() == files[1].read_bytes()
    assert not (tmp_path / "again" / "agents").exists()
    with pytest.raises(CheckpointError, match="trained-1 holds no whole agent"):
        run(
            RLOptions(
                out=tmp_path / "more", agents=comparison.out, judge_settings=("image_size=64",), seeds=2, only=(1,)
            )
        )


@pytest.mark.slow
def test_worlds_that_do_not_fit_are_refused_before_anything_is_learned(comparison: RLOptions, tmp_path: Path) -> None:
    options = dataclasses.replace(comparison, out=tmp_path / "new", judge_settings=("image_size=48",))
    with pytest.raises(ConfigError, match="one agent cannot act in both"):
        run(options)
    assert not options.out.exists()
