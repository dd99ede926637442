"""Worlds: found by name, made by Gymnasium, and a world of one's own that gives no more than it must."""

import sys
import types
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import envs  # noqa: F401  registers the worlds
from envs.actions import ActionSet
from envs.data.episodes import open_shards, read_episode
from envs.worlds.base import HeldActions, World
from envs.worlds.registry import TASKS, WORLDS, find_displacements, find_view_deg, get_world
from train.core.options import parse_options
from train.data.recording import RecordOptions
from train.record import record
from worldmodel.errors import ConfigError


class CounterEnv(gymnasium.Env[np.ndarray, int]):
    """Shows how often each action was taken."""

    def __init__(self, image_size: int, max_episode_steps: int | None) -> None:
        self.observation_space = spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        self.action_space = spaces.Discrete(2)
        self.size, self.limit, self.count, self.scene = image_size, max_episode_steps, 0, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, Any]:
        self.count, self.scene = 0, (options or {}).get("scene_seed", 0)
        return self._frame(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, Any]:
        self.count += 1
        return self._frame(), float(action), False, self.count == self.limit, {}

    def _frame(self) -> np.ndarray:
        return np.full((self.size, self.size, 3), (self.count + self.scene) % 256, np.uint8)


class Counter(World):
    """No more than a world must give."""

    name, fps = "Counter", 10.0
    actions = ActionSet("Counter", ("wait", "go"), (("w", "go"),), ((), ("go",)))

    def make(self, **settings: Any) -> gymnasium.Env[Any, Any]:
        return CounterEnv(**settings)


@pytest.fixture
def own_world(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a world outside of the package, which can be imported."""
    module = types.ModuleType("counting")
    module.Counter, module.other = Counter, 3  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "counting", module)
    return "counting:Counter"


@pytest.mark.parametrize("name", WORLDS)
def test_each_world_is_whole(name: str) -> None:
    world = get_world(name)
    assert world is get_world(name.lower()) and world.name == name and world.fps > 0
    assert WORLDS[name].max_episode_steps == world.max_episode_steps
    assert world.actions.name == name and len(world.actions.displacements) in (0, world.actions.num_actions)
    for prefix in ("Real", "Dream"):
        assert gymnasium.spec(f"{prefix}/{name}-v0").kwargs["world"] == name
        for task in WORLDS[name].tasks:
            assert gymnasium.spec(f"{prefix}/{name}{task}-v0").max_episode_steps == TASKS[task]
    assert (
        find_displacements(name, world.actions.names) == world.actions.displacements
        and find_view_deg(name) == world.view_deg
    )


def test_unknown_worlds_list_those_there_are(own_world: str) -> None:
    names = ", ".join(WORLDS)
    for name, message in {
        "Atlantis": f"unknown world 'Atlantis'; there are {names}",
        "counting:Missing": "cannot be imported",
        "no_such_module:World": "cannot be imported",
        "counting:other": "is no World",
    }.items():
        with pytest.raises(ConfigError, match=message):
            get_world(name)
        assert find_displacements(name, ("wait",)) == () and find_view_deg(name) is None


def test_a_world_that_needs_a_package_that_is_not_there_says_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "needy.py").write_text("import no_such_package.of_a_kind\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="^world 'needy:World' needs the package no_such_package, which is not inst"):
        get_world("needy:World")
    with pytest.raises(ConfigError, match="cannot be imported .*No module named 'json.more'.*PYTHONPATH"):
        get_world("json.more:World")


def test_motions_are_those_of_the_very_actions() -> None:
    names = get_world("LabMaze").actions.names
    assert find_displacements("LabMaze", names[:-1]) == () and find_displacements("LabMaze", list(names)) != ()


def test_a_world_of_ones_own_is_recorded(own_world: str, tmp_path: Path) -> None:
    words = f"--world {own_world} --episodes 3 --length 12 --image-size 16 --workers 1 --out {tmp_path}".split()
    record(parse_options(RecordOptions, "record", words))
    shards = open_shards(tmp_path)
    assert {shard.world for shard in shards} == {own_world} and shards[0].action_names == ("wait", "go")
    episode = shards[0].episodes[0]
    arrays = read_episode(episode, fields=("frames", "actions", "rewards", "truncated"))
    expected = (np.arange(13) + episode.scene_seed) % 256
    np.testing.assert_array_equal(arrays["frames"][:, 0, 0, 0], expected)
    np.testing.assert_array_equal(arrays["rewards"], arrays["actions"])
    assert arrays["truncated"].tolist() == [False] * 11 + [True] and episode.policy == HeldActions.name
    with pytest.raises(ConfigError, match=r"'size=9'.*settings of Counter \(NAME=VALUE\): none"):
        record(parse_options(RecordOptions, "record", [*words, "--out", str(tmp_path / "other"), "--set", "size=9"]))


def test_settings_that_a_world_does_not_know_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"\['color'\] of LabMaze are unknown; accepted: size, palette"):
        get_world("LabMaze").make(color="red", size=9)


def test_held_actions_are_held_and_all_are_played() -> None:
    played = [HeldActions(5, np.random.default_rng(3)) for _ in range(2)]
    actions = [[player.act({}) for _ in range(600)] for player in played]
    assert actions[0] == actions[1] and set(actions[0]) == set(range(5))
    changes = float(np.mean(np.diff(actions[0]) != 0))
    assert 0.08 < changes < 0.2  # held 6 steps in the mean, and now and then drawn twice
