"""Fine-tuning in a fixed time: it stops in time, a bundle that loads is there at any moment, old worlds are grafted."""

import contextlib
import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import train.finetune
import train.finetuning.training
from envs.data.episodes import ShardWriter
from envs.worlds.labmaze.constants import ACTIONS as LABMAZE_ACTIONS
from envs.worlds.labmaze.spec import LabMaze
from tests.conftest import moving_frames
from train.core.muon import StackedMuon
from train.data.prepared import PreparedData
from train.finetune import fine_tune
from train.finetuning.deadline import Terminated
from train.finetuning.gathering import first_fatal_line
from train.finetuning.options import FineTuneOptions
from train.warps import WarpOptions, prepare
from worldmodel.checkpoint import load_denoiser, save_bundle
from worldmodel.codec import Codec
from worldmodel.denoiser import Denoiser
from worldmodel.errors import CheckpointError, ConfigError, StateError
from worldmodel.folded import NUM_FOLDED
from worldmodel.memory.depth import DepthConfig, DepthNet
from worldmodel.objective import ObjectiveConfig
from worldmodel.world import WorldModel

ROOT = Path(__file__).parents[2]
INFO = {"world": "LabMaze", "action_names": list(LABMAZE_ACTIONS.names), "fps": 15}
PLAIN = ObjectiveConfig(blackout_share=0.5)


@pytest.fixture(scope="session")
def depth_net() -> DepthNet:
    torch.manual_seed(3)
    return DepthNet(DepthConfig(32, width=8, inner_width=8, inner_blocks=1, outer_blocks=1)).eval()


@pytest.fixture(scope="session")
def pixel_world(
    tmp_path_factory: pytest.TempPathFactory,
    make_denoiser: Callable[..., Denoiser],
    make_codec: Callable[..., Codec],
    depth_net: DepthNet,
) -> Path:
    """The folder of a tiny world with a memory of pixels."""
    folder = tmp_path_factory.mktemp("pixels") / "world"
    denoiser = make_denoiser(displacements=LABMAZE_ACTIONS.displacements, warp_channels=NUM_FOLDED)
    save_bundle(folder, codec=make_codec(), denoiser=denoiser, depth=depth_net, info=INFO)
    return folder


@pytest.fixture(scope="session")
def posed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording with poses, 32 x 32 pixels: two training shards and one for testing."""
    folder = tmp_path_factory.mktemp("posed") / "recording"
    for number, (name, lengths) in enumerate(
        {"train-00000": [40, 44], "train-00001": [48], "test-00000": [70]}.items()
    ):
        with ShardWriter(
            folder / f"{name}.h5",
            world="LabMaze",
            action_names=LABMAZE_ACTIONS.names,
            image_size=32,
            settings={},
            fields=LabMaze.fields,
            split=name.split("-")[0],
        ) as shard:
            for steps in lengths:
                ends = np.zeros(steps, bool)
                turned = np.arange(steps + 1) * 6.0 % 360
                pose = np.stack([np.full(steps + 1, 1.5), np.full(steps + 1, 2.5), turned], 1).astype(np.float32)

                arrays = {
                    "frames": moving_frames(steps + 1, 32, 10 * number + steps),
                    "actions": np.full(steps, 3, np.uint8),
                    "rewards": (np.arange(steps) % 9 == 8).astype(np.float32),
                    "terminated": ends,
                    "truncated": ends,
                    "pose": pose,
                }
                shard.write(arrays, seed=number, scene_seed=number, policy="test")
    return folder


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory, pixel_world: Path, posed: Path) -> Path:
    folder = tmp_path_factory.mktemp("prepared") / "warps"
    prepare(WarpOptions(posed, folder, str(pixel_world), device="cpu"))
    return folder


def options(world: Path, out: Path, **changes: Any) -> FineTuneOptions:
    settings: dict[str, Any] = {
        "deadline": 120.0,
        "batch_size": 2,
        "clip_frames": 16,
        "length": 48,
        "steps": 4,
        "evaluate_s": 0.0,
        "objective": PLAIN,
        "device": "cpu",
        "compile": False,
        "ema": 0.5,
    }
    return FineTuneOptions(world=str(world), out=out, **(settings | changes))


def dreams(folder: Path) -> bool:
    """Return whether the bundle loads and dreams a frame."""
    model = WorldModel.load(folder, device="cpu")
    state = model.reset(torch.full((1, 1, 32, 32, 3), 90, dtype=torch.uint8), torch.zeros(1, 0, dtype=torch.int64), [0])
    return model.step(state, torch.tensor([1])).frames.shape == (1, 32, 32, 3)


# The parts ------------------------------------------------------------------------------------------------------------


def test_muon_in_stacks_is_muon() -> None:
    shapes = [(24, 16), (16, 16), (24, 16), (8, 32), (16, 16)]
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=generator) for shape in shapes]
    found = []
    for kind in ("step", "step_stacked"):
        weights = [torch.nn.Parameter(part.clone()) for part in start]
        muon = StackedMuon(weights, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
        chance = torch.Generator().manual_seed(1)
        for _ in range(3):
            for weight in weights:
                weight.grad = torch.randn(weight.shape, generator=chance)
            getattr(muon, kind)()
        found.append((weights, muon))
    (plain, one), (stacked, two) = found
    for before, a, b in zip(start, plain, stacked, strict=True):
        assert (a - before).abs().mean() > 0.005
        torch.testing.assert_close(a, b, atol=2e-3, rtol=0)  # a fraction of a step: bfloat16 in another order
        torch.testing.assert_close(one.state[a]["momentum_buffer"], two.state[b]["momentum_buffer"])


def test_joined_shards_give_the_clips_that_shards_give(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = PreparedData(prepared)
    clips, rewards = plain.sample_clips(5, 16, torch.Generator().manual_seed(4)), plain.all_rewards()
    monkeypatch.setattr(PreparedData, "is_joined", True)
    joined = PreparedData(prepared)
    assert "latents" not in joined.shards[0] and joined.num_frames == plain.num_frames
    same = joined.sample_clips(5, 16, torch.Generator().manual_seed(4))
    assert clips.keys() == same.keys() and clips["warped"].std() > 0.1
    for name, part in clips.items():
        assert torch.equal(part, same[name]), name
    assert torch.equal(rewards, joined.all_rewards())


def test_several_preparers_make_what_one_makes(prepared: Path, posed: Path, pixel_world: Path, tmp_path: Path) -> None:
    for part in (1, 0):
        made = prepare(WarpOptions(posed, tmp_path, str(pixel_world), device="cpu", parts=2, part=part))
        assert made["shards"] == 1
    for path in prepared.iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes()


def test_the_line_of_a_compiler_that_says_what_is_wrong() -> None:
    assert first_fatal_line("Traceback\n  in f\nfatal error: cuda.h: no such file\nmore") == (
        "fatal error: cuda.h: no such file"
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"deadline": 0.0}, r"deadline \(or minutes\) must be above 0"),
        ({"clip_frames": 12}, "multiple of chunk 8; got 12"),
        ({"length": 8}, "length must be at least 16; got 8"),
        ({"warps": Path("x")}, "give --data too"),
    ],
)
def test_bad_options(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        options(tmp_path, tmp_path, **changes)


# The whole ------------------------------------------------------------------------------------------------------------


def test_it_trains_what_it_is_given_and_says_what_it_did(
    pixel_world: Path, posed: Path, prepared: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    report = fine_tune(options(pixel_world, out, data=posed, warps=prepared, bundle_s=0.0))
    assert report["is_complete"] and report["parts"]["training"]["steps"] == 4
    assert report["parts"]["training"]["bundles"] >= 4  # as given, and by time
    assert json.loads((out / "report.json").read_text()) == report
    assert {path.name for path in out.iterdir()} == {
        "config.json",
        "codec.safetensors",
        "denoiser.safetensors",
        "depth.safetensors",
        "report.json",
    }
    before, after = load_denoiser(pixel_world), load_denoiser(out)
    assert after.config == before.config and dreams(out)
    moved = [not torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True)]
    assert sum(moved) > len(moved) / 2


def test_an_old_world_is_grafted(
    bundle: Path, pixel_world: Path, posed: Path, prepared: Path, tmp_path: Path, make_denoiser: Callable[..., Denoiser]
) -> None:
    with pytest.raises(CheckpointError, match="give --depth"):
        fine_tune(options(bundle, tmp_path / "none", data=posed, warps=prepared))
    out = tmp_path / "out"
    given = {"data": posed, "warps": prepared, "depth": str(pixel_world), "learning_rate": 1e-9}
    fine_tune(options(bundle, out, **given))
    old, new = load_denoiser(bundle).state_dict(), load_denoiser(out)
    assert (
        new.config.warp_channels == NUM_FOLDED
        and new.config.displacements == LABMAZE_ACTIONS.displacements
        and dreams(out)
    )
    taken = [torch.allclose(old[name], value, atol=0.02) for name, value in new.state_dict().items() if name in old]
    assert len(taken) > 40 and all(taken)


@pytest.mark.slow
def test_the_deadline_is_kept(pixel_world: Path, posed: Path, prepared: Path, tmp_path: Path) -> None:
    started = time.monotonic()
    changes = {"data": posed, "warps": prepared, "steps": None, "deadline": 30.0}
    report = fine_tune(options(pixel_world, tmp_path / "out", **changes))
    assert 20.0 < time.monotonic() - started < 30.0
    assert report["parts"]["training"]["steps"] >= 1 and dreams(tmp_path / "out")


def test_what_hangs_is_ended_in_time_and_what_was_cut_is_said(
    pixel_world: Path, posed: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[int] = []

    def hang(work: Any, facts: dict[str, Any]) -> None:
        while not ended and time.monotonic() - started < 60:
            time.sleep(0.05)

    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr(train.finetune, "fine_tune_denoiser", hang)
    started = time.monotonic()
    fine_tune(options(pixel_world, tmp_path, data=posed, warps=prepared, deadline=6.0))
    assert ended == [1] and time.monotonic() - started >= 4.0
    report = json.loads((tmp_path / "report.json").read_text())
    assert "the deadline of 6 s came first" in " ".join(report["cut"].values()) and dreams(tmp_path)


def test_what_diverges_leaves_the_bundle_of_before(
    pixel_world: Path, posed: Path, prepared: Path, tmp_path: Path
) -> None:
    changes = {"data": posed, "warps": prepared, "learning_rate": 1e30, "steps": 8}
    report = fine_tune(options(pixel_world, tmp_path / "out", **changes))
    assert "diverged" in report["cut"]["training"] and dreams(tmp_path / "out")


def test_a_missing_real_world_is_one_line(pixel_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(StateError, match="no frame of the real world"):
        fine_tune(options(pixel_world, tmp_path / "out"))
    assert dreams(tmp_path / "out")


def run(world: Path, out: Path, *words: str) -> subprocess.Popen[str]:
    """Start the program on a tiny world; it would train for two minutes."""
    plain = "--batch-size 2 --clip-frames 16 --length 48 --device cpu --no-compile --deadline 120 --bundle-s 0.2"
    command = [sys.executable, "-m", "train.finetune", "--from", str(world), "--out", str(out), *plain.split(), *words]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    while not path.is_file() and process.poll() is None:
        time.sleep(0.05)


def test_sigterm_at_any_moment_leaves_a_bundle_that_loads(
    pixel_world: Path, posed: Path, prepared: Path, tmp_path: Path
) -> None:
    rng, longest = random.Random(int(os.environ.get("FINETUNE_SEED", "0"))), 1.0
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)  # one that comes too late ends no test run
    try:
        for number in range(int(os.environ.get("FINETUNE_KILLS", "5"))):
            out = tmp_path / str(number)
            killer = threading.Timer(rng.uniform(0, longest), os.kill, (os.getpid(), signal.SIGTERM))
            started = time.monotonic()
            killer.start()
            changes = {"data": posed, "warps": prepared, "steps": 12, "bundle_s": 0.0}
            with contextlib.suppress(Terminated):
                fine_tune(options(pixel_world, out, **changes))
            longest = max(longest, time.monotonic() - started)
            killer.join()
            assert not (out / "config.json").exists() or dreams(out)
            assert not list(out.glob(".*safetensors*.tmp"))
    finally:
        signal.signal(signal.SIGTERM, before)


def test_sigterm_in_training_keeps_what_was_trained(
    pixel_world: Path, posed: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = train.finetuning.training.make_sampler

    def make(*given: Any) -> Callable[[torch.Generator], dict[str, torch.Tensor]]:
        draw, calls = real(*given), []

        def sample(generator: torch.Generator) -> dict[str, torch.Tensor]:
            calls.append(0)
            if len(calls) == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return draw(generator)

        return sample

    monkeypatch.setattr(train.finetuning.training, "make_sampler", make)
    with pytest.raises(Terminated):
        fine_tune(options(pixel_world, tmp_path, data=posed, warps=prepared, steps=50, learning_rate=0.05))
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["parts"]["training"]["steps"] == 3 and not report["is_complete"]
    before, after = load_denoiser(pixel_world), load_denoiser(tmp_path)
    assert not torch.equal(before.blocks[0].attention.to_qkv.weight, after.blocks[0].attention.to_qkv.weight)
    assert dreams(tmp_path)


@pytest.mark.slow
def test_the_program_ends_well_at_sigterm(pixel_world: Path, posed: Path, prepared: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = run(pixel_world, out, "--data", str(posed), "--warps", str(prepared))
    wait_for(out / "report.json", process)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 128 + signal.SIGTERM and "terminated" in said, said
    assert dreams(out)


@pytest.mark.slow
@pytest.mark.skipif("WORLDMODEL_REHEARSE" not in os.environ, reason="takes minutes: set WORLDMODEL_REHEARSE=1")
def test_it_records_prepares_and_trains(pixel_world: Path, tmp_path: Path) -> None:
    pytest.importorskip("mujoco")
    out = tmp_path / "out"
    words = "--workers 1 --preparers 1 --episodes 4 --length 70 --steps 6 --decoder-share 0.3 --evaluate-s 0"
    process = run(pixel_world, out, *words.split(), "--preflight-s", "60", "--deadline", "120")
    said = process.communicate(timeout=200)[0]
    assert process.returncode == 0, said
    report = json.loads((out / "report.json").read_text())
    assert report["is_complete"] and report["parts"]["gathering"]["episodes"] == 4
    assert report["parts"]["decoder"]["steps"] >= 1, said
    assert dreams(out) and len(list(out.iterdir())) <= 8


def test_terminated_is_no_error_that_is_caught() -> None:
    assert not issubclass(Terminated, Exception)
    assert dataclasses.is_dataclass(FineTuneOptions)


def test_what_was_played_is_learned_from(pixel_world: Path, posed: Path, tmp_path: Path) -> None:
    """Sessions in place of a recording; the report says what was taken."""
    plays = tmp_path / "plays"
    plays.mkdir()
    for path in posed.glob("train-*.h5"):
        (plays / path.name).write_bytes(path.read_bytes())
    changes = {"sessions": plays, "deadline": None, "minutes": 8.0, "work": tmp_path / "work", "preparers": 1}
    report = fine_tune(options(pixel_world, tmp_path / "out", **changes))
    assert report["is_complete"] and report["parts"]["training"]["steps"] == 4
    assert report["sessions"] == {"files": 2, "frames": 41 + 45 + 49, "dreams_left_out": 0}
    assert dreams(tmp_path / "out")
