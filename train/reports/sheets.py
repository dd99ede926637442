"""Contact sheets: many small frames with captions in one picture.

Owns: tiling and captions of uint8 frames, and saving a picture whole. Knows no episodes, no models, no metrics.
"""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from worldmodel.errors import ConfigError, ShapeError
from worldmodel.files import write_file

CAPTION_HEIGHT = 14


def caption_frame(frame: np.ndarray, caption: str, scale: int = 1) -> np.ndarray:
    """Return a frame enlarged in sharp blocks, with a line of text on a dark strip below.

    Args:
        frame: uint8 (H, W, 3).
        caption: short text; what does not fit is cut off.
        scale: whole number of at least 1.

    Returns:
        uint8 (H * scale + CAPTION_HEIGHT, W * scale, 3).

    Raises:
        ShapeError: `frame` is not uint8 (H, W, 3).
    """
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[-1] != 3:
        raise ShapeError(f"a frame must be uint8 (H, W, 3); got {frame.dtype} {frame.shape}")
    large = frame.repeat(scale, axis=0).repeat(scale, axis=1)
    strip = np.full((CAPTION_HEIGHT, large.shape[1], 3), 24, np.uint8)
    cv2.putText(
        strip, caption, (2, CAPTION_HEIGHT - 4), cv2.FONT_HERSHEY_SIMPLEX, 0.34, (230, 230, 230), 1, cv2.LINE_AA
    )
    return np.concatenate([large, strip])


def tile_frames(rows: Sequence[Sequence[np.ndarray]], gap: int = 2) -> np.ndarray:
    """Return pictures of one size as a grid; short rows are filled with black.

    Args:
        rows: rows of uint8 (H, W, 3) pictures, at least one picture in all.
        gap: black pixels between pictures.

    Raises:
        ShapeError: there is no picture, or sizes differ.
    """
    shapes = {picture.shape for row in rows for picture in row}
    if len(shapes) != 1:
        raise ShapeError(f"a sheet needs pictures of one size; got sizes {sorted(shapes)}")
    height, width, _ = shapes.pop()
    num_columns = max(len(row) for row in rows)
    sheet = np.zeros((len(rows) * (height + gap), num_columns * (width + gap), 3), np.uint8)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            sheet[i * (height + gap) :, j * (width + gap) :][:height, :width] = picture
    return sheet


def save_picture(path: Path, picture: np.ndarray) -> None:
    """Write a picture as PNG, whole or not at all.

    Args:
        path: a file name ending in `.png`; missing folders are made.
        picture: uint8 (H, W, 3), RGB.

    Raises:
        ConfigError: the name does not end in `.png`.
        StorageError: the file cannot be written.
    """
    if path.suffix.lower() != ".png":
        raise ConfigError(f"picture file {str(path)!r} must end in .png")
    _, content = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    write_file(path, content.tobytes())
