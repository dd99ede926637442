"""Two pictures beside one another, with a bar between them that says how alike they are.

Owns: the layout. Knows no worlds.
"""

import numpy as np

GUTTER = 6
"""Columns between the pictures, pixels; the bar takes all but one on each side."""

FULL_DB = 40.0
"""Likeness at which the bar is full, PSNR in dB."""

_GROUND, _EMPTY = (0, 0, 0), (60, 60, 70)
_LOW, _HIGH = np.array((235, 60, 60)), np.array((90, 210, 120))


def compose(left: np.ndarray, right: np.ndarray, likeness: float) -> np.ndarray:
    """Return two frames uint8 (H, W, 3) beside one another, with a bar between them: uint8 (H, 2 W + GUTTER, 3).

    The bar fills from below, and turns from red to green.

    Args:
        left, right: the frames.
        likeness: PSNR in dB.
    """
    height, width = left.shape[:2]
    share = min(max(likeness / FULL_DB, 0.0), 1.0)
    picture = np.empty((height, 2 * width + GUTTER, 3), np.uint8)
    picture[:, :width], picture[:, width + GUTTER :] = left, right
    gutter = picture[:, width : width + GUTTER]
    gutter[:] = _GROUND
    bar = gutter[:, 1:-1]
    bar[:] = _EMPTY
    bar[height - round(share * height) :] = (_LOW + share * (_HIGH - _LOW)).astype(np.uint8)
    return picture


def split(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the left and the right frame of a picture of `compose`."""
    width = (picture.shape[1] - GUTTER) // 2
    return picture[:, :width], picture[:, width + GUTTER :]
