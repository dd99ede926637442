"""Play a dreamt world in a window, or without one.

Owns: the command line and what is wired to what. Imported by nothing. The window opens before torch is imported; the
world loads in the background.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import tyro

from envs.player import interrupts
from worldmodel.errors import ConfigError, MissingPackageError, SeedError, WindowError, WorldModelError
from worldmodel.windows import parse_schedule

if TYPE_CHECKING:
    from envs.dream import DreamEnv
    from envs.player.replay import ReplaySession
    from envs.player.session import PlayableEnv, PlaySession
    from envs.player.worker import Report
    from envs.worlds.base import World

DEFAULT_FRAMES = 300
THREADS_A_CPU = 4
MOST_SCALE = 64
SUFFIXES = {"session": ".h5", "video": ".mp4"}


@dataclass(frozen=True)
class Options:
    """Walk through a world that a diffusion model dreams frame by frame. Keys: W A S D or arrows; F1 shows all."""

    world: str = "labmaze"
    """Which world to dream; a wrong name lists those there are."""
    real: bool = False
    """Play the real world that the dream was learned from, which may need more packages."""
    checkpoint: str | None = None
    """Trained world to load, a name or a folder; without it, the one that ships with this project."""
    device: str = "auto"
    """Where to dream: auto, cpu, cuda, cuda:1, mps."""
    steps: int | None = None
    """Denoising steps a frame: fewer are faster. Without it, as the schedule says, else as the world was trained."""
    schedule: str | None = None
    """next (input lag 0), fifo:W or rolling:W:SUBSTEPS (input lag W - 1 frames), or a FILE.json; the lag is printed."""
    memory: int | None = None
    """Past frames to remember. Without it, as the world was trained."""
    seed: int = 0
    """Which dream; R goes on to the next."""
    fps: float | None = None
    """Steps a second, in the window and in videos. Without it, the world's own (15)."""
    scale: int | None = None
    """Screen (and video) pixels per frame pixel, at first. Without it, a window of 640 x 640 and videos of 256 rows."""
    threads: int | None = None
    """CPU threads for torch. Without it, the fastest number is measured at the start."""
    compile: str = "auto"
    """auto: compile the step in the background while the dream plays on in its window (two minutes, once; then it is
    kept for next time, and for --headless); wait: compile before the first frame; off."""
    video: Path | None = None
    """Record an MP4 from the first frame on."""
    record: Path | None = None
    """Record the session (actions, frames, rewards, marks, revisits) from the first frame on: to a FILE.h5, or to a new
    file in a folder. It is read by train.memory_tests, train.finetune and --replay."""
    out: Path = Path("plays")
    """Folder of what keys save: screenshots, videos, sessions; made when something is saved."""
    replay: Path | None = None
    """Show a recorded session again: pause, step, jump; F1 shows the keys. With --headless too, and to a --video."""
    line: str | None = None
    """With --replay: EPISODE:FRAME, to show what led there. Without it, the last frame of the last episode."""
    beside: str | None = None
    """real: walk the real world beside the dream, by the same keys from one start; a bar says how alike they are."""
    redream: bool = False
    """With --replay: dream its actions again, with the checkpoint and the settings it was dreamt with, and compare all
    frames. --checkpoint does so with another one, also for a session of the real world."""
    context: int | None = None
    """With --beside, or --replay of a real session: frames of the real world that the dream begins from. Without it, as
    many as openings have."""
    headless: bool = False
    """Play without a window, as fast as it goes; the last line printed is a JSON object with the speed."""
    frames: int | None = None
    """With --headless: steps to take (300)."""
    actions: str | None = None
    """With --headless: random, or keys such as "wwwwaaad" or "w*30 a*15 wd*10 .*5" (. is no key), repeated."""
    serve: bool = False
    """Play in a browser, also of another machine, in place of the window; prints the address to open."""
    host: str | None = None
    """With --serve: address to listen on (127.0.0.1: this machine alone). Others are told a token in the address."""
    port: int | None = None
    """With --serve: port to listen on (8765); 0 takes a free one."""


def main(arguments: list[str] | None = None) -> int:
    """Run the program; return its exit status: 0, 2 after an error of ours, 128 + N after a signal N, as Ctrl-C (2)."""
    try:
        with interrupts.raised():
            options = tyro.cli(Options, prog="play.py", args=arguments, config=(tyro.conf.FlagCreatePairsOff,))
            check_options(options)
            run(options)
    except WorldModelError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except interrupts.Interrupted as interrupted:
        return interrupted.exit_status
    return 0


def run(options: Options) -> None:
    """Play or show again, in a window, in a browser or without either."""
    if options.headless:
        print(json.dumps(replay_headless(options) if options.replay else play_headless(options)), flush=True)
    elif options.replay is not None:
        replay_in_window(options)
    elif options.serve:
        play_in_browser(options)
    else:
        play_in_window(options)


def check_options(options: Options) -> None:
    """Refuse what can be refused before anything is loaded.

    Raises:
        ConfigError: an option is out of range, or does not go with another.
        WindowError: the schedule breaks a requirement, or cannot be played.
        SeedError: the seed is negative.
    """
    if options.world.lower() == "real":
        raise ConfigError("--world real is gone: name the world and add --real, as in --world labmaze --real")
    if options.seed < 0:
        raise SeedError(f"--seed {options.seed} is negative; use a whole number of at least 0")
    for name in ("steps", "memory", "scale", "threads", "frames", "context"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name} must be at least 1; got {value}")
    check_bounds(options)

    if options.compile not in ("auto", "wait", "off"):
        raise ConfigError(f"--compile takes auto, wait or off; got {options.compile!r}")
    if options.fps is not None and not 0.001 <= options.fps <= 1000:
        raise ConfigError(f"--fps must be from 0.001 to 1000; got {options.fps}")
    if options.video is not None and options.video.suffix.lower() != ".mp4":
        raise ConfigError(f"--video {str(options.video)!r} must end in .mp4; give a name such as play.mp4")

    for name in ("frames", "actions"):
        if getattr(options, name) is not None and not options.headless:
            raise ConfigError(f"--{name} goes only with --headless; add it, or leave --{name} out")
    check_serving(options)

    if options.schedule is not None and (stride := parse_schedule(options.schedule).window.stride) != 1:
        raise WindowError(
            f"--schedule {options.schedule} makes {stride} frames a step and takes {stride} actions at once, which "
            "cannot be played: use next, fifo:W, rolling:W:SUBSTEPS or a file of stride 1, or python -m train.rollout"
        )
    if options.real:  # compile has a default: it is let pass
        for name in (
            "beside",
            "checkpoint",
            "steps",
            "schedule",
            "memory",
            "threads",
        ):
            if getattr(options, name) is not None:
                raise ConfigError(f"--{name} does not go with --real, which has no model; leave it out")
    if options.beside not in (None, "real"):
        raise ConfigError(f"--beside takes real, the real world that is dreamt of; got {options.beside!r}")
    check_replay(options)


def check_bounds(options: Options) -> None:
    """Refuse what is more than makes sense here, and a world that there is not. Errors as `check_options`."""
    num_cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if options.threads is not None and options.threads > THREADS_A_CPU * num_cpus:
        raise ConfigError(
            f"--threads {options.threads} is too many for {num_cpus} CPUs, where more threads than that wait for one "
            f"another: give at most {THREADS_A_CPU * num_cpus}, or none, and the fastest number is measured"
        )
    if options.scale is not None and options.scale > MOST_SCALE:
        raise ConfigError(
            f"--scale {options.scale} is too large for any screen or video: give at most {MOST_SCALE}; the window can "
            "be resized, and F11 fills the screen"
        )
    if options.world != Options.world and options.checkpoint is None and options.replay is None:
        from envs.worlds.registry import find_name

        find_name(options.world)


def check_replay(options: Options) -> None:
    """Refuse what does not go with a replay, or only with one. Errors as `check_options`."""
    if options.replay is None:
        if options.context is not None and options.beside is None:
            raise ConfigError("--context goes only with --beside or --replay; add one, or leave --context out")
        for name in ("line", "redream"):
            if getattr(options, name):
                raise ConfigError(f"--{name} goes only with --replay FILE; add it, or leave --{name} out")
        return
    for name in ("real", "record", "actions", "beside"):
        if getattr(options, name):
            raise ConfigError(f"--{name} does not go with --replay, which shows what was played; leave it out")
    is_dreamt = options.redream or options.checkpoint is not None
    for name in ("steps", "schedule", "memory", "threads"):
        if getattr(options, name) is not None and not is_dreamt:
            raise ConfigError(f"--{name} is for dreaming: add --redream or --checkpoint, or leave --{name} out")


def check_serving(options: Options) -> None:
    """Refuse options of --serve that are out of range or do not go together.

    Raises:
        ConfigError: as it says.
    """
    if options.serve and options.headless:
        raise ConfigError("--serve does not go with --headless; leave one of them out")
    for name in ("host", "port"):
        if getattr(options, name) is not None and not options.serve:
            raise ConfigError(f"--{name} goes only with --serve; add it, or leave --{name} out")
    if options.port is not None and not 0 <= options.port <= 65535:
        raise ConfigError(f"--port must be from 0 (any that is free) to 65535; got {options.port}")
    if options.host == "":
        raise ConfigError("--host is empty; give an address such as 127.0.0.1, or 0.0.0.0 for all of this machine")


def play_headless(options: Options) -> dict[str, object]:
    """Play without a window.

    Returns:
        the report of `run_headless`; saved, the files that were recorded; load_s, seconds until the first frame;
        input_lag_frames if a schedule is given.
    """
    from envs.player.headless import loading_bar, parse_actions, run_headless

    start_s = time.perf_counter()
    with loading_bar() as report_loading:
        session = make_session(options, report_loading)
    load_s = time.perf_counter() - start_s
    try:
        actions = parse_actions(
            "random" if options.actions is None else options.actions, session.action_set, options.seed
        )
        if options.video is not None:
            session.start_video(options.video, options.scale)
        if options.record is not None:
            session.start_session(session_file(options.record))
        report = run_headless(session, actions, options.frames or DEFAULT_FRAMES)
        report |= getattr(session.env, "findings", {})
    finally:
        with interrupts.held():
            saved = session.close()
    report["saved"] = [str(path.resolve()) for path in saved]
    report["load_s"] = round(load_s, 2)
    if options.schedule is not None:
        report["input_lag_frames"] = parse_schedule(options.schedule).window.input_lag
    return report


def replay_headless(options: Options) -> dict[str, object]:
    """Show a recorded session without a window; return the report of `run_replay`."""
    from envs.player.headless import loading_bar
    from envs.player.replay import run_replay

    with loading_bar() as report_loading:
        session = make_replay(options, report_loading)
    try:
        if options.video is not None:
            session.start_video(options.video, options.scale)
        return run_replay(session, options.frames)
    finally:
        with interrupts.held():
            session.close()


def play_in_window(options: Options) -> None:
    """Open the window, load behind it, play until it is closed."""
    from envs.player.window import Player, check_display
    from envs.player.worker import WorldWorker

    check_display()
    record = None if options.record is None else session_file(options.record)
    worker = WorldWorker(lambda report: make_session(options, report), options.video, options.scale, record)
    kind = f"{options.world}, the real world" if options.real else f"a dream of {options.world}"
    kind += ", the real world beside it" if options.beside else ""
    Player(worker, title=f"Playable world model: {kind}", scale=options.scale, folder=options.out).run()


def play_in_browser(options: Options) -> None:
    """Load the world and play it in browsers until Ctrl-C, TERM or HUP."""
    from envs.player.address import DEFAULT_HOST, DEFAULT_PORT
    from envs.player.browser import serve
    from envs.player.worker import WorldWorker

    record = None if options.record is None else session_file(options.record)
    worker = WorldWorker(lambda report: make_session(options, report), options.video, options.scale, record)
    host = DEFAULT_HOST if options.host is None else options.host
    port = DEFAULT_PORT if options.port is None else options.port
    serve(worker, f"Playable world model: {options.world}", host, port, lambda kind: new_file(options.out, kind))


def replay_in_window(options: Options) -> None:
    """Open the window, show a recorded session in it until it is closed."""
    from envs.player.replay_window import ReplayPlayer
    from envs.player.replay_worker import ReplayWorker
    from envs.player.window import check_display

    check_display()
    worker = ReplayWorker(lambda report: make_replay(options, report), options.video, options.scale)
    ReplayPlayer(worker, f"Replay of {options.replay}", scale=options.scale, folder=options.out).run()


def session_file(record: Path) -> Path:
    """Return the file of a session: as given, or a new name in a folder."""
    if record.suffix.lower() == ".h5":
        return record
    return new_file(record, "session")


def new_file(folder: Path, kind: str) -> Path:
    """Return a new name in a folder for a file of a kind of `SUFFIXES`."""
    moment = f"{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() // 1_000_000 % 1000:03d}"
    return folder / f"{kind}-{moment}{SUFFIXES[kind]}"


def make_session(options: Options, report: Report) -> PlaySession:
    """Load the world and begin its first dream, telling `report` what comes next."""
    from envs.player.session import PlaySession
    from envs.worlds.registry import get_world

    world = get_world(options.world) if options.real else None
    env: PlayableEnv = make_dream(options, report) if world is None else make_real(world, report)
    if options.beside is not None:
        env = put_beside(env, options.context, report)
    keeps = not options.headless  # nobody is there to rewind
    report(0.85, "making the first frame")
    try:
        if world is None:
            session = PlaySession(env, options.seed, options.fps, keeps_way_back=keeps)
        else:
            session = PlaySession(env, options.seed, options.fps or world.fps, world.actions, world, keeps)
    except BaseException:
        env.close()
        raise
    if options.schedule is not None:
        lag = parse_schedule(options.schedule).window.describe_lag(session.fps)
        print(f"schedule {options.schedule}: {lag}", flush=True)
    return session


def put_beside(env: PlayableEnv, num_context: int | None, report: Report) -> PlayableEnv:
    """Build the real world that a dream was learned from, and put it beside the dream."""
    from envs.player.beside import BesideEnv

    report(0.82, "building the real world")
    dream = cast("DreamEnv", env)
    try:
        return BesideEnv(dream, dream.world.make(image_size=dream.frame_size), num_context)
    except BaseException:
        dream.close()
        raise


def make_replay(options: Options, report: Report) -> ReplaySession:
    """Read a recorded session, and load what dreams it again."""
    from envs.data.sessions import read_session
    from envs.player.line import Line, parse_place
    from envs.player.redream import Redream, find_dreamer
    from envs.player.replay import ReplaySession

    assert options.replay is not None
    report(0.02, "reading the session")
    end = None if options.line is None else parse_place(options.line)
    line = Line(read_session(options.replay), end)
    if options.checkpoint is None and not options.redream:
        return ReplaySession(line, None, options.fps)
    found = find_dreamer(line, options.checkpoint)
    given = {name: getattr(options, name) for name in found if getattr(options, name) not in (None, "auto")}
    env = make_dream(dataclasses.replace(options, **found | given), report)
    report(0.85, "making the first frame")
    try:
        return ReplaySession(line, Redream(line, cast("DreamEnv", env), options.context, options.seed), options.fps)
    except BaseException:
        env.close()
        raise


def make_dream(options: Options, report: Report) -> PlayableEnv:
    """Import torch, then load the model."""
    report(0.05, "loading PyTorch")
    try:
        import torch
    except ImportError as error:
        raise MissingPackageError(f"dreaming needs PyTorch ({error}); run: pip install torch") from error

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    report(0.4, "loading the model")
    from envs.dream import DreamEnv

    given: dict[str, Any] = {} if options.schedule is None else {"schedule": options.schedule}
    env = DreamEnv(
        world=options.world.lower(),
        checkpoint=options.checkpoint,
        device=options.device,
        num_steps=options.steps,
        memory_frames=options.memory,
        **given,
    )
    for fault in env.faults:
        print(f"a poor world: {fault}", flush=True)
    if options.threads is None:
        report(0.7, "measuring the machine")
        env.tune_threads()
    is_next = options.schedule in (None, "next")
    if options.compile == "wait":
        env.compile(wait=True, on_wait=lambda clock: report(0.7 + 0.15 * clock.share, f"compiling: {clock.describe()}"))
    elif options.compile == "auto" and is_next:
        report(0.8, "looking for a compiled step")
        env.compile(wait=False, cached_only=options.headless)
    return env


def make_real(world: World, report: Report) -> PlayableEnv:
    """Build the world that dreams are learned from."""
    report(0.1, "building the world")
    env: Any = world.make()
    return cast("PlayableEnv", env)


if __name__ == "__main__":
    sys.exit(main())
