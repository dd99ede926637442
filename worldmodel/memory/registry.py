"""The memories there are: one line each.

Owns: their names and their order. A name is also that of the memory's weights in a bundle. Those that tell where frames
are seen from come first.
"""

from collections.abc import Callable

from worldmodel.config import DenoiserConfig
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


def build_memories(config: DenoiserConfig) -> dict[str, Memory]:
    """Return the memories that a config asks for, by name, in the order in which they are read."""
    built = {name: build(config) for name, build in MEMORIES.items()}
    return {name: memory for name, memory in built.items() if memory is not None}
