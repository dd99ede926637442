"""The world in the box: it loads, plays, stays small, and does what the README says first."""

import json
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from envs.dream import DreamEnv
from envs.worlds.labmaze.constants import ACTIONS as LABMAZE_ACTIONS
from worldmodel.checkpoint import ASSETS, load_info, load_openings

ROOT = Path(__file__).parents[1]
REPORT_KEYS = {"frames", "fps", "median_ms", "p95_ms", "denoising_steps", "memory_frames", "device"}


@pytest.fixture(scope="module")
def dream() -> DreamEnv:
    env = gymnasium.make("envs:Dream/LabMaze-v0", device="cpu", num_steps=1)
    assert isinstance(env.unwrapped, DreamEnv)
    return env.unwrapped


def test_the_weights_fit_into_25_megabytes() -> None:
    sizes = {path.name: path.stat().st_size for path in (ASSETS / "labmaze").glob("*.safetensors")}
    assert sizes["codec.safetensors"] + sizes["denoiser.safetensors"] <= 25e6


def test_the_card_tells_data_training_figures_and_licence() -> None:
    card = (ASSETS / "labmaze" / "README.md").read_text()
    for word in ("## Data", "## Training", "## Figures", "## Licence", "CC BY 4.0"):
        assert word in card, word


def test_it_has_the_spaces_of_the_real_world(dream: DreamEnv) -> None:
    assert dream.observation_space == gymnasium.spaces.Box(0, 255, (64, 64, 3), np.uint8)
    assert dream.action_space == gymnasium.spaces.Discrete(7)
    assert load_info("labmaze")["action_names"] == list(LABMAZE_ACTIONS.names)


def test_it_remembers_at_least_300_frames(dream: DreamEnv) -> None:
    assert dream.memory_frames >= 300


def test_turning_round_shows_the_same_again(dream: DreamEnv) -> None:
    """Looking all the way round, 60 turns of 6 degrees: each picture of the second round is nearest to its own."""
    dream.reset(seed=4)
    turn = LABMAZE_ACTIONS.index("turn_left")
    frames = np.stack([dream.step(turn)[0] for _ in range(120)]).astype(float)[::6]
    first, second = frames[:10], frames[10:]
    apart = np.square(first[None] - second[:, None]).mean((2, 3, 4))
    assert (apart.argmin(1) == np.arange(10)).sum() >= 8
    assert apart.diagonal().mean() < 0.5 * apart.mean()


def test_threads_are_measured_and_the_step_is_found_or_not(dream: DreamEnv) -> None:
    before = torch.get_num_threads()
    try:
        assert dream.tune_threads(rounds=1) >= 1
    finally:
        torch.set_num_threads(before)
    assert not dream.is_compiled and dream.compile_note == ""


def test_it_starts_from_a_bank_of_real_openings(dream: DreamEnv) -> None:
    openings = load_openings("labmaze")
    assert dream.num_openings == len(openings["frames"]) >= 16
    frame, info = dream.reset(seed=5)
    assert (frame == openings["frames"][info["opening"], -1].numpy()).all()
    assert {dream.reset(seed=s)[1]["opening"] for s in range(12)} != {info["opening"]}


def test_gymnasium_finds_nothing_to_complain_about(dream: DreamEnv) -> None:
    check_env(dream, skip_render_check=True)


def test_the_dream_moves_and_obeys(dream: DreamEnv) -> None:
    """Turning left for eight frames and turning right end in different pictures, and neither is the first frame."""
    ends = []
    for action in (LABMAZE_ACTIONS.index("turn_left"), LABMAZE_ACTIONS.index("turn_right")):
        first, _ = dream.reset(seed=2)
        for _ in range(8):
            frame = dream.step(action)[0]
        assert np.abs(frame.astype(float) - first).mean() > 8
        ends.append(frame.astype(float))
    assert np.abs(ends[0] - ends[1]).mean() > 8


def test_the_dream_does_not_fade(dream: DreamEnv) -> None:
    """After 60 frames of turning there is still a picture: bright and dark, and more than one color."""
    dream.reset(seed=3)
    for _ in range(60):
        frame = dream.step(LABMAZE_ACTIONS.index("turn_left"))[0]
    assert frame.std() > 20
    assert np.ptp(frame.astype(float).mean((0, 1))) > 3


def test_the_readme_command_plays_without_a_display(tmp_path: Path) -> None:
    words = ["--headless", "--frames", "12", "--actions", "w*6 a*3 wd*3", "--steps", "1", "--compile", "off"]
    command = [sys.executable, "play.py", *words, "--video", str(tmp_path / "dream.mp4")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout.splitlines()[-1])
    assert report.keys() >= REPORT_KEYS
    assert report["frames"] == 12
    assert report["denoising_steps"] == 1
    assert (tmp_path / "dream.mp4").stat().st_size > 1000
