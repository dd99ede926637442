"""The saved state of a training: nested dicts and lists of tensors and JSON values in one safetensors file.

Owns: the file, written whole or not at all, so that it survives kill -9. Does not know what a training keeps in it.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save

from worldmodel.errors import CheckpointError
from worldmodel.files import write_file

STATE_FILE = "training.safetensors"


def save_state(folder: Path, content: dict[str, Any]) -> None:
    """Write nested dicts and lists of tensors and JSON values to one safetensors file, whole or not at all.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    tensors: dict[str, torch.Tensor] = {}
    rest = json.dumps(_flatten("", content, tensors))
    write_file(folder / STATE_FILE, save(tensors, metadata={"state": rest}))


def load_state(folder: Path) -> dict[str, Any]:
    """Read what `save_state` wrote.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    path = folder / STATE_FILE
    if not path.is_file():
        raise CheckpointError(f"nothing to resume: {path} does not exist; start without --resume")
    try:
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  not a dict
            return _restore(json.loads(file.metadata()["state"]), tensors)
    except Exception as error:  # safetensors raises its own plain types for a damaged file
        raise CheckpointError(f"{path} is damaged ({error}); delete it and start without --resume") from error


def _flatten(prefix: str, value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """Move the tensors of nested dicts and lists into `tensors`; return the JSON rest with their names in place."""
    if isinstance(value, torch.Tensor):
        tensors[prefix] = value.detach().cpu().contiguous().clone()
        return {"__tensor__": prefix}
    if isinstance(value, dict):
        keys = [("i", k) if isinstance(k, int) else ("s", k) for k in value]
        return {"__items__": [[kind, k, _flatten(f"{prefix}/{k}", value[k], tensors)] for kind, k in keys]}
    if isinstance(value, list | tuple):
        return [_flatten(f"{prefix}/{i}", item, tensors) for i, item in enumerate(value)]
    return value


def _restore(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, dict) and "__tensor__" in value:
        return tensors[value["__tensor__"]]
    if isinstance(value, dict):
        return {int(k) if kind == "i" else k: _restore(v, tensors) for kind, k, v in value["__items__"]}
    if isinstance(value, list):
        return [_restore(item, tensors) for item in value]
    return value
