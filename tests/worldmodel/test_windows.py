"""Schedules: the three requirements of Meta-ARVDM hold, or the error says which one breaks, and where."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from worldmodel.errors import WindowError
from worldmodel.windows import (
    Window,
    fifo_window,
    next_frame_window,
    outpainting_window,
    parse_schedule,
    pyramid_window,
    rolling_window,
)

ROLLING = Window((0.25, 0.25, 0.75, 0.75, 1.0, 1.0), (0.0, 0.0, 0.25, 0.25, 0.75, 0.75), 2)


def test_next_frame_is_one_frame_from_noise_to_clean() -> None:
    window = next_frame_window()
    assert (window.before, window.after, window.stride) == ((1.0,), (0.0,), 1)
    assert (window.size, window.input_lag) == (1, 0)


def test_windows_of_the_paper_are_accepted() -> None:
    assert Window((0.5, 1.0), (0.0, 0.5)).input_lag == 1  # FIFO
    assert Window((1.0, 1.0, 1.0), (0.0, 0.0, 0.0), 3).input_lag == 0  # outpainting
    assert (ROLLING.size, ROLLING.input_lag) == (6, 4)


MALFORMED = [
    ((), (), 1, "one level a frame; got 0 and 0 levels"),
    ((1.0,), (0.0, 0.0), 1, "one level a frame; got 1 and 2 levels"),
    ((1.0,), (0.0,), 0, "stride must be from 1 to the 1 frames in flight; got 0"),
    ((1.0,), (0.0,), 2, "stride must be from 1 to the 1 frames in flight; got 2"),
    ((1.0,), (0.0,), 1.0, "stride must be from 1 to the 1 frames in flight; got 1.0"),
    ((1.0,), (0.0,), True, "stride must be from 1 to the 1 frames in flight; got True"),
    (("1",), (0.0,), 1, "before must be a list of levels, numbers from 0"),
    ((1.0,), (False,), 1, "after must be a list of levels, numbers from 0"),
    (1.0, (0.0,), 1, "before must be a list of levels, numbers from 0"),
    ((1.0,) * 1001, (0.0,) * 1001, 1001, "from 1 to 1000"),
    ((1.5,), (0.0,), 1, r"before\[0\] must be a level in \[0, 1\]; got 1.5"),
    ((1.0,), (-0.1,), 1, r"after\[0\] must be a level in \[0, 1\]; got -0.1"),
    ((float("nan"),), (0.0,), 1, r"before\[0\] must be a level in \[0, 1\]; got nan"),
]

BROKEN = [
    (
        (0.5, 0.4, 1.0),
        (0.0, 0.5, 0.4),
        1,
        r"monotonicity is broken at frame 1: before\[1\] = 0.4 is below before\[0\] = 0.5",
    ),
    (
        (0.5, 1.0, 1.0),
        (0.0, 0.5, 0.4),
        1,
        r"monotonicity is broken at frame 2: after\[2\] = 0.4 is below after\[1\] = 0.5",
    ),
    ((0.5, 1.0), (0.0, 0.4), 1, r"circularity is broken at frame 1: after\[1\] = 0.4 must equal before\[0\] = 0.5"),
    (
        (0.2, 0.5, 1.0),
        (0.0, 0.2, 0.6),
        1,
        r"circularity is broken at frame 2: after\[2\] = 0.6 must equal before\[1\] = 0.5",
    ),
    ((0.5, 1.0), (0.1, 0.5), 1, r"0-T boundary is broken at frame 0: after\[0\] must be 0 \(clean\); got 0.1"),
    ((0.5, 0.9), (0.0, 0.5), 1, r"0-T boundary is broken at frame 1: before\[1\] must be 1 \(noise\); got 0.9"),
    ((0.9, 1.0), (0.0, 0.0), 2, r"0-T boundary is broken at frame 0: before\[0\] must be 1 \(noise\); got 0.9"),
    ((1.0, 1.0), (0.0, 0.2), 2, r"0-T boundary is broken at frame 1: after\[1\] must be 0 \(clean\); got 0.2"),
]


@pytest.mark.parametrize(("before", "after", "stride", "message"), [*MALFORMED, *BROKEN])
def test_what_is_broken_and_where(before: Any, after: Any, stride: Any, message: str) -> None:
    with pytest.raises(WindowError, match=message):
        Window(before, after, stride)


@st.composite
def any_window(draw: st.DrawFn) -> Window:
    """Draw a window of any kind: of each constructor, or of free levels that meet the requirements."""
    size, kind = draw(st.integers(1, 12)), draw(st.integers(0, 5))
    stride = draw(st.integers(1, size))
    if kind == 0:
        return next_frame_window()
    if kind == 1:
        return outpainting_window(size, size - stride)
    if kind == 2:
        return fifo_window(size)
    if kind == 3:
        return rolling_window(size)
    if kind == 4:
        return pyramid_window(size * stride, stride)
    level = st.floats(0, 1)
    kept = tuple(sorted(draw(st.lists(level, min_size=size - stride, max_size=size - stride))))
    return Window(kept + (1.0,) * stride, (0.0,) * stride + kept, stride)


@given(window=any_window())
def test_every_kind_of_schedule_meets_the_three_requirements(window: Window) -> None:
    """Written out once more, beside the check in the class."""
    before, after, stride = window.before, window.after, window.stride
    assert list(before) == sorted(before) and list(after) == sorted(after)
    assert after[stride:] == before[: window.size - stride]
    assert set(after[:stride]) == {0.0} and set(before[-stride:]) == {1.0}
    assert all(high >= low for high, low in zip(before, after, strict=True)), "no frame gets noisier"


@given(window=any_window())
def test_a_step_finishes_the_frames_behind_the_clean_ones(window: Window) -> None:
    finished = [j for j in range(window.size) if window.after[j] == 0 and window.before[j] > 0]
    assert finished == list(range(window.num_clean, window.num_clean + window.stride))
    assert window.input_lag == sum(level > 0 for level in window.before[: window.size - window.stride])


@given(window=any_window(), data=st.data())
def test_any_other_level_breaks_the_requirement_that_ties_it(window: Window, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["before", "after"]))
    j = data.draw(st.integers(0, window.size - 1))
    levels = list(getattr(window, name))
    other = data.draw(st.floats(0, 1))
    assume(other != levels[j])
    levels[j] = other
    size, stride = window.size, window.stride
    falls = [k for k in range(1, size) if levels[k] < levels[k - 1]]
    if falls:
        wanted = f"monotonicity is broken at frame {falls[0]}:"
    elif name == "before" and j < size - stride:
        wanted = f"circularity is broken at frame {j + stride}:"
    elif name == "after" and j >= stride:
        wanted = f"circularity is broken at frame {j}:"
    else:
        wanted = f"the 0-T boundary is broken at frame {j}:"
    with pytest.raises(WindowError, match=re.escape(wanted)):
        dataclasses.replace(window, **{name: tuple(levels)})


@given(window=any_window())
def test_another_stride_breaks_a_requirement(window: Window) -> None:
    for stride in set(range(1, window.size + 1)) - {window.stride}:
        with pytest.raises(WindowError, match="is broken at frame"):
            dataclasses.replace(window, stride=stride)


def test_levels_of_the_constructors() -> None:
    assert outpainting_window(5, 2) == Window((0, 0, 1, 1, 1), (0, 0, 0, 0, 0), 3)
    assert (
        outpainting_window(1, 0) == fifo_window(1) == rolling_window(1) == pyramid_window(1, 1) == next_frame_window()
    )
    assert fifo_window(4) == Window((0.25, 0.5, 0.75, 1), (0, 0.25, 0.5, 0.75), 1)
    assert rolling_window(2) == Window((0.5, 1), (0, 0.5), 1)
    assert pyramid_window(6, 3) == Window((0.5, 0.5, 0.5, 1, 1, 1), (0, 0, 0, 0.5, 0.5, 0.5), 3)
    assert pyramid_window(4, 4) == outpainting_window(4, 0)


@pytest.mark.parametrize(
    ("text", "window", "num_steps"),
    [
        ("next", next_frame_window(), None),
        ("outpaint:16:4", outpainting_window(16, 4), None),
        ("fifo:8", fifo_window(8), 1),
        (" rolling:8:3 ", rolling_window(8), 3),
        ("pyramid:8:2", pyramid_window(8, 2), None),
    ],
)
def test_a_schedule_is_named_by_a_text(text: str, window: Window, num_steps: int | None) -> None:
    schedule = parse_schedule(text)
    assert (schedule.name, schedule.window, schedule.num_steps) == (text.strip(), window, num_steps)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "schedule '' is not understood; accepted: next, outpaint:W:OVERLAP, fifo:W"),
        ("next:1", "not understood"),
        ("fifo", "not understood"),
        ("fifo:-1", "not understood"),
        ("fifo:2.5", "not understood"),
        ("fifo:²", "not understood"),
        ("rolling:4", "not understood"),
        ("fifo:0", "fifo frames must be a whole number from 1 to 1000; got 0"),
        ("fifo:1001", "fifo frames must be a whole number from 1 to 1000; got 1001"),
        ("rolling:4:0", "rolling substeps must be a whole number from 1 to 1000; got 0"),
        ("outpaint:4:4", "outpainting overlap must be a whole number from 0 to 3; got 4"),
        ("outpaint:0:0", "outpainting size must be a whole number from 1 to 1000; got 0"),
        ("pyramid:4:0", "pyramid stride must be a whole number from 1 to 4; got 0"),
        ("pyramid:7:2", "a pyramid of 7 frames cannot be cut into groups of 2"),
        ("nowhere.json", "schedule file nowhere.json cannot be read .No such file"),
    ],
)
def test_a_text_that_names_no_schedule(text: str, message: str) -> None:
    with pytest.raises(WindowError, match=message):
        parse_schedule(text)


def test_a_schedule_from_two_lists(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"before": [0, 0.5, 1], "after": [0, 0, 0.5]}))
    schedule = parse_schedule(str(path))
    assert (schedule.window, schedule.num_steps) == (Window((0.0, 0.5, 1.0), (0.0, 0.0, 0.5), 1), None)
    assert (schedule.window.num_clean, schedule.window.input_lag) == (1, 1)
    path.write_text(json.dumps({"before": [1, 1], "after": [0, 0], "stride": 2, "num_steps": 3}))
    schedule = parse_schedule(str(path))
    assert (schedule.name, schedule.window.stride, schedule.num_steps) == (str(path), 2, 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "must hold .*; got list"),
        ('{"before": [1]}', r"must hold .*; got \['before'\]"),
        ('{"before": [1], "after": [0], "strid": 1}', "must hold .*strid"),
        ('{"before": [1], "after": "0"}', "after must be a list of levels"),
        ('{"before": [1], "after": null}', "after must be a list of levels"),
        ('{"before": [1], "after": [0], "stride": "1"}', "stride must be from 1 to the 1 frames in flight; got '1'"),
        ('{"before": [1], "after": [0], "num_steps": 0}', "num_steps must be a whole number from 1 to 1000; got 0"),
        ('{"before": [NaN, 1], "after": [0, NaN]}', r"before\[0\] must be a level"),
        ('{"before": [0.5, 1], "after": [0, 0.4]}', r"mine.json: circularity is broken at frame 1: after\[1\]"),
    ],
)
def test_a_file_that_holds_no_schedule(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text(content)
    with pytest.raises(WindowError, match=message):
        parse_schedule(str(tmp_path / "mine.json"))


def test_the_input_lag_in_words() -> None:
    assert next_frame_window().describe_lag(15) == (
        "input lag 0 frames (0 ms at 15 frames/s): the next frame shows the action"
    )
    assert outpainting_window(5, 2).describe_lag(15).endswith("; not for play: 3 actions are taken at once")
    assert fifo_window(2).describe_lag(15).startswith("input lag 1 frame (67 ms at 15 frames/s)")
    assert rolling_window(8).describe_lag(20).startswith("input lag 7 frames (350 ms at 20 frames/s)")


def test_a_schedule_is_read_without_torch() -> None:
    program = "import sys; from worldmodel.windows import parse_schedule; parse_schedule('fifo:4'); "
    done = subprocess.run(
        [sys.executable, "-c", program + "assert 'torch' not in sys.modules"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_a_shift_spends_steps_at_high_levels() -> None:
    """Two steps with shift 3 meet at level 3/4, Esser et al. 2024."""
    assert next_frame_window().grid(2, 3.0).flatten().tolist() == pytest.approx([1.0, 0.75, 0.0])
    assert next_frame_window().grid(4, 1.0).flatten().tolist() == pytest.approx([1.0, 0.75, 0.5, 0.25, 0.0])
    assert torch.equal(ROLLING.grid(3, 2.0), ROLLING.grid(3))  # its frames do not go from noise to clean in one step
    chunks = outpainting_window(3, 1).grid(2, 3.0)
    assert chunks[1].tolist() == pytest.approx([0.0, 0.75, 0.75])
    assert next_frame_window().grid(3, 0.01)[[0, -1], 0].tolist() == [1.0, 0.0]
    for shift in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(WindowError, match="shift"):
            next_frame_window().grid(2, shift)


@given(num_steps=st.integers(1, 12))
def test_the_grid_goes_from_before_to_after_and_never_up(num_steps: int) -> None:
    grid = ROLLING.grid(num_steps)
    assert grid.shape == (num_steps + 1, 6)
    assert tuple(grid[0].tolist()) == ROLLING.before
    assert tuple(grid[-1].tolist()) == ROLLING.after
    assert (grid[1:] <= grid[:-1]).all()
    steps = grid[1:] - grid[:-1]
    torch.testing.assert_close(steps, steps[:1].expand_as(steps))


def test_a_grid_needs_a_step() -> None:
    with pytest.raises(WindowError, match="num_steps must be at least 1; got 0"):
        next_frame_window().grid(0)
