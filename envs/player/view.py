"""What there is to see of play at a moment, and how alike two frames are.

Owns: what who shows it may ask for. Does not know how frames are made, or where they are shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np


class Bar(NamedTuple):
    """A bar under the picture.

    Attributes:
        share: how much of it is full, from 0 to 1.
        ticks: places on it, from 0 to 1.
    """

    share: float
    ticks: tuple[float, ...] = ()


@dataclass(frozen=True, eq=False)
class View:
    """What there is to see after a reset or a step; never changed once made, so threads may share it.

    Attributes:
        frame: uint8 (H, W, 3) RGB.
        seed: seed of the dream.
        step: steps taken since the reset.
        action_name: name of the action that led here, "" after a reset.
        reward_total: sum of rewards since the reset.
        ending: "" while the episode goes on, else "terminated" or "truncated"; it stays set while play continues.
        step_ms: milliseconds that the environment took for this step; 0 after a reset.
        memory_used: frames remembered now, or None.
        memory_frames: frames that can be remembered, or None.
        num_steps: denoising steps a frame, or None.
        engine: how the steps run, such as "compiled", or None.
        compile_progress: how far compiling is, in words, or None.
        marks: numbers of the marks that lie behind, oldest first.
        chosen_mark: number of the mark that the player wants to come back to, or None.
        likeness: PSNR in dB of the frame to that of the chosen mark, or None.
        caption: further lines to show, of what is particular to what is played.
        bar: to draw under the picture, or None.
    """

    frame: np.ndarray
    seed: int
    step: int = 0
    action_name: str = ""
    reward_total: float = 0.0
    ending: str = ""
    step_ms: float = 0.0
    memory_used: int | None = None
    memory_frames: int | None = None
    num_steps: int | None = None
    engine: str | None = None
    compile_progress: str | None = None
    marks: tuple[int, ...] = ()
    chosen_mark: int | None = None
    likeness: float | None = None
    caption: tuple[str, ...] = ()
    bar: Bar | None = None


def find_scalars(info: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of the `info` of a reset is one number or one text, as Python's own, which JSON takes."""
    numbers = {name: value for name, value in info.items() if np.ndim(value) == 0}
    plain = {n: v.item() if isinstance(v, np.generic | np.ndarray) else v for n, v in numbers.items()}
    return {name: value for name, value in plain.items() if isinstance(value, int | float | str)}


def psnr(first: np.ndarray, second: np.ndarray) -> float:
    """Return how alike two frames uint8 (H, W, 3) are, PSNR in dB, at most 60."""
    error = float(np.mean((first.astype(np.float32) - second.astype(np.float32)) ** 2)) / 255.0**2
    return float(-10 * np.log10(max(error, 1e-6)))
