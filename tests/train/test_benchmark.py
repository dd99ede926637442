"""The benchmark: every promised figure is there and stands for what it says."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from train.benchmark import BenchmarkOptions, benchmark
from train.core.stopwatch import measure_matrix_speed, peak_memory, time_in_turn
from worldmodel.checkpoint import save_bundle
from worldmodel.codec import Codec
from worldmodel.denoiser import Denoiser
from worldmodel.errors import CheckpointError, ConfigError
from worldmodel.presets import get_preset

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    torch.manual_seed(0)
    preset = get_preset("tiny")
    frames = torch.randint(0, 256, (1, 6, 64, 64, 3), dtype=torch.uint8)
    openings = {"frames": frames, "actions": torch.ones(1, 5, dtype=torch.uint8)}
    codec, denoiser = Codec(preset.codec), Denoiser(preset.denoiser)
    save_bundle(folder, codec=codec, denoiser=denoiser, openings=openings, info={"world": "LabMaze", "num_steps": 3})
    return folder


def test_every_figure(world: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"frames": 5, "deep_frames": 26, "device": "cpu", "memory_frames": 20}
    options = BenchmarkOptions(tmp_path / "b.json", str(world), **settings)
    report = benchmark(options)
    assert json.loads((tmp_path / "b.json").read_text()) == report
    assert report["deep_frames"] == [20, 26]
    assert report["step_ms_at_frame"].keys() == report["passing_step_ms_at_frame"].keys() == {"20", "26"}
    assert report["denoising_steps"] == 3 and report["memory_frames"] == 20
    stages = report["stage_ms"]
    assert stages.keys() == {"denoise", "denoise_commit", "decode", "encode", "env_overhead"}
    assert all(value > 0 for value in stages.values())
    # A step is a call that commits, two more calls and a decode; half is for the clock of a busy machine.
    assert report["step_ms"] > 0.5 * (stages["denoise_commit"] + 2 * stages["denoise"] + stages["decode"])
    assert stages["env_overhead"] < report["step_ms"]
    assert report["frames_per_s"] == pytest.approx(1000 / report["step_ms"])
    config = get_preset("tiny").denoiser
    size, patches = 4 if report["dtype"] == "float32" else 2, 4 * config.width * config.num_patches
    memory = config.num_memory_layers * 20 * config.num_summary * config.width * 2 * size
    assert report["cache_bytes"] == 2 * config.num_recent_layers * patches * size + memory + 8 + 20
    assert report["parameters"]["denoiser"] == sum(p.numel() for p in Denoiser(config).parameters())
    floors = report["stage_floors"]
    assert floors.keys() == stages.keys() - {"env_overhead"} and not report["is_compiled"]
    assert all(0 < floor["floor_ms"] < stages[name] and floor["gflop"] > 0 for name, floor in floors.items())
    assert floors["denoise"]["gflop"] < floors["denoise_commit"]["gflop"] < 2.1 * floors["denoise"]["gflop"]
    assert report["uncompiled_step_ms"] > 0 and report["bandwidth_gbytes"] > 0
    assert report["matrix_gflops"].keys() == {"bfloat16", "float32"} and min(report["matrix_gflops"].values()) > 0


def test_without_openings_there_is_no_env_to_time(world: Path, tmp_path: Path) -> None:
    for name in ("codec", "denoiser"):
        (tmp_path / f"{name}.safetensors").write_bytes((world / f"{name}.safetensors").read_bytes())
    (tmp_path / "config.json").write_bytes((world / "config.json").read_bytes())
    report = benchmark(BenchmarkOptions(tmp_path / "b.json", str(tmp_path), steps=1, frames=2, deep_frames=3))
    assert report["stage_ms"]["env_overhead"] is None
    assert report["denoising_steps"] == 1 and report["deep_frames"] == [3]


def test_tasks_are_timed_in_turn_and_by_their_medians() -> None:
    calls: list[str] = []

    def sleeper(name: str, seconds: float) -> None:
        calls.append(name)
        time.sleep(0.3 if len(calls) in (1, 3, 5, 9) else seconds)  # "a" in the warm-up, and once later

    times = time_in_turn({"a": lambda: sleeper("a", 0.02), "b": lambda: sleeper("b", 0.002)}, 3, CPU)
    assert calls == ["a", "b"] * 6
    assert 20 <= times["a"] < 150 and 2 <= times["b"] < times["a"]


def test_matrix_speed_and_memory() -> None:
    speed = measure_matrix_speed(CPU, torch.float32, rounds=3)
    started = time.perf_counter()
    torch.randn(1024, 1024) @ torch.randn(1024, 1024)
    slow = 2 * 1024**3 / (time.perf_counter() - started) / 1e9
    assert slow / 10 < speed < 1000 * slow
    before = peak_memory(CPU)
    ballast = torch.ones(50_000_000)
    after = peak_memory(CPU)
    assert before is not None and after is not None and after >= ballast.nbytes and after >= before


def test_bad_options(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="deep_frames must be at least 1; got 0"):
        BenchmarkOptions(tmp_path / "b.json", deep_frames=0)
    with pytest.raises(ConfigError, match="threads must be at least 1; got 0"):
        BenchmarkOptions(tmp_path / "b.json", threads=0)
    with pytest.raises(CheckpointError, match="no checkpoint 'atlantis'"):
        benchmark(BenchmarkOptions(tmp_path / "b.json", "atlantis"))
