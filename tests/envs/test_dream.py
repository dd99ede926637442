"""The dream as a Gymnasium environment: the contract of the real world, and one clear error for each misuse."""

import copy
import dataclasses
import json
import math
import os
import pickle
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from safetensors.torch import save

from envs.dream import DreamEnv
from envs.dreamer import to_info_pose
from envs.worlds.labmaze.constants import ACTIONS as LABMAZE_ACTIONS
from worldmodel.checkpoint import save_bundle
from worldmodel.denoiser import Denoiser
from worldmodel.errors import ActionError, CheckpointError, ConfigError, DeviceError, SeedError, ShapeError, StateError
from worldmodel.state import WorldState


@pytest.fixture
def make_env(bundle: Path) -> Callable[..., DreamEnv]:
    return lambda **settings: DreamEnv(**{"checkpoint": str(bundle), "device": "cpu", "num_steps": 1, **settings})


def play(env: DreamEnv, actions: list[int]) -> list[tuple[bytes, float, bool, bool]]:
    results = (env.step(action) for action in actions)
    return [(r[0].tobytes(), float(r[1]), r[2], r[3]) for r in results]


def test_gymnasium_accepts_it(make_env: Callable[..., DreamEnv]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*(not within the range of an Env|spec|unwrapped).*")
        check_env(make_env())


def test_it_is_registered_and_knows_its_openings(bundle: Path, openings: dict[str, torch.Tensor]) -> None:
    env = gymnasium.make("envs:Dream/LabMaze-v0", checkpoint=str(bundle), device="cpu", num_steps=1)
    for opening in range(3):
        frame, info = env.reset(seed=0, options={"opening": opening})
        assert info["opening"] == opening
        assert np.array_equal(frame, openings["frames"][opening, -1].numpy())
    assert np.array_equal(env.render(), frame)
    frame, reward, terminated, truncated, _ = env.step(3)
    assert (frame.shape, frame.dtype) == ((32, 32, 3), np.uint8)
    assert (type(reward), type(terminated), type(truncated)) == (float, bool, bool)
    assert np.array_equal(env.render(), frame)
    env.close()


def test_spaces_are_those_of_the_real_world(make_env: Callable[..., DreamEnv]) -> None:
    pytest.importorskip("mujoco")
    pytest.importorskip("labmaze")
    real = gymnasium.make("envs:Real/LabMaze-v0", image_size=32)
    dream = make_env()
    assert dream.observation_space == real.observation_space
    assert dream.action_space == real.action_space
    assert dream.metadata["render_fps"] == real.metadata["render_fps"]
    assert dream.get_keys_to_action() == LABMAZE_ACTIONS.keys_to_action
    real.close()


def test_gymnasium_play_drives_a_dream(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    pygame = pytest.importorskip("pygame")
    from gymnasium.utils.play import play

    events = {2: (pygame.KEYDOWN, pygame.K_w), 4: (pygame.KEYDOWN, pygame.K_a), 6: (pygame.KEYUP, pygame.K_w)}
    actions: list[int] = []

    def watch(_before: Any, _after: Any, action: Any, *_rest: Any) -> None:
        actions.append(int(action))
        kind, key = events.get(len(actions), (None, None))
        if kind is not None:
            pygame.event.post(pygame.event.Event(kind, key=key))
        elif len(actions) == 8:
            pygame.event.post(pygame.event.Event(pygame.QUIT))

    env = gymnasium.make("envs:Dream/LabMaze-v0", checkpoint=str(bundle), device="cpu", num_steps=1)
    play(env, callback=watch, fps=1000, seed=0)
    assert actions == [0, 0, 1, 1, 5, 5, 3, 3]


def test_equal_seeds_and_actions_give_equal_dreams(make_env: Callable[..., DreamEnv]) -> None:
    actions = [1, 3, 5, 0, 2, 4, 6, 1]
    first, second = make_env(), make_env()
    (a, info_a), (b, info_b) = first.reset(seed=7), second.reset(seed=7)
    assert np.array_equal(a, b)
    assert info_a == info_b
    kept = play(first, actions)
    assert play(second, actions) == kept
    first.reset(seed=7)
    assert play(first, actions) == kept
    first.reset(seed=7)
    assert play(first, [*actions[:-1], 3])[:-1] == kept[:-1]
    first.reset(seed=8, options={"opening": info_a["opening"]})
    assert play(first, actions)[0] != kept[0]
    first.reset()
    again = play(first, actions)
    first.reset()
    assert play(first, actions) != again, "without a seed the random stream goes on"


def test_every_opening_is_drawn(make_env: Callable[..., DreamEnv]) -> None:
    env = make_env()
    assert env.num_openings == 3
    assert {env.reset(seed=seed)[1]["opening"] for seed in range(20)} == {0, 1, 2}


def test_frames_are_the_callers_own(make_env: Callable[..., DreamEnv]) -> None:
    env = make_env()
    frame, _ = env.reset(seed=1)
    later = env.step(1)[0]
    frame[:], later[:] = 0, 0
    assert env.render().any()
    again, _ = env.reset(seed=1)
    assert again.any()


def test_info_says_how_likely_reward_and_end_are_and_where_one_stands(
    make_env: Callable[..., DreamEnv], pixel_bundle: Path
) -> None:
    env, walker = make_env(), make_env(checkpoint=str(pixel_bundle))
    for each, names in ((env, set()), (walker, {"pose"})):
        _, info = each.reset(seed=3)
        assert info.keys() == {"opening", "dream_seed"} | names
        assert all(isinstance(value, np.integer | np.ndarray) for value in info.values())
        _, reward, terminated, _, info = each.step(3)
        assert info.keys() == {"reward_probability", "end_probability"} | names
        assert all(isinstance(value, np.float32 | np.ndarray) for value in info.values())
        assert 0 < info["reward_probability"] < 1 and (info["end_probability"] > 0.5) == terminated
        assert (reward != 0) == (info["reward_probability"] > 0.5)  # of two values
    pose, true = info["pose"], walker.pose
    assert (pose.dtype, pose.shape) == (np.float32, (3,)) and true is not None
    np.testing.assert_allclose(pose, [true[0], true[1], true[3] % 360], rtol=1e-5)
    assert np.isclose((walker.step(3)[4]["pose"][2] - pose[2]) % 360, 6, atol=1e-3)


def test_a_closed_dream_says_so(make_env: Callable[..., DreamEnv]) -> None:
    env = make_env()
    env.reset(seed=1)
    kept = env.snapshot()
    env.close()
    env.close()
    calls = (lambda: env.step(0), lambda: env.reset(seed=1), env.render, env.snapshot, lambda: env.restore(kept))
    for call in calls:
        with pytest.raises(StateError, match="was called after close; make the environment again"):
            call()


def test_a_snapshot_brings_back_what_later_resets_draw(make_env: Callable[..., DreamEnv]) -> None:
    env = make_env()
    env.reset(seed=1)
    kept = env.snapshot()
    drawn = [env.reset()[1]["dream_seed"] for _ in range(3)]
    env.restore(pickle.loads(pickle.dumps(kept)))
    assert [env.reset()[1]["dream_seed"] for _ in range(3)] == drawn
    bare = dataclasses.replace(kept, np_random=None)
    env.restore(bare)
    assert env.reset()[1]["dream_seed"] != drawn[0], "a snapshot without it leaves the generator as it is"


def test_torchs_default_number_format_does_not_matter(bundle: Path, pixel_bundle: Path) -> None:
    def dream(checkpoint: Path) -> bytes:
        env = DreamEnv(checkpoint=str(checkpoint), device="cpu")
        env.reset(seed=1)
        return b"".join(env.step(action)[0].tobytes() for action in (1, 3, 5))

    expected = [dream(each) for each in (bundle, pixel_bundle)]
    torch.set_default_dtype(torch.float64)
    try:
        found = [dream(each) for each in (bundle, pixel_bundle)]
    finally:
        torch.set_default_dtype(torch.float32)
    assert found == expected


def test_an_episode_is_truncated_after_its_steps_and_can_be_reset(make_env: Callable[..., DreamEnv]) -> None:
    env = make_env(max_episode_steps=3)
    for _ in range(2):
        env.reset(seed=0)
        assert [env.step(0)[3] for _ in range(4)] == [False, False, True, True]
    forever = make_env()
    forever.reset(seed=0)
    assert not any(forever.step(0)[3] for _ in range(5))


def test_a_snapshot_can_be_gone_back_to_as_often_as_one_likes(make_env: Callable[..., DreamEnv]) -> None:
    env = make_env(max_episode_steps=6)
    env.reset(seed=3)
    play(env, [1, 1])
    snapshot, frame = env.snapshot(), env.render()
    ahead = play(env, [3, 3, 1, 0])
    assert ahead[-1][3], "truncated at the sixth step"
    for _ in range(2):
        assert np.array_equal(env.restore(snapshot), frame)
        assert np.array_equal(env.render(), frame)
        assert play(env, [3, 3, 1, 0]) == ahead
    other = make_env(max_episode_steps=6)
    other.reset(seed=9)
    other.restore(snapshot)
    assert play(other, [3, 3, 1, 0]) == ahead


def test_a_snapshot_crosses_as_plain_bytes(make_env: Callable[..., DreamEnv]) -> None:
    """Pickled it holds no tensor, which would keep a file open in another process; copied or pickled it is the same."""
    env = make_env()
    env.reset(seed=3)
    play(env, [1, 1])
    snapshot = env.snapshot()
    ahead = play(env, [3, 3, 1, 0])
    content = pickle.dumps(snapshot)
    assert b"torch._utils" not in content and b"UntypedStorage" not in content
    for found in (pickle.loads(content), copy.deepcopy(snapshot)):
        env.restore(found)
        assert play(env, [3, 3, 1, 0]) == ahead
    packed = snapshot.state.to_bytes()
    for damaged in (b"", packed[:1000], save({"pending": torch.zeros(1)})):
        with pytest.raises(CheckpointError, match="these bytes are not a dream"):
            WorldState.from_bytes(damaged)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"memory_frames": 4}, r"this snapshot is of memory_frames 4; this environment has memory_frames \d+"),
        ({"schedule": "fifo:3"}, "this snapshot is of schedule Window.*; this environment has schedule Window"),
    ],
)
def test_a_snapshot_of_another_kind_is_refused(
    settings: dict[str, Any], message: str, make_env: Callable[..., DreamEnv]
) -> None:
    other, env = make_env(**settings), make_env()
    other.reset(seed=1)
    env.reset(seed=2)
    expected = env.snapshot()
    with pytest.raises(StateError, match=message):
        env.restore(other.snapshot())
    with pytest.raises(StateError, match="restore takes what snapshot returned; got tuple"):
        env.restore((1, 2, 3))  # type: ignore[arg-type]
    ahead = play(env, [1, 3])
    env.restore(expected)
    assert play(env, [1, 3]) == ahead  # nothing was changed
    more = make_env(num_steps=2)
    more.reset(seed=0)
    assert np.array_equal(more.restore(expected), expected.frame)  # how finely it is denoised may differ


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_forked_environments_of_a_vector_dream(bundle: Path) -> None:
    """The parent has made a dream with two threads before it forks, as gymnasium does to learn the spaces."""
    program = f"""if True:
    import gymnasium, numpy, torch
    torch.set_num_threads(2)
    kind = "envs:Dream/LabMaze-v0"
    settings = dict(checkpoint={str(bundle)!r}, device="cpu", num_steps=1)
    alone = gymnasium.make(kind, **settings)
    first = alone.reset(seed=4)[0], alone.step(1)[0]
    many = gymnasium.make_vec(
        kind, num_envs=2, vectorization_mode="async", vector_kwargs=dict(context="fork"), **settings
    )
    frames, _ = many.reset(seed=4)
    assert numpy.array_equal(frames[0], first[0])
    assert numpy.abs(many.step(numpy.array([1, 1]))[0][0].astype(int) - first[1]).max() <= 1
    many.close()
    assert torch.get_num_threads() == 2
    print("done")
    """
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "OMP_NUM_THREADS": "2"}, capture_output=True, timeout=120
    )
    assert done.stdout.strip() == b"done", done.stderr.decode()


def test_what_the_player_shows(make_env: Callable[..., DreamEnv]) -> None:
    env = make_env(memory_frames=5, num_steps=2)
    assert (env.memory_used, env.memory_frames, env.num_steps, env.fps) == (0, 5, 2, 15)
    assert env.device == torch.device("cpu")
    env.reset(seed=0)
    assert env.memory_used == 5
    assert make_env(num_steps=None).num_steps == 2  # what the bundle says


def test_calls_in_the_wrong_order(make_env: Callable[..., DreamEnv]) -> None:
    env = make_env()
    for call, name in ((lambda: env.step(0), "step"), (env.render, "render"), (env.snapshot, "snapshot")):
        with pytest.raises(
            StateError, match=rf"{name} was called before the first reset; call reset\(seed=...\) first"
        ):
            call()
    assert make_env(render_mode=None).render() is None


@pytest.mark.parametrize("action", [7, -1, 1.0, float("nan"), None, "forward", np.array([1, 2]), np.float32(2)])
def test_an_action_that_does_not_exist_leaves_the_dream_alone(action: Any, make_env: Callable[..., DreamEnv]) -> None:
    env, other = make_env(), make_env()
    env.reset(seed=1)
    other.reset(seed=1)
    with pytest.raises(ActionError, match="takes an integer from 0 to 6|from 0 to 6"):
        env.step(action)
    assert play(env, [1, 2]) == play(other, [1, 2])


@pytest.mark.parametrize("action", [3, np.int64(3), np.array(3), torch.tensor(3)], ids=repr)
def test_integers_of_any_kind_are_actions(action: Any, make_env: Callable[..., DreamEnv]) -> None:
    env, other = make_env(), make_env()
    env.reset(seed=1)
    other.reset(seed=1)
    assert play(env, [action]) == play(other, [3])


@pytest.mark.parametrize("seed", [-1, 1.5, "1", True])
def test_a_bad_seed_is_named(seed: Any, make_env: Callable[..., DreamEnv]) -> None:
    with pytest.raises(SeedError, match=f"seed must be a whole number of at least 0; got {seed!r}"):
        make_env().reset(seed=seed)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"opening": 3}, ConfigError, "reset option opening must be a whole number from 0 to 2; got 3"),
        ({"opening": "first"}, ConfigError, "reset option opening must be a whole number from 0 to 2; got 'first'"),
        ({"dream_seed": -1}, ConfigError, "reset option dream_seed must be a whole number"),
        ({"context_seed": 1.5}, ConfigError, "reset option context_seed must be a whole number"),
        ({"maze": 1}, ConfigError, "reset accepts opening, frames, actions, dream_seed, context_seed; got maze"),
        ({"frames": np.zeros((2, 8, 8, 3), np.uint8)}, ShapeError, r"frames must be uint8 \(T, 32, 32, 3\); got uint8"),
        ({"frames": np.zeros((2, 32, 32, 3))}, ShapeError, "frames must be uint8"),
        ({"actions": [1]}, ShapeError, "frames must be uint8"),
        (
            {"frames": np.zeros((2, 32, 32, 3), np.uint8)},
            ShapeError,
            r"actions must be \(1,\), those between the frames",
        ),
        ({"frames": np.zeros((2, 32, 32, 3), np.uint8), "actions": [9]}, ActionError, "action 9 is out of range"),
        ({"frames": np.zeros((1, 32, 32, 3), np.uint8), "opening": 1}, ConfigError, "got opening"),
    ],
)
def test_a_bad_reset_option_is_named(
    options: dict[str, Any], error: type[Exception], message: str, make_env: Callable[..., DreamEnv]
) -> None:
    with pytest.raises(error, match=message):
        make_env().reset(seed=0, options=options)


def test_a_dream_begun_from_frames_is_that_begun_from_the_opening_they_are(make_env: Callable[..., DreamEnv]) -> None:
    env, other = make_env(), make_env()
    _, info = env.reset(seed=5)
    frames, actions = env.context
    frame, _ = other.reset(seed=9, options={"frames": frames, "actions": actions, "dream_seed": info["dream_seed"]})
    assert np.array_equal(frame, frames[-1])
    assert play(env, [1, 3, 2]) == play(other, [1, 3, 2])


def test_a_snapshot_of_a_copied_bundle_is_accepted_and_of_other_weights_refused(
    bundle: Path, tmp_path: Path, make_env: Callable[..., DreamEnv], make_denoiser: Callable[..., Denoiser]
) -> None:
    env, copy = make_env(), Path(shutil.copytree(bundle, tmp_path / "copy"))
    env.reset(seed=5)
    snapshot = env.snapshot()
    other = make_env(checkpoint=str(copy))
    other.restore(snapshot)
    assert play(env, [1, 3, 2]) == play(other, [1, 3, 2])
    torch.manual_seed(99)
    save_bundle(copy, denoiser=make_denoiser(seed=99))
    with pytest.raises(StateError, match="this snapshot is of weights"):
        make_env(checkpoint=str(copy)).restore(snapshot)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"render_mode": "human"}, ConfigError, "render_mode 'human' is not accepted"),
        (
            {"max_episode_steps": 0},
            ConfigError,
            "max_episode_steps must be a whole number of at least 1 or None; got 0",
        ),
        ({"num_steps": 0}, ConfigError, "num_steps must be"),
        ({"memory_frames": 0}, ConfigError, "memory_frames must be"),
        ({"device": "nowhere"}, DeviceError, "unknown device 'nowhere'"),
        ({"checkpoint": "nowhere"}, CheckpointError, "no checkpoint 'nowhere'"),
    ],
)
def test_a_bad_setting_is_named(
    settings: dict[str, Any], error: type[Exception], message: str, make_env: Callable[..., DreamEnv]
) -> None:
    with pytest.raises(error, match=message):
        make_env(**settings)


def test_a_bundle_that_is_no_dream_of_a_known_world(
    bundle: Path, tmp_path: Path, make_env: Callable[..., DreamEnv], make_denoiser: Callable[..., Denoiser]
) -> None:
    other = Path(shutil.copytree(bundle, tmp_path / "other"))
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "info": {"world": "Tetris"}}))
    with pytest.raises(CheckpointError, match=r"dreams of a world .* unknown world 'Tetris'; there are LabMaze"):
        make_env(checkpoint=str(other))
    (other / "config.json").write_text(json.dumps(config))
    save_bundle(other, denoiser=make_denoiser(num_actions=4))
    with pytest.raises(CheckpointError, match="takes 4 actions; LabMaze has 7"):
        make_env(checkpoint=str(other))


def test_a_heading_is_below_360_degrees() -> None:
    poses = torch.zeros(3, 5)
    poses[:, 3] = torch.tensor([-1e-8, 0.0, math.pi])
    heading = to_info_pose(poses)[:, 2]
    assert (heading < 360).all() and heading.tolist() == pytest.approx([0, 0, 180], abs=1e-3)
