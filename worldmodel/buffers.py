"""Buffers that keep their number format: angles and distances in 16 bits would be other places.

Owns: moving a module to a device without converting its own buffers. Knows nothing of what they hold.
"""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import nn


class Float32Buffers(nn.Module):
    """A module whose own buffers follow `.to(device)`, and ignore `.to(dtype)`."""

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        exact: dict[str, Any] = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        for name, buffer in exact.items():
            setattr(self, name, buffer.to(getattr(self, name).device))
        return self
