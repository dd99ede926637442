"""Schedules: which noise levels the frames in flight have before and after an auto-regressive step.

Owns `Window`, the three requirements of Meta-ARVDM, a constructor for every known kind of schedule, and the text that
names one. Knows no network and no frames, and needs no torch until a grid is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worldmodel.counts import read_whole
from worldmodel.errors import WindowError

if TYPE_CHECKING:
    import torch

MAX_SIZE = 1000
SCHEDULE_TEXT = "next, outpaint:W:OVERLAP, fifo:W, rolling:W:SUBSTEPS, pyramid:W:DELTA or FILE.json"


@dataclass(frozen=True)
class Window:
    """One auto-regressive step as data: W frames in flight go from levels `before` to `after`; `stride` leave clean.

    Attributes:
        before: input levels, one a frame, 0 clean to 1 noise.
        after: output levels.
        stride: frames completed, and frames of noise entering, at every step.

    Raises:
        WindowError: one of the three requirements is broken; says which, at which frame (counted from 0).

    Source: arXiv:2503.10704, Sec. 3 (monotonicity, circularity, 0-T boundary).
    """

    before: tuple[float, ...]
    after: tuple[float, ...]
    stride: int = 1

    def __post_init__(self) -> None:
        before, after = _read_levels("before", self.before), _read_levels("after", self.after)
        object.__setattr__(self, "before", before)
        object.__setattr__(self, "after", after)

        size, stride = len(before), read_whole(self.stride)
        if not 1 <= size <= MAX_SIZE or len(after) != size:
            raise WindowError(
                f"before and after need one level a frame; got {size} and {len(after)} levels: give two lists of one "
                f"length, from 1 to {MAX_SIZE}"
            )
        if stride is None or not 1 <= stride <= size:
            raise WindowError(f"stride must be from 1 to the {size} frames in flight; got {self.stride!r}")
        object.__setattr__(self, "stride", stride)

        for name, levels in (("before", before), ("after", after)):
            for j, level in enumerate(levels):
                if not 0.0 <= level <= 1.0:
                    raise WindowError(f"{name}[{j}] must be a level in [0, 1]; got {level}")
                if j and level < levels[j - 1]:
                    raise WindowError(
                        f"monotonicity is broken at frame {j}: {name}[{j}] = {level} is below {name}[{j - 1}] = "
                        f"{levels[j - 1]}; a later frame must be as noisy or noisier"
                    )

        for j in range(size - stride):
            if after[j + stride] != before[j]:
                raise WindowError(
                    f"circularity is broken at frame {j + stride}: after[{j + stride}] = {after[j + stride]} must "
                    f"equal before[{j}] = {before[j]}, the level it has {stride} further on; give equal numbers"
                )

        ends = [(f"after[{j}]", j, after[j], "0 (clean)") for j in range(stride) if after[j] != 0.0]
        ends += [(f"before[{j}]", j, before[j], "1 (noise)") for j in range(size - stride, size) if before[j] != 1.0]
        for name, j, level, wanted in ends:
            raise WindowError(f"the 0-T boundary is broken at frame {j}: {name} must be {wanted}; got {level}")

    @property
    def size(self) -> int:
        """Frames in flight, W."""
        return len(self.before)

    @property
    def num_clean(self) -> int:
        """Frames of the window that are clean before the step: they are context (the overlap of outpainting).

        A step always finishes the `stride` frames that follow these: by the three requirements `after` has exactly
        `stride` more zeros than `before`.
        """
        return self.before.count(0.0)

    @property
    def input_lag(self) -> int:
        """Frames begun and not finished when an action arrives; they are shown first, and do not know it."""
        return self.size - self.stride - self.num_clean

    def describe_lag(self, fps: float) -> str:
        """Return in words how many frames, and milliseconds at `fps` frames a second, come before an action is seen."""
        lag = self.input_lag
        frames = f"{lag} frame{'s' * (lag != 1)} ({lag / fps * 1000:.0f} ms at {fps:g} frames/s)"
        what = "the next frame shows the action" if lag == 0 else "those begun without the action are shown first"
        played = "" if self.stride == 1 else f"; not for play: {self.stride} actions are taken at once"
        return f"input lag {frames}: {what}{played}"

    def grid(self, num_steps: int, shift: float = 1.0) -> torch.Tensor:
        """Return the levels visited, float32 (num_steps + 1, W), from `before` to `after`.

        Args:
            num_steps: at least 1.
            shift: 1 for equal steps; above 1 for small steps at high levels and large ones at low levels. It is for
                windows that take frames all the way from noise to clean; others take equal steps.

        Raises:
            WindowError: num_steps is below 1, or shift not above 0 and finite.

        Source: the shift of levels is that of Esser et al. 2024 (arXiv:2403.03206), Sec. 5.3.2.
        """
        if num_steps < 1:
            raise WindowError(f"num_steps must be at least 1; got {num_steps}")
        if not 0 < shift < float("inf"):
            raise WindowError(f"the shift of levels must be above 0 and finite; got {shift}")
        if not all(ends in ((1.0, 0.0), (0.0, 0.0)) for ends in zip(self.before, self.after, strict=True)):
            shift = 1.0
        import torch

        before, after = (torch.tensor(levels, dtype=torch.float32) for levels in (self.before, self.after))
        left = torch.linspace(1, 0, num_steps + 1, dtype=torch.float32)[:, None]  # the share of the way that is left
        left = shift * left / (1 + (shift - 1) * left)
        levels = before + (1 - left) * (after - before)
        levels[0], levels[-1] = before, after
        return levels


def next_frame_window() -> Window:
    """Return the schedule of play: one frame in flight, from noise to clean; every past frame is memory.

    Source: arXiv:2503.10704, Sec. 3, next-frame prediction.
    """
    return Window((1.0,), (0.0,), 1)


def outpainting_window(size: int, overlap: int) -> Window:
    """Return the chunked schedule: `overlap` (below `size`) clean frames, then the others from noise to clean together.

    Raises:
        WindowError: a number is out of range.

    Source: arXiv:2503.10704, Sec. 3, outpainting; StreamingT2V (Henschel et al. 2024) is one.
    """
    _check_count("outpainting size", size, 1, MAX_SIZE)
    _check_count("outpainting overlap", overlap, 0, size - 1)
    stride = size - overlap
    return Window((0.0,) * overlap + (1.0,) * stride, (0.0,) * size, stride)


def fifo_window(num_frames: int) -> Window:
    """Return the diagonal window: each step one frame leaves clean, one enters as noise; meant for one network call.

    Raises:
        WindowError: `num_frames` is below 1.

    Source: FIFO-Diffusion (Kim et al. 2024), diagonal denoising, at equally spaced levels.
    """
    return _grouped_window("fifo", num_frames, 1)


def rolling_window(num_frames: int) -> Window:
    """Return the sliding window: frame j (from 1) of W goes from level j / W to (j - 1) / W, in several sub-steps.

    Raises:
        WindowError: `num_frames` is below 1.

    Source: Rolling Diffusion (Ruhe et al. 2024).
    """
    return _grouped_window("rolling", num_frames, 1)


def pyramid_window(num_frames: int, stride: int) -> Window:
    """Return the progressive window: groups of `stride` frames share a level and go down by one group a step.

    Raises:
        WindowError: `stride` is below 1, or `num_frames` not a multiple of it.

    Source: progressive and pyramidal video diffusion (Xie et al. 2024), as in arXiv:2503.10704, Sec. 3.
    """
    return _grouped_window("pyramid", num_frames, stride)


def _grouped_window(kind: str, num_frames: int, stride: int) -> Window:
    _check_count(f"{kind} frames", num_frames, 1, MAX_SIZE)
    _check_count(f"{kind} stride", stride, 1, num_frames)
    if num_frames % stride:
        raise WindowError(
            f"a {kind} of {num_frames} frames cannot be cut into groups of {stride}: give a multiple of {stride}"
        )
    groups = num_frames // stride
    levels = [group / groups for group in range(groups + 1) for _ in range(stride)]
    return Window(tuple(levels[stride:]), tuple(levels[:num_frames]), stride)


@dataclass(frozen=True)
class Schedule:
    """A window with a name.

    Attributes:
        name: the text that it was made from.
        window: the levels.
        num_steps: network calls in one auto-regressive step (1 for FIFO); None: what the world takes.
    """

    name: str
    window: Window
    num_steps: int | None = None


def parse_schedule(text: str) -> Schedule:
    """Read a schedule: next, outpaint:W:OVERLAP, fifo:W, rolling:W:SUBSTEPS, pyramid:W:DELTA or FILE.json.

    A file holds {"before": [...], "after": [...], "stride": 1, "num_steps": n}; the last two may be left out.

    Raises:
        WindowError: the text is not understood, the file cannot be read, or the schedule breaks a requirement.
    """
    text = text.strip()
    if text.lower().endswith(".json"):
        return _read_schedule(Path(text))
    kinds: dict[str, tuple[int, Callable[..., Window]]] = {
        "next": (0, next_frame_window),
        "outpaint": (2, outpainting_window),
        "fifo": (1, fifo_window),
        "rolling": (2, lambda size, _: rolling_window(size)),
        "pyramid": (2, pyramid_window),
    }
    kind, *words = text.split(":")
    is_number = all(word.isascii() and word.isdecimal() and len(word) < 10 for word in words)
    if kind not in kinds or len(words) != kinds[kind][0] or not is_number:
        raise WindowError(f"schedule {text!r} is not understood; accepted: {SCHEDULE_TEXT}, with whole numbers")
    numbers = [int(word) for word in words]
    num_steps = {"fifo": 1, "rolling": numbers[-1] if numbers else None}.get(kind)
    if num_steps is not None:
        _check_count(f"{kind} substeps", num_steps, 1, 1000)
    return Schedule(text, kinds[kind][1](*numbers), num_steps)


def _read_schedule(path: Path) -> Schedule:
    form = '{"before": [...], "after": [...], "stride": 1, "num_steps": 4}'
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise WindowError(f"schedule file {path} cannot be read ({reason}); it must hold {form}") from error
    accepted = {"before", "after", "stride", "num_steps"}
    if not isinstance(content, dict) or not {"before", "after"} <= content.keys() <= accepted:
        found = sorted(content) if isinstance(content, dict) else type(content).__name__
        raise WindowError(f"schedule file {path} must hold {form}, the last two may be left out; got {found}")
    num_steps = content.get("num_steps")
    if num_steps is not None:
        _check_count("num_steps", num_steps, 1, 1000)
    try:
        return Schedule(str(path), Window(content["before"], content["after"], content.get("stride", 1)), num_steps)
    except WindowError as error:
        raise WindowError(f"schedule file {path}: {error}") from error


def _read_levels(name: str, levels: Sequence[float]) -> tuple[float, ...]:
    is_list = isinstance(levels, list | tuple)
    if not is_list or not all(isinstance(level, int | float) and not isinstance(level, bool) for level in levels):
        raise WindowError(f"{name} must be a list of levels, numbers from 0 (clean) to 1 (noise); got {levels!r}")
    return tuple(float(level) for level in levels)


def _check_count(name: str, number: int, least: int, most: int) -> None:
    found = read_whole(number)
    if found is None or not least <= found <= most:
        raise WindowError(f"{name} must be a whole number from {least} to {most}; got {number!r}")
