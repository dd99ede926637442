"""The examples of docs/extend.md: each is taken from the page, saved, and used from the command line as it says."""

import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from envs.data.episodes import open_shards
from tests.box_room import write_walks
from tests.worldmodel.test_denoiser import assert_equal, changed, walk
from worldmodel.checkpoint import load_denoiser, save_bundle
from worldmodel.codec import Codec
from worldmodel.compiled import step_key
from worldmodel.denoiser import Denoiser
from worldmodel.errors import CheckpointError
from worldmodel.inputs import FrameInputs
from worldmodel.memory.registry import ALLOWED, check_memory
from worldmodel.world import WorldModel

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extend.md").read_text()
MOST_LINES = 40


def block(language: str, title: str) -> str:
    """Return the code of one block of the page."""
    found = re.findall(rf"^```{language} {title}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert len(found) == 1, f"{len(found)} blocks `{language} {title}`"
    return str(found[0])


def run(title: str, folder: Path, instead: dict[str, str] | None = None) -> list[str]:
    """Run the commands of a block in a folder, some words replaced; return what each prints."""
    path = os.pathsep.join([str(folder), str(ROOT)])
    printed = []
    for line in block("bash", title).splitlines():
        words = [(instead or {}).get(word, word) for word in shlex.split(line)]
        start = words.index("python")
        command = [sys.executable, *(str(ROOT / word) if word == "play.py" else word for word in words[start + 1 :])]
        variables = dict(word.split("=", 1) for word in words[:start])
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **variables}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        printed.append(done.stdout)
    return printed


def test_a_world_of_ones_own_is_recorded_and_played(tmp_path: Path) -> None:
    code = block("python", "world")
    assert len(code.splitlines()) <= MOST_LINES
    (tmp_path / "rooms.py").write_text(code)
    recorded, played = run("world", tmp_path)
    assert '"episodes": 40' in recorded and '"frames": 30' in played
    (shard, *_) = open_shards(tmp_path / "recordings" / "rooms")
    assert shard.world == "rooms:Rooms" and shard.action_names == ("stay", "left", "right")
    assert shard.episodes[0].fields == tuple(sorted(("frames", "actions", "rewards", "terminated", "truncated")))


@pytest.fixture
def fading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of the page's memory, in a module that can be imported and is not."""
    code = block("python", "memory")
    assert len(code.splitlines()) <= MOST_LINES
    (tmp_path / "fading.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv(ALLOWED, raising=False)
    yield "fading:Fading"
    sys.modules.pop("fading", None)


@pytest.mark.slow
def test_a_memory_of_ones_own_is_trained_and_dreams(fading: str, tmp_path: Path) -> None:
    (tmp_path / "rooms.py").write_text(block("python", "world"))
    _, played = run("memory", tmp_path)
    assert '"frames": 30' in played
    world = tmp_path / "runs" / "fading" / "world"
    assert json.loads((world / "config.json").read_text())["denoiser"]["memory"] == fading
    check_memory(fading)
    state = load_denoiser(world).state_dict()
    assert state[f"memories.{fading}.embed.weight"].any()  # it was zero before training


@torch.inference_mode()
def test_a_memory_of_ones_own_is_the_same_in_clips_and_in_play(
    fading: str, make_denoiser: Callable[..., Denoiser], make_inputs: Callable[..., FrameInputs]
) -> None:
    check_memory(fading)
    denoiser = make_denoiser(depth=2, recent_frames=1, num_previous=1, memory=fading)
    without = make_denoiser(depth=2, recent_frames=1, num_previous=1, memory="none")
    inputs = make_inputs(denoiser.config, 2, 16)
    expected, written = denoiser(inputs)
    assert not written.rings
    for splits in ([1] * 16, [3, 5, 1], [16]):
        assert_equal(walk(denoiser, inputs, splits, denoiser.new_cache(2)), expected)

    # What was shown before frame 4 matters from there on, long after recent frames forget it, and never before.
    other = changed(inputs, "previous", 4, lambda previous: previous + 1)
    apart, forgotten = (
        (network(other)[0].clean - network(inputs)[0].clean).abs().amax((0, 2, 3, 4)) for network in (denoiser, without)
    )
    assert apart[:4].max() == 0 and apart[4:].min() > 1e-4
    assert forgotten[8:].max() == 0


def test_other_code_of_a_memory_of_ones_own_is_another_compiled_step(
    fading: str, tmp_path: Path, make_denoiser: Callable[..., Denoiser], make_codec: Callable[..., Codec]
) -> None:
    check_memory(fading)
    world = WorldModel(make_codec(), make_denoiser(memory=fading), device="cpu")
    before, file = step_key(world.stepper, 1), tmp_path / "fading.py"
    assert step_key(world.stepper, 1) == before
    file.write_text(file.read_text().replace("KEPT = 0.9", "KEPT = 0.8"))
    assert step_key(world.stepper, 1) != before


def test_no_bundle_has_a_module_imported_that_nobody_allowed(
    fading: str, tmp_path: Path, make_denoiser: Callable[..., Denoiser], monkeypatch: pytest.MonkeyPatch
) -> None:
    check_memory(fading)
    save_bundle(tmp_path / "world", denoiser=make_denoiser(memory=fading))
    del sys.modules["fading"]
    with pytest.raises(
        CheckpointError, match=f"'{fading}' is code from outside .* set {ALLOWED}={fading} if you trust"
    ):
        load_denoiser(tmp_path / "world")
    assert "fading" not in sys.modules

    monkeypatch.setenv(ALLOWED, f"other:Other, {fading}")
    assert load_denoiser(tmp_path / "world").config.memory == fading
    monkeypatch.delenv(ALLOWED)
    assert load_denoiser(tmp_path / "world").config.memory == fading  # imported by now

    del sys.modules["fading"]
    monkeypatch.setenv(ALLOWED, fading)
    (tmp_path / "fading.py").unlink()
    importlib.invalidate_caches()
    with pytest.raises(CheckpointError, match=f"memory '{fading}' cannot be imported .*No module.* PYTHONPATH"):
        load_denoiser(tmp_path / "world")


def test_a_measure_of_ones_own_is_taken(tmp_path: Path, bundle: Path) -> None:
    code = block("python", "measure")
    assert len(code.splitlines()) <= MOST_LINES
    (tmp_path / "light.py").write_text(code)
    (printed,) = run(
        "measure",
        tmp_path,
        {"labmaze": str(bundle), "recordings/labmaze": str(write_walks(tmp_path / "walks", "test"))},
    )
    assert "## light:Light" in printed and "Mean brightness: " in printed
    found = json.loads((tmp_path / "runs" / "light" / "report.json").read_text())
    assert found["settings"]["measures"]["light:Light"] == {"dreams": 4, "frames": 16}
    assert found["measures"]["light:Light"]["real"] > 0


@pytest.mark.skipif(not (ROOT / "worldmodel" / "assets" / "labmaze" / "config.json").is_file(), reason="no weights")
def test_a_schedule_is_played(tmp_path: Path) -> None:
    (tmp_path / "slow.json").write_text(block("json", "schedule"))
    (played,) = run("schedule", tmp_path)
    assert "input_lag_frames" in played and "3 frames" in played
