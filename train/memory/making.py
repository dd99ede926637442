"""Making tests: scripted walks played in a real world and written as sessions with their revisits.

Owns: the options, the folder, and what a session says of a walk. Does not know which walks there are
(`train.memory.walks`) or how one is played (`train.memory.playing`).

A test follows from the seed, its kind and its number alone. It appears under its name when it is whole.
"""

import json
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from envs.data.session_files import SUFFIX
from envs.data.session_writer import SessionWriter
from envs.data.sessions import Mark, SessionInfo, read_session
from envs.worlds.base import World
from envs.worlds.registry import find_name, get_world
from train.core.options import options_to_json, save_json
from train.data.recording import RecordOptions, world_settings
from train.memory.playing import Walk, find_walk
from train.memory.walks import choose_kinds
from worldmodel.errors import ConfigError, DataError, SeedError

DESCRIPTION, MAKING = "tests.json", ".making"
FREE_OPTIONS = ("out", "kinds", "count")  # what may differ between the runs that make one folder


@dataclass(frozen=True, kw_only=True)
class MakeOptions:
    """Make tests of memory: scripted walks through held-out scenes of a real world, as sessions."""

    out: Path
    """Folder of the sessions; made if missing. The same command goes on where it stopped."""
    world: str = "LabMaze"
    """World: a name (a wrong one lists those there are), or module:class of your own."""
    kinds: tuple[str, ...] = ()
    """Kinds of walks: spin mirror loop out_and_back aba abca; default all that the world allows."""
    count: int = 16
    """Tests of each kind."""
    longest: int = 400
    """Most steps of a test."""
    seed: int = 0
    """Seed of the scenes and the walks."""
    image_size: int = 64
    """Height and width of a frame in pixels."""
    set: tuple[str, ...] = ()
    """Settings of the world, such as size=9; a wrong one lists those there are."""

    def __post_init__(self) -> None:
        for name, low in {"count": 1, "longest": 16, "image_size": 8}.items():
            if getattr(self, name) < low:
                raise ConfigError(f"{name} must be at least {low}; got {getattr(self, name)}")
        if self.seed < 0:
            raise SeedError(f"seed must be 0 or more; got {self.seed}")


def make_tests(options: MakeOptions) -> dict[str, Any]:
    """Make the tests that are still missing.

    Returns:
        `made` and `there` (tests of each kind made now, and in all), `left_out` (kind -> why).

    Raises:
        ConfigError: no such kind, world or setting. DataError: a kind that the world does not allow, a kind for which
            no start was found, or a folder that holds other tests. StorageError: the folder cannot be written.
        MissingPackageError: a package of the world is not installed.
    """
    world = get_world(options.world)
    kinds, left_out = choose_kinds(world, options.kinds)
    settings = _settings(options)
    _open_folder(options)
    jobs = [(kind, number) for kind in kinds for number in range(options.count)]
    missing = [job for job in jobs if not _is_made(_path(options, *job))]
    made = dict.fromkeys(kinds, 0)

    if missing:
        env = world.make(**settings)
        try:
            with tqdm(total=len(jobs), initial=len(jobs) - len(missing), unit="test") as progress:
                for kind, number in missing:
                    progress.set_description(kind)
                    walk = find_walk(world, env, kind, number, longest=options.longest, seed=options.seed)
                    _write(world, walk, settings, options, kind, _path(options, kind, number))
                    made[kind] += 1
                    progress.update(1)
        finally:
            env.close()
    shutil.rmtree(options.out / MAKING, ignore_errors=True)
    return {"made": made, "there": dict.fromkeys(kinds, options.count), "left_out": left_out}


def _settings(options: MakeOptions) -> dict[str, Any]:
    """Return the arguments that the world is made with; it must not end a walk before its own end."""
    recorded = RecordOptions(
        options.out, world=options.world, length=options.longest + 1, image_size=options.image_size, set=options.set
    )
    return world_settings(recorded)


def _path(options: MakeOptions, kind: str, number: int) -> Path:
    return options.out / f"{kind}-{number:05d}{SUFFIX}"


def _open_folder(options: MakeOptions) -> None:
    """Make or reopen the folder; what an interrupted run left half done goes.

    Raises:
        DataError: it holds tests made with other options. StorageError: it cannot be written.
    """
    given = {name: value for name, value in options_to_json(options).items() if name not in FREE_OPTIONS}
    given |= {"world": find_name(options.world), "set": sorted(options.set)}
    description = options.out / DESCRIPTION
    if description.is_file():
        try:
            found = json.loads(description.read_text())["options"]
            others = [f"{name}={found.get(name)!r}" for name in given if found.get(name) != given[name]]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{description} is damaged: delete it, or choose another --out") from error
        if others:
            raise DataError(
                f"{options.out} holds tests made with {', '.join(others)}: give the same options to go on, or "
                "another --out"
            )
    save_json(description, {"options": given})
    shutil.rmtree(options.out / MAKING, ignore_errors=True)


def _is_made(path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        return bool(read_session(path).revisits)
    except DataError as error:
        warnings.warn(f"making it again: {error}", stacklevel=2)
        path.unlink()
        return False


def _write(world: World, walk: Walk, settings: dict[str, Any], options: MakeOptions, kind: str, path: Path) -> None:
    """Write a walk as a session; the clock is that of the world, so that equal walks give equal files."""
    info = SessionInfo(
        world=find_name(options.world),
        action_names=world.actions.names,
        image_size=options.image_size,
        fps=world.fps,
        source="real",
        settings=settings,
    )
    fields = {name: field for name, field in world.fields.items() if name in {*walk.values[0], *walk.values[-1]}}
    frame = 0
    writer = SessionWriter(
        options.out / MAKING / path.name, info, fields, split="test", policy=kind, clock=lambda: frame / world.fps
    )
    marks: dict[int, Mark] = {}
    firsts = {first for first, _ in walk.pairs}
    partner = {second: first for first, second in walk.pairs}
    env_seed, scene_seed, walk_seed = walk.seeds
    start = {"seed": env_seed, "scene_seed": scene_seed, "walk_seed": walk_seed}
    writer.begin(walk.frames[0], start=start, values=walk.values[0])
    for frame, picture in enumerate(walk.frames):
        if frame:
            step = frame - 1
            ends = (walk.terminated[step], False)
            writer.add(walk.actions[step], picture, walk.rewards[step], *ends, walk.values[frame])
        if frame in firsts:
            marks[frame] = writer.mark()
        if frame in partner:
            writer.revisit(marks[partner[frame]], kind)
    made = writer.close()
    assert made is not None
    made.replace(path)
