"""Whole numbers as settings: Python's and NumPy's are the same; a bool, a float and a text are none.

Owns: what counts as a whole number. Does not know what the numbers are for.
"""

import operator
from typing import Any

import numpy as np

from worldmodel.errors import ConfigError


def read_whole(value: Any) -> int | None:
    """Return a whole number of any kind as an int; None where it is none."""
    if isinstance(value, bool | np.bool_):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def check_whole(name: str, value: Any, least: int, most: int | None = None, beside: str = "") -> int:
    """Return a setting that is a whole number as an int.

    Args:
        name: of the setting, for the message.
        value: given.
        least: accepted.
        most: accepted; None: any.
        beside: what else is accepted, such as " or None", for the message.

    Raises:
        ConfigError: it is none, or out of range.
    """
    found = read_whole(value)
    if found is None or found < least or (most is not None and found > most):
        accepted = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise ConfigError(f"{name} must be a whole number {accepted}{beside}; got {value!r}")
    return found
