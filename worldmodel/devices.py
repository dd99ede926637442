"""Which device to compute on.

Owns the meaning of "auto" and the error for a device that is not there. Knows no model.
"""

import torch

from worldmodel.errors import DeviceError


def pick_device(name: str) -> torch.device:
    """Return the device called `name`.

    Args:
        name: "auto" (a GPU where there is one), "cpu", "cuda", "cuda:N" or "mps".

    Raises:
        DeviceError: no such device on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
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
    return device


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether bf16 matrix products are worth it: a GPU with them, or a CPU with AMX tiles."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())
