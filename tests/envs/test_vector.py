"""Many dreams in one vector: Gymnasium's contract, each dream its own, and no wait for the device."""

import pickle
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers.vector import (
    ArrayConversion,
    DictInfoToList,
    NumpyToTorch,
    RecordEpisodeStatistics,
    TransformObservation,
)
from torch.utils._python_dispatch import TorchDispatchMode

from envs.dream import DreamEnv
from envs.starts import CONTEXT_SEED
from envs.vector import DreamVectorEnv
from envs.worlds.registry import WORLDS
from worldmodel.errors import ActionError, ConfigError, DeviceError, SeedError, ShapeError, StateError
from worldmodel.reward_rule import RewardRule
from worldmodel.world import WorldModel

KINDS = [{}, {"chance": "device"}, {"output": "torch"}, {"output": "torch", "chance": "device"}]
MODES = list(AutoresetMode)


@pytest.fixture
def make(bundle: Path) -> Callable[..., DreamVectorEnv]:
    return lambda **settings: DreamVectorEnv(
        **{"num_envs": 3, "checkpoint": str(bundle), "device": "cpu", "num_steps": 1, **settings}
    )


@pytest.fixture
def make_pixels(pixel_bundle: Path) -> Callable[..., DreamVectorEnv]:
    return lambda **settings: DreamVectorEnv(
        **{"num_envs": 3, "checkpoint": str(pixel_bundle), "device": "cpu", "num_steps": 1, **settings}
    )


def course(num_envs: int, num_steps: int) -> np.ndarray:
    """Return actions that differ between dreams and steps, int64 (T, B)."""
    return (np.arange(num_steps)[:, None] + np.arange(num_envs)) % 7


def play(env: DreamVectorEnv, actions: np.ndarray) -> np.ndarray:
    """Return the frames of a course, (T, B, H, W, 3)."""
    given = torch.from_numpy(actions) if env.output == "torch" else actions
    return np.stack([np.asarray(env.step(each)[0]) for each in given])


def end_where(env: DreamVectorEnv, ends: list[list[bool]]) -> None:
    """Let the heads of a world say when dreams end, step after step."""
    step, told = env._model.step, iter(ends)

    def stub(*given: Any, **settings: Any) -> Any:
        return step(*given, **settings)._replace(terminated=torch.tensor(next(told)))

    env._model.step = stub  # type: ignore[method-assign]


def test_gymnasium_makes_it_by_default(bundle: Path) -> None:
    settings = {"checkpoint": str(bundle), "device": "cpu", "num_steps": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gymnasium.make_vec("envs:Dream/LabMaze-v0", num_envs=2, **settings)
    assert isinstance(env, DreamVectorEnv) and env.num_envs == 2
    assert env.max_episode_steps == WORLDS["LabMaze"].max_episode_steps == env.spec.max_episode_steps
    assert gymnasium.spec("Dream/LabMaze-v0").max_episode_steps == gymnasium.spec("Real/LabMaze-v0").max_episode_steps
    assert env.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP == env.autoreset_mode
    single = gymnasium.make("envs:Dream/LabMaze-v0", **settings)
    assert env.single_observation_space == single.observation_space and env.single_action_space == single.action_space
    frames, _ = env.reset(seed=1)
    assert frames in env.observation_space and env.action_space.sample().shape == (2,)
    frames, rewards, terminated, truncated, _ = env.step(env.action_space.sample())
    assert frames in env.observation_space
    assert (rewards.dtype, terminated.dtype, truncated.dtype) == (np.float64, np.bool_, np.bool_)
    assert gymnasium.make_vec("envs:Dream/LabMaze-v0", max_episode_steps=4, **settings).max_episode_steps == 4
    sync = gymnasium.make_vec("envs:Dream/LabMaze-v0", num_envs=2, vectorization_mode="sync", **settings)
    assert np.array_equal(sync.reset(seed=1)[0], env.reset(seed=1)[0]), "seeds draw the same openings"


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_equal_seeds_give_equal_dreams_whatever_was_dreamt_before(
    kind: dict[str, str], make: Callable[..., DreamVectorEnv]
) -> None:
    first, second = make(**kind), make(**kind)
    actions = course(3, 6)
    second.reset(seed=40)
    play(second, actions)
    (a, info), (b, again) = first.reset(seed=5), second.reset(seed=[5, 6, 7])
    assert np.array_equal(a, b) and np.array_equal(info["dream_seed"], again["dream_seed"])
    kept = play(first, actions)
    assert np.array_equal(play(second, actions), kept)
    first.reset(seed=6)
    assert not np.array_equal(play(first, actions), kept)
    first.reset(seed=[5, None, 7])
    found = play(first, actions)
    assert np.array_equal(found[:, [0, 2]], kept[:, [0, 2]]) and not np.array_equal(found[:, 1], kept[:, 1])


def test_a_dream_is_that_of_the_single_environment(
    make: Callable[..., DreamVectorEnv], bundle: Path, make_pixels: Callable[..., DreamVectorEnv], pixel_bundle: Path
) -> None:
    for many, checkpoint in ((make(), bundle), (make_pixels(), pixel_bundle)):
        single = DreamEnv(checkpoint=str(checkpoint), device="cpu", num_steps=1)
        _, infos = many.reset(seed=5)
        end_where(many, [[False] * 3] * 5)
        actions = course(3, 5)
        steps = [many.step(each) for each in actions]
        for row in range(3):
            _, info = single.reset(seed=5 + row, options={"context_seed": CONTEXT_SEED})
            assert {name: infos[name][row] for name in ("opening", "dream_seed")} == {
                name: info[name] for name in ("opening", "dream_seed")
            }
            for each, (frames, rewards, _, _, told) in zip(actions, steps, strict=True):
                frame, reward, _, _, info = single.step(each[row])
                assert np.abs(frames[row].astype(int) - frame).max() <= 1
                assert rewards[row] == reward
                assert info.keys() == {name for name in told if name[0] != "_"}
                for name, value in info.items():
                    assert isinstance(value, np.generic | np.ndarray) and value.dtype == np.float32
                    np.testing.assert_allclose(told[name][row], value, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_another_order_is_the_same_dreams_exactly(
    kind: dict[str, str], make_pixels: Callable[..., DreamVectorEnv]
) -> None:
    env, order = make_pixels(**kind, num_envs=4), [2, 0, 3, 1]
    actions = course(4, 6)
    env.reset(seed=[1, 2, 3, 4])
    frames = play(env, actions)
    env.reset(seed=[[1, 2, 3, 4][row] for row in order])
    assert np.array_equal(play(env, actions[:, order]), frames[:, order])


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_dreams_end_and_begin_anew_each_by_itself(
    mode: AutoresetMode, kind: dict[str, str], make: Callable[..., DreamVectorEnv], openings: dict[str, torch.Tensor]
) -> None:
    env = make(**kind, autoreset_mode=mode, max_episode_steps=4)
    ends = [[False] * 3, [True, False, False], [False] * 3, [False, True, True], [False] * 3, [False] * 3]
    end_where(env, ends)
    starts = openings["frames"][:, -1].numpy()
    env.reset(seed=3)
    shape, is_torch = (3,), env.output == "torch"
    was_over = np.zeros(3, bool)
    ages = np.zeros(3, int)
    for step, expected in enumerate(ends):
        if mode == AutoresetMode.DISABLED and was_over.any():
            frames, info = env.reset(options={"reset_mask": was_over})
            assert np.array_equal(info["_opening"], was_over)
            for row in np.flatnonzero(was_over):
                assert np.array_equal(frames[row], starts[int(info["opening"][row])])
            ages[was_over], was_over = 0, np.zeros(3, bool)

        actions = course(3, 6)[step]
        frames, rewards, terminated, truncated, info = env.step(torch.from_numpy(actions) if is_torch else actions)
        is_new = was_over if mode == AutoresetMode.NEXT_STEP else np.zeros(3, bool)
        ages = np.where(is_new, 0, ages + 1)
        assert np.array_equal(terminated, np.array(expected) & ~is_new)
        assert np.array_equal(truncated, (ages >= 4) & ~is_new)
        assert all(tuple(part.shape) == shape for part in (rewards, terminated, truncated))
        was_over = np.asarray(terminated) | np.asarray(truncated)
        if mode == AutoresetMode.SAME_STEP:
            is_new = was_over
            ages[was_over] = 0
            assert np.array_equal(info.get("_final_obs", np.zeros(3, bool)), is_new)
            for row in np.flatnonzero(is_new):
                assert not np.array_equal(info["final_obs"][row], frames[row])
                assert 0 < info["final_info"]["end_probability"][row] < 1
            was_over = np.zeros(3, bool)
        assert np.array_equal(info.get("_opening", np.zeros(3, bool)), is_new if mode.value != "Disabled" else [0] * 3)
        assert np.array_equal(info.get("_reward_probability", np.zeros(3, bool)), ~is_new)
        for row in np.flatnonzero(is_new):
            assert np.array_equal(frames[row], starts[int(info["opening"][row])])
            assert rewards[row] == 0 or mode == AutoresetMode.SAME_STEP


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_a_dream_begun_anew_has_had_no_rewards(
    mode: AutoresetMode, kind: dict[str, str], make: Callable[..., DreamVectorEnv], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The world's rule ends a dream with its second reward; what pays in every step does so again and again."""
    env = make(**kind, autoreset_mode=mode)
    monkeypatch.setattr(env._model, "reward_rule", RewardRule(ends_after=2))
    with torch.no_grad():
        env._model.denoiser.reward_head.bias.copy_(torch.tensor([-50.0, 50.0]))
        env._model.denoiser.terminated_head.bias.fill_(-50.0)
    env.reset(seed=3)
    ends = []
    for actions in course(3, 7):
        if mode == AutoresetMode.DISABLED and ends and all(ends[-1]):
            env.reset(options={"reset_mask": np.ones(3, bool)})
        ends.append(env.step(torch.from_numpy(actions) if env.output == "torch" else actions)[2].tolist())
    waits = mode == AutoresetMode.NEXT_STEP  # a step that begins anew pays nothing
    over = [False, True, False] if waits else [False, True]
    assert ends == [[over[step % len(over)]] * 3 for step in range(7)]


def test_openings_begun_some_at_a_time_are_the_same_starts(
    make_pixels: Callable[..., DreamVectorEnv], monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = []
    for at_once in (32, 1):
        monkeypatch.setattr("envs.starts.AT_ONCE", at_once)
        env = make_pixels(chance="device")
        env.reset(seed=3)
        tables.append(env.starts._begin_all())
    for name, part in tables[0].items():
        assert part.shape == tables[1][name].shape, name
        assert torch.allclose(part.float(), tables[1][name].float(), atol=1e-4), name


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"options": {"frames": 5}}, ShapeError),
        ({"options": {"opening": [[1, 2], [3], [4]]}}, ConfigError),
        ({"options": {"opening": "one"}}, ConfigError),
        ({"seed": np.array(-5)}, SeedError),
        ({"seed": np.array([1, 2])}, SeedError),
        ({"seed": 1.5}, SeedError),
    ],
    ids=str,
)
def test_a_reset_that_cannot_be_read_is_refused(
    given: dict[str, Any], error: type[Exception], make: Callable[..., DreamVectorEnv]
) -> None:
    env = make()
    with pytest.raises(error):
        env.reset(**given)
    assert len(env.reset(seed=np.array(5))[0]) == 3


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_dream_begun_anew_is_the_one_that_reset_begins(
    kind: dict[str, str], make_pixels: Callable[..., DreamVectorEnv]
) -> None:
    """What is copied of a kept start is all of it, over a dream that has filled its memories; others go on."""
    env, other = make_pixels(**kind), make_pixels(**kind)
    env.reset(seed=3)
    before = play(env, course(3, 9))
    assert before.std() > 0
    _, info = env.reset(options={"reset_mask": np.array([False, True, False])})
    chosen = {name: [None, int(info[name][1]), None] for name in ("opening", "dream_seed")}
    other.reset(seed=3)
    play(other, course(3, 9))
    untouched = other.snapshot()
    other.reset(options=chosen)
    for name, part in env._require("test").state.dream.tensors().items():
        mine, theirs = (each._require("test").state.dream.tensors()[name] for each in (env, other))
        axis = 1 if name.startswith("rings.") else 0
        assert torch.equal(mine.select(axis, 1), theirs.select(axis, 1)), name
        del part
    frames = play(env, course(3, 5))
    assert np.array_equal(frames[:, 1], play(other, course(3, 5))[:, 1])
    other.restore(untouched)
    assert np.array_equal(frames[:, [0, 2]], play(other, course(3, 5))[:, [0, 2]])


def test_an_episode_as_a_start_may_have_any_length(make: Callable[..., DreamVectorEnv]) -> None:
    env = make()
    _, info = env.reset(seed=2)
    expected = play(env, course(3, 4))
    frames, actions = (part[int(info["opening"][0])].numpy() for part in (env._dreamer.frames, env._dreamer.actions))
    short = np.zeros((3, 32, 32, 3), np.uint8)
    given = {"frames": [frames, short, None], "actions": [actions, np.array([1, 2]), None]}
    seeds = {"dream_seed": info["dream_seed"]}
    for again in (make(), env):
        found, told = again.reset(seed=2, options=given | seeds)
        assert np.array_equal(found[1], short[-1]) and np.array_equal(found[0], frames[-1])
        assert list(told["_opening"]) == [False, False, True] and told["_dream_seed"].all()
        frames_dreamt = play(again, course(3, 4))
        assert np.array_equal(frames_dreamt[:, [0, 2]], expected[:, [0, 2]])
        assert not np.array_equal(frames_dreamt[:, 1], expected[:, 1])


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_snapshots_and_forks_of_single_dreams(kind: dict[str, str], make_pixels: Callable[..., DreamVectorEnv]) -> None:
    env = make_pixels(**kind, max_episode_steps=6)
    env.reset(seed=3)
    play(env, course(3, 2))
    every, one = env.snapshot(), env.snapshot(np.array([False, True, False]))
    ahead = play(env, course(3, 7))
    env.restore(every)
    assert np.array_equal(play(env, course(3, 7)), ahead), "with the openings that are drawn at the end"
    env.restore(every)
    play(env, course(3, 3))
    shown = env.restore(pickle.loads(pickle.dumps(one)))
    assert np.array_equal(shown[1], one.frames[0])
    assert np.array_equal(play(env, course(3, 4))[:4, 1], ahead[:4, 1])

    env.restore(every)
    shown = env.fork(1, [0, 2])
    assert np.array_equal(shown[0], shown[1]) and np.array_equal(shown[2], shown[1])
    same = play(env, np.full((2, 3), 3))
    assert np.array_equal(same[:, 0], same[:, 1]) and np.array_equal(same[:, 2], same[:, 1])
    env.fork(1, [2], seeds=[99])
    apart = play(env, np.full((2, 3), 3))
    assert np.array_equal(apart[:, 0], apart[:, 1]) and not np.array_equal(apart[:, 2], apart[:, 1])
    env.restore(one, rows=[2])
    assert np.array_equal(play(env, course(3, 1)[:, [0, 0, 1]])[0, 2], ahead[0, 1])


@pytest.mark.parametrize("num_envs", [1, 2])
def test_arrays_are_the_callers_own(num_envs: int, make: Callable[..., DreamVectorEnv]) -> None:
    for output in ("numpy", "torch"):
        env = make(num_envs=num_envs, output=output)
        actions = course(num_envs, 1)[0]
        given = torch.from_numpy(actions) if output == "torch" else actions
        frames, _ = env.reset(seed=1)
        found = [env.step(given) for _ in range(2)]
        kept = [np.asarray(part).copy() for part in (frames, *found[0][:4])]
        frames, again = env.reset(seed=1)[0], env.step(given)
        assert all(np.array_equal(a, b) for a, b in zip(kept, (frames, *again[:4]), strict=True))
        shown = env.render()
        again[0][:] = 0
        assert np.array_equal(np.stack(env.render()), np.stack(shown)) and np.stack(shown).any()
        if output == "torch":
            weight = torch.ones(num_envs, requires_grad=True)
            (weight * again[1]).sum().backward()  # what a policy learns from is no tensor of inference


def test_vector_wrappers_of_gymnasium(make: Callable[..., DreamVectorEnv]) -> None:
    for mode in MODES:
        dreams = make(autoreset_mode=mode, max_episode_steps=3)
        end_where(dreams, [[False] * 3] * 8)
        env = RecordEpisodeStatistics(dreams)
        env.reset(seed=1)
        lengths: list[int] = []
        for step in range(8):
            if mode == AutoresetMode.DISABLED and step and step % 3 == 0:
                env.reset(options={"reset_mask": np.ones(3, bool)})
            _, _, _, truncated, info = env.step(np.zeros(3, int))
            lengths += [int(x) for x in info["episode"]["l"][truncated]] if truncated.any() else []
        assert lengths == [3] * 6
    convert = NumpyToTorch(make())
    frames, info = convert.reset(seed=1)
    assert isinstance(frames, torch.Tensor) and isinstance(info["dream_seed"], torch.Tensor)
    assert isinstance(convert.step(torch.zeros(3, dtype=torch.int64))[1], torch.Tensor)
    back = ArrayConversion(make(output="torch"), env_xp=torch, target_xp=np)
    assert isinstance(back.reset(seed=1)[0], np.ndarray)
    assert isinstance(back.step(np.zeros(3, int))[0], np.ndarray)
    listed = DictInfoToList(make())
    listed.reset(seed=1)
    assert len(listed.step(np.zeros(3, int))[4]) == 3
    seen = TransformObservation(make(), lambda frames: frames // 2)
    seen.reset(seed=1)
    assert seen.step(np.zeros(3, int))[0].max() < 128


class NoWaits(TorchDispatchMode):
    """Fails on what makes the CPU wait for a device: values read, shapes that depend on values."""

    WAITS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "unique", "item")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().removeprefix("aten::").split(".")[0]
        assert name not in self.WAITS, f"{func} waits for the device"
        if name == "index" and any(part is not None and part.dtype == torch.bool for part in args[1]):
            raise AssertionError(f"{func} by a mask waits for the device")
        return func(*args, **(kwargs or {}))


@pytest.fixture
def no_copies(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Forbid what copies between the CPU and a device, from when it is called."""

    def refuse(*given: Any, **settings: Any) -> Any:
        raise AssertionError("copied between the CPU and the device")

    def forbid() -> None:
        for name in ("tolist", "numpy", "cpu", "item", "__array__", "__int__", "__float__", "__bool__", "__index__"):
            monkeypatch.setattr(torch.Tensor, name, refuse)
        for name in ("tensor", "as_tensor", "from_numpy"):
            monkeypatch.setattr(torch, name, refuse)

    yield forbid
    monkeypatch.undo()


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_a_step_on_the_device_waits_for_nothing(
    mode: AutoresetMode, make_pixels: Callable[..., DreamVectorEnv], no_copies: Callable[[], None]
) -> None:
    settings: dict[str, Any] = {"output": "torch", "chance": "device", "validate": False, "num_envs": 8}
    env = make_pixels(**settings, autoreset_mode=mode, max_episode_steps=3)
    env.reset(seed=1)
    actions = torch.arange(8) % 7
    env.step(actions)  # the first one begins all openings
    no_copies()
    with NoWaits():
        for _ in range(5):
            env.step(actions)


def test_a_wait_would_be_seen() -> None:
    for call in (lambda x: x[0].item(), lambda x: x.nonzero(), lambda x: x[x > 0]):
        with pytest.raises(AssertionError, match="waits for the device"), NoWaits():
            call(torch.ones(2))


@pytest.mark.parametrize(
    ("actions", "error", "message"),
    [
        (np.array([1, 2]), ShapeError, r"actions must be integers \(3,\) from 0 to 6; got shape \(2,\)"),
        (np.array([[1, 2, 3]]), ShapeError, "got shape"),
        (np.array([0.0, 1.0, 2.0]), ActionError, "got float64"),
        (np.array([True, False, True]), ActionError, "got bool"),
        ([0, 1, "x"], ActionError, "actions must be integers"),
        (np.array([0, 1, 7]), ActionError, r"got \[0, 1, 7\]"),
        (np.array([0, -1, 2]), ActionError, r"got \[0, -1, 2\]"),
        (torch.tensor([0, 1, 9]), ActionError, r"got \[0, 1, 9\]"),
        (torch.zeros(3), ActionError, "got torch.float32"),
        (torch.zeros(3, dtype=torch.int64, device="meta"), DeviceError, "actions are on meta, dreams on cpu"),
        (1, ShapeError, r"got shape \(\)"),
    ],
    ids=str,
)
def test_actions_that_do_not_fit_change_nothing(
    actions: Any, error: type[Exception], message: str, make: Callable[..., DreamVectorEnv]
) -> None:
    env, other = make(), make()
    for each in (env, other):
        each.reset(seed=1)
    with pytest.raises(error, match=message):
        env.step(actions)
    assert np.array_equal(play(env, course(3, 2)), play(other, course(3, 2)))


def test_calls_that_do_not_fit(make: Callable[..., DreamVectorEnv]) -> None:
    env = make()
    for call, name in ((lambda: env.step([0, 0, 0]), "step"), (env.render, "render"), (env.snapshot, "snapshot")):
        with pytest.raises(StateError, match=f"{name} was called before the first reset"):
            call()
    with pytest.raises(StateError, match="reset_mask was called before the first reset"):
        env.reset(options={"reset_mask": np.array([True, False, False])})
    env.reset(seed=1)
    for mask in (np.ones(2, bool), np.ones(3, int), np.zeros(3, bool)):
        with pytest.raises(ShapeError, match=r"reset_mask must be bool \(3,\)"):
            env.reset(options={"reset_mask": mask})
        with pytest.raises(ShapeError, match=r"mask must be bool \(3,\)"):
            env.snapshot(mask)
    for fork in (lambda: env.fork(3, [0]), lambda: env.fork(0, [-1]), lambda: env.restore(env.snapshot(), [0, 1, 5])):
        with pytest.raises(ShapeError, match="dream must be a whole number from 0 to 2"):
            fork()
    with pytest.raises(ShapeError, match="different rows"):
        env.fork(0, [1, 1])
    with pytest.raises(ShapeError, match="one seed a target, 2; got 1"):
        env.fork(0, [1, 2], seeds=[1])
    for seed in ([1, 2], -1, "1", [1, 2, -3], 1.5):
        with pytest.raises(SeedError, match="seed must be a whole number"):
            env.reset(seed=seed)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="option frames must be uint8"):
        env.reset(options={"frames": [np.zeros((2, 8, 8, 3), np.uint8)] * 3, "actions": [[1]] * 3})
    with pytest.raises(ShapeError, match="option opening must have one entry a dream, 3; got 2"):
        env.reset(options={"opening": [0, 1]})
    with pytest.raises(ConfigError, match="reset option opening must be a whole number from 0 to 2; got 9"):
        env.reset(options={"opening": 9})
    with pytest.raises(ConfigError, match="reset accepts reset_mask, .*; got maze"):
        env.reset(options={"maze": 1})
    with pytest.raises(StateError, match="restore takes what snapshot returned; got int"):
        env.restore(3)  # type: ignore[arg-type]
    env.close()
    env.close()
    for call in (lambda: env.step([0, 0, 0]), lambda: env.reset(seed=1), env.render, env.snapshot):
        with pytest.raises(StateError, match="was called after close; make the environment again"):
            call()


def test_dreams_that_do_not_fit(make: Callable[..., DreamVectorEnv]) -> None:
    env, other = make(), make(memory_frames=4)
    env.reset(seed=1)
    other.reset(seed=1)
    with pytest.raises(StateError, match="this snapshot is of memory_frames 4"):
        env.restore(other.snapshot())
    counted = make(chance="device")
    counted.reset(seed=1)
    with pytest.raises(StateError, match="host or device"):
        env.restore(counted.snapshot())
    stopped = make(autoreset_mode="Disabled", max_episode_steps=1)
    stopped.reset(seed=1)
    stopped.step([0, 0, 0])
    with pytest.raises(StateError, match=r"dreams \[0, 1, 2\] have ended: reset them first"):
        stopped.step([0, 0, 0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_envs": 0}, "num_envs must be a whole number of at least 1; got 0"),
        ({"num_envs": 2.0}, "num_envs must be a whole number"),
        ({"max_episode_steps": 0}, "max_episode_steps must be a whole number of at least 1 or None; got 0"),
        ({"output": "jax"}, "output 'jax' is not accepted; use one of 'numpy', 'torch'"),
        ({"chance": "dice"}, "chance 'dice' is not accepted"),
        ({"autoreset_mode": "never"}, "autoreset_mode 'never' is not accepted; use one of NEXT_STEP"),
        ({"render_mode": "human"}, "render_mode 'human' is not accepted"),
        ({"compile": "maybe"}, "compile 'maybe' is not accepted"),
    ],
)
def test_a_bad_setting_is_named(settings: dict[str, Any], message: str, make: Callable[..., DreamVectorEnv]) -> None:
    with pytest.raises(ConfigError, match=message):
        make(**settings)


@pytest.mark.parametrize("name", ["num_steps", "memory_frames", "max_episode_steps", "num_envs", "num_init_steps"])
@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8])
def test_whole_numbers_of_numpy_are_settings(
    name: str, kind: Callable[[int], Any], make: Callable[..., DreamVectorEnv], bundle: Path
) -> None:
    common: dict[str, Any] = {"checkpoint": str(bundle), "device": "cpu"}
    if name != "num_init_steps":
        assert int(getattr(make(**{name: kind(2)})._model.config, name, 2)) == 2
    if name not in ("num_envs", "num_init_steps"):
        env = DreamEnv(**common, **{name: kind(2)})
        assert type(env.num_steps) is int and type(env.memory_frames) is int
    if name not in ("num_envs", "max_episode_steps"):
        world = WorldModel.load(bundle, device="cpu", **{name: kind(2)})
        assert type(world.config.num_steps) is int and type(world.memory_frames) is int
        with pytest.raises(ConfigError, match=name):
            WorldModel.load(bundle, device="cpu", **{name: np.bool_(True)})
