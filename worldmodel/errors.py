"""The one exception tree of the project.

Owns: every error a user can cause. Each message gives the offending value, what is accepted, and what to do.
Does not know who raises them.
"""


class WorldModelError(Exception):
    """Base of every error raised on purpose by this project; programs print it as one line."""


class ConfigError(WorldModelError, ValueError):
    """A setting or option has a value that is not accepted."""


class ShapeError(WorldModelError, ValueError):
    """A tensor or array has the wrong shape, dtype or range."""


class ActionError(WorldModelError, ValueError):
    """An action lies outside the action set, or an action text cannot be read."""


class SeedError(WorldModelError, ValueError):
    """A seed is negative or not an integer."""


class WindowError(WorldModelError, ValueError):
    """A schedule breaks monotonicity, circularity or the 0-T boundary (arXiv 2503.10704)."""


class StateError(WorldModelError, RuntimeError):
    """A call came in the wrong order, such as a step before the first reset."""


class CheckpointError(WorldModelError):
    """A checkpoint is missing, damaged, or does not fit the code that loads it."""


class DataError(WorldModelError):
    """Recorded data is missing, corrupt, or of another kind than asked for."""


class StorageError(WorldModelError, OSError):
    """A file could not be written: the disk is full or the folder is not writable."""


class MissingPackageError(WorldModelError, ImportError):
    """An optional package or system library is needed and not installed."""


class DisplayError(WorldModelError):
    """A window was asked for and there is no display."""


class DeviceError(WorldModelError):
    """The compute device asked for does not exist or cannot be used."""


class CompileError(WorldModelError):
    """A step could not be compiled ahead, or what was compiled cannot be used here."""
