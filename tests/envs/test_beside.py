"""The dream beside the real world: one start, the same actions, both pictures, and what is recorded of them."""

import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

import play
from envs.data.episodes import read_episode
from envs.data.sessions import read_session
from envs.dream import DreamEnv
from envs.player.beside import BesideEnv
from envs.player.line import Line
from envs.player.replay import ReplaySession
from envs.player.session import PlaySession
from envs.player.side_by_side import split
from envs.player.view import psnr
from envs.worlds.base import World
from envs.worlds.labmaze.spec import ACTIONS as LABMAZE_ACTIONS
from worldmodel.errors import ConfigError, StateError

SIZE = 32


class StripesEnv(gymnasium.Env[np.ndarray, np.int64]):
    """A real world: stripes that the sum of the actions moves; pays each step, ends after 20."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.offset, self.steps, self.scene = int(self.np_random.integers(SIZE)), 0, int(self.np_random.integers(9))
        return self.frame(), {"scene_seed": self.scene, "offset": self.offset}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.offset, self.steps = self.offset + int(action), self.steps + 1
        return self.frame(), 1.0, self.steps == 20, False, {"scene_seed": self.scene, "offset": self.offset}

    def frame(self) -> np.ndarray:
        columns = (np.arange(SIZE) + self.offset) % SIZE * 8
        return np.broadcast_to(columns[None, :, None], (SIZE, SIZE, 3)).astype(np.uint8)


class Stripes(World):
    """A world whose player is the one for every world."""

    name, fps, actions = "Stripes", 15.0, LABMAZE_ACTIONS

    def make(self, **settings: Any) -> StripesEnv:
        assert settings == {"image_size": SIZE}
        return StripesEnv()


def make_env(bundle: Path, num_context: int | None = None) -> BesideEnv:
    dream = DreamEnv(checkpoint=str(bundle), device="cpu", num_steps=1)
    dream.world = Stripes()
    return BesideEnv(dream, StripesEnv(), num_context)


def test_both_begin_alike_and_go_by_the_same_actions(bundle: Path) -> None:
    env = make_env(bundle)
    frame, info = env.reset(seed=4)
    frames, actions = env.context
    assert len(frames) == env.dream.opening_frames == 8
    left, right = split(env.picture)
    assert np.array_equal(left, right) and np.array_equal(left, frame) and np.array_equal(frame, frames[-1])
    assert env.likeness == 60 and info.keys() == {"scene_seed", "offset", "dream_seed"}

    # The same by hand.
    real = StripesEnv()
    walked = [real.reset(seed=4)[0], *(real.step(action)[0] for action in actions)]
    assert np.array_equal(np.stack(walked), frames)
    dream = DreamEnv(checkpoint=str(bundle), device="cpu", num_steps=1)
    given = {"frames": frames, "actions": actions, "dream_seed": info["dream_seed"]}
    dream.reset(seed=0, options=given)
    for action in (1, 3, 1):
        observed, reward, *_ = env.step(action)
        expected = dream.step(action)
        assert np.array_equal(observed, expected[0]) and reward == expected[1]
        left, right = split(env.picture)
        assert np.array_equal(left, real.step(action)[0]) and np.array_equal(right, observed)
        assert env.likeness == psnr(left, right) < 60
    assert env.findings["psnr_last"] == round(env.likeness, 2) and env.findings["real_reward"] == 3


def test_equal_seeds_give_equal_frames_and_others_others(bundle: Path) -> None:
    env = make_env(bundle, 5)
    pictures, walks = [], []
    for seed in (3, 3, 4):
        env.reset(seed=seed)
        env.step(1)
        pictures.append(env.picture)
        walks.append(env.context[1].tolist())
    assert len(env.context[0]) == 5
    assert walks[0] == walks[1] != walks[2]
    assert np.array_equal(pictures[0], pictures[1]) and not np.array_equal(pictures[0], pictures[2])


def test_what_is_shown_is_both_and_what_is_recorded_is_the_dream(bundle: Path, tmp_path: Path) -> None:
    import av

    session = PlaySession(make_env(bundle), seed=2)
    session.start_session(tmp_path / "a.h5")
    session.start_video(tmp_path / "a.mp4")
    shown = [session.view.frame, *(session.step(1).frame for _ in range(25))]
    assert "left real, right dream" in session.view.caption
    assert "real reward 25, terminated" in session.view.caption  # with the 7 steps before it began
    assert not session.can_rewind
    with pytest.raises(StateError, match="cannot go back"):
        session.rewind(1)
    session.mark()
    assert session.view.likeness == 60
    session.close()

    found = read_session(tmp_path / "a.h5")
    assert found.info.source == "dream" and (found.info.world, found.info.image_size) == ("Stripes", SIZE)
    rows = read_episode(found.episodes[0], fields=("frames", "real_frames", "context_frames"))
    real, dreamt = (np.stack(part) for part in zip(*map(split, shown), strict=True))
    assert np.array_equal(rows["frames"], dreamt) and np.array_equal(rows["real_frames"], real)
    assert np.array_equal(rows["context_frames"][-1], real[0])
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.frames == 26 and (stream.width, stream.height) == (8 * shown[0].shape[1], 8 * SIZE)

    # Shown again it is both, and it can be dreamt again.
    again = ReplaySession(Line(found))
    assert all(np.array_equal(again.go_to(number).frame, frame) for number, frame in enumerate(shown))


def test_a_dream_beside_is_dreamt_again(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the real mazes, from the command line."""
    pytest.importorskip("mujoco")
    pytest.importorskip("labmaze")
    given = ["--headless", "--checkpoint", str(bundle), "--device", "cpu", "--threads", "1"]
    record = [*given, "--beside", "real", "--frames", "6", "--steps", "1", "--seed", "3", "--compile", "off"]
    assert play.main([*record, "--record", str(tmp_path / "a.h5")]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["frames"] == 6 and 0 < report["psnr_mean"] < 60
    assert play.main([*given, "--replay", str(tmp_path / "a.h5")]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["first_difference"] is None and report["frames_compared"] == 6
    scene = read_session(tmp_path / "a.h5").episodes[0].scene_seed
    real = gymnasium.make("envs:Real/LabMaze-v0", image_size=SIZE)
    assert real.reset(seed=3)[1]["scene_seed"] == scene
    real.close()


def test_a_real_world_that_cannot_be_built_closes_the_dream(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dream = DreamEnv(checkpoint=str(bundle), device="cpu", num_steps=1)

    class Broken(Stripes):
        def make(self, **settings: Any) -> StripesEnv:
            raise ConfigError("no such maze")

    closed = []
    dream.world = Broken()
    monkeypatch.setattr(dream, "close", lambda: closed.append(True))
    with pytest.raises(ConfigError, match="no such maze"):
        play.put_beside(dream, None, lambda share, text: None)
    assert closed == [True]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--beside", "labmaze"], "--beside takes real"),
        (["--beside", "real", "--real"], "--beside does not go with --real"),
        (["--beside", "real", "--replay", "a.h5"], "--beside does not go with --replay"),
        (["--beside", "real", "--context", "0"], "--context must be at least 1"),
        (["--context", "3"], "--context goes only with --beside or --replay"),
    ],
)
def test_options_that_do_not_fit(capsys: pytest.CaptureFixture[str], arguments: list[str], text: str) -> None:
    assert play.main(["--headless", *arguments]) == 2
    assert text in capsys.readouterr().err
