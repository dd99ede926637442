"""Which device to compute on.

Owns the meaning of "auto", the error for a device that is not there, and how many threads are worth it. Knows no model.
"""

import os
import statistics
import time
from collections.abc import Callable

import torch

from worldmodel.errors import DeviceError

_IS_FORKED = False


def _settle_in_fork() -> None:
    """A forked process has none of its parent's OpenMP threads: waiting for them would last for ever."""
    global _IS_FORKED
    _IS_FORKED = True
    torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):  # gymnasium's AsyncVectorEnv forks, on Linux
    os.register_at_fork(after_in_child=_settle_in_fork)


def pick_device(name: str) -> torch.device:
    """Return the device called `name`.

    Args:
        name: "auto" (a GPU where there is one), "cpu", "cuda", "cuda:N" or "mps".

    Returns:
        a device as tensors on it name it: with its number, but for the CPU.

    Raises:
        DeviceError: no such device on this machine.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(f"unknown device {name!r}; accepted: auto, cpu, cuda, cuda:N, mps") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise DeviceError(f"device {name!r} asked for, but torch sees {count} CUDA devices; use --device cpu or auto")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("device 'mps' asked for, but this torch has no Metal; use --device cpu or auto")
    if device.type not in ("cpu", "cuda", "mps"):
        raise DeviceError(f"device {name!r} is not supported; accepted: auto, cpu, cuda, cuda:N, mps")
    if name in ("cuda", "mps"):  # tensors name theirs, so that devices can be compared
        device = torch.device(device.type, torch.cuda.current_device() if device.type == "cuda" else 0)
    return device


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether bf16 matrix products are worth it: a GPU with them, or a CPU with AMX tiles."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())


def tune_threads(run: Callable[[], object], rounds: int = 5) -> int:
    """Time `run` with 1, 2, 4 ... CPU threads up to all cores; set torch to the fastest number and return it.

    More threads are not always faster: small operations spend their time meeting at the end of each. Numbers are timed
    in turn, and more threads must win by a twentieth to be taken. A forked process keeps its one thread.

    Args:
        run: what the threads are for; called `rounds` times for each number, and once before.
        rounds: at least 1.
    """
    if _IS_FORKED:
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    numbers = sorted({min(2**power, cores) for power in range(cores.bit_length() + 1)})
    times: dict[int, list[float]] = {number: [] for number in numbers}
    run()
    for _ in range(rounds):
        for number in numbers:
            torch.set_num_threads(number)
            start = time.perf_counter()
            run()
            times[number].append(time.perf_counter() - start)
    best = numbers[0]
    for number in numbers[1:]:
        if statistics.median(times[number]) < 0.95 * statistics.median(times[best]):
            best = number
    torch.set_num_threads(best)
    return best
