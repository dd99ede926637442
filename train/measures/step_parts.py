"""Parts of a step: the time of each, and the least that it could take on this machine.

Owns: which parts a step of a dream has, timing them with a memory as full as that of a given dream, and counting their
operations and bytes. Judges no picture.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from envs.dream import DreamEnv
from train.core.stopwatch import measure_bandwidth, measure_matrix_speed, time_in_turn, wait_for
from train.measures.memory_costs import count_flops
from worldmodel.cache import MemoryCache
from worldmodel.inputs import FrameInputs
from worldmodel.state import Step, WorldState
from worldmodel.world import WorldModel

PARTS = {
    "denoise": "denoising call",
    "denoise_commit": "first call of a step, which also writes the frame before",
    "decode": "decode",
    "encode": "encode one frame",
    "env_overhead": "what the Gymnasium env adds",
}
WARM_UP = 3  # steps that are not counted


def _denoise_task(model: WorldModel, cache: MemoryCache, num_frames: int) -> Callable[[], None]:
    """Return one network call for `num_frames` frames, the last of them new; those before are written to `cache`."""
    config, device = model.denoiser.config, model.device
    size, before, frames = config.latent_size, config.num_previous, num_frames
    latents = torch.randn(1, before + frames, config.latent_channels, size, size, device=device)
    levels = torch.full((1, before + frames), 0.5, device=device)
    actions = torch.zeros(1, frames, dtype=torch.int64, device=device)
    given = FrameInputs.stack(latents, levels, actions, before)
    # The first call of a step looks back, the others share what it read.
    shared = model.denoiser.read(given, cache) if frames == 1 else None

    def run() -> None:
        _, written = model.denoiser(given, cache=cache, context=shared)
        if frames > 1:
            cache.commit(*written, num_frames=frames - 1)

    return run


@torch.inference_mode()
def time_parts(model: WorldModel, state: WorldState, rounds: int) -> dict[str, float]:
    """Return ms of each of `PARTS` but the env, of `rounds` times, with the memory as it is in `state` (unchanged)."""
    config, device, cache = model.denoiser.config, model.device, state.dream.cache.clone()
    size, frame_size = config.latent_size, model.codec.config.image_size
    tasks: dict[str, Callable[[], Any]] = {
        "denoise": _denoise_task(model, cache, 1),
        "denoise_commit": _denoise_task(model, cache, 2),
    }
    latents = torch.randn(1, config.latent_channels, size, size, device=device)
    frame = torch.randint(0, 256, (1, frame_size, frame_size, 3), dtype=torch.uint8)
    tasks |= {"decode": lambda: model.decode(latents).cpu(), "encode": lambda: model.encode(frame)}
    return time_in_turn(tasks, rounds, device)


def find_floors(model: WorldModel) -> dict[str, dict[str, float]]:
    """Return for each part of `time_parts` its operations, and the least time that they can take.

    Returns:
        by part: `gflop`; `floor_ms`: what its operations take at the speed of a large matrix product, or its weights
        and memory read at the speed of a large copy, whichever is longer.
    """
    device, memory = model.device, model.memory_frames
    config, size = model.denoiser.config, model.codec.config.image_size
    speed, bandwidth = measure_matrix_speed(device, model.dtype), measure_bandwidth(device)

    flops = {
        "denoise": count_flops(model.denoiser, 1, memory),
        "denoise_commit": count_flops(model.denoiser, 2, memory),
    }
    read = sum(p.nbytes for p in model.denoiser.parameters()) + model.denoiser.new_cache(1, memory).num_bytes
    moved = {"denoise": read, "denoise_commit": read}

    latent = torch.zeros(1, config.latent_channels, config.latent_size, config.latent_size, device=device)
    pixels = torch.zeros(1, 3, size, size, device=device)
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


class TimedDreamEnv(DreamEnv):
    """A dream that notes how long its world takes; `world_s`: seconds of the last step."""

    world_s = 0.0

    def _advance(self, state: WorldState, actions: torch.Tensor) -> Step:
        started = time.perf_counter()
        result = super()._advance(state, actions)
        wait_for(self.device)
        self.world_s = time.perf_counter() - started
        return result


def time_env(model: WorldModel, rounds: int, seed: int, on_frames: Callable[[int], object]) -> float:
    """Return ms that the Gymnasium env spends in a step outside of the world's own, the median over steps.

    Args:
        model: a world that was loaded from a bundle with openings; the env loads it again.
        rounds: steps that are timed.
        seed: of the dream.
        on_frames: told 1 after every step.
    """
    env = TimedDreamEnv(
        checkpoint=str(model.source),
        device=str(model.device),
        num_steps=1,
        memory_frames=model.memory_frames,
        render_mode=None,
    )
    env.reset(seed=seed)
    overheads = []
    for _ in range(rounds + WARM_UP):
        started = time.perf_counter()
        env.step(1)
        overheads.append(1000 * (time.perf_counter() - started - env.world_s))
        on_frames(1)
    return statistics.median(overheads[WARM_UP:])
