"""Many dreams in one vector: how fast they are, what each holds, and what it costs to begin one anew.

Owns: the comparison with as many environments of their own (Gymnasium's SyncVectorEnv), stepped in turn. Needs no
recording, and judges no picture.
"""

import functools
import statistics
import time
from dataclasses import dataclass
from typing import Any, ClassVar

import gymnasium
import numpy as np

from train.core.machine import describe_machine
from train.core.stopwatch import time_in_turn
from train.measures.base import Bench, Measure
from train.measures.speed import has_openings, use_threads
from train.measures.step_parts import WARM_UP
from train.reports.plots import markdown_row
from worldmodel.counts import check_whole
from worldmodel.errors import ConfigError


@dataclass(frozen=True)
class VectorOptions:
    """Settings.

    Attributes:
        num_envs: dreams.
        rounds: how often each thing is timed.
        threads: CPU threads for torch; None: as they are.
    """

    num_envs: int = 16
    rounds: int = 10
    threads: int | None = None

    def __post_init__(self) -> None:
        for name in ("num_envs", "rounds"):
            check_whole(name, getattr(self, name), 1)


class Vector(Measure):
    """Frames a second of dreams in one vector and of as many environments, bytes a dream, ms of an autoreset."""

    name = "vector"
    Options = VectorOptions
    needs = ()
    quick: ClassVar[dict[str, int | str]] = {"num_envs": 2, "rounds": 2}

    def num_frames(self, bench: Bench, options: VectorOptions) -> int:
        """Return the frames to dream."""
        return 2 * options.num_envs * (options.rounds + WARM_UP)

    def check(self, bench: Bench, options: VectorOptions) -> None:
        """Raise `ConfigError` where the world has no openings, or was not loaded from a bundle."""
        if not has_openings(bench.model):
            raise ConfigError("only a world loaded from a bundle with openings makes environments")

    def run(self, bench: Bench, options: VectorOptions) -> dict[str, Any]:
        """Measure.

        Returns:
            what `measure_vector` says.
        """
        with use_threads(options.threads):
            return measure_vector(bench, options)

    def lines(self, found: dict[str, Any]) -> list[str]:
        """Return a table."""
        rows = [
            (f"{found['num_envs']} dreams in one vector, frames/s", found["vector_frames_per_s"]),
            ("as many environments in turn (SyncVectorEnv), frames/s", found["sync_frames_per_s"]),
            ("times as fast", found["times_as_fast"]),
            ("memory a dream, MB", found["dream_bytes"] / 1e6),
            ("and its share of the kept openings, MB", found["starts_bytes"] / found["num_envs"] / 1e6),
            ("to begin a dream anew, ms", found["autoreset_ms"]),
        ]
        head = [markdown_row("what", ""), markdown_row("---", "---")]
        return [*head, *(markdown_row(name, f"{value:.3g}") for name, value in rows), "", found["machine"]]


def measure_vector(bench: Bench, options: VectorOptions) -> dict[str, Any]:
    """Step a vector of dreams and as many environments in turn; then begin dreams anew.

    Returns:
        `num_envs`, `machine`; `vector_frames_per_s` and `sync_frames_per_s`, of median steps; `times_as_fast`;
        `dream_bytes`: all tensors of a dream; `starts_bytes`: of all openings kept; `autoreset_ms`: a dream, of an
        opening that is kept.
    """
    from envs.vector import DreamVectorEnv

    model, count = bench.model, options.num_envs
    kind = f"envs:Dream/{bench.world.name}-v0"
    common: dict[str, Any] = {
        "num_envs": count,
        "checkpoint": str(model.source),
        "device": str(model.device),
        "num_steps": model.config.num_steps,
        "memory_frames": model.memory_frames,
    }
    vector = gymnasium.make_vec(kind, **common)
    sync = gymnasium.make_vec(kind, vectorization_mode="sync", **common)
    assert isinstance(vector, DreamVectorEnv)
    actions = np.ones(count, np.int64)
    for env in (vector, sync):
        env.reset(seed=bench.seed, options={"opening": 0})

    tasks = {"vector": functools.partial(vector.step, actions), "sync": functools.partial(sync.step, actions)}
    ms = time_in_turn(tasks, options.rounds, model.device)
    bench.on_frames(2 * count * (options.rounds + WARM_UP))

    spent = []
    for _ in range(options.rounds):
        started = time.perf_counter()
        vector.reset(options={"opening": 0})
        spent.append(1000 * (time.perf_counter() - started) / count)
    sync.close()
    return {
        "num_envs": count,
        "machine": describe_machine(model.device),
        "vector_frames_per_s": 1000 * count / ms["vector"],
        "sync_frames_per_s": 1000 * count / ms["sync"],
        "times_as_fast": ms["sync"] / ms["vector"],
        "dream_bytes": vector.num_bytes // count,
        "starts_bytes": vector.starts.num_bytes,
        "autoreset_ms": statistics.median(spent),
    }
