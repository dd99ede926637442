"""Where a training runs: device, processes, number format, and what compiles there.

Knows no model and no data.
"""

import contextlib
import datetime
import os
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from tqdm import tqdm

from worldmodel.devices import has_fast_bfloat16, pick_device


@dataclass
class Machine:
    """Where this process trains: its device, its place among the processes (torchrun), and its number format."""

    device: torch.device
    rank: int = 0
    world_size: int = 1
    autocast_dtype: torch.dtype | None = None
    owns_group: bool = field(default=False, repr=False)

    @property
    def is_main(self) -> bool:
        """Whether this process logs and saves."""
        return self.rank == 0

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Return the autocast context of a training step."""
        if self.autocast_dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.autocast_dtype)


def start_machine(device_name: str) -> Machine:
    """Return this process' machine; under torchrun joins the other processes.

    Raises:
        DeviceError: no such device.
    """
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = pick_device(device_name)
    if device.type == "cuda":
        # For masks such as ours cuDNN's attention is not the fast one; PyTorch asks for this once, at the first call.
        os.environ.setdefault("TORCH_CUDNN_SDPA_DEPRIORITIZED", "1")
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", device.index or 0)))
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")
    owns_group = world_size > 1 and not torch.distributed.is_initialized()
    if owns_group:
        backend = "nccl" if device.type == "cuda" else "gloo"
        # The others wait while the main process encodes a recording, which may take an hour.
        torch.distributed.init_process_group(backend, timeout=datetime.timedelta(hours=6))
    if rank:
        tqdm.monitor_interval = 0  # shows no bars: no thread that lives on while the interpreter is taken down
    dtype = torch.bfloat16 if has_fast_bfloat16(device) else None
    return Machine(device, rank, world_size, dtype, owns_group)


def describe_machine(device: torch.device | None = None) -> str:
    """Return processor, cores, accelerator and torch version in one line."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        processor = names[0] if names else processor
    parts = [f"{processor}, {os.cpu_count()} cores"]
    if device is not None and device.type == "cuda":
        parts.append(torch.cuda.get_device_name(device))
    return ", ".join([*parts, f"torch {torch.__version__}"])


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a tensor on a device; the host does not wait for what the device still has to do."""
    if device.type == "cuda" and not tensor.is_cuda:
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def compile_model(model: nn.Module, device: torch.device) -> nn.Module:
    """Return the model compiled for the device; the model itself, with a notice, where no compiler works."""
    try:
        torch.compile(torch.sin)(torch.ones(8, device=device))  # a missing compiler shows only in a call
    except Exception as error:  # every backend has its own errors
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        print(f"not compiled, training goes on slower: {reason}")
        return model
    return cast(nn.Module, torch.compile(model, dynamic=False))
