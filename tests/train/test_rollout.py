"""The rollout program and `play.py --schedule`: any schedule by name, the lag in words, one line for each error."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

import play
from envs.dream import DreamEnv
from train.core.options import run_program
from train.rollout import RolloutOptions, describe_schedule, run_rollout
from worldmodel.checkpoint import load_openings
from worldmodel.errors import ConfigError, DataError, SeedError, ShapeError, WindowError, WorldModelError
from worldmodel.windows import fifo_window, outpainting_window, parse_schedule
from worldmodel.world import WorldModel

SCHEDULES = ["next", "outpaint:5:2", "fifo:3", "rolling:3:2", "pyramid:4:2"]


@pytest.fixture(scope="module")
def recording32(tmp_path_factory: pytest.TempPathFactory, shard_writer: Callable[..., None]) -> Path:
    """A recording of the tiny bundle's frame size."""
    folder = tmp_path_factory.mktemp("recording32")
    shard_writer(folder / "test-00000.h5", [30, 20], "test", image_size=32)
    return folder


def video_shape(path: Path) -> tuple[int, int, int]:
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return (len(frames), *frames[0].shape[:2])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_any_schedule_from_an_opening(
    schedule: str, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = RolloutOptions(
        checkpoint=str(bundle), schedule=schedule, frames=7, seed=3, video=tmp_path / "v.mp4", device="cpu"
    )
    frames = run_rollout(options)
    out = capsys.readouterr().out
    assert frames.shape == (1, 7, 32, 32, 3)
    assert video_shape(tmp_path / "v.mp4") == (7, 256, 256)
    window = parse_schedule(schedule).window
    assert f"schedule {schedule}: {window.size} frame" in out
    assert window.describe_lag(15) in out and "7 frames in " in out and "PSNR" not in out
    assert torch.equal(run_rollout(options), frames), "equal seeds"


def test_the_actions_asked_for_are_taken(bundle: Path) -> None:
    found = run_rollout(RolloutOptions(checkpoint=str(bundle), frames=5, seed=4, actions="wwa", device="cpu"))
    openings, row = load_openings(bundle), int(np.random.default_rng(4).integers(3))
    actions = torch.cat([openings["actions"][row].long(), torch.tensor([1, 1, 3, 1, 1])])
    world = WorldModel.load(bundle, device="cpu")
    assert torch.equal(found, world.rollout(openings["frames"][row : row + 1], actions[None], [4]))


def test_a_rollout_of_a_recording_is_compared_with_the_truth(
    bundle: Path, recording32: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = run_rollout(
        RolloutOptions(
            checkpoint=str(bundle),
            data=recording32,
            schedule="rolling:3:2",
            frames=20,
            context=6,
            video=tmp_path / "v.mp4",
            device="cpu",
        )
    )
    out = capsys.readouterr().out
    assert frames.shape == (1, 20, 32, 32, 3)
    assert video_shape(tmp_path / "v.mp4") == (20, 256, 512), "truth and dream side by side"
    assert "frames 1-16: " in out and "frames 17-20: " in out and out.count(" dB (") == 2
    assert "initialization: 8 network calls" in out


def test_the_cost_is_told() -> None:
    lines = "\n".join(describe_schedule("x", outpainting_window(6, 2), 3, 8, 15))
    assert "stride 4, 3 denoising steps each; network calls a frame: 0.75" in lines
    assert "clean overlap: the 2 newest" in lines and "initialization" not in lines
    lines = "\n".join(describe_schedule("x", fifo_window(2), 1, 8, 10))
    assert "1 denoising step each; network calls a frame: 1" in lines
    assert "before 0.500 1.000" in lines and "after  0.000 0.500" in lines
    assert "input lag 1 frame (100 ms at 10 frames/s)" in lines


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"frames": 0}, ConfigError, "--frames must be at least 1; got 0"),
        ({"context": 0}, ConfigError, "--context must be at least 1; got 0"),
        ({"seed": -1}, SeedError, "--seed must be 0 or more; got -1"),
        ({"video": Path("a.gif")}, ConfigError, "must end in .mp4"),
        ({"data": Path("x"), "actions": "w"}, ConfigError, "--actions does not go with --data"),
        ({"schedule": "fifo:0"}, WindowError, "fifo frames must be"),
        ({"schedule": "fifo:6", "frames": 5}, ShapeError, "5 frames to dream are shorter than the window"),
        ({"schedule": "outpaint:12:10"}, ShapeError, "a context of 8 frames is shorter than the 10 clean frames"),
        ({"context": 9}, ConfigError, "longer than the world's openings, 8 frames"),
        ({"actions": "x"}, WorldModelError, "cannot read actions"),
        ({"steps": 0}, ConfigError, "num_steps must be a whole number"),
        ({"data": Path("nowhere")}, DataError, "nowhere is not a folder"),
    ],
    ids=str,
)
def test_what_cannot_be_rolled_out_is_said(
    settings: dict[str, Any], error: type[Exception], message: str, bundle: Path
) -> None:
    with pytest.raises(error, match=message):
        run_rollout(RolloutOptions(**{"checkpoint": str(bundle), "frames": 12, "device": "cpu", **settings}))


def test_an_episode_too_short_for_the_frames_asked_for(bundle: Path, recording32: Path) -> None:
    with pytest.raises(DataError, match="has 31 frames and 40 are needed"):
        run_rollout(RolloutOptions(checkpoint=str(bundle), data=recording32, frames=34, context=6, device="cpu"))


def test_the_program_ends_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="^error: schedule 'x' is not understood"):
        run_program(lambda: run_rollout(RolloutOptions(schedule="x")) and None)


@pytest.mark.parametrize(("schedule", "lag"), [("next", 0), ("fifo:3", 2), ("rolling:2:2", 1), ("outpaint:3:2", 0)])
def test_play_states_the_input_lag(schedule: str, lag: int, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--headless", "--frames", "4", "--device", "cpu", "--checkpoint", str(bundle), "--schedule", schedule]
    assert play.main([*arguments, "--fps", "10"]) == 0
    first, *_, last = capsys.readouterr().out.splitlines()
    assert (
        first.startswith(f"schedule {schedule}: input lag {lag} frame") and f"({100 * lag} ms at 10 frames/s)" in first
    )
    report = json.loads(last)
    assert report["input_lag_frames"] == lag
    assert report["denoising_steps"] == (parse_schedule(schedule).num_steps or 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--schedule", "pyramid:4:2"], "makes 2 frames a step and takes 2 actions at once, which cannot be played"),
        (["--schedule", "outpaint:8:2"], "makes 6 frames a step"),
        (["--schedule", "fifo:x"], "is not understood; accepted: next"),
        (["--schedule", "none.json"], "schedule file none.json cannot be read"),
        (["--schedule", "next", "--real"], "--schedule does not go with --real"),
    ],
    ids=str,
)
def test_a_schedule_that_cannot_be_played(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert play.main(["--headless", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and message in err and err.count("\n") == 1


def test_an_environment_of_a_schedule(bundle: Path) -> None:
    """A snapshot holds the frames in flight; the steps of the schedule give way to those asked for."""
    env = DreamEnv(checkpoint=str(bundle), device="cpu", schedule="rolling:3:2")
    assert (env.input_lag, env.num_steps) == (2, 2)
    env.reset(seed=1)
    env.step(1)
    kept = env.snapshot()
    ahead = [env.step(action)[0].tobytes() for action in (1, 2, 3, 4)]
    env.restore(kept)
    assert [env.step(action)[0].tobytes() for action in (1, 2, 3, 4)] == ahead
    env.restore(kept)
    others = [env.step(action)[0].tobytes() for action in (5, 2, 3, 4)]
    assert others[:2] == ahead[:2] and others[2] != ahead[2], "an action is seen two frames later"
    assert DreamEnv(checkpoint=str(bundle), device="cpu", schedule="rolling:3:2", num_steps=1).num_steps == 1
    with pytest.raises(WindowError, match="one frame a step; got a window of stride 2"):
        DreamEnv(checkpoint=str(bundle), device="cpu", schedule="pyramid:4:2")
