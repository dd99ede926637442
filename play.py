"""Play a dreamt world in a window, or without one.

Owns: the command line and what is wired to what. Imported by nothing. The window opens before torch is imported; the
world loads in the background.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import tyro

from worldmodel.errors import ConfigError, MissingPackageError, SeedError, WindowError, WorldModelError
from worldmodel.windows import parse_schedule

if TYPE_CHECKING:
    from envs.player.session import PlayableEnv, PlaySession
    from envs.player.worker import Report
    from envs.worlds.base import World

DEFAULT_FRAMES = 300


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
    """Run the program and return its exit status: 0, 2 after an error of ours, 130 after Ctrl-C (0 where it serves)."""
    try:
        options = tyro.cli(Options, prog="play.py", args=arguments, config=(tyro.conf.FlagCreatePairsOff,))
        check_options(options)
        if options.headless:
            print(json.dumps(play_headless(options)), flush=True)
        elif options.serve:
            play_in_browser(options)
        else:
            play_in_window(options)
    except WorldModelError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


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
    for name in ("steps", "memory", "scale", "threads", "frames"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name} must be at least 1; got {value}")

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

    if options.real:
        for name in ("checkpoint", "steps", "schedule", "memory", "threads"):  # compile has a default: it is let pass
            if getattr(options, name) is not None:
                raise ConfigError(f"--{name} does not go with --real, which has no model; leave it out")


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
        the report of `run_headless`; load_s, seconds until the first frame; input_lag_frames if a schedule is given.
    """
    from envs.player.headless import parse_actions, run_headless

    start_s = time.perf_counter()
    session = make_session(options, lambda share, text: None)
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
    finally:
        session.close()
    report["load_s"] = round(load_s, 2)
    if options.schedule is not None:
        report["input_lag_frames"] = parse_schedule(options.schedule).window.input_lag
    return report


def play_in_window(options: Options) -> None:
    """Open the window, load behind it, play until it is closed."""
    from envs.player.window import Player, check_display
    from envs.player.worker import WorldWorker

    check_display()
    record = None if options.record is None else session_file(options.record)
    worker = WorldWorker(lambda report: make_session(options, report), options.video, options.scale, record)
    kind = f"{options.world}, the real world" if options.real else f"a dream of {options.world}"
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
    serve(worker, f"Playable world model: {options.world}", host, port, lambda: session_file(options.out))


def session_file(record: Path) -> Path:
    """Return the file of a session: as given, or a new name in a folder."""
    if record.suffix.lower() == ".h5":
        return record
    moment = f"{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() // 1_000_000 % 1000:03d}"
    return record / f"session-{moment}.h5"


def make_session(options: Options, report: Report) -> PlaySession:
    """Load the world and begin its first dream, telling `report` what comes next."""
    from envs.player.session import PlaySession
    from envs.worlds.registry import get_world

    world = get_world(options.world) if options.real else None
    env: PlayableEnv = make_dream(options, report) if world is None else make_real(world, report)
    report(0.85, "making the first frame")
    try:
        if world is None:
            session = PlaySession(env, options.seed, options.fps)
        else:
            session = PlaySession(env, options.seed, options.fps or world.fps, world.actions, world)
    except BaseException:
        env.close()
        raise
    if options.schedule is not None:
        lag = parse_schedule(options.schedule).window.describe_lag(session.fps)
        print(f"schedule {options.schedule}: {lag}", flush=True)
    return session


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
    if options.compile == "wait" or (options.compile == "auto" and is_next):
        report(0.8, "compiling the step" if options.compile == "wait" else "looking for a compiled step")
        env.compile(wait=options.compile == "wait", cached_only=options.headless and options.compile == "auto")
    return env


def make_real(world: World, report: Report) -> PlayableEnv:
    """Build the world that dreams are learned from."""
    report(0.1, "building the world")
    env: Any = world.make()
    return cast("PlayableEnv", env)


if __name__ == "__main__":
    sys.exit(main())
