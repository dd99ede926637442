"""Tests of memory in other formats: sessions written to them, and sessions made of them.

Owns: the options, what becomes of marks and revisits, and that what a format cannot hold is said once. Knows no layout
(`envs.data.formats`).
"""

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np

from envs.data.formats import memory_maze, mind
from envs.data.formats.clip import Clip
from envs.data.session_files import SUFFIX
from envs.data.session_writer import SessionWriter
from envs.data.sessions import SessionInfo
from envs.fields import POSE, Field
from envs.worlds.base import World
from envs.worlds.registry import find_name, get_world
from train.memory.cases import LEAST_CONTEXT, MemoryTest, load_tests
from train.memory.making import MAKING
from train.memory.poses import Poses
from worldmodel.errors import ConfigError, DataError

Format = Literal["mind", "memory_maze"]
FORMATS: dict[str, ModuleType] = {"mind": mind, "memory_maze": memory_maze}
LAYOUT = Field("uint8", "episode", 2)


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Write tests of the real world to the layout of another benchmark."""

    tests: Path
    """Folder of sessions, or one."""
    format: Format
    """mind or memory_maze."""
    out: Path
    """Folder to write to; made if missing."""
    context: int = LEAST_CONTEXT
    """True frames given at least (MIND's mark_time)."""


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """Make sessions of another benchmark's data; revisits are found by poses."""

    source: Path
    """Folder of the data, or of a part of it."""
    format: Format
    """mind or memory_maze."""
    out: Path
    """Folder of the sessions; made if missing."""
    world: str
    """World whose actions it is told in: a name, or module:class of your own."""
    image_size: int = 64
    """Height and width of a frame in pixels; videos are shrunk to it."""
    tolerance: float = 0.5
    """Two frames are of one place where their poses are closer than this many steps and turns."""

    def __post_init__(self) -> None:
        if self.image_size < 8 or not self.tolerance > 0:
            raise ConfigError(
                f"image_size must be at least 8 and tolerance above 0; got {self.image_size}, {self.tolerance}"
            )


def export_tests(options: ExportOptions) -> dict[str, Any]:
    """Write tests to another format.

    Returns:
        `written`, and `left_out` (name -> why).

    Raises:
        DataError: no test, or none that the format can hold. StorageError: a file cannot be written.
    """
    layout = FORMATS[options.format]
    written, left_out = 0, {}
    for test in load_tests(options.tests, options.context):
        if not test.is_real:
            left_out[test.name] = "it is a dream, and would stand for the truth"
            continue
        try:
            layout.write_clip(options.out, _to_clip(test), get_world(test.session.info.world).actions)
            written += 1
        except (DataError, ConfigError) as error:
            left_out[test.name] = str(error)
    _tell(options.format, left_out)
    if not written:
        raise DataError(f"{options.tests}: no test can be written as {options.format}: {next(iter(left_out.values()))}")
    return {"written": written, "left_out": left_out}


def import_tests(options: ImportOptions) -> dict[str, Any]:
    """Make sessions of another format's data.

    Returns:
        `written`, `pairs` (in all), `without_pairs` (names), `left_out` (name -> why).

    Raises:
        DataError: nothing there, nothing that can be read, or sessions in the folder already.
        ConfigError: no such world. StorageError: a file cannot be written.
    """
    layout, world = FORMATS[options.format], get_world(options.world)
    if any(options.out.glob(f"*{SUFFIX}")):
        raise DataError(f"{options.out} holds sessions already: choose another --out")
    written, num_pairs, without, left_out = 0, 0, [], {}
    for place in layout.find_clips(options.source):
        try:
            clip = layout.read_clip(place, world.actions, options.image_size)
        except DataError as error:
            left_out[place.name] = str(error)
            continue
        found = _write_session(options, world, clip)
        written, num_pairs = written + 1, num_pairs + found
        without += [clip.name] * (not found)
    shutil.rmtree(options.out / MAKING, ignore_errors=True)
    _tell(options.format, left_out)
    if without:
        print(
            f"{len(without)} of {written} sessions hold no frame that comes back, such as {without[0]}", file=sys.stderr
        )
    if not written:
        raise DataError(f"{options.source}: nothing can be read as {options.format}: {next(iter(left_out.values()))}")
    return {"written": written, "pairs": num_pairs, "without_pairs": without, "left_out": left_out}


def _tell(name: str, left_out: dict[str, str]) -> None:
    """Say once what a format cannot hold, and what was left out."""
    print(f"{name} cannot hold {FORMATS[name].CANNOT_HOLD}", file=sys.stderr)
    if left_out:
        first, reason = next(iter(left_out.items()))
        print(f"{len(left_out)} left out, such as {first}: {reason}", file=sys.stderr)


def _to_clip(test: MemoryTest) -> Clip:
    given = test.read()
    line = test.session.line(test.end)
    known = set.intersection(*(set(test.session.episodes[stop.episode].fields) for stop in line))
    names = [name for name in ("pose", "layout") if name in known]
    rows = test.session.read_line(test.end, ["rewards", "terminated", *names])
    # A field of the episode is there once for each episode on the line; all are of one scene.
    layout = rows["layout"][: len(rows["layout"]) // len(line)] if "layout" in rows else None
    poses = rows["pose"].astype(np.float64) if "pose" in rows else None
    return Clip(
        name=test.name,
        frames=given.frames,
        actions=given.actions.astype(np.int64),
        fps=test.session.info.fps,
        context=test.context,
        poses=poses,
        layout=layout,
        rewards=rows["rewards"],
        terminated=rows["terminated"],
    )


def _write_session(options: ImportOptions, world: World, clip: Clip) -> int:
    """Write a clip as a session; return how many pairs it has."""
    settings: dict[str, Any] = {"imported": options.format}
    settings |= {} if clip.context is None else {"context": clip.context}
    info = SessionInfo(
        world=find_name(options.world),
        action_names=world.actions.names,
        image_size=options.image_size,
        fps=clip.fps,
        source="real",
        settings=settings,
    )
    pairs = []
    fields: dict[str, Field] = {}
    if clip.poses is not None:
        fields["pose"] = POSE
        pairs = Poses(clip.poses).find_returns(clip.context or LEAST_CONTEXT, options.tolerance)
    if clip.layout is not None:
        fields["layout"] = LAYOUT

    frame = 0
    path = options.out / MAKING / f"{clip.name}{SUFFIX}"
    writer = SessionWriter(path, info, fields, split="test", policy=options.format, clock=lambda: frame / clip.fps)
    firsts, partner, marks = {first for first, _ in pairs}, {second: first for first, second in pairs}, {}
    for frame, picture in enumerate(clip.frames):
        values = {} if clip.poses is None else {"pose": clip.poses[frame]}
        if frame == 0:
            values |= {} if clip.layout is None else {"layout": clip.layout}
            writer.begin(picture, start={"source": clip.name}, values=values)
        else:
            step = frame - 1
            ends = (bool(clip.terminated[step]), False)
            writer.add(int(clip.actions[step]), picture, float(clip.rewards[step]), *ends, values)
        if frame in firsts:
            marks[frame] = writer.mark()
        if frame in partner:
            writer.revisit(marks[partner[frame]], options.format)
    made = writer.close()
    if made is None:
        raise DataError(f"{clip.name} has one frame: nothing was played")
    made.replace(options.out / made.name)
    return len(pairs)
