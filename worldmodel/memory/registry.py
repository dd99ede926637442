"""The memories there are: one line each; and how one from outside of this package is named.

Owns: their names and their order, and which modules a config may have imported. A name is also that of the memory's
weights in a bundle. Those that tell where frames are seen from come first, one from outside last.

A memory from outside is named "module:class" in `DenoiserConfig.memory`, and so in the bundles of its denoisers. A
bundle may come from a stranger, and importing a module runs its code: so no module is imported because a config names
it. Whoever runs the program allows it: by naming it too (`train.denoiser --memory`, which calls `check_memory`), by
importing it before, or with the environment variable `WORLDMODEL_MEMORIES`, names with commas between.
"""

import os
import sys
from collections.abc import Callable

from worldmodel.config import DenoiserConfig, MemorySetting
from worldmodel.errors import ConfigError
from worldmodel.imports import import_class
from worldmodel.memory.base import Memory
from worldmodel.memory.channel import ChannelMemory
from worldmodel.memory.odometry import Odometry
from worldmodel.memory.slots import SlotMemory
from worldmodel.memory.tokens import TokenMemory
from worldmodel.memory.warped import WarpedView

MEMORIES: dict[str, Callable[[DenoiserConfig], Memory | None]] = {
    "odometry": Odometry.build,
    "warped": WarpedView.build,
    "tokens": TokenMemory.build,
    "slots": SlotMemory.build,
    "channel": ChannelMemory.build,
}
"""Name to what builds it from a config; None where the config has none."""

ALLOWED = "WORLDMODEL_MEMORIES"
"""Environment variable with the memories that configs may have imported."""


def build_memories(config: DenoiserConfig) -> dict[str, Memory]:
    """Return the memories that a config asks for, by name, in the order in which they are read.

    Raises:
        ConfigError: as `find_memory`.
    """
    built = {name: build(config) for name, build in MEMORIES.items()}
    found = {name: memory for name, memory in built.items() if memory is not None}
    if config.setting.is_own:
        name = config.memory.replace(".", "/")  # a dot parts the names of weights
        found[name] = find_memory(config.memory)(config)
    return found


def find_memory(name: str) -> Callable[[DenoiserConfig], Memory]:
    """Return what builds a memory from outside of this package, if its module is imported already or may be.

    Args:
        name: "module:class", as a config has it.

    Raises:
        ConfigError: it may not be imported, cannot be imported, or is no memory.
    """
    module, _, _ = name.partition(":")
    allowed = [each.strip() for each in os.environ.get(ALLOWED, "").split(",")]
    if module not in sys.modules and name not in allowed:
        raise ConfigError(
            f"the memory {name!r} is code from outside of this package, which is imported only where you allow it: "
            f"set {ALLOWED}={name} if you trust that code, or import {module} first"
        )
    return import_class(name, Memory, f"memory {name!r}")


def check_memory(name: str) -> None:
    """Check a memory that whoever runs the program has named; import one from outside, so that configs may have it.

    Args:
        name: of a structure, or "module:class".

    Raises:
        ConfigError: no such memory; the message lists those there are.
    """
    setting = MemorySetting(structure=name)
    if setting.is_own:
        import_class(name, Memory, f"memory {name!r}")
