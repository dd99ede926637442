"""What an episode is made of: the declaration of one recorded array, and the arrays that every world has.

Owns: names, types and axes. Knows no file and no world.
"""

from typing import NamedTuple

AXES = ("frame", "step", "episode")


class Field(NamedTuple):
    """What one recorded array of an episode must be.

    Attributes:
        dtype: of NumPy, by name.
        axis: "frame" (T + 1 rows), "step" (T rows) or "episode" (any rows).
        ndim: number of axes.
        is_required: whether an episode without it is refused.
    """

    dtype: str
    axis: str
    ndim: int
    is_required: bool = False


CORE_FIELDS: dict[str, Field] = {
    "frames": Field("uint8", "frame", 4, True),
    "actions": Field("uint8", "step", 1, True),
    "rewards": Field("float32", "step", 1, True),
    "terminated": Field("bool", "step", 1, True),
    "truncated": Field("bool", "step", 1, True),
}
"""Of every episode of every world."""

POSE = Field("float32", "frame", 2)
"""Where a frame was seen from: x, y and heading in degrees, or x, y, z, yaw and pitch."""

DEPTH = Field("float16", "frame", 3)
"""How far away what each pixel shows is, along the heading, in the unit of poses; of every pixel, or of every 2 x 2."""
