"""A stop watch for programs that measure: medians in turn, speeds of matrix products and of copies, memory used.

Knows devices; knows no model.
"""

import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch


def wait_for(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def time_in_turn(tasks: Mapping[str, Callable[[], Any]], rounds: int, device: torch.device) -> dict[str, float]:
    """Return the median time of each task in ms, timed in turn over `rounds` rounds after three of warm-up."""
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for number in range(rounds + 3):
        for name, task in tasks.items():
            wait_for(device)
            started = time.perf_counter()
            task()
            wait_for(device)
            if number >= 3:
                times[name].append(1000 * (time.perf_counter() - started))
    return {name: statistics.median(values) for name, values in times.items()}


def measure_matrix_speed(device: torch.device, dtype: torch.dtype, rounds: int = 7) -> float:
    """Return the speed of a large square matrix product in GFLOP/s: 8192 on a GPU, 1024 on a CPU."""
    size = 8192 if device.type == "cuda" else 1024
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / time_in_turn({"product": lambda: left @ right}, rounds, device)["product"] / 1e6


def measure_bandwidth(device: torch.device, rounds: int = 7) -> float:
    """Return how fast memory is read and written by a large copy, GB/s (both ways counted)."""
    source = torch.empty((1 << 30 if device.type == "cuda" else 1 << 27), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / time_in_turn({"copy": lambda: target.copy_(source)}, rounds, device)["copy"] / 1e6


def peak_memory(device: torch.device) -> int | None:
    """Return the largest memory used so far in bytes, of a CUDA device or of this process; None where nobody counts."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
