"""Speed: how fast a world dreams, whether it stays so as the dream grows old, and what each part of a step takes.

Owns: one dream that grows old, its step at several ages, and the tables. Does not know what a step is made of
(`train.measures.step_parts`). Needs no recording, and judges no picture.

Things that are compared are timed in turn, round after round, so that a machine that slows down slows all of them.
Every time is a median after warm-up, of one dream, as for a single player.
"""

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from train.core.machine import describe_machine
from train.core.stopwatch import measure_bandwidth, measure_matrix_speed, peak_memory, time_in_turn
from train.measures.base import Bench, Measure
from train.measures.step_parts import PARTS, WARM_UP, find_floors, time_env, time_parts
from train.reports.plots import markdown_row
from worldmodel.checkpoint import has_part, load_openings
from worldmodel.errors import CompileError, ConfigError
from worldmodel.state import WorldState
from worldmodel.world import WorldModel

DEPTHS = (20, 200, 2_000, 10_000)
RECENT = 50  # steps before an age over which the passing time is the median


@dataclass(frozen=True)
class SpeedOptions:
    """Settings of the dream and of the timing.

    Attributes:
        frames: how often each thing is timed.
        deep_frames: age of the oldest dream timed; it is really dreamt, frame by frame.
        compile: compile the step first, and dream compiled; the uncompiled step is timed beside it.
        threads: CPU threads for torch; None: as they are.
    """

    frames: int = 50
    deep_frames: int = 10_000
    compile: bool = False
    threads: int | None = None

    def __post_init__(self) -> None:
        for name in ("frames", "deep_frames"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1; got {getattr(self, name)}")
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"threads must be at least 1 or none; got {self.threads}")

    @property
    def ages(self) -> list[int]:
        """Frames of the dream at which its step is timed."""
        return sorted({age for age in DEPTHS if age < self.deep_frames} | {self.deep_frames})


class Speed(Measure):
    """Time of a step, of its parts, and by the age of the dream."""

    name = "speed"
    Options = SpeedOptions
    needs = ()
    quick: ClassVar[dict[str, int | str]] = {"frames": 5, "deep_frames": 30}

    def num_frames(self, bench: Bench, options: SpeedOptions) -> int:
        """Return the frames to dream: the old dream, its step at each age and uncompiled, and the env's."""
        num_timed = len(options.ages) + 1 + has_openings(bench.model)
        return options.deep_frames + num_timed * (options.frames + WARM_UP)

    def check(self, bench: Bench, options: SpeedOptions) -> None:
        """Raise `CompileError` where a compiled step is asked for, and there is no bundle to compile it from."""
        check_compile(bench.model, options.compile)

    def run(self, bench: Bench, options: SpeedOptions) -> dict[str, Any]:
        """Measure.

        Returns:
            what `measure_speed` says.

        Raises:
            CompileError: the step cannot be compiled here.
        """
        with use_threads(options.threads):
            return measure_speed(bench, options)

    def lines(self, found: dict[str, Any]) -> list[str]:
        """Return a table of the parts of a step, and one by age."""
        steps = {"step, uncompiled": found["uncompiled_step_ms"]}
        if found["is_compiled"]:
            steps["step, compiled"] = found["step_ms"]
        lines = [markdown_row("part", "ms", "GFLOP", "floor, ms"), markdown_row(*["---"] * 4)]
        for name, value in found["part_ms"].items():
            floor = found["part_floors"].get(name, {})
            lines.append(markdown_row(PARTS[name], *map(_number, (value, floor.get("gflop"), floor.get("floor_ms")))))
        lines += [markdown_row(name, _number(value), None, None) for name, value in steps.items()]
        lines += ["", markdown_row("frame of the dream", *found["ages"])]
        lines.append(markdown_row(*["---"] * (len(found["ages"]) + 1)))
        lines.append(markdown_row("step, ms", *map(_number, found["step_ms_at_frame"].values())))
        lines.append(markdown_row("step as it came by, ms", *map(_number, found["passing_step_ms_at_frame"].values())))

        peak = found["peak_memory_bytes"]
        most = "" if peak is None else f", the most that was used {peak / 1e6:.0f} MB"
        return [
            *lines,
            "",
            f"{found['frames_per_s']:.1f} frames/s; a dream holds {found['dream_bytes'] / 1e6:.1f} MB, the weights "
            f"{found['weights_bytes'] / 1e6:.1f} MB{most}. {found['machine']}, threads of torch: {found['threads']}.",
            "",
            "Floor: the operations at the speed of a large matrix product, or weights and memory at the speed of a "
            "large copy, whichever is longer.",
        ]


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.3g}"


@contextlib.contextmanager
def use_threads(count: int | None) -> Iterator[None]:
    """Let torch use `count` CPU threads for a while; None: as many as it does."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def check_compile(model: WorldModel, is_wanted: bool) -> None:
    """Check that a world can be compiled where that is wanted.

    Raises:
        CompileError: it was not loaded from a bundle.
    """
    if is_wanted and model.source is None:
        raise CompileError("only a world loaded from a bundle can be compiled: leave compile out")


def has_openings(model: WorldModel) -> bool:
    """Return whether a world was loaded from a bundle with openings."""
    return model.source is not None and has_part(model.source, "openings")


def start_dream(model: WorldModel, seed: int) -> WorldState:
    """Return one dream from the bundle's first opening, or from gray frames where it has no openings."""
    if model.source is not None and has_openings(model):
        openings = load_openings(model.source)
        return model.reset(openings["frames"][:1], openings["actions"][:1].long(), [seed])
    size = model.codec.config.image_size
    frames = torch.full((1, 4, size, size, 3), 128, dtype=torch.uint8)
    return model.reset(frames, torch.zeros(1, 3, dtype=torch.int64), [seed])


def time_steps(
    model: WorldModel, dreams: Mapping[str, WorldState], rounds: int, on_frames: Callable[[int], object]
) -> dict[str, float]:
    """Return ms of one step of each dream, its frame on the CPU, timed in turn; the dreams grow older.

    Args:
        model: the world.
        dreams: by name.
        rounds: how often each is timed.
        on_frames: told the number of frames dreamt at the end, so that it takes no time of theirs.
    """
    forward = torch.tensor([1])

    def one_step(dream: WorldState) -> Callable[[], Any]:
        return lambda: model.step(dream, forward).frames.cpu()

    found = time_in_turn({name: one_step(dream) for name, dream in dreams.items()}, rounds, model.device)
    on_frames(len(dreams) * (rounds + WARM_UP))
    return found


@dataclass
class OldDream:
    """A dream that grew old.

    Attributes:
        kept: copies of it at several ages, by frame.
        passing_ms: median time of the steps just before.
        peak_bytes: the most memory used until then.
    """

    kept: dict[str, WorldState] = field(default_factory=dict)
    passing_ms: dict[str, float] = field(default_factory=dict)
    peak_bytes: dict[str, int | None] = field(default_factory=dict)


def grow_old(model: WorldModel, ages: list[int], seed: int, on_frames: Callable[[int], object]) -> OldDream:
    """Dream on under random actions to the last of `ages`, which rise."""
    state, chance = start_dream(model, seed), torch.Generator().manual_seed(seed)
    found, recent = OldDream(), list[float]()
    for frame in range(1, ages[-1] + 1):
        action = torch.randint(model.num_actions, (1,), generator=chance)
        started = time.perf_counter()
        model.step(state, action).frames.cpu()
        recent = [*recent[1 - RECENT :], 1000 * (time.perf_counter() - started)]
        on_frames(1)
        if frame in ages:
            found.kept[str(frame)] = state.clone()
            found.passing_ms[str(frame)] = statistics.median(recent)
            found.peak_bytes[str(frame)] = peak_memory(model.device)
    return found


def describe_world(model: WorldModel) -> dict[str, Any]:
    """Return what is measured, and where.

    Returns:
        `machine`, `threads`; `parameters` of codec and denoiser; `weights_bytes`.
    """
    modules = {"codec": model.codec, "denoiser": model.denoiser}
    return {
        "machine": describe_machine(model.device),
        "threads": torch.get_num_threads(),
        "parameters": {name: sum(p.numel() for p in module.parameters()) for name, module in modules.items()},
        "weights_bytes": sum(p.nbytes for module in modules.values() for p in module.state_dict().values()),
    }


def summarize_ages(old: OldDream, step_ms: dict[str, float]) -> dict[str, Any]:
    """Return how the step of a dream depends on its age.

    Args:
        old: the dream.
        step_ms: of `time_steps`, by age.

    Returns:
        `ages`; by age `step_ms_at_frame`: from there on, all timed in turn; `passing_step_ms_at_frame`: over the steps
        before, as the dream came by; `peak_memory_bytes_at_frame`. `step_ms` and `frames_per_s` of the oldest dream;
        `step_growth`: its step over that at frame 200 (or the first age), minus 1. `cache_bytes`: keys and values,
        which do not grow; `dream_bytes`: with the memory of pixels.
    """
    ages = list(step_ms)
    oldest, base = ages[-1], "200" if "200" in step_ms else ages[0]
    dream = old.kept[oldest].dream
    return {
        "ages": [int(age) for age in ages],
        "step_ms_at_frame": step_ms,
        "passing_step_ms_at_frame": old.passing_ms,
        "peak_memory_bytes_at_frame": old.peak_bytes,
        "step_ms": step_ms[oldest],
        "frames_per_s": 1000 / step_ms[oldest],
        "step_growth": step_ms[oldest] / step_ms[base] - 1,
        "cache_bytes": dream.cache.num_bytes,
        "dream_bytes": dream.num_bytes,
    }


def measure_speed(bench: Bench, options: SpeedOptions) -> dict[str, Any]:
    """Measure speed and memory of one dream.

    Returns:
        what `describe_world` and `summarize_ages` say; `is_compiled`, `compile_s` (null without), `uncompiled_step_ms`;
        `part_ms`: of `PARTS`, the env's null without openings; `part_floors`: see `find_floors`; `peak_memory_bytes`:
        of the GPU, or else of the process so far; `matrix_gflops` of a large matrix product in bfloat16 and float32;
        `bandwidth_gbytes` of a large copy.

    Raises:
        CompileError: the step cannot be compiled here.
    """
    model = bench.model.with_settings()  # of its own: other measures do not step compiled
    device, rounds = model.device, options.frames
    compile_s = _compile(model) if options.compile else None
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)

    old = grow_old(model, options.ages, bench.seed, bench.on_frames)
    found = describe_world(model) | {"is_compiled": options.compile, "compile_s": compile_s}
    found |= summarize_ages(old, time_steps(model, old.kept, rounds, bench.on_frames))

    model.compiled, oldest = None, old.kept[str(options.deep_frames)]
    found["uncompiled_step_ms"] = time_steps(model, {"step": oldest}, rounds, bench.on_frames)["step"]
    found["part_ms"] = time_parts(model, oldest, rounds)
    found["peak_memory_bytes"] = peak_memory(device)  # before the env loads the world once more
    env_ms = time_env(model, rounds, bench.seed, bench.on_frames) if has_openings(model) else None
    found["part_ms"]["env_overhead"] = env_ms

    found["part_floors"] = find_floors(model)
    speeds = {name: measure_matrix_speed(device, getattr(torch, name)) for name in ("bfloat16", "float32")}
    return found | {"matrix_gflops": speeds, "bandwidth_gbytes": measure_bandwidth(device)}


def _compile(model: WorldModel) -> float:
    """Compile the step of a world, and return how long that took, seconds."""
    started = time.perf_counter()
    model.compile()
    return time.perf_counter() - started
