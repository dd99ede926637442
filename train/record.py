"""Record episodes of a real world: `python -m train.record --world LabMaze --episodes 100 --length 480 --out DIR`.

Owns: the worker processes, the folder of a recording, going on after an interruption. Killed at any moment it leaves
whole shards only, and the same command goes on. Does not know what is in a shard (`train.data.recording`).
"""

import dataclasses
import functools
import json
import multiprocessing
import os
import signal
import threading
import warnings
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_connection
from typing import Any

import gymnasium
from tqdm import tqdm

from envs.data.episodes import open_shards, read_shard
from envs.worlds.registry import find_name
from train.core.options import options_to_json, parse_options, run_program, save_json
from train.data.recording import RecordOptions, ShardJob, episode_seeds, make_world, plan_shards, record_shard
from train.reports.recorded import show, summarize
from worldmodel.errors import DataError, StateError, StorageError

# What was an option of its own before worlds had settings, and its default.
OLD_SETTINGS = {"palette": "classic", "size": 9, "num_targets": None, "max_wall_run": None}
GONE = {f"--{name.replace('_', '-')}": f"give --set {name}=VALUE" for name in OLD_SETTINGS}
# What may differ between the runs that make one recording.
FREE_OPTIONS = ("out", "workers", "view")


@functools.cache
def _worker_world(options: RecordOptions) -> gymnasium.Env[Any, Any]:
    return make_world(options)


_progress: Any = None  # the shared frame counter of a worker process


def _start_worker(progress: Any) -> None:
    global _progress
    _progress = progress
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    parent = multiprocessing.parent_process()

    def end_with_parent() -> None:
        if parent is not None:
            wait_connection([parent.sentinel])
            os._exit(1)  # a killed parent must not leave recorders behind

    threading.Thread(target=end_with_parent, daemon=True).start()


def _count_frames(num_frames: int) -> None:
    with _progress.get_lock():
        _progress.value += num_frames


def _record_in_worker(job: ShardJob, options: RecordOptions) -> None:
    record_shard(_worker_world(options), job, options, _count_frames)


def record_jobs(jobs: list[ShardJob], options: RecordOptions, bar: "tqdm[Any]") -> None:
    """Record shards in this process or in several, moving the progress bar by frames.

    Raises:
        StorageError: the disk is full; whole shards are kept.
        StateError: a worker process died.
    """
    # Mesa's software renderer: no threads of its own inside a recorder, they stall each other (a third faster).
    os.environ.setdefault("LP_NUM_THREADS", "0")

    if options.workers == 1 or len(jobs) == 1:
        env = make_world(options)
        try:
            for job in jobs:
                record_shard(env, job, options, lambda num_frames: bar.update(num_frames) and None)
        finally:
            env.close()
        return

    # Spawned, not forked: a forked OpenGL context is broken.
    context = multiprocessing.get_context("spawn")
    progress = context.Value("q", 0)
    num_workers = min(options.workers, len(jobs))
    pool = ProcessPoolExecutor(num_workers, context, initializer=_start_worker, initargs=(progress,))

    is_done = False
    try:
        waiting: set[Future[None]] = {pool.submit(_record_in_worker, job, options) for job in jobs}
        while waiting:
            done, waiting = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
            bar.update(progress.value - bar.n)
            for future in done:
                future.result()
        is_done = True
    except BrokenProcessPool as error:
        raise StateError(
            "a recording process died (killed, or out of memory); whole shards are kept: run the same command again, "
            f"with fewer than {num_workers} workers if memory is short"
        ) from error
    finally:
        if not is_done:
            for process in multiprocessing.active_children():
                process.terminate()
        pool.shutdown(wait=is_done, cancel_futures=True)


def _fixed_options(options: RecordOptions) -> dict[str, Any]:
    fixed = {name: value for name, value in options_to_json(options).items() if name not in FREE_OPTIONS}
    return fixed | {"set": sorted(options.set)}


def _upgrade(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of an older recording as they are said now."""
    old = {name: options.pop(name) for name in OLD_SETTINGS if name in options}
    chosen = sorted(f"{name}={value}" for name, value in old.items() if value != OLD_SETTINGS[name])
    return {"depth": False, "set": chosen} | options


def open_recording(options: RecordOptions) -> list[ShardJob]:
    """Make or reopen the folder of a recording and return the shards that are still to be recorded.

    Raises:
        DataError: the folder holds something else, or a recording with other options.
        StorageError: the folder cannot be made or written.
    """
    given = _fixed_options(options)
    description = options.out / "recording.json"
    has_shards = any(options.out.glob("*.h5"))
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make folder {options.out}: {error.strerror}; choose another --out") from error
    if description.exists() and has_shards:
        try:
            found = _upgrade(json.loads(description.read_text())["options"])
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{description} is damaged: delete the folder, or record into another --out") from error
        names = sorted(given.keys() | found.keys())
        others = [f"{name}={found.get(name)!r}" for name in names if found.get(name) != given.get(name)]
        if others:
            raise DataError(
                f"{options.out} holds a recording made with {', '.join(others)}: give the same options to go on, or "
                "another --out"
            )
    elif has_shards:
        raise DataError(f"{options.out} has shards but no recording.json: record into another --out")
    for stale in options.out.glob(".*.tmp"):
        stale.unlink(missing_ok=True)
    save_json(description, {"options": given, "is_complete": False})
    return [job for job in plan_shards(options) if not _is_recorded(job, options)]


def _is_recorded(job: ShardJob, options: RecordOptions) -> bool:
    path = options.out / job.name
    if not path.exists():
        return False
    try:
        episodes = read_shard(path).episodes
    except DataError as error:
        warnings.warn(f"recording it again: {error}", stacklevel=2)
        return False
    return [(e.seed, e.scene_seed) for e in episodes] == [
        episode_seeds(options.seed, episode, job.split)[:2] for episode in job.episodes
    ]


def record(options: RecordOptions) -> dict[str, Any]:
    """Record what is still missing, and show it where asked.

    Returns:
        The totals, as in `recording.json`.

    Raises:
        WorldModelError: one of its kinds; see the functions above.
    """
    options = dataclasses.replace(options, world=find_name(options.world))
    if options.episodes:
        jobs = open_recording(options)
        num_frames = sum(len(job.episodes) for job in jobs) * (options.length + 1)
        with tqdm(total=num_frames, unit=" frames", disable=not jobs, smoothing=0.05) as bar:
            if jobs:
                record_jobs(jobs, options, bar)
    shards = open_shards(options.out)
    totals = summarize(shards)
    if options.episodes:
        description = {"options": _fixed_options(options), "is_complete": True, "totals": totals}
        save_json(options.out / "recording.json", description)
    if options.view is not None:
        show(shards, options.view)
    return totals


def main() -> None:
    """Read the options, record, print the totals as JSON."""
    print(json.dumps(record(parse_options(RecordOptions, "python -m train.record", gone=GONE))))


if __name__ == "__main__":
    run_program(main)
