"""Training: killed at any moment it goes on as if nothing had happened; several processes are one training."""

import dataclasses
import importlib.machinery
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load
from torch import nn

from train.bundle import BundleOptions
from train.codec import CodecOptions, train_codec
from train.core.interrupts import command_to_go_on
from train.core.journal import RecipeOptions
from train.core.loop import TrainOptions, iterate_steps, rate_at, step_generator, train_model
from train.core.machine import Machine, compile_model, start_machine
from train.core.state import STATE_FILE, load_state, save_state
from train.denoiser import DenoiserOptions, reward_values, train_denoiser
from train.evaluate import EvaluateOptions
from worldmodel.checkpoint import codec_hash, load_codec, load_denoiser
from worldmodel.errors import CheckpointError, ConfigError, DataError, SeedError, StorageError

ROOT = Path(__file__).parents[2]
NEVER, ALWAYS = 1e9, 1e-9
CPU = Machine(torch.device("cpu"))
TINY: dict[str, Any] = {
    "preset": "tiny",
    "batch_size": 2,
    "device": "cpu",
    "compile": False,
    "seed": 3,
    "save_minutes": NEVER,
}


class Slope(nn.Module):
    """The smallest model: its weight, buffer and loss can be followed by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, -1.0]))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        self.seen += 1
        loss = (self.weight * x).sum().sin()
        return loss, {"x": x.detach().mean()}


class Killed(Exception):
    """Stands for a power cut."""


def sample_slope(generator: torch.Generator) -> dict[str, torch.Tensor]:
    return {"x": torch.randn(2, generator=generator)}


def train_slope(
    out: Path, steps: int, die_at: int | None = None, frames: int = 10, **changes: Any
) -> tuple[Slope, nn.Module, dict[str, Any], list[torch.Tensor]]:
    """Return the model, the averaged model, the summary, and the weights before every step."""
    settings = {**TINY, "steps": steps, "learning_rate": 0.05, "ema": 0.9, **changes}
    options = TrainOptions(data=out, out=out, **settings)
    model, course = Slope(), []
    optimizers = [torch.optim.AdamW([model.weight], lr=0.05, betas=(0.9, 0.98))]

    def sample(generator: torch.Generator) -> dict[str, torch.Tensor]:
        if die_at is not None and len(course) == die_at:
            raise Killed
        course.append(model.weight.detach().clone())
        return sample_slope(generator)

    average, summary = train_model(options, CPU, model, optimizers, sample, frames)
    return model, average, summary, course


def test_a_run_cut_in_two_is_the_unbroken_run(tmp_path: Path) -> None:
    model, average, summary, course = train_slope(tmp_path / "whole", 12)
    with pytest.raises(Killed):
        train_slope(tmp_path / "cut", 12, die_at=7, save_minutes=ALWAYS)
    assert load_state(tmp_path / "cut")["step"] == 7
    again, again_average, again_summary, again_course = train_slope(tmp_path / "cut", 12, resume=True)
    assert len(again_course) == 5
    for a, b in zip(course[7:], again_course, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(model.weight, again.weight)
    assert torch.equal(average.weight, again_average.weight)
    assert torch.equal(model.seen, again.seen)
    for key in ("steps", "frames", "loss", "learning_rate_factor"):
        assert summary[key] == again_summary[key], key
    assert summary["steps"] == 12
    assert summary["frames"] == 120


def test_a_resumed_run_that_is_over_changes_nothing(tmp_path: Path) -> None:
    model, average, _, _ = train_slope(tmp_path, 5)
    again, again_average, summary, course = train_slope(tmp_path, 5, resume=True)
    assert course == []
    assert summary["steps"] == 5
    assert torch.equal(model.weight, again.weight)
    assert torch.equal(average.weight, again_average.weight)


def test_resumed_time_counts(tmp_path: Path) -> None:
    _, _, first, _ = train_slope(tmp_path, None, minutes=0.01)
    assert first["minutes"] == pytest.approx(0.01, rel=0.5)
    _, _, over, course = train_slope(tmp_path, None, minutes=0.01, resume=True)
    assert course == []
    _, _, second, course = train_slope(tmp_path, None, minutes=0.02, resume=True)
    assert 0 < len(course) == second["steps"] - first["steps"]
    assert second["minutes"] == pytest.approx(0.02, rel=0.5)


def test_the_rate_shown_after_a_resume_counts_only_the_steps_since(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(10_000))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    _, _, unbroken, _ = train_slope(tmp_path / "whole", 20)
    with pytest.raises(Killed):
        train_slope(tmp_path, 20, die_at=18, save_minutes=ALWAYS)
    _, _, resumed, _ = train_slope(tmp_path, 20, resume=True)
    assert resumed["frames_per_s"] < 2 * unbroken["frames_per_s"]


def test_a_training_that_diverged_keeps_the_last_good_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_slope(tmp_path, 3)
    kept = (tmp_path / STATE_FILE).read_bytes()
    for save_minutes in (ALWAYS, NEVER):
        with monkeypatch.context() as patch:
            patch.setitem(globals(), "sample_slope", lambda generator: {"x": torch.tensor([math.nan, 0.0])})
            with pytest.raises(ConfigError, match="training diverged before step 4 .*is nan.*below 0.05"):
                train_slope(tmp_path, 4, resume=True, save_minutes=save_minutes)
        assert (tmp_path / STATE_FILE).read_bytes() == kept


def test_the_clock_of_the_main_process_counts_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that read their own clocks would train at learning rates of their own, and drift apart."""
    main_clock = iter([0.0, 0.3, 0.6, 1.2])
    monkeypatch.setattr(torch.distributed, "broadcast", lambda value, source: value.fill_(next(main_clock)))
    other = Machine(torch.device("cpu"), rank=1, world_size=2)
    options = TrainOptions(data=tmp_path, out=tmp_path, minutes=1.0)
    own_clock = itertools.count(5.0, 7.0)
    assert list(iterate_steps(4, options, other, lambda: next(own_clock))) == [(4, 0.0), (5, 0.3), (6, 0.6)]


def test_without_a_compiler_training_goes_on_uncompiled(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """torch.compile itself never fails: a missing compiler shows when the result is called."""

    def fail(*_: Any) -> None:
        raise RuntimeError("No working C++ compiler found\nlong story")

    model = Slope()
    monkeypatch.setattr(torch, "compile", lambda function, **_: fail)
    assert compile_model(model, CPU.device) is model
    assert capsys.readouterr().out == "not compiled, training goes on slower: No working C++ compiler found\n"
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    assert compile_model(model, CPU.device) is model
    assert capsys.readouterr().out == ""


def test_the_average_is_exponential(tmp_path: Path) -> None:
    model, average, _, course = train_slope(tmp_path, 4)
    expected = course[1].clone()
    for weight in (*course[2:], model.weight.detach()):
        expected = 0.9 * expected + 0.1 * weight
    torch.testing.assert_close(average.weight.detach(), expected)


def test_the_learning_rate_depends_on_the_step_alone() -> None:
    warm = [rate_at(step / 1_000, 0.4, step) for step in range(1_000)]
    assert warm[0] == pytest.approx(0.01)
    assert warm[99:600] == [1.0] * 501
    assert warm[800] == pytest.approx(0.5)
    assert warm[999] == pytest.approx(0.0025)
    assert rate_at(1.5, 0.4, 5_000) == 0
    assert rate_at(1.0, 0.0, 5_000) == 1


def test_chance_differs_between_steps_processes_and_seeds() -> None:
    draws = {tuple(torch.rand(3, generator=step_generator(*key)).tolist()) for key in [(0, 0, 0)] * 2}
    assert len(draws) == 1
    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1), (1, 1, 0)]
    assert len({float(torch.rand(1, generator=step_generator(*key))) for key in keys}) == len(keys)


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    content = {
        "numbers": {0: torch.arange(3), 7: torch.tensor(2.5, dtype=torch.bfloat16)},
        "list": [1, 2.5, None, True, "text", [torch.ones(2, 0)], {}],
        "flag": torch.tensor([True, False]),
        "step": 3,
    }
    save_state(tmp_path, content)
    found = load_state(tmp_path)
    assert found["list"][:5] == [1, 2.5, None, True, "text"]
    assert found["list"][5][0].shape == (2, 0)
    assert found["step"] == 3
    assert list(found["numbers"]) == [0, 7]
    assert torch.equal(found["numbers"][0], torch.arange(3))
    assert found["numbers"][7].dtype == torch.bfloat16
    assert torch.equal(found["flag"], content["flag"])
    assert [path.name for path in tmp_path.iterdir()] == [STATE_FILE]


def test_resuming_without_a_state_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"nothing to resume: .*{STATE_FILE} does not exist"):
        train_slope(tmp_path, 3, resume=True)


@pytest.mark.parametrize("damage", ["half", "empty", "text", "header", "metadata"])
def test_a_damaged_state_is_named(damage: str, tmp_path: Path) -> None:
    train_slope(tmp_path, 2)
    path = tmp_path / STATE_FILE
    whole = path.read_bytes()
    path.write_bytes(
        {
            "half": whole[: len(whole) // 2],
            "empty": b"",
            "text": b"x" * 4_000,
            "header": whole[:8] + b"?" + whole[9:],
            "metadata": whole.replace(b"__tensor__", b"__tensoR__", 1),
        }[damage]
    )
    with pytest.raises(CheckpointError, match=rf"{STATE_FILE} is (damaged|of another model)"):
        train_slope(tmp_path, 3, resume=True)


@pytest.mark.parametrize(
    "change", [lambda s: s.pop("step"), lambda s: s.pop("average"), lambda s: s["optimizers"].pop()]
)
def test_a_state_of_another_program_is_named(change: Any, tmp_path: Path) -> None:
    train_slope(tmp_path, 2)
    state = load_state(tmp_path)
    change(state)
    save_state(tmp_path, state)
    with pytest.raises(CheckpointError, match=rf"{STATE_FILE} is of another model"):
        train_slope(tmp_path, 3, resume=True)


def test_a_full_disk_is_named_and_the_last_state_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    train_slope(tmp_path, 2)
    kept = (tmp_path / STATE_FILE).read_bytes()

    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match="disk full"):
        train_slope(tmp_path, 4, resume=True)
    assert (tmp_path / STATE_FILE).read_bytes() == kept


@pytest.mark.parametrize(
    "changes",
    [
        {"minutes": 0.0},
        {"minutes": math.nan},
        {"steps": 0},
        {"batch_size": 0},
        {"learning_rate": 0.0},
        {"learning_rate": math.nan},
        {"ema": 1.0},
        {"decay_share": 1.1},
    ],
    ids=str,
)
def test_bad_options_are_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    (value,) = changes.values()
    with pytest.raises(ConfigError, match=str(value)):
        TrainOptions(data=tmp_path, out=tmp_path, **changes)


# The programs -------------------------------------------------------------------------------------------------


def test_a_negative_seed_is_refused_by_every_program(tmp_path: Path) -> None:
    for make in (
        lambda: TrainOptions(data=tmp_path, out=tmp_path, seed=-1),
        lambda: RecipeOptions(out=tmp_path, seed=-1),
        lambda: BundleOptions(denoiser=tmp_path, data=tmp_path, out=tmp_path, seed=-1),
        lambda: EvaluateOptions(checkpoint="", out=tmp_path, seed=-1),
    ):
        with pytest.raises(SeedError, match="seed must be 0 or more; got -1"):
            make()


def denoiser_options(recording: Path, codec_folder: Path, out: Path, **changes: Any) -> DenoiserOptions:
    settings = {**TINY, "clip_frames": 16, "steps": 24, **changes}
    return DenoiserOptions(data=recording, codec=codec_folder, out=out, **settings)


def denoiser_words(options: DenoiserOptions) -> list[str]:
    words = ["--data", options.data, "--codec", options.codec, "--out", options.out, "--preset", options.preset]
    words += ["--batch-size", options.batch_size, "--clip-frames", options.clip_frames, "--steps", options.steps]
    words += ["--seed", options.seed, "--save-minutes", options.save_minutes, "--decay-share", options.decay_share]
    words += ["--device", "cpu", "--no-compile"]
    return [str(word) for word in words]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load((folder / "denoiser.safetensors").read_bytes())


@pytest.mark.slow
def test_killed_and_resumed_training_ends_in_the_same_weights(
    recording: Path, codec_folder: Path, tmp_path: Path
) -> None:
    """SIGKILL after a saved state, in the middle of the run; the rest in another process."""
    settings: dict[str, Any] = {"decay_share": 0.0}  # so that the end of the run does not change its beginning
    killed = denoiser_options(recording, codec_folder, tmp_path / "killed", save_minutes=ALWAYS, steps=400, **settings)
    process = subprocess.Popen([sys.executable, "-m", "train.denoiser", *denoiser_words(killed)], cwd=ROOT)
    try:
        until = time.monotonic() + 120
        while not (killed.out / STATE_FILE).is_file():
            assert process.poll() is None, "the training ended before a state was saved"
            assert time.monotonic() < until, "no state was saved in two minutes"
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL
    step = load_state(killed.out)["step"]
    assert 1 <= step < 400

    steps = step + 6
    machine = start_machine("cpu")
    settings["steps"] = steps
    resumed = dataclasses.replace(killed, save_minutes=NEVER, resume=True, **settings)
    summary = train_denoiser(resumed, machine)
    assert summary["steps"] == steps
    whole = denoiser_options(recording, codec_folder, tmp_path / "whole", **settings)
    train_denoiser(whole, machine)
    found, expected = weights(killed.out), weights(whole.out)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    states = [load_state(out)["model"] for out in (killed.out, whole.out)]
    for name, value in states[1].items():
        assert torch.equal(states[0][name], value), name


def test_a_state_of_another_preset_is_named(recording: Path, codec_folder: Path, tmp_path: Path) -> None:
    options = denoiser_options(recording, codec_folder, tmp_path, steps=1)
    train_denoiser(options, CPU)
    state = load_state(tmp_path)
    state["model"]["denoiser.summary"] = torch.zeros(3, 3)
    save_state(tmp_path, state)
    with pytest.raises(CheckpointError, match="is of another model"):
        train_denoiser(dataclasses.replace(options, resume=True, steps=2), CPU)


def test_the_programs_train_save_and_go_on(recording: Path, tmp_path: Path) -> None:
    """Codec, then denoiser on its latents: bundles load, summaries count, further training starts from `initial`."""
    codec_options = CodecOptions(data=recording, out=tmp_path / "codec", **{**TINY, "batch_size": 8, "steps": 4})
    summary = train_codec(codec_options, CPU)
    assert (summary["steps"], summary["frames"], summary["test_frames"]) == (4, 32, 19)
    assert json.loads((codec_options.out / "codec_training.json").read_text())["summary"]["test_psnr"] > 0
    codec = load_codec(codec_options.out)
    assert codec.latent_std.min() > 0
    assert not torch.equal(codec.latent_std, torch.ones(4))

    options = denoiser_options(recording, codec_options.out, tmp_path / "denoiser", steps=3)
    summary = train_denoiser(options, CPU)
    assert (summary["steps"], summary["frames"]) == (3, 3 * 2 * 16)
    denoiser = load_denoiser(options.out)
    assert (denoiser.config.num_actions, denoiser.config.reward_values) == (7, (0.0, 1.0))
    assert torch.equal(load_codec(options.out).latent_std, codec.latent_std)
    kept = json.loads((options.out / "denoiser_training.json").read_text())
    assert kept["options"]["clip_frames"] == 16
    assert kept["summary"]["steps"] == 3

    onward = dataclasses.replace(
        options, out=tmp_path / "onward", initial=str(options.out), steps=1, learning_rate=1e-9
    )
    train_denoiser(onward, CPU)
    for name, value in load_denoiser(onward.out).state_dict().items():
        torch.testing.assert_close(value, denoiser.state_dict()[name], rtol=1e-2, atol=1e-4)


def test_clips_begin_with_no_known_action(
    recording: Path, codec_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a dream begins: `WorldModel.reset` says "none" for the first frame as well."""
    import train.denoiser

    def stop(options: Any, machine: Any, model: Any, optimizers: Any, sample: Any, *_: Any, **__: Any) -> None:
        seen.update(sample(step_generator(0, 0, 0)))
        assert {id(p) for o in optimizers for g in o.param_groups for p in g["params"]} == {
            id(p) for p in model.parameters()
        }
        raise Killed

    seen: dict[str, torch.Tensor] = {}
    monkeypatch.setattr(train.denoiser, "train_model", stop)
    with pytest.raises(Killed):
        train_denoiser(denoiser_options(recording, codec_folder, tmp_path, batch_size=20), CPU)
    assert seen["latents"].shape == (20, 16, 4, 8, 8)
    assert seen["actions"][:, 0].tolist() == [7] * 20
    assert set(seen["actions"][:, 1:].flatten().tolist()) == set(range(7))
    assert seen["levels"].shape == seen["context_levels"].shape == (20, 16)


def test_what_does_not_fit_the_denoiser_is_named(recording: Path, codec_folder: Path, tmp_path: Path) -> None:
    def train(**changes: Any) -> None:
        train_denoiser(denoiser_options(recording, codec_folder, tmp_path, **changes), CPU)

    with pytest.raises(CheckpointError, match="preset 'small' takes 8 x 8"):
        train(preset="small")
    with pytest.raises(ConfigError, match="clip_frames must be a multiple of chunk 8; got 12"):
        train(clip_frames=12)
    with pytest.raises(DataError, match="clips of 80 frames asked for; the longest episode has 31"):
        train(clip_frames=80)
    with pytest.raises(ConfigError, match="unknown preset"):
        train(preset="huge")


def test_rewards_that_occur_become_classes() -> None:
    assert reward_values(torch.tensor([0.0, 1.0, 0.0, -0.5]), (0.0, 1.0)) == (-0.5, 0.0, 1.0)
    assert reward_values(torch.zeros(5), (0.0, 1.0)) == (0.0, 1.0)
    with pytest.raises(ConfigError, match="17 different rewards; the reward head takes at most 16"):
        reward_values(torch.arange(17.0), (0.0, 1.0))


@pytest.mark.slow
def test_two_processes_are_one_training(recording: Path, codec_folder: Path, tmp_path: Path) -> None:
    """On the CPU with torchrun: one bundle, frames of both counted, gradients averaged over different clips."""
    both = denoiser_options(recording, codec_folder, tmp_path / "both", steps=3, batch_size=1)
    # Standalone: the processes meet at a port that the launcher holds; one probed here could be taken before they do.
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "train.denoiser"]
    process = subprocess.run(
        [sys.executable, *words, *denoiser_words(both)], cwd=ROOT, capture_output=True, text=True, timeout=200
    )
    assert process.returncode == 0, process.stderr[:20_000]
    kept = json.loads((both.out / "denoiser_training.json").read_text())["summary"]
    assert (kept["steps"], kept["frames"]) == (3, 3 * 2 * 1 * 16)
    assert load_state(both.out)["step"] == 3
    assert load_denoiser(both.out).config.num_actions == 7
    alone = dataclasses.replace(both, out=tmp_path / "alone")
    train_denoiser(alone, start_machine("cpu"))
    found, expected = weights(both.out), weights(alone.out)
    assert any(not torch.equal(found[name], value) for name, value in expected.items())


def test_a_training_is_not_overwritten_by_a_new_one(tmp_path: Path) -> None:
    train_slope(tmp_path, 3)
    before = (tmp_path / STATE_FILE).read_bytes()
    with pytest.raises(CheckpointError, match="holds a training already: add --resume"):
        train_slope(tmp_path, 3)
    assert (tmp_path / STATE_FILE).read_bytes() == before


def test_the_decoder_alone_can_be_trained_further(recording: Path, codec_folder: Path, tmp_path: Path) -> None:
    """Latents stay what they were, pictures get better; nothing of the encoder moves."""
    values = {**TINY, "batch_size": 8, "steps": 12, "initial": str(codec_folder)}
    options = CodecOptions(data=recording, out=tmp_path, decoder_only=True, texture_weight=0.05, **values)
    train_codec(options, CPU)
    before, after = load_codec(codec_folder).state_dict(), load_codec(tmp_path).state_dict()
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved
    assert all(name.startswith("autoencoder.decoder.") for name in moved), sorted(moved)[0]
    assert codec_hash(tmp_path) == codec_hash(codec_folder)


def test_training_the_decoder_alone_needs_an_encoder(recording: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--decoder-only needs --initial"):
        CodecOptions(data=recording, out=tmp_path, decoder_only=True)
    with pytest.raises(ConfigError, match="texture_weight must be at least 0; got -1"):
        CodecOptions(data=recording, out=tmp_path, texture_weight=-1)


def test_frames_are_counted_also_when_the_batch_changes_on_resume(tmp_path: Path) -> None:
    train_slope(tmp_path, 4, frames=10)
    _, _, summary, _ = train_slope(tmp_path, 6, frames=25, resume=True)
    assert summary["frames"] == 4 * 10 + 2 * 25


STOPPED = """
import sys, time
from pathlib import Path
import torch
from tests.train.test_loop import CPU, TINY, Slope, sample_slope
from train.core.loop import TrainOptions, train_model
from train.core.options import run_program

def main():
    options = TrainOptions(data=Path("."), out=Path(sys.argv[1]), **{**TINY, "steps": 100_000})
    model, told = Slope(), []
    def sample(generator):
        if not told:
            told.append(print("begun", flush=True))
        time.sleep(0.01)
        return sample_slope(generator)
    train_model(options, CPU, model, [torch.optim.AdamW([model.weight], lr=0.05)], sample, 10)

run_program(main)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_training_that_is_stopped_saves_its_state_and_says_how_it_goes_on(number: int, tmp_path: Path) -> None:
    words = [sys.executable, "-c", STOPPED, str(tmp_path)]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        time.sleep(0.2)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    step = load_state(tmp_path)["step"]
    assert 0 < step < 100_000
    assert said.splitlines()[-1] == f"stopped at step {step}, state saved; to go on: the same command with --resume"


def test_the_command_that_goes_on_is_the_one_that_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    main = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setattr(sys, "argv", ["denoiser.py", "--out", "my runs"])
    main.__spec__ = importlib.machinery.ModuleSpec("train.denoiser", None)
    assert command_to_go_on() == "python -m train.denoiser --out 'my runs' --resume"
    main.__spec__ = importlib.machinery.ModuleSpec("train.recipe", None)
    assert command_to_go_on() == "python -m train.recipe --out 'my runs'"
