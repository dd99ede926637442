"""Program: how fast a world dreams, and whether it stays so. `python -m train.benchmark --json F [--checkpoint NAME]`.

Owns: the stages that are timed, and the report. Trains nothing and judges no picture.

Things that are compared are timed in turn, round after round, so that a machine that slows down slows all of them.
Every time is a median after warm-up. The report is one JSON object:

- `checkpoint`, `world`, `device`, `machine`, `threads`, `dtype`: what was measured, where, in which number format.
- `denoising_steps`, `memory_frames`, `dreams`: settings; one dream, as for a single player.
- `parameters`: {codec, denoiser}; `weights_bytes`; `cache_bytes`: keys and values of the dream, which do not grow.
- `stage_ms`: {`denoise`: one network call, `denoise_commit`: the first call of a step, which also writes the frame
  before, `decode`, `encode`: one frame, `env_overhead`: what the Gymnasium env adds to a step, null without openings}.
- `stage_floors`: {stage: {`gflop`: its operations; `floor_ms`: what they would take at the speed of a large matrix
  product, or its weights and memory read at the speed of a large copy, whichever is longer}}.
- `is_compiled`: whether steps ran compiled (--compile); `compile_s`, null without; `uncompiled_step_ms`: beside it.
- `step_ms`: one `WorldModel.step` of the oldest dream, its frame on the CPU; `frames_per_s`: 1000 / step_ms.
- `deep_frames`: [frame numbers]; `step_ms_at_frame`: {frame: step time from there on, dreams kept and timed in turn};
  `passing_step_ms_at_frame`: {frame: step time over the 50 steps before, as the dream came by}.
- `drift`: step_ms_at_frame of the last over that of frame 200 (or the first), minus 1.
- `peak_memory_bytes`, `peak_memory_bytes_at_frame`: largest memory so far, of the GPU or else of the process.
- `matrix_gflops`: {bfloat16, float32}: speed of a large matrix product; `bandwidth_gbytes`: of a large copy.
- `seconds`: how long all this took.

With `--memory` it prints a table of costs instead, and the report is {`checkpoint`, `memory_costs`: rows of
`train.measures.memory_costs`}.
"""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from envs.dream import DreamEnv
from train.core.machine import describe_machine
from train.core.options import parse_options, run_program, save_json
from train.core.stopwatch import measure_bandwidth, measure_matrix_speed, peak_memory, time_in_turn, wait_for
from train.measures.memory_costs import costs_table, count_flops, memory_costs
from worldmodel.checkpoint import load_denoiser, load_openings, resolve
from worldmodel.errors import ConfigError, SeedError
from worldmodel.inputs import FrameInputs
from worldmodel.state import WorldState
from worldmodel.world import WorldModel

DEPTHS = (20, 200, 2_000, 10_000)


@dataclass(frozen=True)
class BenchmarkOptions:
    """Time every stage of a dreamt frame, and the step at several ages of one dream."""

    json: Path
    """File of the report."""
    checkpoint: str = "labmaze"
    """World to time: a name or a folder."""
    steps: int | None = None
    """Denoising steps a frame. Without it, as the world was trained."""
    memory: bool = False
    """Print what each memory structure costs, by memory length, for a network of the world's shape; time nothing."""
    memory_frames: int | None = None
    """Past frames to remember. Without it, as the world was trained."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    compile: bool = False
    """Compile the step first, and dream compiled; the uncompiled step is timed beside it."""
    frames: int = 50
    """How often each thing is timed."""
    deep_frames: int = 10_000
    """Age of the oldest dream timed; it is really dreamt, frame by frame."""
    threads: int | None = None
    """CPU threads for torch. Without it, torch decides."""
    seed: int = 0
    """Seed of the dream and of its actions."""

    def __post_init__(self) -> None:
        for name in ("frames", "deep_frames"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1; got {getattr(self, name)}")
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"threads must be at least 1; got {self.threads}")
        if self.seed < 0:
            raise SeedError(f"seed must be 0 or more; got {self.seed}")


def start_dream(model: WorldModel, checkpoint: str, seed: int) -> WorldState:
    """Return one dream from the bundle's first opening, or from gray frames where it has no openings."""
    if (resolve(checkpoint) / "openings.safetensors").is_file():
        openings = load_openings(checkpoint)
        return model.reset(openings["frames"][:1], openings["actions"][:1].long(), [seed])
    size = model.codec.config.image_size
    frames = torch.full((1, 4, size, size, 3), 128, dtype=torch.uint8)
    return model.reset(frames, torch.zeros(1, 3, dtype=torch.int64), [seed])


@torch.inference_mode()
def time_stages(model: WorldModel, state: WorldState, rounds: int) -> dict[str, float]:
    """Return ms of `denoise`, `denoise_commit`, `decode`, `encode` with the memory as it is in `state` (unchanged)."""
    config, device, cache = model.denoiser.config, model.device, state.dream.cache.clone()
    size, frame_size = config.latent_size, model.codec.config.image_size

    def call(frames: int, cache_to_write: Any = None) -> Callable[[], None]:
        before = config.num_previous
        latents = torch.randn(1, before + frames, config.latent_channels, size, size, device=device)
        levels = torch.full((1, before + frames), 0.5, device=device)
        actions = torch.zeros(1, frames, dtype=torch.int64, device=device)
        given = FrameInputs.stack(latents, levels, actions, before)
        # The first call of a step looks back, the others share what it read.
        shared = model.denoiser.read(given, cache) if cache_to_write is None else None

        def run() -> None:
            _, written = model.denoiser(given, cache=cache, context=shared)
            if cache_to_write is not None:
                cache_to_write.commit(*written, num_frames=frames - 1)

        return run

    latents = torch.randn(1, config.latent_channels, size, size, device=device)
    frame = torch.randint(0, 256, (1, frame_size, frame_size, 3), dtype=torch.uint8)
    tasks: dict[str, Callable[[], Any]] = {
        "denoise": call(1),
        "denoise_commit": call(2, cache),
        "decode": lambda: model.decode(latents).cpu(),
        "encode": lambda: model.encode(frame),
    }
    return time_in_turn(tasks, rounds, device)


def stage_floors(model: WorldModel) -> dict[str, dict[str, float]]:
    """Return for each stage of `time_stages` its `gflop`, and `floor_ms`: see the module's docstring."""
    device, memory = model.device, model.memory_frames
    speed, bandwidth = measure_matrix_speed(device, model.dtype), measure_bandwidth(device)
    config, size = model.denoiser.config, model.codec.config.image_size
    latent = torch.zeros(1, config.latent_channels, config.latent_size, config.latent_size, device=device)
    pixels = torch.zeros(1, 3, size, size, device=device)
    flops = {
        "denoise": count_flops(model.denoiser, 1, memory),
        "denoise_commit": count_flops(model.denoiser, 2, memory),
    }
    read = sum(p.nbytes for p in model.denoiser.parameters()) + model.denoiser.new_cache(1, memory).num_bytes
    moved = {"denoise": read, "denoise_commit": read}
    coders = {"decode": (model.codec.decode, latent, "decoder"), "encode": (model.codec.encode, pixels, "encoder")}
    for name, (work, given, part) in coders.items():
        with FlopCounterMode(display=False) as counter:
            work(given.to(model.dtype))
        flops[name] = int(counter.get_total_flops())
        moved[name] = sum(p.nbytes for n, p in model.codec.named_parameters() if f".{part}." in f".{n}")
    return {
        name: {"gflop": count / 1e9, "floor_ms": max(count / speed, moved[name] / bandwidth) / 1e6}
        for name, count in flops.items()
    }


def time_env(options: BenchmarkOptions) -> float:
    """Return ms that the environment spends in a step outside of `WorldModel.step`, the median over steps."""
    env = DreamEnv(
        checkpoint=options.checkpoint,
        device=options.device,
        num_steps=1,
        memory_frames=options.memory_frames,
        render_mode=None,
    )
    world_step, inner = WorldModel.step, [0.0]

    def timed_step(self: WorldModel, state: WorldState, actions: torch.Tensor) -> Any:
        started = time.perf_counter()
        result = world_step(self, state, actions)
        wait_for(self.device)
        inner[0] = time.perf_counter() - started
        return result

    overheads = []
    with mock.patch.object(WorldModel, "step", timed_step):
        env.reset(seed=options.seed)
        for _ in range(options.frames + 3):
            started = time.perf_counter()
            env.step(1)
            overheads.append(1000 * (time.perf_counter() - started - inner[0]))
    return statistics.median(overheads[3:])


def benchmark(options: BenchmarkOptions) -> dict[str, Any]:
    """Measure a world and write the report; return it (keys in the module's docstring).

    Raises:
        CheckpointError: no such world, or a damaged one. DeviceError: no such device. ConfigError: a bad setting.
        StorageError: the report cannot be written.
    """
    started = time.perf_counter()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    model = WorldModel.load(
        options.checkpoint, device=options.device, num_steps=options.steps, memory_frames=options.memory_frames
    )
    device = model.device
    compile_s = None
    if options.compile:
        compile_started = time.perf_counter()
        model.compile()
        compile_s = time.perf_counter() - compile_started
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    state = start_dream(model, options.checkpoint, options.seed)
    chance = torch.Generator().manual_seed(options.seed)
    depths = sorted({depth for depth in DEPTHS if depth < options.deep_frames} | {options.deep_frames})
    kept: dict[str, WorldState] = {}
    passing: dict[str, float] = {}
    memory: dict[str, int | None] = {}
    recent: list[float] = []
    for frame in tqdm(range(1, options.deep_frames + 1), unit="frame", mininterval=2.0, desc="dreaming"):
        action = torch.randint(model.num_actions, (1,), generator=chance)
        frame_started = time.perf_counter()
        model.step(state, action).frames.cpu()
        recent = [*recent[-49:], 1000 * (time.perf_counter() - frame_started)]
        if frame in depths:
            kept[str(frame)], passing[str(frame)] = state.clone(), statistics.median(recent)
            memory[str(frame)] = peak_memory(device)
    forward = torch.tensor([1])

    def one_step(dream: WorldState) -> Callable[[], Any]:
        return lambda: model.step(dream, forward).frames.cpu()

    steps = {name: one_step(dream) for name, dream in kept.items()}
    step_ms = time_in_turn(steps, options.frames, device)
    deepest, base = str(depths[-1]), "200" if "200" in step_ms else str(depths[0])
    model.compiled, compiled = None, model.compiled
    uncompiled_ms = time_in_turn({"step": one_step(kept[deepest])}, options.frames, device)["step"]
    stages: dict[str, float | None] = dict(time_stages(model, kept[deepest], options.frames))
    peak = peak_memory(device)
    has_openings = (resolve(options.checkpoint) / "openings.safetensors").is_file()
    modules = {"codec": model.codec, "denoiser": model.denoiser}
    report = {
        "checkpoint": Path(options.checkpoint).name,
        "world": model.info.get("world"),
        "device": str(device),
        "machine": describe_machine(device),
        "threads": torch.get_num_threads(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "denoising_steps": model.config.num_steps,
        "level_shift": model.config.level_shift,
        "memory_frames": model.memory_frames,
        "dreams": 1,
        "parameters": {name: sum(p.numel() for p in module.parameters()) for name, module in modules.items()},
        "weights_bytes": sum(p.nbytes for module in modules.values() for p in module.state_dict().values()),
        "cache_bytes": state.dream.cache.num_bytes,
        "stage_ms": stages | {"env_overhead": time_env(options) if has_openings else None},
        "stage_floors": stage_floors(model),
        "is_compiled": compiled is not None,
        "compile_s": compile_s,
        "uncompiled_step_ms": uncompiled_ms,
        "step_ms": step_ms[deepest],
        "frames_per_s": 1000 / step_ms[deepest],
        "deep_frames": depths,
        "step_ms_at_frame": step_ms,
        "passing_step_ms_at_frame": passing,
        "drift": step_ms[deepest] / step_ms[base] - 1,
        "peak_memory_bytes": peak,
        "peak_memory_bytes_at_frame": memory,
        "matrix_gflops": {name: measure_matrix_speed(device, getattr(torch, name)) for name in ("bfloat16", "float32")},
        "bandwidth_gbytes": measure_bandwidth(device),
        "seconds": time.perf_counter() - started,
    }
    save_json(options.json, report)
    return report


def main() -> None:
    """Read the options, measure, print the report."""
    options = parse_options(BenchmarkOptions, "python -m train.benchmark")
    if options.memory:
        rows = memory_costs(load_denoiser(options.checkpoint).config)
        save_json(options.json, {"checkpoint": Path(options.checkpoint).name, "memory_costs": rows})
        print(costs_table(rows))
    else:
        print(json.dumps(benchmark(options), indent=2))


if __name__ == "__main__":
    run_program(main)
