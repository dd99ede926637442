"""The second part of `train.finetune`: recording and preparing, beside compiling the loss."""

import dataclasses
import signal
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from envs.data.episodes import open_shards
from envs.worlds.registry import get_world
from train.core.background import BackgroundProgram
from train.core.machine import compile_model
from train.data.clips import list_episodes
from train.finetuning.work import Work
from worldmodel.checkpoint import resolve
from worldmodel.errors import StateError, WorldModelError


def record_words(work: Work, out: Path) -> dict[str, Any]:
    """Return the options of `train.record` for this world."""
    options, settings = work.options, work.keeper.info.get("settings", {})
    words: dict[str, Any] = {
        "--out": out,
        "--world": work.keeper.info.get("world", "LabMaze"),
        "--episodes": options.episodes,
        "--length": options.length,
        "--workers": options.workers,
        "--seed": 7_000_000 + options.seed,
        "--image-size": work.codec.config.image_size,
        "--episodes-per-shard": max(1, min(4, options.episodes // (2 * options.workers))),
        "--test-fraction": 0.02,
    }
    known = {field.name for field in dataclasses.fields(get_world(words["--world"]).Settings)}
    chosen = [f"{name}={value}" for name, value in settings.items() if name in known and value is not None]
    return words | ({"--set": chosen} if chosen else {})


def prepare_words(work: Work, part: int) -> dict[str, Any]:
    """Return the options of `train.warps` for one of the preparers."""
    options = work.options
    return {
        "--data": work.recording,
        "--out": work.prepared,
        "--checkpoint": resolve(options.world),
        "--depth": resolve(options.world if options.depth is None else options.depth),
        "--seed": options.seed,
        "--parts": options.preparers,
        "--part": part,
        "--follow-s": 0 if options.is_recorded else 1e5,
        "--device": options.device,
    }


def spell(words: dict[str, Any]) -> list[str]:
    """Return options as words of a command line; a list gives several values."""
    values = {name: value if isinstance(value, list) else [value] for name, value in words.items()}
    return [str(part) for name, several in values.items() for part in (name, *several)]


def check(*programs: BackgroundProgram) -> None:
    """Raise what ended one of them.

    Raises:
        StateError: one failed; gives its last words.
    """
    for one in programs:
        if one.exit_status not in (None, 0, -signal.SIGTERM, -signal.SIGKILL):  # stopped here
            raise StateError(f"{one.command[4]} failed: {one.last_words}")


def compile_loss(work: Work, facts: dict[str, Any]) -> None:
    """Compile the loss on noise; where that fails, training goes on as it is."""
    started = time.monotonic()
    runner = compile_model(work.loss, work.machine.device)
    try:
        if runner is not work.loss:
            work.step_on_noise(runner, 3)
            work.step_on_noise(runner, 4)  # where a second compilation is due, it is done now
        work.runner = runner
    except WorldModelError:
        raise
    except Exception as error:  # a compiler's own
        work.report.cut("compile", f"failed, training goes on uncompiled: {first_fatal_line(str(error))}")
    work.loss.zero_grad(set_to_none=True)
    facts["compile_s"] = round(time.monotonic() - started, 1)


def first_fatal_line(text: str) -> str:
    """Return the line of a compiler's message that says what is wrong."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next((line for line in lines if "error" in line.lower()), lines[0] if lines else "no reason given")


def gather(work: Work, stack: ExitStack, facts: dict[str, Any]) -> None:
    """Record and prepare beside compiling the loss, until the time for it is over.

    Preparers with work left go on until `stack` is left, beside the training, which takes up what they make.

    Raises:
        StateError: recording or preparing failed, or there is nothing to train on.
    """
    options = work.options
    log = work.folder / "record.log"
    recorder = BackgroundProgram("train.record", spell(record_words(work, work.recording)), log)
    preparers = [
        BackgroundProgram("train.warps", spell(prepare_words(work, part)), work.folder / f"prepare_{part}.log")
        for part in range(0 if options.warps else options.preparers)
    ]
    if not options.is_recorded:
        stack.enter_context(recorder)
        stack.callback(_stop_in_time(recorder, work.clock.record_end).cancel)
    for one in preparers:
        stack.enter_context(one)
    if options.compile:
        compile_loss(work, facts)

    _wait_for_shards(work, recorder, preparers)
    recorder.stop()
    check(recorder, *preparers)
    if not _prepared(work):
        said = "; ".join(one.last_words for one in (recorder, *preparers) if one.log.is_file())
        raise StateError(f"nothing to train on after {work.clock.now:.0f} s: {said}")

    if _backlog(work) > 0:
        facts["not_prepared_yet"] = _backlog(work)
    else:
        for one in preparers:
            one.stop()
    if not options.is_recorded:
        facts |= _count_episodes(work)


def _stop_in_time(recorder: BackgroundProgram, end: float) -> threading.Timer:
    """Start what stops a recorder at `end`, `time.monotonic()`."""
    timer = threading.Timer(max(0.0, end - time.monotonic()), recorder.stop)
    timer.daemon = True
    timer.start()
    return timer


def _prepared(work: Work) -> list[Path]:
    """Return the shards that are prepared."""
    return list(work.prepared.glob("train-*.safetensors"))


def _backlog(work: Work) -> int:
    """Return how many shards are recorded and not prepared."""
    return len(list(work.recording.glob("train-*.h5"))) - len(_prepared(work))


def _wait_for_shards(work: Work, recorder: BackgroundProgram, preparers: list[BackgroundProgram]) -> None:
    """Wait until all that is recorded is prepared, or the time for it is over.

    Raises:
        StateError: one of the programs failed.
    """
    while preparers and time.monotonic() < work.clock.prepare_end:
        check(recorder, *preparers)
        is_over = work.options.is_recorded or recorder.exit_status is not None
        if is_over and _backlog(work) <= 0 and _prepared(work):
            return
        time.sleep(0.2)


def _count_episodes(work: Work) -> dict[str, int]:
    """Return how much was recorded; where it is less than asked for, the report says so."""
    options, clock = work.options, work.clock
    episodes = list_episodes(open_shards(work.recording))
    taken = clock.record_end - clock.started - work.report.content["parts"]["preflight"]["seconds"]
    if len(episodes) < options.episodes:
        more = taken * (options.episodes / max(1, len(episodes)) - 1)
        work.report.cut(
            "recording", f"{len(episodes)} of {options.episodes} episodes; all would have taken {more:.0f} s more"
        )
    return {"episodes": len(episodes), "frames": sum(episode.num_frames for episode in episodes)}
