"""Speed: every promised figure is there and stands for what it says."""

import json
import time
from pathlib import Path

import pytest
import torch

from envs.worlds.labmaze.spec import LabMaze
from train.core.stopwatch import measure_matrix_speed, peak_memory, time_in_turn
from train.evaluate import evaluate_world, read_measures
from train.measures.base import Bench
from train.measures.speed import Speed, SpeedOptions
from train.measures.vector import Vector, VectorOptions
from worldmodel.checkpoint import save_bundle
from worldmodel.codec import Codec
from worldmodel.denoiser import Denoiser
from worldmodel.errors import CompileError, ConfigError
from worldmodel.presets import get_preset
from worldmodel.world import WorldModel

CPU = torch.device("cpu")
INFO = {"world": "LabMaze", "num_steps": 3}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    torch.manual_seed(0)
    preset = get_preset("tiny")
    frames = torch.randint(0, 256, (1, 6, 64, 64, 3), dtype=torch.uint8)
    openings = {"frames": frames, "actions": torch.ones(1, 5, dtype=torch.uint8)}
    save_bundle(folder, codec=Codec(preset.codec), denoiser=Denoiser(preset.denoiser), openings=openings, info=INFO)
    return folder


def test_every_figure(world: Path, tmp_path: Path) -> None:
    model, counted = WorldModel.load(world, device="cpu", memory_frames=20), list[int]()
    bench, options = Bench(model, LabMaze(), [], None, tmp_path, on_frames=counted.append), SpeedOptions(5, 26)
    found = Speed().run(bench, options)
    assert json.loads(json.dumps(found)) == found
    assert found["ages"] == [20, 26]
    assert found["step_ms_at_frame"].keys() == found["passing_step_ms_at_frame"].keys() == {"20", "26"}
    parts = found["part_ms"]
    assert parts.keys() == {"denoise", "denoise_commit", "decode", "encode", "env_overhead"}
    assert all(value > 0 for value in parts.values())
    # A step is a call that commits, two more calls and a decode; half is for the clock of a busy machine.
    assert found["step_ms"] > 0.5 * (parts["denoise_commit"] + 2 * parts["denoise"] + parts["decode"])
    assert parts["env_overhead"] < found["step_ms"]
    assert found["frames_per_s"] == pytest.approx(1000 / found["step_ms"])
    config = get_preset("tiny").denoiser
    size, patches = 4 if model.dtype == torch.float32 else 2, 4 * config.width * config.num_patches
    memory = config.num_memory_layers * 20 * config.num_summary * config.width * 2 * size
    assert found["cache_bytes"] == 2 * config.num_recent_layers * patches * size + memory + 8 + 20
    assert found["dream_bytes"] == found["cache_bytes"]  # there is no memory of pixels
    assert found["parameters"]["denoiser"] == sum(p.numel() for p in Denoiser(config).parameters())
    floors = found["part_floors"]
    assert floors.keys() == parts.keys() - {"env_overhead"} and not found["is_compiled"]
    # On a busy machine the two are taken at other speeds; a wrong unit would be off by a thousand.
    assert all(0 < floor["floor_ms"] < 10 * parts[name] and floor["gflop"] > 0 for name, floor in floors.items())
    assert floors["denoise"]["gflop"] < floors["denoise_commit"]["gflop"] < 2.1 * floors["denoise"]["gflop"]
    assert found["uncompiled_step_ms"] > 0 and found["bandwidth_gbytes"] > 0
    assert found["matrix_gflops"].keys() == {"bfloat16", "float32"} and min(found["matrix_gflops"].values()) > 0
    assert sum(counted) == Speed().num_frames(bench, options)
    assert found["threads"] == torch.get_num_threads()


def test_it_is_taken_without_a_recording_and_in_a_rehearsal(world: Path, tmp_path: Path) -> None:
    measures = read_measures(("speed", "memory_costs"), ("speed.threads=1",), quick=True)
    report = evaluate_world(WorldModel.load(world, device="cpu"), tmp_path, measures)
    assert report["measures"]["speed"]["ages"] == [20, 30] and report["settings"]["denoising_steps"] == 3
    assert report["measures"]["speed"]["threads"] == 1
    assert len(report["measures"]["memory_costs"]["rows"]) == 4 * 6
    text = (tmp_path / "report.md").read_text()
    assert "| what the Gymnasium env adds | " in text and "| cross | 304 | 304 | " in text and "held-out" not in text


def test_without_openings_there_is_no_env_to_time(tmp_path: Path) -> None:
    torch.manual_seed(0)
    preset = get_preset("tiny")
    save_bundle(tmp_path, codec=Codec(preset.codec), denoiser=Denoiser(preset.denoiser), info=INFO)
    bench = Bench(WorldModel.load(tmp_path, device="cpu", num_steps=1), LabMaze(), [], None, tmp_path)
    found = Speed().run(bench, SpeedOptions(frames=2, deep_frames=3))
    assert found["part_ms"]["env_overhead"] is None and found["ages"] == [3]
    assert "| what the Gymnasium env adds | - | - | - |" in Speed().lines(found)


def test_many_dreams_in_one_vector(world: Path, tmp_path: Path) -> None:
    model, counted = WorldModel.load(world, device="cpu", num_steps=1), list[int]()
    bench, options = Bench(model, LabMaze(), [], None, tmp_path, on_frames=counted.append), VectorOptions(2, 2)
    found = Vector().run(bench, options)
    assert json.loads(json.dumps(found)) == found and found["num_envs"] == 2
    assert found["times_as_fast"] == pytest.approx(found["vector_frames_per_s"] / found["sync_frames_per_s"])
    dream = model.begin_gray(1)
    assert found["dream_bytes"] == pytest.approx(sum(part.nbytes for part in dream.tensors().values()), rel=0.02)
    assert 0 < found["starts_bytes"] < found["dream_bytes"] and found["autoreset_ms"] > 0
    assert sum(counted) == Vector().num_frames(bench, options)
    assert any(line.startswith("| times as fast | ") for line in Vector().lines(found))
    bench.model.source = None
    with pytest.raises(ConfigError, match="loaded from a bundle with openings"):
        Vector().check(bench, options)
    with pytest.raises(ConfigError, match="num_envs must be a whole number of at least 1; got 0"):
        VectorOptions(num_envs=0)


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


def test_bad_options(world: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="deep_frames must be at least 1; got 0"):
        SpeedOptions(deep_frames=0)
    with pytest.raises(ConfigError, match="threads must be at least 1 or none; got 0"):
        SpeedOptions(threads=0)
    bench = Bench(WorldModel.load(world, device="cpu"), LabMaze(), [], None, tmp_path)
    Speed().check(bench, SpeedOptions(compile=True))
    bench.model.source = None
    with pytest.raises(CompileError, match="loaded from a bundle"):
        Speed().check(bench, SpeedOptions(compile=True))
